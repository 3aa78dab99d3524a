"""Orders of convergence, numbers of evaluations, guidance, and what a sample depends on."""

from collections.abc import Callable
from itertools import pairwise
from math import log2
from typing import get_args

import pytest
import torch
from conftest import small_net
from torch import Tensor

from justimage.denoiser import Denoiser
from justimage.process import SPACES, Prediction, Space
from justimage.samplers import (
    FINALS,
    PRESETS,
    STEPS,
    Final,
    Preset,
    Sampler,
    Sampling,
    adams_bashforth2,
    deis,
    dpm_solver_2m,
    euler,
    guided,
    heun,
    integrate,
    land,
    linear_grid,
    shifted,
)

SHAPES = [(3, 2, 3), (3, 2, 3, 3), (2, 1, 2, 2, 2)]


def gaussian(
    mean: float, std: float
) -> tuple[Callable[[Tensor, Tensor], Prediction], Callable[[Tensor, float], Tensor]]:
    """The best x for data N(mean, std²), and the exact solution of dz/dt = v with it: the closed-form test case.

    z_t is N(t mean, t² std² + (1 - t)²), and the flow maps quantile to quantile.
    """

    def predict(z: Tensor, t: Tensor) -> Prediction:
        variance = t**2 * std**2 + (1 - t) ** 2
        x = mean + t * std**2 / variance * (z - t * mean)
        return Prediction(x, z, t.expand(len(z)).to(z.dtype), "x", t_eps=1e-9)

    def exact(noise: Tensor, t: float) -> Tensor:
        return t * mean + (t**2 * std**2 + (1 - t) ** 2) ** 0.5 * noise

    return predict, exact


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("new_step", "order"), [(lambda: euler, 1), (lambda: heun, 2), (adams_bashforth2, 2)])
def test_order_of_convergence(shape, new_step, order):
    predict, exact = gaussian(0.7, 0.4)
    noise = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    errors = []
    for steps in (40, 80, 160):
        times = linear_grid(steps) * 0.9
        errors.append((integrate(predict, noise, times, new_step()) - exact(noise, 0.9)).abs().max())
    slopes = [torch.log2(a / b).item() for a, b in pairwise(errors)]
    assert slopes == pytest.approx([order] * 2, abs=0.12)


