"""The commands `jit data inspect` and `jit data pack`."""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from justimage.commands.console import DONE, FAILED, INTERRUPTED, console
from justimage.commands.inspection import as_json, inspect, sheet, table
from justimage.data.packed import Unfinished, pack
from justimage.data.sources import DataOptions, open_source
from justimage.data.spec import Source
from justimage.disk import write_text
from justimage.sampling.pictures import save


def _size(size: tuple[int, ...]) -> tuple[int, ...]:
    """One number means a square."""
    return size * 2 if len(size) == 1 else size


@dataclass(frozen=True)
class Inspect:
    """Show what training would see: a table, and a contact sheet after crop, scaling and flip."""

    path: tyro.conf.Positional[str]
    """Images (folder, .zip, .tar, WebDataset shards), a table (.parquet, .arrow, a Hugging Face id), arrays (.npy,
    .npz), fields (.nc, .zarr), a pack, or `mnist`."""
    size: tuple[int, ...] = (256,)
    """What images are cropped to: one number for a square, or height and width. Others have their own size."""
    channels: int = 3
    """Channels of images: 3 colour, 1 grey, 4 with transparency."""
    flip: bool = True
    """Mirror half of the images, as training does. Arrays and fields are not mirrored, unless training is told to."""
    at_most: int = 20_000
    """Of more samples than this, look at that many, evenly spread."""
    out: Path = Path("inspect")
    """Folder for contact-sheet.png and inspection.json. Files of the same name are replaced."""
    data_options: DataOptions = field(default_factory=DataOptions)

    def __call__(self) -> int:
        if self.at_most < 1:
            raise ValueError(f"at_most is {self.at_most}; it must be at least 1")
        source = open_source(self.path, _size(self.size), self.channels, self.data_options, only_look=True)
        try:
            self.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"{self.out} cannot be made: {error}") from error
        report = inspect(source, at_most=self.at_most)
        console.print(table(report), soft_wrap=False, markup=False)
        save(sheet(source, flip=self.flip and source.spec.image), self.out / "contact-sheet.png")
        write_text(self.out / "inspection.json", json.dumps(as_json(report), indent=2) + "\n")
        console.print(f"wrote {self.out}/contact-sheet.png and inspection.json", markup=False, soft_wrap=True)
        return DONE


@dataclass(frozen=True)
class Pack:
    """Decode and crop once, into a folder that is read at memory speed. The same command again goes on."""

    path: tyro.conf.Positional[str]
    """Anything with a length that `jit data inspect` takes."""
    size: tuple[int, ...] = (256,)
    """What images are cropped to: one number for a square, or height and width. Others have their own size."""
    channels: int = 3
    """Channels of images: 3 colour, 1 grey, 4 with transparency."""
    out: Path | None = None
    """The pack, a folder; by default the name of the data with the size and -pack."""
    workers: Annotated[int, tyro.conf.arg(aliases=["-j"])] = field(default_factory=lambda: os.cpu_count() or 1)
    """Threads that decode; by default one for each core."""
    shard_mb: int = 512
    """Size of a shard, in MB: what is lost when it is interrupted."""
    data_options: DataOptions = field(default_factory=DataOptions)

    def __call__(self) -> int:
        if self.workers < 1 or self.shard_mb < 1:
            raise ValueError(f"workers ({self.workers}) and shard_mb ({self.shard_mb}) must be at least 1")
        size = _size(self.size)
        source = open_source(self.path, size, self.channels, self.data_options, decode_ahead=False)
        if not isinstance(source, Source):
            raise ValueError(f"{self.path} is a stream without a length; download it, and pack the files")
        console.print(source.describe(), markup=False, soft_wrap=True)
        name = Path(self.path).name.partition(".")[0] or "data"
        out = self.out or Path(f"{name}-{'x'.join(map(str, source.spec.size))}-pack")
        try:
            packed = pack(source, out, workers=self.workers, shard_mb=self.shard_mb)
        except Unfinished as error:
            console.print(str(error), markup=False, soft_wrap=True)
            return FAILED
        except KeyboardInterrupt:
            console.print(f"stopped; the same command goes on with {out}", markup=False, soft_wrap=True)
            return INTERRUPTED
        console.print(packed.describe(), markup=False, soft_wrap=True)
        console.print(f"train on it with: jit train RECIPE --data {out}", markup=False, soft_wrap=True)
        return DONE
