"""What ails a run, in words: the usual causes, each with its evidence, from the recorded numbers alone.

A check is a pure function of a `Record` that gives a `Finding` or nothing. They are asked in the order of CHECKS,
causes before what follows from them, so that the first finding is the verdict. The thresholds are the fields of
`Limits`, each with its reason.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isfinite, nan
from typing import Literal

from justimage.runs.glance import Glance
from justimage.runs.health import Curve, Gap, Measured
from justimage.runs.record import Record

Cause = Literal[
    "value range",
    "noise scale",
    "learning rate too high",
    "not finite",
    "exploding parts",
    "learning rate too low",
    "labels off",
    "over-fitting",
    "EMA too long",
    "flat in one bin",
    "dead parts",
    "data-bound",
]


@dataclass(frozen=True)
class Limits:
    """Where a number becomes a finding, and why there."""

    one_side: float = 0.05
    """Model values lie around 0. Where none is below -0.05 or none above 0.05, half the range is never used: [0, 1] was
    taken for [-1, 1], or the like. Standardised data have values on both sides, and photographs black and white."""
    least_spread: float = 0.1
    """Standard deviation of model values. Photographs have 0.5, standardised data 0.5 by construction; at a fifth of it
    noise of scale 1 drowns everything but the last times."""
    most_spread: float = 2.0
    """The same the other way: four times the usual, such as pixels 0..255 that nobody scaled."""
    noise_off: float = 4.0
    """Factor between the noise scale and what the paper's rule (size / 256 for images, and 1 below 256; for data of the
    spread 0.5) says. The paper's own ablation shows a factor of 2 to matter little."""
    rate_off: float = 20.0
    """Factor between a learning rate and 0.3 / width. All recipes here and in the paper are within 4 of it."""
    unlearned: float = 0.8
    """The loss as a share of what knowing the mean and spread of each number gives. A network that has begun to look at
    neighbours is below."""
    diverged: float = 1.5
    """Factor between the last losses and the lowest on the way. Ticks of a sound run differ by a few per cent."""
    wild: float = 0.3
    """Largest update of a step as a share of the weights: at a third, a few steps replace all that was learned."""
    still_falling: float = 0.05
    """Share by which the loss falls in the last quarter of a run that was not given time, or speed, to finish."""
    least_steps: int = 50
    """Steps before anything is said about learning."""
    label_nimg: int = 2_000
    """Samples seen before labels are judged by what the network makes of them."""
    deviations: float = 3.0
    """Standard errors that a gap must be away from zero."""
    label_gap: float = 0.01
    """Share by which another sample's label must raise the loss at noisy times where labels mean something."""
    over_fitting: float = 0.1
    """Share by which the loss on what was not trained on is higher. Digits moved by a pixel have 0.06 after one
    pass."""
    epochs: float = 30.0
    """Passes over the data below which little is learned by heart."""
    average_behind: float = 0.25
    """Share by which the loss of an average is above that of the weights themselves."""
    average_long: float = 100.0
    """Factor between the images an average spans and those of the whole run."""
    average_steps: float = 30_000
    """Steps an average spans that are out of the ordinary: three times the paper's longest (0.9999)."""
    flat: float = 1.5
    """Factor, over the other bins, by which a bin that is trained on is worse against the linear yardstick."""
    seen_bin: float = 0.1
    """Share of the training times in a bin that is expected to be learned; rarer ones come late in sound runs."""
    exploding: float = 1_000.0
    """Root mean square of the residual stream. It begins around 1 and ends around 10 in sound runs."""
    dead: float = 1e-6
    """Share of the whole gradient below which a part does not learn."""
    waiting: float = 0.2
    """Share of the time spent waiting for data."""


