"""Rows: all that the metrics need of a sample, computed once and independently of the others, and kept on disk.

So an evaluation holds one batch in memory, goes on after a kill, and is the same for any batch and number of processes.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from justimage.data.records import read_json
from justimage.data.spec import DataSpec
from justimage.disk.growing import File
from justimage.disk.whole import write_text, writing
from justimage.evaluation.features import Features
from justimage.evaluation.raw import lag_products, radial_spectrum, value_sample

VALUES = 64  # raw values of each channel that are kept of a sample
SHOWN_BYTES = 2**28  # of samples that are kept as they are
MOST_SHOWN = 1000
HEAD = "rows.json"


@dataclass(frozen=True)
class Row:
    """One part of what is kept of each sample."""

    shape: tuple[int, ...]
    dtype: str = "float32"
    most: int = 2**62
    """Only of so many samples, the first ones."""

    @property
    def size(self) -> int:
        """In bytes."""
        return int(np.prod(self.shape)) * np.dtype(self.dtype).itemsize


class RowStore:
    """Named rows of samples in a folder, appended batch by batch; what a kill has cut is left out when it is opened.

    store["features"] is (N, D), mapped. Raises ValueError where the folder holds rows of another kind.
    """

    def __init__(self, folder: Path, kinds: Mapping[str, Row]):
        self.folder, self.kinds = folder, dict(kinds)
        said = {name: [list(kind.shape), kind.dtype, kind.most] for name, kind in self.kinds.items()}
        if (folder / HEAD).is_file():
            if read_json(folder / HEAD) != said:
                raise ValueError(f"{folder} holds rows of another kind; remove it")
        else:
            folder.mkdir(parents=True, exist_ok=True)
            write_text(folder / HEAD, json.dumps(said) + "\n")
        self.count = min((self._whole(name) for name in self.kinds), default=0)

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.rows"

    def _whole(self, name: str) -> int:
        """How many samples a file is complete for."""
        kind, path = self.kinds[name], self._path(name)
        rows = path.stat().st_size // kind.size if path.is_file() else 0
        return 2**62 if rows >= kind.most else rows

    def append(self, rows: Mapping[str, np.ndarray]) -> None:
        """Add rows (n, ...) of the next samples, under every name. Raises Unwritten where the disk refuses."""
        n = len(next(iter(rows.values())))
        for name, kind in self.kinds.items():
            start = min(self.count, kind.most)
            values = np.ascontiguousarray(rows[name][: kind.most - start], dtype=kind.dtype)
            if values.shape[1:] != kind.shape:
                raise ValueError(f"rows of {name} are {values.shape[1:]}, not {kind.shape}")
            if not len(values):  # enough are kept
                continue
            with (
                writing(self._path(name)),
                File(self._path(name), "r+b" if self._path(name).exists() else "wb") as file,
            ):
                file.truncate(start * kind.size)
                file.seek(start * kind.size)
                file.write(values.data)
        self.count += n

    def first(self, count: int) -> dict[str, np.ndarray]:
        """The rows of the first `count` samples, by name."""
        return {name: self[name][:count] for name in self.kinds}

    def __getitem__(self, name: str) -> np.ndarray:
        """All rows of a name (N, ...), mapped from the disk."""
        kind = self.kinds[name]
        count = min(self.count, kind.most)
        if count == 0:
            return np.zeros((0, *kind.shape), kind.dtype)
        return np.memmap(self._path(name), kind.dtype, "r", shape=(count, *kind.shape))


@dataclass(frozen=True)
class Looker:
    """Makes rows of samples: features and logits, the spectrum, and of fields some values and lag products as well.

    keep_raw: the first samples too, as they are: for a grid, and for the copying check.
    """

    spec: DataSpec
    features: Features
    keep_raw: bool = True

    def kinds(self) -> dict[str, Row]:
        """The rows that it makes."""
        features = {"features": Row((self.features.size,))}
        if self.features.classes:
            features["logits"] = Row((self.features.classes,))
        blank = np.zeros((1, *self.spec.shape), np.float32)
        raw = {name: Row(value.shape[1:], str(value.dtype)) for name, value in self._of_values(blank, [0]).items()}
        size = int(np.prod(self.spec.shape)) * np.dtype(self.spec.dtype).itemsize
        kept = {"raw": Row(self.spec.shape, self.spec.dtype, max(1, min(MOST_SHOWN, SHOWN_BYTES // size)))}
        return features | raw | (kept if self.keep_raw else {})

    def __call__(self, raw: Tensor, indices: Sequence[int]) -> dict[str, np.ndarray]:
        """Raw samples (B, C, *S) and their numbers -> rows by name. Raises ValueError where features are not finite."""
        with torch.inference_mode():
            features, logits = self.features(raw)
        rows = {"features": features.float().cpu().numpy()}
        bad = np.flatnonzero(~np.isfinite(rows["features"]).all(1))
        if len(bad):
            raise ValueError(
                f"the features of sample {indices[bad[0]]} are not finite ({self.features.name}): "
                + (
                    "the sample itself is not"
                    if not bool(raw[bad[0]].isfinite().all())
                    else "the extractor fails on it"
                )
            )
        if logits is not None:
            rows["logits"] = logits.float().cpu().numpy()
        values = raw.cpu().numpy()
        rows |= self._of_values(values, indices)
        return rows | ({"raw": values} if self.keep_raw else {})

    def _of_values(self, values: np.ndarray, indices: Sequence[int]) -> dict[str, np.ndarray]:
        rows = {"spectrum": radial_spectrum(values)}
        if not self.spec.image:
            rows |= {"values": value_sample(values, VALUES, indices), "lags": lag_products(values)}
        return {name: np.asarray(value, np.float64 if name == "lags" else np.float32) for name, value in rows.items()}
