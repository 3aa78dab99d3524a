"""This checkout against another one, side by side: seconds of training and sampling, and whether losses are the same.

    python benchmarks/against.py c06a731             # a revision of this repository
    python benchmarks/against.py ../other/checkout   # or a folder that holds the package

Each tree runs in a worker process of its own, with the same Python and libraries. They take turns round by round
(A, B, B, A, ...), one computing while the other waits, so that whatever else the machine does falls on both alike.
A ratio is this checkout's median over the other's: below 1, this one is faster; the ratio of the fastest rounds stands
beside it, and where the two disagree the machine was too busy (--threads 1 helps where others use its cores).
Everything is float32, eager, on the CPU. Writes benchmarks/results/against-DEVICE.json.
"""

import contextlib
import dataclasses
import importlib
import io
import json
import os
import platform
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from machine import facts, result_path

ROOT = Path(__file__).resolve().parents[1]
SEED = 0
CALM_SECONDS = 0.05  # before a round: threads of the other worker spin for a moment after its last product
LOSS_STEPS = 10

# What is timed, once in every round: (subject, action) -> what it is.
ROWS = {
    ("demo", "train"): "training step of mnist-demo, batch 128",
    ("demo", "sample"): "guided sample of mnist-demo, batch 16, 10 ab2 steps",
    ("b16", "train"): "training step of B/16 at 256 px, batch 2",
    ("b16", "sample"): "guided sample of B/16 at 256 px, 1 image, 2 heun steps",
}


@dataclass(frozen=True)
class Options:
    """What is compared."""

    other: tyro.conf.Positional[str]
    """A revision of this repository, or a folder that holds the package `justimage`."""
    rounds: int = 20
    """Timed rounds of each row of the demo; the large network, whose rounds are long, takes a quarter as many."""
    threads: int = 0
    """Threads of each worker; 0: as many as torch takes by itself."""
    small: bool = False
    """Leave the large network out."""


# --- the worker: one tree, whichever of the two layouts it has


class Library:
    """The few things that are timed, under one name for both layouts.

    The layout up to c06a731 kept training out of the public names; since then they are all in `justimage`. Imported by
    name, since no tree has both.
    """

    def __init__(self) -> None:
        self.ji: Any = importlib.import_module("justimage")
        self.public = hasattr(self.ji, "build")
        loop: Any = self.ji if self.public else importlib.import_module("justimage.train")
        recipes: Any = self.ji if self.public else importlib.import_module("justimage.recipes")
        self.Training, self.flow_matching, self._train = loop.Training, loop.flow_matching, loop.train
        self.recipes: dict[str, Any] = recipes.RECIPES
        self._fresh: Any = None if self.public else loop.fresh_state

    def build(self, model: Any, training: Any) -> Any:
        """A model at the start of its run: weights, optimizer, averages."""
        return self.ji.build(model, training) if self.public else self._fresh(model, training, torch.device("cpu"))

    def train(self, state: Any, source: Any, model: Any, training: Any) -> Any:
        """The training loop as a generator that yields after every step."""
        loss = self.flow_matching(model, training)
        return self._train(state, source, loss, training, tick_nimg=training.batch_size)


class Subject:
    """A model, and its training under way."""

    def __init__(self, library: Library, source: Any, network: Any, training: Any, sampling: dict[str, Any]):
        model = library.ji.Denoiser(library.ji.JiT(network), spec=source.spec)
        # Far more steps than are timed; the learning rate does not change what a step takes.
        endless = dataclasses.replace(training, duration_nimg=10**9, precision="float32", compile=False, seed=SEED)
        state = library.build(model, endless)
        self.model, self.sampling = state.model, sampling
        self.ticks = library.train(state, source, self.model, endless)

    def train(self) -> None:
        """One step."""
        next(self.ticks)

    def sample(self) -> None:
        """One call of sample, all of its steps."""
        self.model.sample(**self.sampling)


def demo(library: Library) -> Subject:
    """The recipe mnist-demo on its digits."""
    source = library.ji.open_source("mnist", (28, 28), 1)
    recipe = library.recipes["mnist-demo"].fitted_to(source.spec)
    many = {"labels": [k % 10 for k in range(16)], "seeds": range(16)}
    return Subject(
        library,
        source,
        recipe.network,
        recipe.training,
        {**many, "steps": 10, "sampler": "ab2", "guidance": 2.5, "interval": (0.1, 1.0)},
    )


