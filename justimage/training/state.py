"""The state of a training run: nimg and the tensors that it has moved, saved whole or not at all."""

import json
from pathlib import Path

import torch
from torch import Tensor, nn

from justimage.data.records import read_json
from justimage.denoiser import Denoiser
from justimage.disk.tensors import read_tensors, write_tensors
from justimage.disk.whole import discard, whole, write_text
from justimage.execution import not_finite
from justimage.parallel import Processes, any_of
from justimage.training.ema import EMA
from justimage.training.optim import MOMENTS
from justimage.training.shards import (
    check_together,
    names_together,
    part_of,
    place_together,
    read_shapes,
    read_together,
    write_together,
)

TENSORS, FACTS = "state.safetensors", "state.json"
MILESTONE = "milestone"  # an empty file in a state that is kept
REMOVE = "remove this folder to resume from the state before it, or from the start if it is the only one"


class NotFinite(RuntimeError):
    """The state of a run holds NaN or infinity, so it is not saved; `names` are the tensors that do."""

    def __init__(self, nimg: int, names: list[str]):
        self.nimg, self.names = nimg, names
        more = f" and in {len(names) - 1} more of its tensors" if len(names) > 1 else ""
        super().__init__(f"the state at nimg = {nimg:,} has numbers that are not finite, in {names[0]}{more}")


