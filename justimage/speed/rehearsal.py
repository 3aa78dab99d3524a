"""A rehearsal: the first steps of a training run as `jit train` takes them, timed, and the memory that they need.

It runs in a process of its own, so that its memory is that of a run and nothing else.
"""

import multiprocessing
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace

import torch

from justimage.data.sources import open_source
from justimage.data.spec import Source, StreamSource
from justimage.execution import find_device, finish, is_compiled
from justimage.parallel import Processes
from justimage.runs.recipes import Recipe
from justimage.speed.bench import made_up, replaced
from justimage.speed.clock import Clock, peak_memory
from justimage.training.build import build
from justimage.training.loop import train
from justimage.training.loss import flow_matching

WARM_UP, FEWEST = 2, 6  # steps
MADE = 64  # samples of made-up data


@dataclass(frozen=True)
class Rehearsal:
    """What was measured."""

    batch: int
    seconds: float
    """Of a step, the median."""
    spread: tuple[float, float]
    """The quartiles."""
    steps: int
    update: float
    """Of which the optimizer and the averages take these, whatever the batch."""
    waiting_on_data: float
    """Share of the time."""
    compiled: bool
    first_step: float
    """Seconds of the first step, in which blocks are compiled."""
    peak: int
    """The most bytes that the process held."""

    def seconds_at(self, batch: int) -> float:
        """Of a step with another batch: what is not the update grows with the samples."""
        return self.update + (self.seconds - self.update) * batch / self.batch


def rehearse(recipe: Recipe, data: str, batch: int, seconds: float, device: str | None) -> Rehearsal:
    """Take steps for so many seconds in a process of its own. data: where they are; empty: made-up data.

    Raises ValueError where the process is killed, and what training raises.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(measure, recipe, data, batch, seconds, device).result()
        except (BrokenProcessPool, torch.OutOfMemoryError) as error:
            killed = "their process was killed, most likely for want of memory"
            why = killed if isinstance(error, BrokenProcessPool) else "they need more memory than is free"
            raise ValueError(
                f"steps with {batch:,} samples could not be measured: {why}; try a smaller --training.batch-size"
            ) from error


def source_of(recipe: Recipe, data: str, made: int = MADE) -> Source | StreamSource:
    """The data, as `jit train` opens them; random ones that fit the recipe where there are none."""
    if not data:
        return made_up(recipe, made)
    return open_source(data, recipe.network.size, recipe.network.channels, recipe.data_options)


def measure(recipe: Recipe, data: str, batch: int, seconds: float, device_name: str | None) -> Rehearsal:
    """The same, in this process. Blocks are compiled where the recipe, which decides by its duration, would."""
    device = find_device(device_name)
    source = source_of(recipe, data)
    recipe = recipe.fitted_to(source.spec)
    share = recipe.training.microbatch
    config = replace(recipe.training, batch_size=batch, microbatch=share if share < batch else 0)
    state = build(recipe.model(source.spec), config, Processes(device=device))
    loss, workers = flow_matching(state.model, config), recipe.data_options.workers
    endless = replace(config, duration_nimg=10**12)
    ticks = train(state, source, loss, endless, tick_nimg=batch, workers=workers)
    waited: list[float] = []

    def step() -> None:
        tick = next(ticks)
        waited.append(tick.waiting_on_data)

    clock = Clock(device)
    first = timed_call(step, device)
    for _ in range(WARM_UP - 1):
        step()
    waited.clear()
    taken: list[float] = []
    with replaced(state.optimizer, "step", clock, "update"), replaced(state.ema, "update", clock, "update"):
        until = time.perf_counter() + seconds
        while len(taken) < FEWEST or time.perf_counter() < until:
            taken.append(timed_call(step, device))
    compiled = is_compiled(state.model.net)
    quarters = statistics.quantiles(taken, n=4) if len(taken) > 1 else taken * 3
    return Rehearsal(
        batch=batch,
        seconds=statistics.median(taken),
        spread=(quarters[0], quarters[2]),
        steps=len(taken),
        update=clock.seconds["update"] / len(taken),
        waiting_on_data=statistics.mean(waited),
        compiled=compiled,
        first_step=first,
        peak=peak_memory(device),
    )


def timed_call(call: Callable[[], object], device: torch.device) -> float:
    """Seconds of a call, with what it has asked the device for."""
    finish(device)
    began = time.perf_counter()
    call()
    finish(device)
    return time.perf_counter() - began