LIMITS = Limits()


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong: what, how one sees it, and what to do. note: it does not make a run ill."""

    cause: Cause
    evidence: tuple[str, ...]
    """Each says numbers, and where they are from."""
    advice: str
    note: bool = False


@dataclass(frozen=True)
class Diagnosis:
    """All findings, those that make the run ill first; `verdict` is the first of them."""

    findings: tuple[Finding, ...]
    remarks: tuple[str, ...]
    """What could not be looked at, and why."""

    @property
    def verdict(self) -> str:
        """The first cause; "healthy" where there is none."""
        return next((each.cause for each in self.findings if not each.note), "healthy")


def diagnose(record: Record) -> Diagnosis:
    """What ails a run."""
    findings = [found for check in CHECKS if (found := check(record)) is not None]
    return Diagnosis(tuple(sorted(findings, key=lambda each: each.note)), tuple(_remarks(record)))


# --- numbers that several checks need


def _batch(record: Record) -> int:
    return int(record.settings["training.batch_size"])


def _steps(record: Record) -> float:
    return record.nimg / _batch(record)


def _last(record: Record) -> Measured | None:
    return record.health[-1] if record.health else None


def _glance(record: Record) -> Glance | None:
    return next((each.data for each in reversed(record.health) if each.data is not None), None)


def _losses(curves: Sequence[Curve], weights: str = "raw") -> tuple[float, ...]:
    return next((each.losses for each in curves if each.weights == weights), ())


def _weighted(losses: Sequence[float], density: Sequence[float]) -> float:
    """The mean over the bins that the run trains on, weighted as it does; nan where there is nothing."""
    used = [(loss, share) for loss, share in zip(losses, density, strict=False) if share >= 0.02]
    return sum(loss * share for loss, share in used) / sum(share for _, share in used) if used else nan


def _progress(measured: Measured | None) -> float:
    """The loss of the raw weights as a share of the linear yardstick's; nan where it was not measured."""
    if measured is None or measured.data is None:
        return nan
    losses = _losses(measured.trained)
    return _weighted(losses, measured.density) / _weighted(measured.data.linear, measured.density) if losses else nan


def _said(value: float) -> str:
    return f"{value:,.3g}" if abs(value) < 1e4 else f"{value:.1e}"


def _rate_off(record: Record) -> float:
    """The peak learning rate over 0.3 / width, the middle of those that recipes have."""
    width = record.settings.get("network.width")
    return float(record.settings["training.lr"]) * max(width, 128) / 0.3 if isinstance(width, int) else 1.0


def _learned(record: Record) -> str:
    """How far the network has come, for evidence."""
    progress = _progress(_last(record))
    return f"its loss is {_said(progress)} times that of a line through each number by itself (health.jsonl)"


def _diverged(record: Record) -> float:
    """The last loss over the lowest of a tick before."""
    losses = [each.tick.loss for each in record.ticks]
    return losses[-1] / min(losses) if len(losses) > 1 and min(losses) > 0 else 1.0


def _most_update(record: Record) -> tuple[float, str]:
    """The largest update of a step as a share of a part's weights, and the part."""
    parts = [(part.most_update, part.name) for each in record.health for part in each.parts]
    return max(parts, default=(0.0, ""))


def _stream(record: Record) -> float:
    """The largest root mean square of the residual stream."""
    return max((each for line in record.health for each in line.activations), default=0.0)


# --- the checks


def _value_range(record: Record) -> Finding | None:
    glance = _glance(record)
    if glance is None:
        return None
    seen = f"{glance.count:,} samples as the network sees them lie between {glance.low:.3g} and {glance.high:.3g}"
    spread = (sum(std**2 for std in glance.std) / len(glance.std)) ** 0.5
    if glance.low >= -LIMITS.one_side or glance.high <= LIMITS.one_side:
        half = "below" if glance.low >= -LIMITS.one_side else "above"
        taken = " as if [0, 1] had been taken for [-1, 1]" if half == "below" else ""
        return Finding(
            "value range",
            (f"{seen} (health.jsonl, data): none is {half} 0,{taken} and the spread is {spread:.2g}, not about 0.5",),
            "look at them with `jit data inspect`; write 8-bit pixels with their full range 0..255, or arrays as "
            "floats, which are scaled by their own mean and spread",
        )
    if not LIMITS.least_spread <= spread <= LIMITS.most_spread:
        return Finding(
            "value range",
            (f"{seen}, with a spread of {spread:.2g} where about 0.5 is usual (health.jsonl, data)",),
            "look at them with `jit data inspect`: they hardly change, or were not scaled",
        )
    return None


