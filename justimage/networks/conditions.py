"""What the network is told besides the state: the time, and the condition y.

A condition is a module y -> (vector (B, D), tokens (B, K, D)). The vector is added to the time embedding and
modulates every block; the tokens join the sequence at the start block. Another kind of condition (text, an
image, two labels) is another such module: blocks, samplers and the loop do not change.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class TimeEmbedding(nn.Module):
    """t (B,) in [0, 1] -> (B, D): 256 cosines and sines of t, then two linear layers."""

    def __init__(self, width: int, features: int = 256):
        super().__init__()
        self.features = features
        self.hidden = nn.Linear(features, width)
        self.out = nn.Linear(width, width)

    def forward(self, t: Tensor) -> Tensor:
        half = self.features // 2
        exponents = torch.arange(half, dtype=torch.float32, device=t.device) / half
        angles = t.float()[:, None] * 10000.0**-exponents  # (B, half)
        waves = torch.cat((angles.cos(), angles.sin()), -1)
        return self.out(F.silu(self.hidden(waves.to(self.hidden.weight.dtype))))


class ClassCondition(nn.Module):
    """Class labels y (B,) int -> a learned vector, and the same vector at K learned positions (section 4.3).

    The index `num_classes` is the null label. With num_classes = 0 there is no condition: the vector is zero,
    the tokens are the learned positions alone, and y is not looked at.
    """

    def __init__(self, num_classes: int, tokens: int, width: int):
        super().__init__()
        self.table = nn.Parameter(torch.empty(num_classes + 1, width)) if num_classes else None
        self.positions = nn.Parameter(torch.empty(tokens, width)) if tokens else None

    def forward(self, y: Tensor | None, like: Tensor) -> tuple[Tensor, Tensor | None]:
        """y (B,), like (B, D) the time embedding -> vector (B, D), tokens (B, K, D) or None."""
        if self.table is None:
            vector = torch.zeros_like(like)
        elif y is None:
            raise ValueError(f"this network is conditional and needs labels y; the null label is {len(self.table) - 1}")
        else:
            vector = F.embedding(y, self.table)
        tokens = None if self.positions is None else vector[:, None] + self.positions
        return vector, tokens
