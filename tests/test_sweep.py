"""The sweep: which candidates there are, what they cost, that sharing changes nothing, and what it leaves behind."""

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import jit_here, small_net
from PIL import Image
from test_evaluate import QUICK, lines, pictures
from torch import Tensor, nn

import justimage as ji
from justimage.commands.sweep import SweepCommand, as_options, sets_of
from justimage.data.arrays import Arrays
from justimage.denoiser import Denoiser
from justimage.evaluation import evaluate as evaluating
from justimage.evaluation import features as extractors
from justimage.evaluation import sweep as sweeping
from justimage.evaluation.draws import draws_of
from justimage.evaluation.features import ModuleFeatures
from justimage.evaluation.judge import Judge
from justimage.evaluation.reference import reference_of
from justimage.evaluation.sweep import Candidate, Halving, Remembering, Space, sweep
from justimage.process import Prediction
from justimage.randomness import noise
from justimage.samplers import Sampler, Sampling
from justimage.sampling.draw import draw
from justimage.weights.folder import read_folder, write_sampling

PREVIOUS = Path(__file__).parent / "previous"
OWN = Sampling(steps=3, sampler="ab2", guidance=2.0, interval=(0.3, 1.0))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Features are fitted in a moment."""
    monkeypatch.setattr(extractors, "Fit", lambda: QUICK)


def model(scale: float = 0.0, sampling: Sampling = OWN) -> Denoiser:
    """A small model of pixels with three classes; scale: how far its weights are from those of the others."""
    net = small_net(channels=3)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(1 + scale)
    return Denoiser(net, spec=ji.DataSpec.pixels((8, 8), 3, ["0", "1", "2"]), sampling=sampling)


def judge() -> Judge:
    x = np.random.default_rng(0).integers(0, 256, (60, 3, 8, 8), dtype=np.uint8)
    source = Arrays(x, np.arange(60) % 3)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 6))
    features = ModuleFeatures(net, "linear", source.spec)
    return Judge(features, reference_of(source, features), source.spec)


def test_candidates_are_all_combinations_and_the_models_own_once():
    space = Space(guidance=(1.0, 2.0, 3.0), intervals=((0.1, 1.0), (0.3, 1.0)), samplers=("ab2", "heun"), steps=(3, 6))
    sets = [("run", "raw"), ("run", "ema-0.9")]
    found = space.candidates(sets, OWN, guided=True)
    assert len(set(found)) == len(found)
    of_each = [[each.sampling for each in found if (each.source, each.weights) == one] for one in sets]
    assert of_each[0] == of_each[1]
    assert of_each[0][0] == OWN
    unguided = [each for each in of_each[0] if each.guidance == 1]
    assert len(unguided) == 4  # a sampler and a number of steps each, and one interval
    assert len(of_each[0]) == 4 + 2 * 2 * 4
    other = replace(OWN, guidance=7.0)
    assert space.candidates(sets, other, guided=True)[0].sampling == other
    assert all(each.sampling.guidance == 1 for each in space.candidates(sets, OWN, guided=False))
    assert len(space.candidates(sets, OWN, guided=False)) == 2 * 4
    assert len({each.key() for each in found}) == len(found)
    rare = space.candidates(sets, replace(OWN, guidance_every=2), guided=True)
    assert {each.sampling.guidance_every for each in rare} == {2}  # what is not swept stays as the model has it
    assert len({each.text() for each in {*rare, *found}}) == len(rare) + len(found) - 2 * 4  # unguided, it is no matter
    with pytest.raises(ValueError, match="guidance is nan"):
        Space(guidance=(float("nan"),)).candidates(sets, OWN, guided=True)


@pytest.mark.parametrize("candidates", [60, 61, 100, 500])
@pytest.mark.parametrize("classes", [1, 10])
def test_halving_draws_less_than_a_third_of_a_full_grid(candidates, classes):
    """With the two that stay to the end whatever they score. Every round has its share of every class."""
    rounds = Halving().rungs(candidates, 66, classes)
    counts, left = [count for count, _ in rounds], [left for _, left in rounds]
    assert counts == sorted(set(counts))
    assert left == sorted(left, reverse=True)
    assert (counts[-1], left[0]) == (2000, candidates)
    assert left[-1] >= 3
    assert all(count % classes == 0 and count >= 66 for count in counts)
    more = [count - before for count, before in zip(counts, [0, *counts[:-1]], strict=True)]
    drawn = sum(each * (going + 2 * (number > 0)) for number, (each, going) in enumerate(zip(more, left, strict=True)))
    assert drawn < candidates * 2000 / 3


def test_halving_at_its_edges():
    assert Halving().rungs(3, 66, 1) == [(2000, 3)]
    assert Halving().rungs(1, 66, 1) == [(2000, 1)]
    assert Halving(count=90).rungs(60, 66, 3)[-1][0] == 90
    assert Halving(first=1.0).rungs(60, 66, 1) == [(2000, 60)]
    nan = float("nan")
    for name, wrong in {"count": (0, -1), "first": (0.0, 1.5, nan), "kept": (0.0, 1.0), "finalists": (0,)}.items():
        for value in wrong:
            with pytest.raises(ValueError, match=rf"{name} \({value}\)"):
                Halving(**{name: value})


@pytest.mark.parametrize("sampler", ["heun", "euler", "ab2", "dpm++2m", "deis"])
def test_what_is_remembered_is_what_the_model_says(sampler: Sampler):
    """To the bit, and it costs less: guidance scales share the way to the interval, last steps all but the last."""
    drawing = model()
    count = 20  # so many that nothing is told ahead (sampling.ahead), which rounds otherwise
    z = noise(range(count), (3, 8, 8))
    y = drawing.value([k % 3 for k in range(count)], None, count, (8, 8))
    settings = [
        Sampling(6, sampler, guidance, (0.5, 1.0), final=final)
        for guidance in (1.0, 2.0, 3.0)
        for final in ("official", "x")
    ]
    remembering = Remembering(drawing)
    for each in settings:
        assert torch.equal(draw(remembering, y, z, each), draw(drawing, y, z, each)), each
    assert remembering.asked == count * sum(each.evaluations() for each in settings)
    alone = settings[0].evaluations()
    before = alone // 2  # of the evaluations of an unguided one, at least so many are before the interval
    guided = sum(each.evaluations() - before for each in settings[2::2])
    assert remembering.computed <= count * (alone + guided + 2)
    assert remembering.computed < 0.5 * remembering.asked


def test_large_predictions_are_not_remembered(monkeypatch):
    monkeypatch.setattr(sweeping, "ROOM", 0)
    drawing = model()
    remembering = Remembering(drawing)
    z, t = noise(range(2), (3, 8, 8)), torch.zeros(2)
    for _ in range(2):
        remembering(z, t, None)
    assert (remembering.computed, remembering.size) == (4, 0)


class Watched(Remembering):
    """Counts evaluations; interrupts behind some."""

    computed_in_all = 0
    stop: int | None = None

    def __call__(self, z: Tensor, t: Tensor, y: Any) -> Prediction:
        if Watched.stop is not None and Watched.computed_in_all > Watched.stop:
            raise KeyboardInterrupt
        before = self.computed
        found = super().__call__(z, t, y)
        Watched.computed_in_all += self.computed - before
        return found


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> type[Watched]:
    monkeypatch.setattr(sweeping, "Remembering", Watched)
    Watched.computed_in_all, Watched.stop = 0, None
    return Watched


SMALL = Halving(count=48, first=0.25, finalists=2)


def run(folder: Path, weights: Path, batch_size: int = 16) -> sweeping.Sweep:
    drawing = ji.load(weights, device="cpu")
    space = Space(guidance=(1.0, 1.5, 2.0, 3.0, 5.0), finals=("official", "x"))
    candidates = space.candidates([(str(weights), "")], OWN, guided=True)
    by = judge()
    draws = draws_of(drawing, SMALL.count, 0, "balanced", None)
    return sweep(
        drawing,
        by,
        draws,
        candidates,
        SMALL,
        folder,
        always=(lambda each: each.sampling.guidance == 1, lambda each: each.sampling == OWN),
        batch_size=batch_size,
    )


def test_a_sweep_scores_what_the_models_draw(tmp_path, watched):
    """A trial's distance is that of an evaluation of the same seeds; the unguided and the own settings stay."""
    model().save_pretrained(tmp_path / "m")
    found = run(tmp_path / "rows", tmp_path / "m")
    assert found.drawn < found.full
    final = [trial for trial in found.trials if trial.count == SMALL.count]
    assert any(trial.candidate.sampling.guidance == 1 for trial in final)
    assert any(trial.candidate.sampling == OWN for trial in final)
    assert found.best.fd.value == min(trial.fd.value for trial in final)
    assert len(found.first) == len(found.trials) == 10
    assert {trial.count for trial in found.first} == {12}
    drawing = ji.load(tmp_path / "m", device="cpu")
    draws = draws_of(drawing, SMALL.count, 0, "balanced", None)
    alone = evaluating.evaluate(drawing, judge(), draws, tmp_path / "alone", sampling=found.best.candidate.sampling)
    assert alone is not None
    assert alone["fd"].value == pytest.approx(found.best.fd.value, rel=1e-6)
    assert alone["fd"].error == pytest.approx(found.best.fd.error, rel=1e-6)
    other = run(tmp_path / "other", tmp_path / "m", batch_size=5)
    assert [trial.candidate for trial in other.trials] == [trial.candidate for trial in found.trials]
    assert [trial.fd.value for trial in other.trials] == pytest.approx([trial.fd.value for trial in found.trials], 1e-6)


