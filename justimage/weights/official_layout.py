"""The official layout of weights (github.com/LTH14/JiT), both ways: names and shapes of tensors, and nothing else.

It is the state dict of the official network with the prefix `net.`. The tables name every tensor; a tensor that no
table names is an error.
"""

import re
from math import isqrt
from typing import Any

import torch
from torch import Tensor

from justimage.networks.jit import VARIANT_COLUMNS, VARIANTS, JiTConfig
from justimage.weights.description import FLOATS

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


def check_tensors(tensors: Any, what: str) -> None:
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
    check_tensors(tensors, "the checkpoint")
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
