"""`jit plot`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from justimage.commands.console import interruptible, say
from justimage.commands.line import parse
from justimage.commands.main import DONE
from justimage.evaluation.plots import pyplot
from justimage.runs.curves import draw_curves
from justimage.runs.record import nearest_run, read_run


@dataclass(frozen=True)
class Plot:
    """Draw the curves of runs side by side, as a PNG: loss, held-out loss, loss by time, gradient, rate, speed, scores.

    Nothing of a run is changed; a running one is drawn as far as it is.
    """

    runs: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="RUN [RUN ...]")]
    """Run folders."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """The picture; by default curves.png in the run, or ./curves.png for several."""


def main(arguments: Sequence[str]) -> int:
    """Draw; returns the exit code."""
    asked = parse(Plot, arguments, "jit plot")
    interruptible()
    if not asked.runs:
        raise ValueError("give one RUN or more: folders of runs; `jit runs` lists them")
    pyplot()  # raises now, not after the reading
    records = [read_run(nearest_run(run)) for run in dict.fromkeys(asked.runs)]
    if not any(record.ticks for record in records):
        raise ValueError(f"{records[0].folder} has logged nothing yet; there is nothing to draw")
    out = asked.out or (records[0].folder / "curves.png" if len(records) == 1 else Path("curves.png"))
    if out.suffix.lower() != ".png":
        raise ValueError(f"--out {out}: the picture is a PNG; give a name that ends in .png")
    draw_curves(records, out)
    say(f"wrote {out}")
    return DONE
