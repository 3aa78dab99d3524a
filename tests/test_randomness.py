"""Draws are functions of seed and position, independent of each other, and have the distribution they claim."""

import numpy as np
import torch

from justimage.data.loader import order
from justimage.randomness import Purpose, keys, noise, normals, training_noise, uniforms


def test_draws_do_not_depend_on_how_positions_are_grouped():
    together = uniforms(5, Purpose.TIME, range(100, 164))
    apart = torch.cat([uniforms(5, Purpose.TIME, range(p, p + 8)) for p in range(100, 164, 8)])
    assert torch.equal(together, apart)
    assert torch.equal(uniforms(5, Purpose.TIME, [101, 163]), together[[1, 63]])
    device = torch.device("cpu")
    z = training_noise(5, range(8), (3, 4, 4), device)
    assert torch.equal(z[5:], training_noise(5, range(5, 8), (3, 4, 4), device))


def test_seeds_and_streams_are_independent():
    draws = [normals(seed, stream, range(4000)) for seed in (0, 1) for stream in Purpose]
    correlation = torch.corrcoef(torch.stack(draws)) - torch.eye(len(draws))
    assert correlation.abs().max() < 0.08
    assert len(np.unique(np.concatenate([keys(s, t, range(1000)) for s in (0, 1) for t in Purpose]))) == 2000 * len(
        Purpose
    )


def test_distributions():
    u = uniforms(1, Purpose.FLIP, range(100_000))
    assert 0 < u.min() < u.max() < 1
    assert abs(u.mean() - 0.5) < 0.004
    assert abs(u.var() - 1 / 12) < 0.002
    for n in (normals(1, Purpose.TIME, range(100_000)), noise(range(500), (200,)).flatten()):
        assert abs(n.mean()) < 0.015
        assert abs(n.std() - 1) < 0.01
        assert abs((n.abs() > 1.96).float().mean() - 0.05) < 0.004


def test_order_sees_every_sample_once_an_epoch_and_differs_between_epochs():
    one, two = order(3, range(10), 10), order(3, range(10, 20), 10)
    assert sorted(one) == sorted(two) == list(range(10))
    assert list(one) != list(two)
    assert list(order(4, range(10), 10)) != list(one)
    assert list(order(3, range(7, 13), 10)) == [*one[7:], *two[:3]]
