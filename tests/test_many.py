"""Many processes: one run however it is shared out, and what is said when a process is missing, dies or hangs."""

import io
import itertools
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from conftest import jit_here, small_config
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file, save_file
from test_run import TINY
from test_train import ALONE, CONFIG, CPU, begin, equal, go_on, waves
from torch._dynamo.utils import counters

from justimage.denoiser import Denoiser
from justimage.disk.tensors import sum_of
from justimage.execution import compiler_works
from justimage.meeting import Seat, device_of, meet, seat_of
from justimage.networks.dropout import Dropout, kept
from justimage.parallel import Processes, leave, naming_the_gone
from justimage.pulse import Pulse
from justimage.runs.recipes import Recipe, Report
from justimage.runs.run import train_run
from justimage.samplers import Sampling
from justimage.training.build import build
from justimage.training.masks import keyed_dropouts, masks_of
from justimage.training.state import TrainingState, saved_states

ROOT = Path(__file__).parents[1]
DROPPING = {"dropout": 0.2, "dropout_scores": 0.2, "depth": 4}


# Dropout masks


def test_masks_drop_their_share_independently_of_each_other():
    """Counts, and correlations between samples and at distances within one, are those of independent draws."""
    generator = torch.Generator().manual_seed(0)
    keys = torch.randint(-(2**31), 2**31 - 1, (64, 2), generator=generator, dtype=torch.int32)
    keys[:4] = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]])  # neighbours are as good as any
    numbers = 40_000
    off = (kept(keys, torch.Size((64, 200, 200)), 0.3).flatten(1).float() - 0.7) / (0.3 * 0.7) ** 0.5  # (64, N)
    within = [off.mean(1), *((off[:, lag:] * off[:, :-lag]).mean(1) for lag in (1, 2, 31, 32, 200, 1024))]
    between = [(off[a] * off[b]).mean() for a, b in itertools.combinations(range(64), 2)]
    for correlations in (torch.cat(within), torch.stack(between), off.mean(0) * (64 / numbers) ** 0.5):
        z = correlations * numbers**0.5
        assert 0.9 < z.std() < 1.1
        assert z.abs().max() < 6


def test_a_mask_is_a_function_of_seed_module_and_position():
    net = begin(waves(), **DROPPING).model.net
    modules = keyed_dropouts(net)
    assert len(modules) == 2 * 3

    def masks(seed: int, positions: range) -> list[torch.Tensor]:
        with masks_of(modules, seed, positions, CPU):
            return [kept(module.sample_keys, torch.Size((len(positions), 5, 7)), 0.2) for module in modules]  # type: ignore[arg-type]

    whole, part = masks(3, range(16)), masks(3, range(6, 11))
    assert all(torch.equal(a[6:11], b) for a, b in zip(whole, part, strict=True))
    samples = torch.cat([*whole, *masks(4, range(16))])
    assert len({tuple(sample.flatten().tolist()) for sample in samples}) == len(samples)  # no two are alike
    assert all(module.sample_keys is None for module in modules)


def test_a_module_drops_by_its_keys_in_training_alone():
    dropout, x = Dropout(0.5), torch.ones(2, 3, 8)
    dropout.sample_keys = torch.tensor([[1, 2], [3, 4]], dtype=torch.int32)
    assert torch.equal(dropout(x), 2.0 * kept(dropout.sample_keys, x.shape, 0.5))
    assert torch.equal(dropout.eval()(x), x)
    dropout.train().sample_keys = None
    torch.manual_seed(0)
    expected = torch.nn.functional.dropout(x, 0.5)
    torch.manual_seed(0)
    assert torch.equal(dropout(x), expected)


@pytest.mark.parametrize("changes", [{"microbatch": 5}, {"checkpoint": True}], ids=str)
def test_masks_are_the_same_in_any_microbatch_and_when_activations_are_computed_again(changes):
    source = waves()
    plain, other = begin(source, **DROPPING), begin(source, replace(CONFIG, **changes), **DROPPING)
    go_on(plain, source)
    go_on(other, source, replace(CONFIG, **changes))
    for name, tensor in plain.tensors().items():
        torch.testing.assert_close(other.tensors()[name], tensor, atol=2e-5, rtol=1e-4)


