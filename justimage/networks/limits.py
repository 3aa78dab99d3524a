"""How large the numbers of a network's configuration may be: far above any real network, and small enough to refuse.

A configuration comes from a command line or from a file that somebody else wrote. What it asks for is checked before
anything of that size is made.
"""

from collections.abc import Sequence
from math import inf, prod
from typing import Any

# Field -> the smallest and the largest value.
LIMITS: dict[str, tuple[int, int]] = {
    "channels": (1, 2**16),
    "num_classes": (0, 10_000_000),
    "width": (1, 2**16),
    "depth": (1, 512),
    "heads": (1, 2**12),
    "bottleneck": (0, 2**16),
    "context_tokens": (0, 2**14),
}
MOST_NUMBERS = 2**30  # of one sample, over all channels: 4 GiB in float32
MOST_PATCHES = 2**20
MOST_POSITIONS = 2**27  # patches times width: the table of positions in float64 takes a GiB
MOST_FEATURES = 2**20  # of a condition, or of each of its tokens
MOST_TOKENS = 2**16  # of a condition
WIDEST_MLP = 64.0  # hidden width of a feed-forward layer over the width


def check_limits(config: Any) -> None:
    """Raises ValueError, naming the field, where a number of a network's configuration is out of its range."""
    for name, (least, most) in LIMITS.items():
        value = getattr(config, name, least)
        if not least <= value <= most:
            raise ValueError(f"{name} is {value}; it must be at least {least}, and at most {most:,}")
    if not 1 <= len(config.size) <= 3 or not all(length >= 1 for length in config.size):
        raise ValueError(
            f"size has {len(config.size)} axes: {config.size}; it must have 1, 2 or 3, each at least 1 long"
        )
    numbers = config.channels * prod(config.size)
    if numbers > MOST_NUMBERS:
        raise ValueError(
            f"a sample of size {config.size} with {config.channels} channels has {numbers:,} numbers; at most "
            f"{MOST_NUMBERS:,} are possible"
        )


def check_grid(grid: Sequence[int], width: int) -> None:
    """Raises ValueError where a grid has too many patches for attention, or for the table of their positions."""
    patches = prod(grid)
    if patches > MOST_PATCHES or patches * width > MOST_POSITIONS:
        raise ValueError(
            f"the grid {tuple(grid)} has {patches:,} patches of {width} features; at most {MOST_PATCHES:,} patches, "
            f"and {MOST_POSITIONS:,} features over all of them, are possible: choose a larger patch or a smaller size"
        )


def check_share(name: str, value: float) -> None:
    """Raises ValueError where a rate of dropout is not a number from 0 to below 1."""
    if not 0 <= value < 1:
        raise ValueError(f"{name} is {value}; it must be at least 0 and below 1")


def check_ratio(width: int, ratio: float) -> None:
    """Raises ValueError where a feed-forward layer would have no feature, or absurdly many."""
    if not (0 < ratio < inf and int(width * ratio * 2 / 3) >= 1 and ratio <= WIDEST_MLP):
        raise ValueError(
            f"mlp_ratio is {ratio}; it must be above 0 and at most {WIDEST_MLP:g}, and leave the feed-forward layer at "
            f"least one feature of a width of {width}"
        )
