"""The order in which training sees the samples, and batches read ahead of it."""

from collections import deque
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from justimage.data.spec import Source
from justimage.randomness import Stream, keys


class Batch(NamedTuple):
    """Raw samples (B, C, *S), labels (B,), the positions in the run they stand at, and their indices in the source."""

    raw: Tensor
    labels: Tensor
    positions: range
    indices: np.ndarray


@lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, count: int) -> np.ndarray:
    return np.argsort(keys(seed, Stream.ORDER, range(epoch * count, (epoch + 1) * count)), kind="stable")


def order(seed: int, positions: range, count: int) -> np.ndarray:
    """The indices of the samples at these positions of a run: every sample once an epoch, shuffled anew each time.

    A function of (seed, position) alone: the same for any number of processes, and nothing to restore.
    """
    wanted = np.fromiter(positions, dtype=np.int64)
    indices = np.empty_like(wanted)
    for epoch in np.unique(wanted // count):
        here = wanted // count == epoch
        indices[here] = _permutation(seed, int(epoch), count)[wanted[here] % count]
    return indices


def read(source: Source, positions: range, seed: int, pinned: bool = False) -> Batch:
    """The batch at these positions; pinned, for copies to a GPU that do not wait."""
    indices = order(seed, positions, len(source))
    samples, labels = zip(*(source[int(i)] for i in indices), strict=True)
    raw, y = torch.from_numpy(np.stack(samples)), torch.tensor(labels)
    return Batch(*((raw.pin_memory(), y.pin_memory()) if pinned else (raw, y)), positions, indices)


def batches(
    source: Source,
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
    copying release the interpreter, so that threads suffice; 0 workers read when asked.
    """
    share = batch_size // world
    if share * world != batch_size:
        raise ValueError(f"a batch of {batch_size} does not split over {world} processes")

    def positions(step: int) -> range:
        first = start + step * batch_size + rank * share
        return range(first, first + share)

    step = 0
    if workers == 0:
        while True:
            yield read(source, positions(step), seed, pinned)
            step += 1
    pool = ThreadPoolExecutor(workers, thread_name_prefix="data")
    try:
        ahead = deque(pool.submit(read, source, positions(i), seed, pinned) for i in range(workers + 1))
        step = len(ahead)
        while True:
            batch = ahead.popleft().result()
            ahead.append(pool.submit(read, source, positions(step), seed, pinned))
            step += 1
            yield batch
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
