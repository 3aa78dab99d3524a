"""Packs: samples decoded and cropped once, and from then on read as slices of memory-mapped files.

    FOLDER/index.json          format, DataSpec, and for each shard its count and the CRC-32 of its samples
    FOLDER/00000.npy           (n, C, *S) in the spec's type: np.load reads it
    FOLDER/00000.labels.npy    (n,) int64, -1 without labels

A shard is written under another name and renamed when it is whole, and the index says "complete" only at the end: a
pack that was interrupted cannot be read, and the same command finishes it.
"""

import contextlib
import hashlib
import json
import os
import re
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn, track

from justimage.data.arrays import UNREADABLE_ARRAY
from justimage.data.containers import allow_open_files
from justimage.data.records import read_json
from justimage.data.spec import DataSpec, Item, Source, Unreadable
from justimage.disk import (
    FULL,
    Unwritten,
    cached,
    held,
    is_empty,
    put,
    reason_of,
    state_of,
    system_reason,
    temporary,
    write_array_header,
    write_text,
    writing,
)

FORMAT = "justimage-pack/1"
INDEX = "index.json"
LARGEST = 10**9  # bytes of a sample, of which some tens are in memory at once
SHARD = re.compile(r"\d{5,}")  # what packing calls a shard
TASK = 16  # samples that one thread decodes before it takes the next
REPAIR = "copy it again, or pack again"


def is_pack(path: Path) -> bool:
    """Whether a folder is a pack, finished or not."""
    if not (path / INDEX).is_file():
        return False
    try:
        return str(_index(path).get("format", "")).startswith("justimage-pack/")
    except ValueError:
        return (path / "00000.npy").is_file()  # one whose index is damaged


def _index(folder: Path) -> dict[str, Any]:
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


class Unfinished(ValueError):
    """Packing stopped: the disk is full, or a sample cannot be decoded. The shards that are whole are kept."""


class Packed(Source):
    """A pack, read by memory mapping: no decoding, in any order, from any process.

    Checksums are compared when a pack is first opened on a machine, and again when one of its files has changed.
    Raises ValueError for a pack that is not finished, of another version, or whose shards are missing or damaged.
    """

    def __init__(self, folder: Path, *, just_written: bool = False):
        self.folder = folder
        index = _index(folder)
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


