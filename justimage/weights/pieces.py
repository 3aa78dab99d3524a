"""Wide layers a piece at a time, for drawing on CPUs in float32: the same sums, sooner.

What a feed-forward layer makes of some hundred features is still in the cache when it is gated; what it makes of all
features is not. And on AMD's processors MKL takes up to 1.7 times as long for many output features at once.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from justimage.networks.layers import SwiGLU
from justimage.timing import measured_once, timed

PIECE = 768  # features
WIDE = 3 * PIECE  # output features of one map, from which on they are too many at once
FEW_ROWS = 128  # with fewer it is the memory that limits, whatever the shape
TRIED, ROUNDS = (576, 768, 3072), 7  # tokens, their width, and the hidden one before SwiGLU takes two thirds: B/16
WORTH = 1.05  # times as fast


def use_pieces(net: nn.Module, device: torch.device) -> None:
    """Run the wide layers of a network in pieces, in place, where that is faster on this machine."""
    feed_forward = [each for each in net.modules() if type(each) is SwiGLU and each.as_written()]
    layers: dict[nn.Module, Callable[..., Tensor]] = {
        each: swiglu_in_pieces for each in feed_forward if each.out.in_features > PIECE
    }
    inside = {each.up for each in feed_forward}
    for each in net.modules():
        if type(each) is nn.Linear and each.out_features >= WIDE and each.bias is not None and each not in inside:
            layers[each] = linear_in_pieces
    layers = {each: in_pieces for each, in_pieces in layers.items() if "forward" not in vars(each)}
    if layers and pieces_pay(device):
        for each, in_pieces in layers.items():
            each.forward = partial(in_pieces, each)


def linear_in_pieces(linear: nn.Linear, input: Tensor) -> Tensor:
    """What the map makes of (..., in), (..., out): PIECE output features at a time."""
    if _as_ever(input, linear.weight):
        return nn.Linear.forward(linear, input)
    rows, weight, bias = input.flatten(0, -2), linear.weight, linear.bias
    y = rows.new_empty(len(rows), len(weight))
    for part in _parts(len(weight)):
        torch.addmm(bias[part], rows, weight[part].T, out=y[:, part])
    return y.unflatten(0, input.shape[:-1])


def swiglu_in_pieces(mlp: SwiGLU, x: Tensor) -> Tensor:
    """What the layer makes of (..., D), (..., D): PIECE hidden features at a time."""
    if mlp.training or not mlp.as_written() or _as_ever(x, mlp.up.weight):  # it may have changed since
        return SwiGLU.forward(mlp, x)
    rows, weight, bias, hidden = x.flatten(0, -2), mlp.up.weight, mlp.up.bias, mlp.out.in_features
    gated = rows.new_empty(len(rows), -(-hidden // 16) * 16)[:, :hidden]  # each row begins where a vector register can
    for part in _parts(hidden):
        other = slice(hidden + part.start, hidden + part.stop)
        a, b = (torch.addmm(bias[each], rows, weight[each].T) for each in (part, other))
        torch.mul(F.silu(a, inplace=True), b, out=gated[:, part])
    return mlp.out(gated).unflatten(0, x.shape[:-1])


def _as_ever(x: Tensor, weight: Tensor) -> bool:
    """Whether something asks for the layer as it was written: a gradient, a compiler, another device or precision."""
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.is_autocast_enabled(x.device.type):
        return True
    single = x.dtype == weight.dtype == torch.float32 and x.device.type == "cpu"
    return not single or x.ndim < 2 or x.shape[:-1].numel() < FEW_ROWS


def _parts(features: int) -> list[slice]:
    return [slice(start, min(start + PIECE, features)) for start in range(0, features, PIECE)]


def pieces_gain(device: torch.device) -> float:
    """How many times as fast a feed-forward layer of B/16 is in pieces here, in float32; 1.0 on anything but a CPU.

    Measured once for a machine, both ways in turn.
    """
    if device.type != "cpu":
        return 1.0

    @torch.no_grad()
    def measure() -> dict[str, float]:
        tokens, width, hidden = TRIED
        with torch.random.fork_rng(devices=[]):  # whoever draws random numbers afterwards draws what they would have
            layer, x = SwiGLU(width, hidden, dropout=0.0).eval(), torch.randn(tokens, width)
        ways = {"whole": lambda: layer(x), "pieces": lambda: swiglu_in_pieces(layer, x)}
        found = timed(ways, ROUNDS, device)
        return {"gain": found["whole"].median / found["pieces"].median}

    return measured_once(f"SwiGLU of {TRIED} in pieces of {PIECE}", device, measure)["gain"]


def pieces_pay(device: torch.device) -> bool:
    """Whether it is done on this machine."""
    return pieces_gain(device) >= WORTH