def b16(library: Library) -> Subject:
    """JiT-B/16 at 256 px with 1000 classes, on noise: what the pixels are changes no second."""
    generator = np.random.default_rng(SEED)
    x = generator.integers(0, 256, (16, 3, 256, 256), dtype=np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "noise.npz"
        np.savez(path, x=x, y=np.arange(16) * 60, classes=np.array([f"class {k}" for k in range(1000)]))
        source = library.ji.open_source(str(path), (256, 256), 3)
    network = library.ji.JiTConfig.variant("B/16", size=(256, 256), num_classes=1000)
    training = library.Training(batch_size=2, ema_decays=(0.9999,))
    one = {"labels": [207], "seeds": [0]}
    return Subject(
        library,
        source,
        network,
        training,
        {**one, "steps": 2, "sampler": "heun", "guidance": 2.5, "interval": (0.1, 1.0)},
    )


SUBJECTS: dict[str, Callable[[Library], Subject]] = {"demo": demo, "b16": b16}


def losses(library: Library) -> list[float]:
    """The loss of each step of a short run of the demo, narrowed."""
    source = library.ji.open_source("mnist", (28, 28), 1)
    recipe = library.recipes["mnist-demo"].fitted_to(source.spec)
    small = {"width": 64, "depth": 2, "heads": 2, "context_start": 1, "bottleneck": 16}
    network = dataclasses.replace(recipe.network, **small)
    count = LOSS_STEPS * recipe.training.batch_size
    training = dataclasses.replace(recipe.training, duration_nimg=count, precision="float32", compile=False, seed=SEED)
    # Built as the recipe says, with its pre-conditioner and noise: the same run as that of the command.
    model = dataclasses.replace(recipe, network=network, training=training).model(source.spec)
    state = library.build(model, training)
    return [tick.loss for tick in library.train(state, source, state.model, training)]


def serve() -> None:
    """Answer requests, a line of JSON each, until stdin ends.

    Whatever the library prints goes to stderr, so that stdout holds nothing but answers.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    library: Library | None = None
    subject: Subject | None = None
    for line in sys.stdin:
        request = json.loads(line)
        answer: Any = None
        if request["do"] == "begin":
            if request["threads"]:
                torch.set_num_threads(request["threads"])
            library = Library()
            answer = {
                "file": library.ji.__file__,
                "version": library.ji.__version__,
                "layout": "public names" if library.public else "as of c06a731",
                "threads": torch.get_num_threads(),
            }
        elif request["do"] == "losses":
            assert library is not None
            answer = losses(library)
        elif request["do"] == "take":
            assert library is not None
            subject = None  # before the next: two large networks need not fit
            subject = SUBJECTS[request["subject"]](library)
        else:
            call = getattr(subject, request["do"])
            began = time.perf_counter()
            call()
            answer = time.perf_counter() - began
        print(json.dumps(answer), file=answers, flush=True)


# --- the two of them


class Worker:
    """A process that has one of the trees as its package. `ask` waits for the answer."""

    def __init__(self, name: str, tree: Path, threads: int):
        self.name = name
        # A cache of its own: what one tree remembers about data is not for the other to find.
        self.cache = tempfile.TemporaryDirectory()
        environment = {**os.environ, "PYTHONPATH": str(tree), "JUSTIMAGE_CACHE": self.cache.name}
        environment["CUDA_VISIBLE_DEVICES"] = ""  # a tree may take the best device by itself
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).resolve()), "--worker"],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.about: dict[str, Any] = self.ask(do="begin", threads=threads)
        found = Path(self.about.pop("file")).resolve().parents[1]
        if found != tree.resolve():
            raise SystemExit(f"the worker for {tree} has imported the package from {found}")

    def ask(self, **request: Any) -> Any:
        """Send a request, and wait for the answer."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended, which reading shows as well
            print(json.dumps(request), file=self.process.stdin, flush=True)
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"the worker of {self.name} ended at {request}; its error stands above")
        return json.loads(line)

    def end(self) -> None:
        """No more requests."""
        if self.process.stdin is not None:
            self.process.stdin.close()
        self.process.wait(60)
        self.cache.cleanup()


