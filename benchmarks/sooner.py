"""Images and time to a Frechet distance: a recipe of today against the one before it, three seeds of each.

    python benchmarks/sooner.py mnist-demo
    python benchmarks/sooner.py cifar10 --data DIR --images 128000 --share 0.65 --compile
    python benchmarks/sooner.py cifar10 --data DIR --images 380000 --share 0.56 --compile --called hour

Two processes of one thread train side by side, and seconds are those of their processor, compiling included. Both
recipes are judged by the same features, with the settings of either for drawing; of several sets of weights the better
one counts. Each training is written down when it ends, and the same command goes on from there. Writes
benchmarks/results/CALLED-RECIPE-DEVICE.json.
"""

import json
import multiprocessing
import os
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from machine import facts, result_path

from justimage.data.sources import open_source
from justimage.denoiser import Denoiser
from justimage.evaluation.draws import draws_of
from justimage.evaluation.evaluate import evaluate
from justimage.evaluation.features import open_features
from justimage.evaluation.judge import Judge
from justimage.evaluation.reference import reference_of
from justimage.networks.jit import JiTConfig
from justimage.parallel import Processes
from justimage.runs.recipes import RECIPES, Recipe
from justimage.samplers import Sampling
from justimage.training.build import build
from justimage.training.loop import train
from justimage.training.loss import flow_matching
from justimage.training.state import TrainingState
from justimage.weights.load import prepare

DEMO, CIFAR10 = RECIPES["mnist-demo"], RECIPES["cifar10"]
# The recipes before, where they differ from today's.
BEFORE = {
    "mnist-demo": replace(
        DEMO,
        network=JiTConfig.variant("XS/14", size=(28, 28), channels=1, num_classes=0, context_tokens=2),
        training=replace(DEMO.training, duration_nimg=32_000, batch_size=128, lr=2e-3, warmup_nimg=3_200),
        sampling=Sampling(steps=20, sampler="ab2", guidance=2.5, interval=(0.1, 1.0), final="x"),
    ),
    "cifar10": replace(
        CIFAR10,
        training=replace(
            CIFAR10.training, batch_size=128, lr=1e-3, warmup_nimg=12_800, ema_start_nimg=128_000, schedule="constant"
        ),
    ),
}
EVALUATED = 2_000  # samples
FIRST_SEED = 3_000_000


@dataclass(frozen=True)
class Options:
    """What is compared."""

    recipe: tyro.conf.Positional[str]
    data: str = ""
    images: int = 0
    """That the recipe before trains on; 0: as many as it says."""
    share: float = 0.5
    """Of these that today's trains on, where `images` is given."""
    seeds: int = 3
    called: str = "sooner"
    """What the name of the file begins with."""
    compile: bool = False
    """Today's with compiled blocks, as in a long run."""


def source_of(options: Options) -> Any:
    """The data of a recipe."""
    recipe = RECIPES[options.recipe]
    size, channels = recipe.network.size, recipe.network.channels
    return open_source(options.data or recipe.default_data, size, channels, recipe.data_options)


def judge_for(source: Any) -> Judge:
    """Features that are fitted to the data, once for a machine."""
    features = open_features("fit", source)
    return Judge(features, reference_of(source, features), source.spec)


def averaged(recipe: Recipe, state: TrainingState, decay: float | None) -> Denoiser:
    """A model with the trained weights, or with an average of them."""
    model = recipe.model(state.model.spec)  # pyright: ignore[reportArgumentType]
    model.net.to_empty(device="cpu").initialise()  # pyright: ignore[reportCallIssue]
    model.net.load_state_dict(state.model.net.state_dict() if decay is None else state.ema.tensors(decay))
    return prepare(model, device=torch.device("cpu"))


