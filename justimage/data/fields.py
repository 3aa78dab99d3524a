"""Fields: NetCDF and Zarr through xarray, with variables and levels as channels."""

import gc
import json
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from justimage.data.arrays import Arrays, Missing
from justimage.data.origin import Attributes, Coordinate, Origin, Variable
from justimage.data.spec import UnreadableSample
from justimage.disk import state_of

NETCDF = (".nc", ".nc4", ".nc3", ".cdf", ".netcdf", ".h5netcdf")
ZARR_MARKS = ("zarr.json", ".zgroup", ".zmetadata")
ZARR_METADATA = ("zarr.json", ".zarray", ".zmetadata")  # files that name codecs
RUNS_CODE = "pickle"  # the codec that is a program
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


def xarray_library() -> Any:
    """The package xarray. ValueError, naming the extra, where it is missing."""
    try:
        import xarray
    except ImportError as error:
        raise ValueError(
            "NetCDF and Zarr are read with xarray; install it: pip install 'justimage[science]'"
        ) from error
    return xarray


def is_zarr(path: Path) -> bool:
    """Whether a folder is a Zarr store."""
    return path.is_dir() and any((path / mark).is_file() for mark in ZARR_MARKS)


def open_dataset(path: Path) -> Any:
    """A NetCDF file or a Zarr store as an xarray.Dataset, read as needed.

    Raises ValueError where it is damaged, and for a store whose arrays are to be unpickled, before anything is read.
    """
    xarray = xarray_library()
    if path.is_dir():
        _check_codecs(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about nonconforming attributes and unconsolidated stores
            return (
                xarray.open_zarr(path, chunks=None, decode_timedelta=False)
                if path.is_dir()
                else xarray.open_dataset(path, decode_timedelta=False)
            )
    except ImportError as error:
        raise ValueError(f"{path} needs another package: {error}; pip install 'justimage[science]'") from error
    except Exception as error:  # every backend has its own errors
        _let_go(error)
        raise ValueError(
            f"{path} cannot be read; it is damaged, or not NetCDF or Zarr: {_first_line(error)}"
        ) from error


def _let_go(error: BaseException | None) -> None:
    """Free the files that an error still holds half open: some complain on the terminal when they are closed so."""
    hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
    try:
        while error is not None:
            traceback.clear_frames(error.__traceback__)
            error = error.__cause__ or error.__context__
        gc.collect()
    finally:
        sys.unraisablehook = hook


def _check_codecs(store: Path) -> None:
    """Raises ValueError where the metadata of a Zarr store name the codec pickle, or cannot be read."""
    seen: set[Path] = set()
    folders = [store]
    while folders:
        folder = folders.pop()
        if folder.resolve() in seen:  # a link that leads back
            continue
        seen.add(folder.resolve())
        is_array = False
        for file in (folder / name for name in ZARR_METADATA):
            if not file.is_file():
                continue
            try:
                found = json.loads(file.read_text())
                unsafe = _names_codec(found)
            except (OSError, ValueError, RecursionError) as error:
                raise ValueError(f"{file} cannot be read; it is damaged, or not Zarr: {_first_line(error)}") from error
            if unsafe:
                raise ValueError(
                    f"{file} names the codec {RUNS_CODE}, which runs code that the store brings along; it is not "
                    "opened. Write the array with numbers and without it"
                )
            is_array |= file.name == ".zarray" or (isinstance(found, dict) and found.get("node_type") == "array")
        if not is_array:  # below an array there are only chunks, perhaps a million
            folders += [each for each in folder.iterdir() if each.is_dir()]


def _names_codec(metadata: Any) -> bool:
    """Whether a codec of this metadata is pickle, in any version of Zarr; attributes may say what they like."""
    if isinstance(metadata, list):
        return any(map(_names_codec, metadata))
    if not isinstance(metadata, dict):
        return False
    names = (str(metadata.get(key, "")).lower().rpartition(".")[2] for key in ("id", "name"))
    inside = (value for key, value in metadata.items() if key != "attributes" and not str(key).endswith(".zattrs"))
    return RUNS_CODE in names or any(map(_names_codec, inside))


def _check_chunks(path: Path, dataset: Any, plan: "_Plan", missing: Missing) -> None:
    """Raises ValueError where chunks of a Zarr store are absent and would be read as numbers, which are no data.

    Writers leave out chunks that hold nothing but the fill value, so `missing` may say that it is meant. Chunks inside
    a shard cannot be told.
    """
    import zarr

    group = zarr.open_group(path, mode="r")
    for name in dict.fromkeys(name for name, _ in plan.channels):
        array = group[name]
        if not isinstance(array, zarr.Array):
            continue
        sizes = array.shards or array.chunks
        grid = [-(-length // size) for length, size in zip(array.shape, sizes, strict=True)]
        place = path / name
        there = {
            os.path.relpath(os.path.join(folder, file), place).replace(os.sep, "/")
            for folder, _, files in os.walk(place, followlinks=True)
            for file in files
        }
        absent = [at for at in np.ndindex(*grid) if array.metadata.encode_chunk_key(at) not in there]
        if not absent:
            continue
        first = tuple(at * size for at, size in zip(absent[0], sizes, strict=True))
        with _name_damage(f"{name} of {path}"):
            value = float(dataset[name][first].values)
        if np.isnan(value) or (isinstance(missing, float | int) and np.float32(missing) == np.float32(value)):
            continue
        where = ", ".join(f"{dim} {at}" for dim, at in zip(dataset[name].dims, first, strict=True))
        raise ValueError(
            f"{name} of {path} lacks {len(absent):,} of {int(np.prod(grid)):,} chunks, the first at {where} (counted "
            f"from 0); they would be read as {value:g}. Copy the store again; or, if a chunk is absent because it "
            f"holds nothing but {value:g}, say so with --data-options.missing {value:g}"
        )


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


@contextmanager
def _name_damage(name: str) -> Iterator[None]:
    """Turn every error of reading a file into an UnreadableSample that names it."""
    try:
        yield
    except Exception as error:  # every backend has its own errors
        raise UnreadableSample(
            f"{name} cannot be read; the file may be truncated or damaged: {_first_line(error)}"
        ) from error


class _Lazy:
    """Samples (N, C, *S) of one or more datasets, read when asked for; float32."""

    dtype = np.dtype(np.float32)

    def __init__(
        self, name: str, parts: Sequence[Any], coordinates: Sequence[Any], counts: Sequence[int], plan: "_Plan"
    ):
        self.name, self.parts, self.coordinates, self.plan = name, parts, coordinates, plan
        self.ends = np.cumsum(counts)
        self.shape = (int(self.ends[-1]), len(plan.channels), *plan.size)

    def place(self, index: int) -> tuple[int, int]:
        """Which part a sample lies in, and where in it."""
        part = int(np.searchsorted(self.ends, index, side="right"))
        return part, index - (int(self.ends[part - 1]) if part else 0)

    def called(self, index: int) -> str:
        """What a sample is called: its time, or whatever its dimension counts."""
        part, inside = self.place(index)
        return _sample_name(self.coordinates[part], inside, self.plan.sample_dim)

    def __getitem__(self, index: int | slice, /) -> np.ndarray:
        if not isinstance(index, slice):
            part, inside = self.place(index)
            with _name_damage(f"{self.called(index)} of {self.name}"):
                return self.plan.read(self.parts[part], inside)
        with _name_damage(self.name):
            start, stop, _ = index.indices(self.shape[0])
            found, begin = [], 0
            for part, end in zip(self.parts, self.ends.tolist(), strict=True):
                if start < end and begin < stop:  # one piece of each file: chunks are decompressed once
                    found.append(self.plan.read(part, slice(max(start - begin, 0), min(stop, end) - begin)))
                begin = end
            return np.concatenate(found)


@dataclass(frozen=True)
class _Plan:
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


def read_fields(
    paths: Sequence[Path],
    options: FieldOptions,
    *,
    missing: Missing = "stop",
    fill_values: Sequence[float] = (),
    memory_gb: float = 2.0,
) -> Arrays:
    """Samples from NetCDF files or Zarr stores; several are joined along the samples.

    What fits into memory_gb is read at once, more is read as needed. Raises ValueError for variables, dimensions,
    levels and coordinates that do not exist (with those that do), variables that do not share their dimensions, files
    that differ, and damaged ones.
    """
    parts = [open_dataset(path) for path in paths]
    plan = _plan(parts[0], options, str(paths[0]))
    channels, origin = _channel_names(parts[0], plan), _origin(parts[0], plan)
    twice = next((name for name in channels if channels.count(name) > 1), None)
    if twice is not None:
        raise ValueError(
            f"{paths[0]} gives the channel {twice} twice; name each variable and each level once, and give "
            "equal levels values of their own"
        )
    counts = []
    for path, part in zip(paths, parts, strict=True):
        if part is not parts[0]:
            _compare(path, part, _plan(part, options, str(path)), paths[0], channels, origin, plan)
        counts.append(part.sizes[plan.sample_dim] if plan.sample_dim else 1)
        if path.is_dir():
            _check_chunks(path, part, plan, missing)
    if not sum(counts):
        raise ValueError(f"{paths[0]} holds no samples: its dimension {plan.sample_dim} has the length 0")
    name = paths[0].name if len(paths) == 1 else f"{paths[0].parent.name or '.'} ({len(paths)} files)"
    files = [file for path in paths for file in ([path] if path.is_file() else sorted(path.rglob("*")))]
    with _name_damage(name):
        coordinates = [part.drop_vars(list(part.data_vars)).load() for part in parts]
    lazy = _Lazy(name, parts, coordinates, counts, plan)
    y, classes = _labels(coordinates, counts, plan, options.label, name)
    x: Any = lazy
    if 4 * np.prod(lazy.shape, dtype=np.int64) <= memory_gb * 2**30:
        x = lazy[:]
        for part in parts:
            part.close()
    return Arrays(
        x,
        y,
        classes=classes,
        name=name,
        channels=channels,
        origin=origin,
        missing=missing,
        fill_values=fill_values,
        where=lazy.called,
        identity=f"{state_of(files)} {plan} {options}",
    )


def _compare(
    path: Path, part: Any, its: _Plan, first_path: Path, channels: list[str], origin: Origin, plan: _Plan
) -> None:
    """Raises ValueError where a file's variables, levels, units or grid are not the first one's."""

    def refuse(what: str, found: Any, expected: Any) -> None:
        raise ValueError(
            f"{path} differs from {first_path} in its {what}: {str(found)[:200]}, not {str(expected)[:200]}"
        )

    both = origin, _origin(part, its)
    units = [[dict(variable.attributes).get("units") for variable in each.variables] for each in both]
    grids = [{c.name: c.values for c in each.coordinates} for each in both]
    for what, expected, found in (
        ("dimensions", (plan.sample_dim, plan.level_dim, *plan.dims), (its.sample_dim, its.level_dim, *its.dims)),
        ("sizes", plan.size, its.size),
        ("channels", channels, _channel_names(part, its)),
        ("units", *units),
        ("coordinates", list(grids[0]), list(grids[1])),
    ):
        if expected != found:
            refuse(what, found, expected)
    for name, values in grids[0].items():
        if len(values) != len(grids[1][name]) or not np.allclose(values, grids[1][name], rtol=1e-5):
            refuse(f"coordinate {name}", grids[1][name], values)


def _plan(dataset: Any, options: FieldOptions, place: str) -> _Plan:
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
    return _Plan(sample_dim, level_dim, dims, tuple(sizes[d] for d in dims), channels)


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


def _channel_names(dataset: Any, plan: _Plan) -> list[str]:
    levels = None if plan.level_dim is None else _values(dataset, plan.level_dim)
    return [name if level is None or levels is None else f"{name}{levels[level]:g}" for name, level in plan.channels]


def _sample_name(coordinates: Any, index: int, dim: str | None) -> str:
    if dim is None or dim not in coordinates.coords:
        return "the only sample" if dim is None else f"{dim} {index}"
    value = coordinates[dim].values[index]
    return f"{dim} {np.datetime_as_string(value, 's') if isinstance(value, np.datetime64) else value}"


def _labels(
    parts: Sequence[Any], counts: Sequence[int], plan: _Plan, label: str, name: str
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
            at = _sample_name(dataset, int(unknown[0]), plan.sample_dim)
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


def _origin(dataset: Any, plan: _Plan) -> Origin:
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
