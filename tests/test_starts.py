"""Starts: which one a run takes, weights of another model as a start, and adapters beside frozen weights."""

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import jit_here, small_config
from rich.console import Console
from safetensors.torch import load_file

from justimage.data.arrays import Arrays
from justimage.data.spec import DataSpec
from justimage.denoiser import Denoiser
from justimage.disk.reading import nearest
from justimage.networks.conditions import Part
from justimage.networks.dit import DiT, DiTConfig
from justimage.networks.jit import JiT, JiTConfig
from justimage.networks.mlp import MLPConfig, ToyMLP
from justimage.parallel import Processes
from justimage.process import diffuse
from justimage.runs.recipes import Recipe, Report
from justimage.runs.run import train_run
from justimage.runs.starts import InitFrom
from justimage.samplers import Sampling
from justimage.training.adapters import LoRA, adapted, merge
from justimage.training.build import build
from justimage.training.loss import flow_matching
from justimage.training.settings import Training
from justimage.training.state import saved_states
from justimage.weights.load import read
from justimage.weights.transfer import class_places, transfer

ALONE = Processes(device=torch.device("cpu"))
NAMES = ("ant", "bee", "cat", "dog", "eel")


def spec_of(size=(8, 8), channels=("t", "u"), classes=NAMES[:3]) -> DataSpec:
    return DataSpec(
        tuple(size), tuple(channels), (0.0,) * len(channels), (1.0,) * len(channels), classes=tuple(classes)
    )


