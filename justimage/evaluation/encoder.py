"""Small convolutional networks that turn a sample into a few numbers, and back, in one, two or three dimensions."""

from collections.abc import Sequence
from itertools import pairwise
from math import prod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MOST_PER_AXIS = {1: 1024, 2: 64, 3: 32}  # longer axes are reduced by averaging first, so that the cost is bounded
MOST_POSITIONS = 512  # of the grid behind the first convolution
SMALLEST = 4  # the longest axis of the grid that is averaged over
GROUPS = 8
CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
POOLS = {1: F.adaptive_avg_pool1d, 2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}


def reduced(size: Sequence[int]) -> tuple[int, ...]:
    """The size at which a sample is looked at."""
    return tuple(min(length, MOST_PER_AXIS[len(size)]) for length in size)


def grids(size: Sequence[int]) -> list[tuple[int, ...]]:
    """The sizes of the grids inside, from the first convolution to the one that is averaged over."""
    stride = 1
    while prod(grid := _divided(size, stride)) > MOST_POSITIONS:
        stride *= 2
    found = [grid]
    while max(found[-1]) > SMALLEST:
        found.append(_divided(found[-1], 2))
    return found


def _divided(size: Sequence[int], stride: int) -> tuple[int, ...]:
    return tuple(-(-length // stride) for length in size)


def _convolution(inputs: int, outputs: int, dimension: int, stride: int = 1, side: int = 3) -> nn.Module:
    return CONVOLUTIONS[dimension](inputs, outputs, side, stride, side // 2)


class Residual(nn.Module):
    """x + conv(relu(norm(x)))."""

    def __init__(self, width: int, dimension: int):
        super().__init__()
        self.norm = nn.GroupNorm(GROUPS, width)
        self.convolution = _convolution(width, width, dimension)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, *S) -> (B, C, *S)."""
        return x + self.convolution(F.relu(self.norm(x)))


class Encoder(nn.Module):
    """Model values (B, C, *S) -> features (B, D): strided convolutions, an average over the grid, a linear map.

    Only what is added along the way is normalised, each sample by itself: so brightness and contrast reach the
    features. Long axes are reduced by averaging first, and the first stride is such that a small grid is left: a sample
    costs about the same whatever its size.
    """

    def __init__(self, channels: int, size: Sequence[int], width: int, features: int):
        super().__init__()
        self.dimension, self.reduced = len(size), reduced(size)
        first, *rest = grids(self.reduced)
        stride = 1
        while _divided(self.reduced, stride) != first:
            stride *= 2
        layers = [_convolution(channels, width, self.dimension, stride, max(3, 2 * stride - 1))]
        widths = [width * min(2**level, 4) for level in range(len(rest) + 1)]
        for narrow, wide in pairwise(widths):
            layers += [nn.ReLU(), _convolution(narrow, wide, self.dimension, 2), Residual(wide, self.dimension)]
        self.layers = nn.Sequential(*layers, nn.ReLU())
        self.out = nn.Linear(widths[-1], features)

    def reduce(self, x: Tensor) -> Tensor:
        """Model values (B, C, *S) -> the same averaged over cells, (B, C, *reduced)."""
        return x if x.shape[2:] == self.reduced else POOLS[self.dimension](x, self.reduced)

    def forward(self, x: Tensor) -> Tensor:
        """Model values (B, C, *S) -> features (B, D)."""
        x = self.reduce(x)
        if self.dimension == 2:
            x = x.contiguous(memory_format=torch.channels_last)
        return self.out(self.layers(x).flatten(2).mean(2))


class Decoder(nn.Module):
    """Features (B, D) -> the reduced sample (B, C, *reduced): the way back through the encoder's grids."""

    def __init__(self, channels: int, size: Sequence[int], width: int, features: int):
        super().__init__()
        dimension, self.reduced = len(size), reduced(size)
        self.grids = grids(self.reduced)[::-1]
        widths = [width * min(2**level, 4) for level in range(len(self.grids))][::-1]
        self.first = nn.Linear(features, widths[0] * prod(self.grids[0]))
        self.blocks = nn.ModuleList(Residual(each, dimension) for each in widths)
        self.steps = nn.ModuleList(_convolution(wide, narrow, dimension) for wide, narrow in pairwise(widths))
        self.out = _convolution(widths[-1], channels, dimension)

    def forward(self, features: Tensor) -> Tensor:
        """Features (B, D) -> (B, C, *reduced)."""
        x = self.first(features).unflatten(1, (-1, *self.grids[0]))
        x = self.blocks[0](x)
        for grid, step, block in zip(self.grids[1:], self.steps, self.blocks[1:], strict=True):
            x = block(step(F.interpolate(F.relu(x), grid)))
        return self.out(F.interpolate(F.relu(x), self.reduced))


def shifted(x: Tensor, generator: torch.Generator) -> Tensor:
    """Every sample (C, *S) of a batch moved by up to 1/14 of each axis, its edge repeated: few samples teach more."""
    most = [length // 14 for length in x.shape[2:]]
    padding = [each for length in reversed(most) for each in (length, length)]
    padded = F.pad(x, padding, mode="replicate")
    starts = [torch.randint(0, 2 * length + 1, (len(x),), generator=generator).tolist() for length in most]
    out = torch.empty_like(x)
    for row, wide, *where in zip(out, padded, *starts, strict=True):
        places = zip(where, x.shape[2:], strict=True)
        row.copy_(wide[(slice(None), *(slice(start, start + length) for start, length in places))])
    return out


def initialise(module: nn.Module, generator: torch.Generator) -> None:
    """Weights from the generator, so that each layer keeps the variance (arXiv 1502.01852); biases 0, norms 1."""
    with torch.no_grad():
        for name, parameter in sorted(module.named_parameters()):
            if parameter.ndim > 1:
                gain = 2 if parameter.ndim > 2 else 1  # convolutions are of what a ReLU has halved
                parameter.normal_(std=(gain / parameter[0].numel()) ** 0.5, generator=generator)
            else:
                parameter.fill_(1.0 if name.endswith("weight") else 0.0)
