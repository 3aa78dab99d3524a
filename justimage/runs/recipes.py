"""Recipes: complete trainings as values, each with the command, the hardware and the number it promises.

The paper's are Table 9 of arXiv 2511.13720; one ImageNet epoch is 1,281,167 images. A recipe's network takes its
channels and conditions from the data it is given, and its size too where the data are arrays.
"""

from dataclasses import dataclass, field, fields, replace
from math import inf
from typing import Annotated, Any

import tyro

from justimage.data.sources import DataOptions
from justimage.data.spec import DataSpec
from justimage.denoiser import Denoiser, Preconditioner, Scalings, check_noise
from justimage.networks.conditions import Part
from justimage.networks.dit import DiTConfig
from justimage.networks.jit import JiTConfig
from justimage.networks.mlp import MLPConfig
from justimage.networks.protocol import NetworkClass, NetworkConfig, name_of, network_of
from justimage.process import LogitNormal, Space
from justimage.randomness import Purpose, key
from justimage.runs.promises import PROMISES, Promise
from justimage.samplers import Sampling
from justimage.training.settings import Training
from justimage.weights.description import build_network

IMAGENET = 1_281_167
ONE_LEVEL = LogitNormal().mean  # of the denoising autoencoder: t = 0.31, the median of the paper's times


