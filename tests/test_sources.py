"""Every kind of source: recognised by its path, the same samples in the same order, trained on and sampled from."""

import io
import json
import os
import shlex
import shutil
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import jit_here
from PIL import ExifTags, Image, ImageOps

from justimage.data.images import decode
from justimage.data.loader import batches
from justimage.data.packing import pack
from justimage.data.sources import DataOptions, open_source
from justimage.data.spec import Source
from justimage.data.streams import StreamOptions
from justimage.data.tables import TableOptions

TINY = shlex.split(
    "--network.width 32 --network.depth 2 --network.heads 2 --network.context-start 1 --device cpu "
    "--training.batch-size 16 --training.duration-nimg 64 --training.ema-decays 0.9 "
    "--report.tick-nimg 16 --report.save-nimg 64 --report.sample-nimg 64 --report.preview-steps 2 "
    "--report.evaluate-nimg 0"
)


def source_of(path, size=(32, 32), channels=3, **options) -> Source:
    source = open_source(path, size, channels, DataOptions(**options))
    assert source.indexed is True
    return source


def in_order(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.jpg"))


def add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))


def make_folder(cifar: Path, out: Path) -> Path:
    shutil.copytree(cifar, out / "cifar")
    return out / "cifar"


def make_split(cifar: Path, out: Path) -> Path:
    shutil.copytree(cifar, out / "set" / "train")
    shutil.copytree(cifar / "cat", out / "set" / "test" / "cat")
    return out / "set"


def make_zip(cifar: Path, out: Path) -> Path:
    with zipfile.ZipFile(out / "cifar.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in reversed(in_order(cifar)):  # an archive's own order is none
            archive.write(path, path.relative_to(cifar.parent))
    return out / "cifar.zip"


def make_tar(cifar: Path, out: Path, kind: str = "") -> Path:
    path = out / f"cifar.tar{'.' + kind if kind else ''}"
    with tarfile.open(path, f"w:{kind}") as archive:  # type: ignore[call-overload]
        archive.add(cifar, "cifar")
    return path


def make_compressed_tar(cifar: Path, out: Path) -> Path:
    return make_tar(cifar, out, "gz")


def make_webdataset(cifar: Path, out: Path) -> Path:
    """Two shards, labels as numbers in .cls files."""
    names = sorted(path.name for path in cifar.iterdir())
    (out / "shards").mkdir()
    for shard, paths in enumerate(np.array_split(np.array(in_order(cifar)), 2)):
        with tarfile.open(out / "shards" / f"train-{shard:03d}.tar", "w") as archive:
            for i, path in enumerate(paths):
                add(archive, f"{shard}_{i:04d}.jpg", path.read_bytes())
                add(archive, f"{shard}_{i:04d}.cls", str(names.index(path.parent.name)).encode())
    return out / "shards"


def make_parquet(cifar: Path, out: Path) -> Path:
    """As the hub stores image datasets: bytes in a column of images, and a column of classes."""
    import datasets

    classes = sorted(path.name for path in cifar.iterdir())
    rows = {
        "image": [{"bytes": path.read_bytes(), "path": None} for path in in_order(cifar)],
        "label": [path.parent.name for path in in_order(cifar)],
    }
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=classes)})
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(out / "train-00000-of-00001.parquet"))
    return out / "train-00000-of-00001.parquet"


def make_arrow(cifar: Path, out: Path) -> Path:
    """As Dataset.save_to_disk leaves it."""
    import datasets

    table = datasets.load_dataset("parquet", data_files=str(make_parquet(cifar, out)), split="train")
    datasets.DatasetDict({"train": table, "test": table.select([0])}).save_to_disk(str(out / "saved"))
    return out / "saved"


def make_label_file(cifar: Path, out: Path) -> Path:
    """A flat folder and a labels.csv."""
    (out / "flat").mkdir()
    rows = ["file_name,label"]
    for i, path in enumerate(in_order(cifar)):
        shutil.copy(path, out / "flat" / f"{i:03d}.jpg")
        rows.append(f"{i:03d}.jpg,{path.parent.name}")
    (out / "flat" / "labels.csv").write_text("\n".join(rows))
    return out / "flat"


