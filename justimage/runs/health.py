"""The health of a run, measured while it trains: lines of health.jsonl, which `jit doctor` reads.

At intervals, and at the end: the loss on a fixed grid of times for every set of weights (`training.grid`), what labels
and unseen samples change in it, how strong gradients and updates are in each part (`training.step`), the scale of the
residual stream, and memory. Training computes the same numbers with it and without.
"""

import contextlib
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from math import ceil, prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from justimage.data.spec import DataSpec, Source, StreamSource
from justimage.denoiser import Denoiser
from justimage.disk.whole import append_json
from justimage.execution import autocast, peak_of_process
from justimage.process import Density
from justimage.runs.glance import Glance, glance_at, some_of
from justimage.runs.preview import names_of, weights_named
from justimage.runs.recipes import Recipe
from justimage.training.grid import TIMES, Samples, activations, losses, neighbours, others, shifted, without
from justimage.training.loop import Tick, passed
from justimage.training.state import TrainingState
from justimage.training.step import Norms, watch_next

SAMPLES = 32  # on the grid, and fewer where they would be more bytes than the next line says
MOST_BYTES = 2**28
NOISY = TIMES[1:4]  # where labels, and what was learned by heart, matter most
ALIKE = 0.5  # correlation of neighbours below which samples have no order that moving them would keep
WATCH_STEPS = 50  # of which one at the most is watched: a look goes several times through weights and moments
FAILED = "failed"  # the key of the line that says why training failed
SHARE = 0.01  # of the work of training that measuring may be, at the default interval


@dataclass(frozen=True)
class Gap:
    """How much more the loss is on one thing than on another, as a share of it, and the standard error of that."""

    value: float
    error: float


@dataclass(frozen=True)
class Part:
    """A part of the network in one ordinary step. Norms; update and most_update as shares of the weights' norm."""

    name: str
    gradient: float
    """As the optimizer gets it, clipped."""
    weight: float
    update: float
    most_update: float
    """The largest since the last line, of one step after a tick, and of one in WATCH_STEPS at the most."""


@dataclass(frozen=True)
class Curve:
    """Losses of a set of weights, one for each time of the grid."""

    weights: str
    losses: tuple[float, ...]


@dataclass(frozen=True)
class Measured:
    """A line of health.jsonl. Losses are errors of v at `times`, comparable across runs on the same data."""

    nimg: int
    time: int
    """Seconds since 1970."""
    times: tuple[float, ...] = TIMES
    density: tuple[float, ...] = ()
    """Share of the run's own training times in the bin around each; they say which of them it learns."""
    trained: tuple[Curve, ...] = ()
    """On samples that are trained on; empty for a stream."""
    held_out: tuple[Curve, ...] = ()
    """On samples that are held out, if any are."""
    errors: tuple[float, ...] = ()
    """The standard errors of the raw weights' losses on what is trained on."""
    unseen: Gap | None = None
    """Of samples held out, or else of those trained on moved by a pixel, over those trained on, at noisy times. None
    where none are held out and moving makes others of them: fields on fixed coordinates, and numbers in no order."""
    null: Gap | None = None
    """Of no condition over the sample's own, at noisy times."""
    other: Gap | None = None
    """Of another sample's condition over the sample's own."""
    parts: tuple[Part, ...] = ()
    activations: tuple[float, ...] = ()
    """Root mean square of the residual stream after each block."""
    data: Glance | None = None
    host_gb: float = 0.0
    """The largest memory of the process so far, in 10^9 bytes."""
    device_gb: float = 0.0
    """The same of the accelerator; 0 on a CPU."""


