"""Wide layers a piece at a time, for drawing on CPUs in float32: the same sums, sooner.

What a feed-forward layer makes of some hundred features is still in the cache when it is multiplied and added up; all
of them at once are not. And on AMD's processors MKL takes up to 1.7 times as long for many output features at once.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from justimage.networks.layers import SwiGLU
from justimage.precision import fastest, measured_once

PIECE = 768  # features
FEW_ROWS = 128  # with fewer it is the memory that limits, whatever the shape
TRIED = (1152, 768, 3072)  # tokens, their width and the hidden one before SwiGLU takes its share: four images in B/16
WORTH = 1.05  # times as fast


def use_pieces(net: nn.Module) -> None:
    """Run the wide layers of a network in pieces where no gradient is asked for, in place."""
    for module in net.modules():
        if isinstance(module, SwiGLU) and module.as_written():
            module.forward = partial(swiglu_in_pieces, module)
    inside = {module.up for module in net.modules() if isinstance(module, SwiGLU)}
    for module in net.modules():
        wide = type(module) is nn.Linear and module.out_features > 2 * PIECE and module not in inside
        if wide and "forward" not in vars(module):  # and without adapters beside it
            module.forward = partial(linear_in_pieces, module)  # pyright: ignore[reportArgumentType]


def linear_in_pieces(linear: nn.Linear, input: Tensor) -> Tensor:
    """What the map makes of (..., in), (..., out): PIECE output features at a time."""
    rows, weight, bias = input.flatten(0, -2), linear.weight, linear.bias
    if torch.is_grad_enabled() or bias is None or len(rows) < FEW_ROWS:
        return nn.Linear.forward(linear, input)
    y = _empty(rows, len(weight))
    for part in _parts(len(weight)):
        torch.addmm(bias[part], rows, weight[part].T, out=y[:, part])
    return y.unflatten(0, input.shape[:-1])


def swiglu_in_pieces(mlp: SwiGLU, x: Tensor) -> Tensor:
    """What the layer makes of (..., D), (..., D): PIECE hidden features at a time."""
    rows, weight, bias, hidden = x.flatten(0, -2), mlp.up.weight, mlp.up.bias, mlp.out.in_features
    if torch.is_grad_enabled() or mlp.training or len(rows) < FEW_ROWS:
        return SwiGLU.forward(mlp, x)
    gated = _empty(rows, hidden)
    for part in _parts(hidden):
        other = slice(hidden + part.start, hidden + part.stop)
        a, b = (torch.addmm(bias[each], rows, weight[each].T) for each in (part, other))
        torch.mul(F.silu(a, inplace=True), b, out=gated[:, part])
    return mlp.out(gated).unflatten(0, x.shape[:-1])


def _parts(features: int) -> list[slice]:
    return [slice(start, min(start + PIECE, features)) for start in range(0, features, PIECE)]


def _empty(rows: Tensor, features: int) -> Tensor:
    """(N, features), each row of which begins where a vector register can."""
    return rows.new_empty(len(rows), -(-features // 16) * 16)[:, :features]


def pieces_gain(device: torch.device) -> float:
    """How many times as fast a feed-forward layer is in pieces here, in float32; measured once. 1.0 but for CPUs."""
    if device.type != "cpu":
        return 1.0

    def measure() -> dict[str, float]:
        tokens, width, hidden = TRIED
        layer, x = SwiGLU(width, hidden, dropout=0.0).eval(), torch.randn(tokens, width)
        ways: tuple[Callable[[], Tensor], ...] = (lambda: layer(x), lambda: swiglu_in_pieces(layer, x))
        with torch.no_grad():
            whole, pieces = (fastest(way, device) for way in ways)
        return {"gain": whole / pieces}

    return measured_once(f"SwiGLU of {TRIED} in pieces of {PIECE}", device, measure)["gain"]


def pieces_pay(device: torch.device) -> bool:
    """Whether it is done on this machine."""
    return pieces_gain(device) >= WORTH
