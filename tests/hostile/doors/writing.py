"""Writing: places that cannot be written, hold something else, or are links to it."""

from collections.abc import Callable
from pathlib import Path

from ..case import Case, Expect, Rng, choose, pick
from .networks import SAMPLE, TRAIN, data, weights

COMMANDS = {
    "train": TRAIN,
    "sample png": f"{SAMPLE} --format png",
    "sample npy": f"{SAMPLE} --format npy",
    "sample nc": f"{SAMPLE} --format nc",
    "sample zarr": f"{SAMPLE} --format zarr",
    "inspect": "data inspect set.npz --out out",
    "pack": "data pack set.npz --out out -j 1",
    "convert": "convert set out",
}
# What each command writes, in its folder.
WRITES: dict[str, tuple[str, ...]] = {
    "sample png": ("samples.json", "grid.png", "class0-seed0.png"),
    "sample npy": ("samples.npy", "samples.json", "grid.png"),
    "sample nc": ("samples.nc", "samples.json", "grid.png"),
    "sample zarr": ("samples.zarr", "samples.json", "grid.png"),
    "inspect": ("contact-sheet.png", "inspection.json"),
    "convert": (".pth", ".safetensors"),
}


def prepare(rng: Rng, command: str, out: str = "out") -> tuple[str, ...]:
    """Good inputs of a command -> its arguments, with another place to write to."""
    data(rng)
    weights(rng)
    words = COMMANDS[command].split()
    suffix = pick(rng, (".pth", ".safetensors")) if command == "convert" else ""
    at = len(words) - 1 - words[::-1].index("out")
    return (*words[:at], out + suffix if out == "out" else out, *words[at + 1 :])


def none(rng: Rng) -> Case:
    """A place that is free."""
    command = pick(rng, COMMANDS)
    words = prepare(rng, command)
    return Case("none", words, "accept", writes=("out", "out.pth", "out.safetensors"))


def unwritable(rng: Rng) -> Case:
    """A place where nothing can be written."""
    command = pick(rng, COMMANDS)
    places = ["/proc/x", "file/x", "/dev/null/x", "x" * 300, "a\0b", "loop/x", "/proc/self/x", "/sys/x"]
    if command != "convert":
        places += ["file", "", "/dev/null"]
    end = pick(rng, ("", "/y.pth")) if command == "convert" else ""
    place = pick(rng, places)
    out = place + (end or ".pth" if command == "convert" else "")
    words = prepare(rng, command, out)
    Path("file").write_text("a file")
    Path("loop").symlink_to("loop")
    names = (place[:20], "out", "run", "null", "file")
    return Case(f"{command} to {place[:12]!r}", words, "refuse", tuple(n for n in names if n), writes=())


def occupied(rng: Rng) -> Case:
    """A folder that holds something else: nothing in it is lost or changed."""
    command = pick(rng, COMMANDS)
    words = prepare(rng, command)
    out = Path(next(word for word in words if word in ("out", "out.pth", "out.safetensors")))
    what = pick(rng, ("notes.txt", "photo.png", "x.npy", "index.json", "recipe.json", "samples.json", ".hidden"))
    out.mkdir()
    (out / what).write_bytes(b"mine")
    case = Case(f"{command} where {what} is", words, "either", ("out", str(out)), writes=("out", str(out)))

    def right() -> str:
        place = out / what
        written = what in WRITES.get(command, ())
        return "" if written or (place.is_file() and place.read_bytes() == b"mine") else f"{what} is lost"

    return Case(case.mutation, words, case.expect, case.words, right, writes=case.writes)


def through_a_link(rng: Rng) -> Case:
    """A link where a file is to be written: it is replaced, and what it led to stays as it is."""
    command = pick(rng, WRITES)
    words = prepare(rng, command)
    Path("../precious").write_bytes(b"mine")
    if command == "convert":
        target = next(word for word in words if word.startswith("out."))
        Path(target).symlink_to(pick(rng, ("../precious", "../not-yet")))
        return Case("convert to a link", words, "either", (target,), writes=(target,))
    name = pick(rng, WRITES[command])
    Path("out").mkdir()
    Path("out/samples.json").write_text('{"justimage": "0.1.0"}')  # a folder of samples that was written before
    Path("out", name).unlink(missing_ok=True)
    Path("out", name).symlink_to(Path(pick(rng, ("../precious", "../not-yet"))).resolve())
    return Case(f"{command}: {name} is a link", words, "either", ("out", name))


def folder_for_a_file(rng: Rng) -> Case:
    """A folder, with something in it, where a file is to be written."""
    command = pick(rng, [name for name in WRITES if name != "convert"])
    words = prepare(rng, command)
    name = pick(rng, [each for each in WRITES[command] if each != "samples.zarr"])
    Path("out", name).mkdir(parents=True)
    Path("out", name, "mine.txt").write_bytes(b"mine")
    expect: Expect = "either" if name.startswith("class") else "refuse"
    return Case(f"{command}: {name} is a folder", words, expect, ("out", name), codes=(1, 2))


def same_names(rng: Rng) -> Case:
    """Samples that would have the same name."""
    words = prepare(rng, pick(rng, ("sample png", "sample npy")))
    more = pick(
        rng, (("--seeds", "0", "0"), ("--classes", "ant", "ant"), ("--classes", "ant", "0"), ("--seeds", "0-2", "1"))
    )
    count = {"--seeds": 3 * (2 if more[-1] == "0" else 4), "--classes": 2}[more[0]]

    def right() -> str:
        import numpy as np

        array = Path("out/samples.npy")
        drawn = [path for path in Path("out").rglob("*.png") if path.name != "grid.png"]
        found = len(np.load(array)) if array.is_file() else len(drawn)
        return "" if found == count else f"{found} of {count} samples are there"

    return Case(f"sample {' '.join(more)}", (*words, *more), "either", ("seeds", "classes", "seed", "class"), right)


def odd_classes(rng: Rng) -> Case:
    """Classes whose names are no names of files: each has its own, and none leads out of the folder."""
    import json

    words = prepare(rng, "sample png")
    config = Path("set/config.json")
    values = json.loads(config.read_text())
    names = pick(
        rng,
        (
            ["a/b", "a?b", "a:b"],
            ["../x", "..", "."],
            ["", " ", "x"],
            ["x" * 300, "y", "z"],
            ["\0", "\n", "a"],
            ["A", "a", "a "],
        ),
    )
    values["data"]["classes"] = names
    config.write_text(json.dumps(values))

    def right() -> str:
        drawn = [path for path in Path("out").rglob("*.png") if path.name != "grid.png"]
        return "" if len(drawn) == 3 else f"{len(drawn)} of 3 samples are there"

    return Case(f"classes {[n[:5] for n in names]}", words, "either", ("classes", "class"), right)


MUTATIONS: dict[str, Callable[[Rng], Case]] = {
    "none": none,
    "unwritable": unwritable,
    "occupied": occupied,
    "through a link": through_a_link,
    "folder for a file": folder_for_a_file,
    "same names": same_names,
    "odd classes": odd_classes,
}


def case(rng: Rng) -> Case:
    """A case of this door."""
    return choose(rng, MUTATIONS)[1](rng)
