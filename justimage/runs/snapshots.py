"""Snapshots of the power-function averages of a run, and the average of any std that is made of them after training.

snapshots/std-0.05@000640000.safetensors are the trained parameters, averaged with a relative std of 0.05 over the run
up to nimg = 640,000, in float32: shares of both signs add them up, which would multiply the rounding of shorter types.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from justimage.disk.hold import held
from justimage.disk.tensors import read_tensors
from justimage.training.profiles import Mixture, Profile, gamma_of, mixture
from justimage.weights.folder import read_folder, write_folder

FOLDER = "snapshots"
NAME = re.compile(r"std-(?P<std>[0-9.e-]+)@(?P<nimg>\d+)\.safetensors")


class Snapshot(NamedTuple):
    """An average at one time, and where it lies."""

    std: float
    nimg: int
    path: Path


def snapshot_path(run: Path, average: str, nimg: int) -> Path:
    """Where the snapshot of an average ("std-0.05") lies."""
    return run / FOLDER / f"{average}@{nimg:09d}.safetensors"


def snapshots_of(run: Path) -> list[Snapshot]:
    """The snapshots of a run, oldest first."""
    found = [(NAME.fullmatch(path.name), path) for path in (run / FOLDER).glob("*.safetensors")]
    made = [Snapshot(float(match["std"]), int(match["nimg"]), path) for match, path in found if match]
    return sorted(made, key=lambda each: (each.nimg, each.std))


def drop_later(run: Path, nimg: int) -> None:
    """Remove snapshots of later times: a run that goes on from nimg will make its own."""
    for each in snapshots_of(run):
        if each.nimg > nimg:
            each.path.unlink()


class Reconstructed(NamedTuple):
    """An average that was made of snapshots."""

    name: str
    """Of the weights."""
    nimg: int
    found: Mixture
    used: int
    """Snapshots that it is made of."""


def reconstruct(
    run: Path, std: float, nimg: int | None = None, *, progress: Callable[[int, int], None] = lambda done, total: None
) -> Reconstructed:
    """Write weights/posthoc-STD of a run: the power-function average with this relative std at nimg (the last one).

    Made of all snapshots up to nimg, summed in float64 one after another, so that memory holds one of them and the sum.
    At another time than the last one the name has it too: posthoc-0.100@000640000. Raises ValueError where the run has
    no snapshots of two averages, none at nimg, or its weights are missing or damaged.
    """
    gamma = gamma_of(std)
    there = snapshots_of(run)
    if not there:
        raise ValueError(
            f"{run} has no snapshots; a run that is trained with --training.ema-stds 0.05 0.1 leaves them in {FOLDER}"
        )
    times = sorted({each.nimg for each in there})
    last = times[-1] if nimg is None else nimg
    if last not in times:
        near = min(times, key=lambda each: abs(each - last))
        raise ValueError(f"{run} has no snapshot at nimg = {last}; the nearest one is at {near}")
    used = [each for each in there if each.nimg <= last]
    if len({each.std for each in used}) < 2 and std not in {each.std for each in used}:
        raise ValueError(
            f"the snapshots of {run} are of one average, std {used[0].std}; those of two span the others: "
            "--training.ema-stds 0.05 0.1"
        )
    found = mixture([Profile(gamma_of(each.std), each.nimg) for each in used], Profile(gamma, last))
    name = f"posthoc-{std:.3f}" if std == round(std, 3) else f"posthoc-{std}"
    name += "" if last == times[-1] else f"@{last:09d}"
    place = run / "weights" / name
    raw, config = read_folder(run / "weights" / "raw")
    with held(place):
        total: dict[str, Tensor] = {}
        for i, (share, each) in enumerate(zip(found.shares, used, strict=True)):
            tensors = read_tensors(each.path)
            for key, tensor in tensors.items():
                if key not in raw or tensor.shape != raw[key].shape or tensor.dtype != torch.float32:
                    raise ValueError(f"{each.path} is damaged, or another network's: {key} is not in {run}'s weights")
                added = share * tensor.double()
                total[key] = total[key] + added if key in total else added
            progress(i + 1, len(used))
        facts = {**(config.get("training") or {}), "nimg": last, "weights": name, "std": std, "snapshots": len(used)}
        tensors = raw | {key: each.float() for key, each in total.items()}
        write_folder(place, tensors, {**{k: v for k, v in config.items() if k != "format"}, "training": facts})
    return Reconstructed(name, last, found, len(used))
