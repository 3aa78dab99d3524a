"""Power-function averages, and any of them after training (EDM2, arXiv 2312.02696)."""

import json
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import jit_here
from safetensors.torch import load_file
from test_run import TINY, tiny_data
from test_train import CONFIG, begin, go_on, waves

from justimage.training.ema import EMA
from justimage.training.profiles import LONGEST_STD, Profile, gamma_of, mixture, overlap, power_decay, std_of

GAMMAS = (0.0, 0.7, 6.94, 16.97)  # the last two are stds of 0.1 and 0.05


def density(profile: Profile, s: np.ndarray) -> np.ndarray:
    """The profile as a function of time, of integral 1."""
    inside = (profile.gamma + 1) * (s / profile.nimg) ** profile.gamma / profile.nimg
    return np.where(s <= profile.nimg, inside, 0.0)


def midpoints(end: float, count: int = 400_000) -> tuple[np.ndarray, float]:
    return (np.arange(count) + 0.5) * end / count, end / count


@pytest.mark.parametrize(("a", "b"), list(product(GAMMAS, GAMMAS)))
@pytest.mark.parametrize("times", [(100, 100), (100, 40), (3, 100)])
def test_overlaps_are_the_integrals_of_products(a, b, times):
    one, other = Profile(a, times[0]), Profile(b, times[1])
    s, width = midpoints(max(times))
    numerical = float((density(one, s) * density(other, s)).sum() * width)
    assert overlap(one, other) == pytest.approx(numerical, rel=1e-4, abs=1e-12)
    assert overlap(one, other) == overlap(other, one)


@pytest.mark.parametrize("gamma", GAMMAS)
def test_the_std_is_that_of_the_profile(gamma):
    s, width = midpoints(1.0)
    weight = density(Profile(gamma, 1), s) * width
    mean = float((weight * s).sum())
    assert mean == pytest.approx((gamma + 1) / (gamma + 2), rel=1e-6)
    assert std_of(gamma) == pytest.approx(float((weight * (s - mean) ** 2).sum()) ** 0.5, rel=1e-6)
    if gamma:
        assert gamma_of(std_of(gamma)) == pytest.approx(gamma, rel=1e-9)


def test_the_paper_s_exponents():
    """Section 3.1 there: gamma = 16.97 and 6.94 have stds of 0.05 and 0.10."""
    assert gamma_of(0.05) == pytest.approx(16.97, abs=0.005)
    assert gamma_of(0.10) == pytest.approx(6.94, abs=0.005)
    for std in (0.0, -0.1, 0.3, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"std of an average is {std}"):
            gamma_of(std)
    assert gamma_of(LONGEST_STD) > 0


@pytest.mark.parametrize("every", [1, 4])
@pytest.mark.parametrize("std", [0.05, 0.1, 0.25])
def test_the_running_average_is_the_integral(std, every):
    """Against all weights kept: s^gamma over each step, times the weights at its end; with k steps at once alike."""
    net = torch.nn.Linear(3, 2).double()
    ema = EMA(net, (), start_nimg=0, batch_size=8, stds=(std,), every=every)
    gamma, kept = gamma_of(std), []
    for step in range(1, 41):
        with torch.no_grad():
            net.weight.add_(torch.randn(2, 3, generator=torch.Generator().manual_seed(step)))
        ema.update(8 * step)
        if step % every == 0:
            kept.append(net.weight.detach().clone())
    ends = torch.arange(len(kept) + 1, dtype=torch.float64) / len(kept)
    shares = (ends ** (gamma + 1)).diff()
    expected = sum(share * weights for share, weights in zip(shares, kept, strict=True))
    torch.testing.assert_close(ema.tensors(f"std-{std}")["weight"], expected, rtol=1e-9, atol=1e-9)
    assert power_decay(gamma, 8, 8) == 0


def test_a_mixture_of_snapshots_is_as_near_as_it_says():
    """The error that is told is the distance of the sum's profile, integrated; shares of both signs add up to one."""
    snapshots = [Profile(gamma_of(std), t) for t in range(1000, 16_001, 1000) for std in (0.05, 0.1)]
    wanted = Profile(gamma_of(0.08), 16_000)
    found = mixture(snapshots, wanted)
    s, width = midpoints(16_000)
    made = sum(share * density(each, s) for share, each in zip(found.shares, snapshots, strict=True))
    missed = (((made - density(wanted, s)) ** 2).sum() * width) ** 0.5
    assert found.error == pytest.approx(missed / overlap(wanted, wanted) ** 0.5, rel=0.05)
    assert found.error < 0.02
    assert sum(found.shares) == pytest.approx(1, abs=1e-3)
    own = mixture(snapshots, snapshots[-1])
    assert own.error < 1e-5
    assert own.shares[-1] == pytest.approx(1, abs=1e-4)


