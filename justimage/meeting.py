"""How several processes find each other: who started them, where they meet, and who did not come.

torchrun tells each its number in RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT; SLURM's srun tells it in
SLURM_PROCID, SLURM_NTASKS and SLURM_LOCALID, and the place is made of the job's nodes and its number.
"""

import json
import os
import re
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

PORTS = 20_000, 12_000  # the first one that a job may get, and how many: below those that systems give away themselves
SOON = 0.1  # seconds


@dataclass(frozen=True)
class Patience:
    """How long several processes wait for one of them."""

    arrival: float = 300.0
    """Seconds that all processes have to come, from when the first one begins."""
    silence: float = 60.0
    """Seconds without a sign of life from a process after which the others name it and end. After five times as long
    without progress, they say which process they wait for."""

    def __post_init__(self) -> None:
        for name in ("arrival", "silence"):
            if not 1 <= getattr(self, name) <= 86_400:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be between 1 and 86,400 seconds")


@dataclass(frozen=True)
class Seat:
    """The place of a process among all: its number, how many there are, and where they meet."""

    rank: int
    world: int
    local_rank: int
    """Its number on its machine."""
    local_world: int
    """Processes on its machine; 0: unknown."""
    address: str
    port: int
    hosted: bool
    """Whether what started the processes holds the meeting; otherwise the first of them does."""


def seat_of(environment: Mapping[str, str]) -> Seat | None:
    """The place that torchrun or SLURM has given to this process; None where it is alone.

    Raises ValueError where they say only a part of it, or something that is not a number.
    """
    if "WORLD_SIZE" in environment:
        names, by = ("RANK", "WORLD_SIZE", "LOCAL_RANK"), "torchrun"
    elif "SLURM_PROCID" in environment and "SLURM_NTASKS" in environment:
        names, by = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"), "srun"
    else:
        return None
    if _number(environment, names[1], by) <= 1:
        return None
    rank, world, local_rank = (_number(environment, name, by) for name in names)
    if not 0 <= rank < world:
        raise ValueError(f"{names[0]} is {rank}, and {names[1]} is {world}: the processes are 0 to {world - 1}")
    if by == "torchrun":
        missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in environment]
        if missing:
            raise ValueError(f"WORLD_SIZE is {world}, but {missing[0]} is not set; start the processes with torchrun")
        address, port = environment["MASTER_ADDR"], _number(environment, "MASTER_PORT", by)
        local_world = int(environment.get("LOCAL_WORLD_SIZE", "0"))
        hosted = environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        return Seat(rank, world, local_rank, local_world, address, port, hosted)
    job = int(re.sub(r"\D", "", environment.get("SLURM_JOB_ID", "")) or 0)
    step = int(re.sub(r"\D", "", environment.get("SLURM_STEP_ID", "")) or 0)
    port = PORTS[0] + (job * 7 + step) % PORTS[1]
    port = _number(environment, "MASTER_PORT", by) if "MASTER_PORT" in environment else port
    return Seat(rank, world, local_rank, 0, environment.get("MASTER_ADDR") or _first_host(environment), port, False)


def _number(environment: Mapping[str, str], name: str, by: str) -> int:
    said = environment.get(name)
    if said is None or not said.strip().isdecimal():
        problem = "is not set" if said is None else f"is {said!r}, not a number"
        raise ValueError(f"{name} {problem}; start the processes with {by}, which sets it")
    return int(said)


def _first_host(environment: Mapping[str, str]) -> str:
    """The machine of process 0: the first one of the step's or the job's nodes, as in node[003-005,007],gpu1."""
    nodes = environment.get("SLURM_STEP_NUM_NODES") or environment.get("SLURM_NNODES") or ""
    listed = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST") or ""
    if nodes == "1":
        return "127.0.0.1"
    found = re.match(r"([^\[,]+)(?:\[(\d+)[^\]]*\])?([^\[,]*)", listed)
    if found:
        return found[1] + (found[2] or "") + found[3]
    return environment.get("SLURM_LAUNCH_NODE_IPADDR") or "127.0.0.1"


def device_of(seat: Seat, kind: str, count: int) -> torch.device:
    """The device of a process, of `count` on its machine. Raises ValueError where there are fewer than processes."""
    if kind != "cuda":
        return torch.device(kind)
    if count == 1 and seat.local_rank and not seat.local_world:
        return torch.device("cuda", 0)  # each task of SLURM may see a GPU of its own; `meet` asks whether they do
    if max(seat.local_rank + 1, seat.local_world) > count:
        asked = max(seat.local_rank + 1, seat.local_world)
        raise ValueError(
            f"{asked} processes on {socket.gethostname()}, but it has {count} GPU{'s' * (count != 1)} "
            f"(CUDA_VISIBLE_DEVICES={os.environ.get('CUDA_VISIBLE_DEVICES', 'not set')}); start at most {count} there"
        )
    return torch.device("cuda", seat.local_rank)


