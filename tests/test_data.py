"""Sources: what is found, how it is cropped and scaled, and what is refused before the first step."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from PIL import Image

from justimage.commands.inspection import inspect
from justimage.data.array_files import digits, read_arrays
from justimage.data.arrays import Arrays
from justimage.data.crops import Crops
from justimage.data.files import find_files
from justimage.data.images import Images, centre_crop
from justimage.data.loader import batches, model_values, order
from justimage.data.origin import Coordinate, Origin, Variable
from justimage.data.packing import Unfinished, pack
from justimage.data.sources import DataOptions, open_source
from justimage.data.spec import DataSpec, Given, Item, Source, Unreadable, UnreadableSample
from justimage.randomness import Purpose, uniforms
from justimage.training.settings import Training

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
    raw, y = source[5]
    assert (raw.shape, raw.dtype, y) == ((3, 8, 8), np.uint8, {"labels": 1})
    assert tuple(raw[:, 0, 0]) == (200, 30, 60)
    flat = folder(tmp_path / "set" / "train" / "cat", (8, 12), channels=1)
    assert (len(flat), flat.spec.classes, flat[0][0].shape, flat[0][1]) == (3, (), (1, 8, 12), {})


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
    """Too many for memory: only their headers and ends are checked beforehand."""
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
        ("mixed/a.png", "is neither a folder nor a file of a known kind"),
    ]:
        with pytest.raises(ValueError, match=message):
            open_source(str(tmp_path / path), (8, 8), 3, DataOptions())


ARRAYS = {
    "complex": (np.zeros((4, 1, 8, 8), np.complex64), None, "complex64"),
    "objects": (np.zeros((4, 1, 8, 8), object), None, "object"),
    "rank": (np.zeros((4, 8), np.float32), None, r"\(4, 8\)"),
    "channels last": (np.zeros((4, 32, 32, 3), np.uint8), None, "channels seem to come last"),
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
    assert (len(plain), plain.spec.classes, plain[0][1]) == (6, (), {})
    assert (labelled.spec.classes, labelled[3][1]) == (("low", "high"), {"labels": 1})
    assert plain.spec.shape == (4, 8, 8)
    for name, message in [
        ("other.npz", "an array called x"),
        ("half.npy", "cannot be read"),
        ("objects.npy", "cannot"),
    ]:
        with pytest.raises(ValueError, match=message):
            open_source(str(tmp_path / name), (8, 8), 3)


X = np.random.default_rng(0).normal(size=(6, 4, 8, 8)).astype(np.float32)
Y = np.arange(6) % 2
WRONG_FILES = {
    **{
        name: ({"x": X, name: Y}, rf"holds {name}, but labels are called y: save it as np.savez\(..., x=x, y={name}\)")
        for name in ("labels", "label", "targets", "Y")
    },
    "floats": ({"x": X, "y": Y / 2}, r"labels y of .* are \(6,\) float64; \(6,\) whole numbers"),
    "NaN": ({"x": X, "y": np.full(6, np.nan)}, "float64"),
    "booleans": ({"x": X, "y": Y > 0}, "bool"),
    "texts": ({"x": X, "y": Y.astype(str)}, "<U21"),
    "too many": ({"x": X, "y": np.arange(7)}, r"\(7,\) int64"),
    "one hot": ({"x": X, "y": np.eye(6, dtype=int)}, r"\(6, 6\) int64"),
    "objects": ({"x": X, "y": np.array([None] * 6)}, "y cannot be read: it holds Python objects"),
    "fewer classes": ({"x": X, "y": Y, "classes": np.array(["a"])}, "label 1 of sample 1 .* there are 1 classes"),
    "one class twice": ({"x": X, "y": Y, "classes": np.array(["a", "a"])}, "has the name 'a' twice"),
    "classes of numbers": ({"x": X, "y": Y, "classes": np.array([0.5, 1.5])}, "a name for each class"),
    "classes of objects": ({"x": X, "y": Y, "classes": np.array([{}, {}])}, "classes cannot be read: it holds Python"),
    "x of objects": ({"x": np.array([{}, {}])}, "x cannot be read: it holds Python objects"),
    "x of times": ({"x": X.astype("M8[s]")}, "datetime64"),
    "x of records": ({"x": np.zeros((6, 1, 8), [("a", int)])}, "has the type"),
    "x of texts": ({"x": X.astype(str)}, "has the type <U"),
    "x of booleans": ({"x": X > 0}, "has the type bool"),
    "an empty axis": ({"x": X[..., :0]}, "holds no samples"),
}


@pytest.mark.parametrize("name", WRONG_FILES)
def test_array_files_that_cannot_be_used_say_what_is_expected(name, tmp_path):
    arrays, message = WRONG_FILES[name]
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(ValueError, match=message) as caught:
        read_arrays(tmp_path / "x.npz")
    assert "allow_pickle" not in str(caught.value)


def test_headers_that_say_more_than_there_is_are_refused(tmp_path):
    np.save(tmp_path / "x.npy", X)
    whole = (tmp_path / "x.npy").read_bytes()
    for shape in (b"(7, 4, 8, 8)", b"(6000000000000, 4, 8, 8)", b"(6, 4, 8, -8)", b"(6, 4, 8, 8"):
        (tmp_path / "more.npy").write_bytes(
            whole.replace(b"(6, 4, 8, 8), }" + b" " * (len(shape) - 12), shape + b", }", 1)
        )
        with pytest.raises(ValueError, match=r"more\.npy"):
            open_source(str(tmp_path / "more.npy"), (8, 8), 4)
    for name, same in (("big", X.astype(">f4")), ("turned", np.asfortranarray(X))):
        np.save(tmp_path / f"{name}.npy", same)
        assert np.array_equal(read_arrays(tmp_path / f"{name}.npy")[3][0], X[3])


class Own(Source):
    """A source of the user's own, one of whose samples is changed."""

    spec = DataSpec.pixels((4, 4), 3, ["a", "b"])

    def __init__(self, wrong: Item):
        self.wrong = wrong

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int, /) -> Item:
        return self.wrong if index == 5 else (np.zeros((3, 4, 4), np.uint8), {"labels": np.array(index % 2)})

    def name(self, index: int) -> str:
        return f"photo {index}"

    def describe(self) -> str:
        return "8 photos"

    def fingerprint(self) -> str:
        return "photos"


