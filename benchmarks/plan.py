"""What `jit plan` predicts against what `jit train` then takes: seconds of a step, and memory, of three recipes.

    python benchmarks/plan.py mnist-demo
    python benchmarks/plan.py cifar10 --data cifar10-jpeg.tar.xz
    python benchmarks/plan.py fields --data era5-t2m-uk-2019-03.nc --minutes 1

Plan and training take turns, a process each, so that what else the machine does falls on both. A training lasts some
minutes of the recipe as it is, with its grids, saves and, where one is due, evaluations; its seconds of a step are the
median over the lines of its log, its memory is the most that the process held. Each call puts one recipe into
benchmarks/results/plan-DEVICE.json, beside those that are there.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from machine import facts, result_path

from justimage.disk.whole import write_text
from justimage.execution import best_device

ROOT = Path(__file__).resolve().parents[1]
MEASURED = """
import runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_module("justimage", run_name="__main__")
finally:
    from justimage.execution import peak_of_process
    print("PEAK", peak_of_process())
"""


@dataclass(frozen=True)
class Options:
    """What is measured."""

    recipe: tyro.conf.Positional[str]
    data: str = ""
    """The recipe's data, unless they come with a package."""
    rounds: int = 3
    """A plan and a training each."""
    seconds: float = 10.0
    """Of a plan's measuring."""
    minutes: float = 0.5
    """Of a training."""
    options: str = ""
    """More options of the recipe, for both."""


def plan(asked: Options, folder: Path) -> dict[str, Any]:
    """What `jit plan` says."""
    out = folder / "plan.json"
    run(["plan", asked.recipe, *common(asked), "--seconds", str(asked.seconds), "--out", str(out)])
    return json.loads(out.read_text())


def training(asked: Options, folder: Path, batch: int) -> dict[str, Any]:
    """What `jit train` takes: seconds of a step over the lines of its log but the first, and the most bytes it held."""
    run_folder = folder / "run"
    said = run(["train", asked.recipe, *common(asked), "--run", str(run_folder), "--minutes", str(asked.minutes)])
    lines = [json.loads(line) for line in (run_folder / "log.jsonl").read_text().splitlines()]
    steps = [batch / line["img_per_second"] for line in lines[1:]]
    if best_device().type == "cpu":
        peak = int(said.rpartition("PEAK ")[2])
    else:
        health = (run_folder / "health.jsonl").read_text().splitlines()
        peak = round(1e9 * max(json.loads(line)["device_gb"] for line in health))
    return {"seconds": statistics.median(steps), "lines": len(steps), "peak": peak}


def common(asked: Options) -> list[str]:
    """Options that both commands get."""
    return [*(["--data", asked.data] if asked.data else []), *asked.options.split()]


def run(arguments: list[str]) -> str:
    """A command in a process of its own; what it printed, and the most memory that it held."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "120"}
    command = [sys.executable, "-c", MEASURED, "jit", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(arguments)} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def main(asked: Options) -> None:
    """Measure one recipe and add it to the results."""
    rounds = []
    for _ in range(asked.rounds):
        with tempfile.TemporaryDirectory() as name:
            planned = plan(asked, Path(name))
            taken = training(asked, Path(name), planned["batch"])
        predicted = {"seconds": planned["seconds"]["total"], "peak": planned["memory"]["total"]}
        ratios = {what: predicted[what] / taken[what] for what in predicted}
        rounds.append({"predicted": predicted, "measured": taken, "ratios": ratios})
        print(json.dumps(rounds[-1]), flush=True)
    path = result_path("plan", best_device(), ".json")
    told = json.loads(path.read_text()) if path.is_file() else {}
    told |= {"machine": facts(best_device())}
    told.setdefault("recipes", {})[asked.recipe] = {
        "data": Path(asked.data).name,
        "options": asked.options,
        "minutes_of_training": asked.minutes,
        "compiled": planned["compiled"],
        "rounds": rounds,
        "predicted_over_measured": {
            what: statistics.median(each["ratios"][what] for each in rounds) for what in ("seconds", "peak")
        },
    }
    write_text(path, json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Options))
