"""A part of the data that is never trained on, so that a loss can be measured on what the network has not seen."""

import hashlib

import numpy as np

from justimage.data.spec import FileFacts, Item, Source, Unreadable
from justimage.randomness import Purpose, uniforms

SEED = 0  # of the choice: the same part for every run, whatever its seed


def chosen(count: int, share: float) -> np.ndarray:
    """Which of `count` samples are held out, (N,) bool: about this share, and at least one.

    A function of a sample's place in the order of the data and of nothing else: a folder, an archive of it and the pack
    of it have the same part, and a larger share holds all of a smaller one. Raises ValueError where nothing is left to
    train on.
    """
    draws = uniforms(SEED, Purpose.HELD_OUT, range(count)).numpy()
    held = draws < share
    held[np.argmin(draws)] = True
    if held.all():
        raise ValueError(
            f"--data-options.held-out {share:g} leaves nothing to train on: there are {count:,} samples; use less, or 0"
        )
    return held


class Part(Source):
    """Some samples of a source, in its order. rows: their indices in the source, (N,) int64; told: what they are.

    `held_out` is the part that was left out for measuring, where this is what is trained on.
    """

    not_packed = "a part of data is not packed; pack them whole, and give --data-options.held-out when training"

    def __init__(self, source: Source, rows: np.ndarray, told: str = "a part of them", held_out: "Part | None" = None):
        self.source, self.rows, self.told, self.held_out = source, rows, told, held_out
        self.spec, self.on_error, self.skipped, self.gaps = source.spec, source.on_error, source.skipped, source.gaps

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int, /) -> Item:
        return self.source[int(self.rows[index])]

    def look(self, index: int) -> Item | Unreadable:
        """See `Source`."""
        return self.source.look(int(self.rows[index]))

    def name(self, index: int) -> str:
        """See `Source`."""
        return self.source.name(int(self.rows[index]))

    def all_labels(self) -> np.ndarray | None:
        """See `Source`."""
        labels = self.source.all_labels()
        return None if labels is None else labels[self.rows]

    def describe(self) -> str:
        """See `Source`."""
        return f"{self.source.describe()}; {self.told}"

    def fingerprint(self) -> str:
        """See `Source`."""
        digest = hashlib.sha256(self.source.fingerprint().encode())
        digest.update(self.rows.tobytes())
        return digest.hexdigest()[:16]

    def file_facts(self, index: int) -> FileFacts | None:
        """See `Source`."""
        return self.source.file_facts(int(self.rows[index]))


def without_held_out(source: Source, share: float) -> Source:
    """What is trained on, with the rest as its `held_out`; the source itself where the share is 0."""
    if share == 0:
        return source
    held = chosen(len(source), share)
    rest, rows = np.flatnonzero(~held), np.flatnonzero(held)
    return Part(source, rest, f"{len(rows):,} of them held out", Part(source, rows, f"the {len(rows):,} held out"))