def test_an_interrupted_sweep_goes_on(tmp_path, watched):
    """Also with another batch size, drawing only what is missing."""
    model().save_pretrained(tmp_path / "m")
    whole = run(tmp_path / "whole", tmp_path / "m", batch_size=4)
    cost = watched.computed_in_all
    watched.computed_in_all, watched.stop = 0, cost // 2
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts", tmp_path / "m", batch_size=4)
    watched.computed_in_all, watched.stop = 0, None
    parts = run(tmp_path / "parts", tmp_path / "m", batch_size=4)
    assert watched.computed_in_all < 0.7 * cost
    assert [(trial.candidate, trial.fd.value) for trial in parts.trials] == [
        (trial.candidate, trial.fd.value) for trial in whole.trials
    ]
    watched.computed_in_all = 0
    again = run(tmp_path / "parts", tmp_path / "m", batch_size=7)
    assert watched.computed_in_all == 0
    assert again.best == parts.best
    model(0.1).save_pretrained(tmp_path / "m")  # training goes on meanwhile
    assert run(tmp_path / "parts", tmp_path / "m").best.fd.value != parts.best.fd.value
    assert watched.computed_in_all > 0.5 * cost


def test_samples_that_are_not_finite_lose(tmp_path):
    """Also those of 8-bit pixels, which are finite whatever they come from; where all do, that is said."""
    drawing = model()
    drawing.save_pretrained(tmp_path / "m")
    sets = [(str(tmp_path / "m"), "")]
    by, draws = judge(), draws_of(drawing, 48, 0, "balanced", None)
    good, bad = Sampling(2, guidance=1.0), Sampling(2, guidance=1e6)
    candidates = [Candidate(source, weights, each) for source, weights in sets for each in (good, bad)]

    def exploding(model: Any, y: Any, z: Tensor, sampling: Sampling) -> Tensor:
        x = draw(model, y, z, sampling)
        x[1] = torch.nan if sampling.guidance > 1 else x[1]
        return x

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweeping, "draw", exploding)
        found = sweep(drawing, by, draws, candidates, SMALL, tmp_path / "rows")
        assert found.best.candidate.sampling == good
        assert found.trials[-1].fd.value == np.inf
        with pytest.raises(ValueError, match="no candidate draws finite samples"):
            sweep(drawing, by, draws, candidates[1:], SMALL, tmp_path / "rows")


