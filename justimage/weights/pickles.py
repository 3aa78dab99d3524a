"""Checkpoints of other people: pickles, read without running what is in them."""

import argparse
import pickle
import re
import warnings
from pathlib import Path
from typing import Any

import torch


def read_checkpoint(path: Path) -> Any:
    """All that a .pth holds, read with an allow-list (tensors, plain containers, argparse.Namespace).

    Raises ValueError for a file that is truncated, or holds anything else.
    """
    try:
        mapped = _begins_as_zip(path)  # torch writes zip archives since 1.6; older files cannot be mapped
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of pickle protocols, which noise may seem to have
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:  # its text advises to switch the protection off
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f" ({named.group(1)})" if named else ""
        raise ValueError(
            f"{path} holds more than tensors and settings{what}, or is damaged; it is not read, since reading it could "
            "run code"
        ) from error
    except MemoryError:
        raise
    except Exception as error:  # whatever torch stumbles over in a file of somebody else's
        raise ValueError(
            f"{path} cannot be read; it is truncated, or not a checkpoint ({type(error).__name__})"
        ) from error


def _begins_as_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"
