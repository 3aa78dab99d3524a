"""How fast data are packed and read, per core, against what plain decoding allows.

    python benchmarks/data.py PHOTOS.tar

Writes benchmarks/results/data-DEVICE.json. Packing is compared with decoding and cropping the same photographs by
PIL alone, in one thread, nothing written; reading is of random batches of a pack that fits into memory, as the loader
reads them. All in CPU time of this process, so that what else the machine does counts less; the best of some rounds.
"""

import io
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import tyro
from machine import facts, result_path
from PIL import Image

from justimage.data.array_files import digits
from justimage.data.files import Files, find_files
from justimage.data.images import Images
from justimage.data.loader import Buffers, batches, read
from justimage.data.packed import Packed
from justimage.data.packing import pack
from justimage.data.spec import Item, Source
from justimage.parallel import Processes
from justimage.runs.recipes import RECIPES
from justimage.training.build import build
from justimage.training.loop import train
from justimage.training.loss import flow_matching

SIZE = (256, 256)


@dataclass(frozen=True)
class Options:
    """What is read."""

    photographs: tyro.conf.Positional[Path]
    """A folder, zip or tar of photographs."""
    rounds: int = 5
    """Of which the fastest counts."""
    samples: int = 4096
    """Of the pack that is read: 0.8 GB at 256x256."""


def plain(files: Files, index: int) -> np.ndarray:
    """What the official data pipeline does to an image: decode, convert, ADM's crop. Written out again, with PIL alone.

    (h, w, 3) uint8
    """
    with files.open(index) as file, Image.open(file) as image:
        image = image.convert("RGB")
    while min(image.size) >= 2 * SIZE[0]:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = SIZE[0] / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    top, left = (image.height - SIZE[0]) // 2, (image.width - SIZE[1]) // 2
    return np.asarray(image)[top : top + SIZE[0], left : left + SIZE[1]]


