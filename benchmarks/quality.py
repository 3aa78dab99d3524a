"""Quality against evaluations for every sampler, the presets with their speed, and the sweep against a full grid.

python benchmarks/quality.py nfe RUN --name mnist-demo
python benchmarks/quality.py presets RUN --name mnist-demo --count 5000
python benchmarks/quality.py sweep RUN --name mnist-demo
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from machine import facts, result_path

from justimage.commands.judging import judge_of, reference_data
from justimage.data.sources import DataOptions
from justimage.denoiser import Denoiser
from justimage.evaluation.draws import Draws, draws_of
from justimage.evaluation.evaluate import evaluate
from justimage.evaluation.judge import Judge
from justimage.evaluation.plots import pyplot
from justimage.evaluation.sweep import Candidate, Halving, Space, Sweep, sweep
from justimage.precision import SAMPLING_PRECISIONS
from justimage.samplers import PRESETS
from justimage.speed.bench import sampling_rows
from justimage.weights.load import load, weight_sets

STEPS = {"heun": (3, 5, 8, 12), "ab2": (5, 8, 12, 25), "deis": (5, 8, 10, 12, 16, 25)}
ROUNDS = 10  # of evaluations, and half as many of whole samples
REPEATED = 2  # guidance_every, tried as well with deis
COMPARED = "fast"  # the preset that is also drawn in other precisions
GUIDANCE = (1.0, 1.25, 1.5, 2.0, 2.5, 3.5)
INTERVALS = ((0.0, 1.0), (0.1, 1.0))


def opened(run: str) -> tuple[Denoiser, Judge, Any]:
    """The model of a run on the CPU, in this machine's precision, and what judges it: fitted features, and its data."""
    model = load(run, device="cpu")
    data = reference_data(run, None, DataOptions())
    judge, source = judge_of(
        data,
        (model.config.channels, *model.config.size),
        features="fit",
        weights=None,
        spec=model.spec,
        unseen=None,
        mirrored=False,
        device=model.device,
        progress=lambda *_: None,
    )
    return model, judge, source


def scored(
    model: Denoiser, judge: Judge, draws: Draws, candidates: Sequence[Candidate], halving: Halving, batch_size: int
) -> tuple[Sweep, float]:
    """A sweep, and its seconds. One that keeps all candidates from the first round on is a full grid."""
    began = time.perf_counter()
    with TemporaryDirectory() as folder:
        always = (lambda each: each.sampling.guidance == 1,)
        found = sweep(model, judge, draws, candidates, halving, Path(folder), always=always, batch_size=batch_size)
    return found, time.perf_counter() - began


def fresh(
    model: Denoiser,
    judge: Judge,
    source: Any,
    candidates: Sequence[Candidate],
    count: int,
    repeats: int,
    batch_size: int,
) -> dict[Candidate, dict[str, Any]]:
    """Frechet distances of candidates on fresh seeds: each, their mean and its standard error."""
    each: dict[Candidate, list[float]] = {candidate: [] for candidate in candidates}
    for k in range(repeats):
        draws = draws_of(model, count, 1_000_000 + k * count, "balanced", source)
        found, _ = scored(model, judge, draws, candidates, Halving(count, first=1.0), batch_size)
        for trial in found.trials:
            each[trial.candidate].append(trial.fd.value)
    return {
        candidate: {
            "each": values,
            "mean": float(np.mean(values)),
            "error": float(np.std(values, ddof=1) / np.sqrt(len(values))),
        }
        for candidate, values in each.items()
    }


