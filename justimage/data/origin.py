"""Origin: where fields came from, as needed to write generated fields with the same names, units and coordinates."""

from dataclasses import dataclass
from math import prod
from typing import Any

Attributes = tuple[tuple[str, Any], ...]  # (name, text or number), as in NetCDF


@dataclass(frozen=True)
class Coordinate:
    """Where the points of a grid lie: one value for each point of its dimensions, row by row."""

    name: str
    dims: tuple[str, ...]
    values: tuple[float, ...]
    attributes: Attributes = ()


@dataclass(frozen=True)
class Variable:
    """The variable that a channel is, or is one level of: `at` is its position along the other dimensions."""

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
    """Of the spatial axes, where they are known (random crops have none), and of the levels."""
    attributes: Attributes = ()
    """Of the whole file."""

    def check(self, size: tuple[int, ...]) -> None:
        """Raises ValueError where these are not the axes and coordinates of a grid of this size."""
        if len(self.dims) != len(size):
            raise ValueError(f"the dimensions {self.dims} do not name the {len(size)} axes of the size {size}")
        lengths = dict(zip(self.dims, size, strict=True))
        for each in self.coordinates:
            if set(each.dims) <= set(lengths) and len(each.values) != prod(lengths[dim] for dim in each.dims):
                shape = tuple(lengths[dim] for dim in each.dims)
                raise ValueError(f"the coordinate {each.name} has {len(each.values)} values for a grid of {shape}")
