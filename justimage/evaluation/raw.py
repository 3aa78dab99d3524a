"""Rows and metrics of raw values, on any number of spatial axes: spectra, distributions, correlations, ensembles.

What a metric needs of a sample is a row, which depends on that sample alone; metrics are functions of many rows. A
row is computed in float64 and may be stored in float32.
"""

from collections.abc import Iterable, Sequence

import numpy as np

from justimage.randomness import Purpose, keys

FLOOR = 2.0**-50  # of a channel's power: below that, a bin holds the rounding of float32 values


def radial_bins(shape: Sequence[int]) -> np.ndarray:
    """The wavenumber bin of each frequency of a grid, in the layout of numpy.fft.fftn, int64 of that shape.

    A frequency of f cycles per sample, in any direction, lies in the bin that |f| times the longest axis rounds to:
    wavenumbers count cycles along that axis. The bins go up to the corners and none is empty, since along the longest
    axis the radius grows by at most 1 from one frequency to the next.
    """
    squares = np.zeros(tuple(shape))
    for axis, length in enumerate(shape):
        along = [1] * len(shape)
        along[axis] = length
        squares += (np.fft.fftfreq(length) ** 2).reshape(along)
    return np.floor(np.sqrt(squares) * max(shape) + 0.5).astype(np.int64)


def radial_spectrum(x: np.ndarray) -> np.ndarray:
    """Power of x (N, C, *S) at each radial wavenumber, averaged over directions, (N, C, R).

    |F|^2 / prod(S)^2 with F the discrete Fourier transform, averaged over the frequencies of a bin (see radial_bins);
    times the number of frequencies in each bin it sums up to the mean square of x (Parseval). Nothing is done about
    edges: where opposite ones do not meet, their step is part of the spectrum.
    """
    shape = x.shape[2:]
    bins = radial_bins(shape).ravel()
    order = np.argsort(bins, kind="stable")
    counts = np.bincount(bins)
    starts = np.cumsum(counts) - counts
    out = np.empty((*x.shape[:2], len(counts)))
    for k, sample in enumerate(x):  # one at a time: a transform takes four times the memory of float32
        transform = np.fft.fftn(sample.astype(np.float64), axes=range(1, sample.ndim), norm="forward")
        power = (transform.real**2 + transform.imag**2).reshape(len(sample), -1)
        out[k] = np.add.reduceat(power[:, order], starts, axis=1) / counts
    return out


def spectrum_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Root mean square of the difference of two mean spectra (N, C, R) and (M, C, R), in decibels.

    The radially averaged log spectral distance (Harris et al., arXiv 2204.02028): 10 log10 of the mean power over the
    samples, compared over all channels and bins but the first, which is the mean value and no matter of scale. Power
    below 2^-50 of a channel's sum is rounding of float32: it counts as that much, and bins that hold no more on either
    side are left out. 0.0 where no bin is left.
    """
    if a.shape[1:] != b.shape[1:]:
        raise ValueError(f"spectra of shape {a.shape[1:]} against {b.shape[1:]}; both must be of one size")
    powers = [np.asarray(np.mean(rows, axis=0, dtype=np.float64)) for rows in (a, b)]
    larger = np.maximum(*powers)
    floor = FLOOR * larger.sum(1, keepdims=True)
    some = larger > floor
    some[:, 0] = False
    if not some.any():
        return 0.0
    first, second = (10 * np.log10(np.maximum(power, floor)[some]) for power in powers)
    return float(np.sqrt(np.mean((first - second) ** 2)))


def value_sample(x: np.ndarray, count: int, indices: Iterable[int]) -> np.ndarray:
    """Some values of each sample of x (N, C, *S), (N, C, M): M = count, or all values where there are no more.

    The places of sample k are drawn (with replacement) from a hash of indices[k] and the shape alone, the same for
    all channels.
    """
    flat = x.reshape(*x.shape[:2], -1)
    places = flat.shape[2]
    if places <= count:
        return flat.astype(np.float64)
    draws = [keys(index, Purpose.PLACES, range(count)) % np.uint64(places) for index in indices]
    return np.stack([row[:, at.astype(np.int64)] for row, at in zip(flat, draws, strict=True)]).astype(np.float64)


def wasserstein1(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Wasserstein-1 distance of the values of each channel, (N, C, M) and (N', C, M'), in raw units, (C,).

    The area between the two cumulative distributions (Ramdas, Garcia and Cuturi, arXiv 1509.02237, Proposition 1).
    """
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"{a.shape[1]} channels against {b.shape[1]}; both must have the same channels")
    return np.array([_area(*pair) for pair in zip(_by_channel(a), _by_channel(b), strict=True)])


def _area(a: np.ndarray, b: np.ndarray) -> float:
    """The integral of |F - G| over the values at which the cumulative distributions F of a and G of b step."""
    a, b = np.sort(a), np.sort(b)
    steps = np.sort(np.concatenate([a, b]))
    below = [np.searchsorted(values, steps[:-1], "right") / len(values) for values in (a, b)]
    return float(np.abs(below[0] - below[1]) @ np.diff(steps))


