"""Several processes: one per device, started by torchrun or SLURM, each with its part of every batch."""

import contextlib
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn

from justimage.meeting import Patience, connect, device_of, meet, seat_of
from justimage.pulse import Gone, Pulse

PATIENCE = timedelta(hours=2)  # of the library, whose messages name nobody; `pulse` finds who is dead or stopped sooner
SEARCH = 15.0  # seconds in which it is found out who has left, once a connection is broken
Made = TypeVar("Made")


@dataclass(frozen=True)
class Processes:
    """This process's number, how many there are, and its device."""

    rank: int = 0
    world: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    control: Any = None
    """A group for messages between the processes, which pass through memory and so never wait for a GPU."""
    pulse: Pulse | None = None
    """Signs of life to and from the others."""

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and shows."""
        return self.rank == 0


def join(device: torch.device, patience: Patience | None = None) -> Processes:
    """Join the other processes if torchrun or SLURM started this one with others, else stand alone on `device`.

    From then on each gives signs of life, until it calls `leave`; where one gives none for `patience.silence` seconds,
    the others say so and exit with code 1. Raises ValueError, in every process, where one does not come in time, or
    there are fewer devices than processes.
    """
    seat, patience = seat_of(os.environ), patience or Patience()
    if seat is None:
        return Processes(device=device)
    pulse = None
    if not dist.is_initialized():
        refusal, identity = "", ""
        try:
            device = device_of(seat, device.type, torch.cuda.device_count() if device.type == "cuda" else 0)
            if device.type == "cuda":
                torch.cuda.set_device(device)
                identity = str(torch.cuda.get_device_properties(device).uuid)
        except ValueError as error:
            refusal = str(error)
        attempt = f"justimage/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
        store = dist.PrefixStore(attempt, connect(seat, patience.arrival))  # pyright: ignore[reportPrivateImportUsage]
        members = meet(seat, store, identity, refusal, patience.arrival)
        own = dist.PrefixStore(attempt, connect(replace(seat, hosted=True), patience.arrival))  # pyright: ignore[reportPrivateImportUsage]
        store.set_timeout(PATIENCE)
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            store=store,
            rank=seat.rank,
            world_size=seat.world,
            timeout=PATIENCE,
        )
        pulse = Pulse(own, members, seat.rank, patience.silence)
    control = dist.new_group(backend="gloo", timeout=PATIENCE) if device.type == "cuda" else dist.group.WORLD
    return Processes(dist.get_rank(), dist.get_world_size(), device, control, pulse)


def leave(processes: Processes) -> None:
    """Leave the group, if there is one."""
    if processes.pulse is not None:
        processes.pulse.stop()
        if processes.pulse.found:  # the group would wait for them
            return
    if processes.world > 1 and dist.is_initialized():
        dist.destroy_process_group()


@contextlib.contextmanager
def naming_the_gone(processes: Processes) -> Iterator[None]:
    """Where a connection breaks in the block, since a process has died or left, raise Gone with its name.

    Where it is this process alone that has failed, `leave` tells the others why, and does not wait for them.
    """
    try:
        yield
    except RuntimeError as error:
        told = "" if processes.pulse is None else processes.pulse.gone(SEARCH)
        if told:
            raise Gone(told) from error
        if processes.pulse is not None:
            first = str(error).partition("\n")[0]
            processes.pulse.found = f"process {processes.rank} has failed: {first or type(error).__name__}"
        raise


def replicate(model: nn.Module, processes: Processes) -> nn.Module:
    """The model with gradients averaged over the processes; itself if there is only one.

    The wrapper shares the parameters: saving and sampling use the plain model.
    """
    if processes.world == 1:
        return model
    devices = [processes.device.index] if processes.device.type == "cuda" else None
    with warnings.catch_warnings():
        # Newer versions call it forward_sync_buffers, which torch 2.11 does not know. The buffers are fixed tables.
        warnings.filterwarnings("ignore", message=".*broadcast_buffers", category=FutureWarning)
        return nn.parallel.DistributedDataParallel(
            model, device_ids=devices, gradient_as_bucket_view=True, broadcast_buffers=False
        )


def shard(net: nn.Module, processes: Processes) -> None:
    """Share out a network over the processes, in place: each keeps a part of every parameter, gradient and moment.

    Each of its `blocks`, and the rest, is gathered when it is used (FSDP, arXiv 2304.11277), and gradients are averaged
    as in `replicate`. The names of parameters stay, and the network may lie on the CPU: no device ever holds all of it.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(processes.device.type, (processes.world,))
    blocks = getattr(net, "blocks", ())
    for part in (*blocks, net):
        fully_shard(part, mesh=mesh)


