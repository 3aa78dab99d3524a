"""Fields: what NetCDF and Zarr files become, what is refused, and what is written back."""

import json
import re
import shlex

import numpy as np
import pytest
import torch
import xarray as xr
from conftest import jit_here, small_net

from justimage.commands.inspection import inspect
from justimage.data.arrays import Arrays
from justimage.data.axes import FieldOptions
from justimage.data.crops import Crops
from justimage.data.sources import DataOptions, open_source
from justimage.data.spec import DataSpec, Source, Unreadable, UnreadableSample
from justimage.data.stores import open_dataset
from justimage.denoiser import Denoiser
from justimage.sampling.fields import to_xarray, write_fields

TINY = shlex.split(
    "--network.width 48 --network.depth 2 --network.heads 2 --network.context-start 1 --device cpu "
    "--training.batch-size 16 --training.duration-nimg 64 --training.ema-decays 0.9 "
    "--report.tick-nimg 16 --report.save-nimg 64 --report.sample-nimg 64 --report.preview-steps 2 "
    "--report.evaluate-nimg 0"
)


def source_of(path, **options) -> Source:
    source = open_source(str(path), (32, 32), 3, DataOptions(**options))
    assert source.indexed is True
    return source


def made(**changes) -> xr.Dataset:
    """20 hours of two variables on 8x12 points, one of them on three levels."""
    generator = np.random.default_rng(0)
    dims = ("time", "level", "lat", "lon")
    coords = {
        "time": np.datetime64("2020-01-31T18", "ns") + np.arange(20) * np.timedelta64(1, "h"),
        "level": ("level", [850.0, 500.0, 200.0], {"units": "hPa"}),
        "lat": ("lat", np.linspace(60, 53, 8), {"units": "degrees_north"}),
        "lon": ("lon", np.linspace(0, 11, 12), {"units": "degrees_east"}),
        "area": (("lat", "lon"), np.arange(96.0).reshape(8, 12), {"units": "km2"}),
        "station": ("time", [f"s{i % 2}" for i in range(20)]),
    }
    data = {
        "t": (dims, 280 + generator.normal(size=(20, 3, 8, 12)), {"units": "K", "long_name": "temperature"}),
        "p": (("time", "lat", "lon"), 1e5 + 100 * generator.normal(size=(20, 8, 12)), {"units": "Pa"}),
    }
    dataset = xr.Dataset({**data, **changes}, coords=coords, attrs={"title": "made up", "version": 3})
    return dataset


@pytest.fixture
def netcdf(tmp_path):
    made().to_netcdf(tmp_path / "made.nc")
    return tmp_path / "made.nc"


def test_variables_and_levels_become_channels(netcdf):
    source, dataset = source_of(netcdf, fields=FieldOptions(label="time.hour")), made()
    assert source.spec.channels == ("t850", "t500", "t200", "p")
    assert source.spec.units == ("K", "K", "K", "Pa")
    assert (len(source), source.spec.size) == (20, (8, 12))
    raw, y = source[7]
    np.testing.assert_allclose(raw[1], dataset.t[7, 1], rtol=1e-6)
    np.testing.assert_allclose(raw[3], dataset.p[7], rtol=1e-6)
    hours = dataset.time.dt.hour.values
    assert source.spec.classes == tuple(map(str, sorted(set(hours.tolist()))))
    assert source.spec.classes[y["labels"]] == str(hours[7])
    batch = torch.from_numpy(np.stack([source[i][0] for i in range(20)]))
    encoded = source.spec.encode(batch)
    torch.testing.assert_close(encoded.std((0, 2, 3)), torch.full((4,), 0.5), atol=1e-2, rtol=0)
    torch.testing.assert_close(source.spec.decode(encoded), batch, rtol=1e-6, atol=0)