GOOD = np.zeros((3, 4, 4), np.uint8)
WRONG_ITEMS = {
    "a label too large": ((GOOD, {"labels": np.int64(2)}), "photo 5 has the label 2; a whole number from 0 to 1"),
    "the null label": ((GOOD, {"labels": np.int64(-1)}), "photo 5 has the label -1"),
    "no label": ((GOOD, {}), "photo 5 comes with nothing; all samples need the same, which is labels"),
    "two labels": ((GOOD, {"labels": np.array([0, 1])}), r"labels of photo 5 is \(2,\), and that of photo \d \(\)"),
    "a fraction": ((GOOD, {"labels": np.float64(0.5)}), "has the label .*; a whole number"),
    "another shape": (
        (GOOD[:, :3], {"labels": np.int64(1)}),
        r"photo 5 is \(3, 3, 4\) uint8; the data say \(3, 4, 4\)",
    ),
    "another type": ((GOOD + 0.5, {"labels": np.int64(1)}), "photo 5 is .* float64; .* and photo . is uint8"),
}


@pytest.mark.parametrize("name", WRONG_ITEMS)
def test_a_sample_that_does_not_fit_is_named_before_it_reaches_the_network(name):
    wrong, message = WRONG_ITEMS[name]
    assert order(0, range(8), 8)[0] != 5
    with pytest.raises(UnreadableSample, match=message):
        next(batches(Own(wrong), seed=0, start=0, batch_size=8, workers=0))


