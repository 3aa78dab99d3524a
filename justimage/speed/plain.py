"""The same network and the same steps written plainly, as a first version would be: what speed is compared with.

Float32, attention by hand, the null pass everywhere and by itself, averages tensor by tensor, and a look at the loss in
every step. It computes the same numbers, to rounding.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from justimage.data.loader import Batch, model_values
from justimage.denoiser import Denoiser
from justimage.networks.layers import Attention
from justimage.networks.position import rotate
from justimage.samplers import Sampling, integrate, linear_grid
from justimage.training.loss import flow_matching
from justimage.training.settings import Training


def attention_by_hand(self: Attention, x: Tensor, rotation: Tensor | None, mask: Tensor | None = None) -> Tensor:
    """Scores, softmax and average written out, (B, T, D) -> (B, T, D)."""
    q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind()
    q, k = self.q_norm(q), self.k_norm(k)
    if rotation is not None:
        q, k = rotate(q, rotation), rotate(k, rotation)
    scores = q @ k.mT * q.shape[-1] ** -0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    y = torch.softmax(scores, -1) @ v
    return self.out(y.transpose(1, 2).flatten(2))


def plain(model: Denoiser) -> Denoiser:
    """A copy of a model in float32 whose attention is written by hand; nothing is compiled."""
    other = copy.deepcopy(model).float()
    for module in other.modules():
        module._compiled_call_impl = None
        if isinstance(module, Attention):
            module.forward = attention_by_hand.__get__(module)
    return other.eval()


@torch.no_grad()
def sample_plainly(model: Denoiser, y: Any, noise: Tensor, sampling: Sampling) -> Tensor:
    """50 Heun steps, or what `sampling` says of steps and guidance; at every evaluation two calls, one with the null
    value, also where guidance does not act.
    """
    lo, hi = sampling.interval
    null = None if y is None else model.null(len(noise), noise.shape[2:], noise.device)

    def predict(z: Tensor, t: Tensor) -> Any:
        times = t.to(z).expand(len(z))
        conditional = model(z, times, y).to("v")
        if null is None:
            return _Velocity(conditional)
        unconditional = model(z, times, null).to("v")
        inside = (lo == 0 or lo < float(t)) and float(t) < hi
        return _Velocity(unconditional + (sampling.guidance if inside else 1.0) * (conditional - unconditional))

    return integrate(predict, noise, linear_grid(sampling.steps))


class _Velocity:
    """A velocity in place of a Prediction."""

    def __init__(self, v: Tensor):
        self.v = v

    def to(self, space: str) -> Tensor:
        return self.v


def training_step(model: Denoiser, config: Training) -> Callable[[Batch], float]:
    """A step that trains a model as a first version would; it takes a batch and returns its loss."""
    assert model.spec is not None
    spec, loss = model.spec, flow_matching(model, config)
    groups = [p for p in model.net.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, weight_decay=0.0, foreach=False)
    averages = {decay: [p.detach().clone() for p in groups] for decay in config.ema_decays}
    model.train()

    def step(batch: Batch) -> float:
        y = batch.y if model.needs else {}
        mirror = config.mirrors(spec)
        x, y = model_values(batch.raw, y, spec, seed=config.seed, positions=batch.positions, mirror=mirror)
        mean = loss(model, x.to(model.device), _on(y, model.device) or None, batch.positions).total.mean()
        value = mean.item()
        optimizer.zero_grad()
        mean.backward()
        if config.clip_norm:
            nn.utils.clip_grad_norm_(groups, config.clip_norm, foreach=False)
        optimizer.step()
        with torch.no_grad():
            for decay, average in averages.items():
                for kept, p in zip(average, groups, strict=True):
                    kept.mul_(decay).add_(p, alpha=1 - decay)
        return value

    return step


def _on(y: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    return {name: each.to(device) for name, each in y.items()}