def connect(seat: Seat, seconds: float) -> dist.TCPStore:  # pyright: ignore[reportPrivateImportUsage]
    """A connection to the meeting, which process 0 holds, unless torchrun does.

    Raises ValueError where it cannot be reached in so many seconds, or the port is taken.
    """
    place, hosting = f"{seat.address}:{seat.port}", seat.rank == 0 and not seat.hosted
    if not hosting:
        _until_open(seat, seconds)
    try:
        return dist.TCPStore(  # pyright: ignore[reportPrivateImportUsage]
            seat.address, seat.port, seat.world, hosting, timedelta(seconds=seconds), wait_for_workers=False
        )
    except (dist.DistNetworkError, dist.DistStoreError) as error:
        why = "the port is taken; set MASTER_PORT to another one" if "EADDRINUSE" in str(error) else str(error)
        raise ValueError(f"process {seat.rank} cannot meet the others at {place}: {why.splitlines()[0]}") from error


def _until_open(seat: Seat, seconds: float) -> None:
    """Wait until process 0 listens: the library's own waiting fills the screen."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection((seat.address, seat.port), timeout=max(SOON, deadline - time.monotonic())).close()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise ValueError(
                    f"process {seat.rank} of {seat.world} on {socket.gethostname()} has waited {seconds:g} s for "
                    f"process 0 at {seat.address}:{seat.port}, which does not answer ({error}); is it running, and can "
                    "this machine reach that one? --patience.arrival is how long it waits"
                ) from error
        time.sleep(SOON)


def meet(seat: Seat, store: Any, device: str, refusal: str, seconds: float) -> list[dict[str, Any]]:
    """Say who this process is, and wait for the others -> host, pid and device of each.

    refusal: why this process cannot take part. Raises ValueError in all processes where one of them refuses, where some
    do not come in so many seconds, or where two have the same GPU: with their numbers.
    """
    here = {"host": socket.gethostname(), "pid": os.getpid(), "device": device, "refusal": refusal}
    store.set(f"here/{seat.rank}", json.dumps(here))
    deadline = time.monotonic() + seconds
    missing = list(range(seat.world))
    while missing := [rank for rank in missing if not store.check([f"here/{rank}"])]:
        if store.check(["given up"]):
            raise ValueError(store.get("given up").decode())
        if time.monotonic() > deadline:
            told = _who_is_missing(seat, missing, seconds)
            store.set("given up", told)
            time.sleep(10 * SOON)  # if this is process 0, the others read it there
            raise ValueError(told)
        time.sleep(SOON)
    members = [json.loads(store.get(f"here/{rank}")) for rank in range(seat.world)]
    # Process 0 holds the meeting: it stays until all have read.
    store.set(f"read/{seat.rank}", "")
    while seat.rank == 0 and not store.check([f"read/{rank}" for rank in range(seat.world)]):
        if time.monotonic() > deadline + 10:
            break
        time.sleep(SOON)
    refused = next((rank for rank, each in enumerate(members) if each["refusal"]), None)
    if refused is not None:
        raise ValueError(refusal or f"process {refused} refuses: {members[refused]['refusal']}")
    _check_devices(members)
    return members


def _who_is_missing(seat: Seat, missing: list[int], seconds: float) -> str:
    shown = ", ".join(map(str, missing[:8])) + (f" and {len(missing) - 8} more" if len(missing) > 8 else "")
    return (
        f"{seat.world - len(missing)} of {seat.world} processes came within {seconds:g} s; missing: process {shown}. "
        "Look at what they print; in a batch script of SLURM, srun must start the command. --patience.arrival is how "
        "long they wait for each other"
    )


def _check_devices(members: list[dict[str, Any]]) -> None:
    """Raises ValueError where two processes have the same device; a CPU may be shared."""
    holder: dict[tuple[str, str], int] = {}
    for rank, each in enumerate(members):
        place = each["host"], each["device"]
        if each["device"] and place in holder:
            raise ValueError(
                f"processes {holder[place]} and {rank} have the same GPU of {each['host']}; start as many processes "
                "there as it has GPUs, or give each its own (srun --gpus-per-task 1)"
            )
        holder[place] = rank