def make_metadata(cifar: Path, out: Path) -> Path:
    """A zip with a metadata.jsonl."""
    with zipfile.ZipFile(out / "meta.zip", "w") as archive:
        lines = []
        for i, path in enumerate(in_order(cifar)):
            archive.write(path, f"meta/images/{i:03d}.jpg")
            lines.append(json.dumps({"file_name": f"images/{i:03d}.jpg", "label": path.parent.name}))
        archive.writestr("meta/metadata.jsonl", "\n".join(lines))
    return out / "meta.zip"


def make_pack(cifar: Path, out: Path) -> Path:
    pack(source_of(cifar), out / "pack", workers=2, shard_mb=1)
    return out / "pack"


def make_arrays(cifar: Path, out: Path) -> Path:
    source = source_of(cifar)
    x, y = zip(*(source[i] for i in range(len(source))), strict=True)
    labels = np.array([each["labels"] for each in y])
    np.savez(out / "cifar.npz", x=np.stack(x), y=labels, classes=np.array(source.spec.classes))
    return out / "cifar.npz"


def make_array_folder(cifar: Path, out: Path) -> Path:
    """One .npy for each sample, in class folders."""
    source = source_of(cifar)
    for i, path in enumerate(in_order(cifar)):
        target = (out / "arrays" / path.relative_to(cifar)).with_suffix(".npy")
        target.parent.mkdir(parents=True, exist_ok=True)
        np.save(target, source[i][0])
    return out / "arrays"


FORMS = {
    make.__name__.removeprefix("make_"): make
    for make in (
        make_folder,
        make_split,
        make_zip,
        make_tar,
        make_compressed_tar,
        make_webdataset,
        make_parquet,
        make_arrow,
        make_label_file,
        make_metadata,
        make_pack,
        make_arrays,
        make_array_folder,
    )
}


