"""The doctor's checks of what a run is fed: values, noise, labels, how many samples, and how fast they come."""

from justimage.runs.findings import LIMITS, Finding
from justimage.runs.glance import Glance
from justimage.runs.readings import glance_of, how_learned, in_percent, newest, number_of, progress_of
from justimage.runs.record import Record


def value_range(record: Record) -> Finding | None:
    """Values that lie on one side of 0, or hardly change, or were not scaled."""
    glance = glance_of(record)
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
    mean = max(glance.mean, key=abs)
    if not LIMITS.least_spread <= spread <= LIMITS.most_spread or abs(mean) > LIMITS.furthest_mean:
        return Finding(
            "value range",
            (
                f"{seen}, with a spread of {spread:.2g} where about 0.5 is usual, and a channel's mean of {mean:.2g} "
                "(health.jsonl, data)",
            ),
            "look at them with `jit data inspect`: they hardly change, or were scaled by other numbers than their own",
        )
    return None


def noise_scale(record: Record) -> Finding | None:
    """A scale far from the paper's rule."""
    size, noise = record.settings.get("network.size"), number_of(record, "noise_scale")
    if not isinstance(size, list | tuple):
        return None
    rule = max(1.0, max(size) / 256) if len(size) == 2 else 1.0
    off = max(noise / rule, rule / noise)
    if off < 2:
        return None
    glance = glance_of(record)
    spread = f" and a spread of {max(glance.std):.2g} in the data" if glance is not None else ""
    return Finding(
        "noise scale",
        (
            f"noise_scale is {noise:g}: {off:.3g} times {'more' if noise > rule else 'less'} than the paper's rule "
            f"(size / 256, at least 1) and the recipes have for {'x'.join(map(str, size))}{spread} (recipe.json)",
            f"at t = 0.31, the median of the paper's training times, noise is {noise * 0.69 / 0.31 / 0.5:.3g} times as "
            "strong as data of spread 0.5",
        ),
        f"--noise-scale {rule:g}, in a new run",
        note=off < LIMITS.noise_off,
    )


def labels_off(record: Record) -> Finding | None:
    """Labels that say nothing about the samples."""
    last, glance = newest(record), glance_of(record)
    if last is None or last.other is None or last.null is None or record.nimg < LIMITS.label_nimg:
        return None
    classes = record.settings.get("network.num_classes")
    classes = classes if isinstance(classes, int) else 0
    needed = max(LIMITS.label_gap, LIMITS.deviations * last.other.error)
    if classes < 2 or not last.other.value <= needed:  # nor where one is NaN
        return None
    network = (
        f"another sample's label changes the loss at noisy times by {in_percent(last.other)}, and no label by "
        f"{in_percent(last.null)} (health.jsonl)"
    )
    if glance is not None and glance.guessed is not None and glance.count >= 256 and 10 * classes <= glance.count:
        assert glance.chance is not None
        assert glance.chance_error is not None
        if glance.guessed - glance.chance > LIMITS.guessing * glance.chance_error:
            return None if progress_of(last) > LIMITS.unlearned else _unused(network, glance)
        data = (
            f"a linear discriminant guesses {glance.guessed:.1%} of the labels of {glance.count:,} samples, and "
            f"{glance.chance:.1%} \N{PLUS-MINUS SIGN} {glance.chance_error:.1%} of labels dealt out anew"
        )
    elif (
        progress_of(last) > LIMITS.unlearned
        or last.other.value + LIMITS.deviations * last.other.error > LIMITS.label_gap
    ):
        return None  # it may have learned too little to tell
    else:
        data = f"the network has learned: {how_learned(record)}"
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


def over_fitting(record: Record) -> Finding | None:
    """A loss that is low on what was trained on alone; or few samples seen so often that it must be."""
    last, glance = newest(record), glance_of(record)
    if last is None or glance is None:
        return None
    gap, held, epochs = last.unseen, bool(last.held_out), record.nimg / glance.of
    shown = gap is not None and gap.value >= max(LIMITS.over_fitting, LIMITS.deviations * gap.error)
    excluded = held and gap is not None and gap.value + LIMITS.deviations * gap.error < LIMITS.over_fitting
    by_heart = glance.of < LIMITS.few and epochs > LIMITS.many_epochs and progress_of(last) < 1 and not excluded
    if not by_heart and not (shown and epochs >= LIMITS.epochs):
        return None
    evidence = [f"each of the {glance.of:,} samples was seen {epochs:,.0f} times (log.jsonl)"]
    if gap is not None:
        what = "samples held out" if held else "samples moved by a pixel, more alike than unseen ones,"
        evidence.append(
            f"on {what} the loss at noisy times is {in_percent(gap)} above that on those trained on (health.jsonl)"
        )
    return Finding(
        "over-fitting",
        tuple(evidence),
        "more data, or mirrored ones; dropout (--network.dropout 0.1), a smaller network, or an earlier stop"
        + ("" if held else "; --data-options.held-out 0.1 measures it on data never seen"),
    )


def data_bound(record: Record) -> Finding | None:
    """Time that is spent waiting."""
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
