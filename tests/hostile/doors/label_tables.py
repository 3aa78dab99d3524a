"""Labels in tables: labels.csv and its kin, with values, rows, columns and encodings that are wrong."""

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..case import Case, Expect, Rng, pick
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


TABLE_MUTATIONS: dict[str, Callable[[Rng], Case]] = {
    "bad value": bad_value,
    "missing rows": missing_rows,
    "extra rows": extra_rows,
    "contradiction": contradiction,
    "separators": separators,
    "encodings": encodings,
    "columns": columns,
    "broken table": broken_table,
}
