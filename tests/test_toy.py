"""The paper's toy experiment (section 3.3 and Fig. 2, arXiv 2511.13720), and the plain DiT beside JiT."""

import functools
import json
import os
import subprocess
import sys
from math import prod
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_train import ALONE, waves

import justimage as ji
from justimage.networks.mlp import MLPConfig, ToyMLP
from justimage.process import SPACES, Space
from justimage.training.state import TrainingState

COUNT = 4096


def spiral(count: int) -> np.ndarray:
    """Points on an Archimedean spiral of two turns and radius 2, (N, 2)."""
    angle = 4 * np.pi * np.sqrt(np.random.default_rng(0).uniform(0.02, 1, count))
    return (2 * angle / (4 * np.pi))[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)


DIMENSIONS = (2, 512)


class Buried(ji.Source):
    """x = P x^ for points x^ of the plane and P (D, 2) with orthogonal columns, as the paper has it: not scaled."""

    def __init__(self, dimension: int):
        g = np.random.default_rng(1)
        self.projection = np.linalg.qr(g.normal(size=(dimension, 2)))[0] if dimension > 2 else np.eye(2)
        self.points = spiral(COUNT)
        self.x = (self.points @ self.projection.T).astype(np.float32)[:, None]
        self.spec = ji.DataSpec((dimension,), ("x",), (0.0,), (1.0,))

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, index: int):
        return self.x[index], {}

    def describe(self) -> str:
        return "a spiral"

    def fingerprint(self) -> str:
        return "spiral"


class OneTurn(Buried):
    """One turn of the spiral, which so small a network learns in seconds; mean 0 and scale 1, so not scaled."""

    def __init__(self, dimension: int):
        super().__init__(dimension)
        angle = 2 * np.pi * np.sqrt(np.random.default_rng(0).uniform(0.05, 1, len(self)))
        self.points = (angle / np.pi)[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)
        self.x = (self.points @ self.projection.T).astype(np.float32)[:, None]


# With the default LogitNormal(-0.8, 0.8), of which 3 in 1,000 times lie above 0.8, x-prediction collapses to one point
# in 512 dimensions; with a learning rate of 4e-3 and no clipping it does so for some seeds.
TRAINING = ji.Training(
    duration_nimg=128_000,
    batch_size=128,
    lr=2e-3,
    warmup_nimg=12_800,
    clip_norm=1.0,
    schedule="cosine",
    ema_decays=(),
    times=ji.LogitNormal(0.0, 1.2),
    precision="float32",
)


@functools.cache
def measures(dimension: int, space: Space) -> dict[str, float]:
    """Of 256 samples: distance to the data, of the data to them, from the plane, and size beside that of the data."""
    source = OneTurn(dimension)
    model = ji.Denoiser(ji.ToyMLP(ji.MLPConfig((dimension,))), space=space, spec=source.spec)
    state = ji.build(model, TRAINING, ALONE)
    for _ in ji.train(state, source, ji.flow_matching(model, TRAINING), TRAINING, tick_nimg=TRAINING.duration_nimg):
        pass
    x = ji.draw(model, None, ji.noise(range(256), (1, dimension)), ji.Sampling(25, "heun", final="x"))[:, 0]
    data, plane = torch.from_numpy(source.x[:, 0]), torch.from_numpy(source.projection).float()
    tensors = {
        "distance": torch.cdist(x, data).amin(1).median(),
        "coverage": torch.cdist(x, data).amin(0).mean(),
        "outside": (x - x @ plane @ plane.T).norm(dim=1).mean(),
        "size": (x @ plane).norm(dim=1).mean() / data.norm(dim=1).mean(),
    }
    found = {name: float(value) for name, value in tensors.items()}
    print(dimension, space, {name: round(value, 3) for name, value in found.items()})
    return found


@pytest.mark.parametrize("dimension", DIMENSIONS)
def test_x_prediction_finds_the_spiral(dimension):
    """Samples lie on it, everywhere on it, and in its plane: nearer by far than points strewn over the disc."""
    g = np.random.default_rng(0)
    angle, radius = g.uniform(0, 2 * np.pi, 2000), 2 * np.sqrt(g.uniform(size=2000))
    strewn = torch.from_numpy(radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1))
    nothing = float(torch.cdist(strewn, torch.from_numpy(OneTurn(2).points)).amin(1).median())
    print("strewn over the disc", round(nothing, 3))
    found = measures(dimension, "x")
    assert found["distance"] < 0.25 * nothing
    assert found["coverage"] < 0.15
    assert found["outside"] < 0.1
    assert 0.85 < found["size"] < 1.15


