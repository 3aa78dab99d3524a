"""Why a network should predict x: the toy experiment of Fig. 2 (arXiv 2511.13720), and the same with digits.

Data lie near a surface of few dimensions; noise fills all of them. A network narrower than its data can carry the data,
but not the noise: it can predict x, and neither eps nor v, although the loss is in v for all of them. Trains fifteen
small networks in about a minute on two CPU cores, says what they draw, and writes why_x.png into the folder given, or
runs/why_x. Needs mlxtend and matplotlib, of the extras demo and eval.
"""

import sys
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from matplotlib.figure import Figure

import justimage as ji

Space = Literal["x", "eps", "v"]
SHOWN: dict[Space | None, str] = {None: "the data", "x": "predicting x", "eps": "predicting ε", "v": "predicting v"}
DIMENSIONS = (2, 8, 16, 512)
POINTS, FRAME = 600, 3.0  # drawn of each spiral, whose radius is 2; and shown, to each side
SMALL = replace(ji.RECIPES["toy"].training, batch_size=128, lr=3e-3, schedule="cosine", precision="float32")
TOY = replace(SMALL, duration_nimg=64_000, times=ji.LogitNormal(0.7, 1.2))  # with those for images, x collapses
IMAGES = replace(SMALL, duration_nimg=51_200, times=ji.LogitNormal())


def spiral(dimension: int) -> tuple[ji.Arrays, np.ndarray]:
    """Points x^ (N, 2) of a spiral, buried as x = P x^ (N, 1, D), and P (D, 2), whose columns are orthonormal."""
    angle = 2.5 * np.pi * np.sqrt(np.random.default_rng(0).uniform(0.1, 1, 4096))
    plane = 2 * angle[:, None] / (2.5 * np.pi) * np.stack([np.cos(angle), np.sin(angle)], 1)
    projection = np.linalg.qr(np.random.default_rng(1).normal(size=(dimension, 2)))[0]
    source = ji.Arrays((plane @ projection.T).astype(np.float32)[:, None])
    source.spec = replace(source.spec, mean=(0.0,), scale=(1.0,))  # the paper's data are not scaled
    return source, projection


def drawn(net: torch.nn.Module, space: Space, source: ji.Source, how: ji.Training, count: int, labels=None):
    """So many samples of a network, once it has learnt to predict `space`, with its loss in v."""
    model = ji.Denoiser(net, space=space, spec=source.spec, sampling=ji.Sampling(25, "heun", 2.0, final="x"))
    state = ji.build(model, how)
    for _ in ji.train(state, source, ji.flow_matching(model, how), how, tick_nimg=how.duration_nimg):
        pass
    return model.sample(labels, range(count), raw=False)


def points(dimension: int, space: Space | None) -> torch.Tensor:
    """Points (POINTS, D) of a spiral, or of a toy network that has learnt it."""
    source, _ = spiral(dimension)
    if space is None:
        return torch.from_numpy(source.x[:POINTS, 0])
    return drawn(ji.ToyMLP(ji.MLPConfig((dimension,))), space, source, TOY, POINTS)[:, 0]


def show_spirals(figure, pool: Executor) -> dict[tuple[int, Space | None], float]:
    """The median distance of the points to the spiral, in D dimensions."""
    figure.suptitle("A spiral buried in D dimensions; networks 256 wide predict data x, noise ε or velocity v = x - ε")
    panels, cells, far = figure.subplots(len(DIMENSIONS), len(SHOWN)), list(product(DIMENSIONS, SHOWN)), {}
    for panel, cell, x in zip(panels.flat, cells, pool.map(points, *zip(*cells, strict=True)), strict=True):
        (dimension, space), (source, projection) = cell, spiral(cell[0])
        plane = x.numpy() @ projection
        outside = (abs(plane) > FRAME).any(1).mean()
        far[cell] = float(torch.cdist(x, torch.from_numpy(source.x[:, 0])).amin(1).median())
        panel.scatter(*plane.T, s=2, color="tab:blue" if space else "black")
        panel.set(xticks=[], yticks=[], xlim=(-FRAME, FRAME), ylim=(-FRAME, FRAME), aspect="equal")
        panel.set(title=SHOWN[space] if dimension == DIMENSIONS[0] else "", ylabel="" if space else f"D = {dimension}")
        panel.set_xlabel(f"{far[cell]:,.2f} from the spiral")
        panel.text(0, 0, f"{outside:.0%} lie outside" if outside > 0.1 else "", ha="center")
        print(f"D = {dimension}, {SHOWN[space]}: {far[cell]:,.2f} from the spiral", flush=True)
    return far


def roughness(x: torch.Tensor) -> float:
    """The mean difference of neighbouring pixels; images (N, 1, h, w) are shown from -1 to 1."""
    return float((x.diff(dim=-1).abs().mean() + x.diff(dim=-2).abs().mean()) / 2)


def show_digits(figure, pool: Executor) -> dict[Space | None, float]:
    """The roughness of digits."""
    figure.suptitle("Digits, all 28 x 28 = 784 pixels in one patch; networks 96 wide")
    source = ji.open_source("mnist", (28, 28), 1)
    assert source.indexed is True  # as everything but a stream is
    config = ji.JiTConfig((28, 28), (28, 28), 1, 10, width=96, depth=2, heads=4, bottleneck=0, context_tokens=0)
    samples = [source[k] for k in range(0, len(source), 200)]  # 25, in the order of their classes

    def digits(space: Space | None) -> torch.Tensor:
        if space is None:
            return source.spec.encode(torch.from_numpy(np.stack([x for x, _ in samples])))
        labels = [int(y["labels"]) for _, y in samples]
        return drawn(ji.JiT(config), space, source, IMAGES, len(labels), labels)

    rough = {}
    for panel, space, x in zip(figure.subplots(1, len(SHOWN)), SHOWN, pool.map(digits, SHOWN), strict=True):
        rough[space] = roughness(x)
        panel.imshow(ji.grid(x, source.spec, 5, raw=False))
        panel.set(title=SHOWN[space], xlabel=f"roughness {rough[space]:,.2f}", xticks=[], yticks=[])
        print(f"digits, {SHOWN[space]}: neighbouring pixels differ by {rough[space]:,.2f}", flush=True)
    return rough


torch.set_num_threads(1)  # networks so small gain more from being trained two at a time
figure: Any = Figure(figsize=(9, 12), layout="constrained")
above, below = figure.subfigures(2, 1, height_ratios=(3.6, 1))
with ThreadPoolExecutor(2) as pool:
    far, rough = show_spirals(above, pool), show_digits(below, pool)
folder = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/why_x")
folder.mkdir(parents=True, exist_ok=True)
figure.savefig(folder / "why_x.png", dpi=110)
print(
    "Every prediction finds the spiral in 2 dimensions; in 512 dimensions only x does, and only x draws clean digits:"
)
print(f"the others leave noise, which a narrow network cannot carry. The picture is {folder / 'why_x.png'}")
assert max(far[2, "x"], far[2, "eps"], far[2, "v"]) < 0.2
assert 50 * far[512, "x"] < min(far[512, "eps"], far[512, "v"])
assert rough["x"] < 1.5 * rough[None]
assert 4 * rough["x"] < min(rough["eps"], rough["v"])
