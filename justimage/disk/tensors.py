"""Tensors in safetensors files, with a sum by which damage is found."""

import contextlib
import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from justimage.disk.whole import remove, temporary, whole

SUM = "justimage_sum"  # in the metadata of a safetensors file


def sum_of(tensors: Mapping[str, Tensor]) -> str:
    """A hash of names, shapes, types and the sums of the tensors' bytes, eight at a time: as fast as memory is read."""
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(tensors):
        tensor = tensors[name]
        octets = tensor.reshape(-1).view(torch.uint8)
        whole_words = len(octets) // 8 * 8
        total = int(octets[:whole_words].view(torch.int64).sum()) + int(octets[whole_words:].sum())
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype} {total}\n".encode())
    return digest.hexdigest()


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """A safetensors file that is whole or absent, with the mode of any other file, and their sum in its metadata."""
    plain = {name: each.detach().contiguous().cpu() for name, each in tensors.items()}
    seen = set[int]()
    for name, each in plain.items():  # a part of a larger tensor, or one that has two names: files know neither
        storage = each.untyped_storage().data_ptr()
        if storage in seen or each.storage_offset():
            plain[name] = each.clone()
        seen.add(storage)
    metadata = {**(metadata or {}), SUM: sum_of(plain)}
    with whole(path, durable=True) as beside:
        beside.touch()
        mode = beside.stat().st_mode
        room = temporary(path.with_name(f"{path.name}.room"))  # the library makes files of its own beside its target
        remove(room)
        room.mkdir()
        try:
            save_file(plain, room / "0", metadata)
            os.replace(room / "0", beside)
        except SafetensorError as error:
            number = re.search(r"\(os error (\d+)\)", str(error))
            if number is None:
                raise
            raise OSError(int(number[1]), os.strerror(int(number[1]))) from error
        finally:
            with contextlib.suppress(OSError):  # the error that led here is the one to tell
                remove(room)
        beside.chmod(mode)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file.

    Raises ValueError where it is truncated or something else, or its sum is not the one that was written with it.
    """
    try:
        with safe_open(path, "pt") as file:
            said = (file.metadata() or {}).get(SUM)
            # Copied into memory of torch's own, which is aligned: products of mapped tensors differ in their last bits.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} cannot be read; it is truncated, or not a safetensors file ({error})") from error
    if said is not None and said != sum_of(tensors):
        raise ValueError(f"{path} is damaged: its tensors are not those that were written; copy it again")
    return tensors
