"""`jit convert`."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from justimage.commands.console import say
from justimage.commands.main import DONE
from justimage.disk.hold import held, is_empty
from justimage.weights.load import check_exists, read
from justimage.weights.official import OFFICIAL_FILES, check_official_name, lost_in_official, save_official


@dataclass(frozen=True)
class Convert:
    """Convert weights: an official .pth or .safetensors to a weights folder, or anything to one of these.

    Adapters (RUN/adapters/NAME) are merged with their base. What the official layout has no place for is said.
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
        check_exists(self.source)
        official = self.target.suffix in OFFICIAL_FILES
        if not official and self.target.suffix[1:].isalpha():  # a file of some kind is meant
            check_official_name(self.target)
        with held(self.target.parent, only=self.target.name) if official else held(self.target):
            model = read(
                self.source,
                weights=self.weights,
                context_start=self.context_start,
                base=self.base,
                allow_non_finite=self.allow_non_finite,
            )
            if official:
                save_official(model, self.target)
            else:
                model.save_pretrained(self.target)
        say(f"wrote {self.target}")
        lost = lost_in_official(model, self.target) if official else []
        if lost:
            say(f"the official layout has no place for what {self.source} says of {'; '.join(lost)}")
        return DONE
