"""Training: that it learns, that a run is one run however it is cut or shared out, and how it stops."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import small_config
from safetensors.torch import load_file, save_file

from justimage.data.arrays import Arrays
from justimage.data.loader import order
from justimage.denoiser import Denoiser
from justimage.execution import autocast
from justimage.networks.jit import JiT
from justimage.parallel import Processes
from justimage.process import SPACES, Prediction, denoising_loss, diffuse
from justimage.randomness import Purpose, normals, training_noise, uniforms
from justimage.runs.preview import preview
from justimage.runs.saving import save_all
from justimage.samplers import Sampling
from justimage.training.build import build
from justimage.training.ema import EMA, effective_decay
from justimage.training.loop import NonFiniteLoss, train
from justimage.training.loss import Losses, flow_matching
from justimage.training.optim import learning_rate
from justimage.training.settings import Training
from justimage.training.state import NotFinite, TrainingState, saved_states
from justimage.weights.description import describe, restore_model

CPU = torch.device("cpu")
ALONE = Processes(device=CPU)
CONFIG = Training(
    duration_nimg=160,
    batch_size=16,
    lr=2e-3,
    ema_decays=(0.9, 0.99),
    clip_norm=1.0,
    seed=3,
    ema_start_nimg=32,
    precision="float32",  # what is promised to rounding is promised of it, and bfloat16 is the default of some CPUs
)


def waves(size=(8, 8), channels=2, count=64, seed=0) -> Arrays:
    """Two classes of smooth fields: cosines along the last axis, one or two periods."""
    g = np.random.default_rng(seed)
    label = np.arange(count) % 2
    along = np.linspace(0, 2 * np.pi, size[-1], endpoint=False)
    phase = g.uniform(0, 2 * np.pi, (count, channels))
    values = np.cos(along * (1 + label)[:, None, None] + phase[..., None])
    x = np.broadcast_to(values.reshape(count, channels, *[1] * (len(size) - 1), size[-1]), (count, channels, *size))
    return Arrays(np.ascontiguousarray(x, dtype=np.float32), label)


def begin(source: Arrays, config: Training = CONFIG, processes: Processes = ALONE, **network) -> TrainingState:
    net = JiT(small_config(source.spec.size, channels=len(source.spec.channels), num_classes=2, **network))
    return build(Denoiser(net, spec=source.spec), config, processes)


def go_on(state: TrainingState, source: Arrays, config: Training = CONFIG, until: int | None = None, **kwargs):
    ticks = []
    for tick in train(state, source, flow_matching(state.model, config), config, tick_nimg=config.batch_size, **kwargs):
        ticks.append(tick)
        if until is not None and tick.nimg >= until:
            break
    return ticks


def equal(a: TrainingState, b: TrainingState) -> bool:
    left, right = a.tensors(), b.tensors()
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("size", [(16,), (8, 8), (4, 4, 8)])
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_resuming_is_the_same_run(tmp_path, size, dropout):
    """n + k steps equal n steps, a save, a restore in a new model, k steps: weights, averages and optimizer."""
    source, network = waves(size), {"dropout": dropout, "dropout_scores": dropout, "depth": 4}
    whole = begin(source, **network)
    go_on(whole, source)
    cut = begin(source, **network)
    go_on(cut, source, until=96)
    cut.save(tmp_path)
    resumed = begin(source, **network)
    resumed.restore(saved_states(tmp_path)[-1])
    assert resumed.nimg == 96
    go_on(resumed, source)
    assert equal(whole, resumed)
    tensors = whole.tensors()
    assert any("exp_avg_sq" in name for name in tensors)
    assert not torch.equal(tensors["ema/0.9/head.linear.weight"], tensors["net/head.linear.weight"])
    different = begin(source, replace(CONFIG, seed=4), **network)
    go_on(different, source, replace(CONFIG, seed=4))
    assert not equal(whole, different)


def test_workers_and_microbatches_change_nothing():
    source = waves()
    plain, threaded, micro = (begin(source) for _ in range(3))
    go_on(plain, source, workers=0)
    go_on(threaded, source, workers=3)
    config = replace(CONFIG, microbatch=5)
    go_on(micro, source, config)
    assert equal(plain, threaded)
    for name, tensor in plain.tensors().items():
        torch.testing.assert_close(micro.tensors()[name], tensor, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("channels", [1, 4])
def test_rectangles_train_and_sample(channels):
    """96 x 160 with 1 and 4 channels, flips on: the loss falls, and samples come back in raw units."""
    source = waves((96, 160), channels, count=16)
    config = replace(CONFIG, duration_nimg=160, batch_size=8)
    net = JiT(small_config((96, 160), patch=32, channels=channels, num_classes=2, width=64))
    state = build(Denoiser(net, spec=source.spec), config, ALONE)
    ticks = go_on(state, source, config)
    assert ticks[-1].loss < 0.8 * ticks[0].loss
    samples = state.model.sample([0, 1], [0, 1], steps=3)
    assert samples.shape == (2, channels, 96, 160)
    assert samples.isfinite().all()


@pytest.mark.parametrize("prediction", SPACES)
@pytest.mark.parametrize("measured", SPACES)
def test_all_nine_combinations_learn(prediction, measured):
    source = waves((8,))
    config = replace(CONFIG, duration_nimg=6400, batch_size=64, lr=4e-3, loss_space=measured)
    net = JiT(small_config((8,), channels=2, num_classes=2))
    state = build(Denoiser(net, space=prediction, spec=source.spec), config, ALONE)
    ticks = go_on(state, source, config)
    assert np.mean([tick.loss for tick in ticks[-10:]]) < 0.9 * np.mean([tick.loss for tick in ticks[:5]])


def test_it_learns_what_it_is_shown():
    """Classes are told apart: after a few seconds, samples of each class have its number of periods."""
    source = waves((16,), channels=1, count=256)
    config = Training(
        duration_nimg=40_000, batch_size=128, lr=3e-3, warmup_nimg=2_000, ema_decays=(0.99,), schedule="cosine"
    )
    net = JiT(small_config((16,), channels=1, num_classes=2, width=48))
    state = build(Denoiser(net, spec=source.spec, sampling=Sampling(20, "ab2", 1.5)), config, ALONE)
    for _ in train(state, source, flow_matching(state.model, config), config, tick_nimg=40_000):
        pass
    labels = [0, 1] * 32
    spectrum = torch.fft.rfft(state.model.sample(labels, range(64))[:, 0]).abs()
    periods = spectrum[:, 1:].argmax(1)
    assert (periods == torch.tensor(labels)).float().mean() >= 0.95


def test_states_are_ordered_by_number(tmp_path):
    state = begin(waves())
    for nimg in (999_999_000, 1_000_000_512):
        state.nimg = nimg
        state.save(tmp_path)
    assert [int(path.name) for path in saved_states(tmp_path)] == [999_999_000, 1_000_000_512]


def test_training_asks_whether_to_stop_and_whether_the_data_are_its_own():
    source, asked = waves(), []
    state = begin(source)
    loss = flow_matching(state.model, CONFIG)
    ticks = list(
        zip(
            train(state, source, loss, CONFIG, tick_nimg=10_000, stop=lambda: asked.append(1) or len(asked) > 2),
            range(1),
            strict=False,
        )
    )
    assert ticks[0][0].nimg == 48
    assert ticks[0][0].stopping
    with pytest.raises(ValueError, match="the model is for other data"):
        next(train(state, waves(seed=1), loss, CONFIG, tick_nimg=16))


def test_learning_rates():
    def at(nimg, schedule):
        return learning_rate(nimg, peak=1.0, warmup_nimg=100, duration_nimg=1100, schedule=schedule)

    assert [at(n, "constant") for n in (10, 100, 600, 1100)] == pytest.approx([0.1, 1, 1, 1])
    assert [at(n, "cosine") for n in (10, 100, 600, 1100)] == pytest.approx([0.1, 1, 0.5, 0])


def test_ema_is_the_average_it_says():
    net = torch.nn.Linear(2, 2)
    clock: dict[str, Any] = {"start_nimg": 100 * 16, "batch_size": 16}
    ema, expected = EMA(net, (0.5, 0.95), **clock), {}
    for decay in ema.decays:
        expected[decay] = net.weight.detach().clone()
    for update in range(95, 130):
        with torch.no_grad():
            net.weight.add_(torch.randn(2, 2))
        ema.update(16 * update)
        for decay, average in expected.items():
            d = effective_decay(decay, 16 * update, **clock)
            expected[decay] = d * average + (1 - d) * net.weight.detach()
    for decay in ema.decays:
        torch.testing.assert_close(ema.tensors(decay)["weight"], expected[decay])
    assert effective_decay(0.9999, 16, **clock) == effective_decay(0.9999, 1600, **clock) == 0
    assert effective_decay(0.9999, 1600 + 9 * 16, **clock) == 0.5
    assert effective_decay(0.9999, 10**8, **clock) == 0.9999
    assert effective_decay(0.9999, 16, start_nimg=0, batch_size=16) == 0.9999  # the paper's
    with pytest.raises(ValueError, match="between 0 and 1"):
        EMA(net, (1.0,), **clock)


def test_only_what_requires_gradients_is_trained_and_averaged():
    source = waves()
    net = JiT(small_config((8, 8), num_classes=2))
    net.initialise(torch.Generator().manual_seed(0))
    net.embedding.requires_grad_(False)
    before = {name: p.clone() for name, p in net.named_parameters()}
    state = build(Denoiser(net, spec=source.spec), CONFIG, ALONE, adopt=True)
    go_on(state, source)
    frozen = {name for name, p in net.named_parameters() if not p.requires_grad}
    assert frozen == {name for name, p in net.named_parameters() if torch.equal(p, before[name])} != set()
    assert not any("embedding" in name for name in state.tensors() if not name.startswith("net/"))
    assert state.ema.tensors(0.9).keys() == net.state_dict().keys()


def test_building_draws_weights_from_the_seed_or_adopts_them():
    source = waves()
    with torch.device("meta"):
        empty = JiT(small_config((8, 8), num_classes=2))
    here = JiT(small_config((8, 8), num_classes=2))
    a, b = (build(Denoiser(net, spec=source.spec), CONFIG, ALONE).model.net for net in (empty, here))
    assert all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))
    trained = Denoiser(here, spec=source.spec, training={"nimg": 7})
    with pytest.raises(ValueError, match="adopt=True"):
        build(trained, CONFIG, ALONE)
    with torch.no_grad():
        here.head.linear.weight.fill_(0.5)
    build(trained, CONFIG, ALONE, adopt=True)
    assert (here.head.linear.weight == 0.5).all()


def test_what_initialise_leaves_out_is_found():
    class Forgetful(JiT):
        def initialise(self, generator=None):
            torch.nn.init.zeros_(self.positions)

    with torch.device("meta"):
        net = Forgetful(small_config((8, 8), num_classes=2))
    with pytest.raises(ValueError, match="initialise leaves"):
        build(Denoiser(net, spec=waves().spec), CONFIG, ALONE)


def test_terms_of_a_loss_are_logged():
    source = waves()
    state = begin(source)
    inner = flow_matching(state.model, CONFIG)

    def both(model, x, y, positions):
        total, terms = inner(model, x, y, positions)
        return Losses(total + 1, {**terms, "one": torch.ones_like(total)})

    tick = next(iter(train(state, source, both, CONFIG, tick_nimg=48)))
    assert tick.terms == pytest.approx({"v-loss": tick.loss - 1, "one": 1.0})


CLASSIFYING: dict[str, Any] = {"depth": 3, "context_start": 2, "classifier_after": 2}


def batch_of(source: Arrays, count: int = 16) -> tuple[torch.Tensor, dict[str, torch.Tensor], range]:
    """The first samples as model values, their labels, and positions in a run."""
    assert source.y is not None
    labels = torch.from_numpy(np.asarray(source.y[:count], dtype=np.int64))
    return source.spec.encode(torch.from_numpy(source.x[:count])), {"labels": labels}, range(32, 32 + count)


def test_without_a_classifier_the_loss_is_the_papers_alone():
    """To the bit: nothing is added to it, and no other draw is made."""
    source = waves()
    model = begin(source).model.train()
    x, y, positions = batch_of(source)
    total, terms = flow_matching(model, CONFIG)(model, x, y, positions)
    t = CONFIG.times.times(normals(CONFIG.seed, Purpose.TIME, positions))
    eps = training_noise(CONFIG.seed, positions, x.shape[1:], CPU)
    y = model.condition.drop(y, uniforms(CONFIG.seed, Purpose.DROP, positions), CONFIG.label_dropout)
    assert torch.equal(total, denoising_loss(model(diffuse(x, eps, t), t, y), x, eps))
    assert terms.keys() == {"v-loss"}


def test_the_classification_loss_is_the_weighted_cross_entropy_of_the_labels_before_any_is_dropped():
    source, config = waves(), replace(CONFIG, classification=0.25, label_dropout=0.9)
    model = begin(source, config, **CLASSIFYING).model.train()
    x, y, positions = batch_of(source)
    y["labels"][3] = model.null_label
    seen = []

    def predict(*inputs):
        seen.append((inputs[2]["labels"], model(*inputs)))
        return seen[-1][1]

    loss = flow_matching(model, config)
    total, terms = loss(predict, x, y, positions)  # type: ignore[arg-type]
    dropped, prediction = seen[0]
    assert (dropped == model.null_label).sum() > 8
    chances = prediction.beside["logits"].softmax(-1)
    real = y["labels"] != model.null_label
    expected = -chances[real, y["labels"][real]].log()
    torch.testing.assert_close(terms["cross-entropy"][real], expected, atol=1e-6, rtol=1e-5)
    assert (~real).nonzero().tolist() == [[3]]
    assert terms["cross-entropy"][3] == 0
    assert torch.equal(total, terms["v-loss"] + 0.25 * terms["cross-entropy"])
    model.eval()  # where there are no logits, the error is all
    total, terms = loss(model, x, y, positions)
    assert torch.equal(total, terms["v-loss"])


def test_a_classifier_learns_beside_the_denoising():
    source, other = waves(count=256), waves(count=64, seed=1)
    config = replace(CONFIG, duration_nimg=12_800, batch_size=64, lr=4e-3, classification=0.1)
    state = begin(source, config, **CLASSIFYING)
    ticks = go_on(state, source, config)
    first, last = ticks[:5], ticks[-10:]
    assert np.mean([tick.terms["v-loss"] for tick in last]) < 0.9 * np.mean([tick.terms["v-loss"] for tick in first])
    assert np.mean([tick.terms["cross-entropy"] for tick in last]) < 0.5 < np.log(2)
    x, y, _ = batch_of(other, 64)
    t = torch.full((64,), 0.6)
    with torch.no_grad():
        z = diffuse(x, training_noise(5, range(64), x.shape[1:], CPU), t)
        logits = state.model.train()(z, t, torch.full((64,), state.model.null_label)).beside["logits"]
    assert (logits.argmax(-1) == y["labels"]).float().mean() > 0.9


def test_at_a_weight_of_0_a_classifier_is_as_it_was_and_the_loss_too():
    """Its gradient is 0 and not absent: processes that share the network wait for it."""
    source = waves()
    state = begin(source, **CLASSIFYING)
    flow_matching(state.model, CONFIG)(state.model.train(), *batch_of(source)).total.sum().backward()
    assert all(p.grad is not None for p in state.model.net.parameters())
    state.optimizer.zero_grad()
    before = {name: p.clone() for name, p in state.model.net.named_parameters()}
    tick = go_on(state, source, until=48)[-1]
    assert tick.loss == tick.terms["v-loss"]
    still = {name for name, p in state.model.net.named_parameters() if torch.equal(p, before[name])}
    assert still == {"classifier.linear.weight", "classifier.linear.bias"}


def test_a_classification_loss_without_a_classifier_or_labels_is_refused_before_the_first_step():
    config, source = replace(CONFIG, classification=0.1), waves()
    model = begin(source).model
    with pytest.raises(ValueError, match=r"classification is 0.1, but the network has no classifier"):
        flow_matching(model, config)
    unconditional = Denoiser(JiT(small_config((8, 8), num_classes=0)))
    unconditional.net.beside = ("logits",)  # type: ignore[assignment]
    with pytest.raises(ValueError, match=r"classification is 0.1, but the model has no labels"):
        flow_matching(unconditional, config)


def test_sampling_and_then_training_in_one_process():
    """Nothing that sampling leaves behind (inference mode, other sizes) gets in the way of training."""
    source = waves()
    state = begin(source)
    with torch.inference_mode():
        state.model.sample([0], [0], steps=2, guidance=2.0)
        state.model.sample([0], [0], steps=2, size=(16, 8))
    reference = begin(source)
    assert [tick.loss for tick in go_on(state, source)] == [tick.loss for tick in go_on(reference, source)]


def held_out_loss(model: Denoiser, source: Arrays) -> float:
    """The v-loss on a fixed grid of times and noise, without dropping labels."""
    x = source.spec.encode(torch.from_numpy(source.x))
    assert source.y is not None
    losses = []
    with torch.no_grad():
        for i, t in enumerate(torch.linspace(0.05, 0.95, 7)):
            eps = training_noise(99, range(i * len(x), (i + 1) * len(x)), x.shape[1:], CPU)
            times = t.expand(len(x))
            prediction = model(diffuse(x, eps, times), times, torch.from_numpy(source.y))
            losses.append(denoising_loss(prediction, x, eps).mean())
    return float(torch.stack(losses).mean())


@pytest.mark.parametrize("lr", [3e-4, 3e-3])
def test_an_early_average_is_no_worse_than_the_weights(lr):
    """Held-out loss of every average against the raw weights, from the first steps on."""
    source, other = waves(count=512), waves(count=64, seed=1)
    config = Training(
        duration_nimg=32 * 1500,
        batch_size=32,
        lr=lr,
        warmup_nimg=32 * 20,
        ema_decays=(0.999, 0.9999),
        ema_start_nimg=32_000,
    )
    state = begin(source, config)
    compared = {}
    for tick in train(state, source, flow_matching(state.model, config), config, tick_nimg=32 * 50):
        if tick.nimg // 32 in (50, 100, 200, 400, 800, 1050, 1200, 1500):
            raw = held_out_loss(state.model, other)
            for decay in config.ema_decays:
                average = restore_model(describe(state.model), state.ema.tensors(decay))
                compared[tick.nimg // 32, decay] = held_out_loss(average, other) / raw
    print(compared)
    assert max(compared.values()) < 1.02


def test_a_gradient_that_is_not_finite_changes_no_weight_and_stops_where_none_may_be_skipped():
    source, config = waves(), replace(CONFIG, most_skipped=1)
    state, reference = begin(source), begin(source)
    go_on(reference, source, until=48)
    inner = flow_matching(state.model, CONFIG)

    def poisoned(model, x, y, positions):
        losses = inner(model, x, y, positions)
        return Losses(losses.total * float("nan"), {}) if 48 in positions else losses

    with pytest.raises(NonFiniteLoss, match="starts at nimg = 48") as stopped:
        for _ in train(state, source, poisoned, config, tick_nimg=64):
            pass
    assert list(stopped.value.indices) == list(order(CONFIG.seed, range(48, 64), len(source)))
    assert stopped.value.skipped == (48,)
    assert state.nimg == 64  # the clock and the averages go on
    assert all(p.grad is None for p in state.model.net.parameters())
    after, before = state.tensors(), reference.tensors()
    kept = [name for name in after if not name.startswith("ema/")]
    assert all(torch.equal(after[name], before[name]) for name in kept)


def test_the_fused_step_leaves_everything_as_it_is_on_request():
    """What accelerators rely on: found_inf = 1 skips the update without the host looking."""
    state = begin(waves())
    go_on(state, waves(), until=16)
    before = {name: tensor.clone() for name, tensor in state.tensors().items()}
    for parameter in state.model.net.parameters():
        parameter.grad = torch.full_like(parameter, float("nan"))
    state.optimizer.found_inf = torch.tensor(1.0)  # type: ignore[attr-defined]
    state.optimizer.step()
    after = state.tensors()
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_mixed_precision_trains():
    source = waves()
    config = replace(CONFIG, precision="bfloat16", duration_nimg=3200, batch_size=64)
    losses = [tick.loss for tick in go_on(begin(source, config), source, config)]
    assert np.mean(losses[-5:]) < 0.9 * np.mean(losses[:5])
    with autocast(CPU, torch.bfloat16):
        assert Prediction(torch.ones(1, 1, 2), torch.ones(1, 1, 2), torch.ones(1), "x").to("v").dtype == torch.float32


TWO_PROCESSES = """
import json, sys, torch
sys.path.insert(0, sys.argv[1])
torch.set_num_threads(1)
from dataclasses import replace
from safetensors.torch import save_file
from justimage.parallel import join, leave
from test_train import CONFIG, CPU, begin, go_on, waves
processes = join(CPU)
source = waves()
settings = json.loads(sys.argv[3])
config = replace(CONFIG, microbatch=4, **settings["training"])
state = begin(source, config, processes, **settings["network"])
go_on(state, source, config)
if processes.first:
    save_file({name: tensor.clone() for name, tensor in state.tensors().items()}, sys.argv[2])
