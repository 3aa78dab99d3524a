"""Flags: any option of a command with a value that makes no sense."""

from collections.abc import Callable, Iterable
from dataclasses import is_dataclass
from typing import Any

from justimage.commands.data import Inspect, Pack
from justimage.commands.line import option_names
from justimage.commands.sample import Sample
from justimage.commands.train import Train
from justimage.runs.recipes import RECIPES

from ..case import Case, Expect, Rng, choose, pick
from .networks import SAMPLE, TRAIN, data, weights

NOT_FINITE = ("nan", "inf", "-inf", "1e400", "NaN")
VALUES = (
    *NOT_FINITE,
    "-1",
    "0",
    "1",
    "1000000000",
    "1" + "0" * 30,
    "0.5",
    "-0.0",
    "1e-300",
    "",
    "x",
    "ü",
    "x" * 600,
    "..",
    "None",
    "True",
    "off",
)
# Each is a threat of its own: where results go is a door of its own, compiling takes a minute, and data have theirs.
ELSEWHERE = ("out", "run", "training.compile")
COMMANDS: dict[str, tuple[Any, str]] = {
    "train": (Train(RECIPES["mnist-demo"]), TRAIN),
    "sample": (Sample("set"), SAMPLE),
    "inspect": (Inspect("set.npz"), "data inspect set.npz --out out"),
    "pack": (Pack("set.npz"), "data pack set.npz --out out -j 1"),
}


def default(values: Any, option: str) -> Any:
    """The default of an option: of training.lr, say, that of the field lr of the field training."""
    parts = option.replace("-", "_").split(".")
    for part in parts:
        if not hasattr(values, part):  # fields of a field without a name on the command line
            values = next(inner for inner in vars(values).values() if is_dataclass(inner) and hasattr(inner, part))
        values = getattr(values, part)
    return values


def is_float(value: Any, option: str) -> bool:
    """Whether an option takes floating-point numbers."""
    return isinstance(value[0] if isinstance(value, tuple) and value else value, float) or option == "minutes"


def prepare(rng: Rng, command: str) -> tuple[Any, tuple[str, ...]]:
    """Good inputs of a command -> its defaults and its arguments."""
    weights(rng) if command == "sample" else data(rng)
    values, words = COMMANDS[command]
    return values, tuple(words.split())


def flag_case(rng: Rng, command: str, flags: Iterable[tuple[str, str]]) -> Case:
    """A command with some options changed."""
    values, words = prepare(rng, command)
    more, bad, names = [], False, ["belongs to no option"]
    for option, value in flags:
        held = default(values, option)
        count = len(held) if isinstance(held, tuple) and held else 1
        more += [f"--{option}", *[value] * count]
        bad = bad or (is_float(held, option) and value in NOT_FINITE)
        names += [option, *option.rsplit(".", 1), value[:20]]
    mutation = " ".join(f"{command} --{option} {value[:12]!r}" for option, value in flags)
    expect: Expect = "refuse" if bad else "either"
    # One that begins to train and then has no finite loss has failed: that is 1.
    codes = (1, 2) if command in ("train", "pack") and not bad else (2,)
    return Case(mutation, (*words, *more), expect, tuple(n for n in names if n), writes=("out",), codes=codes)


def options_of(command: str) -> list[str]:
    """The options of a command that are tried here."""
    return [name for name in dict.fromkeys(option_names(COMMANDS[command][0])) if name not in ELSEWHERE]


def none(rng: Rng) -> Case:
    """The command as it is."""
    command = pick(rng, COMMANDS)
    _, words = prepare(rng, command)
    return Case("none", words, "accept")


def one(rng: Rng) -> Case:
    """One option with a hostile value."""
    command = pick(rng, ("train", "train", *COMMANDS))
    return flag_case(rng, command, [(pick(rng, options_of(command)), pick(rng, VALUES))])


def number(rng: Rng) -> Case:
    """One option that takes floating-point numbers, with one that is not finite."""
    command = pick(rng, ("train", "train", "sample"))
    values = COMMANDS[command][0]
    options = [each for each in options_of(command) if is_float(default(values, each), each)]
    return flag_case(rng, command, [(pick(rng, options), pick(rng, NOT_FINITE))])


def two(rng: Rng) -> Case:
    """Two at a time; not one option twice, of which the last value counts."""
    command = pick(rng, COMMANDS)
    first = pick(rng, options_of(command))
    second = pick(rng, [each for each in options_of(command) if each != first])
    return flag_case(rng, command, [(first, pick(rng, VALUES)), (second, pick(rng, VALUES))])


def words(rng: Rng) -> Case:
    """Arguments that no parser knows."""
    command = pick(rng, COMMANDS)
    _, known = prepare(rng, command)
    word = pick(
        rng,
        (
            "-",
            "---",
            "--=",
            "--x=1",
            "-x",
            "--network",
            "--network.",
            "=",
            "--training.lr",
            "--sampling.interval 1",
            "\n",
            "--Ü",
        ),
    )
    return Case(f"{command} {word!r}", (*known, *word.split(" ")), "refuse")


MUTATIONS: dict[str, Callable[[Rng], Case]] = {
    "none": none,
    "one": one,
    "one more": one,
    "one again": one,
    "number": number,
    "two": two,
    "words": words,
}


def case(rng: Rng) -> Case:
    """A case of this door."""
    return choose(rng, MUTATIONS)[1](rng)
