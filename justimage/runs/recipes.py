"""Recipes: complete trainings as values, each with the command, the hardware and the number it promises.

The paper's are Table 9 of arXiv 2511.13720; one ImageNet epoch is 1,281,167 images. A recipe's network takes its
channels and classes from the data it is given, and its size too where the data are arrays.
"""

from dataclasses import dataclass, field, fields, replace
from typing import Annotated

import tyro

from justimage.data.sources import DataOptions
from justimage.data.spec import DataSpec
from justimage.denoiser import Denoiser, Preconditioner
from justimage.networks.jit import JiT, JiTConfig
from justimage.process import Space
from justimage.samplers import Sampling
from justimage.training.loop import Training

IMAGENET = 1_281_167


@dataclass(frozen=True)
class Report:
    """What a run leaves behind, and how often. All in samples (nimg)."""

    tick_nimg: int = 131_072
    """Between lines of log.jsonl."""
    sample_nimg: int = 6_400_000
    """Between grids of samples, samples/NIMG.png."""
    save_nimg: int = 6_400_000
    """Between saves of the state and the weights."""
    keep_states: int = 2
    """States kept; older ones are removed."""
    preview_steps: int = 25
    """Steps of Adams-Bashforth for the grids."""

    def __post_init__(self) -> None:
        for item in fields(self):
            if getattr(self, item.name) < 1:
                raise ValueError(f"report.{item.name} is {getattr(self, item.name)}; it must be at least 1")


@dataclass(frozen=True)
class Promise:
    """What a recipe is for, what it runs on, and what comes out."""

    what: str
    command: str
    hardware: str
    paper: str = ""
    """The paper's number, if it is the paper's recipe."""
    measured: str = ""
    """Ours, only where measured: with the machine, and the file under benchmarks/results."""


@dataclass(frozen=True)
class Recipe:
    """Everything that decides a training run but the data.

    The network's num_classes is the number the data must have; 0 takes what they have.
    """

    promise: Annotated[Promise, tyro.conf.Suppress]
    network: JiTConfig
    training: Training
    sampling: Sampling
    report: Report
    data_options: DataOptions = field(default_factory=DataOptions)
    prediction: Space = "x"
    """What the network predicts: x (the paper's choice), eps or v."""
    preconditioner: Preconditioner = "none"
    """Turn the output into x by c_skip z + c_out net, as EDM does or linearly (Table 10)."""
    noise_scale: float = 1.0
    """Standard deviation of the noise; image size / 256 in the paper."""
    t_eps: float = 0.05
    """Floor of the denominators 1 - t and t."""
    default_data: Annotated[str, tyro.conf.Suppress] = ""
    """Data that come with a package; empty: --data is needed."""

    def fitted_to(self, spec: DataSpec) -> "Recipe":
        """The recipe for these data.

        Raises ValueError where the patch does not divide their size, or num_classes is neither 0, which takes what the
        data have, nor their number of classes.
        """
        size, patch = " ".join(map(str, spec.size)), " ".join(map(str, patch_for(spec.size)))
        if len(spec.size) != len(self.network.size):
            axes = " x ".join(spec.origin.dims) if spec.origin else size
            raise ValueError(
                f"the data have {len(spec.size)} spatial axes ({axes}) and this recipe's network "
                f"{len(self.network.size)}; fit it, for example with --network.size {size} --network.patch {patch}"
                + ("" if spec.origin else "; if an axis of channels is missing, x[:, None] adds it")
            )
        if any(s % p for s, p in zip(spec.size, self.network.patch, strict=True)):
            cut = tuple(s - s % p or p for s, p in zip(spec.size, self.network.patch, strict=True))
            raise ValueError(
                f"a patch of {'x'.join(map(str, self.network.patch))} does not divide a size of "
                f"{'x'.join(map(str, spec.size))}; --network.patch {patch} does, or cut the samples with "
                f"--data-options.crop {' '.join(map(str, cut))}"
            )
        classes = len(spec.classes)
        if self.network.num_classes not in (0, classes):
            have = f"{classes} classes" if classes else "no labels"
            raise ValueError(
                f"the recipe is for {self.network.num_classes} classes, and the data have {have}; "
                "--network.num-classes 0 takes what the data have"
            )
        network = replace(self.network, size=spec.size, channels=len(spec.channels), num_classes=classes)
        guidance = self.sampling.guidance if spec.classes else 1.0
        return replace(self, network=network, sampling=replace(self.sampling, guidance=guidance))

    def model(self, spec: DataSpec) -> Denoiser:
        """The model this recipe trains on these data, before its first step."""
        return Denoiser(
            JiT(self.network),
            space=self.prediction,
            t_eps=self.t_eps,
            noise_scale=self.noise_scale,
            preconditioner=self.preconditioner,
            spec=spec,
            sampling=self.sampling,
        )


