"""`jit reproduce`."""

import json
import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from justimage.commands.console import bars, console, interruptible, say
from justimage.commands.line import parse
from justimage.commands.main import DONE, FAILED, INTERRUPTED
from justimage.data.records import read_json
from justimage.disk.hold import held
from justimage.disk.whole import write_text
from justimage.evaluation.plots import pyplot
from justimage.execution import find_device
from justimage.reproductions.family import Cell, Family, ScaleName
from justimage.reproductions.result import RESULT, SEEDS, WHY, ratio_in_words, readme, result_of, rows_of
from justimage.reproductions.table import FAMILIES
from justimage.reproductions.work import Job, Unfinished, arrays_of, check, jobs_of, run_jobs

MOST_WORKERS = 8


@dataclass(frozen=True)
class Reproduce:
    """Run tables and figures of the paper: train all their cells, measure them, and say whether the claim holds.

    Each cell is an ordinary run. What is there already is not done again; the same command goes on after an
    interruption, and cells that several tables have in common are trained once.
    """

    names: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="NAME [NAME ...]")]
    """Which; `jit reproduce --list` lists them, and `all` is all of them."""
    scale: ScaleName = "laptop"
    """How much is trained, on what: laptop, on 5,000 digits; gpu and paper, on --data."""
    seeds: Annotated[int, tyro.conf.arg(metavar="N")] = SEEDS
    """Trainings of each cell; a verdict rests on three."""
    data: Annotated[str, tyro.conf.arg(metavar="PATH")] = ""
    """Images for the scales gpu (any photographs, CIFAR-10 for one) and paper (ImageNet)."""
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")] = Path("reproductions")
    """Where results go: DIR/NAME at laptop scale, DIR/NAME-SCALE at others."""
    runs: Annotated[Path, tyro.conf.arg(metavar="DIR")] = Path("runs/reproductions")
    """Where the runs are."""
    workers: Annotated[int, tyro.conf.arg(metavar="N")] = 0
    """Processes that train side by side; 0: one for each core of a CPU, and one on an accelerator."""
    device: Annotated[str | None, tyro.conf.arg(metavar="DEVICE")] = None
    """cpu, cuda, ...; by default the CPU at laptop scale, and the accelerator at others, if there is one."""
    list: tyro.conf.FlagCreatePairsOff[bool] = False
    """List the tables and figures."""


def main(arguments: Sequence[str]) -> int:
    """Reproduce; returns the exit code."""
    asked = parse(Reproduce, arguments, "jit reproduce")
    if asked.list or not asked.names:
        rows = "\n".join(f"  {name:<20} {family.paper:<26} {family.claim}" for name, family in FAMILIES.items())
        print(f"tables and figures of arXiv 2511.13720:\n{rows}\n\njit reproduce NAME [--scale laptop|gpu|paper]")
        return DONE if asked.list else 2
    unknown = [name for name in asked.names if name not in (*FAMILIES, "all")]
    if unknown:
        raise ValueError(f"there is no reproduction {unknown[0]!r}; there are {', '.join(FAMILIES)}, and all")
    if asked.seeds < 1 or asked.workers < 0:
        raise ValueError(f"seeds ({asked.seeds}) must be at least 1, and workers ({asked.workers}) at least 0")
    families = list(FAMILIES.values())
    if "all" not in asked.names:
        families = [FAMILIES[name] for name in dict.fromkeys(asked.names)]
    if asked.data and not any(family.scales[asked.scale].setup.data.given for family in families):
        raise ValueError(f"--data {asked.data}: what is asked for has data of its own at the scale {asked.scale}")
    pyplot()  # raises now, not after the trainings
    interruptible()
    try:
        with _terminated():
            for family in families:  # before the first of them begins
                setups = [cell.setup for cell in family.scales[asked.scale].cells(1)]
                check(setups, asked.runs / asked.scale, _given(family, asked))
                _check_seeds(_out(family, asked), asked.seeds)
            for family in families:
                _reproduce(family, asked)
    except KeyboardInterrupt:
        say("interrupted; the same command goes on from what was done")
        return INTERRUPTED
    except Unfinished as error:
        say(f"jit reproduce: {error}\nThe same command goes on from what was done.")
        return FAILED
    return DONE


