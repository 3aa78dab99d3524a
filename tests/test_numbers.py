"""Numbers that make no sense are refused where they belong, before anything of their size is made."""

import time
from dataclasses import fields, is_dataclass
from math import inf, nan
from typing import Any, get_args, get_type_hints

import pytest
from conftest import small_config

import justimage as ji
from justimage.data.sources import DataOptions
from justimage.networks.conditions import Part
from justimage.networks.dit import DiTConfig
from justimage.networks.mlp import MLPConfig
from justimage.process import LogitNormal
from justimage.runs.recipes import Recipe, Report

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
        (lambda: DiTConfig(width=10**9), "width is 1000000000"),
        (lambda: DiTConfig(depth=10**9), "depth is 1000000000"),
        (lambda: MLPConfig(depth=10**9), "depth is 1000000000"),
        (lambda: MLPConfig(size=(0,)), "size has 1 axes"),
        (lambda: Part("a", "vector", 10**12), "1000000000000 features"),
        (lambda: Part("a", "tokens", 1, 10**12), "length 1000000000000"),
        (lambda: ji.Sampling(steps=10**9), "steps is 1000000000"),
        (lambda: ji.Sampling(guidance=1e30), r"guidance is 1e\+30"),
        (lambda: ji.Training(batch_size=10**30), "batch_size is 1000"),
        (lambda: ji.Training(ema_decays=(0.9, 0.9)), "ema_decays are"),
        (lambda: DataOptions(workers=10**9), "workers .1000000000"),
        (lambda: Report(preview_steps=10**9), "steps is 1000000000"),
        (lambda: LogitNormal(std=-1.0), "the std -1.0"),
    ],
)
def test_absurd_numbers_are_refused_at_once(make, message):
    began = time.monotonic()
    with pytest.raises(ValueError, match=message):
        make()
    assert time.monotonic() - began < 0.1
