"""`jit train`."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from justimage.commands.console import console, interruptible, say
from justimage.commands.line import parse
from justimage.commands.main import DONE, FAILED, INTERRUPTED
from justimage.data.sources import open_source
from justimage.data.spec import DataSpec
from justimage.execution import find_device
from justimage.meeting import Patience
from justimage.parallel import first_then_others, join, leave, naming_the_gone
from justimage.runs.folder import origin_of, read_facts
from justimage.runs.recipes import RECIPES, Recipe
from justimage.runs.run import Failed, Interrupted, hold_run, train_run
from justimage.runs.starts import InitFrom, check_start
from justimage.runs.track import TRACKERS

Named = Literal["tensorboard", "wandb", "trackio"]


@dataclass(frozen=True)
class Train:
    """Train a recipe. The same command again resumes where it stopped.

    Another training begins in another folder (--run), from scratch or from weights (--init-from).
    """

    recipe: Annotated[Recipe, tyro.conf.arg(name="")]
    data: Annotated[str | None, tyro.conf.arg(metavar="PATH")] = None
    """Images (folder, .zip, .tar, WebDataset shards), a table (.parquet, .arrow, a Hugging Face id), arrays (.npy,
    .npz), fields (.nc, .zarr), a pack, or `mnist`. `jit data inspect` shows what is understood."""
    run: Annotated[Path | None, tyro.conf.arg(aliases=["--run-dir"], metavar="DIR")] = None
    """The run folder; runs/RECIPE by default. Under torchrun, which takes --run for itself, write --run-dir."""
    init_from: Annotated[str | None, tyro.conf.arg(metavar="WEIGHTS")] = None
    """Start a new run from weights: a run, a weights folder, adapters, a hub id or an official .pth. What is loaded,
    resized and skipped is listed. A run that has a state of its own goes on from that."""
    weights: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    """Which weights of --init-from: of a run its first average by default, or raw, best, ema-0.9999@000640000; of an
    official .pth ema1 by default, or ema2, model."""
    context_start: Annotated[int | None, tyro.conf.arg(metavar="BLOCK")] = None
    """In-context start block of an official checkpoint (--init-from) that does not record it."""
    minutes: Annotated[float | None, tyro.conf.arg(metavar="MINUTES")] = None
    """Stop and save after this many minutes; the same command resumes."""
    changed: Annotated[tuple[str, ...], tyro.conf.arg(metavar="[SETTING ...]")] = ()
    """Settings with which a run is meant to go on from its last state, where they differ from those it was begun with:
    of training.lr, training.clip-norm, .weight-decay, .betas, .warmup-nimg, .schedule, .duration-nimg. recipe.json
    records each change; afterwards the new settings are the run's, and need no --changed."""
    track: Annotated[tuple[Named, ...], tyro.conf.arg(metavar="[TRACKER ...]")] = ()
    """Show numbers, evaluations and grids in tensorboard or wandb (extra `track`), or trackio (pip install trackio)."""
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
    trackers = [TRACKERS[each]() for each in dict.fromkeys(asked.track)]  # refuses what is not installed
    if asked.init_from is None and (asked.weights or asked.context_start is not None):
        raise ValueError(
            "--weights and --context-start say which weights of --init-from are meant, and it is not given"
        )
    init_from = InitFrom(asked.init_from, asked.weights, asked.context_start) if asked.init_from else None
    processes = join(find_device(asked.device), asked.patience)
    try:
        with naming_the_gone(processes):
            with hold_run(folder, processes):  # tried before the data are opened, which may take long
                check_start(recipe, folder, init_from, origin_of(read_facts(folder)))
            network = recipe.network
            source = first_then_others(
                processes, lambda: open_source(data, network.size, network.channels, recipe.data_options)
            )
            if processes.first:
                for told in without_use(recipe, RECIPES[name], source.spec):
                    say(told)
            train_run(
                recipe,
                source,
                folder,
                processes=processes,
                console=console,
                minutes=asked.minutes,
                data=data,
                track=trackers,
                changed=asked.changed,
                init_from=init_from,
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


def without_use(recipe: Recipe, usual: Recipe, spec: DataSpec) -> list[str]:
    """In words, options on the network that the user gave and that count for nothing: the data say it."""
    theirs = {"size": tuple(spec.size), "channels": (len(spec.channels),)}

    def of(network: Any, option: str) -> tuple[int, ...]:
        value = getattr(network, option)
        return tuple(value) if isinstance(value, tuple | list) else (value,)

    def text(values: tuple[int, ...]) -> str:
        return " ".join(map(str, values))

    return [
        f"--network.{option} {text(asked)} counts for nothing here: it is {text(found)}, as the data are"
        for option, found in theirs.items()
        for asked in [of(recipe.network, option)]
        if asked not in (of(usual.network, option), found)
    ]
