"""Arrays: .npy, .npz and folders of .npy, with lying headers, wrong types, ranks and values, and conditions."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np

from ..case import Case, Expect, Rng, choose, pick
from ..damage import BYTES
from ..samples import Read, data_case, digest

CODE = "import pathlib; pathlib.Path('code-ran').touch()"


class Runs:
    """Unpickled, it would run code."""

    def __reduce__(self):
        return exec, (CODE,)


def good(rng: Rng) -> np.ndarray:
    """Samples (N, C, 8, 8) of a random size and type."""
    shape = (int(rng.integers(4, 9)), int(rng.integers(1, 4)), 8, 8)
    if rng.random() < 0.4:
        return rng.integers(0, 256, shape, np.uint8)
    dtype = pick(rng, (np.float32, np.float64, np.float16, np.int16, np.int64, ">f4", np.int8, np.uint16))
    return (rng.normal(size=shape) * 30).astype(dtype)


def reads_of(x: np.ndarray) -> list[Read]:
    """What must be read: 8-bit values as they are, all others in float32."""
    x = x if x.dtype == np.uint8 else x.astype(np.float32)
    return [(digest(row), "") for row in x]


def npy(x: np.ndarray) -> bytes:
    """An array as a file."""
    file = io.BytesIO()
    np.save(file, x, allow_pickle=True)
    return file.getvalue()


def npz(**arrays: np.ndarray) -> bytes:
    """Arrays as a file."""
    file = io.BytesIO()
    np.savez(file, **arrays)  # type: ignore[arg-type]
    return file.getvalue()


def write(rng: Rng, x: np.ndarray) -> str:
    """The samples as a .npy, an .npz or a folder -> the path."""
    kind = pick(rng, ("set.npy", "set.npz", "set"))
    if kind == "set":
        Path("set").mkdir()
        for i, row in enumerate(x):
            Path(f"set/{i:03d}.npy").write_bytes(npy(row))
    else:
        Path(kind).write_bytes(npy(x) if kind == "set.npy" else npz(x=x))
    return kind


def a_file(path: str, rng: Rng) -> Path:
    """The file of the samples, or one of them."""
    return pick(rng, sorted(Path(path).iterdir())) if Path(path).is_dir() else Path(path)


def none(rng: Rng) -> Case:
    """Good arrays."""
    x = good(rng)
    return data_case(rng, "none", write(rng, x), reads_of(x), expect="accept")


def damaged(rng: Rng) -> Case:
    """A damaged file. Nothing protects the values of a .npy: there, whatever can be read may be accepted."""
    x, how = good(rng), pick(rng, BYTES)
    path = write(rng, x)
    file = a_file(path, rng)
    before = file.read_bytes()
    file.write_bytes(BYTES[how](rng, before))
    same = file.read_bytes() == before
    lost = how in ("cut", "emptied", "noise") and not same
    expect: Expect = "accept" if same else "refuse" if lost else "either"
    reads = reads_of(x) if same or path.endswith(".npz") else None
    return data_case(rng, f"{how} {path}", path, reads, expect=expect, words=[file.name])


def lying_header(rng: Rng) -> Case:
    """A header that promises other samples than there are."""
    x = good(rng)
    header: dict = {"descr": np.lib.format.dtype_to_descr(x.dtype), "fortran_order": False, "shape": x.shape}
    field = pick(rng, header)
    lies = {
        "shape": [
            (10**12, *x.shape[1:]),
            (x.shape[0] + 1, *x.shape[1:]),
            (-1, *x.shape[1:]),
            (),
            (0,),
            "x",
            (2**62, 2**62),
        ],
        "descr": ["O", "<f9", "x", None, "<U5", [("a", "<f4")], "<c16", "|V8", "|O"],
        "fortran_order": [None, 2, "no"],
    }
    header[field] = pick(rng, lies[field])
    text = (repr(header) + " " * 64 + "\n").encode()
    Path("set.npy").write_bytes(b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + x.tobytes())
    return data_case(rng, f"a lying {field}", "set.npy", None, expect="refuse")


def strange_header(rng: Rng) -> Case:
    """A header that is no header: too long, of another version, or code."""
    text = pick(rng, (b"__import__('os').mkdir('code-ran')", b"(" * 5000, b"{}", b"[]", b"\xff" * 9, b"{'a': 1}"))
    version = pick(rng, (b"\x01\x00", b"\x02\x00", b"\x03\x00", b"\x09\x00"))
    size = len(text).to_bytes(2 if version == b"\x01\x00" else 4, "little")
    folder = rng.random() < 0.5
    path = "set" if folder else "set.npy"
    if folder:
        Path("set").mkdir()
    Path("set/0.npy" if folder else path).write_bytes(b"\x93NUMPY" + version + size + text)
    return data_case(rng, "a strange header", path, None, expect="refuse", words=["0.npy"])


def bad_type(rng: Rng) -> Case:
    """Values that are no numbers, or would run code."""
    shape = (4, 1, 8, 8)
    bad = {
        "complex": np.ones(shape, complex),
        "bool": np.ones(shape, bool),
        "text": np.full(shape, "a"),
        "structured": np.zeros(shape, [("a", "f4")]),
        "objects": np.full(shape, None),
        "code": np.full(shape, Runs(), dtype=object),
        "times": np.zeros(shape, "M8[s]"),
    }
    what = pick(rng, bad)
    return data_case(rng, what, write(rng, bad[what]), None, expect="refuse", words=["0.npy"])


def bad_shape(rng: Rng) -> Case:
    """A wrong rank, no samples, or channels that come last."""
    shape = pick(
        rng, ((), (0,), (8,), (8, 8), (4, 0, 8, 8), (0, 1, 8, 8), (4, 1, 8, 0), (4, 1, 2, 2, 2, 2), (4, 16, 16, 3))
    )
    x = rng.normal(size=shape).astype(np.float32)
    kind = pick(rng, ("set.npy", "set.npz"))
    Path(kind).write_bytes(npy(x) if kind == "set.npy" else npz(x=x))
    return data_case(rng, f"shape {shape}", kind, None, expect="refuse")


def bad_values(rng: Rng) -> Case:
    """NaN, infinity, or what float32 cannot hold: refused, or counted where one only looks."""
    x = (rng.normal(size=(6, 2, 8, 8))).astype(np.float64)
    value = pick(rng, (np.nan, np.inf, -np.inf, 1e300))
    x[tuple(rng.integers(x.shape))] = value
    path = write(rng, x)
    return data_case(rng, f"a value {value}", path, None, words=["sample", ".npy"], expect="refuse")


def constant(rng: Rng) -> Case:
    """A channel that never changes."""
    x = rng.normal(size=(6, 2, 8, 8)).astype(np.float32)
    x[:, 1] = 0.1
    return data_case(rng, "a constant channel", write(rng, x), None, expect="refuse")


def outlier(rng: Rng) -> Case:
    """One value of 1e20: it makes all others zero. Refused, or said aloud."""
    x = rng.normal(size=(6, 1, 8, 8)).astype(np.float32)
    x[3, 0, 2, 2] = 1e20
    return data_case(rng, "1e20", write(rng, x), reads_of(x))


def mixed(rng: Rng) -> Case:
    """A folder of arrays of several shapes or types, or an image among them."""
    x = good(rng)
    Path("set").mkdir()
    for i, row in enumerate(x):
        Path(f"set/{i:03d}.npy").write_bytes(npy(row))
    row = x[0]
    other = pick(rng, (row[..., :4], row[0], row.astype(np.complex64), np.float32(1), row[None]))
    Path("set/001.npy").write_bytes(npy(np.asarray(other)))
    return data_case(rng, "mixed shapes", "set", None, expect="refuse", words=["001.npy", "000.npy"])


def keys(rng: Rng) -> Case:
    """An .npz without x, with more class names than labels, or with an array that is none."""
    x = good(rng)
    y = np.arange(len(x)) % 3
    bad: dict[str, dict[str, np.ndarray]] = {
        "no x": {"y": y},
        "nothing": {},
        "classes without y": {"x": x, "classes": np.array(["a", "b"])},
        "fewer classes": {"x": x, "y": y, "classes": np.array(["a"])},
        "x of objects": {"x": np.full((4, 1, 8, 8), Runs(), dtype=object)},
        "classes of objects": {"x": x, "y": y, "classes": np.full(3, Runs(), dtype=object)},
    }
    what = pick(rng, bad)
    Path("set.npz").write_bytes(npz(**bad[what]))
    return data_case(rng, f"npz: {what}", "set.npz", None, expect="refuse", words=["x", "classes"])


def conditions(rng: Rng) -> Case:
    """Conditions of a wrong shape or type, or not there."""
    x = good(rng)
    n = len(x)
    bad: dict[str, dict[str, np.ndarray]] = {
        "fewer rows": {"c": rng.normal(size=(n - 1, 3))},
        "tokens without a mask": {"c": rng.normal(size=(n, 5, 3))},
        "a mask of floats": {"c": rng.normal(size=(n, 5, 3)), "c_mask": np.ones((n, 5))},
        "a mask of another shape": {"c": rng.normal(size=(n, 5, 3)), "c_mask": np.ones((n, 4), bool)},
        "planes on another grid": {"c": rng.normal(size=(n, 2, 4, 4))},
        "text": {"c": np.full((n, 3), "a")},
        "objects": {"c": np.full((n, 3), Runs(), dtype=object)},
        "infinity": {"c": np.full((n, 3), np.inf)},
        "complex": {"c": np.ones((n, 3), complex)},
        "no features": {"c": np.ones((n, 0))},
        "a scalar": {"c": np.float32(1)},  # type: ignore[dict-item]
        "absent": {},
    }
    what = pick(rng, bad)
    Path("set.npz").write_bytes(npz(x=x, **bad[what]))
    options = ("--data-options.conditions", "c")
    case = data_case(rng, f"condition: {what}", "set.npz", None, *options, expect="refuse", words=["c"])
    return case


MUTATIONS: dict[str, Callable[[Rng], Case]] = {
    "none": none,
    "damaged": damaged,
    "lying header": lying_header,
    "strange header": strange_header,
    "bad type": bad_type,
    "bad shape": bad_shape,
    "bad values": bad_values,
    "constant": constant,
    "outlier": outlier,
    "mixed": mixed,
    "keys": keys,
    "conditions": conditions,
}


def case(rng: Rng) -> Case:
    """A case of this door."""
    return choose(rng, MUTATIONS)[1](rng)