@pytest.mark.slow
def test_masks_are_the_same_in_compiled_blocks():
    """To rounding, in training with dropout of features and of probabilities; a mask that differs would be seen."""
    if not compiler_works(CPU):
        pytest.skip("no compiler")
    source, config = waves(), replace(CONFIG, duration_nimg=64)
    plain, compiled = begin(source, config, **DROPPING), begin(source, replace(config, compile=True), **DROPPING)
    losses = [[tick.loss for tick in go_on(state, source, config)] for state in (plain, compiled)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    for name, tensor in plain.tensors().items():
        torch.testing.assert_close(compiled.tensors()[name], tensor, atol=5e-5, rtol=1e-3)


@pytest.mark.slow
def test_blocks_that_are_computed_again_are_compiled_all_the_same():
    """The compiler would leave out, without a word, what PyTorch's `checkpoint` calls from elsewhere."""
    if not compiler_works(CPU):
        pytest.skip("no compiler")
    source, config = waves(), replace(CONFIG, duration_nimg=32)
    plain = begin(source, config, **ONE_BLOCK)
    torch._dynamo.reset()
    counters.clear()
    compiled = begin(source, replace(config, checkpoint=True, compile=True), **ONE_BLOCK)
    losses = [[tick.loss for tick in go_on(state, source, config)] for state in (plain, compiled)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]
    for name, tensor in plain.tensors().items():
        torch.testing.assert_close(compiled.tensors()[name], tensor, atol=5e-5, rtol=1e-3)


def test_accumulating_four_times_eight_is_thirty_two():
    """The gradients, and the weights after twenty steps, to float32 rounding."""
    source, config = waves(), replace(CONFIG, batch_size=32, duration_nimg=640)
    whole, parts = begin(source, config, **DROPPING), begin(source, config, **DROPPING)
    ticks = go_on(whole, source, config)
    accumulated = go_on(parts, source, replace(config, microbatch=8))
    assert [tick.loss for tick in accumulated] == pytest.approx([tick.loss for tick in ticks], rel=1e-5)
    for name, tensor in whole.tensors().items():
        torch.testing.assert_close(parts.tensors()[name], tensor, atol=1e-5, rtol=1e-4)


class WithPlainDropout(torch.nn.Module):
    """A network of the user's own, with dropout that knows no keys."""

    def __init__(self, net: torch.nn.Module):
        super().__init__()
        self.net, self.dropout, self.config = net, torch.nn.Dropout(0.3), net.config

    @property
    def condition(self):
        return self.net.condition

    def forward(self, z, t, y=None):
        return self.net(self.dropout(z), t, y)


def test_plain_dropout_repeats_itself_when_a_run_is_resumed(tmp_path):
    source = waves()

    def started():
        torch.manual_seed(0)
        net = begin(source).model.net
        return build(Denoiser(WithPlainDropout(net), spec=source.spec), CONFIG, ALONE)

    whole, cut, resumed = started(), started(), started()
    go_on(whole, source)
    go_on(cut, source, until=64)
    cut.save(tmp_path)
    resumed.restore(saved_states(tmp_path)[-1])
    go_on(resumed, source)
    assert equal(whole, resumed)


# Two processes and one


def started(
    folder: Path, arguments: list[Any], numbers: tuple[str, ...] = ("RANK", "WORLD_SIZE", "LOCAL_RANK"), **more: str
) -> list[subprocess.Popen]:
    """Two Python processes, told who they are as torchrun would, or by other `numbers`; they write into `out-RANK`."""
    said = {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()} | more
    processes = []
    for rank in "01":
        environment = {**os.environ, **said, **dict(zip(numbers, (rank, "2", rank), strict=True))}
        with (folder / f"out-{rank}").open("w") as out:
            command = [sys.executable, *map(str, arguments)]
            processes.append(
                subprocess.Popen(command, cwd=folder, env=environment, stdout=out, stderr=subprocess.STDOUT)
            )
    return processes


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def ended(folder: Path, processes: list[subprocess.Popen]) -> list[int]:
    """The exit codes; what the processes wrote is shown where a test fails."""
    codes = [process.wait(timeout=300) for process in processes]
    print(*((folder / f"out-{rank}").read_text() for rank in (0, 1)), sep="\n--\n")
    return codes


def run_together(folder: Path, code: str, *arguments: Any) -> None:
    (folder / "code.py").write_text(PREAMBLE + code)
    assert ended(folder, started(folder, [folder / "code.py", *arguments])) == [0, 0]


PREAMBLE = """
import json, sys, torch
torch.set_num_threads(1)
from dataclasses import replace
from pathlib import Path
from justimage.parallel import join, leave
from test_many import DROPPING, run_until
from test_train import CONFIG, CPU, begin, go_on, waves
processes = join(CPU)
"""
TWENTY_STEPS = """
from safetensors.torch import save_file
from justimage.training.shards import part_of, whole_together
for shard in (False, True):
    config = replace(CONFIG, duration_nimg=320, microbatch=4, shard=shard)
    state = begin(waves(), config, processes, **DROPPING)
    assert state.sharded == shard
    go_on(state, waves(), config)
    parts = {name: part_of(tensor).numel() for name, tensor in state.tensors().items()}
    whole = {name: whole_together(tensor).clone() for name, tensor in state.tensors().items()}
    if processes.first:
        save_file(whole, Path(sys.argv[1]) / f"shard-{shard}")
    if shard:  # about half of each kind of tensors is here
        for kind in ("net/blocks", "ema/0.9/blocks", "optimizer/exp_avg/blocks"):
            share = sum(n for name, n in parts.items() if name.startswith(kind))
            assert 0.45 < share / sum(t.numel() for name, t in whole.items() if name.startswith(kind)) < 0.55, kind
leave(processes)
"""


def test_two_processes_are_one_with_dropout_replicated_and_sharded(tmp_path):
    """Weights, averages and moments after 20 steps, to 1e-5 of the weights' own size."""
    run_together(tmp_path, TWENTY_STEPS, tmp_path)
    config = replace(CONFIG, duration_nimg=320)
    alone = begin(waves(), config, **DROPPING)
    go_on(alone, waves(), config)
    for shard in (False, True):
        found = load_file(tmp_path / f"shard-{shard}")
        assert found.keys() == alone.tensors().keys()
        for name, tensor in alone.tensors().items():
            torch.testing.assert_close(found[name], tensor, atol=1e-5, rtol=1e-5)


def test_a_process_that_fails_alone_says_why_and_waits_for_nobody():
    """The others would find that it has left, and a group of GPUs would wait for them."""
    pulse: Any = SimpleNamespace(found="", gone=lambda seconds: "", stop=lambda: None)
    processes = Processes(1, 2, CPU, None, pulse)
    with pytest.raises(RuntimeError, match="no memory"), naming_the_gone(processes):
        raise RuntimeError("no memory is left\nof 80 GB")
    assert pulse.found == "process 1 has failed: no memory is left"
    leave(processes)


ONE_BLOCK: dict[str, Any] = {**DROPPING, "depth": 1, "context_tokens": 0}  # of one shape, so one graph
COMPILED = """
from torch._dynamo.utils import counters
from test_many import ONE_BLOCK
for shard in (False, True):
    config = replace(CONFIG, duration_nimg=32, checkpoint=True, compile=True, shard=shard)
    state = begin(waves(), config, processes, **ONE_BLOCK)
    counters.clear()
    losses = [tick.loss for tick in go_on(state, waves(), config)]
    assert counters["stats"]["unique_graphs"] == 1 and not counters["graph_break"], (shard, counters)
    torch._dynamo.reset()
    if processes.first:
        (Path(sys.argv[1]) / f"shard-{shard}").write_text(json.dumps(losses))
leave(processes)
"""


@pytest.mark.slow
def test_blocks_of_two_processes_are_compiled_and_computed_again(tmp_path):
    """Replicated and sharded: one graph for a block, and the losses of one process that does neither."""
    if not compiler_works(CPU):
        pytest.skip("no compiler")
    run_together(tmp_path, COMPILED, tmp_path)
    config = replace(CONFIG, duration_nimg=32)
    alone = [tick.loss for tick in go_on(begin(waves(), config, **ONE_BLOCK), waves(), config)]
    for shard in (False, True):
        assert json.loads((tmp_path / f"shard-{shard}").read_text()) == pytest.approx(alone, rel=1e-4)


def run_until(folder: Path, nimg: int, processes: Processes = ALONE, *, shard: bool = False) -> TrainingState:
    """A run with dropout in a folder, from where it stands to nimg."""
    training = replace(CONFIG, duration_nimg=nimg, microbatch=4, shard=shard, label_dropout=0.5)
    report = Report(tick_nimg=16, sample_nimg=160, save_nimg=10_000, preview_steps=1)
    network = small_config((8, 8), num_classes=2, **DROPPING)
    recipe = Recipe(network, training, Sampling(1, guidance=2.0), report=report)
    return train_run(recipe, waves(), folder, processes=processes, console=Console(file=io.StringIO()))


LEG = """
for folder, shard in (("a", sys.argv[2] == "a"), ("b", sys.argv[2] == "b")):
    run_until(Path(sys.argv[1]) / folder, int(sys.argv[3]), processes, shard=shard)
leave(processes)
"""


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "log.jsonl").open()]


