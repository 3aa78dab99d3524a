"""Denoiser: a network and what its output means. model(z, t, y) -> Prediction, and samples in one line."""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from justimage.data.spec import DataSpec
from justimage.data.tables import is_hub_id
from justimage.networks.jit import JiT, JiTConfig, architecture
from justimage.process import SPACES, Prediction, Space, expand
from justimage.randomness import noise
from justimage.samplers import Sampling, guided
from justimage.weights import folder as weights_folder
from justimage.weights import hub

# t, sigma_noise -> (c_skip, c_out), for x = c_skip z + c_out net(z, t) (appendix B.2 and Table 10, arXiv 2511.13720)
Scalings = Callable[[Tensor, float], tuple[Tensor, Tensor]]


def edm_scalings(t: Tensor, noise_scale: float, sigma_data: float = 0.5) -> tuple[Tensor, Tensor]:
    """The pre-conditioner of EDM (arXiv 2206.00364) for z / t, with sigma = noise_scale (1 - t) / t.

    Written with both fractions multiplied by t, so that t = 0 needs no floor.
    """
    signal, sigma = sigma_data * t, noise_scale * (1 - t)
    power = signal.square() + sigma.square()
    return sigma_data * signal / power, sigma_data * sigma / power.sqrt()


def linear_scalings(t: Tensor, noise_scale: float) -> tuple[Tensor, Tensor]:
    """c_skip = t, c_out = 1 - t."""
    return t, 1 - t


Preconditioner = Literal["none", "edm", "linear"]
SCALINGS: dict[Preconditioner, Scalings | None] = {
    "none": None,
    "edm": edm_scalings,
    "linear": linear_scalings,
}


