"""Denoiser: a network and what its output means. model(z, t, y) -> Prediction, and samples in one line."""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Unpack

import numpy as np
import torch
from torch import Tensor, nn

from justimage.data.spec import DataSpec
from justimage.process import SPACES, Prediction, Space, expand
from justimage.randomness import SEEDS, noise
from justimage.samplers import Grid, Sampling, Settings, Step, with_settings

# t, noise_scale -> (c_skip, c_out), for x = c_skip z + c_out net(z, t) (appendix B.2 and Table 10, arXiv 2511.13720)
Scalings = Callable[[Tensor, float], tuple[Tensor, Tensor]]


def edm_scalings(t: Tensor, noise_scale: float, sigma_data: float = 0.5) -> tuple[Tensor, Tensor]:
    """The pre-conditioner of EDM (arXiv 2206.00364) for z / t, with sigma = noise_scale (1 - t) / t.

    Written with both fractions multiplied by t, so that t = 0 needs no floor.
    """
    signal, sigma = sigma_data * t, noise_scale * (1 - t)
    power = signal.square() + sigma.square()
    return sigma_data * signal / power, sigma_data * sigma / power.sqrt()


def linear_scalings(t: Tensor, noise_scale: float) -> tuple[Tensor, Tensor]:
    """c_skip = t, c_out = 1 - t (Table 10, arXiv 2511.13720)."""
    return t, 1 - t


Preconditioner = Literal["none", "edm", "linear"]
SCALINGS: dict[str, Scalings | None] = {"none": None, "edm": edm_scalings, "linear": linear_scalings}

Labels = Sequence[int | str] | Tensor | int | str  # classes by index or name
ConditionValues = Mapping[str, Any]  # the other parts of a condition by name, as raw values with the batch first


def check_noise(t_eps: float, noise_scale: float) -> None:
    """Raises ValueError where the floor of denominators or the deviation of the noise is out of range."""
    if not 0 < t_eps < 1 or not 1e-6 <= noise_scale <= 1e6:
        raise ValueError(
            f"t_eps ({t_eps}) must be between 0 and 1, and noise_scale ({noise_scale}) between 0.000001 and 1,000,000"
        )


