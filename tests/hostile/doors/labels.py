"""Labels: folders, tables, companions, npz arrays and parquet columns that are wrong, contradict or are incomplete."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ..case import Case, Expect, Rng, choose, pick
from ..samples import CLASSES, Photo, Read, data_case, photos, write_all
from .archives import tar_of
from .label_tables import NO_LABEL, TABLE_MUTATIONS, known, table_none


class Companions:
    """WebDataset beside each other in a folder or a shard: 000.png and 000.cls or 000.json."""

    def __init__(self, rng: Rng):
        self.photos = photos(rng)
        self.suffix = pick(rng, (".cls", ".json"))
        self.labels: list[Any] = [CLASSES.index(p.label) for p in self.photos]

    def encode(self, label: Any) -> bytes:
        """A label as a file."""
        return str(label).encode() if self.suffix == ".cls" else json.dumps({"label": label}).encode()

    def case(self, rng: Rng, mutation: str, reads: list[Read] | None, **about) -> Case:
        """As a case: in a folder or a shard."""
        pairs = zip(self.photos, self.labels, strict=True)
        files = {p.name + end: data for p, y in pairs for end, data in ((".png", p.png), (self.suffix, self.encode(y)))}
        where = "set"
        if rng.random() < 0.5:
            where = "set.tar"
            Path(where).write_bytes(tar_of(list(files.items())))
        else:
            write_all(files, Path("set"))
        return data_case(rng, mutation, where, reads, words=[self.suffix, "label"], **about)


def companions_none(rng: Rng) -> Case:
    """Good companions."""
    good = Companions(rng)
    return good.case(rng, "none", known(good.photos), expect="accept")


def bad_companion(rng: Rng) -> Case:
    """One that holds no label."""
    good, value = Companions(rng), pick(rng, NO_LABEL)
    every = rng.random() < 0.3
    for i in range(len(good.labels)) if every else [int(rng.integers(len(good.labels)))]:
        good.labels[i] = value
    text = good.suffix == ".cls"
    expect: Expect = "either" if every or (text and value in (True, None)) else "refuse"
    return good.case(rng, f"companion {value!r}" + (" everywhere" if every else ""), None, expect=expect)


def folders(rng: Rng) -> list[Photo]:
    """Class folders in set/."""
    found = photos(rng)
    write_all({f"{p.label}/{p.name}.png": p.png for p in found}, Path("set"))
    return found


def folders_none(rng: Rng) -> Case:
    """Good class folders."""
    found = folders(rng)
    return data_case(rng, "none", "set", known(found, numbers=False), expect="accept")


def linked_folders(rng: Rng) -> Case:
    """A link from one class to another, to itself, or back up: no class may vanish."""
    found = folders(rng)
    target = pick(rng, ("../bee", "../cow", ".", "..", "/proc/self", "nowhere", "../ant"))
    os.symlink(target, "set/ant/again")
    words = ["again", "set"]
    # The samples behind a link may be read twice; the three classes must be there in any case.
    case = data_case(rng, f"a link to {target}", "set", None, words=words)

    def right() -> str:
        from ..samples import read_all

        kept = {label for _, label in read_all(("set", "--size", "8"))}
        return "" if kept == set(CLASSES) else f"classes are lost: {', '.join(sorted(set(CLASSES) - kept))}"

    _ = found
    return Case(case.mutation, ("read", "set", "--size", "8"), "either", tuple(words), right)


def mixed_folders(rng: Rng) -> Case:
    """An image beside the class folders."""
    found = folders(rng)
    Path("set/other.png").write_bytes(found[0].png)
    return data_case(rng, "an image beside the folders", "set", None, expect="refuse")


def other_suffixes(rng: Rng) -> Case:
    """A sample with a suffix in capitals or of another format: read, or said, or refused."""
    found = folders(rng)
    old = Path(f"set/{found[0].label}/{found[0].name}.png")
    suffix = pick(rng, (".PNG", ".jfif", ".jpe", ".tga", ".bak"))
    old.rename(old.with_suffix(suffix))
    aloud = [old.name.partition(".")[0], f"1 {suffix}"]
    return data_case(rng, "another suffix", "set", known(found, numbers=False), aloud=aloud)


def strange_files(rng: Rng) -> Case:
    """A file among the samples that is none: a broken image, a text, a folder or a link called like an image."""
    found = folders(rng)
    place = Path("set/ant/strange.png")
    what = pick(rng, ("empty", "text", "folder", "broken link", "pipe", "unreadable"))
    if what == "folder":
        place.mkdir()
    elif what == "broken link":
        place.symlink_to("nowhere")
    elif what == "pipe":
        os.mkfifo(place)
    else:
        place.write_bytes({"empty": b"", "text": b"hello", "unreadable": found[0].png}[what])
        if what == "unreadable":
            place.chmod(0)
    reads = known(found, numbers=False)
    if what == "unreadable" and os.geteuid() == 0:
        reads.append((found[0].read[0], "ant"))
    expect: Expect = "either" if what in ("folder", "unreadable", "pipe") else "refuse"
    return data_case(rng, f"strange file: {what}", "set", reads, words=["strange.png"], expect=expect)


def npz(rng: Rng, mutation: str, y: np.ndarray | None, expect: Expect, key: str = "y") -> Case:
    """An .npz of 8-bit samples with labels."""
    x = rng.integers(0, 256, (6, 3, 8, 8), np.uint8)
    arrays = {"x": x} if y is None else {"x": x, key: y}
    np.savez("set.npz", **arrays)  # type: ignore[arg-type]
    return data_case(rng, mutation, "set.npz", None, expect=expect, words=["label", key])


def npz_labels(rng: Rng) -> Case:
    """Labels of the wrong type or shape."""
    good = np.arange(6) % 3
    bad: dict[str, np.ndarray] = {
        "float": good.astype(np.float32) + 0.5,
        "NaN": np.full(6, np.nan),
        "bool": good.astype(bool),
        "text": good.astype(str),
        "negative": good - 1,
        "huge": good * 10**9,
        "one less": good[:5],
        "one hot": np.eye(3)[good],
        "object": np.array([0, None, 1, 2, 0, 1], dtype=object),
        "complex": good.astype(complex),
        "none": np.zeros(0),
    }
    what = pick(rng, bad)
    return npz(rng, f"npz y: {what}", bad[what], "refuse")


def npz_key(rng: Rng) -> Case:
    """Labels under another name: never left out in silence."""
    key = pick(rng, ("labels", "label", "Y", "targets"))
    x = rng.integers(0, 256, (6, 3, 8, 8), np.uint8)
    np.savez("set.npz", x=x, **{key: np.arange(6) % 3})  # type: ignore[arg-type]
    return data_case(rng, f"npz key {key}", "set.npz", None, expect="refuse", words=[key], aloud=[key])


def parquet(rng: Rng) -> Case:
    """A table with a column of labels that are none."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    found = photos(rng, 6)
    good: list[Any] = [CLASSES.index(p.label) for p in found]
    columns: dict[str, tuple[list[Any], Expect]] = {
        "none": (good, "accept"),
        "float": ([y + 0.5 for y in good], "refuse"),
        "NaN": ([float("nan"), *map(float, good[1:])], "refuse"),
        "null": ([None, *good[1:]], "refuse"),
        "list": ([[y] for y in good], "refuse"),
        "bool": ([bool(y) for y in good], "either"),
        "negative": ([-1, *good[1:]], "refuse"),
        "huge": ([10**15, *good[1:]], "refuse"),
        "empty text": (["", *map(str, good[1:])], "refuse"),
    }
    what = pick(rng, columns)
    values, expect = columns[what]
    images = [{"bytes": p.png, "path": pick(rng, (None, "x.png"))} for p in found]
    pq.write_table(pa.table({"image": images, "label": values}), "set.parquet")
    reads = known(found) if what == "none" else None
    return data_case(
        rng, "none" if what == "none" else f"parquet: {what}", "set.parquet", reads, expect=expect, words=["label"]
    )


