"""Numbers that make no sense are refused where they belong, before anything of their size is made."""

import re
import shlex
import time
from dataclasses import fields, is_dataclass
from math import inf, nan
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest
import torch
from conftest import jit_here, small_config, small_net

import justimage as ji
from justimage.commands.line import parse
from justimage.commands.train import Train
from justimage.data.sources import DataOptions, open_source
from justimage.networks.conditions import Part
from justimage.networks.dit import DiTConfig
from justimage.networks.mlp import MLPConfig
from justimage.parallel import Processes
from justimage.process import LogitNormal
from justimage.runs.recipes import RECIPES, Recipe, Report

OWNERS: list[type] = [ji.Training, LogitNormal, ji.Sampling, ji.JiTConfig, DiTConfig, MLPConfig, DataOptions, Recipe]
REQUIRED: dict[type, dict[str, Any]] = {
    Recipe: {"network": small_config(), "training": ji.Training()},
}


def holds_floats(hint: Any) -> bool:
    return hint is float or any(map(holds_floats, get_args(hint)))


def cases_of_floats() -> list[tuple[type, str, Any]]:
    """(dataclass, field, its value) for every float of every configuration, those inside of others included."""
    found, waiting = [], list(OWNERS)
    while waiting:
        owner = waiting.pop()
        hints = get_type_hints(owner)
        for item in fields(owner):
            if is_dataclass(hints[item.name]):
                waiting.append(hints[item.name])  # type: ignore[arg-type]
            elif holds_floats(hints[item.name]):
                found.append((owner, item.name, hints[item.name]))
    return found


@pytest.mark.parametrize("value", [nan, inf, -inf])
def test_no_float_of_any_configuration_is_infinite_or_nan(value):
    """Found by their annotations, so that a field of tomorrow is asked too; the message has the value."""
    cases = cases_of_floats()
    names = {name for _, name, _ in cases}
    assert {"lr", "clip_norm", "weight_decay", "betas", "label_dropout", "ema_decays", "mean", "std"} <= names
    assert {"guidance", "interval", "noise_scale", "t_eps", "dropout", "dropout_scores", "mlp_ratio"} <= names
    assert {"memory_gb", "missing", "levels"} <= names
    for owner, name, hint in cases:
        bad = (value,) * (2 if name in ("betas", "interval") else 1) if "tuple" in str(hint) else value
        with pytest.raises(ValueError, match=f"{value}"):
            owner(**REQUIRED.get(owner, {}), **{name: bad})
            pytest.fail(f"{owner.__name__}({name}={bad})")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ji.JiTConfig(width=10**9, heads=1), "width is 1000000000"),
        (lambda: ji.JiTConfig(depth=10**9), "depth is 1000000000"),
        (lambda: ji.JiTConfig(size=(10**6, 10**6), patch=(1, 1)), "1000000"),
        (lambda: ji.JiTConfig(size=(2**14, 2**14), patch=(1, 1), channels=1), "268,435,456 patches"),
        (lambda: ji.JiTConfig(size=(10**9,), patch=(10**9,), channels=2), "2,000,000,000 numbers"),
        (lambda: ji.JiTConfig(num_classes=10**12), "num_classes is 1000000000000"),
        (lambda: ji.JiTConfig(num_classes=-1), "num_classes is -1"),
        (lambda: ji.JiTConfig(bottleneck=10**9), "bottleneck is 1000000000"),
        (lambda: ji.JiTConfig(context_tokens=10**9), "context_tokens is 1000000000"),
        (lambda: ji.JiTConfig(mlp_ratio=1e9), "mlp_ratio is 1000000000"),
        (lambda: ji.JiTConfig(mlp_ratio=1e-9), "mlp_ratio is 1e-09"),
        (lambda: ji.JiTConfig(dropout=1.0), "dropout is 1.0"),
        (lambda: ji.JiTConfig(dropout_scores=-0.1), "dropout_scores is -0.1"),
        (lambda: ji.JiTConfig(classifier_after=10**9), "classifier_after is 1000000000"),
        (lambda: DiTConfig(width=10**9), "width is 1000000000"),
        (lambda: DiTConfig(depth=10**9), "depth is 1000000000"),
        (lambda: MLPConfig(depth=10**9), "depth is 1000000000"),
        (lambda: MLPConfig(size=(0,)), "size has 1 axes"),
        (lambda: Part("a", "vector", 10**12), "1000000000000 features"),
        (lambda: Part("a", "tokens", 1, 10**12), "length 1000000000000"),
        (lambda: ji.Sampling(steps=10**9), "steps is 1000000000"),
        (lambda: ji.Sampling(guidance=1e30), r"guidance is 1e\+30"),
        (lambda: ji.Sampling(shift=1e3), "shift is 1000.0; it must lie between 0.01 and 100"),
        (lambda: ji.shifted(0), "shift is 0"),
        (lambda: ji.Training(batch_size=10**30), "batch_size is 1000"),
        (lambda: ji.Training(ema_decays=(0.9, 0.9)), "ema_decays are"),
        (lambda: ji.Training(classification=-0.1), "classification is -0.1; it must be a number from 0 on"),
        (lambda: DataOptions(workers=10**9), "workers .1000000000"),
        (lambda: Report(preview_steps=10**9), "steps is 1000000000"),
        (lambda: LogitNormal(std=-1.0), "the std -1.0"),
    ],
)
def test_absurd_numbers_are_refused_at_once(make, message):
    seconds = []
    for _ in range(3):  # the fastest counts: Python may tidy up in any of them
        began = time.process_time()
        with pytest.raises(ValueError, match=message):
            make()
        seconds.append(time.process_time() - began)
    assert min(seconds) < 0.1


