"""Evaluation while training: it changes nothing that is computed, goes on after a stop, and keeps the best weights."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import small_config
from rich.console import Console
from torch import nn

import justimage as ji
from justimage.data.arrays import Arrays
from justimage.evaluation.features import ModuleFeatures
from justimage.runs import evaluations
from justimage.runs.evaluations import is_due, read_best
from justimage.runs.run import Interrupted, train_run
from justimage.training.settings import Training
from justimage.weights.load import load

NETWORK = small_config(channels=1, num_classes=0, width=16, depth=1, heads=2, context_start=0)
TRAINING = Training(
    duration_nimg=96, batch_size=8, lr=1e-2, warmup_nimg=8, ema_decays=(0.5,), ema_start_nimg=48, precision="float32"
)
REPORT = ji.Report(tick_nimg=8, sample_nimg=1000, save_nimg=1000, preview_steps=1, evaluate_nimg=32, evaluate_count=70)
RECIPE = ji.Recipe(NETWORK, TRAINING, ji.Sampling(steps=2, guidance=1.0), REPORT)
OFF = replace(RECIPE, report=replace(REPORT, evaluate_nimg=0))


def source(count: int = 96, classes: int = 3) -> Arrays:
    x = np.random.default_rng(0).normal(size=(count, 1, 8, 8)).astype(np.float32)
    names = tuple("abc"[:classes])
    return Arrays(x, np.arange(count) % classes if classes else None, classes=names)


@pytest.fixture(autouse=True)
def small_features(monkeypatch):
    """Features that need no fitting: means of four parts of a sample."""
    pool = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten())
    monkeypatch.setattr(evaluations, "open_features", lambda name, data, **_: ModuleFeatures(pool, "means", data.spec))


def train(recipe: ji.Recipe, run: Path, data: Arrays | None = None, **options) -> str:
    """Train; what was printed."""
    with Path(os.devnull).open("w") as nowhere:
        console = Console(file=nowhere, record=True, width=200)
        try:
            train_run(recipe, data or source(), run, console=console, **options)
        finally:
            said = console.export_text()
    return said


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_an_evaluation_is_due_once_for_each_multiple_and_once_at_the_end():
    done, seen = 0, []
    for nimg in range(0, 101, 7):
        if is_due(nimg, done, 30, 98):
            done = nimg
            seen.append(nimg)
    assert seen == [35, 63, 91, 98]
    assert not is_due(98, 98, 30, 98)
    assert not is_due(98, 0, 0, 98)


def test_losses_and_weights_are_the_same_with_and_without_evaluation(tmp_path):
    """To the bit, and no evaluation touches torch's own generator."""
    states = []
    for name, recipe in (("with", RECIPE), ("without", OFF)):
        torch.manual_seed(5)
        train(recipe, tmp_path / name)
        states.append(torch.random.get_rng_state())
    assert torch.equal(*states)
    logs = [
        [(line["nimg"], line["loss"], line["grad_norm"]) for line in lines(tmp_path / n / "log.jsonl")]
        for n in ("with", "without")
    ]
    assert logs[0] == logs[1]
    ours, theirs = (load(tmp_path / name, device="cpu", dtype=torch.float32).net for name in ("with", "without"))
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))
    assert not (tmp_path / "without" / "evaluations.jsonl").exists()
    assert not (tmp_path / "without" / "weights" / "best").exists()


def test_what_a_run_leaves(tmp_path):
    """A line for each evaluation, of the default weights, and the best of them as weights that say so."""
    said = train(RECIPE, tmp_path / "run")
    found = lines(tmp_path / "run" / "evaluations.jsonl")
    assert [(line["nimg"], line["weights"]) for line in found] == [(32, "raw"), (64, "ema-0.5"), (96, "ema-0.5")]
    assert all(line["count"] == 72 and line["labels"] == "balanced over 3 classes" for line in found)
    distances = [line["scores"]["fd"]["value"] for line in found]
    best = read_best(tmp_path / "run")
    assert best is not None
    assert best["fd"] == min(distances)
    assert best["nimg"] == found[int(np.argmin(distances))]["nimg"]
    assert load(tmp_path / "run", weights="best", device="cpu").training_summary == best
    assert "evaluated ema-0.5 at nimg = 96: Frechet distance" in said
    assert "72 samples (for 70, so that the classes share them out equally) every 32 and at the end" in said


def test_the_weights_that_are_judged_are_those_that_are_saved(tmp_path):
    """The number of the last line, computed again from the weights in the run."""
    train(RECIPE, tmp_path / "run")
    last = lines(tmp_path / "run" / "evaluations.jsonl")[-1]
    model = load(tmp_path / "run", device="cpu", dtype=torch.float32)
    labels = [k % 3 for k in range(72)]
    drawn = model.sample(labels, range(72), sampling=model.sampling)
    judge = evaluations._judge(source(), 72, torch.device("cpu"), "", lambda done, total, what: None)
    assert judge.scores(judge.looker()(drawn, range(72)), labels)["fd"].value == pytest.approx(
        last["scores"]["fd"]["value"], rel=1e-5
    )


def test_the_best_weights_are_replaced_only_by_better_ones(tmp_path):
    """Also across a resume; a worse evaluation is logged, and leaves them alone."""
    run, half = tmp_path / "run", replace(RECIPE, training=replace(TRAINING, duration_nimg=64))
    train(half, run)
    place = run / "weights" / "best"
    config = json.loads((place / "config.json").read_text())
    config["training"]["fd"] = 0.0
    (place / "config.json").write_text(json.dumps(config))
    before = {path: path.read_bytes() for path in place.iterdir()}
    train(RECIPE, run)
    assert len(lines(run / "evaluations.jsonl")) == 3
    assert {path: path.read_bytes() for path in place.iterdir()} == before
    config["training"]["features"] = "others"
    (place / "config.json").write_text(json.dumps(config))
    longer = replace(RECIPE, training=replace(TRAINING, duration_nimg=128))
    said = train(longer, run)
    assert "the best so far" in said
    best = read_best(run)
    assert best is not None
    assert (best["nimg"], best["features"]) == (128, "means")


