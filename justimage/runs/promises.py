"""What each recipe promises: what it is for, its command and hardware, and the number that comes out.

Apart from the recipes, so that the command can list them without importing torch.
"""

from dataclasses import dataclass

IMAGENET_HARDWARE = "8 GPUs (the official code was tested on 8 H200)"


@dataclass(frozen=True)
class Promise:
    """What a recipe is for, what it runs on, and what comes out."""

    what: str
    command: str
    hardware: str
    paper: str = ""
    """The paper's number, if it is the paper's recipe."""
    measured: str = ""
    """Ours, only where measured: with the machine, and the file under benchmarks/results."""


def _imagenet(name: str, size: int, epochs: int, paper: str) -> Promise:
    recipe = f"{name.lower().replace('/', '')}-{size}"
    return Promise(
        what=f"JiT-{name} on ImageNet {size}x{size}, {epochs} epochs, as in the paper",
        command=f"torchrun --nproc-per-node 8 -m justimage train {recipe} --data imagenet",
        hardware=IMAGENET_HARDWARE,
        paper=paper,
    )


# FID-50K with guidance interval: Table 6, and Table 5 for B/64, arXiv 2511.13720. The G models stopped at about 320
# epochs.
PROMISES: dict[str, Promise] = {
    "mnist-demo": Promise(
        what="5,000 real digits in half a minute on two CPU cores; what `make demo` trains",
        command="jit train mnist-demo",
        hardware="a laptop's CPU",
        measured="class agreement 98.8 %, the demo and its evaluation in 35 s on one Xeon core with AMX (demo-mnist-*)",
    ),
    "images": Promise(
        what="a folder of photographs, 64x64, patch 8 (on a GPU try --network.patch 4)",
        command="jit train images --data photos/",
        hardware="one GPU for hours for pictures that pass; minutes on a CPU give colours and layout, no details",
    ),
    "cifar10": Promise(
        what="CIFAR-10, or any folder of small images, 32x32, patch 8 (on a GPU try --network.patch 4)",
        command="jit train cifar10 --data DIR",
        hardware="one GPU for the whole of it; minutes on a CPU show colours and shapes",
        measured="212,800 images in 31 minutes of an EPYC core: Frechet distance 2.75 (hour-cifar10-*)",
    ),
    "cifar10-dit": Promise(
        what="the same with a DiT: the plain transformer that the paper's ingredients start from",
        command="jit train cifar10-dit --data DIR",
        hardware="as cifar10",
    ),
    "cifar10-eps": Promise(
        what="the same predicting the noise, its loss too, as DDPM does (arXiv 2006.11239), on the straight path",
        command="jit train cifar10-eps --data DIR",
        hardware="as cifar10",
    ),
    "cifar10-v": Promise(
        what="the same predicting the velocity, as flow matching and SiT do (arXiv 2210.02747, 2401.08740)",
        command="jit train cifar10-v --data DIR",
        hardware="as cifar10",
    ),
    "cifar10-edm": Promise(
        what="the same inside EDM's pre-conditioner, sigma_data 0.5 (arXiv 2206.00364; Table 10), with the loss in v",
        command="jit train cifar10-edm --data DIR",
        hardware="as cifar10",
    ),
    "cifar10-dae": Promise(
        what="a denoising autoencoder: it learns one noise level (t = 0.31), so it denoises and does not generate",
        command="jit train cifar10-dae --data DIR",
        hardware="as cifar10",
    ),
    "fields": Promise(
        what="weather and other fields in two dimensions, 32x48, patch 8; NetCDF, Zarr or arrays",
        command="jit train fields --data FILE.nc --data-options.crop 32 48",
        hardware="a few minutes on a CPU for one channel",
        measured="ERA5 temperature: trained and 744 fields drawn in 8 minutes on two Xeon cores (examples/weather)",
    ),
    "toy": Promise(
        what="the paper's toy network, five layers on vectors, for arrays (N, 1, D)",
        command="jit train toy --data vectors.npy",
        hardware="a laptop's CPU, for seconds",
    ),
    "b16-256": _imagenet("B/16", 256, 600, "FID 3.66 (200 epochs: 4.37)"),
    "l16-256": _imagenet("L/16", 256, 600, "FID 2.36 (200 epochs: 2.79)"),
    "h16-256": _imagenet("H/16", 256, 600, "FID 1.86 (200 epochs: 2.29)"),
    "g16-256": _imagenet("G/16", 256, 320, "FID 1.82 (200 epochs: 2.15)"),
    "b32-512": _imagenet("B/32", 512, 600, "FID 4.02 (200 epochs: 4.64)"),
    "l32-512": _imagenet("L/32", 512, 600, "FID 2.53 (200 epochs: 3.06)"),
    "h32-512": _imagenet("H/32", 512, 600, "FID 1.94 (200 epochs: 2.51)"),
    "g32-512": _imagenet("G/32", 512, 320, "FID 1.78 (200 epochs: 2.11)"),
    "b64-1024": _imagenet("B/64", 1024, 200, "FID 4.82 (200 epochs)"),
}
