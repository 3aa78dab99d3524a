"""What is written is whole or absent; what cannot be written is said in a sentence, before the work where possible."""

import errno
import os
import shlex
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import jit_here, small_net
from PIL import Image
from safetensors.torch import save_file

import justimage as ji
from justimage.disk import growing
from justimage.disk.growing import GrowingArray
from justimage.disk.tensors import read_tensors, write_tensors
from justimage.disk.whole import Unwritten, append_json, whole, write_text
from justimage.sampling.fields_file import FieldsFile
from justimage.sampling.generate import Samples
from justimage.sampling.write import FileNames
from justimage.training.state import saved_states
from justimage.weights.official import save_official

TINY = shlex.split(
    "--network.width 16 --network.depth 2 --network.heads 2 --network.context-start 1 --device cpu "
    "--training.batch-size 32 --report.tick-nimg 32 --report.preview-steps 1 "
    "--report.evaluate-nimg 0 --training.duration-nimg 64"
)


def pixels(path: Path) -> Path:
    spec = ji.DataSpec.pixels((8, 8), 3, ["cat", "a/b", "a?b"])
    ji.Denoiser(small_net(channels=3), spec=spec, sampling=ji.Sampling(steps=1)).save_pretrained(path)
    return path


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a disk of its own, and what gives it another size in kB. Skipped where mounting is not permitted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("a small disk cannot be mounted here")
    yield folder, lambda kb: subprocess.run(["mount", "-o", f"remount,size={kb}k", folder], check=True)
    subprocess.run(["umount", "-l", folder], check=True)


def visible(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("place", ["/proc/x", "/proc", "file", "file/x"])
@pytest.mark.parametrize(
    "words",
    [
        ["train", "mnist-demo", "--data", "nowhere", "--run"],
        ["sample", "nowhere", "--out"],
        ["data", "inspect", "nowhere", "--out"],
        ["data", "pack", "nowhere", "--out"],
        ["convert", "file"],
    ],
)
def test_a_place_that_cannot_be_written_is_found_before_the_work(tmp_path, monkeypatch, capsys, place, words):
    """Exit code 2 and a sentence that names it, before data or weights are looked for; nothing is left."""
    (tmp_path / "file").write_text("x")
    assert jit_here(*words, place, cwd=tmp_path, monkeypatch=monkeypatch) == 2
    message = capsys.readouterr().err
    assert place in message
    assert "nowhere" not in message
    assert visible(tmp_path) == ["file"]


def test_refused_data_leave_no_run_folder(tmp_path, monkeypatch):
    assert jit_here("train", "cifar10", "--data", "nowhere", cwd=tmp_path, monkeypatch=monkeypatch) == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("size", [["0"], ["-1"], ["16", "0"], ["7", "7", "7"], ["100000"]])
def test_a_pack_of_a_bad_size_leaves_nothing(tmp_path, monkeypatch, capsys, size):
    (tmp_path / "s").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "s" / "0.png")
    words = ["data", "pack", "s", "--size", *size, "--out", "p"]
    assert jit_here(*words, cwd=tmp_path, monkeypatch=monkeypatch) == 2
    assert not (tmp_path / "p").exists()


@pytest.mark.parametrize("form", ["png", "npy", "nc", "zarr"])
def test_sampling_onto_a_full_disk_keeps_what_is_drawn(tmp_path, monkeypatch, capsys, small_disk, form):
    """Exit code 1 and one sentence; a good file stays, or whole samples take its place; with room it goes on."""
    if form in ("nc", "zarr"):
        pytest.importorskip("xarray")
    folder, resize = small_disk
    spec = ji.DataSpec((64, 64), ("u", "v"), (0.0, 0.0), (1.0, 1.0))
    if form == "png":
        spec = ji.DataSpec.pixels((64, 64), 3, [])
    net = small_net((64, 64), 16, channels=len(spec.channels), num_classes=0)
    ji.Denoiser(net, spec=spec, sampling=ji.Sampling(steps=1)).save_pretrained(tmp_path / "m")
    words = ["sample", "m", "--count", "200", "--batch-size", "20", "--format", form, "--out", str(folder / "s")]

    def sample() -> tuple[int, str]:
        code = jit_here(*words, "--device", "cpu", cwd=tmp_path, monkeypatch=monkeypatch)
        return code, "".join(capsys.readouterr())

    code, message = sample()
    assert code == 1
    assert "cannot be written: the disk is full" in message
    assert visible(folder) == []
    resize(6_000 if form in ("nc", "zarr") else 3_000)
    code, message = sample()
    assert code == 1, message
    assert "run the same command again" in message
    names = visible(folder)
    assert not [name for name in names if ".jit." in name]
    assert {"s/grid.png", "s/samples.json"} <= set(names)
    resize(40_000)
    code, message = sample()
    assert code == 0, message
    assert not [name for name in visible(folder) if ".jit." in name]
    if form == "png":
        assert len([name for name in visible(folder) if "seed" in name]) == 200