def rates(count: int, rounds: int, calls: dict[str, Callable[[], object]]) -> dict[str, dict[str, float]]:
    """Samples per second of CPU time and of the clock, of the fastest of some rounds taken in turn."""
    best = {name: {"per_core": 0.0, "per_second": 0.0} for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            began, used = time.perf_counter(), cpu_time()
            call()
            took, used = time.perf_counter() - began, cpu_time() - used
            best[name]["per_core"] = max(best[name]["per_core"], round(count / used, 1))
            best[name]["per_second"] = max(best[name]["per_second"], round(count / took, 1))
    return best


def cpu_time() -> float:
    """Seconds of CPU time of this process and of its children that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def packing(options: Options, folder: Path) -> dict:
    """Plain decoding, and packing with 1 thread and with one for each core."""
    files = find_files([options.photographs])
    raw = [files.open(i).read() for i in range(len(files.names))]  # both from memory
    in_memory = replace(files, place="memory", open=lambda i: io.BytesIO(raw[i]))

    def packed_by(workers: int) -> Callable[[], object]:
        def run() -> None:
            source = Images(in_memory, SIZE, memory_gb=0)
            shutil.rmtree(folder / "photos", ignore_errors=True)
            pack(source, folder / "photos", workers=workers)

        return run

    def decoded_by(workers: int) -> Callable[[], object]:
        def run() -> None:
            with ThreadPoolExecutor(workers) as pool:
                for _ in pool.map(lambda i: plain(in_memory, i), range(len(raw))):
                    pass

        return run

    def decoded_apart(processes: int) -> Callable[[], object]:
        """Each process has its part of the photographs, no interpreter is shared: what this machine's cores give."""

        def run() -> None:
            parts = np.array_split(np.arange(len(raw)), processes)
            children = []
            for part in parts:
                child = os.fork()
                if child == 0:
                    for i in part.tolist():
                        plain(in_memory, i)
                    os._exit(0)
                children.append(child)
            for child in children:
                os.waitpid(child, 0)

        return run

    cores = os.cpu_count() or 1
    calls = {"decoding, 1 thread": decoded_by(1), "packing, 1 thread": packed_by(1)}
    if cores > 1:
        calls |= {f"decoding, {cores} threads": decoded_by(cores), f"packing, {cores} threads": packed_by(cores)}
        calls |= {f"decoding, {cores} processes": decoded_apart(cores)}
    found = rates(len(raw), options.rounds, calls)
    one, many = found["packing, 1 thread"], found[f"packing, {cores} threads" if cores > 1 else "packing, 1 thread"]
    return {
        "photographs": len(raw),
        "images": found,
        "packing_over_decoding_one_core": round(one["per_core"] / found["decoding, 1 thread"]["per_core"], 3),
        "packing_speed_up": round(many["per_second"] / one["per_second"], 2),
        "speed_up_of_separate_processes_decoding": round(
            found[f"decoding, {cores} processes" if cores > 1 else "decoding, 1 thread"]["per_second"]
            / found["decoding, 1 thread"]["per_second"],
            2,
        ),
        "cores": cores,
    }


class Noise(Source):
    """Random images, with labels."""

    def __init__(self, photos: Packed, count: int):
        self.spec, self.photos, self.count = photos.spec, photos, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Item:
        raw, y = self.photos[index % len(self.photos)]
        return np.roll(raw, index, axis=-1), y

    def describe(self) -> str:
        return "photographs, shifted"

    def fingerprint(self) -> str:
        return f"shifted {self.count}"


def reading(options: Options, folder: Path) -> dict:
    """Random batches of a pack: in this thread, and through the loader's threads."""
    small = pack(Noise(Packed(folder / "photos"), options.samples), folder / "many", workers=2, shard_mb=256)
    batch, steps = 256, options.samples // 256
    for i in range(len(small)):  # into the page cache
        small[i][0].sum()

    buffers = Buffers()

    def directly() -> None:
        for step in range(steps):
            read(small, range(step * batch, (step + 1) * batch), seed=0, buffers=buffers)

    def ahead(workers: int) -> Callable[[], object]:
        def run() -> None:
            reader = batches(small, seed=0, start=0, batch_size=batch, workers=workers)
            for _ in range(steps):
                next(reader)
            reader.close()

        return run

    calls = {"read, 1 thread": directly, "loader, 1 worker": ahead(1)}
    return {
        "samples": f"{options.samples} of {'x'.join(map(str, small.spec.shape))} uint8",
        "batch": batch,
        "reading": rates(steps * batch, options.rounds, calls),
        "copying_gb_per_second": copying(),
    }


def waiting(folder: Path) -> dict:
    """Share of the time that the smallest recipe, mnist-demo, waits on data, read from a pack of its digits."""
    recipe = RECIPES["mnist-demo"]
    source = pack(digits(), folder / "digits", workers=2)
    recipe = recipe.fitted_to(source.spec)
    training = replace(recipe.training, duration_nimg=64 * recipe.training.batch_size)
    model = recipe.model(source.spec)
    state = build(model, training, Processes())
    ticks = train(state, source, flow_matching(model, training), training, tick_nimg=16 * training.batch_size)
    found = [tick for tick in ticks][1:]
    return {
        "waiting_on_data_mnist_demo": round(float(np.median([tick.waiting_on_data for tick in found])), 5),
        "img_per_second_mnist_demo": round(float(np.median([tick.img_per_second for tick in found])), 1),
    }


def copying() -> float:
    """Speed of copying an array that fits into no cache, GB/s: what memory allows one core."""
    source, target = np.ones(2**28, np.uint8), np.ones(2**28, np.uint8)
    best = np.inf
    for _ in range(5):
        began = time.perf_counter()
        np.copyto(target, source)
        best = min(best, time.perf_counter() - began)
    return round(2**28 / best / 1e9, 2)


def main(options: Options) -> None:
    """Measure, and write the file."""
    torch.set_num_threads(1)
    device = torch.device("cpu")
    with tempfile.TemporaryDirectory() as folder:
        result = {
            "what": "packing and reading 256x256 images",
            **facts(device),
            "pillow": Image.__version__,
            **packing(options, Path(folder)),
            **reading(options, Path(folder)),
            **waiting(Path(folder)),
        }
    path = result_path("data", device, ".json")
    path.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))
    print(f"wrote {path}")


if __name__ == "__main__":
    main(tyro.cli(Options))