def test_digits_are_real():
    source = digits()
    assert (len(source), source.spec.shape, source.spec.classes) == (5000, (1, 28, 28), tuple("0123456789"))
    assert 25 < np.asarray(source.x).mean() < 45
    assert source.spec.mirror is None  # a mirrored 3 is not a 3


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
    images, fields = DataSpec.pixels((8, 8), 3), DataSpec((8, 8), ("t",), (0.0,), (1.0,))
    assert [Training().mirrors(spec) for spec in (images, fields)] == [True, False]
    assert [Training(mirror="on").mirrors(spec) for spec in (images, fields)] == [True, True]
    assert [Training(mirror="off").mirrors(spec) for spec in (images, fields)] == [False, False]


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


def test_the_text_of_a_spec_never_changes():
    """Fingerprints of runs and packs are made of it: a version that changes it cannot resume what is there."""
    spec = DataSpec.pixels((8, 16), 1, ["a", "b"])
    assert spec.text() == (
        "DataSpec(size=(8, 16), channels=('grey',), mean=(127.5,), scale=(127.5,), dtype='uint8', "
        "classes=('a', 'b'), origin=None)"
    )
    origin = Origin(
        ("lat",), (Variable("t", (("level", 850.0),), (("units", "K"),)),), (Coordinate("lat", ("lat",), (1.0,)),)
    )
    assert DataSpec((1,), ("t",), (0.0,), (2.0,), origin=origin).text() == (
        "DataSpec(size=(1,), channels=('t',), mean=(0.0,), scale=(2.0,), dtype='float32', classes=(), "
        "origin=Origin(dims=('lat',), variables=(Variable(name='t', at=(('level', 850.0),), "
        "attributes=(('units', 'K'),)),), coordinates=(Coordinate(name='lat', dims=('lat',), values=(1.0,), "
        "attributes=()),), attributes=()))"
    )
    given = Given("angle", "vector", 1, mean=(0.0,), scale=(1.0,))
    assert replace(spec, given=(given,)).text() == f"{spec.text()[:-1]}, given=({given!r},))"
    assert replace(spec, mirror=None).text() == spec.text()


def test_specs_of_older_versions_are_read():
    """Without the fields that came later: images of pixels are mirrored along their last axis, as they were."""
    tokens = Given("text", "tokens", 2, 5, (0.0, 1.0), (1.0, 2.0))
    for spec in (
        DataSpec.pixels((8, 8), 3, ["a"]),
        replace(DataSpec.pixels((8, 8), 1), mirror=None),
        DataSpec((4,), ("u", "v"), (0.0, 1.0), (1.0, 1.0), given=(tokens,)),
    ):
        assert DataSpec.from_json(json.loads(json.dumps(asdict(spec)))) == spec
    for spec in (
        DataSpec.pixels((8, 8), 3, ["a"]),
        DataSpec.pixels((8, 8, 8), 1),
        DataSpec((4,), ("u",), (0.0,), (1.0,)),
    ):
        older = {name: value for name, value in asdict(spec).items() if name not in ("colour", "mirror", "given")}
        assert DataSpec.from_json(json.loads(json.dumps(older))) == spec


def test_colour_and_mirroring_are_statements_of_the_spec():
    pixels, noise = np.zeros((2, 3, 8, 8), np.uint8), np.random.rand(2, 3, 8, 8).astype(np.float32)
    specs = {
        "pixels": Arrays(pixels).spec,
        "three grey channels": Arrays(pixels, channels=("front", "side", "top")).spec,
        "numbers called colours": Arrays(noise, channels=("red", "green", "blue")).spec,
        "volumes": Arrays(np.zeros((2, 1, 8, 8, 8), np.uint8)).spec,
    }
    said = {name: (spec.colour, spec.mirror) for name, spec in specs.items()}
    assert said == {
        "pixels": (True, 1),
        "three grey channels": (False, 1),
        "numbers called colours": (False, None),
        "volumes": (False, None),
    }
    with pytest.raises(ValueError, match="no axis 2 to mirror"):
        replace(specs["pixels"], mirror=2)


