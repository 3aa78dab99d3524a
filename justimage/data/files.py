"""Samples stored one by one as encoded bytes, in folders, archives and WebDataset shards: found, and labelled.

Labels are found in the same way in every container: in companions of the same name (WebDataset), in a label file, or
in the folder that a name begins with.
"""

import csv
import hashlib
import io
import json
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from justimage.data.containers import IMAGES, Container, Folder, Tars, Zip, clean, is_tar

LABEL_FILES = ("labels.csv", "metadata.csv", "metadata.jsonl")
SPLITS = frozenset(["train", "training", "val", "valid", "validation", "dev", "test", "testing", "eval", "extra"])
NAME_COLUMNS = ("file_name", "filename", "file", "path", "image", "name")
LABEL_COLUMNS = ("label", "labels", "class", "category", "cls", "target")
COMPANIONS = (".cls", ".json")
MOST_CLASSES = 100_000

Label = str | int | None  # as found: a name, an index, or nothing


@dataclass(frozen=True)
class Files:
    """Samples as encoded bytes, each with a name and a label (-1: none). `open` may be called from any thread."""

    place: str
    names: Sequence[str]
    labels: Sequence[int]
    classes: tuple[str, ...]
    open: Callable[[int], BinaryIO]
    """A seekable file with the bytes of sample i. Raises OSError or ValueError where it cannot be read."""
    stamp: Callable[[], str]
    """A hash of the names, sizes and labels: it is the same wherever the samples are stored."""
    state: Callable[[], str]
    """A hash of where the bytes are stored and when they were changed."""
    remark: str = ""
    """What follows a description: which folders were not looked into."""

    def without(self, indices: Iterable[int]) -> "Files":
        """All but the samples with these indices."""
        gone = set(indices)
        kept = [i for i in range(len(self.names)) if i not in gone]
        return replace(
            self,
            names=[self.names[i] for i in kept],
            labels=[self.labels[i] for i in kept],
            open=lambda i: self.open(kept[i]),
            stamp=lambda: f"{self.stamp()} without {sorted(gone)}" if gone else self.stamp(),
        )


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
    several, is_folder = len(paths) > 1, paths[0].is_dir()
    place = f"{paths[0].parent} ({len(paths)} shards)" if several else str(paths[0])
    if several or is_tar(paths[0]):
        container: Container = Tars(paths, memory_gb)
    else:
        container = Folder(paths[0]) if is_folder else Zip(paths[0])
    hidden = re.compile(r"(^|/)(\.|__MACOSX/)")
    names = [name for name in container.sizes if not hidden.search(name)]
    samples = [name for name in names if PurePosixPath(name).suffix.lower() in suffixes]
    if not samples:
        held = sorted({PurePosixPath(name).suffix.lower() or "(no suffix)" for name in names})[:8]
        found = f"; it holds {len(names)} files: {', '.join(held)}" if names else "; it is empty"
        raise ValueError(
            f"{place} holds no samples ({', '.join(sorted(suffixes))}){found}{_remark(container.left_out)}"
        )

    texts = None if labels else _from_companions(container, set(names), samples, place)
    as_names = False  # the order of shards is kept where their samples have companions
    if texts is None:
        outer = "" if several or is_folder else _outer(names)
        prefix = outer + ("" if several else _split(samples, outer, split, place))
        samples = sorted((n for n in samples if n.startswith(prefix)), key=lambda name: name.split("/"))
        candidates = [start + each for start in (prefix, outer) for each in LABEL_FILES]
        beside = labels or next((each for each in candidates if each in container.sizes), "")
        if beside:
            texts = _from_file(container, beside, bool(labels), set(names), samples, prefix, place)
        if texts is None:
            inner = [name.partition("/")[2] if several else name.removeprefix(prefix) for name in samples]
            texts, as_names = _from_folders(inner, place), True
    indices, classes = index_labels(texts, place, as_names=as_names)

    def stamp() -> str:
        digest = hashlib.sha256(repr(classes).encode())
        for name, label in zip(samples, indices, strict=True):
            digest.update(f"{name} {container.sizes[name]} {label}\n".encode(errors="surrogateescape"))
        return digest.hexdigest()[:16]

    remark = _remark(container.left_out)
    return Files(place, samples, indices, classes, lambda i: container.open(samples[i]), stamp, container.state, remark)


