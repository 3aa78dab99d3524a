"""Files that are whole or absent, arrays that grow on disk, and what is worth keeping between runs."""

import contextlib
import difflib
import errno
import hashlib
import io
import json
import os
import re
import shutil
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # not a Unix: folders are not locked there
    fcntl = None

# Every name that is given while something is written: .NAME.PID.jit.part, and .NAME.PID.jit.old for what it replaces.
# The others are those of older versions.
TEMPORARY = re.compile(
    r"\.(?P<name>.+)\.\d+\.jit\.(?P<kind>part|old)|\.\d{5,9}\.part|\.\w+\.(json|jsonl|safetensors|npy|nc|png)\.\d+"
)
LOCK = re.compile(r"\.(.+\.)?jit\.lock")
MARGIN = 2**20  # bytes that stay free, for what is written beside the samples when these fill the disk
FULL = (errno.ENOSPC, errno.EDQUOT)
REASONS = {
    **dict.fromkeys(FULL, "the disk is full"),
    errno.EROFS: "the disk is read-only",
    **dict.fromkeys((errno.EACCES, errno.EPERM), "there is no permission"),
}


class Unwritten(OSError):
    """Something could not be written: errno, strerror and the file's name are those of the cause."""

    def __str__(self) -> str:
        return f"{self.filename} cannot be written: {system_reason(self)}" + (
            "; make room, and run the same command again" if self.errno in FULL else ""
        )


def system_reason(error: OSError) -> str:
    """Why the system refused, in words."""
    plain = error.strerror or (str(error.args[0]) if error.args else type(error).__name__)
    return f"{REASONS[error.errno]} ({plain})" if error.errno in REASONS else plain


def in_words(error: OSError) -> str:
    """One sentence for the user: which file, and why."""
    if isinstance(error, Unwritten):
        return str(error)
    return f"{error.filename}: {system_reason(error)}" if error.filename else system_reason(error)


def temporary(path: Path, kind: str = "part") -> Path:
    """The name beside `path` under which this process writes it."""
    return path.with_name(f".{path.name}.{os.getpid()}.jit.{kind}")


