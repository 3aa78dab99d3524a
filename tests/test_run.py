"""The run folder, through the command: resuming after a kill, stopping, and what is refused."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import jit_here
from PIL import Image
from safetensors.torch import load_file

from justimage.training.state import saved_states


def jit(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "COLUMNS": "200"}
    command = [sys.executable, "-m", "justimage", *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)


TINY = shlex.split(
    "--network.width 32 --network.depth 2 --network.heads 2 --network.context-start 1 --device cpu "
    "--training.batch-size 32 --training.ema-decays 0.9 "
    "--report.tick-nimg 320 --report.save-nimg 640 --report.sample-nimg 1280 --report.preview-steps 2 "
    "--report.evaluate-nimg 0"
)


def final_tensors(run: Path) -> dict[str, torch.Tensor]:
    return load_file(saved_states(run / "state")[-1] / "state.safetensors")


def test_a_killed_run_resumes_bit_for_bit(tmp_path, monkeypatch, capsys):
    """kill -9 in the middle, the same command again: the state of a run that was never killed."""
    command = ["train", "mnist-demo", *TINY, "--training.duration-nimg", "6400"]

    def here(*arguments: str) -> int:
        return jit_here(*arguments, cwd=tmp_path, monkeypatch=monkeypatch)

    assert here(*command, "--run", "whole") == 0
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    process = subprocess.Popen(
        [sys.executable, "-m", "justimage", *command, "--run", "killed"],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.DEVNULL,
    )
    while not saved_states(tmp_path / "killed" / "state"):
        time.sleep(0.02)
        assert process.poll() is None, "the run ended before it could be killed"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert saved_states(tmp_path / "killed" / "state")[-1].name < "000006400"
    assert here(*command, "--run", "killed") == 0
    assert "resumed at nimg" in capsys.readouterr().out
    whole, killed = final_tensors(tmp_path / "whole"), final_tensors(tmp_path / "killed")
    assert whole.keys() == killed.keys()
    assert all(torch.equal(whole[name], killed[name]) for name in whole)

    logs = [[json.loads(line) for line in (tmp_path / run / "log.jsonl").open()] for run in ("whole", "killed")]
    assert [line["nimg"] for line in logs[0]] == [line["nimg"] for line in logs[1]] == list(range(320, 6401, 320))
    assert [line["loss"] for line in logs[0]] == [line["loss"] for line in logs[1]]
    assert {path.name for path in (tmp_path / "whole").iterdir()} == {
        "recipe.json",
        "log.jsonl",
        "health.jsonl",
        "samples",
        "state",
        "weights",
    }
    assert len(saved_states(tmp_path / "whole" / "state")) == 2

    assert here(*command, "--run", "whole") == 0
    assert "finished" in capsys.readouterr().out
    assert here(*command, "--run", "whole", "--training.lr", "0.5") == 2
    assert "training.lr: 0.006 in the run, 0.5 in the command" in capsys.readouterr().err
    assert here("sample", "whole", "--classes", "3", "seven") == 2
    assert "there is no class 'seven'" in capsys.readouterr().err
    assert here("sample", "whole", "--classes", "3", "7", "--count", "2", "--steps", "2", "--ema", "raw") == 0
    names = {path.name for path in (tmp_path / "samples").iterdir()}
    assert names == {"3-seed0000.png", "3-seed0001.png", "7-seed0000.png", "7-seed0001.png", "grid.png", "samples.json"}


def test_an_interrupted_run_saves_and_says_so(tmp_path):
    command = [sys.executable, "-m", "justimage", "train", "mnist-demo", *TINY, "--run", "r"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True)
    log = tmp_path / "r" / "log.jsonl"
    while not log.is_file() or not log.read_text():
        time.sleep(0.02)
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 3
    assert "the same command resumes it" in out
    assert len(saved_states(tmp_path / "r" / "state")) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "cifar10", "--data", "nowhere"], "the data path nowhere does not exist"),
        (["train", "cifar10"], "cifar10 needs --data"),
        (["train", "mnist-demo", "--network.patch", "5", "5"], "5x5 does not divide a size of 28x28"),
        (["train", "mnist-demo", "--data", "full/x.npz"], "label 7 of sample 1"),
        (["train", "mnist-demo", "--data", "full/nan.npy"], "not finite"),
        (["train", "mnist-demo", "--data", "full/odd.npy"], "14x14 does not divide a size of 9x9"),
        (["train", "mnist-demo", "--data", "full/signal.npy"], "1 spatial axes"),
        (["train", "mnist-demo", "--run", "full"], "not empty and not a run"),
        (["train", "mnist-demo", "--training.lrr", "1"], "training.lr"),
        (["sample", "full"], "has no config.json"),
        (["sample", "full/nan.npy"], "not"),
        (["train", "mnist-demo", "--device", "cuad"], "'cuad' is not a device"),
        (["train", "mnist-demo", "--run", "full/x.npz"], "not a run"),
        (["train", "mnist-demo", "--report.tick-nimg", "0"], "must be at least 1"),
        (["train", "mnist-demo", "--training.clip-norm", "-1"], "clip_norm (-1.0)"),
        (["train", "mnist-demo", "--training.classification", "0.1"], "but the network has no classifier"),
        (["train", "mnist-demo", "--training.classification", "nan"], "classification is nan"),
        (["train", "mnist-demo", "--network.classifier-after", "3"], "context_start is 2, and the 3 blocks before"),
        (["train", "mnist-demo", "--network.classifier-after", "6"], "classifier_after is 6"),
        (
            ["train", "mnist-demo", "--network.classifier-after", "2", "--data", "full/unlabelled.npy"],
            "classifier_after is 2, but num_classes is 0: a classifier needs data with labels",
        ),
        (["train", "mnist-demo", "--data", "full/names.npz"], "class names but no labels"),
        (["train", "mnist-demo", "--data", "full/half.npz"], "cannot be read"),
        (["train", "mnist-demo", "--data", "full/[a]"], "the data path full/[a] does not exist"),
    ],
)
def test_bad_input_is_refused_before_the_first_step(tmp_path, monkeypatch, capsys, arguments, message):
    full = tmp_path / "full"
    full.mkdir()
    x = np.random.rand(4, 1, 28, 28).astype(np.float32)
    np.savez(full / "x.npz", x=x, y=np.array([0, 7, 1, 1]), classes=np.array(["a", "b"]))
    np.savez(full / "names.npz", x=x, classes=np.array(["a", "b"]))
    (full / "half.npz").write_bytes((full / "x.npz").read_bytes()[:3000])
    np.save(full / "unlabelled.npy", x)
    np.save(full / "odd.npy", x[..., :9, :9])
    np.save(full / "signal.npy", x[..., 0])
    x[2, 0, 5, 5] = np.nan
    np.save(full / "nan.npy", x)
    before = sorted(path.name for path in tmp_path.rglob("*"))
    assert jit_here(*arguments, cwd=tmp_path, monkeypatch=monkeypatch) == 2
    assert message in "".join(capsys.readouterr())
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


def tiny_data(folder: Path) -> list[str]:
    """64 small samples that open at once, as arguments."""
    rows = np.random.default_rng(0).normal(size=(64, 1, 28, 28)).astype(np.float32)
    np.savez(folder / "tiny.npz", x=rows, y=np.arange(64) % 2)
    return ["--data", "tiny.npz"]


def settings_after(out: str) -> list[str]:
    """The settings that a message advises to add to the same command."""
    return shlex.split(out.split("for example:")[1].split("\n")[0])


def test_a_run_with_a_classifier_logs_its_error_resumes_and_samples(tmp_path, monkeypatch):
    def here(*arguments: str) -> int:
        return jit_here(*arguments, cwd=tmp_path, monkeypatch=monkeypatch)

    command = ["train", "mnist-demo", *tiny_data(tmp_path), *TINY, "--training.schedule", "constant"]
    command += shlex.split("--network.depth 3 --network.context-start 2 --network.classifier-after 2")
    command += ["--training.classification", "0.01"]
    assert here(*command, "--training.duration-nimg", "640", "--run", "whole") == 0
    assert here(*command, "--training.duration-nimg", "320", "--run", "cut") == 0
    assert here(*command, "--training.duration-nimg", "640", "--run", "cut") == 0
    whole, cut = final_tensors(tmp_path / "whole"), final_tensors(tmp_path / "cut")
    assert "net/classifier.linear.weight" in whole
    assert all(torch.equal(whole[name], cut[name]) for name in whole)
    for tick in map(json.loads, (tmp_path / "whole" / "log.jsonl").open()):
        terms = tick["terms"]
        assert tick["loss"] == pytest.approx(terms["v-loss"] + 0.01 * terms["cross-entropy"], rel=1e-5)
    assert here("sample", "whole", "--classes", "1", "--count", "1", "--steps", "2", "--device", "cpu") == 0


def test_nan_in_training_names_the_batch_and_how_to_go_on(tmp_path, monkeypatch, capsys):
    """A learning rate that explodes: exit code 1, the batch's samples, and advice that works to the letter."""
    command = ["train", "mnist-demo", *tiny_data(tmp_path), *TINY, "--training.duration-nimg", "640", "--run", "r"]
    exploding = ["--training.lr", "1e30", "--training.clip-norm", "0"]
    assert jit_here(*command, *exploding, cwd=tmp_path, monkeypatch=monkeypatch) == 1
    out = capsys.readouterr().out
    assert "is not finite in the batch that starts at nimg =" in out
    assert ", and in 16 in a row" in out
    assert "has got nowhere since the first of these batches, so it is not saved; there is no earlier one" in out
    assert not saved_states(tmp_path / "r" / "state")
    advised = settings_after(out)
    assert advised == shlex.split(
        "--training.lr 2.5e+29 --training.clip-norm 1 --changed training.lr training.clip-norm"
    )
    good = ["--training.lr", "1e-3", *advised[2:]]
    assert jit_here(*command, *good[:-3], cwd=tmp_path, monkeypatch=monkeypatch) == 2
    assert "or add --changed training.clip_norm training.lr to go on with the new ones" in capsys.readouterr().err
    assert jit_here(*command, *good, cwd=tmp_path, monkeypatch=monkeypatch) == 0


