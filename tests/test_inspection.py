"""`jit data inspect`: what it counts, and that its sheet is what the network will see."""

import json
import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import jit_here
from PIL import Image

from justimage.commands.inspection import inspect, sheet
from justimage.data.containers import written_by_justimage
from justimage.data.loader import batches, model_values
from justimage.data.sources import DataOptions, open_source
from justimage.data.spec import DataSpec
from justimage.sampling.pictures import CAPTION, ELLIPSIS, GAP, MARGIN, TITLE, WIDEST, grid, save, shorten


def photos(folder) -> None:
    """Five images of two classes: one grey, one small, one on its side, one twice, and one that is not an image."""
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
    assert source.indexed is True
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
    assert "set/cat/a.png cannot be written" in capsys.readouterr().err


def test_the_sheet_is_what_training_sees(tmp_path):
    """The first samples of training in their order, with its flips; its pixels are the model's values."""
    photos(tmp_path / "set")
    source = open_source(str(tmp_path / "set"), (64, 64), 3, DataOptions(on_error="skip"))
    batch = next(batches(source, seed=0, start=0, batch_size=5, workers=0))
    x, _ = model_values(batch.raw, batch.y, source.spec, seed=0, positions=batch.positions, mirror=True)
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


@pytest.fixture
def pets(tmp_path, monkeypatch) -> Path:
    """A folder of two classes, in which we are."""
    generator = np.random.default_rng(0)
    for i in range(8):
        path = tmp_path / "pets" / ("cat", "dog")[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 255, (32, 32, 3), np.uint8)).save(path)
    return tmp_path / "pets"


def test_outputs_never_become_inputs(pets, monkeypatch, capsys):
    """Inspected, trained on, sampled, packed and resumed, all inside the folder of the data."""

    def jit(command: str) -> None:
        assert jit_here(*shlex.split(command), cwd=pets, monkeypatch=monkeypatch) == 0, capsys.readouterr().err

    before = open_source(str(pets), (32, 32), 3).fingerprint()
    tiny = (
        "--network.width 32 --network.depth 2 --network.heads 2 --network.context-start 1 --device cpu "
        "--training.batch-size 8 --training.duration-nimg 16 --training.ema-decays 0.9 "
        "--report.tick-nimg 8 --report.save-nimg 16 --report.sample-nimg 16 --report.preview-steps 1 "
        "--report.evaluate-nimg 0"
    )
    jit("data inspect . --size 32")
    jit(f"train cifar10 --data . {tiny}")
    jit("sample runs/cifar10 --steps 1 --count 1")
    jit("data pack . --size 32 --out small")
    for written in ("inspect", "runs/cifar10", "samples", "small"):
        assert written_by_justimage(pets / written), written
        assert not written_by_justimage(pets / "cat")
    source = open_source(str(pets), (32, 32), 3)
    assert source.indexed is True
    assert (len(source), source.spec.classes, source.fingerprint()) == (8, ("cat", "dog"), before)
    outputs = "; not looked into, as justimage wrote them: inspect/, runs/cifar10/, samples/ and 1 more"
    assert source.describe().endswith(outputs)
    jit("data inspect . --size 32")
    jit(f"train cifar10 --data . {tiny}")
    assert len(open_source(str(pets / "small"), (32, 32), 3)) == 8  # type: ignore[arg-type]


def test_only_what_justimage_wrote_is_left_out(tmp_path):
    """A class may hold a file of one of these names; and a folder that the user names is looked into."""
    for name, facts in (("cat", '{"recipe": "soup"}'), ("inspect", '{"justimage": "0.1.0"}')):
        (tmp_path / name).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / name / "a.png")
        (tmp_path / name / "recipe.json").write_text(facts)
    for path, count in ((tmp_path, 1), (tmp_path / "inspect", 1)):
        source = open_source(str(path), (8, 8), 3)
        assert source.indexed is True
        assert len(source) == count
    seeds = ", ".join(map(str, range(30_000)))
    for text in (f'{{"justimage": "0.1.0", "seeds": [{seeds}]}}', f'{{"seeds": [{seeds}], "justimage": "0.1.0"}}'):
        (tmp_path / "cat" / "samples.json").write_text(text)
        assert written_by_justimage(tmp_path / "cat")
    with pytest.raises(ValueError, match=r"it is empty; not looked into, as justimage wrote them: cat/, inspect/$"):
        open_source(str(tmp_path), (8, 8), 3)


def test_no_sheet_is_written_among_the_data(pets, monkeypatch, capsys):
    for out in (".", "cat"):
        assert jit_here("data", "inspect", ".", "--size", "8", "--out", out, cwd=pets, monkeypatch=monkeypatch) == 2
        assert f"{out} holds images or arrays" in capsys.readouterr().err
    assert not list(pets.rglob("contact-sheet.png"))


