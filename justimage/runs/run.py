"""A training run in a folder, from where it stands to its end. The same call again resumes."""

import contextlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from math import inf
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from justimage.data.loader import indices_at
from justimage.data.spec import Source, StreamSource, UnreadableSample
from justimage.denoiser import Denoiser, Scalings
from justimage.disk.hold import held
from justimage.disk.whole import in_words, write_text
from justimage.execution import best_device, name_of_dtype
from justimage.networks.protocol import NetworkClass, name_of
from justimage.parallel import FailedElsewhere, Processes, any_of, failing_together, in_the_first, wait
from justimage.runs.evaluations import Evaluations, NotEvaluated, Stopped, evaluations_of
from justimage.runs.failures import kept_in_the_end, leave_together, what_stays
from justimage.runs.folder import (
    HEALTH,
    LOG,
    RESULTS,
    SKIPPED,
    called,
    changeable,
    changes_of,
    check_same,
    facts_of,
    log_until,
    origin_of,
    read_facts,
    with_older_defaults,
)
from justimage.runs.health import Health, note_failure, without_failures
from justimage.runs.plan import in_a_line
from justimage.runs.preview import preview
from justimage.runs.recipes import Recipe
from justimage.runs.saving import Saves, passed
from justimage.runs.signals import stop_requested
from justimage.runs.sinks import Shown, Sink, log_to, note_skipped, progress, unseen, working
from justimage.runs.snapshots import drop_later
from justimage.runs.starts import InitFrom, Start, start
from justimage.runs.track import Opened, Track, Tracker, numbers_of_scores, numbers_of_tick, tracking
from justimage.sampling.pictures import save
from justimage.training.loop import NonFiniteLoss, Tick, train
from justimage.training.loss import Loss, flow_matching
from justimage.training.settings import Training
from justimage.training.state import NotFinite, TrainingState
from justimage.weights.folder import RECIPE

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
    below = ("state", "samples", "snapshots", "weights/*", "adapters/*")
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
    track: Sequence[Tracker] = (),
    changed: Sequence[str] = (),
    init_from: str | Path | InitFrom | None = None,
) -> TrainingState:
    """Train in a run folder, from where it stands to the end of the recipe. Returns the state at the end.

    processes: this one alone, on the best device, by default. data: where the source was found, for recipe.json. loss:
    makes the loss of (model, recipe.training); network, preconditioner: the class and the function, where they are the
    user's own. sinks: get each tick, as the log and the progress bar do. track: trackers (`track.TRACKERS`), which get
    ticks, evaluations and grids. changed: settings of the optimizer
    (`folder.CHANGEABLE`) that a run in the folder is meant to go on with; recipe.json records each, and from where on.
    init_from: weights that a new run starts from (`starts.start`); one that has a state goes on from that.

    Raises ValueError, before anything is written, where the folder holds something else or another process writes it;
    Interrupted where it was stopped by a signal or after `minutes`; Failed. In each of the last two the state is saved
    first, if one can go on from it and it is not saving that has failed.
    """
    if minutes is not None and not 0 < minutes < inf:
        raise ValueError(f"minutes is {minutes}; it must be a number above 0")
    changed = changeable(changed)
    given = InitFrom(str(init_from)) if isinstance(init_from, str | Path) else init_from
    folder, processes, console = Path(folder), processes or Processes(device=best_device()), console or Console()
    with hold_run(folder, processes):
        old = read_facts(folder)
        recipe, as_before = with_older_defaults(recipe.fitted_to(source.spec), old, source.spec)
        model = recipe.model(source.spec, network=network, preconditioner=preconditioner)
        facts = facts_of(recipe, source, model, data, "" if loss is flow_matching else called(loss))
        if as_before:
            facts["as_before"] = sorted(as_before)
        check_same(folder, old, facts, changed)
        own = {"network": network, "preconditioner": preconditioner}
        state, begun = start(recipe, model, folder, processes, given, origin_of(old), **own)
        value = loss(state.model, recipe.training)  # may refuse the recipe, so before it is written
        changes = changes_of(old, facts, changed, state.nimg)
        kept = {LOG: log_until(folder / LOG, state.nimg), SKIPPED: log_until(folder / SKIPPED, state.nimg - 1)}
        kept[HEALTH] = without_failures(log_until(folder / HEALTH, state.nimg))
        facts |= {"changed": changes} if changes else {}
        facts |= {"init_from": asdict(begun.origin)} if begun.origin else {}
        _announce(console, recipe, source, state, folder, as_before, begun, minutes)
        with working(console) if processes.first else nullcontext(unseen) as work:
            evaluations = evaluations_of(recipe, source, folder, state, data, work)
        if evaluations is not None and processes.first:
            console.print(Text.assemble(("judge  ", "bold"), evaluations.describe()), soft_wrap=True)
        wait(processes)  # no process writes before all have looked
        if processes.first:
            write_text(folder / RECIPE, json.dumps(facts, indent=2) + "\n")
            drop_later(folder, state.nimg)
            if (folder / RESULTS).is_file():  # read now: `jit evaluate` may have added to it meanwhile
                kept[RESULTS] = log_until(folder / RESULTS, state.nimg, others=True)
            for name, text in kept.items():
                if (folder / name).is_file():
                    write_text(folder / name, text)
        if begun.new and begun.origin and (processes.first or state.sharded):
            state.save(folder / "state")  # from now on the run does not need the weights that it began from
        if state.nimg < recipe.training.duration_nimg or evaluations is not None:
            opened, trackers = Opened(folder, facts, state.nimg), track if processes.first else ()
            with tracking(trackers, opened, lambda text: console.print(text, markup=False, soft_wrap=True)) as tracked:
                _train_and_keep(recipe, source, folder, state, value, evaluations, console, minutes, sinks, tracked)
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
    track: Track,
) -> None:
    """Train, and keep in the folder what the recipe's report asks for."""
    report, total, first = recipe.report, recipe.training.duration_nimg, state.processes.first
    deadline = None if minutes is None else time.monotonic() + 60 * minutes
    display = progress(console, state.nimg, total, deadline) if first else nullcontext(Shown(lambda tick: None, unseen))
    saves = Saves(folder, report, state, source.describe(), total)
    with stop_requested() as caught, display as shown, contextlib.closing(saves.write):

        def note(skipped: Iterable[int]) -> None:
            seed, size = recipe.training.seed, recipe.training.batch_size
            note_skipped(folder / SKIPPED, skipped, size, lambda positions: indices_at(source, seed, positions))
            saves.skipped_nimg = max(skipped, default=saves.skipped_nimg)

        def follow(tick: Tick) -> None:
            note(tick.skipped)
            track(tick.nimg, numbers_of_tick(tick), {})

        listening = [log_to(folder / LOG), shown.tick, follow, *sinks] if first else []

        def evaluate(evaluations: Evaluations) -> None:
            scores = evaluations(state, stop, shown.work, console)
            if scores is not None:
                track(state.nimg, numbers_of_scores(scores), {})

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
        health = Health(recipe, source, state, folder / HEALTH) if report.health_nimg != 0 else None
        try:
            if evaluations is not None and evaluations.due(state.nimg):  # the run was stopped before it
                with failing_together(state.processes):
                    evaluate(evaluations)
            for tick in ticks:
                last = tick.stopping or tick.nimg >= total
                drawing = last or passed(before, tick.nimg, report.sample_nimg)
                evaluating = evaluations is not None and evaluations.due(tick.nimg) and not tick.stopping
                due = saves.due(before, tick, save=last or evaluating)
                with failing_together(state.processes):
                    saves.write.check()
                    for listener in listening:
                        listener(tick)
                    if drawing or any(due):
                        state.check_finite()  # in every process: they have the same, and stop together
                    if drawing:
                        _draw_grid(recipe, source, folder, state, track)
                    saves(due)
                    if last or evaluating:
                        saves.write.wait()
                    if health is not None:  # the state is saved already: this takes a while
                        health(tick)
                    if evaluations is not None and evaluating:
                        evaluate(evaluations)
                if tick.stopping:
                    raise Stopped
                before = tick.nimg
        except Stopped:
            message = f"stopped at nimg = {state.nimg:,} and saved; the same command resumes it"
            raise Interrupted(message, in_time=not caught) from None
        except (NonFiniteLoss, NotFinite, UnreadableSample, FailedElsewhere, NotEvaluated, OSError) as error:
            saves.write.close()
            stays = _kept_of(error, recipe, source, folder, state)
            if isinstance(error, NonFiniteLoss) and first:
                note(error.skipped)
            leave_together(state.processes)
            raise Failed(stays) from error