def test_multistep_keeps_its_order_on_an_uneven_grid():
    predict, exact = gaussian(0.7, 0.4)
    noise = torch.randn(8, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def error(steps: int) -> Tensor:
        times = 0.9 * linear_grid(steps) ** 1.5
        return (integrate(predict, noise, times, adams_bashforth2()) - exact(noise, 0.9)).abs().max()

    assert torch.log2(error(80) / error(160)).item() == pytest.approx(2, abs=0.15)


def dpm_error(times: Tensor) -> float:
    """The largest error of DPM-Solver++(2M) from the first to the last of these times."""
    predict, exact = gaussian(0.7, 0.4)
    noise = torch.randn(8, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    start, end = float(times[0]), float(times[-1])
    step = dpm_solver_2m()
    return (integrate(predict, exact(noise, start), times, step, step) - exact(noise, end)).abs().max().item()


def test_dpm_solver_is_of_second_order_in_lambda():
    """Where lambda = logit(t) is finite, with steps of two lengths in turn."""
    errors = []
    for steps in (40, 80, 160):
        lengths = torch.tensor([1.0, 2.0], dtype=torch.float64).repeat(steps // 2)
        errors.append(dpm_error(torch.sigmoid(-3 + 6 * torch.cat((torch.zeros(1), lengths.cumsum(0))) / lengths.sum())))
    assert [log2(a / b) for a, b in pairwise(errors)] == pytest.approx([2, 2], abs=0.1)


@pytest.mark.parametrize("shift", [0.5, 1, 3])
def test_dpm_solver_from_noise_to_data_loses_a_logarithm(shift):
    """From t = 0 to 1 the error falls as h² log(1/h): the steps at both ends are never small in lambda."""
    a, b = (dpm_error(shifted(shift)(steps)) for steps in (640, 1280))
    assert log2(a / b) == pytest.approx(2 - log2(log2(1280) / log2(640)), abs=0.12)


def test_dpm_solver_is_algorithm_2_of_its_paper():
    """As written there, in alpha, sigma, lambda, h and r, on times between the infinite ends."""
    predict, _ = gaussian(0.7, 0.4)
    times = shifted(2.0)(7)[1:-1]
    z = torch.randn(4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    alpha, sigma = times, 1 - times
    h = (alpha / sigma).log().diff()
    x = z
    data: list[Tensor] = []
    for i in range(1, len(times)):
        data.append(predict(x, times[i - 1]).to("x"))
        d = data[-1]
        if i > 1:
            r = h[i - 2] / h[i - 1]
            d = (1 + 1 / (2 * r)) * data[-1] - 1 / (2 * r) * data[-2]
        x = sigma[i] / sigma[i - 1] * x - alpha[i] * (torch.exp(-h[i - 1]) - 1) * d
    step = dpm_solver_2m()
    torch.testing.assert_close(integrate(predict, z, times, step, step), x, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("power", [1, 1.5])
def test_deis_is_of_second_order_from_noise_to_data(power):
    """At both ends and on uneven grids: nothing is infinite there, and the last step is like the others."""
    predict, exact = gaussian(0.7, 0.4)
    noise = torch.randn(8, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def error(steps: int) -> float:
        step = deis()
        reached = integrate(predict, noise, linear_grid(steps) ** power, step, step)
        return (reached - exact(noise, 1.0)).abs().max().item()

    assert [log2(error(n) / error(2 * n)) for n in (80, 160)] == pytest.approx([2, 2], abs=0.2)


def test_deis_is_exact_where_x_is_linear_in_t():
    """z = c t + (1 - t) (noise + b log(1 - t)) for x = c - b (1 - t), from the second step on."""
    noise, c, b = torch.randn(3, 4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def path(t: Tensor) -> Tensor:
        return c * t + (1 - t) * (noise + b * torch.log(1 - t))

    def predict(z: Tensor, t: Tensor) -> Prediction:
        return Prediction(c - b * (1 - t), z, t.expand(4).float(), "x")

    times = linear_grid(6) ** 1.3
    torch.testing.assert_close(path(torch.zeros(1).double()), noise, rtol=1e-12, atol=1e-12)
    step = deis()
    z = step(predict, noise, times[0], times[1])  # of first order, until the next evaluation corrects it
    for t, t_next in pairwise(times[1:]):
        z = step(predict, z, t, t_next)
        torch.testing.assert_close(z, path(t_next) if t_next < 1 else c, rtol=1e-12, atol=1e-12)


def test_deis_ends_by_itself():
    """Whatever the last step of other samplers is; a step of the user's own ends as `final` says."""
    predict, _ = gaussian(0.7, 0.4)
    z = torch.randn(8, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    step = deis()
    expected = integrate(predict, z, linear_grid(5), step, step)
    for final in FINALS:
        assert torch.equal(Sampling(5, "deis", final=final).run(predict, z), expected)
    assert torch.equal(Sampling(5, "deis").run(predict, z, step=heun), Sampling(5, "heun").run(predict, z))


@pytest.mark.parametrize("steps", [1, 2, 3, 100])
@pytest.mark.parametrize("new_step", [dpm_solver_2m, deis])
def test_a_sampler_to_the_end_lands_on_an_x_that_does_not_change(new_step, steps):
    """To rounding, in any number of steps: no floor comes in, and nothing infinite at either end."""
    x, noise = torch.tensor([[0.3, -0.8]]), torch.randn(1, 2, generator=torch.Generator().manual_seed(0))
    states = []

    def predict(z: Tensor, t: Tensor) -> Prediction:
        states.append((float(t), z))
        return Prediction(x, z, t.expand(1).float(), "x", t_eps=0.05)

    step = new_step()
    torch.testing.assert_close(integrate(predict, noise, shifted(3.0)(steps), step, step), x)
    for t, z in states:
        torch.testing.assert_close(z, t * x + (1 - t) * noise)


@pytest.mark.parametrize("shift", [0.01, 0.5, 1, 3, 100])
def test_a_shift_moves_the_log_signal_to_noise_ratio(shift):
    times, linear = shifted(shift)(50), linear_grid(50)
    assert (times.dtype, times[0], times[-1]) == (torch.float64, 0, 1)
    assert bool((times.diff() > 0).all())
    torch.testing.assert_close(torch.logit(times[1:-1]), torch.logit(linear[1:-1]) - torch.tensor(shift).double().log())
    if shift == 1:  # to the bit: what was drawn before there were shifts is drawn again
        assert all(torch.equal(shifted(1)(steps), linear_grid(steps)) for steps in range(1, 300))


def test_the_grid_is_the_one_that_is_named():
    """Sampling's shift says where the network is asked; a grid of the caller's own wins over it."""

    def times_of(sampling: Sampling, **given) -> list[float]:
        seen: list[float] = []

        def predict(z: Tensor, t: Tensor) -> Prediction:
            seen.append(float(t))
            return Prediction(z, z, t.expand(1), "x")

        sampling.run(predict, torch.zeros(1, 1), **given)
        return seen

    assert times_of(Sampling(8, "dpm++2m", shift=3.0)) == shifted(3.0)(8)[:-1].tolist()
    assert times_of(Sampling(8, "ab2")) == linear_grid(8)[:-1].tolist()
    assert times_of(Sampling(8, "ab2", shift=3.0), grid=linear_grid) == linear_grid(8)[:-1].tolist()


def test_names_and_tables_are_the_same():
    assert get_args(Sampler) == tuple(STEPS)
    assert get_args(Final) == tuple(FINALS)
    assert get_args(Preset) == tuple(PRESETS)
    for settings in PRESETS.values():  # all of how to integrate, and nothing of what is drawn
        assert Sampling(**settings)
        assert set(settings) == set(Sampling.__dataclass_fields__) - {"guidance", "interval"}


def test_final_steps():
    """From t = 0.98 the floored step goes 40 % of the way; landing goes all of it."""
    x, z = torch.ones(1, 1, 2), torch.zeros(1, 1, 2)

    def predict(z: Tensor, t: Tensor) -> Prediction:
        return Prediction(x, z, t.expand(1).float(), "x", 0.05)

    t, one = torch.tensor(0.98, dtype=torch.float64), torch.tensor(1.0, dtype=torch.float64)
    torch.testing.assert_close(euler(predict, z, t, one), 0.4 * x)
    assert torch.equal(land(predict, z, t, one), x)
    with pytest.raises(ValueError, match="ends at t = 1"):
        land(predict, z, t, torch.tensor(0.99))


def counting() -> tuple[Callable[..., Prediction], list[int]]:
    calls: list[int] = []

    def model(z: Tensor, t: Tensor, y: Tensor | None) -> Prediction:
        calls.append(len(z))
        return Prediction(torch.zeros_like(z), z, t, "x")

    return model, calls


@pytest.mark.parametrize(
    ("settings", "calls", "evaluations"),
    [
        (Sampling(50, "heun", guidance=1.0), 99, 99),
        (Sampling(50, "heun", guidance=2.9, interval=(0.1, 1.0)), 99, 187),
        (Sampling(50, "heun", guidance=2.9, interval=(0.0, 1.0)), 99, 198),
        (Sampling(50, "heun", guidance=2.9, interval=(0.4, 0.4)), 99, 99),
        (Sampling(50, "euler", guidance=2.0, interval=(0.1, 1.0)), 50, 94),
        (Sampling(20, "ab2", guidance=2.0, interval=(0.0, 1.0)), 20, 40),
        (Sampling(20, "dpm++2m", guidance=2.0, interval=(0.0, 1.0)), 20, 40),
        (Sampling(20, "deis", guidance=2.0, interval=(0.0, 1.0)), 20, 40),
        (Sampling(20, "dpm++2m", guidance=2.0, interval=(0.25, 1.0), shift=3.0), 20, 29),
        (Sampling(20, "ab2", guidance=2.0, interval=(0.0, 1.0), guidance_every=2), 20, 30),
        (Sampling(20, "ab2", guidance=2.0, interval=(0.1, 1.0), guidance_every=3), 20, 26),
        (Sampling(20, "ab2", guidance=2.0, interval=(0.1, 1.0), guidance_every=100), 20, 21),
    ],
)
def test_number_of_evaluations(settings, calls, evaluations):
    """The null pass runs only where guidance acts, and then in one call with the other (NFE)."""
    model, seen = counting()
    y = torch.tensor([1, 2])
    every = settings.guidance_every
    settings.run(guided(model, y, y * 0 + 3, settings.guidance, settings.interval, every), torch.zeros(2, 1, 4))
    assert len(seen) == calls
    assert sum(seen) == 2 * evaluations
    assert settings.evaluations() == evaluations


def test_guidance_is_the_same_in_every_space():
    z, t = torch.randn(2, 1, 4, dtype=torch.float64), torch.tensor(0.3, dtype=torch.float64)
    y, null = torch.tensor([0, 1]), torch.tensor([3, 3])
    results = []
    for space in SPACES:

        def model(z: Tensor, t: Tensor, y: Tensor | None, space: Space = space) -> Prediction:
            assert y is not None
            as_x = Prediction(torch.sin(z + y.view(-1, 1, 1)), z, t, "x")
            return Prediction(as_x.to(space), z, t, space)

        results.append(guided(model, y, null, 2.5)(z, t).to("v"))
    torch.testing.assert_close(results[0], results[1])
    torch.testing.assert_close(results[0], results[2])


def test_guidance_that_is_repeated_is_right_where_it_does_not_change():
    """x with a condition is so far from x without one at all times: then nothing is lost; where it grows, it lags."""
    shift = torch.tensor([0.3, -1.0, 0.0]).view(-1, 1, 1)  # of the classes 0, 1 and none
    noise, y, null = torch.randn(2, 1, 4, dtype=torch.float64), torch.tensor([0, 1]), torch.tensor([2, 2])

    def drawn(every: int, growing: bool) -> Tensor:
        def model(z: Tensor, t: Tensor, y: Tensor | None) -> Prediction:
            assert y is not None
            return Prediction(torch.sin(z) + shift[y] * (t.view(-1, 1, 1) if growing else 1), z, t, "x")

        settings = Sampling(12, "ab2", guidance=2.5, interval=(0.2, 0.9))
        return settings.run(guided(model, y, null, 2.5, settings.interval, every), noise)

    torch.testing.assert_close(drawn(3, False), drawn(1, False), rtol=1e-6, atol=1e-6)
    assert (drawn(3, True) - drawn(1, True)).abs().max() > 0.01


def test_what_is_beside_a_guided_prediction_is_the_conditional_ones():
    def model(z: Tensor, t: Tensor, y: Tensor | None) -> Prediction:
        assert y is not None
        return Prediction(z, z, t, "x", beside={"seen": y})

    z, t, y = torch.randn(2, 1, 4), torch.tensor(0.3), torch.tensor([0, 1])
    assert torch.equal(guided(model, y, torch.tensor([3, 3]), 2.5)(z, t).beside["seen"], y)


def test_state_is_float32_whatever_the_network_computes_in():
    seen = []

    def predict(z: Tensor, t: Tensor) -> Prediction:
        seen.append(z.dtype)
        value = (0.5 * z).bfloat16()
        return Prediction(value.float(), z, t.expand(len(z)).float(), "x")

    out = integrate(predict, torch.randn(1, 1, 4).bfloat16(), linear_grid(4))
    assert set(seen) == {torch.float32}
    assert out.dtype == torch.float32


@pytest.mark.parametrize("size", [(8,), (8, 12), (4, 4, 8)])
def test_sample_depends_on_seed_and_label_alone(size):
    """The same noise to the bit and the same result to 1e-5, at batch size 1 and 8."""
    model = Denoiser(small_net(size, patch=4))
    settings = {"steps": 6, "guidance": 2.0}
    labels, seeds = [0, 1, 2, 0, 1, 2, 0, 1], [7, 3, 11, 0, 5, 2, 9, 4]
    together = model.sample(labels, seeds, **settings)
    alone = torch.cat([model.sample([y], [s], **settings) for y, s in zip(labels, seeds, strict=True)])
    assert (together - alone).abs().max() < 1e-5
    assert together.std() > 0.1
    reordered = model.sample(labels[::-1], seeds[::-1], **settings).flip(0)
    assert (together - reordered).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "at least 1"),
        ({"sampler": "dpm"}, "no sampler is called 'dpm'"),
        ({"final": "zero"}, "no final step is called 'zero'"),
        ({"shift": 0.0}, "shift is 0.0; it must lie between 0.01 and 100"),
        ({"interval": (0.5, 0.2)}, "0 <= lo <= hi <= 1"),
        ({"cfg": 2.0}, "no sampling setting is called cfg"),
    ],
)
def test_settings_that_make_no_sense(settings, message):
    with pytest.raises(ValueError, match=message):
        Denoiser(small_net()).sample([0], [0], **settings)
