"""The network in 1, 2 and 3 dimensions, its switches, and its beginning at zero."""

from math import prod
from typing import Any

import pytest
import torch
from conftest import small_config, small_net

from justimage.execution import cast_parameters, checkpoint_blocks, compile_blocks
from justimage.networks.jit import JiT, JiTConfig
from justimage.networks.patch import patchify, unpatchify
from justimage.networks.position import rotate, rotations

SIZES = [((12,), (3,)), ((8, 12), (4, 3)), ((4, 6, 8), (2, 3, 4)), ((5, 5), (5, 5))]


@pytest.mark.parametrize(("size", "patch"), SIZES)
def test_patches_round_trip(size, patch):
    x = torch.randn(5, 3, *size)
    tokens = patchify(x, patch)
    grid = tuple(s // p for s, p in zip(size, patch, strict=True))
    assert tokens.shape == (5, prod(grid), 3 * prod(patch))
    assert torch.equal(unpatchify(tokens, grid, patch), x)


def test_patches_are_what_a_convolution_sees():
    x, weight = torch.randn(2, 3, 8, 12), torch.randn(7, 3, 4, 4)
    convolved = torch.nn.functional.conv2d(x, weight, stride=4).flatten(2).mT
    torch.testing.assert_close(patchify(x, (4, 4)) @ weight.flatten(1).T, convolved)


def test_rotations_turn_and_know_relative_places_only():
    grid = (3, 4)
    rotation = rotations(grid, 16)
    q, k = torch.randn(1, 1, 1, 16), torch.randn(1, 1, 1, 16)
    turned = rotate(q.expand(1, 1, 12, 16), rotation)
    torch.testing.assert_close(turned.norm(dim=-1), q.norm(dim=-1).expand(1, 1, 12))
    scores = (turned[0, 0] @ rotate(k.expand(1, 1, 12, 16), rotation)[0, 0].T).view(3, 4, 3, 4)
    torch.testing.assert_close(scores[0, 0, 1, 2], scores[1, 1, 2, 3])  # the same step down and right


def test_both_ways_to_rotate_agree(monkeypatch):
    x, rotation = torch.randn(2, 3, 12, 16), rotations((3, 4), 16)
    complex_way = rotate(x, rotation)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    torch.testing.assert_close(rotate(x, rotation), complex_way)


@pytest.mark.parametrize("size", [(8,), (8, 12), (4, 4, 8)])
@pytest.mark.parametrize("num_classes", [0, 3])
def test_any_number_of_axes_and_any_grid(size, num_classes):
    net = small_net(size, num_classes=num_classes)
    y = torch.tensor([0, num_classes]) if num_classes else None
    for factor in (1, 2, 3):
        shape = (2, 2, size[0] * factor, *size[1:])
        assert net(torch.randn(shape), torch.rand(2), y).shape == shape
    with pytest.raises(ValueError, match="does not divide"):
        net(torch.randn(2, 2, size[0] + 1, *size[1:]), torch.rand(2), y)


SWITCHES = [
    {},
    {"bottleneck": 0},
    {"rotary": False, "qk_norm": False},
    {"context_tokens": 0},
    {"rms_norm": False, "swiglu": False},
    {"bottleneck": 0, "rotary": False, "qk_norm": False, "context_tokens": 0, "rms_norm": False, "swiglu": False},
    {"context_start": 0},
    {"float32_attention": True},
    {"dropout": 0.3, "dropout_scores": 0.1, "depth": 4},
]


@pytest.mark.parametrize("switches", SWITCHES, ids=str)
def test_every_switch_changes_the_network_and_all_of_it_learns(switches):
    config = small_config((8, 8), **switches)
    assert torch.equal(
        JiT(config)(torch.randn(2, 2, 8, 8), torch.rand(2), torch.tensor([0, 1])), torch.zeros(2, 2, 8, 8)
    )
    net = small_net((8, 8), **switches)
    net(torch.randn(4, 2, 8, 8), torch.rand(4), torch.tensor([0, 1, 2, 3])).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


def test_dropout_sits_in_the_middle_half():
    net = JiT(small_config(depth=8, dropout=0.2, dropout_scores=0.1))
    rates = [(block.attention.dropout.p, block.mlp.dropout.p, block.attention.drop_scores.p) for block in net.blocks]  # type: ignore[union-attr]
    assert rates == [(0, 0, 0)] * 2 + [(0.2, 0.2, 0.1)] * 4 + [(0, 0, 0)] * 2


def test_in_context_tokens_join_at_their_block():
    net = small_net(depth=3, context_tokens=5, context_start=2)
    lengths = []
    for block in net.blocks:
        block.register_forward_pre_hook(lambda module, inputs: lengths.append(inputs[0].shape[1]))
    net(torch.randn(1, 2, 8, 8), torch.rand(1), torch.tensor([0]))
    assert lengths == [4, 4, 9]


CLASSIFYING: dict[str, Any] = {"depth": 3, "context_start": 2, "classifier_after": 2}


@pytest.mark.parametrize("size", [(8,), (8, 8), (4, 4, 8)])
def test_blocks_before_a_classifier_see_the_time_and_not_the_labels(size):
    net = small_net(size, **CLASSIFYING).train()
    z, t = torch.randn(2, 2, *size), torch.rand(2)
    raw, beside = net(z, t, torch.tensor([0, 1]))
    others, elsewhere = net(z, t, torch.tensor([2, 3])), net(z, 1 - t, torch.tensor([0, 1]))
    assert beside.keys() == {"logits"}
    assert beside["logits"].shape == (2, 3)
    assert torch.equal(others[1]["logits"], beside["logits"])
    assert not torch.allclose(elsewhere[1]["logits"], beside["logits"])
    assert not torch.allclose(others[0], raw)


def test_a_classifier_is_the_mean_of_the_patches_and_a_linear_map_with_gradients_for_all_before_it():
    net = small_net(**CLASSIFYING).train()
    seen = []
    net.blocks[1].register_forward_hook(lambda module, inputs, out: seen.append(out))
    _, beside = net(torch.randn(2, 2, 8, 8), torch.rand(2), torch.tensor([0, 1]))
    assert net.classifier is not None
    expected = seen[0].mean(1) @ net.classifier.linear.weight.T + net.classifier.linear.bias
    assert seen[0].shape[1] == prod(net.config.grid)
    torch.testing.assert_close(beside["logits"], expected)
    beside["logits"].square().sum().backward()
    reached = {name for name, p in net.named_parameters() if p.grad is not None}
    late = ("blocks.2.", "head.", "condition.")
    assert reached == {name for name, _ in net.named_parameters() if not name.startswith(late)}


def test_a_classifier_is_not_computed_outside_of_training():
    net, called = small_net(**CLASSIFYING), []
    assert net.classifier is not None
    net.classifier.register_forward_hook(lambda *_: called.append(1))
    inputs = torch.randn(2, 2, 8, 8), torch.rand(2), torch.tensor([0, 1])
    raw = net(*inputs)
    assert not called
    assert torch.equal(net.train()(*inputs)[0], raw)
    assert called


def test_all_blocks_are_modulated_by_numbers_of_one_type_around_a_classifier():
    """In mixed precision too: compiled blocks would be compiled once more for another."""
    net, types = small_net(**CLASSIFYING).train(), []
    for block in net.blocks:
        block.register_forward_pre_hook(lambda module, inputs: types.append(inputs[1].dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        net(torch.randn(2, 2, 8, 8), torch.rand(2), torch.tensor([0, 1]))
    assert types == [torch.float32] * 3


def test_without_a_classifier_names_and_values_are_what_they_were():
    assert not any("classifier" in name for name in small_net().state_dict())
    net = small_net().train()
    assert net.beside == ()
    assert isinstance(net(torch.randn(2, 2, 8, 8), torch.rand(2), torch.tensor([0, 1])), torch.Tensor)


def test_a_classifier_of_1000_classes_adds_its_map_alone():
    with torch.device("meta"):
        plain, classifying = (JiT(JiTConfig.variant("B/16", classifier_after=after)) for after in (0, 4))
    assert classifying.num_parameters - plain.num_parameters == 768 * 1000 + 1000


def test_a_classifier_needs_classes():
    config = small_config(num_classes=0, **CLASSIFYING)  # in a recipe, 0 is as many as the data have
    with pytest.raises(ValueError, match="classifier_after is 2, but num_classes is 0"):
        JiT(config)


def test_initialise_fills_everything():
    net = JiT(small_config())
    with torch.no_grad():
        for tensor in [*net.parameters(), *net.buffers()]:
            tensor.fill_(float("nan"))
    net.initialise(torch.Generator().manual_seed(0))
    assert not any(tensor.isnan().any() for tensor in [*net.parameters(), *net.buffers()])
    again = JiT(small_config())
    again.initialise(torch.Generator().manual_seed(0))
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), again.parameters(), strict=True))


