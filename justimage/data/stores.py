"""NetCDF files and Zarr stores, opened strictly: damage is an error, and nothing in them is run."""

import gc
import json
import os
import sys
import traceback
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from justimage.data.arrays import Missing
from justimage.data.spec import UnreadableSample
from justimage.disk.reading import first_line

NETCDF = (".nc", ".nc4", ".nc3", ".cdf", ".netcdf", ".h5netcdf")
ZARR_MARKS = ("zarr.json", ".zgroup", ".zmetadata")
ZARR_METADATA = ("zarr.json", ".zarray", ".zmetadata")  # files that name codecs
RUNS_CODE = "pickle"  # the codec that is a program


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

    Times in units that no calendar defines, such as months, stay numbers. Raises ValueError where it is damaged, and
    for a store whose arrays are to be unpickled, before anything is read.
    """
    xarray = xarray_library()
    if path.is_dir():
        _check_codecs(path)

    def opened(decode_times: bool) -> Any:
        how: dict[str, Any] = {"decode_timedelta": False, "decode_times": decode_times}
        return xarray.open_zarr(path, chunks=None, **how) if path.is_dir() else xarray.open_dataset(path, **how)

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about nonconforming attributes and unconsolidated stores
            try:
                return opened(True)
            except ValueError as error:
                if "decode_times" not in str(error):  # what xarray advises for such units
                    raise
                return opened(False)
    except ImportError as error:
        raise ValueError(f"{path} needs another package: {error}; pip install 'justimage[science]'") from error
    except Exception as error:  # every backend has its own errors
        _let_go(error)
        raise ValueError(f"{path} cannot be read; it is damaged, or not NetCDF or Zarr: {first_line(error)}") from error


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
                raise ValueError(f"{file} cannot be read; it is damaged, or not Zarr: {first_line(error)}") from error
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


def check_chunks(path: Path, dataset: Any, names: Iterable[str], missing: Missing) -> None:
    """Raises ValueError where chunks of these arrays are absent and would be read as numbers, which are no data.

    Writers leave out chunks that hold nothing but the fill value, so `missing` may say that it is meant. Chunks inside
    a shard cannot be told.
    """
    import zarr

    group = zarr.open_group(path, mode="r")
    for name in names:
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
        with name_damage(f"{name} of {path}"):
            value = float(dataset[name][first].values)
        if np.isnan(value) or (isinstance(missing, float | int) and np.float32(missing) == np.float32(value)):
            continue
        where = ", ".join(f"{dim} {at}" for dim, at in zip(dataset[name].dims, first, strict=True))
        raise ValueError(
            f"{name} of {path} lacks {len(absent):,} of {int(np.prod(grid)):,} chunks, the first at {where} (counted "
            f"from 0); they would be read as {value:g}. Copy the store again; or, if a chunk is absent because it "
            f"holds nothing but {value:g}, say so with --data-options.missing {value:g}"
        )


@contextmanager
def name_damage(name: str) -> Iterator[None]:
    """Turn every error of reading a file into an UnreadableSample that names it."""
    try:
        yield
    except Exception as error:  # every backend has its own errors
        raise UnreadableSample(
            f"{name} cannot be read; the file may be truncated or damaged: {first_line(error)}"
        ) from error