def test_some_variables_levels_and_labels(netcdf):
    options = FieldOptions(variables=("t",), levels=(200, 850), label="station")
    source = source_of(netcdf, fields=options)
    assert (source.spec.channels, source.spec.classes) == (("t200", "t850"), ("s0", "s1"))
    volume = source_of(netcdf, fields=FieldOptions(variables=("t",), level_dim="none"))
    assert (volume.spec.channels, volume.spec.size) == (("t",), (3, 8, 12))
    signals = source_of(netcdf, fields=FieldOptions(variables=("p",), sample_dim="lat", label=""))
    assert (len(signals), signals.spec.size, signals.spec.origin.dims) == (8, (20, 12), ("time", "lon"))  # type: ignore


@pytest.mark.parametrize("kind", ["one file", "two files", "zarr", "NetCDF 3", "read as needed", "a glob"])
def test_the_same_fields_from_any_store(kind, netcdf, tmp_path):
    both = FieldOptions(variables=("t", "p"))  # stores have orders of their own
    expected = source_of(netcdf, fields=both)
    dataset, path, options = made(), tmp_path / "set", {}
    if kind == "zarr":
        path = tmp_path / "set.zarr"
        dataset.to_zarr(path)
    elif kind in ("two files", "a glob"):
        path.mkdir()
        dataset.isel(time=slice(0, 7)).to_netcdf(path / "a.nc")
        dataset.isel(time=slice(7, 20)).to_netcdf(path / "b.nc")
        path = path / "*.nc" if kind == "a glob" else path
    elif kind == "NetCDF 3":
        path = tmp_path / "old.nc"
        dataset.drop_vars("station").to_netcdf(path, format="NETCDF3_64BIT", engine="scipy")
    else:
        path = netcdf
        options = {"memory_gb": 0.0} if kind == "read as needed" else {}
    source = source_of(path, fields=both, **options)
    assert len(source) == 20
    assert source.spec.origin == expected.spec.origin
    assert all(np.array_equal(source[i][0], expected[i][0]) for i in range(20))


def test_written_fields_have_the_names_units_and_coordinates_they_came_with(netcdf, tmp_path):
    source, dataset = source_of(netcdf, fields=FieldOptions(label="station")), made()
    raw = torch.from_numpy(np.stack([source[i][0] for i in range(3)]))
    for name in ("out.nc", "out.zarr"):
        write_fields(to_xarray(raw, source.spec, seeds=[5, 6, 7], labels=[0, 1, 0]), tmp_path / name)
        back = open_dataset(tmp_path / name)
        np.testing.assert_allclose(back.t.values, dataset.t[:3].values, rtol=1e-6)
        assert back.t.dims == ("sample", "level", "lat", "lon")
        assert (back.t.units, back.t.long_name, back.p.units) == ("K", "temperature", "Pa")
        for coordinate in ("lat", "lon", "level", "area"):
            np.testing.assert_array_equal(back[coordinate].values, dataset[coordinate].values)
            assert back[coordinate].units == dataset[coordinate].units
        assert (back.attrs["title"], int(back.attrs["version"])) == ("made up", 3)
        assert (back.seed.values.tolist(), back["class"].values.tolist()) == ([5, 6, 7], ["s0", "s1", "s0"])


def test_times_along_an_axis_come_back_as_times(tmp_path):
    """Signals: the time is an axis, the stations are the samples."""
    dataset = made()[["p"]].isel(lon=0).rename({"lat": "member"})
    dataset.to_netcdf(tmp_path / "signals.nc")
    source = source_of(tmp_path / "signals.nc", fields=FieldOptions(sample_dim="member"))
    assert (len(source), source.spec.shape) == (8, (1, 20))
    back = to_xarray(source[2][0][None], source.spec)
    np.testing.assert_array_equal(back.time.values, dataset.time.values)


def test_the_spec_travels_in_a_checkpoint(netcdf, tmp_path):
    spec = source_of(netcdf, crop=(8, 8), crop_at="centre").spec
    Denoiser(small_net(channels=4, num_classes=0), spec=spec).save_pretrained(tmp_path / "weights")
    assert Denoiser.from_pretrained(tmp_path / "weights").spec == spec


