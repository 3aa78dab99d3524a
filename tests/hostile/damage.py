"""Bytes and JSON, damaged."""

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from .case import Rng, pick

# What a field of a JSON file may turn into; none of these is what stood there.
HOSTILE: tuple[Any, ...] = (
    None, True, [], {}, [1], {"a": 1}, "", "x", "../x", "nan", float("nan"), float("inf"), -1, 0, 10**9, 10**30,
    1.5, -0.5, [[1]], [None], ["x"], "\u0000", "ü" * 300,
)  # fmt: skip


def cut(rng: Rng, data: bytes) -> bytes:
    """The beginning: a download that stopped."""
    return data[: int(rng.integers(len(data)))]


def flip(rng: Rng, data: bytes) -> bytes:
    """One bit of one byte."""
    return flip_at(rng, data, int(rng.integers(len(data))))


def flip_at(rng: Rng, data: bytes, place: int) -> bytes:
    """One bit of the byte at a place."""
    return data[:place] + bytes([data[place] ^ (1 << int(rng.integers(8)))]) + data[place + 1 :]


def hole(rng: Rng, data: bytes) -> bytes:
    """Zeros over some bytes: a sparse copy."""
    start = int(rng.integers(len(data)))
    length = int(2 ** rng.uniform(0, np.log2(len(data) + 1)))
    return data[:start] + bytes(len(data[start : start + length])) + data[start + length :]


def garbage(rng: Rng, data: bytes) -> bytes:
    """Other bytes over some of them."""
    start = int(rng.integers(len(data)))
    length = len(data[start : start + int(rng.integers(1, 64))])
    return data[:start] + rng.bytes(length) + data[start + length :]


def repeated(rng: Rng, data: bytes) -> bytes:
    """A piece twice: a resumed download that went back too far."""
    start, stop = sorted(int(i) for i in rng.integers(len(data), size=2))
    return data[:stop] + data[start:]


def emptied(rng: Rng, data: bytes) -> bytes:
    """Nothing."""
    return b""


def noise(rng: Rng, data: bytes) -> bytes:
    """As many random bytes."""
    return rng.bytes(len(data))


BYTES: dict[str, Callable[[Rng, bytes], bytes]] = {
    "cut": cut,
    "flip": flip,
    "hole": hole,
    "garbage": garbage,
    "repeated": repeated,
    "emptied": emptied,
    "noise": noise,
}


def damage(rng: Rng, path: Path, how: str) -> None:
    """Do it to a file."""
    path.write_bytes(BYTES[how](rng, path.read_bytes()))


def damage_somehow(rng: Rng, path: Path) -> tuple[str, bool]:
    """Damage a file in any of these ways -> how, and whether it is still the same."""
    how, before = pick(rng, BYTES), path.read_bytes()
    damage(rng, path, how)
    return how, path.read_bytes() == before


def instead_of(rng: Rng, path: Path) -> str:
    """Put something of another kind where a file is -> what."""
    path.unlink()
    what = pick(rng, ("absent", "a folder", "a link to nothing", "a link to itself"))
    if what == "a folder":
        path.mkdir()
    elif what != "absent":
        path.symlink_to(path.name if "itself" in what else "nowhere")
    return what


def places(values: Any, prefix: tuple = ()) -> Iterator[tuple]:
    """The paths to all values inside JSON values, outermost first."""
    if prefix:
        yield prefix
    inside = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    for key, value in inside:
        yield from places(value, (*prefix, key))


def at(values: Any, place: tuple) -> Any:
    """The value at a path."""
    for key in place:
        values = values[key]
    return values


def mutate_json(rng: Rng, values: Any) -> tuple[Any, str, str]:
    """JSON values with one thing changed -> them, the field's name, and what was done to it."""
    values = copy.deepcopy(values)
    there = list(places(values))
    if not there:  # an empty object
        return pick(rng, HOSTILE), "", "an empty object replaced"
    place = pick(rng, there)
    parent, key = at(values, place[:-1]), place[-1]
    name = next((str(each) for each in reversed(place) if isinstance(each, str)), "")
    how = pick(rng, ("changed", "changed", "changed", "dropped", "added"))
    if how == "dropped":
        del parent[key]
        return values, name, f"{name} dropped"
    if how == "added" and isinstance(parent, dict):
        parent["unheard_of"] = pick(rng, HOSTILE)
        return values, name, f"a field beside {name}"
    old = parent[key]
    parent[key] = pick(rng, [each for each in HOSTILE if repr(each) != repr(old)])
    return values, name, f"{name} changed to a {type(parent[key]).__name__}"


def mutate_json_file(rng: Rng, path: Path) -> tuple[str, str]:
    """The same to a file -> the field's name, and what was done to it."""
    values, name, what = mutate_json(rng, json.loads(path.read_text()))
    path.write_text(json.dumps(values, indent=1))
    return name, what
