"""The doors, by name: each makes a case from a random generator, in the folder it is called in."""

from ..case import Door
from . import archives, arrays, fields, flags, labels, packs, runs, weights, writing

DOORS: dict[str, Door] = {
    "archives": archives.case,
    "labels": labels.case,
    "arrays": arrays.case,
    "fields": fields.case,
    "packs": packs.case,
    "weights": weights.case,
    "runs": runs.case,
    "flags": flags.case,
    "writing": writing.case,
}


def import_all() -> None:
    """Import what the commands import when they are called, and make a parser, so that children need not.

    Nothing may run here that starts threads, or uses those of torch: children inherit their locks, but not them.
    """
    import datasets
    import h5netcdf
    import pyarrow.parquet
    import scipy.io
    import torch._dynamo  # by every optimizer
    import webdataset
    import xarray
    import zarr
    from PIL import Image

    import justimage.commands.convert
    import justimage.data.tables
    from justimage.commands.data import Inspect
    from justimage.commands.line import parse

    _ = datasets, h5netcdf, pyarrow, scipy.io, torch, webdataset, xarray, zarr, justimage
    Image.init()
    parse(Inspect, ["set"], "jit data inspect")