def patch_for(size: tuple[int, ...], tokens: int = 64) -> tuple[int, ...]:
    """A patch that divides a size, into about as many patches as `tokens` at the most."""
    along = round(tokens ** (1 / len(size)))
    return tuple(s // max(n for n in range(1, along + 1) if s % n == 0) for s in size)


def _imagenet(name: str, size: int, epochs: int, guidance: float, paper: str) -> Recipe:
    letters = name.partition("/")[0]
    recipe = f"{name.lower().replace('/', '')}-{size}"
    return Recipe(
        promise=Promise(
            what=f"JiT-{name} on ImageNet {size}x{size}, {epochs} epochs, as in the paper",
            command=f"torchrun --nproc-per-node 8 -m justimage train {recipe} --data imagenet",
            hardware="8 GPUs (the official code was tested on 8 H200)",
            paper=paper,
        ),
        network=JiTConfig.variant(name, size=(size, size), num_classes=1000),
        training=Training(
            duration_nimg=epochs * IMAGENET,
            batch_size=1024,
            lr=2e-4,
            warmup_nimg=5 * IMAGENET,
            checkpoint=letters == "G",
        ),
        sampling=Sampling(steps=50, sampler="heun", guidance=guidance, interval=(0.1, 1.0)),
        report=Report(),
        noise_scale=size / 256,
    )


RECIPES: dict[str, Recipe] = {
    "mnist-demo": Recipe(
        promise=Promise(
            what="5,000 real digits in about a minute on two CPU cores; what `make demo` trains",
            command="jit train mnist-demo",
            hardware="a laptop's CPU",
            measured="class agreement 99.0 %, the whole demo in 64 s on two Xeon cores at 2.5 GHz (demo-mnist-*)",
        ),
        network=JiTConfig.variant("XS/14", size=(28, 28), channels=1, num_classes=0, context_tokens=2),
        training=Training(
            duration_nimg=32_000,
            batch_size=128,
            lr=2e-3,
            warmup_nimg=3_200,
            schedule="cosine",
            clip_norm=1.0,
            ema_decays=(),  # 250 steps are too few for an average
            flip=False,
        ),
        sampling=Sampling(steps=20, sampler="ab2", guidance=2.5, interval=(0.1, 1.0), final="x"),
        report=Report(tick_nimg=1_280, sample_nimg=12_800, save_nimg=12_800, preview_steps=20),
        default_data="mnist",
    ),
    "cifar10": Recipe(
        promise=Promise(
            what="CIFAR-10, or any folder of small images, 32x32, patch 8 (on a GPU try --network.patch 4 4)",
            command="jit train cifar10 --data DIR",
            hardware="one GPU for the whole of it; minutes on a CPU show colours and shapes",
            measured="57,088 images in 4 minutes on two Xeon cores at 2.5 GHz: loss 0.72 to 0.18 (training-cifar10-*)",
        ),
        network=JiTConfig.variant("XS/8", size=(32, 32), num_classes=0),
        training=Training(
            duration_nimg=10_000_000,
            batch_size=128,
            lr=1e-3,
            warmup_nimg=12_800,
            clip_norm=1.0,
            ema_decays=(0.9995, 0.9999),
        ),
        sampling=Sampling(steps=50, sampler="heun", guidance=2.0, interval=(0.1, 1.0)),
        report=Report(tick_nimg=1_280, sample_nimg=25_600, save_nimg=25_600),
    ),
    "fields": Recipe(
        promise=Promise(
            what="weather and other fields in two dimensions, 32x48, patch 8; NetCDF, Zarr or arrays",
            command="jit train fields --data FILE.nc --data-options.crop 32 48",
            hardware="a few minutes on a CPU for one channel",
            measured="ERA5 temperature: trained and 744 fields drawn in 8 minutes on two Xeon cores (examples/weather)",
        ),
        network=JiTConfig.variant("XS/8", size=(32, 48), channels=1, num_classes=0),
        training=Training(
            duration_nimg=48_000,
            batch_size=64,
            lr=1e-3,
            warmup_nimg=1_600,
            schedule="cosine",
            clip_norm=1.0,
            ema_decays=(),
        ),
        sampling=Sampling(steps=30, sampler="heun", guidance=1.0, final="x"),
        report=Report(tick_nimg=640, sample_nimg=6_400, save_nimg=6_400),
    ),
    # FID-50K with guidance interval: Table 6, and Table 5 for B/64. Guidance: the official README for B, L and H,
    # the captions of Fig. 8 to 11 for G. The G models stopped at about 320 epochs.
    "b16-256": _imagenet("B/16", 256, 600, 3.0, "FID 3.66 (200 epochs: 4.37)"),
    "l16-256": _imagenet("L/16", 256, 600, 2.4, "FID 2.36 (200 epochs: 2.79)"),
    "h16-256": _imagenet("H/16", 256, 600, 2.2, "FID 1.86 (200 epochs: 2.29)"),
    "g16-256": _imagenet("G/16", 256, 320, 2.2, "FID 1.82 (200 epochs: 2.15)"),
    "b32-512": _imagenet("B/32", 512, 600, 3.0, "FID 4.02 (200 epochs: 4.64)"),
    "l32-512": _imagenet("L/32", 512, 600, 2.5, "FID 2.53 (200 epochs: 3.06)"),
    "h32-512": _imagenet("H/32", 512, 600, 2.3, "FID 1.94 (200 epochs: 2.51)"),
    "g32-512": _imagenet("G/32", 512, 320, 2.2, "FID 1.78 (200 epochs: 2.11)"),
    "b64-1024": _imagenet("B/64", 1024, 200, 3.0, "FID 4.82 (200 epochs)"),
}