leave(processes)
"""


@pytest.mark.parametrize(("network", "training"), [({}, {}), (CLASSIFYING, {"classification": 0.5})], ids=str)
def test_two_processes_are_one_run(tmp_path, network, training):
    """torchrun with two processes on the CPU gives the weights of one, to rounding."""
    (tmp_path / "two.py").write_text(TWO_PROCESSES)
    tests = str(Path(__file__).parent)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29611"]
    settings = json.dumps({"network": network, "training": training})
    command = [*torchrun, str(tmp_path / "two.py"), tests, str(tmp_path / "out"), settings]
    subprocess.run(command, check=True, timeout=300)
    config = replace(CONFIG, **training)
    alone = begin(waves(), config, **network)
    go_on(alone, waves(), config)
    together = load_file(tmp_path / "out")
    assert together.keys() == alone.tensors().keys()
    for name, tensor in alone.tensors().items():
        torch.testing.assert_close(together[name], tensor, atol=1e-5, rtol=1e-4)


ONE_FAILS = """
import sys, torch
sys.path.insert(0, sys.argv[1])
torch.set_num_threads(1)
from pathlib import Path
from dataclasses import replace
import justimage as ji
from justimage.data.loader import order
from justimage.data.spec import UnreadableSample
from justimage.parallel import join, leave
from justimage.runs.run import Failed, train_run
from conftest import small_config
from test_train import CONFIG, CPU, waves
source = waves()
bad = order(CONFIG.seed, range(40, 48), len(source))[3]  # in the second half of the third batch: process 1 reads it
class Damaged(ji.Source):
    indexed = True
    spec, describe, fingerprint = source.spec, source.describe, source.fingerprint
    def __len__(self):
        return len(source)
    def __getitem__(self, index):
        if index == bad:
            raise UnreadableSample("cat/7.png cannot be decoded: it breaks off")
        return source[index]
