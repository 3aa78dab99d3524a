"""JiT, "Just image Transformers" (arXiv 2511.13720): a plain Vision Transformer on large patches of raw data.

    patches -> bottleneck embedding + fixed positions -> blocks (adaLN-Zero, qk-norm, rotary, SwiGLU)
            -> head -> patches

In-context class tokens join the sequence at a start block and leave it before the head. Every ingredient of
the paper's ladder (Table 4) is a switch of `JiTConfig`; every size (Table 9) is a row of `VARIANTS`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, cast

import torch
from torch import Tensor, nn

from justimage.networks.conditions import TOLD, Conditions, Part, Reach, Value, labels_as_value
from justimage.networks.layers import (
    MLP,
    Attention,
    Block,
    Classifier,
    Head,
    RMSNorm,
    SwiGLU,
    TimeEmbedding,
    initialise_transformer,
)
from justimage.networks.limits import check_grid, check_share
from justimage.networks.patch import PatchEmbedding, grid_of, settle, unpatchify
from justimage.networks.position import pairs_per_axis, prepend_identity, rotations, sincos_positions


@dataclass(frozen=True)
class JiTConfig:
    """The shape of a JiT.

    Raises ValueError where the patch does not divide the size, the heads do not divide the width, the start block is
    not one of the blocks or comes before a classifier, no block comes after the classifier, or a number is not finite
    or out of its range (`networks.limits`).
    """

    size: tuple[int, ...] = (256, 256)
    """Length of each spatial axis (1, 2 or 3 axes); one number is the length of all axes that the patch has. The
    network also runs on other sizes that the patch divides."""
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
    bottleneck: int = 128
    """Width of the low-rank patch embedding (Fig. 4). 0: one linear map, no bottleneck."""
    context_tokens: int = 32
    """In-context class tokens (Table 4). 0: none."""
    context_start: int = 4
    """The block that first sees the in-context tokens."""
    dropout: float = 0.0
    """Dropout after attention and inside the feed-forward layer, in the middle half of the blocks."""
    dropout_scores: float = 0.0
    """Dropout of attention probabilities, in the middle half of the blocks."""
    mlp_ratio: float = 4.0
    """Hidden width of the feed-forward layer over the width (SwiGLU takes two thirds of it)."""
    rotary: bool = True
    """Axial rotary positions in attention (Table 4)."""
    qk_norm: bool = True
    """RMSNorm of queries and keys, per head (Table 4)."""
    rms_norm: bool = True
    """RMSNorm; otherwise LayerNorm (footnote 5)."""
    swiglu: bool = True
    """SwiGLU feed-forward; otherwise a GELU-MLP (footnote 5)."""
    float32_attention: bool = False
    """Attention in float32 whatever the precision around it, as in the official code."""
    conditions: tuple[Part, ...] = ()
    """What the network is conditioned on besides labels; in a recipe: what the data have."""
    classifier_after: int = 0
    """Blocks before an auxiliary classifier, which do not see the condition (planes stand beside the patches from the
    start); 4 in B and 8 in L (appendix B.3). 0: no classifier."""

    def __post_init__(self) -> None:
        settle(self)
        check_share("dropout", self.dropout)
        check_share("dropout_scores", self.dropout_scores)
        if self.rotary:
            pairs_per_axis(len(self.size), self.width // self.heads)  # raises where a head is too narrow for the axes
        joining = self.context_tokens or any(part.kind == "tokens" for part in self.conditions)
        if joining and not 0 <= self.context_start < self.depth:
            raise ValueError(f"context_start is {self.context_start}; the blocks are 0 to {self.depth - 1}")
        if not 0 <= self.classifier_after < self.depth:
            raise ValueError(
                f"classifier_after is {self.classifier_after}; a classifier stands before one of the blocks 1 to "
                f"{self.depth - 1}, and 0 is none"
            )
        # Whether tokens join or not: a condition of one's own may have some that are not known here.
        if self.classifier_after and self.context_start < self.classifier_after:
            raise ValueError(
                f"context_start is {self.context_start}, and the {self.classifier_after} blocks before the classifier "
                f"must not see the condition; set it to {self.classifier_after} or more"
            )

    @property
    def grid(self) -> tuple[int, ...]:
        """Patches along each axis."""
        return grid_of(self.size, self.patch)

    @classmethod
    def variant(cls, name: str, size: int | tuple[int, ...] = (256, 256), **overrides: Any) -> "JiTConfig":
        """A size of the paper at any patch: variant("B/16"), variant("L/4", size=(64, 64), num_classes=10).

        The name is one of VARIANTS and the patch, as one number for all axes ("B/16") or one for each
        ("B/8x16"). size is a tuple, or one number for a square image. Raises ValueError for an unknown name.
        """
        letters, _, patch = name.partition("/")
        lengths = patch.split("x")
        if letters not in VARIANTS or not all(length.isdigit() for length in lengths):
            names = ", ".join(VARIANTS)
            raise ValueError(f"no variant is called {name!r}; write SIZE/PATCH, as in B/16, with SIZE one of {names}")
        size = (size, size) if isinstance(size, int) else tuple(size)
        patches = tuple(int(length) for length in lengths)
        patches = patches * len(size) if len(patches) == 1 else patches
        row = dict(zip(VARIANT_COLUMNS, VARIANTS[letters], strict=True))
        return cls(**{"size": size, "patch": patches, **row, **overrides})


# Table 9 of arXiv 2511.13720 for B to G; the rows above are ours, for laptops.
VARIANT_COLUMNS = ("depth", "width", "heads", "bottleneck", "dropout", "context_tokens", "context_start")
VARIANTS = {
    "XS": (6, 192, 3, 64, 0.0, 4, 2),
    "S": (12, 384, 6, 128, 0.0, 16, 4),
    "B": (12, 768, 12, 128, 0.0, 32, 4),
    "L": (24, 1024, 16, 128, 0.0, 32, 8),
    "H": (32, 1280, 16, 256, 0.2, 32, 10),
    "G": (40, 1664, 16, 256, 0.2, 32, 10),
}


class JiT(nn.Module):
    """net(z, t, y) -> (B, C, *S), raw: z (B, C, *S), t (B,) in [0, 1], y a value of its condition, or labels (B,).

    S may be any size that the patch divides; `config.size` is the one it is meant for. condition: one of your own
    instead of what config says, with the methods of `networks.conditions.Conditions`. With a classifier and in training
    mode it gives (raw, {"logits": (B, num_classes)}).

    Raises ValueError for a classifier without classes.
    """

    Config = JiTConfig

    def __init__(self, config: JiTConfig, condition: Any = None):
        super().__init__()
        if config.classifier_after and not config.num_classes:
            raise ValueError(
                f"classifier_after is {config.classifier_after}, but num_classes is 0: a classifier needs data with "
                "labels; without them classifier_after must be 0"
            )
        self.config = config

        def norm() -> nn.Module:
            return RMSNorm(config.width) if config.rms_norm else nn.LayerNorm(config.width, eps=1e-6)

        def block(i: int) -> Block:
            middle = config.depth // 4 <= i < config.depth // 4 * 3
            dropout, drop_scores = (config.dropout, config.dropout_scores) if middle else (0.0, 0.0)
            attention = Attention(
                config.width,
                config.heads,
                qk_norm=config.qk_norm,
                in_float32=config.float32_attention,
                dropout=dropout,
                drop_scores=drop_scores,
            )
            feed_forward = SwiGLU if config.swiglu else MLP
            mlp = feed_forward(config.width, int(config.width * config.mlp_ratio), dropout=dropout)
            return Block(attention, mlp, (norm(), norm()), config.width)

        self.embedding = PatchEmbedding(config.patch, config.channels, config.bottleneck, config.width)
        self.time = TimeEmbedding(config.width)
        self.condition = condition or Conditions(
            config.num_classes, config.conditions, config.context_tokens, config.width
        )
        planes = getattr(self.condition, "planes", 0)
        self.planes = PatchEmbedding(config.patch, planes, config.bottleneck, config.width) if planes else None
        self.blocks = nn.ModuleList(block(i) for i in range(config.depth))
        self.head = Head(norm(), config.width, config.channels * prod(config.patch))
        self.classifier = Classifier(config.width, config.num_classes) if config.classifier_after else None
        self.beside = ("logits",) if config.classifier_after else ()
        # Kept in the weights although fixed: a released checkpoint's table is used, and written again, bit for bit.
        self.register_buffer("positions", torch.empty(prod(config.grid), config.width))
        self.positions: Tensor
        # Not in the weights, so filled at once, even for a network on the meta device that adopts weights.
        self.register_buffer("rotations", self._tables(config.grid)[1], persistent=False)
        self.rotations: Tensor | None
        self.initialise()

    def forward(
        self, z: Tensor, t: Tensor, y: Value | Tensor | None = None
    ) -> Tensor | tuple[Tensor, dict[str, Tensor]]:
        grid = grid_of(z.shape[2:], self.config.patch)
        patches = prod(grid)
        positions, all_rotations = self._places(grid)
        rotation = None if all_rotations is None else all_rotations[-patches:]

        dtype = self.embedding.up.weight.dtype  # that of the residual stream: float32 even under autocast
        time, told, given = self._timed(t, labels_as_value(y))
        unconditioned, modulating, reach = self._conditioned(time, given)
        x = self.embedding(z.to(dtype)) + positions  # (B, T, D)
        if self.planes is not None:
            assert reach.planes is not None
            x = x + self.planes(reach.planes.to(dtype))
        x = x.to(dtype)

        mask, beside = None, {}
        for i, block in enumerate(self.blocks):
            if self.training and self.classifier is not None and i == self.config.classifier_after:
                beside["logits"] = self.classifier(x)
            if reach.tokens is not None and i == self.config.context_start:
                x = torch.cat((reach.tokens.to(x.dtype), x), 1)  # (B, K + T, D)
                rotation = None if all_rotations is None else all_rotations[-x.shape[1] :]
                if reach.mask is not None:
                    mask = nn.functional.pad(reach.mask, (0, patches), value=True)[:, None, None]  # (B, 1, 1, K + T)
            x = block(x, unconditioned if i < self.config.classifier_after else modulating, rotation, mask, told[i])
        raw = unpatchify(self.head(x[:, -patches:], modulating, told[len(self.blocks)]), grid, self.config.patch)
        return (raw, beside) if beside else raw

    def _timed(self, t: Tensor, y: Value) -> tuple[Tensor, Sequence[Tensor | None], Value]:
        """The embedded times (B, D); the modulations of blocks and head, where `told` gave them; and the rest of y."""
        if TOLD not in y:
            return self.time(t), (None,) * (len(self.blocks) + 1), y
        *told, time = y[TOLD].split([*self._modulated(), self.config.width], -1)
        return time, told, {name: each for name, each in y.items() if name != TOLD}

    def _conditioned(self, time: Tensor, y: Value) -> tuple[Tensor, Tensor, Reach]:
        """What modulates blocks before and after a classifier, both (B, D), and all that the condition comes to."""
        reach = self.condition(y, time)
        modulating = time if reach.vector is None else time + reach.vector
        return time.to(modulating.dtype), modulating, reach  # of one type: compiled blocks are compiled for it once

    def _modulated(self) -> list[int]:
        """Numbers that each block, and the head, is modulated by."""
        return [each.modulation.linear.out_features for each in (*self.blocks, self.head)]  # type: ignore[union-attr]

    def told(self, t: Tensor, y: Value | Tensor | None = None) -> Tensor:
        """All modulations at the times t (B,) for y, and the embedded times, (B, N); `forward` takes them as y[TOLD].

        They depend on time and condition alone, so that sampling has those of a whole time grid from one product.
        """
        time = self.time(t)
        before, after, _ = self._conditioned(time, labels_as_value(y))
        found = [
            each.modulation.flat(before if i < self.config.classifier_after else after)  # type: ignore[union-attr]
            for i, each in enumerate((*self.blocks, self.head))
        ]
        return torch.cat((*found, time), -1)

    def largest(self, size: Sequence[int]) -> int:
        """Numbers in the largest tensor of one sample of a size: all tokens where they are widest."""
        tokens = prod(grid_of(size, self.config.patch)) + getattr(self.condition, "longest", 0)
        numbers = self.config.channels * prod(self.config.patch)
        return tokens * max(cast(Block, self.blocks[0]).widest, numbers)

    def _places(self, grid: tuple[int, ...]) -> tuple[Tensor, Tensor | None]:
        """Positions (T, D) and rotations (K + T, d / 2, 2) of a grid; the network's own are kept in buffers."""
        if grid == self.config.grid:
            return self.positions, self.rotations
        check_grid(grid, self.config.width)
        positions, turned = self._tables(grid)
        device = self.positions.device
        return positions.to(device), None if turned is None else turned.to(device)

    def _tables(self, grid: tuple[int, ...]) -> tuple[Tensor, Tensor | None]:
        config = self.config
        positions = sincos_positions(grid, config.width)
        if not config.rotary:
            return positions, None
        in_front = getattr(self.condition, "longest", 0)  # tokens that may stand before the patches
        return positions, prepend_identity(rotations(grid, config.width // config.heads), in_front)

    @torch.no_grad()
    def initialise(self, generator: torch.Generator | None = None) -> None:
        """Fill every parameter and buffer.

        | what                                             | with                                   |
        |--------------------------------------------------|----------------------------------------|
        | linear maps                                      | Xavier-uniform weight, zero bias       |
        | conditions' tables and positions, time MLP       | normal, standard deviation 0.02        |
        | all adaLN maps, the head's linear map            | zero: blocks are the identity, net = 0 |
        | norms                                            | weight 1, bias 0                       |
        | positions, rotations                             | their fixed tables                     |
        """
        if self.positions.device.type == "meta":
            return
        initialise_transformer(self, generator)
        for buffer, table in zip((self.positions, self.rotations), self._tables(self.config.grid), strict=True):
            if buffer is not None and table is not None:
                buffer.copy_(table)

    @property
    def axes(self) -> dict[str, tuple[str, int]]:
        """What axes of its tensors count (justimage.networks.protocol)."""
        first = "down" if self.config.bottleneck else "up"
        return {
            "condition.table": ("classes", 0),
            "condition.positions": ("shift", 1),
            "time.out.bias": ("shift", 0),
            "classifier.linear.weight": ("classes", 0),
            "classifier.linear.bias": ("classes", 0),
            f"embedding.{first}.weight": ("patch", 1),
            f"planes.{first}.weight": ("planes", 1),
            "head.linear.weight": ("patch", 0),
            "head.linear.bias": ("patch", 0),
        }

    @property
    def num_parameters(self) -> int:
        """Trainable parameters (the fixed positions are not)."""
        return sum(p.numel() for p in self.parameters())
