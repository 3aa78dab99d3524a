"""Steps whose loss or gradient is not finite: skipped, counted, written down, replayed; and when a run stops."""

import json
from dataclasses import replace
from math import isfinite
from typing import Any

import pytest
import torch
from test_train import CONFIG, begin, go_on, waves

from justimage.data.loader import order
from justimage.training.loop import NonFiniteLoss, train
from justimage.training.loss import Losses, flow_matching

NAN, INF = float("nan"), float("inf")


def poisoned(model, config, at: dict[int, float], *, zero_gradient: bool = False):
    """The loss, with the samples at these positions multiplied by something else; or only told so, without gradient."""
    inner = flow_matching(model, config)

    def loss(predict, x, y, positions):
        losses = inner(predict, x, y, positions)
        factor = torch.tensor([at.get(position, 1.0) for position in positions])
        if zero_gradient:
            return Losses(losses.total + (factor - factor.nan_to_num(1, 1, 1)), losses.terms)
        return Losses(losses.total * factor, {name: term * factor for name, term in losses.terms.items()})

    return loss


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("how", ["loss and gradient", "loss alone"])
def test_a_bad_step_is_no_step_for_weights_and_moments(value, how):
    """A run with bad steps ends with the weights of a run in which these steps had a gradient that moves nothing.

    The reference is made by hand: the same loop, in which the optimizer is told to stay still at these steps.
    """
    source, config = waves(), replace(CONFIG, ema_decays=())
    state, reference = begin(source, config), begin(source, config)
    bad_steps = {32, 96}
    loss = poisoned(state.model, config, {37: value, 100: value}, zero_gradient=how == "loss alone")
    ticks = list(train(state, source, loss, config, tick_nimg=32))

    step, optimizer = reference.optimizer.step, reference.optimizer

    def still(*arguments: Any) -> Any:
        return None if reference.nimg in bad_steps else step(*arguments)

    optimizer.step = still  # type: ignore[method-assign]
    expected = go_on(reference, source, config)
    left, right = state.tensors(), reference.tensors()
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)
    assert [tick.skipped for tick in ticks] == [(), (32,), (), (96,), ()]
    good = {tick.nimg: tick.loss for tick in expected if tick.nimg - 16 not in bad_steps}
    for tick in ticks:  # the means are over the other steps
        mean = [good[at] for at in (tick.nimg - 16, tick.nimg) if at in good]
        assert tick.loss == pytest.approx(sum(mean) / len(mean), rel=1e-6)
        assert isfinite(tick.grad_norm)


def test_a_tick_without_a_good_step_has_no_loss(tmp_path):
    from justimage.runs.sinks import log_to

    source, state = waves(), begin(waves())
    ticks = list(train(state, source, poisoned(state.model, CONFIG, {20: NAN}), CONFIG, tick_nimg=16))
    assert [tick.skipped for tick in ticks][:3] == [(), (16,), ()]
    assert not isfinite(ticks[1].loss)
    assert all(isfinite(tick.loss) for tick in ticks if not tick.skipped)
    log_to(tmp_path / "log.jsonl")(ticks[1])
    line = json.loads((tmp_path / "log.jsonl").read_text(), parse_constant=pytest.fail)
    assert (line["loss"], line["skipped"], line["terms"]) == (None, [16], {"v-loss": None})


@pytest.mark.parametrize("tick_nimg", [16, 48, 160])
def test_so_many_in_a_row_stop_the_run_whatever_the_ticks(tick_nimg):
    """Counted across ticks, and from anew after a good step; nothing of the state is not finite."""
    source, config = waves(), replace(CONFIG, most_skipped=3)
    state = begin(source, config)
    at = dict.fromkeys((16, 32, 64, 80, 96), NAN)
    seen = []
    with pytest.raises(NonFiniteLoss, match="starts at nimg = 64, and in 3 in a row") as stopped:
        for tick in train(state, source, poisoned(state.model, config, at), config, tick_nimg=tick_nimg):
            seen += tick.skipped
    assert state.nimg == 112
    assert stopped.value.nimg == 64
    assert list(stopped.value.indices) == list(order(config.seed, range(64, 80), len(source)))
    assert [*seen, *stopped.value.skipped] == [16, 32, 64, 80, 96]
    state.check_finite()
