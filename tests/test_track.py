"""Trackers: what they get, on one axis, after a resume too; and what happens where one is not there, or fails."""

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, get_args

import numpy as np
import pytest
from conftest import jit_here
from PIL import Image
from test_run import TINY, tiny_data

from justimage.commands.train import Named
from justimage.runs.track import TRACKERS, Opened, tracking

RUN = [*TINY, "--report.tick-nimg", "64", "--report.sample-nimg", "128", "--report.save-nimg", "64"]
RUN += ["--training.schedule", "constant", "--run", "r"]


def train(folder: Path, monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    return jit_here("train", "mnist-demo", *tiny_data(folder), *RUN, *words, cwd=folder, monkeypatch=monkeypatch)


class Fake(ModuleType):
    """Stands for wandb or trackio: keeps what it is told."""

    def __init__(self, name: str):
        super().__init__(name)
        self.told: list[tuple[str, Any]] = []
        self.logged: list[tuple[Any, dict[str, Any]]] = []

    def init(self, **settings: Any) -> SimpleNamespace:
        self.told.append(("init", settings))
        return SimpleNamespace(
            log=self.log,
            finish=self.finish,
            define_metric=lambda name, step_metric=None: self.told.append(("metric", (name, step_metric))),
        )

    def log(self, values: dict[str, Any], step: int | None = None) -> None:
        self.logged.append((values.get("nimg", step), values))

    def finish(self) -> None:
        self.told.append(("finish", None))

    def Image(self, image: Image.Image) -> Any:
        return np.asarray(image)


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_ticks_grids_and_the_recipe_on_one_axis_over_a_resume(tmp_path, monkeypatch, name):
    fake = Fake(name)
    monkeypatch.setitem(sys.modules, name, fake)
    assert train(tmp_path, monkeypatch, "--track", name, "--training.duration-nimg", "128") == 0
    assert train(tmp_path, monkeypatch, "--track", name, "--training.duration-nimg", "256") == 0
    told = [settings for what, settings in fake.told if what == "init"]
    assert len(told) == 2
    assert {each["project"] for each in told} == {"justimage"}
    assert told[0]["config"]["recipe"]["training"]["batch_size"] == 32
    called = "id" if name == "wandb" else "name"
    assert told[0][called] == told[1][called]  # the same run goes on
    assert all(each["resume"] == "allow" for each in told)
    assert [what for what, _ in fake.told].count("finish") == 2
    if name == "wandb":
        assert ("metric", ("*", "nimg")) in fake.told
        assert Path(told[0]["dir"]) == Path("r")
    log = {line["nimg"]: line for line in map(json.loads, (tmp_path / "r" / "log.jsonl").open())}
    losses = {nimg: values["train/loss"] for nimg, values in fake.logged if "train/loss" in values}
    assert losses == {nimg: line["loss"] for nimg, line in log.items()}
    assert [nimg for nimg, values in fake.logged if "samples" in values] == [128, 256]
    grid = Image.open(tmp_path / "r" / "samples" / "000000256.png")
    assert np.array_equal(fake.logged[-1][1]["samples"], np.asarray(grid))


def test_tensorboard_holds_what_the_log_holds(tmp_path, monkeypatch):
    """Events are read back: numbers, grids and the recipe; after a kill, what came after the state comes again once."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import (  # pyright: ignore[reportMissingImports]
        EventAccumulator,
    )

    words = ["--track", "tensorboard"]
    assert train(tmp_path, monkeypatch, *words, "--training.duration-nimg", "192") == 0
    run = tmp_path / "r"
    newest = run / "state" / "000000192"
    newest.rename(tmp_path / "lost")  # as if it had been killed before this save
    assert train(tmp_path, monkeypatch, *words, "--training.duration-nimg", "256") == 0
    events = EventAccumulator(str(run / "tensorboard"), {"images": 0, "scalars": 0, "tensors": 0})
    events.Reload()
    log = [json.loads(line) for line in (run / "log.jsonl").open()]
    for name, key in (("train/loss", "loss"), ("train/lr", "lr"), ("speed/img_per_second", "img_per_second")):
        found = [(event.step, event.value) for event in events.Scalars(name)]
        assert [step for step, _ in found] == [64, 128, 192, 256]
        assert [value for _, value in found] == pytest.approx([line[key] for line in log], rel=1e-6)
    assert [event.step for event in events.Images("samples")] == [128, 256]  # 192 was an end, and is none now
    text = events.Tensors("recipe/text_summary")[0].tensor_proto.string_val[0].decode()
    assert '"batch_size": 32' in text


@pytest.mark.parametrize("name", [*TRACKERS])
def test_one_that_is_not_installed_is_refused_by_the_name_of_its_extra(tmp_path, monkeypatch, capsys, name):
    module = "torch.utils.tensorboard.writer" if name == "tensorboard" else name
    monkeypatch.setitem(sys.modules, module, None)
    assert train(tmp_path, monkeypatch, "--track", name, "--training.duration-nimg", "64") == 2
    message = capsys.readouterr().err
    assert f"--track {name} needs {name}, which is not installed: pip install 'justimage[track]'" in message
    assert not (tmp_path / "r").exists()


def test_one_that_fails_is_said_and_left_out(tmp_path):
    """When it opens, in the middle, and at its end; the others go on, and so does the run."""
    got: list[int] = []
    said: list[str] = []

    class Opening:
        def __init__(self, fails: str):
            self.fails = fails

        def __enter__(self):
            if self.fails == "enter":
                raise OSError("no network")
            return self.track

        def track(self, nimg, numbers, pictures):
            if self.fails == "track" and nimg == 2:
                raise RuntimeError("quota")
            if not self.fails:
                got.append(nimg)

        def __exit__(self, *_):
            if self.fails == "exit":
                raise RuntimeError("late")

    trackers = [lambda run, fails=fails: Opening(fails) for fails in ("enter", "track", "exit", "")]
    with tracking(trackers, Opened(tmp_path, {}, 0), said.append) as track:
        for nimg in (1, 2, 3):
            track(nimg, {"loss": 1.0}, {})
    assert got == [1, 2, 3]
    assert [text.rpartition(": ")[2] for text in said] == ["no network", "quota", "late"]


def test_the_command_knows_all_of_them():
    assert get_args(Named) == tuple(TRACKERS)
