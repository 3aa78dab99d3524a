"""Statements on numbers with a spread over seeds: when one holds, and what a claim's verdict is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import inf, isfinite, isnan, nan


@dataclass(frozen=True)
class Of:
    """Some cells of a part, and one of their numbers."""

    part: str
    where: Mapping[str, str | tuple[str, ...]] = field(default_factory=dict)
    """Axis -> the labels that are meant; all of the axes that are not named."""
    number: str = ""
    """Empty: the family's own."""

    def matches(self, part: str, labels: Mapping[str, str]) -> bool:
        """Whether a cell is meant."""
        wanted = {axis: (label,) if isinstance(label, str) else label for axis, label in self.where.items()}
        return part == self.part and all(labels[axis] in some for axis, some in wanted.items())


@dataclass(frozen=True)
class Statement:
    """One set of numbers is below another, beyond their spread over seeds.

    It holds where every seed of every cell of `lower`, times `factor`, is below every seed of every cell of `upper`. Of
    two cells without a difference this is so by chance in one of 20 cases, with three seeds each (an exact rank test).
    A factor above 1 asks for a margin; one below 1 allows the lower to be that much above.
    """

    text: str
    lower: Of
    upper: Of
    factor: float = 1.0
    some: bool = False
    """It is enough that one cell of `lower` is below."""
    matched: tuple[str, ...] = ()
    """Axes on which a cell is compared with those of the same label only."""
    relative: Mapping[str, str] = field(default_factory=dict)
    """Axis -> label: every number is taken over the mean of the cell that has these labels instead of its own."""
    beyond: bool = False
    """It goes beyond the paper's claim, and is no part of the verdict."""


@dataclass(frozen=True)
class Row:
    """The numbers of a cell over its seeds."""

    part: str
    labels: Mapping[str, str]
    numbers: Mapping[str, Sequence[float]]
    """Name -> one value for each seed; infinite where a training failed."""


@dataclass(frozen=True)
class Found:
    """What became of a statement."""

    text: str
    holds: bool
    compared: int
    """Pairs of cells."""
    ratio: float
    """The smallest ratio of an upper to a lower number over all pairs and seeds; of `some`, that of its best cell."""
    beyond: bool = False
    """Whether it goes beyond the claim."""


def find(statement: Statement, rows: Sequence[Row], own: str) -> Found:
    """Whether a statement holds; own: the family's number. ValueError where nothing is compared."""
    lower_name, upper_name = statement.lower.number or own, statement.upper.number or own
    ratios: list[float] = []
    compared = 0
    for row in (row for row in rows if statement.lower.matches(row.part, row.labels)):
        others = [
            other
            for other in rows
            if statement.upper.matches(other.part, other.labels)
            and (other is not row or lower_name != upper_name)
            and all(row.labels[axis] == other.labels[axis] for axis in statement.matched)
        ]
        if others:
            compared += len(others)
            highest = _over(max(row.numbers[lower_name]), row, lower_name, statement, rows)
            lowest = [_over(min(o.numbers[upper_name]), o, upper_name, statement, rows) for o in others]
            ratios.append(min(_ratio(each, highest) for each in lowest))
    if not ratios:
        raise ValueError(f"nothing is compared by {statement.text!r}")
    ratio = max(ratios) if statement.some else min(ratios)
    return Found(statement.text, ratio > statement.factor, compared, ratio, statement.beyond)


def _over(value: float, row: Row, name: str, statement: Statement, rows: Sequence[Row]) -> float:
    """A number of a cell over what it is taken over; NaN where that failed, of which nothing can be said."""
    if not statement.relative:
        return value
    base = {**row.labels, **statement.relative}
    values = next(each.numbers[name] for each in rows if each.part == row.part and dict(each.labels) == base)
    unit = sum(values) / len(values)
    return value / unit if isfinite(unit) else nan


def _ratio(upper: float, lower: float) -> float:
    """0 where the lower number failed, or what either is taken over."""
    if isnan(upper) or not isfinite(lower):
        return 0.0
    if lower > 0:
        return upper / lower
    return inf if upper > lower else 1.0


def verdict(found: Sequence[Found]) -> str:
    """In the words of docs/paper.md."""
    claimed = [each for each in found if not each.beyond]
    holding = sum(each.holds for each in claimed)
    if holding == len(claimed):
        return "holds"
    return "holds in part" if holding else "does not hold here"