def test_every_k_steps_is_nearly_every_step():
    """k = 4 moves the averages a quarter as often: after hundreds of steps on weights that wander smoothly, they agree
    to 2 % of how far the weights have gone; k = 1 is the old update to the bit."""
    decays, stds, clock = (0.99, 0.999), (0.05, 0.1), {"start_nimg": 160, "batch_size": 16}
    net = torch.nn.Linear(4, 4)
    one = EMA(net, decays, stds=stds, **clock)
    four = EMA(net, decays, stds=stds, every=4, **clock)
    old = {decay: net.weight.detach().clone() for decay in decays}
    start = net.weight.detach().clone()
    generator, speed = torch.Generator().manual_seed(0), torch.zeros(4, 4)
    for step in range(1, 801):
        speed = 0.99 * speed + 0.01 * torch.randn(4, 4, generator=generator)
        with torch.no_grad():
            net.weight.add_(speed)
        one.update(16 * step)
        four.update(16 * step)
        for decay, average in old.items():
            since = max(16 * step - 160, 0) // 16
            torch._foreach_lerp_([average], [net.weight.detach()], 1 - min(decay, since / (since + 9)))  # pyright: ignore
    far = (net.weight - start).norm()
    for name in one.called:
        assert (one.tensors(name)["weight"] - four.tensors(name)["weight"]).norm() < 0.02 * far, name
    assert all(torch.equal(one.tensors(decay)["weight"], average) for decay, average in old.items())


def test_saved_and_resumed_between_two_updates(tmp_path):
    """Which steps move the averages depends on the clock alone."""
    source, config = waves(), replace(CONFIG, ema_every=4, ema_stds=(0.1, 0.2))
    whole, cut, resumed = (begin(source, config) for _ in range(3))
    go_on(whole, source, config)
    go_on(cut, source, config, until=96)
    cut.save(tmp_path)
    resumed.restore(tmp_path / "000000096")
    go_on(resumed, source, config)
    left, right = whole.tensors(), resumed.tensors()
    assert {"ema/std-0.1/head.linear.bias", "ema/std-0.2/head.linear.bias", "ema/0.9/head.linear.bias"} <= left.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)
    assert whole.ema.updated_nimg(160) == 128


RUN = [*TINY, "--training.duration-nimg", "6400", "--training.ema-stds", "0.05", "0.075", "0.1"]
RUN += [
    "--training.schedule",
    "constant",
    "--report.tick-nimg",
    "32",
    "--report.save-nimg",
    "3200",
    "--report.sample-nimg",
    "100000",
]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """200 steps with three averages and snapshots of them; those of the one in the middle are put aside."""
    folder = tmp_path_factory.mktemp("posthoc")
    with pytest.MonkeyPatch.context() as patch:
        assert (
            jit_here("train", "mnist-demo", *tiny_data(folder), *RUN, "--run", "r", cwd=folder, monkeypatch=patch) == 0
        )
    run, aside = folder / "r", folder / "aside"
    aside.mkdir()
    assert len(list((run / "snapshots").iterdir())) == 3 * 64
    for path in (run / "snapshots").glob("std-0.075@*"):
        path.rename(aside / path.name)
    return run


def weights(run: Path, name: str) -> dict[str, torch.Tensor]:
    return load_file(run / "weights" / name / "model.safetensors")


