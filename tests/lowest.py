"""That the lowest versions allowed by pyproject.toml work: every dependency, through the command, on small data.

`make test-lowest` runs it; its name keeps it out of `make test`, where every one of these commands is tested better.
"""

import io
import json
import os
import pickle
import shlex
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
TINY = (
    "--network.width 32 --network.depth 2 --network.heads 2 --network.context-start 1 --device cpu "
    "--training.batch-size 32 --training.duration-nimg 64 --report.tick-nimg 32 --report.preview-steps 2 "
    "--report.evaluate-nimg 0"
)


def jit(folder: Path, *commands: str, code: int = 0) -> list[str]:
    """Commands that need not wait for each other, run in a folder at the same time; what each of them printed."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200", "HF_HUB_OFFLINE": "1"}
    environment["OMP_NUM_THREADS"] = "1"  # networks this small, two at a time, are only slowed down by more
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "justimage", *shlex.split(command)],
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for command in commands
    ]
    printed = [process.communicate(timeout=120)[0] for process in running]
    for command, process, text in zip(commands, running, printed, strict=True):
        assert process.returncode == code, f"jit {command}\n{text}"
    return printed


def test_help(tmp_path):
    (text,) = jit(tmp_path, "--help")
    assert all(command in text for command in ("train", "sample", "data", "convert"))


def test_digits(tmp_path):
    jit(tmp_path, f"train mnist-demo --run r {TINY}")
    command = "sample r --device cpu --classes 3 7 --count 2 --steps 2"
    jit(tmp_path, f"{command} --format png --out png", f"{command} --format npy --out npy")
    assert Image.open(tmp_path / "png" / "7-seed0001.png").size == (28, 28)
    assert (tmp_path / "png" / "grid.png").is_file()
    assert np.load(tmp_path / "npy" / "samples.npy").shape == (4, 1, 28, 28)


def fields(times: xr.DataArray) -> xr.Dataset:
    """A temperature on 16x24 points, with the attributes and coordinates that data come with."""
    values = 280 + np.random.default_rng(0).normal(size=(len(times), 16, 24)).astype(np.float32)
    coords = {
        "time": times,
        "lat": ("lat", np.linspace(60.0, 45.0, 16), {"units": "degrees_north"}),
        "lon": ("lon", np.linspace(0.0, 23.0, 24), {"units": "degrees_east"}),
    }
    attributes = {"units": "K", "long_name": "temperature"}
    return xr.Dataset({"t": (("time", "lat", "lon"), values, attributes)}, coords=coords, attrs={"title": "made up"})


def hours(count: int) -> xr.DataArray:
    """So many times, six hours apart."""
    times = np.datetime64("2020-01-31T18", "ns") + np.arange(count) * np.timedelta64(6, "h")
    return xr.DataArray(times, dims="time")


def drawn(folder: Path, classes: str = "") -> list[xr.Dataset]:
    """Four fields of the run r, as they come back from a NetCDF file and from a Zarr store."""
    command = f"sample r --device cpu --steps 2 {classes}"
    jit(folder, f"{command} --format nc --out nc", f"{command} --format zarr --out zarr")
    with xr.open_dataset(folder / "nc" / "samples.nc", engine="h5netcdf") as file:
        netcdf = file.load()
    return [netcdf, xr.open_zarr(folder / "zarr" / "samples.zarr", consolidated=False).load()]


def test_netcdf(tmp_path):
    """Hours as classes, which come back as text; text is what an older xarray cannot write where pandas is 3."""
    dataset = fields(hours(24))
    dataset.to_netcdf(tmp_path / "f.nc", engine="h5netcdf")
    options = "--data-options.crop 16 16 --data-options.crop-at centre --data-options.fields.label time.hour"
    looked, _ = jit(
        tmp_path,
        f"data inspect f.nc {options}",
        f"train fields --data f.nc {options} --network.size 16 16 --run r {TINY}",
    )
    assert "16x16" in looked
    for back in drawn(tmp_path, "--classes 0 18 --count 2"):
        assert (back.t.dims, back.t.shape, back.t.units) == (("sample", "lat", "lon"), (4, 16, 16), "K")
        np.testing.assert_array_equal(back.lat.values, dataset.lat.values)
        assert [str(name) for name in back["class"].values] == ["0", "0", "18", "18"]


def test_zarr(tmp_path):
    """The samples are places, and the time is an axis: times are written, too."""
    dataset = fields(hours(16)).isel(lon=slice(16))
    dataset.to_zarr(tmp_path / "f.zarr", consolidated=False)
    jit(
        tmp_path,
        f"train fields --data f.zarr --data-options.fields.sample-dim lat --network.size 16 16 --run r {TINY}",
    )
    for back in drawn(tmp_path, "--count 4"):
        assert back.t.dims == ("sample", "time", "lon")
        np.testing.assert_array_equal(back.time.values, dataset.time.values)


class Harm:
    """Unpickled, it makes a folder."""

    def __reduce__(self):
        return os.mkdir, ("harm",)


def test_code_in_a_zarr_store_is_not_run(tmp_path):
    """A store of the old format names the codecs that decode it; `pickle` is one that numcodecs has."""
    dataset = fields(hours(4)).assign_coords(station=("time", np.array(list("abab"), dtype=object)))
    dataset.to_zarr(tmp_path / "f.zarr", zarr_format=2, consolidated=False)
    about = tmp_path / "f.zarr" / "station" / ".zarray"
    text = {"dtype": "|O", "filters": [{"id": "vlen-utf8"}], "compressor": {"id": "pickle"}, "fill_value": ""}
    about.write_text(json.dumps(json.loads(about.read_text()) | text))
    (about.parent / "0").write_bytes(pickle.dumps(Harm()))
    (refused,) = jit(tmp_path, "data inspect f.zarr --data-options.fields.label station", code=2)
    assert not (tmp_path / "harm").exists()
    assert "names the codec pickle" in refused


def test_old_netcdf_and_other_calendars(tmp_path):
    """NetCDF 3 is read with scipy, a year of 360 days with cftime."""
    year = xr.date_range("2000-01-01", periods=12, freq="30D", calendar="360_day", use_cftime=True)
    dataset = fields(xr.DataArray(year, dims="time"))
    dataset.to_netcdf(tmp_path / "old.nc", format="NETCDF3_64BIT", engine="scipy")
    (looked,) = jit(tmp_path, "data inspect old.nc --data-options.fields.label time.month")
    assert "12" in looked


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """The same eight images as a folder of classes, a table and WebDataset shards."""
    import datasets

    folder = tmp_path_factory.mktemp("images")
    pixels = np.random.default_rng(0).integers(0, 256, (8, 12, 12, 3), dtype=np.uint8)
    encoded = []
    for i, values in enumerate(pixels):
        path = folder / "classes" / ("cat", "dog")[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(values).save(path)
        encoded.append(path.read_bytes())

    rows = {"image": [{"bytes": data, "path": None} for data in encoded], "label": [i % 2 for i in range(8)]}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    datasets.Dataset.from_dict(rows, features=features).to_parquet(str(folder / "table.parquet"))

    (folder / "shards").mkdir()
    for shard in range(2):
        with tarfile.open(folder / "shards" / f"train-{shard:03d}.tar", "w") as archive:
            for i in range(4 * shard, 4 * shard + 4):
                for kind, data in (("png", encoded[i]), ("cls", str(i % 2).encode())):
                    member = tarfile.TarInfo(f"{i:04d}.{kind}")
                    member.size = len(data)
                    archive.addfile(member, io.BytesIO(data))
    return folder


@pytest.mark.parametrize("kind", ["classes", "table.parquet", "shards"])
def test_images(kind, images, tmp_path):
    looked, packed = jit(
        tmp_path,
        f"data inspect {images / kind} --size 8",
        f"data pack {images / kind} --size 8 --out pack -j 2",
    )
    for text in (looked, packed):
        assert "8x8" in text and "2 classes" in text
    assert (tmp_path / "inspect" / "contact-sheet.png").is_file()
    assert list((tmp_path / "pack").iterdir())


def test_streams(images, tmp_path):
    """Shards behind addresses are read by webdataset, rows by datasets."""
    jit(
        tmp_path,
        f"data inspect 'pipe:cat {images}/shards/train-{{000..001}}.tar' --size 8 --data-options.stream.classes 2",
        f"data inspect {images}/table.parquet --size 8 --data-options.stream.on --out rows",
    )
    for out in ("inspect", "rows"):
        assert (tmp_path / out / "contact-sheet.png").is_file()


def test_official_weights_and_the_hub(tmp_path):
    source = ROOT / "tests" / "goldens" / "incontext.official-checkpoint.pth"
    jit(tmp_path, f"convert {source} weights --context-start 2")
    jit(
        tmp_path, "sample weights --device cpu --classes 1 --count 1 --steps 2 --format npy", "convert weights back.pth"
    )
    assert np.load(tmp_path / "samples" / "samples.npy").shape == (1, 3, 16, 16)
    assert (tmp_path / "back.pth").is_file()
    (refused,) = jit(tmp_path, "sample nobody/nothing", code=2)  # as far as the hub can be tried without a network
    assert "the hub does not provide it" in refused


def test_what_the_examples_judge_and_draw_with(tmp_path):
    import matplotlib
    from sklearn.svm import SVC

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    x = np.arange(8.0).reshape(-1, 1)
    assert SVC(C=10.0).fit(x, x[:, 0] > 3).predict(x).tolist() == [False] * 4 + [True] * 4
    figure = plt.figure(layout="constrained")
    above, _ = figure.subfigures(2, 1, squeeze=False)[:, 0]
    above.subplots(1, 2)[0].imshow(np.random.default_rng(0).random((8, 8)))
    figure.savefig(tmp_path / "figure.png", dpi=40)
    assert (tmp_path / "figure.png").is_file()
