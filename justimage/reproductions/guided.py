"""Guidance: Fig. 6 and Table 13 of arXiv 2511.13720."""

from justimage.reproductions.family import Axis, Family, Part, Scale, ScaleName, Settings
from justimage.reproductions.pictures import Lines
from justimage.reproductions.setups import INTERVALS, SETUPS
from justimage.reproductions.sizes import models
from justimage.reproductions.verdict import Of, Statement
from justimage.runs.recipes import IMAGENET

SCALES: dict[ScaleName, tuple[float, ...]] = {
    "laptop": (1.0, 1.25, 1.5, 2.0, 3.0, 5.0),
    "gpu": (1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 5.0),
    "paper": (1.0, 1.25, 1.5, 1.75, 2.0, 2.25, 2.5, 2.75, 3.0, 5.0),
}
# Fig. 6 is of L after 600 epochs.
_TRAINED: dict[ScaleName, Settings] = {
    "laptop": {},
    "gpu": {},
    "paper": {**models("paper")["2nd"], "recipe.training.duration_nimg": 600 * IMAGENET},
}


def _guidance(scale: ScaleName) -> Scale:
    intervals = Axis("interval", INTERVALS.points)
    scales = Axis("guidance", {f"{w:g}": {"measure.guidance": (w,)} for w in SCALES[scale]})
    return Scale(SETUPS[scale].having(_TRAINED[scale]), (Part("guidance", (intervals, scales)),))


GUIDANCE = Family(
    name="guidance",
    paper="Fig. 6 and Table 13",
    claim="Guidance makes samples better up to a scale, beyond which they lose variety; an interval without it in "
    "the noisiest tenth makes the best of them better (FID 2.36 instead of 2.88, of L/16). Precision is bought with "
    "recall.",
    how="Digits of 28 px in 4 patches of 14 x 14, the full network: the same three models drawn from with all "
    "settings, from the same seeds.",
    number="fd",
    meaning="the Frechet distance of samples to the data.",
    scales={scale: _guidance(scale) for scale in SETUPS},
    statements=(
        Statement(
            "Some guidance is better than none",
            Of("guidance", {"interval": "0 to 1"}),
            Of("guidance", {"interval": "0 to 1", "guidance": "1"}),
            some=True,
        ),
        Statement(
            "A scale of 5 is worse than the best: too much loses",
            Of("guidance", {"interval": "0 to 1"}),
            Of("guidance", {"interval": "0 to 1", "guidance": "5"}),
            some=True,
        ),
        Statement(
            "The best with the interval is better than the best without",
            Of("guidance", {"interval": "0.1 to 1"}),
            Of("guidance", {"interval": "0 to 1"}),
            some=True,
        ),
        Statement(
            "Recall is lower at a scale of 5 than without guidance",
            Of("guidance", {"interval": "0 to 1", "guidance": "5"}, "recall"),
            Of("guidance", {"interval": "0 to 1", "guidance": "1"}, "recall"),
        ),
        Statement(
            "Precision is higher at a scale of 2 than without guidance",
            Of("guidance", {"interval": "0 to 1", "guidance": "1"}, "precision"),
            Of("guidance", {"interval": "0 to 1", "guidance": "2"}, "precision"),
        ),
    ),
    pictures=(
        Lines("guidance", "guidance", "guidance"),
        Lines("precision", "guidance", "guidance", logarithmic=False, number="precision"),
        Lines("recall", "guidance", "guidance", logarithmic=False, number="recall"),
    ),
    shown=("precision", "recall"),
)
