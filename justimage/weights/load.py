"""load: the model behind a path, whatever wrote it."""

from pathlib import Path
from typing import Any

import torch

from justimage.data.records import from_known, read_json
from justimage.data.tables import is_hub_id
from justimage.denoiser import Denoiser, Scalings
from justimage.disk.reading import nearest
from justimage.execution import (
    LARGE,
    cast_parameters,
    compile_blocks,
    compiling_pays,
    find_device,
    is_compiled,
    precision_of,
)
from justimage.networks.cost import cost_of
from justimage.networks.protocol import NETWORKS, NetworkClass, name_of
from justimage.precision import SAMPLING_PRECISIONS, fast_dtype
from justimage.weights.adapters import base_of, holds_adapters, on_base
from justimage.weights.description import Description, assign_tensors, check_same_meaning, describe, restore_model
from justimage.weights.folder import CONFIG, RECIPE, is_run, read_folder
from justimage.weights.hub import from_hub
from justimage.weights.int8 import use_int8
from justimage.weights.official import load_official, weight_sets_of
from justimage.weights.pieces import use_pieces


def weight_sets(source: str | Path) -> list[str]:
    """The names of the weights in a run ("ema-0.9999", "raw") or an official .pth; none for a single set.

    Raises ValueError where the source does not exist, or is a run without weights yet.
    """
    check_exists(source)
    path = Path(source)
    if path.is_file():
        return weight_sets_of(path)
    if is_run(path):
        return _held(path)
    return []


def check_exists(source: str | Path) -> None:
    """Raises ValueError, with the nearest path that exists, where there is nothing that `load` could read.

    A text USER/NAME is a hub id, unless USER is a folder here.
    """
    path = Path(source)
    if not path.exists() and not (is_hub_id(str(source)) and not path.parent.is_dir()):
        raise ValueError(f"{source} does not exist: neither a run, a weights folder nor a checkpoint{nearest(path)}")


def _held(run: Path) -> list[str]:
    held = sorted(path.name for path in (run / "weights").glob("*/") if (path / CONFIG).is_file())
    if not held:
        raise ValueError(f"{run} has no weights yet; they appear with its first save")
    return held


def find_weights(run: Path, weights: str | None = None) -> Path:
    """The weights folder inside a run folder: by name (ema-0.9999, raw), by default the run's first average.

    Raises ValueError where there are none yet, or none of that name.
    """
    held = _held(run)
    if weights is None:
        try:
            recipe = read_json(run / RECIPE)["recipe"]
            training = recipe["training"]
            decays = [f"ema-{decay}" for decay in training["ema_decays"]]
            decays += [f"ema-std-{std}" for std in training.get("ema_stds", ())]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{run / RECIPE} is damaged ({error}); name the weights: {', '.join(held)}") from error
        weights = next((name for name in decays if name in held), "raw")
    if weights not in held:
        raise ValueError(f"{run} has the weights {', '.join(held)}, not {weights!r}")
    return run / "weights" / weights


def read(
    source: str | Path,
    *,
    weights: str | None = None,
    context_start: int | None = None,
    network: NetworkClass | None = None,
    preconditioner: Scalings | None = None,
    allow_non_finite: bool = False,
    base: str | Path | None = None,
) -> Denoiser:
    """The model behind a run folder, a weights folder, adapters, an official .pth or .safetensors, or a hub id.

    In float32 on the CPU, as stored. Arguments and errors as for `load`.
    """
    check_exists(source)
    path = Path(source)
    own: dict[str, Any] = {"network": network, "preconditioner": preconditioner}
    if holds_adapters(path) and weights is None:
        return _on_base(path, base, allow_non_finite=allow_non_finite, **own)
    if base is not None:
        raise ValueError(f"{source} needs no base: it does not hold adapters alone")
    if path.is_file():
        return load_official(path, weights, context_start, allow_non_finite=allow_non_finite)
    return from_folder_or_hub(_folder_of(source, weights), allow_non_finite=allow_non_finite, **own)


def _folder_of(source: str | Path, weights: str | None) -> Path:
    """The weights folder in a run, or the folder itself. Raises ValueError where there is nothing to choose from."""
    if is_run(source):
        return find_weights(Path(source), weights)
    if weights is not None:
        raise ValueError(f"{source} holds one set of weights; {weights!r} cannot be chosen from it")
    return Path(source)


def _on_base(folder: Path, base: str | Path | None, *, allow_non_finite: bool, **own: Any) -> Denoiser:
    """The model of adapters, on their base: at the place that is given, or else where it was."""
    said = base_of(folder)
    try:
        # The sets of a run have names; what was chosen from it is chosen again, also at another place.
        under = read(
            base or said.path,
            weights=said.weights if base is None or weight_sets(base) else None,
            context_start=said.context_start,
            allow_non_finite=allow_non_finite,
            **own,
        )
    except ValueError as error:
        now = f"; where it is now, say with load(..., base=PATH), or jit convert {folder} FOLDER --base PATH"
        told = "" if base is not None else now
        raise ValueError(f"{folder} holds adapters, and their base cannot be read: {error}{told}") from error
    return on_base(folder, under, **own)


