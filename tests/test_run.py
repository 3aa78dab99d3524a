"""The run folder, through the command: resuming after a kill, stopping, and what is refused."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import jit_here
from safetensors.torch import load_file

from justimage.training.state import saved_states


def jit(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "COLUMNS": "200"}
    command = [sys.executable, "-m", "justimage", *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)


TINY = shlex.split(
    "--network.width 32 --network.depth 2 --network.heads 2 --network.context-start 1 --device cpu "
    "--training.batch-size 32 --training.ema-decays 0.9 "
    "--report.tick-nimg 320 --report.save-nimg 640 --report.sample-nimg 1280 --report.preview-steps 2"
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
        "samples",
        "state",
        "weights",
    }
    assert len(saved_states(tmp_path / "whole" / "state")) == 2

    assert here(*command, "--run", "whole") == 0
    assert "finished" in capsys.readouterr().out
    assert here(*command, "--run", "whole", "--training.lr", "0.5") == 2
    assert "training.lr: 0.002 in the run, 0.5 in the command" in capsys.readouterr().err
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
    np.save(full / "odd.npy", x[..., :9, :9])
    np.save(full / "signal.npy", x[..., 0])
    x[2, 0, 5, 5] = np.nan
    np.save(full / "nan.npy", x)
    before = sorted(path.name for path in tmp_path.rglob("*"))
    assert jit_here(*arguments, cwd=tmp_path, monkeypatch=monkeypatch) == 2
    assert message in "".join(capsys.readouterr())
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


def test_nan_in_training_saves_the_state_and_names_the_batch(tmp_path):
    """A learning rate that explodes: exit code 1, the batch's samples, and a state that loads."""
    result = jit(
        "train", "mnist-demo", *TINY, "--run", "r", "--training.lr", "1e30", "--training.clip-norm", "0", cwd=tmp_path
    )
    assert result.returncode == 1, result.stdout + result.stderr
    assert "is not finite in the batch that starts at nimg =" in result.stdout
    assert len(saved_states(tmp_path / "r" / "state")) >= 1
