"""Weights: folders and official checkpoints whose fields and tensors are others, not finite, or code."""

import argparse
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from justimage.weights.official import save_official

from ..case import Case, Expect, Rng, choose, pick
from ..damage import BYTES, HOSTILE, damage, instead_of, mutate_json_file
from .arrays import Runs
from .networks import SAMPLE, model, read_weights, same, weights

TENSORS, CONFIG = Path("set/model.safetensors"), Path("set/config.json")


def folder_case(rng: Rng, mutation: str, expect: Expect = "either", words: tuple[str, ...] = ()) -> Case:
    """Weights in set/: sampled from, or converted."""
    convert = ("convert", "set", pick(rng, ("out.pth", "out.safetensors")))
    command = pick(rng, (tuple(SAMPLE.split()), tuple(SAMPLE.split()), convert))
    names = ("config.json", "model.safetensors", "set", "tensors", *words)
    return Case(mutation, command, expect, names, finite_samples, writes=("out", command[-1]))


def finite_samples() -> str:
    """Whether samples, where there are some, are pictures at all: not of one value."""
    from PIL import Image

    for path in Path("out").glob("*.png"):
        pixels = np.asarray(Image.open(path))
        if path.name != "grid.png" and pixels.min() == pixels.max():
            return "samples of one value"
    return ""


def none(rng: Rng) -> Case:
    """Good weights, of one layout or the other."""
    if rng.random() < 0.5:
        weights(rng)
        return folder_case(rng, "none", "accept")
    made = model(rng)
    wanted = {name: tensor.clone() for name, tensor in made.net.state_dict().items()}
    path = pick(rng, ("set.pth", "set.safetensors"))
    save_official(made, Path(path))
    more = () if path == "set.pth" else ("--context-start", "1")
    right = lambda: same(read_weights("out"), wanted)  # noqa: E731 (a value of the case)
    return Case("none", ("convert", path, "out", *more), "accept", (path,), right)


def config(rng: Rng) -> Case:
    """A field of config.json changed, dropped or of another type."""
    weights(rng)
    name, what = mutate_json_file(rng, CONFIG)
    return folder_case(rng, f"config: {what}", words=(name,))


def architecture(rng: Rng) -> Case:
    """The same to a field of the network, which tensors tell to be wrong; absurd sizes take no memory."""
    weights(rng)
    values = json.loads(CONFIG.read_text())
    part = values[pick(rng, ("architecture", "architecture", "prediction", "data", "sampling"))]
    name = pick(rng, part)
    part[name] = pick(rng, (*HOSTILE, 10**9, float("nan"), -1))
    CONFIG.write_text(json.dumps(values))
    not_finite = isinstance(part[name], float) and not np.isfinite(part[name])
    return folder_case(rng, f"{name} = {str(part[name])[:12]}", "refuse" if not_finite else "either", (name,))


def broken_config(rng: Rng) -> Case:
    """A config.json that is damaged, no JSON, or not there."""
    weights(rng)
    if rng.random() < 0.3:
        return folder_case(rng, f"config: {instead_of(rng, CONFIG)}", "refuse")
    if rng.random() < 0.5:
        CONFIG.write_bytes(
            pick(rng, (b"[]", b"null", b'"x"', b"1", b"[" * 5000, b"\xff\xfe", b'{"format": "justimage/1"}'))
        )
        return folder_case(rng, "config: no JSON", "refuse")
    how = pick(rng, BYTES)
    damage(rng, CONFIG, how)
    return folder_case(rng, f"{how} config")


def change_tensor(rng: Rng, tensors: dict[str, Any]) -> tuple[str, str, Expect]:
    """One tensor changed in place -> what was done, its name, and whether that must be noticed."""
    name = pick(rng, tensors)
    tensor = tensors[name]
    flat = tensor.clone().flatten()
    place = int(rng.integers(flat.numel()))
    changes: dict[str, Callable[[], Any]] = {
        "NaN": lambda: flat.index_fill(0, torch.tensor(place), float("nan")).view(tensor.shape),
        "infinity": lambda: flat.index_fill(0, torch.tensor(place), float("inf")).view(tensor.shape),
        "whole numbers": lambda: tensor.to(pick(rng, (torch.int64, torch.uint8, torch.bool))),
        "complex": lambda: tensor.to(torch.complex64),
        "half precision": lambda: tensor.to(pick(rng, (torch.float16, torch.bfloat16, torch.float64))),
        "another rank": lambda: pick(rng, (tensor[None], flat, tensor.sum(), tensor[:0])),
        "transposed": lambda: tensor.transpose(0, -1).contiguous() if tensor.ndim > 1 else tensor[None],
        "missing": lambda: None,
        "another name": lambda: None,
    }
    what = pick(rng, changes)
    new = changes[what]()
    if what == "another rank" and new is not None and new.shape == tensor.shape:  # it was flat already
        new = tensor[None]
    if new is None:
        del tensors[name]
        if what == "another name":
            tensors[pick(rng, (f"{name}.x", "x", "", "blocks.99.x", "../x"))] = tensor
    else:
        tensors[name] = new
    square = what == "transposed" and new is not None and new.shape == tensor.shape
    return what, name, "either" if what == "half precision" or square else "refuse"


def tensors(rng: Rng) -> Case:
    """One tensor changed."""
    weights(rng)
    found: dict[str, Any] = load_file(TENSORS)
    what, name, expect = change_tensor(rng, found)
    save_file(found, TENSORS)
    return folder_case(rng, f"a tensor: {what}", expect, words=(name,))