def pack(source: Source, folder: Path, *, workers: int = 1, shard_mb: int = 512) -> Packed:
    """Write a source into a pack, decoding with `workers` threads, and open it.

    Samples that cannot be decoded stop it, or are left out and listed if the source was opened with "skip". After an
    interruption, the same call resumes after the last whole shard. Raises ValueError for random crops and samples with
    conditions, and where the folder holds something else, or a pack of another source; Unfinished where the disk is
    full, or a sample stops it.
    """
    if source.not_packed:
        raise ValueError(source.not_packed)
    if source.spec.given:
        names = ", ".join(each.name for each in source.spec.given)
        raise ValueError(
            f"packs hold no conditions besides labels, and these samples come with {names}: train on them directly"
        )
    per_sample = int(np.prod(source.spec.shape)) * np.dtype(source.spec.dtype).itemsize
    if not 0 < per_sample <= LARGEST:
        size = "x".join(map(str, source.spec.shape))
        raise ValueError(
            f"a sample of {size} takes {per_sample / 1e9:,.1f} GB; packs are for samples of up to "
            f"{LARGEST / 1e9:.0f} GB: choose another --size"
        )
    rows = max(1, shard_mb * 10**6 // per_sample)
    check_place(folder)
    with held(folder):
        return _pack(source, folder, workers, rows)


def check_place(folder: Path) -> None:
    """Raises ValueError where no pack can be written: it holds something else, or cannot be written or held."""
    if folder.exists() and not (folder.is_dir() and (is_empty(folder) or is_pack(folder))):
        raise ValueError(f"{folder} is not empty and not a pack; choose another folder with --out")
    with held(folder):
        pass


def _pack(source: Source, folder: Path, workers: int, rows: int) -> Packed:
    """`pack`, into a folder that is held, with so many rows in a shard."""
    per_sample = int(np.prod(source.spec.shape)) * np.dtype(source.spec.dtype).itemsize
    identity = {"fingerprint": source.fingerprint(), "count": len(source), "rows": rows}
    index = _begin(folder, {**identity, "found": source.describe()}, source.spec)

    def done() -> str:
        listed = _index(folder)["next"] if (folder / INDEX).is_file() else 0
        return f"{listed:,} of {len(source):,} samples are packed and stay valid"

    def list_shards() -> None:
        write_text(folder / INDEX, json.dumps(index, indent=1) + "\n")

    def settle(entry: dict[str, Any], start: int, stop: int, finish: Callable[[], None]) -> None:
        """List a shard in the index once it is on the disk. A thread does this while the next shard is decoded."""
        if index["next"] != start:  # the shard before could not be written: none may follow it
            for end in (".npy", ".labels.npy"):
                temporary(folder / f"{entry['name']}{end}").unlink(missing_ok=True)
            return
        if not (folder / INDEX).is_file():  # before there is any shard, or a kill would leave files that nobody claims
            list_shards()
        finish()
        index["skipped"] += entry.pop("skipped")
        index["shards"] += [entry] * bool(entry["count"])
        index["next"] = stop
        list_shards()

    try:
        with (
            ThreadPoolExecutor(workers) as pool,
            ThreadPoolExecutor(1) as settler,
            _progress(len(source), index["next"]) as advance,
        ):
            tasks = _tasks(source, pool, index["next"], rows, workers)
            settled: deque[Future] = deque()
            for start in range(index["next"], len(source), rows):
                stop = min(start + rows, len(source))
                entry, finish = _write_shard(folder, f"{start // rows:05d}", tasks, stop, source.spec, advance)
                settled.append(settler.submit(settle, entry, start, stop, finish))
                if len(settled) > 1:
                    settled.popleft().result()
            for last in settled:
                last.result()
    except Unwritten as error:
        if index["shards"]:
            with contextlib.suppress(OSError):  # a shard that found no room is gone: there is some for the index
                list_shards()
        room = (len(source) - index["next"]) * per_sample / 1e6
        full = f"make room for {room:,.0f} MB, and " if error.errno in FULL else ""
        raise Unfinished(
            f"{error.filename} cannot be written: {system_reason(error)}. {done()}; {full}run the same command again "
            "to finish"
        ) from error
    except OSError as error:
        raise Unfinished(f"the data can no longer be read: {error}. {done()}") from error
    except ValueError as error:
        raise Unfinished(f"{error}. {done()}; --data-options.on-error skip leaves such samples out") from error
    if not index["shards"]:
        (folder / INDEX).unlink(missing_ok=True)
        raise ValueError(f"no sample of {source.describe()} can be decoded")
    write_text(folder / INDEX, json.dumps({**index, "complete": True}, indent=1) + "\n")
    return Packed(folder, just_written=True)


@contextmanager
def _progress(total: int, done: int) -> Iterator[Callable[[int], None]]:
    columns = (
        TextColumn("packing"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]:,.0f} samples/s"),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    began, start = time.monotonic(), done
    with Progress(*columns) as progress:
        task = progress.add_task("packing", total=total, completed=done, rate=0.0)

        def advance(count: int) -> None:
            nonlocal done
            done += count
            progress.update(task, completed=done, rate=(done - start) / max(time.monotonic() - began, 1e-9))

        yield advance


def _begin(folder: Path, identity: dict[str, Any], spec: DataSpec) -> dict[str, Any]:
    """The index to continue: that of an interrupted pack of the same source, or one that its first shard writes."""
    fresh = {
        "format": FORMAT,
        "complete": False,
        "spec": asdict(spec),
        "source": identity,
        "skipped": [],
        "next": 0,
        "shards": [],
    }
    if not is_empty(folder):
        index = _index(folder)
        if index.get("complete"):
            raise ValueError(f"{folder} is a finished pack; remove it to pack again, or choose another with --out")
        same = index["format"] == FORMAT and DataSpec.from_json(index["spec"]).text() == spec.text()
        if not same or any(index["source"][key] != identity[key] for key in ("fingerprint", "count", "rows")):
            raise ValueError(
                f"{folder} is a pack begun from other data or settings ({index['source']['found']}); remove it, or "
                "choose another folder with --out"
            )
        return index
    return fresh


Task = tuple[list[np.ndarray], list[int], list[tuple[str, str]], int]


def _tasks(source: Source, pool: ThreadPoolExecutor, start: int, rows: int, workers: int) -> Iterator[Task]:
    """Decoded samples, their labels, those left out, and the index after them; in order, some of them ahead of time."""

    def run(part: range) -> Task:
        if source.on_error == "stop":
            items, skipped = source.read(part.start, part.stop), []
        else:
            looks = [(source.name(i), source.look(i)) for i in part]
            items = [found for _, found in looks if not isinstance(found, Unreadable)]
            skipped = [(name, found.reason) for name, found in looks if isinstance(found, Unreadable)]
        return [raw for raw, _ in items], [int(y.get("labels", -1)) for _, y in items], skipped, part.stop

    parts = iter(
        range(first, min(first + TASK, end))
        for begin in range(start, len(source), rows)
        for end in [min(begin + rows, len(source))]
        for first in range(begin, end, TASK)
    )
    ahead = deque(pool.submit(run, part) for part in islice(parts, 2 * workers + 1))
    while ahead:
        done = ahead.popleft().result()
        following = next(parts, None)
        if following is not None:
            ahead.append(pool.submit(run, following))
        yield done


def _write_shard(
    folder: Path, name: str, tasks: Iterator[Task], stop: int, spec: DataSpec, advance: Callable[[int], None]
) -> tuple[dict[str, Any], Callable[[], None]]:
    """Write the tasks up to the sample `stop` under another name -> its entry, and what makes it a shard."""
    path = folder / f"{name}.npy"
    beside = temporary(path)
    labels_path = folder / f"{name}.labels.npy"
    labels_beside = temporary(labels_path)
    count, crc, labels, skipped, after = 0, 0, [], [], -1
    with writing(path):
        file = beside.open("wb")
    try:
        write_array_header(file, 0, spec.shape, spec.dtype)
        for samples, some, left_out, after in tasks:
            with writing(path):
                for sample in samples:
                    row = np.ascontiguousarray(sample, dtype=spec.dtype)
                    crc = zlib.crc32(row.data, crc)
                    file.write(row.data)
            count, labels, skipped = count + len(samples), labels + some, skipped + left_out
            advance(len(samples) + len(left_out))
            if after == stop:
                break
        assert after == stop
        with writing(path):
            file.seek(0)
            write_array_header(file, count, spec.shape, spec.dtype)
            file.flush()
        y = np.array(labels, dtype=np.int64)
        # Now, while there is room: the next shard may fill the disk before this one is settled.
        with writing(labels_path), labels_beside.open("wb") as labels_file:
            np.save(labels_file, y)
    except BaseException:
        _drop(file, beside, labels_beside)
        raise

    def finish() -> None:
        if not count:  # all were left out
            _drop(file, beside, labels_beside)
            return
        try:
            with writing(path):
                os.fsync(file.fileno())
                file.close()
            with writing(labels_path):
                put(labels_beside, labels_path)
            with writing(path):
                put(beside, path)
        except BaseException:
            _drop(file, beside, labels_beside)
            raise

    sums = {"crc32": crc, "labels_crc32": zlib.crc32(y.tobytes())}
    return {"name": name, "count": count, **sums, "skipped": skipped}, finish


def _drop(file: BinaryIO, *paths: Path) -> None:
    """Close a file and free the space of some: a full disk needs it."""
    with contextlib.suppress(OSError):  # closing tries again to write what could not be written
        file.close()
    for path in paths:
        path.unlink(missing_ok=True)
