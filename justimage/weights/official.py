"""Foreign weight layouts, both ways. The tables name every tensor; a tensor that no table names is an error.

The official layout (github.com/LTH14/JiT) is the state dict of its network with the prefix `net.`, in a .pth that
holds `model`, `model_ema1`, `model_ema2` and the command line as `args`, or alone in a .safetensors.
"""

import argparse
import pickle
import re
import warnings
from dataclasses import dataclass, fields, replace
from math import isqrt
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from justimage.data.records import from_plain, known_fields
from justimage.data.spec import DataSpec
from justimage.denoiser import Denoiser
from justimage.disk.growing import File
from justimage.disk.tensors import read_tensors, write_tensors
from justimage.disk.whole import whole
from justimage.networks.jit import VARIANT_COLUMNS, VARIANTS, JiT, JiTConfig
from justimage.samplers import Sampling
from justimage.weights.description import FLOATS, assign_tensors

# official -> ours; `#` stands for the number of a block. A name covers its .weight and .bias.
OFFICIAL_NAMES = {
    "net.pos_embed": "positions",
    "net.in_context_posemb": "condition.positions",
    "net.y_embedder.embedding_table.weight": "condition.table",
    "net.t_embedder.mlp.0": "time.hidden",
    "net.t_embedder.mlp.2": "time.out",
    "net.x_embedder.proj1": "embedding.down",
    "net.x_embedder.proj2": "embedding.up",
    "net.blocks.#.norm1": "blocks.#.norm1",
    "net.blocks.#.norm2": "blocks.#.norm2",
    "net.blocks.#.attn.qkv": "blocks.#.attention.qkv",
    "net.blocks.#.attn.q_norm": "blocks.#.attention.q_norm",
    "net.blocks.#.attn.k_norm": "blocks.#.attention.k_norm",
    "net.blocks.#.attn.proj": "blocks.#.attention.out",
    "net.blocks.#.mlp.w12": "blocks.#.mlp.up",
    "net.blocks.#.mlp.w3": "blocks.#.mlp.out",
    "net.blocks.#.adaLN_modulation.1": "blocks.#.modulation.linear",
    "net.final_layer.norm_final": "head.norm",
    "net.final_layer.linear": "head.linear",
    "net.final_layer.adaLN_modulation.1": "head.modulation.linear",
}
OUR_NAMES = {ours: official for official, ours in OFFICIAL_NAMES.items()}

# The start block is the one number that no tensor shows: Table 9 of arXiv 2511.13720, by the letter in args.model.
OFFICIAL_FILES, OFFICIAL_SAMPLERS = (".pth", ".safetensors"), ("heun", "euler")
T_EPS = 0.05  # where nothing else is said
OFFICIAL_VARIANTS = {"JiT-B": "B", "JiT-L": "L", "JiT-H": "H", "JiT-G": "G"}
WEIGHT_SETS = {"model": "model", "ema1": "model_ema1", "ema2": "model_ema2"}


def _renamed(name: str, table: dict[str, str]) -> str | None:
    if name in table:
        return table[name]
    stem, suffix = name, ""
    for ending in (".weight", ".bias"):
        if name.endswith(ending):
            stem, suffix = name.removesuffix(ending), ending
    number = re.search(r"(?<=blocks\.)\d+(?=\.)", stem)
    pattern = stem if number is None else stem[: number.start()] + "#" + stem[number.end() :]
    found = table.get(pattern)
    if found is None:
        return None
    return (found if number is None else found.replace("#", number.group())) + suffix


def _rename_all(tensors: dict[str, Tensor], table: dict[str, str], layout: str) -> dict[str, Tensor]:
    names = {name: _renamed(name, table) for name in tensors}
    unknown = [name for name, new in names.items() if new is None]
    if unknown:
        shown = ", ".join(unknown[:10]) + (f" and {len(unknown) - 10} more" if len(unknown) > 10 else "")
        raise ValueError(f"unknown tensors in {layout} weights: {shown}")
    return {new: tensors[name] for name, new in names.items() if new is not None}


