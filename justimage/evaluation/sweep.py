"""The sweep: which weights and which settings draw the best samples, on one model load.

Successive halving (Jamieson and Talwalkar, arXiv 1502.07943): all candidates draw a few samples from the same seeds,
the better ones go on from there, until a few draw them all. What several candidates compute alike is computed once.
"""

import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby, product
from math import ceil, inf
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from justimage.denoiser import Denoiser
from justimage.evaluation.draws import Draws
from justimage.evaluation.evaluate import hash_of, name_of
from justimage.evaluation.fitted import Progress
from justimage.evaluation.judge import Judge
from justimage.evaluation.metrics import Estimate, frechet_estimate
from justimage.evaluation.rows import Row, RowStore
from justimage.parallel import Processes, fail_together, gathered, same_everywhere
from justimage.process import Prediction
from justimage.randomness import noise
from justimage.samplers import Final, Sampler, Sampling
from justimage.sampling.draw import draw
from justimage.weights.load import swap_weights

ROOM = 2**29  # bytes of predictions that are remembered, for each batch


@dataclass(frozen=True)
class Candidate:
    """Weights and how they are sampled."""

    source: str
    """A run, a weights folder or a checkpoint."""
    weights: str
    """Which of several it holds; empty where it holds one."""
    sampling: Sampling

    def key(self) -> str:
        """A short hash."""
        return hashlib.sha256(json.dumps(asdict(self)).encode()).hexdigest()[:12]

    def text(self) -> str:
        """In a few words."""
        s = self.sampling
        guidance = (
            "no guidance" if s.guidance == 1 else f"guidance {s.guidance:g} in {s.interval[0]:g}-{s.interval[1]:g}"
        )
        if s.guidance != 1 and s.guidance_every > 1:
            guidance += f", asked for at every {s.guidance_every} evaluations"
        shift = "" if s.shift == 1 else f", shift {s.shift:g}"
        last = "" if s.final == "official" else f", last step {s.final}"
        return f"{self.weights or self.source}: {guidance}, {s.steps} x {s.sampler}{shift}{last}"


@dataclass(frozen=True)
class Space:
    """The settings that a sweep goes through: all combinations. What is empty stays as the model has it."""

    guidance: tuple[float, ...] = (1.0, 1.5, 2.0, 2.5, 3.0, 4.0)
    """Guidance scales; 1 is none."""
    intervals: tuple[tuple[float, float], ...] = ()
    """Guidance intervals, as pairs: --intervals 0 1 0.1 1."""
    samplers: tuple[Sampler, ...] = ()
    """Samplers."""
    steps: tuple[int, ...] = ()
    """Numbers of steps."""
    shifts: tuple[float, ...] = ()
    """Time grids."""
    finals: tuple[Final, ...] = ()
    """Last steps."""

    def candidates(self, sets: Sequence[tuple[str, str]], own: Sampling, *, guided: bool) -> list[Candidate]:
        """All of them, for every set of weights (source, weights); among them the model's own settings.

        guided: whether there is a condition to guide with. Of unguided ones, no two differ in their interval alone.
        The model's own is the first one of every set. Raises ValueError for settings that cannot be.
        """
        grid = product(
            self.guidance if guided else (1.0,),
            self.intervals or (own.interval,),
            self.samplers or (own.sampler,),
            self.steps or (own.steps,),
            self.shifts or (own.shift,),
            self.finals or (own.final,),
        )
        named = [
            replace(own, steps=steps, sampler=sampler, guidance=guidance, interval=lo_hi, final=final, shift=shift)
            for guidance, lo_hi, sampler, steps, shift, final in grid
        ]
        first = (self.intervals or (own.interval,))[0]
        every = [
            replace(each, interval=first) if each.guidance == 1 else each
            for each in (own if guided else replace(own, guidance=1.0), *named)
        ]
        return [Candidate(source, weights, each) for source, weights in sets for each in dict.fromkeys(every)]


