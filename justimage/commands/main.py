"""The command `jit`: derived from the dataclasses and functions it calls."""

import sys
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import tyro
from PIL import Image
from rich.console import Console
from rich.markup import escape
from rich.progress import track

from justimage.commands.console import DONE, FAILED, INTERRUPTED, REFUSED, console
from justimage.commands.data import Inspect, Pack
from justimage.data.fields import xarray_library
from justimage.data.sources import open_source
from justimage.data.spec import DataSpec
from justimage.execution import device_called
from justimage.parallel import first_then_others, join, leave
from justimage.runs.recipes import RECIPES, Recipe
from justimage.runs.run import Failed, Interrupted, train_run
from justimage.samplers import Sampling
from justimage.sampling.fields import to_xarray, write_fields
from justimage.sampling.generate import generate
from justimage.sampling.pictures import grid, save
from justimage.weights.load import load, read
from justimage.weights.official import load_official, save_official


@dataclass(frozen=True)
class Train:
    """Train a recipe. The same command again resumes where it stopped."""

    recipe: Annotated[Recipe, tyro.conf.arg(name="")]
    data: str | None = None
    """Images (folder, .zip, .tar, WebDataset shards), a table (.parquet, .arrow, a Hugging Face id), arrays (.npy,
    .npz), fields (.nc, .zarr), a pack, or `mnist`. `jit data inspect` shows what is understood."""
    run: Annotated[Path | None, tyro.conf.arg(aliases=["--run-dir"])] = None
    """The run folder; runs/RECIPE by default. Under torchrun, which takes --run for itself, write --run-dir."""
    minutes: float | None = None
    """Stop and save after this many minutes; the same command goes on from there."""
    device: str | None = None
    """cpu, cuda, ...; the accelerator by default, if there is one."""
    name: tyro.conf.Suppress[str] = ""

    def __call__(self) -> int:
        data = self.data or self.recipe.default_data
        if not data:
            raise ValueError(
                f"{self.name} needs --data: a folder or archive of images, a table, arrays, fields or a pack"
            )
        processes = join(device_called(self.device))
        try:
            network = self.recipe.network
            options = self.recipe.data_options
            source = first_then_others(processes, lambda: open_source(data, network.size, network.channels, options))
            folder = self.run or Path("runs") / self.name
            train_run(
                self.recipe,
                source,
                folder,
                processes=processes,
                console=console,
                minutes=self.minutes,
                data=data,
            )
        except (Interrupted, Failed) as stop:
            if processes.first:
                console.print(str(stop), markup=False, soft_wrap=True)
            return FAILED if isinstance(stop, Failed) else DONE if stop.in_time else INTERRUPTED
        finally:
            leave(processes)
        if processes.first:
            console.print(f"done; draw samples with: jit sample {folder}", markup=False, soft_wrap=True)
        return DONE


@dataclass(frozen=True)
class Sample:
    """Draw samples: PNGs or arrays, and a grid."""

    model: tyro.conf.Positional[str]
    """A run folder, a weights folder, a hub id (USER/NAME), or an official .pth."""
    classes: tuple[str, ...] = ()
    """Classes by name or index, for example --classes cat dog 7; all of them (at most 10) by default."""
    count: int = 8
    """Samples of each class; or in all, without classes."""
    seeds: tuple[int, ...] = ()
    """Seeds, one for each sample of a class; 0, 1, 2, ... by default. Overrides --count."""
    out: Path = Path("samples")
    """Folder for the samples and grid.png. Files of the same name are replaced."""
    format: Literal["auto", "png", "npy", "nc", "zarr"] = "auto"
    """png: one image for each sample; npy: one array samples.npy (N, C, *S) of raw values; nc, zarr: one file with
    the names, units and coordinates that the data came with. auto: png for images, nc for fields, npy for the rest."""
    steps: int | None = None
    """Steps of the time grid. This and the next four: the settings in the checkpoint by default."""
    sampler: Literal["heun", "euler", "ab2"] | None = None
    """heun: 2 evaluations a step, the paper's; ab2: second order with 1; euler: first order."""
    guidance: float | None = None
    """Classifier-free guidance scale; 1 is none."""
    interval: tuple[float, float] | None = None
    """The times between which guidance acts, for example 0.1 1."""
    final: Literal["official", "x"] | None = None
    """The last step: floored as in the official code, or landing on the predicted x."""
    weights: Annotated[str | None, tyro.conf.arg(aliases=["--ema"])] = None
    """Which weights: ema-0.9999 or raw of a run; ema1, ema2 or model of an official .pth."""
    context_start: int | None = None
    """In-context start block of an official checkpoint that does not tell it."""
    batch_size: int = 16
    """Samples drawn at once; it changes the speed only."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """auto: bfloat16 where the hardware is faster in it."""
    device: str | None = None
    """cpu, cuda, ...; the accelerator by default, if there is one."""

    def __call__(self) -> int:
        if self.batch_size < 1 or self.count < 1:
            raise ValueError(f"batch_size ({self.batch_size}) and count ({self.count}) must be at least 1")
        if self.out.exists() and not self.out.is_dir():
            raise ValueError(f"{self.out} is a file; --out is a folder")
        dtypes = {"auto": None, "float32": torch.float32, "bfloat16": torch.bfloat16}
        model = load(
            self.model,
            weights=self.weights,
            context_start=self.context_start,
            device=self.device,
            dtype=dtypes[self.precision],
        )
        form = file_format(self.format, model.spec)
        asked_for = self.classes or range(min(model.config.num_classes, 10))
        classes = model.labels(list(asked_for)) if asked_for else []
        per_class = list(self.seeds or range(self.count))
        labels = [label for label in classes for _ in per_class] if classes else None
        seeds = per_class * max(len(classes), 1)
        asked = {field.name: getattr(self, field.name) for field in fields(Sampling)}
        settings = {name: value for name, value in asked.items() if value is not None}

        batches = generate(model, seeds, labels, batch_size=self.batch_size, **settings)
        rounds = -(-len(seeds) // self.batch_size)
        drawn = list(track(batches, description="sampling", total=rounds, console=console, transient=True))
        raw = torch.cat([batch.raw for batch in drawn])

        self.out.mkdir(parents=True, exist_ok=True)
        spec = model.spec
        if form == "png":
            for sample, seed, label in zip(raw, seeds, labels or [-1] * len(seeds), strict=True):
                save(plain_image(sample), self.out / f"{file_stem(model, label)}seed{seed:04d}.png")
            written = f"{len(raw)} PNGs"
        elif form == "npy" or spec is None:
            np.save(self.out / "samples.npy", raw.numpy())
            if labels is not None:
                np.save(self.out / "labels.npy", np.array(labels))
            written = f"samples.npy {tuple(raw.shape)}"
        else:
            dataset = to_xarray(raw, spec, seeds=seeds, labels=labels)
            write_fields(dataset, self.out / f"samples.{form}")
            written = f"samples.{form} ({', '.join(map(str, dataset.data_vars))}) {tuple(raw.shape)}"
        if spec is not None:
            titles = [spec.classes[label] if label < len(spec.classes) else "none" for label in classes]
            save(grid(raw, spec, len(per_class), row_titles=titles), self.out / "grid.png")
            written += " and grid.png"
        console.print(f"wrote {written} to {self.out}", markup=False, soft_wrap=True)
        return DONE


def file_format(asked: str, spec: DataSpec | None) -> str:
    """png, npy, nc or zarr. Raises ValueError where the samples cannot be written so."""
    pixels = spec is not None and spec.image and len(spec.channels) in (1, 3, 4)
    if asked == "png" and not pixels:
        raise ValueError("these samples are no 8-bit images; write them with --format npy, nc or zarr")
    if asked in ("nc", "zarr") and spec is None:
        raise ValueError("these weights do not say what their values mean; write them with --format npy")
    if asked == "auto":
        asked = "png" if pixels else "npy" if spec is None or spec.origin is None else "nc"
    if asked in ("nc", "zarr"):
        xarray_library()  # refuses now, not after the sampling
    return asked


def file_stem(model: Any, label: int) -> str:
    """The class in a file's name: its name where that can be one, else its number."""
    if label < 0:
        return ""
    name = model.spec.classes[label] if label < len(model.spec.classes) else "none"
    safe = "".join(c if c.isalnum() or c in "-_" else "-" for c in name)
    return f"{safe}-"


