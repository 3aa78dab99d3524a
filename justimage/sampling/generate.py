"""Generation is an iterable: seeds in, batches of samples out. Saving and scoring consume the same one."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Unpack

from torch import Tensor

from justimage.denoiser import ConditionValues, Denoiser, Labels
from justimage.samplers import Grid, Sampling, Settings, Step, with_settings
from justimage.sampling.draw import check_samples


class Samples(NamedTuple):
    """Raw samples (B, C, *S) with the seed and the label (-1: none) of each."""

    raw: Tensor
    seeds: list[int]
    labels: list[int]


def generate(
    model: Denoiser,
    seeds: Sequence[int],
    labels: Labels | None = None,
    *,
    condition: ConditionValues | None = None,
    batch_size: int = 16,
    size: Sequence[int] | None = None,
    sampling: Sampling | None = None,
    step: Step | None = None,
    grid: Grid | None = None,
    **settings: Unpack[Settings],
) -> Iterator[Samples]:
    """Samples for all seeds, a batch at a time. Sample k depends on its seed and condition, not on the batch size.

    labels: one for each seed, or None. condition: the other parts, one entry for each seed. The rest as for
    `Denoiser.sample`. Raises ValueError before the first batch for labels and settings that do not exist, or numbers
    that do not match.
    """
    indices = None if labels is None else model.labels(labels)
    if indices is not None and len(indices) != len(seeds):
        raise ValueError(f"{len(indices)} labels and {len(seeds)} seeds; one of each is needed for every sample")
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
    given: dict[str, Any] = {**(condition or {})}
    others = {name: values for name, values in given.items() if name != "labels"}
    given |= model.entries(others, size or model.config.size)
    for name, values in given.items():
        if len(values) != len(seeds):
            raise ValueError(f"{len(values)} entries of {name} and {len(seeds)} seeds; every sample needs one of each")
    with_settings(sampling or model.sampling, settings)
    check_samples(min(batch_size, len(seeds)), (model.config.channels, *(size or model.config.size)), model.device)

    def batches() -> Iterator[Samples]:
        for start in range(0, len(seeds), batch_size):
            part = slice(start, start + batch_size)
            some, these = list(seeds[part]), None if indices is None else indices[part]
            raw = model.sample(
                these,
                some,
                condition={name: values[part] for name, values in given.items()},
                size=size,
                sampling=sampling,
                step=step,
                grid=grid,
                **settings,
            )
            yield Samples(raw, some, these or [-1] * len(some))

    return batches()
