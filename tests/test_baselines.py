"""The baselines that the paper argues with: each is what its table says, trains, and draws."""

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import jit_here
from test_train import ALONE, waves

import justimage as ji

CIFAR10 = ji.RECIPES["cifar10"]
# What the network predicts, what is put around it, and where the error is measured.
BASELINES = {
    "cifar10-eps": ("eps", "none", "eps"),
    "cifar10-v": ("v", "none", "v"),
    "cifar10-edm": ("x", "edm", "v"),
    "cifar10-dae": ("x", "none", "x"),
    "cifar10-dit": ("x", "none", "v"),
}


@pytest.mark.parametrize("name", BASELINES)
def test_the_tables_are_what_they_say(name):
    """And otherwise CIFAR-10's, so that results differ for no other reason."""
    recipe = ji.RECIPES[name]
    assert (recipe.prediction, recipe.preconditioner, recipe.training.loss_space) == BASELINES[name]
    shared = replace(CIFAR10.training, loss_space=recipe.training.loss_space, times=recipe.training.times)
    assert recipe.training == shared
    assert isinstance(recipe.network, ji.DiTConfig) == (name == "cifar10-dit")
    assert recipe.network == CIFAR10.network or name == "cifar10-dit"
    assert recipe.report.evaluate_nimg == CIFAR10.report.evaluate_nimg
    if name != "cifar10-dae":
        assert recipe.training == replace(CIFAR10.training, loss_space=recipe.training.loss_space)
        assert (recipe.sampling, recipe.report) == (CIFAR10.sampling, CIFAR10.report)


def test_a_denoising_autoencoder_knows_one_noise_level_and_one_step():
    recipe = ji.RECIPES["cifar10-dae"]
    times = recipe.training.times.times(torch.tensor([-3.0, 0.0, 3.0]))
    assert torch.equal(times, times[:1].expand(3))
    assert f"t = {times[0]:.2f}" in recipe.promise.what
    assert times[0] == CIFAR10.training.times.times(torch.zeros(1))
    assert "does not generate" in recipe.promise.what
    assert recipe.sampling.evaluations() == 1


def small(name: str, source: ji.Source) -> ji.Recipe:
    """A recipe with a network and a duration of seconds, for small data."""
    recipe = ji.RECIPES[name]
    network: Any = recipe.network
    shape = {"size": source.spec.size, "patch": (4, 4), "width": 64, "depth": 2, "heads": 4}
    if name != "cifar10-dit":
        shape["context_start"] = 1
    training = replace(recipe.training, duration_nimg=12_800, batch_size=64, lr=3e-3, warmup_nimg=0, ema_decays=())
    return replace(recipe, network=replace(network, **shape), training=training).fitted_to(source.spec)


def trained(name: str, source: ji.Source) -> tuple[ji.Denoiser, list[float]]:
    """The model of a small recipe after its training, and the losses."""
    recipe = small(name, source)
    model = recipe.model(source.spec)
    state = ji.build(model, recipe.training, ALONE)
    loss = ji.flow_matching(model, recipe.training)
    return model, [tick.loss for tick in ji.train(state, source, loss, recipe.training, tick_nimg=1_280)]


@pytest.mark.parametrize("name", BASELINES)
def test_baselines_train_and_draw(name):
    source = waves((8, 8), channels=3)
    model, losses = trained(name, source)
    print(name, [round(each, 3) for each in losses])
    assert losses[-1] < 0.7 * losses[0]
    drawn = model.sample([0, 1], [0, 1], steps=min(model.sampling.steps, 4))
    assert drawn.shape == (2, 3, 8, 8)
    assert drawn.isfinite().all()
    if name == "cifar10-dae":
        denoises(model, source)


@torch.no_grad()
def denoises(model: ji.Denoiser, source: ji.Arrays) -> None:
    """At its own noise level, and of noise that it never saw, most of the error is gone in one evaluation."""
    x = torch.from_numpy(np.stack([source[k][0] for k in range(len(source))]))
    x = model.spec.encode(x) if model.spec else x
    eps, t = ji.noise(range(10_000, 10_000 + len(x)), x.shape[1:]), torch.full((len(x),), 0.31)
    found = model(ji.diffuse(x, eps, t), t, torch.arange(len(x)) % 2).to("x")
    print("left of the variance", float((found - x).square().mean() / x.var()))
    assert (found - x).square().mean() < 0.5 * x.var()


SMALL = shlex.split(
    "--network.width 32 --network.depth 2 --network.heads 2 --device cpu --training.duration-nimg 320 "
    "--training.batch-size 32 --training.ema-decays 0.9 --report.preview-steps 1 --report.evaluate-nimg 0"
)


def test_a_dit_with_small_patches_learns_latents(tmp_path, monkeypatch, capsys):
    """Latents of a tokenizer are arrays of floats: as .npy and as a pack, at the size and channels that they have."""

    def here(*arguments: str) -> None:
        assert jit_here(*arguments, cwd=tmp_path, monkeypatch=monkeypatch) == 0

    latents = 5 * np.random.default_rng(0).normal(size=(64, 4, 8, 8)).astype(np.float32)
    np.save(tmp_path / "latents.npy", latents)
    here("data", "pack", "latents.npy", "--out", "packed")
    for data in ("latents.npy", "packed"):
        here("train", "cifar10-dit", "--network.patch", "2", *SMALL, "--data", data, "--run", f"run-{data}")
        assert "on 8x8, patch 2x2" in capsys.readouterr().out
        here("sample", f"run-{data}", "--count", "2", "--steps", "2", "--format", "npy", "--out", f"drawn-{data}")
        drawn = np.load(next(Path(tmp_path / f"drawn-{data}").glob("*.npy")))
        assert (drawn.shape, drawn.dtype) == ((2, 4, 8, 8), np.float32)
    assert ji.load(tmp_path / "run-packed", device="cpu").config.grid == (4, 4)


def test_a_dit_with_small_patches_learns_pixels(tmp_path, monkeypatch, capsys, cifar):
    arguments = ["train", "cifar10-dit", "--network.patch", "2", *SMALL, "--training.duration-nimg", "64"]
    assert jit_here(*arguments, "--data", str(cifar), "--run", "r", cwd=tmp_path, monkeypatch=monkeypatch) == 0
    assert "on 32x32, patch 2x2" in capsys.readouterr().out
