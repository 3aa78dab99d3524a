"""The weights that a run has, as models, and the picture of what they draw from fixed seeds."""

import copy
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from justimage.data.spec import DataSpec
from justimage.denoiser import Denoiser
from justimage.execution import autocast
from justimage.sampling.pictures import grid
from justimage.training.adapters import merge
from justimage.training.state import TrainingState


def sets_of(state: TrainingState) -> dict[str, dict[str, Tensor]]:
    """The tensors of each set of weights of a run: "raw" and "ema-AVERAGE"."""
    sets = {"raw": state.model.net.state_dict()}
    return sets | {f"ema-{name}": state.ema.tensors(name) for name in state.ema.called}


def weights_of(state: TrainingState) -> dict[str, Denoiser]:
    """The weights of a run, as models: "raw" and "ema-DECAY". They share the state's memory, on its device."""
    return {name: _with_weights(state.model, tensors) for name, tensors in sets_of(state).items()}


def default_weights(state: TrainingState) -> tuple[str, Denoiser]:
    """The weights that a run is sampled with by default, and their name: the first average, once it is one."""
    sets = weights_of(state)
    travelling = state.nimg <= state.ema.start_nimg
    name = "raw" if travelling or not state.ema.called else f"ema-{state.ema.called[0]}"
    return name, sets[name]


def _with_weights(model: Denoiser, tensors: dict[str, Tensor]) -> Denoiser:
    """A copy of a model with these tensors as its parameters; buffers and facts are shared.

    It is copied rather than built anew, so that it works for any network, however it was made, on any device.
    """
    shared: dict[int, Any] = {id(buffer): buffer for buffer in model.buffers()}
    shared |= {id(fact): fact for fact in (model.spec, model.sampling, model.config)}
    shared |= {id(p): nn.Parameter(tensors[name], requires_grad=False) for name, p in model.net.named_parameters()}
    copied = copy.deepcopy(model, shared)
    merge(copied.net)  # adapters, if it has any
    return copied


def preview(state: TrainingState, spec: DataSpec, steps: int, dtype: torch.dtype, count: int = 10) -> Image.Image:
    """A grid from fixed seeds: raw weights and the first average, without and with guidance, a row each.

    An average that is still the weights themselves is not drawn twice. A condition other than labels is left out.
    """
    model, classes = state.model, state.model.num_classes
    labels = [i % classes for i in range(count)] if classes and len(model.needs) == 1 else None
    travelling = state.nimg <= state.ema.start_nimg
    sets = list(weights_of(state).items())[: 1 if travelling else 2]
    scales = [1.0] if model.sampling.guidance == 1 or labels is None else [1.0, model.sampling.guidance]
    rows: list[Tensor] = []
    titles: list[str] = []
    for name, drawing in sets:
        for scale in scales:
            with autocast(model.device, dtype):
                rows.append(drawing.sample(labels, range(count), steps=steps, sampler="deis", guidance=scale))
            titles.append(f"{name}, guidance {scale:g}")
    columns = [spec.classes[label] for label in labels] if labels else []
    return grid(torch.cat(rows), spec, count, row_titles=titles, column_titles=columns)