def test_crops_keep_the_coordinates_they_have(netcdf):
    centre = source_of(netcdf, crop=(4, 12), crop_at="centre")
    coordinates = {c.name: c.values for c in centre.spec.origin.coordinates}  # type: ignore[union-attr]
    np.testing.assert_array_equal(coordinates["lat"], np.linspace(60, 53, 8)[2:6])
    np.testing.assert_array_equal(coordinates["area"], np.arange(96.0).reshape(8, 12)[2:6].ravel())
    written = to_xarray(centre[0][0][None], centre.spec)
    np.testing.assert_allclose(written.t.sel(level=500)[0], made().t.sel(level=500)[0, 2:6], rtol=1e-6)
    moving = source_of(netcdf, crop=(4, 12))  # as wide as the field, so that its longitudes are known
    assert {c.name for c in moving.spec.origin.coordinates} == {"lon", "level"}  # type: ignore[union-attr]
    assert len(moving) == 20 * 5


def test_missing_values_stop_with_their_place_or_are_filled(tmp_path):
    dataset = made()
    dataset["p"][11, 2, 3] = np.nan
    dataset["p"][12, 0, 0] = np.nan
    dataset.to_netcdf(tmp_path / "gaps.nc")
    message = (
        r"gaps\.nc holds 2 values that are not finite \(2 NaN, 0 infinite\) in 2 of 20 samples, the first in sample 11 "
        r"\(time 2020-02-01T05:00:00\), channel p, at lat 58, lon 3; .*--data-options.missing mean"
    )
    with pytest.raises(ValueError, match=message):
        source_of(tmp_path / "gaps.nc")
    mean = float(np.nanmean(dataset.p))
    filled = source_of(tmp_path / "gaps.nc", missing="mean")
    assert filled[11][0][3, 2, 3] == pytest.approx(mean, rel=1e-6)
    assert filled.spec.mean[3] == pytest.approx(mean, rel=1e-9)
    assert source_of(tmp_path / "gaps.nc", missing=0.0)[12][0][3, 0, 0] == 0
    dataset["p"][3, 1, 1] = np.inf
    dataset.to_netcdf(tmp_path / "endless.nc")
    with pytest.raises(ValueError, match=r"1 infinite.*the first in sample 3"):
        source_of(tmp_path / "endless.nc", missing="mean")


def test_looking_counts_what_is_missing(tmp_path):
    dataset = made()
    dataset["p"][11, 2, 3] = np.nan
    dataset.to_netcdf(tmp_path / "gaps.nc")
    source = open_source(str(tmp_path / "gaps.nc"), (8, 8), 3, only_look=True)
    assert inspect(source).gaps == "1 in 1 of 20 samples"


def test_measuring_is_remembered_until_the_file_changes(netcdf, monkeypatch):
    from justimage.data.arrays import Arrays

    passes = []
    measure = Arrays._measure
    monkeypatch.setattr(Arrays, "_measure", lambda self: passes.append(1) or measure(self))
    first, again = source_of(netcdf), source_of(netcdf)
    assert (len(passes), again.spec) == (1, first.spec)
    (made() + 1).to_netcdf(netcdf)
    assert source_of(netcdf).spec.mean[0] == pytest.approx(first.spec.mean[0] + 1, rel=1e-9)


