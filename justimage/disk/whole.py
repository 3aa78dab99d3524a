"""Files that are whole or absent, whatever happens while they are written."""

import contextlib
import errno
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

# Every name that is given while something is written: .NAME.PID.jit.part, and .NAME.PID.jit.old for what it replaces.
# The others are those of older versions.
TEMPORARY = re.compile(
    r"\.(?P<name>.+)\.\d+\.jit\.(?P<kind>part|old)|\.\d{5,9}\.part|\.\w+\.(json|jsonl|safetensors|npy|nc|png)\.\d+"
)
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


def check_room(folder: Path, size: int, path: Path) -> None:
    """Raises Unwritten, of `path`, where the disk of a folder has no room for `size` bytes and a margin."""
    usage = shutil.disk_usage(folder)
    if usage.total and usage.free < size + MARGIN:  # some file systems do not say
        raise Unwritten(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def write_text(path: Path, text: str) -> None:
    """A text file that is whole or absent."""
    with whole(path, durable=True) as beside:
        beside.write_text(text)


def append_json(path: Path, values: Mapping[str, Any]) -> None:
    """Add one line of JSON to a file, made if it is not there; half a line at its end stays alone. Raises Unwritten."""
    with writing(path), path.open("a+b") as file:
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write((json.dumps(values) + "\n").encode())
