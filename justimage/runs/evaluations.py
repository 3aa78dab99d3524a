"""Evaluation while training: samples of fixed seeds judged at intervals, and the best weights so far kept.

Nothing that training computes depends on it: samples draw from their own seeds, and the weights are copies.
"""

import json
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from rich.console import Console

from justimage.data.records import read_json
from justimage.data.spec import Source, StreamSource, UnreadableSample
from justimage.denoiser import Denoiser
from justimage.disk.whole import append_json
from justimage.evaluation.draws import Draws, draws_of, shared_up
from justimage.evaluation.evaluate import evaluate
from justimage.evaluation.features import open_features
from justimage.evaluation.fitted import Fit
from justimage.evaluation.judge import Judge, check_counts
from justimage.evaluation.reference import reference_of
from justimage.evaluation.scores import Scores, now
from justimage.execution import cast_parameters
from justimage.networks.protocol import NETWORKS, name_of
from justimage.parallel import FailedElsewhere, any_of, fail_together, first_then_others, same_everywhere
from justimage.runs.folder import RESULTS, log_until
from justimage.runs.preview import default_weights
from justimage.runs.recipes import Recipe
from justimage.runs.sinks import Work
from justimage.training.loop import passed
from justimage.training.state import TrainingState
from justimage.weights.folder import CONFIG

BEST = Path("weights", "best")
OFF = "--report.evaluate-nimg 0 trains without evaluations"
BATCH_SIZE = 64


class NotEvaluated(RuntimeError):
    """The samples of a run cannot be judged, for the reason that this says."""


class Stopped(Exception):
    """An evaluation was asked to stop; the run makes it anew when it is resumed."""


@dataclass
class Evaluations:
    """Evaluations of one run: which are due, and how they are made."""

    folder: Path
    every_nimg: int
    duration_nimg: int
    done_nimg: int
    """Of the last one; 0: there was none."""
    asked: int
    """Samples that were asked for; there may be more draws."""
    judge: Judge
    draws: Draws
    dtype: torch.dtype
    """Of the network while drawing."""
    data: str
    """What the source says of itself."""

    def describe(self) -> str:
        """How often is evaluated what, and by what, for the user."""
        drawn = len(self.draws.seeds)
        more = "" if drawn == self.asked else f" (for {self.asked:,}, so that the classes share them out equally)"
        return (
            f"{drawn:,} samples{more} every {self.every_nimg:,} and at the end, {self.draws.policy}, by "
            f"{self.judge.features.name}"
        )

    def due(self, nimg: int) -> bool:
        """Whether a multiple of the interval, or the end, was reached since the last evaluation."""
        return is_due(nimg, self.done_nimg, self.every_nimg, self.duration_nimg)

    def __call__(self, state: TrainingState, stop: Callable[[], bool], work: Work, console: Console) -> Scores | None:
        """Evaluate the run's default weights on all processes; the first one writes the result and the best weights,
        and returns the scores.

        Raises Stopped, in all processes, once `stop` says so in any; NotEvaluated where samples cannot be judged.
        """
        processes = state.processes
        name, weights = default_weights(state)
        weights.training_summary |= {"nimg": state.nimg, "data": self.data, "weights": name}
        cast_parameters(weights.net, self.dtype)  # the copy's: the state keeps its own

        def progress(done: int, total: int, what: str) -> None:
            fail_together(None, processes)  # where the first could not keep the rows, nobody waits for it
            if any_of(stop(), processes):
                raise Stopped
            work(done, total, what)

        with ExitStack() as stack:
            scores, problem = None, None
            rows = Path(stack.enter_context(TemporaryDirectory(prefix="justimage-rows-"))) if processes.first else None
            try:
                scores = evaluate(
                    weights,
                    self.judge,
                    self.draws,
                    rows or Path(),
                    batch_size=BATCH_SIZE,
                    processes=processes,
                    progress=progress,
                )
            except ValueError as error:
                problem = NotEvaluated(f"the weights {name} cannot be evaluated: {error}; {OFF}")
            except FailedElsewhere as error:
                problem = error
            fail_together(problem, processes)
        best = self._keep_best(state, scores)
        if scores is not None:
            self._add(state.nimg, name, scores)
            said = f"evaluated {name} at nimg = {state.nimg:,}: {in_short(scores)}" + (", the best so far" * best)
            console.print(said, markup=False, soft_wrap=True)
        self.done_nimg = state.nimg
        return scores

    def _keep_best(self, state: TrainingState, scores: Scores | None) -> bool:
        """Save the weights where no earlier ones had a lower distance; whether it did. The first process has scores."""
        fd = None if scores is None else scores["fd"].value
        ours = {"fd": fd, "features": self.judge.features.name, "count": len(self.draws.seeds)}
        if not same_everywhere(fd is not None and self._is_best(ours), state.processes):
            return False
        name, weights = default_weights(state)  # in all processes: a sharded run gathers them
        if state.processes.first:
            weights.training_summary |= {"nimg": state.nimg, "data": self.data, "weights": name, **ours}
            weights.save_pretrained(self.folder / BEST)
        return True

    def _is_best(self, ours: dict) -> bool:
        best = read_best(self.folder)
        comparable = best is not None and all(best[name] == ours[name] for name in ("features", "count"))
        return best is None or not comparable or best["fd"] > ours["fd"]

    def _add(self, nimg: int, weights: str, scores: Scores) -> None:
        line = {"time": now(), "nimg": nimg, "model": str(self.folder), "weights": weights, **scores.to_json()}
        append_json(self.folder / RESULTS, line)