def log_of(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def losses(cifar, tmp_path_factory) -> list[float]:
    """The losses of a tiny run on the class folders."""
    place = tmp_path_factory.mktemp("reference")
    with pytest.MonkeyPatch.context() as patch:
        assert (
            jit_here("train", "cifar10", *TINY, "--data", str(cifar), "--run", "r", cwd=place, monkeypatch=patch) == 0
        )
    return [line["loss"] for line in log_of(place / "r")]


@pytest.mark.parametrize("form", FORMS)
def test_the_same_samples_in_any_form(form, cifar, losses, tmp_path, monkeypatch, capsys):
    """CIFAR-10 as folders, archives, tables, shards, packs: the same batches, the same loss; then samples."""
    path = FORMS[form](cifar, tmp_path)
    reference, source = source_of(cifar), source_of(path)
    assert len(source) == len(reference) == 80
    assert len(source.spec.classes) == 10
    for i in range(80):
        (raw, y), (expected, expected_y) = source[i], reference[i]
        assert np.array_equal(raw, expected)
        assert y == expected_y
    assert source_of(path).fingerprint() == source.fingerprint()

    assert (
        jit_here("train", "cifar10", *TINY, "--data", str(path), "--run", "r", cwd=tmp_path, monkeypatch=monkeypatch)
        == 0
    )
    assert [line["loss"] for line in log_of(tmp_path / "r")] == losses
    arguments = ["sample", "r", "--count", "1", "--classes", "3", "--steps", "2"]
    assert jit_here(*arguments, cwd=tmp_path, monkeypatch=monkeypatch) == 0
    assert (tmp_path / "samples" / "grid.png").is_file()


@pytest.mark.parametrize("form", ["folder", "zip", "webdataset", "parquet", "pack", "array_folder"])
@pytest.mark.parametrize("start", [0, 16, 37, 1_000_003])
def test_any_position_gives_the_same_next_batch_for_any_number_of_processes(form, start, cifar, tmp_path):
    source = source_of(FORMS[form](cifar, tmp_path))

    def take(count, first, **kwargs):
        reader = batches(source, seed=1, batch_size=16, start=first, workers=2, **kwargs)
        found = [next(reader) for _ in range(count)]
        reader.close()
        return found

    whole = take(6, start)
    resumed = take(2, start + 4 * 16)
    assert all(torch.equal(a.raw, b.raw) for a, b in zip(whole[4:], resumed, strict=True))
    for one, *parts in zip(whole, *(take(6, start, rank=rank, world=4) for rank in range(4)), strict=True):
        assert torch.equal(one.raw, torch.cat([part.raw for part in parts]))
        assert torch.equal(one.y["labels"], torch.cat([part.y["labels"] for part in parts]))


def test_photographs(real_data, tmp_path, monkeypatch):
    """192 photographs of many sizes in a tar, grey ones among them: a class each."""
    path = real_data / "imagenet-one-per-class.tar"
    source = source_of(path, (64, 64))
    assert (len(source), len(source.spec.classes)) == (192, 192)
    assert source[0][0].shape == (3, 64, 64)
    arguments = ["train", "cifar10", *TINY, "--network.size", "64", "64", "--data", str(path), "--run", "r"]
    assert jit_here(*arguments, cwd=tmp_path, monkeypatch=monkeypatch) == 0
    assert jit_here("sample", "r", "--steps", "2", "--count", "1", cwd=tmp_path, monkeypatch=monkeypatch) == 0


@pytest.mark.parametrize(("shape", "size", "patch"), [((1, 16, 16, 16), "16 16 16", "8 8 8"), ((2, 128), "128", "16")])
def test_volumes_and_signals(shape, size, patch, tmp_path, monkeypatch, capsys):
    """A ball somewhere in a volume, and two waves: trained on, sampled, written as arrays."""
    generator = np.random.default_rng(0)
    axes = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape[1:]], indexing="ij")
    centres = generator.uniform(-0.5, 0.5, (40, shape[0], len(axes)))
    away = [[sum((a - c) ** 2 for a, c in zip(axes, at, strict=True)) for at in one] for one in centres]
    x = np.exp(-8 * np.array(away))  # (40, C, *S)
    np.save(tmp_path / "x.npy", x.astype(np.float32))

    def jit(*arguments: str) -> int:
        return jit_here(*arguments, cwd=tmp_path, monkeypatch=monkeypatch)

    command = ["train", "cifar10", *TINY, "--data", "x.npy", "--run", "r"]
    assert jit(*command) == 2
    assert f"--network.size {size} --network.patch" in capsys.readouterr().err
    assert jit(*command, "--network.size", *size.split(), "--network.patch", *patch.split()) == 0
    assert jit("sample", "r", "--count", "3", "--steps", "2") == 0
    assert np.load(tmp_path / "samples" / "samples.npy").shape == (3, *shape)


def test_random_crops_are_every_place_once(tmp_path):
    x = np.arange(2 * 1 * 5 * 6, dtype=np.float32).reshape(2, 1, 5, 6)
    np.save(tmp_path / "x.npy", x)
    source = source_of(tmp_path / "x.npy", crop=(3, 4))
    assert len(source) == 2 * 3 * 3
    corners = {float(source[i][0][0, 0, 0]) for i in range(len(source))}
    assert corners == {float(x[n, 0, i, j]) for n in range(2) for i in range(3) for j in range(3)}
    centre = source_of(tmp_path / "x.npy", crop=(3, 4), crop_at="centre")
    assert len(centre) == 2
    assert np.array_equal(centre[1][0], x[1, :, 1:4, 1:5])
    with pytest.raises(ValueError, match="crops of 9x4 cannot be cut from samples of 5x6"):
        source_of(tmp_path / "x.npy", crop=(9, 4))


def stream(path, **options):
    source = open_source(str(path), (32, 32), 3, DataOptions(**options))
    assert source.indexed is False
    return source


