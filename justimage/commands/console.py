"""Where the commands write, and what they return."""

from rich.console import Console

console = Console()
DONE, FAILED, REFUSED, INTERRUPTED = 0, 1, 2, 3
