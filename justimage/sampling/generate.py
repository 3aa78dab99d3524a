"""Generation is an iterable: seeds in, batches of samples out. Saving and scoring consume the same one."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from justimage.denoiser import Denoiser


class Samples(NamedTuple):
    """Raw samples (B, C, *S) with the seed and the label (-1: none) of each."""

    raw: Tensor
    seeds: list[int]
    labels: list[int]


def generate(
    model: Denoiser,
    seeds: Sequence[int],
    labels: Sequence[int | str] | None = None,
    *,
    batch_size: int = 16,
    **settings: Any,
) -> Iterator[Samples]:
    """Samples for all seeds, in batches. Sample k depends on seed and label k alone, not on the batch size.

    labels: one for each seed, or None. settings: as for `Denoiser.sample`. Raises ValueError before the first batch
    for labels that do not exist or numbers that do not match.
    """
    indices = None if labels is None else model.labels(labels)
    if indices is not None and len(indices) != len(seeds):
        raise ValueError(f"{len(indices)} labels and {len(seeds)} seeds; one of each is needed for every sample")

    def drawn() -> Iterator[Samples]:
        for start in range(0, len(seeds), batch_size):
            part = slice(start, start + batch_size)
            some, these = list(seeds[part]), None if indices is None else indices[part]
            yield Samples(model.sample(these, some, **settings), some, these or [-1] * len(some))

    return drawn()
