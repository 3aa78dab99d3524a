"""The two equations, the nine conversions and the nine losses."""

import pytest
import torch
from torch.utils import _pytree as pytree

from justimage.process import SPACES, LogitNormal, Prediction, denoising_loss, diffuse, expand, velocity

# Batch equal to width in each: a t that broadcasts along the wrong axis would show.
SHAPES = [(4, 2, 4), (4, 3, 4, 4), (4, 4, 4, 4), (4, 1, 4, 4, 4)]


def example(shape, seed=0):
    g = torch.Generator().manual_seed(seed)
    x, eps = (torch.randn(shape, dtype=torch.float64, generator=g) for _ in range(2))
    t = 0.1 + 0.8 * torch.rand(shape[0], dtype=torch.float64, generator=g)
    return x, eps, t, diffuse(x, eps, t)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("to", SPACES)
def test_nine_conversions(shape, space, to):
    x, eps, t, z = example(shape)
    truth = {"x": x, "eps": eps, "v": velocity(x, eps)}
    prediction = Prediction(truth[space], z, t, space)
    torch.testing.assert_close(prediction.to(to), truth[to], atol=1e-12, rtol=0)
    back = Prediction(prediction.to(to), z, t, to).to(space)
    torch.testing.assert_close(back, truth[space], atol=1e-12, rtol=0)


def test_floors():
    x = torch.ones(2, 1, 4)
    z, t = torch.zeros(2, 1, 4), torch.tensor([1.0, 0.99])
    assert torch.equal(Prediction(x, z, t, "x", 0.05).to("v"), torch.full_like(x, 20.0))
    assert torch.equal(Prediction(x, z, 1 - t, "eps", 0.05).to("v"), torch.full_like(x, -20.0))


@pytest.mark.parametrize("bad", [torch.rand(3), torch.rand(4, 1), torch.tensor(0.5), torch.rand(1)])
def test_t_of_another_shape_is_refused(bad):
    with pytest.raises(ValueError, match="one time for each sample"):
        expand(bad, torch.rand(4, 2, 4, 4))


def test_unknown_space_is_refused():
    z = torch.rand(2, 1, 4)
    with pytest.raises(ValueError, match="no space is called 'score'"):
        Prediction(z, z, torch.rand(2), "score")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no space is called 'e'"):
        Prediction(z, z, torch.rand(2), "x").to("e")  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("measured", SPACES)
def test_losses_are_weightings_of_the_raw_error(shape, space, measured):
    """The 3 x 3 table of weights that follows from Table 1 of arXiv 2511.13720."""
    x, eps, t, z = example(shape)
    truth = {"x": x, "eps": eps, "v": velocity(x, eps)}[space]
    error = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    one = torch.ones_like(t)
    weight = {
        ("x", "x"): one,
        ("x", "eps"): t**2 / (1 - t) ** 2,
        ("x", "v"): 1 / (1 - t) ** 2,
        ("eps", "x"): (1 - t) ** 2 / t**2,
        ("eps", "eps"): one,
        ("eps", "v"): 1 / t**2,
        ("v", "x"): (1 - t) ** 2,
        ("v", "eps"): t**2,
        ("v", "v"): one,
    }[space, measured]
    loss = denoising_loss(Prediction(truth + error, z, t, space), x, eps, measured)
    assert loss.shape == t.shape
    torch.testing.assert_close(loss, weight * error.square().flatten(1).mean(1), rtol=1e-9, atol=0)


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("measured", SPACES)
def test_a_perfect_network_has_zero_loss_also_under_the_floors(space, measured):
    x, eps, _, _ = example((4, 2, 4))
    t = torch.tensor([0.0, 0.01, 0.99, 1.0], dtype=torch.float64)
    truth = {"x": x, "eps": eps, "v": velocity(x, eps)}[space]
    loss = denoising_loss(Prediction(truth, diffuse(x, eps, t), t, space), x, eps, measured)
    assert torch.equal(loss, torch.zeros_like(loss))


def test_what_is_beside_a_prediction_travels_with_it():
    """As tensors under their names; a prediction with nothing beside has the structure that it always had."""
    _, _, t, z = example((4, 2, 4))
    plain, more = Prediction(z, z, t, "x"), Prediction(z, z, t, "x", beside={"logits": z[:, 0]})
    leaves, structure = pytree.tree_flatten(plain)
    assert (len(leaves), structure.context) == (3, ("x", 0.05))
    assert pytree.tree_unflatten(leaves, structure) == plain
    doubled = pytree.tree_map(lambda each: 2 * each, more)
    assert doubled.beside.keys() == {"logits"}
    assert torch.equal(doubled.beside["logits"], 2 * z[:, 0])
    again = pytree.treespec_loads(pytree.treespec_dumps(pytree.tree_structure(more)))
    assert again == pytree.tree_structure(more)


def test_logit_normal():
    density = LogitNormal(-0.8, 0.8)
    t = torch.linspace(1e-6, 1 - 1e-6, 200_001, dtype=torch.float64)
    assert torch.trapezoid(density.density(t), t) == pytest.approx(1, abs=1e-6)
    times = density.times(torch.randn(200_000, generator=torch.Generator().manual_seed(0)))
    assert times.median() == pytest.approx(0.310, abs=0.003)  # sigmoid(-0.8)
    assert (times > 0.5).float().mean() == pytest.approx(0.159, abs=0.004)  # 1 - Phi(1)
    below = torch.trapezoid(density.density(t[t < 0.4]), t[t < 0.4])
    assert (times < 0.4).float().mean() == pytest.approx(float(below), abs=0.005)