def conditions(count: int = 40, size: tuple[int, ...] = (6, 8)) -> dict[str, np.ndarray]:
    """One of each kind, unscaled: two numbers, up to five tokens, a plane that is known in some places."""
    generator = np.random.default_rng(1)
    plane = 100 + 7 * generator.normal(size=(count, 1, *size))
    plane[generator.random(plane.shape) < 0.3] = np.nan
    mask = np.arange(5) < generator.integers(1, 6, (count, 1))
    tokens = np.where(mask[..., None], 3 + generator.normal(size=(count, 5, 2)), 1e6)  # what is masked does not count
    angle = np.stack([50 + 4 * generator.normal(size=count), np.full(count, 9.0)], 1)
    return {"angle": angle, "text": tokens, "text_mask": mask, "depth": plane.astype(np.float32)}


def with_conditions(count: int = 40, size: tuple[int, ...] = (6, 8)) -> Arrays:
    x = np.random.default_rng(0).normal(size=(count, 1, *size)).astype(np.float32)
    return Arrays(x, np.arange(count) % 3, given=conditions(count, size))


def test_conditions_of_each_kind_are_read_and_scaled():
    source, expected = with_conditions(), conditions()
    kinds = [("labels", "labels", 3, 0), ("angle", "vector", 2, 0), ("text", "tokens", 2, 5), ("depth", "planes", 1, 0)]
    assert list(source.spec.needs) == kinds
    assert "conditions angle (a vector of 2), text (up to 5 tokens of 2), depth (1 plane)" in source.describe()
    reader = batches(source, seed=0, start=0, batch_size=40, workers=1)
    batch = next(reader)
    reader.close()
    assert {name: (each.shape[1:], each.dtype) for name, each in batch.y.items()} == {
        "labels": ((), torch.int64),
        "angle": ((2,), torch.float32),
        "text": ((5, 2), torch.float32),
        "text_mask": ((5,), torch.bool),
        "depth": ((1, 6, 8), torch.float32),
    }
    for name, values in expected.items():
        np.testing.assert_array_equal(batch.y[name], values[batch.indices].astype(batch.y[name].numpy().dtype))
    assert batch.y["labels"].tolist() == (batch.indices % 3).tolist()

    x, y = model_values(batch.raw, batch.y, source.spec, seed=0, positions=batch.positions, mirror=False)
    assert torch.equal(x, source.spec.encode(batch.raw))
    assert torch.equal(y["labels"], batch.y["labels"]) and torch.equal(y["text_mask"], batch.y["text_mask"])
    depth = y["depth"][~y["depth"].isnan()]
    assert torch.equal(y["depth"].isnan(), batch.y["depth"].isnan())
    for values in (y["angle"][:, 0], y["text"][y["text_mask"]][:, 1], depth):
        assert abs(values.mean()) < 1e-4 and abs(values.std(correction=0) - 1) < 1e-3
    assert y["angle"][:, 1].eq(0).all()  # a feature that never changes


def test_conditions_are_part_of_the_fingerprint():
    source, same, other = (with_conditions() for _ in range(3))
    other.given.arrays["angle"] = other.given.arrays["angle"] + np.eye(40, 2)
    assert source.fingerprint() == same.fingerprint() != other.fingerprint()
    assert source.spec == same.spec
    for name, values in source.read(3, 5)[1][1].items():
        np.testing.assert_array_equal(values, source[4][1][name])


@pytest.mark.parametrize(("size", "axis"), [((8,), None), ((6, 8), None), ((6, 8), 0), ((4, 6, 8), 1)])
def test_planes_are_mirrored_with_x(size, axis):
    source = with_conditions(24, size)
    spec = replace(source.spec, mirror=axis)
    batch = next(batches(source, seed=3, start=0, batch_size=24, workers=0))
    plain, mirrored = (
        model_values(batch.raw, batch.y, spec, seed=3, positions=batch.positions, mirror=mirror)
        for mirror in (False, True)
    )
    flipped = torch.tensor([not torch.equal(a, b) for a, b in zip(plain[0], mirrored[0], strict=True)])
    assert 4 < flipped.sum() < 20
    assert torch.equal(flipped, uniforms(3, Purpose.FLIP, batch.positions) < 0.5)
    along = 1 + (len(size) - 1 if axis is None else axis)
    for a, b, turned in zip(plain[0], mirrored[0], flipped, strict=True):
        assert torch.equal(a.flip(along) if turned else a, b)
    for a, b, turned in zip(plain[1]["depth"], mirrored[1]["depth"], flipped, strict=True):
        torch.testing.assert_close(a.flip(along) if turned else a, b, equal_nan=True, rtol=0, atol=0)
    for name in ("labels", "angle", "text"):
        assert torch.equal(plain[1][name], mirrored[1][name])