class Health:
    """Measures a run at intervals. A stream cannot be asked for the same samples again: only steps are measured."""

    def __init__(self, recipe: Recipe, source: Source | StreamSource, state: TrainingState, path: Path):
        self.path, self.state, self.total = path, state, recipe.training.duration_nimg
        self.dtype = recipe.training.dtype(state.processes.device)
        share = recipe.training.batch_size // state.processes.world
        self.batch = min(SAMPLES, recipe.training.microbatch or share)
        self.density = _density(recipe.training.times)
        self.samples = self.unseen = None
        self.data: Glance | None = None
        if source.indexed is True:
            self.data = glance_at(source, recipe.noise_scale)
            self.samples = _read(source, state.model)
            self.unseen = _read(source.held_out, state.model) if source.held_out is not None else None
        self.every = recipe.report.health_nimg or self._affordable(recipe)
        self.done = state.nimg
        self.most: dict[str, float] = {}
        self.norms: Norms = {}
        self.step = recipe.training.batch_size
        self._watch()

    def _affordable(self, recipe: Recipe) -> int:
        """The interval at which measuring is SHARE of training, whose steps are three evaluations a sample."""
        sets = 1 + len(recipe.training.ema_decays)
        rows = len(TIMES) * (sets + (self.unseen is not None)) + len(NOISY) * 3
        return ceil(rows * SAMPLES / 3 / SHARE)

    def __call__(self, tick: Tick) -> None:
        """Take the step that was watched since the last tick; measure and write a line where one is due."""
        if self.result is not None:
            self.norms, self.result = self.result(), None
            for name, (_, weight, update) in self.norms.items():
                self.most[name] = max(self.most.get(name, 0.0), _share(update, weight))
        last = tick.stopping or tick.nimg >= self.total
        if last or passed(self.done, tick.nimg, self.every):
            first = self.state.processes.first
            # One set of weights after another: those of a sharded run are gathered then, in every process.
            sets = ((name, weights_named(self.state, name, needed=first)) for name in names_of(self.state))
            parts = tuple(
                Part(name, gradient, weight, _share(update, weight), self.most.get(name, _share(update, weight)))
                for name, (gradient, weight, update) in self.norms.items()
            )
            if first:
                append_json(self.path, _rounded(asdict(self._measure(sets, parts))))
            for _ in sets:  # what was not asked for, or in the other processes all
                pass
            self.done, self.most = tick.nimg, {}
        if not last and tick.nimg - self.watched >= WATCH_STEPS * self.step:
            self._watch()

    def _watch(self) -> None:
        """Measure the next step."""
        self.result, self.watched = watch_next(self.state.model.net, self.state.optimizer), self.state.nimg

    def _measure(self, sets: Iterator[tuple[str, Denoiser]], parts: tuple[Part, ...]) -> Measured:
        device = self.state.processes.device
        facts: dict[str, Any] = {"density": self.density, "parts": parts, "data": self.data, **_memory(device)}
        if self.samples is not None:
            with autocast(device, self.dtype):
                facts |= self._on_grid(sets, self.samples)
        return Measured(self.state.nimg, round(time.time()), **facts)

    def _on_grid(self, sets: Iterator[tuple[str, Denoiser]], samples: Samples) -> dict[str, Any]:
        raw, found = next(sets)[1].eval(), {}
        measure = partial(losses, batch=self.batch)
        found["activations"] = activations(raw, samples, lambda: found.setdefault("own", measure(raw, samples)))
        own = found.pop("own")  # (T, B)
        found["errors"] = tuple((_spread(own) / own.shape[1] ** 0.5).tolist())
        found["trained"] = (_curve("raw", own),)
        noisy = own[[TIMES.index(t) for t in NOISY]].mean(0)  # (B,)
        if self.unseen is not None:
            away, full = self.unseen, measure(raw, self.unseen)
            found["held_out"] = (_curve("raw", full),)
            unseen = full[[TIMES.index(t) for t in NOISY]].mean(0)
            near, far = _distances(samples.x, away.x)
            found["unseen"] = _gap_of_two(unseen, noisy, far, near)
        elif _has_places(raw.spec) or neighbours(samples.x) < ALIKE:
            away, unseen = samples, noisy
        else:
            away = shifted(samples)
            unseen = measure(raw, away, NOISY).mean(0)
            found["unseen"] = _gap(unseen, noisy)
        if raw.needs:  # asked of unseen samples: those trained on may be known by heart, their labels too
            found["null"] = _gap(measure(raw, without(raw, away), NOISY).mean(0), unseen)
            found["other"] = _gap(measure(raw, others(away), NOISY).mean(0), unseen)
        where, on = ("trained", samples) if self.unseen is None else ("held_out", self.unseen)
        found[where] += tuple(_curve(name, measure(model.eval(), on)) for name, model in sets)
        return found


