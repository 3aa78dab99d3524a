"""Samples that lie one by one as encoded bytes, in folders, archives and WebDataset shards: found, and labelled.

A container is a list of names and a way to open them. What the labels are is decided afterwards, and the same way for
all: companions of the same name (WebDataset), a label file, or the folder that a name begins with.
"""

import csv
import hashlib
import io
import json
import os
import re
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Protocol

IMAGES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"})
TARS = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar.bz2", ".tbz2")
LABEL_FILES = ("labels.csv", "metadata.csv", "metadata.jsonl")
SPLITS = {"train", "val", "valid", "validation", "test"}
NAME_COLUMNS = ("file_name", "filename", "file", "path", "image", "name")
LABEL_COLUMNS = ("label", "labels", "class", "category", "cls", "target")
COMPANIONS = (".cls", ".json")
MOST_CLASSES = 100_000


@dataclass(frozen=True)
class Files:
    """Samples as encoded bytes, each with a name and a label (-1: none). `open` may be called from any thread."""

    place: str
    names: Sequence[str]
    labels: Sequence[int]
    classes: tuple[str, ...]
    open: Callable[[int], BinaryIO]
    """A seekable file with the bytes of sample i."""
    stamp: Callable[[], str]
    """A hash of the names, sizes and labels."""

    def without(self, left_out: Iterable[int]) -> "Files":
        """All but the samples with these indices."""
        gone = set(left_out)
        kept = [i for i in range(len(self.names)) if i not in gone]
        return replace(
            self,
            names=[self.names[i] for i in kept],
            labels=[self.labels[i] for i in kept],
            open=lambda i: self.open(kept[i]),
            stamp=lambda: f"{self.stamp()} without {sorted(gone)}" if gone else self.stamp(),
        )


class Container(Protocol):
    """Names, the size of each, and a way to open them from any thread."""

    sizes: dict[str, int]

    def open(self, name: str) -> BinaryIO: ...


class Folder:
    """The files below a folder, by their path in it; hidden ones are left out."""

    def __init__(self, root: Path):
        self.root = root
        self.sizes: dict[str, int] = {}
        for folder, inner, files in os.walk(root, followlinks=True):
            inner[:] = [name for name in inner if not name.startswith(".")]
            for name in files:
                if not name.startswith("."):
                    path = Path(folder, name)
                    if path.exists():  # not a link to nowhere
                        self.sizes[path.relative_to(root).as_posix()] = path.stat().st_size

    def open(self, name: str) -> BinaryIO:
        """The file of this name."""
        return (self.root / name).open("rb")


class Zip:
    """The members of a zip archive. Reading is shared between threads by zipfile itself."""

    def __init__(self, path: Path):
        try:
            self.archive = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, OSError) as error:
            raise ValueError(f"{path} cannot be read as a zip archive: {error}") from error
        self.sizes = {each.filename: each.file_size for each in self.archive.infolist() if not each.is_dir()}

    def open(self, name: str) -> BinaryIO:
        """The member of this name, decompressed: seeking in a compressed member would begin again."""
        return io.BytesIO(self.archive.read(name))


class Tars:
    """The members of tar archives, in the archives' order; of several, under the archive's name.

    Plain archives are indexed once and read in any order. Compressed ones cannot be; they are unpacked into memory,
    and refused above memory_gb.
    """

    def __init__(self, paths: Sequence[Path], memory_gb: float):
        self.sizes: dict[str, int] = {}
        self._where: dict[str, tuple[int, int] | bytes] = {}
        self._archives = []
        held = 0
        for path in paths:
            archive = path.open("rb")
            self._archives.append(archive)
            compressed = path.suffix != ".tar"
            try:
                with tarfile.open(path) as tar:
                    for member in tar:
                        if not member.isfile():
                            continue
                        name = member.name.removeprefix("./")
                        name = name if len(paths) == 1 else f"{path.name}/{name}"
                        self.sizes[name] = member.size
                        if compressed:
                            held += member.size
                            if held > memory_gb * 2**30:
                                raise ValueError(
                                    f"{path} is compressed and holds more than --data-options.memory-gb {memory_gb:g}; "
                                    "unpack it, or decompress it to a plain .tar, which is read in any order"
                                )
                            inside = tar.extractfile(member)
                            assert inside is not None
                            self._where[name] = inside.read()
                        else:
                            self._where[name] = (len(self._archives) - 1, member.offset_data)
                    if not compressed and archive.seek(0, os.SEEK_END) < tar.offset:
                        raise tarfile.ReadError("its last member breaks off")
            except (tarfile.TarError, EOFError, OSError) as error:
                raise ValueError(f"{path} cannot be read as a tar archive: {error}") from error

    def open(self, name: str) -> BinaryIO:
        """The member of this name."""
        where = self._where[name]
        if isinstance(where, bytes):
            return io.BytesIO(where)
        archive, offset = where
        return io.BufferedReader(_Part(self._archives[archive].fileno(), offset, self.sizes[name]))