def trained(options: Options, which: str, seed: int) -> dict[str, Any]:
    """Train one recipe with one seed, in a process of its own -> its seconds and distances."""
    torch.set_num_threads(1)
    recipe, before = RECIPES[options.recipe], BEFORE[options.recipe]
    images = {"before": options.images, "today": int(options.images * options.share)}[which]
    chosen = before if which == "before" else recipe
    training = replace(chosen.training, seed=seed, compile=options.compile and which == "today")
    training = replace(training, duration_nimg=images or training.duration_nimg)
    source = source_of(options)
    judge = judge_for(source)
    chosen = replace(chosen, training=training).fitted_to(source.spec)
    training = chosen.training
    state = build(chosen.model(source.spec), training, Processes(device=torch.device("cpu")))
    loss, began = flow_matching(state.model, training), sum(os.times()[:4])
    ticks = list(train(state, source, loss, training, tick_nimg=max(training.duration_nimg // 8, 1)))
    seconds = sum(os.times()[:4]) - began
    found: dict[str, float] = {}
    for decay in (None, *training.ema_decays):
        model = averaged(chosen, state, decay)
        for sampling in dict.fromkeys((before.sampling, recipe.sampling)):
            scores = evaluate(model, judge, draws_of(model, EVALUATED, FIRST_SEED), sampling=sampling, batch_size=250)
            assert scores is not None
            found[f"{decay or 'raw'}, {sampling.steps} x {sampling.sampler}"] = scores["fd"].value
    return {
        "which": which,
        "seed": seed,
        "nimg": ticks[-1].nimg,
        "seconds": seconds,
        "img_per_second": [round(tick.img_per_second, 1) for tick in ticks],
        "loss": [round(tick.loss, 4) for tick in ticks],
        "fd": found,
        "best_fd": min(found.values()),
        "features": {"name": judge.features.name, **judge.features.facts},
        "floor": judge.reference.floor,
    }


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Means with standard errors over the seeds, and what today's needs of the time before."""

    def numbers(which: str, name: str) -> np.ndarray:
        return np.array([row[name] for row in rows if row["which"] == which])

    def mean(values: np.ndarray) -> dict[str, float]:
        error = float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0
        return {"mean": float(values.mean()), "error": error}

    found: dict[str, Any] = {
        which: {name: mean(numbers(which, name)) for name in ("best_fd", "seconds", "nimg")}
        for which in ("before", "today")
    }
    found["share_of_time"] = float(np.median(numbers("today", "seconds")) / np.median(numbers("before", "seconds")))
    found["reached"] = found["today"]["best_fd"]["mean"] <= found["before"]["best_fd"]["mean"]
    return found


def known(path: Path, settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Trainings of an earlier call with the same settings; those before do not depend on today's share of images."""
    if not path.is_file():
        return []
    earlier = json.loads(path.read_text())
    theirs, share = earlier["settings"], settings["options"]["share"]
    same = {**theirs, "options": {**theirs["options"], "share": share}} == settings
    all_of = theirs["options"]["share"] == share
    return [row for row in earlier["rows"] if same and (all_of or row["which"] == "before")]


def main(options: Options) -> None:
    """Train what is missing, two at a time, and write the file."""
    device = torch.device("cpu")
    path = result_path(f"{options.called}-{options.recipe}", device, ".json")
    told = {name: value for name, value in asdict(options).items() if name not in ("data", "seeds", "called")}
    recipes: dict[str, Any] = {"before": BEFORE[options.recipe], "today": RECIPES[options.recipe]}
    training = {which: asdict(recipe.training) for which, recipe in recipes.items()}
    networks = {which: asdict(recipe.network) for which, recipe in recipes.items()}
    settings = json.loads(json.dumps({"options": told, "training": training, "networks": networks}))
    rows = known(path, settings)
    judge_for(source_of(options))  # fitted once, before the processes ask for it
    done = {(row["which"], row["seed"]) for row in rows}
    jobs = [(which, seed) for seed in range(options.seeds) for which in recipes if (which, seed) not in done]
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        for future in as_completed([pool.submit(trained, options, *job) for job in jobs]):
            rows.append(future.result())
            print(json.dumps(rows[-1]), flush=True)
            rows.sort(key=lambda row: (row["seed"], row["which"]))
            result = {"machine": facts(device), "settings": settings, "rows": rows}
            path.write_text(json.dumps(result, indent=1) + "\n")
    result = {"machine": {**facts(device), "threads": 1}, "settings": settings, "rows": rows, "summary": summary(rows)}
    path.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result["summary"], indent=1))


if __name__ == "__main__":
    main(tyro.cli(Options))
