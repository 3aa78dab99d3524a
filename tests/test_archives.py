"""Archives and folders: whole or refused, their names as they were meant, and every file in them accounted for."""

import bz2
import gzip
import io
import lzma
import os
import random
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from justimage.data.containers import IMAGES
from justimage.data.files import find_files
from justimage.data.images import Images
from justimage.data.sources import DataOptions, open_source
from justimage.data.spec import UnreadableSample
from justimage.data.streams import StreamOptions, open_shards
from justimage.data.tars import Tar
from justimage.data.zips import members_said

MEMBERS = 12
# Formats that Pillow opens only with another program, or of which it knows the beginning only; and those it opens only
# with the package olefile.
NOT_BY_ITSELF = {"EPS", "BUFR", "GRIB", "HDF5", "MPEG", "WMF", "FPX", "MIC"}


def png(value: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (9, 8), (value, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def tarred(members: list[tuple[str, bytes]], kind: int = tarfile.GNU_FORMAT) -> tuple[bytes, list[int]]:
    """A tar, and where its members begin."""
    buffer, begins = io.BytesIO(), []
    with tarfile.open(fileobj=buffer, mode="w", format=kind) as archive:
        for name, data in members:
            begins.append(archive.offset)
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue(), begins


def shard(folder: str = "", kind: int = tarfile.GNU_FORMAT) -> tuple[bytes, list[int]]:
    """Images with labels. A long folder makes headers of several blocks."""
    pairs = ((f"{folder}{i:03d}.png", png(i)) for i in range(MEMBERS))
    members = [each for i, pair in enumerate(pairs) for each in (pair, (f"{pair[0][:-4]}.cls", b"%d" % (i % 3)))]
    return tarred(members, kind)


def as_file(path: Path) -> list[tuple[str, int, bytes]]:
    files = find_files([path])
    return [(files.names[i], files.labels[i], files.open(i).read()) for i in range(len(files.names))]


def as_stream(path: Path) -> list[tuple[str, int, bytes]]:
    stream = open_shards(str(path), (8, 8), 3, StreamOptions(classes=3), "stop")
    found = [(name, label, data) for name, data, label in stream.read_pass(0)]
    for name, label, data in found:
        stream._item(name, data, label)
    return found


def damaged(raw: bytes, begins: list[int], count: int) -> dict[str, bytes]:
    """Cut anywhere, a byte of a header flipped, zeros over a header; by what was done."""
    chance = random.Random(3)
    made = {f"cut at {at}": raw[:at] for at in chance.sample(range(1, begins[-1] + 512), count)}
    for at in chance.sample(begins, min(count, len(begins))):
        place, bit = at + chance.randrange(512), 1 << chance.randrange(8)
        made[f"bit {bit} flipped at {place}"] = raw[:place] + bytes([raw[place] ^ bit]) + raw[place + 1 :]
    for at in chance.sample(begins[:-1], min(count, len(begins) - 1)):
        first, last = max(0, at - chance.randrange(100)), at + chance.randrange(1, 600)
        made[f"zeros from {first} to {last}"] = raw[:first] + bytes(last - first) + raw[last:]
    return made


@pytest.mark.parametrize(("folder", "kind"), [("", tarfile.GNU_FORMAT), ("d/" * 60, tarfile.PAX_FORMAT)])
@pytest.mark.parametrize("read", [as_file, as_stream])
def test_a_damaged_tar_never_loses_samples_silently(read, folder, kind, tmp_path):
    """Refused by its name, or the same samples as before; read from a file and as a stream."""
    raw, begins = shard(folder, kind)
    path = tmp_path / "shard.tar"
    path.write_bytes(raw)
    whole = read(path)
    assert len(whole) == MEMBERS
    refused = 0
    for what, data in damaged(raw, begins, 20).items():
        path.write_bytes(data)
        try:
            assert read(path) == whole, what
        except ValueError as error:
            assert "shard.tar" in str(error), what
            refused += 1
    assert refused > 50


@pytest.mark.parametrize("module", [gzip, bz2, lzma])
@pytest.mark.parametrize("read", [as_file, as_stream])
def test_a_damaged_compressed_tar_is_refused(read, module, tmp_path):
    """Its checksum is compared, though the members come before it."""
    raw, _ = shard()
    packed = module.compress(raw)
    path = tmp_path / "shard.tar.gz"  # the content decides, not the name
    path.write_bytes(packed)
    whole = read(path)
    assert len(whole) == MEMBERS
    middle = len(packed) // 2
    for data in (packed[:middle], packed[:-4], packed[:middle] + bytes([packed[middle] ^ 8]) + packed[middle + 1 :]):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=r"shard\.tar\.gz"):
            read(path)


def test_what_is_wrong_with_a_tar_is_said(tmp_path):
    raw, begins = shard()
    end = -(-len(raw.rstrip(b"\0")) // 512) * 512  # where the end mark begins
    flipped = bytearray(raw)
    flipped[begins[4] + 3] ^= 1
    for data, message in [
        (bytes(flipped), rf"at byte {begins[4]:,}: its header is damaged.*the 4 members before that .*001\.cls"),
        (raw[: end + 512], "cut inside the end mark"),
        (raw[:end], "was cut there"),
        (raw + raw, r"then the member 000\.png: a hole, or several archives"),
        (raw + b"x" * 512, "zeros, and then more: a hole"),
        (raw + bytes(2**21), "a download that did not finish"),
        (raw[: begins[1] + 520], "unexpected end of data"),
        (b"no tar" * 200, r"at byte 0: its header is damaged"),
    ]:
        (tmp_path / "x.tar").write_bytes(data)
        with pytest.raises(ValueError, match=rf"x\.tar cannot be read as a tar archive: .*{message}"):
            find_files([tmp_path / "x.tar"])
    (tmp_path / "x.tar").write_bytes(raw + bytes(64 * 512))  # filled up to a larger record
    assert len(find_files([tmp_path / "x.tar"]).names) == MEMBERS
    (tmp_path / "y.tar").write_bytes(raw[:end])
    with pytest.raises(ValueError, match=r"y\.tar cannot be read"):
        find_files([tmp_path / "x.tar", tmp_path / "y.tar"])


@pytest.mark.parametrize("size", [-1, -5120, 2**62])
def test_headers_of_impossible_sizes_do_not_lead_back(size):
    """Valid checksums, made by hand: a negative size would be read again and again."""
    member = tarfile.TarInfo("x.png")
    member.size = size
    for kind in (tarfile.REGTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE):
        member.type = kind
        with pytest.raises(ValueError, match="header is damaged"):
            list(Tar(io.BytesIO(member.tobuf(tarfile.GNU_FORMAT) + bytes(1024))))


class _Raw(zipfile.ZipInfo):
    """A member whose name is stored as these bytes, without the flag that says UTF-8."""

    raw = b""

    def _encodeFilenameFlags(self):
        return self.raw, self.flag_bits & ~0x800


def test_names_of_zips_are_what_they_were(tmp_path):
    """UTF-8 without a flag, as `zip` on most systems writes it; its own field of the name; and code page 437."""
    field = b"\1" + struct.pack("<L", zlib.crc32(b"m?we/2.png")) + "möwe/2.png".encode()
    stale = b"\1" + struct.pack("<L", 7) + b"other/3.png"
    for names, expected in (
        ([("été/0.png".encode(), b""), ("猫/1.png".encode(), b"")], {"été/0.png", "猫/1.png"}),
        ([(b"m?we/2.png", field), (b"cat/3.png", stale)], {"möwe/2.png", "cat/3.png"}),
        ([(b"\x82t\x82/4.png", b"")], {"été/4.png"}),
    ):
        with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
            for i, (raw, extra) in enumerate(names):
                member = _Raw(str(i))
                member.raw = raw
                member.extra = struct.pack("<HH", 0x7075, len(extra)) + extra if extra else b""
                archive.writestr(member, png())
        assert set(find_files([tmp_path / "x.zip"]).names) == expected


def test_a_damaged_directory_of_a_zip_never_loses_samples_silently(tmp_path):
    """A flipped length makes zipfile skip members; those that are lost are missed."""
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for i in range(MEMBERS):
            archive.writestr(f"{i:03d}.png", png(i))
    raw = path.read_bytes()
    entry = raw.index(b"PK\1\2")
    for offset, value in ((32, 53), (30, 53), (28, 40), (6, 250)):  # lengths of comment, extra, name; a version
        path.write_bytes(raw[: entry + offset] + bytes([value]) + raw[entry + offset + 1 :])
        with pytest.raises(ValueError, match=r"x\.zip cannot be read as a zip archive"):
            source_of(path)
    path.write_bytes(raw[:-2] + struct.pack("<H", 3) + b"PK\5")
    assert len(source_of(path)) == MEMBERS
    larger = b"PK\6\6" + bytes(28) + struct.pack("<Q", 10**6) + bytes(16) + b"PK\6\7" + bytes(16)
    assert members_said(io.BytesIO(larger + b"PK\5\6" + bytes(4) + b"\xff" * 14)) == 10**6


def test_of_names_that_occur_twice_the_later_counts(tmp_path):
    raw, _ = tarred([("a.png", png(1)), ("b.png", png(2)), ("a.png", png(3))])
    (tmp_path / "x.tar").write_bytes(raw)
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive, pytest.warns(UserWarning, match="Duplicate"):
        for name, value in (("a.png", 1), ("b.png", 2), ("a.png", 3)):
            archive.writestr(name, png(value))
    for name in ("x.tar", "x.zip"):
        source = Images(find_files([tmp_path / name]), (8, 8))
        assert [int(source[i][0][0, 0, 0]) for i in range(len(source))] == [3, 2]
        assert source.describe().endswith("; names that occur again in it, of which the later file counts: 1")


def source_of(path: Path, size=(8, 8), **options) -> Any:
    return open_source(str(path), size, 3, DataOptions(**options))


def pairs(folder: Path, companion: str = "") -> Path:
    """Photographs and masks of the same keys."""
    folder.mkdir()
    for i in range(4):
        for name, value in ((f"{i}.png", 200), (f"{i}.seg.png", 1)):
            (folder / name).write_bytes(png(value))
        if companion:
            (folder / f"{i}{companion}").write_text("1")
    return folder


@pytest.mark.parametrize("companion", [".cls", ".json", ""])
def test_which_of_several_images_of_a_key_is_asked(companion, tmp_path):
    """In folders with companions, in tars, and in streams; the answer is taken."""
    folder = pairs(tmp_path / "set", companion)
    path = tmp_path / "set.tar"
    with tarfile.open(path, "w") as archive:
        for each in sorted(folder.iterdir()):
            archive.add(each, each.name)
    for place in [path, folder] if companion else [path]:
        with pytest.raises(ValueError, match=r"several images of one key, such as .*: png, seg\.png.*--data-options"):
            source_of(place)
        for image, value in (("png", 200), (".SEG.png", 1)):
            chosen = source_of(place, image=image)
            assert (len(chosen), int(chosen[0][0][0, 0, 0])) == (4, value)
        with pytest.raises(ValueError, match=r"image is depth\.png, and 4 of 4 keys .* are called png, seg\.png"):
            source_of(place, image="depth.png")
    with pytest.raises(UnreadableSample, match=r"set\.tar holds several images .* such as 0: .*--data-options.image"):
        source_of(path, kind="stream")
    chosen = source_of(path, kind="stream", image="seg.png")
    assert int(next(chosen.samples(0, 0))()[0][0, 0, 0]) == 1
    with pytest.raises(UnreadableSample, match=r"holds no image called depth\.png; it holds .*png, seg\.png"):
        source_of(path, kind="stream", image="depth.png")


def test_dots_in_names_ask_nothing(tmp_path):
    """Numbered scans, and a folder of two formats without companions, are samples of their own."""
    raw, _ = tarred([(f"{c}/scan.{i:03d}.png", png()) for c in "ab" for i in range(2)])
    (tmp_path / "x.tar").write_bytes(raw)
    assert len(source_of(tmp_path / "x.tar")) == 4
    assert len(source_of(pairs(tmp_path / "set"))) == 8


def test_links_are_followed_as_find_does(tmp_path):
    """A link to a folder elsewhere in the set is one of its folders; only a link back is not followed."""
    for name in ("cat", "dog", "dog/back"):
        (tmp_path / "set" / name).mkdir(parents=True)
        (tmp_path / "set" / name / "0.png").write_bytes(png())
    (tmp_path / "set" / "dog" / "again").symlink_to("../cat")
    (tmp_path / "set" / "dog" / "back" / "up").symlink_to("..")
    (tmp_path / "set" / "self").symlink_to("self")  # a file that cannot be read, and not an image
    files = find_files([tmp_path / "set"])
    assert files.names == ["cat/0.png", "dog/0.png", "dog/again/0.png", "dog/back/0.png"]
    assert files.classes == ("cat", "dog")


def test_webs_of_links_are_refused(tmp_path):
    for a in range(6):
        (tmp_path / str(a)).mkdir()
        (tmp_path / str(a) / "0.png").write_bytes(png())
    for a in range(6):
        for b in range(6):
            (tmp_path / str(a) / f"to{b}").symlink_to(tmp_path / str(b))
    with pytest.raises(ValueError, match="links that lead to one folder in more than 64 ways"):
        find_files([tmp_path])


def test_files_left_aside_are_counted(tmp_path):
    for name in ("a/0.png", "a/1.JPG", "b/0.png", "a/0.txt", "b/0.txt", "README", "b/x.npy", "b/.hidden", "labels.csv"):
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / name).write_bytes(png())
    (tmp_path / "set" / "labels.csv").write_text("file,label\na/0.png,x\na/1.JPG,y\nb/0.png,x\n")
    assert source_of(tmp_path / "set").describe().endswith("; left aside: 2 .txt, 1 .npy, 1 without a suffix")
    whole = tmp_path / "whole"
    whole.mkdir()
    (whole / "0.png").write_bytes(png())
    (whole / "0.cls").write_text("0")
    assert source_of(whole).describe().endswith("in memory")


def test_the_lesser_kind_of_file_is_not_taken_for_the_data(tmp_path):
    """A preview among arrays, an array among images, a picture among shards: said which to choose, and obeyed."""
    for place, images, arrays in (("arrays", 1, 3), ("images", 3, 1)):
        (tmp_path / place).mkdir()
        for i in range(images):
            (tmp_path / place / f"{i}.png").write_bytes(png())
        for i in range(arrays):
            np.save(tmp_path / place / f"{i}.npy", np.random.rand(3, 8, 8))
    with pytest.raises(ValueError, match=r"1 samples \(1 \.png\), but 3 files .*--data-options.kind arrays or images"):
        source_of(tmp_path / "arrays")
    assert len(source_of(tmp_path / "arrays", kind="arrays")) == 3
    assert len(source_of(tmp_path / "arrays", kind="images")) == 1
    assert source_of(tmp_path / "images").describe().endswith("; left aside: 1 .npy")
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "preview.png").write_bytes(png())
    for i in range(2):
        (tmp_path / "shards" / f"{i}.tar").write_bytes(shard()[0])
    with pytest.raises(ValueError, match=r"holds 2 archives \(\.tar\) besides 1 images; .*/\*\.tar, or"):
        source_of(tmp_path / "shards")
    assert len(source_of(tmp_path / "shards" / "*.tar")) == 2 * MEMBERS