# The tensors whose shapes are read, and how many axes they have. Those in the first line may be absent.
MAY_LACK = {"net.in_context_posemb": 3, "net.final_layer.linear.weight": 2, "net.final_layer.linear.bias": 1}
RANKS = {
    "net.pos_embed": 3,
    "net.x_embedder.proj1.weight": 4,
    "net.x_embedder.proj2.weight": 4,
    "net.y_embedder.embedding_table.weight": 2,
    "net.blocks.0.attn.q_norm.weight": 1,
    "net.blocks.0.mlp.w3.weight": 2,
}


def _check_tensors(tensors: Any, what: str) -> None:
    """Raises ValueError where this is not a dictionary of named floating-point tensors with the axes of `RANKS`."""
    if not isinstance(tensors, dict) or not tensors:
        raise ValueError(f"{what} is {_kind_of(tensors)}; a state dict, tensors by name, is needed")
    for name, tensor in tensors.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise ValueError(f"{what} holds {_kind_of(tensor)} under {name!r}; a tensor under a name is needed")
        if tensor.dtype not in FLOATS or tensor.layout is not torch.strided:
            raise ValueError(f"{what}: {name} is {_kind_of(tensor)}; floating-point numbers are needed")
    missing = [name for name in RANKS if name not in tensors]
    if missing:
        raise ValueError(f"{what}: these are not official JiT weights; missing: {', '.join(missing)}")
    for name, rank in (RANKS | MAY_LACK).items():
        shape = tuple(tensors[name].shape) if name in tensors else (1,) * rank
        if len(shape) != rank or 0 in shape:
            raise ValueError(f"{what}: {name} has the shape {shape}; {rank} axes, none of them empty, are needed")


def _kind_of(value: Any) -> str:
    """What something is, for messages."""
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)} of {str(value.dtype).removeprefix('torch.')}"
    return "empty" if isinstance(value, dict) and not value else type(value).__name__


def official_config(tensors: dict[str, Tensor], context_start: int | None = None) -> JiTConfig:
    """Read the shape of the network from official tensors; only the start block must be given.

    Raises ValueError where tensors it is read from are missing or of another shape, or the start block is not given.
    """
    _check_tensors(tensors, "the checkpoint")
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    bottleneck, channels, *patch = shapes["net.x_embedder.proj1.weight"]
    width = shapes["net.x_embedder.proj2.weight"][0]
    tokens, side = shapes["net.pos_embed"][1], isqrt(shapes["net.pos_embed"][1])
    if side * side != tokens:
        raise ValueError(f"net.pos_embed has {tokens} tokens, which is not a square grid as in official code")
    context_tokens = shapes.get("net.in_context_posemb", (1, 0))[1]
    if context_tokens and context_start is None:
        raise ValueError(
            "the in-context start block is in no tensor, and args.model does not name a variant that these tensors "
            "match; give it: load(..., context_start=4) or --context-start 4 (4, 8, 10, 10 in B, L, H, G)"
        )
    hidden = shapes["net.blocks.0.mlp.w3.weight"][1]
    ratios = (4.0, 1.5 * hidden / width, (1.5 * hidden + 1) / width)
    ratio = next((each for each in ratios if _hidden(width, each) == hidden), 0.0)  # 0 is refused by name
    blocks = {int(found.group(1)) for name in shapes if (found := re.match(r"net\.blocks\.(\d+)\.", name))}
    return JiTConfig(
        size=(side * patch[0], side * patch[1]),
        patch=(patch[0], patch[1]),
        channels=channels,
        num_classes=shapes["net.y_embedder.embedding_table.weight"][0] - 1,
        width=width,
        depth=max(blocks) + 1,
        heads=width // shapes["net.blocks.0.attn.q_norm.weight"][0],
        bottleneck=bottleneck,
        context_tokens=context_tokens,
        context_start=context_start or 0,
        mlp_ratio=ratio,
    )


def same_variant(config: JiTConfig, letter: str) -> bool:
    """Whether a network has all the numbers of a variant but the start block."""
    row = dict(zip(VARIANT_COLUMNS, VARIANTS[letter], strict=True))
    return all(
        getattr(config, name) == row[name] for name in ("depth", "width", "heads", "bottleneck", "context_tokens")
    )


def _hidden(width: int, ratio: float) -> int:
    return int(int(width * ratio) * 2 / 3)