@contextmanager
def _terminated() -> Iterator[None]:
    """TERM acts like Ctrl-C: the processes save."""

    def leave(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _given(family: Family, asked: Reproduce) -> str:
    """What --data means to a family: points of a plane are made here, when all are asked for as well."""
    return asked.data if family.scales[asked.scale].setup.data.given else ""


def _out(family: Family, asked: Reproduce) -> Path:
    return asked.out / (family.name if asked.scale == "laptop" else f"{family.name}-{asked.scale}")


def _check_seeds(out: Path, seeds: int) -> None:
    """Raises ValueError where a result of more seeds would be replaced."""
    if (out / RESULT).is_file():
        before = max(len(cell["seeds"]) for cell in read_json(out / RESULT)["cells"])
        if before > seeds:
            raise ValueError(f"{out} is a result of {before} seeds; --seeds {before}, or another --out for fewer")


def _reproduce(family: Family, asked: Reproduce) -> None:
    scale = family.scales[asked.scale]
    device = find_device(asked.device or ("cpu" if asked.scale == "laptop" else None))
    out = _out(family, asked)
    runs = asked.runs / asked.scale
    cells = scale.cells(asked.seeds)
    with held(out):
        jobs = [job for job in jobs_of(cells, runs, _given(family, asked)) if not job.done()]
        if jobs:
            _work(family, cells, jobs, device, asked)
        rows = rows_of(family, cells, runs)
        result = result_of(family, asked.scale, cells, rows, runs)
        arrays = {(c.part, *c.labels.values()): c for c in reversed(cells)}
        for picture in family.pictures:
            picture(
                family,
                rows,
                lambda row: arrays_of(arrays[(row.part, *row.labels.values())], runs),
                out / f"{picture.name}.png",
            )
        write_text(out / RESULT, json.dumps(result, indent=1) + "\n")
        why = (out / WHY).read_text() if (out / WHY).is_file() else ""
        write_text(out / "README.md", readme(result, why))
    say(f"{family.name}: {result['verdict']}")
    for each in result["statements"]:
        text = each["text"] + (", beyond the claim" if each["beyond"] else "")
        say(f"  {'yes' if each['holds'] else 'no':<3} {text} (smallest ratio {ratio_in_words(each['ratio'])})")
    say(f"tables, pictures and numbers are in {out}")


def _work(family: Family, cells: Sequence[Cell], jobs: Sequence[Job], device: Any, asked: Reproduce) -> None:
    """Do what is left to do, with one bar over all of it."""
    workers = asked.workers or (min(os.cpu_count() or 1, MOST_WORKERS) if device.type == "cpu" else 1)
    say(f"{family.name}: {len(cells)} cells, {len(jobs)} runs to do, {min(workers, len(jobs))} at a time")
    costs, shares = [job.cost() for job in jobs], [0.0] * len(jobs)
    found: dict[int, float] = {}  # what of a job was done before, in an earlier sitting
    ready = 0
    with bars() as progress:
        made = set()
        for setup in (cell.setup for job in jobs for cell in job.cells):
            key = setup.measure, setup.recipe.network.size
            if key not in made:
                setup.measure.prepare(setup, jobs[0].given, device, progress)
                made.add(key)
        began = time.monotonic()
        for event in run_jobs(jobs, device, workers):
            shares[event.job] = max(shares[event.job], event.share)
            found.setdefault(event.job, event.share)
            done = sum(cost * share for cost, share in zip(costs, shares, strict=True)) / sum(costs)
            progress(round(1000 * done), 1000, family.name)
            if event.share >= 1:
                ready += 1
                now = done - sum(costs[number] * share for number, share in found.items()) / sum(costs)
                left = (time.monotonic() - began) * (1 - done) / max(now, 1e-9)
                if not console.is_terminal:
                    job = jobs[event.job]
                    say(f"{ready} of {len(jobs)}  {job.cells[0].text()}; about {left / 60:.0f} min left")