REFUSED = {
    "variable": (FieldOptions(variables=("q",)), r"no variable 'q'; it has t \(time, level, lat, lon\), p \(time"),
    "dimension": (FieldOptions(sample_dim="step"), r"no dimension 'step'; it has time \(20\)"),
    "level": (FieldOptions(levels=(300,)), "no level 300; it has 850, 500, 200"),
    "coordinate": (FieldOptions(label="month"), "no coordinate 'month' along the samples.*it has time, station"),
    "part": (FieldOptions(label="time.minute"), "a part of a time"),
    "no time": (FieldOptions(label="station.hour"), "a part of a time"),
    "whole time": (FieldOptions(label="time"), r"such as time\.hour"),
    "space": (FieldOptions(sample_dim="lat", level_dim="lon", variables=("t", "p")), "do not share their dimensions"),
    "no such here": (FieldOptions(sample_dim="level", variables=("p",)), "has the dimension 'level'"),
    "axes": (FieldOptions(sample_dim="none", level_dim="none", variables=("t",)), "leaves 4 spatial axes"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_exist_is_said_with_what_does(name, netcdf):
    options, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        source_of(netcdf, fields=options)


def test_files_that_cannot_be_used(netcdf, tmp_path):
    made(wind=(("time", "lat2"), np.zeros((20, 3)))).to_netcdf(tmp_path / "mixed.nc")
    with pytest.raises(ValueError, match=r"do not share their dimensions: .*wind \(time, lat2\); choose some"):
        source_of(tmp_path / "mixed.nc")
    made(z=(("time", "lat", "lon"), np.zeros((20, 8, 12), complex))).to_zarr(tmp_path / "complex.zarr")
    with pytest.raises(ValueError, match=r"z of .* is complex128"):
        source_of(tmp_path / "complex.zarr", fields=FieldOptions(variables=("z",)))
    whole = netcdf.read_bytes()
    for share in (0.02, 0.3, 0.9):
        (tmp_path / "half.nc").write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(ValueError, match=r"half\.nc cannot be read"):
            source_of(tmp_path / "half.nc")
    made().drop_vars("station").to_netcdf(tmp_path / "old.nc", format="NETCDF3_64BIT", engine="scipy")
    whole = (tmp_path / "old.nc").read_bytes()
    for share in (0.02, 0.3, 0.9):
        (tmp_path / "half.nc").write_bytes(whole[: int(share * len(whole))])
        with pytest.raises(ValueError, match=r"half\.nc cannot be read"):
            source_of(tmp_path / "half.nc")
    (tmp_path / "text.nc").write_text("no data")
    with pytest.raises(ValueError, match=r"text\.nc cannot be read; it is damaged, or not NetCDF"):
        source_of(tmp_path / "text.nc")
    both = tmp_path / "both"
    both.mkdir()
    made().to_netcdf(both / "a.nc")
    made()[["p"]].to_netcdf(both / "b.nc")
    with pytest.raises(ValueError, match=r"b\.nc differs from .*a\.nc in its dimensions"):
        source_of(both)
    other = made()
    for what, changed in (
        ("channels", other.assign_coords(level=[1000.0, 500.0, 100.0])),
        ("coordinate (area|lat)", other.isel(lat=slice(None, None, -1))),
        ("units", other.assign(p=other.p.assign_attrs(units="hPa"))),
    ):
        changed.to_netcdf(both / "b.nc")
        with pytest.raises(ValueError, match=rf"differs from .* in its {what}:"):
            source_of(both)


REAL = {
    "era5": (
        "era5-t2m-uk-2019-03.nc",
        "--data-options.crop 32 48 --data-options.crop-at centre --data-options.fields.label time.hour",
        "--classes 6 18",
        {"t2m": ("sample", "latitude", "longitude")},
    ),
    "era-interim": (
        "era-interim-uvz-jan-jul.nc",
        "--data-options.crop 48 64 --data-options.fields.label month",
        "--classes 7",
        dict.fromkeys("zuv", ("sample", "level", "latitude", "longitude")),
    ),
}


@pytest.mark.parametrize("name", REAL)
def test_real_fields_train_and_come_back_as_netcdf(name, real_data, tmp_path, monkeypatch):
    """Temperature with the hour as label, and nine-channel random crops: trained, sampled, opened in xarray."""
    file, options, classes, variables = REAL[name]
    command = ["train", "cifar10", *TINY, "--data", str(real_data / file), *options.split(), "--run", "r"]

    def jit(*arguments: str) -> int:
        return jit_here(*arguments, cwd=tmp_path, monkeypatch=monkeypatch)

    assert jit(*command) == 0
    assert jit("sample", "r", *classes.split(), "--count", "2", "--steps", "2") == 0
    back, original = xr.open_dataset(tmp_path / "samples" / "samples.nc"), open_dataset(real_data / file)
    for variable, dims in variables.items():
        assert back[variable].dims == dims
        assert back[variable].units == original[variable].units
    if name == "era5":
        np.testing.assert_array_equal(back.latitude, original.latitude[:32])
        assert back.longitude.units == "degrees_east"
        assert back["class"].values.tolist() == ["6", "6", "18", "18"]
    assert jit("sample", "r", "--count", "1", "--steps", "1", "--format", "zarr", "--out", "z") == 0
    assert set(open_dataset(tmp_path / "z" / "samples.zarr").data_vars) == set(variables)
    assert jit("sample", "r", "--format", "png") == 2


def test_other_calendars(tmp_path):
    """Twelve months of 30 days, as climate models have them."""
    dataset = made().isel(time=slice(0, 12))
    dataset = dataset.assign_coords(time=xr.date_range("2000-01-01", periods=12, freq="30D", calendar="360_day"))
    dataset["p"][3, 0, 0] = np.nan
    dataset.to_netcdf(tmp_path / "model.nc")
    options = FieldOptions(variables=("p",), label="time.month")
    with pytest.raises(ValueError, match="time 2000-04-01 00:00:00"):
        source_of(tmp_path / "model.nc", fields=options)
    assert source_of(tmp_path / "model.nc", fields=options, missing="mean")[7][1]["labels"] == 7


def test_fields_are_neither_colour_nor_mirrored(netcdf):
    spec = source_of(netcdf, fields=FieldOptions(variables=("t",))).spec
    assert (len(spec.channels), spec.colour, spec.mirror) == (3, False, None)


def test_a_sample_that_cannot_be_read_is_named(tmp_path):
    """A store that is damaged after it was opened: looking says why, and training gets the error that it expects."""
    made().to_zarr(tmp_path / "made.zarr", encoding={"p": {"chunks": (5, 8, 12)}})
    source = source_of(tmp_path / "made.zarr", memory_gb=0.0)
    chunk = tmp_path / "made.zarr" / "p" / "c" / "1" / "0" / "0"
    chunk.write_bytes(b"no data")
    crops = Crops(source, (8, 12))
    for damaged in (source, crops):
        assert isinstance(damaged.look(6), Unreadable)
        assert not isinstance(damaged.look(2), Unreadable)
        with pytest.raises(UnreadableSample, match=r"time 2020-02-01T00:00:00 of made\.zarr cannot be read"):
            damaged[6]
    assert source.name(6) == crops.name(6) == "time 2020-02-01T00:00:00"


def test_written_fields_are_whole_or_absent(netcdf, tmp_path):
    dataset = to_xarray(torch.zeros(2, 4, 8, 12), source_of(netcdf).spec)
    write_fields(dataset, tmp_path / "out.nc")
    write_fields(dataset, tmp_path / "out.zarr")
    broken = dataset.assign(bad=("sample", np.array([object(), object()])))
    for name in ("out.nc", "out.zarr", "new.nc", "new.zarr"):
        with pytest.raises((TypeError, ValueError)):
            write_fields(broken, tmp_path / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["made.nc", "out.nc", "out.zarr"]
    assert all(open_dataset(tmp_path / name).sizes["sample"] == 2 for name in ("out.nc", "out.zarr"))
    with pytest.raises(ValueError, match="ends neither in"):
        write_fields(dataset, tmp_path / "out.grib")


def test_arrays_have_no_names_but_can_be_written(tmp_path):
    spec = DataSpec((4,), ("a", "b"), (0.0, 0.0), (1.0, 1.0))
    back = to_xarray(torch.ones(3, 2, 4), spec)
    assert (set(back.data_vars), back.a.dims) == ({"a", "b"}, ("sample", "axis0"))
    with pytest.raises(ValueError, match="samples are"):
        to_xarray(torch.ones(3, 1, 4), spec)


TAILS = {
    "rain": lambda g, n: np.where(g.random(n) < 0.001, 100 * g.random(n), 0),
    "rain with rounding noise": lambda g, n: np.where(g.random(n) < 1e-4, 100 * g.random(n), 1e-18 * g.random(n)),
    "log-normal": lambda g, n: np.exp(3 * g.normal(size=n)),
    "wider log-normal": lambda g, n: np.exp(5 * g.normal(size=n)),
    "Cauchy": lambda g, n: g.standard_cauchy(n),
    "a mask": lambda g, n: g.random(n) < 0.5,
    "a rare mask of 65,535": lambda g, n: 65535 * (g.random(n) < 1e-4),
    "a constant with rare events": lambda g, n: np.where(g.random(n) < 1e-4, 1e7, 273.15),
    "a constant with rounding noise and rare events": lambda g, n: np.where(
        g.random(n) < 1e-4, 1000, 273.15 + 1e-5 * g.random(n)
    ),
    "pressure with zeros": lambda g, n: np.where(g.random(n) < 1e-3, 0, 1e5 + 100 * g.normal(size=n)),
    "large numbers with zeros": lambda g, n: np.where(g.random(n) < 0.5, 0, 1e9 + 1e7 * g.normal(size=n)),
    "numbers of all sizes": lambda g, n: 10.0 ** g.uniform(-30, 30, n),
}


@pytest.mark.parametrize("name", TAILS)
def test_long_tails_and_rare_events_are_data(name):
    """Whatever the seed, and whether all values are looked at or a part of them."""
    for seed, shape in enumerate([(40, 1, 50, 50), (3, 1, 20, 20), (100, 1, 80, 80)]):
        x = TAILS[name](np.random.default_rng(seed), int(np.prod(shape))).reshape(shape).astype(np.float32)
        if np.std(x, dtype=np.float64) > 1e-4:  # else it never changes, which is refused
            Arrays(x)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.8])
@pytest.mark.parametrize("value", ["1e+20", "9.96921e+36", "-1e+30", "1e+10"])
def test_values_that_cannot_be_meant_are_refused_with_their_place(tmp_path, value, share):
    """One, some or most of them; declared with the option that the message names, they are missing values."""
    generator = np.random.default_rng(0)
    dataset = made()[["p"]]
    wrong = generator.random((20, 8, 12)) < share
    wrong[3:12] = False
    wrong[5, 2, 3] = True
    dataset["p"] = dataset.p.where(~wrong, float(value))
    dataset.p.encoding = {"_FillValue": None, "dtype": "float32"}
    dataset.to_netcdf(tmp_path / "fill.nc")
    first = "" if share else r"sample 5 \(time 2020-01-31T23:00:00\), channel p, at lat 58, lon 3"
    message = (
        rf"fill\.nc holds {wrong.sum():,} values like {re.escape(value)} in channel p, and all others lie between 99.* "
        rf"and 100[\d.]+; the first is in {first}.*--data-options.fill-values {re.escape(value)} --data-options.missing"
    )
    for memory_gb in (1.0, 0.0):
        with pytest.raises(ValueError, match=message):
            source_of(tmp_path / "fill.nc", missing="mean", memory_gb=memory_gb)
        source = source_of(tmp_path / "fill.nc", fill_values=(float(value), -9999.0), missing=7.0, memory_gb=memory_gb)
        assert source[5][0][0, 2, 3] == 7
        assert source.spec.mean[0] == pytest.approx(1e5, rel=1e-3)
    with pytest.raises(ValueError, match=rf"{wrong.sum():,} values that are not finite"):
        source_of(tmp_path / "fill.nc", fill_values=(float(value),))


def test_values_that_stand_for_missing_ones_in_arrays(tmp_path, monkeypatch):
    """-9999 among temperatures may be meant, so that it is said; in a file, in many, and in whole numbers."""
    x = (280 + np.random.default_rng(0).normal(size=(30, 1, 8, 8))).astype(np.float32)
    x[4, 0, 1, 1] = -9999
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "whole.npy", x.astype(np.int16))
    (tmp_path / "stack").mkdir()
    for i, sample in enumerate(x):
        np.save(tmp_path / "stack" / f"{i:02d}.npy", sample)
    assert source_of(tmp_path / "x.npy").spec.mean[0] < 278
    for name in ("x.npy", "stack", "whole.npy"):
        source = source_of(tmp_path / name, fill_values=(-9999.0,), missing="mean")
        assert source[4][0][0, 1, 1] == pytest.approx(source.spec.mean[0])
        assert 279 < source.spec.mean[0] < 281
        assert source.gaps == "1 in 1 of 30 samples"
    given = np.ones(30)
    given[3] = 1e20
    with pytest.raises(ValueError, match=r"the condition angle of the array holds 1e\+20 in feature 0"):
        Arrays(x[:, :, :4], given={"angle": given})
    command = "data inspect x.npy --data-options.fill-values 1e20 -1e+30 -9999 --data-options.missing mean"
    assert jit_here(*command.split(), cwd=tmp_path, monkeypatch=monkeypatch) == 0


