"""Weights on disk: round trips, self-description, official checkpoints, and files that are not what they seem."""

import argparse
import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import jit_here, small_net
from safetensors.torch import load_file, save_file

import justimage as ji
from justimage.commands.main import main as jit
from justimage.data.spec import DataSpec
from justimage.execution import blocks_of
from justimage.weights.description import describe
from justimage.weights.load import read
from justimage.weights.official import load_official, read_official, save_official

GOLDENS = Path(__file__).parent / "goldens"


SPEC = DataSpec((8, 8), ("u", "v"), (1.0, -2.0), (3.0, 0.5), classes=("calm", "storm", "gale"))


def model(**kwargs) -> ji.Denoiser:
    sampling = ji.Sampling(steps=5, guidance=1.5, interval=(0.2, 0.9), final="x", shift=3.0)
    return ji.Denoiser(small_net(), spec=SPEC, sampling=sampling, noise_scale=2.0, t_eps=0.02, **kwargs)


@pytest.mark.parametrize(
    "kind", [{"space": "eps"}, {"space": "v"}, {"preconditioner": "edm"}, {"preconditioner": "linear"}]
)
def test_a_folder_is_enough_to_sample(tmp_path, kind):
    before = model(training={"nimg": 7}, licence="mit", **kind)
    before.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"model.safetensors", "config.json", "README.md"}
    after = ji.load(tmp_path, device="cpu", dtype=torch.float32)
    assert describe(after) == describe(before)
    assert torch.equal(after.sample(["storm"], [3]), before.sample(["storm"], [3]))
    assert describe(ji.Denoiser.from_pretrained(tmp_path)) == describe(before)


def test_pushed_and_pulled(tmp_path, monkeypatch):
    """push_to_hub uploads what save_pretrained writes; from_pretrained and load take a hub id."""
    import huggingface_hub

    uploaded = {}

    class Hub:
        def create_repo(self, repository, private, exist_ok):
            uploaded["repository"] = repository

        def upload_folder(self, repo_id, folder_path, commit_message):
            (tmp_path / "hub").mkdir()
            for path in Path(folder_path).iterdir():
                (tmp_path / "hub" / path.name).write_bytes(path.read_bytes())
            return f"https://hub/{repo_id}"

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    before = model()
    assert before.push_to_hub("someone/storms") == "https://hub/someone/storms"
    assert uploaded["repository"] == "someone/storms"
    for after in (ji.Denoiser.from_pretrained("someone/storms"), read("someone/storms")):
        assert torch.equal(after.sample([0], [1]), before.sample([0], [1]))


@pytest.mark.parametrize("preconditioner", ["edm", "linear"])
def test_preconditioners(preconditioner):
    """Table 10 of arXiv 2511.13720: x = c_skip z + c_out net, plain x-prediction as t -> 0, and z at t = 1."""
    plain, wrapped = ji.Denoiser(small_net()), ji.Denoiser(small_net(), preconditioner=preconditioner)
    z, y = torch.randn(2, 2, 8, 8), torch.tensor([0, 1])
    with torch.no_grad():
        at_noise, at_data = torch.full((2,), 1e-6), torch.ones(2)
        c_out = 0.5 if preconditioner == "edm" else 1.0  # sigma_data at t = 0, and 1
        torch.testing.assert_close(
            wrapped(z, at_noise, y).to("x"), c_out * plain.net(z, at_noise, y), atol=1e-4, rtol=1e-4
        )
        torch.testing.assert_close(wrapped(z, at_data, y).to("x"), z)


def test_conversion_command_is_the_identity(tmp_path, monkeypatch):
    """official .pth -> ours -> official .safetensors and .pth: every tensor to the bit."""
    source = str(GOLDENS / "incontext.official-checkpoint.pth")
    folder, back, pth = tmp_path / "ours", tmp_path / "back.safetensors", tmp_path / "back.pth"
    assert jit(["convert", source, str(folder), "--weights", "ema1", "--context-start", "2"]) == 0
    assert jit(["convert", str(folder), str(back)]) == 0
    assert jit(["convert", str(folder), str(pth)]) == 0
    official = load_file(GOLDENS / "incontext.weights.safetensors")
    with torch.serialization.safe_globals([argparse.Namespace]):
        checkpoint = torch.load(pth, weights_only=True)
    for tensors in (load_file(back), checkpoint["model"], checkpoint["model_ema1"], checkpoint["model_ema2"]):
        assert tensors.keys() == official.keys()
        assert all(torch.equal(tensors[name], official[name]) for name in official)
    assert checkpoint["args"].cfg == 2.9
    assert jit(["convert", source, str(folder), "--context-start", "2"]) == 2  # never overwritten
    assert jit(["convert", str(folder), str(back)]) == 2
    again = load_official(pth, context_start=2)
    assert describe(again)["architecture"] == describe(read(folder))["architecture"]


