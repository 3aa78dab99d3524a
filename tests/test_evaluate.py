"""Evaluation: the same numbers however samples are drawn, found again after a kill, and refusals before a sample."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import jit_here, small_net
from PIL import Image
from torch import nn

import justimage as ji
from justimage.data.array_files import digits
from justimage.data.arrays import Arrays
from justimage.data.loader import order
from justimage.data.sources import DataOptions, open_source
from justimage.denoiser import Denoiser
from justimage.evaluation import evaluate as evaluating
from justimage.evaluation import features as extractors
from justimage.evaluation.copying import copying, reduced
from justimage.evaluation.draws import Draws, draws_of, shared_equally
from justimage.evaluation.evaluate import evaluate, hash_of, mean_of
from justimage.evaluation.features import ModuleFeatures
from justimage.evaluation.fitted import Fit, fit_features
from justimage.evaluation.judge import Judge
from justimage.evaluation.metrics import frechet_estimate
from justimage.evaluation.reference import Reference, read_statistics, reference_of, save_statistics
from justimage.evaluation.rows import Row, RowStore
from justimage.evaluation.scores import Score, Scores
from justimage.networks.conditions import Part
from justimage.sampling.generate import generate
from justimage.sampling.write import write_facts

ROOT = Path(__file__).parents[1]
QUICK = Fit(features=8, width=8, epochs=1, least=256, batch_size=64, held_out=0.3)
COUNT = 30  # a multiple of the three classes, and enough to extrapolate from


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Features are fitted in a moment."""
    monkeypatch.setattr(extractors, "Fit", lambda: QUICK)


def pictures(path: Path, count: int = 60, channels: int = 3, size: int = 8, seed: int = 0) -> Path:
    """An .npz of images of three classes, each of its own brightness."""
    y = np.arange(count) % 3
    x = np.random.default_rng(seed).normal(80 + 50 * y[:, None, None, None], 40, (count, channels, size, size))
    np.savez(path, x=x.clip(0, 255).astype(np.uint8), y=y)
    return path


def model(path: Path, classes: tuple[str, ...] = ("0", "1", "2"), **overrides: Any) -> Path:
    """A weights folder of a small model of such images."""
    net = small_net(channels=3, num_classes=len(classes), **overrides)
    spec = ji.DataSpec.pixels((8, 8), 3, classes)
    Denoiser(net, spec=spec, sampling=ji.Sampling(steps=2, guidance=2.0)).save_pretrained(path)
    return path


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def values(line: dict[str, Any]) -> dict[str, float]:
    return {name: score["value"] for name, score in line["scores"].items()}


def of_fields(count: int = 60, size: tuple[int, ...] = (8, 8), channels: int = 2, seed: int = 0) -> Arrays:
    """Float arrays without labels."""
    x = np.random.default_rng(seed).normal(3.0, 2.0, (count, channels, *size)).astype(np.float32)
    return Arrays(x)


