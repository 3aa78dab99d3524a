"""What a run will take: memory by group, and seconds by what they are spent on, from counts and a device's figures.

A step is taken for a sequence of parts, each as fast as the part of the device that it waits for: matrix products by
its FLOP/s, everything else by its memory, the exchange of gradients by its link (a roofline, doi
10.1145/1498765.1498785).
What is measured instead of estimated is in justimage.speed.rehearsal.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from math import ceil, inf, prod
from typing import Any

import torch
from torch import nn

from justimage.execution import LARGE, blocks_of, device_name, is_compiled, memory_of, name_of_dtype, peak_of_process
from justimage.networks.protocol import NETWORKS, name_of
from justimage.precision import probe
from justimage.runs.hardware import Hardware
from justimage.runs.recipes import Recipe
from justimage.training.state import TrainingState
from justimage.training.work import Held, Work, counts_of

SHARE = 0.5  # of the peak, that matrix products of a transformer reach
BANDWIDTH = 0.85  # of the data sheet's, that kernels without products reach
FUSED = 1.4  # bytes moved between products by compiled blocks, over what the products themselves read and write
KEPT = 0.66  # activations of compiled blocks, over those of the same blocks as written (XS/8, torch 2.15)
HOST = 8e-6  # seconds for the host to ask for one kernel
KERNELS = 0.3  # of compiled blocks, over the operations of the same blocks as written
CONTEXT = 1.0e9  # bytes of a GPU that the driver and the libraries take
HOUR = 3600
SLOWEST = 0.02  # of what products of matrices reach alone, in training a small network on a CPU
CPU_BANDWIDTH = 8e9  # bytes/s that steps of mnist-demo and cifar10 were seen to move on two cores
OPERATIONS_A_BYTE = 250  # of GPUs
USABLE = 0.95  # of a device's memory; the rest is lost between blocks of memory


@dataclass(frozen=True)
class Footprint:
    """Bytes that one process holds when it holds most."""

    weights: int
    gradients: int
    optimizer: int
    averages: int
    activations: int
    """Kept by the forward pass for the backward one; with batch and noise."""
    workspace: int
    """What the backward pass needs for itself."""
    process: int
    """Python, libraries and data; on a GPU, what its driver and libraries take there."""

    @property
    def total(self) -> int:
        """All groups."""
        return sum(asdict(self).values())


def footprint(
    held: Held, work: Work, process: float, *, world: int = 1, compiled: bool = False, sharded: int = 0
) -> Footprint:
    """The memory of a process at its peak.

    work: of its share of the batch. compiled: activations as compiled blocks keep them, unless they are computed again.
    world: processes; with more than one, gradients have their place all the time. sharded: bytes of the largest block,
    where weights, gradients, moments and averages lie in as many parts as there are processes (two blocks are then
    whole at a time); 0: they do not.
    """
    there = work.peak_gradients if world == 1 else held.gradients
    kept = min(work.kept, work.peak - work.peak_gradients)
    own = Footprint(
        weights=held.weights,
        gradients=there,
        optimizer=held.optimizer,
        averages=held.averages,
        activations=round(kept * (KEPT if compiled and not work.recomputed else 1)),
        workspace=work.peak - work.peak_gradients - kept,
        process=round(process),
    )
    if not sharded:
        return own
    split = {name: ceil(getattr(own, name) / world) for name in ("weights", "gradients", "optimizer", "averages")}
    return replace(own, **split, workspace=own.workspace + 2 * sharded)


def largest_block(net: nn.Module) -> int:
    """Bytes of the parameters of the largest block; of the whole network, where it has none."""
    blocks = list(blocks_of(net)) if hasattr(net, "blocks") else [net]
    return max(sum(p.numel() * p.element_size() for p in block.parameters()) for block in blocks)


def largest_batch(needed: Callable[[int], int], there: float, start: int) -> int:
    """The most samples for which `needed` bytes, which grow with them, are no more than there are; 0: not one fits.

    Found by doubling, and then by halving what is left between one that fits and one that does not.
    """
    fits, too_many = 0, start
    while needed(too_many) <= there:
        fits, too_many = too_many, 2 * too_many
    while too_many - fits > 1:
        middle = (fits + too_many) // 2
        fits, too_many = (middle, too_many) if needed(middle) <= there else (fits, middle)
    return fits


@dataclass(frozen=True)
class Seconds:
    """Seconds of one step, by what they are spent on."""

    products: float
    """Matrix products, attention among them."""
    others: float
    """Everything else in the forward and backward pass."""
    optimizer: float
    averages: float
    exchange: float
    """Gradients, between processes."""
    host: float
    """Waiting for the host, which asks for kernels more slowly than a small network's are done."""

    @property
    def total(self) -> float:
        """All parts."""
        return sum(asdict(self).values())


def seconds_of(
    held: Held,
    work: Work,
    hardware: Hardware,
    *,
    world: int = 1,
    compiled: bool = False,
    sharded: int = 0,
    every: int = 1,
) -> Seconds:
    """The seconds of a step on a device, estimated. compiled, sharded: as for `footprint`; every: Training.ema_every.

    A ring of N processes moves (N - 1) / N of the bytes past each of them to gather or to add something up: gradients
    are added up and gathered; where all is sharded, weights are gathered twice and gradients are added up.
    """
    speed, parts = BANDWIDTH * hardware.bandwidth, world if sharded else 1
    products = 2 * (work.forward + work.backward) / (SHARE * hardware.products)
    others = (FUSED * work.products_moved if compiled else work.others_moved) / speed
    # AdamW reads four and writes three numbers for each; the norm and clipping read two and write one.
    optimizer, averages = 10 * held.gradients / speed / parts, 3 * held.averages / speed / parts / every
    moved = 2 * held.weights + held.gradients if sharded else 2 * held.gradients
    exchange = (world - 1) / world * moved / hardware.link  # not hidden behind anything
    asking = HOST * work.operations * (KERNELS if compiled else 1)
    host = max(0.0, asking - products - others)
    return Seconds(products, others, optimizer, averages, exchange, host)


