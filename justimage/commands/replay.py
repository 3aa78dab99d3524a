"""`jit replay`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from justimage.commands.console import bars, interruptible, say
from justimage.commands.judging import reference_data
from justimage.commands.line import parse
from justimage.commands.main import DONE
from justimage.data.sources import open_source
from justimage.execution import find_device
from justimage.parallel import Processes
from justimage.runs.folder import read_facts
from justimage.runs.record import nearest_run
from justimage.runs.replay import Found, Sample, check_step, recipe_of, replay
from justimage.weights.folder import RECIPE

SHOWN = 8  # samples


@dataclass(frozen=True)
class Replay:
    """Run one training step of a run again, with every module watched: which sample is the first that is not finite,
    in which module, and what autograd's anomaly detection says.

    The newest state before it is loaded and trained up to the step, which may take as long as it did. Nothing is
    written. The steps that a run has skipped are lines of its skipped.jsonl.
    """

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """A run folder."""
    nimg: Annotated[tyro.conf.Positional[int], tyro.conf.arg(metavar="NIMG")]
    """Where the step begins."""
    data: Annotated[str | None, tyro.conf.arg(metavar="PATH")] = None
    """Where the data of the run are now, if they have moved."""
    microbatch: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """Samples taken at once; by default as many as the run takes, whose processes may have shared the batch."""
    device: Annotated[str | None, tyro.conf.arg(metavar="DEVICE")] = None
    """cpu, cuda, ...; the accelerator by default, if there is one."""


def main(arguments: Sequence[str]) -> int:
    """Replay; returns the exit code."""
    asked = parse(Replay, arguments, "jit replay")
    interruptible()
    facts = read_facts(nearest_run(asked.run))
    assert facts is not None
    recipe = recipe_of(facts, str(asked.run / RECIPE))
    check_step(recipe.training, asked.run, asked.nimg)
    reading = reference_data(str(asked.run), asked.data, recipe.data_options)
    network = recipe.network
    source = open_source(reading.path, network.size, network.channels, recipe.data_options)
    with bars() as progress:
        found = replay(
            asked.run,
            asked.nimg,
            source,
            processes=Processes(device=find_device(asked.device)),
            microbatch=asked.microbatch,
            progress=progress,
        )
    say("\n".join(_lines(found)))
    return DONE


def _lines(found: Found) -> list[str]:
    """What was found, for the user."""
    start = f"the state at nimg = {found.began_at:,}" if found.began_at else "the start of the run"
    lines = [
        f"the step at nimg = {found.nimg:,}, from {start}: loss {found.loss:.4g}, gradient norm {found.grad_norm:.4g}"
    ]
    if found.finite:
        return [
            *lines,
            "all of it is finite here: on this device, in this precision, with the settings that the run had there",
        ]
    if found.place:
        lines.append(f"not finite first in: {found.place}")
    elif found.parameters:
        shown = ", ".join(found.parameters[:SHOWN])
        lines.append(f"all values and their gradients are finite; the gradients of these parameters are not: {shown}")
    else:
        lines.append("all values and gradients are finite; the norm of the gradient is not: the gradient is too large")
    lines += [_said(each) for each in found.samples[:SHOWN]]
    if len(found.samples) > SHOWN:
        lines.append(f"  and {len(found.samples) - SHOWN} more samples")
    if not found.samples:
        lines.append("  no sample alone: only their sum is not finite")
    if found.operation:
        lines.append(f"anomaly detection: {found.operation}")
    return lines


def _said(sample: Sample) -> str:
    y = "".join(f", {name} {value:g}" for name, value in sample.y.items())
    return (
        f"  {sample.name} (index {sample.index}, position {sample.position}{y}): loss {sample.loss:.4g}, raw values "
        f"from {sample.least:g} to {sample.most:g}"
    )