STORES = {
    "v2": {"zarr_format": 2, "encoding": {"p": {"chunks": (5, 8, 12)}}},
    "v3": {"zarr_format": 3, "encoding": {"p": {"chunks": (5, 8, 12)}}},
    "sharded": {"zarr_format": 3, "encoding": {"p": {"chunks": (5, 8, 6), "shards": (5, 8, 12)}}},
}


@pytest.mark.parametrize("kind", STORES)
@pytest.mark.parametrize("dtype", ["int32", "float32"])
def test_a_missing_chunk_is_not_taken_for_zeros(kind, dtype, tmp_path):
    """Of whole numbers, and of floats whose fill value is 0; unless that number is what missing values are."""
    dataset, store = made()[["p"]], tmp_path / "made.zarr"
    dataset["p"] = dataset.p.astype(dtype)
    dataset.drop_vars("station").to_zarr(store, **STORES[kind])
    if dtype == "float32":
        for name in (".zmetadata", "p/.zarray", "zarr.json", "p/zarr.json"):
            if (store / name).is_file():
                text = (store / name).read_text()
                (store / name).write_text(re.sub(r'"fill_value": ?("NaN"|null)', '"fill_value":0.0', text))
    source_of(store)
    (store / "p" / ("1.0.0" if kind == "v2" else "c/1/0/0")).unlink()
    if kind == "v2" and dtype == "float32":  # there, the fill value means that a value is missing
        with pytest.raises(ValueError, match=r"480 values that are not finite .* sample 5 "):
            source_of(store)
    else:
        message = (
            r"p of .*made\.zarr lacks 1 of 4 chunks, the first at time 5, lat 0, lon 0 .* read as 0\. .*missing 0$"
        )
        for missing in ("stop", "mean", 1.0):
            with pytest.raises(ValueError, match=message):
                source_of(store, missing=missing)
    assert not source_of(store, missing=0.0)[5][0].any()