def model_of(spec: DataSpec, seed: int = 0, patch: int = 4, **changes: Any) -> Denoiser:
    """A network with random weights everywhere, so that every tensor matters."""
    network = {name: changes.pop(name) for name in list(changes) if name in JiTConfig.__dataclass_fields__}
    config = small_config(spec.size, patch, channels=len(spec.channels), num_classes=len(spec.classes), **network)
    net = JiT(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_(std=0.1, generator=generator)
    return Denoiser(net, spec=spec, **changes).eval()


def drawn(model: Denoiser, labels: list[int], seed: int = 0, channels: list[int] | None = None) -> torch.Tensor:
    """What a model predicts of fixed states: channels of a state are drawn by their number."""
    channels = channels or list(range(model.config.channels))
    planes = [np.random.default_rng([seed, c]).normal(size=(len(labels), *model.config.size)) for c in channels]
    z = torch.tensor(np.stack(planes, 1), dtype=torch.float32)
    return model(z, torch.linspace(0.2, 0.8, len(labels)), torch.tensor(labels)).to("x")


def tables(net: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and buffers by name, those that are not saved too."""
    return dict(net.named_parameters()) | dict(net.named_buffers())


# Weights of one model as the start of another.


def test_the_same_network_starts_as_the_weights_are():
    base, model = model_of(spec_of()), model_of(spec_of(), seed=1)
    assert not torch.equal(drawn(base, [0, 1, 2, 3]), drawn(model, [0, 1, 2, 3]))
    found = transfer(model, base)
    assert set(found.loaded) == set(base.net.state_dict())
    assert not found.resized | found.drawn | found.left
    assert torch.equal(drawn(base, [0, 1, 2, 3]), drawn(model, [0, 1, 2, 3]))


def test_classes_are_found_by_their_names():
    """Kept classes draw what they drew, whatever their place; a new one and none draw what none drew."""
    base = model_of(spec_of(classes=("bee", "cat", "ant")))
    model = model_of(spec_of(classes=("ant", "bee", "dog")), seed=1)
    found = transfer(model, base)
    assert list(found.resized) == ["condition.table"]
    assert "2 classes by name, 1 new started at the null row, 1 left out" in found.resized["condition.table"]
    assert torch.equal(drawn(model, [0, 1, 2, 3]), drawn(base, [2, 0, 3, 3]))


@pytest.mark.parametrize(
    ("theirs", "ours", "places"),
    [
        (("0", "1", "2"), ("0", "1", "2", "3"), [0, 1, 2, None]),
        (("0", "1", "3"), ("0", "1", "2", "3"), [0, 1, None, 2]),  # names that are numbers are names
        (("0", "1", "2"), ("ant", "bee", "cat"), [0, 1, 2]),  # as many, and known on one side alone: by index
        (("0", "1", "2"), ("ant", "bee"), [None, None]),
        (("ant", "bee"), ("cat", "dog"), [None, None]),
        (("ant", "bee"), (), []),
        ((), ("ant", "bee"), [None, None]),
    ],
)
def test_which_class_is_which(theirs, ours, places):
    assert class_places(model_of(spec_of(classes=ours)), model_of(spec_of(classes=theirs)))[0] == places


def test_without_names_classes_go_by_index():
    base, model = model_of(spec_of()), model_of(spec_of(classes=NAMES), seed=1)
    base.spec = None
    assert class_places(model, base) == ([0, 1, 2, None, None], "by index")


def test_weights_that_know_no_classes_draw_as_before_for_every_class():
    base, model = model_of(spec_of(classes=())), model_of(spec_of(), seed=1)
    found = transfer(model, base)
    assert "no classes" in found.resized["condition.table"]
    z = torch.randn(4, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    t = torch.full((4,), 0.5)
    torch.testing.assert_close(base(z, t).to("x"), model(z, t, torch.tensor([0, 1, 2, 3])).to("x"))


@pytest.mark.parametrize("kind", ["jit", "no tokens", "dit", "mlp"])
def test_without_classes_a_network_draws_what_the_weights_draw_without_a_class(kind):
    def made(classes: int, seed: int) -> Denoiser:
        sizes: dict[str, Any] = {"channels": 2, "width": 16, "num_classes": classes}
        if kind == "mlp":
            net: torch.nn.Module = ToyMLP(MLPConfig(size=(8,), **sizes))
        elif kind == "dit":
            net = DiT(DiTConfig(size=(8, 8), patch=(4, 4), depth=2, heads=2, **sizes))
        else:
            net = JiT(small_config(num_classes=classes, context_tokens=0 if kind == "no tokens" else 2))
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(seed))
        return Denoiser(net).eval()

    base, model = made(3, 0), made(0, 1)
    found = transfer(model, base)
    assert list(found.left) == ["condition.table"]
    z = torch.randn(4, 2, *model.config.size, generator=torch.Generator().manual_seed(0))
    t = torch.linspace(0.2, 0.8, 4)
    torch.testing.assert_close(model(z, t).value, base(z, t).value, rtol=1e-5, atol=1e-6)


def test_another_size_has_its_own_positions_and_keeps_the_learned_ones():
    base, model = model_of(spec_of((8, 8))), model_of(spec_of((16, 12)), seed=1)
    found = transfer(model, base)
    here, there, at_that_size = tables(model.net), tables(base.net), tables(JiT(small_config((16, 12))))
    assert torch.equal(here["positions"], at_that_size["positions"])
    assert torch.equal(here["rotations"], at_that_size["rotations"])
    assert list(found.resized) == ["positions"]
    assert torch.equal(here["condition.positions"], there["condition.positions"])
    # The network runs at any size, so the transferred one is the base run at this size.
    z = torch.randn(2, 2, 16, 12, generator=torch.Generator().manual_seed(0))
    t, y = torch.tensor([0.3, 0.7]), torch.tensor([0, 3])
    assert torch.equal(model(z, t, y).to("x"), base(z, t, y).to("x"))


def test_another_grid_with_as_many_patches_has_its_own_positions():
    base, model = model_of(spec_of((8, 8))), model_of(spec_of((4, 16)), seed=1)
    assert "positions" in transfer(model, base).resized
    assert torch.equal(tables(model.net)["positions"], tables(JiT(small_config((4, 16))))["positions"])


@pytest.mark.parametrize("kind", ["jit", "no bottleneck", "dit"])
def test_channels_are_found_by_their_names(kind):
    """Channels of old draw what they drew, whatever a new one holds; a new one is drawn as zero."""

    def made(channels: tuple[str, ...], seed: int) -> Denoiser:
        spec = spec_of(channels=channels)
        if kind != "dit":
            return model_of(spec, seed, bottleneck=8 if kind == "jit" else 0)
        sizes: dict[str, Any] = {"width": 16, "depth": 2, "heads": 2, "num_classes": 3}
        net = DiT(DiTConfig(size=spec.size, patch=(4, 4), channels=len(channels), **sizes))
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(seed))
        return Denoiser(net, spec=spec)

    base, model = made(("t", "u", "v"), 0), made(("v", "w", "t"), 1)
    found = transfer(model, base)
    assert "2 of 3 channels by name: v, t" in found.resized["head.linear.weight"]
    # u is not there any more: of a base whose u is zero everywhere, the others are drawn alike.
    z = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    z[:, 1] = 0
    t, y = torch.tensor([0.3, 0.7]), torch.tensor([0, 3])
    theirs = base(z[:, [0, 1, 2]], t, y).value
    with_noise = torch.stack((z[:, 2], torch.randn(2, 8, 8), z[:, 0]), 1)  # v, w, t
    ours = model(with_noise, t, y).value
    torch.testing.assert_close(ours[:, 2], theirs[:, 0])
    torch.testing.assert_close(ours[:, 0], theirs[:, 2])
    assert (ours[:, 1] == 0).all()


@pytest.mark.parametrize("channels", [("grey",), ("red", "green", "blue"), ("c0", "c1", "c2")])
def test_another_number_of_channels_without_common_names_is_refused(channels):
    base, model = model_of(spec_of(channels=("c0", "c1"))), model_of(spec_of(channels=channels), seed=1)
    before = {name: tensor.clone() for name, tensor in model.net.state_dict().items()}
    with pytest.raises(ValueError, match=r"channels: 2 \(c0, c1\) in the weights, "):
        transfer(model, base)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.net.state_dict().items())


@pytest.mark.parametrize("patch", [2, (2, 8)])
def test_another_patch_draws_its_embedding_and_head_anew(patch):
    base = model_of(spec_of())
    spec = spec_of()
    config = small_config(spec.size, 4)
    config = replace(config, patch=(patch, patch) if isinstance(patch, int) else patch)
    model = Denoiser(JiT(config), spec=spec)
    fresh = {name: tensor.clone() for name, tensor in model.net.state_dict().items()}
    found = transfer(model, base)
    assert set(found.drawn) == {"embedding.down.weight", "head.linear.weight", "head.linear.bias"}
    now = model.net.state_dict()
    assert all(torch.equal(now[name], fresh[name]) for name in found.drawn)
    assert all(torch.equal(now[name], base.net.state_dict()[name]) for name in found.loaded)
    assert found.loaded


def test_a_condition_that_the_weights_do_not_know_is_drawn_anew():
    base, model = model_of(spec_of()), model_of(spec_of(), seed=1)
    net = JiT(replace(model.config, conditions=(Part("month", "vector", 2),)))
    found = transfer(Denoiser(net), base)
    assert {name.rsplit(".", 1)[0] for name in found.drawn} == {
        "condition.parts.month",
        "condition.parts.month.hidden",
        "condition.parts.month.out",
    }
    back = transfer(model, Denoiser(net))
    assert set(back.left) == set(found.drawn)


def test_what_means_something_else_is_refused_with_a_list_of_all_that_differs_and_what_would_be_kept():
    base = model_of(spec_of(), space="v", noise_scale=2.0)
    other = model_of(spec_of(classes=NAMES), depth=3, qk_norm=False, preconditioner="edm")
    with pytest.raises(ValueError) as refused:
        transfer(other, base, "runs/x")
    text = str(refused.value)
    for part in (
        "runs/x cannot be the start of this run",
        "network.depth: 2 in the weights, 3 here",
        "network.qk_norm: True in the weights, False here",
        "prediction: v in the weights, x here",
        "preconditioner: none in the weights, edm here",
        "noise-scale: 2.0 in the weights, 1.0 here",
        "would be kept as they are: positions (1), embedding (3)",
        "and 1 resized: condition (1)",
        "--network.depth 2 --network.qk-norm --prediction v --preconditioner none --noise-scale 2.0",
    ):
        assert part in text, part


def test_another_network_is_refused():
    base = model_of(spec_of())
    net = DiT(DiTConfig(size=(8, 8), patch=(4, 4), channels=2, num_classes=3, width=32, depth=2, heads=4))
    with pytest.raises(ValueError, match="network: jit in the weights, dit here"):
        transfer(Denoiser(net), base)


# Adapters.


def adapted_state(base: Denoiser, lora: LoRA, anew: tuple[str, ...] = (), **training: Any):
    config = Training(batch_size=4, duration_nimg=8, ema_decays=(0.5,), ema_start_nimg=0, lora=lora, **training)
    return build(base, config, ALONE, adopt=True, anew=anew), config


def test_adapters_begin_at_the_base_and_its_loss():
    base, same = model_of(spec_of()), model_of(spec_of())
    before = {name: tensor.clone() for name, tensor in base.net.state_dict().items()}
    state, config = adapted_state(base, LoRA(rank=4))
    assert len(adapted(base.net)) == 2 * 5 + 1  # five maps of each block, and the head's modulation
    assert torch.equal(drawn(base.eval(), [0, 1, 2, 3]), drawn(same, [0, 1, 2, 3]))
    x = torch.randn(4, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    y = {"labels": torch.tensor([0, 1, 2, 0])}
    ours = flow_matching(base, config)(state.runner.eval(), x, y, range(4)).total
    theirs = flow_matching(same, config)(same, x, y, range(4)).total
    assert torch.equal(ours, theirs)
    now = base.net.state_dict()
    assert all(torch.equal(now[name], tensor) for name, tensor in before.items())  # the names are the plain network's
    assert all("lora_" in name for name in now if name not in before)


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_merged_weights_draw_what_the_adapters_draw(scale):
    base = model_of(spec_of())
    plain = base.net.state_dict().keys()
    adapted_state(base, LoRA(rank=3, scale=scale))
    with torch.no_grad():
        for name, parameter in base.net.named_parameters():
            if name.endswith("lora_up"):
                parameter.normal_(generator=torch.Generator().manual_seed(1))
    before = drawn(base.eval(), [0, 1, 2, 3])
    assert not torch.allclose(before, drawn(model_of(spec_of()), [0, 1, 2, 3]), atol=1e-2)
    shared = {name: tensor.clone() for name, tensor in base.net.state_dict().items()}
    held = dict(base.net.named_parameters())
    merge(base.net)
    assert base.net.state_dict().keys() == plain
    torch.testing.assert_close(before, drawn(base, [0, 1, 2, 3]), rtol=1e-4, atol=1e-5)
    assert all(torch.equal(held[name], shared[name]) for name in held)  # merging writes into nobody's tensors


def test_only_adapters_classes_and_what_is_new_are_trained_and_averaged():
    base = model_of(spec_of())
    state, _ = adapted_state(base, LoRA(rank=2, parts=("attention.qkv",)), anew=("head.linear.weight",))
    trained = {name for name, p in base.net.named_parameters() if p.requires_grad}
    assert trained == {
        *(f"blocks.{i}.attention.qkv.lora_{way}" for i in range(2) for way in ("down", "up")),
        "condition.table",
        "head.linear.weight",
    }
    assert set(state.ema.names) == trained
    assert {name.split("/", 2)[2] for name in state.ema.state_dict() if name.count("/") == 2} <= trained
    in_optimizer = {id(p) for group in state.optimizer.param_groups for p in group["params"]}
    assert in_optimizer == {id(p) for name, p in base.net.named_parameters() if name in trained}


def test_of_a_network_of_the_papers_size_few_parameters_are_trained():
    """JiT-B/16 with a rank of 8: under 3 % of its parameters."""
    with torch.device("meta"):
        net = JiT(JiTConfig.variant("B/16"))
    rank, total = 8, sum(p.numel() for p in net.parameters())
    ends = LoRA().parts
    maps = [m for name, m in net.named_modules() if isinstance(m, torch.nn.Linear) and name.endswith(ends)]
    added = sum(rank * (m.in_features + m.out_features) for m in maps) + tables(net)["condition.table"].numel()
    assert 0 < added / (total + added) < 0.03


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        (LoRA(rank=32), "lora.rank is 32, and blocks.0.attention.qkv is 96 x 32: it must be lower"),
        (LoRA(rank=2, parts=("attn",)), r"no linear map is called 'attn'; there are .*attention\.qkv"),
    ],
)
def test_adapters_that_cannot_be_are_refused(lora, message):
    with pytest.raises(ValueError, match=message):
        adapted_state(model_of(spec_of()), lora)


@pytest.mark.parametrize("fields", [{"rank": -1}, {"scale": 0.0}, {"scale": float("nan")}, {"parts": ()}])
def test_settings_of_adapters_are_checked(fields):
    with pytest.raises(ValueError, match=f"lora.{next(iter(fields))}"):
        LoRA(**fields)


# Runs.


def waves(classes: tuple[str, ...], count: int = 40, seed: int = 0) -> Arrays:
    g = np.random.default_rng(seed)
    label = np.arange(count) % len(classes)
    along = np.linspace(0, 2 * np.pi, 8, endpoint=False)
    values = np.cos(along * (1 + label)[:, None, None] + g.uniform(0, 2 * np.pi, (count, 2))[..., None])
    x = np.broadcast_to(values.reshape(count, 2, 1, 8), (count, 2, 8, 8))
    return Arrays(np.ascontiguousarray(x, dtype=np.float32), label, classes=classes)


RECIPE = Recipe(
    network=small_config(num_classes=0),
    training=Training(
        duration_nimg=96, batch_size=16, lr=2e-3, ema_decays=(0.9,), ema_start_nimg=0, seed=3, precision="float32"
    ),
    sampling=Sampling(steps=2),
    report=Report(tick_nimg=16, sample_nimg=10**6, save_nimg=32, preview_steps=1),
)


def run(folder: Path, classes: tuple[str, ...] = NAMES[:3], init_from: Any = None, **training: Any) -> tuple[Any, str]:
    """Train in a folder -> the state, and all that was printed."""
    out = io.StringIO()
    recipe = replace(RECIPE, training=replace(RECIPE.training, **training))
    console = Console(file=out, width=200)
    return train_run(
        recipe, waves(classes), folder, processes=ALONE, console=console, init_from=init_from
    ), out.getvalue()


def final(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(saved_states(folder / "state")[-1] / "state.safetensors")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "base"
    _, said = run(folder)
    assert said.startswith("start  scratch, seed 3\n")
    return folder


def test_a_run_starts_from_weights_and_says_so_first(tmp_path, base):
    state, said = run(tmp_path / "new", NAMES[:4], InitFrom(str(base), "raw"), lr=1e-9, duration_nimg=16)
    kept = len(state.model.net.state_dict()) - 1
    told = f"start  weights of {base} (raw, trained on 96 images): {kept} tensors loaded, 1 resized, 0 skipped"
    assert said.splitlines()[0] == told
    assert "condition.table: 4 -> 5 rows: 3 classes by name, 1 new started at the null row" in said
    facts = json.loads((tmp_path / "new" / "recipe.json").read_text())["init_from"]
    assert (facts["path"], facts["weights"], facts["nimg"]) == (str(base), "raw", 96)
    assert len(facts["sum"]) == 32
    # At a rate of nothing, the averages too are the weights that it began from.
    began = read(base, weights="raw").net.state_dict()
    for tensors in (state.model.net.state_dict(), state.ema.tensors(0.9)):
        for name, tensor in tensors.items():
            if name != "condition.table":
                torch.testing.assert_close(tensor, began[name], rtol=0, atol=1e-6)


def test_a_run_goes_on_from_its_own_state_without_the_weights_that_it_began_from(tmp_path, base, monkeypatch):
    """Bit for bit, also if it was stopped before its first save, and whatever --init-from says by then."""
    borrowed = tmp_path / "borrowed"
    shutil.copytree(base, borrowed)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run(whole, NAMES[:4], borrowed)

    def killed(*_: Any, **__: Any) -> None:
        raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        patch.setattr("justimage.runs.run._train_and_keep", killed)
        with pytest.raises(RuntimeError, match="killed"):
            run(cut, NAMES[:4], borrowed)
    shutil.rmtree(borrowed)
    assert [each.name for each in saved_states(cut / "state")] == ["000000000"]
    _, said = run(cut, NAMES[:4], tmp_path / "nowhere")
    first = said.splitlines()[0]
    assert first.startswith("start  resumed at nimg = 0, from ")
    assert f"it began from the weights of {borrowed} (ema-0.9, trained on 96 images)" in first
    assert "nowhere is not read, as the run has its own state" in first
    ours, theirs = final(cut), final(whole)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    facts = [json.loads((folder / "recipe.json").read_text())["init_from"] for folder in (whole, cut)]
    assert facts[0] == facts[1]
    for folder in (whole, cut):
        said = read(folder).training_summary
        assert said["began_from"] == f"{borrowed} (ema-0.9, trained on 96 images)"
        assert said["nimg"] == 96


def test_a_run_begun_from_weights_does_not_begin_anew_from_scratch(tmp_path, base):
    folder = tmp_path / "new"
    run(folder, init_from=base)
    shutil.rmtree(folder / "state")
    with pytest.raises(
        ValueError, match=f"was begun from the weights of {base}, and has no state yet; add --init-from"
    ):
        run(folder)


def test_an_official_checkpoint_is_a_start_and_its_licence_stays(tmp_path):
    source = Arrays(np.zeros((20, 3, 16, 16), np.uint8) + np.arange(20, dtype=np.uint8)[:, None, None, None] * 9)
    size: dict[str, Any] = {"width": 32, "depth": 4, "heads": 4, "bottleneck": 12, "context_tokens": 4}
    network = JiTConfig(size=(16, 16), patch=(4, 4), num_classes=0, context_start=1, **size)
    recipe = replace(
        RECIPE,
        network=network,
        training=replace(RECIPE.training, duration_nimg=16, ema_decays=()),
    )
    official = Path(__file__).parent / "goldens" / "incontext.official-checkpoint.pth"
    given, folder = InitFrom(str(official), "ema1", context_start=1), tmp_path / "new"
    for init_from in (given, None):  # the second time it resumes
        quiet = Console(quiet=True)
        state = train_run(recipe, source, folder, processes=ALONE, console=quiet, init_from=init_from)
        assert state.model.licence == "mit"
    with pytest.raises(ValueError, match=r"network\.context_start: 1 in the weights, 2 here"):
        other = replace(recipe, network=replace(network, context_start=2))
        train_run(other, source, tmp_path / "other", processes=ALONE, init_from=given)
    assert "condition.table" in json.loads((folder / "recipe.json").read_text())["init_from"]["left"]
    assert read(folder).licence == read(official, context_start=1).licence == "mit"


LORA = {"lora": LoRA(rank=4), "duration_nimg": 64, "lr": 1e-2}


def test_a_run_of_adapters_keeps_merged_weights_and_the_adapters_alone(tmp_path, base):
    folder = tmp_path / "lora"
    state, said = run(folder, NAMES[:4], base, **LORA)
    assert "the rest is frozen" in said
    for name in ("raw", "ema-0.9"):
        merged, alone = read(folder, weights=name), read(folder / "adapters" / name)
        assert merged.net.state_dict().keys() == read(base).net.state_dict().keys()
        for each, tensor in merged.net.state_dict().items():
            assert torch.equal(tensor, alone.net.state_dict()[each]), each
        assert alone.spec == merged.spec
    state.model.eval()
    torch.testing.assert_close(
        drawn(state.model, [0, 1, 2, 3]), drawn(read(folder, weights="raw"), [0, 1, 2, 3]), rtol=1e-4, atol=1e-5
    )
    began = read(base).net.state_dict()
    tensors = state.model.net.state_dict()
    assert all(torch.equal(tensors[name], began[name]) for name in began if name != "condition.table")
    ours = sum(path.stat().st_size for path in (folder / "adapters" / "raw").iterdir())
    assert ours < 0.5 * (folder / "weights" / "raw" / "model.safetensors").stat().st_size


def test_a_run_of_adapters_resumes_bit_for_bit_without_its_base(tmp_path, base):
    borrowed = tmp_path / "borrowed"
    shutil.copytree(base, borrowed)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run(whole, NAMES[:4], borrowed, **LORA)
    run(cut, NAMES[:4], borrowed, **LORA)
    shutil.rmtree(saved_states(cut / "state")[-1])
    assert saved_states(cut / "state")[-1].name == "000000032"
    shutil.rmtree(borrowed)
    _, said = run(cut, NAMES[:4], **LORA)
    assert said.startswith("start  resumed at nimg = 32")
    ours, theirs = final(cut), final(whole)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_what_is_new_is_trained_beside_adapters_also_when_resumed(tmp_path, base):
    recipe = replace(
        RECIPE, network=small_config(num_classes=0, patch=2), training=replace(RECIPE.training, **LORA, ema_decays=())
    )
    trained = []
    for duration in (16, 32):
        recipe = replace(recipe, training=replace(recipe.training, duration_nimg=duration))
        state = train_run(
            recipe,
            waves(NAMES[:3]),
            tmp_path / "new",
            processes=ALONE,
            console=Console(quiet=True),
            init_from=base if duration == 16 else None,
        )
        trained.append(
            {name for name, p in state.model.net.named_parameters() if p.requires_grad and "lora" not in name}
        )
    assert trained[0] == trained[1]
    assert trained[0] == {"condition.table", "embedding.down.weight", "head.linear.weight", "head.linear.bias"}


def test_adapters_of_weights_that_changed_or_moved(tmp_path, base, monkeypatch):
    borrowed, moved = tmp_path / "borrowed", tmp_path / "moved"
    shutil.copytree(base, borrowed)
    run(tmp_path / "lora", NAMES[:4], borrowed, **LORA)
    adapters = tmp_path / "lora" / "adapters" / "raw"
    expected = drawn(read(adapters), [0, 3])
    borrowed.rename(moved)
    with pytest.raises(ValueError, match=r"their base cannot be read: .*borrowed does not exist.*--base PATH"):
        read(adapters)
    assert torch.equal(drawn(read(adapters, base=moved), [0, 3]), expected)
    average = moved / "weights" / "ema-0.9"
    assert torch.equal(drawn(read(adapters, base=average), [0, 3]), expected)
    with pytest.raises(ValueError, match="holds adapters of other weights than those given"):
        read(adapters, base=moved / "weights" / "raw")
    with pytest.raises(ValueError, match="needs no base"):
        read(moved, base=moved)
    command = ["convert", str(adapters), "merged", "--base", str(moved)]
    assert jit_here(*command, cwd=tmp_path, monkeypatch=monkeypatch) == 0
    assert torch.equal(drawn(read(tmp_path / "merged"), [0, 3]), expected)
    # They are a start like any other.
    state, _ = run(tmp_path / "again", NAMES[:4], moved, lora=LoRA(rank=2), duration_nimg=16)
    assert state.nimg == 16


def test_adapters_need_weights_to_stand_beside(tmp_path):
    with pytest.raises(ValueError, match="adapters of rank 4 need weights to stand beside: add --init-from WEIGHTS"):
        run(tmp_path / "new", **LORA)
    assert not (tmp_path / "new").exists()


def test_the_loss_of_a_start_is_the_loss_of_its_weights(tmp_path, base):
    """The first step of a run that starts from weights of the same classes sees them and nothing else."""
    _, _ = run(tmp_path / "new", init_from=InitFrom(str(base), "raw"), duration_nimg=16)
    first = json.loads((tmp_path / "new" / "log.jsonl").read_text().splitlines()[0])
    model, source, training = read(base, weights="raw"), waves(NAMES[:3]), RECIPE.training
    from justimage.data.loader import indices_at  # the samples of the first batch

    indices = indices_at(source, training.seed, range(16))
    x = source.spec.encode(torch.tensor(np.stack([source[int(i)][0] for i in indices])))
    y = {"labels": torch.tensor([int(source[int(i)][1]["labels"]) for i in indices])}
    loss = flow_matching(model, training)(model, x, y, range(16)).total.mean()
    assert first["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert diffuse(x, x, torch.ones(16)).equal(x)  # t = 1 is data: the convention that all of this rests on


# What bad input gets.


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("runs/mnist-dmeo", "; did you mean runs/mnist-demo?"),
        ("rusn/mnist-demo", "; did you mean runs/mnist-demo?"),
        ("runs/mnist-dmeo/weights/row", "; did you mean runs/mnist-demo/weights/raw?"),
        ("runs/mnist-demo/weights/ema-0.99", "; runs/mnist-demo/weights holds raw"),
        ("checkpoint-lst.pth", "; did you mean checkpoint-last.pth?"),
        ("checkpoint-last.pth/x", ""),
        ("something-else", ""),
    ],
)
def test_the_nearest_path_that_exists(tmp_path, monkeypatch, path, message):
    (tmp_path / "runs" / "mnist-demo" / "weights" / "raw").mkdir(parents=True)
    (tmp_path / "runs" / "cifar10").mkdir()
    (tmp_path / "checkpoint-last.pth").touch()
    monkeypatch.chdir(tmp_path)
    assert nearest(Path(path)) == message
    if message.startswith("; did"):
        expected = tmp_path / message.removeprefix("; did you mean ").removesuffix("?")
        assert nearest(tmp_path / path) == f"; did you mean {expected}?"


@pytest.mark.parametrize(
    "command",
    [
        ["sample", "runs/basee"],
        ["evaluate", "runs/basee"],
        ["sweep", "runs/basee"],
        ["convert", "runs/basee", "x.pth"],
        ["train", "mnist-demo", "--init-from", "runs/basee"],
    ],
)
def test_a_model_that_does_not_exist_is_refused_with_the_nearest_path(tmp_path, base, monkeypatch, capsys, command):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "base").symlink_to(base)
    assert jit_here(*command, cwd=tmp_path, monkeypatch=monkeypatch) == 2
    assert "runs/basee does not exist" in (said := capsys.readouterr().err)
    assert "did you mean runs/base?" in said
    assert not (tmp_path / "runs" / "mnist-demo").exists()


def test_options_of_a_start_without_a_start_are_refused(tmp_path, monkeypatch, capsys):
    assert jit_here("train", "mnist-demo", "--weights", "raw", cwd=tmp_path, monkeypatch=monkeypatch) == 2
    assert "--init-from" in capsys.readouterr().err
