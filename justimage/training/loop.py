"""Training: one flat loop on the clock nimg, as a generator, with the loss as a value.

    for tick in train(state, source, flow_matching(model, config), config, tick_nimg=...):
        ...  # log, preview, save, evaluate, or break

Algorithm 1 of arXiv 2511.13720. Every random number is a function of (seed, position of the sample in the run).
"""

import contextlib
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from math import nan

import numpy as np
import torch
from torch import Tensor, nn

from justimage.data.loader import Batch, batches, indices_at, model_values
from justimage.data.spec import Source, StreamSource, UnreadableSample
from justimage.execution import autocast
from justimage.parallel import any_of, fail_together, mean_over, without_exchange
from justimage.randomness import Purpose, key
from justimage.training.loss import Loss
from justimage.training.masks import keyed_dropouts, masks_of, unkeyed_dropouts
from justimage.training.optim import learning_rate
from justimage.training.settings import Training
from justimage.training.shards import whole_together
from justimage.training.state import TrainingState

STOP_STEPS = 16  # steps after which several processes ask each other whether to stop
Part = tuple[Tensor, dict[str, Tensor]]  # of a batch: its share of the loss, and of the named terms


@dataclass(frozen=True)
class Tick:
    """What the loop reports: means over the steps since the last tick."""

    nimg: int
    loss: float
    grad_norm: float
    lr: float
    img_per_second: float
    waiting_on_data: float
    """Share of the time."""
    stopping: bool
    """Whether it was asked to stop before the end."""
    terms: dict[str, float] = field(default_factory=dict)
    """The named terms of the loss."""
    skipped: tuple[int, ...] = ()
    """Where the steps began whose loss or gradient was not finite: they changed no weight, and are in none of these
    means, which are NaN where there was no other step."""
    clipped: float = 0.0
    """Share of the steps whose gradient was scaled down to clip_norm."""


class NonFiniteLoss(RuntimeError):
    """The loss or gradient of several steps in a row was NaN or infinite, and changed no weight.

    nimg, indices: where the first of them began, and its samples in the data. skipped: where all began that were
    skipped since the last tick.
    """

    def __init__(self, nimg: int, indices: np.ndarray, skipped: tuple[int, ...] = (), in_a_row: int = 1):
        self.nimg, self.indices, self.skipped = nimg, indices, skipped or (nimg,)
        shown = ", ".join(map(str, indices[:32])) + (f" and {len(indices) - 32} more" if len(indices) > 32 else "")
        after = f", and in {in_a_row} in a row" if in_a_row > 1 else ""
        super().__init__(
            f"the loss or its gradient is not finite in the batch that starts at nimg = {nimg}{after}; its samples "
            f"are, by index in the data, {shown}. If they are sound, try a lower learning rate or clip_norm = 1"
        )


