"""The commands `jit data inspect` and `jit data pack`."""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from justimage.commands.console import console, interruptible, say
from justimage.commands.inspection import as_json, inspect, sheet, table
from justimage.commands.main import DONE, FAILED, INTERRUPTED
from justimage.data.array_files import ARRAY_FILES
from justimage.data.containers import IMAGES, holds, written_by_justimage
from justimage.data.packing import Unfinished, check_place, pack
from justimage.data.sources import DataOptions, open_source
from justimage.disk.hold import held
from justimage.disk.whole import write_text
from justimage.sampling.pictures import save

SHEET = "contact-sheet.png"


@dataclass(frozen=True)
class Inspect:
    """Show what training would see: a table, and a contact sheet after cropping, scaling and mirroring."""

    path: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="PATH")]
    """Images (folder, .zip, .tar, WebDataset shards), a table (.parquet, .arrow, a Hugging Face id), arrays (.npy,
    .npz), fields (.nc, .zarr), a pack, or `mnist`."""
    size: Annotated[tuple[int, ...], tyro.conf.arg(metavar="LENGTH [LENGTH]")] = (256,)
    """What images are cropped to: one number for a square, or height and width. Others have their own size."""
    channels: Annotated[int, tyro.conf.arg(metavar="N")] = 3
    """Channels of images: 3 colour, 1 grey, 4 with transparency."""
    mirror: Literal["auto", "on", "off"] = "auto"
    """Mirror half of the samples, as training does. auto: 8-bit images, as if all were photographs."""
    at_most: Annotated[int, tyro.conf.arg(metavar="N")] = 20_000
    """Look at no more samples than this, evenly spread."""
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")] = Path("inspect")
    """Folder for contact-sheet.png and inspection.json. Files of the same name are replaced."""
    data_options: DataOptions = field(default_factory=DataOptions)

    def __call__(self) -> int:
        interruptible()
        if self.at_most < 1:
            raise ValueError(f"at_most is {self.at_most}; it must be at least 1")
        _check_out(self.out)
        with held(self.out):
            return self._look()

    def _look(self) -> int:
        """Look at the data and write what was found, in a folder that is held."""
        source = open_source(self.path, self.size, self.channels, self.data_options, only_look=True)
        report = inspect(source, at_most=self.at_most)
        console.print(table(report), soft_wrap=False, markup=False)
        save(sheet(source, mirror=None if self.mirror == "auto" else self.mirror == "on"), self.out / SHEET)
        write_text(self.out / "inspection.json", json.dumps(as_json(report), indent=2) + "\n")
        say(f"wrote {self.out}/{SHEET} and inspection.json")
        return DONE


def _check_out(out: Path) -> None:
    """Raises ValueError for a folder of data: what is written there would be taken for a sample the next time."""
    if out.is_dir() and not written_by_justimage(out) and holds(out, IMAGES | ARRAY_FILES, besides=SHEET):
        raise ValueError(
            f"{out} holds images or arrays, and a contact sheet beside them would become one of them; "
            "choose another folder with --out"
        )


@dataclass(frozen=True)
class Pack:
    """Decode and crop once, into a folder that is read at memory speed. The same command again resumes."""

    path: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="PATH")]
    """Anything with a length that `jit data inspect` takes; whole samples, without conditions of their own."""
    size: Annotated[tuple[int, ...], tyro.conf.arg(metavar="LENGTH [LENGTH]")] = (256,)
    """What images are cropped to: one number for a square, or height and width. Others have their own size."""
    channels: Annotated[int, tyro.conf.arg(metavar="N")] = 3
    """Channels of images: 3 colour, 1 grey, 4 with transparency."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """The pack, a folder; by default the name of the data with the size and -pack."""
    workers: Annotated[int, tyro.conf.arg(aliases=["-j"], metavar="N")] = field(
        default_factory=lambda: os.cpu_count() or 1
    )
    """Threads that decode; by default one for each core."""
    shard_mb: Annotated[int, tyro.conf.arg(metavar="MB")] = 512
    """Size of a shard in MB. An interruption loses the work on one shard."""
    data_options: DataOptions = field(default_factory=DataOptions)

    def __call__(self) -> int:
        interruptible()
        if self.workers < 1 or self.shard_mb < 1:
            raise ValueError(f"workers ({self.workers}) and shard_mb ({self.shard_mb}) must be at least 1")
        size = self.size
        if min(size) < 1:
            raise ValueError(f"size is {' x '.join(map(str, size))}; every length must be at least 1")
        if self.out is not None:
            check_place(self.out)
        source = open_source(self.path, size, self.channels, self.data_options, decode_ahead=False)
        if source.indexed is False:
            raise ValueError(f"{self.path} is a stream without a length; download it, and pack the files")
        say(source.describe())
        name = Path(self.path).name.partition(".")[0] or "data"
        out = self.out or Path(f"{name}-{'x'.join(map(str, source.spec.size))}-pack")
        try:
            packed = pack(source, out, workers=self.workers, shard_mb=self.shard_mb)
        except Unfinished as error:
            say(str(error))
            return FAILED
        except KeyboardInterrupt:
            say(f"interrupted; the same command resumes {out}")
            return INTERRUPTED
        say(packed.describe())
        say(f"train on it with: jit train RECIPE --data {out}")
        return DONE
