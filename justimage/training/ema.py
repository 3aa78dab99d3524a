"""Exponential moving averages of the weights, several at once."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn


def effective_decay(decay: float, nimg: int, *, start_nimg: int, batch_size: int) -> float:
    """The decay of the update that ends at nimg.

    With start_nimg = 0 it is `decay`, as in the paper (Table 9, arXiv 2511.13720). Otherwise it is 0 until start_nimg,
    and min(decay, m / (m + 9)) at the m-th update after that. A plain average with decay 0.9999 holds more than half of
    its random start for 6,000 updates, and its samples look broken for as long. Averaging helps once the weights wander
    about; while they travel, it only lags behind them. So it begins late, and then spans about the last tenth of the
    updates since, until that is longer than the decay asks for (the second part as in TensorFlow's
    ExponentialMovingAverage with num_updates; it alone was up to 40 % worse in held-out loss than the weights in the
    first hundreds of updates, docs/LOG.md).
    """
    if start_nimg == 0:
        return decay
    since = max(nimg - start_nimg, 0) // batch_size
    return min(decay, since / (since + 9))


class EMA:
    """Averages of the parameters that require gradients, in float32, a set for each decay (Table 9, arXiv 2511.13720).

    update() moves them all in two launches a set; tensors(decay) are the weights of one, under the network's names.
    """

    def __init__(self, net: nn.Module, decays: Iterable[float], *, start_nimg: int, batch_size: int):
        self.decays = tuple(decays)
        if any(not 0 < decay < 1 for decay in self.decays):
            raise ValueError(f"EMA decays are {self.decays}; each must lie between 0 and 1")
        self.net, self.start_nimg, self.batch_size = net, start_nimg, batch_size
        self.names = [name for name, p in net.named_parameters() if p.requires_grad]
        self.averages = {decay: [p.clone() for p in self._parameters()] for decay in self.decays}

    def _parameters(self) -> list[Tensor]:
        return [p.detach() for p in self.net.parameters() if p.requires_grad]

    @torch.no_grad()
    def update(self, nimg: int) -> None:
        """Move the averages towards the network, after its update that ended at nimg."""
        parameters = self._parameters()
        for decay, averages in self.averages.items():
            moved = 1 - effective_decay(decay, nimg, start_nimg=self.start_nimg, batch_size=self.batch_size)
            torch._foreach_lerp_(averages, parameters, moved)  # pyright: ignore[reportPrivateImportUsage]

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
