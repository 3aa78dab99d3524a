"""The work of a training step, counted without doing it: multiply-adds, bytes that are moved, bytes that are held."""

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from torch import nn

from justimage.denoiser import Denoiser
from justimage.training.settings import Training
from justimage.training.trace import Trace, trace


@dataclass(frozen=True)
class Held:
    """Bytes that a process holds for a state, whatever it is doing."""

    weights: int
    gradients: int
    optimizer: int
    averages: int

    @classmethod
    def of(cls, net: nn.Module, averages: int) -> "Held":
        """Of a network with so many averages: gradients, two moments and averages of what learns."""
        sizes = [(each.numel() * each.element_size(), each.requires_grad) for each in net.parameters()]
        learning = sum(size for size, learns in sizes if learns)
        return cls(sum(size for size, _ in sizes), learning, 2 * learning, averages * learning)

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.gradients + self.optimizer + self.averages


@dataclass(frozen=True)
class Work:
    """What one step does on one process, and what it holds beside weights, moments and averages."""

    samples: int
    forward: int
    """Multiply-adds of matrix products, attention among them, in the forward pass."""
    backward: int
    """The same in the backward pass, with what is computed again."""
    products_moved: int
    """Bytes that matrix products read and write."""
    others_moved: int
    """Bytes that everything else reads and writes, each operation by itself."""
    operations: int
    """All of them, products too: on a GPU each is a kernel that the host asks for."""
    kept: int
    """Bytes held at the end of the forward pass, gradients aside: batch, noise, and activations."""
    peak: int
    """The most bytes held at once, gradients among them."""
    peak_gradients: int
    """Gradients at that moment."""
    recomputed: bool
    """Whether blocks keep nothing but their inputs."""


@dataclass(frozen=True)
class Counts:
    """The work of a step with any number of samples. Every count is a straight line in them, which two points give."""

    few: Trace
    more: Trace
    sample_bytes: int
    """Of one sample as model values."""
    gradients: int
    """Bytes of all of them."""
    recomputed: bool

    def work(self, samples: int, microbatch: int = 0) -> Work:
        """Of one process with so many samples, all at once or in microbatches."""
        micro = min(microbatch or samples, samples)
        at = (micro - self.few.samples) / (self.more.samples - self.few.samples)

        def line(few: Any, more: Any) -> Any:
            return few + (more - few) * at

        held, gradients = (
            line(self.few.held, self.more.held) + (samples - micro) * self.sample_bytes,
            self.few.gradients,
        )
        if micro < samples:  # those of the microbatch before are there all the time
            held, gradients = held - gradients + self.gradients, np.full_like(gradients, self.gradients)
        highest = held.argmax()
        forward, backward, products_moved, others_moved, operations = (
            round(float(each)) for each in line(self.few.totals, self.more.totals) * samples / micro
        )
        return Work(
            samples=samples,
            forward=forward,
            backward=backward,
            products_moved=products_moved,
            others_moved=others_moved,
            operations=operations,
            kept=round(line(self.few.kept, self.more.kept)) + (samples - micro) * self.sample_bytes,
            peak=round(float(held[highest])),
            peak_gradients=int(gradients[highest]),
            recomputed=self.recomputed,
        )


def counts_of(
    model: Denoiser, config: Training, *, fused_attention: bool = False, samples: tuple[int, int] = (2, 4)
) -> Counts:
    """The work of a step of this model, whose weights it leaves alone and does not need.

    model: as `Recipe.model` gives it, or built. fused_attention: attention that keeps no scores, as GPUs have it,
    wherever the network leaves the choice to PyTorch. samples: that are counted with; not one, with which torch leaves
    out some of what it does with more. Precision is that of `config.precision`; auto: this machine's. Blocks are taken
    as they are written, not compiled. Raises what torch raises for a network that looks at its numbers.
    """
    few, more = (trace(model, config, each, fused_attention) for each in samples)
    sample_bytes = 4 * model.config.channels * prod(model.config.size)
    return Counts(few, more, sample_bytes, Held.of(model.net, 0).gradients, config.checkpoint)
