"""DataSpec: what raw values mean, and the only place where they become model values and back."""

import difflib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

Attributes = tuple[tuple[str, Any], ...]  # (name, text or number), as NetCDF has them


@dataclass(frozen=True)
class Coordinate:
    """Where the points of a grid lie: a value for each point of its dimensions, row by row."""

    name: str
    dims: tuple[str, ...]
    values: tuple[float, ...]
    attributes: Attributes = ()


@dataclass(frozen=True)
class Variable:
    """The variable that a channel is, or is a level of: `at` says where along its other dimensions it lies."""

    name: str
    at: tuple[tuple[str, float], ...] = ()
    attributes: Attributes = ()


@dataclass(frozen=True)
class Origin:
    """Where fields came from: what is needed to write fields like them."""

    dims: tuple[str, ...]
    """Name of each spatial axis."""
    variables: tuple[Variable, ...]
    """What each channel is."""
    coordinates: tuple[Coordinate, ...] = ()
    """Of the spatial axes, where they are known: random crops have none; and of the levels."""
    attributes: Attributes = ()
    """Of the whole file."""


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
    origin: Origin | None = None
    """Variables, units and coordinates of fields; None for pixels and plain arrays."""

    def __post_init__(self) -> None:
        counts = {len(self.channels), len(self.mean), len(self.scale)}
        if len(counts) != 1 or not self.channels:
            raise ValueError(
                f"{len(self.channels)} channel names, {len(self.mean)} means and {len(self.scale)} scales: "
                "each channel needs one of each"
            )
        if not all(np.isfinite(self.mean)) or not all(np.isfinite(s) and s > 0 for s in self.scale):
            raise ValueError(f"means {self.mean} and scales {self.scale} must be finite, and scales positive")
        if self.origin is not None and len(self.origin.variables) != len(self.channels):
            raise ValueError(f"{len(self.origin.variables)} variables for {len(self.channels)} channels")

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "DataSpec":
        """The inverse of dataclasses.asdict, after JSON, which knows lists only."""
        plain = _tuples(values)
        origin = plain.pop("origin", None)
        if origin is not None:
            origin["variables"] = tuple(Variable(**each) for each in origin["variables"])
            origin["coordinates"] = tuple(Coordinate(**each) for each in origin["coordinates"])
            origin = Origin(**origin)
        return cls(**plain, origin=origin)

    @classmethod
    def pixels(cls, size: tuple[int, ...], channels: int, classes: Sequence[str] = ()) -> "DataSpec":
        """The spec of 8-bit images: 0..255 becomes [-1, 1]."""
        names = {1: ("grey",), 3: ("red", "green", "blue")}.get(channels) or tuple(f"c{i}" for i in range(channels))
        half = (127.5,) * channels
        return cls(tuple(size), names, half, half, "uint8", tuple(classes))

    @property
    def image(self) -> bool:
        """Whether samples are images of 8-bit pixels."""
        return self.dtype == "uint8" and len(self.size) == 2

    @property
    def units(self) -> tuple[str, ...]:
        """Unit of each channel, empty where it is not known."""
        if self.origin is None:
            return ("",) * len(self.channels)
        return tuple(str(dict(variable.attributes).get("units", "")) for variable in self.origin.variables)

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


def _tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _tuples(each) for name, each in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value


Item = tuple[np.ndarray, int]  # raw (C, *S) in the spec's type, and the label, -1 if there is none


@runtime_checkable
class Source(Protocol):
    """Samples in a fixed order. They are read by any thread."""

    @property
    def spec(self) -> DataSpec: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Item: ...

    def describe(self) -> str:
        """One sentence on what was found, for the user."""
        ...

    def fingerprint(self) -> str:
        """A short hash that changes when the samples, their order or their labels do."""
        ...


class StreamSource(Protocol):
    """Samples that come one after the other, without a length: what cannot be had in any order."""

    length: int | None
    """Samples of a pass, once one has been read."""

    @property
    def spec(self) -> DataSpec: ...

    def samples(self, seed: int, start: int) -> Iterator[Callable[[], Item]]:
        """The samples from position `start` of a run on, without end, each still to be decoded by calling it.

        A function of (seed, start), as far as `promise` says.
        """
        ...

    def describe(self) -> str:
        """One sentence on what was found, for the user."""
        ...

    def promise(self) -> str:
        """What resuming and several processes can rely on, and what not."""
        ...

    def fingerprint(self) -> str:
        """A short hash that changes when the stream's address or its reading do."""
        ...
