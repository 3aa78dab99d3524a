"""Building the state of a training run: one place, one order.

    weights -> adapters -> checkpointing -> compiling -> replicating or sharding -> optimizer and averages

Each step is a function over an unmodified module, so that another one is a line in its place, and the names
of saved tensors stay those of the plain network.
"""

from collections.abc import Collection
from functools import partial
from math import prod

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from justimage.denoiser import Denoiser
from justimage.execution import best_device, check_memory, checkpoint_blocks, compile_blocks, compiling_pays
from justimage.parallel import Processes, replicate, shard
from justimage.randomness import Purpose, key
from justimage.training.adapters import add_adapters, freeze
from justimage.training.ema import EMA
from justimage.training.optim import adamw
from justimage.training.settings import Training
from justimage.training.shards import outline
from justimage.training.state import TrainingState
from justimage.training.work import Held


def build(
    model: Denoiser,
    config: Training,
    processes: Processes | None = None,
    *,
    adopt: bool | None = None,
    anew: Collection[str] = (),
) -> TrainingState:
    """A model at the start of its run: on its device, with runner, optimizer and averages.

    adopt: continue from the weights that the model has. Otherwise a network that has `initialise` gets weights drawn
    from the seed, whatever it had. The network may be on the meta device: then it has memory from here on. processes:
    this process alone, on the best device, by default. anew: names of parameters that are trained beside adapters, as
    they hold something that is new; without adapters (config.lora) all are.

    Raises ValueError where a trained model is given without `adopt`, where a batch does not split over the processes,
    where training needs more memory than the device has, and where `initialise` has left something unfilled.
    """
    processes = processes or Processes(device=best_device())
    if config.batch_size % processes.world:
        raise ValueError(
            f"a batch of {config.batch_size} does not split over {processes.world} processes; choose a batch_size that "
            "their number divides, or another number of processes"
        )
    if adopt is None and model.training_summary:
        raise ValueError(
            "this model has been trained: build(..., adopt=True) continues from its weights, adopt=False draws new ones"
        )
    net = model.net
    if config.lora.rank:
        freeze(net, anew)
    _check_memory(model, config, processes)
    if not adopt:
        initialise(net, config.seed)
    if config.lora.rank:
        add_adapters(net, config.lora, config.seed)
    sharded = config.shard and processes.world > 1
    if not sharded:
        model.to(processes.device)
    if config.checkpoint:
        checkpoint_blocks(net)
    dtype, compiled = config.dtype(processes.device), config.compile
    if compiled is None:
        planned = partial(_planned, model, config) if processes.device.type == "cpu" else None  # a GPU trains for long
        compiled = compiling_pays(net, processes.device, dtype, planned)
    if compiled:
        compile_blocks(net)
    plain = outline(model) if sharded else None
    if sharded:
        shard(net, processes)
    runner = model if sharded else replicate(model, processes)
    optimizer = adamw(net, betas=config.betas, weight_decay=config.weight_decay)
    ema = EMA(
        net,
        config.ema_decays,
        start_nimg=config.ema_start_nimg,
        batch_size=config.batch_size,
        stds=config.ema_stds,
        every=config.ema_every,
        warmup=config.ema_warmup,
    )
    return TrainingState(model, runner, processes, optimizer, ema, plain=plain)


@torch.no_grad()
def _planned(model: Denoiser, config: Training) -> float:
    """The multiply-adds of a whole run, the backward pass twice the forward one, by those of one sample."""
    training = model.training
    model.eval()
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, model.config.channels, *model.config.size), torch.zeros(1))
    model.train(training)
    return 3 * counter.get_total_flops() / 2 * config.duration_nimg


def _check_memory(model: Denoiser, config: Training, processes: Processes) -> None:
    """Raises ValueError where what training certainly needs is more than the device has, before any of it is made."""
    held = Held.of(model.net, config.averages)
    state = held.total // (processes.world if config.shard else 1)
    check_memory(
        state,
        processes.device,
        f"the parameters ({held.weights / 4e6:,.1f} M), gradients, moments and averages of this network",
        "choose a smaller width or depth, or fewer ema_decays",
    )
    samples = config.batch_size // processes.world  # all of them are read at once, whatever the microbatch
    numbers = model.config.channels * prod(model.config.size)
    check_memory(
        state + 4 * numbers * samples,
        processes.device,
        f"training this network and {samples:,} samples of {numbers:,} numbers at once",
        "choose a smaller batch_size",
    )


@torch.no_grad()
def initialise(net: nn.Module, seed: int) -> None:
    """Fill a network by its own `initialise`, from the seed; one without it keeps the weights that it was made with."""
    if not hasattr(net, "initialise"):
        return
    if any(tensor.is_meta for tensor in (*net.parameters(), *net.buffers())):
        net.to_empty(device="cpu")
        for tensor in (*net.parameters(), *net.buffers()):
            if tensor.is_floating_point():
                tensor.fill_(torch.nan)
    net.initialise(torch.Generator().manual_seed(key(seed, Purpose.WEIGHTS, 0)))  # type: ignore[operator]
    for name, tensor in (*net.named_parameters(), *net.named_buffers()):
        if tensor.is_floating_point() and tensor.isnan().any():
            raise ValueError(f"{type(net).__name__}.initialise leaves {name} unfilled")
