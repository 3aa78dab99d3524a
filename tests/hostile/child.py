"""One case in a forked child: built, run and looked at there, with a limit on time and memory."""

import gc
import hashlib
import json
import os
import resource
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from .case import Door

GB = 2**30


@dataclass(frozen=True)
class Limits:
    """What a case may take."""

    seconds: float = 20.0
    memory: int = 2 * GB
    """Bytes, over what the parent has."""


@dataclass(frozen=True)
class Outcome:
    """What became of a case."""

    number: int
    door: str
    told: dict[str, Any]
    """The case's own fields; empty if it could not be made."""
    code: int | None
    """Exit code; None where it was killed, or died of a signal."""
    ended: str
    """exit, time, memory, or the name of a signal."""
    seconds: float
    said: str
    """stdout and stderr."""
    wrong: str = ""
    """What is not as it was put in."""
    before: Mapping[str, str] | None = None
    after: Mapping[str, str] | None = None
    """The working folder: what each path is."""
    died_in: str = ""
    """The end of a traceback, where there is one: the last place in the library, and the last line."""


@dataclass
class _Running:
    number: int
    door: str
    pid: int
    began: float
    memory: int
    """Bytes that were resident from the start."""
    folder: Path
    ended: str = "exit"


def door_of(seed: int, number: int, doors: Mapping[str, Door]) -> tuple[str, np.random.Generator]:
    """Which door case `number` of a seed knocks at, and what the rest of it is drawn from."""
    rng = np.random.default_rng([seed, number])
    return list(doors)[int(rng.integers(len(doors)))], rng


def run_cases(
    numbers: Iterable[int], seed: int, doors: Mapping[str, Door], folder: Path, limits: Limits, at_once: int = 2
) -> Iterator[tuple[Outcome, Path]]:
    """The outcomes of cases as they end, each with its folder, which is removed when the next one is asked for."""
    waiting = iter(numbers)
    running: list[_Running] = []
    gc.collect()
    gc.freeze()  # a collection in a child would copy every page of the parent
    try:
        while True:
            while len(running) < at_once and (number := next(waiting, None)) is not None:
                running.append(_start(number, seed, doors, folder / str(number)))
            if not running:
                return
            time.sleep(0.004)
            for each in list(running):
                status = _status(each, limits)
                if status is not None:
                    running.remove(each)
                    yield _outcome(each, status), each.folder
                    shutil.rmtree(each.folder, ignore_errors=True)
    finally:
        gc.unfreeze()
        for each in running:  # this one was stopped
            _kill_group(each.pid)


def _start(number: int, seed: int, doors: Mapping[str, Door], folder: Path) -> _Running:
    name, rng = door_of(seed, number, doors)
    folder.mkdir(parents=True)
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        _live(doors[name], rng, folder)
    return _Running(number, name, pid, time.monotonic(), _resident(os.getpid()), folder)


def _resident(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()
    except (OSError, IndexError):  # it has just ended
        return 0


def _status(each: _Running, limits: Limits) -> int | None:
    """The wait status of a child that has ended, or is killed here as it has taken too much."""
    pid, status = os.waitpid(each.pid, os.WNOHANG)
    if pid:
        _kill_group(each.pid)  # whatever it has left running
        return status
    over_time = time.monotonic() - each.began > limits.seconds
    over_memory = _resident(each.pid) - each.memory > limits.memory
    if not over_time and not over_memory:
        return None
    each.ended = "time" if over_time else "memory"
    _kill_group(each.pid)
    return os.waitpid(each.pid, 0)[1]


def _kill_group(pid: int) -> None:
    try:
        os.killpg(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return


def _live(door: Door, rng: np.random.Generator, folder: Path) -> NoReturn:
    """The child's whole life."""
    code = 70
    try:
        os.setsid()
        here = folder / "work" / "here"
        here.mkdir(parents=True)
        os.chdir(here)
        os.environ |= {"JUSTIMAGE_CACHE": str(folder / "cache"), "HOME": str(folder / "home")}
        said = os.open(folder / "said", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for stream in (1, 2):
            os.dup2(said, stream)
        sys.stdout, sys.stderr = (os.fdopen(stream, "w", closefd=False) for stream in (1, 2))
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        code = _run(door, rng, folder)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _run(door: Door, rng: np.random.Generator, folder: Path) -> int:
    case = door(rng)
    sys.stdout.flush()
    sys.stderr.flush()
    told = {name: value for name, value in vars(case).items() if name != "right"}
    (folder / "case.json").write_text(json.dumps(told))
    os.ftruncate(1, 0)  # what making it has said
    before = _listing(folder / "work")
    facts: dict[str, Any] = {"before": before}
    try:
        code = _command(case.command)
    except BaseException as error:
        traceback.print_exc()
        code, facts["died_in"] = 1, _last_place(error)
    sys.stdout.flush()
    sys.stderr.flush()
    facts["after"] = _listing(folder / "work")
    if code == 0:
        facts["wrong"] = case.right()
    (folder / "result.json").write_text(json.dumps(facts))
    return code


def _command(command: tuple[str, ...]) -> int:
    """As the shell would run it -> the exit code."""
    from justimage.commands.main import main

    from .samples import read_all

    if command[0] != "read":
        try:
            return main(list(command))
        except SystemExit as stop:
            return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    try:
        read_all(command[1:])
    except ValueError as error:
        print(f"read: {error}", file=sys.stderr)
        return 2
    return 0


def _last_place(error: BaseException) -> str:
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "/justimage/" in frame.filename]
    place = f"{frames[-1].filename.rpartition('/justimage/')[2]}: {frames[-1].name}" if frames else "?"
    return f"{place}: {traceback.format_exception_only(error)[-1].strip()[:160]}"


def _listing(folder: Path) -> dict[str, str]:
    """What each path below a folder is: a folder, where a link leads, or a hash of a file."""
    found = {}
    for here, folders, files in os.walk(folder):
        for name in folders + files:
            path = Path(here, name)
            where = str(path.relative_to(folder))
            if path.is_symlink():
                found[where] = f"-> {os.readlink(path)}"
            elif path.is_dir():
                found[where] = "folder"
            elif path.is_file():
                found[where] = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    return found


def _outcome(each: _Running, status: int) -> Outcome:
    def facts(name: str) -> dict[str, Any]:
        try:
            return json.loads((each.folder / name).read_text())
        except (OSError, ValueError):
            return {}

    said = each.folder / "said"
    killed = os.WIFSIGNALED(status)
    ended = signal.Signals(os.WTERMSIG(status)).name if killed and each.ended == "exit" else each.ended
    return Outcome(
        each.number,
        each.door,
        facts("case.json"),
        None if killed else os.waitstatus_to_exitcode(status),
        ended,
        time.monotonic() - each.began,
        said.read_text(errors="replace") if said.is_file() else "",
        **facts("result.json"),
    )


def as_text(outcome: Outcome) -> str:
    """An outcome as JSON, to keep."""
    return json.dumps(asdict(outcome), indent=1)
