"""The doctor's checks of how a run learns: its rate, its averages, its parts, and its times."""

from math import isfinite, nan

from justimage.runs.findings import LIMITS, Finding
from justimage.runs.health import Measured
from justimage.runs.readings import (
    as_trained,
    batch_size_of,
    how_learned,
    in_digits,
    losses_of,
    most_update,
    newest,
    number_of,
    progress_of,
    rate_off,
    rise_of,
    rounded,
    steps_of,
    stream_of,
)
from justimage.runs.record import Record


def rate_too_high(record: Record) -> Finding | None:
    """A rate far above the usual, with what it did."""
    off, progress, diverged = rate_off(record), progress_of(newest(record)), rise_of(record)
    update, part = most_update(record)
    stream = stream_of(record)
    seen = []
    if stream > LIMITS.exploding:
        seen.append(f"the residual stream has grown to {in_digits(stream)}, from about 1 (health.jsonl, activations)")
    if diverged > LIMITS.diverged:
        seen.append(f"the loss is {in_digits(diverged)} times its lowest on the way (log.jsonl)")
    if update > LIMITS.wild:
        seen.append(f"one step moved {part} by {update:.0%} of its weights (health.jsonl, parts)")
    if progress > 1 and steps_of(record) >= LIMITS.least_steps:
        seen.append(f"after {steps_of(record):,.0f} steps {how_learned(record)}")
    if "not finite" in record.failed:
        seen.append("training failed with numbers that are not finite (health.jsonl)")
    strong = stream > LIMITS.exploding or diverged > LIMITS.diverged or update > LIMITS.wild
    if not seen or (off < LIMITS.rate_off and not (strong and off > LIMITS.rate_off / 4)):
        return None
    lr = number_of(record, "training.lr")
    return Finding(
        "learning rate too high",
        (f"lr is {lr:g}, {off:.3g} times 0.3 / width, near which the recipes' rates are (recipe.json)", *seen),
        f"a new run with --training.lr {rounded(lr / off)}, for batches of {batch_size_of(record):,}"
        + ("" if record.settings.get("training.clip_norm") else " and --training.clip-norm 1"),
    )


def not_finite(record: Record) -> Finding | None:
    """Numbers that are NaN or infinite."""
    bad = [each.tick.nimg for each in record.ticks if not isfinite(each.tick.loss) or not isfinite(each.tick.grad_norm)]
    skipped = [nimg for each in record.ticks for nimg in each.tick.skipped]
    if "not finite" not in record.failed and not bad and not skipped:
        return None
    evidence = [f"training failed: {record.failed.splitlines()[0]} (health.jsonl)"] if record.failed else []
    evidence += [f"the loss or the gradient at nimg = {bad[0]:,} is not finite (log.jsonl)"] if bad else []
    evidence += (
        [f"{len(skipped)} steps were skipped, the last at nimg = {skipped[-1]:,} (log.jsonl)"] if skipped else []
    )
    advice = "`jit replay RUN NIMG` says which sample and which module; else a lower rate, or clip_norm = 1"
    return Finding("not finite", tuple(evidence), advice)


def exploding(record: Record) -> Finding | None:
    """A residual stream that has grown out of bounds."""
    stream = stream_of(record)
    if stream <= LIMITS.exploding:
        return None
    last = newest(record)
    blocks = ", ".join(in_digits(each) for each in last.activations) if last else ""
    return Finding(
        "exploding parts",
        (f"the residual stream has grown to {in_digits(stream)}; after each block it is {blocks} (health.jsonl)",),
        f"a lower learning rate than {number_of(record, 'training.lr'):g}, or weight decay",
    )


def rate_too_low(record: Record) -> Finding | None:
    """A rate far below the usual, with how little it did."""
    off, progress = rate_off(record), progress_of(newest(record))
    if off > 1 / LIMITS.rate_off or steps_of(record) < LIMITS.least_steps:
        return None
    losses = record.losses
    quarter = len(losses) // 4
    falling = 1 - losses[-1] / losses[-1 - quarter] if quarter else 0.0
    update, part = most_update(record)
    seen = []
    if progress > LIMITS.unlearned:
        seen.append(f"after {steps_of(record):,.0f} steps {how_learned(record)}")
    if len(losses) > 1 and losses[0] > LIMITS.diverged * losses[-1]:  # not weights that were learned before
        seen.append(f"the loss began at {in_digits(losses[0])} and has come to {in_digits(losses[-1])} (log.jsonl)")
    if falling > LIMITS.still_falling:
        seen.append(f"the loss fell by {falling:.0%} in the last quarter, and goes on falling (log.jsonl)")
    if not seen:
        return None
    if update:
        seen.append(f"no step moved any part by more than {update:.2g} of its weights ({part}; health.jsonl, parts)")
    lr = number_of(record, "training.lr")
    return Finding(
        "learning rate too low",
        (f"lr is {lr:g}, one {1 / off:.0f}th of 0.3 / width, near which the recipes' rates are (recipe.json)", *seen),
        f"a new run with --training.lr {rounded(lr / off)}, for batches of {batch_size_of(record):,}",
    )