def test_training_onto_a_full_disk_ends_in_a_sentence_and_goes_on_with_room(tmp_path, monkeypatch, capsys, small_disk):
    folder, resize = small_disk
    words = ["train", "mnist-demo", *TINY, "--run", str(folder / "r")]
    assert jit_here(*words, cwd=tmp_path, monkeypatch=monkeypatch) == 1
    message = "".join(capsys.readouterr())
    assert "cannot be written: the disk is full" in message
    assert "The same command goes on from nimg = 0" in message
    assert not [name for name in visible(folder) if ".jit." in name]
    resize(50_000)
    assert jit_here(*words, cwd=tmp_path, monkeypatch=monkeypatch) == 0
    assert [path.name for path in saved_states(folder / "r" / "state")] == ["000000064"]
    assert not [name for name in visible(folder) if ".jit." in name]


def test_converting_and_inspecting_onto_a_full_disk_leave_nothing(tmp_path, monkeypatch, capsys, small_disk):
    folder, _ = small_disk
    pixels(tmp_path / "m")
    net = small_net((32, 32), 4, channels=3, width=64)
    ji.Denoiser(net).save_pretrained(tmp_path / "w")
    for target in ("w.pth", "w.safetensors"):
        assert jit_here("convert", "w", str(folder / target), cwd=tmp_path, monkeypatch=monkeypatch) == 1
        assert f"{target} cannot be written: the disk is full" in capsys.readouterr().err
    save_official(ji.Denoiser(net), tmp_path / "w.safetensors")
    words = ["convert", "w.safetensors", str(folder / "w"), "--context-start", "1"]
    assert jit_here(*words, cwd=tmp_path, monkeypatch=monkeypatch) == 1
    assert "w/model.safetensors cannot be written: the disk is full" in capsys.readouterr().err
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(80, 3, 64, 64)).astype(np.float32))
    assert jit_here("data", "inspect", "x.npy", "--out", str(folder / "i"), cwd=tmp_path, monkeypatch=monkeypatch) == 1
    assert "contact-sheet.png cannot be written: the disk is full" in capsys.readouterr().err
    assert list(folder.iterdir()) == []


def test_what_libraries_say_of_a_full_disk_names_the_file(small_disk):
    """safetensors and torch have errors of their own; the sentence is the same, and a good file stays."""
    folder, _ = small_disk
    good, large = {"a": torch.zeros(10)}, {"a": torch.zeros(100_000)}
    write_tensors(folder / "x.safetensors", good)
    with pytest.raises(Unwritten, match=r"x\.safetensors cannot be written: the disk is full"):
        write_tensors(folder / "x.safetensors", large)
    assert torch.equal(read_tensors(folder / "x.safetensors")["a"], good["a"])
    assert [path.name for path in folder.iterdir()] == ["x.safetensors"]


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_files_get_the_mode_of_any_other(tmp_path, umask):
    before = os.umask(umask)
    try:
        write_text(tmp_path / "a.json", "{}")
        write_tensors(tmp_path / "a.safetensors", {"a": torch.zeros(3)})
        with whole(tmp_path / "a.png") as beside:
            beside.write_bytes(b"x")
    finally:
        os.umask(before)
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o666 & ~umask}


