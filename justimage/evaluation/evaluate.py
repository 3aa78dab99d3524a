"""Evaluation: draw, look, and compare with the reference; the same for any batch and number of processes."""

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from justimage.data.spec import DataSpec
from justimage.denoiser import Denoiser
from justimage.disk.tensors import sum_of
from justimage.evaluation.draws import Draws
from justimage.evaluation.fitted import Progress
from justimage.evaluation.judge import Judge, check_counts
from justimage.evaluation.reference import check_comparable
from justimage.evaluation.rows import Looker, RowStore
from justimage.evaluation.scores import Score, Scores
from justimage.execution import device_name, precision_of
from justimage.parallel import Processes, fail_together, gathered, same_everywhere
from justimage.samplers import Sampling
from justimage.sampling.generate import Samples, generate
from justimage.weights.description import describe


def evaluate(
    model: Denoiser,
    judge: Judge,
    draws: Draws,
    folder: str | Path | None = None,
    *,
    sampling: Sampling | None = None,
    batch_size: int = 64,
    processes: Processes | None = None,
    progress: Progress | None = None,
    keep: Callable[[Samples], None] | None = None,
) -> Scores | None:
    """Draw samples on all processes and judge them -> the scores in the first process, None in the others.

    folder: where their rows are kept, and found again after a kill; by default a temporary one. sampling: in place of
    the model's own; without a condition, guidance is 1. Raises ValueError where there are too few samples or the model
    draws what the judge does not know, before the first sample; and where features of a sample are not finite.
    """
    processes, clock = processes or Processes(), Clock()
    check_counts(len(draws.seeds), judge.features)
    if model.spec is not None:
        check_comparable(model.spec, judge.spec, "the model")
    chosen = sampling or model.sampling
    if draws.labels is None and not draws.condition:
        chosen = replace(chosen, guidance=1.0)
    looker = judge.looker()
    with ExitStack() as stack:
        if folder is None:
            folder = Path(stack.enter_context(TemporaryDirectory(prefix="justimage-rows-")))
        store = RowStore(Path(folder), looker.kinds()) if processes.first else None
        began = 0 if store is None else store.count
        draw_rows(
            model,
            draws,
            looker,
            store,
            sampling=chosen,
            batch_size=batch_size,
            processes=processes,
            clock=clock,
            progress=progress,
            keep=keep,
        )
        if store is None:
            return None
        with clock("metrics"):  # of more samples, where an interrupted evaluation was asked for more
            scores = judge.scores(store.first(len(draws.seeds)), draws.labels, draws.groups())
    drawn = {
        "sampling": asdict(chosen),
        "nfe": chosen.evaluations(),
        "count": len(draws.seeds),
        "labels": draws.policy,
        "first_seed": draws.seeds.start,
        "training": model.training_summary,
        "batch_size": batch_size,
        "precision": precision_of(model.net),
        "device": device_name(model.device),
        "threads": torch.get_num_threads(),
        "processes": processes.world,
        "drawn_now": max(0, len(draws.seeds) - began),
        "seconds": {what: round(seconds, 3) for what, seconds in clock.seconds.items()},
        "overhead": round(1 - clock.shares().get("drawing", 0.0), 4),
    }
    return Scores(scores.scores, {**drawn, **scores.facts})


@dataclass
class Clock:
    """Where the time of an evaluation goes, in seconds."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def __call__(self, what: str) -> Iterator[None]:
        """Count the time of the block as `what`."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[what] = self.seconds.get(what, 0.0) + time.perf_counter() - began

    def shares(self) -> dict[str, float]:
        """Share of each in all that was counted."""
        total = sum(self.seconds.values())
        return {what: seconds / max(total, 1e-9) for what, seconds in self.seconds.items()}


def draw_rows(
    model: Denoiser,
    draws: Draws,
    looker: Looker,
    store: RowStore | None,
    *,
    sampling: Sampling,
    batch_size: int = 16,
    processes: Processes | None = None,
    clock: Clock | None = None,
    progress: Progress | None = None,
    keep: Callable[[Samples], None] | None = None,
) -> None:
    """Draw the samples that the store lacks, on all processes, and add their rows to it in their order.

    Only the first process has a store. keep: gets every batch that this process draws. Raises ValueError, in all
    processes, where features are not finite.
    """
    processes, clock = processes or Processes(), clock or Clock()
    total = len(draws.seeds)
    done = same_everywhere(store.count if store is not None else 0, processes)
    while done < total:
        start = min(done + processes.rank * batch_size, total)
        part = slice(start, min(start + batch_size, total))
        rows, problem = None, None
        try:
            if part.stop > part.start:
                with clock("drawing"):
                    batch = _drawn(model, draws, part, sampling, looker.spec)
                with clock("features"):
                    rows = looker(batch.raw.to(model.device), batch.seeds)
                if keep is not None:
                    keep(batch)
        except ValueError as error:
            problem = error
        fail_together(problem, processes)
        with clock("rest"):
            every = [each for each in gathered(rows, processes) if each is not None]
            if store is not None:
                for each in every:
                    store.append(each)
            done = min(done + processes.world * batch_size, total)
        if progress is not None:
            progress(done, total, "drawing")


def _drawn(model: Denoiser, draws: Draws, part: slice, sampling: Sampling, spec: DataSpec) -> Samples:
    """Raw samples; those of a model that does not say what its values mean are of the spec."""
    size = part.stop - part.start
    labels = None if draws.labels is None else list(draws.labels[part])
    condition = {name: rows[part] for name, rows in draws.condition.items()}
    batch = next(generate(model, draws.seeds[part], labels, condition=condition, batch_size=size, sampling=sampling))
    return batch if model.spec is not None else batch._replace(raw=spec.decode(batch.raw))


def mean_of(several: Sequence[Scores]) -> Scores:
    """The mean of evaluations with other seeds, and as the error the standard error of it, from their spread."""
    if len(several) == 1:
        return several[0]
    first, found = several[0], []
    for score in first.scores:
        values = np.array([each[score.name].value for each in several])
        error = None if score.name == "floor" else float(values.std(ddof=1) / np.sqrt(len(values)))
        found.append(Score(score.name, float(values.mean()), error, score.better, score.meaning))
    spread = {score.name: [each[score.name].value for each in several] for score in first.scores}
    return Scores(tuple(found), {**first.facts, "repeats": len(several), "each": spread})


def name_of(weights: str, sampling: Sampling, judge: Judge, draws: Draws) -> str:
    """A short hash of all that rows depend on besides their number, by which they are found again after a kill.

    weights: from `hash_of`.
    """
    facts = judge.reference.facts
    data = facts.get("fingerprint", facts.get("sha256"))
    about = [weights, asdict(sampling), draws.policy, draws.seeds.start, judge.features.name, data]
    return hashlib.sha256(json.dumps(about).encode()).hexdigest()[:12]


def hash_of(model: Denoiser) -> str:
    """A short hash of a model's weights and of what they mean: others draw other samples."""
    about = f"{sum_of(model.net.state_dict())} {describe(model)['prediction']}"
    return hashlib.sha256(about.encode()).hexdigest()[:16]