def train(
    state: TrainingState,
    source: Source | StreamSource,
    loss: Loss,
    config: Training,
    *,
    tick_nimg: int,
    workers: int = 1,
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[Tick]:
    """Train from state.nimg to config.duration_nimg, yielding at every multiple of tick_nimg and at the end.

    It yields as well when `stop`, asked after every step, says so in any of the processes (which ask each other every
    STOP_STEPS steps). The state is up to date whenever this yields. A step whose loss or gradient is not finite changes
    no weight and no moment. Raises NonFiniteLoss after `config.most_skipped` of these in a row (on accelerators, where
    looking at every step would stall them: at the next tick); ValueError where the data are not those the model is for;
    and what goes wrong in reading them, in every process.
    """
    model, processes = state.model, state.processes
    if model.spec is None or model.spec.text() != source.spec.text():
        raise ValueError(f"the model is for other data: {model.spec}, but these are {source.spec}")
    reader = batches(
        source,
        seed=config.seed,
        start=state.nimg,
        batch_size=config.batch_size,
        rank=processes.rank,
        world=processes.world,
        workers=workers,
        pinned=processes.device.type == "cuda",
    )
    meter, streak = _Meter(processes.device), ()
    dtype, dropouts, unkeyed = config.dtype(processes.device), keyed_dropouts(model.net), unkeyed_dropouts(model.net)
    state.runner.train()
    while state.nimg < config.duration_nimg:
        began = state.nimg
        with meter.waiting():
            batch = _next_batch(reader, state)
        if unkeyed:  # a function of the position, but, unlike the other draws, also of the process
            torch.manual_seed(key(config.seed, Purpose.DROPOUT, batch.positions.start))
        norm, losses = gradients(state, batch, loss, config, dtype, dropouts)
        bad = ~torch.isfinite(norm)
        meter.add(began, losses, norm, bad, config.clip_norm)
        lr = _update(state, config, bad)
        if processes.device.type == "cpu" and bad:
            _streak_of(streak, meter, source, config)  # raises at once; at a tick, it is taken on
        if processes.pulse is not None:
            processes.pulse.nimg = state.nimg

        step = state.nimg // config.batch_size
        asked_to_stop = (processes.world == 1 or step % STOP_STEPS == 0) and any_of(stop(), processes)
        over = state.nimg >= config.duration_nimg
        if asked_to_stop or over or passed(began, state.nimg, tick_nimg):
            streak = _streak_of(streak, meter, source, config)
            yield meter.tick(state, config, lr, stopping=asked_to_stop and not over)
            meter = _Meter(processes.device)
            state.runner.train()


def passed(before: int, nimg: int, interval: int) -> bool:
    """Whether a multiple of the interval lies in (before, nimg]; 0: there is none."""
    return interval > 0 and nimg // interval > before // interval


def _next_batch(reader: Generator[Batch, None, None], state: TrainingState) -> Batch:
    """The next batch; where a process cannot have its own, all of them raise."""
    batch, problem = None, None
    try:
        batch = next(reader)
    except OSError as error:
        problem = UnreadableSample(f"the data can no longer be read: {error}")
    except Exception as error:  # whatever it is, the other processes must not wait for this one's gradients
        problem = error
    fail_together(problem, state.processes)
    assert batch is not None
    return batch


def gradients(
    state: TrainingState, batch: Batch, loss: Loss, config: Training, dtype: torch.dtype, dropouts: Sequence[nn.Module]
) -> tuple[Tensor, list[Part]]:
    """Leave the gradients of a batch in the parameters, clipped; returns their norm before, and each part's losses.

    dropouts: the network's modules that draw masks (`masks.keyed_dropouts`).
    """
    model, device = state.model, state.processes.device
    assert model.spec is not None
    share = len(batch.positions)
    micro = config.microbatch or share
    raw = batch.raw.to(device, non_blocking=True)
    y = {name: each.to(device, non_blocking=True) for name, each in batch.y.items()} if model.needs else {}
    mirror = config.mirrors(model.spec)
    x, y = model_values(raw, y, model.spec, seed=config.seed, positions=batch.positions, mirror=mirror)
    found = []
    for start in range(0, share, micro):
        part = slice(start, start + micro)
        last = start + micro >= share
        masks = masks_of(dropouts, config.seed, batch.positions[part], device)
        with masks, contextlib.nullcontext() if last else without_exchange(state.runner):
            with autocast(device, dtype):
                some = {name: each[part] for name, each in y.items()} or None
                losses = loss(state.runner, x[part], some, batch.positions[part])
            mean = losses.total.sum() / share
            # From 1, and from NaN where the loss is not finite: then all processes skip the step, not this one alone.
            mean.backward(1 + 0 * mean.detach())
        terms = {name: term.detach().sum() / share for name, term in losses.terms.items()}
        found.append((mean.detach(), terms))
    parameters = [p for p in model.net.parameters() if p.grad is not None]
    norm = whole_together(nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]))
    if config.clip_norm:
        nn.utils.clip_grads_with_norm_(parameters, config.clip_norm, norm)
    return norm, found


