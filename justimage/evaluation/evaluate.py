"""Evaluation: draw, look, and compare with the reference; the same for any batch and number of processes."""

import hashlib
import json
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import torch

from justimage import __version__
from justimage.data.loader import order
from justimage.data.spec import DataSpec, Source, StreamSource
from justimage.denoiser import Denoiser
from justimage.disk import sum_of
from justimage.evaluation.copying import NEAR, copying, reduced
from justimage.evaluation.features import Features
from justimage.evaluation.metrics import (
    frechet_estimate,
    frechet_infinity,
    inception_score,
    kid,
)
from justimage.evaluation.neighbours import density_coverage, precision_recall
from justimage.evaluation.raw import lag_correlation, quantiles, spectrum_distance, wasserstein1
from justimage.evaluation.reference import KEPT, Reference, check_comparable, evenly
from justimage.evaluation.rows import Looker, RowStore
from justimage.evaluation.scores import Score, Scores
from justimage.parallel import Processes, fail_together, gathered, same_everywhere
from justimage.samplers import Sampling
from justimage.sampling.generate import Samples, generate
from justimage.weights.description import describe

Labels = Literal["balanced", "data"]
Progress = Callable[[int, int, str], None]  # done, total, of what
SPLITS = 10  # of the Inception score


@dataclass(frozen=True)
class Draws:
    """Which samples are drawn: sample k of them depends on first_seed + k and on its condition alone."""

    seeds: range
    labels: Sequence[int] | None
    """The class of each; None: without."""
    condition: Mapping[str, Any]
    """The other parts of the condition by name, each a sequence of rows."""
    policy: str
    """How the classes and conditions were chosen, for the user."""


def draws_of(
    model: Denoiser,
    count: int,
    first_seed: int = 0,
    labels: Labels = "balanced",
    source: Source | StreamSource | None = None,
) -> Draws:
    """The samples to draw of a model. labels: every class equally often (k mod classes), or as in the data.

    Raises ValueError where that cannot be met.
    """
    seeds = range(first_seed, first_seed + count)
    others = [name for name, kind, *_ in model.needs if kind != "labels"]
    masks = [f"{name}_mask" for name, kind, *_ in model.needs if kind == "tokens"]
    if not model.needs:
        return Draws(seeds, None, {}, "unconditional")
    if labels == "balanced" and not others:
        classes = model.num_classes
        if count % classes:
            near = max(classes, round(count / classes) * classes)
            raise ValueError(
                f"{count:,} samples cannot be shared out equally over {classes:,} classes; choose --count {near}, or "
                "--labels data"
            )
        return Draws(seeds, [k % classes for k in range(count)], {}, f"balanced over {classes:,} classes")
    if labels == "balanced":
        raise ValueError(
            f"this model is conditioned on {', '.join(others)}, which only data can give; choose --labels data"
        )
    if source is None or source.indexed is not True:
        raise ValueError("--labels data takes classes from the data, and here are only statistics or a stream")
    if tuple(source.spec.needs) != tuple(model.needs):
        raise ValueError(
            f"--labels data: the model is conditioned on {_names(model.needs)}, and the reference gives "
            f"{_names(source.spec.needs)}"
        )
    _check_classes(model, source.spec)
    indices = order(0, seeds, len(source))
    drawn = _labels_at(source, indices) if model.num_classes else None
    condition = {name: _Given(source, indices, name) for name in others + masks}
    return Draws(seeds, drawn, condition, "as in the data")


def _check_classes(model: Denoiser, spec: DataSpec) -> None:
    if model.spec is not None and model.spec.classes != spec.classes:
        raise ValueError(
            f"the classes of the reference ({', '.join(spec.classes[:5])}) are not those of the model "
            f"({', '.join(model.spec.classes[:5])})"
        )


def _names(needs: Sequence[Sequence[Any]]) -> str:
    return ", ".join(f"{need[2]} labels" if need[1] == "labels" else str(need[0]) for need in needs) or "nothing"