def test_a_state_that_is_not_finite_replaces_nothing_and_other_settings_go_on_from_the_last_good_one(
    tmp_path, monkeypatch, capsys
):
    """The rate becomes absurd after a good state: weights overflow in a step, and nothing of it is saved."""

    def here(*arguments: str) -> int:
        return jit_here(*arguments, cwd=tmp_path, monkeypatch=monkeypatch)

    command = ["train", "mnist-demo", *tiny_data(tmp_path), *TINY, "--run", "r", "--training.duration-nimg", "1280"]
    command += ["--training.warmup-nimg", "0"]
    assert here(*command, "--training.schedule", "constant", "--training.duration-nimg", "640") == 0
    place = saved_states(tmp_path / "r" / "state")[-1]
    before = {
        file: file.read_bytes() for part in ("state", "weights") for file in (tmp_path / "r" / part).rglob("*.*s")
    }
    assert len(before) >= 3
    command += ["--training.schedule", "constant"]
    wrong = ["--training.lr", "1e60", "--changed", "training.lr", "--report.save-nimg", "32"]
    capsys.readouterr()
    assert here(*command, *wrong) == 1
    out = capsys.readouterr().out
    assert "not finite" in out
    assert f"the last good one is {Path('r', 'state', place.name)}" in out
    assert {file: file.read_bytes() for file in before} == before
    assert saved_states(tmp_path / "r" / "state") == [place]
    changed = ["--training.lr", "1e-3", "--changed", "lr"]
    assert here(*command, *changed) == 0
    assert "resumed at nimg = 640" in capsys.readouterr().out
    facts = json.loads((tmp_path / "r" / "recipe.json").read_text())
    assert facts["changed"] == [
        {"nimg": 640, "settings": {"training.lr": [0.006, 1e60]}},
        {"nimg": 640, "settings": {"training.lr": [1e60, 0.001]}},
    ]
    free = ["--training.duration-nimg", "1600", "--training.microbatch", "8"]
    assert here(*command, *changed[:2], *free) == 0  # no option is needed any more
    assert json.loads((tmp_path / "r" / "recipe.json").read_text())["changed"] == facts["changed"]
    assert here(*command, *changed[:2], "--changed", "training.batch-size") == 2
    assert "--changed training.batch-size: what a run may be resumed with are training.lr" in capsys.readouterr().err