class Denoiser(nn.Module):
    """A network, the space it predicts in, and the noise it was trained with.

    net(z, t, y) -> (B, C, *S) is any module with a frozen `config` that says `size` and `channels`; what it is
    conditioned on is `net.condition`, if it has one (justimage.networks.protocol). space is what it predicts: x (the
    paper's choice), eps or v. preconditioner turns the output into x by c_skip z + c_out net: a name, or a function
    (t, noise_scale) -> (c_skip, c_out). noise_scale is the standard deviation of eps; t_eps floors denominators. spec
    says what values mean; sampling are the settings recommended; training and licence are facts to travel with the
    weights.

    Raises ValueError for a space or pre-conditioner that does not exist, a function without a name of its own, or a
    spec that does not fit the network.
    """

    def __init__(
        self,
        net: nn.Module,
        *,
        space: Space = "x",
        t_eps: float = 0.05,
        noise_scale: float = 1.0,
        preconditioner: Preconditioner | Scalings = "none",
        spec: DataSpec | None = None,
        sampling: Sampling | None = None,
        training: dict[str, Any] | None = None,
        licence: str = "",
    ):
        super().__init__()
        if space not in SPACES:
            raise ValueError(f"no space is called {space!r}; there are {', '.join(SPACES)}")
        if isinstance(preconditioner, str) and preconditioner not in SCALINGS:
            raise ValueError(f"no pre-conditioner is called {preconditioner!r}; there are {', '.join(SCALINGS)}")
        if preconditioner != "none" and space != "x":
            raise ValueError(f"a pre-conditioner yields x; it cannot go with a network that predicts {space}")
        check_noise(t_eps, noise_scale)
        self.net = net
        self.config: Any = net.config
        self.space: Space = space
        self.t_eps = t_eps
        self.noise_scale = noise_scale
        named = isinstance(preconditioner, str)
        self.scalings = SCALINGS[preconditioner] if named else preconditioner
        self.preconditioner: str = preconditioner if named else _name_of(preconditioner)
        self.spec = spec
        if spec is not None:
            self._check(spec)
        self.sampling = sampling or Sampling()
        self.training_summary = training or {}
        self.licence = licence

    def _check(self, spec: DataSpec) -> None:
        """Raises ValueError where the data are not what the network is for."""
        if len(spec.channels) != self.config.channels:
            raise ValueError(f"the network has {self.config.channels} channels, but the data have {len(spec.channels)}")
        if tuple(spec.size) != tuple(self.config.size):
            raise ValueError(f"the network is for the size {self.config.size}, but the data have {spec.size}")
        if self.condition is None:  # a network without one may learn from data that have labels
            return
        if self.num_classes != len(spec.classes):
            raise ValueError(f"the network has {self.num_classes} classes, but the data have {len(spec.classes)}")
        if self.needs != spec.needs:
            raise ValueError(
                f"the network is conditioned on {_list_needs(self.needs)}, but the data give {_list_needs(spec.needs)}"
            )

    @property
    def condition(self) -> Any:
        """What the network is conditioned on (`networks.conditions.Condition`); None for an unconditional network."""
        return getattr(self.net, "condition", None)

    @property
    def needs(self) -> tuple[tuple[str, str, int, int], ...]:
        """(name, kind, features, length) of every part of the condition; empty for an unconditional network."""
        return () if self.condition is None else tuple(self.condition.needs)

    @property
    def num_classes(self) -> int:
        """How many labels there are; 0 if none."""
        return next((features for _, kind, features, _ in self.needs if kind == "labels"), 0)

    @property
    def null_label(self) -> int:
        """The label that means "no condition"."""
        return self.num_classes

    @property
    def device(self) -> torch.device:
        """Where the parameters are; the CPU for a network that has none."""
        first = next(self.parameters(), None)
        return torch.device("cpu") if first is None else first.device

    def null(self, count: int, size: Sequence[int], device: torch.device) -> Any:
        """The value of the condition that means none, for `count` samples of a size; None if there is no condition."""
        return None if self.condition is None else self.condition.null(count, tuple(size), device)

    def forward(self, z: Tensor, t: Tensor, y: Any = None) -> Prediction:
        """z (B, C, *S), t (B,) in [0, 1] -> Prediction, float32.

        y: a value of the condition, as a dictionary of tensors (B, ...), or labels (B,) alone. None: no condition. What
        the network gives beside its output (justimage.networks.protocol) is in the prediction, as the network gives it.
        """
        if y is None:
            y = self.null(len(z), z.shape[2:], z.device)
        raw = self.net(z, t, y)
        raw, beside = raw if isinstance(raw, tuple) else (raw, {})
        raw = raw.to(torch.promote_types(raw.dtype, torch.float32))
        if self.scalings is not None:
            c_skip, c_out = self.scalings(expand(t, z), self.noise_scale)
            raw = c_skip * z + c_out * raw
        return Prediction(raw, z, t, self.space, self.t_eps, beside)

    def labels(self, labels: Labels) -> list[int]:
        """Classes by index or name -> indices; the null label is allowed. Raises ValueError for any other."""
        if isinstance(labels, Tensor | np.ndarray | np.generic):
            labels = labels.tolist()
        named = list(labels) if isinstance(labels, Sequence) and not isinstance(labels, str) else [labels]
        wrong = [each for each in named if isinstance(each, bool) or not isinstance(each, str | int | np.integer)]
        if not named or wrong:
            raise ValueError(f"labels are names of classes or whole numbers, not {wrong[0] if wrong else labels!r}")
        if self.num_classes == 0:
            what = f"its condition is {_list_needs(self.needs)}" if self.needs else "it is unconditional"
            raise ValueError(f"this model has no labels ({what}), but {named[:3]} were asked for")
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

    def value(self, labels: Labels | None, condition: ConditionValues | None, count: int, size: Sequence[int]) -> Any:
        """Labels and the other parts, as a user gives them -> a value of the condition on the CPU, or None for none.

        One entry serves for all `count` samples. Raises ValueError for parts that the network does not know or that are
        missing, and for numbers and shapes that do not match.
        """
        given = dict(condition or {})
        if labels is not None and "labels" in given:
            raise ValueError("labels are given twice: as labels, and in the condition")
        if labels is not None:
            given["labels"] = labels
        if not given:
            return None
        if "labels" in given:
            given["labels"] = torch.tensor(self.labels(given["labels"]))
        missing = [name for name, *_ in self.needs if name not in given]
        if missing and given.keys() <= _parts(self.needs, size).keys():
            raise ValueError(
                f"the condition of this model is {_list_needs(self.needs)}: {', '.join(missing)} is missing"
            )
        y = self.entries(given, size)
        for name, kind, _, length in self.needs:
            if kind == "tokens":
                y |= _pad_tokens(name, y[name], y.get(f"{name}_mask"), length)
        for name, value in y.items():
            if len(value) not in (1, count):
                each = "labels" if name == "labels" else f"entries of {name}"
                raise ValueError(f"{len(value)} {each} and {count} seeds; one of each is needed for every sample")
            y[name] = value.expand(count, *value.shape[1:])
        for name, kind, *_ in self.needs:
            if kind == "tokens" and (y[name].isnan().any(-1) & y[f"{name}_mask"]).any():
                raise ValueError(
                    f"the condition {name} has NaN in tokens that are there; leave them out with {name}_mask"
                )
        return y if self.spec is None else self.spec.encode_given(y)

    def entries(self, condition: ConditionValues, size: Sequence[int]) -> dict[str, Tensor]:
        """Parts of a condition beside labels, as a user gives them -> (B, ...), by name, raw.

        Raises ValueError as `value` does for parts that the network does not know, and for shapes that do not match.
        """
        parts = _parts(self.needs, size)
        unknown = [name for name in condition if name not in parts]
        if unknown:
            needed = _list_needs(self.needs)
            raise ValueError(f"the condition of this model is {needed}: {', '.join(unknown)} is unknown")
        return {name: _entries(name, value, *parts[name]) for name, value in condition.items()}

    def _count_asked(self, labels: Labels | None, condition: ConditionValues | None, size: Sequence[int]) -> int:
        """How many samples are meant where no seeds are given: the most entries in any part of the condition."""
        parts = _parts(self.needs, size)
        given = {name: value for name, value in (condition or {}).items() if name in parts and name != "labels"}
        counts = [len(each) for each in self.entries(given, size).values()]
        named = (condition or {}).get("labels") if labels is None else labels
        return max([1, *counts] if named is None else [len(self.labels(named)), *counts])

    def sample(
        self,
        labels: Labels | None = None,
        seeds: Sequence[int] | int | None = None,
        *,
        condition: ConditionValues | None = None,
        size: Sequence[int] | None = None,
        raw: bool = True,
        sampling: Sampling | None = None,
        step: Step | None = None,
        grid: Grid | None = None,
        **settings: Unpack[Settings],
    ) -> Tensor:
        """Draw samples, one for each seed: raw values (B, C, *S) on the CPU, or model values with raw=False.

        labels: a class (index or name) for each seed, or one for all. condition: the other parts of the condition by
        name, raw values with the batch first, one entry for each seed or one for all. With neither, samples are drawn
        without condition, and so without guidance. seeds: 0, 1, 2, ... by default; sample k depends on its seed and
        condition alone. size: one other than the model's, if the network can. sampling: settings in place of the
        recommended ones; steps, sampler, guidance, interval, final, shift, guidance_every: single fields of them,
        also as **PRESETS["fast"]. step, grid: a step and a time grid of your own (justimage.samplers).

        Raises ValueError for labels that do not exist, numbers that do not match, or unknown settings.
        """
        from justimage.sampling.draw import check_samples, draw

        chosen = with_settings(sampling or self.sampling, settings)
        size = tuple(size or self.config.size)
        if seeds is None:
            seeds = range(self._count_asked(labels, condition, size))
        seeds = [int(seeds)] if isinstance(seeds, int | np.integer) else seeds
        check_samples(len(seeds), (self.config.channels, *size), self.device)
        seeds = [int(seed) if seed == int(seed) else seed for seed in seeds]
        wrong = next((seed for seed in seeds if not isinstance(seed, int) or not 0 <= seed < SEEDS), None)
        if wrong is not None:
            raise ValueError(f"seeds are whole numbers from 0 to {SEEDS - 1:,}, not {wrong}")
        y = self.value(labels, condition, len(seeds), size)
        if y is None:
            if (sampling is not None or "guidance" in settings) and chosen.guidance != 1:
                raise ValueError(
                    f"guidance is {chosen.guidance}, but there are no labels to guide with, nor another condition"
                )
            chosen = replace(chosen, guidance=1.0)
        else:
            y = {name: each.to(self.device) for name, each in y.items()}
        z = self.noise_scale * noise(seeds, (self.config.channels, *size)).to(self.device)
        x = draw(self, y, z, chosen, step=step, grid=grid)
        return self.spec.decode(x).cpu() if raw and self.spec is not None else x.cpu()

    def save_pretrained(self, folder: str | Path) -> None:
        """Write model.safetensors, config.json and a card into a folder.

        Raises ValueError where the parameters are no longer float32: `load` may have cast them to sample faster.
        """
        from justimage.weights.description import save

        save(self, Path(folder))

    @classmethod
    def from_pretrained(cls, source: str | Path, *, revision: str | None = None) -> "Denoiser":
        """Read a weights folder, or download one by its hub id. Raises ValueError where it is not one."""
        from justimage.weights.load import from_folder_or_hub

        return from_folder_or_hub(source, revision=revision)

    def push_to_hub(self, repository: str, *, private: bool = False) -> str:
        """Upload to the Hugging Face hub as USER/NAME; returns the address. Needs `hf auth login` once.

        Raises ValueError as `save_pretrained` does.
        """
        from justimage.weights.hub import to_hub

        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            return to_hub(Path(folder), repository, private=private)