def test_rows_are_appended_all_or_none(tmp_path, monkeypatch):
    array = GrowingArray(tmp_path / "a.npy")
    array.append(np.arange(6).reshape(3, 2))
    real = growing.File.write

    def half(self, data):
        if memoryview(data).nbytes < 1000:  # a header
            return real(self, data)
        real(self, bytes(memoryview(data).cast("B"))[:500])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(growing.File, "write", half)
        with pytest.raises(OSError, match="No space left"):
            array.append(np.zeros((100, 2), int))
    assert np.load(tmp_path / "a.npy").tolist() == [[0, 1], [2, 3], [4, 5]]
    assert (tmp_path / "a.npy").stat().st_size == 128 + 6 * 8
    array.append(np.arange(6, 10).reshape(2, 2))
    array.cut(4)
    array.close()
    assert np.load(tmp_path / "a.npy").tolist() == [[0, 1], [2, 3], [4, 5], [6, 7]]


@pytest.mark.parametrize("form", ["nc", "zarr"])
def test_a_batch_of_fields_is_written_all_or_not_at_all(tmp_path, monkeypatch, form):
    """Where appending breaks off in the middle, by a full disk or Ctrl-C, the file holds the batches before."""
    xarray = pytest.importorskip("xarray")
    spec = ji.DataSpec((4, 4), ("u", "v"), (0.0, 0.0), (1.0, 1.0))
    batches = [Samples(torch.full((3, 2, 4, 4), float(i)), [0, 1, 2], [-1] * 3) for i in range(3)]
    file = FieldsFile(tmp_path / f"samples.{form}", spec)
    file.add(batches[0])
    name = "_append" if form == "nc" else None

    def broken(*arguments, **options):
        real(*arguments, **options)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if name:
            import justimage.sampling.fields_file as module

            real = module._append
            patch.setattr(module, name, broken)
        else:
            real = xarray.Dataset.to_zarr
            patch.setattr(xarray.Dataset, "to_zarr", broken)
        with pytest.raises(KeyboardInterrupt):
            file.add(batches[1])
    file.add(batches[2])
    file.close()
    path = tmp_path / f"samples.{form}"
    read = xarray.open_dataset(path) if form == "nc" else xarray.open_zarr(path, consolidated=False)
    assert read["u"].values[:, 0, 0].tolist() == [0.0] * 3 + [2.0] * 3
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


def test_no_two_samples_share_a_name():
    """Whatever the classes are called: alike but for a sign, for capitals, or called like a numbered one."""
    classes = [
        "cat",
        "a/b",
        "a?b",
        "a-b",
        "a-b-1",
        "Cat",
        "none",
        "",
        "a-b-1-1",
        "é" * 300,
        "é" * 299,
        "seed0000",
        "cat",
    ]
    names, drawn = FileNames(classes), []
    for _ in range(3):
        drawn += [names.next(label, seed) for label in range(-1, len(classes) + 1) for seed in (0, 1, 12345, 0)]
    assert len({name.casefold() for name in drawn}) == len(drawn)
    assert max(len(name.encode()) for name in drawn) < 200
    assert FileNames(classes).next(0, 7) == "cat-seed0007.png"
    assert FileNames(["a/b", "c"]).next(0, 7) == "a-b-seed0007.png"
    assert FileNames([]).next(3, 7) == "3-seed0007.png"


def test_as_many_pictures_as_samples(tmp_path, monkeypatch):
    pixels(tmp_path / "m")
    words = ["sample", "m", "--classes", "cat", "cat", "a/b", "a?b", "--seeds", "0", "0", "3", "--device", "cpu"]
    assert jit_here(*words, cwd=tmp_path, monkeypatch=monkeypatch) == 0
    assert len(list((tmp_path / "samples").glob("*seed*.png"))) == 12


def test_what_stands_in_the_way_of_samples_is_said_before_drawing(tmp_path, monkeypatch, capsys):
    pixels(tmp_path / "m")
    (tmp_path / "samples" / "samples.npy").mkdir(parents=True)
    words = ["sample", "m", "--format", "npy", "--device", "cpu"]
    assert jit_here(*words, cwd=tmp_path, monkeypatch=monkeypatch) == 2
    assert "samples.npy is a folder" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["SIGHUP", "SIGQUIT", "SIGUSR1"])