def _remark(left_out: Sequence[str]) -> str:
    if not left_out:
        return ""
    more = f" and {len(left_out) - 3} more" if len(left_out) > 3 else ""
    return f"; not looked into, as justimage wrote them: {', '.join(sorted(left_out)[:3])}{more}"


def index_labels(labels: Sequence[Label], place: str, *, as_names: bool = False) -> tuple[list[int], tuple[str, ...]]:
    """Labels as found -> indices and class names. Whole numbers are indices themselves, unless they are names.

    Raises ValueError where only some samples have a label, or a number is negative or too large.
    """
    missing = [i for i, label in enumerate(labels) if label is None]
    if len(missing) == len(labels):
        return [-1] * len(labels), ()
    if missing:
        raise ValueError(f"{place}: {len(missing)} of {len(labels)} samples have no label, sample {missing[0]} first")
    texts = [str(label) for label in labels]
    whole = all(re.fullmatch(r"-?\d+", text) for text in texts)
    if whole and not as_names:
        numbers = [int(text) for text in texts]
        for i, number in enumerate(numbers):
            if not 0 <= number < MOST_CLASSES:
                raise ValueError(
                    f"{place}: label {number} of sample {i} is out of range; labels count from 0 to {MOST_CLASSES - 1}"
                )
        return numbers, tuple(map(str, range(max(numbers) + 1)))
    classes = sorted(set(texts), key=int if whole else str)
    index = {name: i for i, name in enumerate(classes)}
    return [index[text] for text in texts], tuple(classes)


def _from_companions(container: Container, names: set[str], samples: list[str], place: str) -> list[Label] | None:
    """WebDataset: KEY.jpg stands beside KEY.cls or KEY.json; the key ends at the first dot of the file's name.

    None where there are no companions, or none that holds a label.
    """
    found = {}
    for name in samples:
        folder, slash, file = name.rpartition("/")
        key = folder + slash + file.partition(".")[0]
        companion = next((key + suffix for suffix in COMPANIONS if key + suffix in names), None)
        if companion is not None:
            found[name] = companion
    if not found:
        return None
    labels = [_companion_label(container, found[name], name, place) if name in found else None for name in samples]
    if all(label is None for label in labels):
        return None
    alone = [name for name in samples if name not in found]
    if alone:
        raise ValueError(
            f"{place}: {len(alone)} of {len(samples)} samples have no .cls or .json beside them, as the others do, "
            f"such as {alone[0]}"
        )
    return labels


def _companion_label(container: Container, companion: str, name: str, place: str) -> Label:
    with container.open(companion) as file:
        text = file.read().decode("utf-8", "replace").strip()
    if companion.endswith(".cls"):
        return text
    try:
        facts = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{place}: {companion}, the label of {name}, is not JSON: {error}") from error
    return label_in(facts)


def label_in(facts: Any) -> Label:
    """The label that a JSON value holds, by itself or under one of LABEL_COLUMNS; None where it holds none."""
    if isinstance(facts, dict):
        facts = next((facts[column] for column in LABEL_COLUMNS if column in facts), None)
    return facts if isinstance(facts, int | str) and not isinstance(facts, bool) else None


def _outer(names: list[str]) -> str:
    """The single outermost folder of an archive, as a prefix: it is the name of the archive, not a class."""
    tops = {name.partition("/")[0] for name in names}
    return f"{tops.pop()}/" if len(tops) == 1 and all("/" in name for name in names) else ""