def quantiles(values: np.ndarray, at: Sequence[float] = (0.01, 0.1, 0.5, 0.9, 0.99)) -> np.ndarray:
    """Quantiles of the values (N, C, M) of each channel, (C, Q), interpolated linearly (numpy.quantile)."""
    return np.array([np.quantile(channel, at) for channel in _by_channel(values)])


def _by_channel(values: np.ndarray) -> list[np.ndarray]:
    return [values[:, channel].astype(np.float64).ravel() for channel in range(values.shape[1])]


def lag_products(x: np.ndarray, lags: Sequence[int] = (1, 2, 4, 8)) -> np.ndarray:
    """What lag_correlation needs of each sample of x (N, C, *S), (N, C, L, 4), at the lags below the longest axis.

    Along the last axis, with m the mean of the sample's channel: m; the mean of (x - m)^2; and over all pairs of places
    at the lag along an axis, averaged over the axes longer than the lag, the mean of (x - m) (x' - m) and that of
    (x - m) + (x' - m). They are about the sample's own mean, or float32 would lose them beside a large one.
    """
    lags = [lag for lag in lags if lag < max(x.shape[2:])]
    x = x.astype(np.float64)
    places = tuple(range(2, x.ndim))
    mean = x.mean(places, keepdims=True)
    x -= mean
    first = np.stack([mean.reshape(x.shape[:2]), (x**2).mean(places)], -1)
    rows = [np.concatenate([first, _pairs(x, lag)], -1) for lag in lags]
    return np.stack(rows, 2) if rows else np.empty((*x.shape[:2], 0, 4))


def _pairs(x: np.ndarray, lag: int) -> np.ndarray:
    """Means of the product and the sum of places at a lag, averaged over the axes that are longer, (N, C, 2)."""
    means = []
    places = tuple(range(2, x.ndim))
    for axis in places:
        if x.shape[axis] > lag:
            before = x[(slice(None),) * axis + (slice(None, -lag),)]
            after = x[(slice(None),) * axis + (slice(lag, None),)]
            means.append(np.stack([(before * after).mean(places), before.mean(places) + after.mean(places)], -1))
    return np.mean(means, axis=0)


def lag_correlation(rows: np.ndarray) -> np.ndarray:
    """Correlation of places at each lag, from rows (N, C, L, 4) of lag_products, (C, L).

    E (x - M) (x' - M) / E (x - M)^2 with M the channel's mean over all samples and places. NaN for a channel of one
    value.
    """
    mean, variance, product, total = np.moveaxis(rows.astype(np.float64), -1, 0)
    off = mean - mean.mean(0)
    variance, product = (variance + off**2).mean(0), (product + off * total + off**2).mean(0)
    known = np.sqrt(variance) > 1e-7 * np.abs(mean.mean(0))  # else it is rounding
    return np.divide(product, variance, out=np.full_like(product, np.nan), where=known)


def crps(ensemble: np.ndarray, truth: np.ndarray) -> float:
    """Mean continuous ranked probability score of ensembles (M, N, ...) of the truth (N, ...), in raw units.

    E |x - y| - E |x - x'| / 2 (Gneiting and Raftery, JASA 2007, Eq. 21), the second mean over pairs of different
    members, which makes it fair: members from the truth's own distribution are best on average whatever their number
    (Ferro, QJRMS 2014, doi 10.1002/qj.2270). Raises ValueError for fewer than 2 members.
    """
    members = _check_ensemble(ensemble, truth)
    if members < 2:
        raise ValueError("an ensemble of 1 member has no spread; CRPS needs at least 2")
    error = np.mean([np.abs(member.astype(np.float64) - truth).mean() for member in ensemble])
    ordered = np.sort(ensemble.astype(np.float64), axis=0).reshape(members, -1)  # the k-th is above k - 1 others
    spread = (2 * np.arange(members) - members + 1) @ ordered / (members * (members - 1))
    return float(error - spread.mean())


def rank_histogram(ensemble: np.ndarray, truth: np.ndarray, seed: int = 0) -> np.ndarray:
    """How often each number of members of an ensemble (M, N, ...) lies below the truth (N, ...), (M + 1,) counts.

    Hamill, Monthly Weather Review 2001: flat for a reliable ensemble, U-shaped for one with too little spread. Where
    members equal the truth, its rank is drawn at random among them, from the seed.
    """
    members = _check_ensemble(ensemble, truth)
    below = (ensemble < truth).sum(0)
    ties = (ensemble == truth).sum(0)
    ranks = below + np.random.default_rng(seed).integers(0, ties + 1)
    return np.bincount(ranks.ravel(), minlength=members + 1)


def _check_ensemble(ensemble: np.ndarray, truth: np.ndarray) -> int:
    if ensemble.shape[1:] != truth.shape or not len(ensemble):
        raise ValueError(
            f"an ensemble of shape {ensemble.shape} for a truth of shape {truth.shape}; expected (M, N, ...)"
        )
    return len(ensemble)