def test_the_best_weights_of_a_run_take_part_where_no_other_set_is_the_same(tmp_path):
    """They were saved at an evaluation; the others may have been replaced since."""

    def saved(name: str, weights: str, nimg: int) -> None:
        folder = tmp_path / "run" / "weights" / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps({"training": {"weights": weights, "nimg": nimg}}))

    def sets() -> list[str]:
        return [weights for _, weights in sets_of(SweepCommand((str(tmp_path / "run"),)))]

    saved("raw", "raw", 200)
    saved("ema-0.9", "ema-0.9", 200)
    saved("best", "ema-0.9", 200)
    (tmp_path / "run" / "recipe.json").write_text("{}")
    assert sets() == ["ema-0.9", "raw"]
    saved("best", "ema-0.9", 100)
    assert sets() == ["best", "ema-0.9", "raw"]
    saved("ema-0.9@000000100", "ema-0.9@000000100", 100)
    assert sets() == ["ema-0.9", "ema-0.9@000000100", "raw"]


WORDS = ["--data", "data.npz", "--count", "30", "--first", "0.5", "--repeats", "2", "--device", "cpu"]


def test_the_command_leaves_a_table_plots_and_settings(tmp_path, monkeypatch, capsys):
    model().save_pretrained(tmp_path / "m")
    model(0.3).save_pretrained(tmp_path / "n")
    pictures(tmp_path / "data.npz")
    words = ["sweep", "m", "n", *WORDS, "--guidance", "1", "3", "--steps", "2", "--samplers", "euler", "ab2", "--write"]
    assert jit_here(*words, cwd=tmp_path, monkeypatch=monkeypatch) == 0
    shown = capsys.readouterr().out
    found = json.loads((tmp_path / "sweep" / "sweep.json").read_text())
    best = found["recommended"]
    assert len(found["first_round"]) == 2 * 5
    assert {trial["source"] for trial in found["first_round"]} == {"m", "n"}
    assert found["fresh"]["repeats"] == 2
    assert found["fresh"]["first_seed"] == 30
    for name in ("guidance.png", "nfe.png", "best.png", "nearest.png"):
        with Image.open(tmp_path / "sweep" / name) as picture:
            assert len(set(picture.convert("L").tobytes())) > 10, name
    assert sorted(path.name for path in (tmp_path / "sweep").iterdir()) == [
        "best.png",
        "guidance.png",
        "nearest.png",
        "nfe.png",
        "sweep.json",
    ]
    assert f"jit sample {best['source']}" in shown
    written = ji.load(tmp_path / best["source"], device="cpu").sampling
    assert json.loads(json.dumps(asdict(written))) == best["sampling"]
    assert f"guidance {best['sampling']['guidance']}" in (tmp_path / best["source"] / "README.md").read_text()
    words = ["sample", best["source"], "--count", "1", "--device", "cpu"]
    assert jit_here(*words, cwd=tmp_path, monkeypatch=monkeypatch) == 0
    assert json.loads((tmp_path / "samples" / "samples.json").read_text())["sampling"] == best["sampling"]


