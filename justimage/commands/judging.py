"""What the commands that judge samples share: which data, which features, and where results go."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from justimage.commands.console import say
from justimage.data.records import from_known, read_json
from justimage.data.sources import DataOptions, leads_somewhere, open_source
from justimage.data.spec import DataSpec, Source, StreamSource, evenly
from justimage.disk.whole import append_json
from justimage.evaluation.copying import copying, reduced
from justimage.evaluation.features import Features, open_features
from justimage.evaluation.fitted import Progress, load_fitted
from justimage.evaluation.judge import Judge
from justimage.evaluation.metrics import enough_to_extrapolate
from justimage.evaluation.reference import (
    MOST_COPIES,
    check_comparable,
    is_statistics,
    read_statistics,
    reference_of,
)
from justimage.evaluation.rows import RowStore
from justimage.evaluation.scores import Scores, now
from justimage.runs.folder import RESULTS
from justimage.sampling.pictures import grid, save
from justimage.weights.folder import RECIPE, is_run

ExtractorName = Literal["fit", "inception", "dinov2", "clip"]
SHOWN = 100  # samples of a picture
NEAREST = 10  # of them beside their nearest training samples
UNSEEN = 2000  # samples that were not trained on, for the copying check


@dataclass(frozen=True)
class Reading:
    """A path of data, and how they are read."""

    path: str
    options: DataOptions


def reference_data(model: str, data: str | None, options: DataOptions) -> Reading:
    """The data that a model is compared with: those given, else those that its run was trained on.

    Raises ValueError where there are none.
    """
    if data is not None:
        return Reading(data, options)
    if not is_run(model):
        raise ValueError(
            f"{model} is no run, so it does not say what it was trained on; give --data, or an .npz of statistics"
        )
    recipe = Path(model) / RECIPE
    facts = read_json(recipe)
    try:
        path, theirs = str(facts["data"]["path"]), facts["recipe"]["data_options"]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{recipe} is damaged: it lacks {error}; give --data") from error
    if path.startswith("<") or not path:
        raise ValueError(f"{recipe} does not say where its data are; give --data")
    known = from_known(DataOptions, theirs, str(recipe), "recipe.data_options")
    if not leads_somewhere(path):
        raise ValueError(
            f"{model} was trained on {path} ({recipe}), which is not there now; say where with --data PATH"
        )
    return Reading(path, replace(known, workers=options.workers))


def judge_of(
    data: Reading,
    shape: tuple[int, ...],
    *,
    features: str,
    weights: Path | None,
    spec: DataSpec | None,
    unseen: str | None,
    mirrored: bool,
    device: torch.device,
    progress: Progress,
) -> tuple[Judge, Source | StreamSource | None]:
    """Features and reference, and the data themselves; None where only their statistics are given.

    shape: (C, *S) of the samples. spec: what they mean, where that is known; else they are of the data's. Raises
    ValueError where they cannot be compared.
    """
    channels, *lengths = shape
    size = tuple(lengths)
    statistics = Path(data.path)
    if is_statistics(statistics):
        if spec is None:
            raise ValueError(
                f"{statistics} holds statistics only, and this model does not say what its values mean; give the data "
                "themselves with --data"
            )
        for option, given in (("--unseen", unseen is not None), ("--mirrored", mirrored)):
            if given:
                raise ValueError(f"{option} needs the data themselves, and {statistics} holds statistics only")
        made = _without_data(features, weights, device, statistics)
        made.check(spec)
        return Judge(made, read_statistics(statistics, made), spec), None
    source = open_source(data.path, size, channels, data.options)
    if spec is not None:
        check_comparable(spec, source.spec, data.path)
    elif source.spec.shape != shape:
        raise ValueError(
            f"{data.path} holds samples {source.spec.shape}, and those of the model are {shape}; they must agree"
        )
    made = open_features(features, source, weights=weights, device=device, progress=progress)
    made.check(source.spec)
    others = None if unseen is None else _unseen(unseen, size, channels, data.options, source.spec)
    reference = reference_of(source, made, mirrored=mirrored, path=data.path, progress=progress, device=device)
    return Judge(made, reference, source.spec, others), source


def _without_data(name: str, weights: Path | None, device: torch.device, statistics: Path) -> Features:
    """The features that statistics are of: fitted ones are found again by the name that the statistics carry."""
    if name != "fit":
        return open_features(name, weights=weights, device=device)
    with np.load(statistics, allow_pickle=False) as file:
        of = str(file["features"]) if "features" in file.files else ""
    try:
        return load_fitted(of or "unnamed", device=device)
    except ValueError as error:
        raise ValueError(
            f"{statistics} holds statistics of {of or 'unnamed'} features, and --features fit needs those that were "
            "fitted to the data, which are not here; choose --features inception, or give the data themselves"
        ) from error


def _unseen(path: str, size: tuple[int, ...], channels: int, options: DataOptions, spec: DataSpec) -> np.ndarray:
    """Reduced samples of data that were not trained on."""
    source = open_source(path, size, channels, options)
    if source.indexed is not True:
        raise ValueError(f"--unseen {path} is a stream; give a folder, an archive or arrays")
    check_comparable(source.spec, spec, path)
    chosen = evenly(len(source), UNSEEN)
    return np.concatenate([reduced(source[i][0][None], spec) for i in chosen.tolist()])


def places(out: Path | None, model: str) -> tuple[Path, Path]:
    """The file that a result is added to, and the folder of pictures."""
    if out is not None:
        return out / RESULTS, out
    if model and is_run(model):
        return Path(model) / RESULTS, Path(model) / "evaluations"
    return Path("evaluations") / RESULTS, Path("evaluations")


def picture(store: RowStore, spec: DataSpec, path: Path) -> None:
    """A grid of the first samples."""
    shown = torch.from_numpy(np.array(store["raw"][:SHOWN]))
    save(grid(shown, spec, 10), path)


def save_nearest(store: RowStore, judge: Judge, source: Source | StreamSource | None, path: Path) -> None:
    """A picture of the samples that come nearest to training samples, and below each of them that one."""
    if source is None or source.indexed is not True or judge.reference.small is None:
        return
    raw = store["raw"]
    found = copying(reduced(raw, judge.spec), judge.reference.small, judge.unseen)
    chosen = np.argsort(found.ratios)[:NEAREST]
    where = evenly(len(source), MOST_COPIES)[found.nearest[chosen]]
    pairs = [torch.from_numpy(np.stack([raw[i] for i in chosen]))]
    pairs.append(torch.from_numpy(np.stack([source[int(i)][0] for i in where])))
    captions = [f"{found.distances[i]:.3f}" for i in chosen] + [source.name(int(i)) for i in where]
    titles = ("samples, and their distance", "nearest in the training data")
    save(grid(torch.cat(pairs), judge.spec, len(chosen), row_titles=titles, captions=captions), path)


def report(scores: Scores, path: Path, drawn: Path) -> None:
    """Print a result, and add it to a file as one line."""
    say(str(scores))
    say(in_words(scores))
    append_json(path, {"time": now(), **scores.to_json()})
    say(f"added to {path}; a grid of the first samples: {drawn}")


def in_words(scores: Scores) -> str:
    """What was judged, by what, how sure it is, and where the time went."""
    facts: dict[str, Any] = scores.facts
    features, reference = facts["features"], facts["reference"]
    held_out = {name: value for name, value in features.items() if name.startswith("held_out_")}
    shown = ", ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in held_out.items())
    lines = [
        f"{facts['count']:,} samples"
        + (f", labels {facts['labels']}" if "labels" in facts else "")
        + f", against {reference.get('found', reference.get('path'))}",
        f"features {features['name']}"
        + (f" ({shown})" if shown else "")
        + "; numbers of other features cannot be compared with these",
    ]
    enough = enough_to_extrapolate(features["size"])
    if "fd_infinity" not in scores:
        lines.append(f"fd_infinity needs {enough:,} samples at least")
    fd = scores["fd"]
    if fd.error is not None:
        lines.append(
            f"differences in fd below {2 * fd.error:.2g} (two standard errors) are within the noise of these samples"
        )
    if "overhead" in facts:
        lines.append(
            f"{facts['nfe']} evaluations a sample; {facts['overhead']:.1%} of the time was not spent in drawing"
        )
    return "\n".join(lines)
