"""Weather: train on ERA5 temperature, draw fields, write them as NetCDF, and compare them with the data.

    python examples/weather/weather.py era5-t2m-uk-2019-03.nc

The data are hourly 2 m temperatures over the United Kingdom, March 2019: 744 fields, cut to 32x48 points, with the hour
of the day as the label. Writes runs/weather/, the generated fields in samples.nc, and beside this script comparison.png
and comparison.json: mean, standard deviation and power spectrum of as many generated fields as there are real ones.
"""

import json
import time
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import torch
import tyro
import xarray as xr
from matplotlib import pyplot as plt
from rich.progress import track

import justimage as ji
from justimage.cli import main as jit
from justimage.data.fields import write_fields
from justimage.generate import generate

matplotlib.use("Agg")
HERE = Path(__file__).parent
CROP = ("--data-options.crop", "32", "48", "--data-options.crop-at", "centre")
POINTS_KM = (27.8, 16.3)  # between neighbours: 0.25 degrees of latitude, and of longitude at 54 degrees north


@dataclass(frozen=True)
class Options:
    """What is done."""

    data: tyro.conf.Positional[Path]
    """The file of ERA5 fields."""
    run: Path = Path("runs/weather")
    """The run folder; a run that is there is gone on with."""
    train: tuple[str, ...] = ()
    """More arguments for `jit train fields`."""
    batch_size: int = 93
    """Fields drawn at once."""


