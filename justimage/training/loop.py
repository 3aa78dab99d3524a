"""Training: one flat loop on the clock nimg, as a generator, with the loss as a value.

    for tick in train(state, source, flow_matching(model, config), config):
        ...  # log, preview, save, evaluate, or break

Algorithm 1 of arXiv 2511.13720. Every random number is a function of (seed, position of the sample in the run).
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from justimage.data.loader import batches, indices_at, model_values
from justimage.data.spec import DataSpec, Source, StreamSource
from justimage.denoiser import Denoiser
from justimage.execution import autocast, checkpoint_blocks, compile_blocks, compiling_pays, fast_dtype, to_device
from justimage.parallel import Processes, any_of, mean_over, replicate, without_exchange
from justimage.process import LogitNormal, Space, denoising_loss, diffuse
from justimage.randomness import Stream, key, normals, training_noise, uniforms
from justimage.training.ema import EMA
from justimage.training.optim import Schedule, adamw, learning_rate
from justimage.training.state import TrainingState

# (model, x (B, C, *S), y (B,) or None, positions of the samples in the run) -> loss of each sample (B,)
Loss = Callable[[nn.Module, Tensor, Tensor | None, range], Tensor]

STOP_STEPS = 16
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Training:
    """How a network is trained. Lengths of time are counted in samples (nimg)."""

    duration_nimg: int = 256_000_000
    """Samples to train on."""
    batch_size: int = 1024
    """Samples of one step, of all processes together."""
    microbatch: int = 0
    """Samples that one process takes at once, gradients being accumulated; 0: its whole part of the batch."""
    lr: float = 2e-4
    """Peak learning rate."""
    warmup_nimg: int = 0
    """Samples over which the learning rate rises."""
    schedule: Schedule = "constant"
    """After the warm-up: constant, as in the paper, or a cosine to zero."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Adam's decay rates."""
    weight_decay: float = 0.0
    """AdamW's decay of matrices."""
    clip_norm: float = 0.0
    """Largest gradient norm, longer gradients are shortened; 0: off. The norm is logged in any case."""
    label_dropout: float = 0.1
    """Share of labels replaced by the null label, for guidance."""
    ema_decays: tuple[float, ...] = (0.9999, 0.9998, 0.9996)
    """Decays per step of the averages kept; the first is the one sampled by default."""
    loss_space: Space = "v"
    """Where the error is measured: x, eps or v."""
    times: LogitNormal = field(default_factory=LogitNormal)
    """The density of training times."""
    flip: bool = True
    """Mirror half of the images along the last axis. Turn it off for text and digits."""
    flip_fields: bool = False
    """Mirror half of the samples that are no 8-bit images, too: arrays, fields, signals, volumes."""
    seed: int = 0
    """Seed of every draw: weights, order, flips, times, noise, dropped labels."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of matrix products; auto: bfloat16 where the hardware is faster in it (AMX CPUs, recent GPUs)."""
    compile: bool | None = None
    """torch.compile the blocks; by default where it pays (large networks on GPUs and in bfloat16)."""
    checkpoint: bool = False
    """Recompute activations in the backward pass: less memory, a third more work."""

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.duration_nimg < 1 or self.microbatch < 0:
            raise ValueError(f"batch_size {self.batch_size} and duration_nimg {self.duration_nimg} must be at least 1")
        if self.lr <= 0 or self.clip_norm < 0 or self.warmup_nimg < 0 or self.weight_decay < 0:
            raise ValueError(
                f"lr ({self.lr}) must be above 0, and clip_norm ({self.clip_norm}), warmup_nimg ({self.warmup_nimg}) "
                f"and weight_decay ({self.weight_decay}) not below"
            )
        if any(not 0 < decay < 1 for decay in self.ema_decays):
            raise ValueError(f"ema_decays are {self.ema_decays}; each lies between 0 and 1")
        if not 0 <= self.label_dropout < 1:
            raise ValueError(f"label_dropout is {self.label_dropout}; it is a share between 0 and 1")

    def flips(self, spec: DataSpec) -> bool:
        """Whether samples of such data are mirrored."""
        return self.flip if spec.image else self.flip_fields

    def dtype(self, device: torch.device) -> torch.dtype:
        """The precision of matrix products on a device."""
        return PRECISIONS.get(self.precision) or fast_dtype(device)


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


