"""draw: from noise to data with any model that predicts. All sampling of this library goes through it."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from justimage.execution import check_memory
from justimage.process import Prediction
from justimage.samplers import Grid, Predict, Sampling, Step, guided
from justimage.sampling.ahead import told_ahead
from justimage.sampling.parts import in_parts, samples_at_once

Watch = Callable[[Tensor, Tensor, Prediction], None]  # state z, time t, what the (guided) model predicted there


def check_samples(count: int, shape: Sequence[int], device: torch.device) -> None:
    """Raises ValueError where so many samples (C, *S) at once are more than the device can hold."""
    if not all(length >= 1 for length in shape):
        raise ValueError(f"a sample of the shape {tuple(shape)} is empty; every length must be at least 1")
    check_memory(
        2 * 4 * count * prod(shape),  # the state and a prediction
        device,
        f"{count:,} samples of the shape {tuple(shape)} at once",
        "choose a smaller size, or fewer samples at once",
    )


@torch.no_grad()
def draw(
    model: Any,
    y: Any,
    noise: Tensor,
    sampling: Sampling,
    *,
    watch: Watch | None = None,
    step: Step | None = None,
    grid: Grid | None = None,
) -> Tensor:
    """Noise (B, C, *S) at t = 0 -> model values x (B, C, *S) at t = 1 (Alg. 2 and Eq. 4, arXiv 2511.13720).

    model(z, t, y) -> Prediction; a guidance scale other than 1 also asks it for null(count, size, device), the value of
    the condition that means none. y: a value of the condition for each sample, or None. noise has the model's
    noise_scale. watch: called with (z, t, prediction) at every evaluation. step, grid: functions in place of those that
    `sampling` names. A network in training mode is put in evaluation mode meanwhile. Raises ValueError where y is not
    for as many samples as there is noise for.
    """
    for each in pytree.tree_leaves(y):
        if isinstance(each, Tensor) and each.shape[:1] != noise.shape[:1]:
            raise ValueError(f"y of the shape {tuple(each.shape)} is not a value for each of {len(noise)} samples")
    needs_null = sampling.guidance != 1 and y is not None
    null = model.null(len(noise), noise.shape[2:], noise.device) if needs_null else None
    if isinstance(y, Tensor) and isinstance(null, dict):  # labels alone are a value too
        y = dict(zip(null, [y], strict=True))

    with _evaluating(model):
        predict = predictor(model, y, null, noise, sampling, sampling.times(grid)[:-1])
        return sampling.run(predict if watch is None else _wrap(predict, watch), noise, step=step, grid=grid)


def predictor(model: Any, y: Any, null: Any, noise: Tensor, sampling: Sampling, times: Tensor) -> Predict:
    """The guided model, for states like noise (B, C, *S): the times (N,) made ready ahead, large batches in parts.

    y, null: values of the condition, and the one that means none, or None.
    """
    most = samples_at_once(model, noise)

    def guide(model: Any, y: Any, null: Any) -> Predict:
        few = in_parts(model, most)
        return guided(few, y, null, sampling.guidance, sampling.interval, sampling.guidance_every)

    return told_ahead(model, y, null, times, guide)


def _wrap(predict: Predict, watch: Watch) -> Predict:
    def seen(z: Tensor, t: Tensor) -> Prediction:
        prediction = predict(z, t)
        watch(z, t, prediction)
        return prediction

    return seen


@contextlib.contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    """Without dropout; the mode is restored afterwards."""
    was_training = isinstance(model, nn.Module) and model.training
    if was_training:
        model.eval()
    try:
        yield
    finally:
        if was_training:
            model.train()
