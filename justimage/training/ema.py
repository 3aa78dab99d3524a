"""Averages of the weights, several at once: exponential ones, and power-function ones."""

from collections.abc import Iterable
from math import prod

import torch
from torch import Tensor, nn

from justimage.training.profiles import gamma_of, power_decay


def effective_decay(decay: float, nimg: int, *, start_nimg: int, batch_size: int, warmup: int = 9) -> float:
    """The decay of the step that ends at nimg.

    With start_nimg = 0 it is `decay`, as in the paper (Table 9, arXiv 2511.13720). Otherwise it is 0 until start_nimg,
    and min(decay, m / (m + warmup)) at the m-th step after that. A plain average with decay 0.9999 holds more than half
    of its random start for 6,000 updates, and its samples look broken for as long. Averaging helps once the weights
    wander about; while they travel, it only lags behind them. So it begins late, and then spans about the last tenth of
    the updates since (with a warmup of 9), until that is longer than the decay asks for (the second part as in
    TensorFlow's ExponentialMovingAverage with num_updates; it alone was up to 40 % worse in held-out loss than the
    weights in the first hundreds of updates, docs/LOG.md).
    """
    if start_nimg == 0:
        return decay
    since = max(nimg - start_nimg, 0) // batch_size
    return min(decay, since / (since + warmup)) if since else 0.0


class EMA:
    """Averages of the parameters that require gradients, in float32, a set for each decay (Table 9, arXiv 2511.13720),
    and for each std of a power-function average (arXiv 2312.02696, see `profiles`).

    update() moves them all in two launches a set, at every step whose number `every` divides, with the decays of so
    many steps; tensors(decay) are the weights of one, under the network's names. An average is called by its decay, as
    a text or a number, or "std-STD".
    """

    def __init__(
        self,
        net: nn.Module,
        decays: Iterable[float],
        *,
        start_nimg: int,
        batch_size: int,
        stds: Iterable[float] = (),
        every: int = 1,
        warmup: int = 9,
    ):
        self.decays, self.stds = tuple(decays), tuple(stds)
        if any(not 0 < decay < 1 for decay in self.decays):
            raise ValueError(f"EMA decays are {self.decays}; each must lie between 0 and 1")
        self.net, self.start_nimg, self.batch_size = net, start_nimg, batch_size
        self.every, self.warmup = every, warmup
        self.gammas = {f"std-{std}": gamma_of(std) for std in self.stds}
        self.names = [name for name, p in net.named_parameters() if p.requires_grad]
        self.averages = {name: [p.clone() for p in self._parameters()] for name in self.called}

    @property
    def called(self) -> list[str]:
        """The names of the averages, the one sampled by default first."""
        return [*(str(decay) for decay in self.decays), *self.gammas]

    def _parameters(self) -> list[Tensor]:
        return [p.detach() for p in self.net.parameters() if p.requires_grad]

    def updated_nimg(self, nimg: int) -> int:
        """The end of the last step up to nimg that has moved the averages."""
        return nimg - nimg % (self.every * self.batch_size)

    @torch.no_grad()
    def update(self, nimg: int) -> None:
        """Move the averages towards the network, after its update that ended at nimg, if they are moved at this one."""
        if self.updated_nimg(nimg) != nimg:
            return
        parameters = self._parameters()
        for name, averages in self.averages.items():
            moved = 1 - self._decay(name, nimg)
            torch._foreach_lerp_(averages, parameters, moved)  # pyright: ignore[reportPrivateImportUsage]

    def _decay(self, name: str, nimg: int) -> float:
        """What is left of an average by its update at nimg: the product over the steps since the one before."""
        if name in self.gammas:
            return power_decay(self.gammas[name], nimg, self.every * self.batch_size)
        clock = {"start_nimg": self.start_nimg, "batch_size": self.batch_size, "warmup": self.warmup}
        steps = range(self.every)
        return prod(effective_decay(float(name), nimg - i * self.batch_size, **clock) for i in steps)

    def tensors(self, average: float | str) -> dict[str, Tensor]:
        """The state dict of the network with an average in place of its parameters."""
        return {**self.net.state_dict(), **self.trained(average)}

    def trained(self, average: float | str) -> dict[str, Tensor]:
        """An average alone: of the parameters that are trained."""
        return dict(zip(self.names, self.averages[str(average)], strict=True))

    def state_dict(self) -> dict[str, Tensor]:
        """All averages as tensors named AVERAGE/PARAMETER."""
        return {
            f"{name}/{parameter}": average for name in self.called for parameter, average in self.trained(name).items()
        }

    @torch.no_grad()
    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        """Take over what `state_dict` gave; raises KeyError for a missing average."""
        for name, average in self.state_dict().items():
            average.copy_(tensors[name])
