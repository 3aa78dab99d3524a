"""`jit sample`."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro
from rich.progress import track

from justimage.commands.console import console, interruptible, say
from justimage.commands.line import parse
from justimage.commands.main import DONE, INTERRUPTED
from justimage.data.containers import IMAGES, holds, written_by_justimage
from justimage.denoiser import Denoiser
from justimage.disk.hold import held
from justimage.disk.reading import reason_of
from justimage.precision import SAMPLING_PRECISIONS
from justimage.randomness import SEEDS
from justimage.samplers import PRESETS, Preset, Sampling, with_settings
from justimage.sampling.generate import Samples, generate
from justimage.sampling.write import FACTS, Sheet, file_format, write_facts, writer
from justimage.weights.load import compile_for, load

MOST_SAMPLES = 10_000_000  # of one command: their seeds are kept in memory, and written beside them
CLASSES_DRAWN = 10  # at most, where none is asked for


@dataclass(frozen=True)
class Sample:
    """Draw samples, written as they are drawn, and a grid of the first ones.

    The model itself says how (steps, sampler, guidance, interval, final, shift); --preset wins over that, and options
    given here over both. The defaults shown are those of a model that says nothing.
    """

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")]
    """A run folder, a weights folder, a hub id (USER/NAME), or an official .pth."""
    classes: Annotated[tuple[str, ...], tyro.conf.arg(metavar="[CLASS ...]")] = ()
    """Classes by name or index, for example --classes cat dog 7; all of them (at most 10) by default."""
    unconditional: tyro.conf.FlagCreatePairsOff[bool] = False
    """Draw without any condition."""
    condition: Annotated[Path | None, tyro.conf.arg(metavar="FILE.npz")] = None
    """An .npz with the other parts of the model's condition by name, raw values with one row for each condition."""
    count: Annotated[int, tyro.conf.arg(metavar="N")] = 8
    """Samples of each class, or of each row of --condition; or in all, without these."""
    seeds: Annotated[tuple[str, ...], tyro.conf.arg(metavar="[SEED ...]")] = ()
    """Seeds, one for each sample of a class, as numbers and ranges: --seeds 3 10-19. By default 0, 1, 2, ... Overrides
    --count."""
    size: Annotated[tuple[int, ...], tyro.conf.arg(metavar="[LENGTH ...]")] = ()
    """A size other than the model's, as one length for all axes or one for each; the patch must divide it."""
    out: Annotated[Path, tyro.conf.arg(metavar="DIR")] = Path("samples")
    """Folder for the samples and grid.png. Files of the same name are replaced."""
    format: Literal["auto", "png", "npy", "nc", "zarr"] = "auto"
    """png: one image for each sample; npy: one array samples.npy (N, C, *S) of raw values; nc, zarr: one file with
    the names, units and coordinates that the data came with. auto: png for images, nc for fields, npy for the rest."""
    preset: Annotated[Preset | None, tyro.conf.arg(metavar=f"{{{','.join(PRESETS)}}}")] = None
    """Steps, sampler, shift, final and guidance-every in place of the model's own. paper: 50 steps of Heun's method;
    fast: 12 of deis, an eighth of the evaluations; faster: 10, and guidance at every second one."""
    sampling: Annotated[Sampling, tyro.conf.arg(name="")] = field(default_factory=Sampling)
    weights: Annotated[str | None, tyro.conf.arg(aliases=["--ema"], metavar="NAME")] = None
    """Which weights: of a run its first average by default, or raw, best, ema-0.9999@000640000, posthoc-0.100; of an
    official .pth ema1 by default, or ema2, model."""
    context_start: Annotated[int | None, tyro.conf.arg(metavar="BLOCK")] = None
    """In-context start block of an official checkpoint that does not record it."""
    allow_non_finite: tyro.conf.FlagCreatePairsOff[bool] = False
    """Take weights that hold NaN or infinity, which draw nothing."""
    batch_size: Annotated[int, tyro.conf.arg(metavar="N")] = 16
    """Samples drawn at once; it only changes the speed."""
    precision: Literal["auto", "float32", "bfloat16", "int8"] = "auto"
    """auto: bfloat16 where this machine is faster with it (jit bench --probe). int8 rounds the linear maps of
    the blocks: fast on CPUs without AMX, at a small difference (docs/speed.md)."""
    device: Annotated[str | None, tyro.conf.arg(metavar="DEVICE")] = None
    """cpu, cuda, ...; the accelerator by default, if there is one."""


