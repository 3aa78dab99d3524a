"""What is worth keeping between runs."""

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from justimage.disk.whole import write_text


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
    return hashlib.sha256("\n".join(facts).encode(errors="surrogateescape")).hexdigest()  # names need not be UTF-8


def cached(what: str, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """compute(), or what it returned last time for the same `what`. Without a writable cache, compute()."""
    path = cache_folder() / f"{hashlib.sha256(what.encode(errors='surrogateescape')).hexdigest()[:32]}.json"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        known = json.loads(path.read_text())
        if known["of"] == what:
            return known["found"]
    found = compute()
    with contextlib.suppress(OSError):
        write_text(path, json.dumps({"of": what, "found": found}) + "\n")
    return found
