"""`jit runs`."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.table import Table

from justimage.commands.console import console, interruptible, say
from justimage.commands.line import parse
from justimage.commands.main import DONE
from justimage.runs.record import Record, distance_of, read_run, runs_in

COLUMNS = ("run", "state", "images", "done", "img/s", "loss", "fd", "written")
WORDS = ("run", "state", "written")  # columns that are no numbers
USUAL_WIDTH = 80  # of a terminal
SCALES = ((86_400, "d"), (3_600, "h"), (60, "min"))


@dataclass(frozen=True)
class Runs:
    """List the runs in a folder: state, how far, speed, loss, the last Frechet distance, and when each last wrote."""

    folder: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FOLDER")] = Path("runs")
    """Runs lie in it, at any depth up to three folders down; or it is one itself."""


def main(arguments: Sequence[str]) -> int:
    """List the runs; returns the exit code."""
    asked = parse(Runs, arguments, "jit runs")
    interruptible()
    folders = runs_in(asked.folder)
    if not folders:
        raise ValueError(f"there are no runs in {asked.folder}; `jit train RECIPE` begins one, in runs/RECIPE")
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for name in COLUMNS:  # names are broken before numbers are; where that does not suffice, all are, and none is cut
        side = "left" if name in WORDS else "right"
        table.add_column(name, overflow="fold", justify=side, no_wrap=name != "run" and console.width >= USUAL_WIDTH)
    damaged = []
    for folder in folders:
        try:
            table.add_row(*row(read_run(folder), time.time()))
        except ValueError as error:
            damaged.append(str(error))
    console.print(table)
    for each in damaged:
        say(each)
    return DONE


def row(record: Record, now: float) -> tuple[str, ...]:
    """A run as a row of the table; now: seconds since 1970."""
    tick = record.ticks[-1].tick if record.ticks else None
    distance = distance_of(record.evaluations[-1]) if record.evaluations else None
    return (
        str(record.folder),
        record.state,
        f"{record.nimg:,}",
        f"{record.nimg / max(record.total, 1):.0%}",
        f"{tick.img_per_second:,.0f}" if tick else "",
        f"{tick.loss:.4g}" if tick else "",
        "" if distance is None else f"{distance:.4g}",
        age(now - record.written) if record.written else "",
    )


def age(seconds: float) -> str:
    """A time ago in words, in its largest unit."""
    for length, unit in SCALES:
        if seconds >= length:
            return f"{seconds / length:.0f} {unit} ago"
    return "just now"
