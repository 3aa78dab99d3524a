"""One training step of a run again, watched: which sample and which module is the first that is not finite.

Everything a step draws is a function of its position, so the step is made again from the newest state before it, by
training up to it, to the bit on a CPU.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from justimage.data.loader import Batch, batches
from justimage.data.records import from_plain, known_fields, replaced
from justimage.data.sources import DataOptions
from justimage.data.spec import Source, StreamSource
from justimage.denoiser import SCALINGS, Scalings
from justimage.networks.protocol import OLDEST, NetworkClass, network_of
from justimage.parallel import Processes
from justimage.process import LogitNormal
from justimage.randomness import Purpose, key
from justimage.runs.folder import (
    PAPER,
    SKIPPED,
    check_same,
    facts_of,
    log_until,
    origin_of,
    read_facts,
    settings_at,
    with_older_defaults,
)
from justimage.runs.recipes import Recipe, Report
from justimage.runs.sinks import Work, unseen
from justimage.samplers import Sampling
from justimage.training.build import build
from justimage.training.loop import gradients, train
from justimage.training.loss import Loss, Losses, flow_matching
from justimage.training.masks import keyed_dropouts, unkeyed_dropouts
from justimage.training.settings import MOST_NIMG, Training
from justimage.training.state import TrainingState, saved_states
from justimage.weights.folder import RECIPE


@dataclass(frozen=True)
class Sample:
    """A sample of the step whose loss is not finite, or in which a module's values or gradients are not."""

    position: int
    index: int
    """In the data."""
    name: str
    loss: float
    least: float
    most: float
    """Of its raw values."""
    y: dict[str, Any]
    """What comes with it, where that is one number."""


@dataclass
class Found:
    """What a step did. Nothing is named where all of it is finite."""

    nimg: int
    began_at: int
    """nimg of the state that training went on from."""
    loss: float = 0.0
    grad_norm: float = 0.0
    place: str = ""
    """Where the first numbers that are not finite are: the module, or what lies between two of them."""
    samples: tuple[Sample, ...] = ()
    parameters: tuple[str, ...] = ()
    """Those with a gradient that is not finite, where it is in no gradient of a module's output."""
    operation: str = ""
    """What autograd's anomaly detection says."""

    @property
    def finite(self) -> bool:
        """Whether the step is as it should be."""
        return isfinite(self.loss) and isfinite(self.grad_norm)


def recipe_of(facts: dict[str, Any], where: str, network: NetworkClass | None = None) -> Recipe:
    """The recipe that a recipe.json says. ValueError where it is damaged, or has parts that only Python code can give.

    network: the class, where it is the user's own.
    """
    plain, kind = facts["recipe"], network_of(facts.get("network", OLDEST), network, where)[0]
    times = plain.get("training", {}).get("times", {})
    if "density" in times:
        raise ValueError(f"{where}: its times have the density {times['density']}, which only Python code can give")
    parts = {"network": kind, "training": Training, "sampling": Sampling, "report": Report, "data_options": DataOptions}
    made: dict[str, Any] = {}
    for name, part in parts.items():
        values = known_fields(part, plain.get(name, {}))
        if name == "training":
            values = {**values, "times": from_plain(LogitNormal, times, where, "recipe.training.times")}
        made[name] = from_plain(part, values, where, f"recipe.{name}")
    names = ("prediction", "preconditioner", "noise_scale", "t_eps", "default_data")
    return Recipe(**made, **{name: plain[name] for name in names if name in plain})


