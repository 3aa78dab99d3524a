"""Where the commands write."""

import signal

from rich.console import Console

console = Console()


def interruptible() -> None:
    """From here on Ctrl-C raises KeyboardInterrupt, as everywhere in Python: there is something to tidy up."""
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def say(text: str) -> None:
    """Print a line as it is."""
    console.print(text, markup=False, soft_wrap=True)
