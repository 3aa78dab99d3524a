"""load: the model behind a path, whatever wrote it."""

import json
from pathlib import Path

import torch

from justimage.data.tables import is_hub_id
from justimage.denoiser import Denoiser
from justimage.execution import cast_parameters, compile_blocks, compiling_pays, device_called, fast_dtype
from justimage.weights.folder import CONFIG
from justimage.weights.hub import from_hub
from justimage.weights.official import load_official


def find_weights(run: Path, weights: str | None = None) -> Path:
    """The weights folder inside a run folder: by name (ema-0.9999, raw), by default the run's first average.

    Raises ValueError where there are none yet, or none of that name.
    """
    held = sorted(path.name for path in (run / "weights").glob("*/") if (path / CONFIG).is_file())
    if not held:
        raise ValueError(f"{run} has no weights yet; they appear with its first save")
    if weights is None:
        try:
            recipe = json.loads((run / "recipe.json").read_text())["recipe"]
            decays = [f"ema-{decay}" for decay in recipe["training"]["ema_decays"]]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{run / 'recipe.json'} is damaged ({error}); name the weights: {', '.join(held)}"
            ) from error
        weights = next((name for name in decays if name in held), "raw")
    if weights not in held:
        raise ValueError(f"{run} has the weights {', '.join(held)}, not {weights!r}")
    return run / "weights" / weights


def read(source: str | Path, *, weights: str | None = None, context_start: int | None = None) -> Denoiser:
    """The model behind a run folder, a weights folder, an official .pth or .safetensors, or a hub id.

    In float32 on the CPU, as stored. Arguments and errors as for `load`.
    """
    path = Path(source)
    if path.is_file():
        return load_official(path, weights, context_start)
    if path.is_dir() and (path / "recipe.json").is_file():
        return Denoiser.from_pretrained(find_weights(path, weights))
    if not path.is_dir():
        if not is_hub_id(str(source)):
            raise ValueError(f"{source} does not exist: neither a run, a weights folder nor a checkpoint")
        path = from_hub(str(source))
    if weights is not None:
        raise ValueError(f"{source} holds one set of weights; {weights!r} cannot be chosen from it")
    return Denoiser.from_pretrained(path)


def load(
    source: str | Path,
    *,
    weights: str | None = None,
    context_start: int | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    compile: bool | None = None,
) -> Denoiser:
    """A model ready to sample.

    source: a run folder, a weights folder, a hub id (USER/NAME), or an official checkpoint (.pth, .safetensors).
    weights: which of several, "ema-0.9999" or "raw" in a run, "ema1", "ema2" or "model" in an official .pth.
    context_start: the in-context start block of an official checkpoint that does not tell it.
    device, dtype, compile: by default the accelerator if there is one, bfloat16 where that is faster, and
    compiled blocks where that pays; dtype=torch.float32, compile=False is the reference.

    Raises ValueError where the source does not exist, is truncated or foreign, or does not hold these weights.
    """
    model = read(source, weights=weights, context_start=context_start)
    return prepare(model, device=device, dtype=dtype, compile=compile)


def prepare(
    model: Denoiser,
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    compile: bool | None = None,
) -> Denoiser:
    """Make a model ready to sample, in place; the arguments are those of `load`."""
    where = device if isinstance(device, torch.device) else device_called(device)
    dtype = fast_dtype(where) if dtype is None else dtype
    model.to(where).eval()
    cast_parameters(model.net, dtype)
    if compiling_pays(model.net, where, dtype) if compile is None else compile:
        compile_blocks(model.net)
    return model