def damaged_tensors(rng: Rng) -> Case:
    """A damaged file of tensors. A flipped bit of a value is a value, unless it is not finite."""
    weights(rng)
    if rng.random() < 0.2:
        return folder_case(rng, f"tensors: {instead_of(rng, TENSORS)}", "refuse")
    how, before = pick(rng, (*BYTES, "flip", "flipped header")), TENSORS.read_bytes()
    if how == "flipped header":
        size = int.from_bytes(before[:8], "little") + 8
        place = int(rng.integers(size))
        TENSORS.write_bytes(before[:place] + bytes([before[place] ^ (1 << int(rng.integers(8)))]) + before[place + 1 :])
    else:
        damage(rng, TENSORS, how)
    same_bytes = TENSORS.read_bytes() == before
    expect: Expect = "accept" if same_bytes else "refuse" if how in ("cut", "emptied", "noise") else "either"
    try:
        finite = all(bool(torch.isfinite(t).all()) for t in load_file(TENSORS).values())
    except Exception:  # the reference cannot read it: then nobody needs to
        finite, expect = True, "either" if expect == "accept" else "refuse"
    return folder_case(rng, f"{how} tensors", expect if finite else "refuse")


def official_case(rng: Rng, mutation: str, checkpoint: Any, expect: Expect, words: tuple[str, ...] = ()) -> Case:
    """A .pth with these contents: converted, or sampled from."""
    torch.save(checkpoint, "set.pth")
    sample = ("sample", "set.pth", *SAMPLE.split()[2:])
    return Case(
        mutation, pick(rng, (("convert", "set.pth", "out"), sample)), expect, ("set.pth", *words), finite_samples
    )


def official(rng: Rng) -> Any:
    """The contents of a good .pth, each set of weights a dictionary of its own."""
    save_official(model(rng), Path("good.pth"))
    with torch.serialization.safe_globals([argparse.Namespace]):
        checkpoint = torch.load("good.pth", weights_only=True)
    Path("good.pth").unlink()
    return {**checkpoint, "model_ema1": {name: tensor.clone() for name, tensor in checkpoint["model_ema1"].items()}}


def official_tensors(rng: Rng) -> Case:
    """One tensor of an official checkpoint changed, or something else where it should be."""
    checkpoint = official(rng)
    found = checkpoint["model_ema1"]
    if rng.random() < 0.3:
        name = pick(rng, found)
        value = pick(rng, (None, 1, "x", [], [1.0], {}, [None]))
        found[name] = value
        return official_case(rng, f"a tensor that is {value!r}", checkpoint, "refuse", (name,))
    what, name, expect = change_tensor(rng, found)
    return official_case(rng, f"official tensor: {what}", checkpoint, expect, (name, "tensors"))


def official_entries(rng: Rng) -> Case:
    """The checkpoint's own entries changed."""
    checkpoint = official(rng)
    entry = pick(rng, ("model_ema1", "args", "args", "everything"))
    value = pick(rng, (None, [], {}, "x", 1, torch.zeros(2), [torch.zeros(2)], {1: 2}, {"net.x": 1}))
    if entry == "everything":
        return official_case(rng, f"a checkpoint that is a {type(value).__name__}", value, "refuse")
    checkpoint[entry] = value
    expect: Expect = "either" if entry == "args" else "refuse"
    return official_case(rng, f"{entry}: a {type(value).__name__}", checkpoint, expect, (entry, "context-start"))


def official_args(rng: Rng) -> Case:
    """A setting in args changed."""
    checkpoint = official(rng)
    settings = vars(checkpoint["args"])
    name = pick(rng, settings)
    value = pick(rng, (*HOSTILE, float("nan"), float("inf"), -1.0, 10**9, None, "x"))
    settings[name] = value
    used = name not in ("img_size", "class_num", "model")
    not_finite = used and isinstance(value, float) and not np.isfinite(value)
    flags = {"cfg": "guidance", "num_sampling_steps": "steps", "sampling_method": "sampler", "proj_dropout": "dropout"}
    words = (name, flags.get(name, name), "interval", "dropout_scores")
    return official_case(
        rng, f"args.{name} = {str(value)[:12]}", checkpoint, "refuse" if not_finite else "either", words
    )


def code(rng: Rng) -> Case:
    """A pickle that would run code, as a .pth or where one is expected."""
    checkpoint = official(rng)
    where = pick(rng, ("args", "model_ema1", "extra", "bare", "protocol 0"))
    if where in ("bare", "protocol 0"):
        Path("set.pth").write_bytes(pickle.dumps({**checkpoint, "args": Runs()} if where == "bare" else Runs(), 0))
        return Case(f"code: {where}", ("convert", "set.pth", "out"), "refuse", ("set.pth",))
    return official_case(rng, f"code in {where}", {**checkpoint, where: Runs()}, "refuse")


def damaged_official(rng: Rng) -> Case:
    """A damaged .pth."""
    save_official(model(rng), Path("set.pth"))
    how = pick(rng, BYTES)
    damage(rng, Path("set.pth"), how)
    known: Expect = "refuse" if how in ("emptied", "noise") else "either"
    return Case(f"{how} .pth", ("convert", "set.pth", "out"), known, ("set.pth",))


MUTATIONS: dict[str, Callable[[Rng], Case]] = {
    "none": none,
    "config": config,
    "architecture": architecture,
    "broken config": broken_config,
    "tensors": tensors,
    "damaged tensors": damaged_tensors,
    "official tensors": official_tensors,
    "official entries": official_entries,
    "official args": official_args,
    "code": code,
    "damaged official": damaged_official,
}


def case(rng: Rng) -> Case:
    """A case of this door."""
    return choose(rng, MUTATIONS)[1](rng)
