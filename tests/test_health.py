"""What is measured of a run's health: the numbers are what they say, and training does not feel it."""

import json
import shlex

import numpy as np
import pytest
import torch
from conftest import jit_here, small_net
from safetensors.torch import load_file
from torch import nn

from justimage.denoiser import Denoiser
from justimage.process import SPACES, LogitNormal, Prediction
from justimage.runs.glance import glance_at
from justimage.runs.health import FAILED, _density, _distances, _gap_of_two, without_failures
from justimage.training.grid import TIMES, Samples, linear_losses, losses, neighbours, others, shifted
from justimage.training.optim import adamw
from justimage.training.step import parts_of, watch_next

TINY = shlex.split(
    "--network.width 32 --network.depth 2 --network.heads 2 --network.context-start 1 --device cpu "
    "--training.batch-size 32 --training.ema-decays 0.9 --training.ema-start-nimg 0 --training.warmup-nimg 64 "
    "--report.tick-nimg 64 --report.save-nimg 128 --report.sample-nimg 100000 --report.preview-steps 2 "
    "--report.evaluate-nimg 0 --training.schedule constant"
)


def lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def write_digits(folder, count=96, seed=0) -> list[str]:
    """Random images of two classes of different brightness, as arguments."""
    generator = np.random.default_rng(seed)
    y = np.arange(count) % 2
    x = generator.integers(0, 128, (count, 1, 28, 28)) + 127 * y[:, None, None, None]
    np.savez(folder / "tiny.npz", x=x.astype(np.uint8), y=y)
    return ["--data", "tiny.npz"]


def test_the_parts_are_all_trained_parameters_each_once():
    net = small_net(depth=5)
    parts = parts_of(net)
    assert list(parts) == ["embedding", "time", "condition", "blocks 0-1", "blocks 2", "blocks 3-4", "head"]
    together = [id(p) for some in parts.values() for p in some]
    assert sorted(together) == sorted(id(p) for p in net.parameters())


def test_the_update_is_what_the_step_changed():
    """The update from the moments is the difference of the weights, which it does not need; the step stays the same."""
    results = []
    for watched in (False, True):
        net = small_net().train()
        optimizer = adamw(net, betas=(0.9, 0.95), weight_decay=0.0)
        for group in optimizer.param_groups:
            group["lr"] = 1e-3
        generator = torch.Generator().manual_seed(0)
        result, before, grads = None, {}, {}
        for _ in range(3):
            result = watch_next(net, optimizer) if watched else None
            x = torch.randn(4, 2, 8, 8, generator=generator)
            net(x, torch.full((4,), 0.5), torch.zeros(4, dtype=torch.int64)).square().mean().backward()
            parts = parts_of(net)
            before = {name: [p.detach().clone() for p in some] for name, some in parts.items()}
            grads = {name: [p.grad.clone() for p in some if p.grad is not None] for name, some in parts.items()}
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        results.append([p.detach().clone() for p in net.parameters()])
        if result is not None:
            for name, (gradient, weight, update) in result().items():
                after = parts_of(net)[name]
                moved = [a.detach() - b for a, b in zip(after, before[name], strict=True)]
                assert update == pytest.approx(float(nn.utils.get_total_norm(moved)), rel=2e-3)
                assert gradient == pytest.approx(float(nn.utils.get_total_norm(grads[name])), rel=1e-5)
                assert weight == pytest.approx(float(nn.utils.get_total_norm([p.detach() for p in after])), rel=1e-5)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


class Fixed(nn.Module):
    """Says the same of x whatever space it speaks in."""

    def __init__(self, space):
        super().__init__()
        self.space, self.config = space, small_net().config

    def forward(self, z, t, y=None):
        x = 0.3 * z + 0.1
        return Prediction(x, z, t, "x", 1e-6).to(self.space)


def test_losses_are_comparable_across_prediction_spaces():
    samples = Samples(torch.randn(6, 2, 8, 8), {})
    found = [losses(Denoiser(Fixed(space), space=space, t_eps=1e-6), samples) for space in SPACES]
    assert found[0].shape == (len(TIMES), 6)
    for each in found[1:]:
        torch.testing.assert_close(each, found[0], rtol=1e-4, atol=1e-4)


