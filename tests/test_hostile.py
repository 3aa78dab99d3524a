"""Hostile inputs: 500 new ones every day; and the oracle that judges them finds out whatever can be wrong."""

import datetime
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hostile.case import Case, Door
from hostile.child import Limits, Outcome, run_cases
from hostile.oracle import CODE_RAN, judge

ROOT = Path(__file__).parents[1]


def say(text: str, **about) -> Case:
    """A case whose command says a text: `jit data NAME` is refused with the names that there are."""
    return Case("said", ("data", text), about.pop("expect", "either"), **about)


def judged(door: Door, tmp_path: Path, limits: Limits | None = None) -> tuple[Outcome, list[str]]:
    """What became of the one case of a door, and the kinds of what is wrong with it."""
    found = list(run_cases([0], 0, {"it": door}, tmp_path / "cases", limits or Limits()))
    outcome = found[0][0]
    return outcome, [failure.kind for failure in judge(outcome)]


def test_a_door_that_refuses_by_name_is_right(tmp_path):
    outcome, wrong = judged(lambda rng: say("nothing", words=("nothing",), expect="refuse"), tmp_path)
    assert outcome.code == 2
    assert wrong == []


def test_a_door_that_refuses_everything_is_found_out(tmp_path):
    assert judged(lambda rng: say("nothing", expect="accept"), tmp_path)[1] == ["good refused"]


def test_a_door_that_accepts_everything_is_found_out(tmp_path):
    bad = Case("bad", ("--version",), "refuse")
    assert judged(lambda rng: bad, tmp_path / "known")[1] == ["wrong"]
    other = Case("bad", ("--version",), right=lambda: "1 of 2 samples is lost")
    assert judged(lambda rng: other, tmp_path / "compared")[1] == ["wrong"]
    good = Case("good", ("--version",), "accept")
    assert judged(lambda rng: good, tmp_path / "good")[1] == []


def test_a_refusal_that_names_nothing_is_found_out(tmp_path):
    assert judged(lambda rng: say("nothing", words=("set.tar",)), tmp_path)[1] == ["message"]


def test_a_wrong_exit_code_is_found_out(tmp_path):
    assert judged(lambda rng: say("nothing", codes=(1,)), tmp_path)[1] == ["exit code"]


def with_command(command, **about) -> Door:
    """A door whose command is a function: put in the place of `jit`'s own, in the child."""

    def door(rng) -> Case:
        import justimage.commands.main

        justimage.commands.main.main = lambda words: command()
        return Case("made", ("anything",), **about)

    return door


def test_a_traceback_is_found_out(tmp_path):
    def fails() -> int:
        raise KeyError("inside")

    outcome, wrong = judged(with_command(fails), tmp_path)
    assert wrong == ["traceback"]
    assert outcome.died_in.endswith("KeyError: 'inside'")


def test_a_hang_is_found_out(tmp_path):
    began = time.monotonic()
    assert judged(with_command(lambda: time.sleep(60)), tmp_path, Limits(seconds=0.5))[1] == ["hang"]
    assert time.monotonic() - began < 10


def test_taking_memory_is_found_out(tmp_path):
    def takes() -> int:
        held = [bytearray(b"x" * 2**20)]
        while True:
            held.append(bytearray(held[0]))

    assert judged(with_command(takes), tmp_path, Limits(memory=200 * 2**20))[1] == ["memory"]


def test_what_is_left_over_is_found_out(tmp_path):
    def leaves(name: str, code: int):
        def run() -> int:
            Path(name).write_text("left")
            print("refused")
            return code

        return run

    assert judged(with_command(leaves("out", 2)), tmp_path / "refused")[1] == ["left over"]
    assert judged(with_command(leaves("out", 0)), tmp_path / "out")[1] == []
    assert judged(with_command(leaves("else", 0)), tmp_path / "else")[1] == ["left over"]
    assert judged(with_command(leaves("../else", 0)), tmp_path / "above")[1] == ["left over"]
    assert judged(with_command(leaves(CODE_RAN, 2)), tmp_path / "code")[1] == ["wrong"]


def test_a_signal_and_a_case_that_cannot_be_made_are_found_out(tmp_path):
    assert judged(with_command(os.abort), tmp_path / "signal")[1] == ["traceback"]

    def cannot(rng) -> Case:
        raise ValueError("no input")

    assert judged(cannot, tmp_path / "made")[1] == ["harness"]


@pytest.mark.slow
def test_the_hostile_inputs_of_the_day(tmp_path):
    """500 cases with the seed of the day: `python -m tests.hostile --seed SEED --case K --keep DIR` makes one again."""
    seed = datetime.date.today().toordinal()
    command = [sys.executable, "-m", "tests.hostile", "--cases", "500", "--seed", str(seed)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    print(f"seed {seed}\n{done.stdout}\n{done.stderr}")
    assert done.returncode == 0, f"seed {seed}:\n{done.stdout}\n{done.stderr[-2000:]}"