def _split(samples: list[str], outer: str, split: str, place: str) -> str:
    """The split as a prefix, if all folders are splits; nothing if they are classes, as in bus, car, train.

    Raises ValueError where the split does not exist.
    """
    tops = {name.removeprefix(outer).partition("/")[0] for name in samples if "/" in name.removeprefix(outer)}
    if split in tops and tops <= SPLITS | {split}:
        return f"{split}/"
    if split == "train" and "training" in tops and tops <= SPLITS:
        return "training/"
    if tops and tops <= SPLITS:
        raise ValueError(f"{place} has no split {split!r}; there are {', '.join(sorted(tops))} (--data-options.split)")
    if split != "train":
        raise ValueError(f"{place} has no split {split!r}; its folders are not splits")
    return ""


def _table(file: BinaryIO, name: str) -> list[dict[str, Any]]:
    """The rows of a .csv or .jsonl, with the names of columns in lower case."""
    text = io.TextIOWrapper(file, "utf-8-sig", newline="")
    try:
        if name.lower().endswith(".jsonl"):
            rows = [json.loads(line) for line in text if line.strip()]
        else:
            first = text.readline()
            text.seek(0)
            separator = max(",;\t", key=first.count)  # tables come with semicolons and tabs too
            rows = list(csv.DictReader(text, delimiter=separator, skipinitialspace=True))
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{name} cannot be read: {error}") from error
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{name} holds rows that are not objects of names and values")
    return [{str(key).strip().lower(): value for key, value in row.items()} for row in rows]


def _from_file(
    container: Container,
    label_file: str,
    given: bool,
    names: set[str],
    samples: list[str],
    prefix: str,
    place: str,
) -> list[Label] | None:
    """The label of each sample, from a table of file names and labels; None if it is metadata without labels."""
    on_disk = Path(label_file)
    inside = label_file in container.sizes
    if not inside and not on_disk.is_file():
        raise ValueError(f"there is no label file {label_file}, neither in {place} nor on its own")
    with container.open(label_file) if inside else on_disk.open("rb") as file:
        rows = _table(file, label_file)
    columns = list(dict.fromkeys(column for row in rows for column in row))
    name_column = next((column for column in NAME_COLUMNS if column in columns), None)
    label_column = next((column for column in LABEL_COLUMNS if column in columns), None)
    if name_column and not label_column and not given and PurePosixPath(label_file).name.startswith("metadata"):
        return None  # captions, say
    if name_column is None or label_column is None:
        raise ValueError(
            f"{label_file} has the columns {', '.join(columns) or '(none)'}; one of {', '.join(NAME_COLUMNS)} and one "
            f"of {', '.join(LABEL_COLUMNS)} are needed in its first line"
        )
    folder = label_file.rpartition("/")[0] if inside else ""
    labels: dict[str, Label] = {}
    unknown = []
    for number, row in enumerate(rows):
        text = row.get(name_column)
        if text in (None, ""):
            raise ValueError(f"{label_file}, row {number + 1} names no file: {row}")
        plain = clean(os.path.normpath(str(text).strip().replace("\\", "/")))
        likely = (f"{folder}/{plain}" if folder else plain, prefix + plain)  # beside the file, or in the split
        name = next((each for each in likely if each in names), None)
        if name is None:
            unknown.append(plain)
            continue
        label = row.get(label_column)
        label = (label.strip() or None) if isinstance(label, str) else label
        if name in labels and labels[name] != label:
            raise ValueError(f"{label_file} gives {name} two labels, {labels[name]} and {label}")
        labels[name] = label
    if unknown:
        shown = ", ".join(unknown[:3])
        raise ValueError(f"{label_file} names {len(unknown)} samples that {place} does not hold, such as {shown}")
    missed = [name for name in samples if name not in labels]
    if missed:
        shown = ", ".join(missed[:3])
        raise ValueError(
            f"{label_file} has no label for {len(missed)} of {len(samples)} samples of {place}, such as {shown}"
        )
    return [labels[name] for name in samples]


def _from_folders(names: list[str], place: str) -> list[Label]:
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
