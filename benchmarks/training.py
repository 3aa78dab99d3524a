"""A training run of so many minutes: its grid, its settings, and where the time of a step goes.

    python benchmarks/training.py cifar10 --data DIR --minutes 4

Writes benchmarks/results/training-RECIPE-DEVICE.json and .png: the loss at every tick, img/s, the share of time spent
waiting on data, and the share of a step that its random draws take (timed by themselves, on the same batch).
"""

import json
import shutil
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import tyro
from machine import facts, fastest, result_path
from rich.console import Console

from justimage.data.sources import open_source
from justimage.execution import best_device
from justimage.parallel import Processes
from justimage.randomness import Purpose, normals, training_noise, uniforms
from justimage.runs.recipes import RECIPES
from justimage.runs.run import Interrupted, train_run


@dataclass(frozen=True)
class Options:
    """What is run."""

    recipe: tyro.conf.Positional[str]
    data: str = ""
    minutes: float = 4.0


def main(options: Options) -> None:
    """Train, time the draws, write the files."""
    device = best_device()
    recipe = RECIPES[options.recipe]
    recipe = replace(recipe, report=replace(recipe.report, evaluate_nimg=0))  # what is timed is the training
    network = recipe.network
    source = open_source(options.data or recipe.default_data, network.size, network.channels, recipe.data_options)
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        try:
            train_run(
                recipe, source, run, processes=Processes(device=device), console=Console(), minutes=options.minutes
            )
        except Interrupted as stop:
            print(stop)
        log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
        shutil.copy(
            sorted((run / "samples").glob("*.png"))[-1], result_path(f"training-{options.recipe}", device, ".png")
        )

    training = recipe.training
    positions, shape = range(training.batch_size), source.spec.shape

    def draws() -> None:
        training_noise(training.seed, positions, shape, device)
        normals(training.seed, Purpose.TIME, positions)
        uniforms(training.seed, Purpose.FLIP, positions)
        uniforms(training.seed, Purpose.DROP, positions)

    rates = sorted(line["img_per_second"] for line in log[1:] or log)
    step = training.batch_size / rates[len(rates) // 2]
    drawing = fastest({"draws": draws}, 10, device)["draws"]
    result = {
        "what": f"recipe {options.recipe} for {options.minutes:g} minutes",
        **facts(device),
        "data": source.describe().replace(options.data, "DIR") if options.data else source.describe(),
        "precision": str(training.dtype(device)).removeprefix("torch."),
        "nimg": log[-1]["nimg"],
        "img_per_second_median": round(rates[len(rates) // 2], 1),
        "draws_ms": round(1e3 * drawing, 3),
        "draws_share_of_step": round(drawing / step, 4),
        "waiting_on_data_median": round(sorted(line["waiting_on_data"] for line in log)[len(log) // 2], 4),
        "loss": {line["nimg"]: round(line["loss"], 4) for line in log},
        "settings": asdict(recipe.fitted_to(source.spec)),
    }
    path = result_path(f"training-{options.recipe}", device, ".json")
    path.write_text(json.dumps(result, indent=2) + "\n")
    shown = ("nimg", "img_per_second_median", "draws_ms", "draws_share_of_step", "waiting_on_data_median")
    print(", ".join(f"{name} {result[name]}" for name in shown))
    print(f"wrote {path} and the grid beside it")


if __name__ == "__main__":
    main(tyro.cli(Options))
