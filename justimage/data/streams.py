"""Streams of images: WebDataset shards behind addresses or pipes, and Hugging Face datasets read without a download.

A stream has no length and no order but its own, and training needs a sequence that is a function of the seed. So it is
read in passes, each with its shards shuffled, and through a buffer that shuffles again.
"""

import hashlib
import io
import itertools
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from justimage.data.containers import IMAGES, clean, suffix_of
from justimage.data.files import which_image
from justimage.data.images import UNREADABLE, Policy, check_crop, pixels
from justimage.data.labels import COMPANIONS, key_of, label_in
from justimage.data.spec import DataSpec, Item, StreamSource, UnreadableSample
from justimage.data.tables import TableOptions, columns_of, folders_of, image_bytes, open_table, without_decoding
from justimage.data.tars import Tar
from justimage.randomness import Purpose, key

REMOTE = ("http://", "https://", "pipe:", "gs://", "hf://")


@dataclass(frozen=True)
class StreamOptions:
    """How data without a length are read."""

    on: bool = False
    """Read a table as a stream, without downloading it; addresses (https://, pipe:) always are."""
    classes: int = 0
    """Number of classes of WebDataset shards, whose labels are numbers; 0: without labels."""
    buffer: int = 4096
    """Samples among which the next one is drawn."""


NO_LABEL = -1
Encoded = tuple[str, bytes, int]  # name, image file, label
Pass = Callable[[int], Iterator[Encoded]]  # a seed -> the samples of one pass, shards in an order of that seed


class ImageStream(StreamSource):
    """Images of a stream, centre-cropped to size (h, w); for the rest see `StreamSource` and `Images`.

    remark: asked after the first sample: a text that follows the description.
    Raises ValueError where the stream is empty, cannot be read, or its first sample cannot be used.
    """

    def __init__(
        self,
        place: str,
        read_pass: Pass,
        size: tuple[int, ...],
        *,
        channels: int,
        classes: tuple[str, ...],
        buffer: int,
        on_error: Policy,
        remark: Callable[[], str] = str,
    ):
        check_crop(size, channels)
        self.place, self.read_pass, self.buffer, self.on_error = place, read_pass, buffer, on_error
        self.size, self.channels = size, channels
        self.spec = DataSpec.pixels(size, channels, classes)
        self.skipped: dict[str, str] = {}
        self.length: int | None = None  # known after the first pass
        first = next(read_pass(0), None)
        if first is None:
            raise ValueError(f"{place} holds no samples")
        self._item(*first)
        self.remark = remark()

    def _item(self, name: str, data: bytes, label: int) -> Item:
        if self.spec.classes and not 0 <= label < len(self.spec.classes):
            found = "no label" if label == NO_LABEL else f"the label {label}"
            raise UnreadableSample(
                f"{name} of {self.place} has {found}; there are {len(self.spec.classes)} classes, counted from 0"
            )
        try:
            raw = pixels(io.BytesIO(data), self.size, self.channels)
        except UNREADABLE as error:
            raise UnreadableSample(f"{name} of {self.place} cannot be decoded: {error}") from error
        return raw, self._beside(label)

    def _beside(self, label: int) -> dict[str, Any]:
        """What comes with an image."""
        return {"labels": np.int64(label)} if self.spec.classes else {}

    def samples(self, seed: int, start: int) -> Iterator[Callable[[], Item]]:
        """See `StreamSource`. To know which pass `start` lies in, one pass is read and counted."""
        epoch, before = 0, 0
        if start and self.length is None:
            self.length = sum(1 for _ in self._one_pass(seed, 0))
        if self.length:
            epoch, before = divmod(start, self.length)
        for number in itertools.count(epoch):
            empty = True
            for encoded in itertools.islice(self._one_pass(seed, number), before, None):
                empty = False
                yield partial(self._item, *encoded)
            if empty and not before:
                raise UnreadableSample(f"{self.place} no longer holds any samples")
            before = 0

    def _one_pass(self, seed: int, number: int) -> Iterator[Encoded]:
        """One pass: shards in random order, and each time a random one of the samples in the buffer."""
        secret = key(seed, Purpose.SHARDS, number)
        generator = np.random.default_rng(secret)
        held: list[Encoded] = []
        count = 0
        for encoded in self.read_pass(secret % 2**31):
            if self.on_error == "skip" and (reason := self._why_unreadable(encoded)):
                self.skipped[encoded[0]] = reason
                continue
            count += 1
            if len(held) < self.buffer:
                held.append(encoded)
                continue
            place = int(generator.integers(len(held)))
            held[place], encoded = encoded, held[place]
            yield encoded
        for place in generator.permutation(len(held)):
            yield held[place]
        self.length = count

    def _why_unreadable(self, encoded: Encoded) -> str:
        """Why a sample cannot be used; empty where it can."""
        try:
            self._item(*encoded)
        except UnreadableSample as error:
            return str(error)
        return ""

    def describe(self) -> str:
        """See `StreamSource`."""
        labels = f"{len(self.spec.classes)} classes" if self.spec.classes else "no labels"
        return (
            f"a stream of images from {self.place}, cropped to {'x'.join(map(str, self.size))}, {labels}{self.remark}"
        )

    def promise(self) -> str:
        """See `StreamSource`."""
        return (
            "no length: unreadable samples are found only when their turn comes, and samples are shuffled within a "
            f"buffer of {self.buffer:,}. The order is a function of the seed as long as the shards stay the same. "
            "Resuming gives the same next batch, but first reads (without decoding) one pass to count it, and the "
            "current pass up to where it was. Every process reads the whole stream. Data that are downloaded "
            "have none of these limits"
        )

    def fingerprint(self) -> str:
        """See `StreamSource`."""
        return hashlib.sha256(f"{self.place} {self.spec.text()} {self.buffer} {self.on_error}".encode()).hexdigest()[
            :16
        ]