class NonFiniteLoss(RuntimeError):
    """The gradient was NaN or infinite, and changed no parameter; `indices` are its batch's samples in the data."""

    def __init__(self, nimg: int, indices: np.ndarray):
        self.nimg, self.indices = nimg, indices
        shown = ", ".join(map(str, indices[:32])) + (f" and {len(indices) - 32} more" if len(indices) > 32 else "")
        super().__init__(
            f"the loss or its gradient is not finite in the batch that starts at nimg = {nimg}; its samples are, by "
            f"index in the data, {shown}. If they are sound, try a lower learning rate or clip_norm = 1"
        )


def check_share(config: Training, processes: Processes) -> None:
    """Raises ValueError where a batch does not split over the processes."""
    if config.batch_size % processes.world:
        raise ValueError(f"a batch of {config.batch_size} does not split over {processes.world} processes")


def fresh_state(model: Denoiser, config: Training, device: torch.device) -> TrainingState:
    """A model at the start of its run: weights drawn from the seed, on the device, with optimizer and averages."""
    generator = torch.Generator().manual_seed(key(config.seed, Stream.WEIGHTS, 0))
    model.net.initialise(generator)
    model.to(device)
    optimizer = adamw(model.net, betas=config.betas, weight_decay=config.weight_decay)
    return TrainingState(model, optimizer, EMA(model.net, config.ema_decays))


def flow_matching(model: Denoiser, config: Training) -> Loss:
    """The loss of the paper (Alg. 1 and Eq. 6, arXiv 2511.13720), for any prediction and loss space."""

    def loss(predict: nn.Module, x: Tensor, y: Tensor | None, positions: range) -> Tensor:
        t = to_device(config.times.times(normals(config.seed, Stream.TIME, positions)), x.device)  # (B,)
        eps = model.noise_scale * training_noise(config.seed, positions, x.shape[1:], x.device)
        if y is not None:
            dropped = to_device(uniforms(config.seed, Stream.LABEL, positions) < config.label_dropout, x.device)
            y = torch.where(dropped, model.null_label, y)
        prediction = predict(diffuse(x, eps, t), t, y)
        return denoising_loss(prediction, x, eps, config.loss_space)

    return loss


