"""DataSpec: what raw values mean, and the only place where they become model values and back."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class DataSpec:
    """Shape, names and scales of samples (C, *S); it travels in the checkpoint.

    Model values are (raw - mean) / scale, one mean and scale per channel, and lie around [-1, 1].
    Raises ValueError where the numbers of names, means and scales differ, or a scale is not positive.
    """

    size: tuple[int, ...]
    """Length of each spatial axis."""
    channels: tuple[str, ...]
    """Channel names."""
    mean: tuple[float, ...]
    """Raw value that becomes 0, per channel."""
    scale: tuple[float, ...]
    """Raw distance that becomes 1, per channel."""
    dtype: Literal["uint8", "float32"] = "float32"
    """Type of the raw values."""
    classes: tuple[str, ...] = ()
    """Class names in the order of their labels; empty: no labels."""

    def __post_init__(self) -> None:
        counts = {len(self.channels), len(self.mean), len(self.scale)}
        if len(counts) != 1 or not self.channels:
            raise ValueError(
                f"{len(self.channels)} channel names, {len(self.mean)} means and {len(self.scale)} scales: "
                "each channel needs one of each"
            )
        if not all(np.isfinite(self.mean)) or not all(np.isfinite(s) and s > 0 for s in self.scale):
            raise ValueError(f"means {self.mean} and scales {self.scale} must be finite, and scales positive")

    @classmethod
    def pixels(cls, size: tuple[int, ...], channels: int, classes: Sequence[str] = ()) -> "DataSpec":
        """The spec of 8-bit images: 0..255 becomes [-1, 1]."""
        names = {1: ("grey",), 3: ("red", "green", "blue")}.get(channels) or tuple(f"c{i}" for i in range(channels))
        half = (127.5,) * channels
        return cls(tuple(size), names, half, half, "uint8", tuple(classes))

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, *S)."""
        return len(self.channels), *self.size

    def encode(self, raw: Tensor) -> Tensor:
        """Raw values (B, C, *S) -> model values (B, C, *S) float32."""
        return (raw.float() - _column(self.mean, raw.ndim, raw.device)) / _column(self.scale, raw.ndim, raw.device)

    def decode(self, x: Tensor) -> Tensor:
        """Model values (B, C, *S) -> raw values of this spec's type; 8-bit values are rounded and clipped."""
        raw = x.float() * _column(self.scale, x.ndim, x.device) + _column(self.mean, x.ndim, x.device)
        return raw.round_().clamp_(0, 255).to(torch.uint8) if self.dtype == "uint8" else raw

    def label(self, name: int | str) -> int:
        """A class by name or index -> its index. Raises ValueError, with the nearest names, where there is none."""
        if isinstance(name, str):
            if name in self.classes:
                return self.classes.index(name)
            if name.isdecimal():
                return self.label(int(name))
            near = difflib.get_close_matches(name, self.classes, n=3, cutoff=0.3) or list(self.classes[:10])
            known = f"the nearest are {', '.join(near)}" if near else "these data have no classes"
            raise ValueError(f"there is no class {name!r}; {known}")
        if not 0 <= name < len(self.classes):
            raise ValueError(f"label {name} is out of range: there are {len(self.classes)} classes, counted from 0")
        return name


@lru_cache(maxsize=16)
def _column(values: tuple[float, ...], ndim: int, device: torch.device) -> Tensor:
    """One number for each channel, (C, 1, ..., 1); kept on its device, as every step needs it."""
    return torch.tensor(values, dtype=torch.float32, device=device).view(-1, *[1] * (ndim - 2))


class Source(Protocol):
    """Samples in a fixed order. Item i is (raw (C, *S) in the spec's type, label), the label -1 if there is none."""

    @property
    def spec(self) -> DataSpec: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]: ...

    def describe(self) -> str:
        """One sentence on what was found, for the user."""
        ...

    def fingerprint(self) -> str:
        """A short hash that changes when the samples, their order or their labels do."""
        ...
