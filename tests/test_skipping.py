"""Steps whose loss or gradient is not finite: skipped, counted, written down, replayed; and when a run stops."""

import io
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from math import isfinite
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import jit_here, small_config
from rich.console import Console
from safetensors.torch import load_file, save_file
from test_run import TINY, tiny_data
from test_train import ALONE, CONFIG, begin, go_on, waves

import justimage as ji
from justimage.data.loader import order
from justimage.runs.learning_checks import not_finite, rate_too_high, rate_too_low
from justimage.runs.record import read_run
from justimage.runs.replay import Found, replay, watched_step
from justimage.runs.run import Failed, train_run
from justimage.training.loop import NonFiniteLoss, train
from justimage.training.loss import Losses, flow_matching
from justimage.training.state import saved_states

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


def test_ticks_without_a_good_step_are_read_again_and_the_doctor_names_them(tmp_path):
    """The last one of them too: a run with such an end has seen all samples."""
    source, recipe = waves(), recipe_of_waves()
    train_poisoned(tmp_path / "r", source, recipe, {85: NAN, 150: NAN})
    record = read_run(tmp_path / "r")
    assert [each.tick.nimg for each in record.ticks] == list(range(16, 161, 16))
    assert [each.tick.nimg for each in record.ticks if each.tick.skipped] == [96, 160]
    assert record.nimg == 160 and record.state == "finished"
    assert len(record.losses) == 8 and all(map(isfinite, record.losses))
    finding = not_finite(record)
    assert finding is not None and "2 steps were skipped, the last at nimg = 144" in " ".join(finding.evidence)
    for check in (rate_too_high, rate_too_low):
        check(record)


@pytest.mark.parametrize("tick_nimg", [16, 48, 160])
def test_so_many_in_a_row_stop_the_run_whatever_the_ticks(tick_nimg):
    """Counted across ticks, and from anew after a good step; nothing of the state is not finite."""
    source, config = waves(), replace(CONFIG, most_skipped=3)
    state = begin(source, config)
    at: dict[int, float] = dict.fromkeys((16, 32, 64, 80, 96), NAN)
    seen = []
    with pytest.raises(NonFiniteLoss, match="starts at nimg = 64, and in 3 in a row") as stopped:
        for tick in train(state, source, poisoned(state.model, config, at), config, tick_nimg=tick_nimg):
            seen += tick.skipped
    assert state.nimg == 112
    assert stopped.value.nimg == 64
    assert list(stopped.value.indices) == list(order(config.seed, range(64, 80), len(source)))
    assert [*seen, *stopped.value.skipped] == [16, 32, 64, 80, 96]
    state.check_finite()


def recipe_of_waves(**settings):
    """A run of the small network on the waves, and how often it saves."""
    training = {"ema_start_nimg": 32, "most_skipped": 3, **settings}
    network = small_config((8, 8), channels=2, num_classes=2)
    report = ji.Report(tick_nimg=16, sample_nimg=10_000, save_nimg=48, preview_steps=1)
    return ji.Recipe(network, replace(CONFIG, **training), report=report)


AT: dict[int, float] = {}  # what the loss below does, by position


def poisoned_loss(model, config):
    """As a user would write one: recipe.json names it."""
    return poisoned(model, config, AT)


def train_poisoned(folder: Path, source, recipe, at: dict[int, float]) -> str:
    """Train a run with this loss; what is printed."""
    AT.clear()
    AT.update(at)
    console = Console(file=io.StringIO(), width=200)
    train_run(recipe, source, folder, processes=ALONE, console=console, loss=poisoned_loss)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_replay_takes_the_settings_that_a_step_was_made_with(tmp_path):
    """Also where the run was resumed with others since; where both lie between the state and the step, it says so."""
    source, recipe = waves(), recipe_of_waves(duration_nimg=96, schedule="constant")
    recipe = replace(recipe, report=replace(recipe.report, keep_states=9))
    train_run(recipe, source, tmp_path / "r", processes=ALONE, console=Console(file=io.StringIO()))
    later = replace(recipe, training=replace(recipe.training, lr=0.1, duration_nimg=160))
    quiet = Console(file=io.StringIO())
    train_run(later, source, tmp_path / "r", processes=ALONE, console=quiet, changed=["lr"])
    log = {line["nimg"]: line for line in map(json.loads, (tmp_path / "r" / "log.jsonl").open())}
    for nimg in (32, 80, 96, 128):
        found = replay(tmp_path / "r", nimg, source, processes=ALONE)
        assert (found.loss, found.grad_norm) == (log[nimg + 16]["loss"], log[nimg + 16]["grad_norm"]), nimg
    shutil.rmtree(tmp_path / "r" / "state" / "000000096")
    with pytest.raises(ValueError, match="other settings between its newest state before nimg = 128 and that step"):
        replay(tmp_path / "r", 128, source, processes=ALONE)


