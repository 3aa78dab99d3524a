"""The result of a reproduction: result.json, made of what was measured, and the README made of nothing else."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from math import inf
from pathlib import Path
from typing import Any

import numpy as np

from justimage.data.records import from_plain, read_json
from justimage.evaluation.scores import plain
from justimage.execution import versions
from justimage.networks.cost import Cost, cost_of
from justimage.networks.protocol import network_of
from justimage.reproductions.family import Cell, Family, Scale, ScaleName
from justimage.reproductions.verdict import Found, Row, find, verdict
from justimage.reproductions.work import measured
from justimage.weights.folder import RECIPE

SEEDS = 3  # trainings of each cell: the fewest on which a verdict rests

COSTS = {"parameters_M", "multiply_adds_M"}  # numbers of every cell: in millions, of one evaluation
RESULT = "result.json"
WHY = "why.md"  # written by hand: why we think that a verdict is as it is


def grouped(cells: Iterable[Cell]) -> dict[tuple[str, tuple[str, ...]], list[Cell]]:
    """Cells that differ in their seed alone, by part and labels, in their order."""
    found: dict[tuple[str, tuple[str, ...]], list[Cell]] = {}
    for cell in cells:
        found.setdefault((cell.part, tuple(cell.labels.values())), []).append(cell)
    return found


def rows_of(family: Family, cells: Sequence[Cell], runs: Path) -> list[Row]:
    """The numbers of finished cells; where a training failed, they are infinite."""
    facts = {id(cell): measured(cell, runs) for cell in cells}
    # What no cell has, such as agreement without labels, has not failed.
    names = {family.number} | {name for each in facts.values() for name in each["numbers"]}
    names |= {name for each in family.statements for of in (each.lower, each.upper) for name in [of.number] if name}
    rows, costs = [], _costs(cells, runs)
    for some in grouped(cells).values():
        numbers = {
            name: [_number(facts[id(cell)]["numbers"].get(name)) for cell in some] for name in sorted(names - COSTS)
        }
        cost = costs[some[0].setup.run()]
        numbers |= {"parameters_M": [cost.parameters / 1e6], "multiply_adds_M": [cost.multiply_adds / 1e6]}
        rows.append(Row(some[0].part, some[0].labels, numbers))
    return rows


def _costs(cells: Iterable[Cell], runs: Path) -> dict[str, Cost]:
    """Of the network that each run has trained."""
    known: dict[str, Cost] = {}  # by the network's configuration: many have the same
    found = {}
    for name in {cell.setup.run() for cell in cells}:
        path = runs / name / RECIPE
        facts = read_json(path)
        network = facts["recipe"]["network"]
        key = json.dumps(network)
        if key not in known:
            config, _ = network_of(facts["network"])
            known[key] = cost_of(from_plain(config, network, str(path), "recipe.network"))
        found[name] = known[key]
    return found


def _number(value: float | None) -> float:
    return inf if value is None else value


def result_of(
    family: Family, scale: ScaleName, cells: Sequence[Cell], rows: Sequence[Row], runs: Path
) -> dict[str, Any]:
    """Everything that the command has found, as plain values; rows: of the cells (`rows_of`)."""
    found = [find(each, rows, family.number) for each in family.statements]
    facts = {id(cell): measured(cell, runs) for cell in cells}
    trainings = {cell.setup.run(): facts[id(cell)]["seconds"]["training"] for cell in cells}
    measuring = {
        (cell.setup.run(), cell.setup.measurement()): facts[id(cell)]["seconds"]["measuring"] for cell in cells
    }
    return {
        "name": family.name,
        "paper": family.paper,
        "claim": family.claim,
        "how": family.how,
        "scale": scale,
        "number": {"name": family.number, "meaning": family.meaning, "theirs": family.their_number},
        "verdict": verdict(found),
        "statements": [_plain(each) for each in found],
        "parts": [_part(family, scale, part.name, rows) for part in family.scales[scale].parts],
        "cells": [
            {
                "part": row.part,
                "labels": dict(row.labels),
                "seeds": [cell.seed for cell in some],
                "numbers": {name: [plain(value) for value in values] for name, values in row.numbers.items()},
                "spread": {name: _spread(values) for name, values in row.numbers.items() if name not in COSTS},
                "chosen": [facts[id(cell)].get("chosen") for cell in some],
                "failed": [facts[id(cell)].get("failed", "") for cell in some],
                "runs": [cell.setup.run() for cell in some],
            }
            for row, some in zip(rows, grouped(cells).values(), strict=True)
        ],
        "settings": settings_of(family.scales[scale]),
        "facts": _shared(facts.values()),
        "seconds": {"training": round(sum(trainings.values())), "measuring": round(sum(measuring.values()))},
        "threads": sorted({each["threads"] for each in facts.values()}),
        "machines": sorted({each["machine"] for each in facts.values()}),
        "versions": versions(),
    }


def settings_of(scale: Scale) -> dict[str, Any]:
    """What all cells have, then those of each part, then by axis and label: axes of one name differ between parts."""
    return {
        "all": json.loads(json.dumps(asdict(scale.setup), default=str)),
        "parts": {
            part.name: {
                "all": dict(part.settings),
                "axes": {axis.name: {label: dict(some) for label, some in axis.points.items()} for axis in part.axes},
            }
            for part in scale.parts
        },
    }


def _spread(values: Sequence[float]) -> float | None:
    """From the lowest to the highest over the seeds; None where there is one, or a training failed."""
    return plain(max(values) - min(values)) if len(values) > 1 and inf not in values else None


def _plain(found: Found) -> dict[str, Any]:
    return {**asdict(found), "ratio": plain(round(found.ratio, 4))}


def _shared(facts: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """What was said of the features and the floor, once for each."""
    names = ("features", "held_out_accuracy", "floor", "nfe")
    return {name: sorted({each[name] for each in facts if each.get(name) is not None}, key=str) for name in names}


def _part(family: Family, scale: ScaleName, name: str, rows: Sequence[Row]) -> dict[str, Any]:
    """The tables of a part: one for each number, and the paper's."""
    axes = next(part.axes for part in family.scales[scale].parts if part.name == name)
    mine = [row for row in rows if row.part == name]
    theirs = [[list(labels), value] for labels, value in family.theirs.get(name, {}).items()]
    return {
        "name": name,
        "axes": [axis.name for axis in axes],
        "tables": [number for number in (family.number, *family.shown) if any(number in row.numbers for row in mine)],
        "theirs": theirs,
        "pictures": [picture.name for picture in family.pictures if picture.part == name],
    }


