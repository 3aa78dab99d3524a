"""Folders that one command holds, tidied of what a kill has left in them."""

import contextlib
import os
import re
import socket
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType

from justimage.disk.whole import FULL, TEMPORARY, Unwritten, remove, system_reason

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # not a Unix: folders are not locked there
    fcntl = None

LOCK = re.compile(r"\.(.+\.)?jit\.lock")


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
        _make(folder)
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


def _make(folder: Path) -> None:
    """Make a folder, if it is not there; another process may remove it, empty, while Python looks what is there."""
    while True:
        try:
            return folder.mkdir(parents=True, exist_ok=True)
        except FileExistsError:
            if os.path.lexists(folder):
                raise


def _remove_empty(folders: Iterable[Path]) -> None:
    for folder in folders:
        with contextlib.suppress(OSError):  # it holds something
            folder.rmdir()