def curve(run: str, count: int, repeats: int, batch_size: int, before: dict[str, Any]) -> dict[str, Any]:
    """Quality against evaluations for every sampler, and the cheapest setting not measurably worse than the paper's.

    before: the result of an earlier call; what it holds of the same samples by the same judge is not drawn again.
    """
    model, judge, source = opened(run)
    own = model.sampling
    paper = Candidate(run, "", replace(own, **PRESETS["paper"]))
    weights = model.training_summary.get("weights", "")
    paper = replace(paper, weights=weights)
    rest = [
        Candidate(
            run,
            weights,
            replace(own, sampler=sampler, steps=steps, final="x", guidance_every=every),
        )
        for sampler, counts in STEPS.items()
        for steps in counts
        for every in ((1, REPEATED) if sampler == "deis" else (1,))
    ]
    began = time.perf_counter()
    same = {"weights": weights, "training": model.training_summary, "count": count, "repeats": repeats}
    same |= {"features": {"name": judge.features.name, **judge.features.facts}}
    held = before["rows"] if all(before.get(name) == value for name, value in same.items()) else []
    known = {json.dumps(row["sampling"]): row["fd"] for row in held}
    every = {candidate: known.get(json.dumps(asdict(candidate.sampling))) for candidate in (paper, *rest)}
    missing = [candidate for candidate, values in every.items() if values is None]
    drawn = fresh(model, judge, source, missing, count, repeats, batch_size) if missing else {}
    found = {candidate: values or drawn[candidate] for candidate, values in every.items()}
    base = np.array(found[paper]["each"])
    rows = []
    for candidate, values in found.items():
        apart = np.array(values["each"]) - base  # with the same seeds, so their common part cancels
        error = float(apart.std(ddof=1) / np.sqrt(len(apart)))
        rows.append(
            {
                "sampling": asdict(candidate.sampling),
                "nfe": candidate.sampling.evaluations(),
                "fd": values,
                "worse_by": float(apart.mean()),
                "worse_by_error": error,
                "measurably_worse": bool(apart.mean() > 2 * error),
                "paper": candidate == paper,
            }
        )
    fair = [row for row in rows if not row["measurably_worse"]]
    return {
        **same,
        "floor": judge.reference.floor,
        "rows": sorted(rows, key=lambda row: row["nfe"]),
        "cheapest": min(fair, key=lambda row: row["nfe"]),
        "seconds": round(time.perf_counter() - began, 1),
    }


def presets(run: str, count: int, repeats: int, batch_size: int, path: Path) -> dict[str, Any]:
    """Every preset: Frechet distances on the same fresh seeds, and how many times faster than `paper` it draws.

    One of them is drawn in float32 and in int8 as well, where this machine does not compute so by itself.

    path: where the result goes, and is kept after each distance; the same command goes on from there.
    """
    model, judge, source = opened(run)
    weights = model.training_summary.get("weights", "")
    settings = {name: replace(model.sampling, **said) for name, said in PRESETS.items()}
    precision = str(next(model.net.parameters()).dtype).removeprefix("torch.")
    models, given = dict.fromkeys(settings, model), dict.fromkeys(settings, "")
    for name in ("float32", "int8"):
        if name != precision:
            other = f"{COMPARED} in {name}"
            settings[other] = settings[COMPARED]
            models[other] = load(run, device="cpu", dtype=SAMPLING_PRECISIONS[name])
            given[other] = f" in {name}"
    result: dict[str, Any] = {
        "weights": weights,
        "precision": precision,
        "training": model.training_summary,
        "count": count,
        "repeats": repeats,
        "features": {"name": judge.features.name, **judge.features.facts},
        "floor": judge.reference.floor,
    }
    before = json.loads(path.read_text()) if path.is_file() else {}
    same = all(before.get(name) == value for name, value in result.items())
    known = before.get("each", {}) if same else {}
    each: dict[str, dict[str, float]] = {}
    for k in range(repeats):
        for name, sampling in settings.items():
            key = f"{json.dumps(asdict(sampling))}{given[name]} from {k}"
            if key not in known:
                draws = draws_of(model, count, 1_000_000 + k * count, "balanced", source)
                scores = evaluate(models[name], judge, draws, sampling=sampling, batch_size=batch_size)
                assert scores is not None
                known[key] = scores["fd"].value
                path.write_text(json.dumps({**result, "each": known}, indent=2) + "\n")
            each.setdefault(name, {})[str(k)] = known[key]
    speed = sampling_rows(model, batch_size, ROUNDS, model.device, whole=True)
    rates = {row["what"]: row["img_per_second"] for row in speed["samples"]}
    rows = {}
    for name, sampling in settings.items():
        values, base = (np.array(list(each[which].values())) for which in (name, "paper"))
        apart, error = float((values - base).mean()), float((values - base).std(ddof=1) / np.sqrt(repeats))
        rows[name] = {
            "sampling": asdict(sampling),
            "nfe": sampling.evaluations(),
            "fd": {
                "each": values.tolist(),
                "mean": float(values.mean()),
                "error": float(values.std(ddof=1) / np.sqrt(repeats)),
            },
            "worse_by": apart,
            "worse_by_error": error,
            "measurably_worse": apart > 2 * error,
        }
        if name in rates:
            rows[name] |= {"img_per_second": rates[name], "times_faster": rates[name] / rates["paper"]}
    return {**result, "each": known, "presets": rows, "speed": speed}


