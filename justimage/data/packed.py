"""Packs: samples decoded and cropped once, and from then on read as slices of memory-mapped files.

    FOLDER/index.json          format, DataSpec, and for each shard its count and the CRC-32 of its samples
    FOLDER/00000.npy           (n, C, *S) in the spec's type: np.load reads it
    FOLDER/00000.labels.npy    (n,) int64, -1 without labels

`packing` writes them.
"""

import hashlib
import os
import re
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track

from justimage.data.array_files import UNREADABLE_ARRAY
from justimage.data.containers import allow_open_files
from justimage.data.records import read_json
from justimage.data.spec import DataSpec, Item, Source
from justimage.disk.cache import cached, state_of
from justimage.disk.reading import reason_of

FORMAT = "justimage-pack/1"
INDEX = "index.json"
SHARD = re.compile(r"\d{5,}")  # what packing calls a shard
REPAIR = "copy it again, or pack again"


def is_pack(path: Path) -> bool:
    """Whether a folder is a pack, finished or not."""
    if not (path / INDEX).is_file():
        return False
    try:
        return str(read_index(path).get("format", "")).startswith("justimage-pack/")
    except ValueError:
        return (path / "00000.npy").is_file()  # one whose index is damaged


def read_index(folder: Path) -> dict[str, Any]:
    """What an index says; nothing where it is no object. Raises ValueError where it cannot be read."""
    index = read_json(folder / INDEX)
    return index if isinstance(index, dict) else {}


def _check_index(index: dict[str, Any]) -> None:
    """Raises KeyError, TypeError or ValueError where an index is not as packing writes it, naming what is wrong."""

    def expect(what: str, value: Any, kind: type, least: int | None = None) -> None:
        if type(value) is not kind or (least is not None and value < least):
            wanted = {int: "a whole number", bool: "true or false", str: "a text", list: "a list", dict: "an object"}
            from_least = "" if least is None else f" of at least {least}"
            raise ValueError(f"{what} is {str(value)[:80]!r}, not {wanted[kind]}{from_least}")

    for key, kind in (("complete", bool), ("source", dict), ("spec", dict), ("skipped", list), ("shards", list)):
        expect(key, index[key], kind)
    expect("next", index["next"], int, 0)
    expect("the count of the source", index["source"]["count"], int, 1)
    expect("the found of the source", index["source"]["found"], str)
    before = ""
    for number, shard in enumerate(index["shards"]):
        expect(f"shard {number}", shard, dict)
        expect(f"the name of shard {number}", shard["name"], str)
        if not SHARD.fullmatch(shard["name"]):
            raise ValueError(f"a shard is called {shard['name'][:80]!r}; packing calls them 00000, 00001, ...")
        if before and int(shard["name"]) <= int(before):
            raise ValueError(f"shard {shard['name']} comes after {before}")
        before = shard["name"]
        expect(f"the count of shard {before}", shard["count"], int, 1)
        for key in ("crc32", "labels_crc32"):
            expect(f"the {key} of shard {before}", shard[key], int, 0)


def _labels(path: Path, count: int, spec: DataSpec) -> np.ndarray:
    """The labels of a shard (count,) int64. Raises ValueError where they are not those of the spec's classes."""
    labels = np.load(path, allow_pickle=False)
    if labels.shape != (count,) or labels.dtype != np.int64:
        raise ValueError(f"its labels are {labels.shape} {labels.dtype}, not ({count},) int64")
    low, high = (0, len(spec.classes) - 1) if spec.classes else (-1, -1)
    wrong = np.flatnonzero((labels < low) | (labels > high))
    if len(wrong):
        there = (
            f"there are {len(spec.classes)} classes" if spec.classes else "there are no classes, so that it must be -1"
        )
        raise ValueError(f"sample {wrong[0]} of it has the label {labels[wrong[0]]}, and {there}")
    return labels


