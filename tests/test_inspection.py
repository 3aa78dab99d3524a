"""`jit data inspect`: what it counts, and that its sheet is what the network will see."""

import json

import numpy as np
import torch
from conftest import jit_here
from PIL import Image

from justimage.commands.inspection import inspect, sheet
from justimage.data.loader import batches, model_values
from justimage.data.sources import DataOptions, open_source
from justimage.data.spec import Source


def photos(folder) -> None:
    """Five images of two classes: one grey, one small, one lying, one twice, and one that is none."""
    generator = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (folder / name).mkdir(parents=True)

    def save(name: str, shape: tuple[int, ...], **kwargs) -> None:
        Image.fromarray(generator.integers(0, 255, shape, np.uint8)).save(folder / name, **kwargs)

    exif = Image.Exif()
    exif[274] = 8
    save("cat/a.png", (20, 30, 3))
    save("cat/grey.png", (24, 24))
    save("cat/small.png", (8, 20, 3))
    save("dog/lying.png", (40, 20, 3), exif=exif)
    (folder / "dog" / "twice.png").write_bytes((folder / "cat" / "a.png").read_bytes())
    (folder / "dog" / "none.png").write_bytes(b"nothing")


def test_the_report_counts_what_is_there(tmp_path):
    photos(tmp_path / "set")
    source = open_source(str(tmp_path / "set"), (16, 16), 3, DataOptions(on_error="skip"))
    report = inspect(source)
    assert (report.samples, report.looked_at) == (5, 5)
    assert report.spec.classes == ("cat", "dog")
    assert dict(report.counts) == {0: 3, 1: 2}
    assert report.upsampled == ["cat/small.png"]
    assert report.turned == 1
    assert (20, 40) in report.sizes  # upright
    assert dict(report.kinds) == {"PNG RGB": 4, "PNG L": 1}
    assert report.duplicates == [("dog/twice.png", "cat/a.png")]
    assert list(report.unreadable) == ["dog/none.png"]
    assert isinstance(source, Source)
    raw = np.stack([source[i][0] for i in range(5)]).astype(float)
    np.testing.assert_allclose(report.mean, raw.mean((0, 2, 3)))
    np.testing.assert_allclose(report.std, raw.std((0, 2, 3)))
    assert (report.low.tolist(), report.high.tolist()) == (raw.min((0, 2, 3)).tolist(), raw.max((0, 2, 3)).tolist())


def test_of_many_samples_some_are_looked_at_and_that_is_said(tmp_path, monkeypatch, capsys):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(500, 1, 8, 8)))
    arguments = ["data", "inspect", "x.npy", "--at-most", "50"]
    assert jit_here(*arguments, cwd=tmp_path, monkeypatch=monkeypatch) == 0
    assert "500 (50 of them looked at)" in capsys.readouterr().out


def test_the_command_writes_a_sheet_and_lists_everything(tmp_path, monkeypatch, capsys):
    photos(tmp_path / "set")
    arguments = ["data", "inspect", "set", "--size", "16"]
    assert jit_here(*arguments, cwd=tmp_path, monkeypatch=monkeypatch) == 0
    out = capsys.readouterr().out
    for text in ("2, 2 to 3 each: cat 3, dog 2", "dog/none.png", "dog/twice.png = cat/a.png", "1 as EXIF says"):
        assert text in out
    assert Image.open(tmp_path / "inspect" / "contact-sheet.png").size[0] > 100
    found = json.loads((tmp_path / "inspect" / "inspection.json").read_text())
    assert found["classes"] == {"cat": 3, "dog": 2}
    assert jit_here("data", "inspect", "nowhere", "--out", "new", cwd=tmp_path, monkeypatch=monkeypatch) == 2
    assert not (tmp_path / "new").exists()
    assert jit_here("data", "inspect", "set", "--out", "set/cat/a.png", cwd=tmp_path, monkeypatch=monkeypatch) == 2
    assert "cannot be made" in capsys.readouterr().err


def test_the_sheet_is_what_training_sees(tmp_path):
    """The first samples of training in their order, with its flips; its pixels are the model's values."""
    photos(tmp_path / "set")
    source = open_source(str(tmp_path / "set"), (64, 64), 3, DataOptions(on_error="skip"))
    batch = next(batches(source, seed=0, start=0, batch_size=5, workers=0))
    x = model_values(batch.raw, source.spec, seed=0, positions=batch.positions, flip=True)
    plain = source.spec.encode(batch.raw)
    mirrored = [not torch.equal(a, b) for a, b in zip(x, plain, strict=True)]
    assert 0 < sum(mirrored) < 5
    assert all(torch.equal(a.flip(-1), b) for a, b, m in zip(x, plain, mirrored, strict=True) if m)
    pixels = np.asarray(sheet(source))
    first = np.moveaxis(pixels[:64, :64], -1, 0) / 127.5 - 1
    np.testing.assert_allclose(first, x[0].numpy(), atol=1 / 127)


def test_many_channels_make_a_compact_sheet(tmp_path):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(20, 9, 48, 64)))
    picture = sheet(open_source(str(tmp_path / "x.npy"), (8, 8), 3))
    assert max(picture.size) < 2500
