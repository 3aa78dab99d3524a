"""Data changed under a run: what is the same however it is held, and what a resumed run refuses."""

import json
import os
import shlex
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from conftest import jit_here
from PIL import Image

from justimage.data.arrays import Arrays
from justimage.data.crops import Crops
from justimage.data.packing import pack
from justimage.data.sources import DataOptions, open_source
from justimage.data.spec import DataSpec, Item, Source, looked_at

TRAIN = shlex.split(
    "train images --network.size 16 16 --network.patch 8 8 --network.width 32 --network.depth 2 --network.heads 2 "
    "--network.context-start 1 --device cpu --training.batch-size 4 --training.ema-decays 0.9 "
    "--report.tick-nimg 4 --report.save-nimg 4 --report.sample-nimg 400 --report.preview-steps 2 --run r"
)


def source_of(path, **options) -> Source:
    source = open_source(str(path), (16, 16), 3, DataOptions(**options))
    assert source.indexed is True
    return source


def write_photos(folder: Path, seed: int, count: int = 24) -> Path:
    """Random BMPs, which all have one size in bytes, in two classes."""
    generator = np.random.default_rng(seed)
    for i in range(count):
        path = folder / ("odd" if i % 2 else "even") / f"{i:02d}.bmp"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 255, (20, 18, 3), np.uint8)).save(path)
    return folder


@pytest.fixture
def photos(tmp_path) -> Path:
    return write_photos(tmp_path / "photos", 0)


def damage(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def test_the_content_is_the_same_however_the_samples_are_held(photos, tmp_path):
    """In memory or not, in a folder, zip, tar or pack."""
    expected = source_of(photos).content()
    shutil.make_archive(str(tmp_path / "zipped"), "zip", photos)
    with tarfile.open(tmp_path / "tarred.tar", "w") as archive:
        archive.add(photos, "photos")
    small = pack(source_of(photos), tmp_path / "pack", shard_mb=1)
    assert source_of(photos, memory_gb=0.0).content() == expected
    assert source_of(tmp_path / "zipped.zip").content() == expected
    assert source_of(tmp_path / "tarred.tar").content() == expected
    assert small.content() == expected


def test_the_content_of_arrays_is_the_same_in_any_file(tmp_path):
    x, y = np.random.default_rng(0).normal(size=(30, 2, 5, 6)).astype(np.float32), np.arange(30) % 3
    expected = Arrays(x, y).content()
    np.savez(tmp_path / "xy.npz", x=x, y=y)
    for i, (sample, label) in enumerate(zip(x, y, strict=True)):
        path = tmp_path / "stack" / str(label) / f"{i:02d}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, sample)
    assert source_of(tmp_path / "xy.npz").content() == expected
    assert pack(Arrays(x, y), tmp_path / "pack").content() == expected
    order = np.argsort(y, kind="stable")  # folders come one after the other
    assert source_of(tmp_path / "stack").content() == Arrays(x[order], y[order]).content()
    assert pack(Crops(Arrays(x, y), (3, 3), "centre"), tmp_path / "crops").content() == (
        Crops(source_of(tmp_path / "xy.npz"), (3, 3), "centre").content()
    )
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "turned.npy", np.asfortranarray(x))
    assert source_of(tmp_path / "x.npy").content() == Arrays(x).content()
    assert np.array_equal(source_of(tmp_path / "turned.npy")[7][0], x[7])


def test_the_content_changes_with_samples_labels_order_and_conditions(tmp_path):
    generator = np.random.default_rng(0)
    x, y, angle = generator.normal(size=(30, 2, 5, 6)).astype(np.float32), np.arange(30) % 3, generator.normal(size=30)
    swapped, other = y.copy(), x.copy()
    swapped[[3, 4]] = swapped[[4, 3]]
    other[17, 1, 2, 3] += 1
    found = [
        Arrays(x, y).content(),
        Arrays(x, swapped).content(),
        Arrays(other, y).content(),
        Arrays(x[::-1], y[::-1]).content(),
        Arrays(x[:-1], y[:-1]).content(),
        Arrays(x, y, given={"angle": angle}).content(),
        Arrays(x, y, given={"angle": -angle}).content(),
        Crops(Arrays(x, y), (3, 3)).content(),
        Crops(Arrays(x, swapped), (3, 3)).content(),
    ]
    assert len(set(found)) == len(found)


