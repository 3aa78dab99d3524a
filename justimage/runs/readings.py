"""Numbers of a record that several checks of the doctor need, and how they are said."""

from collections.abc import Sequence
from math import nan

from justimage.runs.glance import Glance
from justimage.runs.health import Curve, Gap, Measured
from justimage.runs.record import Record
from justimage.weights.folder import RECIPE

TRAINED = 0.02  # share of the training times in a bin below which its loss says little about training


def number_of(record: Record, name: str) -> float:
    """A number of the recipe. Raises ValueError, naming it, where recipe.json has another thing there."""
    value = record.settings.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{record.folder / RECIPE} is damaged: recipe.{name} is {value!r}; a number is needed")
    return value


def batch_size_of(record: Record) -> int:
    """The size of a batch."""
    return max(int(number_of(record, "training.batch_size")), 1)


def steps_of(record: Record) -> float:
    """Steps made."""
    return record.nimg / batch_size_of(record)


def newest(record: Record) -> Measured | None:
    """The newest measurement; None where there is none."""
    return record.health[-1] if record.health else None


def glance_of(record: Record) -> Glance | None:
    """What was seen of the data; None where nothing was."""
    return next((each.data for each in reversed(record.health) if each.data is not None), None)


def losses_of(curves: Sequence[Curve], weights: str = "raw") -> tuple[float, ...]:
    """The losses of a set of weights; empty where they were not measured."""
    return next((each.losses for each in curves if each.weights == weights), ())


def as_trained(losses: Sequence[float], density: Sequence[float]) -> float:
    """The mean over the bins that the run trains on, weighted as it does; nan where there is nothing."""
    used = [(loss, share) for loss, share in zip(losses, density, strict=False) if share >= TRAINED]
    return sum(loss * share for loss, share in used) / sum(share for _, share in used) if used else nan


def progress_of(measured: Measured | None) -> float:
    """The loss of the raw weights as a share of the linear yardstick's; nan where it was not measured."""
    if measured is None or measured.data is None:
        return nan
    losses, yardstick = losses_of(measured.trained), as_trained(measured.data.linear, measured.density)
    return as_trained(losses, measured.density) / yardstick if losses and yardstick else nan  # 0: all samples are one


def in_digits(value: float) -> str:
    """A number with three digits."""
    return f"{value:,.3g}" if abs(value) < 1e4 else f"{value:.1e}"


def rate_off(record: Record) -> float:
    """The peak learning rate over 0.3 / width, the middle of those that recipes have."""
    width = record.settings.get("network.width")
    return number_of(record, "training.lr") * max(width, 128) / 0.3 if isinstance(width, int) else 1.0


def how_learned(record: Record) -> str:
    """How far the network has come, for evidence."""
    progress = progress_of(newest(record))
    return f"its loss is {in_digits(progress)} times that of a line through each number by itself (health.jsonl)"


def rise_of(record: Record) -> float:
    """The last loss over the lowest of a tick before."""
    losses = record.losses
    return losses[-1] / min(losses) if len(losses) > 1 and min(losses) > 0 else 1.0


def most_update(record: Record) -> tuple[float, str]:
    """The largest update of a step as a share of a part's weights, and the part."""
    parts = [(part.most_update, part.name) for each in record.health for part in each.parts]
    return max(parts, default=(0.0, ""))


def stream_of(record: Record) -> float:
    """The largest root mean square of the residual stream."""
    return max((each for line in record.health for each in line.activations), default=0.0)


def in_percent(gap: Gap) -> str:
    """A gap, with its error."""
    return f"{gap.value:+.2%} \N{PLUS-MINUS SIGN} {gap.error:.2%}"


def rounded(rate: float) -> str:
    """A learning rate with one digit."""
    return f"{rate:.0e}".replace("e-0", "e-")
