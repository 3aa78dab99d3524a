"""The reference: what samples are compared with, looked at once and then remembered; or a file of statistics."""

import hashlib
import json
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from justimage.data.spec import DataSpec, Source, StreamSource, evenly
from justimage.disk.cache import cache_folder
from justimage.disk.reading import reason_of
from justimage.disk.whole import Unwritten, whole, write_text
from justimage.evaluation.copying import reduced
from justimage.evaluation.features import Features
from justimage.evaluation.fitted import Progress
from justimage.evaluation.metrics import FeatureMoments, frechet_distance
from justimage.evaluation.rows import Looker, Row, RowStore
from justimage.randomness import Purpose, uniforms

VERSION = 1  # of what is cached
AT_ONCE = 256
KEPT = 10_000  # samples whose rows are kept, as is usual for precision and recall (arXiv 1904.06991)
MOST_COPIES = 100_000  # samples among which copies are looked for
FROM_A_STREAM = 50_000
STATISTICS = frozenset({"mu", "sigma"})


@dataclass(frozen=True)
class Reference:
    """Statistics of the data that samples are compared with."""

    moments: FeatureMoments
    features: str
    """The name of the features that they are of."""
    facts: dict[str, Any] = field(default_factory=dict)
    """Where they come from; part of every result."""
    floor: float | None = None
    """The Frechet distance between one random half of the data and the other."""
    rows: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Rows by name (see `rows`) of at most KEPT samples, evenly spread; nothing where only statistics are known."""
    small: np.ndarray | None = None
    """Samples reduced as in `copying`, (N, F), among which copies are looked for."""


def reference_of(
    source: Source | StreamSource,
    features: Features,
    *,
    mirrored: bool = False,
    path: str | Path = "",
    progress: Progress | None = None,
    device: torch.device | str | None = None,
) -> Reference:
    """Look at all samples of a source (of a stream, the first FROM_A_STREAM), or remember what was found last time.

    mirrored: take each sample mirrored as well, where the spec says along which axis. Cached by the fingerprint and
    content of the data, the spec (with it size and crop), mirroring and the name of the features. Raises ValueError
    where there are too few samples, or features are not finite.
    """
    features.check(source.spec)
    if mirrored and source.spec.mirror is None:
        raise ValueError("these data have no axis along which a mirrored sample is as likely; leave mirroring out")
    count = len(source) if source.indexed is True else FROM_A_STREAM
    if count <= features.size:
        raise ValueError(
            f"the reference has {count:,} samples, and {features.name} has {features.size:,} features: a covariance "
            "needs more samples than features; use more data, or features of a smaller size (--features fit)"
        )
    content = source.content() if source.indexed is True else ""
    facts = {
        "path": str(path),
        "fingerprint": source.fingerprint(),
        "content": content,
        "found": source.describe(),
        "mirrored": mirrored,
    }
    key = hashlib.sha256(
        json.dumps([VERSION, facts["fingerprint"], content, source.spec.text(), mirrored, features.name]).encode()
    ).hexdigest()[:24]
    folder = cache_folder() / "reference" / key
    known = _read(folder, facts)
    if known is not None:
        return known
    try:
        with whole(folder) as beside:
            beside.mkdir()
            _look(beside, source, features, count, mirrored, progress, device)
        found = _read(folder, facts)
    except Unwritten:  # no cache can be written
        with tempfile.TemporaryDirectory(prefix="justimage-reference-") as elsewhere:
            _look(Path(elsewhere), source, features, count, mirrored, progress, device)
            found = _in_memory(_read(Path(elsewhere), facts))
    assert found is not None
    return found


def _in_memory(mapped: Reference | None) -> Reference | None:
    """The same without the files behind it."""
    if mapped is None or mapped.small is None:
        return None
    return replace(
        mapped, rows={name: np.array(rows) for name, rows in mapped.rows.items()}, small=np.array(mapped.small)
    )


def _look(
    folder: Path,
    source: Source | StreamSource,
    features: Features,
    count: int,
    mirrored: bool,
    progress: Progress | None,
    device: torch.device | str | None,
) -> None:
    """Write what is to be known of a source into a folder."""
    looker = Looker(source.spec, features, keep_raw=False)
    kept = RowStore(folder / "rows", looker.kinds())
    blank = reduced(np.zeros((1, *source.spec.shape), source.spec.dtype), source.spec)
    small = RowStore(folder / "small", {"small": Row(blank.shape[1:])})
    few, some = evenly(count, KEPT), evenly(count, MOST_COPIES)
    nothing = FeatureMoments.of(np.zeros((0, looker.features.size)))
    halves = [nothing, nothing]
    seen = 0
    for raw in batches_of(source, count):
        numbers = np.arange(seen, seen + len(raw))
        rows = looker(raw if device is None else raw.to(device), numbers.tolist())
        both = [rows["features"]]
        if mirrored:
            assert source.spec.mirror is not None
            flipped = raw.flip(2 + source.spec.mirror)
            both.append(looker(flipped if device is None else flipped.to(device), numbers.tolist())["features"])
        chosen = uniforms(0, Purpose.ORDER, numbers).numpy() < 0.5  # which half a sample belongs to
        for i, mask in enumerate((chosen, ~chosen)):
            halves[i] = sum((FeatureMoments.of(each[mask]) for each in both), halves[i])
        mine = np.isin(numbers, few)
        kept.append({name: values[mine] for name, values in rows.items()})
        mine = np.isin(numbers, some)
        small.append({"small": reduced(raw.numpy()[mine], source.spec)})
        seen += len(raw)
        if progress is not None:
            progress(seen, count, "looking at the reference")
    first, second = halves
    together = first + second
    floor = frechet_distance(first, second) if min(first.count, second.count) > 1 else None
    np.savez(folder / "moments.npz", mu=together.mean, sigma=together.covariance, count=together.count)
    write_text(folder / "facts.json", json.dumps({"features": features.name, "floor": floor, "count": seen}) + "\n")


def _read(folder: Path, facts: dict[str, Any]) -> Reference | None:
    """What `_look` has written; None where it is not there, or damaged."""
    try:
        said = json.loads((folder / "facts.json").read_text())
        with np.load(folder / "moments.npz", allow_pickle=False) as file:
            moments = FeatureMoments.from_covariance(int(file["count"]), file["mu"], file["sigma"])
        rows = _rows(folder / "rows", min(said["count"], KEPT))
        small = _rows(folder / "small", min(said["count"], MOST_COPIES))
        facts = {**facts, "count": said["count"], "floor": said["floor"]}
        return Reference(moments, said["features"], facts, said["floor"], rows, small["small"])
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
        return None


def _rows(folder: Path, count: int) -> dict[str, np.ndarray]:
    """All rows of a folder. Raises ValueError where there are not so many."""
    kinds = {
        name: Row(tuple(shape), *rest)
        for name, (shape, *rest) in json.loads((folder / "rows.json").read_text()).items()
    }
    store = RowStore(folder, kinds)
    if store.count != count:
        raise ValueError(f"{folder} holds {store.count:,} rows, not {count:,}")
    return {name: store[name] for name in kinds}


def batches_of(source: Source | StreamSource, count: int) -> Iterator[Tensor]:
    """Samples 0 to count - 1 of a source, as raw tensors (B, C, *S), read ahead by a thread."""
    if source.indexed is not True:
        samples = source.samples(0, 0)
        for start in range(0, count, AT_ONCE):
            yield _stack([decode()[0] for decode in islice(samples, min(AT_ONCE, count - start))])
        return
    at_once = max(1, min(AT_ONCE, 2**26 // max(1, int(np.prod(source.spec.shape)) * 4)))
    starts = range(0, count, at_once)

    def read(start: int) -> Tensor:
        return _stack([raw for raw, _ in source.read(start, min(start + at_once, count))])

    with ThreadPoolExecutor(2) as pool:
        ahead = [pool.submit(read, start) for start in starts[:2]]
        for start in [*starts[2:], None, None][: len(starts)]:
            batch = ahead.pop(0).result()
            if start is not None:
                ahead.append(pool.submit(read, start))
            yield batch


def _stack(samples: list[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(samples))


def is_statistics(path: Path) -> bool:
    """Whether a file holds statistics (`mu` and `sigma`), as the official code and ADM keep them, and no samples."""
    if path.suffix.lower() != ".npz" or not path.is_file():
        return False
    try:
        with np.load(path, allow_pickle=False) as file:
            return set(file.files) >= STATISTICS
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        return False


def read_statistics(path: Path, features: Features) -> Reference:
    """The reference that an .npz of statistics is: mu (D,), sigma (D, D), and perhaps `count` and `features`.

    Raises ValueError where they are of other features than these, or of none.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            held = {name: file[name] for name in file.files}
        mu, sigma = held["mu"].astype(np.float64), held["sigma"].astype(np.float64)
        count, of = int(held.get("count", 2)), str(held.get("features", ""))
    except (OSError, ValueError, EOFError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} cannot be read as statistics (mu and sigma): {reason_of(error)}") from error
    size = features.size
    if mu.shape != (size,) or sigma.shape != (size, size):
        raise ValueError(
            f"{path} holds statistics of the shapes {mu.shape} and {sigma.shape}, and {features.name} has {size} "
            "features: they are of other features; name those with --features, or give the data themselves"
        )
    if of and of != features.name:
        raise ValueError(
            f"{path} holds statistics of {of}, and these are {features.name}: numbers of different features cannot be "
            "compared; give the data themselves with --data"
        )
    if not np.isfinite(mu).all() or not np.isfinite(sigma).all():
        raise ValueError(f"{path} holds statistics that are not finite; make them anew")
    if not np.allclose(sigma, sigma.T, rtol=1e-5, atol=1e-8 * max(1.0, float(np.abs(sigma).max()))):
        raise ValueError(f"sigma in {path} is not symmetric, so it is no covariance")
    facts: dict[str, Any] = {"path": str(path), "sha256": hashlib.sha256(path.read_bytes()).hexdigest()[:16]}
    if "count" in held:
        facts["count"] = count
    return Reference(FeatureMoments.from_covariance(max(count, 2), mu, sigma), features.name, facts)


def save_statistics(reference: Reference, path: Path) -> None:
    """Write mu, sigma, count and the name of the features as .npz, which the official code and ADM's can read."""
    moments = reference.moments
    arrays: dict[str, Any] = {"mu": moments.mean, "sigma": moments.covariance, "features": reference.features}
    if "count" in reference.facts:
        arrays["count"] = moments.count
    with whole(path) as beside, beside.open("wb") as file:
        np.savez(file, **arrays)


def check_comparable(ours: DataSpec, theirs: DataSpec, where: str) -> None:
    """Raises ValueError where samples of one spec cannot be compared with those of another."""
    what = (
        ("channels", len(ours.channels), len(theirs.channels)),
        ("size", "x".join(map(str, ours.size)), "x".join(map(str, theirs.size))),
        ("type of values", ours.dtype, theirs.dtype),
    )
    for name, a, b in what:
        if a != b:
            raise ValueError(
                f"{where}: the {name} of the samples is {a}, and that of the reference {b}; they must agree"
            )
