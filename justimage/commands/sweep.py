"""`jit sweep`."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.table import Table

from justimage.commands.console import bars, console, interruptible, say
from justimage.commands.judging import ExtractorName, in_words, judge_of, picture, reference_data, save_nearest
from justimage.commands.line import parse
from justimage.commands.main import DONE, INTERRUPTED
from justimage.data.records import read_json
from justimage.data.sources import DataOptions
from justimage.disk.hold import held
from justimage.disk.whole import remove, write_text
from justimage.evaluation.draws import Labels, draws_of, shared_equally
from justimage.evaluation.evaluate import evaluate, hash_of, mean_of, name_of
from justimage.evaluation.judge import check_counts
from justimage.evaluation.plots import plot_guidance, plot_nfe, pyplot
from justimage.evaluation.rows import RowStore
from justimage.evaluation.scores import Scores, plain
from justimage.evaluation.sweep import Halving, Space, Sweep, Trial, sweep
from justimage.execution import find_device
from justimage.parallel import Processes, first_then_others, in_the_first, join, leave, naming_the_gone
from justimage.runs.evaluations import BEST
from justimage.samplers import Sampling
from justimage.sampling.draw import check_samples
from justimage.weights.folder import CONFIG, is_run, write_sampling
from justimage.weights.load import compile_for, find_weights, load, swap_weights, weight_sets

SHOWN = 12  # rows of the table


@dataclass(frozen=True)
class SweepCommand:
    """Find the weights and settings that draw the best samples: a table, plots, and a recommendation.

    All sets of weights of a run and all combinations of the settings draw the same few samples first; the better third
    goes on to twice as many, until the last ones draw them all. The unguided setting and the model's own one stay to
    the end. The winner is judged once more with fresh seeds, and looked at for copies of the training data.
    """

    models: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="MODEL [MODEL ...]")]
    """Runs, weights folders or official checkpoints; several must be of one network."""
    data: Annotated[str | None, tyro.conf.arg(metavar="REF")] = None
    """What samples are compared with, as for jit evaluate."""
    weights: Annotated[tuple[str, ...], tyro.conf.arg(metavar="[NAME ...]")] = ()
    """Which sets of weights; all that there are by default."""
    space: Annotated[Space, tyro.conf.arg(name="")] = field(default_factory=Space)
    halving: Annotated[Halving, tyro.conf.arg(name="")] = field(default_factory=Halving)
    repeats: Annotated[int, tyro.conf.arg(metavar="N")] = 3
    """Fresh evaluations of the winner; their spread is the error of its final number."""
    labels: Labels = "balanced"
    """balanced: every class equally often; data: classes and conditions as in the data."""
    features: ExtractorName = "fit"
    """As for jit evaluate."""
    features_weights: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """The weights of inception, dinov2 or clip, where they are not to be downloaded."""
    first_seed: Annotated[int, tyro.conf.arg(metavar="SEED")] = 0
    """Of the samples of the sweep; the fresh ones come after them."""
    unseen: Annotated[str | None, tyro.conf.arg(metavar="PATH")] = None
    """Data that were not trained on, for the copying check."""
    write: tyro.conf.FlagCreatePairsOff[bool] = False
    """Write the recommended settings into the config of the winner's weights: `jit sample` then uses them."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Folder for sweep.json and the pictures; by default `sweep` in the run, or `sweep`."""
    data_options: DataOptions = field(default_factory=DataOptions)
    batch_size: Annotated[int, tyro.conf.arg(metavar="N")] = 64
    """Samples drawn at once by each process; it only changes the speed."""
    device: Annotated[str | None, tyro.conf.arg(metavar="DEVICE")] = None
    """cpu, cuda, ...; the accelerator by default, if there is one."""