def open_shards(
    address: str, size: tuple[int, ...], channels: int, options: StreamOptions, on_error: Policy, image: str = ""
) -> ImageStream:
    """WebDataset shards at an address with braces (https://host/train-{000..146}.tar) or pipes (pipe:command).

    image: of several images of one key, the one that is called so after the key.
    """
    try:
        from webdataset.gopen import gopen
        from webdataset.shardlists import expand_urls
    except ImportError as error:
        raise ValueError("addresses are read with webdataset: pip install 'justimage[data]'") from error
    shards = expand_urls(address)
    first: dict[str, bytes] = {}

    def read_pass(seed: int) -> Iterator[Encoded]:
        for i in np.random.default_rng(seed).permutation(len(shards)):
            for called, parts in _read(_shard(gopen, shards[i]), shards[i]):
                name = f"{called} of {shards[i]}"
                first.update({} if first else parts)
                label = _number(_label_of(parts, name), name) if options.classes else NO_LABEL
                yield called, _image_of(parts, called, shards[i], image), label

    def remark() -> str:
        try:
            labelled = _label_of(first, address) is not None
        except UnreadableSample:
            labelled = False
        if options.classes or not labelled:
            return ""
        return f"; labels not used: {' or '.join(COMPANIONS)} (--data-options.stream.classes says how many there are)"

    classes = tuple(map(str, range(options.classes)))
    return ImageStream(
        address,
        read_pass,
        size,
        channels=channels,
        classes=classes,
        buffer=options.buffer,
        on_error=on_error,
        remark=remark,
    )


def _shard(opened: Callable[[str], Any], url: str) -> Iterator[tuple[str, dict[str, bytes]]]:
    """The samples of a shard: members that follow each other and have the same key, by what follows the key."""
    stream = opened(url)
    tar = Tar(stream, seekable=False)
    key, parts = "", {}
    for member in tar:
        name = clean(member.name)
        here, rest = key_of(name)
        if not member.isreg() or not rest or here.rpartition("/")[2] == "" or re.match(r"__[^/]*__($|/)", name):
            continue
        if here != key:
            if parts:
                yield key, parts
            key, parts = here, {}
        if rest in parts:
            raise ValueError(f"{name} occurs twice in it")
        parts[rest] = tar.read(member)
    if parts:
        yield key, parts
    stream.close()  # of a command, this tells whether it failed