@dataclass(frozen=True)
class Report:
    """What a run leaves behind, and how often: in samples (nimg), looked at with each tick."""

    tick_nimg: int = 131_072
    """Between lines of log.jsonl."""
    sample_nimg: int = 6_400_000
    """Between grids of samples, samples/NIMG.png."""
    save_nimg: int = 6_400_000
    """Between saves of the state and the weights."""
    save_minutes: float = 30.0
    """A save also after so many minutes without one; 0: none."""
    keep_states: int = 2
    """States kept; older ones are removed."""
    milestone_nimg: int = 0
    """Between saves whose state and weights (weights/ema-0.9999@000640000) are never removed, for sweeps and to go back
    to. 0: none."""
    snapshot_nimg: int = 0
    """Between snapshots of the averages of training.ema_stds, in float32, and one at the end. 0: a 64th of the run."""
    preview_steps: int = 25
    """Steps of `deis` for the grids."""
    evaluate_nimg: int = 0
    """Between evaluations, and one at the end: lines of evaluations.jsonl, and weights/best. 0: none."""
    evaluate_count: int = 1000
    """Samples drawn for each; more where the classes would not share them out equally."""
    health_nimg: int | None = None
    """Between lines of health.jsonl, which `jit doctor` reads: the loss on a fixed grid, gradients, updates, memory. By
    default as often as costs 1 % of training, and at the end. 0: none."""

    def __post_init__(self) -> None:
        for item in fields(self):
            may_be_zero = ("evaluate_nimg", "milestone_nimg", "snapshot_nimg", "save_minutes", "health_nimg")
            least, value = 0 if item.name in may_be_zero else 1, getattr(self, item.name)
            if value is not None and not least <= value < inf:
                raise ValueError(f"report.{item.name} is {getattr(self, item.name)}; it must be at least {least}")
        Sampling(steps=self.preview_steps)  # raises now, not at the first grid


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a training run but the data.

    The network's num_classes is the number the data must have; 0 takes what they have.
    """

    network: NetworkConfig
    """The shape of the network."""
    training: Training
    """How the network is trained. Lengths of time are counted in samples (nimg), the one clock of training."""
    sampling: Sampling = field(default_factory=Sampling)
    report: Report = field(default_factory=Report)
    data_options: DataOptions = field(default_factory=DataOptions)
    prediction: Space = "x"
    """What the network predicts: x (the paper's choice), eps or v."""
    preconditioner: Preconditioner = "none"
    """Turn the output into x by c_skip z + c_out net, as EDM does or linearly (Table 10)."""
    noise_scale: float = 1.0
    """Standard deviation of the noise; image size / 256 in the paper."""
    t_eps: float = 0.05
    """Floor of the denominators 1 - t and t."""
    promise: Annotated[Promise, tyro.conf.Suppress] = field(default_factory=lambda: Promise("", "", ""))
    default_data: Annotated[str, tyro.conf.Suppress] = ""
    """Data that come with a package; empty: --data is needed."""

    def __post_init__(self) -> None:
        check_noise(self.t_eps, self.noise_scale)

    def fitted_to(self, spec: DataSpec) -> "Recipe":
        """The recipe for these data, with nothing left open.

        Raises ValueError where the network has another number of spatial axes, or its patch does not divide their size,
        or num_classes is neither 0, which takes what the data have, nor their number of classes.
        """
        network: Any = self.network
        has = {item.name for item in fields(network)}
        fitting: dict[str, Any] = {"size": spec.size, "channels": len(spec.channels)}
        if "patch" in has:
            fitting["patch"] = _patch_on(spec, network)
        elif len(spec.size) != len(network.size):
            raise ValueError(f"the data have {len(spec.size)} spatial axes, but this network has {len(network.size)}")
        if "num_classes" in has:
            classes = len(spec.classes)
            if network.num_classes not in (0, classes):
                have = f"{classes} classes" if classes else "no labels"
                raise ValueError(
                    f"the recipe is for {network.num_classes} classes, and the data have {have}; "
                    "--network.num-classes 0 takes what the data have"
                )
            fitting["num_classes"] = classes
        if "conditions" in has:
            fitting["conditions"] = tuple(Part(g.name, g.kind, g.features, g.length) for g in spec.given)
        guidance = self.sampling.guidance if spec.needs else 1.0
        return replace(
            self,
            network=replace(network, **fitting),
            sampling=replace(self.sampling, guidance=guidance),
            training=replace(self.training, mirror="on" if self.training.mirrors(spec) else "off"),
        )

    def model(
        self, spec: DataSpec, *, network: NetworkClass | None = None, preconditioner: Scalings | None = None
    ) -> Denoiser:
        """The model this recipe trains on these data, before its first step; its weights are still to be filled.

        network, preconditioner: the class and the function, where they are the user's own.
        """
        _, network_class = network_of(name_of(self.network), network)
        return Denoiser(
            build_network(network_class, self.network, empty=True, seed=key(self.training.seed, Purpose.WEIGHTS, 0)),
            space=self.prediction,
            t_eps=self.t_eps,
            noise_scale=self.noise_scale,
            preconditioner=preconditioner or self.preconditioner,
            spec=spec,
            sampling=self.sampling,
        )


def _patch_on(spec: DataSpec, network: Any) -> tuple[int, ...]:
    """The network's patch on these data. ValueError, with what to write instead, where it does not fit them."""
    patch = tuple(network.patch) * len(spec.size) if len(network.patch) == 1 else tuple(network.patch)
    size, likely = " ".join(map(str, spec.size)), " ".join(map(str, patch_for(spec.size)))
    if len(spec.size) != len(patch):
        axes = " x ".join(spec.origin.dims) if spec.origin else size
        raise ValueError(
            f"the data have {len(spec.size)} spatial axes ({axes}) and this recipe's network "
            f"{len(patch)}; fit it, for example with --network.size {size} --network.patch {likely}"
            + ("" if spec.origin else "; if an axis of channels is missing, x[:, None] adds it")
        )
    if any(s % p for s, p in zip(spec.size, patch, strict=True)):
        cut = tuple(s - s % p for s, p in zip(spec.size, patch, strict=True))
        raise ValueError(
            f"a patch of {'x'.join(map(str, patch))} does not divide a size of {'x'.join(map(str, spec.size))}; "
            f"--network.size {size} --network.patch {likely} does"
            + (f", or cut the samples with --data-options.crop {' '.join(map(str, cut))}" if all(cut) else "")
        )
    return patch


def patch_for(size: tuple[int, ...], tokens: int = 64) -> tuple[int, ...]:
    """A patch that divides a size, into about as many patches as `tokens` at the most."""
    along = round(tokens ** (1 / len(size)))
    return tuple(s // max(n for n in range(1, along + 1) if s % n == 0) for s in size)


def _imagenet(recipe: str, name: str, size: int, epochs: int, guidance: float) -> Recipe:
    return Recipe(
        promise=PROMISES[recipe],
        network=JiTConfig.variant(name, size=(size, size), num_classes=1000),
        training=Training(
            duration_nimg=epochs * IMAGENET,
            batch_size=1024,
            lr=2e-4,
            warmup_nimg=5 * IMAGENET,
            ema_start_nimg=0,
            checkpoint=name.startswith("G"),
        ),
        sampling=Sampling(steps=50, sampler="heun", guidance=guidance, interval=(0.1, 1.0)),
        noise_scale=size / 256,
    )


CIFAR10 = Recipe(
    promise=PROMISES["cifar10"],
    network=JiTConfig.variant("XS/8", size=(32, 32), num_classes=0),
    training=Training(
        duration_nimg=10_000_000,
        batch_size=64,  # at this rate, half the images that batches of 128 need (docs/LOG.md)
        lr=3e-3,
        schedule="cosine",
        warmup_nimg=12_800,
        clip_norm=1.0,
        ema_decays=(0.9995, 0.9999),
        ema_start_nimg=128_000,
    ),
    sampling=Sampling(steps=12, sampler="deis", guidance=2.0, interval=(0.1, 1.0)),
    # 1,000 samples take as long as training on about 10,000.
    report=Report(tick_nimg=1_280, sample_nimg=25_600, save_nimg=25_600, evaluate_nimg=2_000_000),
)

RECIPES: dict[str, Recipe] = {
    "mnist-demo": Recipe(
        promise=PROMISES["mnist-demo"],
        network=JiTConfig.variant("XS/14", size=(28, 28), channels=1, num_classes=0, depth=4, context_tokens=2),
        # Small batches and a high rate: a third of the images that batches of 128 need (docs/LOG.md).
        training=Training(
            duration_nimg=10_240,
            batch_size=32,
            lr=6e-3,
            warmup_nimg=1_280,
            schedule="cosine",
            clip_norm=1.0,
            ema_decays=(),  # 320 steps are too few for an average
            ema_start_nimg=128_000,
        ),
        sampling=Sampling(steps=12, sampler="deis", guidance=2.0, interval=(0.1, 1.0)),
        report=Report(
            tick_nimg=640,
            sample_nimg=5_120,
            save_nimg=5_120,
            preview_steps=12,
            evaluate_nimg=10_240,
            evaluate_count=500,
        ),
        default_data="mnist",
    ),
    "images": replace(
        CIFAR10,
        promise=PROMISES["images"],
        network=JiTConfig.variant("S/8", size=(64, 64), num_classes=0),
        training=replace(CIFAR10.training, lr=1e-3, schedule="constant", ema_start_nimg=64_000),
        report=replace(CIFAR10.report, evaluate_nimg=0),  # a folder may be small, or a stream
    ),
    "cifar10": CIFAR10,
    "cifar10-dit": replace(
        CIFAR10,
        promise=PROMISES["cifar10-dit"],
        network=DiTConfig(size=(32, 32), patch=(8, 8), num_classes=0, width=192, depth=6, heads=3),
    ),
    # What the paper argues with: they differ from cifar10 in what is predicted, where the error is measured, or when.
    "cifar10-eps": replace(
        CIFAR10,
        promise=PROMISES["cifar10-eps"],
        prediction="eps",
        training=replace(CIFAR10.training, loss_space="eps"),
    ),
    "cifar10-v": replace(
        CIFAR10,
        promise=PROMISES["cifar10-v"],
        prediction="v",
        training=replace(CIFAR10.training, loss_space="v"),
    ),
    # EDM's c_skip and c_out, its sigma_data of 0.5, and noise levels that are log-normal, but others: with
    # sigma = (1 - t) / t, ln sigma ~ N(0.8, 0.8^2) here and N(-1.2, 1.2^2) there. Unlike EDM, z is not brought to unit
    # variance, t is embedded as it is, the loss does not weigh all raw outputs alike, and grid and network are JiT's.
    "cifar10-edm": replace(CIFAR10, promise=PROMISES["cifar10-edm"], preconditioner="edm"),
    "cifar10-dae": replace(
        CIFAR10,
        promise=PROMISES["cifar10-dae"],
        training=replace(CIFAR10.training, loss_space="x", times=LogitNormal(ONE_LEVEL, 0.0)),
        sampling=Sampling(steps=1, sampler="euler", final="x"),
        report=replace(CIFAR10.report, preview_steps=1),
    ),
    "fields": Recipe(
        promise=PROMISES["fields"],
        network=JiTConfig.variant("XS/8", size=(32, 48), channels=1, num_classes=0),
        training=Training(
            duration_nimg=48_000,
            batch_size=64,
            lr=1e-3,
            warmup_nimg=1_600,
            schedule="cosine",
            clip_norm=1.0,
            ema_decays=(),
            ema_start_nimg=64_000,
        ),
        sampling=Sampling(steps=30, sampler="heun", guidance=1.0, final="x"),
        report=Report(tick_nimg=640, sample_nimg=6_400, save_nimg=6_400),
    ),
    "toy": Recipe(
        promise=PROMISES["toy"],
        network=MLPConfig(size=(512,)),
        training=Training(
            duration_nimg=2_560_000,
            batch_size=1024,
            lr=2e-3,
            warmup_nimg=12_800,
            clip_norm=1.0,
            ema_decays=(),
            ema_start_nimg=1_024_000,
            times=LogitNormal(0.0, 1.2),  # with the paper's for images, x-prediction collapses (docs/LOG.md)
        ),
        sampling=Sampling(steps=50, sampler="heun", guidance=1.0, final="x"),
        report=Report(tick_nimg=25_600, sample_nimg=512_000, save_nimg=512_000),
    ),
    # Guidance: the official README for B, L and H, the captions of Fig. 8 to 11 for G.
    "b16-256": _imagenet("b16-256", "B/16", 256, 600, 3.0),
    "l16-256": _imagenet("l16-256", "L/16", 256, 600, 2.4),
    "h16-256": _imagenet("h16-256", "H/16", 256, 600, 2.2),
    "g16-256": _imagenet("g16-256", "G/16", 256, 320, 2.2),
    "b32-512": _imagenet("b32-512", "B/32", 512, 600, 3.0),
    "l32-512": _imagenet("l32-512", "L/32", 512, 600, 2.5),
    "h32-512": _imagenet("h32-512", "H/32", 512, 600, 2.3),
    "g32-512": _imagenet("g32-512", "G/32", 512, 320, 2.2),
    "b64-1024": _imagenet("b64-1024", "B/64", 1024, 200, 3.0),
}
