"""What a doctor can find in a run, and where a number becomes a finding."""

from dataclasses import dataclass
from typing import Literal

Cause = Literal[
    "value range",
    "noise scale",
    "learning rate too high",
    "not finite",
    "exploding parts",
    "learning rate too low",
    "labels off",
    "over-fitting",
    "EMA too long",
    "flat in one bin",
    "dead parts",
    "data-bound",
]

HEALTHY = "healthy"


@dataclass(frozen=True)
class Limits:
    """Where a number becomes a finding, and why there."""

    one_side: float = 0.05
    """Model values lie around 0. Where none is below -0.05 or none above 0.05, half the range is never used: [0, 1] was
    taken for [-1, 1], or the like. Standardised data have values on both sides, and photographs black and white."""
    least_spread: float = 0.1
    """Standard deviation of model values. Photographs have 0.5, standardised data 0.5 by construction; at a fifth of it
    noise of scale 1 drowns everything but the last times."""
    most_spread: float = 2.0
    """The same the other way: four times the usual, such as pixels 0..255 that nobody scaled."""
    furthest_mean: float = 1.0
    """Mean of a channel. Values in [-1, 1] cannot have one beyond, and that of standardised data is 0."""
    noise_off: float = 4.0
    """Factor between the noise scale and what the paper's rule (size / 256 for images, and 1 below 256; for data of the
    spread 0.5) says. The paper's own ablation shows a factor of 2 to matter little."""
    rate_off: float = 20.0
    """Factor between a learning rate and 0.3 / width. All recipes here and in the paper are within 4 of it."""
    unlearned: float = 0.8
    """The loss as a share of what knowing the mean and spread of each number gives. A network that has begun to look at
    neighbours is below."""
    diverged: float = 1.5
    """Factor between the last losses and the lowest on the way. Ticks of a sound run differ by a few per cent."""
    wild: float = 0.3
    """Largest update of a step as a share of the weights: at a third, a few steps replace all that was learned."""
    still_falling: float = 0.05
    """Share by which the loss falls in the last quarter of a run that was not given time, or speed, to finish."""
    least_steps: int = 50
    """Steps before anything is said about learning."""
    label_nimg: int = 2_000
    """Samples seen before labels are judged by what the network makes of them."""
    deviations: float = 3.0
    """Standard errors that a gap must be away from zero."""
    guessing: float = 4.0
    """The same for labels guessed from the data, which say much (CIFAR-10: 20) or nothing."""
    label_gap: float = 0.01
    """Share by which another sample's label must raise the loss at noisy times where labels mean something."""
    over_fitting: float = 0.1
    """Share by which the loss on what was not trained on is higher. Digits moved by a pixel have 0.06 after one
    pass."""
    epochs: float = 30.0
    """Passes over the data below which little is learned by heart."""
    few: int = 1_000
    """Samples that are known by heart when each was seen many_epochs times. Only what was held out can show otherwise:
    after about 200 passes, moving 50 digits by a pixel cost 4 %, and 8 held out cost 18 % more than the 42 others."""
    many_epochs: float = 100.0
    """Passes over few samples after which they are known by heart."""
    average_behind: float = 0.25
    """Share by which the loss of an average is above that of the weights themselves."""
    average_long: float = 20.0
    """Factor between the images an average spans and those of the whole run: it would still be mostly its start."""
    average_steps: float = 30_000
    """Steps an average spans that are out of the ordinary: three times the paper's longest (0.9999)."""
    flat: float = 1.5
    """Factor, over the other bins, by which a bin that is trained on is worse against the linear yardstick."""
    seen_bin: float = 0.1
    """Share of the training times in a bin that is expected to be learned; rarer ones come late in sound runs."""
    exploding: float = 1_000.0
    """Root mean square of the residual stream. It begins around 1 and ends around 10 in sound runs."""
    dead: float = 1e-6
    """Share of the whole gradient below which a part does not learn."""
    waiting: float = 0.2
    """Share of the time spent waiting for data."""


LIMITS = Limits()


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong: what, how one sees it, and what to do. note: it does not make a run ill."""

    cause: Cause
    evidence: tuple[str, ...]
    """Each says numbers, and where they are from."""
    advice: str
    note: bool = False


@dataclass(frozen=True)
class Diagnosis:
    """All findings, those that make the run ill first; `verdict` is the first of them."""

    findings: tuple[Finding, ...]
    remarks: tuple[str, ...]
    """What could not be looked at, and why."""
    early: bool = False
    """Whether there were too few steps to say anything about learning."""

    @property
    def verdict(self) -> str:
        """The first cause; "healthy" where there is none."""
        return next((each.cause for each in self.findings if not each.note), HEALTHY)