def this_machine(device: torch.device, dtype: torch.dtype) -> Hardware:
    """A device that is here, roughly: products as measured once (`precision.probe`), and a bandwidth that goes with it.

    A bandwidth measured now would be that of a moment; GPUs of the table move a byte in 120 to 420 operations.
    """
    rates = {each.precision: each.flops for each in probe(device)}
    products = rates[name_of_dtype(dtype)] or rates["float32"] or inf
    bandwidth = CPU_BANDWIDTH if device.type == "cpu" else products / OPERATIONS_A_BYTE
    return Hardware(device_name(device), products, bandwidth, memory_of(device) or inf, inf, 0.0, "measured")


def in_a_line(recipe: Recipe, state: TrainingState) -> str:
    """What is left of a run, roughly, where it is more than an hour; empty where it is not.

    A short run is known by its parameters, which each sample's patches meet at most once each; nothing is counted for
    it. Otherwise a step is counted, which takes seconds.
    """
    config, net, device = recipe.training, state.model.net, state.processes.device
    shape: Any = state.model.config
    samples = (config.duration_nimg - state.nimg) / state.processes.world
    dtype = config.dtype(device)
    here = this_machine(device, dtype)
    patches = prod(shape.size) / prod(getattr(shape, "patch", shape.size))
    products = 6 * sum(p.numel() for p in net.parameters()) * patches * samples
    if name_of(net) not in NETWORKS or products < HOUR * SLOWEST * here.products:
        return ""
    held = Held.of(net, config.averages)
    precise = replace(config, precision=name_of_dtype(dtype))  # type: ignore[arg-type]
    counts = counts_of(state.model, precise, fused_attention=device.type != "cpu")
    work = counts.work(config.batch_size // state.processes.world, config.microbatch)
    compiled = is_compiled(net)
    seconds = seconds_of(held, work, here, compiled=compiled, every=config.ema_every).total
    left = samples / work.samples * seconds
    if left < HOUR:
        return ""
    process = CONTEXT if device.type == "cuda" else peak_of_process() - held.weights - held.averages
    memory = footprint(held, work, max(process, 0), world=state.processes.world, compiled=compiled).total
    rate = config.batch_size / seconds
    return f"about {in_time(left)} at {rate:,.3g} img/s, {memory / 1e9:,.1f} GB"


def in_time(seconds: float) -> str:
    """Seconds in the unit that suits them."""
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length or (unit == "min" and seconds >= length):
            return f"{seconds / length:,.1f} {unit}"
    return f"{seconds:,.1f} s"


def compiles(recipe: Recipe, net: nn.Module) -> bool:
    """Whether training compiles this network's blocks on a GPU, as `execution.compiling_pays` decides."""
    asked = recipe.training.compile
    return sum(p.numel() for p in net.parameters()) >= LARGE if asked is None else asked


def evaluations_beside(recipe: Recipe) -> int:
    """Evaluations of the network that a run spends on grids of samples and on being evaluated, all together."""
    report, sampling, duration = recipe.report, recipe.sampling, recipe.training.duration_nimg
    shown = replace(sampling, sampler="deis", steps=report.preview_steps, interval=(0.0, 1.0))
    guided = {sampling.guidance, 1.0}
    rows = sum(replace(shown, guidance=scale).evaluations() for scale in guided)
    grids = 10 * rows * (2 if recipe.training.ema_decays else 1) * ceil(duration / report.sample_nimg)
    judged = ceil(duration / report.evaluate_nimg) if report.evaluate_nimg else 0
    return grids + judged * report.evaluate_count * sampling.evaluations()


def assumptions(hardware: Hardware, *, world: int, compiled: bool) -> list[str]:
    """What an estimate rests on, in words."""
    said = [
        f"{hardware.name}: {hardware.products / 1e12:,.0f} TFLOP/s in bfloat16, {hardware.bandwidth / 1e9:,.0f} GB/s, "
        f"{hardware.memory / 1e9:,.0f} GB, {hardware.watts:,.0f} W ({hardware.source})",
        f"matrix products reach {100 * SHARE:.0f} % of the peak: published trainings reach 29 to 46 % with everything "
        "else included (ViT-5-Base 29 %, Llama-3.1-8B 33 to 39 %, nanochat 41 to 46 %)",
        f"everything else runs at {100 * BANDWIDTH:.0f} % of the memory's bandwidth, "
        + (
            f"fused by the compiler: {FUSED:g} times the bytes that products read and write"
            if compiled
            else "each operation by itself, not compiled"
        ),
        "the data come as fast as they are needed, and the device holds its clock",
        f"memory: {CONTEXT / 1e9:g} GB for driver and libraries, {100 * USABLE:.0f} % of the device usable"
        + (f", compiled blocks keep {100 * KEPT:.0f} % of the activations" if compiled else ""),
    ]
    kernels = f"; compiled blocks ask for {100 * KERNELS:.0f} % as many kernels" if compiled else ""
    said.append(f"the host needs {HOST * 1e6:g} microseconds to ask for a kernel, and the device waits for it{kernels}")
    if world > 1:
        said.append(
            f"{world} devices in one machine exchange float32 gradients in a ring, {hardware.link / 1e9:,.0f} GB/s one "
            "way, and nothing else goes on meanwhile"
        )
    return said


def plainly(values: Any) -> dict[str, Any]:
    """A footprint or seconds, with their sum, as JSON."""
    return {**asdict(values), "total": values.total}
