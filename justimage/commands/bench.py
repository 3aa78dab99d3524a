"""`jit bench`."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from rich.table import Table

from justimage.commands.console import console, interruptible, say
from justimage.commands.line import parse
from justimage.commands.main import DONE
from justimage.data.sources import open_source
from justimage.data.spec import Source
from justimage.disk.whole import write_text
from justimage.execution import find_device
from justimage.precision import SAMPLING_PRECISIONS, probe
from justimage.runs.recipes import RECIPES, Recipe
from justimage.speed.bench import facts, made_up, sampling_rows, training_rows, untrained
from justimage.weights.load import read
from justimage.weights.pieces import pieces_gain, pieces_pay


@dataclass(frozen=True)
class Bench:
    """Measure speed on this machine: a step of training and samples, against the same written plainly, by part.

    A recipe is measured with random weights, and with its own data where they come with a package or with --data.
    Weights are measured in drawing samples. Times are medians; ratios are of rounds in turn, in one process.
    """

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="[MODEL|RECIPE]")] = "mnist-demo"
    """A recipe, or a run folder, a weights folder, a hub id or an official .pth."""
    data: Annotated[str, tyro.conf.arg(metavar="PATH")] = ""
    """The recipe's data; random ones by default, unless they come with a package."""
    batch_size: Annotated[int, tyro.conf.arg(metavar="N")] = 0
    """Samples of a step, and drawn at once; 0: as many as the recipe says, fewer where that takes over a second."""
    rounds: Annotated[int, tyro.conf.arg(metavar="N")] = 9
    """How often each row is timed."""
    whole: tyro.conf.FlagCreatePairsOff[bool] = False
    """Draw whole samples with every preset, in place of adding up the times of their evaluations."""
    probe: tyro.conf.FlagCreatePairsOff[bool] = False
    """Only show how fast each precision is here, and which one is the default."""
    precision: Literal["auto", "float32", "bfloat16", "int8"] = "auto"
    """Precision of matrix products; auto: bfloat16 where this machine is faster with it; int8 is for sampling alone."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE.json")] = None
    """Write everything to a file as well."""
    device: Annotated[str | None, tyro.conf.arg(metavar="DEVICE")] = None
    """cpu, cuda, ...; the accelerator by default, if there is one."""


def main(arguments: Sequence[str]) -> int:
    """Measure and print; returns the exit code."""
    asked = parse(Bench, arguments, "jit bench")
    interruptible()
    if asked.rounds < 1 or asked.batch_size < 0:
        raise ValueError(f"rounds ({asked.rounds}) must be at least 1, and batch_size ({asked.batch_size}) at least 0")
    device = find_device(asked.device)
    if asked.probe:
        if asked.data:
            raise ValueError(f"--data {asked.data} counts for nothing beside --probe, which multiplies matrices alone")
        _show_products(device)
        _write(asked.out, facts(device))
        return _said(asked.out)
    result: dict[str, Any] = {"what": asked.model, **facts(device)}
    say(f"{asked.model} on {result['device']}, {result['threads']} threads, torch {result['torch']}")
    recipe, source = None, None
    if asked.model in RECIPES:
        recipe = RECIPES[asked.model]
        if asked.precision != "int8":
            recipe = replace(recipe, training=replace(recipe.training, precision=asked.precision))
        source = _source(recipe, asked.data)
        result["data"] = source.describe()
        model = untrained(recipe, source)
    else:
        if asked.data:
            raise ValueError(f"--data {asked.data}: data are for recipes; {asked.model} is measured in drawing samples")
        model = read(asked.model)
    dtype = SAMPLING_PRECISIONS.get(asked.precision)
    rounds, batch = asked.rounds, asked.batch_size
    # Before training, which leaves a process with much memory in pieces: usually, samples are drawn without it.
    result["sampling"] = sampling_rows(model, batch, rounds, device, whole=asked.whole, dtype=dtype)
    _show("sampling", result["sampling"])
    _show_samples(result["sampling"])
    if recipe is not None and source is not None:
        _write(asked.out, result)  # what there is, should training not fit
        del model
        result["training"] = training_rows(recipe, source, batch, rounds, device)
        _show("training", result["training"])
    _write(asked.out, result)
    return _said(asked.out)


def _write(out: Path | None, result: Mapping[str, Any]) -> None:
    """Into the file that was asked for, if one was."""
    if out is not None:
        write_text(out, json.dumps(result, indent=1) + "\n")


def _said(out: Path | None) -> int:
    """Say where everything is; returns the exit code."""
    if out is not None:
        say(f"everything is in {out}")
    return DONE


def _source(recipe: Recipe, data: str) -> Source:
    where = data or recipe.default_data
    if not where:
        return made_up(recipe)
    source = open_source(where, recipe.network.size, recipe.network.channels, recipe.data_options)
    if source.indexed is not True:
        raise ValueError(f"{where} is a stream; speed is measured with data that can be read in any order")
    return source


def _show_products(device: torch.device) -> None:
    table = Table("precision", "GFLOP/s", "", "why", title=f"matrix products on {device.type}", title_justify="left")
    for each in probe(device):
        rate = "-" if each.flops is None else f"{each.flops / 1e9:,.0f}"
        table.add_row(each.precision, rate, "default" if each.chosen else "", each.why)
    console.print(table)
    if device.type == "cpu":
        how = "so samples are drawn that way" if pieces_pay(device) else "so it is done at once"
        say(f"a feed-forward layer in float32: in pieces {pieces_gain(device):.2f} times as fast as at once, {how}")


def _show(what: str, found: Mapping[str, Any]) -> None:
    table = Table(what, "ms", "fastest to slowest", "img/s", "% of the peak", title_justify="left")
    for row in found["rows"]:
        seconds = row["seconds"]
        spread = f"{1e3 * seconds['fastest']:,.1f} to {1e3 * seconds['slowest']:,.1f}"
        name = f"{row['what']} ({row['precision']})"
        share = f"{100 * row['share_of_peak']:.0f}"
        table.add_row(name, f"{1e3 * seconds['median']:,.1f}", spread, _rate(row["img_per_second"]), share)
    console.print(table)
    parts = sorted(found["parts"].items(), key=lambda item: -item[1])
    say("of which " + ", ".join(f"{name} {100 * share:.0f} %" for name, share in parts if share >= 0.005))
    peaks = ", ".join(f"{name} {rate:,.0f} GFLOP/s" for name, rate in found["peak_GFLOP_per_s"].items())
    say(f"batch {found['batch']}; matmul peak {peaks}; memory {found['peak_memory_MB']:,.0f} MB\n")


def _show_samples(found: Mapping[str, Any]) -> None:
    table = Table("whole samples", "evaluations", "s a batch", "img/s", "times plain", title_justify="left")
    plain = next(row for row in found["samples"] if "plain" in row["what"])["img_per_second"]
    for row in found["samples"]:
        rate = row["img_per_second"]
        seconds = f"{row['seconds']['median']:,.2f}"
        table.add_row(row["what"], str(row["evaluations"]), seconds, _rate(rate), f"{rate / plain:.2f}")
    console.print(table)
    if not found["samples"][0]["whole"]:
        say("added up from the times of evaluations; --whole draws them")


def _rate(per_second: float) -> str:
    """Images a second, also where one takes minutes."""
    return f"{per_second:,.1f}" if per_second >= 10 else f"{per_second:.3g}"