def train(
    state: TrainingState,
    source: Source | StreamSource,
    loss: Loss,
    config: Training,
    *,
    tick_nimg: int,
    workers: int = 1,
    processes: Processes | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[Tick]:
    """Train from state.nimg to config.duration_nimg, yielding at every multiple of tick_nimg and at the end.

    It yields as well when `stop`, asked after every step, says so in any of the processes (which ask each other every
    STOP_STEPS steps). The state is up to date whenever this yields. Raises NonFiniteLoss, with the state as before the
    batch (on accelerators, where looking at every step would stall them: at the next tick, the bad steps skipped), and
    ValueError where the data are not those the model is for, or do not split over the processes.
    """
    processes = processes or Processes(device=state.model.device)
    model, net, device = state.model, state.model.net, processes.device
    if model.spec is None or model.spec != source.spec:
        raise ValueError(f"the model is for other data: {model.spec}, and these are {source.spec}")
    check_share(config, processes)
    spec, dtype = model.spec, config.dtype(device)
    share = config.batch_size // processes.world
    micro = config.microbatch or share
    parameters = list(net.parameters())
    conditional = model.config.num_classes > 0
    draws_masks = any(isinstance(m, nn.Dropout) and m.p > 0 for m in net.modules()) or model.config.dropout_scores > 0

    if config.checkpoint:
        checkpoint_blocks(net)
    if compiling_pays(net, device, dtype) if config.compile is None else config.compile:
        compile_blocks(net)
    runner = replicate(model, processes).train()

    reader = batches(
        source,
        seed=config.seed,
        start=state.nimg,
        batch_size=config.batch_size,
        rank=processes.rank,
        world=processes.world,
        workers=workers,
        pinned=device.type == "cuda",
    )

    def not_finite(nimg: int) -> NonFiniteLoss:
        return NonFiniteLoss(nimg, indices_at(source, config.seed, range(nimg, nimg + config.batch_size)))

    zero = torch.zeros((), device=device)
    total_loss, total_norm, first_bad = zero.clone(), zero.clone(), torch.full_like(zero, -1, dtype=torch.int64)
    steps, waited, began, lr = 0, 0.0, time.perf_counter(), 0.0

    while state.nimg < config.duration_nimg:
        asked = time.perf_counter()
        batch = next(reader)
        waited += time.perf_counter() - asked

        # --- one batch, from raw values to model values
        raw = batch.raw.to(device, non_blocking=True)
        x = model_values(raw, spec, seed=config.seed, positions=batch.positions, flip=config.flips(spec))
        y = batch.labels.to(device, non_blocking=True) if conditional else None
        if draws_masks:  # a function of the position; of the process too, which the other draws are not
            torch.manual_seed(key(config.seed, Stream.DROPOUT, batch.positions.start))

        # --- one step
        for start in range(0, share, micro):
            part = slice(start, start + micro)
            last = start + micro >= share
            with contextlib.nullcontext() if last else without_exchange(runner):
                with autocast(device, dtype):
                    losses = loss(runner, x[part], None if y is None else y[part], batch.positions[part])
                mean = losses.sum() / share
                mean.backward()
            total_loss += mean.detach()
        gradients = [p.grad for p in parameters if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        if config.clip_norm:
            nn.utils.clip_grads_with_norm_(parameters, config.clip_norm, norm)
        bad = ~torch.isfinite(norm)
        first_bad = torch.where(bad & (first_bad < 0), state.nimg, first_bad)
        if device.type == "cpu" and bad:
            state.optimizer.zero_grad(set_to_none=True)
            raise not_finite(state.nimg)
        lr = learning_rate(
            state.nimg + config.batch_size,
            peak=config.lr,
            warmup_nimg=config.warmup_nimg,
            duration_nimg=config.duration_nimg,
            schedule=config.schedule,
        )
        for group in state.optimizer.param_groups:
            group["lr"] = lr
        # The fused step leaves everything as it is where found_inf is 1, without a look from the host.
        state.optimizer.found_inf = bad.float()  # pyright: ignore[reportAttributeAccessIssue]
        state.optimizer.step()
        state.optimizer.zero_grad(set_to_none=True)
        before = state.nimg
        state.nimg += config.batch_size
        state.updates += 1
        state.ema.update(state.updates)
        total_norm += norm
        steps += 1

        # --- once in a while
        asked_to_stop = (processes.world == 1 or state.updates % STOP_STEPS == 0) and any_of(stop(), processes)
        over = state.nimg >= config.duration_nimg
        if asked_to_stop or over or state.nimg // tick_nimg > before // tick_nimg:
            if first_bad >= 0:
                raise not_finite(int(first_bad))
            seconds = time.perf_counter() - began
            yield Tick(
                nimg=state.nimg,
                loss=float(mean_over(total_loss, processes)) / steps,
                grad_norm=float(total_norm) / steps,
                lr=lr,
                img_per_second=steps * config.batch_size / seconds,
                waiting_on_data=waited / seconds,
                stopping=asked_to_stop and not over,
            )
            total_loss.zero_()
            total_norm.zero_()
            runner.train()
            steps, waited, began = 0, 0.0, time.perf_counter()
