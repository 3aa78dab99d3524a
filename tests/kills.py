"""Kill commands with SIGKILL, many of them in the middle of a save, and compare what they end with.

    python tests/kills.py --train 50 --beside 50 --pack 20 --sample 20

train: saved at every step, killed as often as asked, and continued: states, weights, milestones and snapshots equal
those of an unbroken run to the bit. beside: the same with saves in a thread, beside training, as on a GPU. pack: the
same bytes as an unbroken one. sample: whole PNGs only. None leaves anything behind. A kill lands inside of a save where
a temporary name is seen in the folder at the moment of the kill.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
# Imports once; every command is a child of it, so that a kill costs no import.
SERVER = """
import os, sys, shlex
import justimage.commands.train, justimage.commands.sample, justimage.commands.data
from justimage.commands.main import main
import torch
torch.set_num_threads(1)
if sys.argv[1:]:  # as on an accelerator
    import justimage.runs.saving
    justimage.runs.saving.overlaps = lambda device: True
for line in sys.stdin:
    child = os.fork()
    if not child:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os._exit(main(shlex.split(line)))
    os.write(1, f"{child}\\n".encode())
    os.write(1, f"{os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}\\n".encode())
"""
TRAIN = (
    "train mnist-demo --network.width 128 --network.depth 2 --network.heads 2 --network.context-start 1 --device cpu "
    "--training.batch-size 8 --training.ema-decays 0.9 --training.ema-stds 0.1 --report.tick-nimg 8 "
    "--report.save-nimg 8 --report.sample-nimg 1000000 --report.preview-steps 1 --report.evaluate-nimg 0 "
    "--data-options.workers 1"
)
KEPT_BY_A_RUN = ("state/", "weights/", "snapshots/")


class Commands:
    """Runs commands in `folder`, and kills some of them."""

    def __init__(self, folder: Path, *options: str):
        self.folder = folder
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        self.server = subprocess.Popen(
            [sys.executable, "-c", SERVER, *options],
            cwd=folder,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def start(self, command: str) -> int:
        """Start a command; returns its process."""
        assert self.server.stdin is not None
        self.server.stdin.write(command + "\n")
        self.server.stdin.flush()
        return int(self._answer())

    def end(self) -> int:
        """The exit code of the command that runs, when it ends; negative for a signal."""
        return int(self._answer())

    def _answer(self) -> str:
        assert self.server.stdout is not None
        return self.server.stdout.readline()

    def kill(self, command: str, out: Path, seconds: float, inside: bool) -> tuple[int, bool]:
        """Start it, kill it so long after it has begun to write -> exit code, whether that was inside of a save.

        inside: wait until something is being written, and kill then.
        """
        before = set(unfinished(out))
        child = self.start(command)

        def wait(at_most: float) -> None:  # the writing of a small file may be over before it is seen
            until = time.monotonic() + at_most
            while not set(unfinished(out)) - before and time.monotonic() < until:
                if not Path(f"/proc/{child}/root").exists():
                    return

        wait(20)
        time.sleep(seconds)
        if inside:
            wait(2)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        return self.end(), bool(set(unfinished(out)) - before)

    def close(self) -> None:
        """End the server."""
        assert self.server.stdin is not None
        self.server.stdin.close()
        self.server.wait()


def unfinished(folder: Path) -> list[Path]:
    """What is being written in a folder, or was."""
    found = []
    for here, inner, files in os.walk(folder):
        found += [Path(here, name) for name in [*inner, *files] if name.endswith((".jit.part", ".jit.old"))]
    return found


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, hidden ones too; of tensors with the fields of their header in order, as any may come."""
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for path, content in found.items():
        if path.endswith(".safetensors"):
            begin = 8 + int.from_bytes(content[:8], "little")
            found[path] = json.dumps(json.loads(content[8:begin]), sort_keys=True).encode() + content[begin:]
    return found


