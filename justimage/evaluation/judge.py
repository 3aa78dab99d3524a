"""The judge: features and a reference, and all numbers that rows of samples allow."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from justimage.data.spec import DataSpec, evenly
from justimage.evaluation.copying import NEAR, copying, reduced
from justimage.evaluation.features import Features
from justimage.evaluation.metrics import enough_to_extrapolate, frechet_estimate, frechet_infinity, inception_score, kid
from justimage.evaluation.neighbours import density_coverage, precision_recall
from justimage.evaluation.raw import lag_correlation, quantiles, spectrum_distance, wasserstein1
from justimage.evaluation.reference import KEPT, Reference
from justimage.evaluation.rows import Looker
from justimage.evaluation.scores import Score, Scores
from justimage.execution import versions

SPLITS = 10  # of the Inception score


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

    def scores(
        self, rows: Mapping[str, np.ndarray], labels: Sequence[int] | None = None, groups: np.ndarray | None = None
    ) -> Scores:
        """The numbers of some rows, and what they were made from; arguments as for `scores_of`."""
        judged = self.features.facts.get("held_out_accuracy")
        found = scores_of(rows, self.reference, self.spec, labels, groups, judged=judged, unseen=self.unseen)
        return Scores(found, self.facts())

    def facts(self) -> dict[str, Any]:
        """What every result says of how it was made, besides the samples."""
        return {
            "reference": self.reference.facts,
            "features": {"name": self.features.name, "size": self.features.size, **self.features.facts},
            "versions": versions(),
        }


def scores_of(
    rows: Mapping[str, np.ndarray],
    reference: Reference,
    spec: DataSpec | None,
    labels: Sequence[int] | None = None,
    groups: np.ndarray | None = None,
    *,
    judged: float | None = None,
    unseen: np.ndarray | None = None,
) -> tuple[Score, ...]:
    """All numbers that these rows allow, against a reference.

    labels: the classes asked for, to be compared with the features' own classifier, where its held-out accuracy is
    `judged`. groups: classes whose numbers were fixed, so that errors are those within them. unseen: reduced data that
    were not trained on, for the copying check.
    """
    features = rows["features"]
    fd, floor = frechet_estimate(features, reference.moments, groups), reference.floor
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
        infinite = frechet_infinity(features, reference.moments, groups)
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
