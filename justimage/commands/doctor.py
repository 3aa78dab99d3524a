"""`jit doctor`."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import tyro

from justimage.commands.console import console, interruptible, say
from justimage.commands.line import parse
from justimage.commands.main import DONE
from justimage.runs.doctor import diagnose
from justimage.runs.findings import HEALTHY, Diagnosis
from justimage.runs.record import Record, nearest_run, read_run


@dataclass(frozen=True)
class Doctor:
    """Name what ails a run, running or not, from what it has recorded: causes, evidence, and what to do.

    The first finding is the verdict. Nothing is written, and a running run goes on.
    """

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """A run folder, such as runs/mnist-demo; `jit runs` lists them."""
    json: tyro.conf.FlagCreatePairsOff[bool] = False
    """Print the findings as JSON."""


def main(arguments: Sequence[str]) -> int:
    """Diagnose; returns the exit code."""
    asked = parse(Doctor, arguments, "jit doctor")
    interruptible()
    record = read_run(nearest_run(asked.run))
    found = diagnose(record)
    if asked.json:
        facts = {"run": str(record.folder), "state": record.state, "nimg": record.nimg, "verdict": found.verdict}
        print(json.dumps({**facts, **asdict(found)}, indent=2))
    else:
        show(record, found)
    return DONE


def show(record: Record, found: Diagnosis) -> None:
    """Print a diagnosis: the verdict, and each finding with its evidence and advice."""
    say(f"{record.folder}: {record.state}, {record.nimg:,} of {record.total:,} images")
    so_far = " so far" if found.early and found.verdict == HEALTHY else ""
    console.print(f"verdict: {found.verdict}{so_far}\n", style="bold", markup=False)
    for number, finding in enumerate(found.findings, 1):
        console.print(f"{number}. {finding.cause}{' (a note)' if finding.note else ''}", style="bold", markup=False)
        for each in finding.evidence:
            say(f"   - {each}")
        say(f"   what to do: {finding.advice}\n")
    for remark in found.remarks:
        say(f"note: {remark}")
