"""Labels at their one door: whole numbers or names, for every sample, or refused by the sample's name."""

import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
from test_archives import png, tarred

from justimage.data.files import find_files
from justimage.data.labels import index_labels
from justimage.data.sources import DataOptions, open_source
from justimage.data.streams import StreamOptions
from justimage.data.tables import TableOptions

NAMES = ["0.png", "1.png", "2.png"]


def opened(path: Path, **options) -> Any:
    return open_source(str(path), (8, 8), 3, DataOptions(**options))


def folder_with(path: Path, files: dict[str, str]) -> Path:
    path.mkdir()
    for name in NAMES:
        (path / name).write_bytes(png())
    for name, text in files.items():
        (path / name).write_text(text)
    return path


NO_LABELS = {
    "floats": [0, 1.5, 2],
    "whole floats": [0.0, 1.0, 1.0],
    "NaN": ["a", float("nan"), "b"],
    "booleans": [True, False, True],
    "booleans among numbers": [1, True, 0],
    "lists": ["a", ["a", "b"], "b"],
    "objects": ["a", {"x": 1}, "b"],
    "bytes": ["a", b"b", "b"],
    "fractions as text": ["1", "0.5", "2"],
    "nan as text": ["cat", "nan", "dog"],
    "powers as text": ["1e3", "2e3", "1e3"],
    "endless": ["inf", "1", "2"],
    "very many digits": ["1", "9" * 5000, "2"],
    "empty": ["a", " ", "b"],
    "missing": ["a", None, "b"],
    "all missing": [None, "", None],
    "negative": [0, -1, 1],
    "too large": [0, 10**9, 1],
}


@pytest.mark.parametrize("kind", NO_LABELS)
def test_what_is_no_label_is_refused_by_the_samples_name(kind):
    with pytest.raises(ValueError, match=r"^the place: .*\b[012]\.png"):
        index_labels(NO_LABELS[kind], "the place", NAMES)


def test_what_is_a_label():
    assert index_labels(["b", "a", "b"], "x", NAMES) == ([1, 0, 1], ("a", "b"))
    assert index_labels([2, "0", 2], "x", NAMES) == ([2, 0, 2], ("0", "1", "2"))
    assert index_labels(["1", "cat", "cat"], "x", NAMES) == ([0, 1, 1], ("1", "cat"))
    folders = ["0.5", "nan", "1e3"]
    assert index_labels(folders, "x", NAMES, as_names=True) == ([0, 2, 1], ("0.5", "1e3", "nan"))


FILES = {
    "fractions": ({"labels.csv": "file,label\n0.png,0.5\n1.png,1\n2.png,0\n"}, r"label of 0\.png is '0\.5'"),
    "empty throughout": ({"labels.csv": "file,label\n0.png,\n1.png,\n2.png,\n"}, "3 of 3 samples have no label, 0"),
    "more cells": ({"labels.csv": "file,label\n0.png,a\n1.png,a,b\n2.png,b\n"}, r"labels\.csv, row 2 has more cells"),
    "lists": (
        {"metadata.jsonl": "".join(json.dumps({"file_name": n, "label": [1]}) + "\n" for n in NAMES)},
        r"label of 0\.png is \[1\] \(list\)",
    ),
    "two that differ": (
        {
            "labels.csv": "file,label\n0.png,a\n1.png,b\n2.png,a\n",
            "metadata.jsonl": "".join(json.dumps({"file_name": n, "label": "a"}) + "\n" for n in NAMES),
        },
        r"labels\.csv and metadata\.jsonl in .* do not agree: 1\.png is 'b' and 'a'; .* labels\.csv$",
    ),
    "empty .cls": ({"0.cls": "1", "1.cls": "", "2.cls": "0"}, r"1 of 3 samples have no label, 1\.png first"),
    "only empty .cls": ({"0.cls": "", "1.cls": "", "2.cls": ""}, "3 of 3 samples have no label"),
    ".cls without an image": ({f"{i}.cls": "1" for i in range(4)}, r"1 labels have no image, such as 3\.cls"),
    "JSON floats": ({f"{i}.json": '{"label": 0.5}' for i in range(3)}, r"label of 0\.png is 0\.5 \(float\)"),
    "JSON lists": ({f"{i}.json": '{"labels": [0, 1]}' for i in range(3)}, r"is \[0, 1\] \(list\)"),
    "JSON NaN": ({f"{i}.json": '{"label": NaN}' for i in range(3)}, r"is nan \(float\)"),
    "JSON booleans": ({f"{i}.json": "true" for i in range(3)}, r"is True \(bool\)"),
    "JSON too deep": ({f"{i}.json": "[" * 100_000 for i in range(3)}, r"0\.json, the label of 0\.png, is not JSON"),
}


@pytest.mark.parametrize("kind", FILES)
def test_label_files_and_companions_that_say_no_label(kind, tmp_path):
    files, message = FILES[kind]
    with pytest.raises(ValueError, match=message):
        opened(folder_with(tmp_path / "set", files))


