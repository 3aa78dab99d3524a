"""A run as a folder: recipe.json says what is trained, log.jsonl how it goes; and whether a folder is this run's.

recipe.json            the resolved recipe, versions, and hashes of the data and of a sample of their content
log.jsonl              one line for each tick
health.jsonl           one line for each measurement of the run's health, and one where training failed
evaluations.jsonl      one line for each evaluation, while training or by `jit evaluate`
skipped.jsonl          one line for each step that was skipped as its loss or gradient was not finite, with its samples
samples/000025600.png  fixed seeds: raw weights and average, without and with guidance
state/000025600/       what resuming restores
weights/ema-0.9995/    enough to sample
weights/best/          those of the evaluation with the lowest Frechet distance so far
weights/raw@000640000/ those of a milestone; its state has a file named milestone, and stays
snapshots/             averages of training.ema_stds (snapshots.py)
adapters/ema-0.9995/   where adapters are trained (lora.rank): these alone, for the base that recipe.json names
"""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any

from justimage.data.records import from_known, read_json, replaced
from justimage.data.spec import DataSpec, Source, StreamSource
from justimage.denoiser import Denoiser
from justimage.disk.hold import is_empty
from justimage.execution import versions
from justimage.networks.protocol import OLDEST, name_of
from justimage.process import LogitNormal
from justimage.runs.recipes import Recipe
from justimage.training.adapters import LoRA
from justimage.weights.folder import RECIPE

LOG, RESULTS, SKIPPED, HEALTH = "log.jsonl", "evaluations.jsonl", "skipped.jsonl", "health.jsonl"

# What may differ when a run is resumed: it changes how fast, how often or how long, but no number that was computed.
FREE_TO_CHANGE = (
    *("promise.", "report.", "data_options."),
    *("training.microbatch", "training.checkpoint", "training.shard", "training.compile", "training.most_skipped"),
)
# Fields that a recipe.json may lack, since they came later -> the value that means "as before", given the older recipe
# and the data.
CAME_LATER: dict[str, Any] = {
    "training.ema_start_nimg": lambda old, spec: 1000 * old["training.batch_size"],
    "training.mirror": lambda old, spec: "on" if _mirrored(old, spec) else "off",
    "training.classification": lambda old, spec: 0.0,
    **{f"training.lora.{item.name}": lambda old, spec, value=item.default: value for item in fields(LoRA)},
    "network.conditions": lambda old, spec: (),
    "network.classifier_after": lambda old, spec: 0,
    "data_options.conditions": lambda old, spec: (),
    "sampling.shift": lambda old, spec: 1.0,
    "sampling.guidance_every": lambda old, spec: 1,
    "report.evaluate_nimg": lambda old, spec: 0,
    "training.ema_warmup": lambda old, spec: 9,
    "training.ema_every": lambda old, spec: 1,
    "training.ema_stds": lambda old, spec: (),
    "data_options.held_out": lambda old, spec: 0.0,
}
PAPER = "flow_matching"  # the loss where none is named
REPLACED = ("training.flip", "training.flip_fields")  # fields that it may have, since replaced by others


def _mirrored(old: dict[str, Any], spec: DataSpec) -> bool:
    return bool(old.get("training.flip" if spec.image else "training.flip_fields", False))


# What a run that goes wrong may be resumed with, where the user says that it is meant (--changed).
CHANGEABLE = tuple(
    f"training.{name}"
    for name in ("lr", "clip_norm", "weight_decay", "betas", "warmup_nimg", "schedule", "duration_nimg")
)


@dataclass(frozen=True)
class Change:
    """Settings that were changed when a run was resumed: name -> (before, after), and nimg from which they hold."""

    nimg: int
    settings: dict[str, Any]


@dataclass(frozen=True)
class Origin:
    """What recipe.json says, under `init_from`, of the weights that a run began from."""

    path: str
    sum: str
    """Of their tensors (`disk.sum_of`)."""
    weights: str | None = None
    context_start: int | None = None
    nimg: int | None = None
    """Images that they were trained on, where they say so."""
    licence: str = ""
    loaded: int = 0
    resized: dict[str, str] = field(default_factory=dict)
    drawn: dict[str, str] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)

    @property
    def anew(self) -> set[str]:
        """Tensors with something in them that these weights do not have: they are trained beside adapters."""
        return {*self.resized, *self.drawn}


@dataclass(frozen=True)
class _Data:
    fingerprint: str
    found: str


@dataclass(frozen=True)
class _Facts:
    """What is read of a recipe.json; which fields its recipe has depends on the version that wrote it."""

    recipe: dict[str, Any]
    data: dict[str, Any]
    network: str = OLDEST
    loss: str = PAPER
    as_before: tuple[str, ...] = ()
    changed: tuple[Change, ...] = ()
    init_from: Origin | None = None