def _labels_at(source: Source, indices: np.ndarray) -> list[int]:
    known = source.all_labels()
    if known is None:
        return [int(source[i][1]["labels"]) for i in indices.tolist()]
    each = len(source) // len(known)  # neighbours that one label stands for
    return known[indices // each].tolist()


class _Given:
    """One part of the condition of some samples of a source, read when it is asked for."""

    def __init__(self, source: Source, indices: np.ndarray, name: str):
        self.source, self.indices, self.name = source, indices, name

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, part: slice) -> np.ndarray:
        return np.stack([self.source[i][1][self.name] for i in self.indices[part].tolist()])


def name_of(weights: str, sampling: Sampling, judge: "Judge", draws: Draws) -> str:
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


def scores_of(
    rows: Mapping[str, np.ndarray],
    reference: Reference,
    spec: DataSpec | None,
    labels: Sequence[int] | None = None,
    *,
    judged: float | None = None,
    unseen: np.ndarray | None = None,
) -> tuple[Score, ...]:
    """All numbers that these rows allow, against a reference.

    labels: the classes asked for, to be compared with the features' own classifier, where its held-out accuracy is
    `judged`. unseen: reduced data that were not trained on, for the copying check.
    """
    features = rows["features"]
    fd, floor = frechet_estimate(features, reference.moments), reference.floor
    found = [
        Score(
            "fd",
            fd.value,
            fd.error,
            "lower",
            "Frechet distance to the reference (a biased one: more so with few samples)",
        )
    ]
    if floor is not None:
        found.append(Score("floor", floor, None, "", "what one half of the data scores against the other half"))
    if len(features) >= enough_to_extrapolate(features.shape[1]):
        infinite = frechet_infinity(features, reference.moments)
        meaning = "the same for infinitely many samples, extrapolated"
        found.append(Score("fd_infinity", infinite.value, infinite.error, "lower", meaning))
    if "features" in reference.rows:
        real = reference.rows["features"]
        distance = kid(real, features[:KEPT])
        number = min(len(real), len(features), KEPT)  # of each: what follows depends on the numbers
        real, ours = real[evenly(len(real), number)], features[:number]
        precision, recall = precision_recall(real, ours)
        density, coverage = density_coverage(real, ours)
        found += [
            Score("kid", distance.value, distance.error, "lower", "kernel distance, unbiased"),
            Score(
                "precision", precision, _share_error(precision, len(ours)), "higher", "share of samples within the data"
            ),
            Score("recall", recall, _share_error(recall, len(real)), "higher", "share of the data within the samples"),
            Score(
                "density", density, None, "higher", "how often samples lie in the data's neighbourhoods; 1 for the data"
            ),
            Score(
                "coverage",
                coverage,
                _share_error(coverage, len(real)),
                "higher",
                "share of the data with a sample near by",
            ),
        ]
    if "logits" in rows:
        score = inception_score(rows["logits"], SPLITS)
        found.append(Score("inception_score", score.value, score.error, "higher", "sure and varied classes"))
        if labels is not None and judged is not None:
            agrees = float((np.argmax(rows["logits"], 1) == np.asarray(labels)).mean())
            meaning = (
                f"share recognised as the class asked for, by a classifier that is right in {judged:.1%} of unseen data"
            )
            found.append(Score("agreement", agrees, _share_error(agrees, len(features)), "higher", meaning))
    if "spectrum" in reference.rows:
        apart = spectrum_distance(rows["spectrum"], reference.rows["spectrum"])
        found.append(Score("spectrum", apart, None, "lower", "distance of the mean power spectra, in decibels"))
    if spec is not None and "values" in reference.rows:
        found += list(_of_values(rows, reference.rows, spec))
    if reference.small is not None and spec is not None and "raw" in rows:
        check = copying(reduced(rows["raw"], spec), reference.small, unseen)
        meaning = f"share as near to one training sample as only {NEAR:.0%} of unseen data are; {NEAR:g}: no copies"
        found.append(Score("copies", check.share, check.error, "lower", meaning))
    return tuple(found)


