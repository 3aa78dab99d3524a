"""Losses: values that the loop minimises."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
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

    compare: another measure of the error, in place of the mean square. A network with an auxiliary classifier has one
    term more in training mode (Table 11 and appendix B.3 there): `config.classification` times the cross-entropy of its
    logits, for the labels as they are before any is dropped; it is 0 for a sample with the null label.

    Raises ValueError where this weight is above 0 and the network has no classifier, or the model no labels.
    """
    classifies = "logits" in getattr(model.net, "beside", ())
    if config.classification and not (classifies and model.num_classes):
        lacking = "the model has no labels" if classifies else "the network has no classifier"
        raise ValueError(
            f"classification is {config.classification}, but {lacking}; it must be 0, unless a network with a "
            "classifier (classifier_after) is trained on data with labels"
        )

    def loss(predict: nn.Module, x: Tensor, y: Any, positions: range) -> Losses:
        t = to_device(config.times.times(normals(config.seed, Purpose.TIME, positions)), x.device)  # (B,)
        eps = model.noise_scale * training_noise(config.seed, positions, x.shape[1:], x.device)
        labels = y["labels"] if classifies and model.num_classes else None
        if y is not None:
            y = model.condition.drop(y, _draws(config.seed, positions, x.device), config.label_dropout)
        prediction = predict(diffuse(x, eps, t), t, y)
        error = compare(prediction, x, eps, config.loss_space)
        terms = {f"{config.loss_space}-loss": error}
        if labels is None or "logits" not in prediction.beside:
            return Losses(error, terms)
        # At a weight of 0 as well: processes that share a network expect a gradient for every parameter.
        logits = prediction.beside["logits"].float()
        missed = F.cross_entropy(logits, labels, ignore_index=model.null_label, reduction="none")
        return Losses(error + config.classification * missed, {**terms, "cross-entropy": missed})

    return loss


def _draws(seed: int, positions: range, device: torch.device) -> Tensor:
    """A uniform number for each sample; in float32 where the device knows nothing longer."""
    draws = uniforms(seed, Purpose.DROP, positions)
    return to_device(draws.float() if device.type == "mps" else draws, device)
