"""A new class by fine-tuning: a fifth of the samples from the weights of nine digits, against all of them from scratch.

    python benchmarks/finetune.py

For each seed, `mnist-demo` learns nine digits, and then all ten: from scratch with the recipe's samples, from the
weights of the nine with a fifth and with half of them, and the same with adapters (LoRA) of few parameters; with a
fifth from scratch as well, for comparison. All are judged by the same features, fitted to the ten digits, from the same
seeds, with the recipe's settings for drawing. The digit that is new is another one for each seed. The file is written
after each seed, and the same command goes on from there. Writes benchmarks/results/finetune-DEVICE.json.
"""

import json
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from machine import facts, result_path
from rich.console import Console

from justimage.data.arrays import Arrays, digits
from justimage.evaluation.draws import draws_of
from justimage.evaluation.evaluate import evaluate
from justimage.evaluation.features import open_features
from justimage.evaluation.judge import Judge
from justimage.evaluation.reference import reference_of
from justimage.parallel import Processes
from justimage.runs.recipes import RECIPES, Recipe
from justimage.runs.run import train_run
from justimage.training.adapters import LoRA
from justimage.training.settings import Training
from justimage.weights.load import load

DEMO = RECIPES["mnist-demo"]
FIRST_SEED = 3_000_000
SCRATCH = "scratch"
NEW = (9, 4, 1)  # the digit that is learnt last, by seed


def with_share(training: Training, share: int) -> Training:
    """The recipe with one of so many parts of its samples."""
    images = training.duration_nimg // share // training.batch_size * training.batch_size
    return replace(training, duration_nimg=images, warmup_nimg=training.warmup_nimg // share)


def fine_tuned(training: Training, share: int) -> Training:
    """Smaller batches, for there are few steps, a lower rate, and no warm-up: the best of those tried (docs/LOG.md)."""
    return replace(with_share(training, share), batch_size=16, lr=4e-3, warmup_nimg=0)


def with_adapters(training: Training, share: int) -> Training:
    """The same with adapters, which are few and start at zero: at a higher rate."""
    return replace(fine_tuned(training, share), lr=2e-2, lora=LoRA(rank=8))


def ways(training: Training) -> dict[str, tuple[bool, Training]]:
    """All ways to learn ten digits: whether from the weights of nine, and how."""
    return {
        SCRATCH: (False, training),
        "scratch, a fifth": (False, with_share(training, 5)),
        "fine-tuned, a fifth": (True, fine_tuned(training, 5)),
        "fine-tuned, a half": (True, fine_tuned(training, 2)),
        "lora, a fifth": (True, with_adapters(training, 5)),
        "lora, a half": (True, with_adapters(training, 2)),
    }


@dataclass(frozen=True)
class Options:
    """What is compared."""

    seeds: int = 3
    count: int = 1_000
    """Samples that are judged."""


def without(digit: int, source: Arrays) -> Arrays:
    """The digits but one, with the names that they have."""
    assert source.y is not None
    keep = source.y != digit
    names = [name for name in source.spec.classes if name != str(digit)]
    index = np.array([names.index(name) if name in names else -1 for name in source.spec.classes])
    nine = Arrays(np.asarray(source.x)[keep], index[source.y[keep]], classes=names, name=f"MNIST without {digit}")
    nine.spec = replace(nine.spec, mirror=None)
    return nine


def trained(recipe: Recipe, source: Arrays, folder: Path, init_from: Path | None = None) -> dict[str, Any]:
    """Train in a folder -> the share of parameters that was trained, and the seconds."""
    began = time.perf_counter()
    alone = Processes(device=torch.device("cpu"))
    state = train_run(recipe, source, folder, processes=alone, console=Console(quiet=True), init_from=init_from)
    sizes = [(p.numel(), p.requires_grad) for p in state.model.net.parameters()]
    share = sum(size for size, learns in sizes if learns) / sum(size for size, _ in sizes)
    seconds = time.perf_counter() - began
    return {"nimg": state.nimg, "seconds": round(seconds, 1), "share_of_parameters": round(share, 4)}


def judged(folder: Path, judge: Judge, count: int, new: int) -> dict[str, float]:
    """The Frechet distance of what a run draws, and how many of the new digit are recognised as it."""
    model = load(folder, device="cpu", compile=False)
    scores = evaluate(model, judge, draws_of(model, count, FIRST_SEED), batch_size=250)
    assert scores is not None
    drawn = model.sample(labels=[new] * 200, seeds=range(FIRST_SEED, FIRST_SEED + 200))
    logits = judge.features(drawn)[1]
    assert logits is not None
    return {
        "fd": round(scores["fd"].value, 3),
        "fd_error": round(scores["fd"].error or 0.0, 3),
        "agreement": round(scores["agreement"].value, 4),
        "agreement_of_the_new": float((logits.argmax(1) == new).float().mean()),
    }


def compared(seed: int, source: Arrays, judge: Judge, count: int) -> list[dict[str, Any]]:
    """All trainings of one seed."""
    new, report = NEW[seed % len(NEW)], replace(DEMO.report, evaluate_nimg=0, sample_nimg=10**9)
    demo = replace(DEMO, report=report, training=replace(DEMO.training, seed=seed))
    rows = []
    with tempfile.TemporaryDirectory() as place:
        nine = Path(place, "nine")
        trained(demo, without(new, source), nine)
        for way, (from_nine, training) in ways(demo.training).items():
            folder = Path(place, way)
            facts = trained(replace(demo, training=training), source, folder, nine if from_nine else None)
            rows.append({"seed": seed, "new": new, "way": way, **facts, **judged(folder, judge, count, new)})
            print(json.dumps(rows[-1]), flush=True)
    return rows


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over the seeds, and whether each way reaches what scratch does with all samples: in the mean, by seed."""

    def numbers(way: str, name: str) -> np.ndarray:
        return np.array([row[name] for row in rows if row["way"] == way])

    scratch, found = numbers(SCRATCH, "fd"), {}
    for way in dict.fromkeys(row["way"] for row in rows):
        names = ("fd", "agreement", "agreement_of_the_new", "nimg", "seconds", "share_of_parameters")
        found[way] = {name: round(float(numbers(way, name).mean()), 4) for name in names}
        found[way]["reached_in_the_mean"] = bool(numbers(way, "fd").mean() <= scratch.mean())
        found[way]["seeds_that_reached"] = int((numbers(way, "fd") <= scratch).sum())
    return found


def main(options: Options) -> None:
    """Train and judge what is missing, and write the file after each seed."""
    torch.set_num_threads(1)
    device, source = torch.device("cpu"), digits()
    features = open_features("fit", source)
    judge = Judge(features, reference_of(source, features), source.spec)
    settings = {"count": options.count, **{way: asdict(training) for way, (_, training) in ways(DEMO.training).items()}}
    result = {
        "machine": facts(device),
        "settings": json.loads(json.dumps(settings)),
        "features": {"name": features.name, **features.facts},
        "floor": judge.reference.floor,
    }
    path = result_path("finetune", device, ".json")
    before = json.loads(path.read_text()) if path.is_file() else {}
    rows = before["rows"] if before.get("settings") == result["settings"] else []
    for seed in range(options.seeds):
        if all(row["seed"] != seed for row in rows):
            rows += compared(seed, source, judge, options.count)
            path.write_text(json.dumps({**result, "rows": rows, "summary": summary(rows)}, indent=1) + "\n")
    print(json.dumps(summary(rows), indent=1))


if __name__ == "__main__":
    main(tyro.cli(Options))