class _Part(io.RawIOBase):
    """Some bytes of an open file. Each has its own position, so that threads share the file."""

    def __init__(self, descriptor: int, offset: int, size: int):
        self._descriptor, self._offset, self._size, self._at = descriptor, offset, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        wanted = max(0, min(len(buffer), self._size - self._at))
        data = os.pread(self._descriptor, wanted, self._offset + self._at)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def is_tar(path: Path) -> bool:
    """Whether a path is named like a tar archive."""
    return path.name.lower().endswith(TARS)


def find_files(
    paths: Sequence[Path],
    suffixes: frozenset[str] = IMAGES,
    *,
    labels: str = "",
    split: str = "train",
    memory_gb: float = 2.0,
) -> Files:
    """The samples with these suffixes in a folder, a zip, a tar, or WebDataset shards (one .tar or several).

    labels: a label file, in the container or beside it; by default labels.csv, metadata.csv or metadata.jsonl where
    there is one. split: the folder taken where the folders are splits (train, val, test).

    Raises ValueError where there is nothing, where some samples lie in folders and some do not, and where the labels
    do not fit.
    """
    place = str(paths[0]) if len(paths) == 1 else f"{paths[0].parent} ({len(paths)} shards)"
    if len(paths) > 1 or is_tar(paths[0]):
        container: Container = Tars(paths, memory_gb)
    else:
        container = Folder(paths[0]) if paths[0].is_dir() else Zip(paths[0])
    names = [n for n in container.sizes if not any(part[0] == "." or part == "__MACOSX" for part in n.split("/"))]
    samples = [name for name in names if PurePosixPath(name).suffix.lower() in suffixes]
    if not samples:
        held = sorted({PurePosixPath(name).suffix.lower() or "(no suffix)" for name in names})[:8]
        found = f"; it holds {len(names)} files: {', '.join(held)}" if names else "; it is empty"
        raise ValueError(f"{place} holds no samples ({', '.join(sorted(suffixes))}){found}")

    companions = {} if labels else _companions(set(names), samples, place)
    if companions:  # in the order of the shards
        texts: list[str | int | None] = [_companion_label(container, companions[name], name, place) for name in samples]
    else:
        several = len(paths) > 1
        prefix = "" if several else _root(samples, split, archive=not isinstance(container, Folder))
        samples = sorted((n for n in samples if n.startswith(prefix)), key=lambda name: name.split("/"))
        beside = labels or next((prefix + each for each in LABEL_FILES if prefix + each in container.sizes), "")
        found = _from_file(container, beside, bool(labels), samples, place) if beside else None
        inner = [name.partition("/")[2] if several else name.removeprefix(prefix) for name in samples]
        texts = found or _from_folders(inner, place)
    indices, classes = indexed(texts, place)

    def stamp() -> str:
        digest = hashlib.sha256(repr(classes).encode())
        for name, label in zip(samples, indices, strict=True):
            digest.update(f"{name} {container.sizes[name]} {label}\n".encode())
        return digest.hexdigest()[:16]

    return Files(place, samples, indices, classes, lambda i: container.open(samples[i]), stamp)


def indexed(labels: Sequence[str | int | None], place: str) -> tuple[list[int], tuple[str, ...]]:
    """Labels as found -> indices and class names. Whole numbers are indices themselves; other texts are names.

    Raises ValueError where only some samples have a label, or a number is negative or too large.
    """
    missing = [i for i, label in enumerate(labels) if label is None]
    if len(missing) == len(labels):
        return [-1] * len(labels), ()
    if missing:
        raise ValueError(f"{place}: {len(missing)} of {len(labels)} samples have no label, sample {missing[0]} first")
    texts = [str(label) for label in labels]
    if all(re.fullmatch(r"-?\d+", text) for text in texts):
        numbers = [int(text) for text in texts]
        for i, number in enumerate(numbers):
            if not 0 <= number < MOST_CLASSES:
                raise ValueError(
                    f"{place}: label {number} of sample {i} is out of range; labels count from 0 to {MOST_CLASSES - 1}"
                )
        return numbers, tuple(map(str, range(max(numbers) + 1)))
    classes = sorted(set(texts))
    index = {name: i for i, name in enumerate(classes)}
    return [index[text] for text in texts], tuple(classes)