@pytest.mark.parametrize("kind", ["shards", "rows"])
def test_streams_resume_and_share_and_say_what_they_promise(kind, cifar, tmp_path, monkeypatch, capsys):
    """Shards behind a pipe, and a table that is not downloaded: the same sequence from any position."""
    if kind == "shards":
        folder = make_webdataset(cifar, tmp_path)
        address = f"pipe:cat {folder}/train-{{000..001}}.tar"
        options = {"stream": StreamOptions(classes=10, buffer=20)}
        flags = ["--data-options.stream.classes", "10", "--data-options.stream.buffer", "20"]
    else:
        address = str(make_parquet(cifar, tmp_path))
        options = {"stream": StreamOptions(on=True, buffer=20)}
        flags = ["--data-options.stream.on", "--data-options.stream.buffer", "20"]

    def take(count, start, **kwargs):
        reader = batches(stream(address, **options), seed=1, batch_size=12, start=start, workers=2, **kwargs)
        found = [next(reader) for _ in range(count)]
        reader.close()
        return found

    whole = take(16, 0)  # more than two passes
    labels = torch.cat([batch.y["labels"] for batch in whole])
    assert torch.bincount(labels[:80], minlength=10).tolist() == [8] * 10
    assert not torch.equal(labels[:80], labels[80:160])
    for step in (1, 5, 9):
        assert all(torch.equal(a.raw, b.raw) for a, b in zip(whole[step:], take(3, 12 * step), strict=False))
    for one, left, right in zip(whole, take(9, 0, rank=0, world=2), take(9, 0, rank=1, world=2), strict=False):
        assert torch.equal(one.raw, torch.cat((left.raw, right.raw)))

    arguments = ["train", "cifar10", *TINY, "--data", address, "--run", "r", *flags]
    assert jit_here(*arguments, "--report.evaluate-nimg", "32", cwd=tmp_path, monkeypatch=monkeypatch) == 2
    assert "this is a stream. --report.evaluate-nimg 0 trains without evaluations" in capsys.readouterr().err
    assert not (tmp_path / "r").exists()
    assert jit_here(*arguments, cwd=tmp_path, monkeypatch=monkeypatch) == 0
    assert "no length" in capsys.readouterr().out
    arguments = ["sample", "r", "--count", "1", "--classes", "3", "--steps", "2"]
    assert jit_here(*arguments, cwd=tmp_path, monkeypatch=monkeypatch) == 0
    assert (tmp_path / "samples" / "grid.png").is_file()


def test_shards_by_pattern(cifar, tmp_path):
    folder = make_webdataset(cifar, tmp_path)
    for pattern in ("train-*.tar", "train-{000..001}.tar"):
        assert source_of(folder / pattern).fingerprint() == source_of(folder).fingerprint()
    with pytest.raises(ValueError, match=r"stands for 4 files, and 2 do not exist, such as .*train-002\.tar"):
        source_of(folder / "train-{000..003}.tar")


def test_names_that_are_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    for path in ("nowhere", "data/photos", "a/b/c"):
        with pytest.raises(ValueError, match=f"the data path {path} does not exist"):
            open_source(path, (8, 8), 3)
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ValueError, match=r"nor a file of a known kind: images in \.zip"):
        open_source("notes.txt", (8, 8), 3)
    with pytest.raises(ValueError, match="it is empty"):
        open_source("data", (8, 8), 3)
    (tmp_path / "data" / "a.doc").write_text("x")
    with pytest.raises(ValueError, match=r"it holds 1 files: \.doc"):
        open_source("data", (8, 8), 3)