def check_step(training: Training, folder: Path, nimg: int) -> None:
    """Raises ValueError where no step of the run begins at nimg, with those that were skipped, or the nearest one."""
    batch, duration = training.batch_size, training.duration_nimg
    if nimg % batch == 0 and 0 <= nimg < duration:
        return
    lines = log_until(folder / SKIPPED, duration).splitlines()
    skipped = [f"{json.loads(line)['nimg']}" for line in lines[-5:]]
    near = min(max(nimg // batch * batch, 0), (duration - 1) // batch * batch)
    known = f"; those that were skipped last began at {', '.join(skipped)}" if skipped else ""
    raise ValueError(f"no step of {folder} begins at nimg = {nimg}: the nearest one begins at {near}{known}")


def replay(
    folder: Path,
    nimg: int,
    source: Source | StreamSource,
    *,
    processes: Processes | None = None,
    loss: Any = flow_matching,
    network: NetworkClass | None = None,
    preconditioner: Scalings | None = None,
    microbatch: int | None = None,
    progress: Work = unseen,
) -> Found:
    """Train from the newest state up to nimg, which writes nothing, and make the step that begins there, watched.

    loss, network, preconditioner: as for `train_run`, where they are the user's own. microbatch: in place of the run's,
    whose processes may have shared a batch that is too much for one. Blocks are neither compiled nor
    recomputed, so that every module is seen. Raises ValueError where the folder holds no run, no step begins there, the
    data are others than the run's, where settings were changed (--changed) on the way from the state to the step, or
    where it comes before the oldest state of a run that began from weights.
    """
    facts = read_facts(folder)
    if facts is None:
        raise ValueError(f"{folder} does not exist, or holds no run")
    if loss is flow_matching and facts.get("loss", PAPER) != PAPER:
        raise ValueError(f"the run was trained with the loss {facts['loss']}, which only Python code can give")
    own = facts["recipe"].get("preconditioner", "none")
    if preconditioner is None and own not in SCALINGS:
        raise ValueError(f"the run was trained with the pre-conditioner {own}, which only Python code can give")
    recipe = recipe_of(facts, str(folder / RECIPE), network)
    check_step(recipe.training, folder, nimg)
    recipe, _ = with_older_defaults(recipe.fitted_to(source.spec), facts, source.spec)
    model = recipe.model(source.spec, network=network, preconditioner=preconditioner)
    ours = facts_of(recipe, source, model, "")
    check_same(folder, facts, {**ours, **({"loss": facts["loss"]} if "loss" in facts else {})})
    before = [place for place in saved_states(folder / "state") if int(place.name) <= nimg]
    at = settings_at(facts, nimg)  # those that the step was made with: others may have come later
    if settings_at(facts, int(before[-1].name) if before else 0) != at:
        raise ValueError(
            f"{folder} was resumed with other settings between its newest state before nimg = {nimg} and that step "
            f"({RECIPE}, changed); its state of that moment is gone, so the step cannot be made again"
        )
    origin = origin_of(facts)
    if origin is not None and not before:  # it did not begin with weights that are drawn from the seed
        raise ValueError(
            f"{folder} began from the weights of {origin.path}, and its states before nimg = {nimg} are gone, so the "
            "step cannot be made again; --report.keep-states and --report.milestone-nimg keep more of them"
        )
    recipe = replaced(recipe, at, f"{RECIPE}: ")
    config = replace(recipe.training, compile=False, checkpoint=False, most_skipped=MOST_NIMG)
    config = config if microbatch is None else replace(config, microbatch=microbatch)
    state = build(model, config, processes, anew=() if origin is None else origin.anew)
    if before:
        state.restore(before[-1])
    began = state.nimg
    value = loss(state.model, config)
    if state.nimg < nimg:
        for tick in train(state, source, value, config, tick_nimg=config.batch_size):
            progress(tick.nimg - began, nimg - began, f"training again from nimg = {began:,}")
            if tick.nimg >= nimg:
                break
    return watched_step(state, source, value, config, Found(nimg, began))


def watched_step(
    state: TrainingState, source: Source | StreamSource, loss: Loss, config: Training, found: Found
) -> Found:
    """The step that begins at state.nimg, watched; it changes no weight."""
    reader = batches(source, seed=config.seed, start=state.nimg, batch_size=config.batch_size, workers=0)
    batch = next(reader)
    reader.close()
    config = replace(config, clip_norm=0.0)  # by a norm that is NaN, every gradient would be clipped to NaN
    watch = _Watch()
    with watch.over(state.model.net):
        found.loss, found.grad_norm = _step(state, batch, watch.loss(loss), config)
    if found.finite:
        return found
    if not watch.seen:
        named = state.model.net.named_parameters()
        found.parameters = tuple(name for name, p in named if p.grad is not None and not p.grad.isfinite().all())
    found.place, rows = watch.first()
    bad = rows or [i for i, each in enumerate(watch.losses) if not isfinite(each)]
    if not bad:  # the sum over the batch is not finite, or a parameter's gradient: is a sample's alone?
        alone = range(len(batch.positions))
        bad = [i for i in alone if not isfinite(_step(state, _only(batch, i), loss, config)[1])]
    found.samples = tuple(_sample(batch, source, i, watch.losses[i]) for i in bad)
    if isfinite(found.loss):  # a loss that is not is where its backward pass begins: nothing is found on the way
        found.operation = _anomaly(state, batch, loss, config)
    state.optimizer.zero_grad(set_to_none=True)
    return found


def _step(state: TrainingState, batch: Batch, loss: Loss, config: Training) -> tuple[float, float]:
    """The loss of a batch and the norm of its gradient, which is left in the parameters."""
    state.optimizer.zero_grad(set_to_none=True)
    state.runner.train()
    net = state.model.net
    if unkeyed_dropouts(net):
        torch.manual_seed(key(config.seed, Purpose.DROPOUT, batch.positions.start))
    norm, parts = gradients(state, batch, loss, config, config.dtype(state.processes.device), keyed_dropouts(net))
    return float(sum(float(mean) for mean, _ in parts)), float(norm)


def _anomaly(state: TrainingState, batch: Batch, loss: Loss, config: Training) -> str:
    """The operation whose backward pass is the first to give a NaN, as autograd calls it; empty where none does."""
    try:
        with torch.autograd.set_detect_anomaly(True):
            _step(state, batch, loss, config)
    except RuntimeError as error:
        return str(error).splitlines()[0]
    return ""


def _only(batch: Batch, i: int) -> Batch:
    """One sample of a batch."""
    part = slice(i, i + 1)
    y = {name: each[part] for name, each in batch.y.items()}
    return Batch(batch.raw[part], y, batch.positions[part], batch.indices[part])


def _sample(batch: Batch, source: Source | StreamSource, i: int, loss: float) -> Sample:
    index, raw = int(batch.indices[i]), batch.raw[i].double()
    name = source.name(index) if source.indexed is True else f"position {index} of the stream"
    y = {name: each[i].item() for name, each in batch.y.items() if each[i].numel() == 1}
    return Sample(batch.positions[i], index, name, loss, float(raw.min()), float(raw.max()), y)


@dataclass
class _Watch:
    """Looks at what every module takes and gives, and at the gradients of what it gives."""

    losses: list[float] = field(default_factory=list)
    """Of each sample."""
    seen: tuple[str, list[int]] | None = None
    """The first place that is not finite, and in which samples of the batch."""
    _start: int = 0  # of the part of the batch that is on its way
    _finite: str = "the loss"  # what was the last to have a gradient that is finite
    _loss_is_finite: bool = True  # otherwise no gradient is, and says nothing

    def first(self) -> tuple[str, list[int]]:
        return self.seen or ("", [])

    def loss(self, inner: Loss) -> Loss:
        """The same loss, noted down."""

        def noted(predict: nn.Module, x: Tensor, y: Any, positions: range) -> Losses:
            self._start, self._finite = len(self.losses), "the loss"
            if not x.isfinite().all():
                self._note("the data, as the model sees them", [x])
            losses = inner(predict, x, y, positions)
            self.losses += losses.total.detach().float().tolist()
            self._note("the loss, after a network that is finite", [losses.total.detach()])
            self._loss_is_finite = bool(losses.total.detach().sum().isfinite())
            if not self._loss_is_finite:
                self._see("the sum of the loss over the batch", [])
            return losses

        return noted

    @contextmanager
    def over(self, net: nn.Module) -> Iterator[None]:
        """Watch the modules of a network within the block."""
        handles = []
        for name, module in net.named_modules():
            called = f"{name or 'the network'} ({type(module).__name__})"
            outer = name.rpartition(".")[0] or "the network"

            def taken(_: Any, given: Any, named: Any, called: str = called, outer: str = outer) -> None:
                self._note(f"{outer}, before {called} is called", [*_tensors(given), *_tensors(named)])

            def made(_: Any, __: Any, output: Any, called: str = called) -> None:
                self._note(called, list(_tensors(output)))
                start = self._start
                for each in _tensors(output):
                    if each.requires_grad:
                        each.register_hook(lambda g, start=start: self._gradient(called, g, start))

            handles += [module.register_forward_pre_hook(taken, with_kwargs=True), module.register_forward_hook(made)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _note(self, place: str, tensors: Sequence[Tensor]) -> None:
        bad = [tensor for tensor in tensors if not tensor.isfinite().all()]
        if bad:
            self._see(place, _rows(bad, self._start))

    def _gradient(self, called: str, gradient: Tensor, start: int) -> None:
        if not self._loss_is_finite:
            return
        if gradient.isfinite().all():
            self._finite = called
        else:
            place = f"the backward pass from {self._finite}, whose gradient is finite, to {called}"
            self._see(place, _rows([gradient], start))

    def _see(self, place: str, rows: list[int]) -> None:
        """Remember the first place, and its samples of all parts of the batch."""
        if self.seen is None or self.seen[0] == place:
            self.seen = place, sorted({*rows, *(self.seen[1] if self.seen else ())})


def _tensors(values: Any) -> Iterator[Tensor]:
    """The tensors of floating-point numbers in what a module takes or gives."""
    if isinstance(values, Tensor):
        if values.is_floating_point():
            yield values
    elif isinstance(values, Mapping):
        for each in values.values():
            yield from _tensors(each)
    elif isinstance(values, tuple | list):
        for each in values:
            yield from _tensors(each)


def _rows(tensors: Sequence[Tensor], start: int) -> list[int]:
    """Which samples of the batch have numbers that are not finite, where the first axis is that of samples."""
    rows: set[int] = set()
    for tensor in tensors:
        if tensor.ndim:
            each = tensor.detach().reshape(len(tensor), -1)
            rows |= set((~each.isfinite().all(1)).nonzero().flatten().tolist())
    return sorted(start + row for row in rows)
