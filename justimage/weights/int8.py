"""Linear maps in int8, for sampling on processors that multiply whole numbers several times as fast as float32.

Weights are rounded once, each output feature by its own largest weight; tokens at every evaluation, each by its own
largest feature. The sums are exact, in int32. What is not a linear map of a block stays in float32.
"""

import torch
from torch import Tensor, nn

from justimage.execution import blocks_of
from justimage.networks.layers import Modulation

LEVELS = 127.0  # of one sign


class Int8Linear(nn.Module):
    """A linear map (..., in) -> (..., out) whose products are int8, from one in float32."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        weight, level = rounded(linear.weight.detach().float())
        self.weight = nn.Parameter(weight, requires_grad=False)  # (out, in)
        self.level = nn.Parameter(level.T.contiguous(), requires_grad=False)  # (1, out)
        self.bias = None if linear.bias is None else nn.Parameter(linear.bias.detach().float(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        tokens, level = rounded(x.flatten(0, -2).float())
        sums = torch._int_mm(tokens, self.weight.T)  # pyright: ignore[reportPrivateImportUsage]
        y = sums.float() * level * self.level
        return (y if self.bias is None else y + self.bias).unflatten(0, x.shape[:-1]).to(x.dtype)


def rounded(rows: Tensor) -> tuple[Tensor, Tensor]:
    """(N, K) -> int8 of the same shape and (N, 1), the size of a level in each row; a row of zeros has a level of 1."""
    largest = rows.abs().amax(-1, keepdim=True)
    level = torch.where(largest > 0, largest / LEVELS, 1.0)
    return (rows / level).round().to(torch.int8), level


def use_int8(net: nn.Module) -> None:
    """Replace the linear maps of tokens in the blocks of a network, in place. It can then only sample.

    Maps of conditions (adaLN) are left alone: they have one row a sample. Raises ValueError where there are no blocks.
    """
    for block in blocks_of(net):
        for parent in [*block.modules()]:
            for name, child in [*parent.named_children()]:
                if isinstance(child, nn.Linear) and not isinstance(parent, Modulation):
                    setattr(parent, name, Int8Linear(child))
