"""Run folders: recipe, log and state changed, damaged or replaced between two starts of the same command."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from justimage.commands.main import main

from ..case import Case, Expect, Rng, choose, pick
from ..damage import BYTES, damage, instead_of, mutate_json, mutate_json_file
from .networks import TRAIN, data, read_weights, same

RUN = Path("out")
STATE = RUN / "state" / "000000004"
FURTHER: tuple[str, ...] = (*TRAIN.split(), "--training.duration-nimg", "8")
NAMES = ("recipe.json", "log.jsonl", "state.json", "state.safetensors", "out", "000000004")

NO_POSITION = (
    *("{}", "[]", "null", "1", "", "{", '{"nimg": null}', '{"nimg": "4"}', '{"nimg": -4}', '{"nimg": 1e99}'),
    *('{"nimg": [4]}', '{"nimg": NaN}', '{"nimg": 3.5}', '{"nimg": 2}', '{"nimg": true}'),
)


def begin(rng: Rng) -> None:
    """A run that has made half of its way."""
    data(rng)
    assert main(list(TRAIN.split())) == 0


def as_if_nothing_were() -> str:
    """Whether the weights are those of a run that was never stopped."""
    words: list[str] = list(FURTHER)
    words[words.index("out")] = "again"
    assert main(words) == 0
    return same(read_weights("out/weights/raw"), read_weights("again/weights/raw"))


def run_case(
    mutation: str,
    expect: Expect = "either",
    words: tuple[str, ...] = (),
    *,
    compare: bool = True,
    codes: tuple[int, ...] = (2,),
) -> Case:
    """The same command again, twice as far. What it trains is compared with a run that was never stopped."""
    return Case(mutation, FURTHER, expect, (*NAMES, *words), as_if_nothing_were if compare else lambda: "", codes=codes)


def none(rng: Rng) -> Case:
    """A run that goes on."""
    begin(rng)
    return run_case("none", "accept")


def recipe(rng: Rng) -> Case:
    """A field of recipe.json changed, dropped or of another type."""
    begin(rng)
    name, what = mutate_json_file(rng, RUN / "recipe.json")
    return run_case(f"recipe: {what}", words=(name,))


def log(rng: Rng) -> Case:
    """A line of the log that is something else."""
    begin(rng)
    lines = (RUN / "log.jsonl").read_text().splitlines()
    at = int(rng.integers(len(lines)))
    if rng.random() < 0.5:
        lines[at] = pick(
            rng, ("[1]", "1", "null", '"x"', "{}", "{", "\0", '{"nimg": "x"}', '{"nimg": null}', '{"nimg": [1]}')
        )
        what = lines[at]
    else:
        values, _, what = mutate_json(rng, json.loads(lines[at]))
        lines[at] = json.dumps(values)
    (RUN / "log.jsonl").write_text("\n".join(lines) + "\n")
    return run_case(f"log: {what[:30]}")


def state_facts(rng: Rng) -> Case:
    """state.json without a position, or with one that is none."""
    begin(rng)
    text = pick(rng, NO_POSITION)
    (STATE / "state.json").write_text(text)
    return run_case(f"state.json: {text}", "refuse", ("nimg",))


def state_tensors(rng: Rng) -> Case:
    """A tensor of the state missing, of another shape, or not finite."""
    begin(rng)
    path = STATE / "state.safetensors"
    tensors: dict[str, Any] = load_file(path)
    kind = pick(rng, ("net/", "ema/", "optimizer/exp_avg/", "optimizer/exp_avg_sq/", "optimizer/step/"))
    name = pick(rng, [each for each in tensors if each.startswith(kind)])
    tensor = tensors[name]
    changes: dict[str, Callable[[], Any]] = {
        "missing": lambda: tensors.pop(name),
        "all missing": lambda: [tensors.pop(each) for each in list(tensors) if each.startswith(kind)],
        "another shape": lambda: tensors.update({name: tensor[None].repeat(2, *[1] * tensor.ndim)}),
        "NaN": lambda: tensors.update({name: torch.full_like(tensor, float("nan"))}),
        "infinity": lambda: tensors.update({name: torch.full_like(tensor, float("inf"))}),
        "whole numbers": lambda: tensors.update({name: tensor.to(torch.int64)}),
        "another name": lambda: tensors.update({f"{name}x": tensors.pop(name)}),
        "one more": lambda: tensors.update({pick(rng, ("x", "optimizer/x", "net/x", "optimizer/x/y")): tensor.clone()}),
    }
    what = pick(rng, changes)
    changes[what]()
    save_file(tensors, path)
    codes = (1, 2) if what in ("NaN", "infinity") else (2,)  # it may show in the first step only
    return run_case(f"{kind} {what}", "refuse", (name, "moments", "optimizer", "finite"), codes=codes)


def damaged(rng: Rng) -> Case:
    """A damaged file of the run. Values of tensors have no checksum: what they are then is not compared."""
    begin(rng)
    path = pick(rng, (RUN / "recipe.json", RUN / "log.jsonl", STATE / "state.json", STATE / "state.safetensors"))
    how = pick(rng, BYTES)
    damage(rng, path, how)
    values = path.suffix == ".safetensors"
    return run_case(f"{how} {path.name}", compare=not values, codes=(1, 2) if values else (2,))


def replaced(rng: Rng) -> Case:
    """A folder or a link where a file should be, or nothing; or a file where a folder should be."""
    begin(rng)
    if rng.random() < 0.3:
        folder = pick(rng, ("weights", "samples", "state"))
        (RUN / folder).rename(f"../{folder}")
        (RUN / folder).write_text("")
        return run_case(f"{folder} is a file", words=(folder,), compare=False)
    path = pick(rng, (RUN / "recipe.json", RUN / "log.jsonl", STATE / "state.json", STATE / "state.safetensors"))
    what = instead_of(rng, path)
    return run_case(f"{path.name}: {what}", compare=False)


def other_data(rng: Rng) -> Case:
    """Data of the same size that are others."""
    begin(rng)
    data(rng)
    return run_case("other data", "refuse", ("data", "set.npz"))


def other_settings(rng: Rng) -> Case:
    """A setting that decides what is computed."""
    begin(rng)
    option, value = pick(
        rng,
        (
            ("training.lr", "0.5"),
            ("network.width", "32"),
            ("training.seed", "9"),
            ("noise-scale", "2"),
            ("prediction", "v"),
        ),
    )
    case = run_case(f"another {option}", "refuse", (option, option.replace("-", "_")))
    return Case(case.mutation, (*FURTHER, f"--{option}", value), case.expect, case.words)


def left_by_a_kill(rng: Rng) -> Case:
    """What a kill leaves behind is removed, and the run goes on."""
    begin(rng)
    for place in (RUN / ".recipe.json.999999", RUN / "state" / ".000000006.part" / ".state.safetensors.999999"):
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(b"half")

    def right() -> str:
        left = [str(path) for path in RUN.rglob(".*") if path.name not in (".lock", ".gitignore")]
        return f"left: {', '.join(left)}" if left else as_if_nothing_were()

    return Case("left by a kill", FURTHER, "accept", NAMES, right)


MUTATIONS: dict[str, Callable[[Rng], Case]] = {
    "none": none,
    "recipe": recipe,
    "log": log,
    "state facts": state_facts,
    "state tensors": state_tensors,
    "damaged": damaged,
    "replaced": replaced,
    "other data": other_data,
    "other settings": other_settings,
    "left by a kill": left_by_a_kill,
}


def case(rng: Rng) -> Case:
    """A case of this door."""
    return choose(rng, MUTATIONS)[1](rng)
