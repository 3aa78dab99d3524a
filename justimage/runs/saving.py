"""Saving a run: what is due when, what is kept, and how it is written while training goes on.

Where training runs on an accelerator, a save costs it the time of a copy into memory; a thread then writes. On a CPU,
which both would share, it is written at once.
"""

import json
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from justimage.disk.tensors import write_tensors
from justimage.disk.whole import check_room, writing
from justimage.parallel import any_of, failing_together
from justimage.runs.folder import SKIPPED, origin_of, read_facts
from justimage.runs.preview import names_of, weights_named
from justimage.runs.recipes import Report
from justimage.runs.snapshots import snapshot_path
from justimage.training.adapters import is_adapter, low_rank, merged, scales_of
from justimage.training.loop import Tick, passed
from justimage.training.state import TrainingState, keep_newest, write_state
from justimage.weights.adapters import Base, save_adapters
from justimage.weights.description import check_kept, describe
from justimage.weights.folder import TENSORS, write_folder

SNAPSHOTS_OF_A_RUN = 64


class Due(NamedTuple):
    """What is to be kept at a tick."""

    save: bool = False
    """The state, and the weights."""
    milestone: bool = False
    """Both, for good."""
    snapshot: bool = False
    """The averages of training.ema_stds."""


class Contents(NamedTuple):
    """A state as it was at nimg: its tensors, what its weights say of themselves, and how far its averages are."""

    nimg: int
    tensors: dict[str, Tensor]
    description: dict[str, Any]
    """Of the model, whose `training` says what it began from, if anything."""
    averages: list[str]
    averaged_nimg: int
    data: str
    adapters: "Adapters"


class Adapters(NamedTuple):
    """What a state has of adapters: nothing, where it trains all weights."""

    scales: dict[str, float]
    others: tuple[str, ...]
    """Tensors that are trained beside them."""
    base: Base | None
    """The weights that they are for, if it is known where those lie."""


def adapters_of(state: TrainingState, folder: Path) -> Adapters:
    """The adapters that a run trains, for the weights that its recipe.json names."""
    scales = scales_of(state.model.net)
    if not scales:
        return Adapters({}, (), None)
    origin = origin_of(read_facts(folder))
    base = origin and Base(origin.path, origin.sum, origin.weights, origin.context_start)
    trained = [name for name, parameter in state.model.net.named_parameters() if parameter.requires_grad]
    return Adapters(scales, tuple(name for name in trained if not is_adapter(name)), base)


def last_skipped(path: Path) -> int | None:
    """Where the last step began that a run has skipped, by its skipped.jsonl; None where there was none."""
    lines = path.read_text().splitlines() if path.is_file() else []
    return json.loads(lines[-1])["nimg"] if lines else None