def in_short(scores: Scores) -> str:
    """The Frechet distance, and what it is to be compared with."""
    floor = f" (floor {scores['floor'].text()})" if "floor" in scores else ""
    return f"Frechet distance {scores['fd'].text()}{floor}"


def is_due(nimg: int, done_nimg: int, every_nimg: int, duration_nimg: int) -> bool:
    """Whether a multiple of `every_nimg` (0: none is), or the end, lies in (done_nimg, nimg]."""
    if every_nimg == 0 or nimg <= done_nimg:
        return False
    return nimg >= duration_nimg or passed(done_nimg, nimg, every_nimg)


def evaluations_of(
    recipe: Recipe, source: Source | StreamSource, folder: Path, state: TrainingState, data: str, work: Work
) -> Evaluations | None:
    """What evaluates a run from where it stands; None where nothing is to be evaluated any more.

    data: where the source was found. Features are fitted and the data looked at now. Raises ValueError, which says how
    to do without, where the run cannot be evaluated, or where what an earlier evaluation left is damaged.
    """
    report, processes, total = recipe.report, state.processes, recipe.training.duration_nimg
    done = same_everywhere(last_evaluated(folder, state.nimg), processes)
    if report.evaluate_nimg == 0 or (state.nimg >= total and not is_due(state.nimg, done, report.evaluate_nimg, total)):
        return None
    read_best(folder)
    try:
        draws = _draws(state.model, report.evaluate_count, source)
        judge = first_then_others(processes, lambda: _judge(source, len(draws.seeds), processes.device, data, work))
    except UnreadableSample:  # training could not do without it either
        raise
    except ValueError as error:
        raise ValueError(f"this run cannot be evaluated: {error}. {OFF}") from error
    # A network of the user's own need not know of any precision but float32.
    dtype = recipe.training.dtype(processes.device) if name_of(state.plain.net) in NETWORKS else torch.float32
    asked = report.evaluate_count
    return Evaluations(folder, report.evaluate_nimg, total, done, asked, judge, draws, dtype, source.describe())


def _draws(model: Denoiser, count: int, source: Source | StreamSource) -> Draws:
    """At least `count` samples, every class equally often; conditioned on more than classes, as in the data."""
    if any(kind != "labels" for _, kind, *_ in model.needs):
        return draws_of(model, count, 0, "data", source)
    return draws_of(model, shared_up(count, model), 0, "balanced", source)


def _judge(source: Source | StreamSource, count: int, device: torch.device, data: str, work: Work) -> Judge:
    """Fitted features and the training data, of which only what is cheap to compare with is kept."""
    if source.indexed is True and min(len(source), count) <= Fit().features:  # told before anything is fitted
        raise ValueError(
            f"the {Fit().features} features need more samples than that, and there are {len(source):,} in the data and "
            f"{count:,} to be drawn (report.evaluate_count)"
        )
    features = open_features("fit", source, device=device, progress=work)
    check_counts(count, features)
    reference = reference_of(source, features, path=data, progress=work, device=device)
    return Judge(features, replace(reference, rows={}, small=None), source.spec)


def last_evaluated(folder: Path, nimg: int) -> int:
    """The position of the last evaluation up to nimg; 0 where there was none. ValueError where the file is damaged."""
    lines = log_until(folder / RESULTS, nimg, others=True).splitlines()
    return max((json.loads(line).get("nimg", 0) for line in lines), default=0)


def read_best(folder: Path) -> dict | None:
    """What the best weights of a run say of themselves: `nimg`, `weights`, `fd`, `features` and `count`.

    None where there are none yet. Raises ValueError where they are damaged.
    """
    path = folder / BEST / CONFIG
    if not path.is_file():
        return None
    config = read_json(path)
    said = config.get("training") if isinstance(config, dict) else None
    if not isinstance(said, dict) or not isinstance(said.get("fd"), float) or not {"features", "count"} <= said.keys():
        raise ValueError(f"{path} does not say how good these weights are; remove {path.parent}")
    return said