def test_lines_beyond_the_state_are_made_anew_and_those_of_others_stay(tmp_path):
    train(RECIPE, tmp_path / "run")
    path = tmp_path / "run" / "evaluations.jsonl"
    whole = lines(path)
    train(replace(RECIPE, training=replace(TRAINING, duration_nimg=64)), tmp_path / "cut")
    cut = tmp_path / "cut" / "evaluations.jsonl"
    cut.write_text(cut.read_text() + '{"model": "of a command"}\n{"nimg": 72, "scores": {}}\n{"nimg": 8')
    train(RECIPE, tmp_path / "cut")
    found = lines(cut)
    assert [line.get("nimg") for line in found] == [32, 64, None, 96]
    assert [line["scores"] for line in found if "nimg" in line] == [line["scores"] for line in whole]
    path.write_text("[1]\n" + path.read_text())
    with pytest.raises(ValueError, match=r"evaluations.jsonl is damaged: line 1 is not an evaluation but '\[1\]'"):
        train(RECIPE, tmp_path / "run")


def test_a_stop_while_evaluating_loses_nothing(tmp_path, monkeypatch):
    """The state is saved before; the evaluation is made when the run goes on, and is the one it would have been."""
    train(RECIPE, tmp_path / "whole")
    evaluate = evaluations.evaluate

    def interrupted(*arguments, **options):
        signal.raise_signal(signal.SIGTERM)
        return evaluate(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(evaluations, "evaluate", interrupted)
        with pytest.raises(Interrupted, match="stopped at nimg = 32 and saved"):
            train(RECIPE, tmp_path / "run")
    assert not (tmp_path / "run" / "evaluations.jsonl").exists()
    train(RECIPE, tmp_path / "run")
    ours, theirs = (lines(tmp_path / name / "evaluations.jsonl") for name in ("run", "whole"))
    assert [(line["nimg"], line["scores"]) for line in ours] == [(line["nimg"], line["scores"]) for line in theirs]
    (tmp_path / "run" / "evaluations.jsonl").unlink()
    assert "evaluated ema-0.5 at nimg = 96" in train(RECIPE, tmp_path / "run")  # the run was finished, but for this


@pytest.mark.parametrize(
    ("data", "report", "message"),
    [
        (source(50), REPORT, "the 64 features need more samples than that, and there are 50 in the data and 72 to be"),
        (source(), replace(REPORT, evaluate_count=30), "and 30 to be drawn"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_before_the_first_step(tmp_path, data, report, message):
    with pytest.raises(ValueError, match=message) as refused:
        train(replace(RECIPE, report=report), tmp_path / "run", data)
    assert str(refused.value).endswith("--report.evaluate-nimg 0 trains without evaluations")
    assert not (tmp_path / "run").exists()


def test_numbers_of_the_report():
    assert ji.Report(evaluate_nimg=0).evaluate_nimg == 0
    for name in ("evaluate_nimg", "evaluate_count"):
        with pytest.raises(ValueError, match=f"report.{name} is -1; it must be at least"):
            ji.Report(**{name: -1})
    paper = [name for name, recipe in ji.RECIPES.items() if recipe.promise.paper]
    assert paper
    assert all(ji.RECIPES[name].report.evaluate_nimg == 0 for name in paper)
    assert ji.RECIPES["cifar10"].report.evaluate_nimg > 0
    assert ji.RECIPES["mnist-demo"].report.evaluate_nimg > 0


def test_a_run_without_classes_is_evaluated_too(tmp_path):
    train(RECIPE, tmp_path / "run", source(classes=0))
    found = lines(tmp_path / "run" / "evaluations.jsonl")
    assert [(line["count"], line["labels"]) for line in found] == [(70, "unconditional")] * 3


SCRIPT = """
import sys
from dataclasses import replace
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import torch
from torch import nn
import test_run_evaluation as here
from justimage.evaluation.features import ModuleFeatures
from justimage.parallel import join, leave
pool = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten())
here.evaluations.open_features = lambda name, data, **_: ModuleFeatures(pool, "means", data.spec)
processes = join(torch.device("cpu"))
recipe = replace(here.RECIPE, training=replace(here.RECIPE.training, shard=sys.argv[3] == "sharded"))
here.train_run(recipe, here.source(), Path(sys.argv[2]), processes=processes)
leave(processes)
"""


@pytest.mark.parametrize("how", ["replicated", "sharded"])
def test_two_processes_evaluate_as_one(tmp_path, how):
    """The first evaluation of one training, made by two processes: the same samples, to rounding."""
    train(RECIPE, tmp_path / "one")
    (tmp_path / "train.py").write_text(SCRIPT)
    tests = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": str(tests.parent)}
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29617"]
    command += [str(tmp_path / "train.py"), str(tests), str(tmp_path / "two"), how]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    ours, theirs = (lines(tmp_path / name / "evaluations.jsonl") for name in ("two", "one"))
    assert [line["nimg"] for line in ours] == [32, 64, 96]
    for mine, other in zip(ours, theirs, strict=True):
        assert mine["scores"]["fd"]["value"] == pytest.approx(other["scores"]["fd"]["value"], rel=1e-3)
    assert read_best(tmp_path / "two") is not None
