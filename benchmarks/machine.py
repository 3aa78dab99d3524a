"""What the machine is called, and how it is timed fairly."""

import platform
from collections.abc import Callable
from pathlib import Path

import torch

from justimage.execution import device_name
from justimage.timing import timed

RESULTS = Path(__file__).parent / "results"


def facts(device: torch.device) -> dict:
    """What every result says about where it was measured."""
    return {
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "amx": torch.cpu._is_amx_tile_supported(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def result_path(what: str, device: torch.device, suffix: str) -> Path:
    """results/WHAT-DEVICE.SUFFIX."""
    name = "-".join("".join(c if c.isalnum() else " " for c in device_name(device).lower()).split())
    return RESULTS / f"{what}-{name}{suffix}"


def fastest(rows: dict[str, Callable[[], object]], rounds: int, device: torch.device) -> dict[str, float]:
    """Seconds of the fastest call of each, all called in turn."""
    return {name: found.fastest for name, found in timed(rows, rounds, device).items()}