def test_weights_cast_for_sampling_are_not_saved(tmp_path):
    model().save_pretrained(tmp_path / "whole")
    cast = ji.load(tmp_path / "whole", device="cpu", dtype=torch.bfloat16, compile=False)
    assert cast.sample([0], [0]).dtype == torch.float32
    with pytest.raises(ValueError, match=r"are bfloat16.*dtype=torch.float32"):
        cast.save_pretrained(tmp_path / "cast")


def test_the_start_block_of_a_released_variant_is_known(tmp_path):
    """args.model names it where the tensors are that variant's, and only then."""
    config = ji.JiTConfig.variant("B/16", num_classes=1)
    with torch.device("meta"):
        net = ji.JiT(config)
    net = net.to_empty(device="cpu")
    for tensor in net.state_dict().values():
        tensor.zero_()
    path = tmp_path / "official.pth"
    save_official(ji.Denoiser(net), path)
    assert load_official(path).config.context_start == 4
    assert load_official(path, context_start=6).config.context_start == 6
    other = ji.Denoiser(small_net(depth=4, context_start=3, channels=3))
    save_official(other, tmp_path / "other.pth")
    assert load_official(tmp_path / "other.pth").config.context_start == 3


def test_a_classifier_travels_in_our_layout_and_the_official_one_refuses_it(tmp_path):
    before = ji.Denoiser(small_net(depth=3, channels=3, context_start=2, classifier_after=2))
    before.save_pretrained(tmp_path / "w")
    after = read(tmp_path / "w")
    assert after.config == before.config
    ours, theirs = before.net.state_dict(), after.net.state_dict()
    assert {"classifier.linear.weight", "classifier.linear.bias"} < ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    with pytest.raises(
        ValueError, match="official JiT has no auxiliary classifier; this network has one after 2 blocks"
    ):
        save_official(after, tmp_path / "official.pth")
    assert not (tmp_path / "official.pth").exists()


def test_float_attention_gives_the_same(tmp_path):
    io = load_file(GOLDENS / "incontext.io.safetensors")
    loaded = load_official(GOLDENS / "incontext.weights.safetensors", context_start=2)
    for block in blocks_of(loaded.net):
        block.attention.in_float32 = True  # type: ignore[union-attr]
    with torch.no_grad():
        assert (loaded.net(io["x"], io["t"], io["y"]) - io["net_output"]).abs().max() < 1e-5


class Harmful:
    def __reduce__(self):
        return (print, ("code in a checkpoint was run",))