def test_two_then_one_then_two_processes_are_an_uninterrupted_run(tmp_path):
    """Each save is read by another number of processes, and by the other of replicated and sharded networks."""
    run_until(tmp_path / "whole", 320)
    run_together(tmp_path, LEG, tmp_path, "a", 128)
    names = {path.name for path in (tmp_path / "a" / "state" / "000000128").iterdir()}
    assert len(names) == 3
    assert "state.safetensors" not in names
    for folder in ("a", "b"):
        run_until(tmp_path / folder, 224)
    run_together(tmp_path, LEG, tmp_path, "b", 320)
    whole = load_file(saved_states(tmp_path / "whole" / "state")[-1] / "state.safetensors")
    for folder in ("a", "b"):
        assert losses(tmp_path / folder) == pytest.approx(losses(tmp_path / "whole"), rel=1e-4)
        for name in ("raw", "ema-0.9", "ema-0.99"):
            files = (tmp_path / run / "weights" / name / "model.safetensors" for run in (folder, "whole"))
            said, told = map(load_file, files)
            for tensor in said:
                torch.testing.assert_close(said[tensor], told[tensor], atol=1e-4, rtol=1e-4)
        picture, expected = (Image.open(tmp_path / run / "samples" / "000000320.png") for run in (folder, "whole"))
        assert np.abs(np.asarray(picture, int) - np.asarray(expected, int)).max() <= 1
        state = run_until(tmp_path / folder, 320)  # read once more, by one process
        for name, tensor in state.tensors().items():
            torch.testing.assert_close(whole[name], tensor, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("damage", ["lost", "cut", "other"])
def test_a_damaged_part_of_a_sharded_state_is_named(tmp_path, damage):
    """Of three files that together hold a state."""
    source = waves()
    state = begin(source)
    go_on(state, source, until=32)
    place = tmp_path / "000000032"
    place.mkdir()
    tensors = state.tensors()
    for number in range(3):
        save_file(dict(list(tensors.items())[number::3]), place / f"shard-0000{number}.safetensors")
    sums = {path.name: sum_of(load_file(path)) for path in place.iterdir()}
    (place / "state.json").write_text(json.dumps({"nimg": 32, "parts": sums}))
    begin(source).restore(place)
    part = place / "shard-00001.safetensors"
    if damage == "lost":
        part.unlink()
    elif damage == "cut":
        part.write_bytes(part.read_bytes()[:-9])
    else:
        part.write_bytes(part.read_bytes()[:-9] + b"\x01" * 9)
    with pytest.raises(ValueError, match=r"is damaged: shard-00001.safetensors"):
        begin(source).restore(place)


# Who comes, and who is gone

SLURM = "SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID"
COMMAND = ["-m", "justimage", "train", "mnist-demo", *TINY, "--run", "run", "--patience.silence", "8"]
COMMAND += shlex.split("--training.schedule constant --network.dropout 0.2 --network.depth 4")


def wait_for_a_state(folder: Path, processes: list[subprocess.Popen]) -> None:
    while not saved_states(folder / "run" / "state"):
        time.sleep(0.05)
        if any(process.poll() is not None for process in processes):
            ended(folder, processes)
            raise AssertionError("the run ended before anything could happen to it")


@pytest.mark.parametrize("stopped", [0, 1])
def test_a_stopped_process_is_named_and_the_same_command_resumes(tmp_path, stopped):
    """Started by the variables of SLURM. The other process ends within the stated time, and a margin, with code 1."""
    slurm = {"SLURM_JOB_ID": "4711", "SLURM_NNODES": "1", "SLURM_JOB_NODELIST": "somewhere"}
    long = [*COMMAND, "--training.duration-nimg", "64000"]
    processes = started(tmp_path, long, SLURM, **slurm)
    wait_for_a_state(tmp_path, processes)
    processes[stopped].send_signal(signal.SIGSTOP)
    began = time.monotonic()
    assert processes[1 - stopped].wait(timeout=60) == 1
    assert time.monotonic() - began < 8 + 12
    processes[stopped].kill()
    ended(tmp_path, processes)
    told = (tmp_path / f"out-{1 - stopped}").read_text()
    name = f"process {stopped} ({socket.gethostname()}, pid {processes[stopped].pid})"
    assert f"{name} has given no sign of life for" in told
    assert "the same command resumes from the newest state" in told
    assert f"`kill -9 {processes[stopped].pid}`" in told
    nimg = int(saved_states(tmp_path / "run" / "state")[-1].name)
    short = [*COMMAND, "--training.duration-nimg", str(nimg + 640)]
    assert ended(tmp_path, started(tmp_path, short, SLURM, **slurm)) == [0, 0]
    assert f"resumed at nimg = {nimg:,}" in (tmp_path / "out-0").read_text()


def test_a_killed_process_is_named(tmp_path):
    processes = started(tmp_path, [*COMMAND, "--training.duration-nimg", "64000", "--training.shard"])
    wait_for_a_state(tmp_path, processes)
    processes[0].kill()
    began = time.monotonic()
    assert processes[1].wait(timeout=60) == 1
    assert time.monotonic() - began < 20
    ended(tmp_path, processes)
    told = (tmp_path / "out-1").read_text()
    assert f"process 0 ({socket.gethostname()}, pid {processes[0].pid}) has given no sign of life" in told
    assert "Traceback" not in told


@pytest.mark.parametrize(
    ("rank", "message"),
    [
        ("0", "1 of 2 processes came within 1 s; missing: process 1"),
        ("1", "process 1 of 2 on .* has waited 1 s for process 0 at 127.0.0.1:.*, which does not answer"),
    ],
)
def test_a_missing_process_is_named(tmp_path, monkeypatch, capsys, rank, message):
    said = {"RANK": rank, "WORLD_SIZE": "2", "LOCAL_RANK": rank, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    words = [*COMMAND[2:], "--patience.arrival", "1"]
    assert jit_here(*words, cwd=tmp_path, monkeypatch=monkeypatch) == 2
    assert re.search(message, capsys.readouterr().err)
    assert not list(tmp_path.iterdir())


def test_who_a_process_is():
    torchrun = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
    torchrun |= {"MASTER_ADDR": "there", "MASTER_PORT": "29500", "TORCHELASTIC_USE_AGENT_STORE": "True"}
    slurm = {"SLURM_PROCID": "5", "SLURM_NTASKS": "8", "SLURM_LOCALID": "1", "SLURM_JOB_ID": "4711"}
    assert seat_of({}) is None
    assert seat_of({"WORLD_SIZE": "1", **slurm}) is None  # torchrun inside of srun
    assert seat_of(slurm | {"SLURM_NTASKS": "1"}) is None
    assert seat_of(torchrun | slurm) == seat_of(torchrun) == Seat(5, 8, 1, 4, "there", 29500, True)
    hosts = {
        "node[003-005,007],gpu1": "node003",
        "gpu1,node[1-2]": "gpu1",
        "a[01,03]-ib": "a01-ib",
        "gpu-3": "gpu-3",
    }
    for listed, host in hosts.items():
        seat = seat_of(slurm | {"SLURM_JOB_NODELIST": listed, "SLURM_NNODES": "2"})
        assert seat == Seat(5, 8, 1, 0, host, 20_000 + 4711 * 7 % 12_000, False), listed
    assert seat_of(slurm | {"SLURM_LAUNCH_NODE_IPADDR": "10.0.0.7"}) == replace(seat, address="10.0.0.7")  # type: ignore[type-var]
    own = seat_of(slurm | {"MASTER_ADDR": "mine", "MASTER_PORT": "7"})
    assert own is not None
    assert (own.address, own.port) == ("mine", 7)
    with pytest.raises(ValueError, match="RANK is not set; start the processes with torchrun"):
        seat_of({"WORLD_SIZE": "8"})
    with pytest.raises(ValueError, match="SLURM_NTASKS is 'x', not a number"):
        seat_of(slurm | {"SLURM_NTASKS": "x"})
    with pytest.raises(ValueError, match="RANK is 8, and WORLD_SIZE is 8: the processes are 0 to 7"):
        seat_of(torchrun | {"RANK": "8"})


def test_fewer_devices_than_processes_are_named():
    third = Seat(2, 4, 2, 4, "there", 1, False)
    with pytest.raises(ValueError, match=r"4 processes on .*, but it has 2 GPUs .*; start at most 2 there"):
        device_of(third, "cuda", 2)
    assert device_of(third, "cuda", 4) == torch.device("cuda", 2)
    assert device_of(replace(third, local_world=0), "cuda", 1) == torch.device("cuda", 0)  # srun --gpus-per-task 1
    assert device_of(third, "cpu", 0) == CPU


def met(*of_each: tuple[str, str]) -> list[Any]:
    """What each process of (device, refusal) gets from meeting the others in one store: who they are, or an error."""
    store, found = dist.HashStore(), [None] * len(of_each)  # pyright: ignore[reportPrivateImportUsage]

    def come(rank: int) -> None:
        try:
            found[rank] = meet(Seat(rank, len(of_each), rank, 0, "", 0, False), store, *of_each[rank], 20)  # type: ignore[arg-type]
        except ValueError as error:
            found[rank] = str(error)  # type: ignore[assignment]

    threads = [threading.Thread(target=come, args=(rank,)) for rank in range(len(of_each))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def test_one_refusal_is_everyones():
    """Processes that refuse, or share a GPU, are told by all of them, and nobody waits."""
    assert [each["pid"] for each in met(("", ""), ("", ""))[1]] == [os.getpid()] * 2
    assert met(("", "too few GPUs"), ("", "")) == ["too few GPUs", "process 0 refuses: too few GPUs"]
    first, second = met(("GPU-1", ""), ("GPU-1", ""))
    assert first == second
    assert "processes 0 and 1 have the same GPU" in first


def test_signs_of_life(capsys):
    """Two processes of which one stops, and before that waits for the other, as their threads see it."""
    store, told = dist.HashStore(), []  # pyright: ignore[reportPrivateImportUsage]
    members = [{"host": "here", "pid": 11}, {"host": "there", "pid": 22}]
    first, second = (Pulse(store, members, rank, 1.0, end=told.append) for rank in (0, 1))
    first.nimg, first.entered = 320, 8
    second.nimg, second.entered = 320, 7
    time.sleep(5 * 1.0 + 1)
    said = capsys.readouterr().err
    assert "the others wait for process 1 (there, pid 22); all processes are alive" in said
    assert "process 0 (here, pid 11) is at nimg = 320, in " in said
    assert not told
    assert first.gone(1.0) == ""
    second.stop()
    assert "process 1 (there, pid 22) has ended; it was at nimg = 320" in first.gone(2)
    time.sleep(1.5)
    assert len(told) == 1
    assert "process 1 (there, pid 22)" in told[0]
    first.stop()


@pytest.mark.slow
def test_the_rehearsal_of_the_page_about_clusters(tmp_path):
    """Its commands, as they stand there."""
    text = (ROOT / "docs" / "clusters.md").read_text().partition("## Rehearsal")[2]
    commands = "".join(re.findall(r"```bash\n(.*?)```", text, re.DOTALL))
    assert commands.count("jit train") == 1
    jit = tmp_path / "bin" / "jit"
    jit.parent.mkdir()
    jit.write_text(f'#!/bin/sh\nexec {sys.executable} -m justimage "$@"\n')
    jit.chmod(0o755)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PATH": f"{jit.parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-euc", commands], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900
    )
    print(done.stdout, done.stderr)
    assert done.returncode == 0
    assert "process 1 (" in done.stderr
    assert "the first process ended with 1" in done.stdout
    assert done.stdout.count("resumed at nimg") == 2
    ticks = [json.loads(line)["nimg"] for line in (tmp_path / "rehearsal" / "log.jsonl").open()]
    assert ticks == list(range(640, 9601, 640))