def test_signals_of_a_scheduler_and_a_closed_terminal_save(tmp_path, name):
    """Exit code 3 and one state, although HUP and USR1 come twice."""
    words = [sys.executable, "-m", "justimage", "train", "mnist-demo", *TINY[:-1], "1000000000", "--run", "r"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    process = subprocess.Popen(
        words,
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        # Where the tests themselves run under nohup or in the background, it would be ignored, as the command promises.
        preexec_fn=lambda: signal.signal(getattr(signal, name), signal.SIG_DFL),
    )
    log = tmp_path / "r" / "log.jsonl"
    while not log.is_file() or not log.read_text():
        time.sleep(0.02)
        assert process.poll() is None
    process.send_signal(getattr(signal, name))
    if name != "SIGQUIT":
        time.sleep(0.01)
        process.send_signal(getattr(signal, name))
    process.communicate(timeout=120)
    assert process.returncode == 3
    assert len(saved_states(tmp_path / "r" / "state")) == 1
    assert not (tmp_path / "r" / ".jit.lock").exists()


def test_an_image_damaged_in_mid_run_under_torchrun_is_named_and_the_state_saved(tmp_path):
    """Through the command, with two processes: the file, one saved state, exit code 1, and no lock left."""
    rng = np.random.default_rng(0)
    for i in range(32):
        path = tmp_path / "photos" / f"{i:02d}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (8, 8, 3), np.uint8)).save(path)
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 0xFF
    path.write_bytes(damaged)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "29613"]
    words = [
        "-m",
        "justimage",
        "train",
        "images",
        "--data",
        "photos",
        "--run-dir",
        "r",
        "--data-options.memory-gb",
        "0",
    ]
    words += [*TINY, "--network.size", "8", "8", "--network.patch", "4", "4", "--training.duration-nimg", "3200"]
    words += ["--training.batch-size", "8", "--report.tick-nimg", "8", "--network.bottleneck", "8"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    result = subprocess.run(
        [*torchrun, *words], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200
    )
    assert result.returncode == 1
    assert "31.png" in result.stdout
    assert "cannot be decoded" in result.stdout
    assert len(saved_states(tmp_path / "r" / "state")) == 1
    assert not [name for name in visible(tmp_path) if ".jit." in name]


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.int64, torch.bool, torch.uint8])
def test_changed_tensors_are_found(tmp_path, kind):
    """Any byte of the tensors, and a hole of zeros; without the sum (other code, older versions) there is no check."""
    path, generator = tmp_path / "t.safetensors", torch.Generator().manual_seed(0)
    tensors = {"a": torch.randint(1, 100, (5, 7), generator=generator).to(kind), "b": torch.ones((), dtype=kind)}
    write_tensors(path, tensors)
    assert all(torch.equal(tensors[name], each) for name, each in read_tensors(path).items())
    good = path.read_bytes()
    begin = 8 + int.from_bytes(good[:8], "little")
    for at in (begin, (begin + len(good)) // 2, len(good) - 1):
        path.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
        with pytest.raises(ValueError, match=r"t\.safetensors is damaged"):
            read_tensors(path)
    path.write_bytes(good[:begin] + bytes(len(good) - begin))
    with pytest.raises(ValueError, match=r"t\.safetensors is damaged"):
        read_tensors(path)
    save_file({name: each + each for name, each in tensors.items()}, path)
    assert read_tensors(path).keys() == tensors.keys()


def test_tensors_that_share_memory_are_written_like_any_others(tmp_path):
    """Tied weights, and parts of one buffer that begin anywhere."""
    flat = torch.arange(40, dtype=torch.float32)
    tensors = {"a": flat[:10], "b": flat[:10], "c": flat[11:20], "d": flat[1::2]}
    write_tensors(tmp_path / "t.safetensors", tensors)
    found = read_tensors(tmp_path / "t.safetensors")
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    net = small_net()
    net.blocks[1].mlp.up.weight = net.blocks[0].mlp.up.weight  # pyright: ignore
    ji.Denoiser(net).save_pretrained(tmp_path / "tied")
    again = ji.load(tmp_path / "tied", device="cpu", dtype=torch.float32)
    assert all(torch.equal(again.net.state_dict()[name], each) for name, each in net.state_dict().items())


def test_a_line_after_half_a_line_stays_whole(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"a": 1}\n{"b": 2')
    for value in (3, 4):
        append_json(path, {"c": value})
    assert path.read_text() == '{"a": 1}\n{"b": 2\n{"c": 3}\n{"c": 4}\n'
