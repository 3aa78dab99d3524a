"""The weights that a run has, as models, and the picture of what they draw from fixed seeds."""

import torch
from PIL import Image
from torch import Tensor

from justimage.data.spec import DataSpec
from justimage.denoiser import Denoiser
from justimage.execution import autocast
from justimage.parallel import gathered
from justimage.sampling.pictures import grid
from justimage.training.adapters import merge
from justimage.training.shards import whole_together, with_tensors
from justimage.training.state import TrainingState


def names_of(state: TrainingState) -> list[str]:
    """The names of a run's weights: "raw" and "ema-AVERAGE"."""
    return ["raw", *(f"ema-{name}" for name in state.ema.called)]


def weights_named(state: TrainingState, name: str, *, needed: bool = True, on: torch.device | None = None) -> Denoiser:
    """Weights of a run, as a model that shares the state's memory, on its device; adapters are merged.

    Of a sharded run they are gathered, on the device `on` if that is given, and all processes call this. Where they are
    not `needed`, they have no memory.
    """
    tensors = state.model.net.state_dict() if name == "raw" else state.ema.tensors(name.removeprefix("ema-"))
    if state.sharded:
        tensors = {name: _gathered(tensor, needed, on or state.processes.device) for name, tensor in tensors.items()}
    model = with_tensors(state.plain, tensors)
    merge(model.net)  # adapters, if it has any
    model.training_summary, model.licence = dict(state.model.training_summary), state.model.licence
    return model


def _gathered(tensor: Tensor, needed: bool, on: torch.device) -> Tensor:
    full = whole_together(tensor.detach())
    return full.to(on if needed else "meta")


def default_weights(state: TrainingState) -> tuple[str, Denoiser]:
    """The weights that a run is sampled with by default, and their name: the first average, once it is one."""
    travelling = state.nimg <= state.ema.start_nimg
    name = "raw" if travelling or not state.ema.called else f"ema-{state.ema.called[0]}"
    return name, weights_named(state, name)


def preview(
    state: TrainingState, spec: DataSpec, steps: int, dtype: torch.dtype, count: int = 10
) -> Image.Image | None:
    """A grid from fixed seeds: raw weights and the first average, without and with guidance, a row each.

    An average that is still the weights themselves is not drawn twice. A condition other than labels is left out. All
    processes call this and draw some of the columns each; the first one gets the picture, the others None.
    """
    model, classes, processes = state.model, state.model.num_classes, state.processes
    labels = [i % classes for i in range(count)] if classes and len(model.needs) == 1 else None
    travelling = state.nimg <= state.ema.start_nimg
    scales = [1.0] if model.sampling.guidance == 1 or labels is None else [1.0, model.sampling.guidance]
    own = list(range(count))[processes.rank :: processes.world]
    own_labels = None if labels is None else [labels[seed] for seed in own]
    rows: list[Tensor] = []
    titles: list[str] = []
    for name in names_of(state)[: 1 if travelling else 2]:
        drawing = weights_named(state, name)
        for scale in scales:
            titles.append(f"{name}, guidance {scale:g}")
            if own:
                with autocast(processes.device, dtype):
                    rows.append(drawing.sample(own_labels, own, steps=steps, sampler="deis", guidance=scale))
    parts = [each for each in gathered(rows, processes) if each]
    if not processes.first:
        return None
    whole = [torch.empty(count, *parts[0][0].shape[1:], dtype=parts[0][0].dtype) for _ in titles]
    for rank, part in enumerate(parts):
        for row, drawn in zip(whole, part, strict=True):
            row[rank :: processes.world] = drawn
    columns = [spec.classes[label] for label in labels] if labels else []
    return grid(torch.cat(whole), spec, count, row_titles=titles, column_titles=columns)