class Saves:
    """The saves of one run, in the process that writes and in the others, which only know what is due."""

    def __init__(self, folder: Path, report: Report, state: TrainingState, data: str, duration_nimg: int):
        self.folder, self.report, self.state, self.data = folder, report, state, data
        self.snapshot_nimg = report.snapshot_nimg or max(duration_nimg // SNAPSHOTS_OF_A_RUN, 1)
        self.duration_nimg = duration_nimg
        self.saved_at = time.monotonic()
        self.skipped_nimg = last_skipped(folder / SKIPPED)
        self.write = Writer(overlaps(state.processes.device) and state.processes.first)

    def due(self, before: int, tick: Tick, *, save: bool) -> Due:
        """What is due at a tick, the same in every process. before: the tick before; save: whether it is asked for."""
        minutes, report = (time.monotonic() - self.saved_at) / 60, self.report
        late = any_of(0 < report.save_minutes <= minutes, self.state.processes)
        milestone = passed(before, tick.nimg, report.milestone_nimg)
        over = tick.nimg >= self.duration_nimg
        return Due(
            save or late or milestone or passed(before, tick.nimg, report.save_nimg),
            milestone,
            bool(self.state.ema.stds) and (over or passed(before, tick.nimg, self.snapshot_nimg)),
        )

    def __call__(self, due: Due) -> None:
        """Keep what is due; in the process that writes, after `check_finite`. Raises what an earlier write did."""
        if due.save:
            self.saved_at = time.monotonic()
        if any(due) and self.state.sharded:
            keep_together(self.state, self.folder, due, self.data, self.report.keep_states, self.skipped_nimg)
        elif any(due) and self.state.processes.first:
            self.write.wait()  # for the one before, so that no more than one copy is held
            contents = contents_of(self.state, self.data, self.folder)
            complete: Callable[[], None] = _at_once
            if self.write.threaded:
                tensors, complete = copied(contents.tensors)
                contents = contents._replace(tensors=tensors)

            def job() -> None:
                complete()
                keep(contents, self.folder, due, self.report.keep_states, self.skipped_nimg)

            self.write(job)


class Writer:
    """Does jobs one after another: at once, or in a thread, whose error the next call raises."""

    def __init__(self, threaded: bool):
        self.threaded = threaded
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="save") if threaded else None
        self._pending: Future[None] | None = None

    def __call__(self, job: Callable[[], None]) -> None:
        """Do a job. Raises what it raises, or, in a thread, what the one before has raised."""
        self.wait()
        if self._pool is None:
            job()
        else:
            self._pending = self._pool.submit(job)

    def close(self) -> None:
        """Wait until the last job is over, whatever has come of it."""
        if self._pool is not None:
            self._pool.shutdown()

    def check(self) -> None:
        """Raise what the last job has raised, if it is over."""
        if self._pending is not None and self._pending.done():
            self.wait()

    def wait(self) -> None:
        """Wait until the last job is over, and raise what it has raised."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()


def overlaps(device: torch.device) -> bool:
    """Whether saving goes on beside training on this device."""
    return device.type != "cpu"


def _at_once() -> None:
    """Nothing is to be waited for."""


def copied(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], Callable[[], None]]:
    """Copies in the memory of the host, and what waits until they are complete: work that is queued first comes after.

    From a GPU they go to pinned memory, which a GPU fills without the host; torch reuses it for the next ones.
    """
    device = next((tensor.device for tensor in tensors.values() if tensor.device.type == "cuda"), None)
    if device is None:
        return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}, _at_once
    copies = {
        name: torch.empty_like(tensor, device="cpu", pin_memory=True).copy_(tensor.detach(), non_blocking=True)
        for name, tensor in tensors.items()
    }
    over = torch.cuda.Event()
    over.record(torch.cuda.current_stream(device))
    return copies, over.synchronize


def save_all(state: TrainingState, folder: Path, data: str, keep_states: int) -> None:
    """Save weights and state, at once; all processes call this.

    Raises NotFinite, before anything is written, where the state is not finite; OSError where a process cannot write,
    and FailedElsewhere in the others.
    """
    state.check_finite()
    due = Due(save=True)
    if state.sharded:
        keep_together(state, folder, due, data, keep_states)
        return
    with failing_together(state.processes):
        if state.processes.first:
            keep(contents_of(state, data, folder), folder, due, keep_states)


def contents_of(state: TrainingState, data: str, folder: Path) -> Contents:
    """What a save writes, still in the state's own memory. ValueError where the parameters are no longer float32."""
    check_kept(state.model.net)
    averaged = state.ema.updated_nimg(state.nimg)
    adapters = adapters_of(state, folder)
    return Contents(state.nimg, state.tensors(), describe(state.model), state.ema.called, averaged, data, adapters)


def keep(contents: Contents, folder: Path, due: Due, keep_states: int, skipped_nimg: int | None = None) -> None:
    """Write what is due. The state last: a run that has a state has its weights and the snapshots up to it.

    skipped_nimg: a step that was skipped; the newest state before it stays, from which `jit replay` comes to it.

    Raises Unwritten: where the disk has no room for all of it, before anything is written.
    """
    nimg = contents.nimg
    snapshots, sets = _snapshots(contents, folder) if due.snapshot else {}, _weights(contents) if due.save else {}
    weights = {name: merged(contents.adapters.scales, tensors) for name, tensors in sets.items()}
    places = {folder / "weights" / name: each for name, each in weights.items()}
    if due.milestone:
        places |= {folder / "weights" / f"{name}@{nimg:09d}": each for name, each in weights.items()}
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    _check_room(folder, snapshots, places, contents.tensors if due.save else {})
    for path, tensors in snapshots.items():
        write_tensors(path, tensors)
    for place, tensors in places.items():
        write_folder(place, tensors, _described(contents, place.name))
    for name, tensors in sets.items():
        _keep_adapters(contents, folder / "adapters" / name, tensors)
    if due.save:
        write_state(folder / "state", nimg, contents.tensors, milestone=due.milestone)
        keep_newest(folder / "state", keep_states, skipped_nimg)


