"""Randomness as a function of a seed and a position, never of what was drawn before.

Whatever a training run draws for the sample at position p is a function of (seed, purpose, p): so the run is the
same for any number of processes, and resuming it restores nothing but a number. Draws for different purposes are
independent.
"""

from collections.abc import Iterable, Sequence
from enum import IntEnum

import numpy as np
import torch
from torch import Tensor


class Purpose(IntEnum):
    """What a draw is for."""

    WEIGHTS = 0
    ORDER = 1
    FLIP = 2
    TIME = 3
    NOISE = 4
    DROP = 5
    DROPOUT = 6
    SHARDS = 7
    PLACES = 8
    HELD_OUT = 9
    GRID = 10


def mix(h: np.ndarray) -> np.ndarray:
    """One round of splitmix64 (Steele, Lea, Flood, OOPSLA 2014): a bijection of 64-bit numbers that scatters them."""
    h = h + np.uint64(0x9E3779B97F4A7C15)
    h = (h ^ (h >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    h = (h ^ (h >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return h ^ (h >> np.uint64(31))


def keys(seed: int, purpose: Purpose, positions: Iterable[int] | np.ndarray) -> np.ndarray:
    """A 64-bit key for each position, (B,) uint64."""
    h = mix(np.array([seed % 2**64], dtype=np.uint64))
    h = mix(h ^ np.uint64(purpose))
    if isinstance(positions, range):  # the usual case, without a step through Python for each
        numbers = np.arange(positions.start, positions.stop, positions.step, dtype=np.uint64)
    else:
        numbers = np.asarray(positions if isinstance(positions, np.ndarray) else list(positions), dtype=np.uint64)
    return mix(h ^ numbers)


def key(seed: int, purpose: Purpose, position: int) -> int:
    """One key, below 2**63, as seeds of generators must be."""
    return int(keys(seed, purpose, [position])[0] >> np.uint64(1))


def uniforms(seed: int, purpose: Purpose, positions: Iterable[int]) -> Tensor:
    """One number in (0, 1) for each position, (B,) float64."""
    bits = keys(seed, purpose, positions) >> np.uint64(11)
    return torch.from_numpy((bits.astype(np.float64) + 0.5) * 2.0**-53)


def normals(seed: int, purpose: Purpose, positions: Iterable[int]) -> Tensor:
    """One standard normal number for each position, (B,) float32."""
    return torch.special.ndtri(uniforms(seed, purpose, positions)).float()


SEEDS = 2**32  # so many are different: torch's generator on a CPU takes 32 bits of a seed


def noise(seeds: Iterable[int], shape: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
    """Standard normal noise (B, *shape) float32, row k from its own generator with seeds[k] on the device."""
    seeds = list(seeds)
    out = torch.empty(len(seeds), *shape, device=device)
    generator = torch.Generator(device)
    for seed, row in zip(seeds, out.unbind(), strict=True):
        generator.manual_seed(seed)
        row.normal_(generator=generator)
    return out


def training_noise(seed: int, positions: Iterable[int], shape: Sequence[int], device: torch.device) -> Tensor:
    """The noise of the samples at these positions of a run, (B, *shape) float32."""
    return noise((keys(seed, Purpose.NOISE, positions) >> np.uint64(1)).tolist(), shape, device)