def killed_again_and_again(commands: Commands, command: str, out: Path, kills: int, longest: float) -> int:
    """Kill a command so often, then let it end; returns how many kills were inside of a save."""
    rng, inside, done = random.Random(0), 0, 0
    while done < kills:
        code, hit = commands.kill(command, out, rng.uniform(0, longest), inside=done % 3 > 0)
        if code >= 0:
            raise SystemExit(f"{command}: ended with {code} after {done} kills; make it longer")
        done, inside = done + 1, inside + hit
    assert commands.start(command)
    code = commands.end()
    assert code == 0, code
    assert not unfinished(out), unfinished(out)
    assert not list(out.rglob(".*")), list(out.rglob(".*"))
    return inside


def train(commands: Commands, kills: int) -> int:
    """Returns how many kills were inside of a save."""
    until = 8 * (10 + 8 * kills)
    command = f"{TRAIN} --training.duration-nimg {until} --report.keep-states 1 --report.milestone-nimg {until // 3} "
    command += f"--report.snapshot-nimg {until // 6} --run"
    inside = killed_again_and_again(commands, f"{command} killed", commands.folder / "killed", kills, 0.5)
    commands.start(f"{command} whole")
    assert commands.end() == 0
    ends = [
        {path: found for path, found in contents(commands.folder / run).items() if path.startswith(KEPT_BY_A_RUN)}
        for run in ("whole", "killed")
    ]
    assert f"state/{until:09d}/state.safetensors" in ends[0]
    differ = [path for path in ends[0].keys() | ends[1].keys() if ends[0].get(path) != ends[1].get(path)]
    assert not differ, sorted(differ)
    for run in ("whole", "killed"):
        shutil.rmtree(commands.folder / run)
    return inside


def beside(commands: Commands, kills: int) -> int:
    """The same with saves in a thread; returns how many kills were inside of a save."""
    threaded = Commands(commands.folder, "beside")
    try:
        return train(threaded, kills)
    finally:
        threaded.close()


def pack(commands: Commands, kills: int) -> int:
    """Returns how many kills were inside of a shard."""
    photos, rng = commands.folder / "photos", np.random.default_rng(0)
    photos.mkdir()
    for i in range(100 + 40 * kills):
        Image.fromarray(rng.integers(0, 255, (64, 64, 3), np.uint8)).save(photos / f"{i:05d}.png")
    command = "data pack photos --size 256 --shard-mb 1 -j 1 --out"
    inside = killed_again_and_again(commands, f"{command} packed", commands.folder / "packed", kills, 0.1)
    commands.start(f"{command} unbroken")
    assert commands.end() == 0
    assert contents(commands.folder / "unbroken") == contents(commands.folder / "packed")
    return inside


def sample(commands: Commands, kills: int) -> int:
    """Returns how many kills were inside of the writing of a file."""
    commands.start(f"{TRAIN} --training.duration-nimg 8 --run model")
    assert commands.end() == 0
    out = commands.folder / "samples"
    command = f"sample model --classes 3 --count 20000 --steps 1 --device cpu --guidance 1 --out {out} --format png"
    rng, inside = random.Random(1), 0
    for i in range(kills):
        code, hit = commands.kill(command, out, rng.uniform(0, 0.5), inside=i % 3 > 0)
        assert code < 0
        inside += hit
        for path in out.glob("*.png"):
            Image.open(path).load()
    commands.start(command.replace("20000", "30"))
    assert commands.end() == 0
    assert not list(out.rglob(".*")), list(out.rglob(".*"))
    return inside


def main() -> None:
    """Kill as often as asked, and say how often that was inside of a save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("train", "beside", "pack", "sample"):
        parser.add_argument(f"--{name}", type=int, default=0, metavar="KILLS")
    asked = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    os.environ.setdefault("JUSTIMAGE_CACHE", str(folder / "cache"))
    commands = Commands(folder)
    try:
        for task in (train, beside, pack, sample):
            kills = getattr(asked, task.__name__)
            if kills:
                print(f"{task.__name__}: {kills} kills, {task(commands, kills)} inside of a save, as if unbroken")
    finally:
        commands.close()
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
