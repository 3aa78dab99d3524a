"""What measuring a run's health costs: processor time of the same training with it, and without.

    python benchmarks/health.py [--recipe mnist-demo] [--nimg 10240]

The two are trained in turn, each several times, in one process, and their final weights compared bit for bit. Writes
benchmarks/results/health-DEVICE.json.
"""

import contextlib
import json
import os
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import tyro
from machine import facts, result_path
from rich.console import Console

from justimage.data.sources import open_source
from justimage.parallel import Processes
from justimage.runs.recipes import RECIPES
from justimage.runs.run import train_run


@dataclass(frozen=True)
class Options:
    """What is trained, and how often."""

    recipe: str = "mnist-demo"
    data: str = ""
    nimg: int = 10_240
    rounds: int = 2


def main(options: Options) -> None:
    """Train with and without, write the file."""
    device = torch.device("cpu")
    recipe = RECIPES[options.recipe]
    training = replace(recipe.training, duration_nimg=options.nimg)
    network = recipe.network
    source = open_source(options.data or recipe.default_data, network.size, network.channels, recipe.data_options)
    seconds: dict[str, list[float]] = {"with": [], "without": []}
    weights = {}
    with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        for number in range(options.rounds):
            for name, health_nimg in (("without", 0), ("with", None)):
                report = replace(recipe.report, evaluate_nimg=0, sample_nimg=10**9, health_nimg=health_nimg)
                began = time.process_time()
                state = train_run(
                    replace(recipe, training=training, report=report),
                    source,
                    Path(folder) / f"{name}-{number}",
                    processes=Processes(device=device),
                    console=Console(file=nowhere),
                )
                seconds[name].append(time.process_time() - began)
                weights[name] = [p.detach().clone() for p in state.model.net.parameters()]
    fastest = {name: min(found) for name, found in seconds.items()}
    result = {
        "what": f"recipe {options.recipe}, {options.nimg:,} images, with health.jsonl at its default and without",
        **facts(device),
        "processor_seconds": {name: [round(each, 2) for each in found] for name, found in seconds.items()},
        "ratio": round(fastest["with"] / fastest["without"], 4),
        "same_weights": all(torch.equal(a, b) for a, b in zip(weights["with"], weights["without"], strict=True)),
    }
    path = result_path("health", device, ".json")
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))
    print(f"wrote {path}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(tyro.cli(Options))