DAMAGES: list[tuple[str, Any, str]] = [
    ("recipe.json", "[]", "recipe.json is damaged"),
    ("recipe.json", "null", "recipe.json is damaged"),
    ("recipe.json", '{"recipe": [], "data": {}}', "recipe is []; an object is needed"),
    ("recipe.json", "{'recipe': 1}", "is not JSON"),
    ("data", 3, "data is 3; an object is needed"),
    ("data.found", [], "data.found is []; a text is needed"),
    ("network", 3, "network is 3; a text is needed"),
    ("recipe.training", "x", "recipe.training.batch_size is None"),
    ("recipe.training.batch_size", [64], "recipe.training.batch_size is [64]"),
    ("recipe.training.lr", "fast", "training.lr: fast in the run"),
    ("recipe.network", [], "settings that this version does not know: network"),
    ("as_before", 3, "as_before is 3; a list is needed"),
    ("changed", [{"nimg": "x"}], "changed[0] lacks the fields 'settings'"),
    ("log.jsonl", "[1]\n", "log.jsonl is damaged: line 1 is not a tick with its nimg but '[1]'"),
    ("log.jsonl", "null\n", "line 1"),
    ("log.jsonl", '{"nimg": "x"}\n', "line 1"),
    ("health.jsonl", "[1]\n", "health.jsonl is damaged: line 1"),
    ("log.jsonl", 'half a li\n{"nimg": 1}\n', "line 1"),
    ("state.json", "{}", "state.json is damaged: nimg is None"),
    ("state.json", "[]", "nimg is None"),
    ("state.json", '{"nimg": "320"}', "nimg is '320'"),
    ("state.json", '{"nimg": true}', "nimg is True"),
    ("state.json", '{"nimg": -1}', "nimg is -1"),
    ("state.json", '{"nimg": 324}', "it is of nimg = 324, and its folder of another"),
    ("state.json", "", "is not JSON"),
]


