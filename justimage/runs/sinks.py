"""Who gets each tick of a run: the log, the bar on a terminal, or a line for each tick elsewhere."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from justimage.disk import append_json
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
        append_json(path, {**asdict(tick), "time": round(time.time(), 1)})

    return log


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
                f"{left / 60:.1f} min left",
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

        yield Shown(show, _bars(bar))
