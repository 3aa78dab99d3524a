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
    """Import what the commands import when they are called, so that children need not."""
    import datasets
    import h5netcdf
    import pyarrow.parquet
    import scipy.io
    import webdataset
    import xarray
    import zarr

    import justimage.commands.convert
    import justimage.data.tables

    _ = datasets, h5netcdf, pyarrow, scipy.io, webdataset, xarray, zarr, justimage
