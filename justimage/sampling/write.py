"""Samples to files, as they are drawn: one batch in memory, whatever the count, and what is written stays."""

import contextlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from justimage import __version__
from justimage.data.spec import DataSpec
from justimage.data.stores import xarray_library
from justimage.denoiser import Denoiser
from justimage.disk.growing import GrowingArray
from justimage.disk.whole import check_room, put, temporary, write_text
from justimage.sampling.fields_file import FieldsFile
from justimage.sampling.generate import Samples
from justimage.sampling.pictures import grid, save

SHEET_ROWS = SHEET_COLUMNS = 10
BLOCK = 4096  # bytes: a file takes a whole number of these
LONGEST = 100  # bytes of a class in a file's name


class Writer(Protocol):
    """Takes batches of samples, one after the other."""

    count: int
    """Samples written so far."""

    def add(self, batch: Samples) -> None:
        """Write a batch. Raises OSError where that fails; what was written before stays."""
        ...

    def close(self) -> None:
        """Finish: what was written takes its name."""
        ...

    def describe(self) -> str:
        """What was written, for the user."""
        ...


class _Images:
    """One PNG for each sample."""

    def __init__(self, folder: Path, model: Denoiser):
        self.folder, self.count = folder, 0
        classes = model.spec.classes if model.spec is not None else ()
        self.names = FileNames(classes)

    def add(self, batch: Samples) -> None:
        check_room(self.folder, batch.raw.nbytes + 2 * BLOCK * len(batch.raw), self.folder)
        for raw, seed, label in zip(batch.raw, batch.seeds, batch.labels, strict=True):
            save(plain_image(raw), self.folder / self.names.next(label, seed))
            self.count += 1

    def close(self) -> None:
        pass

    def describe(self) -> str:
        return f"{self.count} PNGs"


class _Arrays:
    """One array of raw values, and one of labels if there are any."""

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        self.count, self.shape, self.labelled = 0, (), False
        self.paths = folder / "samples.npy", folder / "labels.npy"
        for path in self.paths:
            _check_no_folder(path)
        self.arrays = [GrowingArray(temporary(path)) for path in self.paths]

    def add(self, batch: Samples) -> None:
        check_room(self.paths[0].parent, batch.raw.nbytes + 2 * BLOCK, self.paths[0])
        rows, labels = self.arrays
        labels.append(np.array(batch.labels))
        rows.append(batch.raw.numpy())
        self.count, self.shape, self.labelled = rows.count, tuple(batch.raw.shape[1:]), min(batch.labels) >= 0

    def close(self) -> None:
        for array, path in zip(self.arrays, self.paths, strict=True):
            with contextlib.closing(array):
                array.cut(self.count)
            if not self.count:
                array.path.unlink()
            elif array is self.arrays[0] or self.labelled:
                put(array.path, path)
            else:
                array.path.unlink()
                path.unlink(missing_ok=True)  # of other samples

    def describe(self) -> str:
        return f"samples.npy {(self.count, *self.shape)}"


@contextlib.contextmanager
def writer(form: str, folder: Path, model: Denoiser) -> Iterator[Writer]:
    """A writer of png, npy, nc or zarr into a folder. However the block ends, what was added is kept."""
    writing: Writer
    if form == "png":
        writing = _Images(folder, model)
    elif form == "npy" or model.spec is None:
        writing = _Arrays(folder)
    else:
        writing = FieldsFile(folder / f"samples.{form}", model.spec)
    try:
        yield writing
    finally:
        writing.close()


def file_format(asked: str, spec: DataSpec | None) -> str:
    """png, npy, nc or zarr. Raises ValueError where the samples cannot be written in it."""
    pixels = spec is not None and spec.image and len(spec.channels) in (1, 3, 4)
    if asked == "png" and not pixels:
        raise ValueError("these samples are not 8-bit images; write them with --format npy, nc or zarr")
    if asked in ("nc", "zarr") and spec is None:
        raise ValueError("these weights do not say what their values mean; write them with --format npy")
    if asked == "auto":
        asked = "png" if pixels else "npy" if spec is None or spec.origin is None else "nc"
    if asked in ("nc", "zarr"):
        xarray_library()  # raises now, not after the sampling
    return asked


