"""Labels, wherever they come from: companions (WebDataset), label files, folders; and what they mean as indices."""

import csv
import io
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from justimage.data.containers import Container, clean, suffix_of

TABLES_OF_LABELS = (".csv", ".tsv", ".jsonl")
LABEL_FILES = tuple(name + suffix for name in ("labels", "metadata") for suffix in TABLES_OF_LABELS)
NAME_COLUMNS = ("file_name", "filename", "file", "path", "image", "name")
LABEL_COLUMNS = ("label", "labels", "class", "category", "cls", "target")
COMPANIONS = (".cls", ".json")
MOST_CLASSES = 100_000

Label = Any  # as found: a name, an index, None where there is nothing; or what is not a label, and refused


def index_labels(
    labels: Sequence[Label],
    place: str,
    names: Sequence[str],
    *,
    as_names: bool = False,
    without: str = "--data-options.labels none",
) -> tuple[list[int], tuple[str, ...]]:
    """Labels as found -> indices and class names. Whole numbers are indices themselves, unless they are names.

    names: what each sample is called. without: the option that leaves the labels out.

    Raises ValueError, naming the first sample, where one has no label, or its label is neither a name nor a whole
    number in the range; and for too many names.
    """
    labels = [None if isinstance(label, str) and not label.strip() else label for label in labels]
    missing = [i for i, label in enumerate(labels) if label is None]
    if missing:
        raise ValueError(
            f"{place}: {len(missing)} of {len(labels)} samples have no label, {names[missing[0]]} first; without "
            f"labels: {without}"
        )
    odd = set(map(type, labels)) - {str, int}
    texts = list(map(str, labels))
    distinct = set(texts)
    if not as_names:
        no_names = {text for text in distinct if (not _is_whole(text) and _is_number(text)) or _is_a_list(text)}
        if odd or no_names:
            i = next(i for i, label in enumerate(labels) if type(label) in odd or texts[i] in no_names)
            raise ValueError(
                f"{place}: the label of {names[i]} is {labels[i]!r:.80} ({type(labels[i]).__name__}); labels are whole "
                f"numbers from 0 on, or names. Without labels: {without}"
            )
    whole = all(map(_is_whole, distinct))
    if whole and not as_names:
        numbers = list(map(int, texts))
        wrong = next((i for i, number in enumerate(numbers) if not 0 <= number < MOST_CLASSES), None)
        if wrong is not None:
            raise ValueError(
                f"{place}: label {numbers[wrong]} of {names[wrong]} is out of range; labels count from 0 to "
                f"{MOST_CLASSES - 1}"
            )
        return numbers, tuple(map(str, range(max(numbers) + 1)))
    if len(distinct) > MOST_CLASSES:
        raise ValueError(
            f"{place} has {len(distinct):,} different labels, such as {texts[0]!r:.80}; at most {MOST_CLASSES:,} "
            f"classes are possible. Without labels: {without}"
        )
    classes = sorted(distinct, key=int if whole else str)
    index = {name: i for i, name in enumerate(classes)}
    return [index[text] for text in texts], tuple(classes)


def _is_whole(text: str) -> bool:
    return re.fullmatch(r"-?\d{1,18}", text) is not None


def _is_a_list(text: str) -> bool:
    """Whether a text is how a list or a dictionary is written: labels of several classes, perhaps."""
    return text[:1] + text[-1:] in ("[]", "{}", "()")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def key_of(name: str) -> tuple[str, str]:
    """The key of a WebDataset name, which ends at the first dot of the file's name, and what follows, in lower case."""
    folder, slash, file = name.rpartition("/")
    start, _, rest = file.partition(".")
    return folder + slash + start, rest.lower()


def companions_of(samples: list[str], names: set[str]) -> dict[str, str]:
    """WebDataset: KEY.jpg stands beside KEY.cls or KEY.json."""
    found = {}
    for name in samples:
        key, _ = key_of(name)
        companion = next((key + suffix for suffix in COMPANIONS if key + suffix in names), None)
        if companion is not None:
            found[name] = companion
    return found


