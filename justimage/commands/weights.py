"""`jit weights`: weights made of what a run has kept."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from justimage.commands.console import bars, interruptible, say
from justimage.commands.line import parse
from justimage.commands.main import DONE
from justimage.runs.snapshots import Reconstructed, reconstruct
from justimage.weights.folder import RECIPE, is_run

ROUGH = 0.05  # of the profile's norm


@dataclass(frozen=True)
class Posthoc:
    """Make the average of any relative std from the snapshots of a run, after training (arXiv 2312.02696).

    A run that is trained with --training.ema-stds 0.05 0.1 leaves snapshots. Writes weights/posthoc-0.100 and
    the like, which sample, evaluate and sweep take by --weights posthoc-0.100, like any other of the run.
    """

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """A run folder."""
    std: Annotated[tuple[float, ...], tyro.conf.arg(metavar="STD [STD ...]")] = ()
    """Relative stds: how far the averages reach back, as a share of the run up to nimg; 0.05 to 0.2 are usual."""
    nimg: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """At which time; that of the last snapshot by default."""

    def __call__(self) -> int:
        if not is_run(self.run):
            raise ValueError(f"{self.run} is not a run: it has no {RECIPE}")
        if not self.std:
            raise ValueError("give --std: one or more numbers, for example --std 0.1")
        for std in self.std:
            with bars() as progress:
                what = f"std {std}"
                made = reconstruct(
                    self.run,
                    std,
                    self.nimg,
                    progress=lambda done, total, what=what, progress=progress: progress(done, total, what),
                )
            say(_said(self.run, std, made))
        return DONE


def _said(run: Path, std: float, made: Reconstructed) -> str:
    error = made.found.error
    rough = "; keep snapshots more often (--report.snapshot-nimg), or of a std nearer to it" if error > ROUGH else ""
    return (
        f"wrote {run / 'weights' / made.name}: std {std} at nimg = {made.nimg:,}, of {made.used} snapshots; how it "
        f"weighs the run is {error:.2g} off, as a share of the norm{rough}\n"
        f"draw with: jit sample {run} --weights {made.name}"
    )


def posthoc(arguments: list[str]) -> int:
    """Run `jit weights posthoc`; returns the exit code."""
    interruptible()
    return parse(Posthoc, arguments, "jit weights posthoc")()