def test_in_the_plane_every_prediction_does():
    assert max(measures(2, space)["distance"] for space in SPACES) < 0.2


def test_buried_in_512_dimensions_the_others_fail():
    """The network is 256 wide: what it cannot carry of the noise stays in the samples."""
    near = measures(512, "x")["distance"]
    for space in ("eps", "v"):
        assert measures(512, space)["distance"] > 50 * near
        assert measures(512, space)["outside"] > 5


@pytest.mark.slow
def test_the_example_shows_why(tmp_path):
    """It is short, its own assertions hold, and it says and draws what they are about."""
    root = Path(__file__).parents[1]
    path = root / "examples" / "why_x.py"
    assert len(path.read_text().splitlines()) < 120
    words = [sys.executable, str(path), str(tmp_path / "why")]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    result = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900)
    assert result.returncode == 0, result.stderr
    assert "in 512 dimensions only x does" in result.stdout
    assert min(Image.open(tmp_path / "why" / "why_x.png").size) > 900


@pytest.mark.parametrize("size", [(16,), (8, 8), (4, 4, 8)], ids=lambda size: f"{len(size)}d")
def test_dit_trains_and_draws(size):
    source = waves(size)
    config = ji.DiTConfig(size, (4,), channels=2, num_classes=2, width=32, depth=2, heads=4)
    training = ji.Training(duration_nimg=6_400, batch_size=64, lr=3e-3, ema_decays=())
    model = ji.Denoiser(ji.DiT(config), spec=source.spec, sampling=ji.Sampling(4, guidance=1.5))
    state: TrainingState = ji.build(model, training, ALONE)
    losses = [t.loss for t in ji.train(state, source, ji.flow_matching(model, training), training, tick_nimg=640)]
    assert losses[-1] < 0.9 * losses[0]
    assert model.sample([0, 1], [0, 1]).shape == (2, 2, *size)
    assert model.sample([0], [0], size=tuple(2 * s for s in size)).shape == (1, 2, *(2 * s for s in size))


def test_dit_is_the_plain_transformer():
    """Its parameters, counted by hand: no bottleneck, no norms' weights, no in-context tokens, one table of labels."""
    c = ji.DiTConfig((8, 8), (4, 4), channels=2, num_classes=3, width=32, depth=2, heads=4)
    d, features = c.width, c.channels * prod(c.patch)
    block = 4 * d * d + 4 * d + (2 * 4 * d * d + 5 * d) + (6 * d * d + 6 * d)
    outside = features * d + d + (256 * d + d + d * d + d) + 4 * d + (2 * d * d + 2 * d) + (d * features + features)
    assert sum(p.numel() for p in ji.DiT(c).parameters()) == 2 * block + outside


@pytest.mark.parametrize("name", ji.NETWORKS)
def test_a_configuration_says_which_network_it_is_of(tmp_path, name):
    config_class, network = ji.NETWORKS[name]
    shapes = {
        "jit": {"patch": (4,), "width": 32, "depth": 1, "heads": 4, "context_start": 0},
        "dit": {"patch": (4,), "width": 32, "depth": 1, "heads": 4},
        "mlp": {},
    }
    config = config_class(size=(8,), **shapes[name])
    net = network(config)
    ji.Denoiser(net).save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["network"] == name
    assert type(ji.load(tmp_path, device="cpu").net) is type(net)
    if name == "jit":  # as it was written before there were others
        del written["network"]
        (tmp_path / "config.json").write_text(json.dumps(written))
        assert type(ji.load(tmp_path, device="cpu").net) is type(net)
    else:
        (tmp_path / "config.json").write_text(json.dumps({**written, "network": "Mine"}))
        with pytest.raises(ValueError, match=r"the network 'Mine' is none of jit, mlp, dit.*network=Mine"):
            ji.load(tmp_path)


def test_the_toy_network_is_for_one_size():
    model = ji.Denoiser(ToyMLP(MLPConfig(size=(4,), channels=1)))
    with pytest.raises(ValueError, match=r"for the size \(4,\) alone, not for \(8,\)"):
        model.sample(seeds=[0], size=(8,), steps=1)