@contextlib.contextmanager
def whole(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """A place beside `path` to write to. It takes the name `path` when the block ends, and is removed if it raises.

    durable: a file is on the disk before it takes its name. Raises Unwritten for what the system refuses.
    """
    beside = temporary(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove(beside)
        yield beside
        if durable:
            with beside.open("rb") as file:
                os.fsync(file.fileno())
        put(beside, path)
    except OSError as error:
        _drop(beside)
        of = str(error.filename).replace(str(beside), str(path), 1) if isinstance(error, Unwritten) else str(path)
        raise Unwritten(error.errno, error.strerror or str(error), of) from error
    except BaseException:
        _drop(beside)
        raise


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Errors of the system in the block are of writing `path`: they become Unwritten."""
    try:
        yield
    except Unwritten:
        raise
    except OSError as error:
        raise Unwritten(error.errno, error.strerror or str(error), str(path)) from error


def put(beside: Path, path: Path) -> None:
    """Give what lies at `beside` the name `path`, in place of what has it: of a link, not of what that points to."""
    if not beside.is_dir() or not os.path.lexists(path):
        os.replace(beside, path)
        return
    old = temporary(path, "old")  # a folder cannot be renamed onto a file, a link, or a folder that holds something
    remove(old)
    os.replace(path, old)
    os.replace(beside, path)
    remove(old)


def remove(path: Path) -> None:
    """Remove a file, a link or a folder with all it holds, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def discard(path: Path) -> None:
    """Remove something that is whole, so that a kill leaves it either whole or under a temporary name."""
    beside = temporary(path)
    remove(beside)
    os.replace(path, beside)
    remove(beside)


def _drop(beside: Path) -> None:
    with contextlib.suppress(OSError):  # the error that led here is the one to tell
        remove(beside)


def is_empty(folder: Path) -> bool:
    """Whether a folder holds nothing but locks, and what a kill has left of writing."""
    return all(LOCK.fullmatch(each.name) or TEMPORARY.fullmatch(each.name) for each in os.scandir(folder))


def tidy(folder: Path, only: str = "") -> None:
    """Remove what a kill has left of writing in a folder (of the file `only`), and undo a half-done replacement."""
    for entry in [Path(each.path) for each in os.scandir(folder)]:
        found = TEMPORARY.fullmatch(entry.name)
        if found is None or (only and found["name"] != only):
            continue
        if found["kind"] == "old" and not os.path.lexists(folder / found["name"]):
            os.replace(entry, folder / found["name"])
        else:
            remove(entry)


@contextlib.contextmanager
def held(folder: Path, *, only: str = "", below: Iterable[str] = ()) -> Iterator[None]:
    """Hold a folder, made if it is not there, for this command alone, until the block ends. Left-overs are removed.

    only: hold this one file of the folder. below: patterns of folders in it that are tidied as well. A folder that was
    made and is still empty at the end is removed. Raises ValueError where it cannot be written, or another process
    holds it; Unwritten where the disk is full. A hold ends with its process, however that ends.
    """
    lock = folder / (f".{only}.jit.lock" if only else ".jit.lock")
    made: list[Path] = []
    try:
        made += [each for each in (folder, *folder.parents) if not each.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = _lock(lock)
        for each in (folder, *(inner for pattern in below for inner in folder.glob(pattern) if inner.is_dir())):
            tidy(each, only)
    except OSError as error:
        _remove_empty(made)
        if error.errno in FULL:
            raise Unwritten(error.errno, error.strerror, str(folder)) from error
        place = folder / only if only else folder
        raise ValueError(f"{place} cannot be written: {system_reason(error)}; choose another place") from error
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            lock.unlink()  # while it is held: whoever opened it before sees that it is no longer there
        os.close(descriptor)
        _remove_empty(made)


def is_held(folder: Path) -> bool:
    """Whether a command holds a folder now. It is not held for that, and nothing is written."""
    path = folder / ".jit.lock"
    if fcntl is None or not path.is_file():  # whoever holds a folder has this file in it, until the end
        return False
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # a file system without locks: the file is all there is to go by
        return True
    finally:
        os.close(descriptor)
    return False


def _lock(path: Path) -> int:
    """Lock a file, made if it is not there -> its descriptor. Raises ValueError where another process has the lock."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
        try:
            if fcntl is not None:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 1000).decode(errors="replace").strip() or "another process"
            os.close(descriptor)
            raise ValueError(
                f"{path.parent} is being written by {holder}; wait until it ends, or choose another place"
            ) from None
        except OSError:  # a file system without locks
            pass
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                break
        os.close(descriptor)  # its holder has removed it meanwhile
    holder = f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}\n"
    with contextlib.suppress(OSError):  # a full disk; what counts is the lock
        os.ftruncate(descriptor, 0)
        os.write(descriptor, holder.encode())
    return descriptor


def _remove_empty(folders: Iterable[Path]) -> None:
    for folder in folders:
        with contextlib.suppress(OSError):  # it holds something
            folder.rmdir()


def check_room(folder: Path, size: int, path: Path) -> None:
    """Raises Unwritten, of `path`, where the disk of a folder has no room for `size` bytes and a margin."""
    usage = shutil.disk_usage(folder)
    if usage.total and usage.free < size + MARGIN:  # some file systems do not say
        raise Unwritten(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def nearest(path: Path) -> str:
    """What to write in place of a path that does not exist, to end a message with; empty where nothing is near.

    The path is followed as far as it exists; a name that does not is compared with those that lie there.
    """
    there, guessed, names = Path(path.absolute().anchor), False, list[str]()
    for part in path.absolute().parts[1:]:
        if not (there / part).exists():
            with contextlib.suppress(OSError):  # it is a file, or not to be read
                names = sorted(each.name for each in os.scandir(there) if not each.name.startswith("."))
            near = difflib.get_close_matches(part, names, n=1, cutoff=0.6)
            if not near:
                break
            part, guessed, names = near[0], True, []
        there /= part
    shown = there if path.is_absolute() else Path(os.path.relpath(there))
    if guessed:
        return f"; did you mean {shown}?"
    if not names or Path.cwd().is_relative_to(there):
        return ""
    return f"; {shown} holds {', '.join(names[:5])}" + (f" and {len(names) - 5} more" if len(names) > 5 else "")


class File(io.FileIO):
    """A file whose `write` writes all it is given; `error` is what the system refused, if it did."""

    error: OSError | None = None

    def write(self, data: Any) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Write all of it; returns the number of bytes."""
        left = memoryview(data).cast("B")
        size = len(left)
        try:
            while left:
                left = left[super().write(left) :]
        except OSError as error:
            self.error = error
            raise
        return size


def write_text(path: Path, text: str) -> None:
    """A text file that is whole or absent."""
    with whole(path, durable=True) as beside:
        beside.write_text(text)


def append_json(path: Path, values: Mapping[str, Any]) -> None:
    """Add one line of JSON to a file, made if it is not there. Raises Unwritten."""
    with writing(path), path.open("a") as file:
        file.write(json.dumps(values) + "\n")


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
            _drop(room)
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


def reason_of(error: BaseException) -> str:
    """Why a library could not read a file: what it says, without its advice to switch its protections off."""
    text = " ".join(str(error).split())
    if "pickle" in text or "weights_only" in text or "mapped: Python objects" in text:
        return "it holds Python objects, which are not read since they could run code, or it is damaged"
    if isinstance(error, MemoryError):
        return "it says that it is larger than the memory of this machine"
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
        self._row: tuple[tuple[int, ...], Any] = (), np.uint8
        self._file = File(path, "wb")

    def append(self, rows: np.ndarray) -> None:
        """Write rows (n, ...) after the others, all or none; all have the shape and type of the first ones."""
        if not self.count:
            self._row = rows.shape[1:], rows.dtype
            self._head(0)
        self._file.seek(0, os.SEEK_END)
        before = self._file.tell()
        try:
            self._file.write(np.ascontiguousarray(rows).data)
            self._head(self.count + len(rows))
        except BaseException:
            self._file.truncate(before)
            self._head(self.count)
            raise
        self.count += len(rows)

    def cut(self, count: int) -> None:
        """Keep the first `count` rows."""
        if count == self.count:
            return
        shape, dtype = self._row
        end = self._head(count) + count * int(np.prod(shape)) * np.dtype(dtype).itemsize
        self._file.truncate(end)
        self.count = count

    def _head(self, count: int) -> int:
        """Write the header; returns its length."""
        header = io.BytesIO()
        write_array_header(header, count, *self._row)
        self._file.seek(0)
        return self._file.write(header.getvalue())

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
