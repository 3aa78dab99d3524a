"""States and weights of a sharded network: gathered whole, written by all processes together, read by any number.

A sharded state is a folder of safetensors files, one of each process, which torch.distributed.checkpoint writes and
reads (its layout for the Hugging Face hub, which holds no pickle). What it reads may be of any number of processes; a
plain state is such a folder with one file. Functions named `..._together` are called by all processes.
"""

# pyright: reportPrivateImportUsage=false

import copy
import errno
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from justimage.denoiser import Denoiser
from justimage.disk.tensors import read_tensors, sum_of
from justimage.disk.whole import whole
from justimage.parallel import Processes, fail_together, gathered, same_everywhere

FILES = "*.safetensors"


def part_of(tensor: Tensor) -> Tensor:
    """The part of a tensor that this process holds: all of one that is not sharded."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor  # pyright: ignore[reportAttributeAccessIssue]


def whole_together(tensor: Tensor) -> Tensor:
    """All of a tensor, in every process."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor  # pyright: ignore[reportAttributeAccessIssue]


def with_tensors(model: Denoiser, tensors: Mapping[str, Tensor]) -> Denoiser:
    """A copy of a model with these tensors as the network's parameters; buffers and facts are shared.

    It is copied rather than built anew, so that it works for any network, however it was made, on any device.
    """
    shared: dict[int, Any] = {id(buffer): buffer for buffer in model.buffers()}
    shared |= {id(fact): fact for fact in (model.spec, model.sampling, model.config)}
    shared |= {id(p): nn.Parameter(tensors[name], requires_grad=False) for name, p in model.net.named_parameters()}
    return copy.deepcopy(model, shared)


def outline(model: Denoiser) -> Denoiser:
    """A copy whose parameters have no memory, made before a network is sharded: afterwards it cannot be copied."""
    return with_tensors(model, {name: torch.empty_like(p, device="meta") for name, p in model.net.named_parameters()})


def names_together(names: Iterable[str], processes: Processes) -> list[str]:
    """What any process names, in all of them, without repetitions."""
    found = gathered(list(names), processes)
    return same_everywhere(list(dict.fromkeys(name for each in found for name in each)), processes)


@contextmanager
def place_together(place: Path, processes: Processes) -> Iterator[Path]:
    """disk.whole for all processes: a folder that takes its name when all have left the block, and none has failed.

    What the system refuses in one of them is raised there, and FailedElsewhere in the others.
    """
    with ExitStack() as stack:
        beside, problem = place, None
        if processes.first:
            try:
                beside = stack.enter_context(whole(place))
                beside.mkdir()
            except OSError as error:
                problem = error
        fail_together(problem, processes)
        try:
            yield same_everywhere(beside, processes)
        except OSError as error:
            problem = error
        fail_together(problem, processes)


def write_together(folder: Path, tensors: Mapping[str, Tensor], processes: Processes) -> dict[str, str]:
    """Write the parts of tensors into a folder that exists; returns the sum of each file, for `check_together`.

    Raises OSError, in all processes, for what the system refuses in one of them.
    """
    from torch.distributed import checkpoint as dcp

    try:
        writer = dcp.HuggingFaceStorageWriter(str(folder), save_distributed=True)
        dcp.save(dict(tensors), storage_writer=writer, process_group=processes.control)
    except dcp.CheckpointException as error:
        raise _cause(error, folder) from error
    return _sums_together(folder, processes)


def read_shapes(folder: Path) -> dict[str, tuple[torch.Size, torch.dtype]]:
    """Shape and type of each tensor in a folder of either kind. Raises ValueError where it cannot be read."""
    from safetensors import SafetensorError
    from torch.distributed import checkpoint as dcp

    try:
        saved = dcp.HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise ValueError(f"{folder} is damaged: {error}") from error
    return {name: (each.size, each.properties.dtype) for name, each in saved.items()}  # pyright: ignore[reportAttributeAccessIssue]


def read_together(folder: Path, into: Mapping[str, Tensor], processes: Processes, *, sharded: bool) -> None:
    """Fill tensors, sharded or whole, from a folder of either kind. Raises ValueError where it cannot be read."""
    from torch.distributed import checkpoint as dcp

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*assuming the intent is to load in a single process")
        try:
            dcp.load(
                dict(into),
                storage_reader=dcp.HuggingFaceStorageReader(str(folder)),
                process_group=processes.control,
                no_dist=not sharded,
            )
        except (dcp.CheckpointException, RuntimeError, ValueError) as error:
            raise ValueError(f"{folder} is damaged: {error}") from error


def check_together(folder: Path, sums: Any, processes: Processes) -> None:
    """Raises ValueError, in all processes, where a file is missing or damaged.

    sums: file -> its sum, for those that there must be; None for the one file of a plain state, which has its own.
    """
    if sums is not None and not isinstance(sums, dict):
        raise ValueError(f"{folder} is damaged: its parts are {sums!r}; copy it again")
    found = _sums_together(folder, processes)
    wrong = [f"{name} {text}" for name, text in found.items() if text.startswith("cannot")]
    wrong += [] if found else ["its tensors are missing"]
    if sums is not None:
        wrong += [f"{name} is missing" for name in sums if name not in found]
        wrong += [f"{name} is not what was written" for name in found if not wrong and found[name] != sums.get(name)]
    if wrong:
        raise ValueError(f"{folder} is damaged: {wrong[0]}; copy it again")


def _sums_together(folder: Path, processes: Processes) -> dict[str, str]:
    """File -> the sum of its tensors, or why it cannot be read. The processes share the files out."""
    files = same_everywhere(sorted(folder.glob(FILES)), processes)
    found: dict[str, str] = {}
    for file in files[processes.rank :: processes.world]:
        try:
            found[file.name] = sum_of(read_tensors(file))
        except ValueError as error:
            found[file.name] = f"cannot be read: {error}"
    merged = {name: text for each in gathered(found, processes) for name, text in each.items()}
    return same_everywhere(merged, processes)


def _cause(error: Any, folder: Path) -> OSError:
    """What the system refused, where that is why a state could not be written. Otherwise raises it again."""
    failures = [each[0] if isinstance(each, tuple) else each for each in error.failures.values()]
    refused = next((each for each in failures if isinstance(each, OSError)), None)
    if refused is None:
        raise RuntimeError(f"{folder} cannot be written: {error}") from error
    number = refused.errno or errno.EIO
    return OSError(number, os.strerror(number), str(folder))