class TrainingState:
    """A model, its optimizer and its averages at one position of a run; the runner is how the processes run the model.

    Everything else about a run is a function of its recipe and of nimg, so this is all that resuming restores. plain: a
    model to make copies of; the model itself, unless its network is sharded.
    """

    def __init__(
        self,
        model: Denoiser,
        runner: nn.Module,
        processes: Processes,
        optimizer: torch.optim.Optimizer,
        ema: EMA,
        nimg: int = 0,
        *,
        plain: Denoiser | None = None,
    ):
        self.model, self.optimizer, self.ema = model, optimizer, ema
        self.plain, self.sharded = plain or model, plain is not None
        self.runner, self.processes = runner, processes
        self.nimg = nimg

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor under a name that says what it is: net/..., ema/DECAY/..., optimizer/exp_avg/..., ..."""
        named: dict[Tensor, str] = {parameter: name for name, parameter in self.model.net.named_parameters()}
        moments = {
            f"optimizer/{kind}/{named[parameter]}": value
            for parameter, values in self.optimizer.state.items()
            for kind, value in values.items()
        }
        net = {f"net/{name}": tensor for name, tensor in self.model.net.state_dict().items()}
        return net | {f"ema/{name}": tensor for name, tensor in self.ema.state_dict().items()} | moments

    def check_finite(self) -> None:
        """Raises NotFinite where a weight, an average or a moment is NaN or infinite. Fixed tables may be anything."""
        fixed = {f"net/{name}" for name, _ in self.model.net.named_buffers()}
        bad = self._not_finite({name: tensor for name, tensor in self.tensors().items() if name not in fixed})
        if bad:
            raise NotFinite(self.nimg, bad)

    def _not_finite(self, tensors: dict[str, Tensor]) -> list[str]:
        """The names of tensors that are not finite: in any process, where each has a part of them."""
        bad = not_finite({name: part_of(tensor) for name, tensor in tensors.items()})
        return names_together(bad, self.processes) if self.sharded else bad

    def save(self, folder: Path, *, milestone: bool = False) -> None:
        """Write folder/NIMG/, under another name until it is complete. Raises NotFinite, and writes nothing.

        milestone: it is kept for good (`keep_newest`).

        A sharded state is written by all processes together, each its part; otherwise one process calls this.
        """
        self.check_finite()
        if self.sharded:
            self._save_together(folder / f"{self.nimg:09d}", milestone=milestone)
        else:
            write_state(folder, self.nimg, self.tensors(), milestone=milestone)

    def _save_together(self, place: Path, *, milestone: bool) -> None:
        if not any_of(place.exists(), self.processes):
            with place_together(place, self.processes) as beside:
                sums = write_together(beside, self.tensors(), self.processes)
                if self.processes.first:
                    write_text(beside / FACTS, json.dumps({"nimg": self.nimg, "parts": sums}) + "\n")
        if milestone and self.processes.first:
            write_text(place / MILESTONE, "")

    @torch.no_grad()
    def restore(self, place: Path) -> None:
        """Take over the state saved in a folder.

        Raises ValueError, and changes nothing, where it is damaged, another network's, not finite, or not what the
        optimizer would have at this point.
        """
        nimg = _nimg_of(place)
        saved = self._read(place)
        by_name = dict(self.model.net.named_parameters())
        moments = [name for name in saved if name.startswith("optimizer/")]
        ours = {name: tensor for name, tensor in self.tensors().items() if not name.startswith("optimizer/")}
        expected = ours.keys()
        if expected != saved.keys() - set(moments):
            odd = sorted(expected ^ (saved.keys() - set(moments)))
            raise ValueError(
                f"{place} is the state of another network or other averages; they differ in {', '.join(odd[:5])}"
            )
        for name, tensor in (ours | self._moments_at(nimg, saved, place)).items():
            found = saved[name]
            if (found.shape, found.dtype) != (tensor.shape, tensor.dtype):
                raise ValueError(
                    f"{place} is damaged: {name} is {tuple(found.shape)} of {found.dtype}, not {tuple(tensor.shape)} "
                    f"of {tensor.dtype}; {REMOVE}"
                )
        fixed = {f"net/{name}" for name, _ in self.model.net.named_buffers()}
        bad = self._not_finite({name: tensor for name, tensor in saved.items() if name not in fixed})
        negative = [name for name in moments if "/exp_avg_sq/" in name and bool((part_of(saved[name]) < 0).any())]
        bad += names_together(negative, self.processes) if self.sharded else negative
        bad += [name for name in moments if "/step/" in name and not 0 <= float(saved[name]) <= nimg]
        if bad:
            raise ValueError(f"{place} is damaged: {bad[0]} holds numbers that no training leaves; {REMOVE}")
        self.model.net.load_state_dict(
            {name.removeprefix("net/"): saved[name] for name in expected if name[:4] == "net/"}
        )
        self.ema.load_state_dict({name.removeprefix("ema/"): saved[name] for name in expected if name[:4] == "ema/"})
        for full in moments:
            _, kind, name = full.split("/", 2)
            parameter = by_name[name]
            # The step counts too: a fused optimizer keeps them beside the parameters.
            self.optimizer.state[parameter][kind] = saved[full].to(parameter.device)
        self.nimg = nimg

    def _read(self, place: Path) -> dict[str, Tensor]:
        """The tensors of a saved state: whole ones on the CPU, or in a sharded run the parts of this process.

        Raises ValueError, in all processes, where the state is damaged.
        """
        parts = read_json(place / FACTS).get("parts")
        if not self.sharded and parts is None:
            return read_tensors(place / TENSORS)
        check_together(place, parts, self.processes)
        shapes, like = read_shapes(place), self._alike() if self.sharded else {}
        held = {
            name: torch.empty_like(like[name])
            if name in like and like[name].shape == shape
            else torch.empty(shape, dtype=dtype)
            for name, (shape, dtype) in shapes.items()
        }
        read_together(place, held, self.processes, sharded=self.sharded)
        return held

    def _alike(self) -> dict[str, Tensor]:
        """What each tensor of a state is shared out as: moments as their parameters are, steps not at all."""
        parameters = self.model.net.named_parameters()
        moments = {f"optimizer/{kind}/{name}": p for name, p in parameters for kind in MOMENTS if kind != "step"}
        return moments | self.tensors()

    def _moments_at(self, nimg: int, saved: dict[str, Tensor], place: Path) -> dict[str, Tensor]:
        """The moments that a state at nimg has, as tensors of their shapes. ValueError where it has others.

        A parameter that no gradient reaches has none: it is as it was at the start.
        """
        held = {name for name in saved if name.startswith("optimizer/")}
        trained = {id(parameter) for group in self.optimizer.param_groups for parameter in group["params"]}
        expected: dict[str, Tensor] = {}
        for name, parameter in self.model.net.named_parameters():
            names = [f"optimizer/{kind}/{name}" for kind in MOMENTS]
            found = saved[f"net/{name}"]
            unreached = bool(held) and not held & set(names) and self._is_still(found, parameter)
            if nimg and id(parameter) in trained and not unreached:
                step = torch.zeros((), dtype=torch.float32)
                expected |= {each: step if each.startswith("optimizer/step/") else parameter for each in names}
        if held != expected.keys():
            odd = sorted(held ^ expected.keys())
            raise ValueError(
                f"{place} is damaged: at nimg = {nimg:,} its optimizer {'has' if odd[0] in held else 'lacks'} {odd[0]}"
                + (f", and {len(odd) - 1} more differ" if len(odd) > 1 else "")
                + f"; {REMOVE}"
            )
        return expected

    def _is_still(self, found: Tensor, parameter: Tensor) -> bool:
        """Whether a saved parameter is the one that this run begins with, in all of its parts."""
        ours, theirs = part_of(parameter.detach()).cpu(), part_of(found).cpu()
        still = found.shape == parameter.shape and torch.equal(theirs, ours)
        return not any_of(not still, self.processes) if self.sharded else still


def write_state(folder: Path, nimg: int, tensors: dict[str, Tensor], *, milestone: bool = False) -> None:
    """Write folder/NIMG/, whole or not at all, unless it is there. milestone: `keep_newest` never removes it."""
    place = folder / f"{nimg:09d}"
    if not place.exists():
        with whole(place) as beside:
            write_tensors(beside / TENSORS, tensors)
            write_text(beside / FACTS, json.dumps({"nimg": nimg}) + "\n")
            if milestone:
                write_text(beside / MILESTONE, "")
    elif milestone:
        write_text(place / MILESTONE, "")


def _nimg_of(place: Path) -> int:
    """The position that a saved state says it is at. ValueError where it says none, or its folder another."""
    facts = read_json(place / FACTS)
    nimg = facts.get("nimg") if isinstance(facts, dict) else None
    if not isinstance(nimg, int) or isinstance(nimg, bool) or nimg < 0:
        raise ValueError(f"{place / FACTS} is damaged: nimg is {nimg!r}, not a whole number from 0 on; {REMOVE}")
    if place.name.isdecimal() and int(place.name) != nimg:
        raise ValueError(f"{place / FACTS} is damaged: it is of nimg = {nimg}, and its folder of another; {REMOVE}")
    return nimg


def saved_states(folder: Path) -> list[Path]:
    """The complete states in a folder, oldest first."""
    complete = [path for path in folder.glob("[0-9]*") if path.name.isdecimal() and (path / FACTS).is_file()]
    return sorted(complete, key=lambda path: int(path.name))


def keep_newest(folder: Path, count: int, before: int | None = None) -> None:
    """Remove all but the newest states, milestones, and the newest one up to `before`, if that is given."""
    states = saved_states(folder)
    wanted = [place for place in states if before is not None and int(place.name) <= before][-1:]
    for old in states[:-count]:
        if old not in wanted and not (old / MILESTONE).exists():
            discard(old)
