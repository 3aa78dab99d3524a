"""Packing: samples decoded once and written as a pack (see `packed`), shard by shard.

A shard is written under another name and renamed when it is whole, and the index says "complete" only at the end: a
pack that was interrupted cannot be read, and the same command finishes it.
"""

import contextlib
import json
import os
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
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from justimage.data.packed import FORMAT, INDEX, Packed, is_pack, read_index
from justimage.data.spec import DataSpec, Source, Unreadable
from justimage.disk.growing import write_array_header
from justimage.disk.hold import held, is_empty
from justimage.disk.whole import FULL, Unwritten, put, system_reason, temporary, write_text, writing

LARGEST = 10**9  # bytes of a sample, of which some tens are in memory at once
TASK = 16  # samples that one thread decodes before it takes the next


class Unfinished(ValueError):
    """Packing stopped: the disk is full, or a sample cannot be decoded. The shards that are whole are kept."""


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
        listed = read_index(folder)["next"] if (folder / INDEX).is_file() else 0
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
        index = read_index(folder)
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