def from_official(tensors: dict[str, Tensor], config: JiTConfig) -> dict[str, Tensor]:
    """Official tensors -> ours. Convolutions become linear maps of patches ordered (C, p, p), the head likewise."""
    ours = _rename_all(tensors, OFFICIAL_NAMES, "official")
    p, q = config.patch
    for name in ("positions", "condition.positions"):
        if name in ours:
            ours[name] = ours[name].squeeze(0)
    for name in ("embedding.down.weight", "embedding.up.weight"):
        ours[name] = ours[name].flatten(1)
    for name in ("head.linear.weight", "head.linear.bias"):  # rows (p, q, C) -> (C, p, q)
        if name in ours:
            if len(ours[name]) != p * q * config.channels:
                raise ValueError(
                    f"the head has {len(ours[name])} rows ({name}), but a patch has {p * q * config.channels} numbers"
                )
            ours[name] = (
                ours[name].unflatten(0, (p, q, config.channels)).permute(2, 0, 1, *range(3, ours[name].ndim + 2))
            )
            ours[name] = ours[name].flatten(0, 2)
    return ours


def to_official(tensors: dict[str, Tensor], config: JiTConfig) -> dict[str, Tensor]:
    """Our tensors -> official. Raises ValueError where the official code has no such network."""
    if len(config.size) != 2 or config.size[0] != config.size[1] or config.patch[0] != config.patch[1]:
        raise ValueError(
            f"official JiT is for square images; this network has size {config.size} and patch {config.patch}"
        )
    if config.classifier_after:
        raise ValueError(
            f"official JiT has no auxiliary classifier; this network has one after {config.classifier_after} blocks"
        )
    plain = config.rotary and config.qk_norm and config.rms_norm and config.swiglu and config.bottleneck
    if not plain or config.num_classes == 0 or config.conditions:
        raise ValueError(
            "official JiT has rotary positions, qk-norm, RMSNorm, SwiGLU, a bottleneck and class labels, "
            "and no other condition; this network differs"
        )
    ours = dict(tensors)
    p, q = config.patch
    for name in ("positions", "condition.positions"):
        if name in ours:
            ours[name] = ours[name].unsqueeze(0)
    ours["embedding.down.weight"] = ours["embedding.down.weight"].unflatten(1, (config.channels, p, q))
    ours["embedding.up.weight"] = ours["embedding.up.weight"][:, :, None, None]
    for name in ("head.linear.weight", "head.linear.bias"):  # rows (C, p, q) -> (p, q, C)
        ours[name] = ours[name].unflatten(0, (config.channels, p, q)).permute(1, 2, 0, *range(3, ours[name].ndim + 2))
        ours[name] = ours[name].flatten(0, 2)
    return {name: tensor.contiguous() for name, tensor in _rename_all(ours, OUR_NAMES, "our").items()}


def read_checkpoint(path: Path) -> Any:
    """All that a .pth holds, read with an allow-list (tensors, plain containers, argparse.Namespace).

    Raises ValueError for a file that is truncated, or holds anything else.
    """
    try:
        mapped = _begins_as_zip(path)  # torch writes zip archives since 1.6; older files cannot be mapped
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of pickle protocols, which noise may seem to have
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:  # its text advises to switch the protection off
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f" ({named.group(1)})" if named else ""
        raise ValueError(
            f"{path} holds more than tensors and settings{what}, or is damaged; it is not read, since reading it could "
            "run code"
        ) from error
    except MemoryError:
        raise
    except Exception as error:  # whatever torch stumbles over in a file of somebody else's
        raise ValueError(
            f"{path} cannot be read; it is truncated, or not a checkpoint ({type(error).__name__})"
        ) from error


def _begins_as_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


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
        _check_tensors(tensors, str(path))
        return tensors, argparse.Namespace()
    checkpoint = read_checkpoint(path)
    key = WEIGHT_SETS.get(weights or "ema1")
    if key is None:
        raise ValueError(f"an official checkpoint has the weights {', '.join(WEIGHT_SETS)}, not {weights!r}")
    if not isinstance(checkpoint, dict) or key not in checkpoint:
        held = ", ".join(map(str, checkpoint)) if isinstance(checkpoint, dict) else type(checkpoint).__name__
        raise ValueError(f"{path} holds {held}, but no {key}; it is not an official JiT checkpoint")
    _check_tensors(checkpoint[key], f"{key} in {path}")
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
    said = from_plain(Arguments, known_fields(Arguments, vars(args)), str(path), "args")
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