def _noise_scale(record: Record) -> Finding | None:
    size, noise = record.settings.get("network.size"), float(record.settings["noise_scale"])
    if not isinstance(size, list | tuple):
        return None
    rule = max(size) / 256 if len(size) == 2 else 1.0
    low, high = min(1.0, rule), max(1.0, rule)
    off = noise / high if noise > high else low / noise
    if noise <= 1 < rule and rule / noise >= 2:
        off = rule / noise
    if off < 2:
        return None
    glance = _glance(record)
    spread = f" and a spread of {max(glance.std):.2g} in the data" if glance is not None else ""
    return Finding(
        "noise scale",
        (
            f"noise_scale is {noise:g}, {off:.3g} times {'more' if noise > high else 'less'} than the paper's for "
            f"{'x'.join(map(str, size))}{spread} (recipe.json)",
            f"at t = 0.31, the median of the paper's training times, noise is {noise * 0.69 / 0.31 / 0.5:.3g} times as "
            "strong as data of spread 0.5",
        ),
        f"--noise-scale {high if noise > high else rule:g}, in a new run",
        note=off < LIMITS.noise_off,
    )


def _rate_too_high(record: Record) -> Finding | None:
    off, progress, diverged = _rate_off(record), _progress(_last(record)), _diverged(record)
    update, part = _most_update(record)
    stream = _stream(record)
    seen = []
    if stream > LIMITS.exploding:
        seen.append(f"the residual stream has grown to {_said(stream)}, from about 1 (health.jsonl, activations)")
    if diverged > LIMITS.diverged:
        seen.append(f"the loss is {_said(diverged)} times its lowest on the way (log.jsonl)")
    if update > LIMITS.wild:
        seen.append(f"one step moved {part} by {update:.0%} of its weights (health.jsonl, parts)")
    if progress > 1 and _steps(record) >= LIMITS.least_steps:
        seen.append(f"after {_steps(record):,.0f} steps {_learned(record)}")
    if "not finite" in record.failed:
        seen.append("training failed with numbers that are not finite (health.jsonl)")
    strong = stream > LIMITS.exploding or diverged > LIMITS.diverged or update > LIMITS.wild
    if not seen or (off < LIMITS.rate_off and not (strong and off > LIMITS.rate_off / 4)):
        return None
    lr, usual = float(record.settings["training.lr"]), float(record.settings["training.lr"]) / off
    return Finding(
        "learning rate too high",
        (f"lr is {lr:g}, {off:.3g} times 0.3 / width, near which the recipes' rates are (recipe.json)", *seen),
        f"a new run with --training.lr {_nice(usual)}, for batches of {_batch(record):,}"
        + ("" if record.settings.get("training.clip_norm") else " and --training.clip-norm 1"),
    )


def _nice(rate: float) -> str:
    return f"{rate:.0e}".replace("e-0", "e-")


def _not_finite(record: Record) -> Finding | None:
    bad = [each.tick.nimg for each in record.ticks if not isfinite(each.tick.loss) or not isfinite(each.tick.grad_norm)]
    if "not finite" not in record.failed and not bad:
        return None
    evidence = [f"training failed: {record.failed.splitlines()[0]} (health.jsonl)"] if record.failed else []
    evidence += [f"the loss or the gradient at nimg = {bad[0]:,} is not finite (log.jsonl)"] if bad else []
    return Finding("not finite", tuple(evidence), "look at the samples named; else a lower rate, or clip_norm = 1")


def _exploding(record: Record) -> Finding | None:
    stream = _stream(record)
    if stream <= LIMITS.exploding:
        return None
    last = _last(record)
    blocks = ", ".join(_said(each) for each in last.activations) if last else ""
    return Finding(
        "exploding parts",
        (f"the residual stream has grown to {_said(stream)}; after each block it is {blocks} (health.jsonl)",),
        f"a lower learning rate than {record.settings['training.lr']:g}, or weight decay",
    )


