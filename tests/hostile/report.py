"""What a round of cases has shown: a table of doors, the causes of what failed, and the figures as JSON."""

import importlib.metadata
import os
import platform
from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.table import Table

from .child import Outcome
from .oracle import KINDS, Failure

LIBRARIES = ("torch", "numpy", "pillow", "safetensors", "xarray", "zarr", "numcodecs", "h5netcdf", "datasets", "tyro")
MOST_CAUSES = 200


class Tally:
    """Counts of outcomes by door, and failures by cause."""

    def __init__(self) -> None:
        self.doors: dict[str, Counter[str]] = defaultdict(Counter)
        self.causes: dict[tuple[str, str, str], list[tuple[int, str]]] = defaultdict(list)
        self.slowest = 0.0

    def add(self, outcome: Outcome, failures: Iterable[Failure]) -> None:
        """Count one more."""
        row = self.doors[outcome.door]
        row["cases"] += 1
        row["controls"] += outcome.told.get("mutation") == "none"
        row["refused"] += outcome.code in (1, 2)
        row["accepted"] += outcome.code == 0
        self.slowest = max(self.slowest, outcome.seconds)
        for failure in failures:
            row[failure.kind] += 1
            mutation = outcome.told.get("mutation", "?")
            self.causes[outcome.door, failure.kind, failure.cause].append((outcome.number, mutation))

    @property
    def failed(self) -> bool:
        """Whether anything is wrong."""
        return bool(self.causes)

    def as_json(self, seed: int, seconds: float) -> dict[str, Any]:
        """The figures, with what they were measured on."""
        return {
            "seed": seed,
            "cases": sum(row["cases"] for row in self.doors.values()),
            "seconds": round(seconds, 1),
            "slowest_seconds": round(self.slowest, 1),
            "doors": {
                name: {each: row[each] for each in ("cases", "controls", "refused", "accepted", *KINDS)}
                for name, row in sorted(self.doors.items())
            },
            "causes": [
                {"door": door, "kind": kind, "cause": cause, "count": len(found), "first": found[0][0]}
                for (door, kind, cause), found in self._ordered()
            ],
            "machine": {"cores": os.cpu_count(), "processor": platform.machine(), "system": platform.platform()},
            "versions": {"python": platform.python_version()}
            | {name: importlib.metadata.version(name) for name in LIBRARIES},
        }

    def show(self, console: Console, seed: int) -> None:
        """The table, and each cause with the command that makes its first case again."""
        columns = ("cases", "controls", "refused", "accepted", *KINDS)
        table = Table("door", *columns)
        for name, row in sorted(self.doors.items()):
            table.add_row(name, *(str(row[each] or "") for each in columns))
        if len(self.doors) > 1:
            total = sum(self.doors.values(), Counter())
            table.add_row("all", *(str(total[each] or "") for each in columns))
        for (door, kind, cause), found in self._ordered()[:MOST_CAUSES]:
            mutations = ", ".join(f"{name} {count}" for name, count in Counter(m for _, m in found).most_common(4))
            console.print(f"{len(found):5} {door}, {kind}: {cause}", markup=False, soft_wrap=True)
            again = f"python -m tests.hostile --seed {seed} --case {found[0][0]} --keep DIR"
            console.print(f"      ({mutations})  {again}", markup=False, soft_wrap=True, style="dim")
        console.print(table)

    def _ordered(self) -> list[tuple[tuple[str, str, str], list[tuple[int, str]]]]:
        return sorted(self.causes.items(), key=lambda item: (item[0][0], item[0][1], -len(item[1])))
