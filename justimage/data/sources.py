"""Which source lies behind a path."""

import glob
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from math import inf, isfinite
from pathlib import Path
from typing import Literal

import numpy as np

from justimage.data.array_files import ARRAY_FILES, digits, read_arrays, stack_arrays
from justimage.data.arrays import Missing
from justimage.data.axes import FieldOptions
from justimage.data.containers import IMAGES, TARS, holds, is_tar, suffix_of
from justimage.data.crops import At, Crops
from justimage.data.fields import read_fields
from justimage.data.files import NONE, SPLITS, Files, files_of_split, find_files
from justimage.data.held_out import without_held_out
from justimage.data.images import Deep, Images, Policy
from justimage.data.labels import TABLES_OF_LABELS
from justimage.data.packed import Packed, is_pack
from justimage.data.spec import Source, StreamSource
from justimage.data.stores import NETCDF, is_zarr
from justimage.data.streams import REMOTE, StreamOptions, open_shards, stream_rows
from justimage.data.tables import SAVED, TABLES, TableOptions, find_rows, is_hub_id
from justimage.data.zips import open_zip

NAMED: dict[str, Callable[[], Source]] = {"mnist": digits}
MOST_WORKERS = 1024
Kind = Literal["auto", "images", "arrays", "table", "fields", "pack", "stream"]


@dataclass(frozen=True)
class DataOptions:
    """How data are read."""

    kind: Kind = "auto"
    """What the path is: images (a folder, archive or WebDataset shards), arrays, a table, fields (NetCDF, Zarr), a
    pack, or a stream (addresses); recognised by default."""
    on_error: Policy = "stop"
    """If an image cannot be decoded: stop, with its name; or skip it, and count."""
    missing: Missing = "stop"
    """If a value of an array or a field is missing (NaN): stop, with its place; or fill it with the mean of its
    channel, or with a number."""
    fill_values: tuple[float, ...] = ()
    """Numbers that stand for a missing value in arrays and fields, such as 1e20; a _FillValue of NetCDF is known."""
    crop: tuple[int, ...] = ()
    """Cut samples of arrays and fields to this size; images are cropped to the network's."""
    crop_at: At = "random"
    """Where: random, each place being a sample of its own; or the centre, one crop of each."""
    split: str = "train"
    """Which split is taken, where there are several."""
    labels: str = ""
    """A label file (columns file_name and label), in the folder or archive, or anywhere; by default labels or metadata
    with .csv, .tsv or .jsonl where there is one, and else the folders; `none`: without labels."""
    image: str = ""
    """Where a WebDataset key has several images, which one is the sample: what follows the key, such as jpg or
    seg.png."""
    conditions: tuple[str, ...] = ()
    """Arrays of an .npz that the model is conditioned on, besides labels: vectors (N, F), tokens (N, L, F) with a mask
    NAME_mask (N, L), or planes (N, P, *S) on the grid of x."""
    deep: Deep = "scale"
    """Images of 16 bits: scale 0..65535 to 0..255, or stop with their name."""
    memory_gb: float = 2.0
    """Data below this size are read once into memory, so that every image is checked before the first step."""
    held_out: float = 0.0
    """Share of the samples that is never trained on: the loss is measured on it (health.jsonl), which shows
    over-fitting. Which ones they are depends on their order alone; neighbours in a time series are still alike."""
    workers: int = field(default_factory=lambda: min(8, os.cpu_count() or 1))
    """Threads that read ahead, in each process; by default one for each core, at most 8."""
    table: TableOptions = field(default_factory=TableOptions)
    fields: FieldOptions = field(default_factory=FieldOptions)
    stream: StreamOptions = field(default_factory=StreamOptions)

    def __post_init__(self) -> None:
        if not 0 <= self.workers <= MOST_WORKERS or not 0 <= self.memory_gb < inf:
            raise ValueError(
                f"workers ({self.workers}) must be from 0 to {MOST_WORKERS}, and memory_gb ({self.memory_gb}) a number "
                "from 0 on"
            )
        if not 0 <= self.held_out < 1:
            raise ValueError(f"held_out is {self.held_out}; it must be at least 0 and below 1, such as 0.02")
        if isinstance(self.missing, float) and not abs(self.missing) < float(np.finfo(np.float32).max):
            raise ValueError(f"missing is {self.missing}; it must be stop, mean, or a finite number of float32")
        if not all(map(isfinite, self.fill_values)):
            raise ValueError(f"fill_values are {self.fill_values}; they must be finite, as NaN is missing already")
        if self.stream.buffer < 1 or self.stream.classes < 0:
            raise ValueError(
                f"a stream's buffer ({self.stream.buffer}) must be at least 1, and its classes "
                f"({self.stream.classes}) at least 0"
            )


