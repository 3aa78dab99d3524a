"""`jit train`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from justimage.commands.console import console, interruptible, say
from justimage.commands.line import parse
from justimage.commands.main import DONE, FAILED, INTERRUPTED
from justimage.data.sources import open_source
from justimage.execution import find_device
from justimage.meeting import Patience
from justimage.parallel import first_then_others, join, leave, naming_the_gone
from justimage.runs.recipes import RECIPES, Recipe
from justimage.runs.run import Failed, Interrupted, hold_run, train_run


@dataclass(frozen=True)
class Train:
    """Train a recipe. The same command again resumes where it stopped."""

    recipe: Annotated[Recipe, tyro.conf.arg(name="")]
    data: Annotated[str | None, tyro.conf.arg(metavar="PATH")] = None
    """Images (folder, .zip, .tar, WebDataset shards), a table (.parquet, .arrow, a Hugging Face id), arrays (.npy,
    .npz), fields (.nc, .zarr), a pack, or `mnist`. `jit data inspect` shows what is understood."""
    run: Annotated[Path | None, tyro.conf.arg(aliases=["--run-dir"], metavar="DIR")] = None
    """The run folder; runs/RECIPE by default. Under torchrun, which takes --run for itself, write --run-dir."""
    minutes: Annotated[float | None, tyro.conf.arg(metavar="MINUTES")] = None
    """Stop and save after this many minutes; the same command resumes."""
    changed: Annotated[tuple[str, ...], tyro.conf.arg(metavar="[SETTING ...]")] = ()
    """Settings with which a run is meant to go on from its last state, where they differ from those it was begun with:
    of training.lr, training.clip-norm, .weight-decay, .betas, .warmup-nimg, .schedule, .duration-nimg. recipe.json
    records each change; afterwards the new settings are the run's, and need no --changed."""
    device: Annotated[str | None, tyro.conf.arg(metavar="DEVICE")] = None
    """cpu, cuda, ...; the accelerator by default, if there is one."""
    patience: Patience = field(default_factory=Patience)
    """Of several processes (docs/clusters.md)."""


def main(name: str, arguments: list[str]) -> int:
    """Train the recipe of this name; returns the exit code."""
    asked = parse(Train, arguments, f"jit train {name}", Train(RECIPES[name]))
    interruptible()
    recipe, folder = asked.recipe, asked.run or Path("runs") / name
    data = asked.data or recipe.default_data
    if not data:
        raise ValueError(f"{name} needs --data: a folder or archive of images, a table, arrays, fields or a pack")
    processes = join(find_device(asked.device), asked.patience)
    try:
        with naming_the_gone(processes):
            with hold_run(folder, processes):  # tried before the data are opened, which may take long
                pass
            network = recipe.network
            source = first_then_others(
                processes, lambda: open_source(data, network.size, network.channels, recipe.data_options)
            )
            train_run(
                recipe,
                source,
                folder,
                processes=processes,
                console=console,
                minutes=asked.minutes,
                data=data,
                changed=asked.changed,
            )
    except (Interrupted, Failed) as stop:
        if processes.first:
            say(str(stop))
        return FAILED if isinstance(stop, Failed) else DONE if stop.in_time else INTERRUPTED
    finally:
        leave(processes)
    if processes.first:
        say(f"done; draw samples with: jit sample {folder}")
    return DONE
