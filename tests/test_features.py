"""Features: those fitted to the data, those of torch-fidelity, and those of any module."""

import json
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from justimage.data.array_files import digits
from justimage.data.arrays import Arrays
from justimage.data.spec import DataSpec
from justimage.disk.cache import cache_folder
from justimage.evaluation import pretrained
from justimage.evaluation.encoder import Decoder, Encoder, grids, shifted
from justimage.evaluation.features import EXTRACTORS, ModuleFeatures, open_features
from justimage.evaluation.fitted import Fit, fit_features, load_fitted
from justimage.evaluation.pretrained import inception

TINY = Fit(features=4, width=8, epochs=1, least=640, most=640, batch_size=32, lr=1e-2)


def blobs(shape: tuple[int, ...], count: int = 120, classes: int = 2, dtype: str = "float32", shift: float = 0.0):
    """Noise in which the class raises the mean of the sample."""
    random = np.random.default_rng(0)
    y = np.arange(count) % max(classes, 1)
    x = random.normal(size=(count, *shape)) + 2 * y.reshape(-1, *[1] * len(shape)) + shift
    x = np.clip(128 + 20 * x, 0, 255).astype(np.uint8) if dtype == "uint8" else x.astype(np.float32)
    return Arrays(x, y if classes else None)


def first(source, count: int = 16) -> torch.Tensor:
    return torch.from_numpy(np.stack([source[i][0] for i in range(count)]))


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("JUSTIMAGE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize("shape", [(1, 9, 7), (5, 8, 8), (2, 50), (1, 6, 5, 4), (3, 70, 40)])
@pytest.mark.parametrize("classes", [0, 2])
def test_features_are_fitted_to_any_shape_with_and_without_labels(shape, classes, empty_cache):
    source = blobs(shape, classes=classes)
    fitted = fit_features(source, TINY)
    features, logits = fitted(first(source))
    assert features.shape == (16, 4) and features.dtype == torch.float32 and features.isfinite().all()
    assert fitted.size == 4 and fitted.name.startswith("fit-4-")
    assert (logits is None) == (fitted.classes == 0) == (classes == 0)
    assert fitted.facts["held_out"] == 12 and fitted.facts["images_seen"] == 640
    json.dumps(fitted.facts)
    fitted.check(source.spec)
    if classes:
        assert logits is not None and logits.shape == (16, 2)
        assert fitted.facts["held_out_accuracy"] > 0.9  # the mean of so many values tells the classes apart
        assert 0.5 <= fitted.facts["chance"] <= 1
    else:
        assert fitted.facts["held_out_explained_variance"] < 1
        assert fitted.facts["chance"] == 0


def test_an_autoencoder_explains_what_samples_have_in_common(empty_cache):
    """Constant planes are one number each; so four features rebuild them, also of samples never seen."""
    values = np.random.default_rng(0).normal(size=(400, 2, 1, 1))
    source = Arrays(np.broadcast_to(values, (400, 2, 4, 4)).astype(np.float32))
    fitted = fit_features(source, replace(TINY, least=8000, most=8000))
    assert fitted.facts["held_out_explained_variance"] > 0.8
    noise = fit_features(blobs((2, 4, 4), count=400, classes=0), TINY)
    assert noise.facts["held_out_explained_variance"] < 0.4  # 32 independent numbers in four


def test_a_fit_is_a_function_of_data_and_recipe(empty_cache, monkeypatch, tmp_path):
    source = blobs((2, 8, 8), dtype="uint8")
    state = torch.get_rng_state()
    one = fit_features(source, TINY)
    again = fit_features(source, TINY, progress=lambda *_: pytest.fail("found in the cache, it is not fitted"))
    monkeypatch.setenv("JUSTIMAGE_CACHE", str(tmp_path / "another"))
    calls = []
    anew = fit_features(source, TINY, progress=lambda *each: calls.append(each))
    assert torch.equal(torch.get_rng_state(), state)
    assert calls[-1] == (640, 640, "fitting features: a classifier")
    for other in (again, anew):
        assert other.name == one.name and other.facts == one.facts
        for left, right in zip(one(first(source)), other(first(source)), strict=True):
            assert left is not None and right is not None and torch.equal(left, right)
    assert torch.equal(load_fitted(one.name)(first(source))[0], one(first(source))[0])
    others = [
        fit_features(source, replace(TINY, seed=1)),
        fit_features(source, replace(TINY, lr=2e-3)),
        fit_features(blobs((2, 8, 8), dtype="uint8", shift=0.5), TINY),
    ]
    source.spec = replace(source.spec, mirror=None)
    others.append(fit_features(source, TINY))
    assert len({one.name, *(each.name for each in others)}) == 5


def test_without_a_writable_cache_features_are_fitted_all_the_same(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("JUSTIMAGE_CACHE", str(tmp_path / "file"))
    name = fit_features(blobs((1, 8, 8)), TINY).name
    with pytest.raises(ValueError, match="cannot be read"):
        load_fitted(name)


def _other_recipe(folder: Path) -> None:
    kept = json.loads((folder / "facts.json").read_text())
    kept["recipe"]["lr"] = 0.5
    (folder / "facts.json").write_text(json.dumps(kept))


def _other_weights(folder: Path) -> None:
    other = fit_features(blobs((1, 8, 8)), replace(TINY, seed=9)).name
    (folder / "model.safetensors").write_bytes((folder.parent / other / "model.safetensors").read_bytes())


def _cut_weights(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-9])


def _no_facts(folder: Path) -> None:
    (folder / "facts.json").write_text("[]")


@pytest.mark.parametrize("damage", [_other_recipe, _other_weights, _cut_weights, _no_facts])
def test_a_damaged_cache_is_refused_and_fitted_anew(damage, empty_cache):
    source = blobs((1, 8, 8))
    one = fit_features(source, TINY)
    folder = cache_folder() / "features" / one.name
    damage(folder)
    with pytest.raises(ValueError, match=r"does not hold|cannot be read"):
        load_fitted(one.name)
    anew = fit_features(source, TINY)
    assert torch.equal(one(first(source))[0], anew(first(source))[0])
    load_fitted(one.name)


def test_features_of_a_sample_do_not_depend_on_its_batch_and_keep_nan(empty_cache):
    source = blobs((2, 12, 12))
    fitted = fit_features(source, TINY)
    raw = first(source)
    together, _ = fitted(raw)
    torch.testing.assert_close(torch.cat([fitted(row)[0] for row in raw.split(1)]), together, rtol=1e-5, atol=1e-5)
    raw[3, 1, 2, 2] = torch.nan
    features, logits = fitted(raw)
    assert logits is not None
    assert features[3].isnan().all() and logits[3].isnan().all()
    assert features.isnan().any(1).sum() == 1


def test_held_out_features_have_unit_variance(empty_cache):
    source = blobs((1, 8, 8), count=300, classes=0)
    fitted = fit_features(source, replace(TINY, held_out=0.999))  # all but one
    features, _ = fitted(first(source, 300))
    assert float(features.var(0, correction=0).mean()) == pytest.approx(1, abs=0.02)


@pytest.mark.slow
def test_real_digits_are_told_apart(empty_cache):
    fitted = fit_features(digits(), Fit(width=16, epochs=4, least=1))
    assert fitted.facts["held_out"] == 500
    assert fitted.facts["held_out_accuracy"] > 0.9
    assert fitted.facts["chance"] < 0.15


def test_what_cannot_be_fitted_is_refused(empty_cache):
    with pytest.raises(ValueError, match="have 19 samples; features are fitted to at least 20"):
        fit_features(blobs((1, 8, 8), count=19), TINY)
    with pytest.raises(ValueError, match="width of fitted features is 12; it must be a multiple of 8"):
        Fit(width=12)
    with pytest.raises(ValueError, match="epochs of fitted features is 0"):
        Fit(epochs=0)
    with pytest.raises(ValueError, match="held_out"):
        Fit(held_out=1.0)
    fitted = fit_features(blobs((1, 8, 8)), TINY)
    with pytest.raises(ValueError, match="was fitted to samples"):
        fitted.check(blobs((1, 9, 8)).spec)
    with pytest.raises(ValueError, match="was fitted to samples"):
        fitted.check(blobs((1, 8, 8), dtype="uint8").spec)


@pytest.mark.parametrize("size", [(1,), (5,), (3000,), (28, 28), (300, 17), (512, 512), (40, 33, 9)])
def test_grids_are_bounded_and_the_decoder_leads_back(size):
    """Whatever the size, the first grid is small, so that a sample costs about the same."""
    encoder, decoder = Encoder(2, size, 8, 3), Decoder(2, size, 8, 3)
    assert np.prod(grids(encoder.reduced)[0]) <= 512 and max(grids(encoder.reduced)[-1]) <= 4
    x = torch.randn(2, 2, *size)
    assert encoder(x).shape == (2, 3)
    assert decoder(encoder(x)).shape == encoder.reduce(x).shape == (2, 2, *encoder.reduced)


@pytest.mark.parametrize("size", [(3,), (30,), (14, 28), (14, 15, 5)])
def test_shifts_are_small_and_each_samples_own(size):
    grid = torch.stack(torch.meshgrid(*(torch.arange(float(length)) for length in size), indexing="ij"))
    moved = shifted(grid.expand(50, *grid.shape), torch.Generator().manual_seed(0))
    for axis, length in enumerate(size):
        inner = (moved - grid)[:, axis].movedim(axis + 1, 1)[:, length // 14 : length - length // 14].flatten(1)
        assert (inner == inner[:, :1]).all(), "one sample moves as a whole"
        assert set(inner[:, 0].tolist()) == set(range(-(length // 14), length // 14 + 1))


def test_any_module_gives_features():
    spec = DataSpec((4, 6), ("a", "b"), (1.0, 2.0), (2.0, 4.0))
    features = ModuleFeatures(nn.Identity(), "channel means", spec)
    assert (features.name, features.size, features.classes) == ("channel means", 2, 0)
    raw = torch.randn(5, 2, 4, 6)
    found, logits = features(raw)
    assert logits is None
    torch.testing.assert_close(found, spec.encode(raw).mean((2, 3)))
    assert ModuleFeatures(nn.Flatten(), "pixels", spec).size == 48
    features.check(spec)
    with pytest.raises(ValueError, match="looks at samples"):
        features.check(replace(spec, size=(4, 5)))
    with pytest.raises(ValueError, match="need a name"):
        ModuleFeatures(nn.Identity(), "", spec)
    with pytest.raises(ValueError, match=r"returns \(48,\) for 1 samples"):
        ModuleFeatures(nn.Flatten(0), "flat", spec)


def test_features_are_opened_by_name(empty_cache):
    assert list(EXTRACTORS) == ["fit", "inception", "dinov2", "clip"]
    source = blobs((1, 8, 8))
    assert open_features("fit", source, fit=TINY).name == fit_features(source, TINY).name
    with pytest.raises(ValueError, match="there are no features 'vgg'; there are fit, inception"):
        open_features("vgg")
    with pytest.raises(ValueError, match="no data to fit features to"):
        open_features("fit")
    with pytest.raises(ValueError, match="is not used"):
        open_features("fit", source, weights=Path("weights.pth"))
    with pytest.raises(ValueError, match=r"torch\.hub with its code, not from a file"):
        open_features("dinov2", weights=Path("weights.pth"))


def refused(path: Path) -> str:
    with pytest.raises(ValueError) as error:
        inception(path)
    assert str(path) in str(error.value)
    return str(error.value)


def test_files_that_are_not_inceptions_are_refused_before_torch_fidelity_is_imported(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", None)  # importing it fails
    how = "Get https://github.com/toshas/torch-fidelity/releases"
    said = refused(tmp_path / "absent.pth")
    assert said.startswith("there is no file") and how in said
    assert "--features-weights PATH or the variable JUSTIMAGE_INCEPTION" in said
    monkeypatch.setenv("JUSTIMAGE_INCEPTION", str(tmp_path / "absent.pth"))
    with pytest.raises(ValueError, match=r"which JUSTIMAGE_INCEPTION names, to read weights from"):
        inception()
    monkeypatch.delenv("JUSTIMAGE_INCEPTION")

    other = tmp_path / "other.pth"
    torch.save({"fc.weight": torch.zeros(1000, 2048)}, other)
    assert "another network: Conv2d_1a_3x3.conv.weight is missing" in refused(other)
    torch.save({"fc.weight": torch.zeros(1000, 2048), "Conv2d_1a_3x3.conv.weight": torch.zeros(32, 3, 3, 3)}, other)
    assert "fc.weight is (1000, 2048); torch-fidelity's Inception has (1008, 2048)" in refused(other)
    torch.save([torch.zeros(3)], other)
    assert "not a state dict" in refused(other)
    torch.save({"fc.weight": torch.zeros(100, 100)}, other)
    other.write_bytes(other.read_bytes()[:20_000])
    assert "truncated" in refused(other)
    other.write_bytes(b"PK\x03\x04 and nothing more")
    assert "truncated" in refused(other)

    class Code:
        def __reduce__(self):
            return (Path(tmp_path / "ran").touch, ())

    for zipped in (True, False):  # torch 1.5 and older wrote no archives
        torch.save({"fc.weight": Code()}, other, _use_new_zipfile_serialization=zipped)
        assert zipfile.is_zipfile(other) == zipped
        assert "is not read, since reading it could run code" in refused(other)
    assert not (tmp_path / "ran").exists()


def test_without_a_network_the_way_to_the_weights_is_told(tmp_path, monkeypatch):
    def offline(url: str, path: str, digest: str) -> None:
        raise OSError("Name or service not known")

    monkeypatch.delenv("JUSTIMAGE_INCEPTION", raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    for open_it in (inception, pretrained.clip):
        with pytest.raises(ValueError, match=r"not known\)\. Get https://.* with --features-weights PATH"):
            open_it()


def test_a_missing_extra_is_named(monkeypatch):
    monkeypatch.setattr(pretrained, "find_spec", lambda name: None)
    for open_it in (inception, pretrained.clip, pretrained.dinov2):
        with pytest.raises(ValueError, match=r"pip install 'justimage\[eval\]'"):
            open_it()


def test_clips_file_is_known_by_its_hash(tmp_path):
    (tmp_path / "other.pt").write_bytes(b"something else")
    with pytest.raises(ValueError, match="is not OpenAI's ViT-B/32: its SHA-256 begins with"):
        pretrained.clip(tmp_path / "other.pt")


@pytest.mark.slow
def test_inception_is_that_of_torch_fidelity(random_inception, tmp_path, monkeypatch):
    """The same features and logits from the same file, by path and by the environment; grey is repeated."""
    from torch_fidelity import feature_extractor_clip, feature_extractor_inceptionv3

    assert feature_extractor_inceptionv3.URL_INCEPTION_V3 == pretrained.INCEPTION_URL
    assert feature_extractor_clip.MODEL_URLS[pretrained.CLIP] == pretrained.CLIP_URL
    layers = ["2048", "logits_unbiased"]
    theirs = feature_extractor_inceptionv3.FeatureExtractorInceptionV3("inception", layers, str(random_inception))
    ours = inception(random_inception)
    monkeypatch.setenv("JUSTIMAGE_INCEPTION", str(random_inception))
    assert inception().name == ours.name == f"inception-2048-{ours.facts['weights']}"
    images = torch.randint(0, 256, (3, 3, 20, 24), dtype=torch.uint8)
    for found, expected in zip(ours(images), theirs(images), strict=True):
        assert found is not None and torch.equal(found, expected)
        assert found.std() > 0.01
    assert (ours.size, ours.classes) == (2048, 1008)
    grey = images[:, :1]
    torch.testing.assert_close(ours(grey)[0], theirs(grey.repeat(1, 3, 1, 1))[0])
    ours.check(DataSpec.pixels((20, 24), 1))
    for spec in (DataSpec.pixels((8, 8), 4), DataSpec.pixels((8,), 3), DataSpec((8, 8), ("a",), (0.0,), (1.0,))):
        with pytest.raises(ValueError, match="8-bit images of 1 or 3 channels"):
            ours.check(spec)

    tensors = torch.load(random_inception, weights_only=True)
    path = tmp_path / "inception.pth"
    torch.save({name: each for name, each in tensors.items() if "Mixed_7c" not in name}, path)
    assert "another network" in refused(path) and len(refused(path)) < 700
    torch.save(tensors | {"fc.bias": torch.full((1008,), torch.nan)}, path)
    assert "not finite, in fc.bias" in refused(path)