def keep_together(
    state: TrainingState, folder: Path, due: Due, data: str, keep_states: int, skipped_nimg: int | None = None
) -> None:
    """What `keep` does, of a sharded state, in all processes: they gather a set of weights at a time, share the sets
    out, and each write their part of the state. Raises as `save_all`.
    """
    processes, cpu, averaged = state.processes, torch.device("cpu"), state.ema.updated_nimg(state.nimg)
    with failing_together(processes):
        if processes.first:
            folder.mkdir(parents=True, exist_ok=True)
            raw = {name: each for name, each in state.tensors().items() if name.startswith("net/")}
            places = {folder / "weights" / name: raw for name in names_of(state)} if due.save else {}
            _check_room(folder, {}, places, state.tensors() if due.save else {})
    names = names_of(state)
    ours = names[processes.rank :: processes.world]
    # All are gathered before anything is written, which may fail in one process alone.
    sets = {name: weights_named(state, name, needed=name in ours, on=cpu) for name in names}
    with failing_together(processes):
        for name in ours:
            weights = sets[name]
            if due.snapshot and averaged and name.startswith("ema-std-"):
                trained = {each: p.detach() for each, p in weights.net.named_parameters() if each in state.ema.names}
                write_tensors(snapshot_path(folder, name.removeprefix("ema-"), averaged), trained)
            for place in (name, f"{name}@{state.nimg:09d}")[: 2 if due.milestone else 1] if due.save else ():
                weights.training_summary |= {"nimg": state.nimg, "data": data, "weights": place}
                weights.save_pretrained(folder / "weights" / place)
    if due.save:
        with failing_together(processes):
            state.save(folder / "state", milestone=due.milestone)
            if processes.first:
                keep_newest(folder / "state", keep_states, skipped_nimg)


def _keep_adapters(contents: Contents, place: Path, tensors: dict[str, Tensor]) -> None:
    """Write the adapters of a set of weights alone, beside the merged weights; nothing where there are none."""
    scales, others, base = contents.adapters
    if not scales or base is None:
        return
    whole = {name: tensors[name] for name in others}
    save_adapters(place, _described(contents, place.name), base, low_rank(scales, tensors), whole)


def _described(contents: Contents, name: str) -> dict[str, Any]:
    """What a set of weights says of itself."""
    facts = {"nimg": contents.nimg, "data": contents.data, "weights": name}
    return {**contents.description, "training": (contents.description.get("training") or {}) | facts}


def _weights(contents: Contents) -> dict[str, dict[str, Tensor]]:
    """The sets of weights, "raw" and "ema-AVERAGE": what the network calls its tensors -> them."""
    raw = _part(contents.tensors, "net/")
    return {"raw": raw} | {f"ema-{name}": raw | _part(contents.tensors, f"ema/{name}/") for name in contents.averages}


def _snapshots(contents: Contents, folder: Path) -> dict[Path, dict[str, Tensor]]:
    """The averages of training.ema_stds, where their snapshots lie; none before their first update."""
    named = [name for name in contents.averages if name.startswith("std-")] if contents.averaged_nimg else []
    at = contents.averaged_nimg
    return {snapshot_path(folder, name, at): _part(contents.tensors, f"ema/{name}/") for name in named}


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): each for name, each in tensors.items() if name.startswith(prefix)}


def _check_room(
    folder: Path,
    snapshots: dict[Path, dict[str, Tensor]],
    weights: dict[Path, dict[str, Tensor]],
    state: dict[str, Tensor],
) -> None:
    """Raises Unwritten where the disk is too small for what is written, one after another, beside what it replaces."""
    more = most = 0
    pieces = [*snapshots.items(), *((place / TENSORS, each) for place, each in weights.items()), (folder / "x", state)]
    for path, tensors in pieces:
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        most = max(most, more + size)
        more += size - (path.stat().st_size if path.is_file() else 0)
    check_room(folder, most, folder / "state" if state else folder / "snapshots")
