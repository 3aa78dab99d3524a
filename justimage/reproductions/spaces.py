"""What the network predicts and where the error is measured (sections 3 and 4, appendix B.1 and B.2)."""

from justimage.reproductions.family import Axis, Family, Part, Scale, ScaleName
from justimage.reproductions.measures import SHOWN_AT_A_TIME, Denoising
from justimage.reproductions.pictures import Curves, Lines, Samples
from justimage.reproductions.setups import LOSSES, MEANS, OUTPUTS, PREDICTIONS, SETUPS, START, high, low, sized
from justimage.reproductions.verdict import Of, Statement

FD = "the Frechet distance of samples to the data, the setting with the best guidance and average of each cell."
NINE = "nine combinations"

# Patch dimension against width: label of the width -> its settings, and of the patch -> its settings.
CROSSING: dict[ScaleName, tuple[Axis, Axis]] = {
    "laptop": (
        Axis("width", {f"{w}": {"recipe.network.width": w} for w in (48, 128, 192)}),
        Axis("patch dimension", {f"{p * p}": sized(2 * p, p, 28) for p in (7, 14, 28)}),
    ),
    "gpu": (
        Axis("width", {f"{w}": {"recipe.network.width": w} for w in (192, 768)}),
        Axis("patch dimension", {f"{3 * p * p}": sized(8 * p, p, 256) for p in (4, 8, 16, 32)}),
    ),
    "paper": (
        Axis("width", {f"{w}": {"recipe.network.width": w} for w in (384, 1536)}),
        Axis("patch dimension", {f"{3 * p * p}": sized(16 * p, p, 256) for p in (4, 8, 16, 32)}),
    ),
}


def _spaces(scale: ScaleName) -> Scale:
    width, dimension = CROSSING[scale]
    patches = Axis("patch", {"low": low(scale), "high": high(scale)})
    return Scale(
        SETUPS[scale].having(START[scale]),
        (
            Part(NINE, (patches, LOSSES, PREDICTIONS)),
            Part("where eps and v break", (width, dimension, PREDICTIONS), seeds=1),
        ),
    )


PREDICTION_SPACE = Family(
    name="prediction-space",
    paper="Tables 1 and 2",
    claim="Where a patch has about as many numbers as the network is wide, only x-prediction works, and it does "
    "under each of the three losses; where it has far fewer, all nine combinations do.",
    how="Digits in four tokens and a network 128 wide: patches of 7 x 7 = 49 numbers of images of 14 px, against 14 x "
    "14 = 196 of 28 px. The network of the paper's table: no bottleneck, no rotary positions, no in-context tokens. "
    "Where eps and v break is shown for three widths and patches of up to 28 x 28 of 56 px, one seed of each.",
    number="fd",
    meaning=FD,
    scales={scale: _spaces(scale) for scale in SETUPS},
    statements=(
        Statement(
            "At the low patch all nine are within a factor of 3 of each other",
            Of(NINE, {"patch": "low"}),
            Of(NINE, {"patch": "low"}),
            1 / 3,
        ),
        Statement(
            "At the high patch x-prediction under any loss is better than eps and v under any",
            Of(NINE, {"patch": "high", "prediction": "x-pred"}),
            Of(NINE, {"patch": "high", "prediction": ("eps-pred", "v-pred")}),
        ),
        Statement(
            "At the high patch x-prediction is better than eps and v under the same loss",
            Of(NINE, {"patch": "high", "prediction": "x-pred"}),
            Of(NINE, {"patch": "high", "prediction": ("eps-pred", "v-pred")}),
            matched=("loss",),
        ),
        Statement(
            "At the high patch it is so by a factor of 2",
            Of(NINE, {"patch": "high", "prediction": "x-pred"}),
            Of(NINE, {"patch": "high", "prediction": ("eps-pred", "v-pred")}),
            2,
            matched=("loss",),
        ),
        Statement(
            "At the high patch the three losses of x-prediction are within a factor of 3 of each other",
            Of(NINE, {"patch": "high", "prediction": "x-pred"}),
            Of(NINE, {"patch": "high", "prediction": "x-pred"}),
            1 / 3,
        ),
    ),
    theirs={
        NINE: {
            (patch, loss, prediction): value
            for patch, rows in {
                "low": {
                    "x-loss": (5.76, 6.20, 6.12),
                    "eps-loss": (3.56, 4.02, 3.76),
                    "v-loss": (3.55, 3.63, 3.46),
                },
                "high": {
                    "x-loss": (10.14, 379.21, 107.55),
                    "eps-loss": (10.45, 394.58, 126.88),
                    "v-loss": (8.62, 372.38, 96.53),
                },
            }.items()
            for loss, values in rows.items()
            for prediction, value in zip(PREDICTIONS.points, values, strict=True)
        }
    },
    pictures=(
        Samples("samples", NINE),
        Lines("crossing", "where eps and v break", "patch dimension"),
    ),
    shown=("agreement",),
)


def _at_the_high_patch(scale: ScaleName, *axes: Axis, name: str) -> Scale:
    return Scale(SETUPS[scale].having({**START[scale], **high(scale)}), (Part(name, axes),))


