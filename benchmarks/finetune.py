"""A new class by fine-tuning: a fifth of the samples from the weights of nine digits, against all of them from scratch.

    python benchmarks/finetune.py

For each seed, `mnist-demo` learns nine digits, with the recipe's samples and with four times as many, and then all ten
from either: with a fifth of the recipe's samples, of all digits alike or of data in which the new digit is as frequent
as the others together, and the same with adapters (LoRA) of few parameters. Ten digits from scratch with all samples,
and with a fifth, stand beside it. All are judged by the same features, fitted to the ten digits, from the same seeds,
with the recipe's settings for drawing. The digit that is new is another one for each seed, and the seeds are others
than those by which rates and batches were chosen (docs/LOG.md). The file is written after each seed, and the same
command goes on from there. Writes benchmarks/results/finetune-DEVICE.json.
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

from justimage.data.array_files import digits
from justimage.data.arrays import Arrays
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
NEW = {10: 9, 11: 4, 12: 1}  # seed -> the digit that is learnt last
BASES = (1, 4)  # how long the nine digits are trained, in lengths of the recipe


def with_share(training: Training, share: int) -> Training:
    """The recipe with one of so many parts of its samples."""
    images = training.duration_nimg // share // training.batch_size * training.batch_size
    return replace(training, duration_nimg=images, warmup_nimg=training.warmup_nimg // share)


def fine_tuned(training: Training) -> Training:
    """Smaller batches, for there are few steps, a lower rate, and no warm-up: the best of those tried (docs/LOG.md)."""
    return replace(with_share(training, 5), batch_size=16, lr=1e-3, warmup_nimg=0)


def with_adapters(training: Training) -> Training:
    """The same with adapters, which are few and start at zero: at a higher rate."""
    return replace(fine_tuned(training), batch_size=8, lr=4e-3, lora=LoRA(rank=8))


@dataclass(frozen=True)
class Way:
    """One way to learn ten digits."""

    training: Training
    base: int = 0
    """How long the weights that it starts from were trained, in lengths of the recipe; 0: from scratch."""
    half: bool = False
    """Whether the new digit is half of the data; otherwise it is as frequent as any other."""


def ways(training: Training) -> dict[str, Way]:
    """All that are compared, by name."""
    found = {SCRATCH: Way(training), "scratch, a fifth": Way(with_share(training, 5))}
    for base in BASES:
        tuned, after = fine_tuned(training), f"a fifth, from nine digits of {base * training.duration_nimg:,} images"
        found |= {
            f"{after}, all alike": Way(tuned, base),
            f"{after}, half of the new": Way(tuned, base, half=True),
            f"{after}, half of the new, adapters": Way(with_adapters(training), base, half=True),
        }
    return found


@dataclass(frozen=True)
class Options:
    """What is compared."""

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


def half_of(digit: int, source: Arrays, seed: int) -> Arrays:
    """All of one digit, and as many of the others together: what somebody would collect who wants to add it."""
    assert source.y is not None
    known = np.flatnonzero(source.y != digit)
    fewer = np.random.default_rng(seed).choice(known, int((source.y == digit).sum()), replace=False)
    keep = np.sort(np.concatenate([np.flatnonzero(source.y == digit), fewer]))
    half = Arrays(
        np.asarray(source.x)[keep], source.y[keep], classes=source.spec.classes, name=f"half of MNIST {digit}"
    )
    half.spec = source.spec
    return half


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
    new, report = NEW[seed], replace(DEMO.report, evaluate_nimg=0, sample_nimg=10**9)
    demo = replace(DEMO, report=report, training=replace(DEMO.training, seed=seed))
    data, rows = {False: source, True: half_of(new, source, seed)}, []
    with tempfile.TemporaryDirectory() as place:
        for base in BASES:
            longer = replace(demo.training, duration_nimg=base * demo.training.duration_nimg)
            trained(replace(demo, training=longer), without(new, source), Path(place, str(base)))
        for name, way in ways(demo.training).items():
            folder = Path(place, name)
            start = Path(place, str(way.base)) if way.base else None
            facts = trained(replace(demo, training=way.training), data[way.half], folder, start)
            rows.append({"seed": seed, "new": new, "way": name, **facts, **judged(folder, judge, count, new)})
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
    settings = {"count": options.count, **{name: asdict(way) for name, way in ways(DEMO.training).items()}}
    result = {
        "machine": facts(device),
        "settings": json.loads(json.dumps(settings)),
        "features": {"name": features.name, **features.facts},
        "floor": judge.reference.floor,
    }
    path = result_path("finetune", device, ".json")
    before = json.loads(path.read_text()) if path.is_file() else {}
    rows = before["rows"] if before.get("settings") == result["settings"] else []
    for seed in NEW:
        if all(row["seed"] != seed for row in rows):
            rows += compared(seed, source, judge, options.count)
            path.write_text(json.dumps({**result, "rows": rows, "summary": summary(rows)}, indent=1) + "\n")
    print(json.dumps(summary(rows), indent=1))


if __name__ == "__main__":
    main(tyro.cli(Options))
