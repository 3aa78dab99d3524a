"""Packs: an index that says something else, shards cut, flipped or swapped, labels changed, unfinished ones."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np

from justimage.data.arrays import Arrays
from justimage.data.packing import pack
from justimage.data.sources import open_source

from ..case import Case, Expect, Rng, choose, pick
from ..damage import BYTES, damage, instead_of, mutate_json_file
from ..samples import arguments, digest

INDEX = Path("set/index.json")
Labelled = Counter[tuple[str, int]]


def good(rng: Rng) -> Labelled:
    """A pack in set/, of one shard or several -> its samples and labels."""
    side = 8
    count = int(rng.integers(4, 10))
    x = rng.integers(0, 256, (count, 3, side, side), np.uint8)
    y = np.arange(count) % 3
    big = rng.random() < 0.3
    if big:  # two shards of 1 MB
        x = rng.integers(0, 256, (6, 3, 300, 300), np.uint8)
        y = np.arange(6) % 3
    pack(Arrays(x, y, classes=("ant", "bee", "cow")), Path("set"), shard_mb=1)
    return Counter((digest(row), int(label)) for row, label in zip(x, y, strict=True))


def compare(wanted: Labelled) -> str:
    """What the pack now gives that is not what was put in. Labels are compared as numbers, for names may be mended."""
    source = open_source("set", (8, 8), 3)
    if source.indexed is False:
        return "it has become a stream"
    items = [source[i] for i in range(len(source))]
    strange = [y["labels"] for _, y in items if np.ndim(y.get("labels", 0))]
    if strange:
        return f"a label that is {strange[0]}"
    found = Counter((digest(raw), int(y.get("labels", -1))) for raw, y in items)
    if found != wanted:
        same = Counter(each for each, _ in found.elements()) == Counter(each for each, _ in wanted.elements())
        return "other labels" if same else f"{(wanted - found).total()} of {wanted.total()} samples are lost"
    top = max(label for _, label in wanted)
    return "" if len(source.spec.classes) > top else f"label {top} and {len(source.spec.classes)} classes"


def pack_case(
    rng: Rng, mutation: str, wanted: Labelled, expect: Expect = "either", words: tuple[str, ...] = ()
) -> Case:
    """The pack as a case."""
    command = arguments(rng, "set", "--data-options.kind", pick(rng, ("auto", "pack")))
    names = ("index.json", "shard", "set", *words)
    return Case(
        mutation, command, expect, names, lambda: compare(wanted), codes=(1, 2) if "pack" in command[:2] else (2,)
    )


def none(rng: Rng) -> Case:
    """A good pack."""
    return pack_case(rng, "none", good(rng), "accept")


def index(rng: Rng) -> Case:
    """A field of the index changed, dropped or of another type."""
    wanted = good(rng)
    name, what = mutate_json_file(rng, INDEX)
    return pack_case(rng, f"index: {what}", wanted, words=(name,))


def important(rng: Rng) -> Case:
    """The same to the fields that everything else depends on."""
    wanted = good(rng)
    values = json.loads(INDEX.read_text())
    spec, shard = values["spec"], values["shards"][0]
    changes: dict[str, Callable[[], object]] = {
        "a class fewer": lambda: spec["classes"].pop(),
        "no classes": lambda: spec.update(classes=[]),
        "no shards": lambda: values.update(shards=[]),
        "a shard fewer": lambda: values["shards"].pop(),
        "a shard twice": lambda: values["shards"].append(shard),
        "another count": lambda: shard.update(count=shard["count"] + 1),
        "a name outside": lambda: shard.update(name="../outside"),
        "an absolute name": lambda: shard.update(name=str(Path("../outside").resolve())),
        "another size": lambda: spec.update(size=[4, 16]),
        "another type": lambda: spec.update(dtype="float32"),
        "NaN as scale": lambda: spec.update(scale=[float("nan")] * 3),
        "not complete": lambda: values.update(complete=False),
    }
    what = pick(rng, changes)
    changes[what]()
    for end in (".npy", ".labels.npy"):
        Path(f"../outside{end}").write_bytes(Path(f"set/00000{end}").read_bytes())
    INDEX.write_text(json.dumps(values))
    return pack_case(rng, what, wanted, "refuse", words=("classes", "scale", "label"))


def broken_index(rng: Rng) -> Case:
    """An index that is damaged, no JSON, or not there."""
    wanted = good(rng)
    if rng.random() < 0.4:
        return pack_case(rng, f"index: {instead_of(rng, INDEX)}", wanted)
    how = pick(rng, BYTES)
    damage(rng, INDEX, how)
    return pack_case(rng, f"{how} index", wanted)


def damaged_shard(rng: Rng) -> Case:
    """A damaged shard: its checksum says so."""
    wanted, how = good(rng), pick(rng, BYTES)
    path = pick(rng, sorted(Path("set").glob("*.npy")))
    before = path.read_bytes()
    damage(rng, path, how)
    expect: Expect = "accept" if path.read_bytes() == before else "either"
    return pack_case(rng, f"{how} {'labels' if 'labels' in path.name else 'shard'}", wanted, expect)


def other_shard(rng: Rng) -> Case:
    """Something else where a shard or its labels should be."""
    wanted = good(rng)
    path = pick(rng, sorted(Path("set").glob("*.npy")))
    return pack_case(rng, f"instead of a shard {instead_of(rng, path)}", wanted, "refuse")


def swapped(rng: Rng) -> Case:
    """A shard that is of another order, type or shape, or labels that are others, all in good files."""
    wanted = good(rng)
    x, y = np.load("set/00000.npy"), np.load("set/00000.labels.npy")
    changes: dict[str, Callable[[], None]] = {
        "order": lambda: np.save("set/00000.npy", np.ascontiguousarray(x[::-1])),
        "floats": lambda: np.save("set/00000.npy", x.astype(np.float32)),
        "flat": lambda: np.save("set/00000.npy", x.reshape(len(x), -1)),
        "objects": lambda: np.save("set/00000.npy", np.full(x.shape[:1], None), allow_pickle=True),
        "labels": lambda: np.save("set/00000.labels.npy", y + 1),
        "float labels": lambda: np.save("set/00000.labels.npy", y.astype(float)),
        "negative labels": lambda: np.save("set/00000.labels.npy", y - 5),
        "labels of two axes": lambda: np.save("set/00000.labels.npy", y[:, None]),
        "object labels": lambda: np.save("set/00000.labels.npy", np.full(len(y), None), allow_pickle=True),
        "huge labels": lambda: np.save("set/00000.labels.npy", y * 10**12),
    }
    what = pick(rng, changes)
    changes[what]()
    return pack_case(rng, f"swapped: {what}", wanted, "refuse", words=("label",))


def labels_that_fit(rng: Rng) -> Case:
    """Labels out of range, with a checksum that fits: made by other code."""
    import zlib

    wanted = good(rng)
    y = np.load("set/00000.labels.npy") + int(pick(rng, (3, 100, -2, 10**9)))
    np.save("set/00000.labels.npy", y)
    values = json.loads(INDEX.read_text())
    values["shards"][0]["labels_crc32"] = zlib.crc32(y.tobytes())
    INDEX.write_text(json.dumps(values))
    return pack_case(rng, "labels out of range", wanted, "refuse", words=("label",))


MUTATIONS: dict[str, Callable[[Rng], Case]] = {
    "none": none,
    "index": index,
    "important": important,
    "broken index": broken_index,
    "damaged shard": damaged_shard,
    "other shard": other_shard,
    "swapped": swapped,
    "labels that fit": labels_that_fit,
}


def case(rng: Rng) -> Case:
    """A case of this door."""
    return choose(rng, MUTATIONS)[1](rng)
