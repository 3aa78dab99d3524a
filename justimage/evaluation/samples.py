"""Samples made elsewhere, as a source: a folder, an archive, an array, or what `jit sample` has written."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from justimage.data.arrays import Arrays
from justimage.data.containers import IMAGES, suffix_of, written_by_justimage
from justimage.data.files import Files
from justimage.data.images import Images
from justimage.data.records import read_json
from justimage.data.sources import DataOptions, open_source
from justimage.data.spec import Source, StreamSource, Unreadable, UnreadableSample
from justimage.disk.cache import state_of
from justimage.disk.reading import reason_of
from justimage.sampling.write import FACTS

GRID = "grid.png"  # beside samples, and none of them
GREY = ("1", "L", "LA", "I", "F")  # modes of images with one channel


def open_samples(path: Path) -> Source:
    """The samples behind a path, of their own size. All are read before this returns, where they fit into memory.

    A folder or archive of images, .npy, .npz (`x`; or `arr_0` (N, h, w, C), as ADM writes), a pack, fields, or a folder
    that `jit sample` has written. Raises ValueError, with the file, where one cannot be read, or images differ in size.
    """
    if path.is_dir() and written_by_justimage(path) and (path / "samples.npy").is_file():
        path = path / "samples.npy"
    if path.suffix.lower() == ".npz" and path.is_file() and (found := _of_adm(path)) is not None:
        return found
    if path.is_dir() and written_by_justimage(path) and any(path.glob("*.png")):
        drawn = _drawn(path)
        return _of_one_size(path, lambda size, channels, gb: Images(drawn, size, channels=channels, memory_gb=gb))
    return _of_one_size(
        path,
        lambda size, channels, gb: open_source(
            str(path), size, channels, DataOptions(memory_gb=gb), decode_ahead=gb > 0
        ),
    )


def _of_one_size(path: Path, opened: Callable[[tuple[int, int], int, float], Source | StreamSource]) -> Source:
    """A source of images of the size and channels that the first one has; any other source as it is."""
    look = opened((8, 8), 3, 0.0)
    if look.indexed is not True:
        raise ValueError(f"{path} is a stream; samples to be judged are files")
    item = look.look(0)
    if isinstance(item, Unreadable):
        raise UnreadableSample(item.reason)
    first = look.file_facts(0)
    if first is None:
        return look
    for i in range(1, len(look)):
        facts = look.file_facts(i)
        if facts is not None and facts.size != first.size:
            raise ValueError(
                f"{look.name(i)} in {path} is {facts.size[0]}x{facts.size[1]}, and {look.name(0)} "
                f"{first.size[0]}x{first.size[1]}; samples are judged as they are, so all need one size"
            )
    source = opened(first.size, 1 if first.kind.split()[-1] in GREY else 3, DataOptions().memory_gb)
    assert source.indexed is True
    return source


def _drawn(folder: Path) -> Files:
    """The images that `jit sample` wrote into a folder, without its grid."""
    paths = sorted(each for each in folder.iterdir() if suffix_of(each.name) in IMAGES and each.name != GRID)
    said = read_json(folder / FACTS).get("seeds", []) if (folder / FACTS).is_file() else []
    if said and len(said) != len(paths):
        raise ValueError(
            f"{folder} holds {len(paths):,} images, and {FACTS} there says {len(said):,}: some are of another command; "
            "draw into an empty folder"
        )
    return Files(
        str(folder),
        [each.name for each in paths],
        [-1] * len(paths),
        (),
        lambda i: paths[i].open("rb"),
        lambda: state_of(paths),
        lambda: state_of(paths),
    )


def _of_adm(path: Path) -> Source | None:
    """The images of an .npz as ADM writes it, channels last under `arr_0`; None where it is another .npz."""
    try:
        with np.load(path, allow_pickle=False) as file:
            if "arr_0" not in file.files:
                return None
            images = file["arr_0"]
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"{path} cannot be read as an .npz of arrays: {reason_of(error)}") from error
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3):
        raise ValueError(f"arr_0 of {path} is {images.shape} {images.dtype}; images (N, h, w, 3) uint8 are needed")
    return Arrays(np.ascontiguousarray(np.moveaxis(images, 3, 1)), name=str(path))