class Denoiser(nn.Module):
    """A network, the space it predicts in, and the noise it was trained with.

    net(z, t, y) -> (B, C, *S) is a `JiT`, or a module with the same `config` and `initialise`. space is what it
    predicts: x (the paper's choice), eps or v. preconditioner turns the output into x by c_skip z + c_out net.
    noise_scale is the standard deviation of eps; t_eps floors denominators. spec says what values mean; sampling
    are the settings recommended; training and licence are facts to travel with the weights.

    Raises ValueError for a space or pre-conditioner that does not exist, or a spec that does not fit the network.
    """

    def __init__(
        self,
        net: JiT,
        *,
        space: Space = "x",
        t_eps: float = 0.05,
        noise_scale: float = 1.0,
        preconditioner: Preconditioner = "none",
        spec: DataSpec | None = None,
        sampling: Sampling | None = None,
        training: dict[str, Any] | None = None,
        licence: str = "",
    ):
        super().__init__()
        if space not in SPACES:
            raise ValueError(f"no space is called {space!r}; there are {', '.join(SPACES)}")
        if preconditioner not in SCALINGS:
            raise ValueError(f"no pre-conditioner is called {preconditioner!r}; there are {', '.join(SCALINGS)}")
        if preconditioner != "none" and space != "x":
            raise ValueError(f"a pre-conditioner yields x; it does not go with a network that predicts {space}")
        if not 0 < t_eps < 1 or noise_scale <= 0:
            raise ValueError(f"t_eps is {t_eps} (between 0 and 1) and noise_scale {noise_scale} (above 0)")
        config = net.config
        if spec is not None and len(spec.channels) != config.channels:
            raise ValueError(f"the network has {config.channels} channels and the data {len(spec.channels)}")
        if spec is not None and len(spec.classes) != config.num_classes:
            raise ValueError(f"the network has {config.num_classes} classes and the data {len(spec.classes)}")
        if spec is not None and spec.size != config.size:
            raise ValueError(f"the network is for the size {config.size} and the data have {spec.size}")
        self.net = net
        self.config = config
        self.space: Space = space
        self.t_eps = t_eps
        self.noise_scale = noise_scale
        self.preconditioner: Preconditioner = preconditioner
        self.spec = spec
        self.sampling = sampling or Sampling()
        self.training_summary = training or {}
        self.licence = licence

    @property
    def device(self) -> torch.device:
        """Where the parameters are; the CPU for a network that has none."""
        first = next(self.parameters(), None)
        return torch.device("cpu") if first is None else first.device

    @property
    def null_label(self) -> int:
        """The label that means "no condition"."""
        return self.config.num_classes

    def forward(self, z: Tensor, t: Tensor, y: Tensor | None = None) -> Prediction:
        """z (B, C, *S), t (B,) in [0, 1], y (B,) labels -> Prediction, float32. No y: the null label for all."""
        if y is None and self.config.num_classes:
            y = torch.full((len(z),), self.null_label, device=z.device)
        raw = self.net(z, t, y)
        raw = raw.to(torch.promote_types(raw.dtype, torch.float32))
        scalings = SCALINGS[self.preconditioner]
        if scalings is not None:
            c_skip, c_out = scalings(expand(t, z), self.noise_scale)
            raw = c_skip * z + c_out * raw
        return Prediction(raw, z, t, self.space, self.t_eps)

    def labels(self, labels: Sequence[int | str] | Tensor | int | str) -> list[int]:
        """Classes by index or name -> indices; the null label is allowed. Raises ValueError for any other."""
        if isinstance(labels, Tensor):
            labels = labels.tolist()
        named = [labels] if isinstance(labels, int | str) else list(labels)
        if self.config.num_classes == 0:
            raise ValueError(f"this model is unconditional; it has no labels, and {named[:3]} were asked for")
        indices = []
        for label in named:
            if label == self.null_label and not isinstance(label, str):
                indices.append(self.null_label)
            elif self.spec is not None:
                indices.append(self.spec.label(label))
            elif isinstance(label, str) and not label.isdecimal():
                raise ValueError(
                    f"class {label!r}: this model carries no class names; use numbers below {self.null_label}"
                )
            elif not 0 <= int(label) < self.null_label:
                raise ValueError(f"label {label} is out of range: there are {self.null_label} classes, counted from 0")
            else:
                indices.append(int(label))
        return indices

    @torch.no_grad()
    def sample(
        self,
        labels: Sequence[int | str] | Tensor | int | str | None = None,
        seeds: Sequence[int] | int | None = None,
        *,
        size: tuple[int, ...] | None = None,
        raw: bool = True,
        **settings: Any,
    ) -> Tensor:
        """Draw samples, one for each seed: raw values (B, C, *S) on the CPU, or model values with raw=False.

        labels: a class (index or name) for each seed, or one for all; None: without condition, and so without
        guidance. seeds: one for each sample, 0, 1, 2, ... by default; sample k depends on its
        seed and label alone. size: other than the model's, any that the patch divides. settings: fields of
        `Sampling` (steps, sampler, guidance, interval, final) in place of the recommended ones.

        Raises ValueError for labels that do not exist, numbers that do not match, or unknown settings.
        """
        known = Sampling.__dataclass_fields__
        unknown = [name for name in settings if name not in known]
        if unknown:
            raise ValueError(f"no sampling setting is called {', '.join(unknown)}; there are {', '.join(known)}")
        sampling = replace(self.sampling, **settings)

        indices = None if labels is None else self.labels(labels)
        if seeds is None:
            seeds = range(1 if indices is None else len(indices))
        seeds = [seeds] if isinstance(seeds, int) else [int(seed) for seed in seeds]
        if any(seed < 0 for seed in seeds):
            raise ValueError(f"seeds are whole numbers from 0 on, not {min(seeds)}")
        if indices is not None and len(indices) == 1:
            indices = indices * len(seeds)
        if indices is not None and len(indices) != len(seeds):
            raise ValueError(f"{len(indices)} labels and {len(seeds)} seeds; one of each is needed for every sample")

        if indices is None and settings.get("guidance", 1) != 1:
            raise ValueError(f"guidance is {sampling.guidance}, and there are no labels to guide with")
        y = None if indices is None else torch.tensor(indices, device=self.device)
        null = None if y is None else torch.full_like(y, self.null_label)
        shape = (self.config.channels, *(size or self.config.size))
        z = self.noise_scale * noise(seeds, shape).to(self.device)

        was_training = self.training
        self.eval()
        try:
            x = sampling.run(guided(self, y, null, sampling.guidance, sampling.interval), z)
        finally:
            self.train(was_training)
        return self.spec.decode(x).cpu() if raw and self.spec is not None else x.cpu()

    def describe(self) -> dict[str, Any]:
        """Everything but the tensors, as plain values for config.json."""
        return {
            "architecture": architecture(self.config),
            "prediction": {
                "space": self.space,
                "t_eps": self.t_eps,
                "noise_scale": self.noise_scale,
                "preconditioner": self.preconditioner,
            },
            "data": None if self.spec is None else asdict(self.spec),
            "sampling": asdict(self.sampling),
            "training": self.training_summary,
            "licence": self.licence,
        }

    @classmethod
    def from_description(cls, config: dict[str, Any], tensors: dict[str, Tensor] | None = None) -> "Denoiser":
        """The inverse of `describe`; with tensors, these become the network's, without a second copy.

        Raises ValueError where the configuration has unknown fields, or the tensors are not the network's.
        """
        try:
            with torch.device("meta" if tensors is not None else "cpu"):
                net = JiT(JiTConfig(**_tuples(config["architecture"])))
            spec = None if config["data"] is None else DataSpec.from_json(config["data"])
            sampling = Sampling(**_tuples(config["sampling"]))
            model = cls(
                net,
                **config["prediction"],
                spec=spec,
                sampling=sampling,
                training=config.get("training"),
                licence=config.get("licence", ""),
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"the configuration of these weights is not one of this version: {error}") from error
        if tensors is not None:
            assign_tensors(net, tensors)
        return model

    def save_pretrained(self, folder: str | Path) -> None:
        """Write model.safetensors, config.json and a card into a folder.

        Raises ValueError where the parameters are not float32 any more: `load` may have cast them to sample faster.
        """
        kept = {str(p.dtype).removeprefix("torch.") for p in self.net.parameters()}
        if kept != {"float32"}:
            raise ValueError(
                f"the parameters are {', '.join(sorted(kept))}, and saving them would lose precision; "
                "load the model with dtype=torch.float32"
            )
        weights_folder.write_folder(Path(folder), self.net.state_dict(), self.describe())

    @classmethod
    def from_pretrained(cls, source: str | Path, *, revision: str | None = None) -> "Denoiser":
        """Read a weights folder, or download one by its hub id. Raises ValueError where it is not one."""
        folder = Path(source)
        if not folder.is_dir() and is_hub_id(str(source)):
            folder = hub.from_hub(str(source), revision)
        tensors, config = weights_folder.read_folder(folder)
        return cls.from_description(config, tensors).eval()

    def push_to_hub(self, repository: str, *, private: bool = False) -> str:
        """Upload to the Hugging Face hub as USER/NAME; returns the address. Needs `hf auth login` once."""
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            return hub.to_hub(Path(folder), repository, private=private)


def _tuples(values: dict[str, Any]) -> dict[str, Any]:
    """JSON knows lists only; the frozen dataclasses hold tuples."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


def assign_tensors(net: JiT, tensors: dict[str, Tensor]) -> None:
    """Give a network built on the meta device its tensors. Raises ValueError that lists what does not fit."""
    expected = {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}
    wrong = [f"missing: {name} {expected[name]}" for name in expected if name not in tensors]
    wrong += [f"unknown: {name} {tuple(tensors[name].shape)}" for name in tensors if name not in expected]
    wrong += [
        f"another shape: {name} {tuple(tensors[name].shape)}, not {shape}"
        for name, shape in expected.items()
        if name in tensors and tuple(tensors[name].shape) != shape
    ]
    if wrong:
        shown = "\n  ".join(wrong[:20]) + (f"\n  and {len(wrong) - 20} more" if len(wrong) > 20 else "")
        raise ValueError(f"these tensors are not this network's:\n  {shown}")
    net.load_state_dict(tensors, assign=True)