def open_source(
    path: str | Path,
    size: tuple[int, ...],
    channels: int,
    options: DataOptions | None = None,
    *,
    decode_ahead: bool = True,
    only_look: bool = False,
) -> Source | StreamSource:
    """The source behind a path: whatever `Kind` names, a glob of such files, a hub id, or a name of NAMED.

    size, channels: what images are cropped and converted to, one number meaning a square; all others have their own.
    decode_ahead: decode images that fit into memory at once. only_look: unreadable images and missing values do not
    stop, so that they can be counted. Raises ValueError where there is nothing, or nothing that can be read.
    """
    try:
        square = tuple(size) * (2 if len(size) == 1 else 1)
        return _open(str(path), square, channels, options or DataOptions(), decode_ahead, only_look)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error


def _open(
    path: str, size: tuple[int, ...], channels: int, options: DataOptions, decode_ahead: bool, only_look: bool
) -> Source | StreamSource:
    if path in NAMED and options.kind == "auto":
        if options.conditions:
            raise ValueError(f"conditions are arrays of an .npz, beside x; {path} has none")
        return _parted(NAMED[path](), options)
    paths = _paths(path)
    kind = _kind(path, paths) if options.kind == "auto" else options.kind
    _check_options(path, kind, options)
    if only_look:
        missing = "mean" if options.missing == "stop" else options.missing
        options = replace(options, on_error="skip", missing=missing)

    def images(files: Files) -> Source:
        found = Images(
            files,
            size,
            channels=channels,
            on_error=options.on_error,
            memory_gb=options.memory_gb if decode_ahead else 0.0,
            deep=options.deep,
        )
        return _parted(found, options)

    if kind == "stream" or (kind == "table" and options.stream.on):
        if options.held_out:
            raise ValueError(
                f"--data-options.held-out {options.held_out:g}: {path} is a stream, whose samples cannot be told apart "
                "before they come; use 0, or pack the data"
            )
        if path.startswith(REMOTE) or is_tar(Path(path)):
            return open_shards(path, size, channels, options.stream, options.on_error, options.image)
        return stream_rows(path, paths, size, channels, options.split, options.table, options.stream, options.on_error)
    if kind == "table":
        return images(find_rows(path, paths, options.split, options.table))
    if not paths:
        raise ValueError(f"the data path {path} does not exist")
    if len(paths) > 1 and kind != "fields" and not all(map(is_tar, paths)):
        raise ValueError(f"{path} matches {len(paths)} files; only shards, tables and fields may be several files")
    if kind == "images":
        return images(_image_files(path, paths, options))
    if kind == "fields":
        inside = [file for file in sorted(paths[0].iterdir()) if _is_field(file)] if paths[0].is_dir() else []
        source: Source = read_fields(
            inside if inside and not is_zarr(paths[0]) else paths,
            options.fields,
            missing=options.missing,
            fill_values=options.fill_values,
            memory_gb=options.memory_gb,
        )
    elif kind == "pack":
        source = Packed(paths[0])
    elif paths[0].suffix.lower() in (".npy", ".npz") and paths[0].is_file():
        source = _of_one_file(paths[0], options)
    elif options.conditions:
        raise ValueError(f"conditions are arrays of an .npz, beside x; {path} is a folder or archive of arrays")
    else:
        labels, place = _label_file(paths, options)
        files = find_files(
            place, ARRAY_FILES, labels=labels, split=options.split, others=_others(options, images=IMAGES)
        )
        source = stack_arrays(files, options.missing, options.fill_values)
    return _parted(source, options)


def _image_files(path: str, paths: list[Path], options: DataOptions) -> Files:
    """The images of folders, archives or shards of a split. Raises ValueError where archives lie beside images."""
    labels, place = _label_file(paths, options)
    tars = _tars_in(place[0])
    shards = place
    if tars and not holds(place[0], IMAGES):
        shards = files_of_split({each: each.relative_to(place[0]).as_posix() for each in tars}, options.split, path)
    elif len(place) > 1 and options.split != "train":
        shards = files_of_split({each: each.name for each in place}, options.split, path)
    found = find_files(
        shards,
        labels=labels,
        image=options.image,
        split=options.split if shards == place else "train",
        memory_gb=options.memory_gb,
        others=_others(options, arrays=ARRAY_FILES, table=frozenset(TABLES)),
    )
    if options.kind == "auto" and shards == place and len(tars) > len(found.names):
        ending = next(each for each in TARS if tars[0].name.lower().endswith(each))
        raise ValueError(
            f"{path} holds {len(tars)} archives ({ending}) besides {len(found.names)} images; say which are meant: "
            f"{path}/*{ending}, or --data-options.kind images"
        )
    return found


def _of_one_file(path: Path, options: DataOptions) -> Source:
    """An .npy or .npz. Raises ValueError for options that it has no use for."""
    if options.split != "train" or options.labels not in ("", NONE):
        what = f"split {options.split}" if options.split != "train" else f"labels {options.labels}"
        raise ValueError(
            f"--data-options.{what}: {path} is one file, which has no splits, and whose labels are the array y in it, "
            f"or {NONE}"
        )
    labelled = options.labels != NONE
    return read_arrays(path, options.missing, options.conditions, options.fill_values, labelled=labelled)


def _parted(source: Source, options: DataOptions) -> Source:
    """A source without what is held out, whole samples, and then cropped."""
    source = without_held_out(source, options.held_out)
    return Crops(source, options.crop, options.crop_at) if options.crop else source


