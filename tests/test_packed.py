"""Packs: what they hold, what a kill or a full disk leaves behind, and what is refused."""

import json
import os
import signal
import subprocess
import sys
import tarfile
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from conftest import jit_here
from PIL import Image

from justimage.data.arrays import Arrays
from justimage.data.crops import Crops
from justimage.data.packed import Packed
from justimage.data.packing import Unfinished, pack
from justimage.data.sources import DataOptions, open_source
from justimage.data.spec import Source


@pytest.fixture
def photos(tmp_path) -> Path:
    """40 random images of 24x20 in two classes."""
    generator = np.random.default_rng(0)
    for i in range(40):
        path = tmp_path / "photos" / ("odd" if i % 2 else "even") / f"{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 255, (24, 20, 3), np.uint8)).save(path)
    return tmp_path / "photos"


def source_of(path, size=(16, 16), **options) -> Source:
    source = open_source(str(path), size, 3, DataOptions(**options))
    assert source.indexed is True
    return source


@pytest.mark.parametrize("workers", [1, 3])
def test_a_pack_is_what_was_packed(photos, tmp_path, workers):
    source = source_of(photos, (128, 128), memory_gb=0.0)
    small = pack(source, tmp_path / "pack", workers=workers, shard_mb=1)
    shards = sorted((tmp_path / "pack").glob("*[0-9].npy"))
    assert len(shards) == 2  # 1 MB is 20 of them
    assert np.load(shards[1]).shape == (20, 3, 128, 128)
    for i in range(40):
        assert np.array_equal(small[i][0], source[i][0])
        assert small[i][1] == source[i][1]
    assert small.spec == source.spec
    assert small.fingerprint() == Packed(tmp_path / "pack").fingerprint()
    index = json.loads((tmp_path / "pack" / "index.json").read_text())
    assert index["complete"]
    assert [shard["crc32"] for shard in index["shards"]] == [zlib.crc32(np.load(path).tobytes()) for path in shards]


def test_a_compressed_archive_is_packed(photos, tmp_path, monkeypatch):
    with tarfile.open(tmp_path / "photos.tar.gz", "w:gz") as archive:
        archive.add(photos, "photos")
    arguments = ["data", "pack", "photos.tar.gz", "--size", "16", "--out", "small"]
    assert jit_here(*arguments, cwd=tmp_path, monkeypatch=monkeypatch) == 0
    assert Packed(tmp_path / "small").spec.classes == ("even", "odd")


def test_fields_are_packed_as_floats_with_their_names(tmp_path):
    x = np.random.default_rng(0).normal(size=(7, 2, 5, 6)).astype(np.float32)
    source = Arrays(x, np.arange(7) % 3, channels=("u", "v"))
    small = pack(source, tmp_path / "pack")
    assert small.spec == source.spec
    assert all(np.array_equal(small[i][0], x[i]) for i in range(7))
    crops = source_of(tmp_path / "pack", crop=(2, 3))
    assert len(crops) == 7 * 4 * 4
    with pytest.raises(ValueError, match="random crops are not packed"):
        pack(crops, tmp_path / "crops")


def test_conditions_are_not_packed(tmp_path):
    x = np.random.default_rng(0).normal(size=(7, 2, 5, 6))
    with pytest.raises(ValueError, match=r"packs hold no conditions besides labels, .* come with angle, depth: train"):
        pack(Arrays(x, given={"angle": x[:, 0, 0, 0], "depth": x}), tmp_path / "pack")
    assert not (tmp_path / "pack").exists()


def test_centre_crops_are_packed(tmp_path):
    x = np.random.default_rng(0).normal(size=(40, 2, 5, 6)).astype(np.float32)
    small = pack(Crops(Arrays(x), (3, 4), "centre"), tmp_path / "pack")
    assert all(np.array_equal(small[i][0], x[i, :, 1:4, 1:5]) for i in range(40))
    assert small[0][1] == {}