def _draw_grid(recipe: Recipe, source: Source | StreamSource, folder: Path, state: TrainingState, track: Track) -> None:
    """Draw and save the grid of samples of this moment. All processes call this."""
    dtype = recipe.training.dtype(state.processes.device)
    image = preview(state, source.spec, recipe.report.preview_steps, dtype)
    if image is not None:
        save(image, folder / "samples" / f"{state.nimg:09d}.png")
        track(state.nimg, {}, {"samples": image})


def _kept_of(
    error: Exception, recipe: Recipe, source: Source | StreamSource, folder: Path, state: TrainingState
) -> str:
    """Save what can be saved of a run that cannot go on, and say what stays. All processes call this."""
    # An OSError is of writing: one of reading is an UnreadableSample.
    unwritten = any_of(isinstance(error, OSError), state.processes)
    if state.processes.first:
        note_failure(folder / HEALTH, state.nimg, in_words(error) if isinstance(error, OSError) else str(error))
    if unwritten:
        return what_stays(error, folder)
    return f"{error}\n{kept_in_the_end(state, folder, recipe, error, source.describe())}"


def _announce(
    console: Console,
    recipe: Recipe,
    source: Source | StreamSource,
    state: TrainingState,
    folder: Path,
    as_before: dict[str, Any],
    begun: Start,
    minutes: float | None,
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
    dtype = name_of_dtype(recipe.training.dtype(device))
    size = "x".join(map(str, config.size))
    for i, line in enumerate(begun.lines):
        say("" if i else "start", line)
    say("data", source.describe())
    if source.indexed is False:
        say("stream", source.promise())
    say("model", f"{name} on {size}{patch}, {parameters:.1f} M parameters, {device.type}, {dtype}{world}")
    if planned := in_a_line(recipe, state):
        stopping = "--minutes 10 stops earlier" if minutes is None else f"--minutes {minutes:g} stops earlier than that"
        say("plan", f"{planned}; `jit plan` says more, and {stopping}")
    say("run", f"{folder}")
    for later, value in as_before.items():
        say("as before", f" {later} = {value}: the run was begun by a version without this setting")
    if state.nimg >= recipe.training.duration_nimg:
        say("done", f"this run is finished; remove {folder} to train it again")