@pytest.mark.parametrize("at", ["random", "centre"])
def test_planes_are_cropped_with_x(at):
    x = np.random.default_rng(0).normal(size=(3, 2, 6, 8))
    crops = Crops(Arrays(x, given={"same": x, "angle": np.arange(3.0)}), (2, 5), at)
    for index in range(len(crops)):
        raw, y = crops[index]
        assert raw.shape == (2, 2, 5)
        assert np.array_equal(raw, y["same"])
        assert y["angle"] == index // crops.places
    some = crops.read(1, len(crops))
    assert all(np.array_equal(raw, crops[i + 1][0]) for i, (raw, _) in enumerate(some))
    assert [y["angle"].item() for _, y in some] == [crops[i][1]["angle"].item() for i in range(1, len(crops))]


NO_CONDITIONS = {
    "shape": ({"q": np.zeros((4, 2, 3, 3))}, r"condition q of .* is \(4, 2, 3, 3\); with 4 samples it can be a vector"),
    "count": ({"q": np.zeros((3, 2))}, r"condition q of the array is \(3, 2\); .*planes \(4, P, 6, 8\)"),
    "tokens without a mask": ({"q": np.zeros((4, 5, 2))}, r"with a mask q_mask \(4, L\) of booleans"),
    "mask of another type": (
        {"q": np.zeros((4, 5, 2)), "q_mask": np.zeros((4, 5))},
        r"q_mask of .* is \(4, 5\) float64",
    ),
    "mask of another length": ({"q": np.zeros((4, 5, 2)), "q_mask": np.ones((4, 6), bool)}, r"q_mask .* is \(4, 6\)"),
    "mask alone": ({"q_mask": np.ones((4, 6), bool)}, "cannot be called 'q_mask'"),
    "texts": ({"q": np.array(["a", "b", "c", "d"])}, "the type <U1; numbers are needed"),
    "name": ({"my angle": np.zeros(4)}, "cannot be called 'my angle'"),
    "labels": ({"labels": np.zeros(4)}, "cannot be called 'labels'"),
    "missing": ({"q": np.array([[1, 2], [3, 4], [5, np.nan], [7, 8]])}, r"q of .* is nan in sample 2, at \(1,\)"),
    "endless": ({"q": np.full((4, 1, 6, 8), np.inf)}, r"q of .* is inf in sample 0, at \(0, 0, 0\).* or NaN where"),
}


@pytest.mark.parametrize("name", NO_CONDITIONS)
def test_conditions_that_cannot_be_used(name):
    given, message = NO_CONDITIONS[name]
    with pytest.raises(ValueError, match=message):
        Arrays(np.random.rand(4, 1, 6, 8), given=given)