def labels_from_companions(
    container: Container, found: dict[str, str], samples: list[str], names: list[str], place: str
) -> list[Label] | None:
    """The label of each sample from its companion; None where none of them says anything of a label."""
    labels = [_companion_label(container, found[name], name, place) if name in found else None for name in samples]
    classes = {companion for companion in found.values() if companion.endswith(".cls")}
    if all(label is None for label in labels) and not classes:
        return None
    alone = [name for name in samples if name not in found]
    if alone:
        raise ValueError(
            f"{place}: {len(alone)} of {len(samples)} samples have no .cls or .json beside them, as the others do, "
            f"such as {alone[0]}"
        )
    lost = [name for name in names if name.endswith(".cls") and name not in classes] if classes else []
    if lost:
        raise ValueError(f"{place}: {len(lost)} labels have no image, such as {lost[0]}; add it, or remove them")
    return labels


def _companion_label(container: Container, companion: str, name: str, place: str) -> Label:
    with container.open(companion) as file:
        text = file.read().decode("utf-8", "replace").strip()
    if companion.endswith(".cls"):
        return text or None
    try:
        return label_in(json.loads(text))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{place}: {companion}, the label of {name}, is not JSON: {error}") from error


def label_in(facts: Any) -> Label:
    """The label that a JSON value holds, by itself or under one of LABEL_COLUMNS; None where it holds none."""
    if isinstance(facts, dict):
        return next((facts[column] for column in LABEL_COLUMNS if column in facts), None)
    return facts


def labels_from_files(
    container: Container, given: str, places: Sequence[str], names: set[str], samples: list[str], place: str
) -> list[Label] | None:
    """The label of each sample from the file that was given, or from those in the first of the places that has any.

    Raises ValueError where two files in one place do not say the same.
    """
    prefix = places[0]
    if given:
        return _from_file(container, given, True, names, samples, prefix, place)
    for start in dict.fromkeys(places):
        there = [start + name for name in LABEL_FILES if start + name in container.sizes]
        found = {each: _from_file(container, each, False, names, samples, prefix, place) for each in there}
        said = {each: labels for each, labels in found.items() if labels is not None}
        if not said:
            continue
        first, labels = next(iter(said.items()))
        for other, theirs in said.items():
            i = next((i for i, pair in enumerate(zip(labels, theirs, strict=True)) if str(pair[0]) != str(pair[1])), -1)
            if i >= 0:
                raise ValueError(
                    f"{first} and {other} in {place} do not agree: {samples[i]} is {labels[i]!r} and {theirs[i]!r}; "
                    f"choose with --data-options.labels {first}"
                )
        return labels
    return None


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


def _table(file: BinaryIO, name: str) -> list[dict[str, Any]]:
    """The rows of a .csv, .tsv or .jsonl, with the names of columns in lower case."""
    text = io.TextIOWrapper(file, "utf-8-sig", newline="")
    try:
        if suffix_of(name) == ".jsonl":
            rows = [json.loads(line) for line in text if line.strip()]
        else:
            first = text.readline()
            text.seek(0)
            # tables come with semicolons and tabs too
            separator = "\t" if suffix_of(name) == ".tsv" else max(",;\t", key=first.count)
            rows = list(csv.DictReader(text, delimiter=separator, skipinitialspace=True))
    except (ValueError, RecursionError, csv.Error) as error:
        raise ValueError(f"{name} cannot be read: {error}") from error
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{name} holds rows that are not objects of names and values")
    for number, row in enumerate(rows):
        if any(row.pop(None, ())):  # where csv puts what has no column
            raise ValueError(f"{name}, row {number + 1} has more cells than there are columns: {list(row.values())}")
    return [{str(key).strip().lower(): value for key, value in row.items()} for row in rows]


def labels_from_folders(names: list[str], place: str) -> list[Label] | None:
    """The folder that each name begins with; None where all lie outside of folders. ValueError where only some do."""
    flat = [name for name in names if "/" not in name]
    if len(flat) == len(names):
        return None
    if flat:
        folders = len({name.partition("/")[0] for name in names if "/" in name})
        raise ValueError(
            f"{place} holds {len(flat)} images and {folders} folders of images; "
            "put all images into class folders, or all directly into it"
        )
    return [name.partition("/")[0] for name in names]
