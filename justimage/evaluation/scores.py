"""Scores: all numbers of one evaluation as one table, with what they were made from."""

import json
import time
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any, Literal

from justimage.disk.whole import write_text

Better = Literal["lower", "higher", ""]


@dataclass(frozen=True)
class Score:
    """One number, its standard error where that is known, and how to read it."""

    name: str
    value: float
    error: float | None = None
    better: Better = ""
    meaning: str = ""

    def text(self) -> str:
        """The value, with its error."""
        return f"{self.value:.4g}" + ("" if self.error is None else f" \N{PLUS-MINUS SIGN} {self.error:.2g}")


@dataclass(frozen=True)
class Scores:
    """The numbers of one evaluation, and everything that they depend on.

    str() is a table; `to_json` is one line of evaluations.jsonl; scores["fd"] is one of them.
    """

    scores: tuple[Score, ...]
    facts: dict[str, Any] = field(default_factory=dict)
    """What was drawn or read, how, from which weights, compared with what, by which features, in which versions."""

    def __getitem__(self, name: str) -> Score:
        """The score of this name. Raises KeyError, with those there are, where there is none."""
        for score in self.scores:
            if score.name == name:
                return score
        raise KeyError(f"there is no score {name!r}; there are {', '.join(score.name for score in self.scores)}")

    def __contains__(self, name: str) -> bool:
        return any(score.name == name for score in self.scores)

    def to_json(self) -> dict[str, Any]:
        """Plain values: the facts, and under `scores` each value and error by name."""
        values = {score.name: {"value": plain(score.value), "error": plain(score.error)} for score in self.scores}
        return {**self.facts, "scores": values}

    def save(self, path: Path) -> None:
        """Write them as JSON."""
        write_text(path, json.dumps(self.to_json(), indent=2) + "\n")

    def __str__(self) -> str:
        rows = [(score.name, score.text(), _arrow(score.better), score.meaning) for score in self.scores]
        wide = [max((len(row[i]) for row in rows), default=0) for i in range(3)]
        return "\n".join(
            f"{name:<{wide[0]}}  {value:>{wide[1]}}  {arrow:<{wide[2]}}  {meaning}".rstrip()
            for name, value, arrow, meaning in rows
        )


def plain(value: float | None) -> float | None:
    """A number as JSON holds it, which has none that is not finite: None in its place."""
    return value if value is not None and isfinite(value) else None


def now() -> str:
    """The time of a result, with the hours from UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def _arrow(better: Better) -> str:
    return f"{better} is better" if better else ""
