"""What ails a run, in words: the usual causes, each with its evidence, from the recorded numbers alone.

A check is a pure function of a `Record` that gives a `Finding` or nothing. They are asked in the order of CHECKS,
causes before what follows from them, so that the first finding is the verdict. The thresholds are the fields of
`findings.Limits`, each with its reason.
"""

from collections.abc import Callable

from justimage.runs.data_checks import data_bound, labels_off, noise_scale, over_fitting, value_range
from justimage.runs.findings import LIMITS, Diagnosis, Finding
from justimage.runs.learning_checks import (
    average_too_long,
    dead_parts,
    exploding,
    flat_bin,
    not_finite,
    rate_too_high,
    rate_too_low,
)
from justimage.runs.readings import steps_of
from justimage.runs.record import Record

Check = Callable[[Record], Finding | None]

# Causes before what follows from them, and what spoils the result before what only takes time.
CHECKS: tuple[Check, ...] = (
    value_range,
    noise_scale,
    rate_too_high,
    not_finite,
    exploding,
    rate_too_low,
    labels_off,
    over_fitting,
    average_too_long,
    flat_bin,
    dead_parts,
    data_bound,
)


def diagnose(record: Record) -> Diagnosis:
    """What ails a run."""
    findings = [found for check in CHECKS if (found := check(record)) is not None]
    early = steps_of(record) < LIMITS.least_steps
    return Diagnosis(tuple(sorted(findings, key=lambda each: each.note)), tuple(_remarks(record)), early)


def _remarks(record: Record) -> list[str]:
    said = []
    if not record.ticks:
        said.append("no tick is logged yet: there is little to go by")
    elif steps_of(record) < LIMITS.least_steps:
        said.append(f"after {steps_of(record):,.0f} steps nothing can be said about learning yet")
    if not record.health:
        said.append("health.jsonl has no line yet (one comes at the end, or every report.health_nimg samples)")
    elif record.health[-1].data is None:
        said.append("the data are a stream: values, labels and over-fitting were not looked at")
    if record.health and record.health[-1].trained and not record.health[-1].held_out:
        stands = "samples moved by a pixel stand for what was never seen"
        blind = "over-fitting cannot be seen, as such samples cannot be moved either"
        said.append(f"no data were held out (--data-options.held-out): {stands if record.health[-1].unseen else blind}")
    if record.failed:
        said.append(f"training failed: {record.failed.splitlines()[0]}")
    return said