def spectrum(fields: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean power of fields (N, h, w) on rings of equal wavenumber, and the wavelength of each ring in km.

    Each field is freed of its mean and tapered with Hann windows, as it is not periodic. From waves as long as the
    shorter side down to two points.
    """
    h, w = fields.shape[-2:]
    taper = np.hanning(h)[:, None] * np.hanning(w)
    free = fields - fields.mean((-2, -1), keepdims=True)
    power = (np.abs(np.fft.fft2(free * taper)) ** 2).mean(0) / (taper**2).sum()
    cycles = [np.fft.fftfreq(n, d) for n, d in zip((h, w), POINTS_KM, strict=True)]  # per km
    wavenumber = np.hypot(*np.meshgrid(*cycles, indexing="ij"))
    side = min(h * POINTS_KM[0], w * POINTS_KM[1])
    rings = np.rint(wavenumber * side).astype(int)
    numbers = np.arange(1, int(side / (2 * max(POINTS_KM))) + 1)
    return np.array([power[rings == number].mean() for number in numbers]), side / numbers


def compare(real: xr.DataArray, drawn: xr.DataArray) -> dict:
    """Numbers of real (time, ...) and drawn fields (sample, ...), in kelvin."""
    x, y = real.values.astype(np.float64), drawn.values.astype(np.float64)
    (power_x, wavelength), (power_y, _) = spectrum(x), spectrum(y)
    ratio = power_y / power_x
    return {
        "fields": {"real": len(x), "drawn": len(y)},
        "mean_kelvin": {"real": round(x.mean(), 3), "drawn": round(y.mean(), 3)},
        "std_kelvin": {"real": round(x.std(), 3), "drawn": round(y.std(), 3)},
        "map_of_means_rms_difference_kelvin": round(float(np.sqrt(((x.mean(0) - y.mean(0)) ** 2).mean())), 3),
        "map_of_stds_rms_difference_kelvin": round(float(np.sqrt(((x.std(0) - y.std(0)) ** 2).mean())), 3),
        "spectrum": {
            "wavelength_km": np.round(wavelength, 1).tolist(),
            "drawn_over_real": np.round(ratio, 3).tolist(),
            "log10_rms": round(float(np.sqrt((np.log10(ratio) ** 2).mean())), 3),
        },
    }


def picture(real: xr.DataArray, drawn: xr.DataArray, hours: list[str], path: Path) -> None:
    """Real and drawn fields beside each other, their means and standard deviations, spectra and daily cycle."""
    figure, axes = plt.subplots(4, 6, figsize=(16, 11), layout="constrained")
    extent = (float(real.longitude[0]), float(real.longitude[-1]), float(real.latitude[-1]), float(real.latitude[0]))

    def show(axis, values, title, low, high, cmap="RdYlBu_r"):
        image = axis.imshow(values, extent=extent, vmin=low, vmax=high, cmap=cmap, aspect=1.7)
        axis.set_title(title, fontsize=9)
        axis.tick_params(labelsize=6)
        return image

    low, high = float(real.quantile(0.01)), float(real.quantile(0.99))
    chosen = [int(hour) for hour in np.linspace(0, 23, 6).round()]
    of_hour = np.array([int(hour) for hour in hours])
    for column, hour in enumerate(chosen):
        index = 24 * (3 + 4 * column) + hour
        image = show(axes[0, column], real[index], f"ERA5, {str(real.time.values[index])[:16]}", low, high)
        one = drawn[int(np.flatnonzero(of_hour == hour)[0])]
        show(axes[1, column], one, f"drawn, hour {hour}, seed {int(one.seed)}", low, high)
    figure.colorbar(image, ax=axes[:2, :], label="2 m temperature, K", shrink=0.8)

    maps = [(real.mean("time"), drawn.mean("sample"), "mean"), (real.std("time"), drawn.std("sample"), "std")]
    for i, (x, y, name) in enumerate(maps):
        low, high = float(x.min()), float(x.max())
        show(axes[2, 3 * i], x, f"{name}, ERA5", low, high)
        image = show(axes[2, 3 * i + 1], y, f"{name}, drawn", low, high)
        figure.colorbar(image, ax=axes[2, 3 * i : 3 * i + 2], shrink=0.8, label="K")
        axes[2, 3 * i + 2].axis("off")

    for axis in axes[3]:
        axis.remove()
    grid = axes[3, 0].get_gridspec()
    (power_x, wavelength), (power_y, _) = spectrum(real.values), spectrum(drawn.values)
    axis = figure.add_subplot(grid[3, :2])
    axis.loglog(wavelength, power_x, "k", label="ERA5")
    axis.loglog(wavelength, power_y, "r--", label="drawn")
    axis.invert_xaxis()
    axis.set(xlabel="wavelength, km", ylabel="power, K²", title="spatial power spectrum")
    axis.legend()
    axis = figure.add_subplot(grid[3, 2:4])
    cycle = real.groupby("time.hour").mean().mean(("latitude", "longitude"))
    mean = drawn.mean(("latitude", "longitude")).values
    axis.plot(cycle.hour, cycle, "k", label="ERA5")
    axis.plot(range(24), [mean[of_hour == hour].mean() for hour in range(24)], "r--", label="drawn")
    axis.set(xlabel="hour (label)", ylabel="K", title="mean temperature by hour")
    axis = figure.add_subplot(grid[3, 4:])
    bins = np.linspace(float(real.min()), float(real.max()), 60).tolist()
    axis.hist(real.values.ravel(), bins, density=True, color="k", histtype="step")
    axis.hist(drawn.values.ravel(), bins, density=True, color="r", histtype="step", linestyle="--")
    axis.set(xlabel="K", title="distribution of values")
    figure.savefig(path, dpi=80)


def main(options: Options) -> int:
    """Returns the exit code of the training, 0 if all went well."""
    began = time.monotonic()
    arguments = ["train", "fields", "--data", str(options.data), *CROP, "--data-options.fields.label", "time.hour"]
    code = jit([*arguments, "--run", str(options.run), *options.train])
    if code:
        return code
    trained = time.monotonic()
    model = ji.load(options.run)
    assert model.spec is not None
    original = xr.open_dataset(options.data).t2m
    hours = [str(hour) for hour in original.time.dt.hour.values]  # as many of each as there are
    batches = generate(model, range(len(hours)), model.labels(hours), batch_size=options.batch_size)
    total = -(-len(hours) // options.batch_size)
    drawn = list(track(batches, description="sampling", total=total, transient=True))
    labels = [label for batch in drawn for label in batch.labels]
    dataset = ji.to_xarray(torch.cat([b.raw for b in drawn]), model.spec, seeds=range(len(hours)), labels=labels)
    write_fields(dataset, options.run / "samples.nc")

    back = xr.open_dataset(options.run / "samples.nc").t2m  # as anybody else would open it
    real = original.sel(latitude=back.latitude, longitude=back.longitude)
    result = {
        "what": "fields drawn after training on ERA5 2 m temperature, against all of the data",
        "device": str(model.device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "seconds_of_training": round(trained - began),
        "seconds_of_sampling": round(time.monotonic() - trained),
        "training": model.training_summary,
        "sampling": model.describe()["sampling"],
        "units": back.units,
        **compare(real, back),
    }
    result["training"]["data"] = result["training"]["data"].replace(str(options.data), options.data.name)
    (HERE / "comparison.json").write_text(json.dumps(result, indent=2) + "\n")
    picture(real, back, hours, HERE / "comparison.png")
    print(json.dumps({key: result[key] for key in list(result)[8:]}, indent=2))
    print(f"wrote {options.run / 'samples.nc'}, {HERE / 'comparison.png'} and comparison.json")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(tyro.cli(Options)))