class FileNames:
    """Names of PNGs: no two samples get the same, whatever the classes are called and however often a seed comes.

    CLASS-seed0007.png, and CLASS-seed0007-1.png for the second sample of this class and seed.
    """

    def __init__(self, classes: Sequence[str]):
        self.classes = _stems(classes)
        self.seen: Counter[tuple[int, int]] = Counter()

    def next(self, label: int, seed: int) -> str:
        """The name of the next sample with this label (-1: none) and seed."""
        times = self.seen[label, seed]
        self.seen[label, seed] += 1
        number = self.classes[min(label, len(self.classes) - 1)] if self.classes else str(label)
        return ("" if label < 0 else f"{number}-") + f"seed{seed:04d}" + (f"-{times}" if times else "") + ".png"


def _stems(classes: Sequence[str]) -> list[str]:
    """What files call each class, and last the label that means none: its name where it is valid, else with its number.

    No two are alike, also where the disk takes capitals and small letters for the same.
    """
    if not classes:
        return []
    names = [*classes, "none"]
    safe = [_safe(name) for name in names]
    alike = Counter(name.casefold() for name in safe)
    first = {name.casefold(): i for i, name in reversed([*enumerate(names)]) if _safe(name) == name}
    stems = {i: safe[i] for i in first.values()}
    taken = {stem.casefold() for stem in stems.values()}
    for i, stem in enumerate(safe):
        if i in stems:
            continue
        if alike[stem.casefold()] > 1:
            stem += f"-{i}"
        while stem.casefold() in taken:
            stem += f"-{i}"
        taken.add(stem.casefold())
        stems[i] = stem
    return [stems[i] for i in range(len(names))]


def _safe(name: str) -> str:
    """A name as part of a file's name: short, and without what a disk or a shell takes for something else."""
    plain = "".join(c if c.isalnum() or c in "-_" else "-" for c in name)
    return plain.encode(errors="replace")[:LONGEST].decode(errors="ignore")


def _check_no_folder(path: Path) -> None:
    """Raises ValueError where a folder has the name of a file that will be written."""
    if path.is_dir() and not path.is_symlink():
        raise ValueError(f"{path} is a folder, and would be replaced by a file; choose another folder with --out")


def plain_image(sample: Tensor) -> Image.Image:
    """A raw 8-bit sample (C, h, w) as a PIL image of its own size."""
    pixels = sample.numpy()
    return Image.fromarray(pixels[0] if len(pixels) == 1 else np.ascontiguousarray(np.moveaxis(pixels, 0, -1)))


class Sheet:
    """The first samples of each row, for a grid: at most ten by ten, whatever the count."""

    def __init__(self, each: int, titles: Sequence[str]):
        self.each, self.titles, self.seen = each, titles, 0
        self.kept: list[Tensor] = []

    def add(self, raw: Tensor) -> None:
        """Keep what the grid will show of a batch (B, C, *S)."""
        for sample in raw:
            row, place = divmod(self.seen, max(self.each, 1)) if self.titles else divmod(self.seen, SHEET_COLUMNS)
            if row < SHEET_ROWS and place < SHEET_COLUMNS:
                self.kept.append(sample.clone())
            self.seen += 1

    def save(self, path: Path, spec: DataSpec) -> None:
        """Write the grid: a row for each class; without classes, rows of ten."""
        columns = min(self.each if self.titles else len(self.kept), SHEET_COLUMNS)
        save(grid(torch.stack(self.kept), spec, columns, row_titles=self.titles[:SHEET_ROWS]), path)


FACTS = "samples.json"


def write_facts(folder: Path, facts: dict[str, Any], seeds: Sequence[int], labels: Sequence[int] | None) -> None:
    """samples.json: how the samples in a folder were drawn. It also marks the folder as output, not data."""
    drawn = {
        "count": len(seeds),
        "seeds": list(seeds),
        "labels": None if labels is None else list(labels[: len(seeds)]),
    }
    write_text(folder / FACTS, json.dumps({"justimage": __version__, **facts, **drawn}) + "\n")