def _of_values(rows: Mapping[str, np.ndarray], reference: Mapping[str, np.ndarray], spec: DataSpec) -> Iterator[Score]:
    """The numbers of fields, channel by channel, in their units."""
    ours, real = rows["values"], reference["values"]
    apart = wasserstein1(ours, real)
    ends = np.abs(quantiles(ours) - quantiles(real)).max(1)
    near, far = lag_correlation(rows["lags"]), lag_correlation(reference["lags"])
    lags = np.abs(near - far).max(1)
    for i, (name, unit) in enumerate(zip(spec.channels, spec.units, strict=True)):
        of = f"of {name}" + (f", in {unit}" if unit else "")
        yield Score(f"w1 {name}", float(apart[i]), None, "lower", f"distance of the distributions of values {of}")
        yield Score(f"quantiles {name}", float(ends[i]), None, "lower", f"largest difference of a quantile {of}")
        yield Score(f"lags {name}", float(lags[i]), None, "lower", f"largest difference of a spatial correlation {of}")


def _share_error(share: float, count: int) -> float:
    return float(np.sqrt(max(share * (1 - share), 0.0) / max(count, 1)))


def check_counts(count: int, features: Features) -> None:
    """Raises ValueError where so many samples do not suffice for a Frechet distance."""
    least = max(features.size + 1, SPLITS)
    if count < least:
        raise ValueError(
            f"{count:,} samples are too few: {features.name} has {features.size:,} features, and a covariance needs "
            f"more samples than features; choose a count of {least:,} at least, or "
            "features of a smaller size"
        )


def enough_to_extrapolate(size: int) -> int:
    """How many samples fd_infinity needs with so many features; with fewer it is left out."""
    return 3 * (size + 1)


@dataclass(frozen=True)
class Judge:
    """What samples are judged by: features, and a reference that was looked at with them."""

    features: Features
    reference: Reference
    spec: DataSpec
    """Of the samples."""
    unseen: np.ndarray | None = None
    """Reduced data that were not trained on, (M, F), for the copying check; None: see `copying`."""

    def looker(self) -> Looker:
        """What makes rows of samples."""
        return Looker(self.spec, self.features)

    def scores(self, rows: Mapping[str, np.ndarray], labels: Sequence[int] | None = None) -> Scores:
        """The numbers of some rows, and what they were made from."""
        judged = self.features.facts.get("held_out_accuracy")
        found = scores_of(rows, self.reference, self.spec, labels, judged=judged, unseen=self.unseen)
        return Scores(found, self.facts())

    def facts(self) -> dict[str, Any]:
        """What every result says of how it was made, besides the samples."""
        return {
            "reference": self.reference.facts,
            "features": {"name": self.features.name, "size": self.features.size, **self.features.facts},
            "versions": {"justimage": __version__, "torch": torch.__version__, "python": platform.python_version()},
        }


def evaluate(
    model: Denoiser,
    judge: Judge,
    draws: Draws,
    folder: Path | None = None,
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
        store = RowStore(folder, looker.kinds()) if processes.first else None
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
            scores = judge.scores(store.first(len(draws.seeds)), draws.labels)
    drawn = {
        "sampling": asdict(chosen),
        "nfe": chosen.evaluations(),
        "count": len(draws.seeds),
        "labels": draws.policy,
        "first_seed": draws.seeds.start,
        "training": model.training_summary,
        "batch_size": batch_size,
        "precision": str(next(model.net.parameters()).dtype).removeprefix("torch."),
        "device": device_name(model.device),
        "threads": torch.get_num_threads(),
        "processes": processes.world,
        "drawn_now": max(0, len(draws.seeds) - began),
        "seconds": {what: round(seconds, 3) for what, seconds in clock.seconds.items()},
        "overhead": round(1 - clock.shares().get("drawing", 0.0), 4),
    }
    return Scores(scores.scores, {**drawn, **scores.facts})


def device_name(device: torch.device) -> str:
    """What the machine calls its accelerator, or its processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return platform.processor() or platform.machine()


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
