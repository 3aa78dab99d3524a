"""The weights of one model as the start of another: what is taken as it is, what is resized, what is drawn anew.

    found = transfer(model, base)       # model: made for its own data, every weight drawn; base: as `read` gives it

| what differs         | what happens                                                                              |
|----------------------|-------------------------------------------------------------------------------------------|
| size                 | tables of positions are those of the new grid; learned positions in the sequence are kept |
| classes              | rows by name, or by index where no names are known; a new class starts as "no class"      |
| no classes any more  | the null row is added where a row of a class was: what was drawn without a class          |
| channels             | by name, where both data name them; a new channel starts unseen, and drawn as zero        |
| patch                | patch embedding and head are drawn anew                                                   |
| other conditions     | parts that the weights do not have are drawn anew                                         |
| anything else        | refused, with a list                                                                      |
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from math import prod
from typing import Any

import torch
from torch import Tensor

from justimage.data.spec import DataSpec
from justimage.denoiser import Denoiser
from justimage.networks.protocol import name_of

# What of a configuration may differ: it changes the shapes of tensors that can be resized, or no function of them.
FREE = ("size", "patch", "channels", "num_classes", "conditions", "dropout", "dropout_scores", "float32_attention")

Places = list[int | None]  # for each entry of ours, which of theirs it is; None: a new one


@dataclass
class Transfer:
    """What became of every tensor, by name."""

    loaded: list[str] = field(default_factory=list)
    """Taken as they are."""
    resized: dict[str, str] = field(default_factory=dict)
    """Taken in part -> how."""
    drawn: dict[str, str] = field(default_factory=dict)
    """Of the network, keeping the weights that were drawn -> why."""
    left: dict[str, str] = field(default_factory=dict)
    """Of the weights, without a place in the network -> why."""

    def counts(self) -> str:
        """The number of each, for the user; skipped are those drawn anew and those left out."""
        skipped = len(self.drawn | self.left)
        return f"{len(self.loaded)} tensors loaded, {len(self.resized)} resized, {skipped} skipped"


def transfer(model: Denoiser, base: Denoiser, where: str = "these weights") -> Transfer:
    """Start a model from the weights of another, in place.

    where: what the weights are called in messages. Raises ValueError, with a list of what differs and of what would be
    kept, where the network is another one, or its output or its noise means something else.
    """
    found, tensors, misfits = _fitted(model, base)
    differ = differences(model, base) or misfits  # where the networks differ, many shapes do
    if differ:
        raise ValueError(_refusal(differ, found, len(base.net.state_dict()), where))
    model.net.load_state_dict(tensors)
    return found


def differences(model: Denoiser, base: Denoiser) -> dict[str, tuple[Any, Any]]:
    """What keeps a model from starting with the weights of another: option -> (value in the weights, in the model)."""
    theirs = {"network": name_of(base.net)}
    ours = {"network": name_of(model.net)}
    for side, of in ((theirs, base), (ours, model)):
        if theirs["network"] == ours["network"]:
            names = [item.name for item in fields(of.config) if item.name not in FREE]
            side |= {f"network.{name}": getattr(of.config, name) for name in names}
        side |= {"prediction": of.space, "preconditioner": of.preconditioner, "noise-scale": of.noise_scale}
    if _channel_places(model, base) is None:
        theirs["channels"], ours["channels"] = _channels(base), _channels(model)
    return {name: (theirs[name], value) for name, value in ours.items() if theirs[name] != value}


def _channels(model: Denoiser) -> str:
    named = ", ".join(model.spec.channels[:6]) if model.spec is not None else "without names"
    return f"{model.config.channels} ({named})"


def _fitted(
    model: Denoiser, base: Denoiser
) -> tuple[Transfer, dict[str, Tensor], dict[str, tuple[Sequence[int], Sequence[int]]]]:
    """What becomes of every tensor, the state dict that the model gets, and the shapes of tensors that do not fit."""
    found, misfits = Transfer(), {}
    theirs, tensors = base.net.state_dict(), dict(model.net.state_dict())
    axes: dict[str, tuple[str, int]] = dict(
        getattr(model.net, "axes", {}).items() & getattr(base.net, "axes", {}).items()
    )
    tables = {name for name, _ in model.net.named_buffers()}
    for name, mine in tensors.items():
        other, (what, axis) = theirs.get(name), axes.get(name, ("", 0))
        if other is None:
            tensors[name] = _absent(name, mine, what, base, found)
        elif name in tables and (other.shape != mine.shape or _grid(base) != _grid(model)):
            found.resized[name] = f"for the grid {_grid(model)}"
        elif what and _across(other, axis) != _across(mine, axis):
            misfits[name] = tuple(other.shape), tuple(mine.shape)
        elif what == "classes" and _has_rows(mine, axis, model) and _has_rows(other, axis, base):
            tensors[name] = _by_class(name, mine, other, axis, model, base, found)
        elif what in ("patch", "planes"):
            tensors[name] = _by_channel(name, mine, other, what, axis, model, base, found)
        elif other.shape == mine.shape:
            tensors[name] = other
            found.loaded.append(name)
        else:
            misfits[name] = tuple(other.shape), tuple(mine.shape)
    found.left |= {name: "not in this network" for name in theirs if name not in tensors}
    if base.num_classes and not model.num_classes:
        _add_null_row(tensors, theirs, base, found)
    return found, tensors, misfits


def _grid(model: Denoiser) -> Any:
    return getattr(model.config, "grid", None)


def _across(tensor: Tensor, axis: int) -> tuple[int, ...]:
    """The shape without one axis."""
    return tuple(length for i, length in enumerate(tensor.shape) if i != axis)


def _has_rows(tensor: Tensor, axis: int, model: Denoiser) -> bool:
    """Whether an axis has an entry for each class, and perhaps one for none; a condition may mean it otherwise."""
    return model.num_classes > 0 and tensor.shape[axis] - model.num_classes in (0, 1)


def _absent(name: str, mine: Tensor, what: str, base: Denoiser, found: Transfer) -> Tensor:
    """A tensor that the weights do not have. Rows of classes are zero where they knew none: what they drew before."""
    if what == "classes" and base.num_classes == 0:
        found.resized[name] = f"{len(mine)} rows of zeros, as these weights know no classes"
        return torch.zeros_like(mine)
    found.drawn[name] = "not in these weights"
    return mine


def _by_class(
    name: str, mine: Tensor, other: Tensor, axis: int, model: Denoiser, base: Denoiser, found: Transfer
) -> Tensor:
    """Rows of classes, and the null row as null.

    A new class starts at the null row, which draws what all classes together are: no other row means so little that is
    wrong, and the network knows it, as it does not know the mean of the rows.
    """
    places, how = class_places(model, base)
    known = [place for place in places if place is not None]
    same = places == list(range(base.num_classes))
    if same and mine.shape == other.shape:
        found.loaded.append(name)
        return other
    ours, theirs = mine.clone().movedim(axis, 0), other.movedim(axis, 0)
    null = theirs[base.num_classes :]  # (1, ...), or nothing where there is none
    for i, place in enumerate(places):
        if place is not None:
            ours[i] = theirs[place]
        elif len(null):
            ours[i] = null[0]
    ours[model.num_classes :] = null
    new = len(places) - len(known)
    started = "started at the null row" if len(null) else "drawn anew"
    kept = f"{len(known)} classes {how}" if known else "no name in common"
    text = f"{len(theirs)} -> {len(ours)} rows: {kept}" + (f", {new} new {started}" * bool(new))
    dropped = base.num_classes - len(known)
    found.resized[name] = text + (f", {dropped} left out" * bool(dropped))
    return ours.movedim(0, axis)


def class_places(model: Denoiser, base: Denoiser) -> tuple[Places, str]:
    """Which class of the weights each class of the model is, and how that was found: by name or by index."""
    ours, theirs = _names(model.spec, "classes"), _names(base.spec, "classes")
    if set(ours) & set(theirs):
        return [theirs.index(name) if name in theirs else None for name in ours], "by name"
    counts = model.num_classes, base.num_classes
    if not (ours and theirs) or (counts[0] == counts[1] and (_numbered(ours) or _numbered(theirs))):
        return [i if i < counts[1] else None for i in range(counts[0])], "by index"
    return [None] * counts[0], "by name"


def _add_null_row(tensors: dict[str, Tensor], theirs: dict[str, Tensor], base: Denoiser, found: Transfer) -> None:
    """For data without classes: what was added for "no class" becomes part of what it was added to."""
    axes: dict[str, tuple[str, int]] = getattr(base.net, "axes", {})
    table = next((theirs[name] for name in found.left if axes.get(name, ("",))[0] == "classes"), None)
    if table is None or len(table) != base.num_classes + 1:
        return
    for name in [name for name in found.loaded if axes.get(name, ("",))[0] == "shift"]:
        tensors[name] = tensors[name] + table[-1]
        found.loaded.remove(name)
        found.resized[name] = "with the null row added, as the data have no classes"


def _by_channel(
    name: str, mine: Tensor, other: Tensor, what: str, axis: int, model: Denoiser, base: Denoiser, found: Transfer
) -> Tensor:
    """Numbers of a patch, channel by channel; zeros for a new channel, so that the others are drawn as before."""
    if model.config.patch != base.config.patch:
        found.drawn[name] = f"the patch is {_by(model.config.patch)}, and {_by(base.config.patch)} in these weights"
        return mine
    places = _channel_places(model, base)
    if what == "planes" or places is None or places == list(range(base.config.channels)):
        if mine.shape == other.shape:
            found.loaded.append(name)
            return other
        if what == "planes" or places is None:
            found.drawn[name] = f"{tuple(other.shape)} in these weights, {tuple(mine.shape)} here"
            return mine
    ours, theirs, numbers = mine.clone().movedim(axis, 0), other.movedim(axis, 0), prod(model.config.patch)
    for i, place in enumerate(places):
        start = 0 if place is None else place * numbers
        part = theirs[start : start + numbers]
        ours[i * numbers : (i + 1) * numbers] = torch.zeros_like(part) if place is None else part
    beside = theirs[base.config.channels * numbers :]
    if len(beside) == len(ours) - len(places) * numbers:
        ours[len(places) * numbers :] = beside
    known = [place for place in places if place is not None]
    named = f" by name: {', '.join(base.spec.channels[place] for place in known[:6])}" if base.spec is not None else ""
    found.resized[name] = f"{len(known)} of {len(places)} channels{named}"
    return ours.movedim(0, axis)


def _channel_places(model: Denoiser, base: Denoiser) -> Places | None:
    """Which channel of the weights each channel of the model is; None where that cannot be said."""
    ours, theirs = _names(model.spec, "channels"), _names(base.spec, "channels")
    known = bool(ours and theirs) and not _numbered(ours) and not _numbered(theirs)
    if known and set(ours) & set(theirs):
        places: Places = [theirs.index(name) if name in theirs else None for name in ours]
        in_order = places == list(range(base.config.channels))
        return places if in_order or "patch" in {what for what, _ in getattr(model.net, "axes", {}).values()} else None
    return list(range(model.config.channels)) if model.config.channels == base.config.channels else None


def _names(spec: DataSpec | None, of: str) -> tuple[str, ...]:
    return () if spec is None else getattr(spec, of)


def _numbered(names: Sequence[str]) -> bool:
    """Whether names are only numbers, in their order: 0, 1, 2, or c0, c1, c2."""
    stem = re.sub(r"0$", "", names[0]) if names else ""
    return list(names) == [f"{stem}{i}" for i in range(len(names))]


def _by(numbers: Iterable[int]) -> str:
    return "x".join(map(str, numbers))


def in_groups(names: Iterable[str]) -> str:
    """Names of tensors in short: by the part of the network that they belong to, with their number."""
    return ", ".join(f"{part} ({count})" for part, count in Counter(name.split(".")[0] for name in names).items())


def _refusal(differ: dict[str, tuple[Any, Any]], found: Transfer, total: int, where: str) -> str:
    """What differs, what would be kept, and what to write instead."""
    lines = [f"{where} cannot be the start of this run. What differs:"]
    lines += [f"  {name}: {theirs} in the weights, {ours} here" for name, (theirs, ours) in list(differ.items())[:20]]
    lines += [f"  and {len(differ) - 20} more"] if len(differ) > 20 else []
    kept = f": {in_groups(found.loaded)}" if found.loaded else ""
    lines.append(f"Of its {total} tensors {len(found.loaded)} would be kept as they are{kept}")
    for what, names in (("resized", found.resized), ("left out", found.left), ("drawn anew", found.drawn)):
        lines += [f"  and {len(names)} {what}: {in_groups(names)}"] if names else []
    options = [
        _option(name.replace("_", "-"), theirs)
        for name, (theirs, _) in differ.items()
        if name.startswith("network.") or name in ("prediction", "preconditioner", "noise-scale")
    ]
    if "network" in differ:
        lines.append(f"Choose a recipe with the network {differ['network'][0]}")
    elif options:
        lines.append(f"To train what these weights are: {' '.join(options)}")
    return "\n".join(lines)


def _option(name: str, value: Any) -> str:
    """A setting as the command line has it."""
    if isinstance(value, bool):
        *part, last = name.split(".")
        return f"--{'.'.join([*part, last if value else f'no-{last}'])}"
    return f"--{name} {' '.join(map(str, value)) if isinstance(value, tuple | list) else value}"
