"""Weights that somebody else wrote, or that were damaged: whatever is wrong with them, one line says it."""

import argparse
import copy
import json
import random
from collections.abc import Callable, Iterator
from math import inf, nan
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import jit_here, small_net
from safetensors.torch import load_file, save_file

import justimage as ji
from justimage.data.origin import Coordinate, Origin, Variable
from justimage.data.spec import DataSpec, Given
from justimage.networks.conditions import Part
from justimage.weights.load import read
from justimage.weights.official import save_official

VALUES: tuple[Any, ...] = (
    None,
    [],
    {},
    "x",
    -1,
    0,
    10**9,
    10**400,
    nan,
    inf,
    True,
    1.5,
    [1],
    [[]],
    {"a": [None]},
    ["x"],
)


def a_model() -> ji.Denoiser:
    """One with everything that a description can hold."""
    origin = Origin(
        ("lat", "lon"),
        (Variable("t", (("level", 500.0),), (("units", "K"),)), Variable("t", (("level", 850.0),))),
        (Coordinate("lat", ("lat",), (0.0,) * 8), Coordinate("level", ("level",), (500.0, 850.0))),
        (("title", "a"),),
    )
    given = (Given("month", "vector", 2, 0, (0.0, 0.0), (1.0, 1.0)),)
    spec = DataSpec((8, 8), ("u", "v"), (1.0, -2.0), (3.0, 0.5), classes=("a", "b", "c"), origin=origin, given=given)
    return ji.Denoiser(
        small_net(conditions=(Part("month", "vector", 2),)), spec=spec, training={"nimg": 7}, licence="mit"
    )


