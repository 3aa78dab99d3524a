"""Exponential moving averages of the weights, several at once."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

TRAVELLING = 1000
"""Updates during which an average is the weights themselves."""


def effective_decay(decay: float, updates: int) -> float:
    """The decay at update number 1, 2, 3, ...: 0 at first, then min(decay, m / (m + 9)) at the m-th update after that.

    A plain average with decay 0.9999 holds more than half of its random start for 6,000 updates, and its samples look
    broken that long. Averaging helps once the weights wander about; while they travel, it only lags behind them. So
    it begins after TRAVELLING updates, and then spans about the last tenth of the updates since, until that is longer
    than the decay asks for (the second part as in TensorFlow's ExponentialMovingAverage with num_updates; it alone
    was up to 40 % worse in held-out loss than the weights in the first hundreds of updates, docs/LOG.md).
    """
    since = max(updates - TRAVELLING, 0)
    return min(decay, since / (since + 9))


class EMA:
    """Averages of a network's parameters, one set for each decay (Table 9, arXiv 2511.13720), in float32.

    update() moves them all in two launches a set; tensors(decay) are the weights of one, under the network's names.
    """

    def __init__(self, net: nn.Module, decays: Iterable[float]):
        self.decays = tuple(decays)
        if any(not 0 < decay < 1 for decay in self.decays):
            raise ValueError(f"EMA decays lie between 0 and 1, unlike {self.decays}")
        self.net = net
        self.names = [name for name, _ in net.named_parameters()]
        self.averages = {decay: [p.detach().clone() for p in net.parameters()] for decay in self.decays}

    @torch.no_grad()
    def update(self, updates: int) -> None:
        """Move the averages towards the network, after its update number `updates` (from 1 on)."""
        parameters = [p.detach() for p in self.net.parameters()]
        for decay, averages in self.averages.items():
            torch._foreach_lerp_(  # pyright: ignore[reportPrivateImportUsage]
                averages, parameters, 1 - effective_decay(decay, updates)
            )

    def tensors(self, decay: float) -> dict[str, Tensor]:
        """The state dict of the network with the averages in place of its parameters."""
        return {**self.net.state_dict(), **dict(zip(self.names, self.averages[decay], strict=True))}

    def state_dict(self) -> dict[str, Tensor]:
        """All averages as tensors named DECAY/PARAMETER."""
        return {
            f"{decay}/{name}": average
            for decay, averages in self.averages.items()
            for name, average in zip(self.names, averages, strict=True)
        }

    @torch.no_grad()
    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        """Take over what `state_dict` gave; raises KeyError for a missing average."""
        for name, average in self.state_dict().items():
            average.copy_(tensors[name])
