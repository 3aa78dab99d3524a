"""What the previous version (commit c06a731) left on disk still means the same: runs, weights and packs.

The files are in tests/previous, and tests/previous/make.py, run with that version, is how they came to be. Only the
command and public names are used here, so that this file outlives any change of what is behind them.
"""

import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import jit_here
from safetensors.torch import load_file

import justimage as ji

PREVIOUS = Path(__file__).parent / "previous"
FACTS = json.loads((PREVIOUS / "facts.json").read_text())
SAVED_NIMG, DURATION_NIMG = 4200, 4480

# The command that made tests/previous/run, and what its recipe said then: with these, the same command again resumes.
TRAIN = shlex.split(
    "train mnist-demo --network.width 8 --network.depth 2 --network.heads 1 --network.context-start 1 "
    "--network.bottleneck 4 --device cpu --training.batch-size 4 --training.ema-decays 0.9 0.99 "
    f"--training.precision float32 --training.duration-nimg {DURATION_NIMG} "
    f"--report.tick-nimg 40 --report.save-nimg {SAVED_NIMG} --report.sample-nimg {DURATION_NIMG} "
    "--report.preview-steps 2 --run run "
    "--training.lr 2e-3 --training.warmup-nimg 3200 --sampling.steps 20 --sampling.sampler ab2 --sampling.final x "
    "--sampling.guidance 2.5"
)


@pytest.fixture
def run(tmp_path) -> Path:
    """A copy of the run that the previous version was killed in, after its save at SAVED_NIMG."""
    shutil.copytree(PREVIOUS / "run", tmp_path / "run")
    return tmp_path / "run"