@dataclass(frozen=True)
class Halving:
    """How many samples the candidates draw, and how many of them go on."""

    count: int = 2000
    """Samples of those that get to the end."""
    first: float = 1 / 8
    """Share of these that all draw."""
    kept: float = 1 / 3
    """Share of the candidates that go on; they draw twice as many."""
    finalists: int = 3
    """At least so many draw all samples."""

    def __post_init__(self) -> None:
        if self.count < 1 or self.finalists < 1:
            raise ValueError(f"count ({self.count}) and finalists ({self.finalists}) must be at least 1")
        if not 0 < self.first <= 1 or not 0 < self.kept < 1:
            raise ValueError(f"first ({self.first}) and kept ({self.kept}) are shares, between 0 and 1")

    def rungs(self, candidates: int, least: int, multiple: int) -> list[tuple[int, int]]:
        """(samples, candidates) of each round.

        least: samples that a distance needs at least; multiple: of what the numbers must be (classes, balanced).
        """
        rounds, share, left = [], self.first, candidates
        while True:
            last = share >= 1 or left <= self.finalists
            count = self.count if last else min(self.count, max(ceil(self.count * share), least))
            rounds.append((min(self.count, ceil(count / multiple) * multiple), left))
            if last:
                return rounds
            share, left = 2 * share, max(self.finalists, ceil(left * self.kept))


@dataclass(frozen=True)
class Trial:
    """What a candidate has scored after some samples."""

    candidate: Candidate
    fd: Estimate
    count: int


@dataclass(frozen=True)
class Sweep:
    """All that a sweep has found."""

    trials: tuple[Trial, ...]
    """The last of each candidate, the best first: more samples before fewer, which are not comparable."""
    first: tuple[Trial, ...]
    """Those after the first round, which all have in common."""
    drawn: int
    """Samples drawn in all."""
    full: int
    """Samples that a full grid would have drawn."""

    @property
    def best(self) -> Trial:
        """The recommended one."""
        return self.trials[0]


class NothingFinite(ValueError):
    """No candidate draws samples that are finite."""


class Remembering:
    """A model that remembers its last predictions at every time, and gives them again where it is asked the very same.

    Before guidance begins, samples of all guidance scales are on one path, and to the last step those of all last steps
    are: exactly the same numbers, computed once. All must have one condition. Predictions above ROOM bytes are not
    remembered.
    """

    def __init__(self, model: Denoiser):
        self.model, self.size = model, 0
        self.kept: dict[tuple[float, int], deque[Prediction]] = {}
        self.asked = self.computed = 0

    def null(self, count: int, size: Sequence[int], device: torch.device) -> Any:
        """As the model's."""
        return self.model.null(count, size, device)

    def __call__(self, z: Tensor, t: Tensor, y: Any) -> Prediction:
        self.asked += len(z)
        # Heun's method comes by every time twice: at the end of a step, and from where that step has led.
        kept = self.kept.setdefault((float(t[0]), len(z)), deque(maxlen=2))
        for known in kept:
            if torch.equal(known.z, z):
                return known
        self.computed += len(z)
        found = self.model(z, t, y)
        more = 0 if len(kept) == kept.maxlen else 2 * found.value.nbytes
        if self.size + more <= ROOM:
            self.size += more
            kept.append(found)
        return found


def sweep(
    model: Denoiser,
    judge: Judge,
    draws: Draws,
    candidates: Sequence[Candidate],
    halving: Halving,
    folder: Path,
    *,
    always: Sequence[Callable[[Candidate], bool]] = (),
    batch_size: int = 64,
    processes: Processes | None = None,
    progress: Progress | None = None,
) -> Sweep:
    """Find the best candidate. All draw the same `draws`, of which rounds take the first ones.

    model: one loaded with any of the weights; others are swapped in. folder: where features are kept, to go on after
    a kill. always: of those that each of these names, the best goes on to the end. Raises ValueError where a round has
    too few samples for the features, NothingFinite where no candidate draws finite ones.
    """
    processes = processes or Processes()
    multiple = model.num_classes if draws.balanced else 1
    least = judge.features.size + 2
    rungs = halving.rungs(len(candidates), least, multiple)
    if halving.count < least:
        raise ValueError(
            f"{halving.count:,} samples are too few for {judge.features.size:,} features; choose a larger count"
        )
    left, trials = list(candidates), {}
    first: list[Trial] = []
    stores: dict[Candidate, RowStore] = {}  # in the first process
    before = drawn = 0
    total = _work(rungs)
    for number, (count, _) in enumerate(rungs):
        by_weights = sorted(left, key=lambda each: (each.source, each.weights))
        done = drawn
        for (source, weights), some in groupby(by_weights, key=lambda each: (each.source, each.weights)):
            group = list(some)
            swap_weights(model, source, weights or None)
            if processes.first:
                kinds, now = {"features": Row((judge.features.size,))}, hash_of(model)
                names = {each: f"{each.key()}-{name_of(now, each.sampling, judge, draws)}" for each in group}
                stores |= {each: RowStore(folder / name, kinds) for each, name in names.items()}

            def shown(samples: int, done: int = done) -> None:
                if progress is not None:
                    progress(min(done + samples, total), total, "sweeping")

            _advance(model, judge, draws, group, stores, count, batch_size, processes, shown)
            done += (count - before) * len(group)
        drawn += (count - before) * len(left)
        before = count
        found = (
            [Trial(each, _distance(stores[each], judge, draws, count), count) for each in left]
            if processes.first
            else []
        )
        found = same_everywhere(found, processes)
        ranked = sorted(found, key=lambda trial: trial.fd.value)
        if ranked[0].fd.value == inf:
            raise NothingFinite(f"no candidate draws finite samples, not even {ranked[0].candidate.text()}")
        trials |= {trial.candidate: trial for trial in ranked}
        first = first or ranked
        if number + 1 < len(rungs):
            going = ranked[: rungs[number + 1][1]]
            for named in always:
                going += [each for each in ranked if named(each.candidate)][:1]
            going = list(dict.fromkeys(going))
            left = [trial.candidate for trial in going]
    order = sorted(trials.values(), key=lambda trial: (-trial.count, trial.fd.value))
    return Sweep(tuple(order), tuple(first), drawn, halving.count * len(candidates))