def test_a_run_writes_down_what_it_skips_and_resumes_to_the_same(tmp_path):
    """skipped.jsonl has the batch's positions and samples, once each, also where a kill cuts the run; the weights of a
    resumed run with skipped steps are those of an unbroken one."""
    source, recipe = waves(), recipe_of_waves()
    at = {50: NAN, 100: INF}
    out = train_poisoned(tmp_path / "whole", source, recipe, at)
    assert "skipped 1 step with a loss or gradient that is not finite (nimg 48; skipped.jsonl)" in out
    assert out.count("skipped 1 step") == 2
    lines = [json.loads(line) for line in (tmp_path / "whole" / "skipped.jsonl").open()]
    assert [(line["nimg"], line["positions"]) for line in lines] == [(48, [48, 63]), (96, [96, 111])]
    for line in lines:
        expected = order(CONFIG.seed, range(line["nimg"], line["nimg"] + 16), len(source))
        assert line["indices"] == expected.tolist()
    log = [json.loads(line) for line in (tmp_path / "whole" / "log.jsonl").open()]
    assert [line["skipped"] for line in log if line["skipped"]] == [[48], [96]]

    with pytest.raises(ZeroDivisionError):  # in place of a kill, after a line for the second one was written

        def broken(tick) -> None:
            if tick.nimg == 128:
                raise ZeroDivisionError

        train_run(recipe, source, tmp_path / "cut", processes=ALONE, loss=poisoned_loss, sinks=[broken])
    assert [int(path.name) for path in saved_states(tmp_path / "cut" / "state")] == [48, 96]
    train_poisoned(tmp_path / "cut", source, recipe, at)
    again = [json.loads(line) for line in (tmp_path / "cut" / "skipped.jsonl").open()]
    assert [line["indices"] for line in again] == [line["indices"] for line in lines]
    whole, cut = (load_file(tmp_path / run / "state" / "000000160" / "state.safetensors") for run in ("whole", "cut"))
    assert all(torch.equal(whole[name], cut[name]) for name in whole)


def test_a_run_stops_with_its_last_good_state(tmp_path):
    """After so many in a row: nothing that was saved before is replaced, and the message says where the good state is
    and how to look at the step."""
    source, recipe = waves(), recipe_of_waves()
    with pytest.raises(Failed, match="starts at nimg = 64, and in 3 in a row") as failed:
        train_poisoned(tmp_path / "r", source, recipe, dict.fromkeys((64, 80, 96), NAN))
    message = str(failed.value)
    assert [int(path.name) for path in saved_states(tmp_path / "r" / "state")] == [48, 96]
    assert f"remove {tmp_path / 'r' / 'state' / '000000096'}; the last good one is" in message
    assert f"{tmp_path / 'r' / 'state' / '000000048'}" in message
    assert f"jit replay {tmp_path / 'r'} 64" in message
    assert [json.loads(line)["nimg"] for line in (tmp_path / "r" / "skipped.jsonl").open()] == [64, 80, 96]
    recipe = replace(recipe, training=replace(recipe.training, most_skipped=8))  # changes no number, so it may differ
    train_poisoned(tmp_path / "r", source, recipe, dict.fromkeys((64, 80, 96), NAN))
    assert [int(path.name) for path in saved_states(tmp_path / "r" / "state")][-1] == 160