def log_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_run_of_the_previous_version_resumes(run):
    """The same command resumes from its state, and ends where the previous version ended without the kill.

    Nothing can be equal to the bit here: matrix products differ in their last bits between kinds of CPU.
    """
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "COLUMNS": "200"}
    command = [sys.executable, "-m", "justimage", *TRAIN]
    result = subprocess.run(command, cwd=run.parent, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
    assert f"at nimg = {SAVED_NIMG:,}" in result.stdout
    recipe = json.loads((run / "recipe.json").read_text())["recipe"]
    assert (recipe["sampling"]["shift"], recipe["report"]["evaluate_nimg"]) == (1, 0)
    assert (recipe["network"]["classifier_after"], recipe["training"]["classification"]) == (0, 0)

    expected = load_file(PREVIOUS / "finished.safetensors")
    reached = load_file(run / "state" / f"{DURATION_NIMG:09d}" / "state.safetensors")
    assert reached.keys() == expected.keys()
    for name, tensor in expected.items():
        assert (reached[name].shape, reached[name].dtype) == (tensor.shape, tensor.dtype), name
        if name.startswith("optimizer/step/") or name.endswith("/positions"):  # counts and a table: no rounding
            assert torch.equal(reached[name], tensor), name
        else:
            # The second moments are small, and an absolute 1e-5 would let any of them pass.
            atol = 1e-5 * min(1.0, float(tensor.abs().max()))
            assert torch.allclose(reached[name], tensor, rtol=1e-4, atol=atol), name
    moved = load_file(PREVIOUS / "run" / "state" / f"{SAVED_NIMG:09d}" / "state.safetensors")
    assert not torch.allclose(moved["net/embedding.up.weight"], expected["net/embedding.up.weight"], rtol=1e-4)

    log, whole = log_of(run / "log.jsonl"), log_of(PREVIOUS / "finished-log.jsonl")
    assert [line["nimg"] for line in log] == [line["nimg"] for line in whole]
    for name, tolerance in (("loss", 1e-4), ("grad_norm", 1e-4), ("lr", 1e-12)):
        assert [line[name] for line in log] == pytest.approx([line[name] for line in whole], rel=tolerance), name


def test_a_field_that_this_version_does_not_know_is_refused(run, monkeypatch, capsys):
    """A recipe of a later version, or a damaged one: resuming would train something else."""
    path = run / "recipe.json"
    facts = json.loads(path.read_text())
    facts["recipe"]["training"]["warp"] = 1
    path.write_text(json.dumps(facts))
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    assert jit_here(*TRAIN, cwd=run.parent, monkeypatch=monkeypatch) == 2
    assert "training.warp" in capsys.readouterr().err
    assert {file: file.read_bytes() for file in run.rglob("*") if file.is_file()} == before


@pytest.mark.parametrize(("folder", "drawn"), [("weights", "samples"), ("run", "samples-of-run")])
def test_weights_draw_what_they_drew(tmp_path, folder, drawn):
    """Raw pixels may differ by one level: the last bits of a matrix product can tip a rounding."""
    shutil.copytree(PREVIOUS / folder, tmp_path / folder)
    model = ji.load(tmp_path / folder, device="cpu", dtype=torch.float32, compile=False)
    expected = np.load(PREVIOUS / f"{drawn}.npy")
    raw = model.sample(labels=[0, 1, 2], seeds=[5, 6, 7], steps=4, guidance=2.0).numpy()
    assert (raw.shape, raw.dtype) == (expected.shape, expected.dtype)
    assert np.abs(raw.astype(int) - expected.astype(int)).max() <= 1


def test_weights_say_what_they_said(tmp_path):
    """Names, recommended settings and provenance travel; saved again, the tensors are the same."""
    model = ji.load(PREVIOUS / "weights", device="cpu", dtype=torch.float32, compile=False)
    assert model.spec is not None
    assert model.spec.classes == ("one", "two", "zero")
    assert (model.sampling.sampler, model.sampling.steps, model.sampling.guidance) == ("heun", 10, 2.0)
    assert model.sampling.shift == 1
    assert (model.noise_scale, model.t_eps, model.licence) == (0.5, 0.05, "mit")
    model.save_pretrained(tmp_path / "again")
    old, new = (load_file(folder / "model.safetensors") for folder in (PREVIOUS / "weights", tmp_path / "again"))
    assert old.keys() == new.keys()
    assert all(torch.equal(old[name], new[name]) for name in old)


def label_of(y: Any) -> int:
    """The label that comes with a sample, -1 for none: the previous version gave a bare number, later ones name it."""
    return int(y.get("labels", -1)) if isinstance(y, dict) else int(y)


def assert_as_packed(folder: Path, name: str) -> None:
    """A pack has the fingerprint, the samples and the labels that the previous version read from it."""
    facts = FACTS[name]
    source = ji.open_source(str(folder), (1, 1), 1)
    samples = [source[i] for i in range(len(facts["labels"]))]  # type: ignore[index]
    assert source.fingerprint() == facts["fingerprint"]
    assert list(source.spec.classes) == facts["classes"]
    assert [label_of(y) for _, y in samples] == facts["labels"]
    assert hashlib.sha256(b"".join(x.tobytes() for x, _ in samples)).hexdigest() == facts["samples_sha256"]


@pytest.mark.parametrize("name", ["pack", "fields-pack"])
def test_a_pack_opens_as_it_did(tmp_path, name):
    """A run that trains on a pack resumes only where the fingerprint is the same."""
    shutil.copytree(PREVIOUS / name, tmp_path / name)
    assert_as_packed(tmp_path / name, name)


def test_an_unfinished_pack_is_resumed(tmp_path, monkeypatch, capsys):
    """Its first shard stays as it is, and the same command adds the rest."""
    shutil.copytree(PREVIOUS / "images", tmp_path / "images")
    with zipfile.ZipFile(PREVIOUS / "unfinished-pack.zip") as archive:
        archive.extractall(tmp_path)
    folder = tmp_path / "unfinished-pack"
    with pytest.raises(ValueError, match="5 of 7 samples are packed"):
        ji.open_source(str(folder), (256, 256), 3)
    first = (folder / "00000.npy").stat()
    command = shlex.split("data pack images --size 256 --shard-mb 1 -j 1 --out unfinished-pack")
    assert jit_here(*command, cwd=tmp_path, monkeypatch=monkeypatch) == 0, capsys.readouterr().err
    assert (folder / "00000.npy").stat().st_mtime_ns == first.st_mtime_ns
    assert_as_packed(folder, "unfinished-pack")