def judge_of_fields(source: Arrays, size: int = 6) -> Judge:
    """Features by a random linear map."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(source.spec.shape)), size))
    features = ModuleFeatures(net, "linear", source.spec)
    return Judge(features, reference_of(source, features), source.spec)


class Counting:
    """Counts samples as they are drawn; interrupts behind some."""

    def __init__(self, stop: int | None = None):
        self.drawn, self.stop = 0, stop

    def __call__(self, model: Any, seeds: Any, *arguments: Any, **options: Any) -> Any:
        if self.stop is not None and self.drawn >= self.stop:
            raise KeyboardInterrupt
        self.drawn += len(seeds)
        return generate(model, seeds, *arguments, **options)


def no_sample(*_: Any, **__: Any) -> Any:
    raise AssertionError("a sample is drawn")


def test_the_numbers_are_the_same_for_any_batch(tmp_path):
    source = of_fields()
    judge = judge_of_fields(source)
    drawing = Denoiser(small_net(num_classes=0), spec=source.spec, sampling=ji.Sampling(steps=2))
    draws = draws_of(drawing, COUNT, 5, "balanced", None)
    found = [evaluate(drawing, judge, draws, tmp_path / str(size), batch_size=size) for size in (1, 16, 128)]
    first, *others = [scores.to_json()["scores"] for scores in found if scores is not None]
    assert len(others) == 2
    assert {
        "fd",
        "fd_infinity",
        "kid",
        "precision",
        "recall",
        "spectrum",
        "copies",
        "w1 channel0",
        "lags channel1",
    } <= set(first)
    for other in others:
        for name, score in first.items():
            assert other[name]["value"] == pytest.approx(score["value"], rel=1e-6, abs=1e-9), name


TWO = """
import sys, torch
sys.path.insert(0, sys.argv[1])
torch.set_num_threads(1)
import test_evaluate
test_evaluate.extractors.Fit = lambda: test_evaluate.QUICK
import justimage
assert justimage.__file__.startswith(sys.argv[2]), justimage.__file__
from justimage.commands.main import main
sys.exit(main(sys.argv[3:]))
"""


def test_two_processes_give_the_numbers_of_one(tmp_path, monkeypatch):
    """torchrun with two processes, which share the samples; also where these do not come out even."""
    model(tmp_path / "m")
    pictures(tmp_path / "data.npz")
    words = ["evaluate", "m", "--data", "data.npz", "--count", str(COUNT), "--device", "cpu", "--batch-size", "4"]
    assert jit_here(*words, "--out", "one", cwd=tmp_path, monkeypatch=monkeypatch) == 0
    (tmp_path / "two.py").write_text(TWO)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29631"]
    here = [str(tmp_path / "two.py"), str(Path(__file__).parent), str(ROOT)]
    command = [*torchrun, *here, *words, "--out", "two"]
    subprocess.run(command, check=True, timeout=300, cwd=tmp_path, env=environment)
    (one,), (two,) = lines(tmp_path / "one" / "evaluations.jsonl"), lines(tmp_path / "two" / "evaluations.jsonl")
    assert (one["processes"], two["processes"]) == (1, 2)
    for name, value in values(one).items():
        assert values(two)[name] == pytest.approx(value, rel=1e-6, abs=1e-9), name


def test_the_usual_number_of_samples_is_one_that_classes_share(tmp_path, monkeypatch):
    model(tmp_path / "m")
    pictures(tmp_path / "data.npz")
    words = ["evaluate", "m", "--data", "data.npz", "--device", "cpu", "--steps", "1", "--batch-size", "1000"]
    assert jit_here(*words, cwd=tmp_path, monkeypatch=monkeypatch) == 0
    (line,) = lines(tmp_path / "evaluations" / "evaluations.jsonl")
    assert line["count"] == 5001  # 5,000 are refused where they are asked for
    drawing = Denoiser(small_net(num_classes=0))
    assert [shared_equally(count, drawing) for count in (1, 5000)] == [1, 5000]
    assert [shared_equally(count, Denoiser(small_net())) for count in (1, 2, 4, 5, 5000)] == [3, 3, 3, 6, 5001]


def test_a_line_says_everything_and_nothing_else_is_left(tmp_path, monkeypatch, capsys):
    model(tmp_path / "m")
    pictures(tmp_path / "data.npz")
    words = ["evaluate", "m", "--data", "data.npz", "--count", str(COUNT), "--device", "cpu", "--steps", "3"]
    assert jit_here(*words, cwd=tmp_path, monkeypatch=monkeypatch) == 0
    (line,) = lines(tmp_path / "evaluations" / "evaluations.jsonl")
    assert line["sampling"] == {
        "steps": 3,
        "sampler": "heun",
        "guidance": 2.0,
        "interval": [0.1, 1.0],
        "final": "official",
        "shift": 1.0,
        "guidance_every": 1,
    }
    assert (line["count"], line["first_seed"], line["labels"]) == (COUNT, 0, "balanced over 3 classes")
    assert line["features"]["held_out_accuracy"] >= 0
    assert line["reference"]["count"] == 60
    assert {"model", "weights_hash", "nfe", "precision", "device", "versions", "seconds", "overhead"} <= set(line)
    assert {"fd", "floor", "fd_infinity", "kid", "inception_score", "agreement", "copies"} <= set(line["scores"])
    shown = capsys.readouterr().out
    assert "fd_infinity" in shown
    assert "held out accuracy" in shown
    assert "two standard errors" in shown
    left = sorted(path.suffix for path in (tmp_path / "evaluations").iterdir())
    assert left == [".jsonl", ".png"]


def test_an_interrupted_evaluation_goes_on(tmp_path, monkeypatch, capsys):
    model(tmp_path / "m")
    pictures(tmp_path / "data.npz")
    words = ["evaluate", "m", "--data", "data.npz", "--count", str(COUNT), "--device", "cpu", "--batch-size", "4"]
    assert jit_here(*words, "--out", "whole", cwd=tmp_path, monkeypatch=monkeypatch) == 0
    monkeypatch.setattr(evaluating, "generate", Counting(stop=12))
    assert jit_here(*words, "--out", "parts", cwd=tmp_path, monkeypatch=monkeypatch) == 3
    assert f"12 of {COUNT} samples are judged; the same command goes on" in capsys.readouterr().out
    monkeypatch.setattr(evaluating, "generate", counting := Counting())
    assert jit_here(*words, "--out", "parts", cwd=tmp_path, monkeypatch=monkeypatch) == 0
    assert counting.drawn == COUNT - 12
    (whole,), (parts,) = (lines(tmp_path / name / "evaluations.jsonl") for name in ("whole", "parts"))
    assert values(parts) == values(whole)
    assert sorted(path.suffix for path in (tmp_path / "parts").iterdir()) == [".jsonl", ".png"]


def test_fewer_samples_after_an_interruption_are_the_first_ones(tmp_path, monkeypatch):
    """Rows of more samples than are asked for now do not count."""
    model(tmp_path / "m")
    pictures(tmp_path / "data.npz")
    words = ["evaluate", "m", "--data", "data.npz", "--device", "cpu", "--batch-size", "4", "--count"]
    assert jit_here(*words, "12", "--out", "a", cwd=tmp_path, monkeypatch=monkeypatch) == 0
    monkeypatch.setattr(evaluating, "generate", Counting(stop=20))
    assert jit_here(*words, "30", "--out", "b", cwd=tmp_path, monkeypatch=monkeypatch) == 3
    monkeypatch.setattr(evaluating, "generate", no_sample)
    assert jit_here(*words, "12", "--out", "b", cwd=tmp_path, monkeypatch=monkeypatch) == 0
    (few,), (some,) = (lines(tmp_path / name / "evaluations.jsonl") for name in ("a", "b"))
    assert values(some) == pytest.approx(values(few), rel=1e-6)


def test_rows_of_other_weights_are_not_taken(tmp_path):
    """Nor those of the same tensors with another meaning."""
    one = Denoiser(small_net(num_classes=0))
    other = Denoiser(small_net(num_classes=0), noise_scale=2.0)
    assert hash_of(one) != hash_of(other)
    with torch.no_grad():
        next(iter(other.net.parameters())).add_(1)
    assert hash_of(Denoiser(other.net)) != hash_of(one)


def test_samples_are_saved_where_that_is_asked_for(tmp_path, monkeypatch):
    """What is saved is what was judged: --samples of it gives the same numbers."""
    model(tmp_path / "m")
    pictures(tmp_path / "data.npz")
    words = ["evaluate", "m", "--data", "data.npz", "--count", str(COUNT), "--device", "cpu", "--save", "drawn"]
    assert jit_here(*words, "--out", "a", cwd=tmp_path, monkeypatch=monkeypatch) == 0
    said = json.loads((tmp_path / "drawn" / "samples.json").read_text())
    assert said["seeds"] == list(range(COUNT))
    assert said["labels"] == [k % 3 for k in range(COUNT)]
    words = ["evaluate", "--samples", "drawn", "--data", "data.npz", "--out", "b", "--device", "cpu"]
    assert jit_here(*words, cwd=tmp_path, monkeypatch=monkeypatch) == 0
    (drawn,), (read,) = (lines(tmp_path / name / "evaluations.jsonl") for name in ("a", "b"))
    for name in ("fd", "precision", "recall", "coverage", "spectrum"):
        assert values(read)[name] == pytest.approx(values(drawn)[name], rel=1e-5), name


def test_repeats_have_fresh_seeds(tmp_path, monkeypatch):
    model(tmp_path / "m")
    pictures(tmp_path / "data.npz")
    words = ["evaluate", "m", "--data", "data.npz", "--count", "15", "--device", "cpu", "--save", "s", "--repeats", "2"]
    assert jit_here(*words, cwd=tmp_path, monkeypatch=monkeypatch) == 0
    (line,) = lines(tmp_path / "evaluations" / "evaluations.jsonl")
    a, b = line["each"]["fd"]
    assert line["scores"]["fd"] == pytest.approx({"value": (a + b) / 2, "error": abs(a - b) / 2})
    assert json.loads((tmp_path / "s" / "samples.json").read_text())["seeds"] == list(range(30))


def test_the_mean_of_evaluations():
    several = [Scores((Score("fd", value), Score("floor", 1.0))) for value in (1.0, 2.0, 6.0)]
    found = mean_of(several)
    assert (found["fd"].value, found["floor"].error) == (3.0, None)
    assert found["fd"].error == pytest.approx(np.std([1, 2, 6], ddof=1) / 3**0.5)
    assert mean_of(several[:1]) is several[0]


def test_scores_as_a_table_and_as_json():
    scores = Scores((Score("fd", 1.5, 0.25, "lower", "how far"), Score("lags u", float("nan"))), {"count": 3})
    assert "1.5 \N{PLUS-MINUS SIGN} 0.25  lower is better  how far" in str(scores)
    held = json.loads(json.dumps(scores.to_json(), allow_nan=False))
    assert held == {
        "count": 3,
        "scores": {"fd": {"value": 1.5, "error": 0.25}, "lags u": {"value": None, "error": None}},
    }
    with pytest.raises(KeyError, match="there are fd, lags u"):
        scores["kid"]


def other_spec(path: Path) -> None:
    """Images of another size."""
    pictures(path / "data.npz", size=16)


def grey(path: Path) -> None:
    """Images of another number of channels."""
    pictures(path / "data.npz", channels=1)


def statistics(path: Path, **arrays: Any) -> None:
    np.savez(path / "stats.npz", **arrays)


EYE = {"mu": np.zeros(8), "sigma": np.eye(8)}


@pytest.mark.parametrize(
    ("prepare", "arguments", "answer"),
    [
        (None, ["--count", "0"], "count (0)"),
        (None, ["--count", "8"], "8 samples are too few"),
        (None, ["--count", "31"], "cannot be shared out equally over 3 classes; choose --count 30"),
        (None, ["--guidance", "nan"], "guidance is nan"),
        (None, ["--batch-size", "0"], "batch_size (0)"),
        (None, ["--first-seed", "-1"], "first_seed (-1)"),
        (None, ["--samples", "data.npz"], "give a MODEL, or --samples"),
        (None, ["--features", "inception", "--features-weights", "none.pth"], "none.pth"),
        (None, ["--features", "dinov2", "--features-weights", "none.pth"], "none.pth"),
        (None, ["--features-weights", "none.pth"], "none.pth"),
        (None, ["--data", "nowhere"], "nowhere does not exist"),
        (None, ["--weights", "raw"], "'raw' cannot be chosen"),
        (None, ["--unseen", "nowhere"], "nowhere does not exist"),
        (None, ["--save-statistics", "stats"], "no FILE.npz"),
        (other_spec, [], "the size of the samples is 8x8, and that of the reference 16x16"),
        (grey, [], "the channels of the samples is 3, and that of the reference 1"),
        (lambda path: pictures(path / "data.npz", count=8), [], "at least 20"),
        (lambda path: (path / "stats.npz").write_bytes(b"PK damaged"), ["--data", "stats.npz"], "stats.npz"),
        (lambda path: statistics(path, **EYE), ["--data", "stats.npz"], "fitted to the data, which are not here"),
        (
            lambda path: statistics(path, **EYE, features="another"),
            ["--data", "stats.npz"],
            "statistics of another features",
        ),
        (
            lambda path: statistics(path, **EYE),
            ["--data", "stats.npz", "--labels", "data", "--features", "inception"],
            "",
        ),
    ],
)
def test_what_cannot_be_met_is_refused_before_a_sample(tmp_path, monkeypatch, capsys, prepare, arguments, answer):
    """Exit code 2, a message, and nothing left behind."""
    monkeypatch.setattr(evaluating, "generate", no_sample)
    monkeypatch.setenv("JUSTIMAGE_INCEPTION", str(tmp_path / "none.pth"))
    model(tmp_path / "m")
    pictures(tmp_path / "data.npz")
    if prepare is not None:
        prepare(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    words = ["evaluate", "m", "--data", "data.npz", "--count", str(COUNT), "--device", "cpu"]
    given = [word for word in arguments if word.startswith("--")]
    for option in given:  # an option is given once
        if option in words:
            at = words.index(option)
            del words[at : at + 2]
    assert jit_here(*words, *arguments, cwd=tmp_path, monkeypatch=monkeypatch) == 2
    message = capsys.readouterr().err
    assert answer in message, message
    assert "Traceback" not in message
    assert sorted(tmp_path.rglob("*")) == before


def test_weights_that_are_no_run_need_data(tmp_path, monkeypatch, capsys):
    model(tmp_path / "m")
    assert jit_here("evaluate", "m", "--count", "30", cwd=tmp_path, monkeypatch=monkeypatch) == 2
    assert "give --data" in capsys.readouterr().err


def test_statistics_must_be_of_these_features(tmp_path):
    source = of_fields()
    judge = judge_of_fields(source)
    path = tmp_path / "stats.npz"
    cases = {
        "other features": {"mu": np.zeros(9), "sigma": np.eye(9)},
        "statistics of squares": {"mu": np.zeros(6), "sigma": np.eye(6), "features": "squares"},
        "not finite": {"mu": np.full(6, np.nan), "sigma": np.eye(6)},
        "not symmetric": {"mu": np.zeros(6), "sigma": np.triu(np.ones((6, 6)))},
        "cannot be read": {"mu": np.zeros(6)},
    }
    for answer, arrays in cases.items():
        np.savez(path, **arrays)
        with pytest.raises(ValueError, match=answer):
            read_statistics(path, judge.features)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="cannot be read"):
        read_statistics(path, judge.features)


def test_features_that_are_not_finite_are_refused():
    """Of the reference, with the number of the sample; of a sample too."""
    source = of_fields(seed=11)
    bad = np.array(source.x if hasattr(source, "x") else [source[i][0] for i in range(60)])

    class Fails(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.where(x[:, :1, 0, 0] > 0.8, torch.nan, x.flatten(1)[:, :6])

    features = ModuleFeatures(Fails(), "fails", source.spec)
    first = int(np.flatnonzero(source.spec.encode(torch.from_numpy(bad))[:, 0, 0, 0].numpy() > 0.8)[0])
    with pytest.raises(ValueError, match=rf"features of sample {first} are not finite \(fails\): the extractor"):
        reference_of(source, features)


def test_labels_as_in_the_data(tmp_path, monkeypatch, capsys):
    """Classes come as often as in the data; other classes, other conditions and statistics are refused."""
    drawing = ji.load(model(tmp_path / "m"), device="cpu")
    x = np.random.default_rng(0).integers(0, 256, (90, 3, 8, 8), dtype=np.uint8)
    y = np.repeat([0, 1, 2], [60, 20, 10])
    draws = draws_of(drawing, 90, 0, "data", Arrays(x, y, classes=["0", "1", "2"]))
    assert np.bincount(draws.labels or []).tolist() == [60, 20, 10]  # an epoch has every sample once
    assert draws.policy == "as in the data"
    with pytest.raises(ValueError, match=r"the classes of the reference \(a, b, c\)"):
        draws_of(drawing, 90, 0, "data", Arrays(x, y, classes=["a", "b", "c"]))
    with pytest.raises(ValueError, match="conditioned on 3 labels, and the reference gives nothing"):
        draws_of(drawing, 90, 0, "data", Arrays(x))
    with pytest.raises(ValueError, match="only statistics or a stream"):
        draws_of(drawing, 90, 0, "data", None)


def test_conditions_other_than_labels(tmp_path, monkeypatch, capsys):
    """Tokens with their masks and planes come from the data, for `jit evaluate` too; balanced they cannot be."""
    generator = np.random.default_rng(0)
    planes = generator.normal(size=(60, 1, 8, 8)).astype(np.float32)
    tokens, mask = generator.normal(size=(60, 4, 3)).astype(np.float32), np.arange(60)[:, None] % 4 >= np.arange(4)
    x = generator.normal(size=(60, 2, 8, 8)).astype(np.float32) + planes
    np.savez(tmp_path / "data.npz", x=x, height=planes, words=tokens, words_mask=mask)
    source = open_source(str(tmp_path / "data.npz"), (8, 8), 2, DataOptions(conditions=("height", "words")))
    parts = tuple(Part(each.name, each.kind, each.features, each.length) for each in source.spec.given)
    drawing = Denoiser(small_net(num_classes=0, conditions=parts), spec=source.spec, sampling=ji.Sampling(steps=2))
    drawing.save_pretrained(tmp_path / "m")
    draws = draws_of(drawing, 12, 3, "data", source)
    assert set(draws.condition) == {"height", "words", "words_mask"}
    where = order(0, range(3, 15), 60)
    np.testing.assert_array_equal(draws.condition["words_mask"][2:5], mask[where[2:5]])
    words = ["evaluate", "m", "--data", "data.npz", "--data-options.conditions", "height", "words"]
    words += ["--count", str(COUNT), "--device", "cpu"]
    assert jit_here(*words, cwd=tmp_path, monkeypatch=monkeypatch) == 2
    assert "conditioned on height, words, which only data can give" in capsys.readouterr().err
    assert jit_here(*words, "--labels", "data", cwd=tmp_path, monkeypatch=monkeypatch) == 0
    (line,) = lines(tmp_path / "evaluations" / "evaluations.jsonl")
    assert {"w1 channel0", "quantiles channel1", "lags channel1", "spectrum"} <= set(line["scores"])


@pytest.mark.parametrize(("size", "patch"), [((8, 8), 4), ((64,), 8), ((8, 8, 8), 4)])
def test_fields_volumes_and_signals(tmp_path, monkeypatch, size, patch):
    source = of_fields(size=size)
    np.save(tmp_path / "data.npy", np.stack([source[i][0] for i in range(60)]))
    drawing = Denoiser(small_net(size, patch, num_classes=0), spec=source.spec, sampling=ji.Sampling(steps=2))
    drawing.save_pretrained(tmp_path / "m")
    words = ["evaluate", "m", "--data", "data.npy", "--count", str(COUNT), "--device", "cpu"]
    assert jit_here(*words, cwd=tmp_path, monkeypatch=monkeypatch) == 0
    (line,) = lines(tmp_path / "evaluations" / "evaluations.jsonl")
    assert line["labels"] == "unconditional"
    assert line["sampling"]["guidance"] == 1
    assert {"fd", "w1 channel0", "lags channel1", "spectrum"} <= set(line["scores"])


def test_a_model_that_does_not_say_what_its_values_mean_draws_those_of_the_data(tmp_path):
    source = of_fields()
    judge = judge_of_fields(source)
    net, settings = small_net(num_classes=0), ji.Sampling(steps=2)
    draws = Draws(range(COUNT), None, {}, "unconditional")
    with_spec = evaluate(Denoiser(net, spec=source.spec, sampling=settings), judge, draws, tmp_path / "a")
    without = evaluate(Denoiser(net, sampling=settings), judge, draws, tmp_path / "b")
    assert with_spec is not None
    assert without is not None
    assert with_spec["fd"] == without["fd"]


def test_statistics_and_back(tmp_path, monkeypatch):
    """A file of statistics gives the distance that the data give, to 1e-9; one of mu and sigma alone will do."""
    model(tmp_path / "m")
    pictures(tmp_path / "data.npz")
    words = ["evaluate", "m", "--count", str(COUNT), "--device", "cpu"]
    first = [*words, "--data", "data.npz", "--save-statistics", "stats.npz", "--out", "a"]
    assert jit_here(*first, cwd=tmp_path, monkeypatch=monkeypatch) == 0
    assert jit_here(*words, "--data", "stats.npz", "--out", "b", cwd=tmp_path, monkeypatch=monkeypatch) == 0
    (a,), (b,) = (lines(tmp_path / name / "evaluations.jsonl") for name in "ab")
    assert values(b)["fd"] == pytest.approx(values(a)["fd"], rel=1e-9)
    assert "kid" not in b["scores"]
    samples = Arrays(np.random.default_rng(1).integers(0, 256, (50, 3, 8, 8), dtype=np.uint8))
    np.save(tmp_path / "samples.npy", np.stack([samples[i][0] for i in range(50)]))
    words = ["evaluate", "--samples", "samples.npy", "--device", "cpu", "--data"]
    for data in ("data.npz", "stats.npz"):
        assert jit_here(*words, data, "--out", f"of-{data}", cwd=tmp_path, monkeypatch=monkeypatch) == 0
    (a,), (b,) = (lines(tmp_path / f"of-{name}.npz" / "evaluations.jsonl") for name in ("data", "stats"))
    assert values(b)["fd"] == pytest.approx(values(a)["fd"], rel=1e-9)


def test_statistics_as_others_write_them(tmp_path):
    source = of_fields()
    judge = judge_of_fields(source)
    save_statistics(judge.reference, tmp_path / "ours.npz")
    with np.load(tmp_path / "ours.npz") as ours:
        np.savez(tmp_path / "adm.npz", mu=ours["mu"], sigma=ours["sigma"])
    rows = np.random.default_rng(3).normal(size=(40, 6))
    of = [judge.reference, *(read_statistics(tmp_path / name, judge.features) for name in ("ours.npz", "adm.npz"))]
    first, *others = [frechet_estimate(rows, each.moments).value for each in of]
    assert others == pytest.approx([first, first], rel=1e-9)


class Once(Arrays):
    """Counts how often a sample is read."""

    reads = 0

    def read(self, start: int, stop: int) -> list[Any]:
        Once.reads += stop - start
        return super().read(start, stop)


def test_the_reference_is_looked_at_once(tmp_path, monkeypatch):
    """And again where the data, their mirroring or the features are others, or what was kept is damaged."""
    monkeypatch.setenv("JUSTIMAGE_CACHE", str(tmp_path / "cache"))
    x = np.random.default_rng(0).integers(0, 256, (60, 3, 8, 8), dtype=np.uint8)
    source = Once(x)

    def looked(source: Any, name: str = "flat", mirrored: bool = False) -> tuple[int, Reference]:
        Once.reads = 0
        net = nn.Sequential(nn.AdaptiveAvgPool2d(1))
        found = reference_of(source, ModuleFeatures(net, name, source.spec), mirrored=mirrored)
        return Once.reads, found

    (reads, first), (again, second) = looked(source), looked(source)
    assert (reads, again) == (60, 0)
    assert first.facts == second.facts
    np.testing.assert_array_equal(first.moments.covariance, second.moments.covariance)
    assert looked(source, mirrored=True)[0] == 60
    assert looked(source, name="other")[0] == 60
    assert looked(Once(x[:, :, :4].copy()))[0] == 60
    assert looked(Once(255 - x))[0] == 60
    kept = sorted(path for path in (tmp_path / "cache" / "reference").rglob("*") if path.is_file())
    for damage in (b"", b"damaged"):
        for name in ("moments.npz", "facts.json", "rows.json", "features.rows", "small.rows", "spectrum.rows"):
            for path in kept:
                if path.name == name:
                    path.write_bytes(damage)
            assert looked(source)[0] == 60, name
            assert looked(source)[0] == 0
    for mapped in looked(source)[1].rows.values():
        assert len(mapped) == 60


def test_without_a_cache_the_reference_is_looked_at_every_time(tmp_path, monkeypatch):
    """And nothing is left of it elsewhere."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("JUSTIMAGE_CACHE", str(tmp_path / "file" / "cache"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "elsewhere"))
    (tmp_path / "elsewhere").mkdir()
    judge = judge_of_fields(of_fields())
    assert len(judge.reference.rows["features"]) == 60
    assert judge.reference.small is not None
    assert judge.reference.small.sum() != 0
    assert not list((tmp_path / "elsewhere").iterdir())


