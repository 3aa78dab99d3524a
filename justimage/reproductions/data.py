"""The data of reproductions: images at the size of the network, and points of a plane buried in many dimensions."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from justimage.data.sources import DataOptions, open_source
from justimage.data.spec import DataSpec, Item, Source, StreamSource
from justimage.evaluation.features import resize

Shape = Literal["spiral", "moons", "checkerboard"]


@dataclass(frozen=True)
class Images:
    """Images in the size of the network; smaller or larger than their own, they are resized."""

    path: str = "mnist"
    """`mnist`, the 5,000 digits of the demo; or empty: the data that the user gives."""

    @property
    def given(self) -> bool:
        """Whether they are the user's."""
        return not self.path

    def open(self, size: tuple[int, ...], channels: int, given: str = "") -> Source | StreamSource:
        """The images at a size, resized where they have one of their own. Raises ValueError where there are none."""
        if not self.path and not given:
            raise ValueError("this scale needs --data: a folder or archive of images, or a pack of them")
        source = open_source(self.path or given, size, channels, DataOptions())
        own = source.spec.size
        if own == size or source.indexed is not True:
            return source
        if not source.spec.image or own[0] * size[1] != own[1] * size[0]:
            what = f"{given} has samples {source.spec.shape} of {source.spec.dtype}"
            raise ValueError(f"{what}; images of 8 bits are needed that can be resized to {'x'.join(map(str, size))}")
        return Resized(source, size)


class Resized(Source):
    """Images of another size, made when they are read."""

    def __init__(self, source: Source, size: tuple[int, ...]):
        self.source, self.spec = source, replace(source.spec, size=size)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int, /) -> Item:
        """The sample as training gets it."""
        raw, y = self.source[index]
        return resize(torch.from_numpy(np.array(raw)[None]), self.spec.size)[0].numpy(), y

    def all_labels(self) -> np.ndarray | None:
        """The source's."""
        return self.source.all_labels()

    def describe(self) -> str:
        """What the source says, and the size."""
        return f"{self.source.describe()}, resized to {'x'.join(map(str, self.spec.size))}"

    def fingerprint(self) -> str:
        """Of the source's and of the size."""
        return f"{self.source.fingerprint()}-{'x'.join(map(str, self.spec.size))}"


@dataclass(frozen=True)
class Plane:
    """Points of a plane in D dimensions (section 3.3, arXiv 2511.13720): x = P x^ with P (D, 2), orthogonal columns.

    P is random and fixed. The paper says neither what the points are nor how far they are apart.
    """

    shape: Shape = "spiral"
    scale: float = 1.0
    """Root mean square of a coordinate of the plane."""
    full_rank: float = 0.0
    """Energy of a normal signal in all dimensions outside of the plane, over that of the points in it."""
    count: int = 16_384
    given = False  # they are made here

    def open(self, size: tuple[int, ...], channels: int, given: str = "") -> "Buried":
        """The points in D = size[0] dimensions. Raises ValueError for data of more axes or channels, or given ones."""
        if len(size) != 1 or channels != 1 or given:
            raise ValueError(f"points of a plane are vectors made here, not {channels} x {size}; leave --data away")
        return Buried(self, size[0])


class Buried(Source):
    """The points of a Plane in D dimensions, (1, D) float32, not scaled; `projection` is P (D, 2)."""

    def __init__(self, plane: Plane, dimension: int):
        self.plane = plane
        self.spec = DataSpec((dimension,), ("x",), (0.0,), (1.0,), mirror=None)
        rng = np.random.default_rng(1)
        self.projection = np.linalg.qr(rng.normal(size=(dimension, 2)))[0] if dimension > 2 else np.eye(2)
        self.points = self._points(plane.count, 0)  # (N, 2)
        self.x = self.points @ self.projection.T
        if plane.full_rank:
            noise = rng.normal(size=self.x.shape)
            noise -= noise @ self.projection @ self.projection.T
            noise *= np.sqrt(plane.full_rank * (self.points**2).sum(1).mean() / (noise**2).sum(1).mean())
            self.x += noise
        self.x = self.x.astype(np.float32)[:, None]

    def _points(self, count: int, seed: int) -> np.ndarray:
        make = SHAPES[self.plane.shape]
        many = make(2**16, np.random.default_rng(3))  # their mean and deviation, the same for any count and seed
        points = make(count, np.random.default_rng(seed)) - many.mean(0)
        return points * (self.plane.scale / float((many - many.mean(0)).std()))

    def unseen(self, count: int) -> np.ndarray:
        """Other points of the same plane, in its two coordinates, (N, 2)."""
        return self._points(count, 2)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int, /) -> Item:
        """The vector (1, D), and nothing else."""
        return self.x[index], {}

    def read(self, start: int, stop: int) -> list[Item]:
        """Several at once."""
        return [(x, {}) for x in self.x[start:stop]]

    def describe(self) -> str:
        """What is buried, and where."""
        more = f", full-rank energy {self.plane.full_rank:g}" if self.plane.full_rank else ""
        return f"{len(self):,} points of {self.plane.shape} in {self.spec.size[0]} dimensions{more}"

    def fingerprint(self) -> str:
        """The plane in words."""
        return f"{self.plane} in {self.spec.size[0]}"


def spiral(count: int, rng: np.random.Generator) -> np.ndarray:
    """Points on an Archimedean spiral of two turns, evenly along it, (N, 2)."""
    angle = 4 * np.pi * np.sqrt(rng.uniform(0.02, 1, count))
    return angle[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)


def moons(count: int, rng: np.random.Generator) -> np.ndarray:
    """Points on two half circles that reach into each other, (N, 2)."""
    angle, second = rng.uniform(0, np.pi, count), rng.uniform(size=count) < 0.5
    upper = np.stack([np.cos(angle), np.sin(angle)], 1)
    return np.where(second[:, None], (1.0, 0.5) - upper, upper)


def checkerboard(count: int, rng: np.random.Generator) -> np.ndarray:
    """Points within the eight dark squares of a board of four by four, (N, 2)."""
    row = rng.integers(0, 4, count)
    column = 2 * rng.integers(0, 2, count) + row % 2
    return np.stack([column, row], 1) + rng.uniform(size=(count, 2))


SHAPES: dict[Shape, Callable[[int, np.random.Generator], np.ndarray]] = {
    "spiral": spiral,
    "moons": moons,
    "checkerboard": checkerboard,
}


def on_plane(x: Tensor, projection: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Vectors (N, 1, D) -> their coordinates in the plane (N, 2), and their distance from it (N,)."""
    rows = x[:, 0].cpu().double().numpy()
    inside = rows @ projection
    return inside, np.linalg.norm(rows - inside @ projection.T, axis=1)
