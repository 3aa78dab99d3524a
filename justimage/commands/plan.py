"""`jit plan`."""

import json
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Annotated

import tyro
from rich.table import Table

from justimage.commands.console import console, interruptible, say
from justimage.commands.line import parse
from justimage.commands.main import DONE
from justimage.disk.whole import write_text
from justimage.runs.hardware import hardware
from justimage.runs.plan import in_time
from justimage.runs.recipes import RECIPES, Recipe
from justimage.speed.plan import Plan, plan_for, plan_here
from justimage.speed.rehearsal import source_of

SAID = {
    "total": "together",
    "process": "process and libraries",
    "products": "matrix products",
    "others": "everything else in the passes",
    "exchange": "exchange of gradients",
    "host": "waiting for the host",
}
SPEC_ONLY = 8  # samples made up where only their shape is needed


@dataclass(frozen=True)
class PlanCommand:
    """What a recipe will take: memory, seconds a step, days, and money, before anything starts.

    By default, its first steps are measured on this machine. With --hardware it is an estimate from the data sheet of a
    device that need not be here, and says what it assumes.
    """

    recipe: Annotated[Recipe, tyro.conf.arg(name="")]
    data: Annotated[str | None, tyro.conf.arg(metavar="PATH")] = None
    """The recipe's data; made-up ones by default, unless they come with a package."""
    hardware: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    """Estimate for h100, h200, b200, a100, a100-40, h100-pcie, l40s, l4, 5090, 4090 or 3090."""
    processes: Annotated[int, tyro.conf.arg(metavar="N")] = 1
    """Processes, a device each, that share every batch."""
    price: Annotated[float | None, tyro.conf.arg(metavar="PER_HOUR")] = None
    """Of one device for an hour, in any currency."""
    watts: Annotated[float | None, tyro.conf.arg(metavar="W")] = None
    """Power of one device, for the energy; by default what its data sheet says of the whole board."""
    seconds: Annotated[float, tyro.conf.arg(metavar="S")] = 10.0
    """To measure steps for; there are at least six."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="FILE.json")] = None
    """Write everything to a file as well."""
    device: Annotated[str | None, tyro.conf.arg(metavar="DEVICE")] = None
    """Measure on cpu, cuda, ...; the accelerator by default, if there is one."""


def main(name: str, arguments: list[str]) -> int:
    """Plan the recipe of this name and print; returns the exit code."""
    asked = parse(PlanCommand, arguments, f"jit plan {name}", PlanCommand(RECIPES[name]))
    interruptible()
    for option in ("price", "watts", "seconds"):
        value = getattr(asked, option)
        if value is not None and not 0 < value < inf:
            raise ValueError(f"{option} is {value}; it must be a number above 0")
    if asked.processes < 1:
        raise ValueError(f"processes is {asked.processes}; it must be at least 1")
    on = None if asked.hardware is None else hardware(asked.hardware)
    if on is not None and asked.device is not None:
        raise ValueError(f"--device {asked.device}: with --hardware nothing is measured, on no device")
    data = asked.data or asked.recipe.default_data
    if on is not None:
        source = source_of(asked.recipe, asked.data or "", SPEC_ONLY)
        plan = plan_for(asked.recipe.fitted_to(source.spec), source.spec, on, asked.processes)
    else:
        source = source_of(asked.recipe, data)
        recipe = asked.recipe.fitted_to(source.spec)
        say(f"measuring the steps of {name} for about {asked.seconds:g} s")
        plan = plan_here(recipe, source.spec, data, asked.device, asked.seconds, asked.processes)
    watts = asked.watts or (None if on is None else on.watts)
    told = {"what": name, "data": source.describe(), **plan.plainly(), **_bill(plan, watts, asked.price)}
    _show(name, plan, told, source.describe())
    if asked.out is not None:
        write_text(asked.out, json.dumps(told, indent=1) + "\n")
        say(f"everything is in {asked.out}")
    return DONE


def _bill(plan: Plan, watts: float | None, price: float | None) -> dict[str, float | None]:
    """Energy and money of the whole run."""
    device_hours = plan.processes * plan.total_seconds / 3600
    return {
        "device_hours": device_hours,
        "kWh": None if watts is None else watts * device_hours / 1000,
        "money": None if price is None else price * device_hours,
    }


def _show(name: str, plan: Plan, told: dict, data: str) -> None:
    processes = f", {plan.processes} processes" if plan.processes > 1 else ""
    where = plan.where.get("hardware") or plan.where["device"]
    how = "an estimate, nothing was measured" if plan.estimate else "measured here"
    say(f"{name} on {where}{processes}: {how}")
    each = plan.multiply_adds / 1e9
    say(
        f"{plan.parameters / 1e6:,.1f} M parameters, {each:,.2f} G multiply-adds to train on a sample; "
        f"batch {plan.batch:,}, {plan.steps:,} steps{', compiled blocks' if plan.compiled else ''}"
    )
    say(f"data: {data}\n")
    _show_parts(plan, told["memory"])
    beside = plan.beside_seconds / plan.total_seconds
    say(
        f"{plan.img_per_second:,.0f} img/s; the whole recipe: {in_time(plan.total_seconds)}"
        + (f", {100 * beside:.0f} % of it for samples and evaluations" if beside >= 0.005 else "")
    )
    bill = [f"{told['device_hours']:,.1f} hours of a device"] if plan.processes > 1 else []
    bill += (
        ["--watts W adds the energy"] if told["kWh"] is None else [f"{told['kWh']:,.3g} kWh, at full power throughout"]
    )
    bill += [] if told["money"] is None else [f"{told['money']:,.2f} for the devices"]
    say("; ".join(bill))
    _show_changes(plan)
    if plan.memory_there is not None and plan.largest_batch is not None:
        fits = f"the largest batch that fits: {plan.largest_batch:,}" if plan.largest_batch else "not one sample fits"
        less = ", which is not enough" if plan.memory.total > plan.memory_there else ""
        say(f"memory there: {plan.memory_there / 1e9:,.1f} GB{less}; {fits}")
    say("")
    for each in plan.assumptions:
        say(f"* {each}")


def _show_parts(plan: Plan, memory: dict[str, int]) -> None:
    table = Table("memory of a process", "MB at the peak", "MB at most", title_justify="left")
    for group, size in memory.items():
        most = max(size, plan.gradients) if group == "gradients" else size
        table.add_row(SAID.get(group, group), f"{size / 1e6:,.0f}", f"{most / 1e6:,.0f}")
    console.print(table)
    table = Table("a step", "ms", "%", title_justify="left")
    for part, each in plan.seconds.items():
        if each:
            table.add_row(SAID.get(part, part), f"{1e3 * each:,.1f}", f"{100 * each / plan.seconds['total']:.0f}")
    console.print(table)


def _show_changes(plan: Plan) -> None:
    table = Table("what would change it", "MB", "ms a step", title_justify="left")
    table.add_row("as it is", f"{plan.memory.total / 1e6:,.0f}", f"{1e3 * plan.seconds['total']:,.1f}")
    for each in plan.changes:
        seconds = "?" if each.seconds is None else f"{1e3 * each.seconds:,.1f}"
        table.add_row(each.what, f"{each.bytes / 1e6:,.0f}", seconds)
    console.print(table)
