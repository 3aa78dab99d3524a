"""`jit convert`."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from justimage.commands.console import say
from justimage.commands.main import DONE
from justimage.disk.hold import held, is_empty
from justimage.weights.adapters import holds_adapters
from justimage.weights.load import read
from justimage.weights.official import check_official_name, load_official, save_official


@dataclass(frozen=True)
class Convert:
    """Convert weights: an official .pth or .safetensors to a weights folder, or a weights folder to one of these.

    Adapters (RUN/adapters/NAME) become a weights folder, merged with their base.
    """

    source: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="SOURCE")]
    """An official checkpoint; a run or weights folder; or a folder of adapters."""
    target: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="TARGET")]
    """A weights folder to make; or a .pth or .safetensors in the official layout."""
    weights: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    """Which weights of the source: ema1 (default), ema2 or model of a .pth; ema-0.9999 or raw of a run."""
    context_start: Annotated[int | None, tyro.conf.arg(metavar="BLOCK")] = None
    """In-context start block of an official checkpoint that does not record it (4, 8, 10, 10 in B, L, H, G)."""

    base: Annotated[Path | None, tyro.conf.arg(metavar="WEIGHTS")] = None
    """The weights that adapters are for, where they are no longer where they were."""
    allow_non_finite: tyro.conf.FlagCreatePairsOff[bool] = False
    """Take weights that hold NaN or infinity, which draw nothing."""

    def __call__(self) -> int:
        if os.path.lexists(self.target) and not (self.target.is_dir() and is_empty(self.target)):
            raise ValueError(f"{self.target} exists, and is not overwritten")
        if holds_adapters(self.source):
            with held(self.target):
                read(self.source, base=self.base, allow_non_finite=self.allow_non_finite).save_pretrained(self.target)
        elif self.source.is_file():
            with held(self.target):
                model = load_official(
                    self.source, self.weights, self.context_start, allow_non_finite=self.allow_non_finite
                )
                model.save_pretrained(self.target)
        else:
            check_official_name(self.target)
            with held(self.target.parent, only=self.target.name):
                model = read(self.source, weights=self.weights, allow_non_finite=self.allow_non_finite, base=self.base)
                save_official(model, self.target)
        say(f"wrote {self.target}")
        return DONE
