"""A glance at data before training: the values that the network sees, and whether labels say anything about them."""

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from justimage.data.spec import Item, Source, Unreadable, UnreadableSample, evenly, looked_at
from justimage.training.grid import linear_losses

COARSE = 8  # places along each axis at which labels are looked for
MOST_NUMBERS = 2**26  # that are held in memory at once
MOST_DIRECTIONS = 32  # in which samples differ most, among which labels are looked for
POOLS: dict[int, Any] = {1: F.adaptive_avg_pool1d, 2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}


@dataclass(frozen=True)
class Glance:
    """Model values of a few samples, evenly spread."""

    count: int
    of: int
    """Samples that there are."""
    low: float
    high: float
    mean: tuple[float, ...]
    """Per channel."""
    std: tuple[float, ...]
    """Per channel."""
    linear: tuple[float, ...]
    """The loss at each time of the grid of one who knows the mean and spread of each number, and nothing else."""
    guessed: float | None = None
    """Share of labels that a linear discriminant of coarse samples gets right, on samples that it was not made of."""
    chance: float | None = None
    """The same for labels that have been dealt out anew."""
    chance_error: float | None = None
    """One standard deviation of that."""


def some_of(source: Source, most: int) -> list[Item]:
    """The readable ones of at most so many samples, evenly spread. Raises UnreadableSample where there are none."""
    looks = [source.look(i) for i in evenly(len(source), most).tolist()]
    items = [each for each in looks if not isinstance(each, Unreadable)]
    if not items:
        raise UnreadableSample(f"none of {len(looks)} samples of {source.describe()} can be read")
    return items


def glance_at(source: Source, noise_scale: float) -> Glance:
    """Look at as many samples as `content` does, which reads the same ones; at fewer that are very large."""
    most = min(looked_at(source.spec, len(source)), max(2, MOST_NUMBERS // prod(source.spec.shape)))
    items = some_of(source, most)
    x = source.spec.encode(torch.stack([torch.from_numpy(raw.copy()) for raw, _ in items]))
    flat = x.transpose(0, 1).flatten(1)
    values = {"low": float(x.min()), "high": float(x.max())}
    guesses = {}
    if source.spec.classes:
        guesses = _guesses(x, np.array([int(y["labels"]) for _, y in items]))
    return Glance(
        len(x),
        len(source),
        **values,
        mean=tuple(flat.mean(1).tolist()),
        std=tuple(flat.std(1).tolist()),
        linear=tuple(linear_losses(x.var(0) if len(x) > 1 else torch.zeros_like(x[0]), noise_scale)),
        **guesses,
    )


def _guesses(x: Tensor, labels: np.ndarray, deals: int = 10) -> dict[str, float]:
    """How many labels a linear discriminant gets right, among coarse versions of the samples; and by chance.

    It is made of one half and asked about the other, and the other way round. Labels dealt out anew say what chance
    would do, whatever the sizes of the classes. Nothing where no class is in both halves.
    """
    axes = x.ndim - 2
    size = tuple(min(COARSE, length) for length in x.shape[2:])
    coarse = POOLS[axes](x, size if axes > 1 else size[0]).flatten(1).double().numpy()
    order = np.random.default_rng(0).permutation(len(coarse))  # sorted data would put a class into one half
    halves = order[::2], order[1::2]
    if len(halves[1]) < 2 or not set(labels[halves[0]]) & set(labels[halves[1]]):
        return {}
    sides = [(fit, rest, _coordinates(coarse, fit)) for fit, rest in (halves, halves[::-1])]

    def right(labels: np.ndarray) -> float:
        return sum(_discriminant(points, labels, fit, rest) for fit, rest, points in sides) / len(labels)

    generator = np.random.default_rng(1)
    dealt = [right(generator.permutation(labels)) for _ in range(deals)]
    chance = float(np.mean(dealt))
    counted = (chance * (1 - chance) / len(labels)) ** 0.5  # of so many guesses; few deals may differ less by luck
    return {"guessed": right(labels), "chance": chance, "chance_error": max(float(np.std(dealt)), counted)}


def _coordinates(coarse: np.ndarray, fit: np.ndarray) -> np.ndarray:
    """Samples (N, F) along the directions in which those of `fit` differ most, in units of their spread, (N, D)."""
    centred = coarse - coarse[fit].mean(0)
    keep = max(1, min(MOST_DIRECTIONS, len(fit) // 10))
    directions = np.linalg.svd(centred[fit], full_matrices=False)[2][:keep]
    points = centred @ directions.T
    return points / (points[fit].std(0) + 1e-9)


def _discriminant(points: np.ndarray, labels: np.ndarray, fit: np.ndarray, rest: np.ndarray) -> int:
    """How many labels of `rest` are those of the nearest class mean of `fit`, in units of the spread within classes.

    Fisher, The use of multiple measurements in taxonomic problems, 1936.
    """
    classes, which = np.unique(labels[fit], return_inverse=True)
    means = np.stack([points[fit][which == k].mean(0) for k in range(len(classes))])
    width = points.shape[1]
    within = np.cov((points[fit] - means[which]).T).reshape(width, width) + 0.05 * np.eye(width)
    weights = np.linalg.solve(within, means.T)  # (D, classes)
    score = points[rest] @ weights - 0.5 * (means.T * weights).sum(0)
    return int((classes[score.argmax(1)] == labels[rest]).sum())