def _image_of(parts: dict[str, bytes], called: str, shard: str, image: str) -> bytes:
    """The one image of the key `called`, or of several the one that is called `image` after it."""
    wanted = image.lower().removeprefix(".")
    images = [each for each in parts if suffix_of(f"{called}.{each}") in IMAGES and wanted in ("", each)]
    if len(images) > 1:
        raise UnreadableSample(which_image(shard, called, images))
    if not images:
        what = f"image called {wanted}" if wanted else "image"
        raise UnreadableSample(f"{called} of {shard} holds no {what}; it holds {', '.join(parts)}")
    return parts[images[0]]


def _label_of(parts: dict[str, bytes], name: str) -> Any:
    """What the companions of an image say, if anything."""
    if "cls" in parts:
        return parts["cls"].decode("utf-8", "replace").strip() or None
    try:
        return label_in(json.loads(parts["json"])) if "json" in parts else None
    except (ValueError, RecursionError) as error:
        raise UnreadableSample(f"the label of {name} is not JSON: {error}") from error


def _number(label: Any, name: str) -> int:
    """A label of a stream, whose classes are not known beforehand: a whole number, or nothing."""
    if label is None:
        return NO_LABEL
    if isinstance(label, bool) or re.fullmatch(r"-?\d{1,18}", str(label)) is None:
        raise UnreadableSample(
            f"{name} has the label {label!r:.80} ({type(label).__name__}), which is not a whole number; the names of "
            "classes are found in data that are downloaded"
        )
    return int(label)


def _read(rows: Iterator[Any], place: str) -> Iterator[Any]:
    """The rows; whatever goes wrong in the network, in an archive or in a subprocess is an UnreadableSample."""
    for number in itertools.count():
        try:
            row = next(rows, None)
        except Exception as error:
            raise UnreadableSample(f"{place} cannot be read after {number:,} samples: {error}") from error
        if row is None:
            return
        yield row


def stream_rows(
    path: str,
    paths: Sequence[Path],
    size: tuple[int, ...],
    channels: int,
    split: str,
    table_options: TableOptions,
    options: StreamOptions,
    on_error: Policy,
) -> ImageStream:
    """The rows of a table, read as a stream. Raises ValueError as `open_table` and `columns_of` do."""
    table = open_table(path, paths, split, table_options, streaming=True)
    if table.features is None:
        raise ValueError(f"{path} does not say which columns it has; it cannot be read as a stream")
    image, label = columns_of(table, path, table_options)
    names = tuple(getattr(table.features[label], "names", None) or ()) if label else ()
    remark = ""
    if label and not names:
        names = tuple(map(str, range(options.classes)))
        cure = "--data-options.stream.classes says how many there are, if they are whole numbers"
        remark = "" if names else f"; labels not used: the column {label} ({cure})"
    rows, folders = without_decoding(table, image), folders_of(paths)

    def read_pass(seed: int) -> Iterator[Encoded]:
        for shard in np.random.default_rng(seed).permutation(rows.num_shards):
            found = iter(rows.shard(rows.num_shards, int(shard)))
            for number, row in enumerate(_read(found, path)):
                name = f"row {number} of shard {shard}"
                index = _number(row[label], f"{name} of {path}") if label and names else NO_LABEL
                try:
                    data = image_bytes(row[image], folders).read()
                except (ValueError, OSError) as error:
                    raise UnreadableSample(f"{name} of {path} cannot be read: {error}") from error
                yield name, data, index

    return ImageStream(
        path,
        read_pass,
        size,
        channels=channels,
        classes=names,
        buffer=options.buffer,
        on_error=on_error,
        remark=lambda: remark,
    )