def test_conditions_in_files_are_named(tmp_path):
    x = np.random.rand(40, 1, 6, 8)
    np.savez(tmp_path / "x.npz", x=x, **conditions())  # pyright: ignore[reportArgumentType]

    def found(*names: str, **options):
        return open_source(str(tmp_path / "x.npz"), (8, 8), 3, DataOptions(conditions=names, **options))

    some = found("depth", "text")
    assert [each.name for each in some.spec.given] == ["depth", "text"]
    assert some.describe().endswith("; not used: angle (--data-options.conditions angle)")
    none = found()
    assert none.spec.given == ()
    assert "angle, text, text_mask, depth (--data-options.conditions angle text depth)" in none.describe()
    assert "not used" not in found("angle", "text", "depth").describe()
    assert found("depth", crop=(2, 2))[0][1]["depth"].shape == (1, 2, 2)  # type: ignore[index]
    for names, message in [
        (("height",), "holds no condition height; besides x, y and classes it holds angle, text, text_mask, depth"),
        (("x",), "holds no condition x"),
    ]:
        with pytest.raises(ValueError, match=message):
            found(*names)
    np.save(tmp_path / "x.npy", x)
    (tmp_path / "folder").mkdir()
    np.save(tmp_path / "folder" / "0.npy", x[0])
    image(tmp_path / "images" / "a.png")
    for path, message in [
        ("x.npy", "a .npy, which holds one array"),
        ("folder", "is a folder or archive of arrays"),
        ("images", "--data-options.conditions is for arrays"),
    ]:
        with pytest.raises(ValueError, match=message):
            open_source(str(tmp_path / path), (8, 8), 3, DataOptions(conditions=("depth",)))
    with pytest.raises(ValueError, match="mnist has none"):
        open_source("mnist", (8, 8), 3, DataOptions(conditions=("depth",)))


def test_looking_neither_raises_nor_takes_another_sample(tmp_path):
    """Too many images for memory, one damaged inside; and arrays of which a file is gone."""
    for i in range(3):
        Image.fromarray(np.random.default_rng(i).integers(0, 255, (64, 64, 3), np.uint8)).save(tmp_path / f"{i}.png")
    whole = bytearray((tmp_path / "1.png").read_bytes())
    whole[len(whole) // 2] ^= 0xFF
    (tmp_path / "1.png").write_bytes(whole)
    for policy in ("stop", "skip"):
        source = folder(tmp_path, (8, 8), memory_gb=0, on_error=policy)
        looks = [source.look(i) for i in range(3)]
        assert [isinstance(found, Unreadable) for found in looks] == [False, True, False]
        assert looks[0][1] == {}  # type: ignore[index]
        assert source.name(1) == "1.png"
        assert not source.skipped
    with pytest.raises(UnreadableSample, match=r"1\.png of .* cannot be decoded"):
        folder(tmp_path, (8, 8), memory_gb=0)[1]
    (tmp_path / "arrays").mkdir()
    for i in range(3):
        np.save(tmp_path / "arrays" / f"{i}.npy", np.random.rand(1, 8, 8))
    source = open_source(str(tmp_path / "arrays"), (8, 8), 1)
    assert source.indexed is True
    (tmp_path / "arrays" / "2.npy").unlink()
    assert isinstance(source.look(2), Unreadable)
    assert source.name(2) == "2.npy"
    with pytest.raises(UnreadableSample, match=r"2\.npy of .* cannot be read"):
        source.read(1, 3)


class Waves(Source):
    """A source from outside: what it leaves out, it inherits from the protocol."""

    def __init__(self):
        self.spec = DataSpec((8,), ("wave",), (0.0,), (2.0,))

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int, /) -> Item:
        if index == 7:
            raise UnreadableSample("sample 7 is damaged")
        return np.sin(np.arange(8, dtype=np.float32) * index)[None], {}

    def describe(self) -> str:
        return "waves"

    def fingerprint(self) -> str:
        return "waves"


def test_a_source_of_ones_own(tmp_path):
    source = Waves()
    assert (source.name(3), source.file_facts(3), source.gaps, dict(source.skipped)) == ("sample 3", None, "", {})
    assert source.look(7) == Unreadable("sample 7 is damaged")
    assert [raw[0, 1] for raw, _ in source.read(1, 3)] == pytest.approx([np.sin(1), np.sin(2)])
    assert inspect(source).unreadable == {"sample 7": "sample 7 is damaged"}
    assert len(Crops(source, (4,))) == 100
    with pytest.raises(UnreadableSample):
        next(batches(source, seed=0, start=0, batch_size=20, workers=1))
    with pytest.raises(Unfinished, match="sample 7 is damaged"):
        pack(source, tmp_path / "pack")
    source.on_error = "skip"
    assert len(pack(source, tmp_path / "pack")) == 19
