"""Metrics of nearest neighbours among features: precision, recall, density and coverage.

All four are about balls around samples, as wide as the distance to the k-th nearest other sample of the same set.
"""

from collections.abc import Iterator

import numpy as np

from justimage.evaluation.metrics import blocks

ROWS = 512  # distances from this many samples to all others are held at once
COLUMNS = 2048


def squared_distances(x: np.ndarray, y: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Rows of x (N, D) and their squared distances to all of y (M, D), (rows, M) float64, block by block.

    |x|^2 + |y|^2 - 2 x.y about the mean of y, so that a common offset takes no digits.
    """
    centre = np.mean(y, axis=0, dtype=np.float64)
    for start, rows in blocks(x, ROWS):
        rows -= centre
        out = np.empty((len(rows), len(y)))
        for column, others in blocks(y, COLUMNS):
            others -= centre
            part = out[:, column : column + len(others)]
            np.matmul(rows, others.T, out=part)
            part *= -2
            part += (others**2).sum(1)
        out += (rows**2).sum(1)[:, None]
        yield slice(start, start + len(rows)), np.maximum(out, 0, out=out)


def squared_radii(x: np.ndarray, k: int) -> np.ndarray:
    """Squared distance of each sample of x (N, D) to its k-th nearest other one, (N,). Raises ValueError for N <= k."""
    if not 1 <= k < len(x):
        raise ValueError(f"{len(x)} samples have no neighbour number {k}; lower k or give more samples")
    out = np.empty(len(x))
    for rows, distances in squared_distances(x, x):
        distances[np.arange(len(distances)), np.arange(rows.start, rows.stop)] = np.inf
        distances.partition(k - 1, axis=1)
        out[rows] = distances[:, k - 1]
    return out


def precision_recall(real: np.ndarray, generated: np.ndarray, k: int = 3) -> tuple[float, float]:
    """Share of generated samples within a ball of a real one, and of real samples within a ball of a generated one.

    Kynkaanniemi et al., arXiv 1904.06991, Eqs. 1 and 2, of features (N, D) and (M, D). Low precision: samples that
    look like no data; low recall: data that no sample looks like. Both fall with the number of samples and are
    comparable only between equal numbers. Raises ValueError where a set has no more than k samples.
    """
    _check(real, generated)
    around_real, around_generated = squared_radii(real, k), squared_radii(generated, k)
    precise, recalled = 0, np.zeros(len(real), dtype=bool)
    for rows, distances in squared_distances(generated, real):
        precise += int((distances <= around_real).any(1).sum())
        recalled |= (distances <= around_generated[rows, None]).any(0)
    return precise / len(generated), float(recalled.mean())


def density_coverage(real: np.ndarray, generated: np.ndarray, k: int = 5) -> tuple[float, float]:
    """How many real balls a generated sample lies in, over k, and the share of real balls with a generated sample.

    Naeem et al., arXiv 2002.09797, Eqs. 3 and 4, of features (N, D) and (M, D). Density, unlike precision, is not
    raised by outliers among the data, and may be above 1; coverage, unlike recall, is not raised by outliers among
    the samples. Of two equal distributions they are expected to be 1 and 1 - (N - 1) ... (N - k) / ((2 N - 1) ... (2 N
    - k)), about 1 - 2^-k. Raises ValueError where there are no more than k real samples.
    """
    _check(real, generated)
    radii = squared_radii(real, k)
    within, covered = 0, np.zeros(len(real), dtype=bool)
    for _, distances in squared_distances(generated, real):
        inside = distances <= radii
        within += int(inside.sum())
        covered |= inside.any(0)
    return within / (k * len(generated)), float(covered.mean())


def _check(real: np.ndarray, generated: np.ndarray) -> None:
    if real.shape[1] != generated.shape[1]:
        raise ValueError(
            f"{real.shape[1]} features against {generated.shape[1]}; both must come from the same extractor"
        )