def _parts(needs: Sequence[tuple[str, str, int, int]], size: Sequence[int]) -> dict[str, tuple[str, tuple[int, ...]]]:
    """The kind and the shape of each part of a condition for one sample, the masks of tokens included."""
    parts: dict[str, tuple[str, tuple[int, ...]]] = {}
    for name, kind, features, length in needs:
        match kind:
            case "labels":
                parts[name] = kind, ()
            case "vector":
                parts[name] = kind, (features,)
            case "tokens":
                parts[name], parts[f"{name}_mask"] = (kind, (length, features)), (kind, (length,))
            case "planes":
                parts[name] = kind, (features, *size)
    return parts


def _entries(name: str, value: Any, kind: str, shape: tuple[int, ...]) -> Tensor:
    """One part of a condition, as a user gives it -> (B, *shape); one entry alone may come without the batch's axis.

    Tokens and their masks may be shorter. Raises ValueError, with the name, for other shapes and non-numbers.
    """
    try:
        tensor = value.cpu() if isinstance(value, Tensor) else torch.tensor(np.asarray(value))
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"the condition {name} is not made of numbers: {error}") from error
    found = tuple(tensor.shape)
    if kind == "vector" and shape == (1,) and tensor.ndim < 2:
        tensor = tensor.reshape(-1, 1)
    elif tensor.ndim == len(shape):
        tensor = tensor[None]
    fits = tensor.ndim == len(shape) + 1 and tensor.shape[1:] == shape
    if kind == "tokens" and tensor.ndim == len(shape) + 1:
        fits = 0 < tensor.shape[1] <= shape[0] and tensor.shape[2:] == shape[1:]
    if not fits:
        raise ValueError(
            f"the condition {name} has the shape {found}; ({', '.join(map(str, ('B', *shape)))}) is needed"
        )
    if tensor.is_floating_point() and tensor.isinf().any():
        raise ValueError(f"the condition {name} has infinite values; they must be finite, or NaN where one is missing")
    return tensor.float() if tensor.is_floating_point() else tensor


