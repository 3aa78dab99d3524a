"""Signals that ask a run to stop after its step, and save."""

import contextlib
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# Signals that stop and save: keys; and the end of a job, of a session, and the warning before it (SLURM's USR1).
PRESSED = {getattr(signal, name) for name in ("SIGINT", "SIGQUIT") if hasattr(signal, name)}
STOPPING = {getattr(signal, name) for name in ("SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, name)}


@contextmanager
def stop_requested() -> Iterator[list[int]]:
    """A list that is empty until Ctrl-C or a signal of STOPPING; a second key press acts as it always does."""
    caught: list[int] = []
    previous: dict[int, Any] = {}
    shown = [descriptor for descriptor in (1, 2) if os.isatty(descriptor)]

    def note(number: int, frame: Any) -> None:
        caught.append(number)
        if number == getattr(signal, "SIGHUP", None):  # the terminal is gone: writing to it would fail
            nowhere = os.open(os.devnull, os.O_WRONLY)
            for descriptor in shown:
                os.dup2(nowhere, descriptor)
            os.close(nowhere)
        # Not through the console: the signal may have come in the middle of its printing.
        with contextlib.suppress(OSError):
            os.write(2, b"\nstopping after this step and saving; press again to stop at once\n")
        for each in PRESSED & previous.keys():  # the others are often sent twice, or one after another
            signal.signal(each, previous[each])

    for number in PRESSED | STOPPING:
        if signal.getsignal(number) is signal.SIG_IGN:  # nohup
            continue
        try:
            previous[number] = signal.signal(number, note)
        except ValueError:  # not in the main thread: whoever called this handles signals
            break
    try:
        yield caught
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
