"""What a run's files say, read while it may be running: nothing is locked, and nothing is written."""

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite, nan
from pathlib import Path
from typing import Any

from justimage.data.records import from_known, from_plain, known_fields
from justimage.disk.hold import is_held
from justimage.runs.folder import HEALTH, LOG, RESULTS, flat, read_facts
from justimage.runs.health import FAILED, Measured
from justimage.training.loop import Tick
from justimage.weights.folder import RECIPE, is_run


@dataclass(frozen=True)
class Logged:
    """A line of log.jsonl, and when it was written (seconds since 1970; 0 where it does not say)."""

    tick: Tick
    time: float


@dataclass(frozen=True)
class Record:
    """What a run has left so far. Lines of other versions, and a last one that is being written, are left out."""

    folder: Path
    settings: Mapping[str, Any]
    """recipe.json's recipe, with dotted names."""
    data: Mapping[str, Any]
    ticks: tuple[Logged, ...]
    health: tuple[Measured, ...]
    evaluations: tuple[Mapping[str, Any], ...]
    failed: str
    """Why it failed; empty where it did not, or goes on."""
    running: bool

    @property
    def written(self) -> float:
        """When it last logged something, in seconds since 1970; 0 where it has not."""
        return self.ticks[-1].time if self.ticks else 0.0

    @property
    def nimg(self) -> int:
        """Samples seen, by the log."""
        return self.ticks[-1].tick.nimg if self.ticks else 0

    @property
    def losses(self) -> list[float]:
        """The loss at every tick, without those whose steps were all skipped."""
        return [each.tick.loss for each in self.ticks if isfinite(each.tick.loss)]

    @property
    def total(self) -> int:
        """Samples to be seen."""
        total = self.settings.get("training.duration_nimg")
        return total if isinstance(total, int) else 0

    @property
    def state(self) -> str:
        """running, finished, failed or stopped."""
        if self.running:
            return "running"
        if self.failed:
            return "failed"
        return "finished" if self.nimg >= self.total > 0 else "stopped"


def runs_in(folder: Path, depth: int = 3) -> list[Path]:
    """The run folders in a folder, itself included, by name. Raises ValueError where there is no such folder."""
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}; give one that holds runs, or run this where runs/ is")
    if is_run(folder):
        return [folder]
    inside = sorted(each for each in folder.iterdir() if each.is_dir() and not each.is_symlink()) if depth else []
    return [run for each in inside for run in runs_in(each, depth - 1)]


def distance_of(line: Mapping[str, Any]) -> float | None:
    """The Frechet distance of a line of evaluations.jsonl; None where it says none."""
    scores = line.get("scores")
    fd = scores.get("fd") if isinstance(scores, dict) else None
    value = fd.get("value") if isinstance(fd, dict) else None
    return value if isinstance(value, float) else None


def nearest_run(path: Path) -> Path:
    """The path, where it is a run. Raises ValueError, with the nearest path that there is, where it is none."""
    if is_run(path):
        return path
    if path.is_dir():
        inside = runs_in(path)[:5]
        hint = f"it holds {', '.join(map(str, inside))}" if inside else "give the folder of a run"
        raise ValueError(f"{path} is no run, as it has no {RECIPE}; {hint}")
    there = next((each for each in path.parents if each.is_dir()), Path("."))
    names = [str(each) for each in sorted(there.iterdir()) if each.is_dir()]
    near = difflib.get_close_matches(str(path), names, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]}?" if near else f"the nearest that exists is {there}"
    raise ValueError(f"there is no run {path}; {hint}")


def read_run(folder: Path) -> Record:
    """Read a run folder. Raises ValueError where it is none, or its recipe.json is damaged."""
    nearest_run(folder)
    facts = read_facts(folder) or {}
    lines = _lines(folder / HEALTH)
    failed = next((str(line[FAILED]) for line in lines[-1:] if FAILED in line), "")
    return Record(
        folder,
        flat(facts["recipe"]),
        facts["data"],
        tuple(each for line in _lines(folder / LOG) for each in _tick(line)),
        tuple(each for line in lines if FAILED not in line for each in _measured(line)),
        tuple(line for line in _lines(folder / RESULTS) if isinstance(line.get("nimg"), int)),
        failed,
        is_held(folder),
    )


def _lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines; nothing where it is not there."""
    found = []
    for line in path.read_text(errors="replace").splitlines() if path.is_file() else []:
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):  # half written, or damaged: what resumes the run says so
            continue
        if isinstance(value, dict):
            found.append(value)
    return found


def _tick(line: dict[str, Any]) -> list[Logged]:
    try:
        time, said = line.get("time", 0), _with_nan(known_fields(Tick, line))
        return [Logged(from_plain(Tick, said, LOG), float(time))]
    except (TypeError, ValueError):
        return []


def _with_nan(values: dict[str, Any]) -> dict[str, Any]:
    """Numbers that were not finite, as they were: JSON has null for them."""
    return {name: _with_nan(v) if isinstance(v, dict) else nan if v is None else v for name, v in values.items()}


def _measured(line: dict[str, Any]) -> list[Measured]:
    try:
        return [from_known(Measured, line, HEALTH)]
    except (TypeError, ValueError):
        return []