def test_labels_are_left_out_when_that_is_said(tmp_path):
    """As the messages advise; and an explicit file decides between two."""
    files = {"labels.csv": "file,label\n0.png,a\n1.png,b\n2.png,a\n", "labels.tsv": "file\tlabel\n0.png\tnan\n"}
    folder = folder_with(tmp_path / "set", files)
    assert opened(folder, labels="none").spec.classes == ()
    assert opened(folder, labels="labels.csv").spec.classes == ("a", "b")
    lists = folder_with(tmp_path / "lists", {f"{i}.json": "[1, 2]" for i in range(3)})
    with pytest.raises(ValueError, match=r"--data-options\.labels none"):
        opened(lists)
    source = opened(lists, labels="none")
    assert source.describe().endswith("no labels, in memory; left aside: 3 .json")
    (folder / "cat").mkdir()
    (folder / "cat" / "0.png").write_bytes(png())
    assert len(opened(folder, labels="none")) == 4


@pytest.mark.parametrize("name", ["labels.tsv", "metadata.tsv", "labels.jsonl"])
def test_every_name_of_a_label_file(name, tmp_path):
    rows = [{"file_name": each, "label": label} for each, label in zip(NAMES, ["a", "b", "a"], strict=True)]
    if name.endswith(".jsonl"):
        text = "\n".join(map(json.dumps, rows))
    else:
        text = "\n".join(["file_name\tlabel", *("\t".join(row.values()) for row in rows)])
    folder = folder_with(tmp_path / "set", {name: text})
    for path in (folder, folder / name):
        assert find_files([folder]).classes == ("a", "b") == opened(path).spec.classes
    # a second file that says the same is no matter
    (folder / "metadata.csv").write_text("path,class\n0.png,a\n1.png,b\n2.png,a\n")
    assert opened(folder).spec.classes == ("a", "b")


def table(path: Path, **columns) -> Path:
    import datasets

    cells = [{"bytes": png(), "path": None}] * 3
    datasets.Dataset.from_dict({"image": cells, **columns}).to_parquet(str(path))
    return path


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([0.5, 1.0, 2.0], r"column label of .*: the label of row 0 is 0\.5 \(float\).*--data-options.table.label none"),
        ([True, False, True], r"the label of row 0 is True \(bool\)"),
        ([[0], [1], [2]], r"the label of row 0 is \[0\] \(list\)"),
        ([1, None, 2], "1 of 3 samples have no label, row 1 first"),
        ([None, None, None], "3 of 3 samples have no label"),
        (["1", "nan", "2"], "the label of row 1 is 'nan'"),
    ],
)
def test_columns_that_hold_no_labels(values, message, tmp_path):
    path = table(tmp_path / "x.parquet", label=values)
    with pytest.raises(ValueError, match=message):
        opened(path, table=TableOptions(image="image"))
    assert opened(path, table=TableOptions(image="image", label="none")).spec.classes == ()


@pytest.mark.parametrize("values", [["cat", "dog", "cat"], [0.5, 1.0, 2.0], [0, 1, 7]])
def test_labels_of_streamed_tables_are_used_or_said_or_refused(values, tmp_path):
    path = table(tmp_path / "x.parquet", label=values)
    options = {"table": TableOptions(image="image")}
    unlabelled = opened(path, stream=StreamOptions(on=True), **options)
    assert "no labels; labels not used: the column label (--data-options.stream.classes" in unlabelled.describe()
    with pytest.raises(ValueError, match=r"row .* has the label"):
        stream = opened(path, stream=StreamOptions(on=True, classes=2, buffer=1), **options)
        samples = stream.samples(0, 0)
        for _ in range(3):
            next(samples)()


def shards(path: Path, companion: str, said: list[bytes]) -> Path:
    members = [each for i, text in enumerate(said) for each in ((f"{i}.png", png()), (f"{i}.{companion}", text))]
    path.write_bytes(tarred(members)[0])
    return path


@pytest.mark.parametrize(("companion", "said"), [("cls", b"1"), ("json", b'{"label": "cat"}')])
def test_labels_of_streamed_shards_are_never_dropped_silently(companion, said, tmp_path):
    path = shards(tmp_path / "x.tar", companion, [said] * 2)
    described = opened(path, kind="stream").describe()
    assert described.endswith("labels not used: .cls or .json (--data-options.stream.classes says how many there are)")
    nothing = shards(tmp_path / "y.tar", "json", [b'{"text": "a cat"}', b"no JSON"])
    assert opened(nothing, kind="stream").describe().endswith("no labels")


@pytest.mark.parametrize(
    ("companion", "said", "message"),
    [
        ("cls", b"cat", r"0 of .*x\.tar has the label 'cat' \(str\), which is not a whole number"),
        ("cls", b"", r"0 of .*x\.tar has no label; there are 3 classes"),
        ("cls", b"3", r"has the label 3; there are 3 classes"),
        ("json", b'{"label": 1.5}', r"the label 1\.5 \(float\)"),
        ("json", b'{"label": true}', r"the label True \(bool\)"),
        ("json", b"[" * 100_000, r"the label of 0 of .*x\.tar is not JSON"),
        ("json", b"{}", "has no label"),
    ],
)
def test_labels_of_streamed_shards_that_are_none_are_refused(companion, said, message, tmp_path):
    path = shards(tmp_path / "x.tar", companion, [said])
    with pytest.raises(ValueError, match=message):
        opened(path, kind="stream", stream=StreamOptions(classes=3))


def test_shards_hold_companions_of_every_image(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        archive.add(folder_with(tmp_path / "set", {f"{i}.cls": "1" for i in range(5)}), "set")
    with pytest.raises(ValueError, match=r"2 labels have no image, such as set/"):
        find_files([tmp_path / "x.tar"])
