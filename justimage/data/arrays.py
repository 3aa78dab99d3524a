"""Arrays of samples, in memory, memory-mapped or read one by one: measured, checked, and filled where asked to."""

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, NoReturn

import numpy as np
from rich.progress import track

from justimage.data.given import GivenArrays
from justimage.data.labels import MOST_CLASSES
from justimage.data.moments import GAP, LARGEST, Moments, Rows, changes, chunks, hash_rows
from justimage.data.origin import Origin
from justimage.data.spec import DataSpec, Item, Source, UnreadableSample
from justimage.disk.cache import cached

Missing = Literal["stop", "mean"] | float  # what a missing value does: stop, or become this


class Arrays(Source):
    """Samples x (N, C, *S), 8-bit or numeric, with labels y (N,) or none.

    8-bit arrays are pixels. Others are measured in one pass: model values have mean 0 and standard deviation 0.5 in
    each channel, about that of photographs in [-1, 1], so that noise levels mean the same. channels: their names.
    given: what else comes with each sample, by name (see `GivenArrays`). origin: what is needed to write fields back.
    missing: what happens to NaN: "stop", or fill with the channel's "mean" or a number. fill_values: numbers that stand
    for NaN; 8-bit arrays with such are no pixels. where: a sample's index -> what
    it is called. identity: a text that changes with the data, if the measurement is to be cached. remark: a text that
    follows the description.

    Raises ValueError for the wrong rank or type, values that are not finite or too large to be meant (with their
    place), a channel that never changes, and labels and conditions that do not fit.
    """

    def __init__(
        self,
        x: Rows,
        y: np.ndarray | None = None,
        *,
        classes: Sequence[str] = (),
        name: str = "the array",
        channels: Sequence[str] = (),
        origin: Origin | None = None,
        missing: Missing = "stop",
        fill_values: Sequence[float] = (),
        given: Mapping[str, np.ndarray] | None = None,
        where: Callable[[int], str] | None = None,
        identity: str = "",
        remark: str = "",
    ):
        self.place, self.remark = name, remark
        self._check_shape(x)
        x = _with_nan(x, fill_values) if fill_values else x
        if classes and y is None:
            raise ValueError(f"{name} has {len(classes)} class names but no labels y (N,)")
        self.x, self.missing, self.where = x, missing, where
        self.y = None if y is None else self._check_labels(y, classes)
        if self.y is not None and not classes:
            classes = [str(i) for i in range(int(self.y.max()) + 1)]
        self.given = GivenArrays(given or {}, x.shape, name, identity)
        size, count = x.shape[2:], x.shape[1]
        self.fill: np.ndarray | None = None  # (C, 1, ...)
        if x.dtype == np.uint8 and origin is None:
            spec = replace(DataSpec.pixels(size, count, classes), given=self.given.spec)
            self.spec = replace(spec, channels=tuple(channels), colour=False) if channels else spec
            return
        self.channels = tuple(channels) or tuple(f"channel{i}" for i in range(count))
        self.origin = origin
        what = f"measured with ends {identity} {x.shape} {x.dtype} {self.channels} {fill_values}"
        found = cached(what, self._measure) if identity else self._measure()
        mean, std = found["mean"], found["std"]
        self._check(found)
        self.gaps = f"{found['nan']:,} in {found['samples']:,} of {len(self):,} samples" if found["nan"] else ""
        if missing != "stop":
            values = mean if missing == "mean" else [float(missing)] * count
            self.fill = np.array(values, dtype=np.float32).reshape(-1, *[1] * len(size))
        self.spec = DataSpec(
            size,
            self.channels,
            tuple(mean),
            tuple(2 * s for s in std),
            "float32",
            tuple(classes),
            origin,
            colour=False,
            given=self.given.spec,
        )

    def _check_shape(self, x: Rows) -> None:
        if x.dtype.kind not in "uif":
            raise ValueError(f"{self.place} has the type {x.dtype}; whole or floating-point numbers are needed")
        if not 3 <= len(x.shape) <= 5:
            raise ValueError(
                f"{self.place} has the shape {x.shape}; (N, C, *S) with 1 to 3 spatial axes is needed. If the axis of "
                "channels is missing, x[:, None] adds it"
            )
        if len(x.shape) == 4 and x.shape[-1] in (1, 3, 4) and x.shape[1] > 8:
            raise ValueError(
                f"{self.place} has the shape {x.shape}; its channels seem to come last, and "
                "np.moveaxis(x, -1, 1) puts them first"
            )
        if 0 in x.shape:
            raise ValueError(f"{self.place} holds no samples: its shape is {x.shape}")

    def _check_labels(self, y: np.ndarray, classes: Sequence[str]) -> np.ndarray:
        if y.shape != (self.x.shape[0],) or y.dtype.kind not in "ui":
            raise ValueError(
                f"the labels y of {self.place} are {y.shape} {y.dtype}; ({self.x.shape[0]},) whole numbers are needed, "
                "one for each sample, counted from 0"
            )
        top = len(classes) if classes else MOST_CLASSES
        wrong = np.flatnonzero((y < 0) | (y >= top))
        if len(wrong):
            raise ValueError(
                f"label {y[wrong[0]]} of sample {wrong[0]} of {self.place} is out of range: "
                + (f"there are {top} classes" if classes else f"labels count from 0 to {top - 1}")
            )
        return y.astype(np.int64)

    def _measure(self) -> dict[str, Any]:
        """One pass: mean and standard deviation of the finite values, per channel, and how many others there are."""
        channels = self.x.shape[1]
        moments = Moments(channels, int(np.prod(self.x.shape, dtype=np.int64)) // channels)
        nan = infinite = samples = 0
        first: list[int] | None = None
        parts = chunks(self.x)
        for part in track(parts, description="measuring", transient=True, disable=len(parts) < 20):
            chunk = np.asarray(self.x[part.start : part.stop], dtype=np.float64)
            finite = np.abs(chunk) <= LARGEST  # samples are read in float32
            if not finite.all():
                missing = np.isnan(chunk).sum()
                nan, infinite = nan + int(missing), infinite + int((~finite).sum() - missing)
                samples += int((~finite).reshape(len(chunk), -1).any(1).sum())
                if first is None:
                    at = np.argwhere(~finite)[0]
                    first = [int(at[0]) + part.start, *map(int, at[1:])]
            moments.add(*(np.moveaxis(each, 1, 0).reshape(channels, -1) for each in (chunk, finite)))
        return {
            "mean": moments.mean.tolist(),
            "std": moments.std.tolist(),
            "nan": nan,
            "infinite": infinite,
            "samples": samples,
            "first": first,
            "outliers": moments.outliers(),
        }

    def _check(self, found: dict[str, Any]) -> None:
        """Raises ValueError for values that cannot be used, with their number and the place of the first."""
        if found["infinite"] or (found["nan"] and self.missing == "stop"):
            cure = "correct them" if found["infinite"] else "correct them, or fill them"
            raise ValueError(
                f"{self.place} holds {found['nan'] + found['infinite']:,} values that are not finite ({found['nan']:,} "
                f"NaN, {found['infinite']:,} infinite) in {found['samples']:,} of {self.x.shape[0]:,} samples, the "
                f"first in {self._cell(found['first'])}; {cure}"
                + ("" if found["infinite"] else " with --data-options.missing mean (of the channel) or a number")
            )
        for channel, end in enumerate(found["outliers"]):
            if end is not None:
                self._refuse_outlier(channel, end)
        for channel, mean, std in zip(self.channels, found["mean"], found["std"], strict=True):
            if not changes(mean, std):
                raise ValueError(f"channel {channel} of {self.place} never changes; leave it out")

    def _refuse_outlier(self, channel: int, end: float) -> NoReturn:
        """Raises ValueError: which values cannot be meant, how many, and where. It takes another pass."""
        count, first, value, low, high = 0, [0, 0], end, np.inf, -np.inf
        for part in chunks(self.x):
            rows = np.asarray(self.x[part.start : part.stop])[:, channel].astype(np.float64)
            size = np.abs(rows)
            far = (size > abs(end) / GAP) & (size <= LARGEST)
            if far.any() and not count:
                at = np.argwhere(far)[0].tolist()
                first, value = [part.start + at[0], channel, *at[1:]], float(rows[tuple(at)])
            count += int(far.sum())
            near = rows[size <= abs(end) / GAP]
            low, high = min(low, near.min(initial=np.inf)), max(high, near.max(initial=-np.inf))
        shown = str(np.float32(value))  # as short as it can be read back
        raise ValueError(
            f"{self.place} holds {count:,} values like {shown} in channel {self.channels[channel]}, and all others lie "
            f"between {low:g} and {high:g}; the first is in {self._cell(first)}. If they stand for missing values, "
            f"write --data-options.fill-values {shown} --data-options.missing mean (of the channel) or a number; else "
            "correct them: they would decide the scale of the channel"
        )

    def _cell(self, at: list[int]) -> str:
        """Where a value lies: its sample, channel and coordinates."""
        sample, channel, *point = at
        called = f" ({self.where(sample)})" if self.where else ""
        return f"sample {sample}{called}, channel {self.channels[channel]}, at {self._point(point)}"

    def _point(self, point: list[int]) -> str:
        axes = {c.dims: c.values for c in self.origin.coordinates} if self.origin else {}
        dims = self.origin.dims if self.origin else ()
        values = [f"{d} {axes[(d,)][i]:g}" for d, i in zip(dims, point, strict=True) if (d,) in axes] if dims else []
        return ", ".join(values) or str(tuple(point))

    def __len__(self) -> int:
        return self.x.shape[0]

    def __getitem__(self, index: int, /) -> Item:
        with self._name_damage(index):
            raw = np.asarray(self.x[index])
        return self._raw(raw), self._beside(index)

    def read(self, start: int, stop: int) -> list[Item]:
        """See `Source`. Where files are compressed in chunks, this is much faster than one by one."""
        with self._name_damage(start):
            rows = np.asarray(self.x[start:stop])
        return list(zip(self._raw(rows), map(self._beside, range(start, stop)), strict=True))

    def all_labels(self) -> np.ndarray | None:
        """See `Source`."""
        return self.y

    def name(self, index: int) -> str:
        """See `Source`."""
        return self.where(index) if self.where else f"sample {index}"

    @contextlib.contextmanager
    def _name_damage(self, index: int) -> Iterator[None]:
        try:
            yield
        except UnreadableSample:
            raise
        except (OSError, EOFError, ValueError) as error:  # arrays may be anything that can be indexed
            raise UnreadableSample(f"{self.name(index)} of {self.place} cannot be read: {error}") from error

    def _beside(self, index: int) -> dict[str, Any]:
        """What comes with a sample."""
        labels = {} if self.y is None else {"labels": self.y[index]}
        return {**labels, **self.given[index]}

    def _raw(self, rows: np.ndarray) -> np.ndarray:
        """Values as the spec says: of its type, and filled."""
        if self.spec.dtype == "uint8":
            return rows
        rows = rows.astype(np.float32, copy=False)
        return rows if self.fill is None else np.where(np.isnan(rows), self.fill, rows)

    def describe(self) -> str:
        """See `Source`."""
        labels = f"{len(self.spec.classes)} classes" if self.spec.classes else "no labels"
        if self.spec.given:
            labels += f", conditions {', '.join(each.describe() for each in self.spec.given)}"
        shown = ", ".join(self.spec.channels[:12]) + (", ..." if len(self.spec.channels) > 12 else "")
        names = f" ({shown})" if self.spec.origin else ""
        axes = f", axes {' x '.join(self.spec.origin.dims)}" if self.spec.origin else ""
        filled = f", missing values filled ({self.missing})" if self.fill is not None and self.gaps else ""
        kept = "" if isinstance(self.x, np.ndarray) else ", read as needed (a pack is faster)"
        kind = f"{self.x.shape[1:]}{names} {self.x.dtype}"
        return f"{len(self):,} samples {kind} from {self.place}{axes}, {labels}{filled}{kept}{self.remark}"

    def fingerprint(self) -> str:
        """A hash of the measurements and of some samples; of small arrays, all of them."""
        digest = hashlib.sha256(f"{self.x.shape} {self.x.dtype} {self.spec.text()} {self.missing}".encode())
        hash_rows(digest, self.x)
        if self.y is not None:
            digest.update(self.y.tobytes())
        self.given.hash(digest)
        return digest.hexdigest()[:16]


class _WithNaN:
    """Rows of another array in float32, NaN wherever that has one of some values."""

    dtype = np.dtype(np.float32)

    def __init__(self, rows: Rows, values: Sequence[float]):
        self.rows, self.shape = rows, rows.shape
        self.values = np.array(values, dtype=np.float32)

    def __getitem__(self, index: Any, /) -> np.ndarray:
        rows = np.asarray(self.rows[index]).astype(np.float32)
        rows[np.isin(rows, self.values)] = np.nan
        return rows


def _with_nan(x: Rows, values: Sequence[float]) -> Rows:
    """The array with NaN in place of these values; what is in memory stays there."""
    rows = _WithNaN(x, values)
    return rows[:] if isinstance(x, np.ndarray) and not isinstance(x, np.memmap) else rows