def test_a_missing_chunk_of_floats_is_missing(tmp_path):
    made().drop_vars("station").to_zarr(tmp_path / "made.zarr", encoding={"p": {"chunks": (5, 8, 12)}})
    (tmp_path / "made.zarr" / "p" / "c" / "1" / "0" / "0").unlink()
    with pytest.raises(ValueError, match=r"480 values that are not finite .* in sample 5 "):
        source_of(tmp_path / "made.zarr")
    assert source_of(tmp_path / "made.zarr", missing="mean").gaps


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("where", ["filters", "compressor", "object", "nested", "only consolidated"])
def test_the_codec_pickle_is_refused_by_name(version, where, tmp_path):
    """Before anything is decoded, wherever the metadata name it."""
    store, pickle = tmp_path / "made.zarr", {"id": "pickle", "protocol": 5}
    made().drop_vars("station").to_zarr(store, zarr_format=version, group="deep" if where == "nested" else None)
    files = [store / ("deep/p" if where == "nested" else "p") / (".zarray" if version == 2 else "zarr.json")]
    if where == "only consolidated":
        files = [store / (".zmetadata" if version == 2 else "zarr.json")]
    for file in files:
        metadata = json.loads(file.read_text())
        inside = metadata
        if where == "only consolidated":
            inside = (
                metadata["metadata"]["p/.zarray"]
                if version == 2
                else metadata["consolidated_metadata"]["metadata"]["p"]
            )
        if version == 3:
            inside["codecs"] = [{"name": "numcodecs.pickle" if where == "object" else "pickle", "configuration": {}}]
        elif where == "object":
            inside |= {"dtype": "|O", "filters": [pickle]}
        else:
            inside["compressor" if where == "compressor" else "filters"] = pickle if where == "compressor" else [pickle]
        file.write_text(json.dumps(metadata))
    with pytest.raises(ValueError, match=rf"{files[0].name} names the codec pickle, which runs code"):
        source_of(store)


