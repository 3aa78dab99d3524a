"""Weather: train on ERA5 temperature, draw fields, write them as NetCDF, and compare them with the data.

    python examples/weather/weather.py era5-t2m-uk-2019-03.nc

The data are hourly 2 m temperatures over the United Kingdom, March 2019: 744 fields, cut to 32x48 points, with the hour
of the day as the label. Writes runs/weather/, the generated fields in samples.nc, and beside this script comparison.png
and comparison.json: mean, standard deviation and power spectrum of as many generated fields as there are real ones.
"""

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import matplotlib
import numpy as np
import torch
import tyro
import xarray as xr
from matplotlib import pyplot as plt
from rich.progress import track

import justimage as ji
from justimage.commands.main import main as jit
from justimage.execution import device_name
from justimage.sampling.fields import write_fields

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
    """The run folder; a run that is already there is resumed."""
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
            "real_falls_by": round(float(power_x.max() / power_x.min())),
            "log10_rms": round(float(np.sqrt((np.log10(ratio) ** 2).mean())), 3),
        },
    }


def numbers(result: dict) -> str:
    """The numbers as a table for the README beside this script."""
    rows = ["| | ERA5 | drawn |", "|---|---|---|"]
    for name, key in (("fields", "fields"), ("mean, K", "mean_kelvin"), ("standard deviation, K", "std_kelvin")):
        rows.append(f"| {name} | {result[key]['real']} | {result[key]['drawn']} |")
    power = result["spectrum"]
    low, high = min(power["drawn_over_real"]), max(power["drawn_over_real"])
    waves = power["wavelength_km"]
    return "\n".join(
        [
            *rows,
            "",
            f"The maps of the mean differ by {result['map_of_means_rms_difference_kelvin']} K, those of the standard "
            f"deviation by {result['map_of_stds_rms_difference_kelvin']} K (root mean square). The power drawn is "
            f"{low} to {high} times that of ERA5 on waves from {waves[-1]:.0f} to {waves[0]:.0f} km, over "
            f"which ERA5's falls by a factor of {power['real_falls_by']:,}.",
            "",
            f"Measured after {result['training']['nimg']:,} samples, {result['seconds_of_training']} s of training and "
            f"{result['seconds_of_sampling']} s of sampling with {result['threads']} threads of {result['processor']} "
            f"(torch {result['torch']}, seed 0); all numbers are in comparison.json.",
        ]
    )


def with_numbers(text: str, result: dict) -> str:
    """The README with its numbers made anew."""
    before, _, rest = text.partition("<!-- numbers -->")
    return f"{before}<!-- numbers -->\n{numbers(result)}\n<!-- /numbers -->{rest.partition('<!-- /numbers -->')[2]}"


def picture(real: xr.DataArray, drawn: xr.DataArray, hours: list[str], path: Path) -> None:
    """Real and drawn fields beside each other, their means and standard deviations, spectra and daily cycle."""
    figure = plt.figure(figsize=(14, 13), layout="constrained")
    above, middle, below = figure.subfigures(3, 1, squeeze=False, height_ratios=[2, 1, 1.1])[:, 0]
    extent = (float(real.longitude[0]), float(real.longitude[-1]), float(real.latitude[-1]), float(real.latitude[0]))

    def show(axis, values, title, low, high):
        image = axis.imshow(values, extent=extent, vmin=low, vmax=high, cmap="RdYlBu_r", aspect=1.7)
        axis.set_title(title, fontsize=9)
        axis.tick_params(labelsize=6)
        return image

    low, high = float(real.quantile(0.01)), float(real.quantile(0.99))
    of_hour = np.array([int(hour) for hour in hours])
    axes = above.subplots(2, 6)
    for column, hour in enumerate(np.linspace(0, 23, 6).round().astype(int).tolist()):
        index = 24 * (3 + 4 * column) + hour
        show(axes[0, column], real[index], f"ERA5, {str(real.time.values[index])[:16]}", low, high)
        one = drawn[int(np.flatnonzero(of_hour == hour)[0])]
        image = show(axes[1, column], one, f"drawn, hour {hour}, seed {int(one.seed)}", low, high)
    above.colorbar(image, ax=axes, label="2 m temperature, K", shrink=0.8)

    axes = middle.subplots(1, 4)
    maps = [(real.mean("time"), drawn.mean("sample"), "mean"), (real.std("time"), drawn.std("sample"), "std")]
    for pair, (x, y, name) in zip((axes[:2], axes[2:]), maps, strict=True):
        low, high = float(x.min()), float(x.max())
        show(pair[0], x, f"{name}, ERA5", low, high)
        image = show(pair[1], y, f"{name}, drawn", low, high)
        middle.colorbar(image, ax=pair, shrink=0.8, label="K")

    axes = below.subplots(1, 3)
    (power_x, wavelength), (power_y, _) = spectrum(real.values), spectrum(drawn.values)
    axes[0].loglog(wavelength, power_x, "k", label="ERA5")
    axes[0].loglog(wavelength, power_y, "r--", label="drawn")
    axes[0].invert_xaxis()
    axes[0].set_xticks([800, 400, 200, 100, 60], labels=["800", "400", "200", "100", "60"], minor=False)
    axes[0].set_xticks([], minor=True)
    axes[0].set(xlabel="wavelength, km", ylabel="power, K²", title="spatial power spectrum")
    axes[0].legend()
    cycle = real.groupby("time.hour").mean().mean(("latitude", "longitude"))
    mean = drawn.mean(("latitude", "longitude")).values
    axes[1].plot(cycle.hour, cycle, "k")
    axes[1].plot(range(24), [mean[of_hour == hour].mean() for hour in range(24)], "r--")
    axes[1].set(xlabel="hour (label)", ylabel="K", title="mean temperature by hour")
    bins = np.linspace(float(real.min()), float(real.max()), 60).tolist()
    axes[2].hist(real.values.ravel(), bins, density=True, color="k", histtype="step")
    axes[2].hist(drawn.values.ravel(), bins, density=True, color="r", histtype="step", linestyle="--")
    axes[2].set(xlabel="K", title="distribution of values")
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
    batches = ji.generate(model, range(len(hours)), model.labels(hours), batch_size=options.batch_size)
    total = -(-len(hours) // options.batch_size)
    drawn = list(track(batches, description="sampling", total=total, transient=True))
    labels = [label for batch in drawn for label in batch.labels]
    dataset = ji.to_xarray(torch.cat([b.raw for b in drawn]), model.spec, seeds=range(len(hours)), labels=labels)
    write_fields(dataset, options.run / "samples.nc")

    back = xr.open_dataset(options.run / "samples.nc").t2m  # as anybody else would open it
    real = original.sel(latitude=back.latitude, longitude=back.longitude)
    result = {
        "what": "fields drawn after training on ERA5 2 m temperature, against all of the data",
        "processor": device_name(model.device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "seconds_of_training": round(trained - began),
        "seconds_of_sampling": round(time.monotonic() - trained),
        "training": model.training_summary,
        "sampling": asdict(model.sampling),
        "units": back.units,
        **compare(real, back),
    }
    result["training"]["data"] = result["training"]["data"].replace(str(options.data), options.data.name)
    (HERE / "comparison.json").write_text(json.dumps(result, indent=2) + "\n")
    (HERE / "README.md").write_text(with_numbers((HERE / "README.md").read_text(), result))
    picture(real, back, hours, HERE / "comparison.png")
    print(json.dumps({key: result[key] for key in list(result)[8:]}, indent=2))
    print(f"wrote {options.run / 'samples.nc'}, {HERE / 'comparison.png'} and comparison.json")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(tyro.cli(Options)))
