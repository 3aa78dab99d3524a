"""Samples stored one by one as encoded bytes, in folders, archives and WebDataset shards: found, and labelled.

Labels are found in the same way in every container: in companions of the same name (WebDataset), in a label file, or
in the folder that a name begins with. Wherever they come from, `index_labels` decides what they mean.
"""

import csv
import hashlib
import io
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from justimage.data.containers import IMAGES, Container, Folder, Tars, Zip, clean, is_tar, suffix_of

TABLES_OF_LABELS = (".csv", ".tsv", ".jsonl")
LABEL_FILES = tuple(name + suffix for name in ("labels", "metadata") for suffix in TABLES_OF_LABELS)
NONE = "none"
SPLITS = frozenset(["train", "training", "val", "valid", "validation", "dev", "test", "testing", "eval", "extra"])
NAME_COLUMNS = ("file_name", "filename", "file", "path", "image", "name")
LABEL_COLUMNS = ("label", "labels", "class", "category", "cls", "target")
COMPANIONS = (".cls", ".json")
MOST_CLASSES = 100_000

Label = Any  # as found: a name, an index, None where there is nothing; or what is not a label, and refused


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
    """What follows a description: which files were left aside, and which folders were not looked into."""

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
    image: str = "",
    split: str = "train",
    memory_gb: float = 2.0,
    others: Mapping[str, frozenset[str]] | None = None,
) -> Files:
    """The samples with these suffixes in a folder, a zip, a tar, or WebDataset shards (one .tar or several).

    labels: a label file, in the container or beside it, or `none`; by default one of LABEL_FILES where there is one.
    image: of keys with several images, the one that is called so after the key. split: the folder taken where the
    folders are splits (train, val, test). others: kinds of files and their suffixes, of which there must not be more
    than samples.

    Raises ValueError where there is nothing, where some samples lie in folders and some do not, where the labels do not
    fit, and where it is unclear which files are the samples.
    """
    several, is_folder = len(paths) > 1, paths[0].is_dir()
    place = f"{paths[0].parent} ({len(paths)} shards)" if several else str(paths[0])
    tars = several or is_tar(paths[0])
    if tars:
        container: Container = Tars(paths, memory_gb)
    else:
        container = Folder(paths[0]) if is_folder else Zip(paths[0])
    hidden = re.compile(r"(^|/)(\.|__MACOSX/)")
    names = [name for name in container.sizes if not hidden.search(name)]
    known = set(names)
    samples = [name for name in names if suffix_of(name) in suffixes]
    if not samples:
        held = sorted({suffix_of(name) or "(no suffix)" for name in names})[:8]
        found = f"; it holds {len(names)} files: {', '.join(held)}" if names else "; it is empty"
        wanted = "images" if suffixes == IMAGES else ", ".join(sorted(suffixes))
        raise ValueError(f"{place} holds no samples ({wanted}){found}{_remark(container, [])}")

    samples = _one_of_each_key(samples, known, image, tars, place)
    beside = {} if labels else _companions(samples, known)
    texts = _from_companions(container, beside, samples, names, place) if beside else None
    as_names, prefix = False, ""  # the order of shards is kept where their samples have companions
    if texts is None:
        outer = "" if several or is_folder else _outer(names)
        prefix = outer + ("" if several else _split(samples, outer, split, place))
        samples = sorted((n for n in samples if n.startswith(prefix)), key=lambda name: name.split("/"))
        if labels != NONE:
            texts = _from_files(container, labels, (prefix, outer), known, samples, place)
            if texts is None:
                inner = [name.partition("/")[2] if several else name.removeprefix(prefix) for name in samples]
                texts, as_names = _from_folders(inner, place), True
    indices, classes = [-1] * len(samples), ()
    if texts is not None:
        indices, classes = index_labels(texts, place, samples, as_names=as_names)
    used = {*samples, *beside.values(), labels}
    aside = [n for n in names if n not in used and n.startswith(prefix) and n.rpartition("/")[2] not in LABEL_FILES]
    for kind, theirs in (others or {}).items():
        count = sum(suffix_of(name) in theirs for name in aside)
        if count > len(samples):
            raise ValueError(
                f"{place} holds {len(samples)} samples ({_counted(samples)}), but {count} files of the kind {kind} "
                f"({_counted(n for n in aside if suffix_of(n) in theirs)}): say which are meant, with "
                f"--data-options.kind {kind} or {'arrays' if suffixes != IMAGES else 'images'}"
            )

    def stamp() -> str:
        digest = hashlib.sha256(repr(classes).encode())
        for name, label in zip(samples, indices, strict=True):
            digest.update(f"{name} {container.sizes[name]} {label}\n".encode(errors="surrogateescape"))
        return digest.hexdigest()[:16]

    remark = _remark(container, aside)
    return Files(place, samples, indices, classes, lambda i: container.open(samples[i]), stamp, container.state, remark)