def test_the_default_number_of_samples_is_one_that_classes_share(tmp_path, monkeypatch, capsys):
    model().save_pretrained(tmp_path / "m")
    pictures(tmp_path / "data.npz")
    monkeypatch.setattr(Halving, "count", 31)
    words = ["sweep", "m", "--data", "data.npz", "--first", "1", "--guidance", "1", "--steps", "1", "--repeats", "1"]
    assert jit_here(*words, "--device", "cpu", cwd=tmp_path, monkeypatch=monkeypatch) == 0
    assert json.loads((tmp_path / "sweep" / "sweep.json").read_text())["fresh"]["count"] == 30
    assert jit_here(*words, "--count", "31", "--device", "cpu", cwd=tmp_path, monkeypatch=monkeypatch) == 2
    assert "choose --count 30" in capsys.readouterr().err


def test_all_weights_of_a_run_are_swapped_in(tmp_path, monkeypatch, capsys):
    """Of a run of an older version; each draws what it draws when it is loaded alone."""
    shutil.copytree(PREVIOUS / "run", tmp_path / "run")
    recipe = json.loads((tmp_path / "run" / "recipe.json").read_text())
    recipe["data"]["path"] = "data.npz"
    (tmp_path / "run" / "recipe.json").write_text(json.dumps(recipe))
    y = np.arange(60) % 10
    x = np.random.default_rng(0).normal(60 + 15 * y[:, None, None, None], 40, (60, 1, 28, 28)).clip(0, 255)
    np.savez(tmp_path / "data.npz", x=x.astype(np.uint8), y=y)
    words = ["sweep", "run", "--count", "30", "--first", "0.5", "--guidance", "1", "--steps", "1", "--repeats", "1"]
    words += ["--weights", "ema-0.9", "raw", "--device", "cpu"]
    assert jit_here(*words, cwd=tmp_path, monkeypatch=monkeypatch) == 0
    found = json.loads((tmp_path / "run" / "sweep" / "sweep.json").read_text())
    assert {trial["weights"] for trial in found["first_round"]} == {"ema-0.9", "raw"}
    capsys.readouterr()
    for trial in found["first_round"]:
        if trial["sampling"]["guidance"] == 1:
            count = str(trial["samples"])
            words = ["evaluate", "run", "--weights", trial["weights"], "--count", count, "--guidance", "1"]
            words += ["--steps", "1", "--out", trial["weights"], "--device", "cpu"]
            assert jit_here(*words, cwd=tmp_path, monkeypatch=monkeypatch) == 0
            (line,) = lines(tmp_path / trial["weights"] / "evaluations.jsonl")
            assert line["scores"]["fd"]["value"] == pytest.approx(trial["fd"], rel=1e-5)