def note_failure(path: Path, nimg: int, why: str) -> None:
    """Add a line that says why training failed, if there is room for it; resuming removes it."""
    with contextlib.suppress(OSError):
        append_json(path, {"nimg": nimg, "time": round(time.time()), FAILED: why})


def without_failures(lines: str) -> str:
    """Lines of health.jsonl without those that say why training failed."""
    return "".join(line for line in lines.splitlines(keepends=True) if FAILED not in json.loads(line))


def _read(source: Source, model: Denoiser) -> Samples:
    """Up to SAMPLES of a source, evenly spread, as model values on the model's device."""
    most = max(2, min(SAMPLES, MOST_BYTES // (4 * prod(source.spec.shape))))
    items = some_of(source, most)
    raw = torch.stack([torch.from_numpy(raw.copy()) for raw, _ in items])
    y = {name: torch.stack([torch.as_tensor(each[name]) for _, each in items]) for name in items[0][1]}
    x, y = source.spec.encode(raw), source.spec.encode_given(y)
    return Samples(x.to(model.device), {name: each.to(model.device) for name, each in y.items()})


def _has_places(spec: DataSpec | None) -> bool:
    """Whether a value's place on the grid is a place of the world: then samples that are moved are others."""
    origin = spec.origin if spec is not None else None
    return origin is not None and any(set(each.dims) & set(origin.dims) for each in origin.coordinates)


def _spread(losses: Tensor) -> Tensor:
    """The standard deviation along the samples, the last axis; 0 where there is one."""
    return losses.std(-1) if losses.shape[-1] > 1 else torch.zeros(losses.shape[:-1])


def _curve(weights: str, losses: Tensor) -> Curve:
    return Curve(weights, tuple(losses.mean(1).tolist()))


def _density(times: Density) -> tuple[float, ...]:
    """The share of a density of training times that falls to each time of the grid."""
    uniform = (torch.arange(4000) + 0.5) / 4000
    drawn = times.times(torch.special.ndtri(uniform))
    counts = torch.histc(drawn.float(), bins=len(TIMES), min=0, max=1)
    return tuple((counts / len(drawn)).tolist())


def _gap(changed: Tensor, own: Tensor) -> Gap:
    """Of the same samples (B,): the errors of both have most in common, and it drops out."""
    difference = changed - own
    return Gap(float(difference.mean() / own.mean()), float(_spread(difference) / len(own) ** 0.5 / own.mean()))


def _distances(x: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """How far samples (B, C, *S) and (A, C, *S) are from the mean of all: (B,) and (A,) on the CPU.

    What is far is hard, seen or not. From the mean of one of the two, its own would be nearer than the others.
    """
    middle = torch.cat((x, others)).mean(0)
    near, far = ((each - middle).square().flatten(1).mean(1).cpu() for each in (x, others))
    return near, far


def _gap_of_two(changed: Tensor, own: Tensor, far: Tensor, own_far: Tensor) -> Gap:
    """Of different samples, (A,) and (B,): of the losses over how far these are from the mean, (A,) and (B,).

    The quotient of means drops most of what differs from sample to sample (the ratio estimator: Cochran, Sampling
    Techniques, 1977, section 6.3).
    """

    def quotient(losses: Tensor, far: Tensor) -> tuple[float, float]:
        value = float(losses.sum() / far.sum())
        spread = (losses - value * far).square().sum() / max(len(losses) - 1, 1)
        return value, float((spread / len(losses)) ** 0.5 / far.mean())

    (high, high_error), (low, low_error) = quotient(changed, far), quotient(own, own_far)
    ratio = high / low
    return Gap(ratio - 1, ratio * ((high_error / high) ** 2 + (low_error / low) ** 2) ** 0.5)


def _share(update: float, weight: float) -> float:
    return update / weight if weight else 0.0


def _memory(device: torch.device) -> dict[str, float]:
    host = peak_of_process()
    held = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0
    return {"host_gb": round(host / 1e9, 3), "device_gb": round(held / 1e9, 3)}


def _rounded(value: Any) -> Any:
    """Plain values, numbers with a fraction to six digits; NaN and infinity stay, as Python's JSON has them."""
    if isinstance(value, dict):
        return {name: _rounded(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(each) for each in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value
