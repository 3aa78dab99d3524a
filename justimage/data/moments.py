"""Mean and standard deviation in one pass over what does not fit into memory."""

from typing import Any, Protocol

import numpy as np

LARGEST = float(np.finfo(np.float32).max)
CHUNK = 64 * 2**20  # bytes looked at in one go


class Rows(Protocol):
    """Something like an array (N, ...), of which one row, or a slice of them, is read at a time by any thread."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype: ...

    def __getitem__(self, index: Any, /) -> np.ndarray: ...


class Moments:
    """Mean and standard deviation of each of some features, added up chunk by chunk.

    The parallel variance of Chan, Golub and LeVeque (The American Statistician 1983).
    """

    def __init__(self, features: int):
        self.count, self.mean, self._squares = np.zeros(features), np.zeros(features), np.zeros(features)

    def add(self, values: np.ndarray, ok: np.ndarray) -> None:
        """Take in values (features, n) float64, those where ok (features, n) is true."""
        n = ok.sum(1)
        mean = np.where(ok, values, 0).sum(1) / np.maximum(n, 1)
        self._squares += (np.where(ok, values - mean[:, None], 0) ** 2).sum(1)
        self._squares += (mean - self.mean) ** 2 * self.count * n / np.maximum(self.count + n, 1)
        self.mean += (mean - self.mean) * n / np.maximum(self.count + n, 1)
        self.count += n

    @property
    def std(self) -> np.ndarray:
        """(features,)."""
        return np.sqrt(self._squares / np.maximum(self.count, 1))


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
    for index in np.linspace(0, count - 1, min(count, 64)).astype(int):
        digest.update(np.ascontiguousarray(rows[int(index)]).data)
