"""Large batches on a CPU, a few samples at a time: the same predictions, sooner and in less memory.

A few samples of a large network fill a CPU as well as many do. With many, tensors on the way outgrow what the C library
keeps for the next ones: each gets fresh pages, which the system clears one by one.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from justimage.execution import precision_of
from justimage.process import Prediction
from justimage.sampling.ahead import Model

KEPT = 32 * 2**20 - 2**16  # bytes: glibc takes 32 MiB, its own header among them, from the system each time


def samples_at_once(model: Any, noise: Tensor) -> int | None:
    """How many samples of noise (B, C, *S) a model takes at once, a power of two; None: as many as there are.

    So it is on a CPU in float32, where it was measured, for networks with `largest` (justimage.networks.protocol).
    """
    net: Any = getattr(model, "net", None)
    largest = getattr(net, "largest", None)
    if largest is None or noise.device.type != "cpu" or precision_of(net) != "float32":
        return None
    fitting = KEPT // (4 * largest(noise.shape[2:]))
    return 1 << max(fitting.bit_length() - 1, 0)


def in_parts(model: Model, most: int | None) -> Model:
    """The model for batches of any length, which it is given `most` samples at a time."""
    if most is None:
        return model

    def together(z: Tensor, t: Tensor, y: Any) -> Prediction:
        if len(z) <= most:
            return model(z, t, y)

        def part(start: int) -> Prediction:
            return model(*pytree.tree_map_only(Tensor, lambda each: each[start : start + most], (z, t, y)))

        parts = [part(start) for start in range(0, len(z), most)]
        return pytree.tree_map(lambda *each: torch.cat(each), *parts)

    return together
