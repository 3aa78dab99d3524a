"""What the axes of a field file stand for: samples, levels, space and channels, and which labels lie along them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from justimage.data.origin import Attributes, Coordinate, Origin, Variable
from justimage.data.stores import xarray_library

# Dimensions taken for samples and for channels unless the user names them: what they are called in most files.
SAMPLE_DIMS = (
    "time",
    "sample",
    "samples",
    "member",
    "ensemble",
    "realization",
    "number",
    "valid_time",
    "month",
    "date",
)
LEVEL_DIMS = ("level", "lev", "plev", "pressure", "pressure_level", "isobaricInhPa", "channel", "band")
PARTS_OF_TIME: dict[str, Callable[[Any], Any]] = {
    "hour": lambda time: time.dt.hour,
    "day": lambda time: time.dt.day,
    "dayofweek": lambda time: time.dt.dayofweek,
    "dayofyear": lambda time: time.dt.dayofyear,
    "month": lambda time: time.dt.month,
    "season": lambda time: time.dt.season,
    "year": lambda time: time.dt.year,
}


@dataclass(frozen=True)
class FieldOptions:
    """How a NetCDF or Zarr file becomes samples (C, *S)."""

    variables: tuple[str, ...] = ()
    """Variables that become channels; by default all that share their dimensions."""
    sample_dim: str = ""
    """The dimension whose entries are the samples; by default time, member, sample or the like; `none`: one sample."""
    level_dim: str = ""
    """The dimension whose entries become channels; by default level, plev, channel or the like; `none`: it is space."""
    levels: tuple[float, ...] = ()
    """Which of them, by the value of their coordinate; by default all."""
    label: str = ""
    """A coordinate along the samples that is the label, or a part of a time: month, time.hour, time.season."""

    def __post_init__(self) -> None:
        if not np.all(np.isfinite(self.levels)):
            raise ValueError(f"levels are {self.levels}; each must be a finite number")


@dataclass(frozen=True)
class FieldPlan:
    """What each dimension stands for, and the channels: (variable, index of the level or None)."""

    sample_dim: str | None
    level_dim: str | None
    dims: tuple[str, ...]
    size: tuple[int, ...]
    channels: tuple[tuple[str, int | None], ...]

    def read(self, dataset: Any, index: int | slice) -> np.ndarray:
        """One sample (C, *S), or with a slice some (N, C, *S)."""
        some = isinstance(index, slice)
        order = ((self.sample_dim,) if some and self.sample_dim else ()) + self.dims
        channels = []
        for name, level in self.channels:
            where = {self.level_dim: level, self.sample_dim: index}
            where = {dim: at for dim, at in where.items() if dim is not None and at is not None}
            values = dataset[name].isel(where).transpose(*order).values.astype(np.float32, copy=False)
            channels.append(values[None] if some and not self.sample_dim else values)
        return np.stack(channels, axis=1 if some else 0)


def plan_of(dataset: Any, options: FieldOptions, place: str) -> FieldPlan:
    """What each dimension stands for. Raises ValueError, with what the file holds, where that cannot be told."""
    bounds = {str(dataset[name].attrs.get("bounds")) for name in dataset.variables}
    held = {
        str(name): tuple(map(str, variable.dims))
        for name, variable in dataset.data_vars.items()
        if variable.dims and str(name) not in bounds
    }
    shown = ", ".join(f"{name} ({', '.join(dims)})" for name, dims in held.items()) or "none"
    for name in options.variables:
        if name not in held:
            raise ValueError(f"{place} has no variable {name!r}; it has {shown}")
    sizes = {str(dim): int(length) for dim, length in dataset.sizes.items()}
    for asked in (options.sample_dim, options.level_dim):
        if asked not in ("", "none", *sizes):
            has = ", ".join(f"{dim} ({length})" for dim, length in sizes.items())
            raise ValueError(f"{place} has no dimension {asked!r}; it has {has}")
    chosen = list(options.variables) or [name for name in held if dataset[name].dtype.kind in "uif"]
    if not chosen:
        kinds = ", ".join(f"{name} {dataset[name].dtype}" for name in held)
        raise ValueError(f"{place} has no variable of numbers ({kinds or 'it is empty'})")
    for name in chosen:
        if dataset[name].dtype.kind not in "uif":
            raise ValueError(f"{name} of {place} is {dataset[name].dtype}; whole or floating-point numbers are needed")

    def dim(asked: str, likely: Sequence[str]) -> str | None:
        present = [each for name in chosen for each in held[name]]
        return None if asked == "none" else asked or next((each for each in likely if each in present), None)

    sample_dim, level_dim = dim(options.sample_dim, SAMPLE_DIMS), dim(options.level_dim, LEVEL_DIMS)
    level_dim = None if level_dim == sample_dim else level_dim
    for asked in (options.sample_dim, options.level_dim):
        if asked not in ("", "none") and not any(asked in held[name] for name in chosen):
            raise ValueError(f"none of the variables ({', '.join(chosen)}) has the dimension {asked!r}: {shown}")
    space = {name: tuple(d for d in held[name] if d not in (sample_dim, level_dim)) for name in chosen}
    with_samples = {name: sample_dim in held[name] for name in chosen}
    if len({frozenset(dims) for dims in space.values()}) > 1 or len(set(with_samples.values())) > 1:
        raise ValueError(
            f"the variables of {place} do not share their dimensions: {shown}; "
            "choose some with --data-options.fields.variables"
        )
    dims = space[chosen[0]]
    if not 1 <= len(dims) <= 3:
        raise ValueError(
            f"{place} leaves {len(dims)} spatial axes ({', '.join(dims) or 'none'}) beside the samples "
            f"({sample_dim or 'none'}) and the levels ({level_dim or 'none'}), but 1 to 3 are needed; name them with "
            f"--data-options.fields.sample-dim and --data-options.fields.level-dim. It has {shown}"
        )
    chosen_levels = _levels(dataset, level_dim, options.levels, place)
    channels = tuple(
        (name, level)
        for name in chosen
        for level in (chosen_levels if level_dim is not None and level_dim in held[name] else [None])
    )
    sample_dim = sample_dim if sample_dim in held[chosen[0]] else None
    return FieldPlan(sample_dim, level_dim, dims, tuple(sizes[d] for d in dims), channels)


def _levels(dataset: Any, level_dim: str | None, asked: Sequence[float], place: str) -> list[int]:
    if level_dim is None:
        if asked:
            raise ValueError(
                f"{place} has no dimension of levels to take {asked} from; name it with --data-options.fields.level-dim"
            )
        return []
    count = dataset.sizes[level_dim]
    values = [float(value) for value in _values(dataset, level_dim)]
    chosen = []
    for level in asked:
        near = np.flatnonzero(np.isclose(values, level, rtol=1e-5, atol=0))  # coordinates in float32 are not exact
        if len(near) != 1:
            raise ValueError(f"{place} has no {level_dim} {level:g}; it has {', '.join(f'{v:g}' for v in values)}")
        chosen.append(int(near[0]))
    return chosen if asked else list(range(count))


def _values(dataset: Any, dim: str) -> np.ndarray:
    """The coordinate of a dimension, or its indices where it has no numeric coordinate."""
    if dim in dataset.coords and dataset[dim].dtype.kind in "uif":
        return dataset[dim].values
    return np.arange(dataset.sizes[dim])


def channel_names(dataset: Any, plan: FieldPlan) -> list[str]:
    """What the channels are called: their variables, each with the value of its level, if there is one."""
    levels = None if plan.level_dim is None else _values(dataset, plan.level_dim)
    return [name if level is None or levels is None else f"{name}{levels[level]:g}" for name, level in plan.channels]


def sample_name(coordinates: Any, index: int, dim: str | None) -> str:
    """What a sample of a file is called: its time, or what else its dimension counts."""
    if dim is None or dim not in coordinates.coords:
        return "the only sample" if dim is None else f"{dim} {index}"
    value = coordinates[dim].values[index]
    return f"{dim} {np.datetime_as_string(value, 's') if isinstance(value, np.datetime64) else value}"


def labels_along(
    parts: Sequence[Any], counts: Sequence[int], plan: FieldPlan, label: str, name: str
) -> tuple[np.ndarray | None, tuple[str, ...]]:
    """The label of each sample and the class names, from a coordinate or a part of a time."""
    if not label:
        return None, ()
    coordinate, _, part_of_time = label.partition(".")
    columns = []
    for dataset, count in zip(parts, counts, strict=True):
        along = [str(c) for c in dataset.coords if dataset[c].dims == (plan.sample_dim,)]
        if coordinate not in along:
            raise ValueError(
                f"{name} has no coordinate {coordinate!r} along the samples ({plan.sample_dim or 'there is only one'}) "
                f"to take labels from; it has {', '.join(along) or 'none'}"
            )
        values = dataset[coordinate]
        if part_of_time:
            is_time = values.dtype.kind == "M" or "cftime" in type(values.values.flat[0]).__module__
            if part_of_time not in PARTS_OF_TIME or not is_time:
                raise ValueError(
                    f"{label} cannot be a label: after the dot comes a part of a time ({', '.join(PARTS_OF_TIME)}), "
                    f"and {coordinate} is {values.dtype}"
                )
            values = PARTS_OF_TIME[part_of_time](values)
        elif values.dtype.kind == "M":
            raise ValueError(
                f"{coordinate} of {name} is a time, and no label; take a part of it, such as {coordinate}.hour or "
                f"{coordinate}.month"
            )
        unknown = np.flatnonzero(dataset[coordinate].isnull().values | (values.values == ""))
        if len(unknown):
            at = sample_name(dataset, int(unknown[0]), plan.sample_dim)
            raise ValueError(
                f"{len(unknown):,} of {count:,} samples of {name} have no {coordinate} to take a label from, the first "
                f"at {at}; give each one a value, or leave out those samples"
            )
        columns.append(values.values[:count])
    found, y = np.unique(np.concatenate(columns), return_inverse=True)
    classes = tuple(f"{value:g}" if np.asarray(value).dtype.kind == "f" else str(value) for value in found)
    return y.astype(np.int64), classes if len(set(classes)) == len(classes) else tuple(map(str, found))


def _plain(attributes: dict) -> Attributes:
    """Attributes as texts, numbers and tuples of numbers, which both JSON and NetCDF can hold."""
    plain = []
    for name, value in attributes.items():
        array = np.asarray(value)
        if array.dtype.kind == "b":  # NetCDF has none
            array = array.astype(np.int8)
        if array.dtype.kind in "uif" and np.isfinite(array).all():  # NaN is not even equal to itself
            plain.append((str(name), tuple(array.tolist()) if array.ndim else array.item()))
        else:
            plain.append((str(name), str(value)))
    return tuple(plain)


def origin_of(dataset: Any, plan: FieldPlan) -> Origin:
    """What is needed to write generated fields like these."""
    xarray = xarray_library()
    coordinates = []
    for name, coordinate in sorted(dataset.coords.items()):  # stores have orders of their own
        dims = tuple(map(str, coordinate.dims))
        if not set(dims) <= {*plan.dims, plan.level_dim} or coordinate.dtype.kind not in "uifM":
            continue
        encoded = xarray.conventions.encode_cf_variable(coordinate.variable)  # times become numbers with units
        attributes = {k: v for k, v in encoded.attrs.items() if k not in ("_FillValue", "bounds")}
        values = np.asarray(encoded.values, dtype=np.float64).ravel()
        if not np.isfinite(values).all():
            continue
        coordinates.append(Coordinate(str(name), dims, tuple(values.tolist()), _plain(attributes)))
    levels = None if plan.level_dim is None else _values(dataset, plan.level_dim)
    variables = []
    for name, level in plan.channels:
        at = () if level is None or levels is None else ((str(plan.level_dim), float(levels[level])),)
        attributes = {k: v for k, v in dataset[name].attrs.items() if k not in ("grid_mapping", "bounds")}
        variables.append(Variable(name, at, _plain(attributes)))
    return Origin(plan.dims, tuple(variables), tuple(coordinates), _plain(dataset.attrs))
