"""Losses: values that the loop minimises."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from justimage.denoiser import Denoiser
from justimage.execution import to_device
from justimage.process import Prediction, Space, denoising_loss, diffuse
from justimage.randomness import Purpose, normals, training_noise, uniforms
from justimage.training.settings import Training


class Losses(NamedTuple):
    """What a loss says of a batch: the total of each sample (B,), which is minimised, and terms (B,) to be logged."""

    total: Tensor
    terms: dict[str, Tensor]


# (model, x (B, C, *S), y, positions of the samples in the run) -> the loss of each sample
Loss = Callable[[nn.Module, Tensor, Any, range], Losses]
# (prediction, x, eps, space) -> (B,): how far a prediction is from the truth
Compare = Callable[[Prediction, Tensor, Tensor, Space], Tensor]


def flow_matching(model: Denoiser, config: Training, *, compare: Compare = denoising_loss) -> Loss:
    """The loss of the paper (Alg. 1 and Eq. 6, arXiv 2511.13720), for any prediction and loss space.

    compare: another measure of the error, in place of the mean square.
    """

    def loss(predict: nn.Module, x: Tensor, y: Any, positions: range) -> Losses:
        t = to_device(config.times.times(normals(config.seed, Purpose.TIME, positions)), x.device)  # (B,)
        eps = model.noise_scale * training_noise(config.seed, positions, x.shape[1:], x.device)
        if y is not None:
            y = model.condition.drop(y, _draws(config.seed, positions, x.device), config.label_dropout)
        prediction = predict(diffuse(x, eps, t), t, y)
        total = compare(prediction, x, eps, config.loss_space)
        return Losses(total, {f"{config.loss_space}-loss": total})

    return loss


def _draws(seed: int, positions: range, device: torch.device) -> Tensor:
    """A uniform number for each sample; in float32 where the device knows nothing longer."""
    draws = uniforms(seed, Purpose.DROP, positions)
    return to_device(draws.float() if device.type == "mps" else draws, device)
