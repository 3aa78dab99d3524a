"""The parts of a transformer: time embedding, norms, attention, feed-forward, adaLN-Zero. Tokens are (B, T, D)."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from justimage.networks.dropout import Dropout
from justimage.networks.position import rotate

WIDTHS = 64  # what GPUs want the lengths of matrices to be multiples of, in half precision
FEW_TOKENS = 512  # up to here the scores of attention fit beside the activations of its block


class TimeEmbedding(nn.Module):
    """t (B,) in [0, 1] -> (B, D): 256 cosines and sines of t, then two linear layers."""

    def __init__(self, width: int, features: int = 256):
        super().__init__()
        self.features = features
        self.hidden = nn.Linear(features, width)
        self.out = nn.Linear(width, width)

    def forward(self, t: Tensor) -> Tensor:
        half = self.features // 2
        exponents = torch.arange(half, dtype=torch.float32, device=t.device) / half
        angles = t.float()[:, None] * 10000.0**-exponents  # (B, half)
        waves = torch.cat((angles.cos(), angles.sin()), -1)
        return self.out(F.silu(self.hidden(waves.to(self.hidden.weight.dtype))))


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last axis, computed in float32 (arXiv 1910.07467)."""

    def __init__(self, width: int, eps: float = 1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        # Compilers fuse the plain form, and what autograd makes of it; torch.func transforms it. Elsewhere its backward
        # pass is our own: half the time. F.rms_norm is no faster than the plain form on CPUs (torch 2.15).
        if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():  # pyright: ignore
            return _scaled_by_rms(x, self.weight, self.eps)[0]
        return _RMSNorm.apply(x, self.weight, self.eps)


def _scaled_by_rms(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """x / rms(x) * weight like x, x / rms(x) in float32, and 1 / rms(x) (..., 1)."""
    y = x.float()
    inverse = torch.rsqrt(y.square().mean(-1, keepdim=True) + eps)
    y = y * inverse
    return (y * weight).to(x.dtype), y, inverse


class _RMSNorm(torch.autograd.Function):
    """With n = x / rms(x) and g the gradient of n: that of x is (g - n mean(g n)) / rms(x)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        out, n, inverse = _scaled_by_rms(x, weight, eps)
        ctx.save_for_backward(n, inverse, weight)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        if torch.is_grad_enabled():  # create_graph: what is saved here would be taken for constants
            raise RuntimeError("autograd finds first derivatives of RMSNorm only; for others, and jvp, use torch.func")
        n, inverse, weight = ctx.saved_tensors
        (gradient,) = gradients
        with torch.autocast(n.device.type, enabled=False):
            g = gradient.float()
            along = g * n
            shared = (along @ weight.float())[..., None]
            of_x = torch.addcmul(g * weight, n, shared, value=-1 / n.shape[-1]).mul_(inverse)
        return of_x.to(gradient.dtype), along.flatten(0, -2).sum(0).to(weight.dtype), None


class Attention(nn.Module):
    """Multi-head self-attention with per-head qk-norm and rotary positions, (B, T, D) -> (B, T, D).

    rotation: (T, D / heads / 2, 2), see `rotate`; mask: (B, 1, 1, T) bool, the tokens that are attended to.
    in_float32 computes scores and averages in float32 whatever the precision around it, as the official
    code does for the scores; otherwise PyTorch chooses the fastest attention available.
    """

    def __init__(self, width: int, heads: int, *, qk_norm: bool, in_float32: bool, dropout: float, drop_scores: float):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.q_norm = RMSNorm(width // heads) if qk_norm else nn.Identity()
        self.k_norm = RMSNorm(width // heads) if qk_norm else nn.Identity()
        self.out = nn.Linear(width, width)
        self.in_float32 = in_float32
        self.dropout = Dropout(dropout)
        self.drop_scores = Dropout(drop_scores)

    def forward(self, x: Tensor, rotation: Tensor | None, mask: Tensor | None = None) -> Tensor:
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1))  # (B, T, 3, H, d)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind()  # each (B, H, T, d)
        q, k = self.q_norm(q), self.k_norm(k)
        if rotation is not None:
            q, k = rotate(q, rotation), rotate(k, rotation)
        dtype = torch.float32 if self.in_float32 else v.dtype
        drop = self.drop_scores if self.training and self.drop_scores.p > 0 else None
        with torch.autocast(x.device.type, enabled=False):
            y = attend(q.to(dtype), k.to(dtype), v.to(dtype), mask, drop)
        return self.dropout(self.out(y.transpose(1, 2).flatten(2).to(v.dtype)))


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, drop: Dropout | None = None) -> Tensor:
    """softmax(q k^T / sqrt(d)) v: (B, H, T, d) each -> (B, H, T, d); mask as in `Attention`, drop: of probabilities.

    With drop the probabilities are all in memory at once, (B, H, T, T): the masks of fused attentions are their own.
    """
    # PyTorch's own is the fastest but for one backward pass: in bfloat16 on CPUs it takes 2 to 7 times as long as this.
    short = q.shape[-2] <= FEW_TOKENS
    written_out = q.device.type == "cpu" and q.dtype == torch.bfloat16 and short and torch.is_grad_enabled()
    if drop is None and not written_out:
        return F.scaled_dot_product_attention(q, k, v, mask)
    scores = (q * q.shape[-1] ** -0.5) @ k.mT
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    weights = scores.softmax(-1)
    return (weights if drop is None else drop(weights)) @ v


def _on_tensor_cores(x: Tensor) -> bool:
    """Whether products with x are made in half precision on a GPU, which wants widths of WIDTHS."""
    return x.is_cuda and (x.dtype != torch.float32 or torch.is_autocast_enabled("cuda"))


class SwiGLU(nn.Module):
    """out(silu(a) * b) with (a, b) = up(x) (arXiv 2002.05202); two thirds of the usual hidden width."""

    def __init__(self, width: int, hidden: int, *, dropout: float):
        super().__init__()
        hidden = int(hidden * 2 / 3)
        self.up = nn.Linear(width, 2 * hidden)
        self.out = nn.Linear(hidden, width)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        if _on_tensor_cores(x) and self.as_written() and self._odd:
            return self._padded(x)
        a, b = self.up(x).chunk(2, -1)
        return self.out(self.dropout(F.silu(a) * b))

    @property
    def _odd(self) -> int:
        """Features that the hidden layer lacks to a multiple of WIDTHS: 22 in L, 43 in H and G, none in B."""
        return -self.out.in_features % WIDTHS

    def as_written(self) -> bool:
        """Whether both maps are what they were made as: with a bias, no adapters beside them, no hooks, not in int8."""
        maps = (self.up, self.out)
        if any(each._forward_hooks or each._forward_pre_hooks for each in maps):
            return False
        return all(type(each) is nn.Linear and "forward" not in vars(each) and each.bias is not None for each in maps)

    def _padded(self, x: Tensor) -> Tensor:
        """The same with hidden features of zero beside the others: silu(0) 0 = 0, and nothing flows back to them.

        Padding copies the weights, which is little beside what their products gain. Dropout draws for all features.
        """
        up = F.pad(self.up.weight.unflatten(0, (2, -1)), (0, 0, 0, self._odd)).flatten(0, 1)
        bias = F.pad(self.up.bias.unflatten(0, (2, -1)), (0, self._odd)).flatten()
        a, b = F.linear(x, up, bias).chunk(2, -1)
        return F.linear(self.dropout(F.silu(a) * b), F.pad(self.out.weight, (0, self._odd)), self.out.bias)


class MLP(nn.Module):
    """out(gelu(up(x))): the plain feed-forward layer of ViT, the other end of the ablation ladder."""

    def __init__(self, width: int, hidden: int, *, dropout: float):
        super().__init__()
        self.up = nn.Linear(width, hidden)
        self.out = nn.Linear(hidden, width)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.dropout(F.gelu(self.up(x), approximate="tanh")))


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """x (1 + scale) + shift: tokens (B, T, D) modulated by the condition, shift and scale (B, 1, D)."""
    return torch.addcmul(shift, x, 1 + scale)


class Modulation(nn.Module):
    """adaLN (arXiv 2212.09748): the condition c (B, D) -> `parts` tensors (B, 1, D). Zero at initialisation.

    told: what `flat` has given for c before, in place of it.
    """

    def __init__(self, width: int, parts: int):
        super().__init__()
        self.parts = parts
        self.linear = nn.Linear(width, parts * width)

    def flat(self, c: Tensor) -> Tensor:
        """All parts side by side, (B, parts D)."""
        return self.linear(F.silu(c))

    def forward(self, c: Tensor, told: Tensor | None = None) -> tuple[Tensor, ...]:
        return (self.flat(c) if told is None else told).unsqueeze(1).chunk(self.parts, -1)


class Block(nn.Module):
    """A transformer block with adaLN-Zero (arXiv 2212.09748): tokens (B, T, D), condition (B, D) -> (B, T, D).

    told: see `Modulation`.
    """

    def __init__(self, attention: Attention, mlp: nn.Module, norms: tuple[nn.Module, nn.Module], width: int):
        super().__init__()
        self.norm1, self.norm2 = norms
        self.attention = attention
        self.mlp = mlp
        self.modulation = Modulation(width, 6)

    def forward(
        self, x: Tensor, c: Tensor, rotation: Tensor | None, mask: Tensor | None = None, told: Tensor | None = None
    ) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(c, told)
        x = torch.addcmul(x, gate1, self.attention(modulate(self.norm1(x), shift1, scale1), rotation, mask))
        return torch.addcmul(x, gate2, self.mlp(modulate(self.norm2(x), shift2, scale2)))

    @property
    def widest(self) -> int:
        """Features of a token where it has most."""
        maps = (*self.attention.modules(), *self.mlp.modules())
        return max(each.out_features for each in maps if isinstance(each, nn.Linear))


class Head(nn.Module):
    """Tokens (B, T, D) -> patches (B, T, features). Zero at initialisation, so that the network begins at 0.

    told: see `Modulation`.
    """

    def __init__(self, norm: nn.Module, width: int, features: int):
        super().__init__()
        self.norm = norm
        self.modulation = Modulation(width, 2)
        self.linear = nn.Linear(width, features)

    def forward(self, x: Tensor, c: Tensor, told: Tensor | None = None) -> Tensor:
        shift, scale = self.modulation(c, told)
        return self.linear(modulate(self.norm(x), shift, scale))


class Classifier(nn.Module):
    """Tokens (B, T, D) -> logits (B, classes): their mean, and a linear map (appendix B.3, arXiv 2511.13720)."""

    def __init__(self, width: int, classes: int):
        super().__init__()
        self.linear = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.mean(1))


@torch.no_grad()
def initialise_layers(net: nn.Module, generator: torch.Generator | None = None) -> None:
    """Fill all linear maps (Xavier-uniform, zero bias), then all norms (weight 1, bias 0) of a network."""
    for module in net.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight, generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, RMSNorm | nn.LayerNorm):
            if module.weight is not None:
                nn.init.ones_(module.weight)
            if isinstance(module, nn.LayerNorm) and module.bias is not None:
                nn.init.zeros_(module.bias)


@torch.no_grad()
def initialise_transformer(net: Any, generator: torch.Generator | None = None) -> None:
    """Fill all parameters of a network with time embedding, condition and modulated blocks (see `JiT.initialise`)."""
    initialise_layers(net, generator)
    for weight in (net.time.hidden.weight, net.time.out.weight):
        nn.init.normal_(weight, std=0.02, generator=generator)
    if hasattr(net.condition, "initialise"):
        net.condition.initialise(generator)
    zero_modulations(net)


@torch.no_grad()
def zero_modulations(net: nn.Module) -> None:
    """Zero every adaLN map, and the head's linear map: blocks become the identity, and the network zero."""
    for module in net.modules():
        if isinstance(module, Modulation | Head):
            nn.init.zeros_(module.linear.weight)
