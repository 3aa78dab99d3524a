"""Timing that is fair on a noisy machine: rows in turn, round by round; and what is measured once for a machine."""

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from justimage.disk.cache import cached
from justimage.execution import device_name, finish


@dataclass(frozen=True)
class Timed:
    """Seconds of one call, over some rounds."""

    median: float
    fastest: float
    slowest: float
    rounds: int


def timed(rows: Mapping[str, Callable[[], object]], rounds: int, device: torch.device) -> dict[str, Timed]:
    """Each row called once without looking, then all of them in turn for so many rounds.

    What else the machine does then falls on all rows alike: ratios of their medians hold where seconds do not.
    """
    seconds: dict[str, list[float]] = {name: [] for name in rows}
    for call in rows.values():
        call()
    for _ in range(rounds):
        for name, call in rows.items():
            finish(device)
            began = time.perf_counter()
            call()
            finish(device)
            seconds[name].append(time.perf_counter() - began)
    return {name: Timed(statistics.median(each), min(each), max(each), rounds) for name, each in seconds.items()}


def measured_once(what: str, device: torch.device, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What measure() found on this machine with so many threads and this torch; kept beside other cached values."""
    threads = f"{torch.get_num_threads()} threads"
    where = f"{device_name(device)}, {device.type}, {threads}, {platform.machine()}, torch {torch.__version__}"
    where += f", {kept_to()}" if kept_to() else ""
    return cached(f"{what} on {where}", measure)


def kept_to() -> str:
    """The instructions that products on a CPU are kept to, if the user has said so: it is then like an older one."""
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", "")
    return f"kept to {limit}" if limit else ""
