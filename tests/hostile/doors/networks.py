"""What the doors of weights, runs, flags and writing share: small data, a small network, and quick commands."""

from pathlib import Path

import numpy as np
import torch

import justimage as ji
from justimage.data.spec import DataSpec

from ..case import Rng

# A training of two steps in a fraction of a second, of a network that is as small as the recipe allows.
TRAIN: str = (
    "train mnist-demo --data set.npz --run out --device cpu --minutes 0.1 --data-options.workers 1 "
    "--network.patch 4 --network.width 16 --network.depth 2 --network.heads 2 --network.bottleneck 4 "
    "--network.context-start 1 --training.schedule constant --training.batch-size 2 --training.duration-nimg 4 "
    "--training.warmup-nimg 0 --training.precision float32 --training.ema-decays 0.9 "
    "--report.tick-nimg 2 --report.save-nimg 4 --report.sample-nimg 4 --report.preview-steps 1 "
    "--report.evaluate-nimg 0"
)
SAMPLE = "sample set --count 1 --steps 2 --device cpu --precision float32 --out out"


def data(rng: Rng, count: int = 6) -> None:
    """Samples with labels in set.npz."""
    x = rng.integers(0, 256, (count, 1, 8, 8), np.uint8)
    np.savez("set.npz", x=x, y=np.arange(count) % 3)


def model(rng: Rng) -> ji.Denoiser:
    """A small network with random weights, of which the official layout knows every part."""
    config = ji.JiTConfig(
        size=(8, 8), patch=(4, 4), channels=3, num_classes=3, width=16, depth=2, heads=2, bottleneck=4,
        context_tokens=2, context_start=1,
    )  # fmt: skip
    net = ji.JiT(config)
    generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_(std=0.1, generator=generator)
    spec = DataSpec.pixels((8, 8), 3, ("ant", "bee", "cow"))
    return ji.Denoiser(net, spec=spec, sampling=ji.Sampling(steps=2, guidance=1.5)).eval()


def weights(rng: Rng) -> dict[str, torch.Tensor]:
    """A weights folder set/ -> its tensors."""
    made = model(rng)
    made.save_pretrained("set")
    return {name: tensor.clone() for name, tensor in made.net.state_dict().items()}


def read_weights(path: str) -> dict[str, torch.Tensor]:
    """The tensors of a weights folder."""
    from safetensors.torch import load_file

    return load_file(Path(path) / "model.safetensors")


def same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> str:
    """What differs between two sets of tensors, or nothing."""
    if found.keys() != wanted.keys():
        return f"other tensors: {', '.join(sorted(found.keys() ^ wanted.keys())[:3])}"
    other = [name for name in wanted if not torch.equal(found[name], wanted[name])]
    return f"{len(other)} of {len(wanted)} tensors have other values" if other else ""