def test_mirroring_is_the_specs_unless_it_is_asked_for(tmp_path):
    photos(tmp_path / "set")
    source = open_source(str(tmp_path / "set"), (64, 64), 3, DataOptions(on_error="skip"))
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(20, 1, 48, 64)))
    arrays = open_source(str(tmp_path / "x.npy"), (8, 8), 3)
    for each, auto in ((source, True), (arrays, False)):
        on, off = (np.asarray(sheet(each, mirror=mirror)) for mirror in (True, False))
        assert not np.array_equal(on, off)
        assert np.array_equal(np.asarray(sheet(each)), on if auto else off)


def test_conditions_are_in_the_report(tmp_path, monkeypatch, capsys):
    generator = np.random.default_rng(0)
    np.savez(tmp_path / "x.npz", x=generator.normal(size=(20, 1, 8, 8)), angle=generator.normal(7, 2, 20), other=[1])
    arguments = ["data", "inspect", "x.npz", "--data-options.conditions", "angle"]
    assert jit_here(*arguments, cwd=tmp_path, monkeypatch=monkeypatch) == 0
    out = capsys.readouterr().out
    assert "condition   angle (a vector of 1): mean " in out
    assert "not used: other (--data-options.conditions other)" in " ".join(out.split())
    found = json.loads((tmp_path / "inspect" / "inspection.json").read_text())
    assert [each["name"] for each in found["conditions"]] == ["angle"]


def test_captions_are_shortened_to_something_that_can_be_read():
    spec = DataSpec.pixels((8, 8), 1)
    assert shorten("golden retriever", 120) == "golden retriever"
    short = shorten("golden retriever", 70)
    assert short.endswith(ELLIPSIS) and len(short) > 6 and short[:-1] == "golden retriever"[: len(short) - 1]
    assert shorten("golden retriever", 1) == f"gol{ELLIPSIS}"
    samples = torch.zeros(4, 1, 8, 8, dtype=torch.uint8)
    narrow = grid(samples, spec, 4, captions=["cat"] * 4)
    wide = grid(samples, spec, 4, captions=["cat", "golden retriever", "dog", "a name that goes on and on and on"])
    assert narrow.width == 4 * 56 + 3 * GAP
    assert narrow.width < wide.width <= 4 * (CAPTION + MARGIN) + 3 * GAP
    assert grid(samples, spec, 4, row_titles=["a name that goes on and on " * 10]).width < 4 * 58 + TITLE + 20


@pytest.mark.parametrize("titles", [(), ("raw", "ema")])
def test_grids_are_not_wider_than_a_screen_can_show(titles):
    """Longer rows continue below; a single sample may be too wide, too."""
    spec = DataSpec.pixels((56, 56), 1)
    samples = (
        torch.arange(300, dtype=torch.float32).remainder(251).to(torch.uint8).view(300, 1, 1, 1).expand(300, 1, 56, 56)
    )
    picture = grid(samples, spec, 150, row_titles=titles, column_titles=[str(i) for i in range(150)])
    assert WIDEST / 2 < picture.width <= WIDEST
    lines = (picture.height + GAP) // (18 + 56 + GAP)
    assert lines == 6  # each row of 150 in three of 50
    left = picture.width - (50 * 58 - GAP)
    pixels = np.asarray(picture)
    for i in (0, 49, 50, 149, 150, 299):
        line, place = divmod(i, 50)
        shown = pixels[18 + line * (18 + 58) + 20, left + place * 58 + 20]
        assert (shown == i % 251).all()
    signal = DataSpec((9000,), ("a",), (0.0,), (1.0,))
    assert grid(torch.zeros(2, 1, 9000), signal, 2).width <= WIDEST


def test_only_colour_is_shown_as_colour():
    samples = torch.randint(0, 255, (1, 3, 64, 64), dtype=torch.uint8)
    colour = DataSpec.pixels((64, 64), 3)
    assert grid(samples, colour, 1).size == (64, 64)
    grey = np.asarray(grid(samples, replace(colour, colour=False), 1))
    assert grey.shape == (64, 3 * 65 - 1, 3)
    assert (grey[..., 0] == grey[..., 1]).all()


def test_pictures_are_whole_or_absent(tmp_path):
    class Broken(Image.Image):
        def save(self, *args, **kwargs):
            raise OSError("No space left on device")

    save(Image.new("RGB", (4, 4), (9, 9, 9)), tmp_path / "new" / "a.png")
    with pytest.raises(OSError, match="No space"):
        save(Broken(), tmp_path / "new" / "a.png")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.png"]
    assert Image.open(tmp_path / "new" / "a.png").format == "PNG"
