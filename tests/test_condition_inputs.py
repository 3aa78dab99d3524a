"""Values of a condition as users and data give them: shapes, absent parts, drops, crops, precision."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from test_conditions import SIZES, conditions, levels, model_for, source_of
from test_train import ALONE
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import justimage as ji
from justimage.data.crops import Crops
from justimage.data.loader import model_values
from justimage.execution import cast_parameters, checkpoint_blocks
from justimage.sampling.generate import generate

FOUR = ("labels", "vector", "tokens", "planes")
SMALL = ji.Training(duration_nimg=48, batch_size=16, lr=2e-3, ema_decays=(0.9,), precision="float32", seed=3)
Inputs = tuple[Tensor, Tensor, dict[str, Tensor]]


def filled(net: Any) -> Any:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_(std=0.1, generator=generator)
    return net.eval()


def asked(size: tuple[int, ...], count: int, kinds=FOUR) -> dict[str, Any]:
    values = conditions(kinds, size, count, seed=7)
    return {
        "labels": values["labels"].tolist() if "labels" in values else None,
        "condition": {name: value for name, value in values.items() if name != "labels"},
    }


def everything(size=(8, 8), count=4) -> tuple[ji.Denoiser, Inputs]:
    model = model_for(source_of(FOUR, size, 64))
    filled(model)
    g = torch.Generator().manual_seed(1)
    y = model.value(**asked(size, count), count=count, size=size)
    return model, (torch.randn(count, 1, *size, generator=g), torch.rand(count, generator=g), y)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_every_parameter_learns(size):
    """Those that stand for none too."""
    model, (z, t, y) = everything(size)
    null = model.null(2, size, z.device)
    some = {name: torch.cat((each[2:], null[name])) for name, each in y.items()}
    model(z, t, some).value.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


@torch.no_grad()
def test_absent_tokens_may_be_nan_and_sequences_shorter():
    model, (z, t, y) = everything()
    y["tokens_mask"][:, 2:] = False
    reference = model(z, t, y).value
    absent = torch.where(y["tokens_mask"][..., None], y["tokens"], torch.nan)
    assert torch.equal(model(z, t, {**y, "tokens": absent}).value, reference)
    shorter = {**y, "tokens": y["tokens"][:, :2], "tokens_mask": y["tokens_mask"][:, :2]}
    torch.testing.assert_close(model(z, t, shorter).value, reference, atol=1e-5, rtol=1e-5)


def test_conditions_are_dropped_at_the_rate_asked_all_parts_together_by_position():
    model, (z, _, y) = everything(count=64)
    x, y = z.repeat(32, 1, 1, 1), {name: torch.cat([each] * 32) for name, each in y.items()}
    seen: list[dict[str, Tensor]] = []

    def predict(z: Tensor, t: Tensor, y: dict[str, Tensor]) -> ji.Prediction:
        seen.append(y)
        return ji.Prediction(z, z, t, "x")

    config = ji.Training(label_dropout=0.25, seed=5)
    loss: Any = ji.flow_matching(model, config)
    loss(predict, x, y, range(100, 2148))
    dropped = seen[0]["labels"] == model.null_label
    print("dropped", float(dropped.float().mean()))
    assert abs(float(dropped.float().mean()) - 0.25) < 0.04
    assert torch.equal(seen[0]["vector"].isnan().all(1), dropped)
    assert torch.equal(~seen[0]["tokens_mask"].any(1), dropped)
    assert torch.equal(seen[0]["planes"].isnan().flatten(1).all(1), dropped)
    part = slice(700, 900)
    loss(predict, x[part], {name: each[part] for name, each in y.items()}, range(800, 1000))
    assert torch.equal(seen[1]["labels"], seen[0]["labels"][part])
    nothing: Any = ji.flow_matching(model, replace(config, label_dropout=0.0))
    nothing(predict, x, y, range(2048))
    assert torch.equal(seen[2]["labels"], y["labels"])


@torch.no_grad()
def test_losses_do_not_depend_on_the_batch():
    model, (x, _, y) = everything(count=16)
    loss = ji.flow_matching(model, replace(SMALL, label_dropout=0.3))
    whole = loss(model, x, y, range(32, 48)).total
    cut = [loss(model, x[p], {n: e[p] for n, e in y.items()}, range(32, 48)[p]).total for p in (slice(5), slice(5, 16))]
    torch.testing.assert_close(torch.cat(cut), whole)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"tokens_length": [1, 2]}, "tokens_length is unknown"),
    ({"labels": None}, "labels is missing"),
    ({"vector": np.zeros((2, 4))}, r"vector has the shape \(2, 4\)"),
    ({"vector": 1.0}, r"vector has the shape \(\)"),
    ({"vector": [["a", "b"]]}, "vector is not made of numbers"),
    ({"vector": [[1.0], [1.0, 2.0]]}, "vector is not made of numbers"),
    ({"tokens": np.zeros((2, 9, 3)), "tokens_mask": None}, r"tokens has the shape \(2, 9, 3\)"),
    ({"tokens": np.zeros((2, 5, 4))}, r"tokens has the shape \(2, 5, 4\)"),
    ({"tokens": np.zeros((2, 2, 3))}, "tokens_mask is for 5 tokens, but tokens has 2"),
    ({"tokens_mask": np.ones((3, 5), bool)}, "3 entries of tokens_mask and 2 seeds"),
    ({"planes": np.zeros((2, 1, 8, 9))}, r"planes has the shape \(2, 1, 8, 9\)"),
    ({"planes": np.zeros((2, 8, 8))}, r"planes has the shape \(2, 8, 8\)"),
    ({"labels": [0, 1, 2]}, "3 labels and 2 seeds"),
    ({"labels": 9}, "label 9 is out of range"),
]


@pytest.mark.parametrize(("change", "message"), WRONG)
def test_what_does_not_fit_is_named(change, message):
    model, _ = everything()
    given = {**(values := asked((8, 8), 2))["condition"], "labels": values["labels"], **change}
    with pytest.raises(ValueError, match=message):
        model.sample(seeds=[0, 1], condition={n: v for n, v in given.items() if v is not None}, steps=1)


def test_ways_to_ask():
    model, _ = everything()
    values = asked((8, 8), 2)
    condition, labels = values["condition"], values["labels"]
    reference = model.sample(labels[:1], [5, 5], condition={n: v[:1] for n, v in condition.items()}, steps=2)
    alone = {name: each[0] for name, each in condition.items()}
    for given in (
        alone,
        {name: each.tolist() for name, each in alone.items()},
        {**alone, "labels": np.int64(labels[0])},
    ):
        label = None if "labels" in given else labels[0]
        assert torch.equal(model.sample(label, [5, 5], condition=given, steps=2), reference)
        assert model.sample(label, condition=given, steps=1).shape == (1, 1, 8, 8)
    assert model.sample(0, condition={**alone, "vector": condition["vector"]}, steps=1).shape == (2, 1, 8, 8)
    larger = {**alone, "planes": np.zeros((1, 16, 8))}
    assert model.sample(0, condition=larger, size=(16, 8), steps=1).shape == (1, 1, 16, 8)
    batches = ji.generate(model, [3, 4], labels, condition=condition, batch_size=1, steps=3)
    drawn = torch.cat([batch.raw for batch in batches])
    torch.testing.assert_close(drawn, model.sample(labels, [3, 4], condition=condition, steps=3))


def test_read_only_arrays_ask_without_a_warning(recwarn):
    model, _ = everything()
    values = asked((8, 8), 2)
    for each in values["condition"].values():
        each.flags.writeable = False
    model.sample(seeds=[0, 1], steps=1, **values)
    assert not [str(each.message) for each in recwarn if "writable" in str(each.message)]


def test_planes_are_cropped_and_mirrored_with_the_samples():
    x = np.random.default_rng(0).normal(size=(16, 1, 6, 8)).astype(np.float32)
    source = ji.Arrays(x, given={"same": x, "level": x.mean((1, 2, 3))})
    crops = Crops(source, (4, 4))
    assert all(np.array_equal(beside["same"], raw) for raw, beside in (crops[i] for i in range(0, len(crops), 7)))
    spec, raw = replace(source.spec, mirror=1), torch.from_numpy(x)
    y = {"same": raw.clone(), "level": raw.mean((1, 2, 3))[:, None]}
    mirrored, beside = model_values(raw, y, spec, seed=0, positions=range(16), mirror=True)
    assert 0 < (mirrored != spec.encode(raw)).flatten(1).any(1).sum() < 16
    mean, scale = (torch.tensor(getattr(spec.given[0], name)) for name in ("mean", "scale"))
    torch.testing.assert_close(spec.decode(mirrored), beside["same"] * scale + mean, atol=1e-5, rtol=1e-5)
    assert torch.equal(beside["level"], spec.encode_given({"level": y["level"]})["level"])


@torch.no_grad()
@pytest.mark.parametrize("cast", ["autocast", "parameters"])
@pytest.mark.parametrize("conditional", [True, False])
def test_bfloat16_stays_near_float32(cast, conditional):
    model, (z, t, y) = everything()
    value = y if conditional else None
    exact = model(z, t, value).value
    if cast == "parameters":
        cast_parameters(model.net, torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=cast == "autocast"):
        near = model(z, t, value).value
    assert near.isfinite().all()
    assert (near - exact).norm() / exact.norm() < 0.03


def test_checkpointed_blocks_see_the_mask():
    gradients = []
    for checkpointed in (False, True):
        model, (z, t, y) = everything()
        if checkpointed:
            checkpoint_blocks(model.net)
        model.train()(z, t, y).value.square().sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def fresh(name: str) -> tuple[ji.Denoiser, Any, Inputs]:
    kinds = {"jit": FOUR, "dit": ("labels", "vector", "planes"), "mlp": ("labels", "vector")}[name]
    source = source_of(kinds, (8, 8), 64)
    parts = tuple(ji.Part(g.name, g.kind, g.features, g.length) for g in source.spec.given)
    facts: dict[str, Any] = {"size": (8, 8), "channels": 1, "num_classes": 3, "conditions": parts, "width": 32}
    net: Any = {
        "jit": lambda: model_for(source, 32).net,
        "dit": lambda: ji.DiT(ji.DiTConfig(**facts, patch=(4, 4), depth=2, heads=2)),
        "mlp": lambda: ji.ToyMLP(ji.MLPConfig(**facts)),
    }[name]()
    model = ji.Denoiser(net, spec=source.spec)
    y = model.value(**asked((8, 8), 4, kinds), count=4, size=(8, 8))
    return model, source, (torch.randn(4, 1, 8, 8), torch.rand(4), y)


def losses(model: ji.Denoiser, source: Any) -> list[float]:
    state = ji.build(model, SMALL, ALONE)
    return [t.loss for t in ji.train(state, source, ji.flow_matching(model, SMALL), SMALL, tick_nimg=16, workers=0)]


@pytest.mark.parametrize("name", ["jit", "dit", "mlp"])
def test_conditional_networks_and_denoisers_export_and_train_the_same_afterwards(name):
    model, source, (z, t, y) = fresh(name)
    torch.testing.assert_close(torch.export.export(model.net, (z, t, y)).module()(z, t, y), model.net(z, t, y))
    filled(model)
    for value in ((y,), ()):
        exported, eager = torch.export.export(model, (z, t, *value)).module()(z, t, *value), model(z, t, *value)
        assert isinstance(exported, ji.Prediction) and eager.value.abs().max() > 0.01
        for space in ("x", "eps", "v"):
            torch.testing.assert_close(exported.to(space), eager.to(space))
    reference, _, _ = fresh(name)
    assert losses(model, source) == losses(reference, source)


@torch.no_grad()
@pytest.mark.parametrize("name", ["jit", "dit", "mlp"])
def test_fake_tensors_leave_no_traces_on_any_grid(name):
    model, _, (z, t, y) = fresh(name)
    net = filled(model.net)
    larger = {part: torch.cat((each, each), 2) if part == "planes" else each for part, each in y.items()}
    pairs = [(z, y)] if name == "mlp" else [(z, y), (torch.cat((z, z), 2), larger)]
    before = net(z, t, y)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        for state, value in pairs:
            fake = {part: mode.from_tensor(each) for part, each in value.items()}
            assert net(mode.from_tensor(state), mode.from_tensor(t), fake).shape == state.shape
    assert torch.equal(net(z, t, y), before)
    assert all(net(state, t, value).isfinite().all() for state, value in pairs)


@pytest.mark.parametrize("name", ["dit", "mlp"])
def test_networks_other_than_jit_follow_their_conditions(name):
    """The MLP, where a condition is added to the first layer alone, needs three times the steps."""
    kinds, size, steps, lr = {
        "dit": (("labels", "vector", "planes"), (8, 8), 300, 5e-3),
        "mlp": (("labels", "vector"), (8,), 1000, 2e-3),
    }[name]
    source = source_of(kinds, size, 1024)
    parts = tuple(ji.Part(g.name, g.kind, g.features, g.length) for g in source.spec.given)
    if name == "dit":
        net: Any = ji.DiT(ji.DiTConfig(size, (4, 4), 1, 3, width=32, depth=2, heads=2, conditions=parts))
    else:
        net = ji.ToyMLP(ji.MLPConfig(size, 1, 3, width=128, conditions=parts))
    model = ji.Denoiser(net, spec=source.spec, sampling=ji.Sampling(12, "ab2", final="x"))
    times = ji.LogitNormal(0, 1.2)
    training = ji.Training(64 * steps, 64, lr=lr, warmup_nimg=1_280, schedule="cosine", ema_decays=(), times=times)
    state = ji.build(model, training, ALONE)
    for _ in ji.train(state, source, ji.flow_matching(model, training), training, tick_nimg=64 * steps):
        pass
    drawn = model.sample(**asked(size, 96, kinds), seeds=range(96)).numpy()
    wanted = levels(kinds, conditions(kinds, size, 96, seed=7), size)
    free = np.corrcoef(model.sample(seeds=range(96)).numpy().ravel(), wanted.ravel())[0, 1]
    followed = np.corrcoef(drawn.ravel(), wanted.ravel())[0, 1]
    print(name, round(followed, 3), round(free, 3))
    assert followed > 0.9 and abs(free) < 0.45


def test_a_sample_does_not_depend_on_the_batch_however_its_condition_is_given():
    """One sequence, and as many numbers as there are seeds: what lacks the axis of the batch is refused."""
    model, _ = everything(count=3)
    length, features = next((need[3], need[2]) for need in model.needs if need[1] == "tokens")
    given = asked((8, 8), length)
    one = {**given["condition"], "tokens": given["condition"]["tokens"][0]}
    assert one["tokens"].shape == (length, features)
    with pytest.raises(ValueError, match="1 entries of tokens and"):
        next(generate(model, list(range(length)), given["labels"], condition=one, batch_size=2, steps=1))
    whole, parts = (
        torch.cat([each.raw for each in generate(model, list(range(length)), **given, batch_size=n, steps=2)])
        for n in (length, 1)
    )
    torch.testing.assert_close(whole, parts, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="batch_size is -1"):
        generate(model, [0], batch_size=-1)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [("vector", np.inf, "vector has infinite values"), ("tokens", np.nan, "tokens has NaN in tokens that are there")],
)
def test_numbers_that_draw_nothing_are_refused(name, value, message):
    model, _ = everything(count=2)
    given = asked((8, 8), 2)
    given["condition"][name] = np.full_like(given["condition"][name], value)
    given["condition"].pop("tokens_mask", None)
    with pytest.raises(ValueError, match=message):
        model.sample(given["labels"], **{"condition": given["condition"]}, steps=1)
