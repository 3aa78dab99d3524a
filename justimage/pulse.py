"""Signs of life of several processes: one that dies, stops or hangs is named by the others, and nobody waits for hours.

Each process has two threads. One writes where the process is into the store in which the processes met, and reads
where the others are; the other one looks at the clock, since a store whose host has stopped answers nobody. They work
on while the main thread reads, saves or computes: silent is only a process that is dead or stopped.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

FAILED = 1  # the exit code
PACKAGE = str(Path(__file__).parent)
HUNG = 5  # times the allowed silence without progress, after which all say where they are
BEATS = 30  # in the allowed silence


class Gone(RuntimeError):
    """Another process has died or stopped; the message names it, and says how to go on."""


class Pulse:
    """The signs of life of this process, and what it knows of the others.

    store: where the processes met, over a connection of its own. members: host and pid of each. silence: seconds, as in
    meeting.Patience. end: what is done, in a thread, where another process is silent: by default, say so and exit with
    code 1.
    """

    def __init__(
        self,
        store: Any,
        members: list[dict[str, Any]],
        rank: int,
        silence: float,
        *,
        end: Callable[[str], None] | None = None,
    ):
        self.store, self.members, self.rank, self.silence, self.end = store, members, rank, silence, end or _end
        self.every = silence / BEATS
        self.found = ""
        """What is known of another process that is gone."""
        self.nimg, self.entered = 0, 0
        """Where the main thread is: nimg, and how often it has met the others, or waits to do so."""
        now = time.monotonic()
        self._answered = now  # the store
        self._changed = dict.fromkeys(range(len(members)), now)  # of each process, when it last wrote something new
        unheard = {"count": 0, "nimg": 0, "entered": 0, "where": "its beginning"}
        self._said: dict[int, dict[str, Any]] = {rank: unheard for rank in self._changed}
        self._main = threading.main_thread().ident
        self._stopped = threading.Event()
        self._threads = [threading.Thread(target=each, daemon=True) for each in (self._beat, self._watch)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """No more signs, and no more watching: this process leaves, as far as the others can still be told."""
        self._stopped.set()
        self._threads[0].join(timeout=2 * self.every)

    def gone(self, seconds: float) -> str:
        """Which process has died, stopped or left, as a message, after at most so many seconds; empty if none has."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            time.sleep(self.every)
            left = {rank: said["left"] for rank, said in self._said.items() if "left" in said}
            silent = self._silent(min(self.silence / 3, 0.8 * seconds))
            if silent or left:  # one that left since it found another one gone says which
                self.found = next((why for why in left.values() if why), "") or self._told([*silent, *left])
                break
        return self.found

    def _beat(self) -> None:
        count, unseen, there = 0, [f"pulse/{rank}" for rank in range(len(self.members))], []
        try:
            while True:
                count += 1
                leaving = self._stopped.wait(self.every if count > 1 else 0)
                said = {"count": count, "nimg": self.nimg, "entered": self.entered, "where": self._where()}
                self.store.set(f"pulse/{self.rank}", json.dumps(said | ({"left": self.found} if leaving else {})))
                if leaving:
                    return
                there += [name for name in unseen if self.store.check([name])]
                unseen = [name for name in unseen if name not in there]
                for name, text in zip(there, self.store.multi_get(there), strict=True):
                    rank, found = int(name.partition("/")[2]), json.loads(text)
                    if self._said[rank]["count"] != found["count"]:
                        self._said[rank], self._changed[rank] = found, time.monotonic()
                self._answered = time.monotonic()
        except Exception:  # whatever it is: the store no longer answers, and the other thread sees that
            return

    def _watch(self) -> None:
        """End this process where another one is silent; say who is waited for where nobody goes on."""
        progress, since, patience = None, time.monotonic(), HUNG * self.silence
        last = time.monotonic()
        while not self._stopped.wait(self.every):
            now = time.monotonic()
            if now - last > self.silence / 2:  # this process itself was stopped: nobody else is to be blamed for that
                self._answered = now
                self._changed = dict.fromkeys(self._changed, now)
            last = now
            silent = self._silent(self.silence)
            if silent:
                self.end(self._told(silent))
                return
            at = {rank: (said["nimg"], said["entered"]) for rank, said in self._said.items()}
            if at != progress:
                progress, since, patience = at, now, HUNG * self.silence
            elif now - since > patience:
                patience *= 2
                if self.rank == 0:
                    print(self._waiting(now - since), file=sys.stderr, flush=True)

    def _silent(self, seconds: float) -> list[int]:
        """The processes that have given no sign for so long."""
        now = time.monotonic()
        if now - self._answered > seconds:
            return [0] if self.rank else []  # process 0 holds the store, or torchrun beside it
        return [rank for rank, at in self._changed.items() if rank != self.rank and now - at > seconds]

    def _told(self, silent: list[int]) -> str:
        lines, kills = [], []
        for rank in dict.fromkeys(silent):
            said, seconds = self._said[rank], time.monotonic() - self._changed[rank]
            what = "has ended" if "left" in said else f"has given no sign of life for {seconds:.0f} s"
            lines.append(f"{self._name(rank)} {what}; it was at nimg = {said['nimg']:,}, in {said['where']}")
            kills.append(f"`kill -9 {self.members[rank]['pid']}` on {self.members[rank]['host']}")
        told = "\n".join(lines)
        return (
            f"{told}\nprocess {self.rank} ends. What was saved stays. Once all processes have ended (one that is only "
            f"stopped does not end by itself: {', '.join(kills)}), the same command resumes from the newest state, "
            "with any number of processes"
        )

    def _waiting(self, seconds: float) -> str:
        behind = min(said["entered"] for said in self._said.values())
        late = [rank for rank, said in self._said.items() if said["entered"] == behind]
        rows = [
            f"  {self._name(rank)} is at nimg = {said['nimg']:,}, in {said['where']}"
            for rank, said in sorted(self._said.items())
        ]
        who = "" if len(late) == len(self._said) else f"the others wait for {self._name(late[0])}; "
        return f"no progress for {seconds:.0f} s; {who}all processes are alive:\n" + "\n".join(rows)

    def _name(self, rank: int) -> str:
        return f"process {rank} ({self.members[rank]['host']}, pid {self.members[rank]['pid']})"

    def _where(self) -> str:
        """Where in this package the main thread is, as file:line function."""
        frame = sys._current_frames().get(self._main or 0)
        inner = frame
        while frame is not None and not frame.f_code.co_filename.startswith(PACKAGE):
            frame = frame.f_back
        frame = frame or inner
        if frame is None:
            return "?"
        file = frame.f_code.co_filename.removeprefix(PACKAGE).lstrip(os.sep)
        return f"{file}:{frame.f_lineno} {frame.f_code.co_name}"


def _end(message: str) -> NoReturn:
    """The main thread waits in a library for a process that does not come: no exception reaches it."""
    sys.stdout.flush()
    print(f"jit: {message}", file=sys.stderr, flush=True)
    os._exit(FAILED)
