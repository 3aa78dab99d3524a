"""Positions on a grid of N axes: fixed sine-cosine embeddings and axial rotary embeddings."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def coordinates(grid: Sequence[int]) -> np.ndarray:
    """The coordinates of every token of the grid in row-major order, (T, N) float64."""
    axes = np.meshgrid(*[np.arange(n, dtype=np.float64) for n in grid], indexing="ij")
    return np.stack(axes, -1).reshape(-1, len(grid))


def sincos_positions(grid: Sequence[int], width: int, base: float = 10000.0) -> Tensor:
    """Fixed sine-cosine embeddings, (T, width) float32; computed in float64 as the official code does.

    Each axis takes width / N features, sines then cosines, the last axis first: for images the columns fill
    the first half, as in MAE (arXiv 2111.06377) and therefore in released JiT weights. Features left over
    when 2 N does not divide the width are zero.
    """
    n = len(grid)
    frequencies = width // (2 * n)
    omega = base ** -(np.arange(frequencies, dtype=np.float64) / max(frequencies, 1))
    table = np.zeros((int(np.prod(grid)), width))
    for i, axis in enumerate(reversed(range(n))):
        angles = coordinates(grid)[:, axis, None] * omega  # (T, frequencies)
        start = 2 * frequencies * i
        table[:, start : start + 2 * frequencies] = np.concatenate([np.sin(angles), np.cos(angles)], 1)
    return torch.from_numpy(table).float()


def pairs_per_axis(axes: int, head_dim: int) -> int:
    """How many pairs of features each axis turns. ValueError where a head is too narrow to give every axis one."""
    pairs = head_dim // (2 * axes)
    if head_dim % 2 or pairs == 0:
        raise ValueError(
            f"rotary positions on {axes} axes need an even head width of at least {2 * axes}, not {head_dim}"
        )
    return pairs


def rotations(grid: Sequence[int], head_dim: int, base: float = 10000.0) -> Tensor:
    """Axial rotary embedding (arXiv 2104.09864): (cos, sin) for each pair of features, (T, head_dim / 2, 2).

    Each axis turns head_dim / (2 N) pairs, the first axis first. Pairs left over are not turned.
    Raises ValueError where a head is too narrow to give every axis one pair.
    """
    n = len(grid)
    pairs = pairs_per_axis(n, head_dim)
    omega = base ** -(np.arange(pairs, dtype=np.float64) / pairs)
    angles = np.zeros((int(np.prod(grid)), head_dim // 2))
    for axis in range(n):
        angles[:, pairs * axis : pairs * (axis + 1)] = coordinates(grid)[:, axis, None] * omega
    return torch.from_numpy(np.stack([np.cos(angles), np.sin(angles)], -1)).float()


def prepend_identity(turned: Tensor, count: int) -> Tensor:
    """Rotations (T, d / 2, 2) -> (count + T, d / 2, 2): tokens in front, having no place on the grid, stay."""
    unturned = torch.tensor([1.0, 0.0], device=turned.device).expand(count, turned.shape[1], 2)
    return torch.cat((unturned, turned))


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """Turn neighbouring pairs of features: x (B, H, T, D), rotation (T, D / 2, 2) -> (B, H, T, D) float32.

    One complex multiplication, eight times faster than its four real products where nothing fuses them; the products
    where torch.compile does, which generates no code for complex numbers. Reading every second number keeps it from
    using vectors: turning each pair over takes half the time of that on CPUs, but more in the backward pass.
    """
    pairs = x.float().unflatten(-1, (-1, 2))  # (B, H, T, D / 2, 2)
    if torch.compiler.is_compiling():
        cos, sin = rotation.unbind(-1)
        if torch.is_grad_enabled():
            a, b = pairs.unbind(-1)
            return torch.stack((a * cos - b * sin, b * cos + a * sin), -1).flatten(-2)
        return (pairs * cos[..., None] + pairs.flip(-1) * torch.stack((-sin, sin), -1)).flatten(-2)
    return torch.view_as_real(torch.view_as_complex(pairs) * torch.view_as_complex(rotation)).flatten(-2)
