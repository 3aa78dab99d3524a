"""Fields: what NetCDF and Zarr files become, what is refused, and what is written back."""

import shlex

import numpy as np
import pytest
import torch
import xarray as xr
from conftest import jit_here, small_net

from justimage.commands.inspection import inspect
from justimage.data.crops import Crops
from justimage.data.fields import FieldOptions, open_dataset
from justimage.data.sources import DataOptions, open_source
from justimage.data.spec import DataSpec, Source, Unreadable, UnreadableSample
from justimage.denoiser import Denoiser
from justimage.sampling.fields import to_xarray, write_fields

TINY = shlex.split(
    "--network.width 48 --network.depth 2 --network.heads 2 --network.context-start 1 --device cpu "
    "--training.batch-size 16 --training.duration-nimg 64 --training.ema-decays 0.9 "
    "--report.tick-nimg 16 --report.save-nimg 64 --report.sample-nimg 64 --report.preview-steps 2"
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
