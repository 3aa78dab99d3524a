"""The ingredients of the network: Fig. 4, Table 4 and Table 11 of arXiv 2511.13720."""

from itertools import pairwise

from justimage.reproductions.family import Axis, Family, Part, Scale, ScaleName, Settings
from justimage.reproductions.pictures import Lines, Samples
from justimage.reproductions.setups import INTERVALS, SETUPS, START, high, sized
from justimage.reproductions.spaces import FD
from justimage.reproductions.verdict import Of, Statement

WIDTHS: dict[ScaleName, tuple[int, ...]] = {
    "laptop": (4, 16, 32, 64, 128),
    "gpu": (16, 32, 64, 128, 256),
    "paper": (16, 32, 64, 128, 256, 512),
}


def _bottleneck(scale: ScaleName) -> Scale:
    points: dict[str, Settings] = {f"{width}": {"recipe.network.bottleneck": width} for width in WIDTHS[scale]}
    axis = Axis("bottleneck", {**points, "none": {"recipe.network.bottleneck": 0}})
    return Scale(SETUPS[scale].having({**START[scale], **high(scale)}), (Part("bottleneck", (axis,)),))


BOTTLENECK = Family(
    name="bottleneck",
    paper="Fig. 4",
    claim="A patch embedding of low rank does not hurt, and over a wide range of widths it helps; even 16 of 768 is "
    "no catastrophe.",
    how="The high-dimensional patch of prediction-space (196 numbers, a network 128 wide), with the embedding through "
    "a bottleneck of 4 to 128, and without.",
    number="fd",
    meaning=FD,
    scales={scale: _bottleneck(scale) for scale in SETUPS},
    statements=(
        Statement(
            "Some bottleneck is better than none",
            Of("bottleneck"),
            Of("bottleneck", {"bottleneck": "none"}),
            some=True,
        ),
        Statement(
            "A bottleneck of 16 is at most a factor of 1.5 worse than none",
            Of("bottleneck", {"bottleneck": "16"}),
            Of("bottleneck", {"bottleneck": "none"}),
            1 / 1.5,
        ),
        Statement(
            "Bottlenecks of 32, 64 and 128 are at most 1.15 times as bad as none",
            Of("bottleneck", {"bottleneck": ("32", "64", "128")}),
            Of("bottleneck", {"bottleneck": "none"}),
            1 / 1.15,
        ),
    ),
    theirs={"bottleneck": {("16",): "9.40 (read off)", ("128",): 7.48, ("none",): 8.62}},
    pictures=(Lines("bottleneck", "bottleneck", "bottleneck", logarithmic=False),),
)

# Each rung has what the one before has.
_BLOCKS: Settings = {"recipe.network.rms_norm": True, "recipe.network.swiglu": True}
_PLACES: Settings = {"recipe.network.rotary": True, "recipe.network.qk_norm": True}
_OFF: Settings = {"recipe.network.rotary": False, "recipe.network.qk_norm": False, "recipe.network.context_tokens": 0}
_OLD: Settings = {"recipe.network.rms_norm": False, "recipe.network.swiglu": False}
TOKENS: dict[ScaleName, int] = {"laptop": 8, "gpu": 16, "paper": 32}
RUNGS = ("GELU, LayerNorm", "SwiGLU, RMSNorm", "+ RoPE, qk-norm", "+ in-context tokens")


def _components(scale: ScaleName) -> Scale:
    context: Settings = {"recipe.network.context_tokens": TOKENS[scale]}
    ladder: dict[str, Settings] = dict(
        zip(
            RUNGS,
            ({**_OLD, **_OFF}, {**_BLOCKS, **_OFF}, {**_BLOCKS, **_OFF, **_PLACES}, {**_BLOCKS, **_PLACES, **context}),
            strict=True,
        )
    )
    # 16 tokens at laptop scale: positions matter little among four.
    shape = {"laptop": sized(28, 7, 28), "gpu": sized(64, 8, 256), "paper": sized(256, 16, 256)}[scale]
    axes = (Axis("network", ladder), INTERVALS)
    return Scale(SETUPS[scale].having(shape), (Part("ladder", axes),))


COMPONENTS = Family(
    name="components",
    paper="Table 4 and footnote 5",
    claim="SwiGLU and RMSNorm, rotary positions and qk-norm, in-context class tokens, and a guidance interval: each "
    "makes samples better.",
    how="Digits of 28 px in 16 patches of 7 x 7, with a bottleneck; each ingredient added to those before it.",
    number="fd",
    meaning=FD,
    scales={scale: _components(scale) for scale in SETUPS},
    statements=(
        *(
            Statement(
                f"{after.removeprefix('+ ')} make it better",
                Of("ladder", {"network": after, "guidance interval": "0.1 to 1"}),
                Of("ladder", {"network": before, "guidance interval": "0.1 to 1"}),
            )
            for before, after in pairwise(RUNGS)
        ),
        Statement(
            "The guidance interval makes the full network better",
            Of("ladder", {"network": RUNGS[-1], "guidance interval": "0.1 to 1"}),
            Of("ladder", {"network": RUNGS[-1], "guidance interval": "0 to 1"}),
        ),
    ),
    theirs={
        "ladder": {
            (RUNGS[0], "0 to 1"): 7.89,
            (RUNGS[1], "0 to 1"): 7.48,
            (RUNGS[1], "0.1 to 1"): 6.32,
            (RUNGS[2], "0 to 1"): 6.69,
            (RUNGS[2], "0.1 to 1"): 5.44,
            (RUNGS[3], "0 to 1"): 5.49,
            (RUNGS[3], "0.1 to 1"): 4.37,
        }
    },
    pictures=(Samples("samples", "ladder"),),
)

_SWITCHED: dict[ScaleName, Settings] = {
    # The paper's 100 against a sum over 256 x 256 x 3 numbers is this against their mean.
    "laptop": {"recipe.network.classifier_after": 1, "recipe.training.classification": 0.01},
    "gpu": {"recipe.network.classifier_after": 4, "recipe.training.classification": 0.005},
    "paper": {"recipe.network.classifier_after": 4, "recipe.training.classification": 100 / (3 * 256 * 256)},
}
CLASSIFICATION_LOSS = Family(
    name="classification-loss",
    paper="Table 11 and appendix B.3",
    claim="A classifier on the tokens behind an early block, trained along, with the class switched off before it, "
    "makes samples better.",
    how="Digits of 28 px in 4 patches of 14 x 14, the full network; a linear map of the mean token behind the first "
    "of four blocks, its cross-entropy weighed with 0.01 against the mean squared error.",
    number="fd",
    meaning=FD,
    scales={
        scale: Scale(
            SETUPS[scale],
            (
                Part(
                    "loss",
                    (
                        Axis(
                            "loss",
                            {
                                "denoising": {"recipe.network.classifier_after": 0},
                                "denoising + classification": _SWITCHED[scale],
                            },
                        ),
                    ),
                ),
            ),
        )
        for scale in SETUPS
    },
    statements=(
        Statement(
            "The classification loss makes it better",
            Of("loss", {"loss": "denoising + classification"}),
            Of("loss", {"loss": "denoising"}),
        ),
    ),
    theirs={"loss": {("denoising",): 4.37, ("denoising + classification",): 4.14}},
    pictures=(Samples("samples", "loss"),),
    shown=("agreement",),
)
