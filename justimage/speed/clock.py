"""Where the time goes, part by part, and the most that the machine could do."""

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch

from justimage.execution import finish, peak_of_process
from justimage.precision import matrix_product

PEAK_LENGTH = {"cuda": 8192}  # of the square matrices whose product is a machine's peak
SMALL_PEAK_LENGTH = 2048


def square_product(dtype: torch.dtype, device: torch.device) -> tuple[Callable[[], object], float]:
    """A call of a large square matrix product, of which a machine gives the most, and its floating-point operations."""
    n = PEAK_LENGTH.get(device.type, SMALL_PEAK_LENGTH)
    return matrix_product(n, n, n, dtype, device), 2.0 * n**3


def forget_peak(device: torch.device) -> None:
    """From now on `peak_memory` is of what is in use from now on, where the system can forget (Linux, GPUs)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")


def peak_memory(device: torch.device) -> int:
    """The most bytes in use at once since the process began, or `forget_peak`: a GPU's own, or the process's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return peak_of_process()


@dataclass
class Clock:
    """Seconds by part. The device is waited for at both ends of a part, so the parts are right and their sum is more
    than what they take without being looked at.
    """

    device: torch.device
    seconds: dict[str, float] = field(default_factory=dict)

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count what happens inside to a part."""
        finish(self.device)
        began = time.perf_counter()
        yield
        finish(self.device)
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began
