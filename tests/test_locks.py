"""Folders are held by one command at a time, and what a kill has left in them is removed by the next."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import jit_here

from justimage.disk.hold import held, is_empty, tidy
from justimage.disk.whole import discard, put, temporary, whole

HOLD = """
import sys, time
from pathlib import Path
from justimage.disk.hold import held
from justimage.disk.whole import temporary
with held(Path(sys.argv[1])):
    temporary(Path(sys.argv[1]) / "x.npy").write_text("half")
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """A process that holds the folder `held`, and is writing there."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    words = [sys.executable, "-c", HOLD, str(tmp_path / "held")]
    with subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_the_second_command_is_refused_and_told_who_writes(tmp_path, holder, monkeypatch, capsys):
    """Training, sampling, packing and inspecting; before data are opened and weights loaded. A kill ends the hold."""
    for words in (
        ["train", "mnist-demo", "--run", "held"],
        ["sample", "nowhere", "--out", "held"],
        ["data", "inspect", "nowhere", "--out", "held"],
        ["data", "pack", "nowhere", "--out", "held"],
    ):
        assert jit_here(*words, cwd=tmp_path, monkeypatch=monkeypatch) == 2
        message = capsys.readouterr().err
        assert re.search(rf"held is being written by process {holder.pid} on \S+ since 20\d\d-", message), message
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert len(list((tmp_path / "held").iterdir())) == 2
    with held(tmp_path / "held"):
        assert [path.name for path in (tmp_path / "held").iterdir()] == [".jit.lock"]
    assert list((tmp_path / "held").iterdir()) == []  # it was there before


def test_a_hold_leaves_nothing_behind(tmp_path):
    """Neither the lock nor a folder that was made for it, unless something was written there."""
    with held(tmp_path / "a" / "b"):
        assert is_empty(tmp_path / "a" / "b")
    assert not (tmp_path / "a").exists()
    with pytest.raises(ZeroDivisionError), held(tmp_path / "c"):
        (tmp_path / "c" / "kept").write_text("x")
        raise ZeroDivisionError
    assert [path.name for path in (tmp_path / "c").iterdir()] == ["kept"]


def test_one_holder_at_a_time_however_many_try(tmp_path):
    """Ten processes take and leave the lock; a counter that only the holder changes loses no count."""
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom justimage.disk.hold import held\n"
        "folder, counter, done = Path(sys.argv[1]), Path(sys.argv[2]), 0\n"
        "while done < 30:\n"
        "    try:\n"
        "        with held(folder):\n"
        "            n = int(counter.read_text()); time.sleep(0.001); counter.write_text(str(n + 1)); done += 1\n"
        "    except ValueError as error:\n"
        "        assert 'is being written' in str(error) or 'No such file' in str(error), error\n"
    )
    (tmp_path / "counter").write_text("0")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    words = [sys.executable, "-c", code, str(tmp_path / "held"), str(tmp_path / "counter")]
    processes = [subprocess.Popen(words, env=environment) for _ in range(3)]
    assert [process.wait(timeout=120) for process in processes] == [0] * 3
    assert (tmp_path / "counter").read_text() == "90"
    left = tmp_path / "held"  # one that was made by another than the last holder stays, and is empty
    assert not left.exists() or not any(left.iterdir())


def test_left_overs_are_removed_and_nothing_that_a_user_made(tmp_path):
    names = [".a.png.77.jit.part", ".000000640.part", ".model.safetensors.123", ".index.json.9"]
    users = [".hidden", ".x.part", "a.part", ".video.mp4.part", ".a.png.jit.part", "b.jit.part", ".3.14"]
    for name in [*names, *users]:
        (tmp_path / name).write_text("x")
    (tmp_path / ".samples.zarr.5.jit.part").mkdir()
    tidy(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(users)


def test_a_kill_between_two_renames_loses_no_folder(tmp_path):
    """A folder is set aside before another takes its name; if that never comes, it gets its name back."""
    path = tmp_path / "samples.zarr"
    path.mkdir()
    (path / "good").write_text("x")
    os.replace(path, temporary(path, "old"))
    temporary(path).mkdir()
    with held(tmp_path):
        pass
    assert [each.name for each in tmp_path.rglob("*")] == ["samples.zarr", "good"]


def test_links_are_replaced_and_what_they_point_to_stays(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "good").write_text("good")
    for target in ("there", "there/good", "nowhere"):
        for folder in (True, False):
            link = tmp_path / "link"
            link.symlink_to(target)
            with whole(link) as beside:
                if folder:
                    beside.mkdir()
                else:
                    beside.write_text("new")
            assert not link.is_symlink()
            assert link.is_dir() == folder
            discard(link)
    assert (tmp_path / "there" / "good").read_text() == "good"
    assert [each.name for each in tmp_path.iterdir()] == ["there"]


def test_a_folder_that_holds_something_is_replaced(tmp_path):
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_text("x")
    put(tmp_path / "new", tmp_path / "old")
    assert sorted(str(each.relative_to(tmp_path)) for each in tmp_path.rglob("*")) == ["old", "old/new"]


def test_a_lock_that_is_a_link_is_not_followed(tmp_path):
    (tmp_path / "victim").write_text("good")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".jit.lock").symlink_to(tmp_path / "victim")
    with pytest.raises(ValueError, match="out cannot be written"), held(tmp_path / "out"):
        time.sleep(0)
    assert (tmp_path / "victim").read_text() == "good"


def test_kills_lose_nothing_and_leave_nothing(tmp_path):
    """A few of the kills of tests/kills.py, in training, packing and sampling; many more by hand."""
    words = [sys.executable, str(Path(__file__).parent / "kills.py")]
    words += [word for task in ("train", "beside", "pack", "sample") for word in (f"--{task}", "1")]
    result = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=280)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.count("as if unbroken") == 4