def _check_options(path: str, kind: Kind, options: DataOptions) -> None:
    """Raises ValueError for options that are meant for another kind of data, and would be ignored."""
    parts = (
        ("labels", bool(options.labels), ("images", "arrays")),
        ("image", bool(options.image), ("images", "stream")),
        ("deep", options.deep != "scale", ("images", "table")),
        ("table", options.table != TableOptions(), ("table", "stream")),
        ("split", options.split != "train", ("images", "arrays", "table", "stream")),
        ("on-error", options.on_error != "stop", ("images", "table", "stream")),
        ("fields", options.fields != FieldOptions(), ("fields",)),
        ("stream", options.stream != StreamOptions(), ("table", "stream")),
        ("missing", options.missing != "stop", ("arrays", "fields")),
        ("fill-values", bool(options.fill_values), ("arrays", "fields")),
        ("crop", bool(options.crop), ("arrays", "fields", "pack")),
        ("conditions", bool(options.conditions), ("arrays",)),
    )
    for name, given, kinds in parts:
        if given and kind not in kinds:
            hint = "; images are cropped to the network's size" if name == "crop" else ""
            raise ValueError(
                f"--data-options.{name} is for {' and '.join(kinds)}, and {path} is read as {kind}{hint}. If it is "
                "something else, say so with --data-options.kind"
            )


def _others(options: DataOptions, **kinds: frozenset[str]) -> dict[str, frozenset[str]]:
    """Other kinds that may be meant, by the suffixes of their files; none where the kind was said."""
    return kinds if options.kind == "auto" else {}


def _label_file(paths: list[Path], options: DataOptions) -> tuple[str, list[Path]]:
    """The label file to use, and where the samples are; a label file given as the path stands for its folder."""
    if paths[0].suffix.lower() in TABLES_OF_LABELS:
        return paths[0].name, [paths[0].parent]
    return options.labels, paths


def leads_somewhere(path: str) -> bool:
    """Whether there is anything behind a path of data; for names, addresses and hub ids it is not looked."""
    return path in NAMED or path.startswith(REMOTE) or is_hub_id(path) or "{" in path or bool(_paths(path))


def _paths(path: str) -> list[Path]:
    """The path itself if it exists, else what it matches: train-*.tar, or all of train-{000..146}.tar."""
    if path.startswith(REMOTE):
        return []
    place = Path(path)
    if place.exists():
        return [place]
    counted = re.fullmatch(r"(.*)\{(\d+)\.\.(\d+)\}(.*)", path)
    if counted is None:
        return sorted(map(Path, glob.glob(path)))
    before, first, last, after = counted.groups()
    numbered = [Path(f"{before}{i:0{len(first)}d}{after}") for i in range(int(first), int(last) + 1)]
    absent = [each for each in numbered if not each.exists()]
    if absent:
        lacking = f"{len(absent)} do not exist, such as {absent[0]}"
        raise ValueError(f"{path} stands for {len(numbered)} files, and {lacking}")
    return numbered


def _tars_in(place: Path) -> list[Path]:
    """The archives in a folder, or in folders in it that are called after splits."""
    if not place.is_dir():
        return []
    splits = sorted(each for each in place.iterdir() if each.name.lower() in SPLITS and each.is_dir())
    return [each for folder in (place, *splits) for each in sorted(filter(is_tar, folder.iterdir()))]


def _is_field(path: Path) -> bool:
    return path.suffix.lower() in NETCDF or is_zarr(path)


def _kind(path: str, paths: list[Path]) -> Kind:
    """What a path is, by its name and by what lies in it. Raises ValueError where it is nothing known."""
    if path.startswith(REMOTE):
        return "stream"
    if not paths:
        here = Path(path).parent
        if is_hub_id(path) and not here.is_dir():
            return "table"
        raise ValueError(f"the data path {path} does not exist")
    place = paths[0]
    suffix = place.suffix.lower()
    if _is_field(place):
        return "fields"
    if place.is_file():
        if suffix in TABLES:
            return "table"
        if suffix in (".npy", ".npz"):
            return "arrays"
        if suffix in TABLES_OF_LABELS:
            return "images" if holds(place.parent, IMAGES) else "arrays"
        if suffix == ".zip":
            with open_zip(place) as archive:
                inside = {suffix_of(name) for name in archive.namelist()}
            return "arrays" if inside & ARRAY_FILES and not inside & IMAGES else "images"
        if is_tar(place):
            return "images"
        raise ValueError(
            f"{path} is neither a folder nor a file of a known kind: images in .zip or .tar, a table .parquet or "
            f".arrow, arrays .npy or .npz, fields .nc or .zarr, labels .csv, .tsv or .jsonl; {', '.join(NAMED)} are "
            "known by name"
        )
    if is_pack(place):
        return "pack"
    if any((place / mark).is_file() for mark in SAVED):
        return "table"
    if any(_is_field(each) for each in place.iterdir()):
        return "fields"
    if holds(place, IMAGES) or _tars_in(place):
        return "images"
    if holds(place, frozenset(TABLES)):
        return "table"
    return "arrays" if holds(place, ARRAY_FILES) else "images"
