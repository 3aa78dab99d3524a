"""Dropout whose masks are, in training, a function of one key for each sample: of nothing that was drawn before."""

import torch
from torch import Tensor, nn

SCATTER = 0x7FEB352D, -0x7B935975  # 0x846CA68B as a signed number


class Dropout(nn.Dropout):
    """Dropout (Srivastava et al., JMLR 15, 2014) of a tensor with the batch first.

    sample_keys: two words for each sample, (B, 2) int32. Whoever trains sets them before a forward pass, other ones for
    each such module, and takes them away after the backward pass, which may run the forward pass again. A mask is then
    the same on every device, in every batch, and however often it is made. None: torch's generator, as in nn.Dropout.
    """

    sample_keys: Tensor | None

    def __init__(self, p: float):
        super().__init__(p)
        self.sample_keys = None

    def forward(self, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """x (B, ...) -> the same with a share p of its numbers set to 0, and the others divided by 1 - p."""
        if not self.training or self.p == 0:
            return x
        if self.sample_keys is None:
            return super().forward(x)
        return torch.where(kept(self.sample_keys, x.shape, self.p), x * (1 / (1 - self.p)), 0.0)


def kept(keys: Tensor, shape: torch.Size, p: float) -> Tensor:
    """Which numbers of a tensor (B, *shape[1:]) stay, bool: each is dropped with probability p.

    Number i of a sample with the words (a, b) stays if hash(hash(i) (2 a + 1) + b) is at least 2^32 p. The hash is a
    bijection of 32-bit numbers, of multiplications and shifts (C. Wellons, nullprogram.com, "Prospecting for hash
    functions", 2018): integers alone, so that devices agree, and few enough that a compiler makes one loop of them.
    """
    places = torch.arange(shape[1:].numel(), dtype=torch.int32, device=keys.device)
    a, b = keys[:, 0, None], keys[:, 1, None]
    words = _scattered(_scattered(places) * (2 * a + 1) + b)  # (B, N)
    return (words >= round(p * 2**32) - 2**31).view(shape)


def _scattered(words: Tensor) -> Tensor:
    """A bijection of 32-bit numbers that scatters them. Products wrap around, and shifts fill up with zeros."""
    words = words ^ ((words >> 16) & 0xFFFF)
    words = words * SCATTER[0]
    words = words ^ ((words >> 15) & 0x1FFFF)
    words = words * SCATTER[1]
    return words ^ ((words >> 16) & 0xFFFF)