def test_attributes_may_speak_of_pickles_and_unknown_codecs_are_named(tmp_path):
    store = tmp_path / "made.zarr"
    made(p=made().p.assign_attrs(id="pickle")).drop_vars("station").to_zarr(store, zarr_format=2)
    (store / "loop").symlink_to(store)
    assert len(source_of(store)) == 20
    for file in (store / ".zmetadata", store / "p" / ".zarray"):
        metadata = json.loads(file.read_text())
        inside = metadata["metadata"]["p/.zarray"] if "metadata" in metadata else metadata
        inside["compressor"] = {"id": "secret"}
        file.write_text(json.dumps(metadata))
    with pytest.raises(ValueError, match=r"made\.zarr cannot be read; .*secret"):
        source_of(store)
    (store / "p" / ".zarray").write_text("[1")
    with pytest.raises(ValueError, match=r"\.zarray cannot be read"):
        source_of(store)


def test_what_is_empty_or_there_twice_is_named(tmp_path, capfd):
    """No samples, one variable or level twice, a label that some samples lack, and a damaged head without a word."""
    for name, dataset in (
        ("empty", made().isel(time=slice(0, 0)).drop_vars("station")),
        ("twice", made().assign_coords(level=[850.0, 850.0, 200.0])),
        ("unknown", made().assign_coords(kind=("time", np.where(np.arange(20) == 4, np.nan, 1.0)))),
        ("unnamed", made().assign_coords(kind=("time", ["" if i == 4 else "a" for i in range(20)]))),
    ):
        dataset.to_netcdf(tmp_path / f"{name}.nc")
    for name, options, message in (
        ("empty", FieldOptions(), r"empty\.nc holds no samples: its dimension time has the length 0"),
        ("twice", FieldOptions(), r"twice\.nc gives the channel t850 twice"),
        ("unknown", FieldOptions(variables=("p", "p")), r"gives the channel p twice"),
        (
            "unknown",
            FieldOptions(label="kind"),
            r"1 of 20 samples of unknown\.nc have no kind .* at time 2020-01-31T22",
        ),
        (
            "unnamed",
            FieldOptions(label="kind"),
            r"1 of 20 samples of unnamed\.nc have no kind .* at time 2020-01-31T22",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            source_of(tmp_path / f"{name}.nc", fields=options)
    whole = bytearray((tmp_path / "unknown.nc").read_bytes())
    whole[200:2000] = bytes(1800)
    (tmp_path / "hole.nc").write_bytes(whole)
    with pytest.raises(ValueError, match=r"hole\.nc cannot be read"):
        source_of(tmp_path / "hole.nc")
    assert capfd.readouterr().err == ""


def test_a_file_for_each_time_or_member(tmp_path):
    """Each has a single time and number of its own, which are not the grid's, and a name for its sample."""
    one = made().isel(time=0, drop=True)
    for i in range(3):
        when = {"time": np.datetime64("2020-01-01", "ns") + i, "number": i, "height": 2.0}
        one.assign_coords(when).to_netcdf(tmp_path / f"m{i}.nc")
    source = source_of(tmp_path / "m*.nc", fields=FieldOptions(variables=("p",)))
    assert len(source) == 3
    assert source.name(1) == "the sample of m1.nc"
    assert source.spec.origin is not None
    assert {each.name for each in source.spec.origin.coordinates} == {"lat", "lon", "area", "height"}
    other = one.assign_coords(lat=one["lat"] + 1, number=7)
    other.to_netcdf(tmp_path / "m3.nc")
    with pytest.raises(ValueError, match=r"differs from .* in its coordinate lat"):
        source_of(tmp_path / "m*.nc", fields=FieldOptions(variables=("p",)))


def test_times_in_months_are_numbers(tmp_path):
    months = (
        made().drop_vars("station").assign_coords(time=("time", np.arange(20), {"units": "months since 2000-01-01"}))
    )
    months.to_netcdf(tmp_path / "months.nc")
    source = source_of(tmp_path / "months.nc", fields=FieldOptions(variables=("p",)))
    assert (len(source), source.name(3)) == (20, "time 3")
