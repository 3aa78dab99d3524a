"""Labels: folders, tables, companions, npz arrays and parquet columns that are wrong, contradict or are incomplete."""

import csv
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ..case import Case, Expect, Rng, choose, pick
from ..samples import CLASSES, Photo, Read, data_case, photos, write_all

# Values that are no label, whatever stands beside them.
NO_LABEL: tuple[Any, ...] = (float("nan"), 1.5, [1], [], None, "", True, {"a": 1}, -1, 10**9, 10**20, float("inf"))
TABLES = ("labels.csv", "metadata.csv", "metadata.jsonl", "labels.csv", "labels.tsv", "labels.jsonl")
UNSTATED = ("labels.tsv", "labels.jsonl")  # the README does not say that these are read: read, or said aloud


def known(photos: list[Photo], numbers: bool = True) -> list[Read]:
    """What must be read."""
    return [(p.read[0], str(CLASSES.index(p.label)) if numbers else p.label) for p in photos]


def as_table(name: str, rows: list[dict[str, Any]], separator: str = "") -> bytes:
    """Rows as the suffix says."""
    if name.endswith(".jsonl"):
        return "".join(json.dumps(row) + "\n" for row in rows).encode()
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), delimiter=separator or ("\t" if name.endswith(".tsv") else ","))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


class Table:
    """A folder of images with a table of labels."""

    def __init__(self, rng: Rng):
        self.photos = photos(rng)
        self.name = pick(rng, TABLES)
        self.rows: list[dict[str, Any]] = [
            {"file_name": f"{p.name}.png", "label": CLASSES.index(p.label)} for p in self.photos
        ]
        self.separator, self.encoding = "", "utf-8"

    def case(self, rng: Rng, mutation: str, reads: list[Read] | None, **about) -> Case:
        """The folder as a case."""
        data = as_table(self.name, self.rows, self.separator).decode().encode(self.encoding)
        write_all({f"{p.name}.png": p.png for p in self.photos} | {self.name: data}, Path("set"))
        aloud = [self.name] if self.name in UNSTATED else []
        return data_case(rng, mutation, "set", reads, words=[self.name, "label"], aloud=aloud, **about)


def table_none(rng: Rng) -> Case:
    """A good table."""
    table = Table(rng)
    if table.name in UNSTATED:
        table.name = "labels.csv"
    return table.case(rng, "none", known(table.photos), expect="accept")


def bad_value(rng: Rng) -> Case:
    """One label, or all, of the wrong kind."""
    table, value = Table(rng), pick(rng, NO_LABEL)
    every = rng.random() < 0.3
    for row in table.rows if every else [pick(rng, table.rows)]:
        row["label"] = value
    # In a .csv "True" and "1.5" are texts, which may be names of classes: all of them, that is.
    text = not table.name.endswith(".jsonl")
    expect: Expect = "either" if every or (text and value is True) else "refuse"
    return table.case(rng, f"label {value!r}" + (" everywhere" if every else ""), None, expect=expect)


def missing_rows(rng: Rng) -> Case:
    """A row less."""
    table = Table(rng)
    del table.rows[int(rng.integers(len(table.rows)))]
    return table.case(rng, "a row missing", None, expect="refuse")


def extra_rows(rng: Rng) -> Case:
    """A row for a file that is not there."""
    table = Table(rng)
    table.rows.append({"file_name": pick(rng, ("other.png", "../000.png", "/etc/passwd", "")), "label": 1})
    return table.case(rng, "a row too many", None, expect="refuse")


def contradiction(rng: Rng) -> Case:
    """A file twice, with two labels."""
    table = Table(rng)
    row = pick(rng, table.rows)
    table.rows.append({**row, "label": (row["label"] + 1) % 3})
    return table.case(rng, "contradiction", None, expect="refuse")


def separators(rng: Rng) -> Case:
    """Semicolons, tabs or bars in a .csv, commas in a .tsv: read right or refused."""
    table = Table(rng)
    table.name = pick(rng, ("labels.csv", "labels.tsv"))
    table.separator = pick(rng, (";", "\t", "|", ",", " "))
    return table.case(rng, "separator", known(table.photos))


def encodings(rng: Rng) -> Case:
    """A table in another encoding, or with a mark of byte order: read right or refused."""
    table = Table(rng)
    table.encoding = pick(rng, ("utf-8-sig", "utf-16", "utf-16-le", "utf-32"))
    return table.case(rng, "encoding", known(table.photos))


def columns(rng: Rng) -> Case:
    """Columns with other names, in another case, or with spaces: read right or refused."""
    table = Table(rng)
    names = pick(rng, (("File_Name ", " LABEL"), ("a", "b"), ("file_name", "y"), ("", "label"), ("label", "file_name")))
    table.rows = [dict(zip(names, row.values(), strict=True)) for row in table.rows]
    # A metadata file without a column of labels is taken for captions: as no labels, which is said.
    reads = None if table.name.startswith("metadata") else known(table.photos)
    return table.case(rng, "columns", reads)


def broken_table(rng: Rng) -> Case:
    """A table that is empty, binary, cut, or no table at all."""
    table = Table(rng)
    write_all({f"{p.name}.png": p.png for p in table.photos}, Path("set"))
    name = Path("set", table.name)
    data = pick(rng, (b"", b"\0\1\2", b"[1]\n", b'"', b"file_name,label\n", b"{", b"a,b\n1\n", b"\xff\xfe\xff"))
    name.write_bytes(data)
    expect: Expect = "either" if name.name.startswith("metadata") else "refuse"
    aloud = [name.name] if name.name in UNSTATED else []
    return data_case(rng, "broken table", "set", None, words=[table.name], expect=expect, aloud=aloud)


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
            from .archives import tar_of

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
    old.rename(old.with_suffix(pick(rng, (".PNG", ".jfif", ".jpe", ".tga", ".bak"))))
    aloud = [old.name.partition(".")[0], "1 file", "suffix"]
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
    np.savez("set.npz", x=x, **{key: np.arange(6) % 3})
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
    return data_case(rng, "none" if what == "none" else f"parquet: {what}", "set.parquet", reads, expect=expect, words=["label"])


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
    "bad value": bad_value,
    "missing rows": missing_rows,
    "extra rows": extra_rows,
    "contradiction": contradiction,
    "separators": separators,
    "encodings": encodings,
    "columns": columns,
    "broken table": broken_table,
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
