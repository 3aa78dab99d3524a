"""Official checkpoints, read and written as models.

They are a .pth that holds `model`, `model_ema1` and `model_ema2` in the official layout (`official_layout`), and the
command line as `args`; or one of these sets alone in a .safetensors.
"""

import argparse
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from justimage.data.records import from_known
from justimage.data.spec import DataSpec
from justimage.denoiser import Denoiser
from justimage.disk.growing import File
from justimage.disk.tensors import read_tensors, write_tensors
from justimage.disk.whole import whole
from justimage.networks.jit import JiT, JiTConfig
from justimage.samplers import Sampling
from justimage.weights.description import assign_tensors
from justimage.weights.official_layout import check_tensors, from_official, official_config, same_variant, to_official
from justimage.weights.pickles import read_checkpoint

OFFICIAL_FILES, OFFICIAL_SAMPLERS = (".pth", ".safetensors"), ("heun", "euler")
T_EPS = 0.05  # where nothing else is said
# The start block is the one number that no tensor shows: Table 9 of arXiv 2511.13720, by the letter in args.model.
OFFICIAL_VARIANTS = {"JiT-B": "B", "JiT-L": "L", "JiT-H": "H", "JiT-G": "G"}
WEIGHT_SETS = {"model": "model", "ema1": "model_ema1", "ema2": "model_ema2"}


def weight_sets_of(path: Path) -> list[str]:
    """The sets of weights that an official checkpoint holds, by our names; none for a .safetensors."""
    checkpoint = {} if path.suffix == ".safetensors" else read_checkpoint(path)
    return [name for name, key in WEIGHT_SETS.items() if isinstance(checkpoint, dict) and key in checkpoint]


def read_official(path: Path, weights: str | None = None) -> tuple[dict[str, Tensor], argparse.Namespace]:
    """One set of weights (model, ema1 or ema2; ema1 by default) and the args of an official checkpoint.

    No code in the file is run. Raises ValueError for a truncated or foreign file, or a set that it does not hold.
    """
    if path.suffix == ".safetensors":
        if weights not in (None, "model"):
            raise ValueError(f"{path} holds one set of weights; {weights} cannot be chosen from it")
        tensors = read_tensors(path)
        check_tensors(tensors, str(path))
        return tensors, argparse.Namespace()
    checkpoint = read_checkpoint(path)
    key = WEIGHT_SETS.get(weights or "ema1")
    if key is None:
        raise ValueError(f"an official checkpoint has the weights {', '.join(WEIGHT_SETS)}, not {weights!r}")
    if not isinstance(checkpoint, dict) or key not in checkpoint:
        held = ", ".join(map(str, checkpoint)) if isinstance(checkpoint, dict) else type(checkpoint).__name__
        raise ValueError(f"{path} holds {held}, but no {key}; it is not an official JiT checkpoint")
    check_tensors(checkpoint[key], f"{key} in {path}")
    args = checkpoint.get("args")
    return checkpoint[key], args if isinstance(args, argparse.Namespace) else argparse.Namespace()


@dataclass(frozen=True)
class Arguments:
    """What is read of the official command line; whoever trains with it may have left any of it out."""

    model: str = ""
    context_start: int | None = None
    """Written by save_official."""
    proj_dropout: float = 0.0
    attn_dropout: float = 0.0
    num_sampling_steps: int = 50
    sampling_method: str = "heun"
    cfg: float = 1.0
    interval_min: float = 0.1
    interval_max: float = 1.0
    t_eps: float = T_EPS
    noise_scale: float | None = None


def load_official(
    path: Path, weights: str | None = None, context_start: int | None = None, *, allow_non_finite: bool = False
) -> Denoiser:
    """An official checkpoint as a Denoiser. What the tensors show wins over what args say.

    context_start: the in-context start block, where args.model does not name the variant that the tensors have.
    Raises ValueError as `read_official`, `official_config` and `from_official` do, for args of another type, and for
    weights that are not finite, unless they are allowed.
    """
    tensors, args = read_official(path, weights)
    said = from_known(Arguments, vars(args), str(path), "args")
    context_start = said.context_start if context_start is None else context_start
    if context_start is None:
        letter = OFFICIAL_VARIANTS.get(said.model.partition("/")[0])
        if letter is not None and same_variant(official_config(tensors, 0), letter):
            context_start = JiTConfig.variant(f"{letter}/16").context_start
    config = official_config(tensors, context_start)
    config = replace(
        config,
        dropout=float(said.proj_dropout),
        dropout_scores=float(said.attn_dropout),
    )
    method: Any = said.sampling_method
    sampling = Sampling(
        steps=said.num_sampling_steps,
        sampler=method,
        guidance=float(said.cfg),
        interval=(float(said.interval_min), float(said.interval_max)),
    )
    with torch.device("meta"):
        net = JiT(config)
    try:
        ours = from_official(tensors, config)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    assign_tensors(net, ours, allow_non_finite=allow_non_finite, where=str(path))
    classes = [str(i) for i in range(config.num_classes)]
    return Denoiser(
        net,
        t_eps=float(said.t_eps),
        noise_scale=max(config.size[0] / 256, 1.0) if said.noise_scale is None else float(said.noise_scale),
        spec=DataSpec.pixels(config.size, config.channels, classes) if config.channels == 3 else None,
        sampling=sampling,
        licence="mit",
    ).eval()


