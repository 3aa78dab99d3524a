"""DataSpec: what raw values mean, and the only place where they become model values and back; and what a source is."""

import difflib
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from justimage.data.origin import Origin
from justimage.data.records import from_plain
from justimage.execution import to_device

COLOURS = ("red", "green", "blue")
OLDER_FIELDS = ("size", "channels", "mean", "scale", "dtype", "classes", "origin")  # what `text` has always said


@dataclass(frozen=True)
class Given:
    """What comes with each sample besides x and its label, and how it is scaled: (raw - mean) / scale per feature.

    vector (F,), tokens (L, F) with a mask (L,), or planes (P, *S) on the grid of x, NaN where unknown.
    Raises ValueError for an invalid name, or where the numbers of features, means and scales differ.
    """

    name: str
    kind: Literal["vector", "tokens", "planes"]
    features: int
    """Numbers of a vector or of each token; channels of planes."""
    length: int = 0
    """Most tokens in a sequence; 0 for the other kinds."""
    mean: tuple[float, ...] = ()
    """Raw value that becomes 0, per feature."""
    scale: tuple[float, ...] = ()
    """Raw distance that becomes 1, per feature."""

    def __post_init__(self) -> None:
        if not self.name.isidentifier() or self.name == "labels" or self.name.endswith("_mask"):
            raise ValueError(
                f"a condition cannot be called {self.name!r}; use letters, digits and underscores (`labels` and names "
                "ending in `_mask` are taken)"
            )
        if self.kind not in ("vector", "tokens", "planes"):
            raise ValueError(
                f"the condition {self.name} is of the kind {self.kind!r}; it must be vector, tokens or planes"
            )
        if self.features < 1 or (self.kind == "tokens") != (self.length > 0):
            raise ValueError(
                f"the condition {self.name} ({self.kind}) has {self.features} features and the length {self.length}; "
                "it needs at least one feature, and a length if and only if it is tokens"
            )
        if not len(self.mean) == len(self.scale) == self.features:
            raise ValueError(
                f"the condition {self.name} has {self.features} features, {len(self.mean)} means and "
                f"{len(self.scale)} scales: each feature needs one of each"
            )
        _check_scaling(self.mean, self.scale)

    def describe(self) -> str:
        """The name and what it is, for the user."""
        kinds = {
            "vector": f"a vector of {self.features}",
            "tokens": f"up to {self.length} tokens of {self.features}",
            "planes": f"{self.features} plane{'s' if self.features > 1 else ''}",
        }
        return f"{self.name} ({kinds[self.kind]})"


class Need(NamedTuple):
    """One part of what comes with each sample, as a network asks for it; of labels, features are the classes."""

    name: str
    kind: str
    features: int
    length: int