def test_mirrored_references_are_symmetric():
    """Statistics of data and their mirror images are those of the mirror images and the data."""
    x = np.random.default_rng(0).integers(0, 256, (40, 1, 4, 4), dtype=np.uint8)
    one, other = Arrays(x), Arrays(x[..., ::-1].copy())
    found = [
        reference_of(each, ModuleFeatures(nn.Flatten(), "flat", each.spec), mirrored=True).moments
        for each in (one, other)
    ]
    np.testing.assert_allclose(found[0].covariance, found[1].covariance, rtol=1e-9, atol=1e-9)
    assert found[0].count == 80


def test_samples_in_every_form_give_the_same_numbers(tmp_path, monkeypatch):
    """A folder, a zip, .npy, ADM's .npz, and what `jit sample` writes with its grid."""
    pictures(tmp_path / "data.npz")
    x = np.random.default_rng(5).integers(0, 256, (COUNT, 3, 8, 8), dtype=np.uint8)
    np.save(tmp_path / "x.npy", x)
    np.savez(tmp_path / "adm.npz", arr_0=np.moveaxis(x, 1, -1), arr_1=np.zeros(COUNT, np.int64))
    for name in ("folder", "drawn"):
        (tmp_path / name).mkdir()
        for i, image in enumerate(x):
            Image.fromarray(np.moveaxis(image, 0, -1)).save(tmp_path / name / f"seed{i:04d}.png")
    Image.new("RGB", (99, 99)).save(tmp_path / "drawn" / "grid.png")
    write_facts(tmp_path / "drawn", {}, range(COUNT), None)
    (tmp_path / "arrays").mkdir()
    np.save(tmp_path / "arrays" / "samples.npy", x)
    write_facts(tmp_path / "arrays", {}, range(COUNT), None)
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for path in (tmp_path / "folder").iterdir():
            archive.write(path, path.name)
    found = {}
    for form in ("x.npy", "adm.npz", "folder", "drawn", "arrays", "x.zip"):
        words = ["evaluate", "--samples", form, "--data", "data.npz", "--device", "cpu", "--out", f"of {form}"]
        assert jit_here(*words, cwd=tmp_path, monkeypatch=monkeypatch) == 0
        (line,) = lines(tmp_path / f"of {form}" / "evaluations.jsonl")
        assert line["count"] == COUNT
        found[form] = values(line)
    for form, others in found.items():
        assert others == pytest.approx(found["x.npy"], rel=1e-6), form


