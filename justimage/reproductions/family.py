"""A reproduction as values: a claim of the paper, tables of trainings that test it, and statements on their numbers."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch

from justimage.data.records import replaced
from justimage.data.spec import Source, StreamSource
from justimage.evaluation.fitted import Progress
from justimage.reproductions.verdict import Row, Statement
from justimage.runs.recipes import Recipe
from justimage.training.adapters import LoRA

ScaleName = Literal["laptop", "gpu", "paper"]
Settings = Mapping[str, Any]  # dotted field of a Setup -> its value


# Fields that came after the first results, at the value that means as before, (class, field, value): runs that are
# there keep their names. Defaults are no part of a name: they may change.
LATER: tuple[tuple[str, str, Any], ...] = (
    ("Sampling", "guidance_every", 1),
    ("Training", "ema_warmup", 9),
    ("Training", "ema_every", 1),
    ("Training", "ema_stds", ()),
    ("Training", "most_skipped", 16),
    ("Training", "lora", LoRA()),
    ("Training", "shard", False),
    ("DataOptions", "held_out", 0.0),
)
NOT_OF_A_RUN = ("report", "sampling", "promise", "default_data")  # fields of a recipe that change no weight


class Data(Protocol):
    """Where samples come from: a frozen dataclass."""

    @property
    def given(self) -> bool:
        """Whether they are the user's; otherwise they are made or come with a package."""
        ...

    def open(self, size: tuple[int, ...], channels: int, given: str = "") -> Source | StreamSource:
        """The samples; given: the path that the user gives. Raises ValueError where there are none."""
        ...


@dataclass(frozen=True)
class Measured:
    """What is measured of a trained run."""

    numbers: dict[str, float]
    facts: dict[str, Any] = field(default_factory=dict)
    """The settings that were chosen, and what the numbers were made with; plain values."""
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    """For pictures: `shown`, some raw samples, and whatever a family's plot asks for."""


class Measure(Protocol):
    """What is measured of a run: a frozen dataclass of the numbers that it depends on."""

    def prepare(self, setup: "Setup", given: str, device: torch.device, progress: Progress | None) -> None:
        """What many runs have in common, made and cached once."""
        ...

    def __call__(self, setup: "Setup", run: Path, given: str, device: torch.device, progress: Progress) -> Measured:
        """The numbers of a finished run, found again after a kill where that takes long."""
        ...


@dataclass(frozen=True)
class Setup:
    """Everything that a number depends on: how a network is trained, on what, and what is measured of it."""

    recipe: Recipe
    data: Data
    measure: Measure

    def having(self, settings: Settings) -> "Setup":
        """The same with some fields replaced. Raises ValueError where they do not exist or make no sense."""
        return replaced(self, settings)

    def run(self) -> str:
        """A short hash of the training: setups that differ in how they are measured or drawn from share a run."""
        recipe = {name: value for name, value in _said(self.recipe)["Recipe"].items() if name not in NOT_OF_A_RUN}
        return _hash([recipe, _said(self.data)])

    def measurement(self) -> str:
        """A short hash of what is measured, and how samples are drawn."""
        return _hash([_said(self.measure), _said(self.recipe.sampling)])


def _said(values: Any) -> Any:
    """A dataclass as plain values, under its name, without the fields of LATER that are as before."""
    if not is_dataclass(values):
        return values
    name = type(values).__name__
    found = {item.name: getattr(values, item.name) for item in fields(values)}
    return {name: {key: _said(each) for key, each in found.items() if (name, key, each) not in LATER}}


def _hash(values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Axis:
    """One way in which trainings differ."""

    name: str
    points: Mapping[str, Settings]
    """Label -> what it sets."""


@dataclass(frozen=True)
class Part:
    """All combinations of some axes, as one table; the last axis is its columns."""

    name: str
    axes: tuple[Axis, ...]
    settings: Settings = field(default_factory=dict)
    """What all of its cells have."""
    seeds: int = 0
    """At most so many; 0: as many as asked for."""


@dataclass(frozen=True)
class Cell:
    """One training and its measurement."""

    part: str
    labels: Mapping[str, str]
    """Axis -> label."""
    seed: int
    setup: Setup

    def text(self) -> str:
        """In a few words."""
        return f"{self.part}: {', '.join(f'{axis} {label}' for axis, label in self.labels.items())}, seed {self.seed}"


@dataclass(frozen=True)
class Scale:
    """How much is trained, on what: the same tables from a laptop to the paper."""

    setup: Setup
    """What all cells have in common."""
    parts: tuple[Part, ...]

    def cells(self, seeds: int) -> list[Cell]:
        """All of them, those of one part after the other; seeds 0 to seeds - 1 of each."""
        found = []
        for part in self.parts:
            for labels in product(*(axis.points for axis in part.axes)):
                chosen = [axis.points[label] for axis, label in zip(part.axes, labels, strict=True)]
                settings = {name: value for some in (part.settings, *chosen) for name, value in some.items()}
                names = [axis.name for axis in part.axes]
                for seed in range(min(seeds, part.seeds or seeds)):
                    setup = self.setup.having({**settings, "recipe.training.seed": seed})
                    found.append(Cell(part.name, dict(zip(names, labels, strict=True)), seed, setup))
        return found


@dataclass(frozen=True)
class Family:
    """A table or figure of the paper."""

    name: str
    paper: str
    """Where it stands."""
    claim: str
    how: str
    """How it is tested at laptop scale, and what is different from the paper."""
    number: str
    """The number that is compared; lower is better."""
    meaning: str
    """What the number is."""
    scales: Mapping[ScaleName, Scale]
    statements: tuple[Statement, ...]
    theirs: Mapping[str, Mapping[tuple[str, ...], float | str]] = field(default_factory=dict)
    """The paper's numbers: part -> labels of the paper's scale -> number."""
    their_number: str = "FID-50K on ImageNet"
    """What the paper's numbers are."""
    pictures: tuple["Picture", ...] = ()
    shown: tuple[str, ...] = ()
    """Further numbers of the tables."""


Arrays = Callable[[Row], Mapping[str, np.ndarray]]  # what was measured of a cell's first seed


class Picture(Protocol):
    """A picture of a part's results: a frozen dataclass."""

    @property
    def name(self) -> str: ...

    @property
    def part(self) -> str: ...

    def __call__(self, family: Family, rows: Sequence[Row], arrays: Arrays, path: Path) -> None:
        """Draw it, as PNG; rows: of all parts."""
        ...
