"""Sources: what is found, how it is cropped and scaled, and what is refused before the first step."""

import numpy as np
import pytest
import torch
from PIL import Image

from justimage.data.arrays import Arrays, digits, read_arrays
from justimage.data.files import find_files
from justimage.data.images import Images, centre_crop
from justimage.data.loader import batches, order
from justimage.data.sources import DataOptions, open_source
from justimage.data.spec import DataSpec
from justimage.training.loop import Training

GOLDEN_CROPS = np.load(__file__.replace("test_data.py", "goldens/centre-crop.npz"))


def folder(path, size, **options) -> Images:
    return Images(find_files([path]), size, **options)


def image(path, size=(20, 16), colour=(200, 30, 60)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path


@pytest.mark.parametrize("i", range(5))
def test_centre_crop_is_the_official_one(i):
    size = int(GOLDEN_CROPS[f"size_{i}"])
    cropped = centre_crop(Image.fromarray(GOLDEN_CROPS[f"in_{i}"]), (size, size))
    assert np.array_equal(cropped, GOLDEN_CROPS[f"out_{i}"])


@pytest.mark.parametrize("size", [(96, 160), (160, 96), (10, 30)])
@pytest.mark.parametrize("shape", [(300, 300), (500, 100), (40, 41), (96, 160)])
def test_rectangles_are_filled(size, shape):
    assert centre_crop(Image.new("L", shape), size).shape == size


def test_pixels_round_trip():
    spec = DataSpec.pixels((16, 16), 3)
    raw = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(2, 3, 16, 16)
    x = spec.encode(raw)
    assert (x.min(), x.max()) == (-1, 1)
    assert torch.equal(spec.decode(x), raw)


def test_fields_round_trip_and_are_measured():
    g = np.random.default_rng(0)
    x = (g.normal(size=(500, 2, 6, 7)) * [[[[3.0]], [[0.01]]]] + [[[[280.0]], [[-1.0]]]]).astype(np.float32)
    source = Arrays(x)
    encoded = source.spec.encode(torch.from_numpy(x))
    assert encoded.mean((0, 2, 3)).abs().max() < 1e-3
    torch.testing.assert_close(encoded.std((0, 2, 3)), torch.tensor([0.5, 0.5]), atol=1e-3, rtol=0)
    torch.testing.assert_close(source.spec.decode(encoded), torch.from_numpy(x))


def test_class_folders_flat_folders_and_train(tmp_path):
    for name in ("cat", "dog"):
        for i in range(3):
            image(tmp_path / "set" / "train" / name / f"{i}.png")
    source = folder(tmp_path / "set", (8, 8))
    assert (len(source), source.spec.classes) == (6, ("cat", "dog"))
    raw, label = source[5]
    assert (raw.shape, raw.dtype, label) == ((3, 8, 8), np.uint8, 1)
    assert tuple(raw[:, 0, 0]) == (200, 30, 60)
    flat = folder(tmp_path / "set" / "train" / "cat", (8, 12), channels=1)
    assert (len(flat), flat.spec.classes, flat[0][0].shape, flat[0][1]) == (3, (), (1, 8, 12), -1)


def test_folders_larger_than_memory_read_the_same(tmp_path):
    for i in range(4):
        image(tmp_path / f"{i}.png", colour=(i * 50, 0, 0))
    kept, read = (folder(tmp_path, (8, 8), memory_gb=gb) for gb in (1.0, 0.0))
    assert read.memory is None
    assert all(np.array_equal(kept[i][0], read[i][0]) for i in range(4))
    assert kept.fingerprint() == read.fingerprint()


@pytest.mark.parametrize("memory_gb", [1.0, 0.0])
def test_undecodable_images_stop_by_name_or_are_skipped_by_request(tmp_path, memory_gb):
    for i in range(4):
        image(tmp_path / f"{i}.png")
    (tmp_path / "1.png").write_bytes(b"not an image")
    whole = image(tmp_path / "5.jpg", (64, 64)).read_bytes()
    (tmp_path / "5.jpg").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"(?s)--data-options.on-error skip.*1\.png"):
        folder(tmp_path, (8, 8), memory_gb=memory_gb)
    source = folder(tmp_path, (8, 8), memory_gb=memory_gb, on_error="skip")
    assert len(source) == 3
    assert set(source.skipped) == {"1.png", "5.jpg"}
    assert "unreadable, skipped" in source.describe()