def test_a_damaged_run_is_named_and_left_as_it_is(tmp_path, monkeypatch, capsys):
    """Parts of other types, or none: one line says which, and resuming changes nothing on disk."""
    command = ["train", "mnist-demo", *tiny_data(tmp_path), *TINY, "--training.duration-nimg", "320", "--run", "run"]
    assert jit_here(*command, cwd=tmp_path, monkeypatch=monkeypatch) == 0
    run = tmp_path / "run"
    shutil.copytree(run, tmp_path / "good")
    for file, content, message in DAMAGES:
        shutil.rmtree(run)
        shutil.copytree(tmp_path / "good", run)
        if file.endswith((".json", ".jsonl")):
            (run / ("state/000000320" if file == "state.json" else "") / file).write_text(content)
        else:
            facts = json.loads((run / "recipe.json").read_text())
            *holders, last = file.split(".")
            holder = facts
            for name in holders:
                holder = holder[name]
            holder[last] = content
            (run / "recipe.json").write_text(json.dumps(facts))
        before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
        capsys.readouterr()
        assert jit_here(*command, cwd=tmp_path, monkeypatch=monkeypatch) == 2, (file, content)
        assert message in capsys.readouterr().err
        assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("minutes", ["nan", "inf", "0", "-1"])
def test_minutes_are_a_number_above_0(tmp_path, monkeypatch, capsys, minutes):
    words = ["train", "mnist-demo", *tiny_data(tmp_path), *TINY, "--minutes", minutes, "--run", "r"]
    assert jit_here(*words, cwd=tmp_path, monkeypatch=monkeypatch) == 2
    assert "minutes is" in capsys.readouterr().err
    assert not (tmp_path / "r").exists()


def test_what_a_newcomer_runs_into_is_said_in_a_sentence(tmp_path, monkeypatch, capsys, recwarn):
    """One sample alone, a folder above the one that is meant, moved data, samples of two models in one folder."""

    def here(*arguments: str) -> int:
        return jit_here(*arguments, cwd=tmp_path, monkeypatch=monkeypatch)

    command = ["train", "mnist-demo", *tiny_data(tmp_path), *TINY, "--training.duration-nimg", "128"]
    assert here(*command, "--network.size", "14", "14", "--run", "runs/a") == 0
    assert "--network.size 14 14 counts for nothing here: it is 28 28, as the data are" in capsys.readouterr().out
    for folder, inside in {"runs": "it holds a: give one", "runs/a/weights": "raw: give one of these"}.items():
        assert here("sample", folder) == 2
        assert inside in capsys.readouterr().err
    assert here("convert", "runs/a", "copy") == 0
    assert here("sample", "copy", "--count", "1", "--steps", "1", "--device", "cpu", "--out", "of-copy") == 0
    place = tmp_path / tiny_data(tmp_path)[1]
    place.rename(tmp_path / "moved.npz")
    capsys.readouterr()
    assert here("evaluate", "runs/a") == 2
    assert "runs/a was trained on" in (said := capsys.readouterr().err)
    assert "say where with --data PATH" in said

    (tmp_path / "one").mkdir()
    Image.new("RGB", (8, 8), (90, 20, 30)).save(tmp_path / "one" / "a.png")
    alone = ["--data", "one", "--network.size", "8", "--network.patch", "4", "--training.duration-nimg", "64"]
    assert here("train", "cifar10", *alone, *TINY, "--run", "runs/one") == 0
    assert here("doctor", "runs/one") in (0, 1)
    assert "the spread is 0" in capsys.readouterr().out
    assert not [each for each in recwarn if "degrees of freedom" in str(each.message)]
    assert here("sample", "runs/one", "--count", "2", "--steps", "1", "--device", "cpu") == 0
    (tmp_path / "samples" / "seed9999.png").write_bytes((tmp_path / "one" / "a.png").read_bytes())
    assert here("evaluate", "--samples", "samples", "--data", "one") == 2
    assert "some are of another command" in capsys.readouterr().err
