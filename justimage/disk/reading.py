"""What to tell a user about what cannot be read."""

import contextlib
import difflib
import os
from pathlib import Path


def first_line(error: Exception) -> str:
    """What an error of somebody else's library says first; its kind where it says nothing."""
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


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


def reason_of(error: BaseException) -> str:
    """Why a library could not read a file: what it says, without its advice to switch its protections off."""
    text = " ".join(str(error).split())
    if "pickle" in text or "weights_only" in text or "mapped: Python objects" in text:
        return "it holds Python objects, which are not read since they could run code, or it is damaged"
    if isinstance(error, MemoryError):
        return "it says that it is larger than the memory of this machine"
    return text or type(error).__name__
