"""Data looked at before training: a table, and a contact sheet of what the network will see."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice

import numpy as np
from PIL import Image
from rich.progress import track
from rich.table import Table

from justimage import __version__
from justimage.data.loader import batches, model_values
from justimage.data.spec import DataSpec, Item, Source, StreamSource, Unreadable, evenly
from justimage.sampling.pictures import grid

STREAM_LIMIT = 256  # samples of a stream that are looked at
WIDTH = 1280  # pixels, about, of the contact sheet
SHOWN = 12  # classes, names and kinds that a row of the table lists


@dataclass
class Inspection:
    """What was found. Ranges are raw values per channel; names are those of files, else indices."""

    found: str
    spec: DataSpec
    samples: int | None
    """None for a stream, which has no length."""
    looked_at: int = 0
    low: np.ndarray = field(default_factory=lambda: np.zeros(0))
    high: np.ndarray = field(default_factory=lambda: np.zeros(0))
    mean: np.ndarray = field(default_factory=lambda: np.zeros(0))
    std: np.ndarray = field(default_factory=lambda: np.zeros(0))
    counts: Counter[int] = field(default_factory=Counter)
    """Samples of each label."""
    duplicates: list[tuple[str, str]] = field(default_factory=list)
    """Samples that are equal to an earlier one after the crop: (later, earlier)."""
    kinds: Counter[str] = field(default_factory=Counter)
    """Image files by format and mode, such as JPEG RGB."""
    sizes: list[tuple[int, int]] = field(default_factory=list)
    """Height and width of each image file, upright."""
    upsampled: list[str] = field(default_factory=list)
    """Image files smaller than the crop."""
    turned: int = 0
    """Image files that lie on their side or are mirrored, and that EXIF says how to turn."""
    unreadable: dict[str, str] = field(default_factory=dict)
    gaps: str = ""
    """Missing values of arrays and fields."""
    promise: str = ""


def inspect(source: Source | StreamSource, *, at_most: int = 20_000) -> Inspection:
    """Look at a source: at no more than at_most samples, evenly spread; of a stream, at its beginning."""
    if source.indexed is True:
        chosen = evenly(len(source), at_most).tolist()
        report = Inspection(source.describe(), source.spec, len(source), gaps=source.gaps)
        report.unreadable = dict(source.skipped)
        _look_at_files(source, chosen, report)
        items, total = _readable(source, chosen, report), len(chosen)
    else:
        report = Inspection(source.describe(), source.spec, None, promise=source.promise())
        items, total = ((f"sample {i}", decode()) for i, decode in enumerate(_first_pass(source))), STREAM_LIMIT
    _look_at_samples(items, total, report)
    report.unreadable |= source.skipped  # of a stream they are found on the way
    return report


def _readable(source: Source, chosen: list[int], report: Inspection) -> Iterator[tuple[str, Item]]:
    """Name and sample of those that can be read; the others are added to the report."""
    for i in chosen:
        found = source.look(i)
        if isinstance(found, Unreadable):
            report.unreadable[source.name(i)] = found.reason
        else:
            yield source.name(i), found


def _first_pass(source: StreamSource) -> Iterator[Callable[[], Item]]:
    """The beginning of a stream, and of a short one no more than one pass."""
    for i, decode in enumerate(islice(source.samples(0, 0), STREAM_LIMIT)):
        if source.length is not None and i >= source.length:
            return
        yield decode


def _look_at_samples(items: Iterator[tuple[str, Item]], total: int, report: Inspection) -> None:
    channels = len(report.spec.channels)
    low, high = np.full(channels, np.inf), np.full(channels, -np.inf)
    sums, squares, values = np.zeros(channels), np.zeros(channels), 0
    offset = np.array(report.spec.mean)[:, None]  # sums of squares of values far from zero lose digits
    seen: dict[bytes, str] = {}
    for name, (raw, y) in track(items, description="looking", total=total, transient=True, disable=total < 2000):
        flat = raw.reshape(channels, -1)
        low, high = np.minimum(low, flat.min(1)), np.maximum(high, flat.max(1))
        centred = flat.astype(np.float64) - offset
        sums, squares, values = sums + centred.sum(1), squares + (centred**2).sum(1), values + flat.shape[1]
        if "labels" in y:
            report.counts[int(y["labels"])] += 1
        report.looked_at += 1
        digest = hashlib.blake2b(np.ascontiguousarray(raw).data, digest_size=16).digest()
        if digest in seen:
            report.duplicates.append((name, seen[digest]))
        seen.setdefault(digest, name)
    count = max(values, 1)
    report.low, report.high, report.mean = low, high, sums / count + offset[:, 0]
    report.std = np.sqrt(np.maximum(squares / count - (sums / count) ** 2, 0))


def _look_at_files(source: Source, chosen: list[int], report: Inspection) -> None:
    """Note the image files behind the samples, where there are any."""
    for i in chosen:
        facts = source.file_facts(i)
        if facts is None:  # not a file, or an unreadable one, which is noted elsewhere
            continue
        report.kinds[facts.kind] += 1
        report.sizes.append(facts.size)
        report.turned += facts.turned
        if any(stored < wanted for stored, wanted in zip(facts.size, source.spec.size, strict=False)):
            report.upsampled.append(source.name(i))


def table(report: Inspection) -> Table:
    """The report as a table for the terminal."""
    spec, rows = report.spec, Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    rows.add_column(style="bold", no_wrap=True)
    rows.add_column(overflow="fold")

    def row(name: str, text: str) -> None:
        rows.add_row(name, text)

    row("found", report.found)
    looked = "" if report.looked_at == report.samples else f" ({report.looked_at:,} of them looked at)"
    row("samples", f"{report.samples:,}{looked}" if report.samples is not None else f"no length{looked}")
    row("sample", f"{len(spec.channels)} channels, {'x'.join(map(str, spec.size))}, {spec.dtype}")
    if report.sizes:
        areas = sorted(report.sizes, key=lambda size: size[0] * size[1])
        shown = [f"{h}x{w}" for h, w in (areas[0], areas[len(areas) // 2], areas[-1])]
        distinct = len(set(report.sizes))
        row("stored", shown[0] if distinct == 1 else f"{distinct} sizes: {shown[0]} to {shown[2]}, median {shown[1]}")
        row("files", _list([f"{count:,} {kind}" for kind, count in report.kinds.most_common()]))
        if report.turned:
            row("turned", f"{report.turned:,} as EXIF says")
        row("upsampled", _names(report.upsampled, "are smaller than the crop") or "none")
    for i, name in enumerate(spec.channels):
        unit = f" {spec.units[i]}" if spec.units[i] else ""
        ends = [(value - spec.mean[i]) / spec.scale[i] for value in (report.low[i], report.high[i])]
        row(
            name,
            f"{report.low[i]:g} to {report.high[i]:g}{unit}, mean {report.mean[i]:.5g}, std {report.std[i]:.4g}; "
            f"the network sees {ends[0]:.2f} to {ends[1]:.2f}",
        )
    if spec.origin is not None:
        for coordinate in spec.origin.coordinates:
            ends = f"{coordinate.values[0]:g} to {coordinate.values[-1]:g}" if coordinate.values else "empty"
            row(f"  {coordinate.name}", f"{ends} {dict(coordinate.attributes).get('units', '')}".strip())
    if spec.classes:
        counted = [(report.counts[i], name) for i, name in enumerate(spec.classes)]
        least, most = min(counted)[0], max(counted)[0]
        each = f"{most:,} each" if least == most else f"{least:,} to {most:,} each"
        named = [name if least == most else f"{name} {count:,}" for count, name in counted]
        row("classes", f"{len(counted):,}, {each}: {_list(named)}")
        empty = [name for count, name in counted if not count]
        if empty and report.looked_at == report.samples:
            row("empty", f"{len(empty):,} classes have no sample: {_list(empty)}")
    else:
        row("classes", "none" if spec.given else "none: the model will be unconditional")
    for given in spec.given:
        scaled = [f"mean {mean:.4g}, scale {scale:.4g}" for mean, scale in zip(given.mean, given.scale, strict=True)]
        row("condition", f"{given.describe()}: {_list(scaled, '; ')}")
    pairs = [f"{later} = {earlier}" for later, earlier in report.duplicates]
    row("duplicates", _names(pairs, "are equal to another after the crop") or "none")
    if report.unreadable or report.sizes:
        row("unreadable", _names([f"{k} ({v})" for k, v in report.unreadable.items()], "") or "none")
    if report.gaps:
        row("missing", f"{report.gaps}: training stops, unless --data-options.missing fills them (here: the mean)")
    if report.promise:
        row("resuming", report.promise)
    return rows


def _list(texts: list[str], separator: str = ", ") -> str:
    return separator.join(texts[:SHOWN]) + (f", and {len(texts) - SHOWN:,} more" if len(texts) > SHOWN else "")


def _names(names: list[str], what: str) -> str:
    return f"{len(names):,}{f' {what}' if what else ''}: {_list(names)}" if names else ""


def sheet(source: Source | StreamSource, *, seed: int = 0, mirror: bool | None = None, count: int = 48) -> Image.Image:
    """A contact sheet of the first samples that training with this seed would see: cropped, scaled, half mirrored.

    mirror: whether half are mirrored; by default where the spec says that mirroring keeps the meaning.
    """
    spec = source.spec
    count = min(count, len(source)) if source.indexed is True else count
    reader = batches(source, seed=seed, start=0, batch_size=count, workers=0)
    batch = next(reader)
    reader.close()
    mirror = spec.mirror is not None if mirror is None else mirror
    x, y = model_values(batch.raw, batch.y, spec, seed=seed, positions=batch.positions, mirror=mirror)
    captions = [spec.classes[label] for label in y["labels"].tolist()] if spec.classes else ()
    width = grid(x[:1], spec, 1, raw=False).width
    return grid(x, spec, min(count, max(1, min(8, WIDTH // width))), captions=captions, raw=False)


def as_json(report: Inspection) -> dict:
    """The report as plain values, all names included."""
    spec = report.spec
    return {
        "justimage": __version__,  # marks the folder as output, not data
        "found": report.found,
        "samples": report.samples,
        "looked_at": report.looked_at,
        "shape": list(spec.shape),
        "dtype": spec.dtype,
        "channels": {
            name: {
                "low": float(report.low[i]),
                "high": float(report.high[i]),
                "mean": float(report.mean[i]),
                "std": float(report.std[i]),
                "unit": spec.units[i],
            }
            for i, name in enumerate(spec.channels)
        },
        "classes": {name: report.counts[i] for i, name in enumerate(spec.classes)},
        "conditions": [asdict(given) for given in spec.given],
        "files": dict(report.kinds),
        "turned": report.turned,
        "upsampled": report.upsampled,
        "duplicates": report.duplicates,
        "unreadable": report.unreadable,
        "missing": report.gaps,
    }
