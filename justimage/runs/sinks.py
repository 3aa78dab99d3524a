"""Who gets each tick of a run: the log, the bar on a terminal, or a line for each tick elsewhere."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from justimage.disk import writing
from justimage.training.loop import Tick

Sink = Callable[[Tick], None]


def log_to(path: Path) -> Sink:
    """A sink that appends a line of JSON to a file."""

    def log(tick: Tick) -> None:
        with writing(path), path.open("a") as file:
            file.write(json.dumps({**asdict(tick), "time": round(time.time(), 1)}) + "\n")

    return log


def seconds_left(tick: Tick, total_nimg: int, deadline: float | None) -> float:
    """How long a run still takes: to its last sample at the present rate, or to a deadline (time.monotonic)."""
    at_this_rate = (total_nimg - tick.nimg) / tick.img_per_second
    return at_this_rate if deadline is None else max(0.0, min(at_this_rate, deadline - time.monotonic()))


@contextmanager
def progress(console: Console, start_nimg: int, total_nimg: int, deadline: float | None) -> Iterator[Sink]:
    """A sink that shows how far the run is and what is left of it, until its end or the deadline."""
    if not console.is_terminal:

        def line(tick: Tick) -> None:
            left = seconds_left(tick, total_nimg, deadline)
            console.print(
                f"nimg {tick.nimg:>11,} of {total_nimg:,}   loss {tick.loss:.4f}   {tick.img_per_second:,.0f} img/s   "
                f"{left / 60:.1f} min left",
                soft_wrap=True,
            )

        yield line
        return
    columns = (TextColumn("training"), BarColumn(), TextColumn("{task.fields[status]}"), TimeElapsedColumn())
    began = time.monotonic()
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("training", total=1.0, status=f"nimg {start_nimg:,} of {total_nimg:,}")

        def show(tick: Tick) -> None:
            left, elapsed = seconds_left(tick, total_nimg, deadline), time.monotonic() - began
            done = elapsed / max(elapsed + left, 1e-9) if deadline is not None else tick.nimg / total_nimg
            status = f"nimg {tick.nimg:,} of {total_nimg:,}  loss {tick.loss:.4f}  {tick.img_per_second:,.0f} img/s"
            bar.update(task, completed=done, status=f"{status}  {left / 60:.1f} min left")

        yield show
