"""A training run as a folder: recipe.json, log.jsonl, samples/, state/ and weights/. The same command again resumes."""

import json
import os
import platform
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text
from torch import Tensor

from justimage import __version__
from justimage.data.spec import DataSpec, Source, StreamSource
from justimage.denoiser import Denoiser
from justimage.disk import write_text
from justimage.execution import autocast
from justimage.parallel import Processes, wait
from justimage.runs.recipes import Recipe
from justimage.sampling.pictures import grid, save
from justimage.training.loop import NonFiniteLoss, Tick, check_share, flow_matching, fresh_state, train
from justimage.training.state import TrainingState, keep_newest, saved_states

# What may differ when a run goes on: it changes how fast, how often or how long, but no number that was computed.
FREE_TO_CHANGE = ("promise.", "report.", "data_options.", "training.compile", "training.checkpoint")


class Interrupted(Exception):
    """Somebody, or the time limit, stopped the run; its state is saved."""

    def __init__(self, message: str, in_time: bool):
        super().__init__(message)
        self.in_time = in_time


class Failed(Exception):
    """The run cannot go on: a loss that is not finite, or data that cannot be read any more. Its state is saved."""


def train_run(
    recipe: Recipe,
    source: Source | StreamSource,
    folder: Path,
    *,
    processes: Processes,
    console: Console,
    minutes: float | None = None,
    data: str = "",
) -> TrainingState:
    """Train in a run folder, from where it stands to the end of the recipe. Returns the state at the end.

    Raises ValueError, before anything is written, where the folder holds something else; Interrupted where it was
    stopped by a signal or after `minutes`; Failed. In each of the last two the state is saved first.
    """
    recipe = recipe.fitted_to(source.spec)
    facts = {
        "recipe": asdict(recipe),
        "data": {"path": data, "fingerprint": source.fingerprint(), "found": source.describe()},
        "versions": {
            "justimage": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }
    check_share(recipe.training, processes)
    check_folder(folder, facts)
    wait(processes)  # nobody writes before everybody has looked

    model = recipe.model(source.spec)
    state = fresh_state(model, recipe.training, processes.device)
    states = saved_states(folder / "state")
    if states:
        state.restore(states[-1])

    def say(title: str, text: str) -> None:
        if processes.first:
            console.print(Text.assemble((f"{title:7}", "bold"), text), soft_wrap=True)

    c = model.config
    dtype = recipe.training.dtype(processes.device)
    say("data", source.describe())
    if not isinstance(source, Source):
        say("stream", source.promise())
    say(
        "model",
        f"{c.width} wide, {c.depth} deep, patch {'x'.join(map(str, c.patch))} on {'x'.join(map(str, c.size))}, "
        f"{model.net.num_parameters / 1e6:.1f} M parameters, {processes.device.type}, "
        f"{str(dtype).removeprefix('torch.')}" + (f", {processes.world} processes" if processes.world > 1 else ""),
    )
    say("run", f"{folder}" + (f", going on at nimg = {state.nimg:,}" if states else ""))
    if processes.first:
        write_text(folder / "recipe.json", json.dumps(facts, indent=2) + "\n")
        _cut_log(folder / "log.jsonl", state.nimg)
    if state.nimg >= recipe.training.duration_nimg:
        say("done", f"this run is finished; remove {folder} to train it again")
        return state

    def save_all() -> None:
        if processes.first:  # the weights first: a run that has a state has its weights
            for name, weights in weight_sets(state).items():
                weights.training_summary = {"nimg": state.nimg, "data": source.describe(), "weights": name}
                weights.save_pretrained(folder / "weights" / name)
            state.save(folder / "state")
            keep_newest(folder / "state", recipe.report.keep_states)

    report = recipe.report
    deadline = None if minutes is None else time.monotonic() + 60 * minutes
    with _stop_requested() as caught, _progress(console, recipe, state, shown=processes.first) as show:
        ticks = train(
            state,
            source,
            flow_matching(model, recipe.training),
            recipe.training,
            tick_nimg=report.tick_nimg,
            workers=recipe.data_options.workers,
            processes=processes,
            stop=lambda: bool(caught) or (deadline is not None and time.monotonic() > deadline),
        )
        before = state.nimg
        try:
            for tick in ticks:
                if processes.first:
                    _log(folder / "log.jsonl", tick)
                    show(tick)
                last = tick.stopping or tick.nimg >= recipe.training.duration_nimg
                if processes.first and (last or _passed(before, tick.nimg, report.sample_nimg)):
                    image = preview(state, source.spec, report.preview_steps, dtype)
                    save(image, folder / "samples" / f"{tick.nimg:09d}.png")
                if last or _passed(before, tick.nimg, report.save_nimg):
                    save_all()
                if tick.stopping:
                    message = f"stopped at nimg = {tick.nimg:,} and saved; the same command goes on from there"
                    raise Interrupted(message, in_time=not caught)
                before = tick.nimg
        except (NonFiniteLoss, ValueError) as error:  # ValueError: a sample that cannot be read any more
            save_all()
            raise Failed(f"{error}\nThe state at nimg = {state.nimg:,} is saved in {folder}") from error
    return state


def weight_sets(state: TrainingState) -> dict[str, Denoiser]:
    """The weights a run has, as models: "raw" and "ema-DECAY". They share the state's memory."""
    description = state.model.describe()
    sets = {"raw": state.model.net.state_dict()}
    sets |= {f"ema-{decay}": state.ema.tensors(decay) for decay in state.ema.decays}
    return {name: Denoiser.from_description(description, tensors) for name, tensors in sets.items()}


def preview(state: TrainingState, spec: DataSpec, steps: int, dtype: torch.dtype, count: int = 10) -> Image.Image:
    """A grid from fixed seeds: raw weights and the first average, without and with guidance, a row each."""
    model, classes = state.model, state.model.config.num_classes
    labels = [i % classes for i in range(count)] if classes else None
    sets = weight_sets(state)
    scales = [1.0] if model.sampling.guidance == 1 else [1.0, model.sampling.guidance]
    rows: list[Tensor] = []
    titles: list[str] = []
    for name in list(sets)[:2]:
        for scale in scales:
            with autocast(model.device, dtype):
                rows.append(
                    sets[name].sample(labels, range(count), steps=steps, sampler="ab2", guidance=scale, final="x")
                )
            titles.append(f"{name}, guidance {scale:g}")
    return grid(torch.cat(rows), spec, count, row_titles=titles)


def check_folder(folder: Path, facts: dict[str, Any]) -> None:
    """Raises ValueError where a folder holds another run, or no run at all."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    path = folder / "recipe.json"
    if not folder.is_dir() or not path.is_file():
        raise ValueError(f"{folder} is not empty and not a run; choose another folder with --run")
    try:
        old = json.loads(path.read_text())
        theirs, ours = flat(old["recipe"]), flat(json.loads(json.dumps(facts["recipe"])))
        fingerprint, found = old["data"]["fingerprint"], old["data"]["found"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is damaged ({error}); choose another folder with --run, or remove this one"
        ) from error
    free = FREE_TO_CHANGE
    if theirs.get("training.schedule") == "constant":  # a cosine depends on its end, a constant rate does not
        free = (*free, "training.duration_nimg")
    differing = [
        f"  {name}: {theirs.get(name)} in the run, {ours.get(name)} in the command"
        for name in sorted(theirs.keys() | ours.keys())
        if theirs.get(name) != ours.get(name) and not name.startswith(free)
    ]
    if fingerprint != facts["data"]["fingerprint"]:
        differing.append(f"  data: {found} in the run, {facts['data']['found']} in the command")
    if differing:
        raise ValueError(
            f"{folder} holds a run of another recipe:\n" + "\n".join(differing) + "\n"
            "Give the same settings to go on with it, or another folder with --run"
        )


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, with dotted names."""
    out: dict[str, Any] = {}
    for name, value in values.items():
        out |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return out


def _passed(before: int, now: int, interval: int) -> bool:
    return now // interval > before // interval


def _log(path: Path, tick: Tick) -> None:
    with path.open("a") as file:
        file.write(json.dumps({**asdict(tick), "time": round(time.time(), 1)}) + "\n")


def _cut_log(path: Path, nimg: int) -> None:
    """Forget lines after the state that the run goes on from: it will write them again."""
    if path.is_file():
        kept = [line for line in path.read_text().splitlines(keepends=True) if _nimg_of(line) <= nimg]
        write_text(path, "".join(kept))


def _nimg_of(line: str) -> float:
    try:
        return json.loads(line)["nimg"]
    except (ValueError, KeyError):
        return float("inf")  # a line that a kill cut in two


@contextmanager
def _stop_requested() -> Iterator[list[int]]:
    """A list that is empty until Ctrl-C or a termination signal; the second signal acts as it always does."""
    caught: list[int] = []
    previous = {}

    def note(number: int, frame: Any) -> None:
        caught.append(number)
        # Not through the console: the signal may have come in the middle of its printing.
        os.write(2, b"\nstopping after this step and saving; once more to stop at once\n")
        for each, handler in previous.items():
            signal.signal(each, handler)

    for number in (signal.SIGINT, signal.SIGTERM):
        try:
            previous[number] = signal.signal(number, note)
        except ValueError:  # not in the main thread: whoever called this handles signals
            break
    try:
        yield caught
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def _progress(console: Console, recipe: Recipe, state: TrainingState, *, shown: bool) -> Iterator[Any]:
    """A bar with rate and time left on a terminal; a line for each tick elsewhere."""
    total = recipe.training.duration_nimg
    if not shown or not console.is_terminal:

        def line(tick: Tick) -> None:
            left = (total - tick.nimg) / tick.img_per_second
            console.print(
                f"nimg {tick.nimg:>11,} of {total:,}   loss {tick.loss:.4f}   {tick.img_per_second:,.0f} img/s   "
                f"{left / 60:.1f} min left",
                soft_wrap=True,
            )

        yield line
        return
    columns = (
        TextColumn("training"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[status]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("training", total=total, completed=state.nimg, status="")

        def bar(tick: Tick) -> None:
            progress.update(task, completed=tick.nimg, status=f"loss {tick.loss:.4f}  {tick.img_per_second:,.0f} img/s")

        yield bar
