"""Samples to files, as they are drawn: one batch in memory, whatever the count, and what is written stays."""

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image
from torch import Tensor

from justimage import __version__
from justimage.data.fields import xarray_library
from justimage.data.spec import DataSpec
from justimage.denoiser import Denoiser
from justimage.disk import GrowingArray, write_text
from justimage.sampling.fields_file import FieldsFile
from justimage.sampling.generate import Samples
from justimage.sampling.pictures import grid, save

SHEET_ROWS = SHEET_COLUMNS = 10


class Writer(Protocol):
    """Takes batches of samples, one after the other."""

    count: int
    """Samples written so far."""

    def add(self, batch: Samples) -> None:
        """Write a batch."""
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
        self.folder, self.model, self.count = folder, model, 0

    def add(self, batch: Samples) -> None:
        for raw, seed, label in zip(batch.raw, batch.seeds, batch.labels, strict=True):
            save(plain_image(raw), self.folder / f"{file_stem(self.model, label)}seed{seed:04d}.png")
            self.count += 1

    def close(self) -> None:
        pass

    def describe(self) -> str:
        return f"{self.count} PNGs"


class _Arrays:
    """One array of raw values, and one of labels if there are any."""

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.count, self.labels, self.shape = folder, 0, [], ()
        self.beside = folder / f".samples.npy.{os.getpid()}"
        self.array = GrowingArray(self.beside)

    def add(self, batch: Samples) -> None:
        self.array.append(batch.raw.numpy())
        self.labels += batch.labels
        self.count, self.shape = self.array.count, tuple(batch.raw.shape[1:])

    def close(self) -> None:
        self.array.close()
        if not self.count:
            self.beside.unlink()
            return
        self.beside.rename(self.folder / "samples.npy")
        labels = self.folder / "labels.npy"
        labels.unlink(missing_ok=True)  # of other samples
        if min(self.labels) >= 0:
            np.save(labels, np.array(self.labels))

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


def file_stem(model: Denoiser, label: int) -> str:
    """The class in a file's name: its name if that is valid and unique there, else with its number."""
    if label < 0:
        return ""
    classes = model.spec.classes if model.spec is not None else ()
    if label >= len(classes):
        return "none-" if classes else f"{label}-"
    name = _safe(classes[label])
    alike = name != classes[label] and sum(_safe(each) == name for each in classes) > 1
    return f"{name}-{label}-" if alike else f"{name}-"


def _safe(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-_" else "-" for c in name)


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
        save(_grid(self.kept, spec, columns, self.titles[:SHEET_ROWS]), path)


def _grid(samples: list[Tensor], spec: DataSpec, columns: int, titles: Sequence[str]) -> Image.Image:
    import torch

    return grid(torch.stack(samples), spec, columns, row_titles=titles)


def write_facts(folder: Path, facts: dict[str, Any], seeds: Sequence[int], labels: Sequence[int] | None) -> None:
    """samples.json: how the samples in a folder were drawn. It also marks the folder as output, not data."""
    drawn = {
        "count": len(seeds),
        "seeds": list(seeds),
        "labels": None if labels is None else list(labels[: len(seeds)]),
    }
    write_text(folder / "samples.json", json.dumps({"justimage": __version__, **facts, **drawn}) + "\n")
