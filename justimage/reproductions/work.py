"""The work of a reproduction: run by run, in several processes, each going on where it was."""

import contextlib
import io
import json
import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from math import isfinite
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from rich.console import Console

from justimage.data.records import read_json
from justimage.data.spec import Source, StreamSource
from justimage.disk.hold import held
from justimage.disk.whole import discard, whole, write_text
from justimage.evaluation.scores import plain
from justimage.execution import device_name, versions
from justimage.parallel import Processes
from justimage.reproductions.family import Cell, Measured, Setup
from justimage.runs.folder import LOG, read_facts, same_data
from justimage.runs.run import Failed, Interrupted, train_run
from justimage.training.loop import NonFiniteLoss, Tick
from justimage.training.loss import flow_matching
from justimage.training.state import NotFinite

TRAINING = 0.6  # share of a job's progress that is training
WATCH_SECONDS = 1.0


@dataclass(frozen=True)
class Job:
    """A run, and the cells that are measured of it: they differ only in what is measured, or how samples are drawn."""

    folder: Path
    cells: tuple[Cell, ...]
    given: str = ""

    def place(self, cell: Cell) -> Path:
        """The file of a cell's numbers; beside it, under the same name, lie its arrays."""
        return self.folder / f"measured-{cell.setup.measurement()}.json"

    def done(self) -> bool:
        """Whether all of its cells are measured."""
        return all(self.place(cell).is_file() for cell in self.cells)

    def cost(self) -> float:
        """How much work it is, in arbitrary units: for the time that is left."""
        network: Any = self.cells[0].setup.recipe.network
        per_sample = getattr(network, "width", 1) * getattr(network, "depth", 1) + np.prod(network.size) / 8
        return float(self.cells[0].setup.recipe.training.duration_nimg * per_sample * (1 + 0.5 * len(self.cells)))


def jobs_of(cells: Sequence[Cell], runs: Path, given: str) -> list[Job]:
    """The jobs behind cells, the longest first, so that no process is left alone with one at the end."""
    by_run: dict[str, dict[str, Cell]] = {}
    for cell in cells:
        by_run.setdefault(cell.setup.run(), {}).setdefault(cell.setup.measurement(), cell)
    jobs = [Job(runs / name, tuple(some.values()), given) for name, some in by_run.items()]
    return sorted(jobs, key=lambda job: -job.cost())


def check(setups: Iterable[Setup], runs: Path, given: str) -> None:
    """Raises ValueError where a setup cannot be trained on the data, or its run was trained on others.

    All at once, before the first step of the first: each refuses on its own as well, but only when its turn comes.
    """
    by_data: dict[tuple[Any, ...], list[Setup]] = {}
    for setup in setups:
        network = setup.recipe.network
        by_data.setdefault((setup.data, network.size, network.channels), []).append(setup)
    for (data, size, channels), some in by_data.items():
        source = data.open(size, channels, given)
        now = {"fingerprint": source.fingerprint(), "content": source.content()} if source.indexed is True else {}
        for setup in some:
            _check_classes(setup.recipe.network, source)
            recipe = setup.recipe.fitted_to(source.spec)
            flow_matching(recipe.model(source.spec), recipe.training)
            old = read_facts(runs / setup.run())
            if old is not None and now and not same_data(old["data"], now):
                raise ValueError(
                    f"{runs / setup.run()} was trained on {old['data']['found']}, and this is {source.describe()}, or "
                    "some samples were changed; choose another place for the runs with --runs"
                )


def _check_classes(network: Any, source: Source | StreamSource) -> None:
    asked, classes = getattr(network, "num_classes", 0), len(source.spec.classes)
    if asked not in (0, classes):
        raise ValueError(
            f"the network of this scale has {asked:,} classes, and {source.describe()} has {classes:,}; --scale gpu "
            "takes images of any classes"
        )


def work(job: Job, device: torch.device, progress: Callable[[float], None]) -> None:
    """Train a run, from where it stands, and measure what is not measured yet. Raises what training raises.

    A training that ends in numbers that are not finite is a result: its cells say so, and have no numbers. ValueError
    where another command is at the same run, which tables share.
    """
    with held(job.folder, only="measured"):
        _work(job, [cell for cell in job.cells if not job.place(cell).is_file()], device, progress)


