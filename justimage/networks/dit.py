"""DiT (Peebles and Xie, arXiv 2212.09748) on pixels: the plain transformer that the paper's ingredients start from.

adaLN-Zero, LayerNorm without parameters, GELU-MLP, fixed positions. No in-context tokens, rotary positions, qk-norm or
bottleneck: those are what JiT adds (Table 4, arXiv 2511.13720).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import cast

import torch
from torch import Tensor, nn

from justimage.networks.conditions import Conditions, Part, Value
from justimage.networks.layers import (
    MLP,
    Attention,
    Block,
    Head,
    TimeEmbedding,
    initialise_transformer,
)
from justimage.networks.limits import check_grid
from justimage.networks.patch import PatchEmbedding, grid_of, settle, unpatchify
from justimage.networks.position import sincos_positions


@dataclass(frozen=True)
class DiTConfig:
    """The shape of a DiT.

    Raises ValueError where the patch does not divide the size, the heads do not divide the width, a condition is
    tokens, or a number is not finite or out of its range (`networks.limits`).
    """

    size: tuple[int, ...] = (256, 256)
    """Length of each spatial axis (1, 2 or 3 axes). The network also runs on other sizes the patch divides."""
    patch: tuple[int, ...] = (16, 16)
    """Length of a patch along each axis; one number means the same along all of them."""
    channels: int = 3
    """Channels of the data."""
    num_classes: int = 1000
    """Number of class labels; the null label is one more. 0: unconditional; in a recipe: as many as the data have."""
    width: int = 768
    """Features of a token."""
    depth: int = 12
    """Number of blocks."""
    heads: int = 12
    """Attention heads."""
    mlp_ratio: float = 4.0
    """Hidden width of the feed-forward layer over the width."""
    conditions: tuple[Part, ...] = ()
    """What the network is conditioned on besides labels; in a recipe: what the data have."""

    def __post_init__(self) -> None:
        settle(self)
        if any(part.kind == "tokens" for part in self.conditions):
            raise ValueError("a DiT has no in-context tokens; it takes labels, vectors and planes")

    @property
    def grid(self) -> tuple[int, ...]:
        """Patches along each axis."""
        return grid_of(self.size, self.patch)


class DiT(nn.Module):
    """net(z, t, y) -> (B, C, *S), raw: z (B, C, *S), t (B,) in [0, 1], y a value of its condition, or labels (B,)."""

    Config = DiTConfig

    def __init__(self, config: DiTConfig):
        super().__init__()
        self.config = config

        def block() -> Block:
            attention = Attention(
                config.width, config.heads, qk_norm=False, in_float32=False, dropout=0.0, drop_scores=0.0
            )
            mlp = MLP(config.width, int(config.width * config.mlp_ratio), dropout=0.0)
            return Block(attention, mlp, (self._norm(), self._norm()), config.width)

        self.condition = Conditions(config.num_classes, config.conditions, 0, config.width)
        self.embedding = PatchEmbedding(config.patch, config.channels + self.condition.planes, 0, config.width)
        self.time = TimeEmbedding(config.width)
        self.blocks = nn.ModuleList(block() for _ in range(config.depth))
        self.head = Head(self._norm(), config.width, config.channels * prod(config.patch))
        self.register_buffer("positions", sincos_positions(config.grid, config.width), persistent=False)
        self.positions: Tensor
        self.initialise()

    def _norm(self) -> nn.Module:
        return nn.LayerNorm(self.config.width, eps=1e-6, elementwise_affine=False)

    def forward(self, z: Tensor, t: Tensor, y: Value | Tensor | None = None) -> Tensor:
        grid = grid_of(z.shape[2:], self.config.patch)
        own = grid == self.config.grid
        check_grid(grid, self.config.width)
        positions = self.positions if own else sincos_positions(grid, self.config.width).to(z.device)
        time = self.time(t)
        reach = self.condition(y, time)
        modulating = time if reach.vector is None else time + reach.vector  # (B, D)
        beside = z if reach.planes is None else torch.cat((z, reach.planes), 1)
        dtype = self.embedding.up.weight.dtype
        x = (self.embedding(beside.to(dtype)) + positions).to(dtype)  # (B, T, D)
        for block in self.blocks:
            x = block(x, modulating, None)
        return unpatchify(self.head(x, modulating), grid, self.config.patch)

    def largest(self, size: Sequence[int]) -> int:
        """Numbers in the largest tensor of one sample of a size: all tokens where they are widest."""
        numbers = self.config.channels * prod(self.config.patch)
        return prod(grid_of(size, self.config.patch)) * max(cast(Block, self.blocks[0]).widest, numbers)

    @property
    def axes(self) -> dict[str, tuple[str, int]]:
        """What axes of its tensors count (justimage.networks.protocol)."""
        return {
            "condition.table": ("classes", 0),
            "time.out.bias": ("shift", 0),
            "embedding.up.weight": ("patch", 1),
            "head.linear.weight": ("patch", 0),
            "head.linear.bias": ("patch", 0),
        }

    @torch.no_grad()
    def initialise(self, generator: torch.Generator | None = None) -> None:
        """Fill every parameter and buffer, as JiT does: Xavier-uniform maps, zero adaLN and head (section 3.2)."""
        if next(self.parameters()).device.type == "meta":
            return
        initialise_transformer(self, generator)
        self.positions.copy_(sincos_positions(self.config.grid, self.config.width))