def test_replay_makes_the_very_step_again(tmp_path):
    """From the newest state before it: the samples that are not finite, and where; the run stays as it is."""
    source, recipe = waves(), recipe_of_waves()
    at = {85: NAN, 90: INF}
    train_poisoned(tmp_path / "r", source, recipe, at)
    before = {path: path.read_bytes() for path in (tmp_path / "r").rglob("*") if path.is_file()}
    assert [int(path.name) for path in saved_states(tmp_path / "r" / "state")] == [48, 144, 160]  # 48 is kept for this
    found = replay(tmp_path / "r", 80, source, processes=ALONE, loss=poisoned_loss)
    assert (found.began_at, found.finite) == (48, False)
    assert found.place == "the loss, after a network that is finite"
    indices = order(CONFIG.seed, range(80, 96), len(source))
    assert [(each.position, each.index) for each in found.samples] == [(85, indices[5]), (90, indices[10])]
    assert [each.y for each in found.samples] == [{"labels": source.y[i]} for i in (indices[5], indices[10])]  # type: ignore[index]
    fine = replay(tmp_path / "r", 64, source, processes=ALONE, loss=poisoned_loss)
    log = {line["nimg"]: line for line in map(json.loads, (tmp_path / "r" / "log.jsonl").open())}
    assert (fine.finite, fine.place, fine.samples) == (True, "", ())
    assert (fine.loss, fine.grad_norm) == (log[80]["loss"], log[80]["grad_norm"])  # the very step, to the bit
    assert {path: path.read_bytes() for path in (tmp_path / "r").rglob("*") if path.is_file()} == before
    for nimg, message in [
        (85, "no step .* begins at nimg = 85: the nearest one begins at 80; those .* at 80"),
        (160, "144"),
    ]:
        with pytest.raises(ValueError, match=message):
            replay(tmp_path / "r", nimg, source, processes=ALONE, loss=poisoned_loss)
    with pytest.raises(ValueError, match=r"trained with the loss .*poisoned_loss, which only Python code can give"):
        replay(tmp_path / "r", 80, source, processes=ALONE)


@pytest.mark.parametrize("rank", [0, 2])
def test_a_run_that_began_from_weights_is_replayed_from_its_states_alone(tmp_path, rank):
    """With adapters too, beside parts that are trained as they are new; where the first states are gone, it says so."""
    source, quiet = waves(), Console(file=io.StringIO())
    train_run(recipe_of_waves(duration_nimg=96), source, tmp_path / "first", processes=ALONE, console=quiet)
    tuned = recipe_of_waves(lora=ji.LoRA(rank=rank))
    tuned = replace(tuned, network=small_config((8, 8), 2, channels=2, num_classes=2))
    for keep_states, name in ((9, "all"), (1, "last")):
        report = replace(tuned.report, keep_states=keep_states)
        recipe, weights = replace(tuned, report=report), tmp_path / "first"
        train_run(recipe, source, tmp_path / name, processes=ALONE, console=quiet, init_from=weights)
    log = {line["nimg"]: line for line in map(json.loads, (tmp_path / "all" / "log.jsonl").open())}
    for nimg in (0, 64):
        found = replay(tmp_path / "all", nimg, source, processes=ALONE)
        assert (found.loss, found.grad_norm) == (log[nimg + 16]["loss"], log[nimg + 16]["grad_norm"])
    with pytest.raises(ValueError, match="and its states before nimg = 64 are gone"):
        replay(tmp_path / "last", 64, source, processes=ALONE)


def test_a_parameter_whose_gradient_alone_is_not_finite_is_named():
    """And no other, though the norm that gradients are clipped by is NaN."""
    source, state = waves(), begin(waves())
    assert CONFIG.clip_norm
    bias: Any = dict(state.model.net.named_parameters())["head.linear.bias"]
    bias.register_hook(lambda gradient: gradient * NAN)
    found = watched(state, source, CONFIG)
    assert (found.place, found.parameters) == ("", ("head.linear.bias",))


def watched(state, source, config, loss=None):
    return watched_step(state, source, loss or flow_matching(state.model, config), config, Found(state.nimg, 0))


class Odd(torch.nn.Module):
    """x, and for the samples at these rows something whose value or gradient is not finite."""

    def __init__(self, rows: list[int], backward: bool):
        super().__init__()
        self.rows, self.backward = rows, backward

    def forward(self, x):
        scale = torch.ones(len(x))
        scale[self.rows] = 0.0
        scale = scale.view(-1, *[1] * (x.ndim - 1))
        if self.backward:  # the root of 0 is 0, and its gradient is not finite
            return x + ((x * scale).abs()).sqrt() * 0
        return x / scale


@pytest.mark.parametrize("microbatch", [0, 8])
@pytest.mark.parametrize("backward", [False, True])
def test_the_module_and_the_samples_are_named(backward, microbatch):
    source, config = waves(), replace(CONFIG, microbatch=microbatch)
    state = begin(source, config)
    head: Any = state.model.net.head
    state.model.net.head = Before(Odd([3, 5], backward), head)
    found = watched(state, source, config)
    assert not found.finite
    wanted = [3, 5, 11, 13] if microbatch else [3, 5]  # rows of each part
    assert [each.position for each in found.samples] == wanted
    if backward:
        assert isfinite(found.loss)
        assert "the backward pass from" in found.place
        assert ", to blocks.1" in found.place
        assert "SqrtBackward0" in found.operation
    else:
        assert found.place == "head.odd (Odd)"