def test_checkpointing_changes_no_gradient():
    z, t, y = torch.randn(2, 2, 8, 8), torch.rand(2), torch.tensor([0, 1])
    plain, checkpointed = small_net(), small_net()
    checkpoint_blocks(checkpointed)
    for net in (plain, checkpointed):
        net.train()(z, t, y).square().sum().backward()
    assert plain.state_dict().keys() == checkpointed.state_dict().keys()
    for a, b in zip(plain.parameters(), checkpointed.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)  # type: ignore[arg-type]


@pytest.mark.parametrize("cast", ["autocast", "parameters"])
def test_bfloat16_stays_near_float32(cast):
    z, t, y = torch.randn(2, 2, 8, 8), torch.rand(2), torch.tensor([0, 1])
    net = small_net()
    with torch.no_grad():
        exact = net(z, t, y)
        if cast == "parameters":
            cast_parameters(net, torch.bfloat16)
            assert net.positions.dtype == torch.float32
            near = net(z, t, y)
        else:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                near = net(z, t, y)
    assert (near.float() - exact).norm() / exact.norm() < 0.03


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": (8, 9)}, "4x4 does not divide a size of 8x9"),
        ({"size": (8, 8, 8, 8)}, "4 axes"),
        ({"heads": 5}, "5 heads do not divide a width of 32"),
        ({"context_start": 2}, "the blocks are 0 to 1"),
        ({"classifier_after": 2}, "classifier_after is 2; a classifier stands before one of the blocks 1 to 1"),
        ({"classifier_after": -1}, "classifier_after is -1"),
        ({"depth": 4, "classifier_after": 2}, "context_start is 1, and the 2 blocks before the classifier"),
        ({"num_classes": -1}, "num_classes is -1"),
        ({"depth": 0}, "depth is 0"),
    ],
)
def test_shapes_that_make_no_sense(change, message):
    size = change.pop("size", (8, 8))
    with pytest.raises(ValueError, match=message):
        small_config(size, **change)


def test_variants():
    assert JiTConfig.variant("B/4", size=64).grid == (16, 16)
    assert JiTConfig.variant("L/8x16", size=(64, 64)).patch == (8, 16)
    assert JiTConfig.variant("S/4", size=(16, 16, 16)).patch == (4, 4, 4)
    for wrong in ("X/16", "B", "B/x", "JiT-B/16"):
        with pytest.raises(ValueError, match="no variant is called"):
            JiTConfig.variant(wrong)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_blocks_give_the_same_under_the_same_names(dtype):
    z, t, y = torch.randn(2, 2, 8, 8), torch.rand(2), torch.tensor([0, 1])
    plain, compiled = small_net(), small_net()
    for net in (plain, compiled):
        cast_parameters(net, dtype)
    compile_blocks(compiled)
    with torch.no_grad():
        a, b = plain(z, t, y).float(), compiled(z, t, y).float()
    assert (a - b).norm() / a.norm() < (1e-5 if dtype == torch.float32 else 2e-2)
    assert compiled.state_dict().keys() == plain.state_dict().keys()