def mean_over(value: torch.Tensor, processes: Processes) -> torch.Tensor:
    """The mean of a tensor over the processes; itself if there is only one."""
    if processes.world > 1:
        dist.all_reduce(value)
        value /= processes.world
    return value


def wait(processes: Processes) -> None:
    """Wait until every process is here."""
    if processes.world > 1:
        dist.barrier()


def any_of(yes: bool, processes: Processes) -> bool:
    """Whether any of the processes says yes; all of them get the same answer."""
    if processes.world == 1:
        return yes
    if processes.pulse is not None:
        processes.pulse.entered += 1
    answer = torch.tensor(float(yes))
    dist.all_reduce(answer, dist.ReduceOp.MAX, group=processes.control)
    return bool(answer)


class FailedElsewhere(RuntimeError):
    """Another process has failed, for the reason that this says."""


def fail_together(error: Exception | None, processes: Processes) -> None:
    """Raise `error`, or FailedElsewhere with the message of the first process that has one; all processes call this."""
    if any_of(error is not None, processes):
        if error is not None and processes.world == 1:
            raise error
        messages: list[str | None] = [None] * processes.world
        dist.all_gather_object(messages, None if error is None else str(error), group=processes.control)
        if error is not None:
            raise error
        rank = next(i for i, message in enumerate(messages) if message is not None)
        raise FailedElsewhere(f"process {rank}: {messages[rank]}")


@contextlib.contextmanager
def failing_together(processes: Processes) -> Iterator[None]:
    """Where the block cannot write in one process, all processes raise: none waits for it."""
    problem = None
    try:
        yield
    except (OSError, FailedElsewhere) as error:
        problem = error
    fail_together(problem, processes)


def same_everywhere(value: Made, processes: Processes) -> Made:
    """What the first process has, in all of them."""
    if processes.world == 1:
        return value
    held: list[Made] = [value]
    dist.broadcast_object_list(held, src=0, group=processes.control)
    return held[0]


def gathered(value: Made, processes: Processes) -> list[Made]:
    """What every process has, in their order, in the first one; in the others, nothing."""
    if processes.world == 1:
        return [value]
    held: list[Any] | None = [None] * processes.world if processes.first else None
    dist.gather_object(value, held, dst=0, group=processes.control)
    return held or []


def first_then_others(processes: Processes, make: Callable[[], Made]) -> Made:
    """make() in the first process, then in the others, which find what it has left in caches.

    Where the first raises something, the others raise ValueError.
    """
    if processes.world == 1:
        return make()
    made, refusal = None, None
    if processes.first:
        try:
            made = make()
        except Exception as error:  # whatever it is, the other processes must not wait for this one
            refusal = error
    _refuse_together(refusal, processes)
    return made if made is not None else make()


@contextlib.contextmanager
def in_the_first(processes: Processes, enter: Callable[[], contextlib.AbstractContextManager[None]]) -> Iterator[None]:
    """enter() around the block in the first process. Where it raises something, the others raise ValueError."""
    with contextlib.ExitStack() as stack:
        refusal = None
        if processes.first:
            try:
                stack.enter_context(enter())
            except Exception as error:  # whatever it is, the other processes must not wait for this one
                refusal = error
        _refuse_together(refusal, processes)
        yield


def _refuse_together(refusal: Exception | None, processes: Processes) -> None:
    if any_of(refusal is not None, processes):
        raise refusal or ValueError("refused by the first process, which says why")


def without_exchange(model: nn.Module) -> contextlib.AbstractContextManager:
    """Gradients stay in this process: for all but the last of several backward passes that accumulate."""
    if isinstance(model, nn.parallel.DistributedDataParallel):
        return model.no_sync()
    return contextlib.nullcontext()