def check_official_name(path: Path) -> None:
    """Raises ValueError where official weights cannot be written to a file of this name."""
    if path.suffix not in OFFICIAL_FILES:
        raise ValueError(f"official weights are written to a .pth or a .safetensors, not to {path.name}")


def lost_in_official(model: Denoiser, path: Path) -> list[str]:
    """What the official layout has no place for, of this model in a file of this name: in words, with the values."""
    spec, sampling, lost = model.spec, model.sampling, list[str]()
    if spec is not None:
        images = DataSpec.pixels(spec.size, len(spec.channels), spec.classes) if len(spec.channels) in (1, 3) else None
        if images is None or any(getattr(spec, name) != getattr(images, name) for name in ("mean", "scale", "dtype")):
            lost.append(f"raw values: {spec.dtype}, channels {', '.join(spec.channels[:8])} with scales of their own")
        if spec.named:
            lost.append(f"class names ({', '.join(spec.classes[:5])}{', ...' if len(spec.classes) > 5 else ''})")
    noise = {"noise_scale": (model.noise_scale, max(model.config.size[0] / 256, 1.0)), "t_eps": (model.t_eps, T_EPS)}
    if path.suffix == ".safetensors":
        lost += [f"{name} {value:g}" for name, (value, usual) in noise.items() if value != usual]
    there = () if path.suffix == ".safetensors" else ("steps", "guidance", "interval")
    usual = Sampling()
    for each in fields(sampling):
        value = getattr(sampling, each.name)
        official = each.name == "sampler" and there and value in OFFICIAL_SAMPLERS
        if each.name not in there and not official and value != getattr(usual, each.name):
            lost.append(f"{each.name} {value}")
    return lost


def save_official(model: Denoiser, path: Path) -> None:
    """Write a model in the official layout: .safetensors, or a .pth that the official code resumes from.

    The .pth is a pickle of tensors and an argparse.Namespace, the only one this package writes, as that is what the
    official code reads; it holds the same tensors as model, model_ema1 and model_ema2.
    """
    check_official_name(path)
    if path.exists():
        raise ValueError(f"{path} exists, and is not overwritten")
    if model.space != "x" or model.preconditioner != "none":
        raise ValueError(f"official JiT predicts x; this network predicts {model.space} ({model.preconditioner})")
    if not isinstance(model.config, JiTConfig):
        raise ValueError(f"the official layout is for JiT; this network is a {type(model.net).__name__}")
    config = model.config
    tensors = to_official(model.net.state_dict(), config)
    if path.suffix == ".safetensors":
        write_tensors(path, tensors)
        return
    named = [name for name, letter in OFFICIAL_VARIANTS.items() if same_variant(config, letter)]
    args = argparse.Namespace(
        model=f"{named[0] if named else 'JiT'}/{config.patch[0]}",
        context_start=config.context_start,
        img_size=config.size[0],
        class_num=config.num_classes,
        attn_dropout=config.dropout_scores,
        proj_dropout=config.dropout,
        noise_scale=model.noise_scale,
        t_eps=model.t_eps,
        cfg=model.sampling.guidance,
        interval_min=model.sampling.interval[0],
        interval_max=model.sampling.interval[1],
        num_sampling_steps=model.sampling.steps,
        sampling_method=model.sampling.sampler if model.sampling.sampler in OFFICIAL_SAMPLERS else "heun",
    )
    with whole(path, durable=True) as beside, File(beside, "wb") as file:
        try:
            torch.save({**dict.fromkeys(WEIGHT_SETS.values(), tensors), "epoch": 0, "args": args}, file)
        except RuntimeError as error:  # torch's own, where the disk is full
            raise file.error or error from error
