"""How a network is run, applied from outside to an unmodified module: device, precision, compiled blocks.

Names in the state dict stay those of the plain module whatever is applied. The order, for training: checkpoint
the blocks, compile the blocks, then replicate; for sampling: cast the parameters, then compile the blocks.
"""

import contextlib
import os
import platform
import shutil
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from justimage import __version__
from justimage.disk.cache import cache_folder, cached


def best_device() -> torch.device:
    """The accelerator if there is one, otherwise the CPU."""
    device = torch.accelerator.current_accelerator(check_available=True)
    return device or torch.device("cpu")


def find_device(name: str | None) -> torch.device:
    """A device by name, the best one by default. Raises ValueError where this machine has none of that name."""
    if name is None:
        return best_device()
    best = best_device()
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"{name!r} is not a device; this machine has {' and '.join({'cpu', best.type})}") from error
    if device.type not in ("cpu", best.type):
        raise ValueError(f"this machine has no {name!r}; it has {' and '.join({'cpu', best.type})}")
    if device.index and device.type != "cpu" and device.index >= torch.accelerator.device_count():
        raise ValueError(
            f"this machine has no {name!r}: it has {torch.accelerator.device_count()} of them, counted from 0"
        )
    return device


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A copy on the device, without waiting for it on a GPU (a copy from memory that is not pinned would)."""
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def memory_of(device: torch.device) -> int | None:
    """All the memory of a device in bytes, in use or not; None where it does not say. A CPU's is the machine's."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[1]
    if device.type not in ("cpu", "mps"):
        return None
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not on every system
        return None


def peak_of_process() -> int:
    """The most bytes that this process has held at once; 0 on a system that does not say.

    Not by getrusage on Linux, which counts what the process was before it was this program: its parent, often.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        return next((1024 * int(line.split()[1]) for line in status.read_text().splitlines() if "VmHWM" in line), 0)
    try:
        import resource
    except ImportError:
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if platform.system() == "Darwin" else 1024)


def check_memory(needed: int, device: torch.device, what: str, instead: str) -> None:
    """Raises ValueError where something needs more bytes than a device has: what it is, and what to do instead."""
    there = memory_of(device)
    if there is not None and needed > there:
        least, has = f"{needed / 2**30:,.1f} GiB", f"{there / 2**30:,.1f} GiB"
        raise ValueError(f"{what} need at least {least}, and this machine's {device.type} has {has}; {instead}")


def finish(device: torch.device) -> None:
    """Wait until a device has done what it was given."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """The names of the tensors that hold NaN or infinity; a device is waited for once, not for each of them."""
    flags: dict[torch.device, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        flags.setdefault(tensor.device, {})[name] = tensor.isfinite().all()
    return [
        name
        for each in flags.values()
        for name, fine in zip(each, torch.stack([*each.values()]).tolist(), strict=True)
        if not fine
    ]


LARGE = 50_000_000  # parameters; on a GPU, smaller networks are done before the compiler is
LONG, LONG_ON_GPU = 5e13, 1e16  # multiply-adds that take minutes


def compiling_pays(
    net: nn.Module, device: torch.device, dtype: torch.dtype, planned: Callable[[], float] | None = None
) -> bool:
    """Whether compiling is worth its half minute: for minutes of work, of large networks on GPUs, and others on CPUs.

    planned: counts the multiply-adds of all that is to be done; without it, on a GPU it is much, as in training, and on
    a CPU little. In float32 on a CPU the products take nearly all the time of large networks, and fusing the rest gains
    nothing (benchmarks/results).
    """
    large = sum(p.numel() for p in net.parameters()) >= LARGE
    if device.type != "cpu":
        pays = large and (device.type == "cuda" or dtype != torch.float32)
        return pays and (planned is None or planned() >= LONG_ON_GPU) and compiler_works(device)
    fast = dtype != torch.float32 or not large
    return fast and planned is not None and planned() >= LONG and compiler_works(device)


def compiler_works(device: torch.device) -> bool:
    """Whether torch.compile yields code for a device, which takes a C or C++ compiler; tried once, and remembered."""

    def tried() -> dict[str, bool]:
        try:
            torch.compile(lambda x: x.sin() + 1)(torch.ones(8, device=device))
        except Exception:  # whatever it is: there is another way
            return {"works": False}
        return {"works": True}

    keep_compiled()
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    where = platform.machine() if device.type == "cpu" else device_name(device)
    return cached(f"{compiler} for torch {torch.__version__} on {where}", tried)["works"]


def keep_compiled() -> None:
    """Keep compiled code beside other cached values, unless the user says where: by default it is gone with /tmp."""
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder() / "compiled"))


def autocast(device: torch.device, dtype: torch.dtype) -> contextlib.AbstractContextManager:
    """Mixed precision for training: matrix products in `dtype`, parameters and residual stream in float32."""
    if dtype == torch.float32:
        return contextlib.nullcontext()
    # A weight is used once in a forward pass: keeping its cast until the end would only take memory.
    return torch.autocast(device.type, dtype=dtype, cache_enabled=False)


def cast_parameters(net: nn.Module, dtype: torch.dtype) -> None:
    """Parameters to `dtype`, in place; fixed tables (positions, rotations) keep float32.

    For sampling: autocast would cast every weight again at every evaluation.
    """
    for parameter in net.parameters():
        parameter.data = parameter.data.to(dtype)


def precision_of(net: nn.Module) -> str:
    """The precision of a network's products, as a name: that of its narrowest parameters."""
    dtypes = {parameter.dtype for parameter in net.parameters()} or {torch.float32}
    return name_of_dtype(min(dtypes, key=lambda dtype: dtype.itemsize))


def blocks_of(net: nn.Module) -> Iterator[nn.Module]:
    """The repeated blocks of a network. Raises ValueError where it has no `blocks`."""
    blocks = getattr(net, "blocks", None)
    if not isinstance(blocks, nn.ModuleList):
        raise ValueError(f"{type(net).__name__} has no `blocks`, the ModuleList that is compiled or checkpointed")
    yield from blocks


def compile_blocks(net: nn.Module) -> None:
    """torch.compile each block in place: one compilation serves all, as they are alike."""
    keep_compiled()
    # DDP would cut each block into parts, to exchange gradients early: blocks are such parts already.
    torch._dynamo.config.optimize_ddp = False
    for block in blocks_of(net):
        block.compile()


def checkpoint_blocks(net: nn.Module) -> None:
    """Recompute activations in the backward pass instead of keeping them: less memory, a third more work."""
    for block in blocks_of(net):
        if not isinstance(block.forward, partial):  # it is already otherwise
            block.forward = partial(_checkpointed, block.forward)


def _checkpointed(forward: Callable[..., Tensor], *inputs: Any) -> Tensor:
    """A call of its own: the compiler does not look into PyTorch's `checkpoint`, and takes it as part of this one."""
    return checkpoint(forward, *inputs, use_reentrant=False)


def is_compiled(net: nn.Module) -> bool:
    """Whether blocks of a network are compiled, or will be when they are first called."""
    return any(module._compiled_call_impl is not None for module in net.modules())


def name_of_dtype(dtype: torch.dtype) -> str:
    """What options and files call it: float32."""
    return str(dtype).removeprefix("torch.")


def versions() -> dict[str, str]:
    """What a result depends on besides its settings."""
    return {"justimage": __version__, "torch": torch.__version__, "python": platform.python_version()}


def device_name(device: torch.device) -> str:
    """What the machine calls its accelerator, or its processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    known = Path("/proc/cpuinfo")  # Linux; elsewhere Python knows
    for line in known.read_text().splitlines() if known.is_file() else []:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
