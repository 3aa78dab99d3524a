"""The optimizer and its learning rate, a function of nimg."""

from math import cos, pi
from typing import Literal

import torch
from torch import nn

Schedule = Literal["constant", "cosine"]


def learning_rate(nimg: int, *, peak: float, warmup_nimg: int, duration_nimg: int, schedule: Schedule) -> float:
    """The learning rate of the step that ends at nimg: linear warm-up, then constant (Table 9) or a cosine to zero."""
    if nimg < warmup_nimg:
        return peak * nimg / warmup_nimg
    if schedule == "constant":
        return peak
    done = (nimg - warmup_nimg) / max(duration_nimg - warmup_nimg, 1)
    return peak * 0.5 * (1 + cos(pi * min(done, 1.0)))


MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # what AdamW keeps of each parameter from its first step on


def adamw(net: nn.Module, *, betas: tuple[float, float], weight_decay: float) -> torch.optim.AdamW:
    """AdamW (arXiv 1711.05101) in one fused kernel, of the parameters that require gradients.

    Decay, if any, is for matrices only, not for norms and biases.
    """
    parameters = [p for p in net.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], betas=betas, fused=True)