def _work(job: Job, todo: Sequence[Cell], device: torch.device, progress: Callable[[float], None]) -> None:
    if not todo:
        return
    failed = train(job, device, lambda share: progress(TRAINING * share))
    for k, cell in enumerate(todo):

        def shown(done: int, total: int, what: str, k: int = k) -> None:
            progress(TRAINING + (1 - TRAINING) * (k + done / max(total, 1)) / len(todo))

        began = time.perf_counter()
        found = Measured({}, {"failed": failed}) if failed else measure(cell, job, device, shown)
        keep(found, job.place(cell), job.folder, time.perf_counter() - began, device)
        progress(TRAINING + (1 - TRAINING) * (k + 1) / len(todo))
    for name in ("rows", "sweep"):  # what measuring keeps to go on after a kill
        if (job.folder / name).is_dir():
            discard(job.folder / name)


def train(job: Job, device: torch.device, progress: Callable[[float], None]) -> str:
    """Train the job's run to its end -> why it failed, or nothing."""
    setup = job.cells[0].setup
    recipe, total = setup.recipe, setup.recipe.training.duration_nimg
    source = setup.data.open(recipe.network.size, recipe.network.channels, job.given)
    # What it is sampled with is up to the cells that share it. One that diverges is a result, and skips no step.
    training = replace(recipe.training, most_skipped=1)
    recipe = replace(recipe, sampling=type(recipe.sampling)(), training=training)

    def sink(tick: Tick) -> None:
        progress(tick.nimg / total)

    try:
        train_run(
            recipe,
            source,
            job.folder,
            processes=Processes(device=device),
            console=Console(file=io.StringIO()),
            data=job.given,
            sinks=[sink],
        )
    except Failed as error:
        if isinstance(error.__cause__, NonFiniteLoss | NotFinite):
            return str(error).splitlines()[0]
        raise
    return ""


def measure(cell: Cell, job: Job, device: torch.device, progress: Callable[[int, int, str], None]) -> Measured:
    """What is measured of a finished run."""
    return cell.setup.measure(cell.setup, job.folder, job.given, device, progress)


def keep(found: Measured, place: Path, folder: Path, seconds: float, device: torch.device) -> None:
    """Write numbers, facts and arrays, the numbers last."""
    if found.arrays:
        arrays: dict[str, Any] = dict(found.arrays)
        with whole(place.with_suffix(".npz"), durable=True) as beside, beside.open("wb") as file:
            np.savez_compressed(file, **arrays)
    facts = {
        "numbers": {name: plain(value) for name, value in found.numbers.items()},
        **found.facts,
        "seconds": {"training": round(seconds_of_training(folder), 1), "measuring": round(seconds, 1)},
        "threads": torch.get_num_threads(),
        "machine": device_name(device),
        "versions": versions(),
    }
    write_text(place, json.dumps(facts, indent=1) + "\n")


def seconds_of_training(folder: Path) -> float:
    """Over all sittings, from the log."""
    seconds, before = 0.0, 0
    for line in (folder / LOG).read_text().splitlines() if (folder / LOG).is_file() else []:
        tick = json.loads(line)
        seconds += (tick["nimg"] - before) / tick["img_per_second"] if isfinite(tick["img_per_second"]) else 0.0
        before = tick["nimg"]
    return seconds


class Unfinished(RuntimeError):
    """Work that cannot go on; the message says which run, and why. What is done is kept."""


@dataclass(frozen=True)
class Event:
    """What a process says of its job: the share that is done, or what went wrong."""

    job: int
    share: float
    problem: str = ""


