"""Training: one flat loop on the clock nimg, as a generator, with the loss as a value.

    for tick in train(state, source, flow_matching(model, config), config, tick_nimg=...):
        ...  # log, preview, save, evaluate, or break

Algorithm 1 of arXiv 2511.13720. Every random number is a function of (seed, position of the sample in the run).
"""

import contextlib
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field

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


class NonFiniteLoss(RuntimeError):
    """The gradient was NaN or infinite, and changed no parameter; `indices` are its batch's samples in the data."""

    def __init__(self, nimg: int, indices: np.ndarray):
        self.nimg, self.indices = nimg, indices
        shown = ", ".join(map(str, indices[:32])) + (f" and {len(indices) - 32} more" if len(indices) > 32 else "")
        super().__init__(
            f"the loss or its gradient is not finite in the batch that starts at nimg = {nimg}; its samples are, by "
            f"index in the data, {shown}. If they are sound, try a lower learning rate or clip_norm = 1"
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
    STOP_STEPS steps). The state is up to date whenever this yields. Raises NonFiniteLoss, with the state as before the
    batch (on accelerators, where looking at every step would stall them: at the next tick, the bad steps skipped);
    ValueError where the data are not those the model is for; and what goes wrong in reading them, in every process.
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
    meter = _Meter(processes.device)
    dtype, dropouts, unkeyed = config.dtype(processes.device), keyed_dropouts(model.net), unkeyed_dropouts(model.net)
    state.runner.train()
    while state.nimg < config.duration_nimg:
        began = state.nimg
        with meter.waiting():
            batch = _next_batch(reader, state)
        if unkeyed:  # a function of the position, but, unlike the other draws, also of the process
            torch.manual_seed(key(config.seed, Purpose.DROPOUT, batch.positions.start))
        norm = _gradients(state, batch, loss, config, dtype, meter, dropouts)
        bad = ~torch.isfinite(norm)
        meter.add_norm(norm, torch.where(bad, began, -1))
        if processes.device.type == "cpu" and bad:
            state.optimizer.zero_grad(set_to_none=True)
            raise _not_finite(source, config, began)
        lr = _update(state, config, bad)
        if processes.pulse is not None:
            processes.pulse.nimg = state.nimg

        step = state.nimg // config.batch_size
        asked_to_stop = (processes.world == 1 or step % STOP_STEPS == 0) and any_of(stop(), processes)
        over = state.nimg >= config.duration_nimg
        if asked_to_stop or over or state.nimg // tick_nimg > began // tick_nimg:
            if meter.first_bad >= 0:
                raise _not_finite(source, config, int(meter.first_bad))
            yield meter.tick(state, config, lr, stopping=asked_to_stop and not over)
            meter = _Meter(processes.device)
            state.runner.train()


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


def _gradients(
    state: TrainingState,
    batch: Batch,
    loss: Loss,
    config: Training,
    dtype: torch.dtype,
    meter: "_Meter",
    dropouts: list[nn.Module],
) -> Tensor:
    """Leave the gradients of a batch in the parameters, clipped; returns their norm before."""
    model, device = state.model, state.processes.device
    assert model.spec is not None
    share = len(batch.positions)
    micro = config.microbatch or share
    raw = batch.raw.to(device, non_blocking=True)
    y = {name: each.to(device, non_blocking=True) for name, each in batch.y.items()} if model.needs else {}
    mirror = config.mirrors(model.spec)
    x, y = model_values(raw, y, model.spec, seed=config.seed, positions=batch.positions, mirror=mirror)
    for start in range(0, share, micro):
        part = slice(start, start + micro)
        last = start + micro >= share
        masks = masks_of(dropouts, config.seed, batch.positions[part], device)
        with masks, contextlib.nullcontext() if last else without_exchange(state.runner):
            with autocast(device, dtype):
                some = {name: each[part] for name, each in y.items()} or None
                losses = loss(state.runner, x[part], some, batch.positions[part])
            mean = losses.total.sum() / share
            mean.backward()
        meter.add_loss(mean.detach(), {name: term.detach().sum() / share for name, term in losses.terms.items()})
    parameters = [p for p in model.net.parameters() if p.grad is not None]
    norm = whole_together(nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]))
    if config.clip_norm:
        nn.utils.clip_grads_with_norm_(parameters, config.clip_norm, norm)
    return norm


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
    # The fused step leaves everything as it is where found_inf is 1, and the host need not look.
    state.optimizer.found_inf = bad.float()  # pyright: ignore[reportAttributeAccessIssue]
    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)
    state.nimg += config.batch_size
    state.ema.update(state.nimg)
    return lr


def _not_finite(source: Source | StreamSource, config: Training, nimg: int) -> NonFiniteLoss:
    return NonFiniteLoss(nimg, indices_at(source, config.seed, range(nimg, nimg + config.batch_size)))


class _Meter:
    """Sums over the steps since the last tick, kept on the device: nothing waits for them."""

    def __init__(self, device: torch.device):
        self.loss, self.norm = torch.zeros((), device=device), torch.zeros((), device=device)
        self.terms: dict[str, Tensor] = {}
        self.first_bad = torch.full((), -1, dtype=torch.int64, device=device)  # nimg of the first bad step
        self.steps, self.waited, self.began = 0, 0.0, time.perf_counter()

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        asked = time.perf_counter()
        yield
        self.waited += time.perf_counter() - asked

    def add_loss(self, mean: Tensor, terms: dict[str, Tensor]) -> None:
        self.loss += mean
        for name, term in terms.items():
            self.terms[name] = self.terms[name] + term if name in self.terms else term

    def add_norm(self, norm: Tensor, bad_at: Tensor) -> None:
        self.first_bad = torch.where(self.first_bad < 0, bad_at, self.first_bad)
        self.norm += norm
        self.steps += 1

    def tick(self, state: TrainingState, config: Training, lr: float, *, stopping: bool) -> Tick:
        seconds = time.perf_counter() - self.began

        def mean(total: Tensor) -> float:
            return float(mean_over(total, state.processes)) / self.steps

        return Tick(
            nimg=state.nimg,
            loss=mean(self.loss),
            grad_norm=float(self.norm) / self.steps,
            lr=lr,
            img_per_second=self.steps * config.batch_size / seconds,
            waiting_on_data=self.waited / seconds,
            stopping=stopping,
            terms={name: mean(total) for name, total in self.terms.items()},
        )
