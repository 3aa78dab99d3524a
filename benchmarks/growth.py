"""How cost grows: img/s against batch, tokens, width and processes, and memory against batch and size.

    python benchmarks/growth.py

Each point is measured in a process of its own, so that its memory is its own, with blocks as they are written; on a CPU
with one thread. Writes
benchmarks/results/growth-DEVICE.json and .png.
"""

import json
import multiprocessing
import os
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import torch
import tyro
from machine import facts, result_path

from justimage.evaluation.plots import pyplot
from justimage.execution import best_device
from justimage.networks.cost import cost_of
from justimage.networks.jit import JiTConfig
from justimage.runs.recipes import RECIPES, Recipe
from justimage.speed.bench import made_up, sampling_rows, training_rows, untrained

LENGTH, WIDTH, DEPTH, BATCH = 64, 192, 6, 16  # where nothing else is said: 64 px in patches of 8, 64 tokens
PATCHES = (32, 16, 8, 4)  # 4 to 256 tokens
BATCHES = (1, 2, 4, 8, 16, 32, 64)
WIDTHS = (64, 128, 192, 384, 768)
LENGTHS = (32, 64, 128, 256)  # with 64 tokens: what grows is the patch
FEW = 64  # samples of made-up data


@dataclass(frozen=True)
class Options:
    """How much is measured."""

    rounds: int = 5


@dataclass(frozen=True)
class Point:
    """One network and batch."""

    series: str
    at: int
    length: int = LENGTH
    patch: int = 8
    width: int = WIDTH
    batch: int = BATCH

    def recipe(self) -> Recipe:
        """The recipe `images` with this network."""
        network = JiTConfig(
            (self.length, self.length), (self.patch, self.patch), width=self.width, depth=DEPTH, heads=self.width // 32
        )
        recipe = replace(RECIPES["images"], network=replace(network, context_tokens=0, num_classes=10))
        return replace(recipe, training=replace(recipe.training, compile=False))


def points() -> list[Point]:
    """All of them."""
    return [
        *(Point("batch", n, batch=n) for n in BATCHES),
        *(Point("tokens", (LENGTH // p) ** 2, patch=p) for p in PATCHES),
        *(Point("width", w, width=w) for w in WIDTHS),
        *(Point("size", s, length=s, patch=s // 8) for s in LENGTHS),
    ]


def measure(point: Point, rounds: int) -> dict[str, Any]:
    """A step of training, and an evaluation, of one point; in a process of its own."""
    device = best_device()
    if device.type == "cpu":
        torch.set_num_threads(1)
    recipe = point.recipe()
    source = made_up(recipe, max(point.batch, FEW))  # so that memory is that of training
    training = training_rows(recipe, source, point.batch, rounds, device)
    sampling = sampling_rows(untrained(recipe, source), point.batch, rounds, device, whole=False)
    step = next(row for row in training["rows"] if row["what"] == "training")
    evaluation = next(row for row in sampling["rows"] if row["what"] == "evaluation")
    return {
        "series": point.series,
        "at": point.at,
        "training_img_per_second": step["img_per_second"],
        "training_share_of_peak": step["share_of_peak"],
        "evaluations_per_second": evaluation["img_per_second"],
        "evaluation_share_of_peak": evaluation["share_of_peak"],
        "multiply_adds": cost_of(recipe.network).multiply_adds,
        "training_memory_MB": training["peak_memory_MB"],
    }


def _endless(barrier: Any, seconds: float) -> float:
    """Train the usual point alone for so many seconds, to the end of a step, and say how many samples a second."""
    torch.set_num_threads(1)
    point = Point("processes", 1)
    recipe = point.recipe()
    source = made_up(recipe, FEW)
    from justimage.parallel import Processes
    from justimage.training.build import build
    from justimage.training.loop import train
    from justimage.training.loss import flow_matching

    recipe = recipe.fitted_to(source.spec)
    config = replace(recipe.training, batch_size=BATCH, duration_nimg=10**12)
    state = build(recipe.model(source.spec), config, Processes(device=torch.device("cpu")))
    ticks = train(state, source, flow_matching(state.model, config), config, tick_nimg=BATCH)
    next(ticks)
    barrier.wait()
    began, count = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        next(ticks)
        count += BATCH
    return count / (time.perf_counter() - began)


def side_by_side(processes: int, seconds: float = 8.0) -> dict[str, Any]:
    """So many runs at once, as the cells of a reproduction are, each with one thread."""
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager, ProcessPoolExecutor(processes, mp_context=context) as pool:
        barrier = manager.Barrier(processes)
        rates = list(pool.map(_endless, [barrier] * processes, [seconds] * processes))
    return {"series": "processes", "at": processes, "training_img_per_second": sum(rates)}


def plot(rows: Sequence[dict[str, Any]], path: Any) -> None:
    """Six panels; dotted: what growth in proportion to the multiply-adds would be."""
    figure, panels = pyplot().subplots(2, 3, figsize=(13, 7), layout="constrained")

    def panel(axes: Any, series: str, number: str, what: str, *, proportional: bool) -> None:
        mine = [row for row in rows if row["series"] == series]
        x, y = [row["at"] for row in mine], [row[number] for row in mine]
        axes.plot(x, y, "o-")
        if proportional:
            axes.plot(x, [y[-1] * mine[-1]["multiply_adds"] / row["multiply_adds"] for row in mine], ":", color="grey")
        axes.set(xscale="log", yscale="log", xlabel=series, ylabel=what)
        axes.set_xticks(x, [str(each) for each in x])
        axes.minorticks_off()
        if number.endswith("per_second"):
            low, high = axes.get_ylim()
            marks = [k * 10**n for n in range(6) for k in (1, 2, 5) if low <= k * 10**n <= high]
            axes.set_yticks(marks, [f"{mark:,}" for mark in marks])
        else:
            axes.set(yscale="linear", ylim=(0, None))
        axes.grid(alpha=0.3)

    panel(panels[0, 0], "batch", "training_img_per_second", "training, img/s", proportional=False)
    panel(panels[0, 1], "tokens", "training_img_per_second", "training, img/s", proportional=True)
    panel(panels[0, 2], "width", "training_img_per_second", "training, img/s", proportional=True)
    panel(panels[1, 0], "processes", "training_img_per_second", "training, img/s of all", proportional=False)
    panel(panels[1, 1], "batch", "training_memory_MB", "memory of the process, MB", proportional=False)
    panel(panels[1, 2], "size", "training_memory_MB", "memory of the process, MB", proportional=False)
    figure.savefig(path, dpi=110)


def main(options: Options) -> None:
    """Measure every point, and write the files."""
    device = best_device()
    rows = []
    for point in points():
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            rows.append(pool.submit(measure, point, options.rounds).result())
        print(json.dumps(rows[-1]), flush=True)
    if device.type == "cpu":
        counts = sorted({1, 2, os.cpu_count() or 1})
        rows += [side_by_side(count) for count in counts if count <= (os.cpu_count() or 1)]
    path = result_path("growth", device, ".json")
    path.write_text(json.dumps({"machine": facts(device), "memory": "of one training", "rows": rows}, indent=1) + "\n")
    plot(rows, path.with_suffix(".png"))
    print(f"wrote {path} and the plot beside it")


if __name__ == "__main__":
    main(tyro.cli(Options))