def readme(result: Mapping[str, Any], why: str = "") -> str:
    """The README of a result: nothing but what the result says, and `why`, which has no numbers."""
    number = result["number"]
    minutes = (result["seconds"]["training"] + result["seconds"]["measuring"]) / 60
    option = "" if result["scale"] == "laptop" else f" --scale {result['scale']}"
    option += " --data PATH" if result["settings"]["all"]["data"].get("path") == "" else ""
    seeds = sorted({len(cell["seeds"]) for cell in result["cells"]})
    option += "" if seeds[-1] == SEEDS else f" --seeds {seeds[-1]}"
    lines = [
        f"# {result['name']}: {result['paper']}",
        f"**Claim.** {result['claim']}",
        f"**Test.** {result['how']}",
        f"**Verdict: {result['verdict']}.**" + (f" {why.strip()}" if why.strip() else ""),
        statements_table(result["statements"]),
        "A statement holds where every seed of the one is below every seed of the other, by the factor that it names. "
        "The ratio is the smallest of a higher to a lower number, over all cells and seeds; where one cell of several "
        "is enough, that of the best.",
        f"```bash\njit reproduce {result['name']}{option}\n```",
        f"{minutes:.0f} minutes of {_threads(result['threads'])} on {', '.join(result['machines'])} "
        f"(torch {result['versions']['torch']}, Python {result['versions']['python']}), all cells one after the other; "
        f"runs that other reproductions share are counted in each. {_judged(result['facts'])}",
        f"`{number['name']}` is {number['meaning']} Trainings of each cell: {' or '.join(map(str, seeds))}, with other "
        "seeds; of several, the mean and the standard deviation are given.",
    ]
    for part in result["parts"]:
        lines.append(f"## {part['name']}")
        for name in part["tables"]:
            lines.append(f"`{name}`, here:\n\n{table(result, part, name)}")
        if part["theirs"]:
            lines.append(f"The paper's ({number['theirs']}):\n\n{their_table(part)}")
        lines += [f"![{name}]({name}.png)" for name in part["pictures"]]
    return "\n\n".join(lines) + "\n"