def test_a_pack_of_an_older_version_is_the_same(photos, tmp_path):
    """Its index lacks the fields of the spec that came later: a run on it resumes, an unfinished one is finished."""
    source = source_of(photos)
    small = pack(source, tmp_path / "pack")
    index = json.loads((tmp_path / "pack" / "index.json").read_text())
    for name in ("colour", "mirror", "given"):
        del index["spec"][name]
    (tmp_path / "pack" / "index.json").write_text(json.dumps(index))
    older = Packed(tmp_path / "pack")
    assert (older.spec, older.fingerprint()) == (small.spec, small.fingerprint())
    (tmp_path / "begun").mkdir()
    begun = {**index, "complete": False, "shards": [], "next": 0}
    (tmp_path / "begun" / "index.json").write_text(json.dumps(begun))
    assert pack(source, tmp_path / "begun").fingerprint() == small.fingerprint()


def test_a_damaged_pack_is_refused(photos, tmp_path):
    pack(source_of(photos), tmp_path / "pack")
    shard = tmp_path / "pack" / "00000.npy"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-5] + bytes([whole[-5] ^ 1]) + whole[-4:])
    with pytest.raises(ValueError, match=r"shard 00000 of .* is damaged: its checksum is"):
        source_of(tmp_path / "pack")
    shard.write_bytes(whole[:-5])
    with pytest.raises(ValueError, match=r"shard 00000 of .* cannot be read"):
        source_of(tmp_path / "pack")
    shard.write_bytes(whole)
    assert len(source_of(tmp_path / "pack")) == 40
    labels = tmp_path / "pack" / "00000.labels.npy"
    y = np.load(labels)
    np.save(labels, y[::-1])
    with pytest.raises(ValueError, match="labels of shard 00000"):
        source_of(tmp_path / "pack")
    np.save(labels, y)
    index = tmp_path / "pack" / "index.json"
    text = index.read_text()
    for damaged, message in ((text[:-20], "is not JSON"), (text.replace('"spec"', '"sp"'), "is damaged")):
        index.write_text(damaged)
        with pytest.raises(ValueError, match=message):
            source_of(tmp_path / "pack")
    index.write_text(text.replace("justimage-pack/1", "justimage-pack/9"))
    with pytest.raises(ValueError, match="has the format 'justimage-pack/9'"):
        source_of(tmp_path / "pack")


def test_images_that_cannot_be_decoded_are_left_out_and_listed(photos, tmp_path):
    damaged = photos / "odd" / "07.png"
    whole = bytearray(damaged.read_bytes())
    whole[len(whole) // 2] ^= 0xFF  # inside: headers and ends are as they should be
    damaged.write_bytes(whole)
    with pytest.raises(ValueError, match=r"odd/07\.png .* cannot be decoded.*on-error skip leaves such samples out"):
        pack(source_of(photos, memory_gb=0.0), tmp_path / "pack")
    small = pack(source_of(photos, memory_gb=0.0, on_error="skip"), tmp_path / "pack")
    assert len(small) == 39
    assert "1 were left out" in small.describe()
    index = json.loads((tmp_path / "pack" / "index.json").read_text())
    assert [name for name, _ in index["skipped"]] == ["odd/07.png"]


def test_a_killed_pack_is_refused_and_resumed(tmp_path, monkeypatch, capsys):
    """kill -9 in the middle: not readable; the same command ends with the same bytes as an unbroken one."""
    generator = np.random.default_rng(0)
    for i in range(300):
        path = tmp_path / "photos" / f"{i:03d}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(generator.integers(0, 255, (96, 96, 3), np.uint8)).save(path)
    command = ["data", "pack", "photos", "--size", "192", "--shard-mb", "1", "-j", "1"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    process = subprocess.Popen(
        [sys.executable, "-m", "justimage", *command, "--out", "killed"], cwd=tmp_path, env=environment
    )
    index = tmp_path / "killed" / "index.json"
    while not index.is_file() or not json.loads(index.read_text())["shards"]:
        time.sleep(0.005)
        assert process.poll() is None, "it ended before it could be killed"
    process.send_signal(signal.SIGKILL)
    process.wait()
    with pytest.raises(ValueError, match=r"is not finished: \d+ of 300 samples are packed; run the same"):
        source_of(tmp_path / "killed")

    def jit(*arguments: str) -> int:
        return jit_here(*arguments, cwd=tmp_path, monkeypatch=monkeypatch)

    assert jit("train", "cifar10", "--data", "killed") == 2
    assert jit(*command[:3], "--size", "64", "--out", "killed") == 2
    assert "begun from other data or settings" in capsys.readouterr().err
    done = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "killed").glob("0*.npy")}
    assert jit(*command, "--out", "killed") == 0
    assert jit(*command, "--out", "whole") == 0
    names = sorted(path.name for path in (tmp_path / "whole").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "killed").iterdir())
    for name in names:
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes(), name
    indexed = [shard["name"] for shard in json.loads((tmp_path / "whole" / "index.json").read_text())["shards"]]
    kept = [name for name, when in done.items() if (tmp_path / "killed" / name).stat().st_mtime_ns == when]
    assert len(kept) >= 1
    assert len(indexed) == 34
    assert jit(*command, "--out", "whole") == 2
    assert "is a finished pack" in capsys.readouterr().err