def _rate_too_low(record: Record) -> Finding | None:
    off, progress = _rate_off(record), _progress(_last(record))
    if off > 1 / LIMITS.rate_off or _steps(record) < LIMITS.least_steps or _in_warmup(record):
        return None
    losses = [each.tick.loss for each in record.ticks]
    quarter = len(losses) // 4
    falling = 1 - losses[-1] / losses[-1 - quarter] if quarter else 0.0
    update, part = _most_update(record)
    seen = []
    if progress > LIMITS.unlearned:
        seen.append(f"after {_steps(record):,.0f} steps {_learned(record)}")
    if len(losses) > 1 and losses[0] > LIMITS.diverged * losses[-1]:  # not weights that were learned before
        seen.append(f"the loss began at {_said(losses[0])} and has come to {_said(losses[-1])} (log.jsonl)")
    if falling > LIMITS.still_falling:
        seen.append(f"the loss fell by {falling:.0%} in the last quarter, and goes on falling (log.jsonl)")
    if not seen:
        return None
    if update:
        seen.append(f"no step moved any part by more than {update:.2g} of its weights ({part}; health.jsonl, parts)")
    lr = float(record.settings["training.lr"])
    return Finding(
        "learning rate too low",
        (f"lr is {lr:g}, one {1 / off:.0f}th of 0.3 / width, near which the recipes' rates are (recipe.json)", *seen),
        f"a new run with --training.lr {_nice(lr / off)}, for batches of {_batch(record):,}",
    )


def _in_warmup(record: Record) -> bool:
    return record.nimg < 2 * int(record.settings.get("training.warmup_nimg", 0))


def _labels_off(record: Record) -> Finding | None:
    last, glance = _last(record), _glance(record)
    if last is None or last.other is None or last.null is None or record.nimg < LIMITS.label_nimg:
        return None
    classes = int(record.settings.get("network.num_classes") or 0)
    needed = max(LIMITS.label_gap, LIMITS.deviations * last.other.error)
    if classes < 2 or not last.other.value <= needed:  # nor where one is NaN
        return None
    network = (
        f"another sample's label changes the loss at noisy times by {_gap_said(last.other)}, and no label by "
        f"{_gap_said(last.null)} (health.jsonl)"
    )
    if glance is not None and glance.guessed is not None and glance.count >= 256 and 10 * classes <= glance.count:
        assert glance.chance is not None
        assert glance.chance_error is not None
        if glance.guessed - glance.chance > LIMITS.deviations * glance.chance_error:
            return None if _progress(last) > LIMITS.unlearned else _unused(network, glance)
        data = (
            f"a linear discriminant guesses {glance.guessed:.1%} of the labels of {glance.count:,} samples, and "
            f"{glance.chance:.1%} \N{PLUS-MINUS SIGN} {glance.chance_error:.1%} of labels dealt out anew"
        )
    elif _progress(last) > LIMITS.unlearned or last.other.error > LIMITS.label_gap / 2:
        return None
    else:
        data = f"the network has learned: {_learned(record)}"
    return Finding(
        "labels off",
        (network, f"{data} (health.jsonl, data)"),
        "the labels do not belong to the samples: shuffled, or shifted by one? `jit data inspect` shows some samples "
        "with theirs",
    )


def _unused(network: str, glance: Glance) -> Finding:
    return Finding(
        "labels off",
        (network, f"yet the labels say something: {glance.guessed:.1%} of them can be guessed (health.jsonl, data)"),
        "the network does not use its labels (yet): train longer, and look at label_dropout and the condition",
        note=True,
    )


def _gap_said(gap: Gap) -> str:
    return f"{gap.value:+.2%} \N{PLUS-MINUS SIGN} {gap.error:.2%}"


def _over_fitting(record: Record) -> Finding | None:
    last, glance = _last(record), _glance(record)
    if last is None or last.unseen is None or glance is None:
        return None
    gap, held = last.unseen, bool(last.held_out)
    if not (gap.value >= LIMITS.over_fitting and gap.value >= LIMITS.deviations * gap.error):  # nor where one is NaN
        return None
    epochs = record.nimg / glance.of
    if epochs < LIMITS.epochs:
        return None
    what = "samples held out" if held else "samples moved by a pixel, which stand for unseen ones,"
    evidence = (
        f"on {what} the loss at noisy times is {_gap_said(gap)} above that on those trained on (health.jsonl)",
        f"each of the {glance.of:,} samples was seen {epochs:,.0f} times (log.jsonl)",
    )
    return Finding(
        "over-fitting",
        evidence,
        "more data, or mirrored ones; dropout (--network.dropout 0.1), a smaller network, or an earlier stop"
        + ("" if held else "; --data-options.held-out 0.1 measures it on data never seen"),
    )


