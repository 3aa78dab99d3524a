"""Streams of images: WebDataset shards behind addresses or pipes, and Hugging Face datasets read without a download.

A stream has no length and no order but its own, and training needs a sequence that is a function of the seed. So it is
read in passes, each with its shards shuffled, and through a buffer that shuffles again.
"""

import hashlib
import io
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from justimage.data.containers import IMAGES
from justimage.data.files import label_in
from justimage.data.images import MODES, UNREADABLE, Policy, pixels
from justimage.data.spec import DataSpec, Item, StreamSource, UnreadableSample
from justimage.data.tables import TableOptions, columns_of, image_bytes, open_table, without_decoding
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


Encoded = tuple[str, bytes, int]  # name, image file, label
Pass = Callable[[int], Iterator[Encoded]]  # a seed -> the samples of one pass, shards in an order of that seed


class ImageStream(StreamSource):
    """Images of a stream, centre-cropped to size (h, w); for the rest see `StreamSource` and `Images`.

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
    ):
        if len(size) != 2 or channels not in MODES:
            raise ValueError(f"images have 2 spatial axes and 1, 3 or 4 channels; not {size} and {channels}")
        self.place, self.read_pass, self.buffer, self.on_error = place, read_pass, buffer, on_error
        self.size, self.channels = size, channels
        self.spec = DataSpec.pixels(size, channels, classes)
        self.length: int | None = None  # known after the first pass
        first = next(read_pass(0), None)
        if first is None:
            raise ValueError(f"{place} holds no samples")
        self._item(*first)

    def _item(self, name: str, data: bytes, label: int) -> Item:
        if self.spec.classes and not 0 <= label < len(self.spec.classes):
            raise UnreadableSample(
                f"{name} of {self.place} has the label {label}; there are {len(self.spec.classes)} classes"
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
            if self.on_error == "skip" and not self._readable(encoded):
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

    def _readable(self, encoded: Encoded) -> bool:
        try:
            self._item(*encoded)
        except UnreadableSample:
            return False
        return True

    def describe(self) -> str:
        """See `StreamSource`."""
        labels = f"{len(self.spec.classes)} classes" if self.spec.classes else "no labels"
        return f"a stream of images from {self.place}, cropped to {'x'.join(map(str, self.size))}, {labels}"

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
    address: str, size: tuple[int, ...], channels: int, options: StreamOptions, on_error: Policy
) -> ImageStream:
    """WebDataset shards at an address with braces (https://host/train-{000..146}.tar) or pipes (pipe:command)."""
    try:
        import webdataset
    except ImportError as error:
        raise ValueError("addresses are read with webdataset: pip install 'justimage[data]'") from error
    shards = webdataset.shardlists.expand_urls(address)

    def read_pass(seed: int) -> Iterator[Encoded]:
        shuffled = [shards[i] for i in np.random.default_rng(seed).permutation(len(shards))]
        reader = webdataset.compat.WebDataset(
            shuffled, shardshuffle=False, nodesplitter=None, workersplitter=None, empty_check=False
        )
        for sample in _read(iter(reader), address):
            yield _of_sample(sample, address, options.classes)

    classes = tuple(map(str, range(options.classes)))
    return ImageStream(
        address, read_pass, size, channels=channels, classes=classes, buffer=options.buffer, on_error=on_error
    )


def _of_sample(sample: dict[str, Any], address: str, classes: int) -> Encoded:
    name = sample["__key__"]
    image = next((sample[each] for each in sample if f".{each.rpartition('.')[2].lower()}" in IMAGES), None)
    if image is None:
        kinds = ", ".join(each for each in sample if not each.startswith("__"))
        raise UnreadableSample(f"{name} of {address} holds no image; it holds {kinds}")
    label: Any = -1
    if classes and "cls" in sample:
        label = sample["cls"].decode("utf-8", "replace").strip()
    elif classes and "json" in sample:
        try:
            label = label_in(json.loads(sample["json"]))
        except ValueError as error:
            raise UnreadableSample(f"the label of {name} of {address} is not JSON: {error}") from error
    return name, image, _number(label, name, address)


def _number(label: Any, name: str, place: str) -> int:
    try:
        return int(label)
    except (TypeError, ValueError) as error:
        raise UnreadableSample(f"{name} of {place} has the label {label!r}, which is not a number") from error


def _read(rows: Iterator[Any], place: str) -> Iterator[Any]:
    """The rows; whatever goes wrong in the network, in an archive or in a subprocess is an UnreadableSample."""
    while True:
        try:
            row = next(rows, None)
        except Exception as error:
            raise UnreadableSample(f"{place} cannot be read: {error}") from error
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
    if label and not names:
        names = tuple(map(str, range(options.classes)))
    rows = without_decoding(table, image)

    def read_pass(seed: int) -> Iterator[Encoded]:
        for shard in np.random.default_rng(seed).permutation(rows.num_shards):
            found = iter(rows.shard(rows.num_shards, int(shard)))
            for number, row in enumerate(_read(found, path)):
                name = f"row {number} of shard {shard}"
                index = _number(row[label], name, path) if label and names else -1
                try:
                    data = image_bytes(row[image]).read()
                except (ValueError, OSError) as error:
                    raise UnreadableSample(f"{name} of {path} cannot be read: {error}") from error
                yield name, data, index

    return ImageStream(
        path, read_pass, size, channels=channels, classes=names, buffer=options.buffer, on_error=on_error
    )
