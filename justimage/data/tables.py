"""Tables of images: Hugging Face datasets by hub id, and local parquet and arrow files, through `datasets`."""

import contextlib
import hashlib
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from justimage.data.files import NONE, Files, files_of_split
from justimage.data.labels import LABEL_COLUMNS, index_labels
from justimage.data.spec import evenly
from justimage.disk.cache import state_of
from justimage.disk.reading import first_line

TABLES = (".parquet", ".arrow")
SAVED = ("dataset_info.json", "dataset_dict.json")  # what save_to_disk writes


@dataclass(frozen=True)
class TableOptions:
    """Which columns of a table are used."""

    image: str = ""
    """The column of images; by default the only one there is."""
    label: str = ""
    """The column of labels; by default one called label or the like, or the one column of classes; `none`: without
    labels."""
    name: str = ""
    """The configuration of a hub dataset that has several."""


def is_hub_id(text: str) -> bool:
    """Whether a text has the form of a hub id, USER/NAME."""
    return re.fullmatch(r"[\w.-]+/[\w.-]+", text) is not None and not text.startswith(".")


def datasets_library() -> Any:
    """The package `datasets`. ValueError, naming the extra, where it is missing."""
    try:
        import datasets
    except ImportError as error:
        raise ValueError("tables are read with datasets; install it: pip install 'justimage[data]'") from error
    return datasets


def open_table(path: str, paths: Sequence[Path], split: str, options: TableOptions, *, streaming: bool = False) -> Any:
    """The split of a table: .parquet or .arrow files, a folder of them or of save_to_disk; without paths a hub id.

    Raises ValueError where it does not exist, is damaged, or has no such split.
    """
    datasets = datasets_library()
    saved = len(paths) == 1 and paths[0].is_dir() and any((paths[0] / mark).is_file() for mark in SAVED)
    files = [] if saved else _split_files(path, paths, split)
    try:
        with contextlib.ExitStack() as quiet:
            if paths:
                datasets.disable_progress_bars()
                quiet.callback(datasets.enable_progress_bars)
            if saved:
                loaded = datasets.load_from_disk(path)
                if isinstance(loaded, datasets.DatasetDict):
                    if split not in loaded:
                        raise ValueError(f"there is no split {split!r}; there are {', '.join(loaded)}")
                    loaded = loaded[split]
                return loaded.to_iterable_dataset() if streaming else loaded
            if files:
                kind = "arrow" if files[0].suffix == ".arrow" else "parquet"
                return datasets.load_dataset(kind, data_files=list(map(str, files)), split="train", streaming=streaming)
            return datasets.load_dataset(path, options.name or None, split=split, streaming=streaming)
    except Exception as error:  # the library's errors have no common ancestor
        raise ValueError(f"{path} cannot be read as a table: {first_line(error)}") from error


def _files_in(paths: Sequence[Path]) -> dict[Path, str]:
    """The files of tables, each with its name in the folder that is given."""
    files: dict[Path, str] = {}
    for place in paths:
        inside = sorted(p for p in place.rglob("*") if p.suffix.lower() in TABLES) if place.is_dir() else [place]
        files |= {file: file.relative_to(place).as_posix() if place.is_dir() else file.name for file in inside}
    return files


def _split_files(path: str, paths: Sequence[Path], split: str) -> list[Path]:
    """The files of a table; of a folder whose files or folders are called after splits, those of the one asked for."""
    files = _files_in(paths)
    if paths and not files:
        raise ValueError(f"{path} holds no {' or '.join(TABLES)}")
    return files_of_split(files, split, path)