@dataclass(frozen=True)
class Order:
    """What is to be drawn: for each sample its seed, its label and the other parts of its condition."""

    seeds: list[int]
    labels: list[int] | None
    condition: dict[str, np.ndarray]
    rows: list[str]
    """What the grid calls its rows: one for each class or condition."""

    @property
    def each(self) -> int:
        """Samples of each row."""
        return len(self.seeds) // max(len(self.rows), 1)


def main(arguments: Sequence[str]) -> int:
    """Draw samples; returns the exit code."""
    asked = parse(Sample, arguments, "jit sample")
    interruptible()
    if asked.batch_size < 1 or not 1 <= asked.count <= MOST_SAMPLES:
        raise ValueError(
            f"batch_size ({asked.batch_size}) and count ({asked.count}) must be at least 1, and count at most "
            f"{MOST_SAMPLES:,}"
        )
    seeds_of(asked.seeds)  # raises now, not after the model is loaded
    if asked.out.exists() and not asked.out.is_dir():
        raise ValueError(f"{asked.out} is a file; --out is a folder")
    if asked.out.is_dir() and holds(asked.out, IMAGES) and not written_by_justimage(asked.out):
        raise ValueError(f"{asked.out} holds images that are not samples; choose another folder with --out")
    with held(asked.out):
        return _draw(asked, arguments)