def test_a_full_disk_leaves_valid_shards_and_says_how_to_go_on(photos, tmp_path, monkeypatch):
    import errno

    written = 0
    real_open = Path.open

    class Full:
        """A file on a disk that has room for 1.5 MB."""

        def __init__(self, file):
            self.file = file

        def __getattr__(self, name):
            return getattr(self.file, name)

        def __enter__(self):
            return self

        def __exit__(self, *details):
            self.file.close()

        def write(self, data):
            nonlocal written
            written += memoryview(data).nbytes
            if written > 1_500_000:
                raise OSError(errno.ENOSPC, "No space left on device")
            return self.file.write(data)

    def limited(self, mode="r", *args, **kwargs):
        file = real_open(self, mode, *args, **kwargs)
        return Full(file) if mode == "wb" and ".npy." in self.name else file

    source = source_of(photos, (128, 128), memory_gb=0.0)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", limited)
        with pytest.raises(ValueError, match=r"No space left.*20 of 40 samples are packed and stay valid"):
            pack(source, tmp_path / "pack", shard_mb=1)
    names = sorted(path.name for path in (tmp_path / "pack").iterdir())
    assert names == ["00000.labels.npy", "00000.npy", "index.json"]
    assert np.load(tmp_path / "pack" / "00000.npy").shape == (20, 3, 128, 128)
    with pytest.raises(ValueError, match="20 of 40 samples are packed"):
        source_of(tmp_path / "pack")
    assert len(pack(source, tmp_path / "pack", shard_mb=1)) == 40


def test_no_shard_follows_one_that_could_not_be_settled(photos, tmp_path, monkeypatch):
    """The disk says only at the end of the second shard that it is full, when the third is written already."""
    import errno

    source = source_of(photos, (256, 256), memory_gb=0.0)  # 5 to a shard
    calls = []

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) == 4:  # after the new index, the first shard, and the index that lists it
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(Unfinished, match=r"5 of 40 samples are packed"):
            pack(source, tmp_path / "pack", shard_mb=1)
    assert sorted(path.name for path in (tmp_path / "pack").glob("*[0-9].npy")) == ["00000.npy"]
    small = pack(source, tmp_path / "pack", shard_mb=1)
    assert all(np.array_equal(small[i][0], source[i][0]) for i in range(40))


def test_a_shard_of_which_nothing_can_be_decoded(photos, tmp_path):
    """All of the second shard is left out; packing continues after it, even if interrupted there."""
    for path in sorted(photos.rglob("*.png"))[20:40]:
        whole = bytearray(path.read_bytes())
        whole[len(whole) // 2] ^= 0xFF
        path.write_bytes(whole)
    source = source_of(photos, (128, 128), memory_gb=0.0, on_error="skip")
    small = pack(source, tmp_path / "pack", shard_mb=1)
    assert len(small) == 20
    assert [path.name for path in (tmp_path / "pack").glob("*[0-9].npy")] == ["00000.npy"]


def test_other_folders_are_not_written_into(photos, tmp_path):
    with pytest.raises(ValueError, match="not empty and not a pack"):
        pack(source_of(photos), photos)
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match="not empty and not a pack"):
        pack(source_of(photos), tmp_path / "file")