def places(value: Any, path: tuple = ()) -> Iterator[tuple]:
    """The path of everything inside of plain values."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, each in inside:
        yield (*path, name)
        yield from places(each, (*path, name))


def changed(values: Any, path: tuple, change: Callable[[Any, Any], None]) -> Any:
    """A copy in which `change` was applied to what holds the last part of the path."""
    out = copy.deepcopy(values)
    holder = out
    for name in path[:-1]:
        holder = holder[name]
    change(holder, path[-1])
    return out


def mutations(values: Any) -> Iterator[tuple[str, Any]]:
    """Every value replaced by each of VALUES, every one left out, every object with one more."""
    for path in places(values):
        for value in VALUES:
            yield (
                f"{path} = {value!r:.20}",
                changed(values, path, lambda holder, name, value=value: set_to(holder, name, value)),
            )
        yield f"without {path}", changed(values, path, lambda holder, name: holder.__delitem__(name))


def set_to(holder: Any, name: Any, value: Any) -> None:
    holder[name] = value


def works_or_is_refused(source: Path, what: str) -> bool:
    """Whether it was refused. Anything but a ValueError, or a model that works, fails."""
    try:
        model = read(source)
        if model.spec is not None and model.spec.needs:
            model.sample(seeds=[0], steps=1)
    except ValueError as error:
        assert str(error), what
        return True
    except Exception as error:
        pytest.fail(f"{what}: {type(error).__name__}: {error}")
    return False


def test_a_config_with_anything_wrong_is_refused_or_works(tmp_path):
    a_model().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    good = json.loads(path.read_text())
    assert not works_or_is_refused(tmp_path, "good")
    refused = 0
    cases = [(f"all is {value!r:.20}", value) for value in VALUES]
    cases += random.Random(0).sample(list(mutations(good)), 250)
    for what, config in cases:
        path.write_text(json.dumps(config))
        refused += works_or_is_refused(tmp_path, what)
    assert refused > 0.8 * len(cases)
    for text in ("[" * 100_000, "", "\udc80".encode("utf-8", "surrogateescape").decode("latin-1"), "nul"):
        path.write_text(text)
        assert works_or_is_refused(tmp_path, text[:10])


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("architecture", "width"), [32], r"config.json: architecture.width is \[32\]; a whole number is needed"),
        (("architecture", "width"), 10**9, "config.json: architecture: width is 1000000000; it must be at least 1"),
        (("architecture", "size"), 8, "architecture.size is 8; a list is needed"),
        (("architecture", "conditions", 0, "kind"), [], r"architecture.conditions\[0\].kind is \[\]; a text is needed"),
        (("sampling", "steps"), "50", "config.json: sampling.steps is '50'; a whole number is needed"),
        (("sampling", "sampler"), None, "sampling.sampler is None; it must be 'heun' or 'euler' or 'ab2' or 'dpm"),
        (("sampling", "guidance"), nan, "sampling: guidance is nan"),
        (("prediction", "noise_scale"), True, "prediction.noise_scale is True; a number is needed"),
        (("data", "mean", 0), None, r"config.json: data.mean\[0\] is None; a number is needed"),
        (("data", "origin", "variables", 0, "at"), 3, r"data.origin.variables\[0\].at is 3; a list is needed"),
        (("data",), [], r"config.json: data is \[\]; an object is needed"),
        (("format",), ["justimage/1"], "has the format .*justimage/1.*not"),
    ],
)
def test_the_field_its_value_and_what_is_wanted_are_named(tmp_path, place, value, message):
    a_model().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    good = json.loads(path.read_text())
    path.write_text(json.dumps(changed(good, place, lambda holder, name: set_to(holder, name, value))))
    with pytest.raises(ValueError, match=message):
        read(tmp_path)


def test_missing_and_unknown_fields_are_named(tmp_path):
    a_model().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    good = json.loads(path.read_text())
    path.write_text(json.dumps(changed(good, ("prediction", "t_eps"), lambda holder, name: holder.__delitem__(name))))
    with pytest.raises(ValueError, match="prediction lacks the fields 't_eps'"):
        read(tmp_path)
    path.write_text(json.dumps(changed(good, ("sampling", "stepz"), lambda holder, name: set_to(holder, name, 1))))
    with pytest.raises(ValueError, match="sampling has unknown fields 'stepz'"):
        read(tmp_path)


TENSORS: tuple[Any, ...] = (
    torch.zeros(()),
    torch.zeros(0),
    torch.zeros(3),
    torch.zeros(2, 3),
    torch.zeros(1, 16, 2, 2),
    torch.zeros(1, 2, 3, 4, 5),
    torch.zeros(32, 32, dtype=torch.int64),
    torch.zeros(32, dtype=torch.complex64),
    torch.zeros(32, 8).to_sparse(),
    torch.zeros(1).expand(10**12),
    torch.tensor([nan]),
)


def test_an_official_checkpoint_with_anything_wrong_is_refused_or_works(tmp_path):
    """Tensors replaced by what is none, by other ranks, types and sizes; the command line by anything."""
    path = tmp_path / "official.pth"
    save_official(ji.Denoiser(small_net(channels=3, depth=2)), path)
    with torch.serialization.safe_globals([argparse.Namespace]):
        good = torch.load(path, weights_only=True)
    assert not works_or_is_refused(path, "good")
    cases: list[tuple[str, Any]] = []
    names = list(good["model_ema1"])
    for i, name in enumerate(names):
        for value in (*TENSORS, *VALUES[:: 1 if i < 3 else 4]):
            cases.append((f"{name} = {value!r:.40}", {**good, "model_ema1": {**good["model_ema1"], name: value}}))
        cases.append(
            (f"without {name}", {**good, "model_ema1": {k: v for k, v in good["model_ema1"].items() if k != name}})
        )
    for name in vars(good["args"]):
        for value in VALUES:
            args = argparse.Namespace(**{**vars(good["args"]), name: value})
            cases.append((f"args.{name} = {value!r:.20}", {**good, "args": args}))
    for key in ("model_ema1", "args"):
        cases += [(f"{key} = {value!r:.20}", {**good, key: value}) for value in VALUES]
    cases.append(("a name that is a number", {**good, "model_ema1": {**good["model_ema1"], 3: torch.zeros(1)}}))
    cases, refused = random.Random(0).sample(cases, 250), 0
    for what, checkpoint in cases:
        torch.save(checkpoint, path)
        refused += works_or_is_refused(path, what)
    assert refused > 0.7 * len(cases)


def test_weights_that_are_not_finite_are_refused_unless_allowed(tmp_path, monkeypatch, capsys):
    a_model().save_pretrained(tmp_path / "w")
    path = tmp_path / "w" / "model.safetensors"
    good = load_file(path)
    for value, name in ((nan, "blocks.1.mlp.out.bias"), (inf, "positions")):
        tensors = {key: tensor.clone() for key, tensor in good.items()}
        tensors[name].view(-1)[-1] = value
        save_file(tensors, path)
        with pytest.raises(ValueError, match=f"not finite in {name}.*allow_non_finite=True"):
            ji.load(tmp_path / "w", device="cpu")
        assert ji.load(tmp_path / "w", device="cpu", allow_non_finite=True).net is not None
    words = ["sample", "w", "--unconditional", "--count", "1", "--steps", "1", "--device", "cpu", "--format", "npy"]
    assert jit_here(*words, cwd=tmp_path, monkeypatch=monkeypatch) == 2
    assert "--allow-non-finite" in capsys.readouterr().err
    assert not (tmp_path / "samples").exists()
    assert jit_here(*words, "--allow-non-finite", cwd=tmp_path, monkeypatch=monkeypatch) == 0


def test_weights_in_another_precision_are_loaded_as_the_networks_own(tmp_path):
    a_model().save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    save_file({name: tensor.to(torch.bfloat16) for name, tensor in load_file(path).items()}, path)
    model = read(tmp_path)
    assert {each.dtype for each in model.net.state_dict().values()} == {torch.float32}
    model.save_pretrained(tmp_path / "again")


class Harmful:
    def __reduce__(self):
        return (print, ("code was run",))


def test_no_message_advises_to_switch_a_protection_off(tmp_path, monkeypatch, capfd):
    """Neither torch's `weights_only=False` nor numpy's `allow_pickle`."""
    import numpy as np

    a_model().save_pretrained(tmp_path / "w")
    torch.save({"model": Harmful()}, tmp_path / "harmful.pth")
    (tmp_path / "text.pth").write_text("hello")
    np.save(tmp_path / "objects.npy", np.array([{}, {}], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "objects.npz", x=np.array([{}, {}], dtype=object))
    (tmp_path / "text.npy").write_text("hello")
    (tmp_path / "text.npz").write_text("hello")
    (tmp_path / "folder").mkdir()
    np.save(tmp_path / "folder" / "a.npy", np.array([{}, {}], dtype=object), allow_pickle=True)
    commands = [["sample", "harmful.pth"], ["sample", "text.pth"], ["convert", "harmful.pth", "there"]]
    commands += [["train", "toy", "--data", name] for name in ("objects.npy", "objects.npz", "text.npy", "text.npz")]
    commands += [["train", "toy", "--data", "folder"], ["data", "inspect", "objects.npz"]]
    commands += [["sample", "w", "--condition", name] for name in ("objects.npz", "text.npz", "objects.npy")]
    for words in commands:
        assert jit_here(*words, cwd=tmp_path, monkeypatch=monkeypatch) == 2, words
        out, err = capfd.readouterr()
        for text in (out, err):
            assert "weights_only" not in text, words
            assert "allow_pickle" not in text, words
            assert "code was run" not in text
        assert err.startswith("jit: "), words