NOISE_SHIFT = Family(
    name="noise-shift",
    paper="Table 3",
    claim="More noise in training helps x-prediction, up to a point, and rescues neither eps- nor v-prediction.",
    how="The high-dimensional patch of prediction-space, v-loss, at four means of the density of logit t; its "
    "deviation is 0.8.",
    number="fd",
    meaning=FD,
    scales={scale: _at_the_high_patch(scale, MEANS, PREDICTIONS, name="noise level") for scale in SETUPS},
    statements=(
        Statement(
            "With x-prediction a mean of -0.8 is better than 0",
            Of("noise level", {"mean of logit t": "-0.8", "prediction": "x-pred"}),
            Of("noise level", {"mean of logit t": "0", "prediction": "x-pred"}),
        ),
        Statement(
            "No mean makes eps or v as good as x-prediction is at any",
            Of("noise level", {"prediction": "x-pred"}),
            Of("noise level", {"prediction": ("eps-pred", "v-pred")}),
        ),
    ),
    theirs={
        "noise level": {
            (mean, prediction): value
            for mean, values in {
                "0": (14.44, 464.25, 120.03),
                "-0.4": (9.79, 372.91, 109.93),
                "-0.8": (8.62, 372.36, 96.53),
                "-1.2": (8.99, 355.25, 106.85),
            }.items()
            for prediction, value in zip(PREDICTIONS.points, values, strict=True)
        }
    },
    pictures=(Lines("noise-shift", "noise level", "mean of logit t"),),
)

PRECONDITIONER = Family(
    name="preconditioner",
    paper="Table 10",
    claim="A pre-conditioner, which lets the network predict a mixture of x and noise, loses to plain x-prediction "
    "where the patch is wide, under each of the losses.",
    how="The high-dimensional patch of prediction-space: x = c_skip z + c_out net, as EDM has it (sigma_data 0.5) "
    "and linearly (c_skip = t, c_out = 1 - t).",
    number="fd",
    meaning=FD,
    scales={scale: _at_the_high_patch(scale, LOSSES, OUTPUTS, name="pre-conditioners") for scale in SETUPS},
    statements=(
        Statement(
            "Plain x-prediction is better than the EDM-style pre-conditioner under the same loss",
            Of("pre-conditioners", {"output": "x-pred"}),
            Of("pre-conditioners", {"output": "EDM-style"}),
            matched=("loss",),
        ),
        Statement(
            "Plain x-prediction is better than the linear pre-conditioner under the same loss",
            Of("pre-conditioners", {"output": "x-pred"}),
            Of("pre-conditioners", {"output": "linear"}),
            matched=("loss",),
        ),
    ),
    theirs={
        "pre-conditioners": {
            (loss, output): value
            for loss, values in {
                "x-loss": (10.14, 28.94, 39.50),
                "eps-loss": (10.45, 72.05, 67.56),
                "v-loss": (8.62, 35.49, 46.25),
            }.items()
            for output, value in zip(OUTPUTS.points, values, strict=True)
        }
    },
    pictures=(Samples("samples", "pre-conditioners"),),
)

TIMES = (0.1, 0.2, 0.3, 0.4, 0.5)
LOSS_CURVES = Family(
    name="loss-curves",
    paper="Fig. 7 and appendix B.1",
    claim="Under the same loss v-prediction ends about a quarter above x-prediction, and eps-prediction at three "
    "times it; one-step denoised images of v-prediction show artefacts.",
    how="The high-dimensional patch of prediction-space, v-loss. Its rows of pictures are x as predicted in one step "
    "at five times of the same samples.",
    number="loss",
    meaning="the mean v-loss over the last fifth of the training; `loss_at_T` is the one at time T, over samples of "
    "the data with noise that was not trained on.",
    scales={
        scale: Scale(
            SETUPS[scale].having({**START[scale], **high(scale)}).having({"measure": Denoising(TIMES)}),
            (Part("v-loss", (PREDICTIONS,)),),
        )
        for scale in SETUPS
    },
    statements=(
        Statement(
            "v-prediction's loss is above x-prediction's",
            Of("v-loss", {"prediction": "x-pred"}),
            Of("v-loss", {"prediction": "v-pred"}),
        ),
        Statement(
            "eps-prediction's loss is above v-prediction's",
            Of("v-loss", {"prediction": "v-pred"}),
            Of("v-loss", {"prediction": "eps-pred"}),
        ),
        *(
            Statement(
                f"So it is in one step at t = {time:g}: v above x",
                Of("v-loss", {"prediction": "x-pred"}, f"loss_at_{time:g}"),
                Of("v-loss", {"prediction": "v-pred"}, f"loss_at_{time:g}"),
            )
            for time in TIMES
        ),
    ),
    their_number="the loss at the end, over that of x-prediction",
    theirs={"v-loss": {("x-pred",): "1", ("eps-pred",): "about 3", ("v-pred",): "about 1.25"}},
    pictures=(
        Curves("curves", "v-loss"),
        Samples(
            "one-step",
            "v-loss",
            SHOWN_AT_A_TIME * len(TIMES),
            tuple(f"t = {time:g}" if k == 0 else "" for time in TIMES for k in range(SHOWN_AT_A_TIME)),
        ),
    ),
    shown=tuple(f"loss_at_{time:g}" for time in TIMES),
)