def from_folder_or_hub(
    source: str | Path,
    *,
    revision: str | None = None,
    network: NetworkClass | None = None,
    preconditioner: Scalings | None = None,
    allow_non_finite: bool = False,
) -> Denoiser:
    """The model of a weights folder, or of one downloaded by its hub id. Raises ValueError where it is not one."""
    folder = Path(source)
    if not folder.is_dir() and is_hub_id(str(source)):
        folder = from_hub(str(source), revision)
    tensors, description = read_folder(folder)
    return restore_model(
        description,
        tensors,
        network=network,
        preconditioner=preconditioner,
        where=str(folder / CONFIG),
        allow_non_finite=allow_non_finite,
    ).eval()


def load(
    source: str | Path,
    *,
    weights: str | None = None,
    context_start: int | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    compile: bool | None = None,
    network: NetworkClass | None = None,
    preconditioner: Scalings | None = None,
    allow_non_finite: bool = False,
    base: str | Path | None = None,
) -> Denoiser:
    """A model ready to sample.

    source: a run folder, a weights folder, adapters (RUN/adapters/NAME), a hub id (USER/NAME), or an official
    checkpoint (.pth, .safetensors).
    weights: which of several, "ema-0.9999" or "raw" in a run, "ema1", "ema2" or "model" in an official .pth.
    context_start: the in-context start block of an official checkpoint that does not record it.
    network, preconditioner: the class and the function, where the model was trained with the user's own.
    allow_non_finite: take weights that hold NaN or infinity, which draw nothing.
    base: the weights that adapters are for, where they are no longer where they were.
    device, dtype: by default the accelerator if there is one, and bfloat16 where that is faster; in float32 on a CPU,
    wide layers in pieces where that is (weights.pieces). dtype=torch.float32, compile=False is the reference;
    dtype=torch.int8 rounds the linear maps of the blocks (weights.int8), which is fast on CPUs without AMX, and such a
    model can only sample. compile: the blocks, which takes half a minute and pays where much is drawn (`compile_for`).

    Raises ValueError where the source does not exist, is truncated or foreign, does not hold these weights, or holds
    some that are not finite.
    """
    model = read(
        source,
        weights=weights,
        context_start=context_start,
        network=network,
        preconditioner=preconditioner,
        allow_non_finite=allow_non_finite,
        base=base,
    )
    return prepare(model, device=device, dtype=dtype, compile=compile)


def prepare(
    model: Denoiser,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    compile: bool | None = None,
) -> Denoiser:
    """Make a model ready to sample, in place; the arguments are those of `load`."""
    where = device if isinstance(device, torch.device) else find_device(device)
    if dtype is None:  # a network of the user's own need not know of any precision but float32
        dtype = fast_dtype(where) if name_of(model.net) in NETWORKS else torch.float32
    model.to(where).eval()
    if dtype == torch.int8:
        if where.type != "cpu":
            raise ValueError(
                f"int8 is for CPUs; on {where.type} load with dtype=torch.bfloat16, or --precision bfloat16"
            )
        use_int8(model.net)
    else:
        cast_parameters(model.net, dtype)
    if dtype == torch.float32 and compile is None and name_of(model.net) in NETWORKS:
        use_pieces(model.net, where)
    if compile:
        compile_blocks(model.net)
    return model


def compile_for(model: Denoiser, evaluations: int) -> None:
    """Compile the blocks of a loaded model, where so many evaluations of the network are worth it.

    Compiling takes longer than a few samples gain. Small networks gain less than that in drawing any usual number.
    """
    small = sum(p.numel() for p in model.net.parameters()) < LARGE
    if small or is_compiled(model.net) or name_of(model.net) not in NETWORKS:
        return
    dtype = SAMPLING_PRECISIONS[precision_of(model.net)]
    if compiling_pays(model.net, model.device, dtype, lambda: evaluations * cost_of(model.config).multiply_adds):
        compile_blocks(model.net)


def swap_weights(model: Denoiser, source: str | Path, weights: str | None = None) -> Denoiser:
    """Give a loaded model another set of weights of its run or checkpoint, in place; device and precision stay.

    Raises ValueError as `load` does, and where the weights are another network's or mean something else, or the model
    is in int8.
    """
    if precision_of(model.net) == "int8":
        raise ValueError(f"a model in int8 cannot take other weights; load {source} with dtype=torch.int8 instead")
    path = Path(source)
    if path.is_file():
        other = load_official(path, weights, getattr(model.config, "context_start", None))
        tensors, description = other.net.state_dict(), describe(other)
    else:
        path = _folder_of(path, weights)
        tensors, description = read_folder(path)
    said = from_known(Description, description, str(path))
    check_same_meaning(model, said, source)
    kept = {name: (each.device, each.dtype) for name, each in model.net.state_dict().items()}
    moved = {name: t.to(*kept[name]) if name in kept else t for name, t in tensors.items()}
    assign_tensors(model.net, moved, where=str(path))
    model.training_summary = said.training or {}
    return model