def test_every_format_that_pillow_reads_is_read():
    Image.init()
    readable = {end for end, name in Image.registered_extensions().items() if name in Image.OPEN}
    others = {end for end, name in Image.registered_extensions().items() if name in NOT_BY_ITSELF}
    assert readable - others == IMAGES & readable
    assert not IMAGES & others
    depend_on_the_build = {".avif", ".avifs", ".webp", ".jp2", ".j2k", ".jpc", ".jpf", ".jpx", ".j2c", ".pxr"}
    assert readable >= IMAGES - depend_on_the_build


FORMATS = {".jfif": "JPEG", ".jpe": "JPEG", ".tga": "TGA", ".pcx": "PCX", ".dib": "DIB", ".pnm": "PPM", ".apng": "PNG"}


@pytest.mark.parametrize("form", ["folder", "zip", "tar"])
def test_suffixes_of_images_in_every_container(form, tmp_path):
    (tmp_path / "set").mkdir()
    for i, (suffix, name) in enumerate(FORMATS.items()):
        Image.new("RGB", (9, 9), (250, 0, 0)).save(tmp_path / "set" / f"{i}{suffix}", name)
    path = tmp_path / "set"
    if form == "zip":
        path = tmp_path / "set.zip"
        with zipfile.ZipFile(path, "w") as archive:
            for each in (tmp_path / "set").iterdir():
                archive.write(each, each.name)
    if form == "tar":
        path = tmp_path / "set.tar"
        with tarfile.open(path, "w") as archive:
            archive.add(tmp_path / "set", "set")
    source = source_of(path)
    assert len(source) == len(FORMATS)
    assert all(source[i][0][0].min() > 245 for i in range(len(source)))