def test_the_content_needs_few_samples():
    """64 of many images, more of small ones, and few of samples that take long to read."""
    photos, digits = DataSpec.pixels((256, 256), 3), DataSpec.pixels((28, 28), 1)
    weather = DataSpec((721, 1440), tuple("abcdefgh"), (0.0,) * 8, (1.0,) * 8)
    assert (looked_at(photos, 1_300_000), looked_at(digits, 60_000), looked_at(digits, 7)) == (64, 1024, 7)
    assert looked_at(weather, 100_000) == 32
    looks = []

    class Slow(Source):
        """A user's own source, which counts how often it is asked."""

        spec = photos

        def __len__(self) -> int:
            return 1_000_000

        def __getitem__(self, index: int, /) -> Item:
            looks.append(index)
            return np.zeros((3, 256, 256), np.uint8), {}

        def describe(self) -> str:
            return "a million photos"

        def fingerprint(self) -> str:
            return "photos"

    Slow().content()
    assert (len(looks), looks[0], looks[-1]) == (64, 0, 999_999)


@pytest.mark.parametrize("options", ["", "--data-options.on-error skip", "--data-options.memory-gb 0"])
def test_samples_and_labels_changed_under_a_run_are_refused(photos, tmp_path, monkeypatch, capsys, options):
    """Names and sizes stay as they are, and so do the times of the files."""
    if "skip" in options:
        damage(photos / "odd" / "07.bmp")

    def train(nimg: int) -> int:
        command = [*TRAIN, *options.split(), "--data", "photos", "--training.duration-nimg", str(nimg)]
        return jit_here(*command, cwd=tmp_path, monkeypatch=monkeypatch)

    assert (train(4), train(8)) == (0, 0)
    times = {path: path.stat().st_mtime_ns for path in photos.rglob("*.bmp")}
    shutil.copytree(photos, tmp_path / "kept")

    def set_times() -> None:
        for path, when in times.items():
            os.utime(path, ns=(when, when))

    write_photos(photos, 1)
    if "skip" in options:
        damage(photos / "odd" / "07.bmp")
    set_times()
    assert train(12) == 2
    assert "not the samples that the run was begun with" in " ".join(capsys.readouterr().err.split())
    shutil.rmtree(photos)
    shutil.copytree(tmp_path / "kept", photos)
    left, right, beside = photos / "even" / "04.bmp", photos / "odd" / "05.bmp", tmp_path / "beside"
    left.rename(beside)
    right.rename(left)
    beside.rename(right)
    set_times()
    assert train(12) == 2
    shutil.rmtree(photos)
    shutil.copytree(tmp_path / "kept", photos)
    assert train(12) == 0


def test_a_run_begun_on_a_folder_resumes_on_its_pack_and_the_reverse(photos, tmp_path, monkeypatch):
    pack(source_of(photos), tmp_path / "pack")

    def train(nimg: int, data: str) -> int:
        command = [*TRAIN, "--data", data, "--training.duration-nimg", str(nimg)]
        return jit_here(*command, cwd=tmp_path, monkeypatch=monkeypatch)

    assert (train(4, "photos"), train(8, "pack"), train(12, "photos")) == (0, 0, 0)


def test_a_run_of_an_older_version_compares_fingerprints(photos, tmp_path, monkeypatch):
    """It recorded no content: the same folder resumes it and from then on its content counts; another one does not."""
    write_photos(tmp_path / "others", 1, count=26)

    def train(nimg: int, data: str) -> int:
        command = [*TRAIN, "--data", data, "--training.duration-nimg", str(nimg)]
        return jit_here(*command, cwd=tmp_path, monkeypatch=monkeypatch)

    assert train(4, "photos") == 0
    path = tmp_path / "r" / "recipe.json"
    facts = json.loads(path.read_text())
    content = facts["data"].pop("content")
    path.write_text(json.dumps(facts))
    assert (train(8, "others"), train(8, "photos")) == (2, 0)
    assert json.loads(path.read_text())["data"]["content"] == content
