"""Trackers: what a run shows beside its folder, in TensorBoard, Weights & Biases or Trackio (extra `track`).

A tracker is one callable that gets a position, numbers and pictures. The position nimg is the only axis, whatever a
tracker calls its own; a run that is resumed goes on from it. What a tracker cannot do never stops a run.
"""

import json
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from math import isfinite
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from justimage.disk.whole import write_text
from justimage.evaluation.scores import Scores
from justimage.training.loop import Tick

Numbers = Mapping[str, float]
Pictures = Mapping[str, Image.Image]
Track = Callable[[int, Numbers, Pictures], None]


class Opened(NamedTuple):
    """What a tracker is told when it is opened."""

    folder: Path
    """The run folder: what is written on this machine goes into it."""
    facts: Mapping[str, Any]
    """What recipe.json says: the resolved recipe, data and versions."""
    nimg: int
    """From where the run goes on; what a tracker has of later times is from before a kill, and comes again."""


# What has been imported -> a tracker, for as long as the run goes on.
Tracker = Callable[[Opened], Any]


def tensorboard() -> Tracker:
    """Events in RUN/tensorboard; look at them with: tensorboard --logdir runs. ValueError where it is not installed."""
    try:
        from torch.utils.tensorboard.writer import SummaryWriter
    except ImportError as error:
        raise _missing("tensorboard") from error

    @contextmanager
    def opened(run: Opened) -> Iterator[Track]:
        with SummaryWriter(str(run.folder / "tensorboard"), purge_step=run.nimg + 1) as writer:
            writer.add_text("recipe", f"```json\n{json.dumps(run.facts, indent=2)}\n```", run.nimg)

            def track(nimg: int, numbers: Numbers, pictures: Pictures) -> None:
                for name, value in numbers.items():
                    writer.add_scalar(name, value, nimg)
                for name, image in pictures.items():
                    writer.add_image(name, np.asarray(image.convert("RGB")), nimg, dataformats="HWC")
                writer.flush()

            yield track

    return opened


def wandb() -> Tracker:
    """A run of Weights & Biases, with its files in RUN/wandb. ValueError where it is not installed."""
    try:
        import wandb as library  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise _missing("wandb") from error

    @contextmanager
    def opened(run: Opened) -> Iterator[Track]:
        known: dict[str, Any] = {
            "dir": str(run.folder),
            "id": _identity(run.folder / "wandb" / "id"),
            "resume": "allow",
        }
        known |= {"allow_val_change": True}  # what was changed when it was resumed
        kept = library.init(project=PROJECT, name=run.folder.name, config=dict(run.facts), **known)
        # The library's own step must never go back, as nimg does after a kill; so nimg is a number, and the axis.
        kept.define_metric("nimg")
        kept.define_metric("*", step_metric="nimg")
        try:
            yield _logging(library, lambda values, nimg: kept.log({**values, "nimg": nimg}))
        finally:
            kept.finish()

    return opened


def trackio() -> Tracker:
    """A run of Trackio, which keeps it on this machine (`trackio show`). ValueError where it is not installed."""
    try:
        import trackio as library  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise _missing("trackio") from error

    @contextmanager
    def opened(run: Opened) -> Iterator[Track]:
        name = f"{run.folder.name}-{_identity(run.folder / 'trackio' / 'id')}"
        library.init(project=PROJECT, name=name, config=dict(run.facts), resume="allow")
        try:
            yield _logging(library, lambda values, nimg: library.log(values, step=nimg))
        finally:
            library.finish()

    return opened


PROJECT = "justimage"
TRACKERS: dict[str, Callable[[], Tracker]] = {"tensorboard": tensorboard, "wandb": wandb, "trackio": trackio}


def _logging(library: ModuleType, log: Callable[[dict[str, Any], int], None]) -> Track:
    def track(nimg: int, numbers: Numbers, pictures: Pictures) -> None:
        log({**numbers, **{name: library.Image(image) for name, image in pictures.items()}}, nimg)

    return track


def _missing(name: str) -> ValueError:
    return ValueError(
        f"--track {name} needs {name}, which is not installed: pip install 'justimage[track]'"
        + (" trackio" if name == "trackio" else "")
    )


def _identity(path: Path) -> str:
    """What a run is called where other runs may have its folder's name; kept in a file of the run folder."""
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, secrets.token_hex(4))
    return path.read_text().strip()


def numbers_of_tick(tick: Tick) -> dict[str, float]:
    """The numbers of a tick, by name; those that are not finite are left out, as trackers draw curves."""
    numbers = {
        "train/loss": tick.loss,
        "train/grad_norm": tick.grad_norm,
        "train/lr": tick.lr,
        "train/skipped_steps": float(len(tick.skipped)),
        "speed/img_per_second": tick.img_per_second,
        "speed/waiting_on_data": tick.waiting_on_data,
        **{f"train/{name}": value for name, value in tick.terms.items() if name != "loss"},
    }
    return {name: value for name, value in numbers.items() if isfinite(value)}


def numbers_of_scores(scores: Scores) -> dict[str, float]:
    """The numbers of an evaluation, by name."""
    return {f"evaluation/{score.name}": score.value for score in scores.scores if isfinite(score.value)}


@contextmanager
def tracking(trackers: Sequence[Tracker], run: Opened, say: Callable[[str], None]) -> Iterator[Track]:
    """All trackers as one, in the block. One that fails is said, and left out from then on: log.jsonl has it all."""
    live: list[Track] = []

    def guarded(act: Callable[[], Any]) -> Any:
        try:
            return act()
        except Exception as error:  # whatever it is: a run of weeks does not end for it
            say(f"a tracker has stopped, and the run goes on without it: {type(error).__name__}: {error}")
            return None

    def track(nimg: int, numbers: Numbers, pictures: Pictures) -> None:
        for each in list(live):
            if guarded(lambda each=each: (each(nimg, numbers, pictures), True)) is None:
                live.remove(each)

    with ExitStack() as stack:
        for tracker in trackers:
            context = tracker(run)
            opened = guarded(context.__enter__)
            if opened is not None:
                live.append(opened)
                stack.callback(guarded, lambda context=context: context.__exit__(None, None, None))
        yield track
