"""The command line, derived from dataclasses by tyro; and what to write in place of what is not understood."""

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import tyro

Parsed = TypeVar("Parsed")

NOT_OPTIONS = {repr(get_args(kind[str])[1]) for kind in (tyro.conf.Positional, tyro.conf.Suppress)}
# What other programs call it -> what it is called here. The first that a command has is suggested.
SYNONYMS: dict[str, tuple[str, ...]] = {
    "cfg": ("guidance", "sampling.guidance"),
    "cfg-scale": ("guidance", "sampling.guidance"),
    "guidance-scale": ("guidance", "sampling.guidance"),
    "num-samples": ("count",),
    "num-images": ("count",),
    "num-fid-samples": ("count",),
    "n": ("count",),
    "num-steps": ("steps", "sampling.steps"),
    "nfe": ("steps", "sampling.steps"),
    "solver": ("sampler", "sampling.sampler"),
    "seed": ("seeds", "first-seed", "training.seed"),
    "seeds": ("first-seed",),
    "ref": ("data",),
    "reference": ("data",),
    "stats": ("data",),
    "extractor": ("features",),
    "fid": ("features inception",),
    "inception": ("features inception",),
    "images": ("samples", "data"),
    "sampler": ("samplers",),
    "interval": ("intervals",),
    "shift": ("shifts",),
    "final": ("finals",),
    "labels": ("classes", "data-options.labels"),
    "class": ("classes",),
    "output": ("out", "run"),
    "output-dir": ("out", "run"),
    "data-path": ("data",),
    "dataset": ("data",),
    "ckpt": ("init-from", "weights"),
    "image-size": ("size", "network.size"),
    "img-size": ("size", "network.size"),
    "resolution": ("size", "network.size"),
    "patch-size": ("network.patch",),
    "batch": ("batch-size", "training.batch-size"),
    "epochs": ("training.duration-nimg",),
    "steps": ("training.duration-nimg",),
    "learning-rate": ("training.lr",),
    "num-workers": ("workers", "data-options.workers"),
    "flip": ("mirror", "mirrored", "training.mirror"),
    "lora": ("training.lora.rank",),
    "lora-rank": ("training.lora.rank",),
    "training.lora-rank": ("training.lora.rank",),
    "resume": ("run", "init-from"),
    "pretrained": ("init-from",),
    "finetune": ("init-from",),
    "load-from": ("init-from",),
    "gpu": ("hardware", "device"),
    "gpus": ("processes",),
    "num-gpus": ("processes",),
    "cost": ("price",),
    "no-flip": ("mirror off", "training.mirror off"),
    "mirror": ("mirrored",),
    "training.batch": ("training.batch-size",),
    "training.loss": ("training.loss-space",),
    "network.rope": ("network.rotary",),
    "network.patch-size": ("network.patch",),
    "label": ("classes",),
    "training.flip": ("training.mirror on",),
    "training.no-flip": ("training.mirror off",),
    "training.flip-fields": ("training.mirror on",),
}


# What a command takes by its place -> what others give by these options.
BY_PLACE = {"path": ("path", "data"), "model": ("model", "ckpt", "checkpoint"), "run": ("run", "model")}


def parse(kind: type[Parsed], arguments: Sequence[str], prog: str, default: Parsed | None = None) -> Parsed:
    """The arguments as a dataclass, starting from a default if there is one.

    Raises ValueError, with the likeliest option, for what is not understood; exits with 2 where a value is of the wrong
    type, and with 0 after --help.
    """
    _check_places(kind, arguments, prog)
    start: dict[str, Any] = {} if default is None else {"default": default}
    parsed, unknown = tyro.cli(kind, args=list(arguments), prog=prog, return_unknown_args=True, **start)
    if unknown:
        options = list(dict.fromkeys(option_names(parsed)))
        raise ValueError(f"{_instead(unknown[0], options)}\nAll options: {prog} --help")
    return parsed


def _check_places(kind: type, arguments: Sequence[str], prog: str) -> None:
    """Raises ValueError where something that a command takes by its place is given as an option."""
    hints = get_type_hints(kind, include_extras=True)
    names = {item.name for item in fields(kind)}  # type: ignore[arg-type]
    places = {name for name in names if NOT_OPTIONS & set(map(repr, get_args(hints[name])[1:]))}
    for name in places & BY_PLACE.keys():
        wrong = {f"--{option}" for option in BY_PLACE[name] if option not in names - places}
        for i, each in enumerate(arguments):
            option, _, value = each.partition("=")
            if option in wrong:
                value = value or next(iter(arguments[i + 1 :]), "")
                raise ValueError(f"{name.upper()} stands without {option}: {prog} {value} ...")


def option_names(values: Any) -> Iterator[str]:
    """The options that a dataclass becomes, without the dashes in front."""
    yield from (name for name, _ in options_of(values))


def options_of(values: Any, prefix: str = "") -> Iterator[tuple[str, tuple[str, ...]]]:
    """The options that a dataclass becomes, without the dashes in front, each with the words it may have, if few."""
    hints = get_type_hints(type(values), include_extras=True)
    for item in fields(values):
        value = getattr(values, item.name)
        name, marks = item.name.replace("_", "-"), get_args(hints[item.name])[1:]
        if NOT_OPTIONS & set(map(repr, marks)) or (
            any(map(is_dataclass, get_args(hints[item.name])[:1])) and value == ()
        ):
            continue
        if is_dataclass(value):
            without_name = any(getattr(mark, "name", None) == "" for mark in marks)
            yield from options_of(value, prefix if without_name else f"{prefix}{name}.")
        else:
            yield prefix + name, tuple(_words(hints[item.name]))


def _words(hint: Any) -> Iterator[str]:
    """The texts among the values of a Literal, inside of Annotated and unions too."""
    if get_origin(hint) is Literal:
        yield from (word for word in get_args(hint) if isinstance(word, str))
    elif get_origin(hint) in (Annotated, Union, UnionType):
        for each in get_args(hint):
            yield from _words(each)


def _instead(unknown: str, options: list[str]) -> str:
    """One line on an argument that no option takes."""
    if not unknown.startswith("-"):
        data = f"; data are given with --data {unknown}" if "data" in options else ""
        return f"{unknown!r} belongs to no option{data}"
    name = unknown.partition("=")[0].lstrip("-").replace("_", "-")
    known = [each for each in SYNONYMS.get(name, ()) if each.partition(" ")[0] in options]
    same_end = [each for each in options if each.rpartition(".")[2] == name]
    near = difflib.get_close_matches(name, options, n=1, cutoff=0.6)
    likely = next(iter([*known, *same_end, *near]), None)
    return f"there is no option --{name}" + (f"; did you mean --{likely}?" if likely else "")
