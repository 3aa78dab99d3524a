"""Where a run starts: from its own state, from weights, or from scratch; decided here, and said in its first line."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from justimage.denoiser import Denoiser
from justimage.disk.tensors import sum_of
from justimage.parallel import Processes, first_then_others
from justimage.runs.folder import Origin
from justimage.runs.recipes import Recipe
from justimage.training.build import build, initialise
from justimage.training.state import TrainingState, saved_states
from justimage.weights.folder import is_run
from justimage.weights.load import check_exists, read
from justimage.weights.transfer import Transfer, in_groups, transfer

SHOWN = 6  # tensors named in a line


@dataclass(frozen=True)
class InitFrom:
    """Weights that a new run starts from: whatever `weights.load.load` takes, and which of several."""

    path: str
    weights: str | None = None
    context_start: int | None = None


@dataclass(frozen=True)
class Start:
    """Which start it was, for the user, and where the weights of a run came from if it began from any."""

    lines: list[str]
    """The first says which it was."""
    origin: Origin | None = None
    new: bool = True
    """Whether it is not the run's own state."""


def check_start(recipe: Recipe, folder: Path, init_from: InitFrom | None, origin: Origin | None = None) -> None:
    """What can be refused before data or weights are opened.

    Raises ValueError where weights are needed and none are given, or those given do not exist; nothing is needed where
    the run has a state.
    """
    if saved_states(folder / "state"):
        return
    if init_from is not None:
        check_exists(init_from.path)
    elif origin is not None:
        raise ValueError(
            f"{folder} was begun from the weights of {origin.path}, and has no state yet; add --init-from {origin.path}"
        )
    elif recipe.training.lora.rank:
        raise ValueError(
            f"adapters of rank {recipe.training.lora.rank} need weights to stand beside: add --init-from WEIGHTS"
        )


def start(
    recipe: Recipe,
    model: Denoiser,
    folder: Path,
    processes: Processes,
    init_from: InitFrom | None = None,
    origin: Origin | None = None,
    **own: Any,
) -> tuple[TrainingState, Start]:
    """The state that a run goes on from.

    origin: the weights that the run in the folder was begun from, if it is there already. own: network, preconditioner,
    as for `load`. Raises ValueError as `check_start`, `read`, `transfer`, `build` and `TrainingState.restore` do.
    """
    check_start(recipe, folder, init_from, origin)
    states, training = saved_states(folder / "state"), recipe.training
    # Where a run starts is the first of these that there is:
    # 1. its own newest state: the same command resumes, and the weights that it began from are not opened again;
    # 2. the weights that --init-from names;
    # 3. weights drawn from the seed.
    if states:
        state = build(model, training, processes, anew=() if origin is None else origin.anew)
        state.restore(states[-1])
        _describe(model, origin)
        return state, Start([_resumed(state, states[-1], init_from, origin)], origin, new=False)
    if init_from is not None:
        base = first_then_others(processes, lambda: read(**_arguments(init_from), **own))
        initialise(model.net, training.seed)
        found = transfer(model, base, init_from.path)
        begun = _origin(init_from, base, found)
        state = build(model, training, processes, adopt=True, anew=begun.anew)
        _describe(model, begun)
        return state, Start([*_from_weights(begun, found), *_trained(state)], begun)
    return build(model, training, processes), Start([f"scratch, seed {training.seed}"])


def _arguments(init_from: InitFrom) -> dict[str, Any]:
    return {"source": init_from.path, "weights": init_from.weights, "context_start": init_from.context_start}


def _origin(init_from: InitFrom, base: Denoiser, found: Transfer) -> Origin:
    said = base.training_summary
    nimg = said.get("nimg")
    of_a_run = is_run(init_from.path)
    return Origin(
        **{**asdict(init_from), "weights": init_from.weights or (said.get("weights") if of_a_run else None)},
        sum=sum_of(base.net.state_dict()),
        nimg=nimg if isinstance(nimg, int) else None,
        licence=base.licence,
        loaded=len(found.loaded),
        resized=found.resized,
        drawn=found.drawn,
        left=found.left,
    )


def _describe(model: Denoiser, origin: Origin | None) -> None:
    """What weights made from others say of themselves: whose licence they have, and which ones they were."""
    if origin is not None:
        model.licence = model.licence or origin.licence
        model.training_summary |= {"began_from": _which(origin)}


def _which(origin: Origin) -> str:
    """The weights that a run began from, for the user."""
    facts = [origin.weights] if origin.weights else []
    facts += [f"trained on {origin.nimg:,} images"] if origin.nimg else []
    return origin.path + (f" ({', '.join(facts)})" if facts else "")


def _resumed(state: TrainingState, place: Path, init_from: InitFrom | None, origin: Origin | None) -> str:
    begun = "" if origin is None else f"; it began from the weights of {_which(origin)}"
    unread = "" if init_from is None else f"; --init-from {init_from.path} is not read, as the run has its own state"
    return f"resumed at nimg = {state.nimg:,}, from {place}{begun}{unread}"


def _from_weights(origin: Origin, found: Transfer) -> list[str]:
    """The first line, and the lists behind its numbers."""
    lines = [f"weights of {_which(origin)}: {found.counts()}"]
    lines += [f"  loaded   {in_groups(found.loaded)}"] if found.loaded else []
    skipped = found.left | {name: f"{why}; drawn anew" for name, why in found.drawn.items()}
    for title, some in (("resized", found.resized), ("skipped", skipped)):
        lines += [f"  {title}  {name}: {why}" for name, why in list(some.items())[:SHOWN]]
        lines += [f"  {title}  and {len(some) - SHOWN} more: {in_groups(list(some)[SHOWN:])}"] * (len(some) > SHOWN)
    return lines


def _trained(state: TrainingState) -> list[str]:
    """How much of the network is trained, where some of it is frozen."""
    sizes = [(p.numel(), p.requires_grad) for p in state.model.net.parameters()]
    trained, total = sum(size for size, learns in sizes if learns), sum(size for size, _ in sizes)
    if trained == total:
        return []
    return [f"  trained  {trained:,} of {total:,} parameters ({100 * trained / total:.1f} %); the rest is frozen"]