def columns_of(table: Any, place: str, options: TableOptions) -> tuple[str, str | None]:
    """The image column and the label column (or None). Raises ValueError that lists the columns."""
    datasets = datasets_library()
    features = table.features
    held = ", ".join(f"{name} ({type(kind).__name__})" for name, kind in features.items())

    def is_image(name: str) -> bool:
        kind = features[name]
        return isinstance(kind, datasets.Image) or (isinstance(kind, dict) and "bytes" in kind)

    def is_binary(name: str) -> bool:
        return getattr(features[name], "dtype", "") in ("binary", "large_binary")

    for asked in (options.image, "" if options.label == NONE else options.label):
        if asked and asked not in features:
            raise ValueError(f"{place} has no column {asked!r}; it has {held}")
    images = [options.image] if options.image else list(filter(is_image, features))
    images = images or list(filter(is_binary, features))
    if len(images) != 1:
        many = f"several columns of images ({', '.join(images)})" if images else "no column of images"
        raise ValueError(f"{place} has {many}; name one with --data-options.table.image. It has {held}")
    if options.label == NONE:
        return images[0], None
    classes = [name for name, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
    likely = [name for name in LABEL_COLUMNS if name in features]
    if options.label or likely:
        return images[0], options.label or likely[0]
    if len(classes) > 1:
        raise ValueError(
            f"{place} has several columns of classes ({', '.join(classes)}); "
            "name one with --data-options.table.label, or `none`"
        )
    return images[0], classes[0] if classes else None


def image_bytes(cell: Any, folders: Sequence[Path]) -> BinaryIO:
    """A cell of an image column that is not decoded -> its bytes, or the file in one of these folders that it names.

    Raises ValueError for an empty cell, for other values, and for files elsewhere: a table from somebody else could
    name any file of this machine. OSError where the file cannot be read.
    """
    if isinstance(cell, dict):
        path = cell.get("path")
        cell = cell.get("bytes")
        if cell is None and path:
            return io.BytesIO(_inside(path, folders).read_bytes())
    if not cell:
        raise ValueError("the cell is empty")
    if not isinstance(cell, bytes):
        raise ValueError(f"the cell holds {cell!r:.40}, not the bytes of an image")
    return io.BytesIO(cell)


def _inside(path: Any, folders: Sequence[Path]) -> Path:
    """The file that a cell names, from one of the folders on, once it is clear that it lies there, links included."""
    for folder in folders:
        place = (folder / str(path)).resolve()
        if place.is_relative_to(folder.resolve()):
            return place
    raise ValueError(
        f"the cell has no bytes, and names the file {path} outside of {', '.join(map(str, folders))}; move the files "
        "there, or store their bytes in the table"
    )


def folders_of(paths: Sequence[Path]) -> list[Path]:
    """Where the cells of a table may name files: beside it; for a dataset of the hub, in what it downloaded."""
    if paths:
        return list(dict.fromkeys(path if path.is_dir() else path.parent for path in paths))
    from huggingface_hub.constants import HF_HUB_CACHE  # slow to import

    return [Path(datasets_library().config.HF_DATASETS_CACHE), Path(HF_HUB_CACHE)]


def without_decoding(table: Any, column: str) -> Any:
    """The table with its images as bytes."""
    datasets = datasets_library()
    if isinstance(table.features[column], datasets.Image):
        return table.cast_column(column, datasets.Image(decode=False))
    return table


def labels_of(table: Any, column: str | None, place: str) -> tuple[Sequence[int], tuple[str, ...]]:
    """The label of each row, and the class names."""
    if column is None:
        return [-1] * len(table), ()
    values = list(table[column])
    rows = [f"row {i}" for i in range(len(values))]
    names = getattr(table.features[column], "names", None)
    if names is None:
        without = f"--data-options.table.label {NONE}"
        return index_labels(values, f"column {column} of {place}", rows, without=without)
    wrong = next((i for i, value in enumerate(values) if value is None or not 0 <= value < len(names)), None)
    if wrong is not None:
        raise ValueError(f"row {wrong} of {place} has the label {values[wrong]}; there are {len(names)} classes")
    return values, tuple(names)


def find_rows(path: str, paths: Sequence[Path], split: str, options: TableOptions) -> Files:
    """The images of a table, in the order of its rows. Raises ValueError as `open_table` and `columns_of` do."""
    table = open_table(path, paths, split, options)
    image, label = columns_of(table, path, options)
    if len(table) == 0:
        raise ValueError(f"{path} holds no rows")
    labels, classes = labels_of(table, label, path)
    rows = without_decoding(table, image).select_columns([image])
    folders = folders_of(paths)

    def open_row(index: int) -> BinaryIO:
        return image_bytes(rows[index][image], folders)

    def stamp() -> str:
        digest = hashlib.sha256(f"{len(table)} {classes}".encode())
        digest.update(np.asarray(labels, dtype=np.int64).tobytes())
        for index in evenly(len(table), 64).tolist():
            with contextlib.suppress(ValueError, OSError):  # an empty cell is reported where it is decoded
                digest.update(open_row(int(index)).read())
        return digest.hexdigest()[:16]

    def state() -> str:
        """It changes when a file does: what is remembered of a table is of these very rows."""
        read = [Path(each["filename"]) for each in table.cache_files] or _files_in(paths)
        return f"{state_of(read)} {stamp()}"

    names = [f"row {i}" for i in range(len(table))]
    return Files(path, names, labels, classes, open_row, stamp, state)
