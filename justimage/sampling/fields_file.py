"""Fields written batch by batch: NetCDF and Zarr that grow along their samples."""

import os
import shutil
from pathlib import Path
from typing import Any

from justimage.data.spec import DataSpec
from justimage.sampling.fields import to_xarray, write_fields
from justimage.sampling.generate import Samples


class FieldsFile:
    """samples.nc or samples.zarr, grown batch by batch under another name; it takes its own when it is closed."""

    def __init__(self, path: Path, spec: DataSpec):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.spec, self.count = path, spec, 0
        self.beside = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
        self.names: list[str] = []
        self.shape: tuple[int, ...] = ()

    def add(self, batch: Samples) -> None:
        """Write a batch after the others."""
        labels = batch.labels if min(batch.labels) >= 0 else None
        dataset = to_xarray(batch.raw, self.spec, seeds=batch.seeds, labels=labels)
        row = next(iter(dataset.data_vars.values())).dims[0]
        if not self.count:
            write_fields(dataset, self.beside, growing=str(row))
            self.names, self.shape = list(map(str, dataset.data_vars)), tuple(batch.raw.shape[1:])
        elif self.path.suffix == ".zarr":
            dataset.to_zarr(self.beside, append_dim=row, consolidated=False)
        else:
            _append(self.beside, dataset, str(row), self.count)
        self.count += len(batch.raw)

    def close(self) -> None:
        """What was written takes its name, replacing what had it."""
        if not self.count:
            return
        if self.path.is_dir():
            shutil.rmtree(self.path)
        os.replace(self.beside, self.path)

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
