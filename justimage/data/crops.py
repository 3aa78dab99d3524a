"""Crops of fields, volumes and signals that are larger than what the network sees."""

import hashlib
from dataclasses import replace
from math import prod
from typing import Literal

import numpy as np

from justimage.data.origin import Coordinate
from justimage.data.spec import DataSpec, Item, Source, Unreadable

At = Literal["random", "centre"]


class Crops(Source):
    """Crops of one size from every sample of another source, and of the planes that come with it at the same place.

    at="random": every place is a sample of its own, so that an epoch holds each crop of each field once, in random
    order; index i is place i mod places of field i div places. at="centre": one crop of each. Coordinates along the
    cropped axes are kept for centre crops; random crops have none, as a model of them does not know where they were.

    Raises ValueError where the size has another number of axes or is larger than the samples.
    """

    def __init__(self, source: Source, size: tuple[int, ...], at: At = "random"):
        whole = source.spec.size
        if len(size) != len(whole) or any(not 1 <= s <= w for s, w in zip(size, whole, strict=False)):
            raise ValueError(
                f"crops of {'x'.join(map(str, size))} cannot be cut from samples of {'x'.join(map(str, whole))}"
            )
        self.source, self.at = source, at
        self.room = tuple(w - s + 1 for s, w in zip(size, whole, strict=True))  # places along each axis
        self.places = prod(self.room) if at == "random" else 1
        self.spec = _crop_spec(source.spec, size, self._cut(0), moving=at == "random")
        self.planes = {each.name for each in source.spec.given if each.kind == "planes"}
        self.on_error, self.skipped, self.gaps = source.on_error, source.skipped, source.gaps
        self.held_out = None if source.held_out is None else Crops(source.held_out, size, at)
        whole_samples = "random crops are not packed; pack whole samples, and give --data-options.crop when training"
        self.not_packed = whole_samples if at == "random" else source.not_packed

    def _cut(self, place: int) -> tuple[slice, ...]:
        if self.at == "centre":
            starts: tuple[int, ...] = tuple((room - 1) // 2 for room in self.room)
        else:
            starts = tuple(map(int, np.unravel_index(place, self.room)))
        size = (w - room + 1 for w, room in zip(self.source.spec.size, self.room, strict=True))
        return tuple(slice(start, start + length) for start, length in zip(starts, size, strict=True))

    def __len__(self) -> int:
        return len(self.source) * self.places

    def __getitem__(self, index: int, /) -> Item:
        field, place = divmod(index, self.places)
        return self._crop(self.source[field], place)

    def look(self, index: int) -> Item | Unreadable:
        """See `Source`."""
        field, place = divmod(index, self.places)
        found = self.source.look(field)
        return found if isinstance(found, Unreadable) else self._crop(found, place)

    def all_labels(self) -> np.ndarray | None:
        """See `Source`: one label stands for all crops of a sample."""
        return self.source.all_labels()

    def name(self, index: int) -> str:
        """The name of the whole sample, and the place of the crop in it if there are several."""
        field, place = divmod(index, self.places)
        return self.source.name(field) + (f", crop {place}" if self.places > 1 else "")

    def read(self, start: int, stop: int) -> list[Item]:
        """See `Source`: each whole sample is read once."""
        first, last = start // self.places, -(-stop // self.places)
        fields = self.source.read(first, last)
        return [self._crop(fields[i // self.places - first], i % self.places) for i in range(start, stop)]

    def _crop(self, item: Item, place: int) -> Item:
        raw, y = item
        cut = (slice(None), *self._cut(place))
        return raw[cut], {name: value[cut] if name in self.planes else value for name, value in y.items()}

    def describe(self) -> str:
        """See `Source`."""
        size = "x".join(map(str, self.spec.size))
        where = f"at each of {self.places:,} places" if self.at == "random" else "of the centre"
        return f"{self.source.describe()}; crops of {size} {where}: {len(self):,} samples"

    def fingerprint(self) -> str:
        """See `Source`."""
        text = f"{self.source.fingerprint()} {self.spec.size} {self.at}"
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def _crop_spec(spec: DataSpec, size: tuple[int, ...], cut: tuple[slice, ...], *, moving: bool) -> DataSpec:
    if spec.origin is None:
        return replace(spec, size=size)
    slices = dict(zip(spec.origin.dims, cut, strict=True))
    full = dict(zip(spec.origin.dims, spec.size, strict=True))
    kept = [
        _cut_coordinate(each, full, slices)
        for each in spec.origin.coordinates
        if not moving or all(slices[d] == slice(0, full[d]) for d in each.dims if d in full)
    ]
    attributes = spec.origin.attributes
    if moving:
        attributes += (("justimage_crop", "fields like random crops: they have no place on the original grid"),)
    origin = replace(spec.origin, coordinates=tuple(kept), attributes=attributes)
    return replace(spec, size=size, origin=origin)


def _cut_coordinate(coordinate: Coordinate, full: dict[str, int], slices: dict[str, slice]) -> Coordinate:
    if not set(coordinate.dims) <= set(full):  # a coordinate of the levels
        return coordinate
    values = np.array(coordinate.values).reshape([full[dim] for dim in coordinate.dims])
    cut = values[tuple(slices[dim] for dim in coordinate.dims)]
    return replace(coordinate, values=tuple(cut.ravel().tolist()))
