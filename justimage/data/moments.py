"""Mean, standard deviation and ends in one pass over what does not fit into memory; and ends that cannot be meant."""

from typing import Any, Protocol

import numpy as np

from justimage.data.spec import evenly

LARGEST = float(np.finfo(np.float32).max)
CHUNK = 64 * 2**20  # bytes looked at in one go
KEPT = 2**16  # values of each feature that are kept, evenly spread
GAP = 1000  # between an end and the other values: where two tails of data meet, there is none
FAR = 10**6


class Rows(Protocol):
    """Something like an array (N, ...), of which one row, or a slice of them, is read at a time by any thread."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype: ...

    def __getitem__(self, index: Any, /) -> np.ndarray: ...


class Moments:
    """Mean, standard deviation and ends of each of some features, added up chunk by chunk.

    The parallel variance of Chan, Golub and LeVeque (The American Statistician 1983). total: about how many values of
    each feature there will be.
    """

    def __init__(self, features: int, total: int):
        self.count, self.mean, self._squares = np.zeros(features), np.zeros(features), np.zeros(features)
        self.low, self.high = np.full(features, np.inf), np.full(features, -np.inf)
        self._kept: list[np.ndarray] = []
        self._step = total // KEPT | 1  # odd, or it would fall on the same column of most grids

    def add(self, values: np.ndarray, ok: np.ndarray) -> None:
        """Take in values (features, n) float64, those where ok (features, n) is true."""
        n = ok.sum(1)
        mean = np.where(ok, values, 0).sum(1) / np.maximum(n, 1)
        self._squares += (np.where(ok, values - mean[:, None], 0) ** 2).sum(1)
        self._squares += (mean - self.mean) ** 2 * self.count * n / np.maximum(self.count + n, 1)
        self.mean += (mean - self.mean) * n / np.maximum(self.count + n, 1)
        self.count += n
        whole = bool(ok.all())
        self.low = np.minimum(self.low, (values if whole else np.where(ok, values, np.inf)).min(1, initial=np.inf))
        self.high = np.maximum(self.high, (values if whole else np.where(ok, values, -np.inf)).max(1, initial=-np.inf))
        self._kept.append(np.where(ok[:, :: self._step], values[:, :: self._step], np.nan))

    def outliers(self) -> list[float | None]:
        """Of each feature the end that cannot be meant; None where there is none. See `outlier`."""
        kept = np.concatenate(self._kept, 1) if self._kept else np.zeros((len(self.mean), 0))
        ends = zip(kept, self.low.tolist(), self.high.tolist(), strict=True)
        return [outlier(some[~np.isnan(some)], low, high) for some, low, high in ends]

    @property
    def std(self) -> np.ndarray:
        """(features,)."""
        return np.sqrt(self._squares / np.maximum(self.count, 1))


def outlier(some: np.ndarray, low: float, high: float) -> float | None:
    """The lowest or highest value, if it cannot be of one kind with the others, as 1e20 among temperatures; else None.

    some: finite values, evenly spread over all. An end is refused where between it and the others there is a gap of
    a factor GAP, it is FAR times as large as their spread, and what lies beyond the gap is rare or one value only.
    Long tails have no such gaps; of data that hold one value and some others, only ends above 1e15 are refused.
    """
    for end in (high, low):
        if not FAR < abs(end) < np.inf:
            continue
        near = np.abs(some) <= abs(end) / GAP
        rest, beyond = some[near], some[~near]
        if not len(rest) or not (len(beyond) < len(some) / 100 or (beyond == end).all()):
            continue
        spread = float(np.ptp(rest))
        if abs(end) > FAR * max(spread, float(np.abs(rest).max()) / GAP, 1.0 if spread else 1e9):
            return end
    return None


def changes(mean: float, std: float) -> bool:
    """Whether values with these moments differ at all, in float32 with its seven digits."""
    return std > 1e-7 * abs(mean)


def chunks(rows: Rows) -> list[range]:
    """Ranges of rows to look at one after the other, each of about CHUNK bytes in float64."""
    count = rows.shape[0]
    step = max(1, CHUNK // max(1, 8 * int(np.prod(rows.shape[1:]))))
    return [range(start, min(start + step, count)) for start in range(0, count, step)]


def hash_rows(digest: Any, rows: Rows) -> None:
    """Feed an array into a hash: all of it if it is small and in memory, else 64 of its rows."""
    if isinstance(rows, np.ndarray) and rows.nbytes <= CHUNK:
        digest.update(np.ascontiguousarray(rows).data)
        return
    count = rows.shape[0]
    for index in evenly(count, 64).tolist():
        digest.update(np.ascontiguousarray(rows[int(index)]).data)