def git(*arguments: str, folder: Path = ROOT) -> bytes | None:
    """What git says, or None where it refuses. It takes no locks: somebody may be at work in the checkout."""
    command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
    try:
        return subprocess.run(command, capture_output=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None


def called(folder: Path) -> str:
    """What a tree is called in the results: its revision, else its folder's own name, never a path of this machine."""
    top = git("rev-parse", "--show-toplevel", folder=folder)
    head = git("rev-parse", "--short", "HEAD", folder=folder)
    if top is None or head is None or Path(top.decode().strip()).resolve() != folder.resolve():
        return folder.resolve().name
    changed = git("status", "--porcelain", "--", "justimage", folder=folder)
    return head.decode().strip() + (" with changes" if changed else "")


def other_tree(wanted: str, scratch: Path) -> tuple[str, Path]:
    """A name and the folder of the other tree; a revision is unpacked into the scratch folder."""
    folder = Path(wanted)
    if (folder / "justimage" / "__init__.py").is_file():
        return called(folder), folder
    revision = git("rev-parse", "--verify", "--quiet", "--short", f"{wanted}^{{commit}}")
    packed = None if revision is None else git("archive", "--format=tar", revision.decode().strip(), "justimage")
    if revision is None or packed is None:
        raise SystemExit(f"{wanted} is neither a folder that holds justimage/ nor a revision of this repository")
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        archive.extractall(scratch, filter="data")
    return revision.decode().strip(), scratch


def turns(new: Worker, old: Worker, rounds: int, **request: Any) -> dict[str, list[float]]:
    """Seconds of every round of both: A, B, B, A, A, B, ... after one round of each to warm up."""
    seconds: dict[str, list[float]] = {"new": [], "old": []}
    new.ask(**request)
    old.ask(**request)
    for k in range(rounds):
        pair = [("new", new), ("old", old)]
        for name, worker in pair if k % 2 == 0 else reversed(pair):
            time.sleep(CALM_SECONDS)
            seconds[name].append(worker.ask(**request))
    return seconds


def compared(new: Worker, old: Worker, options: Options) -> list[dict[str, Any]]:
    """A row for each of ROWS. Both workers hold the same subject at a time."""
    rows = []
    for subject in SUBJECTS:
        if options.small and subject != "demo":
            continue
        for worker in (new, old):
            worker.ask(do="take", subject=subject)
        rounds = options.rounds if subject == "demo" else max(1, options.rounds // 4)
        for (of, action), what in ROWS.items():
            if of != subject:
                continue
            seconds = turns(new, old, rounds, do=action)
            median = {name: statistics.median(values) for name, values in seconds.items()}
            rows.append(
                {
                    "row": what,
                    "ratio": round(median["new"] / median["old"], 3),
                    "ratio_of_fastest": round(min(seconds["new"]) / min(seconds["old"]), 3),
                    "new_s": round(median["new"], 5),
                    "old_s": round(median["old"], 5),
                    "rounds": rounds,
                }
            )
            print(line(rows[-1]), flush=True)
    return rows


def line(row: dict[str, Any]) -> str:
    """A row of the table."""
    seconds = f"{1e3 * row['new_s']:10.1f} {1e3 * row['old_s']:10.1f}"
    return f"{row['row']:56}{seconds} {row['ratio']:9.3f} {row['ratio_of_fastest']:9.3f}"


def same_losses(new: Worker, old: Worker) -> dict[str, Any]:
    """Whether the short run has the same losses to the bit, and where and how far they part if not."""
    ours, theirs = new.ask(do="losses"), old.ask(do="losses")
    differing = [k for k, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a != b]
    return {
        "what": f"mnist-demo at width 64, depth 2, {LOSS_STEPS} steps",
        "equal": not differing,
        "first_step_that_differs": differing[0] + 1 if differing else None,
        "largest_relative_difference": max(abs(a - b) / abs(b) for a, b in zip(ours, theirs, strict=True)),
        "new": ours,
        "old": theirs,
    }


def main(options: Options) -> None:
    """Compare, print the table, write the file."""
    if options.rounds < 1 or options.threads < 0:
        raise SystemExit(f"rounds ({options.rounds}) must be at least 1 and threads ({options.threads}) not negative")
    with tempfile.TemporaryDirectory() as scratch:
        name, tree = other_tree(options.other, Path(scratch))
        workers: list[Worker] = []
        try:
            new = Worker("this checkout", ROOT, options.threads)
            workers.append(new)
            old = Worker(name, tree, options.threads)
            workers.append(old)
            here = facts(torch.device("cpu")) | {"threads": new.about["threads"]}
            print(f"new: this checkout, {called(ROOT)} ({new.about['layout']}); old: {name} ({old.about['layout']})")
            print(f"{here['device']}, {here['threads']} threads, torch {here['torch']}, float32, eager")
            same = same_losses(new, old)
            difference = f"no: from step {same['first_step_that_differs']}" if not same["equal"] else "yes, to the bit"
            print(f"losses of {same['what']}, seed {SEED}, the same: {difference}")
            print(f"{'':56}{'new ms':>10} {'old ms':>10} {'new/old':>9} {'fastest':>9}")
            rows = compared(new, old, options)
        finally:
            for worker in workers:
                worker.end()
    result = {
        "what": "this checkout (new) against another (old), side by side; ratio: new / old of the median seconds",
        **here,
        "numpy": np.__version__,
        "system": platform.system(),
        "precision": "float32, eager",
        "seed": SEED,
        "new": {"tree": called(ROOT), **{key: new.about[key] for key in ("version", "layout")}},
        "old": {"tree": name, **{key: old.about[key] for key in ("version", "layout")}},
        "losses": same,
        "rows": rows,
    }
    path = result_path("against", torch.device("cpu"), ".json")
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(f"wrote {path}")


if __name__ == "__main__":
    if sys.argv[1:] == ["--worker"]:
        serve()
    else:
        main(tyro.cli(Options))
