"""Low-rank adapters: LoRA (Hu et al., arXiv 2106.09685), functions over an unmodified network.

    y = W x + b + scale up (down x)

W (out, in) and b are frozen; down (rank, in) and up (out, rank) are trained (Eq. 3 there). `up` starts at zero, so that
the network begins as the one whose weights it has. All other names of the state dict stay those of the plain network,
which `merge` makes of it again, to be saved or run.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import partial
from math import inf

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from justimage.randomness import Purpose, key

DOWN, UP = "lora_down", "lora_up"


@dataclass(frozen=True)
class LoRA:
    """Fine-tuning with low-rank adapters (arXiv 2106.09685) beside frozen weights.

    Raises ValueError for a rank below 0, a scale that is not a number above 0, or no parts.
    """

    rank: int = 0
    """Rank of the adapters; 8 is usual. 0: off, all weights are trained."""
    scale: float = 1.0
    """Factor of what the adapters add; elsewhere alpha / rank."""
    parts: tuple[str, ...] = ("attention.qkv", "attention.out", "mlp.up", "mlp.out", "modulation.linear")
    """Which linear maps get adapters, by the end of their names. Rows of classes, and tensors that the weights do not
    have, are trained as they are; all else is frozen."""

    def __post_init__(self) -> None:
        if self.rank < 0:
            raise ValueError(f"lora.rank is {self.rank}; it must be at least 0, which is off")
        if not 0 < self.scale < inf:
            raise ValueError(f"lora.scale is {self.scale}; it must be a number above 0")
        if not self.parts:
            raise ValueError("lora.parts is empty; name the linear maps that get adapters, by the end of their names")


def adapted(net: nn.Module) -> dict[str, nn.Linear]:
    """The linear maps that have adapters, by name."""
    return {name: each for name, each in net.named_modules() if isinstance(each, nn.Linear) and hasattr(each, DOWN)}


def freeze(net: nn.Module, anew: Collection[str] = ()) -> None:
    """Freeze what a network has, but its rows of classes and the tensors named `anew`."""
    classes = {name for name, (what, _) in getattr(net, "axes", {}).items() if what == "classes"}
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(name in classes or name in anew)


@torch.no_grad()
def add_adapters(net: nn.Module, lora: LoRA, seed: int) -> None:
    """Give linear maps their adapters, in place: `down` normal with deviation 1 / sqrt(in), from the seed; `up` zero.

    Raises ValueError where a part names no linear map, or the rank is not below what a map has already.
    """
    maps = {name: each for name, each in net.named_modules() if isinstance(each, nn.Linear)}
    chosen = {name: each for name, each in maps.items() if any(f".{name}".endswith(f".{part}") for part in lora.parts)}
    for part in lora.parts:
        if not any(f".{name}".endswith(f".{part}") for name in maps):
            ends = dict.fromkeys(".".join(name.split(".")[-2:]) for name in maps)
            raise ValueError(f"lora.parts: no linear map is called {part!r}; there are {', '.join(ends)}")
    generator = torch.Generator().manual_seed(key(seed, Purpose.WEIGHTS, 1))
    for name, each in chosen.items():
        if lora.rank >= min(each.in_features, each.out_features):
            raise ValueError(
                f"lora.rank is {lora.rank}, and {name} is {each.out_features} x {each.in_features}: it must be lower"
            )
        down = torch.randn(lora.rank, each.in_features, generator=generator) / each.in_features**0.5
        device = each.weight.device
        each.register_parameter(DOWN, nn.Parameter(down.to(device)))
        each.register_parameter(UP, nn.Parameter(torch.zeros(each.out_features, lora.rank, device=device)))
        each.forward = partial(_forward, each, lora.scale)


def _forward(linear: nn.Linear, scale: float, input: Tensor) -> Tensor:
    """(..., in) -> (..., out)."""
    added = F.linear(F.linear(input, getattr(linear, DOWN)), getattr(linear, UP))
    return F.linear(input, linear.weight, linear.bias) + scale * added


def scales_of(net: nn.Module) -> dict[str, float]:
    """The scale of the adapters of each linear map that has them, by its name."""
    return {name: each.forward.args[1] for name, each in adapted(net).items()}  # type: ignore[union-attr]


@torch.no_grad()
def low_rank(scales: Mapping[str, float], tensors: Mapping[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """What is added to each weight, by its name, as (up, down) whose product it is; the scale is in `up`.

    tensors: the network's, or averages of them, under its names.
    """
    return {
        f"{name}.weight": (scale * tensors[f"{name}.{UP}"], tensors[f"{name}.{DOWN}"]) for name, scale in scales.items()
    }


@torch.no_grad()
def merged(scales: Mapping[str, float], tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of the plain network, W + scale up down in place of W; as it is where there are no adapters."""
    plain = {name: each for name, each in tensors.items() if not is_adapter(name)}
    return plain | {name: torch.addmm(plain[name], *each) for name, each in low_rank(scales, tensors).items()}


def is_adapter(name: str) -> bool:
    """Whether a tensor of this name is part of an adapter."""
    return name.endswith((f".{UP}", f".{DOWN}"))


@torch.no_grad()
def merge(net: nn.Module) -> None:
    """W + scale up down in place of W, and no adapters any more. Tensors that others share stay as they are."""
    products = low_rank(scales_of(net), dict(net.named_parameters()))
    for name, each in adapted(net).items():
        up, down = products[f"{name}.weight"]
        each.weight = nn.Parameter(torch.addmm(each.weight, up, down), requires_grad=False)
        delattr(each, DOWN)
        delattr(each, UP)
        del each.forward  # the instance's: the class's own is behind it
