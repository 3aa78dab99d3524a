"""The loss on a fixed grid of times, samples and noise: comparable across runs, whatever they train on.

A training loss is a mean over the run's own density of times, and changes with it. Here every run gives the mean
squared error of v (Eq. 3, arXiv 2511.13720), whatever it predicts and minimises, at the same times and for the same
noise, so that a step of a curve is a step of the network.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from justimage.denoiser import Denoiser
from justimage.process import denoising_loss, diffuse
from justimage.randomness import Purpose, keys, noise

SEED = 0  # of the noise: the same for every run
TIMES = tuple((2 * i + 1) / 16 for i in range(8))  # the middles of eight bins of t


class Samples(NamedTuple):
    """Model values x (B, C, *S), and what comes with them, on one device."""

    x: Tensor
    y: dict[str, Tensor]


@torch.no_grad()
def losses(model: Denoiser, samples: Samples, times: Sequence[float] = TIMES, batch: int = 32) -> Tensor:
    """The error of v of each sample at each time, (times, B) float32 on the CPU. The model is in evaluation mode.

    Sample i has the noise of seed i at every time, so that two measurements of it differ by the network alone.
    """
    x, shape = samples.x, samples.x.shape[1:]
    y = samples.y if model.needs else {}
    seeds = (keys(SEED, Purpose.GRID, range(len(x))) >> 1).tolist()
    eps = model.noise_scale * noise(seeds, shape).to(x.device)
    rows = []
    for time in times:
        row = []
        for start in range(0, len(x), batch):
            part = slice(start, start + batch)
            t = torch.full((len(x[part]),), time, device=x.device)
            some: Any = {name: each[part] for name, each in y.items()} or None
            row.append(denoising_loss(model(diffuse(x[part], eps[part], t), t, some), x[part], eps[part]))
        rows.append(torch.cat(row))
    return torch.stack(rows).float().cpu()


def linear_losses(variance: Tensor, noise_scale: float, times: Sequence[float] = TIMES) -> list[float]:
    """The error of v of the best line through each number of z by itself, at each time: a yardstick for a network.

    variance (C, *S): s² of each number of x about its mean. With noise of the deviation n (1 - t), the best linear
    estimate of x (Wiener's) errs by s² n² (1 - t)² / (t² s² + n² (1 - t)²), and v = (x - z) / (1 - t). Who does no
    better has learned nothing that the mean and the spread of the data do not say.
    """
    noise2 = noise_scale**2
    return [float((variance * noise2 / (t**2 * variance + noise2 * (1 - t) ** 2)).mean()) for t in times]


def shifted(samples: Samples) -> Samples:
    """The samples moved by one place along the last axis, the edge repeated: as likely, but never trained on.

    They stand for data that were held out where none were. Planes of a condition move with them.
    """

    def move(values: Tensor) -> Tensor:
        return torch.cat((values[..., :1], values[..., :-1]), -1)

    like = samples.x.shape[2:]
    moved = {name: move(each) if each.ndim > 2 and each.shape[2:] == like else each for name, each in samples.y.items()}
    return Samples(move(samples.x), moved)


def neighbours(x: Tensor) -> float:
    """The correlation of numbers beside each other along the last axis of x (B, C, *S), over all of it."""
    if x.shape[-1] < 2:
        return 0.0
    centred = x - x.mean()
    return float((centred[..., 1:] * centred[..., :-1]).mean() / centred.square().mean().clamp_min(1e-12))


def others(samples: Samples) -> Samples:
    """The samples, each with what comes with another one, of another label wherever there are enough."""
    count = len(samples.x)
    labels = samples.y.get("labels")
    order = torch.arange(count) if labels is None else labels.cpu().argsort(stable=True)
    swapped = torch.empty(count, dtype=torch.int64)
    swapped[order] = order.roll(count // 2)
    return Samples(samples.x, {name: value[swapped.to(value.device)] for name, value in samples.y.items()})


def without(model: Denoiser, samples: Samples) -> Samples:
    """The samples with the condition that means none."""
    null = model.null(len(samples.x), samples.x.shape[2:], samples.x.device)
    return Samples(samples.x, null if isinstance(null, dict) else {})


@torch.no_grad()
def activations(model: Denoiser, samples: Samples, run: Callable[[], Any]) -> tuple[float, ...]:
    """The root mean square of the residual stream after each block while `run` runs the model; empty without blocks."""
    seen: list[Tensor] = []
    blocks = getattr(model.net, "blocks", ())

    def note(module: object, inputs: object, output: Any) -> None:
        seen.append(output.float().square().mean())

    handles = [block.register_forward_hook(note) for block in blocks]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    per_block = torch.stack(seen).view(-1, len(handles)).mean(0).sqrt() if seen else torch.zeros(0)
    return tuple(per_block.tolist())
