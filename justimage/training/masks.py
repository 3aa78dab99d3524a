"""Dropout masks as a function of (seed, position of the sample in the run, module), like every other draw."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

from justimage.execution import to_device
from justimage.randomness import Purpose, keys, mix


def keyed_dropouts(net: nn.Module) -> list[nn.Module]:
    """The modules of a network that make their masks from `sample_keys` (justimage.networks.protocol)."""
    return [module for module in net.modules() if hasattr(module, "sample_keys") and getattr(module, "p", 1) > 0]


def unkeyed_dropouts(net: nn.Module) -> bool:
    """Whether a network has plain dropout, whose masks come from torch's generator: in networks of the user's own."""
    return any(
        isinstance(each, nn.Dropout) and each.p > 0 and not hasattr(each, "sample_keys") for each in net.modules()
    )


@contextmanager
def masks_of(modules: Sequence[nn.Module], seed: int, positions: range, device: torch.device) -> Iterator[None]:
    """In the block, which holds forward and backward pass, each module has a key for each of these samples."""
    if not modules:
        yield
        return
    samples = keys(seed, Purpose.DROPOUT, positions)  # (B,)
    places = mix(np.arange(len(modules), dtype=np.uint64))  # (M,)
    words = mix(samples ^ places[:, None]).view(np.int32).reshape(len(modules), len(positions), 2)
    for module, own in zip(modules, to_device(torch.from_numpy(words), device), strict=True):
        module.sample_keys = own  # (B, 2)
    try:
        yield
    finally:
        for module in modules:
            module.sample_keys = None  # pyright: ignore[reportArgumentType]