def main(arguments: Sequence[str]) -> int:
    """Sweep; returns the exit code."""
    asked = parse(SweepCommand, arguments, "jit sweep")
    interruptible()
    if not asked.models:
        raise ValueError("give a MODEL: a run, a weights folder or a checkpoint")
    if asked.batch_size < 1 or asked.repeats < 1:
        raise ValueError(f"batch_size ({asked.batch_size}) and repeats ({asked.repeats}) must be at least 1")
    pyplot()  # raises now, not after the sampling
    sets = sets_of(asked)
    processes = join(find_device(asked.device))
    try:
        with naming_the_gone(processes):
            return _sweep(asked, arguments, sets, processes)
    except KeyboardInterrupt:
        if processes.first:
            say("interrupted; the same command goes on from what was drawn")
        return INTERRUPTED
    finally:
        leave(processes)


def sets_of(asked: SweepCommand) -> list[tuple[str, str]]:
    """(source, weights) of all that take part. Raises ValueError where some do not exist, or cannot be written to."""
    sets = []
    for source in asked.models:
        there = weight_sets(source)
        missing = [name for name in asked.weights if name not in there]
        if missing:
            raise ValueError(f"{source} has the weights {', '.join(there) or 'of one set'}, not {missing[0]!r}")
        others = [name for name in there if name != BEST.name or not _best_is_a_copy(Path(source), there)]
        sets += [(source, name) for name in (asked.weights or others or [""])]
        if asked.write and not Path(source).is_dir():
            raise ValueError(
                f"--write: {source} is no folder with a config to write to; convert an official checkpoint first: "
                "jit convert FILE FOLDER"
            )
    return list(dict.fromkeys(sets))


def _best_is_a_copy(run: Path, there: Sequence[str]) -> bool:
    """Whether the best weights of a run are also another of its sets: those of a save at the same moment."""

    def moment(name: str) -> tuple[str, Any]:
        config = read_json(run / "weights" / name / CONFIG)
        said = (config.get("training") if isinstance(config, dict) else None) or {}
        return str(said.get("weights", name)).partition("@")[0], said.get("nimg")

    return moment(BEST.name) in {moment(name) for name in there if name != BEST.name}


def _sweep(asked: SweepCommand, arguments: Sequence[str], sets: list[tuple[str, str]], processes: Processes) -> int:
    source, weights = sets[0]
    model = load(source, weights=weights or None, device=processes.device)
    # Once more with a number that the model's classes share as default: what the user has written wins over it.
    few = shared_equally(Halving.count, model) if asked.labels == "balanced" else Halving.count
    asked = parse(SweepCommand, arguments, "jit sweep", SweepCommand(asked.models, halving=Halving(few)))
    check_samples(asked.batch_size, (model.config.channels, *model.config.size), model.device)
    candidates = asked.space.candidates(sets, model.sampling, guided=bool(model.needs))
    data = reference_data(source, asked.data, asked.data_options)
    shape = (model.config.channels, *model.config.size)
    out = asked.out or (Path(source) / "sweep" if is_run(source) else Path("sweep"))
    with bars() as progress, in_the_first(processes, lambda: held(out)):
        judge, given = first_then_others(
            processes,
            lambda: judge_of(
                data,
                shape,
                features=asked.features,
                weights=asked.features_weights,
                spec=model.spec,
                unseen=asked.unseen,
                mirrored=False,
                device=processes.device,
                progress=progress,
            ),
        )
        check_counts(asked.halving.count, judge.features)
        count = asked.halving.count
        draws = draws_of(model, count, asked.first_seed, asked.labels, given)
        compile_for(model, count * sum(each.sampling.evaluations() for each in candidates))
        if processes.first:
            say(
                f"{len(candidates)} candidates: {len(sets)} sets of weights, {len(candidates) // len(sets)} settings; "
                f"judged by {judge.features.name} on {judge.reference.facts.get('found', data.path)}"
            )
        found = sweep(
            model,
            judge,
            draws,
            candidates,
            asked.halving,
            out / "rows",
            always=(
                lambda each: each.sampling.guidance == 1,
                lambda each: each.sampling == candidates[0].sampling,  # the model's own
            ),
            batch_size=asked.batch_size,
            processes=processes,
            progress=progress,
        )
        best = found.best.candidate
        swap_weights(model, best.source, best.weights or None)
        fresh: list[Scores] = []
        for k in range(1, asked.repeats + 1):
            again = draws_of(model, count, asked.first_seed + k * count, asked.labels, given)
            rows = out / "rows" / f"fresh-{name_of(hash_of(model), best.sampling, judge, again)}"
            scores = evaluate(
                model,
                judge,
                again,
                rows,
                sampling=best.sampling,
                batch_size=asked.batch_size,
                processes=processes,
                progress=lambda done, total, what, k=k: progress(done, total, f"fresh seeds {k}"),
            )
            if scores is not None:
                fresh.append(scores)
                store = RowStore(rows, judge.looker().kinds())
                if k == 1:
                    picture(store, judge.spec, out / "best.png")
                    save_nearest(store, judge, given, out / "nearest.png")
        if processes.first:
            _report(asked, found, mean_of(fresh), out)
            remove(out / "rows")
    return DONE


