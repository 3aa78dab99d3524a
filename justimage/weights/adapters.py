"""Adapters alone on disk: what a fine-tuning has added to a base, without the base.

adapters.safetensors   up/NAME (out, rank) and down/NAME (rank, in), whose product is added to the base's weight NAME;
                       whole/NAME, a tensor that stands in place of the base's
adapters.json          the base (where it was, which of its weights, the sum of its tensors), and what the model is
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from justimage.data.records import from_known, read_json
from justimage.denoiser import Denoiser
from justimage.disk.tensors import read_tensors, sum_of, write_tensors
from justimage.disk.whole import whole, write_text
from justimage.weights.description import assign_tensors, restore_model
from justimage.weights.folder import ADAPTERS
from justimage.weights.transfer import transfer

FORMAT = "justimage-adapters/1"
TENSORS, CONFIG = "adapters.safetensors", ADAPTERS


@dataclass(frozen=True)
class Base:
    """The weights that a fine-tuning began from."""

    path: str
    sum: str
    """Of its tensors (`disk.sum_of`): adapters of other weights are refused."""
    weights: str | None = None
    context_start: int | None = None


@dataclass(frozen=True)
class _Config:
    base: Base
    model: dict[str, Any]


def save_adapters(
    folder: Path,
    description: dict[str, Any],
    base: Base,
    products: Mapping[str, tuple[Tensor, Tensor]],
    others: Mapping[str, Tensor],
) -> None:
    """Write a folder of adapters. description: of the model (`weights.description.describe`).

    products: (up, down) whose product is added to each weight; others: tensors in place of the base's.
    """
    tensors = {f"whole/{name}": tensor for name, tensor in others.items()}
    for name, (up, down) in products.items():
        tensors |= {f"up/{name}": up, f"down/{name}": down}
    config = {"format": FORMAT, "base": asdict(base), "model": description}
    with whole(folder / CONFIG) as facts, whole(folder / TENSORS) as values:
        write_tensors(values, tensors, {"format": "pt"})
        write_text(facts, json.dumps(config, indent=2) + "\n")


def holds_adapters(path: Path) -> bool:
    """Whether a folder holds adapters alone."""
    return (path / CONFIG).is_file()


def base_of(folder: Path) -> Base:
    """The weights that adapters are for. Raises ValueError where their file is damaged or something else."""
    return _read_config(folder).base


def _read_config(folder: Path) -> _Config:
    where = folder / CONFIG
    values = read_json(where)
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise ValueError(f'{where} is not of the format "{FORMAT}": it is damaged, or was written by other code')
    return from_known(_Config, values, str(where))


def on_base(folder: Path, base: Denoiser, **own: Any) -> Denoiser:
    """The model that adapters make of their base, merged. own: network, preconditioner, as for `restore_model`.

    Raises ValueError where the base is not the one that they were trained on, or a file is damaged.
    """
    config, tensors = _read_config(folder), read_tensors(folder / TENSORS)
    where = str(folder / TENSORS)
    if sum_of(base.net.state_dict()) != config.base.sum:
        raise ValueError(
            f"{folder} holds adapters of other weights than those given: of {config.base.path} as it was when they "
            "were trained; give that one: load(..., base=PATH), or jit convert ADAPTERS FOLDER --base PATH"
        )
    model = restore_model(config.model, where=str(folder / CONFIG), **own)
    transfer(model, base, config.base.path)
    merged = model.net.state_dict()
    for full, tensor in tensors.items():
        kind, _, name = full.partition("/")
        if kind == "whole":
            merged[name] = tensor
        elif kind == "up":
            merged[name] = _sum(name, merged.get(name), tensor, tensors.get(f"down/{name}"), where)
        elif kind != "down" or f"up/{name}" not in tensors:
            raise ValueError(f"{where} holds {full}, which no adapters have; it is damaged, or was written by others")
    assign_tensors(model.net, merged, where=where)
    return model.eval()


def _sum(name: str, weight: Tensor | None, up: Tensor, down: Tensor | None, where: str) -> Tensor:
    """weight (out, in) + up (out, rank) down (rank, in). Raises ValueError where they do not fit together."""
    if (
        weight is None
        or down is None
        or weight.shape != up.shape[:1] + down.shape[1:]
        or up.shape[1:] != down.shape[:1]
    ):
        raise ValueError(f"{where}: the adapters of {name} do not fit a network of this description")
    return torch.addmm(weight, up, down)