def write_labels(folder: Path, text: str, name: str = "labels.csv") -> Path:
    folder.mkdir(exist_ok=True)
    for i in range(3):
        Image.new("RGB", (8, 8), (i, 0, 0)).save(folder / f"{i}.png")
    (folder / name).write_text(text)
    return folder


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,label\n0.png,a\n1.png,b\n", r"labels.csv has no label for 1 of 3 samples of .*, such as 2\.png"),
        ("file,label\n0.png,a\n1.png,b\n2.png,a\n7.png,b\n", r"names 1 samples that .* does not hold, such as 7\.png"),
        ("file,label\n0.png,a\n0.png,b\n1.png,b\n2.png,a\n", r"gives 0\.png two labels, a and b"),
        ("file,label\n0.png,a\n1.png,\n2.png,b\n", "1 of 3 samples have no label, 1.png first"),
        ("file,label\n0.png,-1\n1.png,0\n2.png,1\n", "label -1 of 0.png is out of range"),
        ("name,label\n,a\n", "row 1 names no file"),
    ],
)
def test_label_files_that_do_not_fit(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        source_of(write_labels(tmp_path / "set", text), (8, 8))


def test_label_files(tmp_path):
    """Numbers are labels themselves, other texts are names; a table without labels is none."""
    folder = write_labels(tmp_path / "set", "file,label\n0.png,2\n1.png,0\n2.png,2\n")
    numbers = source_of(folder, (8, 8))
    assert ([numbers[i][1]["labels"] for i in range(3)], numbers.spec.classes) == ([2, 0, 2], ("0", "1", "2"))
    assert source_of(folder / "labels.csv", (8, 8)).fingerprint() == numbers.fingerprint()
    captions = write_labels(tmp_path / "captions", '{"file_name": "0.png", "text": "red"}\n', "metadata.jsonl")
    assert source_of(captions, (8, 8)).spec.classes == ()
    elsewhere = tmp_path / "mine.csv"
    elsewhere.write_text("path,class\n0.png,x\n1.png,y\n2.png,x\n")
    mine = source_of(captions, (8, 8), labels=str(elsewhere))
    assert (mine.spec.classes, mine[1][1]["labels"]) == (("x", "y"), 1)


def test_tables_that_cannot_be_used(cifar, tmp_path):
    path = make_parquet(cifar, tmp_path)
    with pytest.raises(ValueError, match=r"no column 'picture'; it has image \(Image\), label \(ClassLabel\)"):
        source_of(path, table=TableOptions(image="picture"))
    assert source_of(path, table=TableOptions(label="none")).spec.classes == ()
    (tmp_path / "half.parquet").write_bytes(path.read_bytes()[:20_000])
    with pytest.raises(ValueError, match=r"half\.parquet cannot be read as a table"):
        source_of(tmp_path / "half.parquet")
    with pytest.raises(ValueError, match="there is no split 'dev'; there are train, test"):
        source_of(make_arrow(cifar, tmp_path), split="dev")


def test_archives_that_break_off(cifar, tmp_path):
    for make in (make_zip, make_tar, make_compressed_tar):
        path = make(cifar, tmp_path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
        with pytest.raises(ValueError, match=r"cannot be read as a (zip|tar) archive"):
            source_of(path)


def test_shards_with_a_label_missing_are_refused(cifar, tmp_path):
    with tarfile.open(tmp_path / "shard.tar", "w") as archive:
        for i, path in enumerate(in_order(cifar)[:4]):
            add(archive, f"{i}.jpg", path.read_bytes())
            if i != 2:
                add(archive, f"{i}.cls", b"1")
    with pytest.raises(ValueError, match=r"1 of 4 samples have no \.cls or \.json beside them.*such as 2\.jpg"):
        source_of(tmp_path / "shard.tar")


def pixels(value: int = 0) -> bytes:
    """An 8x8 PNG."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (value, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def zipped(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


ARCHIVES = {
    "absolute names": (["/cat/0.png", "/dog/1.png"], ("cat", "dog")),
    "double slashes": (["cat//0.png", "./dog/1.png"], ("cat", "dog")),
    "backslashes": (["cat\\0.png", "dog\\1.png"], ("cat", "dog")),
    "capital suffixes": (["cat/0.PNG", "dog/1.Png"], ("cat", "dog")),
    "what a Mac adds": (
        ["set/cat/0.png", "set/dog/1.png", "__MACOSX/set/cat/._0.png", "set/.DS_Store"],
        ("cat", "dog"),
    ),
    "one outer folder": (["set/0.png", "set/1.png"], ()),
    "whole numbers": (["1999/0.png", "2005/1.png"], ("1999", "2005")),
    "splits": (["train/9/0.png", "train/10/1.png", "test/9/2.png", "extra/9/3.png"], ("9", "10")),
    "other names of splits": (["training/a/0.png", "training/b/1.png", "testing/a/2.png"], ("a", "b")),
    "capital splits": (["Training/a/0.png", "Training/b/1.png", "Testing/a/2.png"], ("a", "b")),
    "accents": (["été/0.png", "猫/1.png"], ("été", "猫")),
}


@pytest.mark.parametrize("name", ARCHIVES)
def test_archives_of_many_habits(name, tmp_path):
    members, classes = ARCHIVES[name]
    source = source_of(zipped(tmp_path / "x.zip", dict.fromkeys(members, pixels())), (8, 8))
    assert (len(source), source.spec.classes) == (2, classes)


TABLES_OF_LABELS = {
    "beside the folder": {"labels.csv": "file,label\nimages/0.png,a\nimages/1.png,b\n"},
    "semicolons": {"labels.csv": "file;label\nimages/0.png;a\nimages/1.png;b\n"},
    "capitals and spaces": {"labels.csv": "Filename, Label\r\nimages/0.png, a\r\nimages/1.png, b\r\n"},
    "byte order mark": {"labels.csv": "\ufefffile,label\nimages/0.png,a\nimages\\1.png,b\n"},
    "label later": {
        "metadata.jsonl": '{"file_name": "images/0.png", "text": "x", "label": "a"}\n'
        '{"label": "b", "file_name": "images/1.png"}\n'
    },
    "sidecars without labels": {
        "images/0.json": "{}",
        "images/1.json": "{}",
        "labels.csv": "file,label\nimages/0.png,a\nimages/1.png,b\n",
    },
}


@pytest.mark.parametrize("name", TABLES_OF_LABELS)
@pytest.mark.parametrize("kind", ["zip", "folder"])
def test_tables_of_labels_of_many_habits(name, kind, tmp_path):
    members = {"images/0.png": pixels(0), "images/1.png": pixels(1)}
    members |= {file: text.encode() for file, text in TABLES_OF_LABELS[name].items()}
    path = zipped(tmp_path / "x.zip", members)
    if kind == "folder":
        with zipfile.ZipFile(path) as archive:
            archive.extractall(tmp_path / "x")
        path = tmp_path / "x"
    source = source_of(path, (8, 8))
    assert [source.spec.classes[source[i][1]["labels"]] for i in range(2)] == ["a", "b"]


def test_splits_are_chosen_and_missing_ones_said(tmp_path):
    names = ["train/a/0.png", "test/a/1.png", "test/b/2.png"]
    path = zipped(tmp_path / "x.zip", dict.fromkeys(names, pixels()))
    assert len(source_of(path, (8, 8), split="test")) == 2
    with pytest.raises(ValueError, match=r"no split 'val'; there are test, train"):
        source_of(path, (8, 8), split="val")
    plain = zipped(tmp_path / "y.zip", dict.fromkeys(["a/0.png", "b/1.png"], pixels()))
    with pytest.raises(ValueError, match="no split 'val'; its folders are not splits"):
        source_of(plain, (8, 8), split="val")


def shard(path: Path, names: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name in names:
            add(archive, name, pixels())


@pytest.mark.parametrize(
    "names",
    [("train-000.tar", "val-000.tar"), ("Train-0.tar", "Validation-0.tar"), ("train/0.tar", "val/0.tar")],
    ids=str,
)
def test_shards_of_several_splits_are_not_mixed(tmp_path, names):
    shard(tmp_path / "s" / names[0], ["a.png", "b.png"])
    shard(tmp_path / "s" / names[1], ["c.png"])
    sizes = [len(source_of(tmp_path / "s", (8, 8), split=split)) for split in ("train", "val", "validation")]
    assert sizes == [2, 1, 1]
    with pytest.raises(ValueError, match="no split 'test'; there are train, val"):
        source_of(tmp_path / "s", (8, 8), split="test")
    plain = tmp_path / "plain"
    for name in ("0.tar", "1.tar"):
        shard(plain / name, [f"{name[0]}.png"])
    assert len(source_of(plain, (8, 8))) == 2
    with pytest.raises(ValueError, match="no split 'val'; its files are not called after splits"):
        source_of(plain, (8, 8), split="val")


def test_a_name_with_two_splits_is_neither(tmp_path):
    for name in ("train-0.tar", "train_extra-0.tar", "test-0.tar"):
        shard(tmp_path / name, [f"{name}.png"])
    assert [len(source_of(tmp_path, (8, 8), split=split)) for split in ("train", "train_extra")] == [1, 1]


def test_options_that_would_be_ignored_are_refused(tmp_path):
    x, y = np.zeros((6, 1, 8, 8), np.uint8), np.arange(6) % 3
    np.save(tmp_path / "x.npy", x)
    np.savez(tmp_path / "x.npz", x=x, y=y)
    assert source_of(tmp_path / "x.npz", (8, 8), 1).spec.classes == ("0", "1", "2")
    assert source_of(tmp_path / "x.npz", (8, 8), 1, labels="none").spec.classes == ()
    for name, options in {
        "x.npy": {"labels": "labels.csv"},
        "x.npz": {"split": "test"},
        "x.npy ": {"on_error": "skip"},
    }.items():
        with pytest.raises(ValueError, match=f"--data-options.{next(iter(options)).replace('_', '-')}"):
            source_of(tmp_path / name.strip(), (8, 8), 1, **options)


def test_what_is_remembered_of_a_table_is_of_its_rows_as_they_are(cifar, tmp_path, monkeypatch):
    """A row far from those that are sampled for the stamp is damaged, remembered, and repaired."""
    import datasets

    monkeypatch.setenv("JUSTIMAGE_CACHE", str(tmp_path / "cache"))
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})

    def written(bad: bool) -> Path:
        rows = [{"bytes": b"nothing" if bad and i == 100 else pixels(i), "path": None} for i in range(200)]
        table = datasets.Dataset.from_dict({"image": rows, "label": [i % 2 for i in range(200)]}, features=features)
        table.to_parquet(str(tmp_path / "t.parquet"))
        return tmp_path / "t.parquet"

    with pytest.raises(ValueError, match="row 100"):
        source_of(written(True), (8, 8), memory_gb=0.0)
    assert len(source_of(written(False), (8, 8), memory_gb=0.0)) == 200
    with pytest.raises(ValueError, match="row 100"):
        source_of(written(True), (8, 8), memory_gb=0.0)


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are bytes there")
def test_names_that_are_not_utf_8(tmp_path, monkeypatch):
    monkeypatch.setenv("JUSTIMAGE_CACHE", str(tmp_path / "cache"))
    for kind, what in (("png", pixels()), ("npy", None)):
        (tmp_path / kind).mkdir()
        for i in range(3):
            path = os.fsencode(tmp_path / kind) + b"/caf\xe9" + f"{i}.{kind}".encode()
            if what:
                Path(os.fsdecode(path)).write_bytes(what)
            else:
                np.save(os.fsdecode(path), np.zeros((1, 8, 8), np.float32) + i)
        assert len(source_of(tmp_path / kind, (8, 8), memory_gb=0.0)) == 3


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("odd", [False, True])
def test_photographs_are_turned_as_exif_says_whatever_else_it_says(orientation, odd):
    """Also where it cannot be written again, as that of many telephones."""
    image = Image.fromarray(np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    buffer = io.BytesIO()
    image.save(buffer, "TIFF" if odd else "PNG", exif=exif)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(buffer.getvalue()))).convert("RGB")
    if odd:

        def unwritable(*arguments, **named):
            raise TypeError("required argument is not an integer")

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Image.Exif, "tobytes", unwritable)
            found = decode(io.BytesIO(buffer.getvalue()), 3)
    else:
        found = decode(io.BytesIO(buffer.getvalue()), 3)
    assert np.array_equal(np.asarray(found), np.asarray(expected))


def test_labels_of_a_split_beside_it(tmp_path):
    """As competitions have it: train/, test/, and a table for train/ alone."""
    members = {"train/0.png": pixels(), "train/1.png": pixels(), "test/2.png": pixels()}
    members["labels.csv"] = b"file,label\n0.png,a\n1.png,b\n"
    source = source_of(zipped(tmp_path / "x.zip", members), (8, 8))
    assert [source[i][1]["labels"] for i in range(2)] == [0, 1]


def test_table_files_of_several_splits(cifar, tmp_path):
    whole = make_parquet(cifar, tmp_path)
    folder = tmp_path / "table"
    (folder / "data").mkdir(parents=True)
    for name in ("train-0.parquet", "train-1.parquet", "test-0.parquet"):
        shutil.copy(whole, folder / "data" / name)
    assert (len(source_of(folder)), len(source_of(folder, split="test"))) == (160, 80)
    with pytest.raises(ValueError, match="no split 'dev'; there are test, train"):
        source_of(folder, split="dev")


def test_tars_with_links_and_of_one_name(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        with tarfile.open(tmp_path / folder / "train.tar", "w") as archive:
            add(archive, "x.png", pixels())
            link = tarfile.TarInfo("y.png")
            link.type, link.linkname = tarfile.LNKTYPE, "x.png"
            archive.addfile(link)
    assert len(source_of(tmp_path / "*" / "train.tar", (8, 8))) == 4


def test_links_in_folders(tmp_path):
    """A link back does not multiply the samples; a link to nowhere is an unreadable file, not a missing one."""
    folder = tmp_path / "set" / "cat"
    folder.mkdir(parents=True)
    (folder / "0.png").write_bytes(pixels())
    (folder / "back").symlink_to(tmp_path / "set")
    assert len(source_of(tmp_path / "set", (8, 8))) == 1
    (folder / "gone.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(ValueError, match=r"1 of 2 images .*(?s:.*)cat/gone\.png: .*No such file"):
        source_of(tmp_path / "set", (8, 8))


def test_members_that_cannot_be_read_are_named(tmp_path):
    path = zipped(tmp_path / "x.zip", {"0.png": pixels(0), "1.png": pixels(1)})
    path.write_bytes(path.read_bytes().replace(pixels(1), pixels(1)[:-8] + b"12345678"))
    with pytest.raises(ValueError, match=r"(?s)1 of 2 images.*1\.png: it cannot be read from the archive: Bad CRC"):
        source_of(path, (8, 8))
    assert len(source_of(path, (8, 8), on_error="skip")) == 1


def test_a_folder_of_arrays_is_measured_again_when_it_changes(tmp_path, monkeypatch):
    means = []
    for place, factor in (("a", 1.0), ("b", 1000.0)):
        (tmp_path / place / "data").mkdir(parents=True)
        for i in range(3):
            np.save(tmp_path / place / "data" / f"{i}.npy", factor * (1 + np.random.rand(1, 4, 4)).astype(np.float32))
        monkeypatch.chdir(tmp_path / place)
        means.append(source_of("data").spec.mean[0])
    assert means[1] > 500 * means[0]
    np.save("data/1.npy", np.full((1, 4, 4), np.nan, np.float32))
    with pytest.raises(ValueError, match=r"sample 1 \(1\.npy\)"):
        source_of("data")


def test_options_for_other_data_are_not_ignored(cifar):
    from justimage.data.axes import FieldOptions

    with pytest.raises(ValueError, match=r"--data-options.fields is for fields, and .* is read as images"):
        source_of(cifar, fields=FieldOptions(label="time.hour"))
    with pytest.raises(ValueError, match=r"images are cropped to the network's size"):
        source_of(cifar, crop=(8, 8))
    with pytest.raises(ValueError, match="missing is nan"):
        DataOptions(missing=float("nan"))


def test_arrays_of_mixed_channels_are_named(tmp_path):
    for i in range(4):
        np.save(tmp_path / f"{i}.npy", np.random.rand(1 + (i == 2), 8, 8).astype(np.float32))
    with pytest.raises(ValueError, match=r"is mixed: 2\.npy is \(2, 8, 8\) float32, and 0\.npy is \(1, 8, 8\)"):
        source_of(tmp_path)


def test_recipes_of_another_number_of_classes_are_refused(cifar, tmp_path, monkeypatch, capsys):
    arguments = ["train", "b16-256", *TINY, "--network.size", "32", "32", "--data", str(cifar)]
    assert jit_here(*arguments, cwd=tmp_path, monkeypatch=monkeypatch) == 2
    assert "the recipe is for 1000 classes, and the data have 10 classes" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