def test_samples_are_judged_alike_in_whatever_order_their_files_lie(tmp_path, monkeypatch):
    """Sorted by class, as in folders of classes: scores that are of a part of the samples see all classes too."""
    pictures(tmp_path / "data.npz")
    found = np.load(tmp_path / "data.npz")
    np.save(tmp_path / "sorted.npy", found["x"][np.argsort(found["y"], kind="stable")])
    monkeypatch.setattr("justimage.evaluation.judge.KEPT", 20)  # a third of them
    words = ["evaluate", "--samples", "sorted.npy", "--data", "data.npz", "--device", "cpu"]
    assert jit_here(*words, cwd=tmp_path, monkeypatch=monkeypatch) == 0
    (line,) = lines(tmp_path / "evaluations" / "evaluations.jsonl")
    assert values(line)["coverage"] > 0.6
    assert values(line)["recall"] > 0.6


def test_samples_that_cannot_be_judged(tmp_path, monkeypatch, capsys):
    """One corrupt image of a folder, wherever it comes; images of several sizes; options of a model."""
    pictures(tmp_path / "data.npz")
    (tmp_path / "s").mkdir()
    for i in range(COUNT):
        Image.new("RGB", (8, 8), (i, 2 * i, 3 * i)).save(tmp_path / "s" / f"{i:02d}.png")
    words = ["evaluate", "--samples", "s", "--data", "data.npz", "--device", "cpu"]

    def refused(*more: str) -> str:
        assert jit_here(*words, *more, cwd=tmp_path, monkeypatch=monkeypatch) == 2
        assert not (tmp_path / "evaluations").exists()
        return capsys.readouterr().err

    assert "--guidance" in refused("--guidance", "3") or "sampling" in refused("--guidance", "3")
    assert "--repeats is for drawing" in refused("--repeats", "2")
    for name in ("00.png", "17.png"):
        whole = (tmp_path / "s" / name).read_bytes()
        (tmp_path / "s" / name).write_bytes(whole[:40])
        assert name in refused()
        (tmp_path / "s" / name).write_bytes(whole)
    Image.new("RGB", (9, 8)).save(tmp_path / "s" / "20.png")
    assert "20.png in s is 8x9, and 00.png 8x8" in refused()
    words[2] = "nowhere"
    assert "nowhere does not exist" in refused()
    words = ["evaluate", "--samples", "data.npz"]
    assert "are compared with --data" in refused()


