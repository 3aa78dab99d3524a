"""Folders of images: found, labelled by their folders, cropped as in ADM, and kept in memory where they fit."""

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, UnidentifiedImageError
from rich.progress import track

from justimage.data.spec import DataSpec

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"})
MODES = {1: "L", 3: "RGB", 4: "RGBA"}
UNREADABLE = (OSError, SyntaxError, ValueError, UnidentifiedImageError, Image.DecompressionBombError)


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


class ImageFolder:
    """Images below a folder, centre-cropped to size (h, w).

    Folders directly below it are the classes (in its subfolder `train`, if its folders are train, val, test); images
    that lie in it directly have no labels. channels: 3 RGB, 1 grey, 4 RGBA; every image is converted.
    on_error: what an image that cannot be decoded does: "stop" with its name, or "skip" it and count.
    memory_gb: below this size all images are decoded at once into memory, so that every unreadable one is known
    before the first step; above it they are opened, but decoded only when their turn comes, and "skip" then takes
    the next readable one.

    Raises ValueError for a folder that does not exist, holds no images or both kinds, and for unreadable images.
    """

    def __init__(
        self,
        root: Path,
        size: tuple[int, ...],
        *,
        channels: int = 3,
        on_error: Literal["stop", "skip"] = "stop",
        memory_gb: float = 2.0,
        workers: int | None = None,
    ):
        if len(size) != 2:
            raise ValueError(f"images have 2 spatial axes, and the network has {len(size)}")
        if channels not in MODES:
            raise ValueError(f"images have 1, 3 or 4 channels, and the network has {channels}")
        self.root = _training_part(root)
        self.size, self.mode, self.on_error = size, MODES[channels], on_error
        self.workers = workers or os.cpu_count() or 1
        self.files, self.labels, classes = _scan(self.root)
        self.skipped: set[Path] = set()
        self.memory: np.ndarray | None = None
        self.spec = DataSpec.pixels(size, channels, classes)
        if len(self.files) * channels * size[0] * size[1] <= memory_gb * 2**30:
            self._decode_all(channels)
        else:
            self._open_all()

    def _read(self, path: Path) -> np.ndarray:
        """One file -> (C, h, w) uint8."""
        with Image.open(path) as image:
            if image.mode.startswith(("I", "F")):  # converting would clip them
                raise ValueError(f"it has more than 8 bits a channel ({image.mode}); save such data as a float .npy")
            pixels = centre_crop(image.convert(self.mode), self.size)
        return np.ascontiguousarray(np.moveaxis(pixels.reshape(*self.size, -1), -1, 0))

    def _try(self, path: Path) -> np.ndarray | Exception:
        try:
            return self._read(path)
        except UNREADABLE as error:
            return error

    def _try_open(self, path: Path) -> Exception | None:
        try:
            with Image.open(path):
                return None
        except UNREADABLE as error:
            return error

    def _decode_all(self, channels: int) -> None:
        memory = np.empty((len(self.files), channels, *self.size), dtype=np.uint8)
        bad: dict[int, Exception] = {}
        with ThreadPoolExecutor(self.workers) as pool:
            results = pool.map(self._try, self.files)
            for i, result in enumerate(_tracked(results, len(self.files), "decoding images")):
                if isinstance(result, Exception):
                    bad[i] = result
                else:
                    memory[i] = result
        self.memory = np.delete(memory, list(bad), 0) if bad else memory
        self._drop(bad)

    def _open_all(self) -> None:
        with ThreadPoolExecutor(self.workers) as pool:
            results = pool.map(self._try_open, self.files)
            opened = _tracked(results, len(self.files), "opening images")
            bad = {i: result for i, result in enumerate(opened) if result is not None}
        self._drop(bad)

    def _drop(self, bad: dict[int, Exception]) -> None:
        """Stop at unreadable files, or leave them out, as on_error says."""
        if not bad:
            return
        if self.on_error == "stop" or len(bad) == len(self.files):
            shown = "".join(f"\n  {self.files[i]}: {error}" for i, error in list(bad.items())[:10])
            more = f"\n  and {len(bad) - 10} more" if len(bad) > 10 else ""
            raise ValueError(
                f"{len(bad)} of {len(self.files)} images cannot be decoded; mend or remove them, or leave them out "
                f"with --data-options.on-error skip:{shown}{more}"
            )
        self.skipped = {self.files[i] for i in bad}
        self.files = [path for i, path in enumerate(self.files) if i not in bad]
        self.labels = [label for i, label in enumerate(self.labels) if i not in bad]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        if self.memory is not None:
            return self.memory[index], self.labels[index]
        for offset in range(len(self)):  # skipping takes the next readable one, the same whenever it is asked for
            i = (index + offset) % len(self)
            result = self._try(self.files[i])
            if not isinstance(result, Exception):
                return result, self.labels[i]
            if self.on_error == "stop":
                raise ValueError(f"{self.files[i]} cannot be decoded: {result}") from result
            self.skipped.add(self.files[i])
        raise ValueError(f"no image in {self.root} can be decoded")

    def describe(self) -> str:
        labels = f"{len(self.spec.classes)} classes" if self.spec.classes else "no labels (a flat folder)"
        kept = "in memory" if self.memory is not None else "read from disk as needed"
        skipped = f"; {len(self.skipped)} unreadable, skipped" if self.skipped else ""
        size = "x".join(map(str, self.size))
        return f"{len(self):,} images from {self.root}, cropped to {size}, {labels}, {kept}{skipped}"

    def fingerprint(self) -> str:
        digest = hashlib.sha256(f"{self.spec}".encode())
        for path, label in zip(self.files, self.labels, strict=True):
            digest.update(f"{path.relative_to(self.root)} {path.stat().st_size} {label}\n".encode())
        return digest.hexdigest()[:16]


def _training_part(root: Path) -> Path:
    """The folder itself, or its subfolder `train` where that stands beside other splits only, or alone.

    A class may be called train as well: bus, car, train.
    """
    splits = {"train", "val", "valid", "validation", "test"}
    if not (root / "train").is_dir():
        return root
    beside = {path.name.lower() for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")}
    return root / "train" if beside <= splits else root


def _tracked(results, total: int, what: str):
    return track(results, description=what, total=total, transient=True, disable=total < 2000)


def _scan(root: Path) -> tuple[list[Path], list[int], list[str]]:
    """Files, labels and class names below a folder, in sorted order."""
    if not root.is_dir():
        raise ValueError(f"{root} does not exist" if not root.exists() else f"{root} is not a folder")

    def images(folder: Path, pattern: str) -> list[Path]:
        return sorted(path for path in folder.glob(pattern) if path.suffix.lower() in SUFFIXES)

    flat = images(root, "*")
    folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    per_class = {folder.name: images(folder, "**/*") for folder in folders}
    classes = [name for name, files in per_class.items() if files]
    if flat and classes:
        raise ValueError(
            f"{root} holds {len(flat)} images and {len(classes)} folders of images; "
            "put all images into class folders, or all directly into it"
        )
    if flat:
        return flat, [-1] * len(flat), []
    if not classes:
        raise ValueError(f"{root} holds no images ({', '.join(sorted(SUFFIXES))})")
    files = [path for name in classes for path in per_class[name]]
    labels = [label for label, name in enumerate(classes) for _ in per_class[name]]
    return files, labels, classes