def against_grid(run: str, count: int, repeats: int, batch_size: int, steps: int) -> dict[str, Any]:
    """The sweep and a full grid of the same candidates; the best of both on fresh seeds."""
    model, judge, source = opened(run)
    sets = [(run, name) for name in weight_sets(run) if name != "best"]
    space = Space(
        GUIDANCE, INTERVALS, ("ab2",), (steps,), (1.0,) if len(sets) > 1 else (1.0, 1.5, 2.0), ("official", "x")
    )
    own = replace(model.sampling, sampler="ab2", steps=steps)
    candidates = space.candidates(sets, own, guided=True)
    draws = draws_of(model, count, 0, "balanced", source)
    grid, grid_seconds = scored(model, judge, draws, candidates, Halving(count, first=1.0), batch_size)
    halved, sweep_seconds = scored(model, judge, draws, candidates, Halving(count), batch_size)
    winners = list(dict.fromkeys((grid.best.candidate, halved.best.candidate)))
    found = fresh(model, judge, source, winners, count, repeats, batch_size)
    apart = np.array(found[halved.best.candidate]["each"]) - np.array(found[grid.best.candidate]["each"])
    return {
        "candidates": len(candidates),
        "training": model.training_summary,
        "features": {"name": judge.features.name, **judge.features.facts},
        "floor": judge.reference.floor,
        "count": count,
        "repeats": repeats,
        "grid": {"best": asdict(grid.best.candidate), "samples": grid.drawn, "seconds": round(grid_seconds, 1)},
        "sweep": {"best": asdict(halved.best.candidate), "samples": halved.drawn, "seconds": round(sweep_seconds, 1)},
        "share_of_samples": halved.drawn / grid.drawn,
        "fresh_grid": found[grid.best.candidate],
        "fresh_sweep": found[halved.best.candidate],
        "sweep_worse_by": float(apart.mean()),
        "sweep_worse_by_error": float(apart.std(ddof=1) / np.sqrt(len(apart))),
        "grid_trials": [
            {**asdict(trial.candidate), "fd": trial.fd.value, "error": trial.fd.error} for trial in grid.trials
        ],
    }


def plot(result: dict[str, Any], path: Path) -> None:
    """The curve of each sampler with error bars, and the paper's setting as a band."""
    figures = pyplot()
    figure, axes = figures.subplots(figsize=(7, 4.5), layout="constrained")
    for sampler in STEPS:
        for every in (1, REPEATED):
            wanted = {"sampler": sampler, "guidance_every": every}
            rows = [r for r in result["rows"] if not r["paper"] and wanted.items() <= r["sampling"].items()]
            if rows:
                x, y, e = [row["nfe"] for row in rows], *([r["fd"][n] for r in rows] for n in ("mean", "error"))
                label = sampler if every == 1 else f"{sampler}, guidance at every second step"
                style = "-" if every == 1 else "--"
                axes.errorbar(x, y, yerr=e, marker="o", capsize=3, linestyle=style, label=label)
    paper = next(row for row in result["rows"] if row["paper"])
    low, high = (paper["fd"]["mean"] + sign * 2 * paper["fd"]["error"] for sign in (-1, 1))
    axes.axhspan(low, high, alpha=0.2, color="grey")
    label = f"the paper's 50 Heun steps, {paper['nfe']} evaluations"
    axes.axhline(paper["fd"]["mean"], color="grey", label=label)
    axes.set(xscale="log", yscale="log", xlabel="network evaluations a sample, guided ones twice")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter("{x:g}")
    axes.set_ylabel(f"Frechet distance, {result['repeats']} x {result['count']:,} samples")
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)


def main() -> None:
    """Measure, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("nfe", "presets", "sweep"))
    parser.add_argument("run")
    parser.add_argument("--name", required=True, help="what the result is called")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=12, help="of ab2, in the sweep")
    parser.add_argument("--batch-size", type=int, default=100)
    asked = parser.parse_args()
    device = torch.device("cpu")
    path = result_path(f"{asked.what}-{asked.name}", device, ".json")
    if asked.what == "nfe":
        before = json.loads(path.read_text()) if path.is_file() else {}
        result = curve(asked.run, asked.count, asked.repeats, asked.batch_size, before)
    elif asked.what == "presets":
        result = presets(asked.run, asked.count, asked.repeats, asked.batch_size, path)
    else:
        result = against_grid(asked.run, asked.count, asked.repeats, asked.batch_size, asked.steps)
    result = {"machine": facts(device), **result}
    path.write_text(json.dumps(result, indent=2) + "\n")
    if asked.what == "nfe":
        plot(result, path.with_suffix(".png"))
    print(
        json.dumps(
            {name: value for name, value in result.items() if name not in ("rows", "grid_trials", "each")}, indent=2
        )
    )


if __name__ == "__main__":
    main()
