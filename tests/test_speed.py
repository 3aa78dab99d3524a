"""What is fast computes the same: precision by measurement, the plain version, and nothing that makes a device wait."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import jit_here, script, small_net
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

import justimage as ji
from justimage import execution, precision
from justimage.data.loader import Batch, batches
from justimage.execution import blocks_of
from justimage.networks.conditions import Part
from justimage.networks.dit import DiT, DiTConfig
from justimage.networks.dropout import Dropout
from justimage.networks.layers import FEW_TOKENS, Attention, RMSNorm, SwiGLU, attend
from justimage.networks.mlp import MLPConfig, ToyMLP
from justimage.parallel import Processes
from justimage.precision import fast_dtype, judged, probe
from justimage.process import denoising_loss, diffuse
from justimage.runs.recipes import RECIPES
from justimage.samplers import PRESETS, Sampling, guided, with_settings
from justimage.sampling.draw import draw
from justimage.sampling.parts import samples_at_once
from justimage.speed.bench import fitting_batch, in_memory, made_up, sampling_rows, training_rows
from justimage.speed.clock import Clock, forget_peak, peak_memory
from justimage.speed.plain import plain, sample_plainly, training_step
from justimage.timing import timed
from justimage.training.adapters import LoRA, add_adapters
from justimage.training.build import build
from justimage.training.loop import train
from justimage.training.loss import flow_matching
from justimage.training.masks import keyed_dropouts
from justimage.training.state import TrainingState
from justimage.training.work import Held, counts_of
from justimage.weights import load as load_module
from justimage.weights import pieces
from justimage.weights.int8 import Int8Linear, rounded
from justimage.weights.load import compile_for, load, prepare, swap_weights
from justimage.weights.pieces import PIECE, linear_in_pieces, swiglu_in_pieces

CPU = torch.device("cpu")
ROOT = Path(__file__).resolve().parents[1]
TINY = replace(
    RECIPES["mnist-demo"],
    network=ji.JiTConfig(
        (8, 8), (4, 4), channels=1, num_classes=0, width=32, depth=3, heads=2, bottleneck=8, context_start=1
    ),
    training=replace(
        RECIPES["mnist-demo"].training, ema_decays=(0.9,), ema_start_nimg=0, batch_size=8, precision="float32"
    ),
)


def tiny_model() -> ji.Denoiser:
    """With weights that are drawn, and data with ten classes."""
    source = made_up(TINY)
    model = build(TINY.fitted_to(source.spec).model(source.spec), TINY.training, Processes(device=CPU)).model
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2, generator=torch.Generator().manual_seed(len(parameter)))
    return model


# Precision


@pytest.mark.parametrize(
    ("rates", "chosen"),
    [
        ({"float32": 1.0, "bfloat16": 6.0, "float16": 0.1, "int8": 9.0}, "bfloat16"),  # AMX
        ({"float32": 1.0, "bfloat16": 0.6, "float16": 1.3, "int8": 3.0}, "float32"),  # AVX-512 alone
        ({"float32": 1.0, "bfloat16": 1.49, "float16": 2.0, "int8": 2.0}, "float32"),
        ({"float32": 1.0, "bfloat16": None, "float16": 4.0, "int8": None}, "float32"),
        ({"float32": None, "bfloat16": None, "float16": None, "int8": None}, "float32"),
    ],
)
def test_the_precision_is_the_one_that_pays_and_is_safe(rates, chosen):
    found = judged(rates)
    assert [each.precision for each in found if each.chosen] == [chosen]
    assert [each.flops for each in found] == list(rates.values())
    assert all(each.why for each in found)


def test_a_machine_is_measured_once(cache, monkeypatch):
    calls = []

    def measure(device: torch.device) -> dict[str, float | None]:
        calls.append(device)
        return {"float32": 1.0, "bfloat16": 7.0, "float16": None, "int8": None}

    monkeypatch.setattr(precision, "measure", measure)
    monkeypatch.setattr(torch, "__version__", "0.0.test")
    assert fast_dtype(CPU) == fast_dtype(CPU) == torch.bfloat16
    assert len(calls) == 1
    monkeypatch.setattr(torch, "__version__", "0.1.test")  # another torch may be another story
    fast_dtype(CPU)
    assert len(calls) == 2


def test_this_machine_is_measured():
    rates = {each.precision: each.flops for each in probe(CPU)}
    assert list(rates) == ["float32", "bfloat16", "float16", "int8"]
    assert rates["float32"] is not None
    assert 1e8 < rates["float32"] < 1e15


@pytest.mark.parametrize("shape", [(300, 16, 2 * PIECE + 37), (2, 70, 8, 1700), (128, 8, 5 * PIECE)])
def test_a_product_in_pieces_is_the_product(shape):
    *rows, inner, outer = shape
    linear, x = torch.nn.Linear(inner, outer), torch.randn(*rows, inner)
    with torch.no_grad():
        found = linear_in_pieces(linear, x)
        torch.testing.assert_close(found, linear(x), rtol=1e-5, atol=1e-5)
        assert linear_in_pieces(linear, x[0].flatten()[:inner]).shape == (outer,)
        with torch.autocast("cpu", torch.bfloat16):
            assert linear_in_pieces(linear, x).equal(linear(x))
    assert found.shape == (*rows, outer)
    assert found.is_contiguous()
    linear_in_pieces(linear, x).sum().backward()  # gradients flow as ever
    assert linear.weight.grad is not None
    torch.testing.assert_close(linear.weight.grad, x.flatten(0, -2).sum(0).expand_as(linear.weight))


@pytest.mark.parametrize("hidden", [96, 3 * PIECE // 2, 3 * PIECE + 50])
def test_a_feed_forward_layer_in_pieces_is_the_layer(hidden):
    layer, x = SwiGLU(16, hidden, dropout=0.5), torch.randn(2, 70, 16)
    assert not swiglu_in_pieces(layer.train(), x).equal(layer(x))  # it drops as ever
    layer.eval()
    with torch.no_grad():
        torch.testing.assert_close(swiglu_in_pieces(layer, x), layer(x), rtol=1e-5, atol=1e-5)
    swiglu_in_pieces(layer, x).sum().backward()
    assert layer.up.weight.grad is not None


@pytest.fixture
def small_pieces(cache, monkeypatch):
    """Layers of small networks are wide, and pieces pay."""
    for name, value in {"PIECE": 30, "WIDE": 60, "FEW_ROWS": 1, "TRIED": (8, 8, 8), "ROUNDS": 1, "WORTH": 0.0}.items():
        monkeypatch.setattr(pieces, name, value)


def otherwise(net: torch.nn.Module) -> set[torch.nn.Module]:
    """Modules that are not run as they were written."""
    return {each for each in net.modules() if "forward" in vars(each)}


@pytest.mark.parametrize("pays", [True, False])
@pytest.mark.parametrize("swiglu", [True, False])
def test_wide_layers_are_run_in_pieces_where_that_is_faster(pays, swiglu, small_pieces, monkeypatch):
    if not pays:
        monkeypatch.setattr(pieces, "WORTH", torch.inf)
    net = small_net(swiglu=swiglu)
    z, t, y = torch.randn(2, net.config.channels, 8, 8), torch.rand(2), torch.tensor([0, 1])
    with torch.no_grad():
        before = net(z, t, y)
        random = torch.get_rng_state()
        prepare(ji.Denoiser(net), device="cpu", dtype=torch.float32)
        assert torch.get_rng_state().equal(random)
        layers = [each for each in net.modules() if isinstance(each, SwiGLU)]
        wide = [each for each in net.modules() if isinstance(each, torch.nn.Linear) and each.out_features >= 60]
        expected = {*layers, *wide} - {layer.up for layer in layers}
        assert otherwise(net) == (expected if pays else set())
        assert bool(layers) == swiglu and wide
        torch.testing.assert_close(net(z, t, y), before, rtol=1e-5, atol=1e-6)
        with torch.autocast("cpu", torch.bfloat16):
            torch.testing.assert_close(net(z, t, y).float(), before, rtol=0.1, atol=0.1)


def test_layers_that_are_not_the_librarys_or_have_changed_are_run_as_they_are(small_pieces):
    class Own(SwiGLU):
        def forward(self, x: Tensor) -> Tensor:
            return x

    class OwnNetwork(ji.JiT):
        pass

    ways: list[tuple[torch.nn.Module, dict[str, Any]]] = [
        (small_net(), {"dtype": torch.bfloat16}),
        (small_net(), {"dtype": torch.float32, "compile": False}),  # the reference
        (OwnNetwork(small_net().config), {"dtype": torch.float32}),
    ]
    for each, how in ways:
        assert not otherwise(prepare(ji.Denoiser(each), device="cpu", **how))
    net, x = small_net(), torch.randn(2, 4, 32)
    layers = [each for each in net.modules() if isinstance(each, SwiGLU)]
    layers[1].up.register_parameter("bias", None)
    layers.append(Own(32, 96, dropout=0.0))
    net.extra = layers[-1]
    prepare(ji.Denoiser(net), device="cpu", dtype=torch.float32)
    assert [layer in otherwise(net) for layer in layers] == [True, False, False]
    layer = layers[0]
    with torch.no_grad():
        before = layer(x)
        add_adapters(net, LoRA(rank=2, parts=("mlp.up",)), seed=0)
        layer.up.get_parameter("lora_up").add_(1.0)
        assert not layer(x).equal(before)
    net, seen = small_net(), []
    prepare(ji.Denoiser(net), device="cpu", dtype=torch.float32)
    watched = next(each for each in net.modules() if isinstance(each, SwiGLU))
    watched.up.register_forward_hook(lambda module, inputs, out: seen.append(out.shape[-1]))
    with torch.no_grad():
        watched(x)
    assert watched in otherwise(net) and seen == [watched.up.out_features]
    net = small_net()
    for dtype in (torch.float32, torch.int8):
        model = prepare(ji.Denoiser(net), device="cpu", dtype=dtype)
    assert model(torch.randn(2, net.config.channels, 8, 8), torch.rand(2), torch.tensor([0, 1])).value.isfinite().all()
    assert pieces.pieces_gain(torch.device("meta")) == 1.0


# Written out, since it is faster


@sdpa_kernel(SDPBackend.MATH)
def test_torch_func_sees_through_a_network_and_what_autograd_cannot_find_is_refused():
    net = small_net()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    t, y = torch.tensor([0.3, 0.6]), torch.tensor([0, 1])
    z, along = torch.randn(2, 2, net.config.channels, *net.config.size)
    far = 1e-2
    found = torch.func.jvp(lambda z: net(z, t, y), (z,), (along,))[1]
    straight = (net(z + far * along, t, y) - net(z - far * along, t, y)) / (2 * far)
    torch.testing.assert_close(found, straight, rtol=1e-2, atol=1e-3)
    gradient = torch.func.grad(lambda z: net(z, t, y).square().sum())(z)
    leaf = z.clone().requires_grad_()
    net(leaf, t, y).square().sum().backward()
    torch.testing.assert_close(gradient, leaf.grad)
    with pytest.raises(RuntimeError, match=r"use torch\.func"):
        torch.autograd.functional.jvp(lambda z: net(z, t, y), (z,), (along,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(3, 5, 64), (2, 3, 4, 8), (7, 16)])
def test_the_backward_pass_of_rms_norm_is_that_of_autograd(dtype, shape):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator).to(dtype).requires_grad_()
    norm = RMSNorm(shape[-1])
    torch.nn.init.normal_(norm.weight, generator=generator)
    y = x.float()
    expected = (y * torch.rsqrt(y.square().mean(-1, keepdim=True) + norm.eps) * norm.weight).to(dtype)
    found = norm(x)
    assert torch.equal(found, expected)
    assert found.dtype == dtype
    gradient = torch.randn(shape, generator=generator).to(dtype)
    ours = torch.autograd.grad(found, (x, norm.weight), gradient)
    theirs = torch.autograd.grad(expected, (x, norm.weight), gradient)
    rounding = 2**-7 if dtype == torch.bfloat16 else 1e-5
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=rounding, atol=rounding)
    with torch.no_grad():
        assert torch.equal(norm(x), expected)
    with pytest.raises(RuntimeError, match=r"use torch\.func"):  # said, not silently wrong
        torch.autograd.grad(norm(x), x, gradient, create_graph=True)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("tokens", [6, FEW_TOKENS + 1])
def test_attention_in_bfloat16_is_that_of_float32_to_rounding(masked, tokens):
    """With gradients, where short sequences are written out on CPUs, and without."""
    generator = torch.Generator().manual_seed(0)
    q, k, v, gradient = (torch.randn(2, 3, tokens, 16, generator=generator) for _ in range(4))
    mask = (torch.arange(tokens) < tokens - 2).expand(2, 1, 1, tokens) if masked else None

    def both(dtype: torch.dtype) -> tuple[Tensor, ...]:
        a, b, c = (each.to(dtype).requires_grad_() for each in (q, k, v))
        out = attend(a, b, c, mask)
        return out, *torch.autograd.grad(out, (a, b, c), gradient.to(dtype))

    for half, full in zip(both(torch.bfloat16), both(torch.float32), strict=True):
        assert half.dtype == torch.bfloat16
        assert (half.float() - full).norm() < 0.02 * full.norm()
    with torch.no_grad():
        out = attend(q.bfloat16(), k.bfloat16(), v.bfloat16(), mask)
    assert (out.float() - both(torch.float32)[0]).norm() < 0.02 * out.float().norm()


def test_dropped_probabilities_keep_their_mean():
    q, k, v = (torch.randn(1, 1, 8, 16, generator=torch.Generator().manual_seed(0)).bfloat16() for _ in range(3))
    ones = torch.ones_like(v).requires_grad_()
    torch.manual_seed(0)
    mean = torch.stack([attend(q, k, ones, None, Dropout(0.5)) for _ in range(400)]).float().mean()
    assert mean.item() == pytest.approx(1, abs=0.05)


# The plain version


def test_plain_is_the_same_network():
    model = tiny_model()
    other = plain(model)
    assert any(module.forward.__func__ is not Attention.forward for module in other.modules() if hasattr(module, "qkv"))
    z, t, y = torch.randn(3, 1, 8, 8), torch.rand(3), {"labels": torch.tensor([1, 4, 10])}
    with torch.no_grad():
        torch.testing.assert_close(other(z, t, y).value, model.eval()(z, t, y).value, atol=1e-5, rtol=1e-5)
        noise = torch.randn(3, 1, 8, 8)
        settings = with_settings(Sampling(guidance=2.0), PRESETS["paper"])
        expected = draw(model, y, noise, replace(settings, steps=6))
        torch.testing.assert_close(
            sample_plainly(other, y, noise, replace(settings, steps=6)), expected, atol=1e-4, rtol=1e-4
        )


def test_without_a_condition_the_plain_network_makes_no_second_pass():
    """As where a model is conditioned on more than labels, and drawn without any."""
    model, calls = tiny_model(), []
    handle = model.net.register_forward_hook(lambda *_: calls.append(1))
    sample_plainly(model, None, torch.randn(1, 1, 8, 8), Sampling(steps=3, guidance=1.0))
    handle.remove()
    assert len(calls) == Sampling(steps=3, guidance=1.0).evaluations()


def test_plain_training_takes_the_same_steps():
    source = made_up(TINY)
    recipe = TINY.fitted_to(source.spec)
    config = replace(recipe.training, duration_nimg=10_000, warmup_nimg=0, schedule="constant")
    state = build(recipe.model(source.spec), config, Processes(device=CPU))
    twin = build(recipe.model(source.spec), config, Processes(device=CPU)).model
    step = training_step(twin, config)
    read = batches(source, seed=config.seed, start=0, batch_size=8)
    ticks = train(state, source, flow_matching(state.model, config), config, tick_nimg=8)
    for _ in range(4):
        assert step(next(read)) == pytest.approx(next(ticks).loss, rel=1e-4)


# What is measured


def test_rows_are_timed_in_turn():
    order = []
    found = timed({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 3, CPU)
    assert "".join(order) == "ab" + 3 * "ab"  # once before anything counts
    assert all(0 <= each.fastest <= each.median <= each.slowest for each in found.values())


def test_a_clock_counts_parts():
    clock = Clock(CPU)
    for _ in range(2):
        with clock.part("a"):
            pass
    assert list(clock.seconds) == ["a"]
    assert clock.seconds["a"] >= 0


def test_batches_are_as_large_as_a_second_allows():
    assert fitting_batch(flop=1.0, peak=1e9, most=128) == 128
    assert fitting_batch(flop=1e9, peak=1e9, most=128) == 1
    assert fitting_batch(flop=1e9, peak=1e11, most=128) == 32
    assert fitting_batch(flop=1.0, peak=1e9, most=100) == 100  # a whole batch of the recipe, also where it is uneven


def test_two_trainings_are_to_fit():
    """A bench without a batch takes what fits beside the same network written plainly."""
    model, config = tiny_model(), TINY.training
    counts = counts_of(model, replace(config, precision="float32"), fused_attention=False)
    held = 2 * Held.of(model.net, config.averages).total
    assert in_memory(model, config, 64, 1e12) == 64
    assert in_memory(model, config, 64, held + counts.work(16).peak) == 16
    assert in_memory(model, config, 64, 0) == 1


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the system cannot forget a peak")
def test_a_peak_is_that_of_what_is_measured():
    much = torch.ones(2**26)  # 256 MB, which the C library gives back at once
    before = peak_memory(CPU)
    del much
    forget_peak(CPU)
    assert peak_memory(CPU) < before - 2**27


def test_shares_of_a_step_add_up():
    source = made_up(TINY)
    training = training_rows(TINY, source, 4, 2, CPU)
    assert sum(training["parts"].values()) == pytest.approx(1)
    assert {"attention", "feed-forward", "modulation", "optimizer", "averages", "noise and times"} <= set(
        training["parts"]
    )
    assert all(share > 0 for name, share in training["parts"].items() if name != "waiting on data")
    sampling = sampling_rows(tiny_model(), 2, 2, CPU, whole=False)
    assert sum(sampling["parts"].values()) == pytest.approx(1)
    by_name = {row["what"]: row for row in sampling["samples"]}
    assert by_name["paper"]["evaluations"] == 187
    assert by_name["paper, plainly"]["evaluations"] == 198
    seconds = {row["what"]: row["seconds"]["median"] for row in sampling["rows"]}
    added = 11 * seconds["evaluation"] + 88 * seconds["guided evaluation"]
    assert by_name["paper"]["seconds"]["median"] == pytest.approx(added)
    plainly = 99 * seconds["guided evaluation, plainly"]
    assert by_name["paper, plainly"]["seconds"]["median"] == pytest.approx(plainly)
    json.dumps([training, sampling])


def test_the_command_measures_recipes_and_weights(tmp_path, monkeypatch, capsys):
    tiny_model().save_pretrained(tmp_path / "weights")
    out = tmp_path / "bench.json"
    words = ("bench", "weights", "--rounds", "1", "--batch-size", "2", "--whole", "--out", str(out))
    assert jit_here(*words, cwd=tmp_path, monkeypatch=monkeypatch) == 0
    shown = capsys.readouterr().out
    assert "guided evaluation" in shown
    assert "times plain" in shown
    result = json.loads(out.read_text())
    assert result["sampling"]["samples"][0]["whole"]
    assert "training" not in result
    assert jit_here("bench", "--probe", cwd=tmp_path, monkeypatch=monkeypatch) == 0
    assert "default" in capsys.readouterr().out
    for words, message in (
        (("bench", "weights", "--data", "mnist"), "data are for recipes"),
        (("bench", "nowhere"), "does not exist"),
        (("bench", "--rounds", "0"), "at least 1"),
    ):
        assert jit_here(*words, cwd=tmp_path, monkeypatch=monkeypatch) == 2
        assert message in capsys.readouterr().err


# Nothing that makes a device wait, and nothing that breaks a graph


class NoHostSync(TorchDispatchMode):
    """Fails where a number is brought from a tensor to Python: on an accelerator, that waits for everything before."""

    LOOKS = ("_local_scalar_dense", "is_nonzero", "equal", "nonzero", "item")

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        of_the_grid = bool(args) and isinstance(args[0], Tensor) and args[0].dtype == torch.float64  # on the CPU
        assert of_the_grid or func.overloadpacket.__name__ not in self.LOOKS, f"{func} makes the host wait"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("look", [float, bool, lambda x: x.item(), lambda x: [1, 2][int(x)], lambda x: x.nonzero()])
def test_the_guard_sees_every_look(look):
    with pytest.raises(AssertionError, match="wait"), NoHostSync():
        look(torch.ones(()))


@pytest.mark.parametrize("clip", [0.0, 1.0])
def test_a_training_step_looks_at_no_number(clip, monkeypatch):
    """From the batch to the averages. The loop looks once a tick, and on CPUs, where it is free, at every loss."""
    source = made_up(TINY)
    recipe = TINY.fitted_to(source.spec)
    config = replace(recipe.training, clip_norm=clip, mirror="on")
    state = build(recipe.model(source.spec), config, Processes(device=CPU))
    loss = flow_matching(state.model, config)
    read = batches(source, seed=config.seed, start=0, batch_size=config.batch_size)
    from justimage.training import loop

    meter = loop._Meter(CPU)
    for name in ("cpu", "tolist"):
        monkeypatch.setattr(Tensor, name, lambda self, *_, name=name: pytest.fail(f"{name} makes the host wait"))
    for _ in range(2):  # moments are made in the first
        batch: Batch = next(read)
        with NoHostSync():
            norm, parts = loop.gradients(state, batch, loss, config, torch.float32, keyed_dropouts(state.model.net))
            bad = ~torch.isfinite(norm)
            meter.add(state.nimg, parts, norm, bad, config.clip_norm)
            loop._update(state, config, bad)
    assert state.nimg == 2 * config.batch_size


def test_sampling_looks_at_no_number():
    model = tiny_model().eval()
    y = {"labels": torch.tensor([1, 2])}
    with NoHostSync():
        draw(model, y, torch.randn(2, 1, 8, 8), Sampling(steps=4, guidance=2.0))


@pytest.mark.parametrize("hidden", [3 * 64 // 2, 100, 4096])
def test_padded_hidden_features_change_nothing(hidden):
    """Neither the output nor a gradient, nor what is saved."""
    torch.manual_seed(0)
    layer, x = SwiGLU(24, hidden, dropout=0.0), torch.randn(2, 5, 24, requires_grad=True)
    found: list[list[Tensor]] = []
    for forward in (layer.forward, layer._padded):
        y = forward(x)
        found.append([y, *torch.autograd.grad(y.square().sum(), [x, *layer.parameters()])])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)
    assert layer.out.weight.shape == (24, int(hidden * 2 / 3))
    assert (int(hidden * 2 / 3) + layer._odd) % 64 == 0


def test_rounding_is_to_the_nearest_level_of_each_row():
    rows = torch.randn(5, 40) * torch.logspace(-3, 3, 5)[:, None]
    rows[3] = 0.0
    whole, level = rounded(rows)
    assert whole.dtype == torch.int8 and int(whole.abs().max()) == 127
    assert bool(((whole * level - rows).abs() <= level / 2 * (1 + 1e-5)).all())
    assert not whole[3].any() and level[3] == 1


def test_a_linear_map_in_int8_is_that_of_the_rounded_numbers():
    linear, x = torch.nn.Linear(48, 32), torch.randn(2, 7, 48)
    weight, level = rounded(linear.weight.detach())
    tokens, size = rounded(x.flatten(0, 1))
    expected = (tokens * size) @ (weight * level).T + linear.bias
    torch.testing.assert_close(Int8Linear(linear)(x).flatten(0, 1), expected, rtol=1e-5, atol=1e-5)


def test_a_model_in_int8_draws_nearly_the_same_and_does_nothing_else(tmp_path):
    model = tiny_model().eval()
    model.save_pretrained(tmp_path / "weights")
    rough = load(tmp_path / "weights", dtype=torch.int8, device="cpu", compile=False)
    exact = load(tmp_path / "weights", dtype=torch.float32, device="cpu")
    assert execution.precision_of(rough.net) == "int8" and execution.precision_of(exact.net) == "float32"
    found, expected = (each.sample(labels=[1, 2], guidance=2.0, steps=4, raw=False) for each in (rough, exact))
    assert 0 < float((found - expected).norm() / expected.norm()) < 0.05
    layers: list[Any] = [next(blocks_of(each.net)) for each in (rough, exact)]
    assert [layer.mlp.as_written() for layer in layers] == [False, True]  # one in int8 has no widths to pad
    with pytest.raises(ValueError, match="lose precision"):
        rough.save_pretrained(tmp_path / "again")
    with pytest.raises(ValueError, match="int8 cannot take other weights"):
        swap_weights(rough, tmp_path / "weights")
    with pytest.raises(ValueError, match="no `blocks`"):
        prepare(ji.Denoiser(ToyMLP(MLPConfig())), device="cpu", dtype=torch.int8)


NETWORKS_TOLD = {
    "labels": {},
    "a classifier": {"classifier_after": 1},
    "a vector and planes": {"conditions": (Part("where", "vector", 3), Part("land", "planes", 1))},
    "no context tokens": {"context_tokens": 0},
}


@pytest.mark.parametrize("what", NETWORKS_TOLD)
@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_what_is_told_ahead_is_what_is_found_on_the_way(what, preset, guidance, monkeypatch):
    net = small_net(**NETWORKS_TOLD[what])
    model = ji.Denoiser(net).eval()
    y = {"labels": torch.tensor([1, 2, 0]), "where": torch.randn(3, 3), "land": torch.randn(3, 1, *net.config.size)}
    y = {name: each for name, each in y.items() if name in {need[0] for need in model.needs}}
    noise, asked = torch.randn(3, net.config.channels, *net.config.size), []
    net.time.register_forward_hook(lambda module, inputs, out: asked.extend([len(inputs[0])] * (len(out) > 0)))
    sampling = with_settings(Sampling(guidance=guidance), PRESETS[preset])
    found = draw(model, y, noise, sampling)
    assert asked == [3 * (1 if guidance == 1 else 2) * sampling.steps]  # the time embedding: once, for the whole grid
    monkeypatch.setattr("justimage.sampling.ahead.FEW", 0)
    torch.testing.assert_close(found, draw(model, y, noise, sampling), rtol=1e-4, atol=1e-5)
    assert len(asked) > sampling.steps


def test_a_table_larger_than_its_network_is_not_made(monkeypatch):
    """So many steps that it would take the memory of many networks: they are asked for one by one."""
    net, asked = small_net(), []
    net.time.register_forward_hook(lambda module, inputs, out: asked.append(len(out)))
    monkeypatch.setattr("justimage.sampling.ahead.MOST_NUMBERS", 10_000)
    noise, y = torch.randn(1, net.config.channels, *net.config.size), {"labels": torch.tensor([1])}
    for steps, most in ((4, 4), (1000, 1)):
        asked.clear()
        draw(ji.Denoiser(net).eval(), y, noise, Sampling(steps=steps, sampler="euler"))
        assert max(asked) == most


@pytest.mark.parametrize("what", NETWORKS_TOLD)
@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_large_batches_are_drawn_in_parts(what, guidance, monkeypatch):
    net = small_net(**NETWORKS_TOLD[what])
    model = ji.Denoiser(net).eval()
    y = {"labels": torch.arange(7) % 3, "where": torch.randn(7, 3), "land": torch.randn(7, 1, *net.config.size)}
    y = {name: each for name, each in y.items() if name in {need[0] for need in model.needs}}
    noise = torch.randn(7, net.config.channels, *net.config.size)
    sampling = Sampling(steps=3, guidance=guidance)
    whole, seen = draw(model, y, noise, sampling), []
    net.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    monkeypatch.setattr("justimage.sampling.parts.KEPT", 3 * 4 * net.largest(net.config.size))  # three samples' worth
    torch.testing.assert_close(draw(model, y, noise, sampling), whole, rtol=1e-5, atol=1e-6)
    assert set(seen) <= {1, 2} and 2 in seen  # a power of two, and what is left over
    unconditional = draw(model, None, noise, replace(sampling, guidance=1.0))
    monkeypatch.undo()
    torch.testing.assert_close(unconditional, draw(model, None, noise, replace(sampling, guidance=1.0)))


@pytest.mark.parametrize("y", [torch.tensor([1]), {"labels": torch.tensor([0, 1])}, torch.tensor(1)])
def test_conditions_are_for_each_sample(y):
    model = ji.Denoiser(small_net()).eval()
    with pytest.raises(ValueError, match="not a value for each of 3 samples"):
        draw(model, y, torch.randn(3, 3, 8, 8), Sampling(steps=1))


@pytest.mark.parametrize(
    "net",
    [
        small_net(),
        small_net(context_tokens=0),
        small_net(swiglu=False),
        small_net((8,), 2),
        DiT(DiTConfig((8, 8), (4, 4))),
    ],
    ids=["JiT", "no context tokens", "no SwiGLU", "a signal", "DiT"],
)
def test_networks_know_their_largest_tensor(net):
    found = []
    for map in (each for each in net.blocks.modules() if isinstance(each, torch.nn.Linear)):
        map.register_forward_hook(lambda module, inputs, out: found.append(out.numel() // 2 if out.ndim == 3 else 0))
    size = tuple(2 * length for length in net.config.size)
    for shape in (net.config.size, size):
        found.clear()
        with torch.no_grad():
            net(torch.randn(2, net.config.channels, *shape), torch.rand(2), torch.tensor([0, 1]))
        assert max(found) == net.largest(shape)


def test_only_cpus_and_networks_that_know_take_parts(monkeypatch):
    net, noise = small_net(), torch.randn(64, 3, 8, 8)
    monkeypatch.setattr("justimage.sampling.parts.KEPT", 0)
    assert samples_at_once(ji.Denoiser(net), noise) == 1  # one sample always goes
    assert samples_at_once(ji.Denoiser(net), noise.to("meta")) is None
    assert samples_at_once(ji.Denoiser(ToyMLP(MLPConfig())), noise) is None
    assert samples_at_once(lambda z, t, y: z, noise) is None
    monkeypatch.undo()
    full = samples_at_once(ji.Denoiser(net), noise)
    assert full and 4 * full * net.largest((8, 8)) < 2**25 <= 8 * full * net.largest((8, 8))
    monkeypatch.setattr(net, "largest", lambda size: 2**20)  # 32 MiB are too many for eight
    assert samples_at_once(ji.Denoiser(net), noise) == 4
    execution.cast_parameters(net, torch.bfloat16)
    assert samples_at_once(ji.Denoiser(net), noise) is None


def test_times_outside_of_the_grid_are_asked_for():
    model = ji.Denoiser(small_net()).eval()
    y, noise = {"labels": torch.tensor([1, 2])}, torch.randn(2, model.config.channels, *model.config.size)

    def midpoint(predict: Any, z: Tensor, t: Tensor, t_next: Tensor) -> Tensor:
        middle = (t + t_next) / 2
        return z + (t_next - t) * predict(z + (middle - t) * predict(z, t).to("v"), middle).to("v")

    found = draw(model, y, noise, Sampling(steps=4, guidance=2.0), step=midpoint)
    null = model.null(2, model.config.size, noise.device)
    asked = Sampling(steps=4).run(guided(model, y, null, 2.0, (0.1, 1.0)), noise, step=midpoint)
    torch.testing.assert_close(found, asked, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize(
    "changes", [{}, {"dropout": 0.1}, {"context_tokens": 0}, {"swiglu": False}, {"qk_norm": False}]
)
def test_blocks_are_one_graph(mode, changes):
    net = small_net(**changes)
    getattr(net, mode)()
    block, width = net.blocks[1], net.config.width
    assert net.rotations is not None
    x, c = torch.randn(2, len(net.rotations), width), torch.randn(2, width)
    torch._dynamo.reset()
    compiled = torch.compile(block, fullgraph=True, backend="eager")  # raises at the first break
    torch.manual_seed(0)
    found = compiled(x, c, net.rotations)
    torch.manual_seed(0)
    torch.testing.assert_close(found, block(x, c, net.rotations))


@pytest.mark.parametrize("loss_space", ["x", "eps", "v"])
def test_noising_and_loss_are_one_graph(loss_space):
    def step(x: Tensor, eps: Tensor, value: Tensor, t: Tensor) -> Tensor:
        z = diffuse(x, eps, t)
        return denoising_loss(ji.Prediction(value, z, t, "x"), x, eps, loss_space)

    torch._dynamo.reset()
    x, eps, value, t = torch.randn(3, 1, 4, 4), torch.randn(3, 1, 4, 4), torch.randn(3, 1, 4, 4), torch.rand(3)
    compiled = torch.compile(step, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x, eps, value, t), step(x, eps, value, t))


def test_compiling_pays_where_there_is_much_to_do(cache, monkeypatch):
    small = small_net()
    for works in (True, False):
        monkeypatch.setattr(execution, "compiler_works", lambda device, works=works: works)
        assert not execution.compiling_pays(small, CPU, torch.bfloat16)
        assert not execution.compiling_pays(small, CPU, torch.float32, lambda: 1e13)
        assert execution.compiling_pays(small, CPU, torch.float32, lambda: 1e15) == works


def test_drawing_compiles_large_networks_where_there_is_much_to_draw(cache, monkeypatch):
    monkeypatch.setattr(execution, "compiler_works", lambda device: True)
    monkeypatch.setattr(load_module, "LARGE", 0)
    monkeypatch.setattr(execution, "LARGE", 0)
    model = prepare(tiny_model(), device="cpu", dtype=torch.bfloat16)
    for evaluations, compiled in ((10, False), (10**9, True)):
        compile_for(model, evaluations)
        assert all((block._compiled_call_impl is not None) == compiled for block in blocks_of(model.net))
    exact = prepare(tiny_model(), device="cpu", dtype=torch.float32)
    compile_for(exact, 10**9)  # fusing gains nothing there
    assert all(block._compiled_call_impl is None for block in blocks_of(exact.net))


def test_without_a_compiler_nothing_is_compiled(cache, monkeypatch):
    """Found out once, and training goes on as it is."""
    tried = []

    def compiler(function: Any) -> Any:
        tried.append(function)
        raise RuntimeError("no working C++ compiler")

    monkeypatch.setattr(torch, "compile", compiler)
    monkeypatch.setattr(torch, "__version__", "0.2.test")
    assert [execution.compiler_works(CPU) for _ in range(2)] == [False, False]
    assert len(tried) == 1
    monkeypatch.setattr(execution, "LONG", 0.0)  # multiply-adds
    source = made_up(TINY)
    config = TINY.training
    model = build(TINY.fitted_to(source.spec).model(source.spec), config, Processes(device=CPU)).model
    assert all(block._compiled_call_impl is None for block in blocks_of(model.net))


@pytest.mark.slow
def test_compiled_training_resumes_to_the_bit(tmp_path):
    """As a long run on a CPU is; and what it learns is what it learns otherwise, to rounding."""
    source = made_up(TINY)
    recipe = TINY.fitted_to(source.spec)

    def trained(nimg: int, compiled: bool, resumed: bool = False) -> TrainingState:
        torch._dynamo.reset()  # as another process would begin
        config = replace(recipe.training, compile=compiled, schedule="constant", warmup_nimg=0, duration_nimg=nimg)
        state = build(recipe.model(source.spec), config, Processes(device=CPU))
        if resumed:
            state.restore(tmp_path / "000000032")
        list(train(state, source, flow_matching(state.model, config), config, tick_nimg=nimg))
        return state

    trained(32, compiled=True).save(tmp_path)
    halves = trained(64, compiled=True, resumed=True).tensors()
    whole, eager = trained(64, compiled=True).tensors(), trained(64, compiled=False).tensors()
    assert whole.keys() == halves.keys() == eager.keys()
    for name, tensor in whole.items():
        assert torch.equal(tensor, halves[name]), name
        if name.startswith("net/"):
            torch.testing.assert_close(tensor, eager[name], rtol=1e-3, atol=1e-3)


# What the files say


def result(name: str) -> dict[str, Any]:
    """The one file under benchmarks/results whose name begins so."""
    (path,) = (ROOT / "benchmarks" / "results").glob(f"{name}-*.json")
    return json.loads(path.read_text())


@pytest.mark.parametrize("model", ["mnist-demo", "cifar10"])
def test_presets_are_those_that_were_judged(model):
    """Three times 5,000 samples on the same seeds, two standard errors, and the speed of whole samples beside them."""
    told = result(f"presets-{model}")
    assert (told["count"], told["repeats"]) == (5000, 3)
    for name in PRESETS:
        row = told["presets"][name]
        assert Sampling(**{**row["sampling"], **PRESETS[name]}) == Sampling(**row["sampling"])
        assert not row["measurably_worse"]
        assert row["worse_by"] <= 2 * row["worse_by_error"]
    assert told["presets"]["fast"]["times_faster"] >= 8
    assert told["presets"]["faster"]["times_faster"] >= 12
    half, full = told["presets"]["fast"]["fd"], told["presets"]["fast in float32"]["fd"]
    assert told["precision"] == "bfloat16"
    assert abs(half["mean"] - full["mean"]) <= 2 * full["error"]


@pytest.mark.parametrize("recipe", ["mnist-demo", "cifar10"])
def test_recipes_are_those_that_were_compared(recipe):
    """In half the time of the recipe before, to its Frechet distance."""
    told = result(f"sooner-{recipe}")
    ours, theirs = RECIPES[recipe].training, told["settings"]["training"]["today"]
    plain = json.loads(json.dumps(asdict(ours)))
    assert {name: plain[name] for name in theirs} == theirs
    for name in plain.keys() - theirs.keys():  # it came later
        assert getattr(ours, name) == getattr(ji.Training(), name)
    network: Any = RECIPES[recipe].network
    assert told["settings"]["networks"]["today"] == json.loads(json.dumps(asdict(network)))
    assert told["summary"]["share_of_time"] <= 0.5
    assert told["summary"]["today"]["best_fd"]["mean"] <= told["summary"]["before"]["best_fd"]["mean"]
    assert {row["seed"] for row in told["rows"]} == {0, 1, 2}


def times_plain(name: str) -> dict[str, float]:
    """How many times as fast as the plain network each preset draws."""
    rates = {row["what"]: row["img_per_second"] for row in result(name)["sampling"]["samples"]}
    return {preset: rates[preset] / rates["paper, plainly"] for preset in PRESETS}


def test_the_readme_says_how_fast_b16_is():
    paper, fast = (times_plain("bench-b16-256-batch-1")[name] for name in ("paper", "fast"))
    text = " ".join((ROOT / "README.md").read_text().split())
    assert f"B/16 draws {paper:.0f} times as fast as that network does plainly, and {fast:.0f} times with" in text
    eight, whole = (times_plain(f"bench-b16-256-{name}-batch-1") for name in ("int8-vnni", "float32-avx2"))
    share = result("bench-b16-256-float32-avx2-batch-1")["sampling"]["rows"][2]["share_of_peak"]
    assert f"B/16 is drawn {whole['paper']:.2f} times as fast as the same network draws" in text
    assert f"{100 * share:.0f} % of what the processor can do, and {whole['fast']:.0f} times" in text
    many = times_plain("bench-b16-256-float32-avx2-batch-8")
    assert f"{many['paper']:.2f} and {many['fast']:.1f} times where eight are drawn at once" in text
    assert f"`--precision int8` draws {eight['paper']:.1f} and {eight['fast']:.0f} times as fast" in text


@pytest.mark.parametrize(
    ("name", "paper", "fast"),
    [
        ("batch-1", 4, 25),
        ("batch-8", 4, 25),
        ("int8-vnni-batch-1", 1.5, 10),
        ("int8-vnni-batch-8", 1.5, 10),
        ("float32-avx2-batch-1", 1.2, 10),
        ("float32-avx2-batch-8", 1.1, 10),
    ],
)
def test_b16_draws_as_fast_as_promised(name, paper, fast):
    """Guided, against the plain network in the same run: with AMX, and without it in int8 and in float32."""
    times = times_plain(f"bench-b16-256-{name}")
    assert times["paper"] >= paper
    assert times["fast"] >= fast


def test_the_page_about_speed_is_made_of_the_results():
    assert (ROOT / "docs" / "speed.md").read_text() == script("docs/speed.py").page(), "run: python docs/speed.py"
