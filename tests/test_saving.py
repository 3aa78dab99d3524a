"""Saves: by images and by minutes, milestones, snapshots; beside training in a thread; and onto a full disk."""

import io
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import jit_here, small_config
from kills import KEPT_BY_A_RUN, contents
from rich.console import Console
from test_run import TINY, tiny_data
from test_train import ALONE, CONFIG, waves
from test_writing import small_disk, visible  # noqa: F401 (a fixture)

import justimage as ji
from justimage.commands.sweep import SweepCommand, sets_of
from justimage.disk.whole import Unwritten
from justimage.runs import saving
from justimage.runs.run import Failed, train_run
from justimage.training.loop import Tick
from justimage.training.state import saved_states
from justimage.weights.load import weight_sets

EVERYTHING = {"save_nimg": 48, "milestone_nimg": 64, "snapshot_nimg": 32}


def run_of_waves(folder: Path, *, sinks=(), stds=(0.1, 0.2), console=None, **report) -> None:
    """160 samples in 10 steps of the small network."""
    network = small_config((8, 8), channels=2, num_classes=2)
    values = {"tick_nimg": 16, "sample_nimg": 10_000, "save_nimg": 10_000, "preview_steps": 1, **report}
    recipe = ji.Recipe(network, replace(CONFIG, ema_stds=stds), report=ji.Report(**values))
    train_run(recipe, waves(), folder, processes=ALONE, console=console or Console(file=io.StringIO()), sinks=sinks)


def kept(folder: Path) -> dict[str, bytes]:
    """What a run has kept, but for its log."""
    return {path: content for path, content in contents(folder).items() if path.startswith(KEPT_BY_A_RUN)}


def states(folder: Path) -> list[int]:
    return [int(path.name) for path in saved_states(folder / "state")]


def test_in_a_thread_the_same_is_kept(tmp_path, monkeypatch):
    """To the byte, with every kind of save, although training moves all tensors on while they are written."""
    run_of_waves(tmp_path / "now", **EVERYTHING, keep_states=1)
    slowly, moved = saving.keep, threading.Event()

    def keep(*arguments) -> None:
        assert moved.wait(30)
        slowly(*arguments)

    def tick(tick: Tick) -> None:  # what is due at 48 and 144 is written when the next step is over
        moved.set() if tick.nimg % 32 == 0 else moved.clear()

    monkeypatch.setattr(saving, "overlaps", lambda device: True)
    monkeypatch.setattr(saving, "keep", keep)
    run_of_waves(tmp_path / "beside", sinks=[tick], **EVERYTHING, keep_states=1)
    assert kept(tmp_path / "now") == kept(tmp_path / "beside")
    assert states(tmp_path / "now") == [64, 128, 160]


def test_training_goes_on_while_a_save_is_written(tmp_path, monkeypatch):
    """The write at nimg = 48 ends only after two more ticks; it would wait for ever if training waited for it."""
    seen: list[int] = []
    later, real = threading.Event(), saving.keep

    def keep(contents, *rest) -> None:
        if contents.nimg == 48:
            assert later.wait(30), "training waits for the save"
        real(contents, *rest)

    def tick(tick: Tick) -> None:
        seen.append(tick.nimg)
        if tick.nimg == 80:
            assert states(tmp_path / "r") == []
            later.set()

    monkeypatch.setattr(saving, "overlaps", lambda device: True)
    monkeypatch.setattr(saving, "keep", keep)
    run_of_waves(tmp_path / "r", sinks=[tick], stds=(), save_nimg=48)
    assert seen == list(range(16, 161, 16))
    assert states(tmp_path / "r") == [144, 160]


@pytest.mark.parametrize("beside", [False, True])
def test_a_write_that_fails_ends_the_run_and_keeps_the_state_before(tmp_path, monkeypatch, beside):
    """At the next tick where it was written beside training; with room, the same command goes on."""
    monkeypatch.setattr(saving, "overlaps", lambda device: beside)
    real = saving.write_state

    def full(folder, nimg, tensors, *, milestone=False) -> None:
        if nimg == 96:
            raise Unwritten(28, "No space left on device", str(folder / f"{nimg:09d}"))
        real(folder, nimg, tensors, milestone=milestone)

    with monkeypatch.context() as patch:
        patch.setattr(saving, "write_state", full)
        with pytest.raises(Failed, match="000000096 cannot be written: the disk is full") as failed:
            run_of_waves(tmp_path / "r", save_nimg=48, keep_states=1)
    assert "The same command goes on from nimg = 48" in str(failed.value)
    assert states(tmp_path / "r") == [48]
    run_of_waves(tmp_path / "r", save_nimg=48, keep_states=1)
    run_of_waves(tmp_path / "whole", save_nimg=48, keep_states=1)
    assert kept(tmp_path / "r") == kept(tmp_path / "whole")


