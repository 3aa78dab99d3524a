"""The paper's toy network (section 3.3 and Fig. 2, arXiv 2511.13720): an MLP on vectors, its layers ReLU, 256 wide.

The paper does not say how the network learns the time, nor what counts as a layer. Here t is one more input, and five
linear maps are five layers: four of them with a ReLU.
"""

from dataclasses import dataclass
from itertools import pairwise
from math import prod

import torch
from torch import Tensor, nn

from justimage.networks.conditions import Conditions, Part, Value, parts
from justimage.networks.limits import check_limits


@dataclass(frozen=True)
class MLPConfig:
    """The shape of the toy network. Raises ValueError for impossible sizes, and for tokens and planes."""

    size: tuple[int, ...] = (512,)
    """Length of each spatial axis; a vector of D numbers has the size (D,)."""
    channels: int = 1
    """Channels of the data."""
    num_classes: int = 0
    """Number of class labels; 0: unconditional; in a recipe: as many as the data have."""
    width: int = 256
    """Features of a hidden layer."""
    depth: int = 5
    """Linear maps, with a ReLU between them."""
    conditions: tuple[Part, ...] = ()
    """What the network is conditioned on besides labels; in a recipe: what the data have."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "conditions", parts(self.conditions))
        check_limits(self)
        if self.depth < 2:
            raise ValueError(f"depth is {self.depth}; it must be at least 2")
        if any(part.kind != "vector" for part in self.conditions):
            raise ValueError(
                "this network has no sequence and no grid; it takes labels and vectors, not tokens or planes"
            )


class ToyMLP(nn.Module):
    """net(z, t, y) -> (B, C, *S), raw: z (B, C, *S) of config.size, t (B,); y labels (B,), a value, or None."""

    Config = MLPConfig

    def __init__(self, config: MLPConfig):
        super().__init__()
        self.config = config
        numbers = config.channels * prod(config.size)
        self.condition = Conditions(config.num_classes, config.conditions, 0, config.width)
        widths = [numbers + 1, *[config.width] * (config.depth - 1), numbers]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.initialise()

    def forward(self, z: Tensor, t: Tensor, y: Value | Tensor | None = None) -> Tensor:
        if tuple(z.shape[2:]) != tuple(self.config.size):
            raise ValueError(f"this network is for the size {self.config.size} alone, not for {tuple(z.shape[2:])}")
        first, *inner, last = self.layers
        dtype = next(self.parameters()).dtype
        x = first(torch.cat((z.flatten(1), t[:, None]), 1).to(dtype))  # (B, width)
        vector = self.condition(y, x).vector
        x = torch.relu(x if vector is None else x + vector)
        for layer in inner:
            x = torch.relu(layer(x))
        return last(x).view(z.shape)

    @property
    def axes(self) -> dict[str, tuple[str, int]]:
        """What axes of its tensors count (justimage.networks.protocol)."""
        return {"condition.table": ("classes", 0), "layers.0.bias": ("shift", 0)}

    @torch.no_grad()
    def initialise(self, generator: torch.Generator | None = None) -> None:
        """Fill every parameter: linear maps as for ReLU (He et al., arXiv 1502.01852), the rest as conditions do."""
        if next(self.parameters()).device.type == "meta":
            return
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
                nn.init.zeros_(module.bias)
        self.condition.initialise(generator)