processes = join(CPU)
network = small_config((8, 8), num_classes=0)
report = ji.Report(tick_nimg=16, sample_nimg=10_000, save_nimg=10_000, preview_steps=1)
recipe = ji.Recipe(network, CONFIG, report=report)
try:
    train_run(recipe, Damaged(), Path(sys.argv[2]) / "run", processes=processes)
except Failed as failed:
    (Path(sys.argv[2]) / f"failed-{processes.rank}").write_text(str(failed))
finally:
    leave(processes)
"""


def test_one_process_that_cannot_read_stops_all_with_its_reason_and_a_saved_state(tmp_path):
    """The other process does not wait for gradients that never come; both name the file, and the first one saves."""
    (tmp_path / "one.py").write_text(ONE_FAILS)
    tests = str(Path(__file__).parent)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29612"]
    subprocess.run([*torchrun, str(tmp_path / "one.py"), tests, str(tmp_path)], check=True, timeout=120)
    for rank in (0, 1):
        text = (tmp_path / f"failed-{rank}").read_text()
        assert "cat/7.png cannot be decoded: it breaks off" in text
        assert "The state at nimg = 32 is saved" in text
    assert [int(path.name) for path in saved_states(tmp_path / "run" / "state")] == [32]


def test_previews_do_not_show_the_same_weights_twice():
    """While an average is the weights themselves, only these are drawn; afterwards both, with the classes named."""
    source = waves()
    model_state = begin(source)
    model_state.model.sampling = Sampling(2, guidance=2.0)
    go_on(model_state, source, until=32)
    early = preview(model_state, source.spec, 1, torch.float32)
    go_on(model_state, source, until=64)
    later = preview(model_state, source.spec, 1, torch.float32)
    assert early is not None and later is not None
    assert later.height > 1.7 * early.height


def saved_state(folder: Path) -> tuple[Arrays, Path]:
    source = waves()
    state = begin(source)
    go_on(state, source, until=32)
    state.save(folder)
    return source, saved_states(folder)[-1]


def change_tensors(place: Path, change) -> None:
    tensors = load_file(place / "state.safetensors")
    change(tensors)
    save_file(tensors, place / "state.safetensors")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: [t.pop(name) for name in list(t) if name.startswith("optimizer/")],
            "its optimizer lacks optimizer/",
        ),
        (lambda t: t.pop("optimizer/exp_avg/head.linear.bias"), "lacks optimizer/exp_avg/head.linear.bias"),
        (
            lambda t: [t.pop(f"optimizer/{k}/head.linear.bias") for k in ("step", "exp_avg", "exp_avg_sq")],
            "and 2 more differ",
        ),
        (lambda t: t.update({"optimizer/step/nowhere": torch.zeros(())}), "has optimizer/step/nowhere"),
        (
            lambda t: t.update({"optimizer/exp_avg/head.linear.bias": torch.zeros(1)}),
            r"exp_avg/head.linear.bias is \(1,\)",
        ),
        (lambda t: t.update({"optimizer/step/head.linear.bias": torch.zeros(2)}), r"step/head.linear.bias is \(2,\)"),
        (
            lambda t: t["optimizer/step/head.linear.bias"].fill_(-1),
            "step/head.linear.bias holds numbers that no training",
        ),
        (lambda t: t["optimizer/exp_avg_sq/head.linear.bias"].fill_(-1), "exp_avg_sq/head.linear.bias holds numbers"),
        (lambda t: t["optimizer/exp_avg/head.linear.bias"].fill_(torch.nan), "exp_avg/head.linear.bias holds numbers"),
        (lambda t: t["net/head.linear.bias"].fill_(torch.inf), "net/head.linear.bias holds numbers"),
        (lambda t: t["ema/0.9/head.linear.bias"].fill_(torch.nan), "ema/0.9/head.linear.bias holds numbers"),
        (lambda t: t.update({"net/head.linear.bias": torch.zeros(1)}), r"net/head.linear.bias is \(1,\)"),
        (lambda t: t.update({"ema/0.9/head.linear.bias": torch.zeros(1)}), r"ema/0.9/head.linear.bias is \(1,\)"),
        (
            lambda t: t.update({"net/head.linear.bias": t["net/head.linear.bias"].long()}),
            "torch.int64, not .* torch.float32",
        ),
    ],
)
def test_a_state_that_no_training_leaves_is_refused_and_changes_nothing(tmp_path, change, message):
    source, place = saved_state(tmp_path)
    change_tensors(place, change)
    state, untouched = begin(source), begin(source)
    with pytest.raises(ValueError, match=message) as refused:
        state.restore(place)
    assert "remove this folder" in str(refused.value)
    assert state.nimg == 0
    assert equal(state, untouched)


def test_a_state_at_the_start_has_no_moments(tmp_path):
    source = waves()
    state = begin(source)
    state.save(tmp_path)
    begin(source).restore(saved_states(tmp_path)[-1])
    change_tensors(saved_states(tmp_path)[-1], lambda t: t.update({"optimizer/step/head.linear.bias": torch.zeros(())}))
    with pytest.raises(ValueError, match=r"at nimg = 0 its optimizer has optimizer/step/head.linear.bias"):
        begin(source).restore(saved_states(tmp_path)[-1])


@pytest.mark.parametrize("part", ["net", "ema/0.9", "optimizer/exp_avg_sq"])
def test_a_state_that_is_not_finite_is_never_saved(tmp_path, part):
    source = waves()
    state = begin(source)
    go_on(state, source, until=32)
    with torch.no_grad():
        state.tensors()[f"{part}/head.linear.bias"].view(-1)[-1] = torch.nan
    with pytest.raises(NotFinite, match=f"nimg = 32 has numbers that are not finite, in {part}/head.linear.bias"):
        save_all(state, tmp_path / "run", "waves", 2)
    assert not (tmp_path / "run").exists()
    with pytest.raises(NotFinite):
        state.save(tmp_path / "state")
    assert not (tmp_path / "state").exists()


UNFINISHED = """
import sys
sys.path.insert(0, {tests!r})
import torch, numpy as np, justimage as ji
from conftest import small_net
from justimage.parallel import Processes
from justimage.training.build import build
from justimage.training.loop import train
from justimage.training.loss import flow_matching

x = np.zeros((64, 2, 8, 8), np.float32) + np.arange(64, dtype=np.float32)[:, None, None, None]
source = ji.Arrays(x, np.arange(64) % 3, classes=["a", "b", "c"])
config = ji.Training(batch_size=8, duration_nimg=800, precision="float32")
state = build(ji.Denoiser(small_net(), spec=source.spec), config, Processes(device=torch.device("cpu")))
ticks = train(state, source, flow_matching(state.model, config), config, tick_nimg=8)
print(next(ticks).nimg)
"""


def test_a_training_that_is_left_unfinished_ends_in_silence():
    code = UNFINISHED.format(tests=str(Path(__file__).parent))
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert (child.stdout, "ignored" in child.stderr, "Traceback" in child.stderr) == ("8\n", False, False)
