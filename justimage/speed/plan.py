"""A plan: what a recipe will take, measured in a rehearsal on this machine, or estimated for other hardware."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from justimage.data.spec import DataSpec
from justimage.denoiser import Denoiser
from justimage.execution import check_memory, find_device, memory_of, name_of_dtype
from justimage.precision import probe
from justimage.runs.hardware import Hardware
from justimage.runs.plan import (
    CONTEXT,
    USABLE,
    Footprint,
    Seconds,
    assumptions,
    compiles,
    evaluations_beside,
    footprint,
    largest_batch,
    largest_block,
    plainly,
    seconds_of,
)
from justimage.runs.recipes import Recipe
from justimage.speed.bench import LIKELY_SHARE, facts
from justimage.speed.rehearsal import Rehearsal, rehearse
from justimage.training.adapters import add_adapters, freeze
from justimage.training.work import Counts, Held, Work, counts_of

LONGEST_STEP = 1.0  # seconds of a step that is measured as it is, by a first guess; a longer one with fewer samples
SHARDS = 8  # processes in the row on sharding, where one process is planned for


@dataclass(frozen=True)
class Change:
    """What another setting would change."""

    what: str
    bytes: int
    seconds: float | None
    """Of a step; None: not known."""


@dataclass(frozen=True)
class Plan:
    """What a run will take."""

    where: dict[str, Any]
    estimate: bool
    """Whether nothing of it was measured."""
    parameters: int
    multiply_adds: float
    """Of one sample in one step, forward and backward."""
    batch: int
    processes: int
    compiled: bool
    memory: Footprint
    """Of one process, at its peak."""
    gradients: int
    """Bytes of all gradients; few of them may be there at the peak."""
    memory_there: float | None
    """Bytes that the device has."""
    seconds: dict[str, float]
    """Of a step, by what they are spent on; `total` is all of them."""
    steps: int
    beside_seconds: float
    """For grids of samples and evaluations, all together."""
    changes: tuple[Change, ...]
    largest_batch: int | None
    """Samples of a step, over all processes, that fit; None where the device does not say what it has."""
    assumptions: tuple[str, ...]
    rehearsal: Rehearsal | None = None

    @property
    def total_seconds(self) -> float:
        """Of the whole run."""
        return self.steps * self.seconds["total"] + self.beside_seconds

    @property
    def img_per_second(self) -> float:
        """Of all processes, in training."""
        return self.batch / self.seconds["total"]

    def plainly(self) -> dict[str, Any]:
        """As JSON."""
        told = {**asdict(self), "memory": plainly(self.memory), "total_seconds": self.total_seconds}
        return {**told, "img_per_second": self.img_per_second, "changes": [asdict(each) for each in self.changes]}


@dataclass(frozen=True)
class _Counted:
    """A recipe with its counts, as it is and with its blocks' activations kept, or computed again."""

    recipe: Recipe
    model: Denoiser
    held: Held
    counts: Mapping[bool, Counts]
    """By `Training.checkpoint`."""

    def work(self, share: int, **changed: Any) -> Work:
        """Of one process with so many samples, with some settings changed."""
        config = replace(self.recipe.training, **changed)
        return self.counts[config.checkpoint].work(share, config.microbatch)