def average_too_long(record: Record) -> Finding | None:
    """An average that is still its start, or that never is what was asked for."""
    decays = record.settings.get("training.ema_decays") or ()
    batch, start = batch_size_of(record), int(number_of(record, "training.ema_start_nimg"))
    last = newest(record)
    for decay in sorted(map(float, decays), reverse=True):
        spans = batch / (1 - decay)  # images
        span = f"{decay:g} averages over {spans:,.0f} images (batch / (1 - decay)), and {record.nimg:,} have been seen"
        behind = _behind(last, f"ema-{decay}") if last is not None else nan
        if behind > LIMITS.average_behind and record.nimg > start and record.nimg < 20 * spans:
            evidence = (
                f"the loss of ema-{decay} is {behind:.0%} above that of the weights themselves (health.jsonl)",
                f"{span} (recipe.json, log.jsonl)",
            )
            passing = start == 0 and record.state in ("running", "stopped") and record.total > 20 * spans
            return Finding(
                "EMA too long",
                evidence,
                "look at the raw weights until then (jit sample RUN --ema raw)"
                if passing
                else f"sample with --ema raw; a new run with --training.ema-decays {_shorter(record):g}, or with "
                f"--training.ema-start-nimg {max(batch, record.total // 10)}",
                note=passing,
            )
        if spans > LIMITS.average_long * record.total and 1 / (1 - decay) > LIMITS.average_steps:
            return Finding(
                "EMA too long",
                (
                    f"{decay:g} averages over {spans:,.0f} images (batch / (1 - decay)), and the whole run has "
                    f"{record.total:,}; the average follows another rule (ema_start_nimg = {start:,}), and never the "
                    "decay that was asked for (recipe.json)",
                ),
                f"--training.ema-decays {_shorter(record):g} in a new run",
            )
    return None


def _behind(measured: Measured, weights: str) -> float:
    """How much higher the loss of an average is than that of the weights, on the same samples."""
    curves = measured.held_out or measured.trained
    raw, average = (as_trained(losses_of(curves, name), measured.density) for name in ("raw", weights))
    return average / raw - 1 if raw else nan


def _shorter(record: Record) -> float:
    """A decay that spans a tenth of the run."""
    return round(1 - min(0.5, 10 * batch_size_of(record) / max(record.total, 1)), 6)


def flat_bin(record: Record) -> Finding | None:
    """Times that are trained on and not learned."""
    last = newest(record)
    if last is None or last.data is None or not last.trained or steps_of(record) < LIMITS.least_steps:
        return None
    bins = [
        (time, loss / linear)
        for time, loss, linear, share in zip(
            last.times, losses_of(last.trained), last.data.linear, last.density, strict=False
        )
        if share >= LIMITS.seen_bin
    ]
    worst = max(bins, key=lambda each: each[1], default=(0.0, 0.0))
    rest = [each for time, each in bins if time != worst[0]]
    if len(rest) < 2 or worst[1] < 1 or worst[1] < LIMITS.flat * max(rest) or max(rest) > LIMITS.unlearned:
        return None
    return Finding(
        "flat in one bin",
        (
            f"around t = {worst[0]:g} the loss is {in_digits(worst[1])} times that of a line through each number by "
            f"itself, and at the other times that are trained on at most {in_digits(max(rest))} times (health.jsonl)",
        ),
        "look at the loss space and the density of times: the weight of these times is too small to be learned",
    )


def dead_parts(record: Record) -> Finding | None:
    """Parts that no gradient reaches."""
    last = newest(record)
    if last is None or len(last.parts) < 2 or steps_of(record) < LIMITS.least_steps:
        return None
    whole = sum(part.gradient**2 for part in last.parts) ** 0.5
    dead = [part for part in last.parts if part.gradient <= LIMITS.dead * whole]
    if not dead:
        return None
    listed = ", ".join(f"{part.name} ({in_digits(part.gradient)})" for part in dead)
    return Finding(
        "dead parts",
        (f"no gradient reaches {listed}; the whole is {in_digits(whole)} (health.jsonl, parts)",),
        "a part whose gates stayed at zero, or that is not used: look at the network, or begin anew at a lower rate",
    )
