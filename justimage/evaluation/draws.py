"""Draws: which samples an evaluation draws, and what they are conditioned on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from justimage.data.loader import order
from justimage.data.spec import DataSpec, Source, StreamSource
from justimage.denoiser import Denoiser

Labels = Literal["balanced", "data"]


@dataclass(frozen=True)
class Draws:
    """Which samples are drawn: sample k of them depends on first_seed + k and on its condition alone."""

    seeds: range
    labels: Sequence[int] | None
    """The class of each; None: without."""
    condition: Mapping[str, Any]
    """The other parts of the condition by name, each a sequence of rows."""
    policy: str
    """How the classes and conditions were chosen, for the user."""
    balanced: bool = False
    """Whether the number of each class was fixed, equal for all."""

    def groups(self) -> np.ndarray | None:
        """The class of each sample (N,), where their numbers were fixed."""
        return np.asarray(self.labels) if self.balanced else None


def draws_of(
    model: Denoiser,
    count: int,
    first_seed: int = 0,
    labels: Labels = "balanced",
    source: Source | StreamSource | None = None,
) -> Draws:
    """The samples to draw of a model. labels: every class equally often (k mod classes), or as in the data.

    Raises ValueError where that cannot be met.
    """
    seeds = range(first_seed, first_seed + count)
    others = [name for name, kind, *_ in model.needs if kind != "labels"]
    masks = [f"{name}_mask" for name, kind, *_ in model.needs if kind == "tokens"]
    if not model.needs:
        return Draws(seeds, None, {}, "unconditional")
    if labels == "balanced" and not others:
        classes, near = model.num_classes, shared_equally(count, model)
        if count != near:
            raise ValueError(
                f"{count:,} samples cannot be shared out equally over {classes:,} classes; choose --count {near}, or "
                "--labels data"
            )
        return Draws(seeds, [k % classes for k in range(count)], {}, f"balanced over {classes:,} classes", True)
    if labels == "balanced":
        raise ValueError(
            f"this model is conditioned on {', '.join(others)}, which only data can give; choose --labels data"
        )
    if source is None or source.indexed is not True:
        raise ValueError("--labels data takes classes from the data, and here are only statistics or a stream")
    if tuple(source.spec.needs) != tuple(model.needs):
        raise ValueError(
            f"--labels data: the model is conditioned on {_names(model.needs)}, and the reference gives "
            f"{_names(source.spec.needs)}"
        )
    _check_classes(model, source.spec)
    indices = order(0, seeds, len(source))
    drawn = _labels_at(source, indices) if model.num_classes else None
    condition = {name: _Given(source, indices, name) for name in others + masks}
    return Draws(seeds, drawn, condition, "as in the data")


def shared_up(count: int, model: Denoiser) -> int:
    """At least so many samples: a multiple of the classes, of which each is drawn equally often."""
    classes = max(model.num_classes, 1)
    return -(-count // classes) * classes


def shared_equally(count: int, model: Denoiser) -> int:
    """The number nearest to count that the classes of a model can share equally."""
    classes = max(model.num_classes, 1)
    return max(round(count / classes), 1) * classes


def _check_classes(model: Denoiser, spec: DataSpec) -> None:
    if model.spec is not None and model.spec.classes != spec.classes:
        raise ValueError(
            f"the classes of the reference ({', '.join(spec.classes[:5])}) are not those of the model "
            f"({', '.join(model.spec.classes[:5])})"
        )


def _names(needs: Sequence[Sequence[Any]]) -> str:
    return ", ".join(f"{need[2]} labels" if need[1] == "labels" else str(need[0]) for need in needs) or "nothing"


def _labels_at(source: Source, indices: np.ndarray) -> list[int]:
    known = source.all_labels()
    if known is None:
        return [int(source[i][1]["labels"]) for i in indices.tolist()]
    each = len(source) // len(known)  # neighbours that one label stands for
    return known[indices // each].tolist()


class _Given:
    """One part of the condition of some samples of a source, read when it is asked for."""

    def __init__(self, source: Source, indices: np.ndarray, name: str):
        self.source, self.indices, self.name = source, indices, name

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, part: slice) -> np.ndarray:
        return np.stack([self.source[i][1][self.name] for i in self.indices[part].tolist()])
