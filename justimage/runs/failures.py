"""How a run ends that cannot go on: what stays of it, what is saved, and how to go on from there, in words."""

import contextlib
from pathlib import Path

from justimage.disk.whole import in_words
from justimage.parallel import FailedElsewhere, Processes, wait
from justimage.runs.recipes import Recipe
from justimage.runs.saving import save_all
from justimage.training.loop import NonFiniteLoss
from justimage.training.state import NotFinite, TrainingState, saved_states


def kept_in_the_end(state: TrainingState, folder: Path, recipe: Recipe, error: Exception, data: str) -> str:
    """Save the state that a run failed with, where one can go on from it; says what stays, and how to go on."""
    unfit = _why_not_kept(state, error)
    stays = _how_to_go_on(state, folder, recipe, error, unfit)
    if not unfit:
        try:
            save_all(state, folder, data, recipe.report.keep_states)
        except (OSError, FailedElsewhere) as unwritten:
            return what_stays(unwritten, folder)
    return stays


def leave_together(processes: Processes) -> None:
    """Wait for the other processes: one that leaves early closes the others' connections."""
    with contextlib.suppress(RuntimeError):  # one that has crashed does not come
        wait(processes)


def what_stays(error: Exception, folder: Path) -> str:
    """What could not be written, and where the same command goes on."""
    states = saved_states(folder / "state")
    nimg = int(states[-1].name) if states else 0
    what = in_words(error) if isinstance(error, OSError) else str(error)
    return f"{what}\nThe same command goes on from nimg = {nimg:,}, the newest state in {folder}"


def _why_not_kept(state: TrainingState, error: Exception) -> str:
    """Why one cannot go on from the state that a run failed with; empty where one can."""
    if isinstance(error, NonFiniteLoss):
        return "has got nowhere since the first of these batches"
    try:
        state.check_finite()
    except NotFinite:
        return "is not finite"
    return ""


def _how_to_go_on(state: TrainingState, folder: Path, recipe: Recipe, error: Exception, unfit: str) -> str:
    """What a run that failed leaves, and how to go on from it."""
    states = saved_states(folder / "state")
    lines = [f"The state at nimg = {state.nimg:,} is saved in {folder}"]
    if unfit:
        since = error.nimg if isinstance(error, NonFiniteLoss) else state.nimg
        same = [place for place in states if int(place.name) >= since]
        good = states[: len(states) - len(same)]
        lines = [f"The state at nimg = {state.nimg:,} {unfit}, so it is not saved"]
        if same:
            lines = [f"The state at nimg = {state.nimg:,} {unfit}: remove {' and '.join(map(str, same))}"]
        lines[0] += f"; the last good one is {good[-1]}" if good else "; there is no earlier one: a run begins anew"
    if isinstance(error, NonFiniteLoss):
        lines.append(f"jit replay {folder} {error.nimg} says which sample and which module of the first one it was")
    if isinstance(error, NonFiniteLoss | NotFinite):
        clip = "" if 0 < recipe.training.clip_norm <= 1 else " --training.clip-norm 1"
        names = "training.lr" + (" training.clip-norm" if clip else "")
        lines.append(
            f"To go on from there with other settings, add to the same command, for example: --training.lr "
            f"{recipe.training.lr / 4:.3g}{clip} --changed {names}"
        )
    return "\n".join(lines)
