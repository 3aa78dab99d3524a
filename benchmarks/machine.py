"""What the machine is called, and how it is timed fairly."""

import platform
import time
from collections.abc import Callable
from pathlib import Path

import torch

RESULTS = Path(__file__).parent / "results"


def processor(device: torch.device) -> str:
    """What the machine calls its accelerator, or its processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def facts(device: torch.device) -> dict:
    """What every result says about where it was measured."""
    return {
        "device": processor(device),
        "threads": torch.get_num_threads(),
        "amx": torch.cpu._is_amx_tile_supported(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def result_path(what: str, device: torch.device, suffix: str) -> Path:
    """results/WHAT-DEVICE.SUFFIX."""
    name = "-".join("".join(c if c.isalnum() else " " for c in processor(device).lower()).split())
    return RESULTS / f"{what}-{name}{suffix}"


def fastest(rows: dict[str, Callable[[], object]], rounds: int, device: torch.device) -> dict[str, float]:
    """Seconds of the fastest call of each, all called in turn."""
    best = dict.fromkeys(rows, float("inf"))
    for _ in range(rounds):
        for name, call in rows.items():
            finish(device)
            began = time.perf_counter()
            call()
            finish(device)
            best[name] = min(best[name], time.perf_counter() - began)
    return best


def finish(device: torch.device) -> None:
    """Wait for the device."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
