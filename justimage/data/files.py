"""Samples stored one by one as encoded bytes, in folders, archives and WebDataset shards: found, and labelled.

Labels are found in the same way in every container: in companions of the same name (WebDataset), in a label file, or
in the folder that a name begins with (`labels`).
"""

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from justimage.data.containers import IMAGES, Container, Folder, Tars, Zip, is_tar, suffix_of
from justimage.data.labels import (
    COMPANIONS,
    LABEL_FILES,
    companions_of,
    index_labels,
    key_of,
    labels_from_companions,
    labels_from_files,
    labels_from_folders,
)

NONE = "none"
SPLITS = {  # what folders and files are called, in any case -> the split
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
    **{name: name for name in ("dev", "eval", "extra")},
}


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
    beside = {} if labels else companions_of(samples, known)
    texts = labels_from_companions(container, beside, samples, names, place) if beside else None
    as_names, prefix = False, ""  # the order of shards is kept where their samples have companions
    if texts is None:
        outer = "" if several or is_folder else _outer(names)
        prefix = outer + ("" if several else _split(samples, outer, split, place))
        samples = sorted((n for n in samples if n.startswith(prefix)), key=lambda name: name.split("/"))
        if labels != NONE:
            texts = labels_from_files(container, labels, (prefix, outer), known, samples, place)
            if texts is None:
                inner = [name.partition("/")[2] if several else name.removeprefix(prefix) for name in samples]
                texts, as_names = labels_from_folders(inner, place), True
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


def _outer(names: list[str]) -> str:
    """The single outermost folder of an archive, as a prefix: it is the name of the archive, not a class."""
    tops = {name.partition("/")[0] for name in names}
    return f"{tops.pop()}/" if len(tops) == 1 and all("/" in name for name in names) else ""


def split_of(name: str) -> str:
    """The split that the name of a file says, whatever its case and form; several words are a split of their own.

    train for data/Train-00000-of-00002.tar, train_extra for train_extra-00000.tar; empty for 00000.tar.
    """
    words = [SPLITS[word] for word in re.split(r"[-_./]", name.lower()) if word in SPLITS]
    return "_".join(dict.fromkeys(words))


def files_of_split(files: Mapping[Path, str], split: str, place: str) -> list[Path]:
    """Of files, each with its name, those of a split; all of them where no name says one, and one that is alone.

    Raises ValueError, with the splits that there are, where a split other than train is asked for and there is none.
    """
    found = {file: split_of(name) for file, name in files.items()}
    asked = [file for file, its in found.items() if its == (split_of(split) or split)]
    if asked or (split == "train" and (len(files) == 1 or not any(found.values()))):
        return asked or list(files)
    there = ", ".join(sorted(set(filter(None, found.values()))))
    there = f"there are {there} (--data-options.split)" if there else "its files are not called after splits"
    raise ValueError(f"{place} has no split {split!r}; {there}")


def _split(samples: list[str], outer: str, split: str, place: str) -> str:
    """The split as a prefix, if all folders are splits; nothing if they are classes, as in bus, car, train.

    Raises ValueError where the split does not exist.
    """
    tops = {name.removeprefix(outer).partition("/")[0] for name in samples if "/" in name.removeprefix(outer)}
    known = {top: SPLITS.get(top.lower(), "") for top in tops}
    if tops and all(its or top == split for top, its in known.items()):
        named = [top for top in sorted(tops) if top == split] or [
            top for top, its in known.items() if its == SPLITS.get(split.lower(), split)
        ]
        if len(named) == 1:
            return f"{named[0]}/"
        raise ValueError(f"{place} has no split {split!r}; there are {', '.join(sorted(tops))} (--data-options.split)")
    if split != "train":
        raise ValueError(f"{place} has no split {split!r}; its folders are not splits")
    return ""