def _remark(container: Container, aside: Collection[str]) -> str:
    """What was not taken, or not looked into."""
    remark = f"; left aside: {_counted(aside)}" if aside else ""
    if container.repeated:
        remark += f"; names that occur again in it, of which the later file counts: {container.repeated}"
    if container.left_out:
        more = f" and {len(container.left_out) - 3} more" if len(container.left_out) > 3 else ""
        remark += f"; not looked into, as justimage wrote them: {', '.join(sorted(container.left_out)[:3])}{more}"
    return remark


def _counted(names: Iterable[str]) -> str:
    """How many of each suffix: 3 .txt, 1 .npy."""
    found = Counter(suffix_of(name) or "without a suffix" for name in names)
    counts = sorted(found.items(), key=lambda pair: (-pair[1], pair[0]))
    rest = sum(count for _, count in counts[6:])
    return ", ".join(f"{count:,} {suffix}" for suffix, count in counts[:6]) + (f", {rest:,} others" if rest else "")


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


def which_image(place: str, name: str, images: Iterable[str]) -> str:
    """The question which of several images of a key are the samples. images: what follows the key."""
    return (
        f"{place} holds several images of one key, such as {name}: {', '.join(sorted(images))}. Say which are the "
        "samples, and not masks or other views of them: --data-options.image, and one of these"
    )


def _one_of_each_key(samples: list[str], names: set[str], image: str, tars: bool, place: str) -> list[str]:
    """The images that are called `image` after their key; without it, all of them, if it is clear that all are meant.

    It is not where a key with a companion has several, and where in a tar all keys have the same ones. Numbers between
    dots (scan.001.png) tell one sample from the next.
    """
    keys = list(map(key_of, samples))
    if not image and len({key for key, _ in keys}) == len(keys):
        return samples
    groups: dict[str, set[str]] = {}
    for key, rest in keys:
        groups.setdefault(key, set()).add(rest)
    held = {rest for group in groups.values() for rest in group}
    if image:
        wanted = image.lower().removeprefix(".")
        lacking = [key for key, group in groups.items() if wanted not in group]
        if lacking:
            raise ValueError(
                f"--data-options.image is {image}, and {len(lacking)} of {len(groups)} keys of {place} have no such "
                f"image, such as {lacking[0]}; images are called {', '.join(sorted(held)[:8])} after their key"
            )
        return [name for name, (_, rest) in zip(samples, keys, strict=True) if rest == wanted]
    if any(part.isdecimal() for rest in held for part in rest.split(".")):
        return samples
    alike = tars and len(groups) > 1 and len(held) > 1 and all(group == held for group in groups.values())
    asked = next(
        (k for k, group in groups.items() if len(group) > 1 and (alike or any(k + c in names for c in COMPANIONS))),
        None,
    )
    if asked is not None:
        raise ValueError(which_image(place, asked, groups[asked]))
    return samples


def _companions(samples: list[str], names: set[str]) -> dict[str, str]:
    """WebDataset: KEY.jpg stands beside KEY.cls or KEY.json."""
    found = {}
    for name in samples:
        key, _ = key_of(name)
        companion = next((key + suffix for suffix in COMPANIONS if key + suffix in names), None)
        if companion is not None:
            found[name] = companion
    return found


def _from_companions(
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


def _from_files(
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


def _from_folders(names: list[str], place: str) -> list[Label] | None:
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
