"""Fields written batch by batch: NetCDF and Zarr that grow along their samples."""

from pathlib import Path
from typing import Any

from justimage.data.spec import DataSpec
from justimage.disk.whole import check_room, put, remove, temporary
from justimage.sampling.fields import store_fields, to_xarray
from justimage.sampling.generate import Samples

CHUNK = 2**20  # bytes, at most, that HDF5 takes for a variable of the data beyond its values
COORDINATE = 2**16  # and for each of the others


class FieldsFile:
    """samples.nc or samples.zarr, grown batch by batch under another name; it takes its own when it is closed."""

    def __init__(self, path: Path, spec: DataSpec):
        if path.suffix == ".nc" and path.is_dir() and not path.is_symlink():
            raise ValueError(f"{path} is a folder, and would be replaced by a file; choose another folder with --out")
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.spec, self.count = path, spec, 0
        self.beside = temporary(path)
        self.names: list[str] = []
        self.shape: tuple[int, ...] = ()

    def add(self, batch: Samples) -> None:
        """Write a batch after the others, all of it or nothing. Raises OSError where that fails."""
        labels = batch.labels if min(batch.labels) >= 0 else None
        dataset = to_xarray(batch.raw, self.spec, seeds=batch.seeds, labels=labels)
        row = str(next(iter(dataset.data_vars.values())).dims[0])
        # Before the disk is full, not when it is: HDF5 then ends the process.
        beyond = CHUNK * len(dataset.data_vars) + COORDINATE * len(dataset.coords)
        check_room(self.path.parent, dataset.nbytes + beyond, self.path)
        try:
            if not self.count:
                store_fields(dataset, self.beside, self.path.suffix, growing=row)
                self.names, self.shape = list(map(str, dataset.data_vars)), tuple(batch.raw.shape[1:])
            elif self.path.suffix == ".zarr":
                dataset.to_zarr(self.beside, append_dim=row, consolidated=False)
            else:
                _append(self.beside, dataset, row, self.count)
        except BaseException:
            self._cut(dataset, row)
            raise
        self.count += len(batch.raw)

    def _cut(self, dataset: Any, row: str) -> None:
        """Forget what was written of a batch that could not be finished."""
        if not self.count:
            remove(self.beside)
        elif self.path.suffix == ".zarr":
            _cut_zarr(self.beside, [name for name, each in dataset.variables.items() if row in each.dims], self.count)
        else:
            _cut_netcdf(self.beside, row, self.count)

    def close(self) -> None:
        """What was written takes its name, replacing what had it."""
        if self.count:
            put(self.beside, self.path)

    def describe(self) -> str:
        """What was written, for the user."""
        return f"{self.path.name} ({', '.join(self.names)}) {(self.count, *self.shape)}"


def _append(path: Path, dataset: Any, row: str, start: int) -> None:
    """The variables of a dataset that lie along `row`, after the first `start` of a NetCDF file."""
    import h5netcdf

    stop = start + dataset.sizes[row]
    with h5netcdf.File(path, "a") as file:
        file.resize_dimension(row, stop)
        for name, variable in dataset.variables.items():
            if variable.dims[:1] == (row,):
                file.variables[name][start:stop] = variable.values


def _cut_netcdf(path: Path, row: str, count: int) -> None:
    import h5netcdf

    with h5netcdf.File(path, "a") as file:
        file.resize_dimension(row, count)


def _cut_zarr(path: Path, names: list[str], count: int) -> None:
    import zarr

    for name, array in zarr.open_group(path, mode="r+").arrays():
        if name in names:
            array.resize((count, *array.shape[1:]))
