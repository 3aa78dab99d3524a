"""A training run in a folder, from where it stands to its end. The same call again resumes."""

import contextlib
import json
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from math import inf
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.text import Text

from justimage.data.spec import Source, StreamSource, UnreadableSample
from justimage.denoiser import Denoiser, Scalings
from justimage.disk import held, in_words, write_text
from justimage.execution import best_device
from justimage.networks.protocol import NetworkClass, name_of
from justimage.parallel import FailedElsewhere, Processes, any_of, fail_together, in_the_first, wait
from justimage.runs.evaluations import Evaluations, NotEvaluated, Stopped, evaluations_of
from justimage.runs.folder import (
    LOG,
    RECIPE,
    RESULTS,
    called,
    changeable,
    changes_of,
    check_same,
    facts_of,
    log_until,
    read_facts,
    with_older_defaults,
)
from justimage.runs.preview import names_of, preview, weights_named
from justimage.runs.recipes import Recipe
from justimage.runs.sinks import Shown, Sink, log_to, progress, unseen, working
from justimage.sampling.pictures import save
from justimage.training.build import build
from justimage.training.loop import NonFiniteLoss, Tick, train
from justimage.training.loss import Loss, flow_matching
from justimage.training.settings import Training
from justimage.training.state import NotFinite, TrainingState, keep_newest, saved_states