def _pad_tokens(name: str, tokens: Tensor, mask: Tensor | None, length: int) -> dict[str, Tensor]:
    """Tokens (B, L, F) and their mask (B, L), filled up with absent tokens to the full length.

    Raises ValueError where the mask has another length than the sequence.
    """
    mask = torch.ones(1, tokens.shape[1], dtype=torch.bool) if mask is None else mask.bool()
    if mask.shape[1] != tokens.shape[1]:
        raise ValueError(f"{name}_mask is for {mask.shape[1]} tokens, but {name} has {tokens.shape[1]}")
    room = length - tokens.shape[1]
    pad = nn.functional.pad
    return {name: pad(tokens, (0, 0, 0, room)), f"{name}_mask": pad(mask, (0, room))}


def _name_of(scalings: Scalings) -> str:
    """The name that weights record of a user's own pre-conditioner. ValueError where that is not unique."""
    name = getattr(scalings, "__name__", "<unnamed>")
    if not name.isidentifier() or name in SCALINGS:
        taken = f"{name!r} is another one" if name in SCALINGS else f"{name!r} does not identify it"
        raise ValueError(f"weights record a pre-conditioner by its name, and {taken}; write it as a `def` of its own")
    return name


def _list_needs(needs: Sequence[tuple[str, str, int, int]]) -> str:
    """What a condition needs, for messages."""
    shown = [
        f"{features} labels"
        if kind == "labels"
        else f"{name} ({kind} of {length or ''}{'x' if length else ''}{features})"
        for name, kind, features, length in needs
    ]
    return ", ".join(shown) or "nothing"
