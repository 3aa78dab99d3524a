"""The order in which training sees the samples, batches read ahead of it, and the model values made of them."""

import contextlib
import itertools
import queue
import threading
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from justimage.data.spec import DataSpec, Item, Source, StreamSource, UnreadableSample
from justimage.execution import to_device
from justimage.randomness import Purpose, keys, mix, uniforms

ROUNDS = 8
Job = TypeVar("Job")


class Batch(NamedTuple):
    """Samples as they are stored, and where they come from."""

    raw: Tensor
    """(B, C, *S)."""
    y: dict[str, Tensor]
    """What comes with them, by name, in raw values: labels (B,) int64, a vector (B, F), ..."""
    positions: range
    """Where in the run they stand."""
    indices: np.ndarray
    """Which samples of the source they are; of a stream, the positions again."""


def order(seed: int, positions: range, count: int) -> np.ndarray:
    """The indices of the samples at these positions of a run: every sample once an epoch, shuffled anew each time.

    A function of (seed, position) alone: the same for any number of processes, and nothing to restore. The shuffle is
    a Feistel network (Luby and Rackoff, SIAM J. Comput. 1988) on the next even power of two, walked until it lands
    below count: a bijection without a table, for a folder of ten images as for 10**12 crops.
    """
    epochs, start = np.divmod(np.arange(positions.start, positions.stop, positions.step, dtype=np.int64), count)
    half = np.uint64(max(1, ((count - 1).bit_length() + 1) // 2))
    low = (np.uint64(1) << half) - np.uint64(1)
    rounds = np.arange(ROUNDS, dtype=np.uint64)
    secret = mix(keys(seed, Purpose.ORDER, epochs)[:, None] ^ rounds)  # (B, ROUNDS)

    def shuffle(index: np.ndarray, secret: np.ndarray) -> np.ndarray:
        left, right = index >> half, index & low
        for i in range(ROUNDS):
            left, right = right, left ^ (mix(secret[:, i] ^ right) & low)
        return left << half | right

    index = shuffle(start.astype(np.uint64), secret)
    while (outside := index >= np.uint64(count)).any():
        index[outside] = shuffle(index[outside], secret[outside])
    return index.astype(np.int64)


def indices_at(source: Source | StreamSource, seed: int, positions: range) -> np.ndarray:
    """Which samples stand at these positions: indices in the source; of a stream, the positions themselves."""
    if source.indexed is True:
        return order(seed, positions, len(source))
    return np.arange(positions.start, positions.stop)


class Buffers:
    """Memory for batches, reused when nothing refers to a batch any more: fresh pages cost more than copying."""

    def __init__(self, pinned: bool = False):
        self.pinned = pinned
        self._free: deque[np.ndarray] = deque()

    def empty(self, shape: tuple[int, ...], dtype: np.dtype) -> Tensor:
        """An uninitialised tensor; pinned, for copies to a GPU that do not wait (torch reuses such memory itself)."""
        if self.pinned:
            return torch.from_numpy(np.empty(0, dtype)).new_empty(shape, pin_memory=True)
        memory = None
        with contextlib.suppress(IndexError):  # not asking first: another thread may take it in between
            memory = self._free.pop()
        if memory is None or memory.shape != shape or memory.dtype != dtype:
            memory = np.empty(shape, dtype)
        lent = memory[:]  # torch holds on to this view as long as anything uses the tensor's memory
        weakref.finalize(lent, self._free.append, memory).atexit = False
        return torch.from_numpy(lent)


def read(source: Source, positions: range, seed: int, buffers: Buffers | None = None) -> Batch:
    """The batch at these positions of a run."""
    indices = order(seed, positions, len(source))
    items = [source[i] for i in indices.tolist()]
    return _batch(items, positions, indices, buffers or Buffers(), source.spec, lambda i: source.name(int(indices[i])))


def _batch(
    items: list[Item],
    positions: range,
    indices: np.ndarray,
    buffers: Buffers,
    spec: DataSpec,
    name_of: Callable[[int], str],
) -> Batch:
    """Samples as one batch. Raises UnreadableSample, naming it by its place in the batch, where one does not fit."""
    samples, given = zip(*items, strict=True)
    shape, dtype = spec.shape, samples[0].dtype
    raw = buffers.empty((len(samples), *shape), dtype)
    for i, (row, sample) in enumerate(zip(raw.numpy(), samples, strict=True)):
        if sample.shape != shape or sample.dtype != dtype:
            raise UnreadableSample(
                f"{name_of(i)} is {sample.shape} {sample.dtype}; the data say {shape}, and {name_of(0)} is "
                f"{dtype}: all samples need the same shape and type"
            )
        row[...] = sample
    y = {name: torch.from_numpy(each) for name, each in _beside(given, spec, name_of).items()}
    if buffers.pinned:
        y = {name: value.pin_memory() for name, value in y.items()}
    return Batch(raw, y, positions, indices)


def _beside(
    given: Sequence[dict[str, np.ndarray]], spec: DataSpec, name_of: Callable[[int], str]
) -> dict[str, np.ndarray]:
    """What comes with the samples of a batch, by name; labels are those of classes that there are."""
    names = given[0].keys()
    lacking = bool(spec.classes) and "labels" not in names
    for i, each in enumerate(given):
        if lacking or each.keys() != names:
            raise UnreadableSample(
                f"{name_of(i)} comes with {', '.join(each) or 'nothing'}; all samples need the same, which is "
                + ", ".join(need.name for need in spec.needs)
            )
    y = {}
    for name in names:
        try:
            y[name] = np.stack([each[name] for each in given])
        except ValueError as error:
            first, *shapes = [np.shape(each[name]) for each in given]
            i = next(i for i, shape in enumerate(shapes, 1) if shape != first)
            found = f"{shapes[i - 1]}, and that of {name_of(0)} {first}"
            raise UnreadableSample(f"{name} of {name_of(i)} is {found}: all samples need the same shape") from error
    if spec.classes:
        labels, count = y["labels"], len(spec.classes)
        whole = labels.ndim == 1 and labels.dtype.kind in "iu"
        bad = np.flatnonzero((labels < 0) | (labels >= count)) if whole else [0]
        if len(bad):
            raise UnreadableSample(
                f"{name_of(int(bad[0]))} has the label {labels[bad[0]]}; a whole number from 0 to {count - 1} is "
                f"needed, as there are {count} classes"
            )
    return y


def batches(
    source: Source | StreamSource,
    *,
    seed: int,
    start: int,
    batch_size: int,
    rank: int = 0,
    world: int = 1,
    workers: int = 1,
    pinned: bool = False,
) -> Generator[Batch, None, None]:
    """Batches from position `start` on, without end, read ahead by `workers` threads.

    batch_size counts all processes together: of each batch, process `rank` of `world` gets its part. Decoding and
    copying release the interpreter, so that threads suffice; with 0 workers, batches are read when they are asked for.
    Raises UnreadableSample where a sample cannot be read, and ValueError for a batch that does not split evenly.
    """
    share = batch_size // world
    if share * world != batch_size:
        raise ValueError(f"a batch of {batch_size} does not split over {world} processes")
    ours = (range(first, first + share) for first in itertools.count(start + rank * share, batch_size))
    buffers = Buffers(pinned)
    if source.indexed is True:
        jobs: Iterator[Callable[[], Batch]] = (partial(read, source, part, seed, buffers) for part in ours)
    else:
        jobs = _stream_jobs(source, seed, start, ours, buffers)
        jobs = _read_by_a_thread(jobs, depth=workers + 1) if workers else jobs
    if workers == 0:
        for job in jobs:
            yield job()
    # Threads begin on the first GPU, and asking for pinned memory would make a context there.
    stay = partial(torch.cuda.set_device, torch.cuda.current_device()) if pinned else None
    pool = ThreadPoolExecutor(workers, thread_name_prefix="data", initializer=stay)
    closing = contextlib.ExitStack()
    closing.callback(pool.shutdown, wait=False, cancel_futures=True)
    if isinstance(jobs, Generator):
        closing.callback(jobs.close)
    over = weakref.finalize(buffers, closing.close)  # from below, or as Python ends
    try:
        ahead = deque(pool.submit(job) for job in itertools.islice(jobs, workers + 1))
        while True:
            batch = ahead.popleft().result()
            ahead.append(pool.submit(next(jobs)))
            yield batch
    finally:
        over()


def _read_by_a_thread(jobs: Iterator[Job], depth: int) -> Iterator[Job]:
    """The same jobs, taken from the iterator by a thread, so that only it waits for the network."""
    ahead: queue.Queue[Job | BaseException] = queue.Queue(depth)
    over = threading.Event()

    def put(item: Job | BaseException) -> bool:
        while not over.is_set():
            with contextlib.suppress(queue.Full):
                ahead.put(item, timeout=0.2)
                return True
        return False

    def run() -> None:
        try:
            for job in jobs:
                if not put(job):
                    return
        except BaseException as error:
            put(error)

    threading.Thread(target=run, name="stream", daemon=True).start()
    try:
        while True:
            item = ahead.get()
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        over.set()


def _stream_jobs(
    source: StreamSource, seed: int, start: int, ours: Iterator[range], buffers: Buffers
) -> Iterator[Callable[[], Batch]]:
    """Every process reads the whole stream, and decodes its own part of it."""
    samples = source.samples(seed, start)
    position = start
    for positions in ours:
        skipped = positions.start - position
        mine = list(itertools.islice(samples, skipped, skipped + len(positions)))
        position = positions.stop

        def job(mine: list[Callable[[], Item]] = mine, positions: range = positions) -> Batch:
            return _batch(
                [decode() for decode in mine],
                positions,
                np.arange(positions.start, positions.stop),
                buffers,
                source.spec,
                lambda i: f"the sample at position {positions[i]:,} of the stream",
            )

        yield job


def model_values(
    raw: Tensor, y: dict[str, Tensor], spec: DataSpec, *, seed: int, positions: range, mirror: bool
) -> tuple[Tensor, dict[str, Tensor]]:
    """Raw samples (B, C, *S) and what comes with them -> model values x (B, C, *S) and y, on the same device.

    mirror: mirror a random half of the samples, and their planes with them, along the spec's axis, or along the last
    one where the spec names none. Which half is a function of (seed, position).
    """
    x, y = spec.encode(raw), spec.encode_given(y)
    if not mirror:
        return x, y
    chosen = to_device(uniforms(seed, Purpose.FLIP, positions) < 0.5, x.device)
    axis = 2 + (len(spec.size) - 1 if spec.mirror is None else spec.mirror)

    def flip(values: Tensor) -> Tensor:
        return torch.where(chosen.view(-1, *[1] * (values.ndim - 1)), values.flip(axis), values)

    planes = {each.name for each in spec.given if each.kind == "planes"}
    return flip(x), {name: flip(value) if name in planes else value for name, value in y.items()}