def test_images_damaged_inside_are_found_when_their_turn_comes(tmp_path):
    """Too many for memory: only their headers and ends are looked at before."""
    for i in range(3):
        Image.fromarray(np.random.default_rng(i).integers(0, 255, (64, 64, 3), np.uint8)).save(tmp_path / f"{i}.png")
    whole = bytearray((tmp_path / "1.png").read_bytes())
    whole[len(whole) // 2] ^= 0xFF
    (tmp_path / "1.png").write_bytes(whole)
    strict, lenient = (folder(tmp_path, (8, 8), memory_gb=0, on_error=policy) for policy in ("stop", "skip"))
    with pytest.raises(ValueError, match=r"1\.png of .* cannot be decoded"):
        strict[1]
    assert np.array_equal(lenient[1][0], lenient[2][0])
    assert len(lenient.skipped) == 1


def test_images_of_every_mode_become_what_is_meant(tmp_path):
    """Grey, palette, transparent, 16-bit and CMYK images of one colour, and one that lies on its side."""
    red, half = (255, 0, 0), 32768
    Image.new("L", (9, 9), 100).save(tmp_path / "grey.png")
    Image.new("RGB", (9, 9), red).quantize(4).save(tmp_path / "palette.png")
    Image.new("RGBA", (9, 9), (*red, 0)).save(tmp_path / "clear.png")
    Image.new("RGBA", (9, 9), (0, 0, 0, 128)).save(tmp_path / "shade.png")
    Image.fromarray(np.full((9, 9), half, np.uint16)).save(tmp_path / "deep.png")
    Image.new("CMYK", (9, 9), (0, 255, 255, 0)).save(tmp_path / "ink.jpg", quality=100)
    side = Image.new("RGB", (20, 10), red)
    side.paste((0, 0, 255), (0, 0, 10, 10))  # blue left, red right; upright: blue above
    exif = Image.Exif()
    exif[274] = 6
    side.save(tmp_path / "side.png", exif=exif)
    expected = {
        "grey.png": (100, 100, 100),
        "palette.png": red,
        "clear.png": (255, 255, 255),
        "shade.png": (127, 127, 127),
        "deep.png": (128, 128, 128),
        "ink.jpg": (255, 0, 0),
    }
    source = folder(tmp_path, (8, 8))
    seen = dict(zip(source.files.names, (source[i][0] for i in range(len(source))), strict=True))
    for name, colour in expected.items():
        assert np.abs(seen[name][:, 4, 4].astype(int) - colour).max() <= 3, name
    above, below = seen["side.png"][:, 1, 4], seen["side.png"][:, 6, 4]
    assert above[2] > 200 and below[0] > 200
    clear = folder(tmp_path, (8, 8), channels=4)
    assert clear[source.files.names.index("clear.png")][0][3, 4, 4] == 0
    for memory_gb in (1.0, 0.0):
        with pytest.raises(ValueError, match=r"(?s)1 of 7 images.*deep\.png: it has 16 bits"):
            folder(tmp_path, (8, 8), deep="stop", memory_gb=memory_gb)
    Image.fromarray(np.ones((9, 9), np.float32)).save(tmp_path / "real.tif")
    for memory_gb in (1.0, 0.0):
        with pytest.raises(ValueError, match=r"real\.tif: it has 32 bits"):
            folder(tmp_path, (8, 8), memory_gb=memory_gb)


def test_a_class_may_be_called_train(tmp_path):
    for name in ("bus", "train", "car"):
        image(tmp_path / name / "a.png")
    assert folder(tmp_path, (8, 8)).spec.classes == ("bus", "car", "train")


def test_folders_that_cannot_be_used(tmp_path):
    image(tmp_path / "mixed" / "a.png")
    image(tmp_path / "mixed" / "cat" / "b.png")
    (tmp_path / "empty" / "sub").mkdir(parents=True)
    for path, message in [
        ("none", "does not exist"),
        ("mixed", "1 images and 1 folders of images"),
        ("empty", "holds no samples"),
        ("mixed/a.png", "is no folder, and no file that is known"),
    ]:
        with pytest.raises(ValueError, match=message):
            open_source(str(tmp_path / path), (8, 8), 3, DataOptions())


ARRAYS = {
    "complex": (np.zeros((4, 1, 8, 8), np.complex64), None, "complex64"),
    "objects": (np.zeros((4, 1, 8, 8), object), None, "object"),
    "rank": (np.zeros((4, 8), np.float32), None, r"\(4, 8\)"),
    "channels last": (np.zeros((4, 32, 32, 3), np.uint8), None, "channels last"),
    "none": (np.zeros((0, 1, 8, 8), np.float32), None, "holds no samples"),
    "constant": (np.ones((4, 1, 8, 8), np.float32), None, "never changes"),
    "labels": (np.random.rand(4, 1, 8, 8), np.array([0, 1, -1, 0]), "label -1 of sample 2"),
    "too few labels": (np.random.rand(4, 1, 8, 8), np.array([0, 1]), r"\(2,\)"),
    "fractional labels": (np.random.rand(2, 1, 8, 8), np.array([0.5, 1.0]), "float64"),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_that_cannot_be_used(name):
    x, y, message = ARRAYS[name]
    with pytest.raises(ValueError, match=message):
        Arrays(x, y)


def test_values_that_are_not_finite_are_found(tmp_path):
    x = np.random.rand(50, 2, 8, 8).astype(np.float32)
    x[41, 1, 3, 3] = np.nan
    np.save(tmp_path / "x.npy", x)
    with pytest.raises(ValueError, match=r"1 values.*the first in sample 41, channel channel1, at \(3, 3\)"):
        open_source(str(tmp_path / "x.npy"), (8, 8), 2)


def test_array_files(tmp_path):
    x, y = np.random.rand(6, 4, 8, 8).astype(np.float32), np.arange(6) % 2
    np.save(tmp_path / "x.npy", x)
    np.savez(tmp_path / "xy.npz", x=x, y=y, classes=np.array(["low", "high"]))
    np.savez(tmp_path / "other.npz", images=x)
    (tmp_path / "half.npy").write_bytes((tmp_path / "x.npy").read_bytes()[:400])
    np.save(tmp_path / "objects.npy", np.array([{}, {}], dtype=object), allow_pickle=True)
    plain, labelled = (read_arrays(tmp_path / name) for name in ("x.npy", "xy.npz"))
    assert (len(plain), plain.spec.classes, plain[0][1]) == (6, (), -1)
    assert (labelled.spec.classes, labelled[3][1]) == (("low", "high"), 1)
    assert plain.spec.shape == (4, 8, 8)
    for name, message in [
        ("other.npz", "an array called x"),
        ("half.npy", "cannot be read"),
        ("objects.npy", "cannot"),
    ]:
        with pytest.raises(ValueError, match=message):
            open_source(str(tmp_path / name), (8, 8), 3)


def test_digits_are_real():
    source = digits()
    assert (len(source), source.spec.shape, source.spec.classes) == (5000, (1, 28, 28), tuple("0123456789"))
    assert 25 < np.asarray(source.x).mean() < 45


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_batches_are_the_same_for_any_number_of_processes_and_from_any_position(workers):
    source = Arrays(np.random.rand(37, 1, 4, 4).astype(np.float32), np.arange(37))

    def take(count, **kwargs):
        reader = batches(source, seed=1, batch_size=12, workers=workers, **kwargs)
        out = [next(reader) for _ in range(count)]
        reader.close()
        return out

    alone = take(8, start=0)
    pairs = zip(take(8, start=0, rank=0, world=2), take(8, start=0, rank=1, world=2), strict=True)
    for one, (left, right) in zip(alone, pairs, strict=True):
        assert torch.equal(one.raw, torch.cat((left.raw, right.raw)))
        assert list(one.indices) == [*left.indices, *right.indices]
    resumed = take(3, start=5 * 12)
    assert all(
        torch.equal(a.raw, b.raw) and a.positions == b.positions for a, b in zip(alone[5:], resumed, strict=True)
    )
    with pytest.raises(ValueError, match="does not split over 5"):
        take(1, start=0, world=5)


@pytest.mark.parametrize("count", [1, 2, 3, 10, 64, 1000, 10**12])
def test_the_order_visits_every_sample_once_an_epoch(count):
    if count <= 1000:
        epochs = [order(3, range(e * count, (e + 1) * count), count) for e in range(3)]
        assert all(sorted(epoch) == list(range(count)) for epoch in epochs)
        assert count < 10 or not np.array_equal(epochs[0], epochs[1])
    far = 7 * count + 5
    parts = [order(3, range(far + i, far + i + 4), count) for i in range(0, 64, 4)]
    assert np.array_equal(np.concatenate(parts), order(3, range(far, far + 64), count))


def test_images_are_mirrored_and_fields_are_not():
    fields = DataSpec((8, 8), ("t",), (0.0,), (1.0,))
    for spec, default, asked in ((DataSpec.pixels((8, 8), 3), True, True), (fields, False, True)):
        assert Training().flips(spec) == default
        assert Training(flip_fields=True).flips(spec) == asked
    assert not Training(flip=False).flips(DataSpec.pixels((8, 8), 3))


def test_the_order_is_a_fair_shuffle():
    """All 24 orders of four samples come equally often, and neighbours of a thousand do not stay together."""
    epochs = 24_000
    shuffles = order(0, range(4 * epochs), 4).reshape(epochs, 4)
    counts = np.unique(shuffles @ [1000, 100, 10, 1], return_counts=True)[1]
    assert len(counts) == 24
    assert ((counts - 1000) ** 2 / 1000).sum() < 60  # chi-square, 23 degrees of freedom: 1 in 30,000
    steps = np.diff(order(1, range(1000), 1000))
    assert abs(np.abs(steps).mean() - 1000 / 3) < 30  # of uniform numbers
    assert (np.abs(steps) == 1).sum() < 12


def test_memory_of_batches_is_used_again_only_when_nobody_looks_at_it():
    source = Arrays(np.random.default_rng(0).normal(size=(64, 1, 4, 4)).astype(np.float32))
    reader = batches(source, seed=0, start=0, batch_size=8, workers=1)
    kept = [next(reader).raw[2:] for _ in range(6)]  # views, their batches forgotten
    copies = [each.clone() for each in kept]
    for _ in range(20):
        next(reader)
    assert all(torch.equal(a, b) for a, b in zip(kept, copies, strict=True))
    places = {next(reader).raw.data_ptr() for _ in range(20)}
    assert len(places) < 8
    reader.close()


def test_class_names():
    spec = DataSpec.pixels((8, 8), 3, ["airplane", "frog", "fog"])
    assert [spec.label("frog"), spec.label(2), spec.label("1")] == [1, 2, 1]
    with pytest.raises(ValueError, match=r"no class 'forg'; the nearest are fog, frog$"):
        spec.label("forg")
