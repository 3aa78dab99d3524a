"""What the image reproductions have in common at each scale; the paper's is Table 9 of arXiv 2511.13720."""

from dataclasses import replace

from justimage.networks.jit import JiTConfig
from justimage.reproductions.data import Images
from justimage.reproductions.family import Axis, ScaleName, Settings, Setup
from justimage.reproductions.measures import Quality
from justimage.runs.recipes import IMAGENET, RECIPES, Recipe, Report
from justimage.samplers import Sampling
from justimage.training.settings import Training

# The network that the paper's ladder starts from (Table 4): SwiGLU and RMSNorm, and nothing else yet.
PLAIN: Settings = {
    "recipe.network.bottleneck": 0,
    "recipe.network.rotary": False,
    "recipe.network.qk_norm": False,
    "recipe.network.context_tokens": 0,
}

# The network of Tables 2, 3 and 10 and of Fig. 4; there the paper's guidance acts everywhere. At laptop scale it is
# narrower than the patch of 14 x 14, and trained for longer than the others: with the eps-loss that takes more steps.
START: dict[ScaleName, Settings] = {
    "laptop": {**PLAIN, "recipe.network.width": 128, "recipe.training.duration_nimg": 40_000},
    "gpu": PLAIN,
    "paper": {**PLAIN, "measure.intervals": ((0.0, 1.0),)},
}


def _report(duration_nimg: int, ticks: int = 20, saves: int = 1) -> Report:
    return Report(
        tick_nimg=max(duration_nimg // ticks, 1),
        sample_nimg=duration_nimg,
        save_nimg=max(duration_nimg // saves, 1),
        keep_states=1,
        preview_steps=10,
    )


LAPTOP = Setup(
    Recipe(
        # Small, and four tokens an image: training takes half a minute then.
        network=JiTConfig(
            (28, 28),
            (14, 14),
            channels=1,
            num_classes=0,
            width=96,
            depth=4,
            heads=4,
            bottleneck=32,
            context_tokens=4,
            context_start=1,
        ),
        training=Training(
            duration_nimg=20_000,
            batch_size=32,
            lr=2e-3,
            warmup_nimg=2_000,
            schedule="cosine",
            clip_norm=1.0,
            ema_decays=(0.99,),
            ema_start_nimg=8_000,
            precision="float32",
        ),
        sampling=Sampling(16, "ab2", final="x"),
        report=_report(20_000),
    ),
    Images("mnist"),
    Quality(),
)
GPU = Setup(
    Recipe(
        network=JiTConfig.variant("S/8", size=(64, 64), num_classes=0),
        training=Training(
            duration_nimg=5_000_000,
            batch_size=256,
            lr=5e-4,
            warmup_nimg=50_000,
            clip_norm=1.0,
            ema_decays=(0.9995, 0.9999),
            ema_start_nimg=256_000,
        ),
        sampling=Sampling(40, "ab2", final="x"),
        report=_report(5_000_000, ticks=100, saves=20),
    ),
    Images(""),
    Quality(count=5_000, search=1_000, guidance=(1.0, 1.5, 2.0, 2.5, 3.0, 4.0), seen_at=64),
)
PAPER = Setup(
    replace(
        RECIPES["b16-256"],
        training=replace(RECIPES["b16-256"].training, duration_nimg=200 * IMAGENET),
        report=_report(200 * IMAGENET, ticks=2_000, saves=40),
        default_data="",
    ),
    Images(""),
    Quality(
        count=50_000,
        search=8_000,
        guidance=tuple(round(1 + 0.1 * k, 1) for k in range(31)),
        intervals=((0.1, 1.0),),
        features="inception",
        seen_at=0,
    ),
)
SETUPS: dict[ScaleName, Setup] = {"laptop": LAPTOP, "gpu": GPU, "paper": PAPER}


def sized(length: int, patch: int, unit: int) -> Settings:
    """Images of a side length in patches, with the noise in proportion to the side: its deviation is 1 at `unit`."""
    return {
        "recipe.network.size": (length, length),
        "recipe.network.patch": (patch, patch),
        "recipe.noise_scale": length / unit,
    }


PREDICTIONS = Axis(
    "prediction",
    {
        "x-pred": {"recipe.prediction": "x"},
        "eps-pred": {"recipe.prediction": "eps"},
        "v-pred": {"recipe.prediction": "v"},
    },
)
LOSSES = Axis(
    "loss",
    {
        "x-loss": {"recipe.training.loss_space": "x"},
        "eps-loss": {"recipe.training.loss_space": "eps"},
        "v-loss": {"recipe.training.loss_space": "v"},
    },
)
MEANS = Axis("mean of logit t", {f"{mean:g}": {"recipe.training.times.mean": mean} for mean in (0.0, -0.4, -0.8, -1.2)})
OUTPUTS = Axis(
    "output",
    {
        "x-pred": {"recipe.preconditioner": "none"},
        "EDM-style": {"recipe.preconditioner": "edm"},
        "linear": {"recipe.preconditioner": "linear"},
    },
)
INTERVALS = Axis(
    "guidance interval",
    {"0 to 1": {"measure.intervals": ((0.0, 1.0),)}, "0.1 to 1": {"measure.intervals": ((0.1, 1.0),)}},
)


def high(scale: ScaleName) -> Settings:
    """The patch that is as wide as the network or wider: 256 px and patch 16 in the paper."""
    return {"laptop": sized(28, 14, 28), "gpu": sized(256, 32, 256), "paper": sized(256, 16, 256)}[scale]


def low(scale: ScaleName) -> Settings:
    """As many tokens of a patch that is far narrower: 64 px and patch 4 in the paper."""
    return {"laptop": sized(14, 7, 28), "gpu": sized(64, 8, 256), "paper": sized(64, 4, 256)}[scale]
