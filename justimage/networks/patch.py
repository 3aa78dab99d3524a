"""Patches of N spatial axes: cut, embed through a bottleneck, and put together again."""

from collections.abc import Sequence
from math import prod
from typing import Any

from torch import Tensor, nn

from justimage.networks.conditions import parts
from justimage.networks.limits import check_grid, check_limits, check_ratio


def grid_of(size: Sequence[int], patch: Sequence[int]) -> tuple[int, ...]:
    """How many patches lie along each axis. Raises ValueError where the patch does not divide the size."""
    if len(size) != len(patch) or any(s <= 0 or p <= 0 or s % p for s, p in zip(size, patch, strict=False)):
        shown = ["x".join(map(str, numbers)) for numbers in (size, patch)]
        raise ValueError(f"a patch of {shown[1]} does not divide a size of {shown[0]}; choose one that does")
    return tuple(s // p for s, p in zip(size, patch, strict=True))


def patchify(x: Tensor, patch: Sequence[int]) -> Tensor:
    """(B, C, *S) -> (B, T, C * prod(patch)): tokens in row-major order of the grid, features as (C, *patch)."""
    n = len(patch)
    grid = grid_of(x.shape[2:], patch)
    split = [length for pair in zip(grid, patch, strict=True) for length in pair]
    x = x.reshape(*x.shape[:2], *split)  # (B, C, g1, p1, g2, p2, ...)
    x = x.permute(0, *range(2, 2 + 2 * n, 2), 1, *range(3, 3 + 2 * n, 2))  # (B, g1, g2, ..., C, p1, p2, ...)
    return x.reshape(x.shape[0], prod(grid), -1)


def unpatchify(tokens: Tensor, grid: Sequence[int], patch: Sequence[int]) -> Tensor:
    """(B, T, C * prod(patch)) -> (B, C, *S): the inverse of `patchify`."""
    n = len(patch)
    x = tokens.reshape(tokens.shape[0], *grid, -1, *patch)  # (B, g1, g2, ..., C, p1, p2, ...)
    together = [axis for i in range(n) for axis in (1 + i, 2 + n + i)]
    x = x.permute(0, 1 + n, *together)  # (B, C, g1, p1, g2, p2, ...)
    return x.reshape(*x.shape[:2], *(g * p for g, p in zip(grid, patch, strict=True)))


def settle(config: Any) -> None:
    """Fill in what one number stands for in a frozen configuration, and refuse what no transformer on patches can be.

    Raises ValueError where the patch does not divide the size, the heads do not divide the width, or a number is not
    finite or out of its range.
    """
    for name, value in zip(("size", "patch"), same_axes(config.size, config.patch), strict=True):
        object.__setattr__(config, name, value)
    object.__setattr__(config, "conditions", parts(config.conditions))
    check_limits(config)
    check_grid(grid_of(config.size, config.patch), config.width)
    if config.width % config.heads:
        raise ValueError(f"{config.heads} heads do not divide a width of {config.width}")
    check_ratio(config.width, config.mlp_ratio)


def same_axes(size: Sequence[int], patch: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Size and patch with as many numbers each: where one has a single number, it serves for all axes of the other."""
    axes = max(len(size), len(patch))
    return tuple(size) * (axes if len(size) == 1 else 1), tuple(patch) * (axes if len(patch) == 1 else 1)


class PatchEmbedding(nn.Module):
    """Patches to tokens by two linear maps with a narrow middle (section 4.2 and Fig. 4, arXiv 2511.13720).

    (B, C, *S) -> (B, T, width). A bottleneck of 0 embeds with one linear map.
    """

    def __init__(self, patch: tuple[int, ...], channels: int, bottleneck: int, width: int):
        super().__init__()
        self.patch = patch
        features = channels * prod(patch)
        self.down = nn.Linear(features, bottleneck, bias=False) if bottleneck else nn.Identity()
        self.up = nn.Linear(bottleneck or features, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.down(patchify(x, self.patch)))