def test_the_linear_yardstick_is_the_best_line():
    """Least squares of v on z, number by number, does as well as the formula says."""
    generator = torch.Generator().manual_seed(0)
    deviation = torch.tensor([0.2, 1.0])
    x = deviation * torch.randn(200_000, 2, generator=generator)
    eps = 1.5 * torch.randn(200_000, 2, generator=generator)
    for t in (0.1, 0.5, 0.9):
        z, v = t * x + (1 - t) * eps, x - eps
        slope = (z * v).sum(0) / z.square().sum(0)
        error = float((v - slope * z).square().mean())
        assert linear_losses(deviation.square(), 1.5, [t])[0] == pytest.approx(error, rel=0.02)


def test_the_bins_hold_the_density_of_training_times():
    shares = _density(LogitNormal())
    t = LogitNormal().times(torch.randn(200_000, generator=torch.Generator().manual_seed(0)))
    for i, share in enumerate(shares):
        assert share == pytest.approx(float(((t >= i / 8) & (t < (i + 1) / 8)).float().mean()), abs=5e-3)
    assert sum(shares) == pytest.approx(1)


def test_other_labels_are_other_labels_and_moved_samples_move():
    samples = Samples(
        torch.arange(8.0).view(8, 1, 1, 1).expand(8, 1, 2, 3), {"labels": torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])}
    )
    assert (others(samples).y["labels"] == 1 - samples.y["labels"]).all()
    ramp = Samples(torch.arange(4.0).expand(1, 1, 2, 4), {"mask": torch.arange(4.0).expand(1, 3, 2, 4)})
    moved = shifted(ramp)
    assert neighbours(torch.linspace(0, 1, 64).expand(2, 1, 64)) > 0.9
    assert abs(neighbours(torch.randn(50, 1, 64, generator=torch.Generator().manual_seed(0)))) < 0.1
    assert moved.x[0, 0, 0].tolist() == moved.y["mask"][0, 0, 0].tolist() == [0, 0, 1, 2]


def test_a_gap_between_different_samples_is_found_in_spite_of_how_they_differ():
    """Losses that grow with a sample's distance from the mean, and are a third higher on what was not seen."""
    generator = torch.Generator().manual_seed(0)
    far, own_far = (torch.rand(40, generator=generator) + 0.1 for _ in range(2))
    noise = 1 + 0.1 * torch.randn(2, 40, generator=generator)
    gap = _gap_of_two(4 * far * noise[0], 3 * own_far * noise[1], far, own_far)
    assert gap.value == pytest.approx(1 / 3, abs=3 * gap.error)
    assert gap.error < 0.06  # the plain means have one of 0.1 and more


@pytest.mark.parametrize(("few", "others"), [(32, 32), (8, 8), (32, 8)])
def test_a_gap_to_unseen_samples_is_no_matter_of_their_number(few, others):
    """Losses that are a share of how far a sample is from the mean, and those of unseen ones 12 % more."""
    found = []
    for seed in range(200):
        generator = torch.Generator().manual_seed(seed)
        x, unseen = (torch.randn(count, 1, 2, 2, generator=generator) for count in (few, others))
        own, far = _distances(x, unseen)
        losses, theirs = (x.square().flatten(1).mean(1) * factor for x, factor in ((x, 1.0), (unseen, 1.12)))
        found.append(_gap_of_two(theirs, losses, far, own).value)
    assert sum(found) / len(found) == pytest.approx(0.12, abs=0.03)