def plain_image(sample: torch.Tensor) -> Image.Image:
    """A raw 8-bit sample (C, h, w) as a PIL image of its own size."""
    pixels = sample.numpy()
    return Image.fromarray(pixels[0] if len(pixels) == 1 else np.ascontiguousarray(np.moveaxis(pixels, 0, -1)))


@dataclass(frozen=True)
class Convert:
    """Convert weights: an official .pth or .safetensors to a weights folder, or a weights folder to one of these."""

    source: tyro.conf.Positional[Path]
    """An official checkpoint; or a run or weights folder."""
    target: tyro.conf.Positional[Path]
    """A weights folder to make; or a .pth or .safetensors in the official layout."""
    weights: str | None = None
    """Which weights of the source: ema1 (default), ema2 or model of a .pth; ema-0.9999 or raw of a run."""
    context_start: int | None = None
    """In-context start block of an official checkpoint that does not tell it (4, 8, 10, 10 in B, L, H, G)."""

    def __call__(self) -> int:
        if self.source.is_file():
            if self.target.exists() and (not self.target.is_dir() or any(self.target.iterdir())):
                raise ValueError(f"{self.target} exists and is not written over")
            load_official(self.source, self.weights, self.context_start).save_pretrained(self.target)
        else:
            save_official(read(self.source, weights=self.weights), self.target)
        console.print(f"wrote {self.target}", markup=False, soft_wrap=True)
        return DONE


def command() -> Any:
    """The type of the command line: train with a subcommand for each recipe, sample, data, convert."""
    jobs = {name: Train(recipe, name=name) for name, recipe in RECIPES.items()}
    promises = {name: f"{r.promise.what}. {r.promise.paper}" for name, r in RECIPES.items()}
    recipes = tyro.extras.subcommand_type_from_defaults(jobs, promises)
    train = Annotated[recipes, tyro.conf.subcommand("train", description=Train.__doc__)]
    sample = Annotated[Sample, tyro.conf.subcommand("sample", description=Sample.__doc__)]
    convert = Annotated[Convert, tyro.conf.subcommand("convert", description=Convert.__doc__)]
    inspect = Annotated[Inspect, tyro.conf.subcommand("inspect", description=Inspect.__doc__)]
    pack = Annotated[Pack, tyro.conf.subcommand("pack", description=Pack.__doc__)]
    looking = "Look at data before training, or decode them once into a pack."
    data = Annotated[inspect | pack, tyro.conf.subcommand("data", description=looking)]  # type: ignore[operator]
    return train | sample | data | convert  # type: ignore[operator]


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code: 0 done, 1 failed, 2 refused, 3 interrupted."""
    try:
        chosen: Callable[[], int] = tyro.cli(
            command(),
            prog="jit",
            description="Diffusion transformers directly on raw arrays.",
            args=arguments,
        )
        return chosen()
    except ValueError as error:
        Console(stderr=True).print(f"[red]jit:[/] {escape(str(error))}", soft_wrap=True, highlight=False)
        return REFUSED
    except KeyboardInterrupt:
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
