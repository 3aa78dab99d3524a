"""The pictures of a result: samples of all cells, numbers as lines, the toy's points, and curves of the loss."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
import torch

from justimage.data.spec import DataSpec
from justimage.disk.whole import whole
from justimage.evaluation.features import resize
from justimage.evaluation.plots import pyplot
from justimage.reproductions.family import Arrays, Family
from justimage.reproductions.result import in_words
from justimage.reproductions.verdict import Row
from justimage.sampling.pictures import grid, save

MOST_SHOWN = 112  # pixels along a side of a sample in a picture
DASHES = ("-", "--", ":", "-.")


@dataclass(frozen=True)
class Samples:
    """Samples of every cell of a part, the first seed's: a row for each, with its number."""

    name: str
    part: str
    columns: int = 10
    column_titles: tuple[str, ...] = ()

    def __call__(self, family: Family, rows: Sequence[Row], arrays: Arrays, path: Path) -> None:
        """Draw it."""
        mine = [row for row in rows if row.part == self.part]
        some = [(row, found["shown"]) for row in mine for found in [arrays(row)] if "shown" in found]
        if not some:
            figure = pyplot().figure(figsize=(4, 1))
            figure.text(0.5, 0.5, "no samples: all trainings have failed", ha="center")
            _write(figure, path)
            return
        largest = max((shown.shape[1:] for _, shown in some), key=np.prod)
        largest = (largest[0], *(min(length, MOST_SHOWN) for length in largest[1:]))
        images, titles = [], []
        for row, shown in some:
            images.append(_resized(shown[: self.columns], largest))
            titles.append(f"{' '.join(row.labels.values())}: {in_words(row.numbers[family.number])}")
        spec = DataSpec.pixels(largest[1:], largest[0], ())
        save(
            grid(
                torch.from_numpy(np.concatenate(images)),
                spec,
                self.columns,
                row_titles=titles,
                column_titles=self.column_titles,
            ),
            path,
        )


def _resized(images: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Images (B, C, H, W) in another size: smaller ones with each pixel repeated, larger ones averaged."""
    if images.shape[2] > shape[1]:
        return resize(torch.from_numpy(images), shape[1:]).numpy()
    down, across = ((np.arange(to) * of) // to for of, to in zip(images.shape[2:], shape[1:], strict=True))
    return images[:, :, down][:, :, :, across]


@dataclass(frozen=True)
class Lines:
    """A number of a part's cells against one axis, a line for each combination of the others; all seeds as points."""

    name: str
    part: str
    across: str
    logarithmic: bool = True
    number: str = ""

    def __call__(self, family: Family, rows: Sequence[Row], arrays: Arrays, path: Path) -> None:
        """Draw it."""
        number = self.number or family.number
        mine = [row for row in rows if row.part == self.part]
        places = list(dict.fromkeys(row.labels[self.across] for row in mine))
        lines: dict[tuple[str, ...], list[tuple[int, list[float]]]] = {}
        for row in mine:
            name = tuple(label for axis, label in row.labels.items() if axis != self.across)
            good = [value for value in row.numbers[number] if isfinite(value)]
            if good:
                lines.setdefault(name, []).append((places.index(row.labels[self.across]), good))
        colours = list(dict.fromkeys(name[-1:] for name in lines))
        styles = list(dict.fromkeys(name[:-1] for name in lines))
        figures = pyplot()
        figure, axes = figures.subplots(figsize=(7, 4.5), layout="constrained")
        for name, points in lines.items():
            where = [place for place, _ in points]
            means = [np.mean(values) for _, values in points]
            colour, style = f"C{colours.index(name[-1:])}", DASHES[styles.index(name[:-1]) % len(DASHES)]
            axes.plot(where, means, style, marker="o", color=colour, label=", ".join(name) or number)
            for place, values in points:
                axes.plot([place] * len(values), values, ".", color=colour, alpha=0.5)
        axes.set_xticks(range(len(places)), places)
        axes.set_xlabel(self.across)
        axes.set_ylabel(number)
        if self.logarithmic:
            axes.set_yscale("log")
        axes.grid(alpha=0.3)
        figure.legend(loc="outside right upper", fontsize="small")
        _write(figure, path)


@dataclass(frozen=True)
class Points:
    """Points of the plane, drawn by each cell of a part's first seed: rows by the first axis, columns by the last.

    In the first column points of the data themselves, as in Fig. 2.
    """

    name: str
    part: str

    def __call__(self, family: Family, rows: Sequence[Row], arrays: Arrays, path: Path) -> None:
        """Draw it."""
        mine = [row for row in rows if row.part == self.part]
        down = list(dict.fromkeys(tuple(row.labels.values())[:-1] for row in mine))
        columns = list(dict.fromkeys(tuple(row.labels.values())[-1] for row in mine))
        figures = pyplot()
        figure, places = figures.subplots(
            len(down), len(columns) + 1, figsize=(2 * len(columns) + 2, 2 * len(down)), squeeze=False
        )
        for place in places.flat:
            place.set_xticks([])
            place.set_yticks([])
            place.set_xlim(-2.6, 2.6)
            place.set_ylim(-2.6, 2.6)
        for i, head in enumerate(down):
            places[i, 0].set_ylabel(" ".join(head))
        for row in mine:
            *head, column = row.labels.values()
            place = places[down.index(tuple(head)), 1 + columns.index(column)]
            found = arrays(row)
            if "points" in found:
                place.plot(*found["points"].T, ".", markersize=1)
                places[down.index(tuple(head)), 0].plot(*found["truth"].T, ".", markersize=1, color="black")
            place.set_xlabel(in_words(row.numbers[family.number]), fontsize="x-small")
        for j, title in enumerate(["data", *columns]):
            places[0, j].set_title(title)
        figure.tight_layout()
        _write(figure, path)


@dataclass(frozen=True)
class Curves:
    """The loss of every cell of a part along its training, the first seed's."""

    name: str
    part: str

    def __call__(self, family: Family, rows: Sequence[Row], arrays: Arrays, path: Path) -> None:
        """Draw it."""
        figures = pyplot()
        figure, axes = figures.subplots(figsize=(7, 4.5), layout="constrained")
        for row in (row for row in rows if row.part == self.part):
            found = arrays(row)
            if "curve" in found:
                axes.plot(*found["curve"].T, label=" ".join(row.labels.values()))
        axes.set_xlabel("samples seen")
        axes.set_ylabel("loss")
        axes.set_yscale("log")
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
        _write(figure, path)


def _write(figure: Any, path: Path) -> None:
    with whole(path) as beside:
        figure.savefig(beside, format="png", dpi=110)
    pyplot().close(figure)
