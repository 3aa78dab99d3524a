"""Good samples, and whether a source gives back what was put in."""

import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from justimage.commands.data import Inspect
from justimage.commands.line import parse
from justimage.data.sources import open_source

from .case import Case, Expect, Rng, pick

SIDE = 8
CLASSES = ("ant", "bee", "cow")
COUNTED = "counted as unreadable or missing"  # what only looking at damaged samples may do
Read = tuple[str, str]  # hash of the raw values, name of the class


@dataclass(frozen=True)
class Photo:
    """An image that decodes to exactly these pixels."""

    name: str
    """Its key, without a suffix."""
    label: str
    png: bytes
    pixels: np.ndarray
    """(3, SIDE, SIDE) uint8"""

    @property
    def read(self) -> Read:
        """What a source must give back."""
        return digest(self.pixels), self.label


def digest(raw: Any) -> str:
    """A hash of one sample's raw values."""
    return hashlib.sha256(np.ascontiguousarray(raw).tobytes()).hexdigest()[:12]


def photos(rng: Rng, count: int = 0, suffix: str = "png") -> list[Photo]:
    """4 to 12 images of SIDE x SIDE, each class at least once."""
    found = []
    for i in range(count or int(rng.integers(4, 13))):
        pixels = rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, suffix)
        found.append(Photo(f"{i:03d}", CLASSES[i % 3], file.getvalue(), np.moveaxis(pixels, -1, 0).copy()))
    return found


def arguments(rng: Rng, path: str, *options: str) -> tuple[str, ...]:
    """A command that reads data: reading alone, packing, or looking."""
    size = ("--size", str(SIDE), *options)
    read, look = ("read", path, *size), ("data", "inspect", path, *size, "--out", "out")
    pack = ("data", "pack", path, *size, "--out", "out", "-j", "1")
    return pick(rng, (read, look) if path.startswith("pipe:") else (read, read, pack, look))


def data_case(
    rng: Rng,
    mutation: str,
    path: str,
    expected: Iterable[Read] | None,
    *options: str,
    expect: Expect = "either",
    words: Sequence[str] = (),
    aloud: Sequence[str] = (),
) -> Case:
    """A case of data at a path: if they are accepted, their samples and labels must be the expected ones."""
    command = arguments(rng, path, *options)
    names = (Path(path.removeprefix("pipe:cat ")).name, *words)
    wanted = None if expected is None else Counter(expected)
    codes = (1, 2) if "pack" in command else (2,)
    return Case(mutation, command, expect, names, lambda: compare(command, wanted), (*aloud, COUNTED), codes=codes)


def compare(command: Sequence[str], wanted: Counter[Read] | None) -> str:
    """What is not as it was put in, of data that a command has accepted; nothing if all is well."""
    if "inspect" in command and _counted():
        print(COUNTED)
        return ""
    if wanted is None:
        return ""
    read = (
        ("read", "out", "--size", str(SIDE)) if "pack" in command else ("read", *command[command.index("--size") - 1 :])
    )
    if "inspect" in command:
        read = read[: read.index("--out")] + read[read.index("--out") + 2 :]
    try:
        found = Counter(read_all(read[1:]))
    except ValueError as error:
        return f"accepted, and then refused: {error}"
    if found == wanted:
        return ""
    lost, more = wanted - found, found - wanted
    pixels = {each for each, _ in lost} & {each for each, _ in more}
    if len(pixels) == lost.total() == more.total():
        return f"{len(pixels)} samples have other labels"
    return f"{lost.total()} of {wanted.total()} samples are lost, and {more.total()} are others"


def _counted() -> bool:
    report = json.loads(Path("out/inspection.json").read_text())
    return bool(report.get("unreadable") or report.get("missing"))


def read_all(words: Sequence[str]) -> list[Read]:
    """Every sample of a source, given as the arguments of `jit data inspect`. ValueError where it is refused."""
    asked = parse(Inspect, words, "read")
    size = asked.size * 2 if len(asked.size) == 1 else asked.size
    source = open_source(asked.path, size, asked.channels, asked.data_options)
    print(source.describe())
    items: Iterator[Any] = (source[i] for i in range(len(source))) if source.indexed is not False else _one_pass(source)
    return [(digest(raw), _class(source.spec.classes, y)) for raw, y in items]


def _class(classes: Sequence[str], y: dict[str, Any]) -> str:
    """The name of a sample's class; one that no good sample has where its label is out of range."""
    if "labels" not in y:
        return ""
    label = np.asarray(y["labels"])
    return classes[int(label)] if label.ndim == 0 and 0 <= label < len(classes) else f"label {label} of {len(classes)}"


def _one_pass(source: Any) -> Iterator[Any]:
    for count, make in enumerate(source.samples(0, 0)):
        if source.length is not None and count >= source.length:
            return
        yield make()


def write_all(files: dict[str, bytes], folder: Path) -> None:
    """Files by their path in a folder."""
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