def run_jobs(jobs: Sequence[Job], device: torch.device, workers: int) -> Iterator[Event]:
    """Do the jobs in so many processes, and say how far each is. Raises Unfinished where one fails.

    Left by an exception, Ctrl-C for one, the processes save and end. Each has a pipe of its own, which ends with it: a
    queue that all share stays locked where a process is killed in the middle of using it.
    """
    context = multiprocessing.get_context("spawn")
    workers = max(1, min(workers, len(jobs)))
    threads = max(1, (os.cpu_count() or 1) // workers)
    todo = iter(enumerate(jobs))
    crew: list[tuple[Connection, BaseProcess]] = []
    busy: dict[Connection, int] = {}  # pipe -> the job that its process is at
    try:
        for number, job in islice(todo, workers):
            pipe, theirs = context.Pipe()
            process = context.Process(target=_process, args=(theirs, str(device), threads, os.getpid()), daemon=True)
            with _unheard():
                process.start()
            theirs.close()
            crew.append((pipe, process))
            busy[pipe] = number
            pipe.send((number, job))
        while busy:
            ready = wait(list(busy))
            for pipe in [each for each in busy if each in ready]:
                event = _next(pipe, jobs[busy[pipe]])
                if event.share >= 1:
                    del busy[pipe]
                    following = next(todo, None)
                    if following is not None:
                        busy[pipe] = following[0]
                    with contextlib.suppress(OSError):  # it has ended; that is noticed next, if it was needed
                        pipe.send(following)
                yield event
    finally:
        for pipe, process in crew:
            if pipe in busy:
                process.terminate()  # training saves first
        for pipe, process in crew:
            with contextlib.suppress(EOFError, OSError):
                while True:  # to its end: one that waits for room in its pipe would not come to it
                    pipe.recv()
            process.join()


@contextlib.contextmanager
def _unheard() -> Iterator[None]:
    """A process that is started here ignores Ctrl-C, which reaches all: the first one ends the others.

    From its first moment, and not only from when it has imported torch.
    """
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _next(pipe: Connection, job: Job) -> Event:
    try:
        event: Event = pipe.recv()
    except EOFError:
        ended = "its process has ended before the work was done; was memory short? Fewer --workers need less"
        raise Unfinished(f"{job.folder}: {ended}") from None
    if event.problem:
        raise Unfinished(event.problem)
    return event


def _process(pipe: Connection, device: str, threads: int, parent: int) -> None:
    """One process of the crew: job after job, until there is none left or the one that started it is gone."""
    torch.set_num_threads(threads)
    threading.Thread(target=_leave_with, args=(parent,), daemon=True).start()

    def say(number: int, share: float, problem: str = "") -> None:
        with contextlib.suppress(OSError):  # nobody listens any more; the work is to be saved all the same
            pipe.send(Event(number, share, problem))

    for number, job in iter(pipe.recv, None):
        try:
            work(job, torch.device(device), lambda share, number=number: say(number, min(share, 0.999)))
            say(number, 1.0)
        except Interrupted:
            return
        except (ValueError, Failed, OSError) as error:
            say(number, 0.0, f"{job.folder}: {error}")
            return
        except Exception:  # a mistake of ours: where it was
            say(number, 0.0, f"{job.folder}: {traceback.format_exc()}")
            return


def _leave_with(parent: int) -> None:
    """End like a process that is asked to, saving first, where the one that started this one was killed."""
    while os.getppid() == parent:
        time.sleep(WATCH_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)


def measured(cell: Cell, runs: Path) -> Mapping[str, Any]:
    """What is known of a finished cell. Raises ValueError where its file is damaged."""
    try:
        return read_json(Job(runs / cell.setup.run(), (cell,)).place(cell))
    except ValueError as error:
        raise ValueError(f"{error}; remove it, and the same command measures that run again") from error


def arrays_of(cell: Cell, runs: Path) -> Mapping[str, np.ndarray]:
    """The arrays of a finished cell; none where its training failed. Raises ValueError where its file is damaged."""
    path = Job(runs / cell.setup.run(), (cell,)).place(cell).with_suffix(".npz")
    if not path.is_file():
        return {}
    try:
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    except (ValueError, EOFError, BadZipFile) as error:
        both = f"remove it and {path.with_suffix('.json')}"
        raise ValueError(f"{path} is damaged ({error}); {both}, and run the same command again") from error