@pytest.mark.parametrize("size", [(0, 8), (8, -1), (10**6, 10**6)])
@pytest.mark.parametrize("form", ["folder", "stream"])
def test_impossible_sizes_are_refused_before_anything_is_decoded(size, form, tmp_path, monkeypatch):
    path = pairs(tmp_path / "set")
    if form == "stream":
        path = tmp_path / "x.tar"
        path.write_bytes(shard()[0])
    monkeypatch.setattr("justimage.data.images.pixels", lambda *_: pytest.fail("decoded"))
    with pytest.raises(ValueError, match=rf"images cannot be cropped to {size[0]}x{size[1]}"):
        source_of(path, size, kind="stream" if form == "stream" else "images")


def parquet(path: Path, cells: list[dict], **columns) -> Path:
    import datasets

    features = datasets.Features({"image": {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}})
    table = datasets.Dataset.from_dict({"image": cells}, features=features)
    for name, values in columns.items():
        table = table.add_column(name, values)
    table.to_parquet(str(path))
    return path


@pytest.mark.parametrize("streaming", [False, True])
def test_cells_of_tables_name_no_files_elsewhere(streaming, tmp_path, monkeypatch):
    """A file beside the table is read, wherever the command runs; others are refused, links to them as well."""
    from justimage.data.tables import TableOptions

    table = tmp_path / "table"
    (table / "images").mkdir(parents=True)
    (table / "images" / "0.png").write_bytes(png(7))
    (tmp_path / "secret.png").write_bytes(png())
    (table / "link.png").symlink_to(tmp_path / "secret.png")
    monkeypatch.chdir(tmp_path)
    options = {"stream": StreamOptions(on=streaming), "table": TableOptions(image="image")}
    good = parquet(table / "good.parquet", [{"bytes": None, "path": "images/0.png"}, {"bytes": png(7), "path": "/x"}])
    source = source_of(good, **options)
    assert int((next(source.samples(0, 0))() if streaming else source[0])[0][0, 0, 0]) == 7
    for name in (str(tmp_path / "secret.png"), "../secret.png", "link.png", "secret.png"):
        path = parquet(table / "bad.parquet", [{"bytes": None, "path": name}])
        with pytest.raises(ValueError, match=r"row 0.*(names the file .* outside of|No such file)") as caught:
            source_of(path, **options)
        assert ("outside" in str(caught.value)) == (name != "secret.png")
    damaged = parquet(table / "damaged.parquet", [{"bytes": b"no image", "path": None}, {"bytes": b"", "path": None}])
    with pytest.raises(ValueError, match="row 0" if streaming else r"(?s)row 0: cannot identify.*row 1: the cell"):
        source_of(damaged, **options)


def test_the_end_of_a_command_is_heard(tmp_path):
    """A pipe whose command fails after the last byte is not a whole shard."""
    (tmp_path / "x.tar").write_bytes(shard()[0])

    def read(command: str) -> int:
        stream = open_shards(f"pipe:cat {tmp_path}/x.tar{command}", (8, 8), 3, StreamOptions(classes=3), "stop")
        return len(list(stream.read_pass(0)))

    assert read("") == MEMBERS
    with pytest.raises(UnreadableSample, match="exit 3"):  # on opening or at the end: the shard is read ahead
        read("; exit 3")
    assert os.listdir(tmp_path) == ["x.tar"]
