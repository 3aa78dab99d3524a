"""Files that are whole or absent, arrays that grow on disk, and what is worth keeping between runs."""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A place beside `path` to write to. It takes the name `path` when the block ends, and is removed if it raises."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield beside
        if path.is_dir() and beside.is_dir():  # a folder cannot be renamed onto one that holds something
            shutil.rmtree(path)
        os.replace(beside, path)
    except BaseException:
        if beside.is_dir():
            shutil.rmtree(beside, ignore_errors=True)
        else:
            beside.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """A text file that is whole or absent."""
    with whole(path) as beside:
        beside.write_text(text)


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """A safetensors file that is whole or absent."""
    with whole(path) as beside:
        save_file({name: each.detach().contiguous().cpu() for name, each in tensors.items()}, beside, metadata)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file. Raises ValueError where it is truncated or something else."""
    try:
        with safe_open(path, "pt") as file:
            # Copied into memory of torch's own, which is aligned: products of mapped tensors differ in their last bits.
            return {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} cannot be read; it is truncated, or not a safetensors file ({error})") from error


def reason_of(error: BaseException) -> str:
    """Why a library could not read a file: what it says, without its advice to switch its protections off."""
    text = " ".join(str(error).split())
    if "allow_pickle" in text or "weights_only" in text:
        return "it holds Python objects, which are not read since they could run code, or it is damaged"
    return text or type(error).__name__


def write_array_header(file: BinaryIO, count: int, shape: tuple[int, ...], dtype: Any) -> None:
    """The header of a .npy with `count` rows of this shape; numpy pads it to the same length for any count."""
    descr = np.lib.format.dtype_to_descr(np.dtype(dtype))
    np.lib.format.write_array_header_2_0(file, {"descr": descr, "fortran_order": False, "shape": (count, *shape)})


class GrowingArray:
    """A .npy (N, ...) written row by row: the memory of one batch, whatever N is.

    Its header counts the rows after every `append`, so that what was written can be read whenever writing stops.
    """

    def __init__(self, path: Path):
        self.path, self.count = path, 0
        self._file: BinaryIO = path.open("wb")

    def append(self, rows: np.ndarray) -> None:
        """Write rows (n, ...) after the others; all have the shape and type of the first ones."""
        if not self.count:
            write_array_header(self._file, 0, rows.shape[1:], rows.dtype)
        self._file.seek(0, os.SEEK_END)
        self._file.write(np.ascontiguousarray(rows).data)
        self.count += len(rows)
        self._file.seek(0)
        write_array_header(self._file, self.count, rows.shape[1:], rows.dtype)
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def cache_folder() -> Path:
    """JUSTIMAGE_CACHE, or justimage in XDG_CACHE_HOME, which is ~/.cache by default."""
    if "JUSTIMAGE_CACHE" in os.environ:
        return Path(os.environ["JUSTIMAGE_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "justimage"


def state_of(paths: Iterable[Path]) -> str:
    """A text that changes when one of these files does: its path, size and modification time."""
    facts = []
    for path in paths:
        stat = path.stat()
        facts.append(f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns}")
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()


def cached(what: str, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """compute(), or what it returned last time for the same `what`. Without a writable cache, compute()."""
    path = cache_folder() / f"{hashlib.sha256(what.encode()).hexdigest()[:32]}.json"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        known = json.loads(path.read_text())
        if known["of"] == what:
            return known["found"]
    found = compute()
    with contextlib.suppress(OSError):
        write_text(path, json.dumps({"of": what, "found": found}) + "\n")
    return found