# Signals that stop and save: keys; and the end of a job, of a session, and the warning before it (SLURM's USR1).
PRESSED = {getattr(signal, name) for name in ("SIGINT", "SIGQUIT") if hasattr(signal, name)}
STOPPING = {getattr(signal, name) for name in ("SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, name)}

MakeLoss = Callable[[Denoiser, Training], Loss]


class Interrupted(Exception):
    """A signal or the time limit stopped the run; its state is saved."""

    def __init__(self, message: str, in_time: bool):
        super().__init__(message)
        self.in_time = in_time


class Failed(Exception):
    """The run cannot go on: the loss or a weight is not finite, or data cannot be read or results written.

    Its state is saved, if one can go on from it; the message says what stays, and how to go on.
    """


@contextmanager
def hold_run(folder: Path, processes: Processes) -> Iterator[None]:
    """Hold a run folder for these processes alone, and remove what a kill has left in it.

    Raises ValueError where the folder holds something else, cannot be written, or is held by another command.
    """
    read_facts(folder)  # before a lock is put into what is not a run
    below = ("state", "samples", "weights/*")
    with in_the_first(processes, lambda: held(folder, below=below)):
        yield


def train_run(
    recipe: Recipe,
    source: Source | StreamSource,
    folder: str | Path,
    *,
    processes: Processes | None = None,
    console: Console | None = None,
    minutes: float | None = None,
    data: str = "",
    loss: MakeLoss = flow_matching,
    network: NetworkClass | None = None,
    preconditioner: Scalings | None = None,
    sinks: Sequence[Sink] = (),
    changed: Sequence[str] = (),
) -> TrainingState:
    """Train in a run folder, from where it stands to the end of the recipe. Returns the state at the end.

    processes: this one alone, on the best device, by default. data: where the source was found, for recipe.json. loss:
    makes the loss of (model, recipe.training); network, preconditioner: the class and the function, where they are the
    user's own. sinks: get each tick, as the log and the progress bar do. changed: settings of the optimizer
    (`folder.CHANGEABLE`) that a run in the folder is meant to go on with; recipe.json records each, and from where on.

    Raises ValueError, before anything is written, where the folder holds something else or another process writes it;
    Interrupted where it was stopped by a signal or after `minutes`; Failed. In each of the last two the state is saved
    first, if one can go on from it and it is not saving that has failed.
    """
    if minutes is not None and not 0 < minutes < inf:
        raise ValueError(f"minutes is {minutes}; it must be a number above 0")
    changed = changeable(changed)
    folder, processes, console = Path(folder), processes or Processes(device=best_device()), console or Console()
    with hold_run(folder, processes):
        old = read_facts(folder)
        recipe, as_before = with_older_defaults(recipe.fitted_to(source.spec), old, source.spec)
        model = recipe.model(source.spec, network=network, preconditioner=preconditioner)
        facts = facts_of(recipe, source, model, data, "" if loss is flow_matching else called(loss))
        if as_before:
            facts["as_before"] = sorted(as_before)
        check_same(folder, old, facts, changed)
        state = build(model, recipe.training, processes)
        value = loss(state.model, recipe.training)  # may refuse the recipe, so before it is written
        states = saved_states(folder / "state")
        if states:
            state.restore(states[-1])
        changes, log = changes_of(old, facts, changed, state.nimg), log_until(folder / LOG, state.nimg)
        facts |= {"changed": changes} if changes else {}
        _announce(console, recipe, source, state, folder, as_before, resumed=bool(states))
        with working(console) if processes.first else nullcontext(unseen) as work:
            evaluations = evaluations_of(recipe, source, folder, state, data, work)
        if evaluations is not None and processes.first:
            console.print(Text.assemble(("judge  ", "bold"), evaluations.describe()), soft_wrap=True)
        wait(processes)  # no process writes before all have looked
        if processes.first:
            write_text(folder / RECIPE, json.dumps(facts, indent=2) + "\n")
            if (folder / LOG).is_file():
                write_text(folder / LOG, log)
            if (folder / RESULTS).is_file():  # read now: `jit evaluate` may have added to it meanwhile
                write_text(folder / RESULTS, log_until(folder / RESULTS, state.nimg, others=True))
        if state.nimg < recipe.training.duration_nimg or evaluations is not None:
            _train_and_keep(recipe, source, folder, state, value, evaluations, console, minutes, sinks)
        return state


def _train_and_keep(
    recipe: Recipe,
    source: Source | StreamSource,
    folder: Path,
    state: TrainingState,
    loss: Loss,
    evaluations: Evaluations | None,
    console: Console,
    minutes: float | None,
    sinks: Sequence[Sink],
) -> None:
    """Train, and keep in the folder what the recipe's report asks for."""
    report, total, first = recipe.report, recipe.training.duration_nimg, state.processes.first
    deadline = None if minutes is None else time.monotonic() + 60 * minutes
    display = progress(console, state.nimg, total, deadline) if first else nullcontext(Shown(lambda tick: None, unseen))
    with _stop_requested() as caught, display as shown:
        listening = [log_to(folder / LOG), shown.tick, *sinks] if first else []

        def stop() -> bool:
            return bool(caught) or (deadline is not None and time.monotonic() > deadline)

        ticks = train(
            state,
            source,
            loss,
            recipe.training,
            tick_nimg=report.tick_nimg,
            workers=recipe.data_options.workers,
            stop=stop,
        )
        before = state.nimg
        try:
            if evaluations is not None and evaluations.due(state.nimg):  # the run was stopped before it
                with _failing_together(state.processes):
                    evaluations(state, stop, shown.work, console)
            for tick in ticks:
                with _failing_together(state.processes):
                    for listener in listening:
                        listener(tick)
                    last = tick.stopping or tick.nimg >= total
                    drawing = last or _passed(before, tick, report.sample_nimg)
                    evaluating = evaluations is not None and evaluations.due(tick.nimg) and not tick.stopping
                    saving = last or evaluating or _passed(before, tick, report.save_nimg)
                    if drawing or saving:
                        state.check_finite()  # in every process: they have the same, and stop together
                    if drawing:
                        dtype = recipe.training.dtype(state.processes.device)
                        image = preview(state, source.spec, report.preview_steps, dtype)
                        if image is not None:
                            save(image, folder / "samples" / f"{tick.nimg:09d}.png")
                    if saving:
                        save_all(state, folder, source.describe(), report.keep_states)
                    if evaluations is not None and evaluating:
                        evaluations(state, stop, shown.work, console)
                if tick.stopping:
                    raise Stopped
                before = tick.nimg
        except Stopped:
            message = f"stopped at nimg = {state.nimg:,} and saved; the same command resumes it"
            raise Interrupted(message, in_time=not caught) from None
        except (NonFiniteLoss, NotFinite, UnreadableSample, FailedElsewhere, NotEvaluated, OSError) as error:
            # An OSError is of writing: one of reading is an UnreadableSample.
            if any_of(isinstance(error, OSError), state.processes):
                _leave_together(state.processes)
                raise Failed(_what_stays(error, folder)) from error
            unfit = _why_not_kept(state, error)
            stays = _how_to_go_on(state, folder, recipe, error, unfit)
            if not unfit:
                try:
                    save_all(state, folder, source.describe(), report.keep_states)
                except (OSError, FailedElsewhere) as unwritten:
                    stays = _what_stays(unwritten, folder)
            _leave_together(state.processes)
            raise Failed(f"{error}\n{stays}") from error


def _leave_together(processes: Processes) -> None:
    """Wait for the other processes: one that leaves early closes the others' connections."""
    with contextlib.suppress(RuntimeError):  # one that has crashed does not come
        wait(processes)


def _what_stays(error: Exception, folder: Path) -> str:
    """What could not be written, and where the same command goes on."""
    states = saved_states(folder / "state")
    nimg = int(states[-1].name) if states else 0
    what = in_words(error) if isinstance(error, OSError) else str(error)
    return f"{what}\nThe same command goes on from nimg = {nimg:,}, the newest state in {folder}"


@contextmanager
def _failing_together(processes: Processes) -> Iterator[None]:
    """Where the block cannot write in one process, all processes raise: none waits for it."""
    problem = None
    try:
        yield
    except (OSError, FailedElsewhere) as error:
        problem = error
    fail_together(problem, processes)


def _why_not_kept(state: TrainingState, error: Exception) -> str:
    """Why one cannot go on from the state that a run failed with; empty where one can."""
    if isinstance(error, NonFiniteLoss) and error.nimg == state.nimg:
        return "stops at the same batch whatever the settings"
    try:
        state.check_finite()
    except NotFinite:
        return "is not finite"
    return ""


def _how_to_go_on(state: TrainingState, folder: Path, recipe: Recipe, error: Exception, unfit: str) -> str:
    """What a run that failed leaves, and how to go on from it."""
    states = saved_states(folder / "state")
    lines = [f"The state at nimg = {state.nimg:,} is saved in {folder}"]
    if unfit:
        same = states[-1:] if states and int(states[-1].name) == state.nimg else []
        good = states[: len(states) - len(same)]
        lines = [f"The state at nimg = {state.nimg:,} {unfit}, so it is not saved"]
        if same:
            lines = [f"The state at nimg = {state.nimg:,} {unfit}: remove {same[0]}"]
        lines[0] += f"; the last good one is {good[-1]}" if good else "; there is no earlier one: a run begins anew"
    if isinstance(error, NonFiniteLoss | NotFinite):
        clip = "" if 0 < recipe.training.clip_norm <= 1 else " --training.clip-norm 1"
        names = "training.lr" + (" training.clip-norm" if clip else "")
        lines.append(
            f"To go on from there with other settings, add to the same command, for example: --training.lr "
            f"{recipe.training.lr / 4:.3g}{clip} --changed {names}"
        )
    return "\n".join(lines)


def save_all(state: TrainingState, folder: Path, data: str, keep_states: int) -> None:
    """Save weights and state. The weights first: a run that has a state has its weights.

    All processes call this, and share the sets of weights out. The first one writes the state, unless it is sharded:
    then each writes its part. Raises NotFinite, before anything is written, where the state is not finite; OSError
    where a process cannot write, and FailedElsewhere in the others.
    """
    processes = state.processes
    state.check_finite()
    names = names_of(state)
    ours = names[processes.rank :: processes.world]
    gathering = names if state.sharded else ours  # before anything is written, which may fail in one process alone
    sets = {name: weights_named(state, name, needed=name in ours, on=torch.device("cpu")) for name in gathering}
    with _failing_together(processes):
        for name in ours:
            sets[name].training_summary = {"nimg": state.nimg, "data": data, "weights": name}
            sets[name].save_pretrained(folder / "weights" / name)
    with _failing_together(processes):
        if processes.first or state.sharded:
            state.save(folder / "state")
        if processes.first:
            keep_newest(folder / "state", keep_states)


def _announce(
    console: Console,
    recipe: Recipe,
    source: Source | StreamSource,
    state: TrainingState,
    folder: Path,
    as_before: dict[str, Any],
    *,
    resumed: bool,
) -> None:
    """Say what is trained on what, and where."""
    if not state.processes.first:
        return

    def say(title: str, text: str) -> None:
        console.print(Text.assemble((f"{title:7}", "bold"), text), soft_wrap=True)

    config, device, name = state.model.config, state.processes.device, name_of(state.plain.net)
    parameters = sum(p.numel() for p in state.model.net.parameters()) / 1e6
    patch = f", patch {'x'.join(map(str, config.patch))}" if hasattr(config, "patch") else ""
    world = f", {state.processes.world} processes" if state.processes.world > 1 else ""
    world += ", sharded" if state.sharded else ""
    dtype = str(recipe.training.dtype(device)).removeprefix("torch.")
    size = "x".join(map(str, config.size))
    say("data", source.describe())
    if source.indexed is False:
        say("stream", source.promise())
    say("model", f"{name} on {size}{patch}, {parameters:.1f} M parameters, {device.type}, {dtype}{world}")
    say("run", f"{folder}" + (f", resumed at nimg = {state.nimg:,}" if resumed else ""))
    for later, value in as_before.items():
        say("as before", f" {later} = {value}: the run was begun by a version without this setting")
    if state.nimg >= recipe.training.duration_nimg:
        say("done", f"this run is finished; remove {folder} to train it again")


def _passed(before: int, tick: Tick, interval: int) -> bool:
    return tick.nimg // interval > before // interval


@contextmanager
def _stop_requested() -> Iterator[list[int]]:
    """A list that is empty until Ctrl-C or a signal of STOPPING; a second key press acts as it always does."""
    caught: list[int] = []
    previous: dict[int, Any] = {}
    shown = [descriptor for descriptor in (1, 2) if os.isatty(descriptor)]

    def note(number: int, frame: Any) -> None:
        caught.append(number)
        if number == getattr(signal, "SIGHUP", None):  # the terminal is gone: writing to it would fail
            nowhere = os.open(os.devnull, os.O_WRONLY)
            for descriptor in shown:
                os.dup2(nowhere, descriptor)
            os.close(nowhere)
        # Not through the console: the signal may have come in the middle of its printing.
        with contextlib.suppress(OSError):
            os.write(2, b"\nstopping after this step and saving; press again to stop at once\n")
        for each in PRESSED & previous.keys():  # the others are often sent twice, or one after another
            signal.signal(each, previous[each])

    for number in PRESSED | STOPPING:
        if signal.getsignal(number) is signal.SIG_IGN:  # nohup
            continue
        try:
            previous[number] = signal.signal(number, note)
        except ValueError:  # not in the main thread: whoever called this handles signals
            break
    try:
        yield caught
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
