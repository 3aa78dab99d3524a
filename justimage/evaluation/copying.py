"""Is it copying? Distances from samples to their nearest training samples, against those of data it has not seen."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn.functional import adaptive_avg_pool1d, adaptive_avg_pool2d, adaptive_avg_pool3d

from justimage.data.spec import DataSpec, evenly

LONGEST = 16  # of each axis of a reduced sample
NEIGHBOURS = 50  # with whose distances the nearest one's is compared
NEAR = 0.01  # a sample is taken for a copy where only this share of unseen data comes as near to one training sample
STAND_INS = 1000  # training samples that stand for unseen data, where there are none
POOLS: tuple[Any, ...] = (adaptive_avg_pool1d, adaptive_avg_pool2d, adaptive_avg_pool3d)


@dataclass(frozen=True)
class Copying:
    """What was found. A ratio is the distance to the nearest training sample over the mean of those to the NEIGHBOURS
    nearest ones: 0 for a copy, near 1 for what lies between many, such as a blurred mean (section 4.2 of Carlini et
    al., arXiv 2301.13188)."""

    share: float
    """Of the samples, those with as low a ratio as only NEAR of unseen data have: NEAR where nothing is copied, 1 where
    all is."""
    error: float
    """Standard error of the share."""
    auc: float
    """The probability that a sample has a lower ratio than unseen data; 0.5 where nothing is copied (the statistic of
    Mann and Whitney, as in Meehan et al., arXiv 2004.05675)."""
    distances: np.ndarray
    """(N,) root mean square of the difference to the nearest training sample, in reduced model values."""
    nearest: np.ndarray
    """(N,) which one that is."""
    ratios: np.ndarray
    """(N,)."""
    unseen: np.ndarray
    """(M,) ratios of unseen data."""


def reduced(raw: np.ndarray, spec: DataSpec) -> np.ndarray:
    """Raw samples (N, C, *S) -> (N, F) float32: model values, averaged to at most LONGEST along each axis."""
    x = spec.encode(torch.from_numpy(np.array(raw)))  # a copy: what is mapped from a disk is read-only
    size = tuple(min(length, LONGEST) for length in spec.size)
    if size != spec.size and len(x):
        x = POOLS[len(size) - 1](x, size)
    return x.flatten(1).numpy() if len(x) else np.zeros((0, x.shape[1] * int(np.prod(size))), np.float32)


def copying(samples: np.ndarray, training: np.ndarray, unseen: np.ndarray | None = None) -> Copying:
    """Compare samples (N, F) with training data (T, F), all reduced; unseen: data that were not trained on (M, F).

    Without unseen data, as many of the training data stand for them, each left out of the training data in its turn:
    what was drawn from the same distribution, and is not looked for in itself. Raises ValueError for fewer than two.
    """
    if len(training) < 2 or not len(samples):
        raise ValueError(
            f"copies of {len(samples)} samples among {len(training)} training samples cannot be looked for"
        )
    distances, nearest, ratios = nearest_of(samples, training)
    if unseen is None:
        own = evenly(len(training), STAND_INS)
        _, _, apart = nearest_of(training[own], training, leave_out=own)
    else:
        _, _, apart = nearest_of(unseen, training)
    # As low counts too: where data hold the same sample twice, that ratio is 0.
    share = float((ratios <= np.quantile(apart, NEAR)).mean())
    order = np.sort(apart)
    below, upto = np.searchsorted(order, ratios, "left"), np.searchsorted(order, ratios, "right")
    auc = float(1 - ((below + upto) / 2).mean() / len(apart))
    error = float(np.sqrt(max(share * (1 - share), NEAR * (1 - NEAR)) / len(distances)))
    return Copying(share, error, auc, distances, nearest, ratios, apart)


def nearest_of(
    samples: np.ndarray, among: np.ndarray, leave_out: np.ndarray | None = None, block: int = 8192
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each sample (N, F): distance and index of the nearest of `among` (T, F), and the ratio; see `Copying`.

    leave_out: for each sample, one of `among` that does not count.
    """
    x = torch.from_numpy(np.array(samples, np.float32))
    few = min(NEIGHBOURS, len(among) - (leave_out is not None))
    best, where = torch.full((len(x), few), torch.inf), torch.zeros((len(x), few), dtype=torch.long)
    for start in range(0, len(among), block):
        part = torch.from_numpy(np.array(among[start : start + block], np.float32))
        squares = (x.square().sum(1, keepdim=True) + part.square().sum(1) - 2 * x @ part.T).clamp_(min=0)
        if leave_out is not None:
            rows = np.flatnonzero((leave_out >= start) & (leave_out < start + len(part)))
            squares[torch.from_numpy(rows), torch.from_numpy(leave_out[rows] - start)] = torch.inf
        least, index = squares.topk(min(few, len(part)), dim=1, largest=False)
        best, order = torch.cat((best, least), 1).topk(few, dim=1, largest=False)
        where = torch.cat((where, index + start), 1).gather(1, order)
    nearest = where[:, 0].numpy()
    # The product's rounding hides small distances; those to the nearest are computed anew.
    exact = np.sqrt(np.square(samples - among[nearest]).mean(1, dtype=np.float64))
    around = (best / x.shape[1]).sqrt().mean(1).double().numpy()
    return exact, nearest, exact / np.maximum(around, np.finfo(np.float32).tiny)