class Before(torch.nn.Module):
    """One module, and then another."""

    def __init__(self, odd: torch.nn.Module, then: torch.nn.Module):
        super().__init__()
        self.odd, self.then = odd, then

    def forward(self, x, *rest):
        return self.then(self.odd(x), *rest)


def test_a_step_that_overflows_only_as_a_sum_says_so():
    source, config = waves(), CONFIG
    state = begin(source, config)
    inner = flow_matching(state.model, config)

    def large(predict, x, y, positions):
        losses = inner(predict, x, y, positions)
        return Losses(losses.total - losses.total.detach() + 1e38, losses.terms)

    found = watched(state, source, config, large)
    assert not found.finite
    assert found.samples == ()
    assert found.place == "the sum of the loss over the batch"


def test_the_command_names_the_samples_of_a_class_that_overflows(tmp_path, monkeypatch, capsys):
    """A row of the table of classes is made huge in a state: its samples are named, the others not."""

    def here(*words: str) -> tuple[int, str]:
        code = jit_here(*words, cwd=tmp_path, monkeypatch=monkeypatch)
        return code, "".join(capsys.readouterr())

    words = ["train", "mnist-demo", *tiny_data(tmp_path), *TINY, "--training.duration-nimg", "960", "--run", "r"]
    words += ["--report.save-nimg", "64", "--report.tick-nimg", "64", "--training.precision", "float32"]
    words += ["--training.schedule", "constant", "--training.most-skipped", "4"]
    assert here(*words, "--training.duration-nimg", "128")[0] == 0
    place = saved_states(tmp_path / "r" / "state")[-1] / "state.safetensors"
    tensors = load_file(place)
    (table,) = [name for name in tensors if name.startswith("net/") and name.endswith("table")]
    tensors[table][1] = 3e38
    save_file(tensors, place)
    code, out = here(*words)
    assert code == 1
    assert "jit replay r 128 says which sample" in out
    code, out = here("replay", "r", "128", "--device", "cpu")
    assert code == 0, out
    assert "the step at nimg = 128, from the state at nimg = 128: loss nan" in out
    assert "not finite first in: " in out
    named = [line for line in out.splitlines() if "labels" in line]
    assert named
    assert all("labels 1" in line for line in named)
    code, out = here("replay", "r", "130")
    assert (code, "no step of r begins at nimg = 130: the nearest one begins at 128" in out) == (2, True), out
    code, out = here("replay", "nowhere", "0")
    assert (code, "there is no run nowhere" in out) == (2, True), out
    code, out = here("replay", ".", "0")
    assert (code, "it holds r" in out) == (2, True), out


ONE_OF_TWO = """
import sys, torch
sys.path.insert(0, sys.argv[1])
torch.set_num_threads(1)
from safetensors.torch import save_file
from justimage.parallel import join, leave
from justimage.training.loop import train
from test_skipping import BAD_IN_ONE, poisoned
from test_train import CONFIG, CPU, begin, waves
processes = join(CPU)
source = waves()
state = begin(source, CONFIG, processes)
ticks = list(train(state, source, poisoned(state.model, CONFIG, BAD_IN_ONE), CONFIG, tick_nimg=160))
assert ticks[-1].skipped == (32, 96), ticks
if processes.first:
    save_file({name: tensor.clone() for name, tensor in state.tensors().items()}, sys.argv[2])
leave(processes)
"""
BAD_IN_ONE = {47: NAN, 96: INF}  # of batches of 16: in the second half, and in the first


@pytest.mark.slow
def test_what_is_not_finite_in_one_process_is_skipped_by_both(tmp_path):
    """Each sees half of every batch, and the weights stay those of one process that sees it all."""
    (tmp_path / "two.py").write_text(ONE_OF_TWO)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29617"]
    command = [*torchrun, str(tmp_path / "two.py"), str(Path(__file__).parent), str(tmp_path / "out")]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    subprocess.run(command, check=True, timeout=300, env=environment)
    source, alone = waves(), begin(waves())
    for _ in train(alone, source, poisoned(alone.model, CONFIG, BAD_IN_ONE), CONFIG, tick_nimg=160):
        pass
    together = load_file(tmp_path / "out")
    assert together.keys() == alone.tensors().keys()
    for name, tensor in alone.tensors().items():
        torch.testing.assert_close(together[name], tensor, atol=1e-5, rtol=1e-4)
