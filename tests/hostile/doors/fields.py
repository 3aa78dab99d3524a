"""Fields: NetCDF and Zarr, cut and with holes, with chunks missing, odd dimensions, types and attributes."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ..case import Case, Expect, Rng, choose, pick
from ..damage import BYTES, damage, instead_of, mutate_json_file
from ..samples import Read, data_case, digest

KINDS = ("set.nc", "set.nc", "set3.nc", "set.zarr", "set2.zarr")
AXES = {"lat": np.linspace(50.0, 43.0, 8), "lon": np.linspace(0.0, 7.0, 8)}


def values_of(rng: Rng, count: int = 6) -> np.ndarray:
    """Samples (N, 8, 8)."""
    return (280 + 5 * rng.normal(size=(count, 8, 8))).astype(np.float32)


def dataset(t: np.ndarray, dims: tuple[str, ...] = ("time", "lat", "lon"), **more: Any) -> Any:
    """One variable, with coordinates where they fit."""
    import xarray

    coordinates = {name: values for name, values in AXES.items() if name in dims}
    if "time" in dims and dims[0] == "time":
        coordinates["time"] = np.datetime64("2020-01-01", "ns") + np.arange(t.shape[0]) * np.timedelta64(6, "h")
    attributes = {} if t.dtype.kind == "M" else {"units": "K"}
    return xarray.Dataset({"t": (dims, t, attributes), **more}, coordinates)


def write(data: Any, path: str, *, whole_chunk: bool = False) -> None:
    """A dataset as NetCDF 4 or 3, or as a Zarr store of format 3 or 2, one chunk for each sample."""
    if path.endswith(".nc"):
        data.to_netcdf(path, engine="scipy" if "3" in path else "h5netcdf")
        return
    chunks = {
        name: {"chunks": (1, *v.shape[1:])} for name, v in data.data_vars.items() if v.ndim > 1 and not whole_chunk
    }
    data.to_zarr(path, encoding=chunks, zarr_format=2 if "2" in path else 3, consolidated=False)


def reads_of(t: np.ndarray) -> list[Read]:
    """What must be read."""
    return [(digest(row[None].astype(np.float32)), "") for row in t]


def field_case(rng: Rng, mutation: str, path: str, reads: list[Read] | None, *options: str, **about: Any) -> Case:
    """A case that names the store, the variable or a file in it."""
    words = ["t", "variable", "set", *about.pop("words", ())]
    return data_case(rng, mutation, path, reads, *options, words=words, **about)


def none(rng: Rng) -> Case:
    """A good file."""
    t, path = values_of(rng), pick(rng, KINDS)
    write(dataset(t), path)
    return field_case(rng, "none", path, reads_of(t), expect="accept")


def damaged(rng: Rng) -> Case:
    """A damaged NetCDF file. Only a file that is cut short or not there is known to be bad."""
    t, path, how = values_of(rng), pick(rng, ("set.nc", "set3.nc")), pick(rng, BYTES)
    write(dataset(t), path)
    before = Path(path).read_bytes()
    damage(rng, Path(path), how)
    expect: Expect = "refuse" if how in ("emptied", "noise") else "either"
    same = Path(path).read_bytes() == before
    # Without checksums a flipped bit of a value is a value; what is cut off must be missed.
    reads = reads_of(t) if how == "cut" else None
    return field_case(rng, f"{how} {path}", path, reads, expect="accept" if same else expect)


def chunks_of(path: str) -> list[Path]:
    """The chunks of the variable t."""
    files = [each for each in Path(path, "t").rglob("*") if each.is_file()]
    return sorted(each for each in files if each.name not in ("zarr.json", ".zarray", ".zattrs"))


def missing_chunk(rng: Rng) -> Case:
    """A chunk that is not there reads as the fill value: of whole numbers, as zeros."""
    t, path = values_of(rng), pick(rng, ("set.zarr", "set2.zarr"))
    t = t.astype(np.int32) if rng.random() < 0.5 else t
    write(dataset(t), path)
    pick(rng, chunks_of(path)).unlink()
    return field_case(rng, f"a chunk of {t.dtype} missing", path, None, words=["chunk"], expect="refuse")


def damaged_chunk(rng: Rng) -> Case:
    """A damaged chunk."""
    t, path, how = values_of(rng), pick(rng, ("set.zarr", "set2.zarr")), pick(rng, BYTES)
    write(dataset(t), path)
    chunk = pick(rng, chunks_of(path))
    before = chunk.read_bytes()
    damage(rng, chunk, how)
    expect: Expect = (
        "accept" if chunk.read_bytes() == before else "refuse" if how in ("cut", "emptied", "noise") else "either"
    )
    return field_case(rng, f"{how} chunk", path, None, expect=expect)


def metadata(rng: Rng) -> Case:
    """A field of the metadata changed, dropped or of another type."""
    t, path = values_of(rng), pick(rng, ("set.zarr", "set2.zarr"))
    write(dataset(t), path)
    files = sorted(
        each for each in Path(path).rglob("*") if each.name in ("zarr.json", ".zarray", ".zattrs", ".zgroup")
    )
    file = pick(rng, files)
    name, what = mutate_json_file(rng, file)
    return field_case(rng, f"{file.name}: {what}", path, None, words=[name])


def broken_metadata(rng: Rng) -> Case:
    """Metadata that are no JSON, or not there."""
    t, path = values_of(rng), pick(rng, ("set.zarr", "set2.zarr"))
    write(dataset(t), path)
    files = sorted(
        each for each in Path(path).rglob("*") if each.name in ("zarr.json", ".zarray", ".zattrs", ".zgroup")
    )
    file = pick(rng, files)
    if rng.random() < 0.5:
        return field_case(rng, f"{file.name}: {instead_of(rng, file)}", path, None)
    file.write_bytes(pick(rng, (b"", b"{", b"null", b"[]", b"\xff\xfe", b"1", b'{"zarr_format": 9}')))
    return field_case(rng, f"{file.name}: no JSON", path, None)


def codec(rng: Rng) -> Case:
    """A codec that runs code, or that nobody knows."""
    import pickle

    from .arrays import Runs

    t = values_of(rng)
    write(dataset(t), "set2.zarr")
    meta = Path("set2.zarr/t/.zarray")
    values = json.loads(meta.read_text())
    name = pick(rng, ("pickle", "json2", "msgpack2", "unheard_of", "lzma", "zlib"))
    values[pick(rng, ("compressor", "filters"))] = {"id": name} if rng.random() < 0.5 else [{"id": name}]
    meta.write_text(json.dumps(values))
    for chunk in chunks_of("set2.zarr"):
        chunk.write_bytes(pickle.dumps(Runs()))
    return field_case(rng, f"codec {name}", "set2.zarr", None, expect="refuse", words=[name, "codec"])


def dims(rng: Rng) -> Case:
    """Other dimensions: read as what they are, or refused with what there is."""
    shapes: dict[str, tuple[tuple[str, ...], tuple[int, ...]]] = {
        "no samples": (("lat", "lon"), (8, 8)),
        "a scalar": ((), ()),
        "only samples": (("time",), (6,)),
        "five axes": (("time", "a", "b", "c", "d"), (3, 2, 2, 2, 2)),
        "no samples in it": (("time", "lat", "lon"), (0, 8, 8)),
        "no space in it": (("time", "lat", "lon"), (4, 0, 8)),
        "samples last": (("lat", "lon", "time"), (8, 8, 6)),
        "odd names": (("a/b", "", "ü"), (4, 8, 8)),
    }
    what = pick(rng, shapes)
    names, shape = shapes[what]
    import xarray

    t = np.asarray(rng.normal(size=shape), np.float32)
    path = pick(rng, ("set.nc", "set.zarr"))
    names = tuple(name.replace("/", "_") or "empty" for name in names)
    write(xarray.Dataset({"t": (names, t)}), path, whole_chunk=True)
    bad = what in ("a scalar", "only samples", "no samples in it", "no space in it", "five axes")
    return field_case(rng, f"dims: {what}", path, None, expect="refuse" if bad else "either")


def types(rng: Rng) -> Case:
    """Variables that hold no numbers."""
    shape = (4, 8, 8)
    bad = {
        "text": np.full(shape, "a"),
        "bool": np.ones(shape, bool),
        "times": np.full(shape, np.datetime64("2020-01-01", "ns")),
        "constant": np.ones(shape, np.float32),
    }
    what = pick(rng, bad)
    path = pick(rng, ("set.nc", "set.zarr"))
    write(dataset(bad[what]), path, whole_chunk=True)
    return field_case(rng, f"type {what}", path, None, expect="either" if what == "bool" else "refuse")


def undeclared(rng: Rng) -> Case:
    """Fill values that no attribute declares: said, and where."""
    t, value = values_of(rng), pick(rng, (1e20, 9.96921e36, -9999.0, np.nan, np.inf))
    t[3, 2, 1] = value
    path = pick(rng, KINDS)
    write(dataset(t), path)
    bad = not abs(value) < 1e10
    aloud = [f"{value:g}", "1e+20", "1e20"] if np.isfinite(value) else []
    expect: Expect = "refuse" if bad else "either"
    return field_case(rng, f"undeclared {value:g}", path, None, expect=expect, aloud=aloud)


def attributes(rng: Rng) -> Case:
    """Attributes that decoding cannot follow."""
    t, path = values_of(rng), pick(rng, ("set.nc", "set.zarr"))
    data = dataset(t)
    name, value = pick(
        rng,
        (
            ("scale_factor", "x"), ("scale_factor", 0.0), ("scale_factor", float("nan")), ("add_offset", float("inf")),
            ("_FillValue", "x"), ("units", "days since never"), ("units", ["a"]), ("calendar", "martian"),
            ("coordinates", "nowhere"), ("bounds", "t"), ("dtype", "O"),
        ),
    )  # fmt: skip
    data["t"].attrs[name] = value
    try:
        write(data, path)
    except (ValueError, TypeError, KeyError, OverflowError):  # the writer refuses it: nothing to test
        data["t"].attrs.pop(name)
        shutil.rmtree(path, ignore_errors=True)
        Path(path).unlink(missing_ok=True)
        write(data, path)
    return field_case(rng, f"attribute {name}", path, None, words=[name])


def several(rng: Rng) -> Case:
    """A folder of files that differ in their grid, variable, units or number of dimensions."""
    a, b = dataset(values_of(rng)), dataset(values_of(rng))
    changes: dict[str, Callable[[Any], Any]] = {
        "none": lambda d: d,
        "grid": lambda d: d.isel(lat=slice(0, 4)),
        "latitudes": lambda d: d.assign_coords(lat=d.lat + 1),
        "variable": lambda d: d.rename(t="u"),
        "units": lambda d: d.assign(t=d.t.assign_attrs(units="C")),
        "dimensions": lambda d: d.isel(lon=0),
        "text": lambda d: d.assign(t=d.t.astype(str)),
        "nothing": lambda d: d.drop_vars("t"),
    }
    what = pick(rng, changes)
    Path("set").mkdir()
    write(a, "set/a.nc")
    write(changes[what](b), "set/b.nc")
    reads = [*reads_of(a.t.values), *reads_of(b.t.values)] if what == "none" else None
    expect: Expect = "accept" if what == "none" else "refuse"
    return field_case(
        rng, "none" if what == "none" else f"files differ: {what}", "set", reads, expect=expect, words=["b.nc"]
    )


def options(rng: Rng) -> Case:
    """Options that name what is not there."""
    write(dataset(values_of(rng)), "set.nc")
    name = pick(rng, ("variables", "sample-dim", "level-dim", "label"))
    value = pick(rng, ("nowhere", "time.", "time.century", ".", "x" * 300, "lat", "lat.hour", "\u0000", "time"))
    return field_case(
        rng, f"{name} {value[:12]!r}", "set.nc", None, f"--data-options.fields.{name}", value, words=[name]
    )


MUTATIONS: dict[str, Callable[[Rng], Case]] = {
    "none": none,
    "damaged": damaged,
    "missing chunk": missing_chunk,
    "damaged chunk": damaged_chunk,
    "metadata": metadata,
    "broken metadata": broken_metadata,
    "codec": codec,
    "dims": dims,
    "types": types,
    "undeclared": undeclared,
    "attributes": attributes,
    "several": several,
    "options": options,
}


def case(rng: Rng) -> Case:
    """A case of this door."""
    return choose(rng, MUTATIONS)[1](rng)