def facts_of(
    recipe: Recipe, source: Source | StreamSource, model: Denoiser, data: str, loss: str = ""
) -> dict[str, Any]:
    """What recipe.json says. `recipe` is the one fitted to the data; loss names one that is the user's own."""
    plain = json.loads(json.dumps(asdict(recipe)))
    plain["preconditioner"] = model.preconditioner
    times = recipe.training.times
    if type(times) is not LogitNormal:  # a density of the user's own: two with equal fields are still two
        plain["training"]["times"]["density"] = called(type(times))
    facts = {
        "network": name_of(model.net),
        "recipe": plain,
        "data": {"path": data, "fingerprint": source.fingerprint(), **_content(source), "found": source.describe()},
        "versions": versions(),
    }
    return facts | ({"loss": loss} if loss else {})


def _content(source: Source | StreamSource) -> dict[str, str]:
    """The hash of the samples themselves, if they can be looked at before training: a stream's cannot."""
    return {"content": source.content()} if source.indexed is True else {}


def same_data(theirs: dict[str, Any], ours: dict[str, Any]) -> bool:
    """Whether two runs have the same data, held in whatever way; older runs say only where their samples come from."""
    both = "content" if "content" in theirs and "content" in ours else "fingerprint"
    return theirs[both] == ours[both]


def called(value: Any) -> str:
    """What recipe.json calls something of the user's own: a function or class by module and name, others by value."""
    if isinstance(value, partial):
        filled = [*map(called, value.args), *(f"{name}={called(each)}" for name, each in value.keywords.items())]
        return f"{called(value.func)}({', '.join(filled)})"
    if callable(value) and (isinstance(value, type) or not is_dataclass(value)):  # a dataclass says its fields
        named = value if hasattr(value, "__qualname__") else type(value)
        if "<" in named.__qualname__:  # <lambda>, or inside of a function: another one may have the same name
            raise ValueError(
                f"recipe.json cannot tell {named.__qualname__} from others like it; write it as a `def` or class of "
                "its own, and give it settings with functools.partial"
            )
        return f"{named.__module__}.{named.__qualname__}"
    return repr(value)


def read_facts(folder: Path) -> dict[str, Any] | None:
    """What recipe.json of a folder says; None for a new or empty folder. ValueError where it is something else."""
    if not folder.exists() or (folder.is_dir() and is_empty(folder)):
        return None
    path = folder / RECIPE
    if not folder.is_dir() or not path.is_file():
        raise ValueError(f"{folder} is not empty and not a run; choose another folder with --run")
    for name in ("state", "samples", "weights", "snapshots"):
        if os.path.lexists(folder / name) and not (folder / name).is_dir():
            raise ValueError(f"{folder / name} is not a folder, and a run keeps its {name} there; remove it")
    kept = {LOG: "log", RESULTS: "evaluations", SKIPPED: "skipped steps", HEALTH: "health"}
    for name, what in kept.items():
        if os.path.lexists(folder / name) and not (folder / name).is_file():
            raise ValueError(f"{folder / name} is not a file, and a run keeps its {what} there; remove it")
    try:
        old = read_json(path)
        facts = from_known(_Facts, old, str(path))
        from_known(_Data, facts.data, str(path), "data")
        batch = flat(facts.recipe).get("training.batch_size")
        if not isinstance(batch, int) or isinstance(batch, bool):
            raise ValueError(f"{path}: recipe.training.batch_size is {batch!r}; a whole number is needed")
    except ValueError as error:
        raise ValueError(
            f"{path} is damaged ({error}); choose another folder with --run, or remove this one"
        ) from error
    return old


def origin_of(old: dict[str, Any] | None) -> Origin | None:
    """The weights that a run in a folder began from, by its recipe.json; None where it began from scratch."""
    said = (old or {}).get("init_from")
    return None if said is None else Origin(**said)


def with_older_defaults(recipe: Recipe, old: dict[str, Any] | None, spec: DataSpec) -> tuple[Recipe, dict[str, Any]]:
    """The recipe with fields that came after the run began set to "as before" -> it, and these fields' values.

    They are those that the run's recipe lacks, and those that an earlier resume has filled in and listed.
    """
    theirs = {} if old is None else flat(old["recipe"])
    ours = flat(asdict(recipe))
    later = {
        name: value(theirs, spec)
        for name, value in CAME_LATER.items()
        if theirs and name in ours and name not in theirs
    }
    later |= {name: theirs[name] for name in (old or {}).get("as_before", []) if name in theirs and name in CAME_LATER}
    for name, value in later.items():
        recipe = replaced(recipe, {name: value}, f"{RECIPE}: ")
    return recipe, {name: value for name, value in later.items() if value != ()}