def parquet_path(rng: Rng) -> Case:
    """A cell that names a file outside of the table: it is not opened."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    found = photos(rng, 6)
    secret = Path("../secret.png")
    secret.write_bytes(found[0].png)
    images: list[dict[str, Any]] = [{"bytes": p.png, "path": None} for p in found[1:]]
    where = pick(rng, (str(secret.resolve()), "../secret.png", "/etc/passwd", "file:///etc/passwd"))
    pq.write_table(pa.table({"image": [*images, {"bytes": None, "path": where}]}), "set.parquet")
    return data_case(rng, "parquet path", "set.parquet", None, expect="refuse", words=["path", "row", "cell"])


def controls(rng: Rng) -> Case:
    """One of the good inputs."""
    return pick(rng, (table_none, companions_none, folders_none))(rng)


MUTATIONS: dict[str, Callable[[Rng], Case]] = {
    "none": controls,
    **TABLE_MUTATIONS,
    "bad companion": bad_companion,
    "linked folders": linked_folders,
    "mixed folders": mixed_folders,
    "other suffixes": other_suffixes,
    "strange files": strange_files,
    "npz labels": npz_labels,
    "npz key": npz_key,
    "parquet": parquet,
    "parquet path": parquet_path,
}


def case(rng: Rng) -> Case:
    """A case of this door."""
    return choose(rng, MUTATIONS)[1](rng)