@dataclass(frozen=True)
class DataSpec:
    """Shape, names and scales of samples (C, *S); it travels in the checkpoint.

    Model values are (raw - mean) / scale, one mean and scale per channel, and lie around [-1, 1].
    Raises ValueError where the numbers of names, means and scales differ, a scale is not positive, or there is no
    such axis to mirror.
    """

    size: tuple[int, ...]
    """Length of each spatial axis."""
    channels: tuple[str, ...]
    """Channel names."""
    mean: tuple[float, ...]
    """Raw value that becomes 0, per channel."""
    scale: tuple[float, ...]
    """Raw distance that becomes 1, per channel."""
    dtype: Literal["uint8", "float32"] = "float32"
    """Type of the raw values."""
    classes: tuple[str, ...] = ()
    """Class names in the order of their labels; empty: no labels."""
    origin: Origin | None = None
    """Variables, units and coordinates of fields; None for pixels and plain arrays."""
    colour: bool | None = None
    """Whether the three channels are shown as one colour; by default only if they are called red, green and blue."""
    mirror: int | None = None
    """The spatial axis along which a mirrored sample is as likely as the sample itself; None: there is none."""
    given: tuple[Given, ...] = ()
    """What comes with each sample besides x and its label."""

    def __post_init__(self) -> None:
        counts = {len(self.channels), len(self.mean), len(self.scale)}
        if len(counts) != 1 or not self.channels:
            raise ValueError(
                f"{len(self.channels)} channel names, {len(self.mean)} means and {len(self.scale)} scales: "
                "each channel needs one of each"
            )
        _check_scaling(self.mean, self.scale)
        if not self.size or not all(length >= 1 for length in self.size):
            raise ValueError(f"size is {self.size}; each axis must be at least 1 long")
        if self.origin is not None and len(self.origin.variables) != len(self.channels):
            raise ValueError(f"{len(self.origin.variables)} variables for {len(self.channels)} channels")
        if self.origin is not None:
            self.origin.check(self.size)
        if self.colour is None:
            object.__setattr__(self, "colour", self.channels == COLOURS)
        if self.colour and len(self.channels) != 3:
            raise ValueError(f"colour needs 3 channels, and there are {len(self.channels)}")
        if self.mirror is not None and not 0 <= self.mirror < len(self.size):
            raise ValueError(f"there is no axis {self.mirror} to mirror; there are {len(self.size)}, counted from 0")
        names = [each.name for each in self.given]
        if len(set(names)) != len(names):
            raise ValueError(f"two conditions share a name: {', '.join(names)}")

    @classmethod
    def from_json(cls, values: Any, where: str = "the description of the data", part: str = "") -> "DataSpec":
        """The inverse of dataclasses.asdict, after JSON, which knows lists only. Specs of older versions are read too.

        where, part: the file that they are from, and which part of it, for messages. Raises ValueError, with the field,
        for fields that do not exist, are missing or of another type, and for values that do not fit together.
        """
        spec = from_plain(cls, values, where, part)
        if "mirror" not in values and spec.image:
            return replace(spec, mirror=1)  # older versions mirrored every image of 8-bit pixels along its last axis
        return spec

    @classmethod
    def pixels(cls, size: tuple[int, ...], channels: int, classes: Sequence[str] = ()) -> "DataSpec":
        """The spec of 8-bit images: 0..255 becomes [-1, 1]. Images of two axes may be mirrored along the last one."""
        names = {1: ("grey",), 3: COLOURS}.get(channels) or tuple(f"c{i}" for i in range(channels))
        half = (127.5,) * channels
        mirror = 1 if len(size) == 2 else None
        return cls(tuple(size), names, half, half, "uint8", tuple(classes), colour=channels == 3, mirror=mirror)

    @property
    def image(self) -> bool:
        """Whether samples are images of 8-bit pixels."""
        return self.dtype == "uint8" and len(self.size) == 2

    @property
    def units(self) -> tuple[str, ...]:
        """Unit of each channel, empty where it is not known."""
        if self.origin is None:
            return ("",) * len(self.channels)
        return tuple(str(dict(variable.attributes).get("units", "")) for variable in self.origin.variables)

    @property
    def shape(self) -> tuple[int, ...]:
        """(C, *S)."""
        return len(self.channels), *self.size

    @property
    def needs(self) -> tuple[Need, ...]:
        """(name, kind, features, length) of everything that comes with a sample: labels first, then `given`."""
        labels = (Need("labels", "labels", len(self.classes), 0),) if self.classes else ()
        return labels + tuple(Need(each.name, each.kind, each.features, each.length) for each in self.given)

    def text(self) -> str:
        """The spec in one line, for fingerprints and caches: what training depends on, and nothing else.

        It must not change from version to version, or runs would not resume. So the fields of later versions are left
        out, except `given` where there is any.
        """
        names = OLDER_FIELDS + (("given",) if self.given else ())
        return f"DataSpec({', '.join(f'{name}={getattr(self, name)!r}' for name in names)})"

    def encode(self, raw: Tensor) -> Tensor:
        """Raw values (B, C, *S) -> model values (B, C, *S) float32."""
        return _scale(raw, self.mean, self.scale, 1)

    def decode(self, x: Tensor) -> Tensor:
        """Model values (B, C, *S) -> raw values of this spec's type; 8-bit values are rounded and clipped."""
        raw = x.float() * _along(self.scale, x, 1) + _along(self.mean, x, 1)
        return raw.round_().clamp_(0, 255).to(torch.uint8) if self.dtype == "uint8" else raw

    def encode_given(self, y: dict[str, Tensor]) -> dict[str, Tensor]:
        """Raw values of a condition -> model values, by name; labels and masks stay as they are.

        vector (B, F), tokens (B, L, F), planes (B, P, *S): float32, NaN stays NaN.
        """
        given = {each.name: each for each in self.given}

        def encode(name: str, value: Tensor) -> Tensor:
            part = given.get(name)
            if part is None:
                return value
            return _scale(value, part.mean, part.scale, 1 if part.kind == "planes" else -1)

        return {name: encode(name, value) for name, value in y.items()}

    @property
    def named(self) -> bool:
        """Whether its classes have names, and not just their numbers, 0, 1, 2, ..."""
        return self.classes != tuple(map(str, range(len(self.classes))))

    def label(self, name: int | str) -> int:
        """A class by name or index -> its index. Raises ValueError, with the nearest names, where there is none.

        A number as text is a name where any class has such a name.
        """
        if isinstance(name, str):
            if name in self.classes:
                return self.classes.index(name)
            if name.isdecimal() and not any(each.isdecimal() for each in self.classes):
                return self.label(int(name))
            near = difflib.get_close_matches(name, self.classes, n=3, cutoff=0.3) or list(self.classes[:10])
            known = f"the nearest are {', '.join(near)}" if near else "these data have no classes"
            raise ValueError(f"there is no class {name!r}; {known}")
        if not 0 <= name < len(self.classes):
            raise ValueError(f"label {name} is out of range: there are {len(self.classes)} classes, counted from 0")
        return name