def _update(state: TrainingState, config: Training, bad: Tensor) -> float:
    """One step of optimizer, clock and averages; returns the learning rate. A bad step changes no weight."""
    lr = learning_rate(
        state.nimg + config.batch_size,
        peak=config.lr,
        warmup_nimg=config.warmup_nimg,
        duration_nimg=config.duration_nimg,
        schedule=config.schedule,
    )
    for group in state.optimizer.param_groups:
        group["lr"] = lr
    # The fused step leaves everything as it is where found_inf is 1, and the host need not look; on MPS only in newer
    # versions of torch.
    state.optimizer.found_inf = bad.float()  # pyright: ignore[reportAttributeAccessIssue]
    if state.processes.device.type != "mps" or not bad:
        state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)
    state.nimg += config.batch_size
    state.ema.update(state.nimg)
    return lr


def _streak_of(
    streak: tuple[int, ...], meter: "_Meter", source: Source | StreamSource, config: Training
) -> tuple[int, ...]:
    """Where the steps began that were skipped one after another up to now; streak: those up to the last tick.

    Raises NonFiniteLoss where they are as many as the run may skip.
    """
    bad_ones = list(streak)
    for nimg, bad in meter.steps():
        bad_ones = [*bad_ones, nimg] if bad else []
        if len(bad_ones) >= config.most_skipped:
            first = bad_ones[0]
            indices = indices_at(source, config.seed, range(first, first + config.batch_size))
            raise NonFiniteLoss(first, indices, meter.skipped(), len(bad_ones))
    return tuple(bad_ones)


class _Meter:
    """Sums over the steps since the last tick, kept on the device: nothing waits for them."""

    def __init__(self, device: torch.device):
        self.loss, self.norm = torch.zeros((), device=device), torch.zeros((), device=device)
        self.clipped = torch.zeros((), device=device)
        self.terms: dict[str, Tensor] = {}
        self.began_at: list[int] = []
        self.bad: list[Tensor] = []
        self.waited, self.began = 0.0, time.perf_counter()

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        asked = time.perf_counter()
        yield
        self.waited += time.perf_counter() - asked

    def add(self, nimg: int, parts: list[Part], norm: Tensor, bad: Tensor, clip_norm: float) -> None:
        """Add a step that began at nimg; one that is bad is only counted."""
        loss, terms = self.loss, dict(self.terms)
        for mean, found in parts:
            loss = loss + mean
            terms |= {name: terms.get(name, torch.zeros_like(term)) + term for name, term in found.items()}
        self.loss, self.norm = torch.where(bad, self.loss, loss), torch.where(bad, self.norm, self.norm + norm)
        self.terms = {
            name: torch.where(bad, self.terms.get(name, torch.zeros_like(term)), term) for name, term in terms.items()
        }
        if clip_norm:
            self.clipped += torch.where(bad, False, norm > clip_norm)
        self.began_at.append(nimg)
        self.bad.append(bad)

    def steps(self) -> list[tuple[int, bool]]:
        """Where each step began, and whether it was bad. Waits for the device."""
        return list(zip(self.began_at, torch.stack(self.bad).tolist(), strict=True))

    def skipped(self) -> tuple[int, ...]:
        return tuple(nimg for nimg, bad in self.steps() if bad)

    def tick(self, state: TrainingState, config: Training, lr: float, *, stopping: bool) -> Tick:
        seconds, skipped = time.perf_counter() - self.began, self.skipped()
        steps = len(self.bad)
        good = steps - len(skipped) or nan

        def mean(total: Tensor) -> float:
            return float(mean_over(total, state.processes)) / good

        return Tick(
            nimg=state.nimg,
            loss=mean(self.loss),
            grad_norm=float(self.norm) / good,
            lr=lr,
            img_per_second=steps * config.batch_size / seconds,
            waiting_on_data=self.waited / seconds,
            stopping=stopping,
            terms={name: mean(total) for name, total in self.terms.items()},
            skipped=skipped,
            clipped=float(self.clipped) / good,
        )
