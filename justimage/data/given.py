"""What comes with each sample besides x and its label: recognised by its shape, checked and measured."""

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

import numpy as np

from justimage.data.moments import LARGEST, Moments, changes, chunks, hash_rows
from justimage.data.spec import Given
from justimage.disk.cache import cached

MASK = "_mask"


class GivenArrays:
    """Arrays by name, with a row for each sample of x, whose shape is (N, C, *S).

    NAME (N,) or (N, F) is a vector. (N, L, F) with NAME_mask (N, L) of booleans is tokens; the mask says which are
    present. (N, P, *S) is planes on the grid of x, NaN where unknown. Each feature is measured in one pass, so that
    model values have mean 0 and standard deviation 1; a feature that never changes has the scale 1.

    place: what the arrays belong to, for messages. identity: a text that changes with the data, if the measurement is
    to be cached. Raises ValueError for any other shape or type, and for values that are not finite, with their place.
    """

    def __init__(self, arrays: Mapping[str, np.ndarray], shape: tuple[int, ...], place: str, identity: str = ""):
        self.place = place
        self.arrays: dict[str, np.ndarray] = {}
        self.masks: dict[str, np.ndarray] = {}
        found = []
        arrays = {name: np.asarray(values) for name, values in arrays.items()}
        for name, values in arrays.items():
            if name.endswith(MASK) and name.removesuffix(MASK) in arrays:
                continue
            mask = arrays.get(name + MASK)
            kind = self._kind(name, values, mask, shape)
            values = values[:, None] if values.ndim == 1 else values
            measure = partial(self._measure, name, values, mask, kind)
            what = f"measured condition {name} {kind} {identity} {values.shape} {values.dtype}"
            moments = cached(what, measure) if identity else measure()
            features, length = (values.shape[2], values.shape[1]) if kind == "tokens" else (values.shape[1], 0)
            found.append(Given(name, kind, features, length, tuple(moments["mean"]), tuple(moments["scale"])))
            self.arrays[name] = values
            if mask is not None:
                self.masks[name + MASK] = mask
        self.spec = tuple(found)

    def _kind(
        self, name: str, values: np.ndarray, mask: np.ndarray | None, shape: tuple[int, ...]
    ) -> Literal["vector", "tokens", "planes"]:
        count, size = shape[0], shape[2:]
        if values.dtype.kind not in "buif":
            raise ValueError(f"the condition {name} of {self.place} has the type {values.dtype}; numbers are needed")
        if mask is not None and (mask.shape != values.shape[:2] or mask.dtype != np.bool_ or values.ndim != 3):
            raise ValueError(
                f"the mask {name}{MASK} of {self.place} is {mask.shape} {mask.dtype}, and {name} is {values.shape}; "
                "a mask (N, L) of booleans goes with tokens (N, L, F)"
            )
        if values.shape[:1] == (count,) and 0 not in values.shape:
            if mask is not None:
                return "tokens"
            if values.ndim <= 2:
                return "vector"
            if values.shape[2:] == size:
                return "planes"
        grid = ", ".join(map(str, size))
        raise ValueError(
            f"the condition {name} of {self.place} is {values.shape}; with {count} samples it can be a vector "
            f"({count},) or ({count}, F), tokens ({count}, L, F) with a mask {name}{MASK} ({count}, L) of booleans, or "
            f"planes ({count}, P, {grid}) on the grid of x"
        )

    def _measure(self, name: str, values: np.ndarray, mask: np.ndarray | None, kind: str) -> dict[str, Any]:
        axis = -1 if kind == "tokens" else 1
        moments = Moments(values.shape[axis], values.size // values.shape[axis])
        for part in chunks(values):
            rows = values[part.start : part.stop].astype(np.float64)
            finite = np.abs(rows) <= LARGEST  # they are read in float32
            allowed = finite | np.isnan(rows) if kind == "planes" else finite
            if not allowed.all():
                row, *at = np.argwhere(~allowed)[0].tolist()
                raise ValueError(
                    f"the condition {name} of {self.place} is {rows[(row, *at)]} in sample {part.start + row}, at "
                    f"{tuple(at)}; it must be finite" + (", or NaN where it is not known" if kind == "planes" else "")
                )
            if mask is not None:
                finite &= mask[part.start : part.stop, :, None]
            moments.add(*(np.moveaxis(each, axis, 0).reshape(values.shape[axis], -1) for each in (rows, finite)))
        for feature, end in enumerate(moments.outliers()):
            if end is not None:
                raise ValueError(
                    f"the condition {name} of {self.place} holds {np.float32(end)!s} in feature {feature}, a million "
                    "times as large as all others; it would decide the scale, so correct it"
                    + (", or write NaN where it is not known" if kind == "planes" else "")
                )
        pairs = zip(moments.mean.tolist(), moments.std.tolist(), strict=True)
        return {
            "mean": moments.mean.tolist(),
            "scale": [std if changes(mean, std) else 1.0 for mean, std in pairs],
        }

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """What comes with one sample: numbers in float32, masks as they are."""
        numbers = {name: values[index].astype(np.float32) for name, values in self.arrays.items()}
        return numbers | {name: mask[index] for name, mask in self.masks.items()}

    def hash(self, digest: Any) -> None:
        """Feed everything into a hash."""
        for name, values in {**self.arrays, **self.masks}.items():
            digest.update(name.encode())
            hash_rows(digest, values)