def test_minutes(tmp_path, monkeypatch):
    """A save after so many minutes without one, whatever made the last one; 0 is never."""
    now = [0.0]
    monkeypatch.setattr(saving.time, "monotonic", lambda: now[0])
    saves: list[int] = []
    real = saving.keep
    monkeypatch.setattr(saving, "keep", lambda contents, *rest: (saves.append(contents.nimg), real(contents, *rest)))

    def tick(tick: Tick) -> None:
        now[0] += 61  # two minutes have passed with the second tick after a save, the one at 80 too

    run_of_waves(tmp_path / "r", sinks=[tick], stds=(), save_minutes=2.0, save_nimg=80)
    assert saves == [48, 80, 128, 160]
    saves.clear()
    run_of_waves(tmp_path / "never", sinks=[tick], stds=(), save_minutes=0)
    assert saves == [160]
    for bad in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"report.save_minutes is {bad}"):
            ji.Report(save_minutes=bad)


def test_milestones_stay_and_are_weights_like_any_other(tmp_path, monkeypatch):
    def here(*words: str) -> int:
        return jit_here(*words, cwd=tmp_path, monkeypatch=monkeypatch)

    words = ["train", "mnist-demo", *tiny_data(tmp_path), *TINY, "--training.duration-nimg", "1280", "--run", "r"]
    words += ["--report.tick-nimg", "160", "--report.save-nimg", "320", "--report.milestone-nimg", "480"]
    assert here(*words) == 0
    assert states(tmp_path / "r") == [480, 960, 1280]
    sets = weight_sets(tmp_path / "r")
    milestones = [f"{name}@{nimg:09d}" for name in ("ema-0.9", "raw") for nimg in (480, 960)]
    assert sets == sorted(["ema-0.9", "raw", *milestones])
    assert sets_of(SweepCommand(("r",))) == [("r", name) for name in sets]
    name = "ema-0.9@000000480"
    assert (
        here("sample", "r", "--weights", name, "--classes", "0", "--count", "1", "--steps", "1", "--device", "cpu") == 0
    )
    early, last = ji.load("r", weights=name, device="cpu"), ji.load("r", device="cpu")
    assert (early.training_summary["nimg"], last.training_summary["nimg"]) == (480, 1280)
    assert early.training_summary["weights"] == name


def test_snapshots_of_a_time_that_comes_again_are_removed(tmp_path):
    """A run that goes on from an earlier state makes its own; one would else average two runs."""
    run_of_waves(tmp_path / "r", **EVERYTHING, keep_states=9)
    names = {path.name for path in (tmp_path / "r" / "snapshots").iterdir()}
    assert names == {f"std-{std}@{nimg:09d}.safetensors" for std in (0.1, 0.2) for nimg in range(32, 161, 32)}
    for nimg in (128, 144, 160):
        saving_of = tmp_path / "r" / "state" / f"{nimg:09d}"
        saving_of.rename(tmp_path / f"{nimg}")
    run_of_waves(tmp_path / "r", **{**EVERYTHING, "snapshot_nimg": 64}, keep_states=9)
    names = {path.name for path in (tmp_path / "r" / "snapshots").iterdir()}
    assert names == {f"std-{std}@{nimg:09d}.safetensors" for std in (0.1, 0.2) for nimg in (32, 64, 96, 128, 160)}


@pytest.mark.parametrize("beside", [False, True])
def test_a_disk_that_fills_up_loses_nothing(tmp_path, monkeypatch, small_disk, beside):  # noqa: F811
    """Milestones and snapshots too: room is looked for before a write. With room, the run goes on as if unbroken."""
    folder, resize = small_disk
    monkeypatch.setattr(saving, "overlaps", lambda device: beside)
    whole = tmp_path / "whole"
    run_of_waves(whole, **EVERYTHING)
    everything = kept(whole)
    resize(sum(map(len, everything.values())) // 1000 // 2 + 1100)  # and the margin
    with pytest.raises(Failed, match="cannot be written: the disk is full") as failed:
        run_of_waves(folder / "r", **EVERYTHING)
    there = states(folder / "r")
    assert there
    assert f"The same command goes on from nimg = {there[-1]}" in str(failed.value)
    assert not [name for name in visible(folder) if ".jit." in name]
    partial = kept(folder / "r")
    assert {name: everything[name] for name in partial if name in everything and "@" in name} == {
        name: content for name, content in partial.items() if name in everything and "@" in name
    }
    resize(50_000)
    run_of_waves(folder / "r", **EVERYTHING)
    assert kept(folder / "r") == everything
