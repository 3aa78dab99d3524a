"""Who gets each tick of a run: the log, the bar on a terminal, or a line for each tick elsewhere."""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from justimage.disk.whole import append_json
from justimage.training.loop import Tick

Sink = Callable[[Tick], None]
Work = Callable[[int, int, str], None]  # done, total, of what


class Shown(NamedTuple):
    """What shows how far a run is."""

    tick: Sink
    work: Work
    """Shows what else takes long."""


def unseen(done: int, total: int, what: str) -> None:
    """Work that is not shown."""


def log_to(path: Path) -> Sink:
    """A sink that appends a line of JSON to a file."""

    def log(tick: Tick) -> None:
        line = {name: _plain(value) for name, value in asdict(tick).items()}
        append_json(path, {**line, "time": round(time.time(), 1)})

    return log


def _plain(value: Any) -> Any:
    """A number as JSON holds it, which has none that is not finite: None in its place."""
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    return None if isinstance(value, float) and not isfinite(value) else value


def note_skipped(path: Path, nimgs: Iterable[int], batch_size: int, indices: Callable[[range], np.ndarray]) -> None:
    """Append a line for each step that was skipped: where it began, its last position, and its samples in the data."""
    for nimg in nimgs:
        positions = range(nimg, nimg + batch_size)
        line = {"nimg": nimg, "positions": [positions[0], positions[-1]], "indices": indices(positions).tolist()}
        append_json(path, {**line, "time": round(time.time(), 1)})


def said_of_skipped(tick: Tick) -> str:
    """How many steps were skipped since the last tick, and where; nothing where none was."""
    if not tick.skipped:
        return ""
    steps = f"{len(tick.skipped):,} step" + "s" * (len(tick.skipped) > 1)
    return f"   skipped {steps} with a loss or gradient that is not finite (nimg {tick.skipped[0]:,}; skipped.jsonl)"


def seconds_left(tick: Tick, total_nimg: int, deadline: float | None) -> float:
    """How long a run still takes: to its last sample at the present rate, or to a deadline (time.monotonic)."""
    at_this_rate = (total_nimg - tick.nimg) / tick.img_per_second
    return at_this_rate if deadline is None else max(0.0, min(at_this_rate, deadline - time.monotonic()))


def _columns() -> tuple[TextColumn | BarColumn | TimeElapsedColumn, ...]:
    return TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[status]}"), TimeElapsedColumn()


def _bars(shown: Progress) -> Work:
    """A bar for each thing, until it is done."""
    tasks: dict[str, TaskID] = {}

    def show(done: int, total: int, what: str) -> None:
        if what not in tasks:
            tasks[what] = shown.add_task(what, total=total, status="")
        shown.update(tasks[what], completed=done, status=f"{done:,} of {total:,}")
        if done >= total:
            shown.remove_task(tasks.pop(what))

    return show


def _lines(console: Console) -> Work:
    """A line for each thing, when it begins."""
    begun: set[str] = set()

    def show(done: int, total: int, what: str) -> None:
        if what not in begun:
            console.print(f"{what}: {total:,} samples", soft_wrap=True)
        begun.add(what)
        if done >= total:
            begun.remove(what)

    return show


@contextmanager
def working(console: Console) -> Iterator[Work]:
    """Show what takes long before a run begins: bars on a terminal, elsewhere lines."""
    if not console.is_terminal:
        yield _lines(console)
        return
    with Progress(*_columns(), console=console, transient=True) as shown:
        yield _bars(shown)


@contextmanager
def progress(console: Console, start_nimg: int, total_nimg: int, deadline: float | None) -> Iterator[Shown]:
    """Show how far the run is and what is left of it, until its end or the deadline."""
    if not console.is_terminal:

        def line(tick: Tick) -> None:
            left = seconds_left(tick, total_nimg, deadline)
            console.print(
                f"nimg {tick.nimg:>11,} of {total_nimg:,}   loss {tick.loss:.4f}   {tick.img_per_second:,.0f} img/s   "
                f"{left / 60:.1f} min left{said_of_skipped(tick)}",
                soft_wrap=True,
            )

        yield Shown(line, _lines(console))
        return
    began = time.monotonic()
    with Progress(*_columns(), console=console) as bar:
        task = bar.add_task("training", total=1.0, status=f"nimg {start_nimg:,} of {total_nimg:,}")

        def show(tick: Tick) -> None:
            left, elapsed = seconds_left(tick, total_nimg, deadline), time.monotonic() - began
            done = elapsed / max(elapsed + left, 1e-9) if deadline is not None else tick.nimg / total_nimg
            status = f"nimg {tick.nimg:,} of {total_nimg:,}  loss {tick.loss:.4f}  {tick.img_per_second:,.0f} img/s"
            bar.update(task, completed=done, status=f"{status}  {left / 60:.1f} min left")
            if tick.skipped:  # the line of the bar is soon another one
                console.print(f"nimg {tick.nimg:,}{said_of_skipped(tick)}", soft_wrap=True)

        yield Shown(show, _bars(bar))
