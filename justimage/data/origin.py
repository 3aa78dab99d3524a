"""Origin: where fields came from, as needed to write generated fields with the same names, units and coordinates."""

from dataclasses import dataclass
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

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Origin":
        """The inverse of dataclasses.asdict, after JSON. Raises TypeError for fields that do not exist."""
        plain = as_tuples(values)
        variables = tuple(Variable(**each) for each in plain.pop("variables"))
        coordinates = tuple(Coordinate(**each) for each in plain.pop("coordinates", ()))
        return cls(**plain, variables=variables, coordinates=coordinates)


def as_tuples(value: Any) -> Any:
    """The value with every list in it as a tuple: JSON knows lists only."""
    if isinstance(value, dict):
        return {name: as_tuples(each) for name, each in value.items()}
    return tuple(map(as_tuples, value)) if isinstance(value, list | tuple) else value
