"""Where the commands write."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

console = Console()


def interruptible() -> None:
    """From here on Ctrl-C raises KeyboardInterrupt, as everywhere in Python: there is something to tidy up."""
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def say(text: str) -> None:
    """Print a line as it is."""
    console.print(text, markup=False, soft_wrap=True)


@contextmanager
def bars() -> Iterator[Callable[[int, int, str], None]]:
    """A callable (done, total, of what) that shows a bar for each thing on a terminal, with its rate and time left."""
    if not console.is_terminal:
        yield lambda done, total, what: None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as shown:
        tasks = {}

        def show(done: int, total: int, what: str) -> None:
            if what not in tasks:
                tasks[what] = shown.add_task(what, total=total, completed=done, rate="")
            speed = next(task.speed for task in shown.tasks if task.id == tasks[what])
            shown.update(tasks[what], total=total, completed=done, rate=f"{speed:,.0f}/s" if speed else "")

        yield show