def test_an_interrupted_command_goes_on(tmp_path, monkeypatch, capsys, watched):
    """In the sweep, and in what comes behind it."""
    model().save_pretrained(tmp_path / "m")
    pictures(tmp_path / "data.npz")
    words = ["sweep", "m", *WORDS, "--guidance", "1", "3", "--steps", "2"]
    assert jit_here(*words, "--out", "whole", cwd=tmp_path, monkeypatch=monkeypatch) == 0
    cost = watched.computed_in_all
    watched.computed_in_all, watched.stop = 0, cost // 2
    assert jit_here(*words, "--out", "parts", cwd=tmp_path, monkeypatch=monkeypatch) == 3
    watched.computed_in_all, watched.stop = 0, None

    def stop(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(evaluating, "generate", stop)
        assert jit_here(*words, "--out", "parts", cwd=tmp_path, monkeypatch=monkeypatch) == 3
    assert "the same command goes on" in capsys.readouterr().out
    watched.computed_in_all = 0
    assert jit_here(*words, "--out", "parts", cwd=tmp_path, monkeypatch=monkeypatch) == 0
    assert watched.computed_in_all == 0
    whole, parts = (json.loads((tmp_path / name / "sweep.json").read_text()) for name in ("whole", "parts"))
    assert parts["trials"] == whole["trials"]
    assert parts["fresh"]["scores"] == whole["fresh"]["scores"]
    assert not (tmp_path / "parts" / "rows").exists()


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        (["--count", "0"], "count (0)"),
        (["--count", "8"], "8 samples are too few"),
        (["--count", "31"], "cannot be shared out equally"),
        (["--first", "0"], "first (0.0)"),
        (["--kept", "1"], "kept (1.0)"),
        (["--guidance", "nan"], "guidance is nan"),
        (["--steps", "0"], "steps is 0"),
        (["--weights", "raw"], "not 'raw'"),
        (["--repeats", "0"], "repeats (0)"),
        (["--data", "nowhere"], "nowhere does not exist"),
    ],
)
def test_what_cannot_be_met_is_refused_before_a_sample(tmp_path, monkeypatch, capsys, watched, arguments, answer):
    model().save_pretrained(tmp_path / "m")
    pictures(tmp_path / "data.npz")
    before = sorted(tmp_path.rglob("*"))
    words = ["sweep", "m", "--data", "data.npz", "--count", "30", "--device", "cpu"]
    if arguments[0] in words:
        at = words.index(arguments[0])
        del words[at : at + 2]
    assert jit_here(*words, *arguments, cwd=tmp_path, monkeypatch=monkeypatch) == 2
    message = capsys.readouterr().err
    assert answer in message, message
    assert watched.computed_in_all == 0
    assert sorted(tmp_path.rglob("*")) == before


def test_settings_are_written_only_where_there_is_a_config(tmp_path, monkeypatch, capsys):
    assert jit_here("sweep", "someone/model", "--write", cwd=tmp_path, monkeypatch=monkeypatch) == 2
    assert "no folder with a config" in capsys.readouterr().err


def test_written_settings_replace_the_old_ones_and_nothing_else(tmp_path):
    """Of weights of an older version, too, which lack fields that came later."""
    shutil.copytree(PREVIOUS / "weights", tmp_path / "w")
    folder = next(path.parent for path in (tmp_path / "w").rglob("config.json"))
    before, config = read_folder(folder)
    write_sampling(folder, asdict(OWN))
    after, changed = read_folder(folder)
    assert changed == {**config, "sampling": json.loads(json.dumps(asdict(OWN)))}
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert ji.load(folder, device="cpu").sampling == OWN


def test_recommended_options_are_those_of_jit_sample(tmp_path, monkeypatch):
    model().save_pretrained(tmp_path / "m")
    asked = Sampling(4, "dpm++2m", 1.75, (0.2, 0.9), final="x", shift=1.5, guidance_every=3)
    words = ["sample", "m", "--count", "1", "--device", "cpu", *as_options(asked).split()]
    assert jit_here(*words, cwd=tmp_path, monkeypatch=monkeypatch) == 0
    said = json.loads((tmp_path / "samples" / "samples.json").read_text())["sampling"]
    assert said == json.loads(json.dumps(asdict(asked)))