def bad_sources(folder: Path) -> dict[str, tuple[Path, str]]:
    """Files and folders that are not weights -> what the message says."""
    good = folder / "good"
    model().save_pretrained(good)
    cases: dict[str, tuple[Path, str]] = {"absent": (folder / "a" / "b" / "c", "does not exist")}

    def weights(name: str, tensors: bytes | None = None, config: str | None = None) -> Path:
        path = folder / name
        path.mkdir()
        (path / "model.safetensors").write_bytes(tensors or (good / "model.safetensors").read_bytes())
        (path / "config.json").write_text(config or (good / "config.json").read_text())
        return path

    whole = (good / "model.safetensors").read_bytes()
    cases["truncated"] = (weights("truncated", whole[: len(whole) // 2]), "truncated")
    cases["empty"] = (weights("empty", b"\0"), "truncated")
    cases["not json"] = (weights("notjson", config="{"), "is not JSON")
    cases["foreign config"] = (weights("foreign", config='{"_class_name": "DiT"}'), "written by other code")
    fields = json.loads((good / "config.json").read_text())
    fields["architecture"]["flavour"] = 1
    cases["unknown field"] = (weights("field", config=json.dumps(fields)), "flavour")
    (folder / "bare").mkdir()
    cases["empty folder"] = (folder / "bare", "has no config.json")
    tensors = load_file(good / "model.safetensors")
    tensors["surprise"] = tensors.pop("head.linear.bias")
    save_file(tensors, folder / "renamed.safetensors")
    cases["renamed tensor"] = (
        weights("renamed", (folder / "renamed.safetensors").read_bytes()),
        r"missing: head.linear.bias.*unknown: surprise",
    )
    for name, payload in {"harmful": Harmful(), "list": [1], "other": {"state_dict": {}}}.items():
        torch.save(payload, folder / f"{name}.pth")
    cases["code in a pickle"] = (folder / "harmful.pth", "more than tensors and settings")
    cases["a list"] = (folder / "list.pth", "not an official JiT checkpoint")
    cases["another checkpoint"] = (folder / "other.pth", "holds state_dict, but no model_ema1")
    half = (GOLDENS / "incontext.official-checkpoint.pth").read_bytes()
    (folder / "half.pth").write_bytes(half[: len(half) // 2])
    cases["half a checkpoint"] = (folder / "half.pth", "truncated, or not a checkpoint")
    (folder / "text.pth").write_text("hello")
    cases["a text"] = (folder / "text.pth", "not")
    (folder / "old.pth").write_bytes(pickle.dumps({"model": 1}))
    cases["an old pickle"] = (folder / "old.pth", "not")
    return cases


def test_bad_sources_are_refused_with_a_reason(tmp_path, capfd):
    for name, (path, message) in bad_sources(tmp_path).items():
        with pytest.raises(ValueError, match=f"(?s){message}"):
            read(path)
        assert jit(["sample", str(path), "--out", str(tmp_path / "out")]) == 2, name
    assert not (tmp_path / "out").exists()
    assert "was run" not in capfd.readouterr().out


def test_unknown_and_missing_official_tensors_are_listed(tmp_path):
    tensors = load_file(GOLDENS / "incontext.weights.safetensors")
    tensors["net.blocks.1.attn.rel_pos"] = torch.zeros(1)
    save_file(tensors, tmp_path / "more.safetensors")
    with pytest.raises(ValueError, match=r"unknown tensors in official weights: net.blocks.1.attn.rel_pos"):
        load_official(tmp_path / "more.safetensors", context_start=2)
    del tensors["net.blocks.1.attn.rel_pos"], tensors["net.blocks.2.attn.proj.bias"]
    save_file(tensors, tmp_path / "less.safetensors")
    with pytest.raises(ValueError, match=r"missing: blocks.2.attention.out.bias"):
        load_official(tmp_path / "less.safetensors", context_start=2)


def test_weights_are_named(tmp_path):
    with pytest.raises(ValueError, match="the weights model, ema1, ema2, not 'ema3'"):
        read(GOLDENS / "incontext.official-checkpoint.pth", weights="ema3")
    model().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="holds one set of weights"):
        read(tmp_path, weights="ema1")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["strom"], "there is no class 'strom'; the nearest are storm"),
        ([4], "label 4 is out of range: there are 3 classes"),
        (["-1"], "there is no class '-1'"),
        ([0, 1], "2 labels and 3 seeds"),
    ],
)
def test_labels_that_do_not_exist(labels, message):
    with pytest.raises(ValueError, match=message):
        model().sample(labels, [0, 1, 2])
    with pytest.raises(ValueError, match="unconditional"):
        ji.Denoiser(small_net(num_classes=0)).sample([1])
    with pytest.raises(ValueError, match="no labels to guide with"):
        ji.Denoiser(small_net(num_classes=0)).sample(seeds=[1], guidance=2.0)


def test_weight_sets_are_listed_and_swapped_into_a_loaded_model():
    """A model that was given another set draws what one loaded with that set draws; its precision stays."""
    run = Path(__file__).parent / "previous" / "run"
    names = ji.weight_sets(run)
    assert "raw" in names
    assert len(names) > 1
    assert ji.weight_sets(GOLDENS / "incontext.official-checkpoint.pth") == ["model", "ema1", "ema2"]
    assert ji.weight_sets(run / "weights" / "raw") == []
    model = ji.load(run, weights=names[0], device="cpu", dtype=torch.float32)
    first = model.sample([3], [0], steps=3, raw=False)
    ji.swap_weights(model, run, "raw")
    raw = ji.load(run, weights="raw", device="cpu", dtype=torch.float32)
    assert torch.equal(model.sample([3], [0], steps=3, raw=False), raw.sample([3], [0], steps=3, raw=False))
    assert not torch.equal(first, raw.sample([3], [0], steps=3, raw=False))
    assert model.training_summary["weights"] == "raw"
    low = ji.load(run, weights=names[0], device="cpu", dtype=torch.bfloat16, compile=False)
    assert next(ji.swap_weights(low, run, "raw").parameters()).dtype == torch.bfloat16
    with pytest.raises(ValueError, match=r"not 'ema-0\.5'"):
        ji.swap_weights(model, run, "ema-0.5")


def test_weights_of_another_meaning_are_not_swapped_in(tmp_path):
    """The same tensors in a network that is put together otherwise, or for other raw values, classes or noise."""
    ours = model()
    others = {
        "context_start": ji.Denoiser(small_net(context_start=0), spec=ours.spec, noise_scale=2.0, t_eps=0.02),
        "scale": ji.Denoiser(ours.net, spec=replace(SPEC, scale=(30.0, 0.5)), noise_scale=2.0, t_eps=0.02),
        "classes": ji.Denoiser(
            ours.net, spec=replace(SPEC, classes=("storm", "calm", "gale")), noise_scale=2.0, t_eps=0.02
        ),
        "noise_scale": ji.Denoiser(ours.net, spec=ours.spec, t_eps=0.02),
    }
    for name, other in others.items():
        other.save_pretrained(tmp_path / name)
        with pytest.raises(ValueError, match=f"for another model: {name} "):
            ji.swap_weights(ours, tmp_path / name)
    hours = ji.Denoiser(ours.net, spec=replace(SPEC, classes=("6", "0", "12")), noise_scale=2.0, t_eps=0.02)
    hours.save_pretrained(tmp_path / "hours")  # numbers, but names: they are not in their order
    with pytest.raises(ValueError, match="for another model: classes "):
        ji.swap_weights(ours, tmp_path / "hours")
    numbered = ji.Denoiser(ours.net, spec=replace(SPEC, classes=("0", "1", "2")), noise_scale=2.0, t_eps=0.02)
    numbered.save_pretrained(tmp_path / "numbered")
    ji.swap_weights(ours, tmp_path / "numbered")
    assert ours.labels(["gale"]) == [2]
    with pytest.raises(ValueError, match="holds one set of weights; 'raw' cannot be chosen from it"):
        ji.swap_weights(ours, tmp_path / "numbered", "raw")


@pytest.mark.parametrize("kind", [".pth", ".safetensors"])
def test_what_the_official_layout_has_no_place_for_is_said(tmp_path, monkeypatch, capsys, kind):
    model().save_pretrained(tmp_path / "m")
    assert jit_here("convert", "m", f"m{kind}", cwd=tmp_path, monkeypatch=monkeypatch) == 0
    said = capsys.readouterr().out
    for lost in ("raw values: float32, channels u, v", "class names (calm, storm, gale)", "final x", "shift 3.0"):
        assert lost in said
    assert ("noise_scale 2" in said) == ("steps 5" in said) == (kind == ".safetensors")
    spec = DataSpec.pixels((8, 8), 3, ("0", "1", "2"))
    ji.Denoiser(small_net(channels=3), spec=spec).save_pretrained(tmp_path / "images")
    assert jit_here("convert", "images", f"images{kind}", cwd=tmp_path, monkeypatch=monkeypatch) == 0
    assert "no place" not in capsys.readouterr().out
    other = ".pth" if kind == ".safetensors" else ".safetensors"
    start = ["--context-start", "1"] if kind == ".safetensors" else []
    assert jit_here("convert", f"images{kind}", f"again{other}", *start, cwd=tmp_path, monkeypatch=monkeypatch) == 0
    before, after = (read_official(tmp_path / name)[0] for name in (f"images{kind}", f"again{other}"))
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert jit_here("convert", "nowhere.pth", "out", cwd=tmp_path, monkeypatch=monkeypatch) == 2
    assert "nowhere.pth does not exist" in capsys.readouterr().err


@pytest.mark.parametrize("labels", [[1.0], torch.tensor([1.7]), [True], [], torch.zeros(2, 1), [[0]], 1.5])
def test_labels_are_names_or_whole_numbers(labels):
    for spec in (None, model().spec):
        with pytest.raises(ValueError, match="labels are names of classes or whole numbers"):
            ji.Denoiser(small_net(), spec=spec).labels(labels)


def test_numbers_as_names_of_classes_are_not_places():
    hours = ji.Denoiser(small_net(), spec=replace(SPEC, classes=("0", "6", "12")))
    assert hours.labels(["6", "12", 1]) == [1, 2, 1]
    with pytest.raises(ValueError, match="there is no class '2'"):
        hours.labels(["2"])
    assert model().labels(["2"]) == [2]


@pytest.mark.parametrize("seeds", [[2**32], [1.5], [-1]])
def test_seeds_are_those_that_torch_tells_apart(seeds):
    with pytest.raises(ValueError, match="seeds are whole numbers from 0 to 4,294,967,295"):
        model().sample([0], seeds)
    asked: list[Any] = [np.int64(3), [3.0], 3]
    same = [model().sample([0], each, steps=1) for each in asked]
    assert torch.equal(same[0], same[1]) and torch.equal(same[0], same[2])