def _work(rungs: Sequence[tuple[int, int]]) -> int:
    counts = [0, *(count for count, _ in rungs)]
    return sum((count - before) * left for (count, left), before in zip(rungs, counts, strict=False))


def _distance(store: RowStore, judge: Judge, draws: Draws, count: int) -> Estimate:
    features = store["features"][:count]
    if not np.isfinite(features).all():
        return Estimate(inf, None)
    groups = draws.groups()
    return frechet_estimate(features, judge.reference.moments, None if groups is None else groups[:count])


def _advance(
    model: Denoiser,
    judge: Judge,
    draws: Draws,
    group: Sequence[Candidate],
    stores: Mapping[Candidate, RowStore],
    count: int,
    batch_size: int,
    processes: Processes,
    shown: Callable[[int], None],
) -> None:
    """Draw what the candidates of one set of weights lack of `count` samples, batch by batch."""
    have = same_everywhere([stores[each].count for each in group] if processes.first else [], processes)
    ordered = sorted(range(len(group)), key=lambda i: _alike(group[i].sampling))
    start = begin = min(have)
    while start < count:
        stop = min(start + batch_size * processes.world, count)
        mine = range(
            min(start + processes.rank * batch_size, stop), min(start + (processes.rank + 1) * batch_size, stop)
        )
        made: dict[int, np.ndarray] = {}
        problem = None
        try:
            if mine:
                for i, features in _drawn(
                    model, judge, draws, mine, [(i, group[i]) for i in ordered if have[i] < stop]
                ):
                    made[i] = features
        except ValueError as error:
            problem = error
        fail_together(problem, processes)
        every = gathered(made, processes)
        for i, candidate in enumerate(group):
            parts = [each[i] for each in every if i in each]
            if parts:
                store = stores[candidate]
                store.append({"features": np.concatenate(parts)[max(0, store.count - start) :]})
        start = stop
        shown((start - begin) * len(group))


def _alike(sampling: Sampling) -> tuple[Any, ...]:
    """Neighbours in this order have the most in common."""
    return sampling.sampler, sampling.steps, sampling.shift, sampling.interval, sampling.guidance, sampling.final


def _drawn(
    model: Denoiser, judge: Judge, draws: Draws, part: range, group: Sequence[tuple[int, Candidate]]
) -> Iterator[tuple[int, np.ndarray]]:
    """The features of the samples of one batch, for each candidate of a set of weights."""
    size = tuple(model.config.size)
    some = slice(part.start, part.stop)
    labels = None if draws.labels is None else list(draws.labels[some])
    y = model.value(labels, {name: rows[some] for name, rows in draws.condition.items()}, len(part), size)
    y = None if y is None else {name: each.to(model.device) for name, each in y.items()}
    z = model.noise_scale * noise(list(draws.seeds[some]), (model.config.channels, *size)).to(model.device)
    remembering = Remembering(model)
    for i, candidate in group:
        with torch.inference_mode():
            x = draw(remembering, y, z, candidate.sampling)
            features, _ = judge.features((model.spec or judge.spec).decode(x))
        # 8-bit pixels are finite whatever they come from.
        finite = x.flatten(1).isfinite().all(1).cpu().numpy()
        yield i, np.where(finite[:, None], features.float().cpu().numpy(), np.float32(np.nan))