def write_index(folder: Path, change) -> dict:
    """The index of a pack, changed."""
    index = json.loads((folder / "index.json").read_text())
    change(index)
    (folder / "index.json").write_text(json.dumps(index))
    return index


WRONG_INDICES = {
    "a path": (lambda i: i["shards"][0].update(name="../beside/00000"), "a shard is called '../beside/00000'"),
    "an absolute path": (lambda i: i["shards"][0].update(name="/tmp/00000"), "a shard is called '/tmp/00000'"),
    "no text": (lambda i: i["shards"][0].update(name=["00000"]), "the name of shard 0 is .*not a text"),
    "one twice": (lambda i: i["shards"].append(i["shards"][0]), "shard 00000 comes after 00000"),
    "a negative count": (lambda i: i["shards"][0].update(count=-40), "the count of shard 00000 is '-40', not a whole"),
    "a count as text": (lambda i: i["shards"][0].update(count="40"), "the count of shard 00000"),
    "another count": (lambda i: i["shards"][0].update(count=39), "39 samples are listed of 40"),
    "no shards": (lambda i: i.update(shards=None), "shards is 'None', not a list"),
    "a shard that is a list": (lambda i: i.update(shards=[[]]), "shard 0 is .*not an object"),
    "one shard less": (lambda i: i.update(shards=[]), "0 samples are listed of 40"),
    "no source": (lambda i: i.pop("source"), "'source' is missing"),
    "a source that is a list": (lambda i: i.update(source=[1]), "source is .*not an object"),
    "complete in words": (lambda i: i.update(complete="yes"), "complete is 'yes', not true or false"),
    "no next": (lambda i: i.update(complete=False, next=None), "next is 'None', not a whole number"),
    "sizes": (lambda i: i["spec"].update(size=[16, "16"]), "size.1. is '16'; a whole number"),
    "a type": (lambda i: i["spec"].update(dtype="object"), "dtype is 'object'; it must be 'uint8' or"),
    "scales": (lambda i: i["spec"].update(scale=[1e99] * 3), "finite numbers of float32"),
    "a class less": (lambda i: i["spec"]["classes"].pop(), "sample 20 of it has the label 1, and there are 1 classes"),
    "no classes": (lambda i: i["spec"].update(classes=[]), "has the label 0, and there are no classes"),
}


@pytest.mark.parametrize("name", WRONG_INDICES)
def test_an_index_that_packing_did_not_write_is_refused(photos, tmp_path, name):
    """Files outside of the pack stay closed, and no label becomes another or none."""
    pack(source_of(photos), tmp_path / "pack")
    (tmp_path / "beside").mkdir()
    for path in (tmp_path / "pack").glob("*.npy"):
        (tmp_path / "beside" / path.name).write_bytes(path.read_bytes())
    change, message = WRONG_INDICES[name]
    write_index(tmp_path / "pack", change)
    with pytest.raises(ValueError, match=message):
        source_of(tmp_path / "pack")


def test_files_that_a_pack_lacks_or_does_not_list_are_named(photos, tmp_path):
    pack(source_of(photos, (128, 128), memory_gb=0.0), tmp_path / "pack", shard_mb=1)
    first, second = (tmp_path / "pack" / f"0000{i}.npy" for i in range(2))
    (tmp_path / "pack" / "notes.npy").write_bytes(b"the user's own")
    assert len(source_of(tmp_path / "pack")) == 40
    (tmp_path / "pack" / "00002.npy").write_bytes(first.read_bytes())
    with pytest.raises(ValueError, match=r"has, though they are not in its index, 00002\.npy"):
        source_of(tmp_path / "pack")
    (tmp_path / "pack" / "00002.npy").unlink()
    second.unlink()
    with pytest.raises(ValueError, match=r"lacks 00001\.npy; copy it again"):
        source_of(tmp_path / "pack")
    second.write_bytes(b"no array")
    with pytest.raises(ValueError, match=r"shard 00001 of .* it holds Python objects"):
        source_of(tmp_path / "pack")