def _check_scaling(mean: tuple[float, ...], scale: tuple[float, ...]) -> None:
    """Raises ValueError for numbers that float32 does not hold, and for scales that are not positive."""
    least, most = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)
    if not all(abs(m) <= most for m in mean) or not all(least <= s <= most for s in scale):
        raise ValueError(f"means {mean} and scales {scale} must be finite numbers of float32, and scales positive")


def _scale(raw: Tensor, mean: tuple[float, ...], scale: tuple[float, ...], axis: int) -> Tensor:
    return (raw.float() - _along(mean, raw, axis)) / _along(scale, raw, axis)


def _along(values: tuple[float, ...], like: Tensor, axis: int) -> Tensor:
    """One number for each entry of an axis, on the device of `like` and shaped to broadcast with it."""
    shape = [1] * like.ndim
    shape[axis] = -1
    return to_device(torch.tensor(values, dtype=torch.float32), like.device).view(shape)


class UnreadableSample(ValueError):
    """A sample cannot be read in the middle of training. The message names it."""


@dataclass(frozen=True)
class Unreadable:
    """What `look` returns in place of a damaged sample."""

    reason: str


@dataclass(frozen=True)
class FileFacts:
    """An image file as it is stored, before the crop."""

    kind: str
    """Format and mode, such as JPEG RGB."""
    size: tuple[int, int]
    """Height and width, upright."""
    turned: bool
    """Whether EXIF says that it lies on its side or is mirrored."""


def evenly(count: int, most: int) -> np.ndarray:
    """At most so many of the numbers 0 to count - 1, evenly spread and both ends among them, (n,) int64."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(np.int64))


def looked_at(spec: DataSpec, count: int) -> int:
    """How many of `count` samples `content` looks at: 64, and fewer of samples above 16 MB, as all must be read.

    Up to 1,024 of data that most machines hold in memory. A function of nothing else, or hashes could not be compared.
    """
    size = int(np.prod(spec.shape)) * np.dtype(spec.dtype).itemsize
    few = max(4, min(64, 2**30 // size))
    more = min(1024, 2**25 // size) if count * size <= 2**31 else 0
    return min(count, max(few, more))


Item = tuple[np.ndarray, dict[str, np.ndarray]]
"""Raw (C, *S) in the spec's type, and what comes with it by name.

