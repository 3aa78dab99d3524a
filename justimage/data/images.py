"""Images: decoded to 8 bits in a stated way, cropped as in ADM, and kept in memory where they fit."""

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, BinaryIO, Literal, TypeVar

import numpy as np
import torch
from PIL import ExifTags, Image
from rich.progress import Progress

from justimage.data.files import Files
from justimage.data.spec import DataSpec, FileFacts, Item, Source, Unreadable, UnreadableSample
from justimage.disk.cache import cached
from justimage.execution import memory_of

BLOCK = 32  # images that a thread takes at once
PER_PIXEL = 4  # bytes of a channel: training takes it as float32
MODES = {1: "L", 3: "RGB", 4: "RGBA"}
UNREADABLE = Exception  # each of PIL's formats has errors of its own for damaged files
TURNS = {  # EXIF's orientation -> what makes the image upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
ENDS = {"JPEG": b"\xff\xd9", "PNG": b"IEND"}
Policy = Literal["stop", "skip"]
Deep = Literal["scale", "stop"]
Result = TypeVar("Result")


def check_crop(size: Sequence[int], channels: int) -> None:
    """Raises ValueError unless images can be cropped to size (h, w) with so many channels in this machine's memory."""
    if len(size) != 2:
        raise ValueError(
            f"images have 2 spatial axes, and the network has {len(size)}; give their height and width, such as "
            f"--network.size {size[0] if size else 256} {size[-1] if size else 256}"
        )
    if channels not in MODES:
        raise ValueError(f"images have 1, 3 or 4 channels, and the network has {channels}")
    h, w = size
    if h < 1 or w < 1:
        raise ValueError(f"images cannot be cropped to {h}x{w}; both lengths must be at least 1")
    there, needed = memory_of(torch.device("cpu")), h * w * channels * PER_PIXEL
    if there is not None and needed > there // 2:
        raise ValueError(
            f"images cannot be cropped to {h}x{w}: one would take {needed / 2**30:,.0f} GiB, more than half of this "
            f"machine's memory ({there / 2**31:,.0f} GiB); give a smaller size"
        )


def centre_crop(image: Image.Image, size: Sequence[int]) -> np.ndarray:
    """The centre crop of ADM (arXiv 2105.05233): halve with a box filter, then bicubic, then cut.

    size (h, w); for squares equal to the official code to the bit. -> (h, w) or (h, w, C) uint8
    """
    h, w = size
    while image.height >= 2 * h and image.width >= 2 * w:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = max(h / image.height, w / image.width)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    top, left = (image.height - h) // 2, (image.width - w) // 2
    return np.asarray(image)[top : top + h, left : left + w]


def open_image(file: BinaryIO, deep: Deep) -> Image.Image:
    """An image whose header is read. ValueError where it has 32 bits a channel, or with deep="stop" 16."""
    head = file.read(25)
    file.seek(0)
    image = Image.open(file)
    sixteen = image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG")
    if deep == "stop" and (sixteen or (head.startswith(b"\x89PNG") and head[24:] == b"\x10")):  # IHDR's bit depth
        raise ValueError("it has 16 bits a channel")
    if image.mode[0] in "IF" and not sixteen:  # converting would clip them
        raise ValueError(f"it has 32 bits a channel ({image.mode}); save such data as a float .npy")
    return image


def decode(file: BinaryIO, channels: int, deep: Deep = "scale") -> Image.Image:
    """An image file -> 8-bit L, RGB or RGBA (1, 3, 4 channels), upright.

    Turned as EXIF says. Transparency is laid on white, unless alpha is one of the channels. Palettes and CMYK become
    RGB. 16 bits are scaled to 8, 65535 to 255 (of colour PNGs, PIL keeps the upper eight bits: at most 1/256 less).
    Raises ValueError for deeper ones, or with deep="stop" for those of 16, and any Exception of PIL's for damaged ones.
    """
    with open_image(file, deep) as image:
        image.load()  # TIFF turns itself
        turn = TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
        if turn is not None:  # ImageOps.exif_transpose also writes the EXIF anew, and fails where that is odd
            image = image.transpose(turn)
        if image.mode[0] == "I":
            image = Image.fromarray(np.round(np.asarray(image).astype(np.float64) / 257).astype(np.uint8))
        mode = MODES[channels]
        if mode != "RGBA" and image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return image if image.mode == mode else image.convert(mode)


def pixels(file: BinaryIO, size: Sequence[int], channels: int, deep: Deep = "scale") -> np.ndarray:
    """An image file -> (C, h, w) uint8, decoded and cropped. Errors as for `decode`."""
    cropped = centre_crop(decode(file, channels, deep), size)
    return np.ascontiguousarray(np.moveaxis(cropped.reshape(*size, -1), -1, 0))


class Images(Source):
    """Image files, centre-cropped to size (h, w), from any container.

    channels: 3 RGB, 1 grey, 4 RGBA; every image is converted, see `decode`.
    on_error: if an image cannot be decoded, "stop" with its name, or "skip" it and count.
    memory_gb: below this size all images are decoded at once into memory, so that every unreadable one is known
    before the first step; above it only their headers and ends are checked, and each is decoded when its turn comes,
    where "skip" takes the next readable one instead.

    Raises ValueError for unreadable images.
    """

    def __init__(
        self,
        files: Files,
        size: tuple[int, ...],
        *,
        channels: int = 3,
        on_error: Policy = "stop",
        memory_gb: float = 2.0,
        deep: Deep = "scale",
        workers: int | None = None,
    ):
        check_crop(size, channels)
        self.files, self.size, self.channels = files, size, channels
        self.on_error: Policy = on_error
        self.deep: Deep = deep
        self.workers = workers or os.cpu_count() or 1
        self.skipped: dict[str, str] = {}
        self.memory: np.ndarray | None = None
        self.spec = DataSpec.pixels(size, channels, files.classes)
        if len(files.names) * channels * size[0] * size[1] <= memory_gb * 2**30:
            self._decode_all()
        else:
            self._check_all()

    def look(self, index: int) -> Item | Unreadable:
        """See `Source`."""
        if self.memory is not None:
            return self.memory[index], self._beside(index)
        try:
            with self.files.open(index) as file:
                return pixels(file, self.size, self.channels, self.deep), self._beside(index)
        except UNREADABLE as error:
            return Unreadable(_reason(error))

    def all_labels(self) -> np.ndarray:
        """See `Source`."""
        return np.asarray(self.files.labels, dtype=np.int64)

    def name(self, index: int) -> str:
        """The file, or the row of a table."""
        return self.files.names[index]

    def file_facts(self, index: int) -> FileFacts | None:
        """See `Source`."""
        try:
            with self.files.open(index) as file, Image.open(file) as image:
                orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
                size = (image.height, image.width) if orientation < 5 else (image.width, image.height)
                return FileFacts(f"{image.format} {image.mode}", size, orientation in range(2, 9))
        except UNREADABLE:
            return None

    def _beside(self, index: int) -> dict[str, Any]:
        """What comes with an image."""
        return {"labels": np.int64(self.files.labels[index])} if self.spec.classes else {}

    def _check_ends(self, index: int) -> Unreadable | None:
        """Why an image cannot be opened, or is incomplete, as far as its header and its end tell."""
        try:
            with self.files.open(index) as file:
                with open_image(file, self.deep) as image:
                    end = ENDS.get(image.format or "")
                file.seek(0, os.SEEK_END)
                file.seek(max(0, file.tell() - 4096))
                whole = end is None or end in file.read()
        except UNREADABLE as error:
            return Unreadable(_reason(error))
        if whole:
            return None
        found = self.look(index)  # some decoders accept files that lack their last bytes
        return found if isinstance(found, Unreadable) else None

    def _decode_all(self) -> None:
        count = len(self.files.names)
        memory = np.empty((count, self.channels, *self.size), dtype=np.uint8)
        bad: dict[int, str] = {}
        for i, found in enumerate(self._all(self.look, "decoding images")):
            if isinstance(found, Unreadable):
                bad[i] = found.reason
            else:
                memory[i] = found[0]
        self.memory = np.delete(memory, list(bad), 0) if bad else memory
        self._drop(bad)

    def _check_all(self) -> None:
        """The result is cached: checking a million files takes minutes, and every start and every process needs it."""

        def check() -> dict[str, str]:
            results = enumerate(self._all(self._check_ends, "checking images"))
            return {str(i): result.reason for i, result in results if result is not None}

        known = f"looked at {self.files.state()} {self.files.stamp()} {self.channels} {self.deep} {self.size}"
        self._drop({int(i): reason for i, reason in cached(known, check).items()})

    def _all(self, function: Callable[[int], Result], what: str) -> Iterable[Result]:
        """The function applied to every image, in order; in blocks, as a million waiting jobs would take gigabytes."""
        count = len(self.files.names)
        blocks = [range(first, min(first + BLOCK, count)) for first in range(0, count, BLOCK)]
        with ThreadPoolExecutor(self.workers) as pool, Progress(transient=True, disable=count < 2000) as progress:
            task = progress.add_task(what, total=count)
            for results in pool.map(lambda block: [function(i) for i in block], blocks):
                progress.advance(task, len(results))
                yield from results

    def _drop(self, bad: dict[int, str]) -> None:
        """Stop at unreadable files, or leave them out, as on_error says."""
        if not bad:
            return
        reasons = {self.files.names[i]: reason for i, reason in bad.items()}
        if self.on_error == "stop" or len(bad) == len(self.files.names):
            shown = "".join(f"\n  {name}: {reason}" for name, reason in list(reasons.items())[:10])
            more = f"\n  and {len(bad) - 10} more" if len(bad) > 10 else ""
            raise ValueError(
                f"{len(bad)} of {len(self.files.names)} images of {self.files.place} cannot be decoded; repair or "
                f"remove them, or leave them out with --data-options.on-error skip:{shown}{more}"
            )
        self.skipped = reasons
        self.files = self.files.without(bad)

    def __len__(self) -> int:
        return len(self.files.names)

    def __getitem__(self, index: int, /) -> Item:
        for offset in range(len(self)):  # skipping takes the next readable one, the same whenever it is asked for
            i = (index + offset) % len(self)
            found = self.look(i)
            if not isinstance(found, Unreadable):
                return found
            if self.on_error == "stop":
                raise UnreadableSample(f"{self.name(i)} of {self.files.place} cannot be decoded: {found.reason}")
            self.skipped[self.name(i)] = found.reason
        raise UnreadableSample(f"no image of {self.files.place} can be decoded")

    def describe(self) -> str:
        """See `Source`."""
        labels = f"{len(self.spec.classes)} classes" if self.spec.classes else "no labels"
        empty = len(self.spec.classes) - len(set(self.files.labels)) if self.spec.classes else 0
        labels += f" ({empty} of them empty)" if empty else ""
        kept = "in memory" if self.memory is not None else "read as needed"
        skipped = f"; {len(self.skipped)} unreadable, skipped" if self.skipped else ""
        size = "x".join(map(str, self.size))
        found = f"{len(self):,} images from {self.files.place}, cropped to {size}, {labels}, {kept}"
        return f"{found}{skipped}{self.files.remark}"

    def fingerprint(self) -> str:
        """See `Source`."""
        return hashlib.sha256(f"{self.spec.text()} {self.deep} {self.files.stamp()}".encode()).hexdigest()[:16]


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__
