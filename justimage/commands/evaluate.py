"""`jit evaluate`."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Literal

import torch
import tyro

from justimage.commands.console import bars, interruptible, say
from justimage.commands.judging import ExtractorName, Reading, judge_of, picture, places, reference_data, report
from justimage.commands.line import parse
from justimage.commands.main import DONE, INTERRUPTED
from justimage.data.containers import IMAGES, holds, written_by_justimage
from justimage.data.loader import order
from justimage.data.sources import DataOptions
from justimage.data.spec import DataSpec, Source, StreamSource
from justimage.denoiser import Denoiser
from justimage.disk.hold import held
from justimage.disk.whole import remove
from justimage.evaluation.draws import Labels, draws_of, shared_equally
from justimage.evaluation.evaluate import evaluate, hash_of, mean_of, name_of
from justimage.evaluation.fitted import Part, Progress
from justimage.evaluation.judge import Judge, check_counts
from justimage.evaluation.reference import batches_of, save_statistics
from justimage.evaluation.rows import RowStore
from justimage.evaluation.samples import open_samples
from justimage.evaluation.scores import Scores
from justimage.execution import find_device
from justimage.parallel import Processes, first_then_others, in_the_first, join, leave, naming_the_gone
from justimage.precision import SAMPLING_PRECISIONS
from justimage.randomness import SEEDS
from justimage.samplers import PRESETS, Preset, Sampling, with_settings
from justimage.sampling.draw import check_samples
from justimage.sampling.generate import Samples
from justimage.sampling.write import file_format, write_facts, writer
from justimage.weights.load import compile_for, load


@dataclass(frozen=True)
class Evaluate:
    """Score a model, or samples made elsewhere, against data: a table, a line of evaluations.jsonl, and a grid.

    Samples are drawn in memory and forgotten; sample k depends on its seed alone, so the numbers are the same for any
    batch size and number of processes. The same command goes on where it was interrupted.
    """

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")] = ""
    """A run folder, a weights folder, a hub id (USER/NAME), or an official .pth; none with --samples."""
    samples: Annotated[Path | None, tyro.conf.arg(metavar="PATH")] = None
    """Samples made elsewhere: a folder or archive of images, .npy, .npz (ADM's too), or what `jit sample` wrote."""
    data: Annotated[str | None, tyro.conf.arg(metavar="REF")] = None
    """What they are compared with: anything that --data of training takes, or an .npz with mu and sigma; of a run, its
    training data by default."""
    count: Annotated[int, tyro.conf.arg(metavar="N")] = 5000
    """Samples to draw; the default is the nearest number to this that classes share equally. Papers draw 50,000; the
    Frechet distance of fewer is higher, and fd_infinity less so."""
    labels: Labels = "balanced"
    """balanced: every class equally often; data: classes and conditions as in the data."""
    features: ExtractorName = "fit"
    """fit: a small network fitted to the reference, which needs no download; inception: the FID of papers; dinov2,
    clip (extra `eval`)."""
    features_weights: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """The weights of inception, dinov2 or clip, where they are not to be downloaded."""
    first_seed: Annotated[int, tyro.conf.arg(metavar="SEED")] = 0
    """Sample k has the seed first_seed + k."""
    repeats: Annotated[int, tyro.conf.arg(metavar="N")] = 1
    """Evaluate so many times with fresh seeds; the errors are then those of the mean over them."""
    unseen: Annotated[str | None, tyro.conf.arg(metavar="PATH")] = None
    """Data that were not trained on, for the copying check; by default training samples, each left out in its turn."""
    mirrored: tyro.conf.FlagCreatePairsOff[bool] = False
    """Take each sample of the reference mirrored as well."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Folder for evaluations.jsonl and the grid; by default the run, or `evaluations`."""
    save: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Write the samples, too."""
    save_statistics: Annotated[Path | None, tyro.conf.arg(metavar="FILE.npz")] = None
    """Write mu and sigma of the reference, which --data takes again, and other codes do."""
    preset: Annotated[Preset | None, tyro.conf.arg(metavar=f"{{{','.join(PRESETS)}}}")] = None
    """Settings by name in place of the model's; single options win over them."""
    sampling: Annotated[Sampling, tyro.conf.arg(name="")] = field(default_factory=Sampling)
    weights: Annotated[str | None, tyro.conf.arg(aliases=["--ema"], metavar="NAME")] = None
    """Which weights: of a run its first average by default, or raw, best, ema-0.9999@000640000, posthoc-0.100; of an
    official .pth ema1 by default, or ema2, model."""
    context_start: Annotated[int | None, tyro.conf.arg(metavar="BLOCK")] = None
    """In-context start block of an official checkpoint that does not record it."""
    data_options: DataOptions = field(default_factory=DataOptions)
    batch_size: Annotated[int, tyro.conf.arg(metavar="N")] = 64
    """Samples drawn at once by each process; it only changes the speed."""
    precision: Literal["auto", "float32", "bfloat16", "int8"] = "auto"
    """auto: bfloat16 where this machine is faster with it (jit bench --probe). int8 rounds the linear maps of
    the blocks: fast on CPUs without AMX, at a small difference (docs/speed.md)."""
    device: Annotated[str | None, tyro.conf.arg(metavar="DEVICE")] = None
    """cpu, cuda, ...; the accelerator by default, if there is one."""

    def judge(
        self, data: Reading, shape: tuple[int, ...], spec: DataSpec | None, device: torch.device, progress: Progress
    ) -> tuple[Judge, Source | StreamSource | None]:
        """Features and reference, and the data themselves where they are at hand; shape, spec: of the samples."""
        judge, source = judge_of(
            data,
            shape,
            features=self.features,
            weights=self.features_weights,
            spec=spec,
            unseen=self.unseen,
            mirrored=self.mirrored,
            device=device,
            progress=progress,
        )
        if self.save_statistics is not None:
            save_statistics(judge.reference, self.save_statistics)
        return judge, source

    def check(self) -> None:
        """Raises ValueError for options that cannot be met, or do not go together."""
        if bool(self.model) == (self.samples is not None):
            raise ValueError("give a MODEL, or --samples PATH; one of them")
        if self.batch_size < 1 or self.count < 1 or self.repeats < 1 or not 0 <= self.first_seed < SEEDS:
            raise ValueError(
                f"batch_size ({self.batch_size}), count ({self.count}) and repeats ({self.repeats}) must be at least "
                f"1, and first_seed ({self.first_seed}) from 0 to {SEEDS - 1:,}"
            )
        if self.save_statistics is not None and self.save_statistics.suffix != ".npz":
            raise ValueError(f"--save-statistics {self.save_statistics} is no FILE.npz, as --data will take it")
        drawing = ("count", "labels", "first_seed", "repeats", "save", "preset", "sampling", "weights", "context_start")
        for name in drawing if self.samples is not None else ():
            if getattr(self, name) != getattr(Evaluate(), name):
                what = "settings of sampling are" if name == "sampling" else f"--{name.replace('_', '-')} is"
                raise ValueError(f"{what} for drawing from a model, and --samples are there already")


def main(arguments: Sequence[str]) -> int:
    """Evaluate; returns the exit code."""
    asked = parse(Evaluate, arguments, "jit evaluate")
    interruptible()
    asked.check()
    processes = join(find_device(asked.device))
    try:
        if asked.samples is None:
            with naming_the_gone(processes):
                return _of_model(asked, arguments, processes)
        return _of_samples(asked) if processes.first else DONE
    finally:
        leave(processes)


def _of_model(asked: Evaluate, arguments: Sequence[str], processes: Processes) -> int:
    """Draw samples of a model, and judge them."""
    model = load(
        asked.model,
        weights=asked.weights,
        context_start=asked.context_start,
        device=processes.device,
        dtype=SAMPLING_PRECISIONS.get(asked.precision),
    )
    # Once more with what suits the model as defaults: what the user has written wins over them.
    chosen = with_settings(model.sampling, PRESETS[asked.preset] if asked.preset else {})
    count = shared_equally(Evaluate.count, model) if asked.labels == "balanced" else Evaluate.count
    asked = parse(Evaluate, arguments, "jit evaluate", Evaluate(asked.model, count=count, sampling=chosen))
    if asked.save is not None and processes.world > 1:
        raise ValueError("--save is for one process; `jit sample` writes samples from the same seeds")
    shape = (model.config.channels, *model.config.size)
    check_samples(asked.batch_size, shape, model.device)
    data = reference_data(asked.model, asked.data, asked.data_options)
    with bars() as progress:
        judge, source = first_then_others(
            processes, lambda: asked.judge(data, shape, model.spec, processes.device, progress)
        )
        check_counts(asked.count, judge.features)
        starts = range(asked.first_seed, asked.first_seed + asked.repeats * asked.count, asked.count)
        each = [draws_of(model, asked.count, start, asked.labels, source) for start in starts]
        facts = {
            "model": asked.model,
            "weights": asked.weights or model.training_summary.get("weights", ""),
            "weights_hash": hash_of(model),
        }
        compile_for(model, asked.repeats * asked.count * asked.sampling.evaluations())
        results, pictures = places(asked.out, asked.model)
        names = [name_of(facts["weights_hash"], asked.sampling, judge, draws) for draws in each]
        found: list[Scores] = []
        with _saving(asked, model, facts) as keep:
            for draws, name in zip(each, names, strict=True):
                rows = pictures / f".{name}.rows"
                with in_the_first(processes, lambda name=name: held(pictures, only=f"{name}.png")):
                    if keep is not None:
                        remove(rows)  # of an interrupted evaluation: all samples are to be written
                    try:
                        scores = evaluate(
                            model,
                            judge,
                            draws,
                            rows,
                            sampling=asked.sampling,
                            batch_size=asked.batch_size,
                            processes=processes,
                            progress=progress,
                            keep=keep,
                        )
                    except KeyboardInterrupt:
                        if processes.first:
                            _say_what_is_kept(rows, judge, asked)
                        return INTERRUPTED
                    except ValueError:
                        if processes.first:
                            remove(rows)
                        raise
                    if scores is not None:
                        found.append(Scores(scores.scores, {**facts, **scores.facts}))
                        picture(RowStore(rows, judge.looker().kinds()), judge.spec, pictures / f"{name}.png")
                        remove(rows)
    if found:
        report(mean_of(found), results, pictures / f"{names[0]}.png")
    return DONE


def _say_what_is_kept(rows: Path, judge: Judge, asked: Evaluate) -> None:
    kept = RowStore(rows, judge.looker().kinds()).count if rows.exists() else 0
    again = "begins anew, as all samples are to be saved" if asked.save is not None else "goes on"
    say(f"interrupted: {kept:,} of {asked.count:,} samples are judged; the same command {again}")


@contextmanager
def _saving(asked: Evaluate, model: Denoiser, facts: Mapping[str, Any]) -> Iterator[Callable[[Samples], None] | None]:
    """What writes the samples; None where they are not to be kept."""
    folder = asked.save
    if folder is None:
        yield None
        return
    if folder.is_dir() and holds(folder, IMAGES) and not written_by_justimage(folder):
        raise ValueError(f"{folder} holds images that are not samples; choose another folder with --save")
    drawn = {**facts, "sampling": asdict(asked.sampling)}
    seeds: list[int] = []
    labels: list[int] = []
    with held(folder), writer(file_format("auto", model.spec), folder, model) as writing:
        write_facts(folder, drawn, [], None)  # so that the folder counts as samples from its first file on

        def keep(batch: Samples) -> None:
            writing.add(batch)
            seeds.extend(batch.seeds)
            labels.extend(batch.labels)

        try:
            yield keep
        finally:
            write_facts(folder, drawn, seeds, labels if min(labels, default=-1) >= 0 else None)


def _of_samples(asked: Evaluate) -> int:
    """Judge samples made elsewhere."""
    assert asked.samples is not None
    if asked.data is None:
        raise ValueError("--samples are compared with --data: a folder or archive of images, arrays, fields or a pack")
    samples, device = open_samples(asked.samples), find_device(asked.device)
    with bars() as progress:
        data = Reading(asked.data, asked.data_options)
        judge, _ = asked.judge(data, samples.spec.shape, samples.spec, device, progress)
        check_counts(len(samples), judge.features)
        results, pictures = places(asked.out, "")
        with TemporaryDirectory(prefix="justimage-rows-") as folder:
            store = RowStore(Path(folder), judge.looker().kinds())
            # Some scores are of a part of the samples: in an order that has nothing to do with their files, classes.
            mixed = Part(samples, order(0, range(len(samples)), len(samples)))
            for raw in batches_of(mixed, len(mixed)):
                store.append(judge.looker()(raw, range(store.count, store.count + len(raw))))
                progress(store.count, len(samples), "looking at the samples")
            scores = judge.scores(store.first(store.count))
            name = f"samples-{samples.fingerprint()[:12]}"
            with held(pictures, only=f"{name}.png"):
                picture(store, judge.spec, pictures / f"{name}.png")
    facts = {"samples": str(asked.samples), "fingerprint": samples.fingerprint(), "count": len(samples)}
    report(Scores(scores.scores, {**facts, **scores.facts}), results, pictures / f"{name}.png")
    return DONE