def test_a_glance_tells_labels_that_mean_something_from_shuffled_ones(tmp_path):
    from justimage.data.arrays import Arrays

    generator = np.random.default_rng(0)
    y = np.arange(400) % 4
    x = generator.normal(size=(400, 1, 12, 12)) + 0.3 * y[:, None, None, None]
    sound = glance_at(Arrays(x, y), 1.0)
    shuffled = glance_at(Arrays(x, generator.permutation(y)), 1.0)
    for each in (sound, shuffled):
        assert each.chance is not None
        assert each.chance == pytest.approx(0.25, abs=0.05)
    assert sound.guessed is not None
    assert shuffled.guessed is not None
    assert sound.guessed > 0.7
    assert abs(shuffled.guessed - 0.25) < 0.1


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run with measurements at every tick, the same without, and the same that was stopped in between."""
    folder = tmp_path_factory.mktemp("health")
    patch = pytest.MonkeyPatch()
    data = write_digits(folder)
    command = ["train", "mnist-demo", *data, *TINY]
    for run, options in (
        ("watched", ["--report.health-nimg", "64", "--training.duration-nimg", "320"]),
        ("unwatched", ["--report.health-nimg", "0", "--training.duration-nimg", "320"]),
        ("resumed", ["--report.health-nimg", "64", "--training.duration-nimg", "192"]),
        ("resumed", ["--report.health-nimg", "64", "--training.duration-nimg", "320"]),
        ("held", ["--data-options.held-out", "0.2", "--training.duration-nimg", "320"]),
    ):
        assert jit_here(*command, *options, "--run", run, cwd=folder, monkeypatch=patch) == 0
    patch.undo()
    return folder


def test_training_does_not_feel_it(trained):
    """Bit for bit the same losses and states, with measurements, without, and resumed."""
    states = [
        load_file(trained / run / "state" / "000000320" / "state.safetensors")
        for run in ("watched", "unwatched", "resumed")
    ]
    for state in states[1:]:
        assert all(torch.equal(state[name], states[0][name]) for name in states[0])
    logs = [
        [line["loss"] for line in lines(trained / run / "log.jsonl")] for run in ("watched", "unwatched", "resumed")
    ]
    assert logs[0] == logs[1] == logs[2]
    assert not (trained / "unwatched" / "health.jsonl").exists()


def test_a_resumed_run_measures_the_same(trained):
    whole, resumed = lines(trained / "watched" / "health.jsonl"), lines(trained / "resumed" / "health.jsonl")
    assert [line["nimg"] for line in whole] == [line["nimg"] for line in resumed] == [64, 128, 192, 256, 320]
    for a, b in zip(whole, resumed, strict=True):
        apart = {"time": 0, "host_gb": 0, "parts": []}  # a resumed run watches other steps
        assert {**a, **apart} == {**b, **apart}
        assert [part["name"] for part in a["parts"]] == [part["name"] for part in b["parts"]]
    last = whole[-1]
    assert [curve["weights"] for curve in last["trained"]] == ["raw", "ema-0.9"]
    assert (
        len(last["trained"][0]["losses"]) == len(last["times"]) == len(last["density"]) == len(last["data"]["linear"])
    )
    assert last["held_out"] == []
    assert len(last["activations"]) == 2
    assert last["data"]["low"] == -1
    assert last["host_gb"] > 0


def test_held_out_losses_stand_beside_those_trained_on(trained):
    (line,) = lines(trained / "held" / "health.jsonl")
    assert [curve["weights"] for curve in line["held_out"]] == ["raw", "ema-0.9"]
    assert [curve["weights"] for curve in line["trained"]] == ["raw"]
    recipe = json.loads((trained / "held" / "recipe.json").read_text())
    assert recipe["recipe"]["data_options"]["held_out"] == 0.2
    assert "held out" in recipe["data"]["found"]


def test_another_held_out_part_is_another_run(trained, monkeypatch, capsys):
    command = [
        "train",
        "mnist-demo",
        "--data",
        "tiny.npz",
        *TINY,
        "--training.duration-nimg",
        "640",
        "--run",
        "watched",
    ]
    assert jit_here(*command, "--data-options.held-out", "0.2", cwd=trained, monkeypatch=monkeypatch) == 2
    assert "holds a run of another recipe" in capsys.readouterr().err


def test_a_failure_is_noted_and_gone_when_the_run_goes_on(tmp_path, monkeypatch, capsys):
    command = ["train", "mnist-demo", *write_digits(tmp_path), *TINY, "--training.duration-nimg", "128", "--run", "r"]
    wrong = ["--training.lr", "1e30", "--training.clip-norm", "0", "--training.most-skipped", "1"]
    assert jit_here(*command, *wrong, cwd=tmp_path, monkeypatch=monkeypatch) == 1
    (failure,) = lines(tmp_path / "r" / "health.jsonl")
    assert "not finite" in failure[FAILED]
    good = ["--training.lr", "1e-3", "--training.clip-norm", "1", "--changed", "training.lr", "training.clip-norm"]
    assert jit_here(*command, *good, cwd=tmp_path, monkeypatch=monkeypatch) == 0
    assert all(FAILED not in line for line in lines(tmp_path / "r" / "health.jsonl"))
    assert without_failures('{"nimg": 1}\n{"nimg": 1, "failed": "x"}\n') == '{"nimg": 1}\n'
