"""The paper's toy experiment (section 3.3 and Fig. 2, arXiv 2511.13720), and the plain DiT beside JiT."""

import json
from math import prod

import numpy as np
import pytest
import torch
from test_train import ALONE, waves

import justimage as ji
from justimage.process import SPACES, Space
from justimage.training.state import TrainingState

COUNT = 4096


def spiral(count: int) -> np.ndarray:
    """Points on an Archimedean spiral of two turns and radius 2, (N, 2)."""
    angle = 4 * np.pi * np.sqrt(np.random.default_rng(0).uniform(0.02, 1, count))
    return (2 * angle / (4 * np.pi))[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)


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


def distance_to_the_spiral(dimension: int, space: Space, nimg: int = 128_000) -> float:
    """Median distance, in D dimensions, between what is drawn and the nearest point of the data; the loss must fall."""
    source = Buried(dimension)
    training = ji.Training(duration_nimg=nimg, batch_size=128, lr=2e-3, schedule="cosine", ema_decays=())
    model = ji.Denoiser(ji.ToyMLP(ji.MLPConfig((dimension,))), space=space, spec=source.spec)
    state = ji.build(model, training, ALONE)
    ticks = ji.train(state, source, ji.flow_matching(model, training), training, tick_nimg=nimg // 100)
    losses = [tick.loss for tick in ticks]
    assert np.mean(losses[-5:]) < 0.9 * losses[0]
    eps = ji.noise(range(256), (1, dimension))
    drawn = ji.draw(model, None, eps, ji.Sampling(50, "heun", final="x"))[:, 0]
    return float(torch.cdist(drawn, torch.from_numpy(source.x[:, 0])).amin(1).median())


@pytest.mark.parametrize("dimension", [2, 512])
def test_the_toy_trains_and_draws_under_each_prediction(dimension):
    """In the plane all three come near the spiral; in 512 dimensions, wider than the network, x-prediction alone."""
    distance = {space: distance_to_the_spiral(dimension, space) for space in SPACES}
    print(dimension, distance)
    assert distance["x"] < 1
    if dimension == 2:
        assert max(distance.values()) < 1
    else:
        assert min(distance["eps"], distance["v"]) > 5 * distance["x"]


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
