"""Conditions: each kind, and two together, trained, guided and drawn in one, two and three dimensions; and obeyed."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import small_net
from test_train import ALONE, CPU, equal
from torch import Tensor

import justimage as ji
from justimage.data.arrays import Arrays
from justimage.networks.conditions import Conditions, Part, replace_rows
from justimage.samplers import guided
from justimage.training.state import saved_states

SIZES = [(16,), (8, 8), (4, 4, 8)]
TRAINING = ji.Training(
    duration_nimg=12_800, batch_size=128, lr=5e-3, warmup_nimg=1_280, schedule="cosine", ema_decays=()
)
LENGTH = 5


def level_of(kind: str, values: dict[str, np.ndarray]) -> np.ndarray:
    """The mean level that data with this condition have, (N,) or planes (N, 1, *S): what samples must follow."""
    match kind:
        case "labels":
            return values["labels"] - 1.0
        case "vector":
            return values["vector"].sum(1)
        case "tokens":
            return (values["tokens"][..., 0] * values["tokens_mask"]).sum(1)
    return values["planes"]


def conditions(kinds: tuple[str, ...], size: tuple[int, ...], count: int, seed: int) -> dict[str, np.ndarray]:
    g = np.random.default_rng(seed)
    values: dict[str, np.ndarray] = {}
    if "labels" in kinds:
        values["labels"] = g.integers(0, 3, count)
    if "vector" in kinds:
        values["vector"] = g.uniform(-0.6, 0.6, (count, 2)).astype(np.float32)
    if "tokens" in kinds:
        values["tokens"] = g.uniform(-0.6, 0.6, (count, LENGTH, 3)).astype(np.float32)
        values["tokens_mask"] = np.arange(LENGTH) < g.integers(1, 4, count)[:, None]
    if "planes" in kinds:
        coarse = g.uniform(-1, 1, (count, 1, *[2] * len(size)))
        for axis, length in enumerate(size):
            coarse = np.repeat(coarse, length // 2, 2 + axis)
        values["planes"] = coarse.astype(np.float32)
    return values


def levels(kinds: tuple[str, ...], values: dict[str, np.ndarray], size: tuple[int, ...]) -> np.ndarray:
    """(N, 1, *S)"""
    total = 0.0
    for kind in kinds:
        level = level_of(kind, values)
        total = total + (level if kind == "planes" else level.reshape(-1, *[1] * (1 + len(size))))
    return np.broadcast_to(total, (len(next(iter(values.values()))), 1, *size))


def source_of(kinds: tuple[str, ...], size: tuple[int, ...], count: int = 1024) -> Arrays:
    values = conditions(kinds, size, count, seed=0)
    x = levels(kinds, values, size) + 0.15 * np.random.default_rng(1).normal(size=(count, 1, *size))
    given = {name: value for name, value in values.items() if name != "labels"}
    return Arrays(x.astype(np.float32), values.get("labels"), given=given or None)


def model_for(source: Arrays, width: int = 48) -> ji.Denoiser:
    size = source.spec.size
    config = ji.JiTConfig(
        size=size,
        patch=(size[0] // 4, *[s // 2 for s in size[1:]]),
        channels=1,
        num_classes=len(source.spec.classes),
        width=width,
        depth=3,
        heads=2,
        bottleneck=0,
        context_tokens=2,
        context_start=0,
        conditions=tuple(Part(g.name, g.kind, g.features, g.length) for g in source.spec.given),
    )
    return ji.Denoiser(ji.JiT(config), spec=source.spec, sampling=ji.Sampling(12, "ab2", final="x"))


def following(drawn: Tensor, wanted: np.ndarray) -> float:
    """The correlation between what was drawn and what was asked for, place by place."""
    return float(np.corrcoef(drawn.numpy().ravel(), np.asarray(wanted).ravel())[0, 1])


KINDS = [("labels",), ("vector",), ("tokens",), ("planes",), ("labels", "planes"), ("vector", "tokens")]


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{len(size)}d")
@pytest.mark.parametrize("kinds", KINDS, ids="+".join)
def test_drawn_data_follow_the_condition(kinds, size):
    """Samples have the level that their condition asks for; without it they do not."""
    source = source_of(kinds, size)
    model = model_for(source)
    state = ji.build(model, TRAINING, ALONE)
    ticks = list(ji.train(state, source, ji.flow_matching(model, TRAINING), TRAINING, tick_nimg=1_280))
    assert ticks[-1].loss < ticks[0].loss

    count = 96
    asked = conditions(kinds, size, count, seed=7)
    wanted = levels(kinds, asked, size)
    given = {name: value for name, value in asked.items() if name != "labels"}
    labels = asked["labels"].tolist() if "labels" in asked else None
    drawn = model.sample(labels, range(count), condition=given)
    followed = following(drawn, wanted)
    free = following(model.sample(seeds=range(count)), wanted)
    guided_samples = model.sample(labels, range(count), condition=given, guidance=2.0)
    print(f"{'+'.join(kinds)} {len(size)}d: {followed:.3f}, without {free:.3f}")
    assert followed > 0.9
    assert abs(free) < 0.5 * followed
    assert following(guided_samples, wanted) > 0.9
    assert (guided_samples - drawn).abs().mean() > 1e-3
    assert 0.7 < np.polyfit(wanted.ravel(), drawn.numpy().ravel(), 1)[0] < 1.45


ALL = (Part("vector", "vector", 2), Part("tokens", "tokens", 3, LENGTH), Part("planes", "planes", 1))


def all_kinds(**overrides) -> tuple[ji.Denoiser, dict[str, Tensor]]:
    """A model with every kind of condition, and a value of it for four samples."""
    model = ji.Denoiser(small_net((8, 8), conditions=ALL, **overrides))
    g = torch.Generator().manual_seed(0)
    y = {
        "labels": torch.tensor([0, 1, 2, 0]),
        "vector": torch.randn(4, 2, generator=g),
        "tokens": torch.randn(4, LENGTH, 3, generator=g),
        "tokens_mask": torch.arange(LENGTH) < torch.tensor([[1], [5], [0], [3]]),
        "planes": torch.randn(4, 1, 8, 8, generator=g),
    }
    return model, y


@torch.no_grad()
def test_every_part_counts_and_masked_tokens_do_not():
    model, y = all_kinds()
    z, t = torch.randn(4, 2, 8, 8), torch.rand(4)
    before = model(z, t, y).value
    for name in ("labels", "vector", "tokens", "planes"):
        other = {**y, name: (y[name] + 1) % 3 if name == "labels" else y[name] + 1}
        changed = (model(z, t, other).value - before).flatten(1).abs().amax(1) > 1e-6
        assert changed.tolist() == ([True, True, False, True] if name == "tokens" else [True] * 4)
    hidden = torch.where(y["tokens_mask"][..., None], y["tokens"], 100.0)
    assert torch.equal(model(z, t, {**y, "tokens": hidden}).value, before)


@torch.no_grad()
def test_dropped_is_null_and_null_is_what_no_condition_means():
    model, y = all_kinds()
    z, t = torch.randn(4, 2, 8, 8), torch.rand(4)
    null = model.null(4, (8, 8), CPU)
    dropped = model.condition.drop(y, torch.tensor([0.0, 0.9, 0.0, 0.9]), 0.5)
    torch.testing.assert_close(dropped, replace_rows(y, null, torch.tensor([True, False, True, False])), equal_nan=True)
    full, none = model(z, t, y).value, model(z, t).value
    assert torch.equal(model(z, t, null).value, none)
    torch.testing.assert_close(model(z, t, dropped).value, torch.stack((none[0], full[1], none[2], full[3])))
    assert all(torch.equal(model.condition.drop(y, torch.rand(4), 0.0)[name], value) for name, value in y.items())


@torch.no_grad()
def test_guidance_is_null_plus_the_scaled_difference():
    model, y = all_kinds()
    z, t = torch.randn(4, 2, 8, 8), torch.tensor(0.4)
    null = model.null(4, (8, 8), CPU)
    times = t.expand(4)
    expected = model(z, times).value + 2.5 * (model(z, times, y).value - model(z, times).value)
    torch.testing.assert_close(guided(model, y, null, 2.5)(z, t).value, expected, atol=1e-5, rtol=1e-4)
    for arguments in ((None, null), (y, None), (None, None)):
        with pytest.raises(ValueError, match=r"guidance with scale 2\.5"):
            guided(model, *arguments, 2.5)
        assert guided(model, arguments[0], arguments[1], 1.0)(z, t).value.shape == z.shape


@torch.no_grad()
def test_unknown_places_of_planes_are_told_from_zero():
    model, y = all_kinds()
    z, t = torch.randn(4, 2, 8, 8), torch.rand(4)
    zero, unknown = y["planes"].clone(), y["planes"].clone()
    zero[..., :4], unknown[..., :4] = 0, torch.nan
    a, b = (model(z, t, {**y, "planes": planes}).value for planes in (zero, unknown))
    assert b.isfinite().all()
    assert not torch.allclose(a, b)


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ({"vectr": [[0, 0]]}, "vectr is unknown"),
        ({"vector": [[0.0, 0.0]]}, "labels, tokens, planes is missing"),
    ],
)
def test_parts_that_are_wrong_are_named(condition, message):
    with pytest.raises(ValueError, match=message):
        all_kinds()[0].sample(condition=condition)
    net = small_net((8, 8), num_classes=0, conditions=(Part("vector", "vector", 2),))
    with pytest.raises(ValueError, match="vector"):
        ji.Denoiser(net).sample(condition={"vector": [[0.0, 0.0, 0.0]]})
    with pytest.raises(ValueError, match="3 entries of vector"):
        ji.Denoiser(net).sample(condition={"vector": torch.zeros(3, 2)}, seeds=[0, 1])


def test_a_conditional_model_is_saved_resumed_and_split_like_any_other(tmp_path):
    """Weights round trip; save and restore in mid-run, and microbatches, are the same run."""
    source = source_of(("labels", "planes"), (8, 8), count=64)
    config = replace(TRAINING, duration_nimg=160, batch_size=16, warmup_nimg=0, precision="float32")

    def run(until: int, start=None, settings=config) -> ji.TrainingState:
        state = ji.build(model_for(source), settings, ALONE)
        if start is not None:
            state.restore(start)
        for tick in ji.train(state, source, ji.flow_matching(state.model, settings), settings, tick_nimg=16):
            if tick.nimg >= until:
                break
        return state

    whole = run(160)
    run(96).save(tmp_path / "state")
    assert equal(whole, run(160, saved_states(tmp_path / "state")[-1]))
    split = run(160, settings=replace(config, microbatch=5))
    for name, tensor in whole.tensors().items():
        torch.testing.assert_close(split.tensors()[name], tensor, atol=1e-4, rtol=1e-3)

    whole.model.save_pretrained(tmp_path / "weights")
    loaded = ji.load(tmp_path / "weights", device="cpu", dtype=torch.float32)
    planes = np.zeros((2, 1, 8, 8), np.float32)
    drawn = [each.sample([0, 2], [0, 1], condition={"planes": planes}, steps=3) for each in (whole.model, loaded)]
    torch.testing.assert_close(*drawn)


def test_parts_may_be_called_as_anything_that_is_a_name():
    for name in ("values", "keys", "type", "train", "depth"):
        condition = Conditions(0, (Part(name, "vector", 1),), 0, 8)
        condition.initialise()
        assert condition({name: torch.zeros(2, 1)}, torch.zeros(2, 8)).vector.shape == (2, 8)  # type: ignore[union-attr]


Make = Callable[[], tuple[torch.nn.Module, tuple]]
EXPORTED: dict[str, Make] = {
    "jit": lambda: (small_net((8, 8)), (torch.randn(2, 2, 8, 8), torch.rand(2), torch.tensor([0, 1]))),
    "dit": lambda: (
        ji.DiT(ji.DiTConfig((8, 8), (4, 4), channels=2, num_classes=3, width=32, depth=2, heads=4)).eval(),
        (torch.randn(2, 2, 8, 8), torch.rand(2), torch.tensor([0, 1])),
    ),
    "mlp": lambda: (ji.ToyMLP(ji.MLPConfig((8,))).eval(), (torch.randn(2, 1, 8), torch.rand(2))),
    "denoiser": lambda: (
        ji.Denoiser(small_net((8, 8))).eval(),
        (torch.randn(2, 2, 8, 8), torch.rand(2), torch.tensor([0, 1])),
    ),
}


@pytest.mark.parametrize("name", EXPORTED)
def test_a_fresh_network_exports_and_leaves_the_process_as_it_was(name):
    net, inputs = EXPORTED[name]()
    exported = torch.export.export(net, inputs).module()
    again, _ = EXPORTED[name]()
    again.load_state_dict(net.state_dict())
    with torch.no_grad():
        results = [each(*inputs) for each in (exported, net, again)]
    values = [each.value if isinstance(each, ji.Prediction) else each for each in results]
    torch.testing.assert_close(values[0], values[1], atol=1e-5, rtol=1e-4)
    assert torch.equal(values[1], values[2])
    out = again.train()(*inputs)
    (out.value if isinstance(out, ji.Prediction) else out).square().sum().backward()


@torch.no_grad()
def test_a_model_exports_with_what_its_network_gives_beside_in_training_mode_alone():
    net = small_net(depth=3, context_start=2, classifier_after=2)
    model, inputs = ji.Denoiser(net), (torch.randn(2, 2, 8, 8), torch.rand(2), torch.tensor([0, 1]))
    for training in (True, False):
        model.train(training)
        exported, eager = torch.export.export(model, inputs).module()(*inputs), model(*inputs)
        assert exported.beside.keys() == eager.beside.keys() == ({"logits"} if training else set())
        torch.testing.assert_close(exported.value, eager.value)
        for name, each in eager.beside.items():
            torch.testing.assert_close(exported.beside[name], each)


@torch.no_grad()
def test_a_pass_with_fake_tensors_leaves_the_next_one_right():
    from torch._subclasses.fake_tensor import FakeTensorMode

    net, inputs = EXPORTED["jit"]()
    before = net(*inputs)
    with FakeTensorMode() as mode:
        fake, _ = EXPORTED["jit"]()
        fake(*(mode.from_tensor(each) for each in inputs))
    assert torch.equal(net(*inputs), before)