ALONE = Processes(device=torch.device("cpu"))


def test_training_that_no_memory_holds_is_refused_before_any_is_taken():
    """The message has what is needed, what is there, and what to change."""
    with torch.device("meta"):
        large = ji.JiT(ji.JiTConfig.variant("G/16", width=2**16, heads=64, depth=4, context_start=1, num_classes=0))
    began = time.monotonic()
    with pytest.raises(
        ValueError, match=r"moments and averages of this network need at least [\d,.]+ GiB, and .* has "
    ):
        ji.build(ji.Denoiser(large), ji.Training(), ALONE)
    with pytest.raises(
        ValueError, match=r"1,000,000,000,000 samples of 128 numbers at once need .*; choose a smaller batch"
    ):
        ji.build(ji.Denoiser(small_net()), ji.Training(batch_size=10**12), ALONE)
    assert time.monotonic() - began < 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seeds": range(10**15)}, "1,000,000,000,000,000 samples of the shape"),
        ({"size": (10**6, 10**6)}, r"shape \(2, 1000000, 1000000\) at once need"),
        ({"size": (0, 8)}, "is empty"),
        ({"size": (4096, 4096)}, "1,048,576 patches of 32 features"),
        ({"seeds": [2**64]}, "not 18446744073709551616"),
        ({"steps": 10**9}, "steps is 1000000000"),
        ({"guidance": nan, "labels": [0]}, "guidance is nan"),
    ],
)
def test_samples_that_no_memory_holds_are_refused_before_any_is_taken(arguments, message, monkeypatch):
    monkeypatch.setattr("justimage.networks.limits.MOST_PATCHES", 2**19)
    with pytest.raises(ValueError, match=message):
        ji.Denoiser(small_net()).sample(**arguments)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--seeds 0-1000000000000", "--seeds 0-1000000000000: seeds are below 4,294,967,296, and at most 10,000,000"),
        ("--seeds 0-9 18446744073709551616", "--seeds 18446744073709551616"),
        ("--count 1000000000000", "count (1000000000000)"),
        ("--count 9000000", "9,000,000 samples of each of 3 classes"),
        ("--size 1000000", "shape (2, 1000000, 1000000) at once need"),
        ("--steps 1000000000", "steps is 1000000000"),
        ("--guidance nan", "guidance is nan"),
        ("--interval nan 1", "interval is (nan, 1.0)"),
    ],
)
def test_the_command_refuses_absurd_numbers_at_once(tmp_path, monkeypatch, capsys, words, message):
    ji.Denoiser(small_net()).save_pretrained(tmp_path / "w")
    began = time.monotonic()
    assert jit_here("sample", "w", *words.split(), cwd=tmp_path, monkeypatch=monkeypatch) == 2
    assert message in "".join(capsys.readouterr())
    assert time.monotonic() - began < 10
    assert not (tmp_path / "samples").exists()


@pytest.mark.parametrize(
    "size", [(41, 181), (73, 144), (25, 53), (96, 73), (33, 49), (29,), (5, 7, 9), (5, 7), (721, 90)]
)
def test_the_hint_on_patches_works_when_followed_to_the_letter(tmp_path, size):
    """What the message says to add to the command makes the recipe fit the data."""
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(3, 1, *size)).astype(np.float32))

    def fit(*words: str) -> Recipe:
        recipe = parse(Train, words, "jit train fields", Train(RECIPES["fields"])).recipe
        network = recipe.network
        source = open_source(str(tmp_path / "x.npy"), network.size, network.channels, recipe.data_options)
        return recipe.fitted_to(source.spec)

    with pytest.raises(ValueError, match=r"--network\.size") as refused:
        fit()
    hints = re.findall(r"(--[a-z-]+\.[a-z]+(?: \d+)+(?: --network\.patch(?: \d+)+)?)", str(refused.value))
    assert hints
    assert len(hints) == 2 or len(size) != 2 or min(size) < 8
    for hint in hints:
        words = shlex.split(hint)
        assert fit(*words).network.size == (size if "--network.size" in words else tuple(map(int, words[1:])))