def _draw(asked: Sample, arguments: Sequence[str]) -> int:
    """Draw samples into a folder that is held; returns the exit code."""
    model = load(
        asked.model,
        weights=asked.weights,
        context_start=asked.context_start,
        device=asked.device,
        dtype=SAMPLING_PRECISIONS.get(asked.precision),
        allow_non_finite=asked.allow_non_finite,
    )
    # Once more with the model's own settings, or the preset's, as defaults: what the user has written wins over them.
    start = with_settings(model.sampling, PRESETS[asked.preset] if asked.preset else {})
    asked = parse(Sample, arguments, "jit sample", Sample(asked.model, sampling=start))
    form = file_format(asked.format, model.spec)
    order = order_of(model, asked)
    size = asked.size * len(model.config.size) if len(asked.size) == 1 else asked.size or tuple(model.config.size)
    sampling = replace(asked.sampling, guidance=1.0) if not order.labels and not order.condition else asked.sampling
    if sampling != asked.sampling and asked.sampling.guidance != model.sampling.guidance:
        raise ValueError(f"guidance is {asked.sampling.guidance}, but these samples are drawn without a condition")

    compile_for(model, len(order.seeds) * sampling.evaluations())
    batches = generate(
        model,
        order.seeds,
        order.labels,
        condition=order.condition,
        batch_size=asked.batch_size,
        size=size,
        sampling=sampling,
    )
    facts = {"model": asked.model, "weights": asked.weights, "sampling": asdict(sampling), "size": list(size)}
    rounds = -(-len(order.seeds) // asked.batch_size)
    new = not written_by_justimage(asked.out)
    sheet, code, problem = Sheet(order.each, order.rows), DONE, None
    with writer(form, asked.out, model) as writing:
        try:
            if new:  # so that the folder counts as samples from its first file on
                write_facts(asked.out, facts, [], None)
            for batch in _shown(batches, rounds):
                writing.add(batch)
                sheet.add(batch.raw)
        except KeyboardInterrupt:
            say(f"interrupted: {writing.count:,} of {len(order.seeds):,} samples are drawn, and kept")
            code = INTERRUPTED
        except OSError as error:  # the disk is full
            problem = error
        except ValueError:  # what the model refuses: nothing is drawn
            if new and not writing.count:
                (asked.out / FACTS).unlink(missing_ok=True)
            raise
    if not writing.count:
        if new:
            (asked.out / FACTS).unlink(missing_ok=True)
        if problem is not None:
            raise problem
        return code
    written = writing.describe()
    if model.spec is not None:
        sheet.save(asked.out / "grid.png", model.spec)
        written += " and grid.png"
    write_facts(asked.out, facts, order.seeds[: writing.count], order.labels)
    say(f"wrote {written} to {asked.out}")
    if problem is not None:
        raise problem
    return code


def _shown(batches: Iterator[Samples], rounds: int) -> Iterable[Samples]:
    """The batches, with a bar on a terminal."""
    if not console.is_terminal:
        return batches
    return track(batches, description="sampling", total=rounds, console=console, transient=True)


def order_of(model: Denoiser, asked: Sample) -> Order:
    """What the arguments ask of a model. Raises ValueError where they do not fit it."""
    per_row = seeds_of(asked.seeds) or list(range(asked.count))
    others = [name for name, kind, *_ in model.needs if kind != "labels"]
    if asked.unconditional:
        if asked.classes or asked.condition:
            raise ValueError("--unconditional cannot go with --classes or --condition")
        return Order(per_row, None, {}, [])
    if others and asked.condition is None:
        raise ValueError(
            f"this model is conditioned on {', '.join(others)}; give --condition FILE.npz with arrays of these names, "
            "or --unconditional"
        )
    given = {} if asked.condition is None else _arrays(asked.condition)
    flat = next((name for name, values in given.items() if not values.ndim), None)
    if flat is not None:
        raise ValueError(f"{flat} of {asked.condition} is a single number; an entry for each row is needed")
    rows = max((len(values) for values in given.values()), default=0)
    labels = given.pop("labels").tolist() if "labels" in given else []
    asked_for: Any = asked.classes or labels or ([] if rows else range(min(model.num_classes, CLASSES_DRAWN)))
    classes = model.labels(list(asked_for)) if asked_for else []
    if rows and len(classes) == 1:
        classes = classes * rows
    if rows and classes and len(classes) != rows:
        raise ValueError(
            f"{len(classes)} classes and {rows} rows of {asked.condition}; give one class for each row, or one for all"
        )
    if len(per_row) * max(len(classes), rows, 1) > MOST_SAMPLES:
        raise ValueError(
            f"{len(per_row):,} samples of each of {max(len(classes), rows):,} classes or rows are more than "
            f"{MOST_SAMPLES:,}, the most of one command"
        )
    repeated = {name: np.repeat(values, len(per_row), axis=0) for name, values in given.items()}
    names = [class_name(model, label) for label in classes] or [f"row {i}" for i in range(rows)]
    return Order(per_row * max(len(classes), rows, 1), [y for y in classes for _ in per_row] or None, repeated, names)


def class_name(model: Denoiser, label: int) -> str:
    """The name of a class; its number where the model knows no names."""
    if model.spec is None:
        return str(label)
    return model.spec.classes[label] if label < len(model.spec.classes) else "none"


def _arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz. Raises ValueError where it is not one."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, AttributeError, TypeError) as error:
        raise ValueError(f"--condition {path} cannot be read as an .npz of arrays: {reason_of(error)}") from error


def seeds_of(texts: Sequence[str]) -> list[int]:
    """Numbers and ranges, "3" and "10-19" -> seeds. Raises ValueError for anything else."""
    seeds: list[int] = []
    for text in texts:
        first, dash, last = text.partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()) or (dash and int(last) < int(first)):
            raise ValueError(f"--seeds {text}: a seed is a whole number from 0 on, or a range such as 0-499")
        if int(last or first) >= SEEDS or len(seeds) + int(last or first) - int(first) >= MOST_SAMPLES:
            raise ValueError(
                f"--seeds {text}: seeds are below {SEEDS:,}, and at most {MOST_SAMPLES:,} of them are possible at once"
            )
        seeds += range(int(first), int(last or first) + 1)
    return seeds