def plan_for(recipe: Recipe, spec: DataSpec, hardware: Hardware, processes: int) -> Plan:
    """An estimate for devices of a table, in bfloat16.

    Raises ValueError for another precision, and for a batch that does not split over them.
    """
    share = _share(recipe, processes)
    if recipe.training.precision == "float32":
        raise ValueError("estimates are for bfloat16: without --hardware, float32 is measured on this machine")
    recipe = replace(recipe, training=replace(recipe.training, precision="bfloat16"))
    counted = _counted(recipe, spec, fused=True)
    compiled = compiles(recipe, counted.model.net)
    as_it_is = {"world": processes, "compiled": compiled, "sharded": _sharded(counted, processes)}

    def memory(work: Work, **more: Any) -> Footprint:
        return footprint(counted.held, work, CONTEXT, **{**as_it_is, **more})

    def seconds_by_part(work: Work, **more: Any) -> Seconds:
        return seconds_of(counted.held, work, hardware, every=recipe.training.ema_every, **{**as_it_is, **more})

    def seconds(work: Work, **more: Any) -> float:
        return seconds_by_part(work, **more).total

    work = counted.work(share)
    parts = seconds_by_part(work)
    changes = [
        Change(
            "compiled blocks" if not compiled else "blocks not compiled",
            memory(work, compiled=not compiled).total,
            seconds(work, compiled=not compiled),
        ),
        *_changes(counted, share, processes, memory, seconds),
    ]
    forward = work.forward / (work.forward + work.backward) * (parts.products + parts.others) / share
    return Plan(
        where={"hardware": hardware.name, "source": hardware.source},
        estimate=True,
        parameters=_parameters(counted.model),
        multiply_adds=(work.forward + work.backward) / share,
        batch=recipe.training.batch_size,
        processes=processes,
        compiled=compiled,
        memory=memory(work),
        gradients=counted.held.gradients,
        memory_there=hardware.memory,
        seconds=plainly(parts),
        steps=-(-recipe.training.duration_nimg // recipe.training.batch_size),
        beside_seconds=forward * evaluations_beside(recipe) / processes,
        changes=tuple(changes),
        largest_batch=processes
        * largest_batch(lambda n: memory(counted.work(n)).total, USABLE * hardware.memory, share),
        assumptions=tuple(assumptions(hardware, world=processes, compiled=compiled)),
    )


def plan_here(
    recipe: Recipe, spec: DataSpec, data: str, device_name: str | None, seconds: float, processes: int
) -> Plan:
    """What a rehearsal of so many seconds on this machine says. data: where they are; empty: made-up ones.

    A step that would take long, or more memory than there is, is measured with fewer samples, and its time and memory
    are carried over to all of them. Raises ValueError for a batch that does not split over the processes.
    """
    device, share = find_device(device_name), _share(recipe, processes)
    dtype = name_of_dtype(recipe.training.dtype(device))
    precise: Any = dtype
    counting = replace(recipe, training=replace(recipe.training, precision=precise))
    least = Held.of(_trained(recipe, spec).net, recipe.training.averages)
    check_memory(
        least.total,
        device,
        f"the parameters ({least.weights / 4e6:,.1f} M), gradients, moments and averages of this network",
        "`jit plan --hardware NAME` estimates what it takes elsewhere",
    )
    counted = _counted(counting, spec, fused=device.type != "cpu")
    there = memory_of(device)
    batch = _measurable(counted, share, device, dtype, there)
    found = rehearse(recipe, data, batch, seconds, device_name)
    measured, work = counted.work(batch), counted.work(share)
    without = footprint(counted.held, measured, 0, compiled=found.compiled).total
    process = max(found.peak - without, 0) + (CONTEXT if device.type == "cuda" else 0)  # a GPU counts tensors alone

    def memory(work: Work, **more: Any) -> Footprint:
        as_it_is = {"world": processes, "compiled": found.compiled, "sharded": _sharded(counted, processes)}
        return footprint(counted.held, work, process, **{**as_it_is, **more})

    step = found.seconds_at(share)

    def changed(other: Work, **more: Any) -> float | None:
        if more:
            return None
        return found.update + (step - found.update) * (other.forward + other.backward) / (work.forward + work.backward)

    said = [
        f"measured on {facts(device)['device']}, {torch.get_num_threads()} threads: the median of {found.steps} steps "
        f"with {found.batch} samples, half of them between {found.spread[0]:.3g} and {found.spread[1]:.3g} s; "
        f"{100 * found.waiting_on_data:.0f} % of the time waiting on {'data' if data else 'made-up data'}",
    ]
    if found.batch != share:
        said.append(
            f"a step with {share:,} samples would take long or not fit: the update takes as long as measured, and the "
            f"rest {share / found.batch:,.0f} times as long"
        )
    said.append(f"what compiling changes is measured with --training.compile {not found.compiled}")
    if processes > 1:
        said.append("one process was measured with its share of the batch: the exchange of gradients is not in it")
    return Plan(
        where=facts(device),
        estimate=False,
        parameters=_parameters(counted.model),
        multiply_adds=(work.forward + work.backward) / share,
        batch=recipe.training.batch_size,
        processes=processes,
        compiled=found.compiled,
        memory=memory(work),
        gradients=counted.held.gradients,
        memory_there=there,
        seconds={
            "forward and backward pass": step - found.update,
            "optimizer and averages": found.update,
            "total": step,
        },
        steps=-(-recipe.training.duration_nimg // recipe.training.batch_size),
        beside_seconds=_forward(found, work, share) * evaluations_beside(recipe) / processes,
        changes=tuple(_changes(counted, share, processes, memory, changed)),
        largest_batch=None
        if there is None
        else processes * largest_batch(lambda n: memory(counted.work(n)).total, USABLE * there, share),
        assumptions=tuple(said),
        rehearsal=found,
    )


def _forward(found: Rehearsal, work: Work, share: int) -> float:
    """Seconds of an evaluation of one sample: its part of the multiply-adds."""
    return (found.seconds_at(share) - found.update) * work.forward / (work.forward + work.backward) / share


def _measurable(counted: _Counted, share: int, device: torch.device, precision: str, there: int | None) -> int:
    """The samples of a step that takes seconds and fits: the whole share, or a part of it."""
    rates = {each.precision: each.flops for each in probe(device)}
    rate = LIKELY_SHARE * (rates[precision] or 1e9)
    one = counted.work(1)
    batch = share
    while batch > 1 and 2 * (one.forward + one.backward) * batch > LONGEST_STEP * rate:
        batch = -(-batch // 2)
    held = counted.held.total + CONTEXT
    while there is not None and batch > 1 and held + counted.work(batch).peak > USABLE * there:
        batch = -(-batch // 2)
    return batch


def _changes(
    counted: _Counted,
    share: int,
    processes: int,
    memory: Callable[..., Footprint],
    seconds: Callable[..., float | None],
) -> list[Change]:
    """Rows on checkpointing, accumulation and sharding."""
    config, rows = counted.recipe.training, []
    if len(counted.counts) > 1:
        other = counted.work(share, checkpoint=not config.checkpoint)
        name = "--training." + ("no-checkpoint" if config.checkpoint else "checkpoint")
        rows.append(Change(name, memory(other).total, seconds(other)))
    whole = min(config.microbatch or share, share)
    for part in (2, 4):
        if whole >= part:
            other = counted.work(share, microbatch=whole // part)
            rows.append(Change(f"--training.microbatch {whole // part}", memory(other).total, seconds(other)))
    if not _sharded(counted, processes):
        shards = processes if processes > 1 else SHARDS
        work, sharded = counted.work(share), {"world": shards, "sharded": largest_block(counted.model.net)}
        what = f"weights and states sharded over {shards} processes"
        rows.append(Change(what, memory(work, **sharded).total, seconds(work, **sharded)))
    return rows


def _sharded(counted: _Counted, processes: int) -> int:
    """Bytes of the largest block, where training is sharded; 0 where it is not."""
    return largest_block(counted.model.net) if counted.recipe.training.shard and processes > 1 else 0


def _trained(recipe: Recipe, spec: DataSpec) -> Denoiser:
    """The model as it is trained: with adapters, where the recipe has them."""
    model, config = recipe.model(spec), recipe.training
    if config.lora.rank:
        freeze(model.net)
        add_adapters(model.net, config.lora, config.seed)
    return model


def _counted(recipe: Recipe, spec: DataSpec, *, fused: bool) -> _Counted:
    model, training = _trained(recipe, spec), recipe.training
    held = Held.of(model.net, training.averages)
    either = (False, True) if hasattr(model.net, "blocks") else (training.checkpoint,)
    counts = {again: counts_of(model, replace(training, checkpoint=again), fused_attention=fused) for again in either}
    return _Counted(recipe, model, held, counts)


def _parameters(model: Denoiser) -> int:
    return sum(each.numel() for each in model.net.parameters())


def _share(recipe: Recipe, processes: int) -> int:
    batch = recipe.training.batch_size
    if processes < 1 or batch % processes:
        raise ValueError(f"a batch of {batch} does not split over {processes} processes")
    return batch // processes