def of_digits(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Real digits in a fixed random order, and their labels."""
    source = digits()
    some = np.random.default_rng(0).permutation(len(source))[:count]
    x = np.stack([source[int(i)][0] for i in some])
    return x, np.array([int(source[int(i)][1]["labels"]) for i in some])


@pytest.fixture(scope="module")
def digits_judge() -> tuple[Judge, np.ndarray, np.ndarray]:
    """A judge that was fitted to 1,500 real digits; 700 others with their labels."""
    x, y = of_digits(2200)
    training = Arrays(x[:1500], y[:1500], classes=[str(i) for i in range(10)])
    fit = Fit(features=32, width=16, epochs=1, least=9600)
    features = fit_features(training, fit)
    return Judge(features, reference_of(training, features), training.spec), x[1500:], y[1500:]


def judged(judge: Judge, x: np.ndarray, folder: Path, labels: np.ndarray | None = None) -> Scores:
    store = RowStore(folder, judge.looker().kinds())
    for start in range(0, len(x), 500):
        part = torch.from_numpy(x[start : start + 500])
        store.append(judge.looker()(part, range(start, start + len(part))))
    return judge.scores({name: store[name] for name in store.kinds}, None if labels is None else labels.tolist())


@pytest.mark.slow
def test_worse_samples_are_found_worse(digits_judge, tmp_path):
    """By the Frechet distances, and by what claims to see just this."""
    judge, x, y = digits_judge
    generator = np.random.default_rng(0)
    padded = np.pad(x.astype(np.float32), ((0, 0), (0, 0), (2, 2), (2, 2)))
    blurred = np.mean([padded[:, :, i : i + 28, j : j + 28] for i in range(5) for j in range(5)], 0)
    few = np.where(np.isin(y, (1, 7))[:, None, None, None], x, 0)[np.isin(y, (1, 7))]
    bad = {
        "blurred": blurred.astype(np.uint8),
        "few classes": np.tile(few, (9, 1, 1, 1))[: len(x)],
        "noise": (x + generator.normal(0, 60, x.shape)).clip(0, 255).astype(np.uint8),
    }
    good = judged(judge, x, tmp_path / "good", y)
    found = {name: judged(judge, each, tmp_path / name) for name, each in bad.items()}
    for name, scores in found.items():
        for distance in ("fd", "fd_infinity", "kid"):
            a, b = good[distance], scores[distance]
            assert b.value - a.value > 4 * np.hypot(a.error or 0, b.error or 0), (name, distance)
        assert scores["coverage"].value < good["coverage"].value, name
    for name in ("blurred", "noise"):
        assert found[name]["spectrum"].value > 2 * good["spectrum"].value
        assert found[name]["precision"].value < good["precision"].value
    assert found["few classes"]["recall"].value < 0.7 * good["recall"].value
    assert found["few classes"]["precision"].value > 0.9
    wrong = judged(judge, x, tmp_path / "wrong", (y + 1) % 10)
    assert wrong["agreement"].value < 0.1 < 0.4 < good["agreement"].value
    floor = good["floor"].value
    assert good["fd"].value < 3 * floor < found["noise"]["fd"].value


@pytest.mark.slow
def test_copies_of_the_training_data_are_found(digits_judge, tmp_path):
    """All of a memorised set, a part of a part, also where they are noisy; and no more than 1 % of unseen data."""
    judge, x, _ = digits_judge
    training = of_digits(1500)[0]
    noise = np.random.default_rng(1).normal(0, 8, (500, 1, 28, 28))
    cases = {
        "copies": (training[:500], 1.0),
        "noisy": ((training[:500] + noise).clip(0, 255).astype(np.uint8), 1.0),
        "half": (np.concatenate([training[:250], x[:250]]), 0.5),
    }
    for name, (samples, share) in cases.items():
        found = judged(judge, samples, tmp_path / name)["copies"]
        assert found.value == pytest.approx(share, abs=0.03), name
    fresh = judged(judge, x, tmp_path / "fresh")["copies"]
    assert fresh.error is not None
    assert abs(fresh.value - 0.01) < 4 * fresh.error


def test_copies_are_found_where_data_repeat_themselves():
    """Data with twins are as near to themselves as copies are; one copied sample is still told by its index."""
    generator = np.random.default_rng(0)
    training = generator.normal(size=(300, 20)).astype(np.float32)
    training[290:] = training[:10]
    found = copying(training[50:100], training)
    assert found.share == 1
    assert found.nearest.tolist() == list(range(50, 100))
    assert found.distances.max() == 0
    fresh = copying(generator.normal(size=(200, 20)).astype(np.float32), training)
    assert fresh.share < 0.05
    assert fresh.auc == pytest.approx(0.5, abs=0.1)


def test_reduced_samples_are_means_of_model_values():
    """Mapped from a disk, too, without a warning."""
    spec = ji.DataSpec.pixels((32, 32), 1)
    raw = np.random.default_rng(0).integers(0, 256, (3, 1, 32, 32), dtype=np.uint8)
    raw.setflags(write=False)
    found = reduced(raw, spec)
    np.testing.assert_allclose(
        found.reshape(3, 16, 16), (raw[:, 0].reshape(3, 16, 2, 16, 2).mean((2, 4)) - 127.5) / 127.5, atol=1e-6
    )
    assert reduced(raw[:0], spec).shape == (0, 256)


def test_rows_are_kept_whole(tmp_path):
    """What a kill has cut is drawn again; the first rows of a kind that keeps few are kept."""
    kinds = {"a": Row((2,)), "few": Row((3,), "uint8", 4)}
    rows = {"a": np.arange(20, dtype=np.float32).reshape(10, 2), "few": np.arange(30, dtype=np.uint8).reshape(10, 3)}
    store = RowStore(tmp_path / "s", kinds)
    for start in range(0, 10, 3):
        store.append({name: each[start : start + 3] for name, each in rows.items()})
    np.testing.assert_array_equal(store["a"], rows["a"])
    np.testing.assert_array_equal(store["few"], rows["few"][:4])
    with (tmp_path / "s" / "a.rows").open("r+b") as file:
        file.truncate(7 * 8 + 3)
    again = RowStore(tmp_path / "s", kinds)
    assert again.count == 7
    again.append({name: each[7:] for name, each in rows.items()})
    np.testing.assert_array_equal(again["a"], rows["a"])
    np.testing.assert_array_equal(again["few"], rows["few"][:4])
    with pytest.raises(ValueError, match="rows of another kind"):
        RowStore(tmp_path / "s", {"a": Row((3,))})


MEMORY = """
import resource, sys
from pathlib import Path
import numpy as np
from justimage.data.spec import DataSpec
from justimage.evaluation.judge import scores_of
from justimage.evaluation.metrics import FeatureMoments
from justimage.evaluation.reference import Reference
from justimage.evaluation.rows import Looker, RowStore
import torch

class Features:
    name, size, classes, facts = "mean", 64, 10, {}
    def check(self, spec): pass
    def __call__(self, raw):
        x = raw.float().reshape(len(raw), -1)[:, :64]
        return x, x[:, :10]

spec = DataSpec.pixels((64, 64), 3)
store = RowStore(Path(sys.argv[1]), Looker(spec, Features()).kinds())
look, generator = Looker(spec, Features()), np.random.default_rng(0)
batch = generator.integers(0, 256, (500, 3, 64, 64), dtype=np.uint8)
real = generator.integers(0, 256, (10_000, 64)).astype(np.float32)
reference = Reference(FeatureMoments.of(real), "mean", rows={"features": real, "spectrum": np.ones((10, 3, 46))},
                      small=generator.normal(size=(50_000, 768)).astype(np.float32))
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
rows = look(torch.from_numpy(batch), range(500))
for _ in range(100):
    rows["features"] = generator.integers(0, 256, (500, 64)).astype(np.float32)
    store.append(rows)
assert store.count == 50_000
print(scores_of({name: store[name] for name in store.kinds}, reference, spec)[0], (peak() - before) / 2**30)
assert peak() - before < 2**30
"""


@pytest.mark.slow
def test_50_000_samples_are_judged_below_a_gigabyte(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", MEMORY, str(tmp_path / "rows")], check=True, timeout=600, env=environment)
