"""A part of the data that is never trained on: which one, and that nothing else changes."""

import numpy as np
import pytest
from conftest import jit_here

from justimage.data.held_out import chosen
from justimage.data.packing import pack
from justimage.data.sources import DataOptions, open_source
from justimage.data.spec import Source


def source_of(path, **options) -> Source:
    source = open_source(str(path), (8, 8), 1, DataOptions(**options))
    assert source.indexed is True
    return source


@pytest.fixture
def numbered(tmp_path):
    """200 images whose first pixel says which one it is."""
    x = np.random.default_rng(0).integers(0, 255, (200, 1, 8, 8), np.uint8)
    x[:, 0, 0, 0] = np.arange(200)
    path = tmp_path / "numbered.npz"
    np.savez(path, x=x, y=np.arange(200) % 2)
    return path


def numbers(source: Source) -> list[int]:
    return [int(source[i][0][0, 0, 0]) for i in range(len(source))]


def test_the_part_is_a_function_of_the_order_alone_and_grows_with_the_share():
    few, more = chosen(10_000, 0.02), chosen(10_000, 0.1)
    assert 150 < few.sum() < 250
    assert (few <= more).all()
    assert (chosen(10_000, 0.02) == few).all()
    assert chosen(3, 0.001).sum() == 1
    with pytest.raises(ValueError, match="leaves nothing to train on: there are 1 samples"):
        chosen(1, 0.5)


def test_what_is_trained_on_and_what_is_held_out_are_the_whole_and_share_nothing(numbered, tmp_path):
    whole, kept = source_of(numbered), source_of(numbered, held_out=0.1)
    assert kept.held_out is not None
    ours, theirs = numbers(kept), numbers(kept.held_out)
    assert sorted(ours + theirs) == list(range(200))
    assert 5 < len(theirs) < 40
    labels, of_held = kept.all_labels(), kept.held_out.all_labels()
    assert labels is not None
    assert of_held is not None
    assert labels.tolist() == [n % 2 for n in ours]
    assert of_held.tolist() == [n % 2 for n in theirs]
    assert kept.name(0) == whole.name(ours[0])
    packed = pack(whole, tmp_path / "pack")
    again = source_of(packed.folder, held_out=0.1)
    assert again.held_out is not None
    assert numbers(again.held_out) == theirs
    assert again.content() == kept.content() != whole.content()


def test_without_a_held_out_part_the_source_is_what_it_was(numbered):
    whole, none = source_of(numbered), source_of(numbered, held_out=0.0)
    assert none.held_out is None
    assert type(none) is type(whole)
    assert none.content() == whole.content()
    assert none.fingerprint() == whole.fingerprint()


def test_crops_hold_out_whole_samples(tmp_path):
    """Two crops of one field overlap: held out are all of its crops, or none."""
    x = np.random.default_rng(0).normal(size=(40, 1, 9, 8)).astype(np.float32)
    np.save(tmp_path / "fields.npy", x)
    kept = source_of(tmp_path / "fields.npy", held_out=0.2, crop=(8, 8))
    assert kept.held_out is not None
    assert len(kept) + len(kept.held_out) == 80
    assert len(kept.held_out) % 2 == 0


def test_what_cannot_be_held_out_is_refused(tmp_path, monkeypatch, capsys, numbered):
    for held_out, message in (("1.5", "held_out is 1.5"), ("0.999999", "leaves nothing to train on")):
        command = ["train", "mnist-demo", "--data", str(numbered), "--data-options.held-out", held_out]
        assert jit_here(*command, cwd=tmp_path, monkeypatch=monkeypatch) == 2
        assert message in capsys.readouterr().err
    with pytest.raises(ValueError, match="is a stream, whose samples cannot be told apart before they come"):
        open_source("https://example.org/train-0000.tar", (8, 8), 3, DataOptions(held_out=0.1))
    with pytest.raises(ValueError, match="a part of data is not packed"):
        pack(source_of(numbered, held_out=0.1), tmp_path / "part")