def _threads(threads: Sequence[int]) -> str:
    return "one thread" if list(threads) == [1] else f"{' or '.join(map(str, threads))} threads"


def _judged(facts: Mapping[str, Any]) -> str:
    by = f"Judged by {', '.join(facts['features'])}. " if facts["features"] else ""
    accuracy = ", ".join(f"{value:.1%}" for value in facts["held_out_accuracy"])
    right = f"Their accuracy on held-out data: {accuracy}. " if accuracy else ""
    floors = ", ".join(f"{value:.2f}" for value in facts["floor"])
    return by + right + (f"The floor, data against data: {floors}." if floors else "")


def statements_table(statements: Sequence[Mapping[str, Any]]) -> str:
    """Each statement, and whether it holds."""
    rows = ["| statement | holds | ratio |", "|---|---|---|"]
    for each in statements:
        text = f"*Beyond the claim:* {each['text']}" if each["beyond"] else each["text"]
        rows.append(f"| {text} | {'yes' if each['holds'] else 'no'} | {ratio_in_words(each['ratio'])} |")
    return "\n".join(rows)


def ratio_in_words(ratio: float | None) -> str:
    """None is infinite."""
    return "\N{INFINITY}" if ratio is None else f"{ratio:.2f}"


def table(result: Mapping[str, Any], part: Mapping[str, Any], number: str) -> str:
    """One number of a part's cells: rows by all axes but the last, columns by the last."""
    entries = {
        tuple(cell["labels"].values()): in_words(cell["numbers"].get(number, []))
        for cell in result["cells"]
        if cell["part"] == part["name"]
    }
    return _pivot(entries, part["axes"])


def their_table(part: Mapping[str, Any]) -> str:
    """The paper's numbers of a part."""
    return _pivot({tuple(labels): str(value) for labels, value in part["theirs"]}, part["axes"])


def in_words(values: Sequence[float | None]) -> str:
    """Mean and standard deviation; of failed trainings, how many."""
    good = [value for value in values if value is not None]
    if not good:
        return "failed"
    text = f"{np.mean(good):.3g}"
    if len(good) > 1:
        text += f" \N{PLUS-MINUS SIGN} {np.std(good, ddof=1):.2g}"
    return text + (f" ({len(values) - len(good)} failed)" if len(good) < len(values) else "")


def _pivot(entries: Mapping[tuple[str, ...], str], axes: Sequence[str]) -> str:
    columns = list(dict.fromkeys(labels[-1] for labels in entries))
    heads = list(dict.fromkeys(labels[:-1] for labels in entries))
    titles = list(axes[:-1]) or [axes[-1]]
    lines = [f"| {' | '.join([*titles, *columns])} |", "|" + "---|" * (len(titles) + len(columns))]
    for head in heads:
        cells = [entries.get((*head, column), "") for column in columns]
        lines.append(f"| {' | '.join([*(head or ('',)), *cells])} |")
    return "\n".join(lines)
