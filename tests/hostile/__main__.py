"""python -m tests.hostile: many hostile cases, and what became of them."""

import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Annotated

os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "COLUMNS": "200", "HF_HUB_OFFLINE": "1"}

import torch
import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from .child import Limits, as_text, door_of, run_cases
from .doors import DOORS, import_all
from .oracle import judge
from .report import Tally


@dataclass(frozen=True)
class Hostile:
    """Make hostile inputs at every door, run each in a child, and judge what became of it."""

    cases: int = 500
    """How many."""
    seed: int = 0
    """Case k of a seed is always the same."""
    door: str = ""
    """Only cases of this door."""
    case: int | None = None
    """Only this case."""
    keep: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Keep the folders of cases that fail (or of the one --case)."""
    json: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Write the figures there."""
    at_once: int = 2
    """Children at a time."""

    def numbers(self) -> Iterator[int]:
        """The cases that are run."""
        if self.case is not None:
            return iter([self.case])
        if not self.door:
            return iter(range(self.cases))
        if self.door not in DOORS:
            raise SystemExit(f"there is no door {self.door!r}; there are {', '.join(DOORS)}")
        return islice((k for k in count() if door_of(self.seed, k, DOORS)[0] == self.door), self.cases)

    def __call__(self) -> int:
        """Run them; 1 where anything is wrong."""
        import_all()
        torch.set_num_threads(1)  # children are forked: no pool of threads may run here
        console = Console(stderr=True)
        tally, began = Tally(), time.monotonic()
        scratch = Path(tempfile.mkdtemp(prefix="hostile-")).resolve()
        try:
            outcomes = run_cases(self.numbers(), self.seed, DOORS, scratch, Limits(), self.at_once)
            for outcome, folder in self._shown(outcomes, console):
                failures = judge(outcome)
                tally.add(outcome, failures)
                if self.keep and (failures or self.case is not None):
                    kept = self.keep / str(outcome.number)
                    shutil.rmtree(kept, ignore_errors=True)
                    shutil.copytree(folder, kept, symlinks=True, ignore=_no_pipes)
                    (kept / "outcome.json").write_text(as_text(outcome))
                if self.case is not None:
                    console.print(f"{outcome.door}, {outcome.told}\n{outcome.said}\n{failures}", markup=False)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        tally.show(Console(width=200), self.seed)
        if self.json:
            self.json.write_text(json.dumps(tally.as_json(self.seed, time.monotonic() - began), indent=1) + "\n")
        return int(tally.failed)

    def _shown(self, outcomes: Iterable, console: Console) -> Iterator:
        """The outcomes, with a bar that needs no thread: a child is not to inherit one."""
        columns = (TextColumn("hostile cases"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        total = 1 if self.case is not None else self.cases
        with Progress(
            *columns, console=console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False
        ) as bar:
            task = bar.add_task("", total=total)
            for outcome in outcomes:
                yield outcome
                bar.advance(task)
                if console.is_terminal:
                    bar.refresh()


def _no_pipes(folder: str, names: list[str]) -> list[str]:
    """Named pipes, which are not to be copied."""
    return [name for name in names if Path(folder, name).is_fifo()]


if __name__ == "__main__":
    sys.exit(tyro.cli(Hostile)())