def distance(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """Relative, over all tensors."""
    assert a.keys() == b.keys()
    return (sum((a[n] - b[n]).norm() ** 2 for n in a) / sum(b[n].norm() ** 2 for n in b)) ** 0.5  # type: ignore[return-value]


def test_an_average_that_was_tracked_comes_out_of_the_snapshots(run, monkeypatch, capsys):
    """To 1e-3: those that the snapshots are of, and one in between whose own snapshots are put aside."""
    words = ["weights", "posthoc", "r", "--std", "0.05", "0.1", "0.075"]
    assert jit_here(*words, cwd=run.parent, monkeypatch=monkeypatch) == 0
    out = capsys.readouterr().out
    assert "weights/posthoc-0.050: std 0.05 at nimg = 6,400, of 128 snapshots" in out
    assert distance(weights(run, "posthoc-0.050"), weights(run, "ema-std-0.05")) < 1e-5
    assert distance(weights(run, "posthoc-0.100"), weights(run, "ema-std-0.1")) < 1e-5
    missed = distance(weights(run, "posthoc-0.075"), weights(run, "ema-std-0.075"))
    apart = distance(weights(run, "ema-std-0.05"), weights(run, "ema-std-0.1"))
    print(f"{missed:.2g} off, where the two others are {apart:.2g} apart")
    assert missed < 1e-3
    assert missed < 0.01 * apart  # much nearer than either of them
    said = json.loads((run / "weights" / "posthoc-0.100" / "config.json").read_text())["training"]
    assert (said["nimg"], said["weights"], said["std"]) == (6400, "posthoc-0.100", 0.1)
    words = ["sample", "r", "--weights", "posthoc-0.100", "--count", "1", "--steps", "1", "--device", "cpu"]
    assert jit_here(*words, "--classes", "0", cwd=run.parent, monkeypatch=monkeypatch) == 0


def test_at_an_earlier_time_and_what_is_refused(run, monkeypatch, capsys):
    def posthoc(*words: str) -> tuple[int, str]:
        code = jit_here("weights", "posthoc", *words, cwd=run.parent, monkeypatch=monkeypatch)
        return code, "".join(capsys.readouterr())

    code, out = posthoc("r", "--std", "0.08", "--nimg", "3200")
    assert code == 0, out
    assert (run / "weights" / "posthoc-0.080@000003200" / "model.safetensors").is_file()
    for words, message in [
        (["r", "--std", "0.08", "--nimg", "3210"], "no snapshot at nimg = 3210; the nearest one is at 3200"),
        (["r", "--std", "0.4"], "std of an average is 0.4"),
        (["r"], "give --std"),
        (["aside", "--std", "0.1"], "aside is not a run"),
    ]:
        code, out = posthoc(*words)
        assert (code, message in out) == (2, True), out


def test_a_run_without_snapshots_says_how_to_get_them(tmp_path):
    from justimage.runs.snapshots import reconstruct

    with pytest.raises(ValueError, match=r"has no snapshots; a run that is trained with --training.ema-stds 0.05 0.1"):
        reconstruct(tmp_path, 0.1)


def test_ema_pytorch_reconstructs_the_same(tmp_path):
    """The same weights seen by ema-pytorch's PostHocEMA and by ours: shares to 1e-6, averages to 1 % of what they move.

    The running averages differ by one step in their clock: its first update counts as the second. That is 1 % here, and
    less the longer one trains.
    """
    ema_pytorch = pytest.importorskip("ema_pytorch")
    from ema_pytorch.post_hoc_ema import (  # pyright: ignore[reportMissingImports]
        sigma_rel_to_gamma,
        solve_weights,
    )

    stds, wanted, steps, between = (0.05, 0.1), 0.08, 1600, 50
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 2))
    theirs = ema_pytorch.PostHocEMA(
        net,
        sigma_rels=stds,
        update_every=1,
        checkpoint_every_num_steps=between,
        checkpoint_folder=str(tmp_path / "theirs"),
        checkpoint_dtype=torch.float32,
    )
    ours = EMA(net, (), start_nimg=0, batch_size=1, stds=(*stds, wanted))
    start = torch.cat([p.detach().flatten().clone() for p in net.parameters()])
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    snapshots: dict[Profile, dict[str, torch.Tensor]] = {}
    for step in range(1, steps + 1):
        x = torch.randn(16, 4)
        ((net(x) - x[:, :2].sin()) ** 2).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        ours.update(step)
        theirs.update()
        if step % between == 0:
            for std in stds:
                snapshots[Profile(gamma_of(std), step)] = {
                    name: t.clone() for name, t in ours.trained(f"std-{std}").items()
                }
    assert gamma_of(wanted) == pytest.approx(sigma_rel_to_gamma(wanted), rel=1e-9)
    found = mixture(list(snapshots), Profile(gamma_of(wanted), steps))
    gammas, times = (torch.tensor([getattr(each, part) for each in snapshots]) for part in ("gamma", "nimg"))
    shares = solve_weights(times, gammas.double(), torch.tensor([steps]), torch.tensor([gamma_of(wanted)]).double())
    np.testing.assert_allclose(found.shares, shares.flatten().numpy(), atol=1e-6)

    def flat(tensors) -> torch.Tensor:
        return torch.cat([each.detach().flatten() for each in tensors])

    made = sum(share * flat(each.values()) for share, each in zip(found.shares, snapshots.values(), strict=True))
    assert isinstance(made, torch.Tensor)
    tracked = flat(ours.trained(f"std-{wanted}").values())
    far = (tracked - start).norm()
    assert (made - tracked).norm() < 1e-3 * far
    assert (made - flat(theirs.synthesize_ema_model(sigma_rel=wanted).ema_model.parameters())).norm() < 0.01 * far
