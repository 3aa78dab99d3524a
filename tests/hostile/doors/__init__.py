"""The doors, by name: each makes a case from a random generator, in the folder it is called in."""

from ..case import Door
from . import archives, arrays, fields, labels, packs

DOORS: dict[str, Door] = {
    "archives": archives.case,
    "labels": labels.case,
    "arrays": arrays.case,
    "fields": fields.case,
    "packs": packs.case,
}


def import_all() -> None:
    """Import what the commands import when they are called, so that children need not."""
    import datasets
    import h5netcdf
    import scipy.io
    import webdataset
    import xarray
    import zarr

    import justimage.commands.convert
    import justimage.commands.data
    import justimage.commands.sample
    import justimage.commands.train
    import justimage.data.tables

    _ = datasets, h5netcdf, scipy.io, webdataset, xarray, zarr, justimage