def _companions(names: set[str], samples: list[str], place: str) -> dict[str, str]:
    """WebDataset: KEY.jpg stands beside KEY.cls or KEY.json. The key ends at the first dot of the file's name."""
    found = {}
    for name in samples:
        folder, _, file = name.rpartition("/")
        key = f"{folder}/{file.partition('.')[0]}" if folder else file.partition(".")[0]
        for suffix in COMPANIONS:
            if key + suffix in names:
                found[name] = key + suffix
                break
    alone = [name for name in samples if name not in found]
    if found and alone:
        raise ValueError(
            f"{place}: {len(alone)} of {len(samples)} samples have no .cls or .json beside them, as the others do, "
            f"such as {alone[0]}"
        )
    return found


def _companion_label(container: Container, companion: str, name: str, place: str) -> str | int | None:
    with container.open(companion) as file:
        text = file.read().decode("utf-8", "replace").strip()
    if companion.endswith(".cls"):
        return text
    try:
        facts = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{place}: {companion}, the label of {name}, is not JSON: {error}") from error
    if isinstance(facts, dict):
        return next((facts[column] for column in LABEL_COLUMNS if column in facts), None)
    return facts if isinstance(facts, int | str) else None


def _root(samples: list[str], split: str, archive: bool) -> str:
    """The prefix of the samples that are meant: an archive's one outer folder, then the split where there are splits.

    A class may be called train as well: bus, car, train.
    """
    prefix = ""
    if archive and len({name.partition("/")[0] if "/" in name else "" for name in samples}) == 1:
        outer = samples[0].partition("/")[0]
        prefix = f"{outer}/" if "/" in samples[0] else ""
    inside = [name.removeprefix(prefix) for name in samples]
    tops = {name.partition("/")[0] if "/" in name else "" for name in inside}
    return f"{prefix}{split}/" if split in tops and tops <= SPLITS | {split} else prefix


def _rows(file: BinaryIO, name: str) -> list[dict[str, Any]]:
    text = io.TextIOWrapper(file, "utf-8-sig", newline="")
    try:
        if name.endswith(".jsonl"):
            return [json.loads(line) for line in text if line.strip()]
        return list(csv.DictReader(text))
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{name} cannot be read: {error}") from error


def _from_file(
    container: Container, label_file: str, given: bool, samples: list[str], place: str
) -> list[str | int | None] | None:
    """The label of each sample, from a table of file names and labels; None where a table found has no labels."""
    on_disk = Path(label_file)
    inside = label_file in container.sizes
    if not inside and not on_disk.is_file():
        raise ValueError(f"there is no label file {label_file}, neither in {place} nor by itself")
    with container.open(label_file) if inside else on_disk.open("rb") as file:
        rows = _rows(file, label_file)
    columns = list(rows[0]) if rows and isinstance(rows[0], dict) else []
    name_column = next((column for column in NAME_COLUMNS if column in columns), None)
    label_column = next((column for column in LABEL_COLUMNS if column in columns), None)
    if label_column is None and not given and columns:
        return None  # captions, say
    if name_column is None or label_column is None:
        raise ValueError(
            f"{label_file} has the columns {', '.join(columns) or '(none)'}; one of {', '.join(NAME_COLUMNS)} and one "
            f"of {', '.join(LABEL_COLUMNS)} are needed in its first line"
        )
    folder = label_file.rpartition("/")[0] if inside else ""
    labels: dict[str, str | int | None] = {}
    for number, row in enumerate(rows):
        if not isinstance(row, dict) or row.get(name_column) in (None, ""):
            raise ValueError(f"{label_file}, row {number + 1} names no file: {row}")
        name = os.path.normpath(f"{folder}/{row[name_column]}" if folder else str(row[name_column]))
        label = row.get(label_column)
        if name in labels and labels[name] != label:
            raise ValueError(f"{label_file} gives {name} two labels, {labels[name]} and {label}")
        labels[name] = label if label != "" else None
    known = set(samples)
    unknown = [name for name in labels if name not in known]
    if unknown:
        shown = ", ".join(unknown[:3])
        raise ValueError(f"{label_file} names {len(unknown)} samples that {place} does not hold, such as {shown}")
    missed = [name for name in samples if name not in labels]
    if missed:
        shown = ", ".join(missed[:3])
        raise ValueError(f"{label_file} misses {len(missed)} of {len(samples)} samples of {place}, such as {shown}")
    return [labels[name] for name in samples]


def _from_folders(names: list[str], place: str) -> list[str | int | None]:
    flat = [name for name in names if "/" not in name]
    if len(flat) == len(names):
        return [None] * len(names)
    if flat:
        folders = len({name.partition("/")[0] for name in names if "/" in name})
        raise ValueError(
            f"{place} holds {len(flat)} images and {folders} folders of images; "
            "put all images into class folders, or all directly into it"
        )
    return [name.partition("/")[0] for name in names]