def _report(asked: SweepCommand, found: Sweep, fresh: Scores, out: Path) -> None:
    """Print what was found, write it and its plots, and the settings into the weights where that was asked for."""
    plot_guidance(found.first, out / "guidance.png")
    plot_nfe(found.first, out / "nfe.png")
    facts = {
        "recommended": asdict(found.best.candidate),
        "fresh": fresh.to_json(),
        "samples_drawn": found.drawn,
        "samples_of_a_full_grid": found.full,
        "trials": [_plain(trial) for trial in found.trials],
        "first_round": [_plain(trial) for trial in found.first],
    }
    write_text(out / "sweep.json", json.dumps(facts, indent=2) + "\n")
    table = Table("samples", "fd", "", "evaluations", "setting", box=None, header_style="bold")
    for trial in found.trials[:SHOWN]:
        error = "" if trial.fd.error is None else f"\N{PLUS-MINUS SIGN} {trial.fd.error:.2g}"
        nfe = str(trial.candidate.sampling.evaluations())
        table.add_row(f"{trial.count:,}", f"{trial.fd.value:.4g}", error, nfe, trial.candidate.text())
    console.print(table)
    more = len(found.trials) - SHOWN
    if more > 0:
        say(f"and {more} more in {out / 'sweep.json'}; compare distances of as many samples only")
    say(f"\nThe best: {found.best.candidate.text()}")
    say(f"On fresh seeds, {asked.repeats} times {found.best.count:,} samples:")
    say(str(fresh))
    say(in_words(fresh))
    share = found.drawn / found.full
    say(f"drawn: {found.drawn:,} samples, {share:.0%} of a full grid's; pictures, plots and sweep.json are in {out}")
    best = found.best.candidate
    named = f" --weights {best.weights}" if best.weights else ""
    if asked.write:
        place = Path(best.source)
        folder = find_weights(place, best.weights) if is_run(place) else place
        write_sampling(folder, asdict(best.sampling))
        say(f"written into {folder}; draw with: jit sample {best.source}{named}")
    else:
        say(f"draw with: jit sample {best.source}{named} {as_options(best.sampling)}; or add --write")


def as_options(sampling: Sampling) -> str:
    """Settings as options of `jit sample`."""
    lo, hi = sampling.interval
    return (
        f"--sampler {sampling.sampler} --steps {sampling.steps} --guidance {sampling.guidance:g} "
        f"--interval {lo:g} {hi:g} --shift {sampling.shift:g} --final {sampling.final} "
        f"--guidance-every {sampling.guidance_every}"
    )


def _plain(trial: Trial) -> dict[str, Any]:
    nfe = trial.candidate.sampling.evaluations()
    return {
        **asdict(trial.candidate),
        "nfe": nfe,
        "samples": trial.count,
        "fd": plain(trial.fd.value),
        "error": plain(trial.fd.error),
    }
