"""`jit doctor` on runs that are broken on purpose, and on sound ones: does it name the cause first?

    python benchmarks/doctor.py --cifar DIR --fields FILE.nc [--only NAME ...]

DIR holds the classes of CIFAR-10 as folders, FILE.nc a field in two dimensions. The doctor's thresholds were written
with the recipe mnist-demo at seed 0; these cases have other data, other recipes and other seeds. Writes
benchmarks/results/doctor-DEVICE.json, case by case, and exits with 1 where a verdict is another than expected.
"""

import json
import os
import shlex
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from machine import facts, result_path
from PIL import Image

from justimage.commands.main import main as jit
from justimage.runs.doctor import diagnose
from justimage.runs.record import read_run

COMMON = "--device cpu --report.sample-nimg 1000000 --report.preview-steps 2 --report.evaluate-nimg 0"
SMALL = "--network.width 128 --network.depth 4 --network.heads 2 --network.context-start 1"
SHORT = f"cifar10 {SMALL} --training.duration-nimg 9600 --training.warmup-nimg 1280"
# What is wrong from the first step on needs no more; and 50 images are seen 128 times.
BRIEF = SHORT.replace("9600", "3200")
OFTEN = SHORT.replace("9600", "6400")


@dataclass(frozen=True)
class Case:
    """A command, without its data's folder, and the verdict it must get."""

    name: str
    train: str
    data: str
    verdict: str


CASES = (
    Case("healthy, mnist-demo", "mnist-demo --training.seed 11", "mnist", "healthy"),
    Case("healthy, cifar10", "cifar10 --training.duration-nimg 12800 --training.seed 12", "cifar", "healthy"),
    Case(
        "healthy, fields",
        "fields --data-options.crop 32 48 --training.duration-nimg 9600 --training.seed 13",
        "fields",
        "healthy",
    ),
    Case("healthy, small cifar10", f"{SHORT} --training.seed 14", "some", "healthy"),
    Case("healthy, held out", f"{SHORT} --training.seed 15 --data-options.held-out 0.1", "some", "healthy"),
    Case("learning rate x100", f"{SHORT} --training.lr 0.3 --training.seed 21", "some", "learning rate too high"),
    Case("learning rate /100", f"{SHORT} --training.lr 3e-5 --training.seed 22", "some", "learning rate too low"),
    Case("labels shuffled", f"{SHORT} --training.seed 33", "shuffled", "labels off"),
    Case("[0, 1] as [-1, 1]", f"{BRIEF} --training.seed 24", "halved", "value range"),
    Case(
        "EMA 0.99999",
        f"{BRIEF} --training.ema-decays 0.99999 --training.ema-start-nimg 0 --training.seed 25",
        "some",
        "EMA too long",
    ),
    Case(
        "EMA 0.99999, late start",
        f"{BRIEF} --training.ema-decays 0.99999 --training.seed 26",
        "some",
        "EMA too long",
    ),
    Case("noise scale x8", f"{BRIEF} --noise-scale 8 --training.seed 27", "some", "noise scale"),
    Case("50 images", f"{OFTEN} --training.seed 28", "fifty", "over-fitting"),
    Case(
        "50 images, held out",
        f"{OFTEN} --training.seed 39 --data-options.held-out 0.2",
        "fifty",
        "over-fitting",
    ),
    Case(
        "data-bound",
        "images --network.size 32 32 --network.patch 8 8 --network.width 64 --network.depth 2 --network.heads 2 "
        "--network.context-start 1 --training.duration-nimg 1536 --training.seed 30 --report.tick-nimg 256 "
        "--data-options.memory-gb 0 --data-options.workers 1",
        "large",
        "data-bound",
    ),
)


@dataclass(frozen=True)
class Options:
    """Which cases, and where their data are."""

    cifar: Path
    fields: Path
    only: tuple[str, ...] = ()
    """Words that are in the names of the cases to run; the others keep what the file says of them."""


def write_data(cifar: Path, fields: Path, folder: Path) -> dict[str, str]:
    """The data of all cases, from CIFAR-10 -> name -> path."""
    files = sorted(cifar.glob("*/*"))
    names = sorted({file.parent.name for file in files})
    generator = np.random.default_rng(7)
    chosen = [files[i] for i in sorted(generator.choice(len(files), 4000, replace=False))]
    x = np.stack([np.moveaxis(np.asarray(Image.open(file).convert("RGB")), -1, 0) for file in chosen])
    y = np.array([names.index(file.parent.name) for file in chosen])
    few = generator.choice(len(x), 50, replace=False)
    parts = {
        "some": (x, y),
        "shuffled": (x, np.random.default_rng(33).permutation(y)),
        # x in [0, 1], written as if it were in [-1, 1]
        "halved": ((x / 255 * 127.5 + 127.5).astype(np.uint8), y),
        "fifty": (x[few], y[few]),
    }
    for name, (values, labels) in parts.items():
        np.savez(folder / f"{name}.npz", x=values, y=labels)
    for file in chosen[::80]:
        place = folder / "large" / file.parent.name / f"{file.stem}.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.open(file).convert("RGB").resize((1600, 1600)).save(place, quality=90)
    found = {name: str(folder / f"{name}.npz") for name in parts}
    return {**found, "large": str(folder / "large"), "cifar": str(cifar), "fields": str(fields), "mnist": "mnist"}


def main(options: Options) -> int:
    """Train, ask the doctor, write the table; returns the exit code."""
    path = result_path("doctor", torch.device("cpu"), ".json")
    before = json.loads(path.read_text())["cases"] if path.is_file() else {}
    with tempfile.TemporaryDirectory() as temporary:
        data = write_data(options.cifar, options.fields, Path(temporary))
        for case in CASES:
            if options.only and not any(word in case.name for word in options.only):
                continue
            began, run = time.process_time(), Path(temporary) / "runs" / case.name.replace(" ", "-")
            words = ["train", *shlex.split(f"{case.train} {COMMON}"), "--data", data[case.data], "--run", str(run)]
            code = jit(words)
            found = diagnose(read_run(run))
            print(f"{case.name}: {found.verdict} (expected: {case.verdict})", flush=True)
            before[case.name] = {
                "command": f"jit train {case.train} {COMMON} --data {case.data}",
                "exit_code": code,
                "expected": case.verdict,
                "verdict": found.verdict,
                "findings": [
                    {key: value for key, value in asdict(each).items() if key != "advice"} for each in found.findings
                ],
                "processor_seconds": round(time.process_time() - began, 1),
            }
            ours = {case.name: before[case.name] for case in CASES if case.name in before}
            right = sum(each["verdict"] == each["expected"] for each in ours.values())
            result = {"what": "verdicts of jit doctor", **facts(torch.device("cpu")), "right": right, "of": len(ours)}
            path.write_text(json.dumps({**result, "cases": ours}, indent=2) + "\n")
    print(f"wrote {path}")
    return int(any(each["verdict"] != each["expected"] for each in before.values()))


if __name__ == "__main__":
    os.environ.setdefault("JUSTIMAGE_CACHE", tempfile.mkdtemp())
    torch.set_num_threads(1)
    sys.exit(main(tyro.cli(Options)))
