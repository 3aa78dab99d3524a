"""Which source lies behind a path."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from justimage.data.arrays import digits, read_arrays
from justimage.data.images import ImageFolder
from justimage.data.spec import Source

NAMED: dict[str, Callable[[], Source]] = {"mnist": digits}


@dataclass(frozen=True)
class DataOptions:
    """How data are read."""

    on_error: Literal["stop", "skip"] = "stop"
    """What an image that cannot be decoded does: stop, with its name; or skip it, and count."""
    memory_gb: float = 2.0
    """Image folders that fit are decoded once into memory, and checked by it before the first step."""
    workers: int = field(default_factory=lambda: min(8, os.cpu_count() or 1))
    """Threads that read ahead, in each process; by default one for each core, at most 8."""

    def __post_init__(self) -> None:
        if self.workers < 0 or self.memory_gb < 0:
            raise ValueError(f"workers ({self.workers}) and memory_gb ({self.memory_gb}) must not be negative")


def open_source(path: str, size: tuple[int, ...], channels: int, options: DataOptions | None = None) -> Source:
    """The source behind a path: a folder of images, a .npy, an .npz, or the name of data that come with a package.

    size, channels: what images are cropped and converted to; arrays have their own. Raises ValueError where there is
    nothing, or nothing that can be read.
    """
    options = options or DataOptions()
    if path in NAMED:
        return NAMED[path]()
    place = Path(path)
    if not place.exists():
        raise ValueError(f"the data path {path} does not exist")
    if place.is_dir():
        return ImageFolder(place, size, channels=channels, on_error=options.on_error, memory_gb=options.memory_gb)
    if place.suffix in (".npy", ".npz"):
        return read_arrays(place)
    raise ValueError(f"{path} is no folder of images and no .npy or .npz; {', '.join(NAMED)} are known by name")
