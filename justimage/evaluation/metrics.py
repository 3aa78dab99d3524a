"""Metrics of features and class logits: Frechet distance, its limit, Inception score and KID.

Pure functions of arrays of rows, one row per sample, computed in float64 whatever the rows are stored in. A features
array may be a memory map: it is read in blocks.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

SIZES = 3  # at which a Frechet distance is extrapolated
BLOCK = 4096  # rows that are looked at together


@dataclass(frozen=True)
class Estimate:
    """A number and how far it may be off because samples are finite."""

    value: float
    error: float | None
    """Standard error; None where none is known."""


@dataclass(frozen=True)
class KidEstimate(Estimate):
    """A KID, with the size of the subsets that it was computed on."""

    subset_size: int


@dataclass(frozen=True, eq=False)
class FeatureMoments:
    """Count, mean and scatter of features; moments of parts add up to those of the whole."""

    count: int
    mean: np.ndarray
    """(D,) float64."""
    scatter: np.ndarray
    """(D, D) float64, the sum of outer products of deviations from the mean."""

    @classmethod
    def of(cls, features: np.ndarray, block: int = BLOCK) -> "FeatureMoments":
        """The moments of features (N, D), read in blocks. Raises ValueError for a value that is not finite."""
        size = features.shape[1]
        total = cls(0, np.zeros(size), np.zeros((size, size)))
        for start, rows in blocks(features, block):
            bad = np.flatnonzero(~np.isfinite(rows).all(1))
            if len(bad):
                raise ValueError(
                    f"the features of sample {start + bad[0]} hold NaN or infinity; no metric can use them"
                )
            mean = rows.mean(0)
            rows -= mean
            total += cls(len(rows), mean, rows.T @ rows)
        return total

    @classmethod
    def from_covariance(cls, count: int, mean: np.ndarray, covariance: np.ndarray) -> "FeatureMoments":
        """From what statistics files hold: the covariance divides by count - 1. Raises ValueError below 2 samples."""
        check_count(count)
        mean, covariance = np.asarray(mean, np.float64), np.asarray(covariance, np.float64)
        if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
            raise ValueError(
                f"a mean of shape {mean.shape} and a covariance of shape {covariance.shape}; expected (D,) and (D, D)"
            )
        return cls(count, mean, covariance * (count - 1))

    def __add__(self, other: "FeatureMoments") -> "FeatureMoments":
        """Chan, Golub and LeVeque, The American Statistician 1983, Eq. 1.5, in D dimensions."""
        check_size(self, other)
        count = self.count + other.count
        gap = other.mean - self.mean
        share = other.count / max(count, 1)
        scatter = self.scatter + other.scatter + np.outer(gap, gap) * (self.count * share)
        return FeatureMoments(count, self.mean + gap * share, scatter)

    @property
    def covariance(self) -> np.ndarray:
        """(D, D), divided by count - 1. Raises ValueError below 2 samples."""
        check_count(self.count)
        return self.scatter / (self.count - 1)

    @cached_property
    def root(self) -> np.ndarray:
        """(D, r) orthogonal columns with root root^T = covariance; r is the rank.

        Eigenvalues below D * eps times the largest are rounding of the others and left out: a Frechet distance adds
        up their square roots, of which even 1e-16 has one of 1e-8.
        """
        values, vectors = np.linalg.eigh(self.covariance)
        kept = values > values[-1] * len(values) * np.finfo(np.float64).eps
        return vectors[:, kept] * np.sqrt(values[kept])


def blocks(rows: np.ndarray, size: int = BLOCK) -> Iterator[tuple[int, np.ndarray]]:
    """Where a block starts and a float64 copy of it, one after the other."""
    for start in range(0, len(rows), size):
        yield start, np.array(rows[start : start + size], dtype=np.float64)


def check_count(count: int) -> None:
    """Raises ValueError where there are too few samples for a covariance."""
    if count < 2:
        raise ValueError(f"{count} sample{'s' * (count != 1)}; a covariance needs at least 2")


def check_size(a: FeatureMoments, b: FeatureMoments) -> None:
    """Raises ValueError where two moments are not of the same features."""
    if len(a.mean) != len(b.mean):
        raise ValueError(f"{len(a.mean)} features against {len(b.mean)}; both must come from the same extractor")


def frechet_distance(a: FeatureMoments, b: FeatureMoments) -> float:
    """The squared Frechet distance of two Gaussians, |mu - mu'|^2 + tr S + tr S' - 2 tr (S^1/2 S' S^1/2)^1/2.

    Dowson and Landau, Journal of Multivariate Analysis 1982; of Inception features it is the FID (Heusel et al., arXiv
    1706.08500). With S = L L^T and S' = L' L'^T the last trace is the sum of the singular values of L^T L', which are
    as accurate as their sum; eigenvalues of the product are accurate only as squares.

    a, b: `FeatureMoments.of(features)` of (N, D) features, or `FeatureMoments.from_covariance(count, mu, sigma)`.
    Raises ValueError for features of other sizes, or of fewer than 2 samples.
    """
    check_size(a, b)
    cross = np.linalg.svd(a.root.T @ b.root, compute_uv=False).sum()
    return _frechet(a, b, float(cross))


def _frechet(a: FeatureMoments, b: FeatureMoments, cross: float) -> float:
    gap = a.mean - b.mean
    return float(gap @ gap + np.trace(a.covariance) + np.trace(b.covariance) - 2 * cross)


def frechet_estimate(features: np.ndarray, reference: FeatureMoments, groups: np.ndarray | None = None) -> Estimate:
    """The Frechet distance of features (N, D) from a reference, with the standard error of N samples.

    By the delta method. The derivative of the distance by mu is 2 (mu - mu'), by S it is I - T, with T the optimal
    transport map from N(mu, S) to N(mu', S'), T = S^-1/2 (S^1/2 S' S^1/2)^1/2 S^-1/2 (Bhatia, Jain and Lim, arXiv
    1712.01504). So a sample x moves it by 2 (mu - mu').(x - mu) + (x - mu)^T (I - T) (x - mu), less the mean of that,
    over N: the error is the standard deviation of this over sqrt(N). It does not count the bias, which is positive,
    falls as 1 / N, and is the larger part of the error for few samples: see frechet_infinity.

    groups: the group of each sample (N,), such as its class, where the numbers of each group were fixed and not drawn:
    then only what varies within the groups counts (stratified sampling; Cochran, Sampling Techniques, section 5.3).
    """
    moments = FeatureMoments.of(features)
    value = frechet_distance(moments, reference)
    return Estimate(value, _standard_error(_influence(features, moments, reference), groups))


def _standard_error(values: np.ndarray, groups: np.ndarray | None) -> float:
    """Of the mean of values (N,), drawn in groups of fixed numbers."""
    _, group = np.unique(np.zeros(len(values)) if groups is None else groups, return_inverse=True)
    counts = np.bincount(group)
    apart = values - (np.bincount(group, values) / counts)[group]
    return float(np.sqrt(apart @ apart / max(len(values) - len(counts), 1) / len(values)))


def _influence(features: np.ndarray, moments: FeatureMoments, reference: FeatureMoments) -> np.ndarray:
    """(N,) how much each sample moves the Frechet distance, times N, but for a constant."""
    root = moments.root
    cross = root.T @ reference.root
    squares, vectors = np.linalg.eigh(cross @ cross.T)  # of L^T S' L
    inverse = root / (root**2).sum(0)  # the pseudo-inverse of L, transposed: its columns are orthogonal
    transport = (inverse @ vectors) * np.maximum(squares, 0) ** 0.25  # T = transport transport^T
    slope = 2 * (moments.mean - reference.mean)
    out = np.empty(len(features))
    for start, rows in blocks(features):
        rows -= moments.mean
        out[start : start + len(rows)] = rows @ slope + (rows**2).sum(1) - ((rows @ transport) ** 2).sum(1)
    return out


def enough_to_extrapolate(width: int, sizes: int = SIZES) -> int:
    """How many samples of so many features `frechet_infinity` needs: its smallest parts must outnumber the features."""
    return sizes * (width + 1)


def frechet_infinity(
    features: np.ndarray,
    reference: FeatureMoments,
    groups: np.ndarray | None = None,
    *,
    sizes: int = SIZES,
    seed: int = 0,
) -> Estimate:
    """The Frechet distance of infinitely many samples, extrapolated from features (N, D).

    Chong and Forsyth, arXiv 1911.07023: the distance of n samples is the limit plus a bias proportional to 1/n, so the
    limit is the intercept of a line through distances at several n. Here n = N, N/2, ... N/sizes, evenly spaced in
    1/n, and each distance is the mean over the disjoint parts of n samples that a random order (from the seed) splits
    all N into. As every point then rests on the same N samples, their errors to first order are one and the same,
    that of frechet_estimate; the error adds to it (in squares) that of the regression, where sizes > 2. There are
    sizes (sizes + 1) / 2 distances, in 2,048 dimensions several seconds each.

    Raises ValueError for fewer than 2 sizes, and where the smallest parts have no more samples than there are
    features: the bias is no line in 1/n there.
    """
    count, width = features.shape
    if sizes < 2:
        raise ValueError(f"sizes is {sizes}; a line needs distances at 2 sizes or more")
    if count < enough_to_extrapolate(width, sizes):
        raise ValueError(
            f"{count} samples of {width} features are too few to extrapolate from parts of {count // sizes}: "
            f"draw at least {enough_to_extrapolate(width, sizes)}, or use an extractor with fewer features"
        )
    whole = frechet_estimate(features, reference, groups)
    assert whole.error is not None
    order = np.random.default_rng(seed).permutation(count)
    distances = [whole.value]
    for parts in range(2, sizes + 1):
        split = (FeatureMoments.of(features[np.sort(some)]) for some in np.array_split(order, parts))
        distances.append(float(np.mean([_quick_distance(part, reference) for part in split])))
    line = np.stack([np.ones(sizes), np.arange(1, sizes + 1) / count], 1)
    inverse = np.linalg.pinv(line)
    intercept = float(inverse[0] @ distances)
    residuals = distances - line @ (inverse @ distances)
    spread = (inverse[0] @ inverse[0]) * (residuals @ residuals) / max(sizes - 2, 1)
    return Estimate(intercept, float(np.sqrt(whole.error**2 + spread)))


def _quick_distance(a: FeatureMoments, b: FeatureMoments) -> float:
    """The Frechet distance by eigenvalues of L'^T S L', faster and right to about 1e-5 of the traces."""
    squares = np.linalg.eigvalsh(b.root.T @ a.covariance @ b.root)
    return _frechet(a, b, float(np.sqrt(np.maximum(squares, 0)).sum()))


def inception_score(logits: np.ndarray, splits: int = 10) -> Estimate:
    """exp E KL(p(y|x) || p(y)) of class logits (N, K): mean and standard deviation over consecutive splits.

    Salimans et al., arXiv 1606.03498, Section 4. The error is the standard deviation over the splits, as it is
    reported everywhere, and not that of their mean; None for one split. Raises ValueError for fewer samples than
    splits.
    """
    count = len(logits)
    if not 1 <= splits <= count:
        raise ValueError(f"{count} samples cannot be divided into {splits} splits; lower splits or draw more samples")
    scores = []
    for k in range(splits):
        rows = np.asarray(logits[k * count // splits : (k + 1) * count // splits], dtype=np.float64)
        log_p = rows - np.logaddexp.reduce(rows, 1, keepdims=True)
        log_q = np.logaddexp.reduce(log_p, 0) - np.log(len(rows))
        scores.append(np.exp((np.exp(log_p) * (log_p - log_q)).sum(1).mean()))
    return Estimate(float(np.mean(scores)), float(np.std(scores)) if splits > 1 else None)


def kid(a: np.ndarray, b: np.ndarray, *, subsets: int = 100, subset_size: int = 1000, seed: int = 2020) -> KidEstimate:
    """Kernel distance of features (N, D) and (M, D): the unbiased MMD^2 with the kernel (x.y / D + 1)^3.

    Binkowski et al., arXiv 1801.01401, Section 4: the mean over subsets of MMD^2 = E k(x, x') + E k(y, y') - 2 E
    k(x, y), pairs of one sample with itself left out. Subsets are drawn as torch-fidelity draws them from the same
    seed. A subset_size above N or M is lowered to it: the result names the size that was used.

    The error is a standard error, where others report the spread over the subsets, which has little to do with N. It
    adds in squares the error of the finite data, from the variance of the first-order terms of the U-statistic
    (Hoeffding's projections h(x) = 2 E k(x, x') - 2 E k(x, y) over N, and likewise over M), and that of the finite
    number of subsets. Raises ValueError for fewer than 2 samples or no subset.
    """
    size = min(subset_size, len(a), len(b))
    if size < 2 or subsets < 1:
        raise ValueError(f"{subsets} subsets of {size} samples; KID needs at least 1 of at least 2")
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"{a.shape[1]} features against {b.shape[1]}; both must come from the same extractor")
    if size == len(a) == len(b):
        subsets = 1  # all are the same
    generator = np.random.RandomState(seed)
    values, variances = np.empty(subsets), np.empty(subsets)
    for i in range(subsets):
        x = np.asarray(a[generator.choice(len(a), size, replace=False)], dtype=np.float64)
        y = np.asarray(b[generator.choice(len(b), size, replace=False)], dtype=np.float64)
        xx, yy, xy = _within(x), _within(y), _cubic(x, y)
        values[i] = xx.mean() + yy.mean() - 2 * xy.mean()
        of_x, of_y = 2 * (xx - xy.mean(1)), 2 * (yy - xy.mean(0))
        variances[i] = of_x.var(ddof=1) / len(a) + of_y.var(ddof=1) / len(b)
    drawing = values.var(ddof=1) / subsets if subsets > 1 else 0.0
    return KidEstimate(float(values.mean()), float(np.sqrt(variances.mean() + drawing)), size)


def _cubic(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The polynomial kernel of each pair, (n, m)."""
    return (x @ y.T / x.shape[1] + 1) ** 3


def _within(x: np.ndarray) -> np.ndarray:
    """The mean kernel of each sample with the others, (n,)."""
    kernel = _cubic(x, x)
    return (kernel.sum(1) - np.diagonal(kernel)) / (len(x) - 1)