class Packed(Source):
    """A pack, read by memory mapping: no decoding, in any order, from any process.

    Checksums are compared when a pack is first opened on a machine, and again when one of its files has changed.
    Raises ValueError for a pack that is not finished, of another version, or whose shards are missing or damaged.
    """

    def __init__(self, folder: Path, *, just_written: bool = False):
        self.folder = folder
        index = read_index(folder)
        if index.get("format") != FORMAT:
            raise ValueError(f'{folder} has the format {index.get("format")!r}, not "{FORMAT}": pack it again')
        try:
            _check_index(index)
            self.spec = DataSpec.from_json(index["spec"], "spec")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
            raise ValueError(f"{folder / INDEX} is damaged ({what}); {REPAIR}") from error
        if index["complete"] is not True:
            raise ValueError(
                f"{folder} is not finished: {index['next']:,} of {index['source']['count']:,} samples are packed; "
                "run the same `jit data pack` command again to finish it"
            )
        counted = sum(shard["count"] for shard in index["shards"]) + len(index["skipped"])
        if not index["next"] == index["source"]["count"] == counted:
            of = f"{counted:,} samples are listed of {index['source']['count']:,}"
            raise ValueError(f"{folder / INDEX} is damaged ({of}); {REPAIR}")
        if not index["shards"]:
            raise ValueError(f"{folder / INDEX} lists no shards; {REPAIR}")
        self._check_files(index)
        allow_open_files(len(index["shards"]))
        self.shards, labels = [], []
        for shard in index["shards"]:
            name, count = shard["name"], shard["count"]
            try:
                rows = np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r"))  # mapped, of the plain class
                labels.append(_labels(folder / f"{name}.labels.npy", count, self.spec))
            except UNREADABLE_ARRAY as error:
                raise ValueError(f"shard {name} of {folder} cannot be read: {reason_of(error)}; {REPAIR}") from error
            if rows.shape != (count, *self.spec.shape) or str(rows.dtype) != self.spec.dtype:
                raise ValueError(f"shard {name} of {folder} is {rows.shape} {rows.dtype}, not as indexed; {REPAIR}")
            self.shards.append(rows)
        self.labels = np.concatenate(labels)
        self.ends = np.cumsum([shard["count"] for shard in index["shards"]])
        self.starts = self.ends - [shard["count"] for shard in index["shards"]]
        self._index = index
        files = [folder / f"{shard['name']}{end}" for shard in index["shards"] for end in (".npy", ".labels.npy")]
        checked = (lambda: {"checked": True}) if just_written else self._check
        cached(f"checked {(folder / INDEX).read_text()} {state_of(files)}", checked)

    def _check_files(self, index: dict[str, Any]) -> None:
        """Raises ValueError where the folder lacks files of its shards, or holds those of others."""
        names = [path.name for path in self.folder.glob("*.npy")]
        there = {name for name in names if SHARD.fullmatch(name.removesuffix(".npy").removesuffix(".labels"))}
        listed = {f"{shard['name']}{end}" for shard in index["shards"] for end in (".npy", ".labels.npy")}
        for what, some in (("lacks", listed - there), ("has, though they are not in its index,", there - listed)):
            if some:
                more = f" and {len(some) - 1:,} more files" if len(some) > 1 else ""
                raise ValueError(f"{self.folder} {what} {min(some)}{more}; {REPAIR}")

    def _check(self) -> dict[str, Any]:
        shards = list(zip(self._index["shards"], self.shards, strict=True))
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            found = pool.map(lambda pair: _crc(pair[1]), shards)
            size = sum(rows.nbytes for rows in self.shards)
            shown = track(found, description="checking", total=len(shards), transient=True, disable=size < 2**30)
            for (shard, _), crc in zip(shards, shown, strict=True):
                if crc != shard["crc32"]:
                    raise ValueError(
                        f"shard {shard['name']} of {self.folder} is damaged: its checksum is {crc}, "
                        f"not {shard['crc32']}; {REPAIR}"
                    )
        for shard, start, end in zip(self._index["shards"], self.starts, self.ends, strict=True):
            if zlib.crc32(self.labels[start:end].tobytes()) != shard["labels_crc32"]:
                raise ValueError(f"the labels of shard {shard['name']} of {self.folder} are damaged; {REPAIR}")
        return {"checked": True}

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int, /) -> Item:
        shard = int(np.searchsorted(self.ends, index, side="right"))
        y = {"labels": self.labels[index]} if self.spec.classes else {}
        return self.shards[shard][index - self.starts[shard]], y

    def all_labels(self) -> np.ndarray:
        """See `Source`."""
        return self.labels

    def describe(self) -> str:
        """See `Source`."""
        labels = f"{len(self.spec.classes)} classes" if self.spec.classes else "no labels"
        size = "x".join(map(str, self.spec.shape))
        skipped = f"; {len(self._index['skipped'])} were left out" if self._index["skipped"] else ""
        return (
            f"{len(self):,} samples {size} {self.spec.dtype} packed in {self.folder}, {labels}{skipped} "
            f"(from: {self._index['source']['found']})"
        )

    def fingerprint(self) -> str:
        """See `Source`."""
        sums = [(shard["crc32"], shard["labels_crc32"]) for shard in self._index["shards"]]
        return hashlib.sha256(f"{self.spec.text()} {sums}".encode()).hexdigest()[:16]


def _crc(rows: np.ndarray) -> int:
    """CRC-32 of an array's bytes, read piece by piece."""
    flat, crc, step = rows.reshape(-1).view(np.uint8), 0, 16 * 2**20
    for start in range(0, len(flat), step):
        crc = zlib.crc32(flat[start : start + step].data, crc)
    return crc
