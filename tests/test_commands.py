"""The front door: help at once, typos answered, interrupts, and samples that are written as they are drawn."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import jit_here, small_net
from PIL import Image

import justimage as ji
from justimage.commands.line import SYNONYMS
from justimage.commands.main import COMMANDS, main
from justimage.commands.sample import seeds_of
from justimage.runs.sinks import seconds_left
from justimage.training.loop import Tick

ROOT = Path(__file__).parents[1]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"}
TINY = shlex.split(
    "--network.width 16 --network.depth 2 --network.heads 2 --network.context-start 1 --device cpu "
    "--training.batch-size 32 --report.tick-nimg 32 --report.preview-steps 1 --report.evaluate-nimg 0"
)


def model(path: Path, **kwargs) -> Path:
    """A weights folder of a small model of pixels with three classes."""
    spec = ji.DataSpec.pixels((8, 8), 3, ["cat", "a/b", "a?b"])
    ji.Denoiser(
        small_net(channels=3), spec=spec, sampling=ji.Sampling(steps=3, guidance=2.0), **kwargs
    ).save_pretrained(path)
    return path


def command(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "justimage", *arguments]
    return subprocess.run(words, cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize(
    "arguments", [[], ["--help"], ["--version"], ["trian"], ["train"], ["train", "cifra10"], ["data"]]
)
def test_the_front_door_opens_without_torch(arguments):
    """Neither torch, numpy nor tyro is imported for help, the version, and what is not there."""
    words = [sys.executable, "-X", "importtime", "-m", "justimage", *arguments]
    result = subprocess.run(words, env=ENVIRONMENT, capture_output=True, text=True, timeout=60)
    imported = set(re.findall(r"\|\s+([\w.]+)$", result.stderr, re.MULTILINE))
    assert "justimage" in imported
    assert not {name.partition(".")[0] for name in imported} & {"torch", "numpy", "tyro", "rich", "PIL"}


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, justimage; assert 'torch' not in sys.modules; justimage.Sampling; assert 'torch' in sys.modules"
    subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, check=True, timeout=60)
    assert set(ji.__all__) <= set(dir(ji))
    assert all(getattr(ji, name) is not None for name in ji.__all__)


@pytest.mark.parametrize(
    ("arguments", "answers"),
    [
        (["train", "cifra10"], ["no recipe 'cifra10'", "jit train cifar10"]),
        (["train", "photos/"], ["jit train images --data photos/"]),
        (["train", "t2m.nc"], ["jit train fields --data t2m.nc"]),
        (["train", "--data", "x", "cifar10"], ["the recipe comes first: jit train cifar10"]),
        (["train", "cifar10", "photos/"], ["--data photos/"]),
        (["train", "mnist-demo", "--cfg", "3"], ["did you mean --sampling.guidance?"]),
        (["train", "mnist-demo", "--lr", "3"], ["did you mean --training.lr?"]),
        (["train", "mnist-demo", "--training.no-flip"], ["did you mean --training.mirror off?"]),
        (["train", "mnist-demo", "--training.lrr", "3"], ["did you mean --training.lr?"]),
        (["sample", "m", "--cfg", "3"], ["did you mean --guidance?"]),
        (["sample", "m", "--num-samples", "3"], ["did you mean --count?"]),
        (["evaluate", "m", "--num-fid-samples", "3"], ["did you mean --count?"]),
        (["evaluate", "m", "--fid"], ["did you mean --features inception?"]),
        (["sweep", "m", "--cfg", "3"], ["did you mean --guidance?"]),
        (["sampel", "m"], ["did you mean `jit sample`?"]),
        (["data", "inspekt", "m"], ["did you mean `jit data inspect`?"]),
        (["sample", "m", "--seeds", "5-2"], ["--seeds 5-2"]),
        (["sample", "m", "--seeds", "x"], ["a whole number from 0 on, or a range"]),
        (["sample", "m", "--unconditional", "--classes", "cat"], ["--unconditional cannot go with --classes"]),
        (["sample", "m", "--unconditional", "--guidance", "2.5"], ["drawn without a condition"]),
        (["sample", "m", "--shift", "0"], ["shift is 0.0; it must lie between 0.01 and 100"]),
        (["sample", "m", "--size", "9"], ["does not divide a size of 9x9"]),
    ],
)
def test_what_is_not_understood_is_answered_in_three_lines(tmp_path, monkeypatch, capsys, arguments, answers):
    model(tmp_path / "m")
    assert jit_here(*arguments, cwd=tmp_path, monkeypatch=monkeypatch) == 2
    message = capsys.readouterr().err
    assert all(answer in message for answer in answers), message
    assert len(message.strip().splitlines()) <= 3
    assert "__" not in message
    assert "Traceback" not in message


def test_every_synonym_names_options_that_exist():
    """What the hints suggest is an option of some command."""
    from justimage.commands.data import Inspect, Pack
    from justimage.commands.evaluate import Evaluate
    from justimage.commands.line import option_names
    from justimage.commands.plan import PlanCommand
    from justimage.commands.sample import Sample
    from justimage.commands.sweep import SweepCommand
    from justimage.commands.train import Train

    commands = [*(Train(recipe) for recipe in ji.RECIPES.values()), Sample("m"), Inspect("p"), Pack("p")]
    commands += [PlanCommand(recipe) for recipe in ji.RECIPES.values()]
    commands += [Evaluate("m"), SweepCommand(("m",))]
    options = {name for each in commands for name in option_names(each)}
    assert {name.partition(" ")[0] for names in SYNONYMS.values() for name in names} <= options


@pytest.mark.parametrize("seconds", [0.05, 0.4, 1.5])
def test_ctrl_c_at_the_start_ends_with_3_and_no_traceback(tmp_path, seconds):
    words = [sys.executable, "-m", "justimage", "train", "mnist-demo"]
    process = subprocess.Popen(words, cwd=tmp_path, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    time.sleep(max(seconds, 0.0))
    while not (Path("/proc") / str(process.pid) / "maps").read_text().count("python"):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    if seconds > 0.1:  # before that Python itself may not be there yet
        assert process.returncode == 3
    assert "Traceback" not in errors or seconds < 0.1


def test_seeds_and_ranges():
    assert seeds_of(["3", "10-12", "0-0"]) == [3, 10, 11, 12, 0]
    assert seeds_of([]) == []


def test_samples_as_files(tmp_path, monkeypatch, capsys):
    """Ranges of seeds, sizes, without condition; names that differ; and facts beside them that mark the folder."""
    model(tmp_path / "m")

    def here(*arguments: str) -> int:
        return jit_here(
            "sample",
            "m",
            "--device",
            "cpu",
            "--precision",
            "float32",
            *arguments,
            cwd=tmp_path,
            monkeypatch=monkeypatch,
        )

    assert here("--classes", "a/b", "a?b", "--seeds", "0-2", "7", "--out", "a") == 0
    names = {path.name for path in (tmp_path / "a").iterdir()}
    seeds = ("0000", "0001", "0002", "0007")
    assert names == {f"a-b-{i}-seed{s}.png" for i in (1, 2) for s in seeds} | {"grid.png", "samples.json"}
    facts = json.loads((tmp_path / "a" / "samples.json").read_text())
    assert facts["seeds"] == [0, 1, 2, 7] * 2
    assert facts["labels"] == [1] * 4 + [2] * 4
    assert facts["sampling"]["guidance"] == 2.0  # the model's own
    assert here("--unconditional", "--count", "3", "--size", "16", "--out", "b", "--steps", "2") == 0
    assert Image.open(tmp_path / "b" / "seed0002.png").size == (16, 16)
    facts = json.loads((tmp_path / "b" / "samples.json").read_text())
    assert (facts["sampling"]["guidance"], facts["sampling"]["steps"], facts["labels"]) == (1.0, 2, None)
    assert here("--classes", "cat", "--count", "3", "--format", "npy", "--out", "c", "--guidance", "3") == 0
    expected = ji.load(tmp_path / "m", device="cpu", dtype=torch.float32).sample(["cat"] * 3, [0, 1, 2], guidance=3.0)
    drawn = np.load(tmp_path / "c" / "samples.npy")
    assert np.abs(drawn.astype(int) - expected.numpy().astype(int)).max() <= 1
    assert np.load(tmp_path / "c" / "labels.npy").tolist() == [0, 0, 0]
    assert "wrote samples.npy (3, 3, 8, 8) and grid.png to c" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "changed"),
    [
        ([], {}),
        (["--preset", "fast"], ji.PRESETS["fast"]),
        (["--preset", "paper"], ji.PRESETS["paper"]),
        (["--steps", "2", "--preset", "fast", "--shift", "3"], {**ji.PRESETS["fast"], "steps": 2, "shift": 3.0}),
        (["--sampler", "dpm++2m", "--guidance", "1.5"], {"sampler": "dpm++2m", "guidance": 1.5}),
    ],
)
def test_options_win_over_the_preset_and_the_preset_over_the_model(tmp_path, monkeypatch, options, changed):
    """Wherever they stand in the command; samples.json has what was drawn with, and Python draws the same."""
    model(tmp_path / "m")
    arguments = ["sample", "m", "--classes", "cat", "--count", "2", "--format", "npy", "--precision", "float32"]
    assert jit_here(*arguments, "--device", "cpu", *options, cwd=tmp_path, monkeypatch=monkeypatch) == 0
    loaded = ji.load(tmp_path / "m", device="cpu", dtype=torch.float32)
    facts = json.loads((tmp_path / "samples" / "samples.json").read_text())
    assert facts["sampling"] == json.loads(json.dumps(asdict(loaded.sampling) | changed))
    expected = loaded.sample(["cat"] * 2, [0, 1], **changed)
    drawn = np.load(tmp_path / "samples" / "samples.npy")
    assert np.abs(drawn.astype(int) - expected.numpy().astype(int)).max() <= 1


def test_the_grid_stays_small(tmp_path, monkeypatch):
    model(tmp_path / "m")
    arguments = ["sample", "m", "--classes", "cat", "--count", "300", "--steps", "1", "--batch-size", "100"]
    assert jit_here(*arguments, "--format", "npy", cwd=tmp_path, monkeypatch=monkeypatch) == 0
    assert max(Image.open(tmp_path / "samples" / "grid.png").size) < 1000


def test_interrupted_sampling_keeps_what_is_drawn(tmp_path):
    model(tmp_path / "m")
    arguments = ["sample", "m", "--classes", "cat", "--count", "100000", "--steps", "20", "--format", "npy"]
    words = [sys.executable, "-m", "justimage", *arguments]
    process = subprocess.Popen(words, cwd=tmp_path, env=ENVIRONMENT, stdout=subprocess.PIPE, text=True)
    while not any(path.stat().st_size > 1000 for path in tmp_path.glob("samples/.samples.npy.*.part")):
        time.sleep(0.05)
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 3
    drawn = np.load(tmp_path / "samples" / "samples.npy")
    assert 0 < len(drawn) < 100_000
    assert f"interrupted: {len(drawn):,} of 100,000 samples are drawn, and kept" in out
    assert {path.name for path in (tmp_path / "samples").iterdir()} == {
        "samples.npy",
        "labels.npy",
        "grid.png",
        "samples.json",
    }


def test_memory_does_not_grow_with_the_number_of_samples(tmp_path):
    """4,000 samples of 48 KiB each, 190 MB, take within 80 MB of what 100 take."""
    net = ji.ToyMLP(ji.MLPConfig(size=(64, 64), channels=3, width=4, depth=2))
    spec = ji.DataSpec((64, 64), ("a", "b", "c"), (0.0,) * 3, (1.0,) * 3)
    ji.Denoiser(net, spec=spec, sampling=ji.Sampling(steps=1)).save_pretrained(tmp_path / "m")
    code = (
        "import sys, resource; from justimage.commands.main import main; code = main(sys.argv[1:]);"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024); sys.exit(code)"
    )
    peaks = []
    for count in (100, 4_000):
        arguments = ["sample", "m", "--count", str(count), "--batch-size", "50", "--format", "npy", "--device", "cpu"]
        words = [sys.executable, "-c", code, *arguments]
        result = subprocess.run(words, cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
        assert result.returncode == 0, result.stderr
        peaks.append(float(result.stdout.split()[-1]))
    assert len(np.load(tmp_path / "samples" / "samples.npy", mmap_mode="r")) == 4_000
    assert peaks[1] - peaks[0] < 80, peaks


def test_fields_with_labels_grow_in_netcdf_and_zarr(tmp_path, monkeypatch):
    """Written batch by batch, both hold what was drawn, with class names of different lengths."""
    xarray = pytest.importorskip("xarray")
    from justimage.data.origin import Origin, Variable

    origin = Origin(("lat", "lon"), (Variable("u"), Variable("v")))
    spec = ji.DataSpec((8, 8), ("u", "v"), (1.0, -2.0), (3.0, 0.5), classes=("a", "storm"), origin=origin)
    ji.Denoiser(small_net(num_classes=2), spec=spec, sampling=ji.Sampling(steps=2)).save_pretrained(tmp_path / "m")
    read = {}
    for form in ("nc", "zarr"):
        arguments = ["sample", "m", "--count", "5", "--batch-size", "3", "--format", form, "--out", form]
        assert jit_here(*arguments, cwd=tmp_path, monkeypatch=monkeypatch) == 0
        path = tmp_path / form / f"samples.{form}"
        read[form] = (
            xarray.open_dataset(path).load() if form == "nc" else xarray.open_zarr(path, consolidated=False).load()
        )
        assert not list((tmp_path / form).glob(".*"))
    drawn = ji.load(tmp_path / "m", device="cpu").sample([0] * 5 + [1] * 5, [0, 1, 2, 3, 4] * 2)
    for dataset in read.values():
        assert dataset["class"].values.tolist() == ["a"] * 5 + ["storm"] * 5
        assert dataset["seed"].values.tolist() == [0, 1, 2, 3, 4] * 2
        np.testing.assert_allclose(dataset["v"].values, drawn[:, 1].numpy(), atol=1e-3)


def test_the_time_left_counts_to_the_deadline():
    tick = Tick(1000, 0.5, 0.1, 1e-3, img_per_second=100.0, waiting_on_data=0.0, stopping=False)
    assert seconds_left(tick, 11_000, None) == pytest.approx(100)
    assert seconds_left(tick, 11_000, time.monotonic() + 30) == pytest.approx(30, abs=1)
    assert seconds_left(tick, 1_500, time.monotonic() + 30) == pytest.approx(5)
    assert seconds_left(tick, 11_000, time.monotonic() - 30) == 0


def test_one_number_means_the_same_along_all_axes(tmp_path, monkeypatch, capsys):
    arguments = [
        "train",
        "mnist-demo",
        *TINY,
        "--network.size",
        "28",
        "--network.patch",
        "7",
        "--training.duration-nimg",
        "32",
    ]
    assert jit_here(*arguments, cwd=tmp_path, monkeypatch=monkeypatch) == 0
    assert "on 28x28, patch 7x7" in capsys.readouterr().out
    (tmp_path / "photos").mkdir()
    for i in range(4):
        Image.fromarray(np.random.randint(0, 256, (20, 24, 3), dtype=np.uint8)).save(tmp_path / "photos" / f"{i}.png")
    squares = ["train", "images", *TINY, "--data", "photos", "--network.size", "16", "--network.patch", "8"]
    assert jit_here(*squares, "--training.duration-nimg", "32", cwd=tmp_path, monkeypatch=monkeypatch) == 0
    assert "on 16x16, patch 8x8" in capsys.readouterr().out
    np.save(tmp_path / "signals.npy", np.random.randn(64, 2, 48).astype(np.float32))
    arguments = ["train", "fields", *TINY, "--data", "signals.npy", "--training.duration-nimg", "32"]
    assert jit_here(*arguments, cwd=tmp_path, monkeypatch=monkeypatch) == 2
    hint = re.search(r"--network\.size (\d+) --network\.patch (\d+)", capsys.readouterr().err)
    assert hint is not None
    followed = [*arguments, "--network.size", hint.group(1), "--network.patch", hint.group(2)]
    assert jit_here(*followed, cwd=tmp_path, monkeypatch=monkeypatch) == 0


def test_a_condition_passes_through_the_commands(tmp_path, monkeypatch, capsys):
    """An .npz with a vector beside x: trained and sampled by the command, and refused without the condition."""
    generator = np.random.default_rng(0)
    level = generator.uniform(-1, 1, (256, 1)).astype(np.float32)
    x = (level[:, :, None, None] + 0.1 * generator.normal(size=(256, 1, 8, 8))).astype(np.float32)
    np.savez(tmp_path / "d.npz", x=x, level=level)
    np.savez(tmp_path / "c.npz", level=np.array([[-0.8], [0.8]], dtype=np.float32))
    train = ["train", "fields", *TINY, "--network.size", "8", "--network.patch", "4", "--data", "d.npz", "--run", "r"]
    train += ["--data-options.conditions", "level", "--training.duration-nimg", "12800", "--report.tick-nimg", "12800"]
    assert jit_here(*train, cwd=tmp_path, monkeypatch=monkeypatch) == 0
    assert jit_here("sample", "r", cwd=tmp_path, monkeypatch=monkeypatch) == 2
    assert "conditioned on level" in capsys.readouterr().err
    arguments = ["sample", "r", "--condition", "c.npz", "--count", "16", "--format", "npy", "--steps", "10"]
    assert jit_here(*arguments, cwd=tmp_path, monkeypatch=monkeypatch) == 0
    low, high = np.load(tmp_path / "samples" / "samples.npy").reshape(2, 16, -1).mean((1, 2))
    assert low < -0.3 < 0.3 < high


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["data", "inspect", "--data", "photos/", "--size", "32"], "without --data: jit data inspect photos/"),
        (["data", "pack", "--path=photos/"], "without --path: jit data pack photos/"),
        (["sample", "--count", "3", "--model", "runs/x"], "without --model: jit sample runs/x"),
        (["doctor", "--run", "runs/x"], "without --run: jit doctor runs/x"),
        (["replay", "--run"], "RUN stands without --run"),
    ],
)
def test_what_stands_by_its_place_is_no_option(capsys, words, said):
    assert main(words) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB"), RuntimeError("can't allocate memory: 9")],
)
def test_a_full_device_is_said_in_words(monkeypatch, capsys, error):
    """And any other error of torch is shown where it comes from."""

    def full(arguments: list[str]) -> int:
        raise error

    monkeypatch.setitem(COMMANDS, "train", ("", full))
    assert main(["train", "cifar10"]) == 1
    said = capsys.readouterr().err
    assert str(error)[:20] in said and "--training.microbatch" in said
    error = RuntimeError("shapes do not match")
    with pytest.raises(RuntimeError, match="shapes"):
        main(["train", "cifar10"])


def test_completion_offers_commands_recipes_and_options(tmp_path):
    """The script, sourced by bash, completes what is typed."""
    script = command("completion", "bash", cwd=tmp_path).stdout
    typed = {"jit sa": "sample", "jit train cifar10-di": "cifar10-dit", "jit sample m --see": "--seeds"}
    typed |= {"jit train fields --network.pa": "--network.patch", "jit data pack x --sh": "--shard-mb"}
    typed |= {"jit sample m --preset p": "paper", "jit train toy --sampling.sampler dpm": "dpm++2m"}
    typed |= {"jit bench b16-2": "b16-256", "jit bench --ro": "--rounds", "jit bench toy --wh": "--whole"}
    typed |= {"jit completion z": "zsh"}
    for line, expected in typed.items():
        words = line.split()
        asked = f'{script}\nCOMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; _jit; echo "${{COMPREPLY[@]}}"'
        result = subprocess.run(["bash", "-c", asked], capture_output=True, text=True, check=True, timeout=20)
        assert result.stdout.split() == [expected]
    assert command("completion", "fish", cwd=tmp_path).returncode == 2