That is "labels" (an np.int64) if there are classes, the array of each `Given`, and NAME_mask (L,) bool for tokens.
"""


class Source(Protocol):
    """Samples in a fixed order, read by any thread. A subclass defines what has no body here, and inherits the rest."""

    indexed: Literal[True] = True
    spec: DataSpec
    on_error: Literal["stop", "skip"] = "stop"
    """Whether samples that cannot be read stop the work, or are left out of it."""
    skipped: Mapping[str, str] = MappingProxyType({})
    """The samples left out so far: name -> reason."""
    gaps: str = ""
    """In words, the missing values that were found on opening; empty where there are none."""
    not_packed: str = ""
    """Why it cannot be packed, and what to do instead; empty where it can."""
    held_out: "Source | None" = None
    """Samples that were left out of it, for measuring (`data.held_out`); None where there are none."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Item:
        """The sample that training gets. Raises UnreadableSample where it cannot be read."""
        ...

    def describe(self) -> str:
        """One sentence on what was found, for the user."""
        ...

    def fingerprint(self) -> str:
        """A short hash that changes when the samples, their order or their labels do."""
        ...

    def look(self, index: int) -> Item | Unreadable:
        """The sample itself, or why it cannot be read; never an error, and never another one in its place."""
        try:
            return self[index]
        except UnreadableSample as error:
            return Unreadable(str(error))

    def name(self, index: int) -> str:
        """What a sample is called: its file, where it has one."""
        return f"sample {index}"

    def read(self, start: int, stop: int) -> list[Item]:
        """Samples start to stop - 1 at once, which some sources do faster than one by one."""
        return [self[i] for i in range(start, stop)]

    def all_labels(self) -> np.ndarray | None:
        """The labels of all samples in their order (N,), where they are known without reading the samples; else None.

        One label may stand for several neighbours, if it does so everywhere in the same way.
        """
        return None

    def content(self) -> str:
        """A short hash of the samples themselves, however they are held: a folder and the pack of it have the same.

        It is made of the spec, the number of samples, all labels where they are at hand, and of as many samples as
        `looked_at` says, evenly spread. So it is a sample: it changes if many of the samples do, and may not if few do.
        """
        count, labels = len(self), self.all_labels() if self.spec.classes else None
        digest = hashlib.sha256(f"{self.spec.text()} {count}".encode())
        if labels is not None:
            digest.update(np.ascontiguousarray(labels, dtype="<i8").data)
        for index in evenly(count, looked_at(self.spec, count)).tolist():
            found = self.look(index)
            if isinstance(found, Unreadable):
                digest.update(b"unreadable")
                continue
            raw, y = found
            digest.update(np.ascontiguousarray(raw, dtype=self.spec.dtype).data)
            for name in sorted(y):
                digest.update(name.encode() + np.ascontiguousarray(y[name]).tobytes())
        return digest.hexdigest()[:16]

    def file_facts(self, index: int) -> FileFacts | None:
        """The image file behind a sample; None where there is none, or it cannot be read."""
        return None


class StreamSource(Protocol):
    """Samples that come one after the other and cannot be had in any other order."""

    indexed: Literal[False] = False
    spec: DataSpec
    length: int | None
    """Samples of a pass, once one has been read."""
    skipped: Mapping[str, str] = MappingProxyType({})
    """The samples left out so far: name -> reason."""

    def samples(self, seed: int, start: int) -> Iterator[Callable[[], Item]]:
        """The samples from position `start` of a run on, without end, each decoded when it is called.

        A function of (seed, start), as far as `promise` says. Iterating and calling raise UnreadableSample where the
        stream or a sample cannot be read.
        """
        ...

    def describe(self) -> str:
        """One sentence on what was found, for the user."""
        ...

    def promise(self) -> str:
        """What resuming and several processes can rely on, and what not."""
        ...

    def fingerprint(self) -> str:
        """A short hash that changes when the stream's address or its reading do."""
        ...