def changeable(names: Sequence[str]) -> tuple[str, ...]:
    """Settings as a user names them (lr, training.clip-norm) -> as recipe.json does. ValueError for any others."""
    dotted = tuple(f"training.{name.removeprefix('training.').replace('-', '_')}" for name in names)
    for given, name in zip(names, dotted, strict=True):
        if name not in CHANGEABLE:
            raise ValueError(f"--changed {given}: what a run may be resumed with are {', '.join(CHANGEABLE)}")
    return dotted


def changes_of(
    old: dict[str, Any] | None, facts: dict[str, Any], changed: Sequence[str], nimg: int
) -> list[dict[str, Any]]:
    """What recipe.json says of the settings that were changed on the way: those of before, and those of now."""
    if old is None:
        return []
    theirs, ours = flat(old["recipe"]), flat(facts["recipe"])
    now = {name: [theirs.get(name), ours[name]] for name in changed if theirs.get(name) != ours[name]}
    return [*old.get("changed", []), *([asdict(Change(nimg, now))] if now else [])]


def settings_at(facts: dict[str, Any], nimg: int) -> dict[str, Any]:
    """What settings that were changed after nimg were there, by recipe.json: name -> value."""
    before: dict[str, Any] = {}
    for change in reversed(facts.get("changed", [])):
        if change["nimg"] > nimg:
            before |= {name: values[0] for name, values in change["settings"].items()}
    return before


def check_same(folder: Path, old: dict[str, Any] | None, facts: dict[str, Any], changed: Sequence[str] = ()) -> None:
    """Raises ValueError where a folder holds the run of another recipe, or of a newer version.

    changed: settings that are meant to differ, as `changeable` gives them.
    """
    if old is None:
        return
    theirs, ours = flat(old["recipe"]), flat(facts["recipe"])
    open_ended = ("training.times.",)  # a density may have any fields
    unknown = [name for name in theirs if name not in (*ours, *REPLACED) and not name.startswith(open_ended)]
    if unknown and old.get("network", OLDEST) == facts["network"]:
        raise ValueError(
            f"{folder / RECIPE} has settings that this version does not know: {', '.join(sorted(unknown))}. The run "
            "was begun by a newer version; resume it with that, or choose another folder with --run"
        )
    theirs["network"], ours["network"] = old.get("network", OLDEST), facts["network"]
    theirs["loss"], ours["loss"] = old.get("loss", PAPER), facts.get("loss", PAPER)
    free = FREE_TO_CHANGE
    if theirs.get("training.schedule") == "constant":  # a cosine depends on its end, a constant rate does not
        free = (*free, "training.duration_nimg")
    as_before = {name for name in CAME_LATER if name not in theirs}  # see with_older_defaults
    differ = [
        name
        for name in sorted(theirs.keys() | ours.keys())
        if theirs.get(name) != ours.get(name)
        and not name.startswith(free)
        and name not in {*REPLACED, *as_before, *changed}
    ]
    differing = [f"  {name}: {theirs.get(name)} in the run, {ours.get(name)} in the command" for name in differ]
    meant = bool(differ) and set(differ) <= set(CHANGEABLE) and same_data(old["data"], facts["data"])
    if not same_data(old["data"], facts["data"]):
        was, now = old["data"]["found"], facts["data"]["found"]
        differing.append(
            f"  data: {was} in the run, {now} in the command"
            if was != now
            else f"  data: {now}, but they are not the samples that the run was begun with: some were changed"
        )
    if differing:
        raise ValueError(
            f"{folder} holds a run of another recipe:\n" + "\n".join(differing) + "\n"
            "Give the same settings to resume it, or another folder with --run"
            + (f"; or add --changed {' '.join(differ)} to go on with the new ones" if meant else "")
        )


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as one, with dotted names."""
    out: dict[str, Any] = {}
    for name, value in values.items():
        out |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return out


def log_until(path: Path, nimg: int, *, others: bool = False) -> str:
    """The log up to the state that a run is resumed from: what comes after will be written again.

    others: lines without nimg are not of the training, and stay. A last line that a kill cut in two is left out. Raises
    ValueError for any other line that is no tick.
    """
    if not path.is_file():
        return ""
    lines = path.read_text(errors="replace").splitlines(keepends=True)
    kept = []
    for number, line in enumerate(lines, 1):
        try:
            tick = json.loads(line)
        except (ValueError, RecursionError):
            tick = None
            if number == len(lines) and not line.endswith("\n"):
                continue
        at = tick.get("nimg", 0 if others else None) if isinstance(tick, dict) else None
        if not isinstance(at, int):
            what = "an evaluation" if others else "a tick with its nimg"
            raise ValueError(
                f"{path} is damaged: line {number} is not {what} but {line.strip()[:60]!r}; remove this line"
            )
        if at <= nimg:
            kept.append(line)
    return "".join(kept)