def _average_too_long(record: Record) -> Finding | None:
    decays = record.settings.get("training.ema_decays") or ()
    batch, start = _batch(record), int(record.settings.get("training.ema_start_nimg", 0))
    last = _last(record)
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
                f"--training.ema-start-nimg {max(batch, record.total // 10):,}".replace(",", ""),
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
    raw, average = (_weighted(_losses(curves, name), measured.density) for name in ("raw", weights))
    return average / raw - 1 if raw else nan


def _shorter(record: Record) -> float:
    """A decay that spans a tenth of the run."""
    return round(1 - min(0.5, 10 * _batch(record) / max(record.total, 1)), 6)


def _flat_bin(record: Record) -> Finding | None:
    last = _last(record)
    if last is None or last.data is None or not last.trained or _steps(record) < LIMITS.least_steps:
        return None
    bins = [
        (time, loss / linear)
        for time, loss, linear, share in zip(
            last.times, _losses(last.trained), last.data.linear, last.density, strict=False
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
            f"around t = {worst[0]:g} the loss is {_said(worst[1])} times that of a line through each number by "
            f"itself, and at the other times that are trained on at most {_said(max(rest))} times (health.jsonl)",
        ),
        "look at the loss space and the density of times: the weight of these times is too small to be learned",
    )


def _dead_parts(record: Record) -> Finding | None:
    last = _last(record)
    if last is None or len(last.parts) < 2 or _steps(record) < LIMITS.least_steps:
        return None
    whole = sum(part.gradient**2 for part in last.parts) ** 0.5
    dead = [part for part in last.parts if part.gradient <= LIMITS.dead * whole]
    if not dead:
        return None
    listed = ", ".join(f"{part.name} ({_said(part.gradient)})" for part in dead)
    return Finding(
        "dead parts",
        (f"no gradient reaches {listed}; the whole is {_said(whole)} (health.jsonl, parts)",),
        "a part whose gates stayed at zero, or that is not used: look at the network, or begin anew at a lower rate",
    )


def _data_bound(record: Record) -> Finding | None:
    ticks = [each.tick for each in record.ticks][len(record.ticks) > 1 :]  # the first one waits for the first batch
    shares = sorted(tick.waiting_on_data for tick in ticks)
    if not shares or shares[len(shares) // 2] < LIMITS.waiting:
        return None
    rates = sorted(tick.img_per_second for tick in ticks)
    share, rate = shares[len(shares) // 2], rates[len(rates) // 2]
    return Finding(
        "data-bound",
        (
            f"half of the ticks waited for data for {share:.0%} of their time or more: {rate:,.0f} img/s where "
            f"{rate / (1 - min(share, 0.99)):,.0f} would be possible (log.jsonl)",
        ),
        "pack the data once (jit data pack); or more --data-options.workers, or --data-options.memory-gb above their "
        "size",
    )


Check = Callable[[Record], Finding | None]
# Causes before what follows from them, and what spoils the result before what only takes time.
CHECKS: tuple[Check, ...] = (
    _value_range,
    _noise_scale,
    _rate_too_high,
    _not_finite,
    _exploding,
    _rate_too_low,
    _labels_off,
    _over_fitting,
    _average_too_long,
    _flat_bin,
    _dead_parts,
    _data_bound,
)


def _remarks(record: Record) -> list[str]:
    said = []
    if not record.ticks:
        said.append("no tick is logged yet: there is little to go by")
    elif _steps(record) < LIMITS.least_steps:
        said.append(f"after {_steps(record):,.0f} steps nothing can be said about learning yet")
    if not record.health:
        said.append("health.jsonl has no line yet (one comes at the end, or every report.health_nimg samples)")
    elif record.health[-1].data is None:
        said.append("the data are a stream: values, labels and over-fitting were not looked at")
    if record.health and not record.health[-1].held_out:
        said.append(
            "no data were held out (--data-options.held-out): samples moved by a pixel stand for what was never seen"
        )
    if record.failed:
        said.append(f"training failed: {record.failed.splitlines()[0]}")
    return said
