"""Generated fields as NetCDF and Zarr, with the names, units and coordinates that the data came with."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from justimage.data.origin import Attributes, Origin, Variable
from justimage.data.spec import DataSpec
from justimage.data.stores import xarray_library
from justimage.disk.whole import whole


def to_xarray(
    samples: torch.Tensor | np.ndarray,
    spec: DataSpec,
    *,
    seeds: Sequence[int] | None = None,
    labels: Sequence[int] | None = None,
) -> Any:
    """Raw samples (N, C, *S) as an xarray.Dataset with the names, units and coordinates that the data came with.

    Levels become a dimension again. A dimension `sample` stands in front (`drawn`, where the data have a `sample`),
    with seeds and classes as coordinates if given. Samples of another size than the spec's get no coordinates along
    the axes that differ. Raises ValueError where xarray is missing, or the channels are not the spec's.
    """
    xarray = xarray_library()
    values = np.asarray(samples.cpu() if isinstance(samples, torch.Tensor) else samples)
    if values.ndim != 2 + len(spec.size) or values.shape[1] != len(spec.channels):
        raise ValueError(f"samples are {values.shape}, but the spec is for (N, {', '.join(map(str, spec.shape))})")
    origin = spec.origin or Origin(
        tuple(f"axis{i}" for i in range(len(spec.size))), tuple(Variable(name) for name in spec.channels)
    )
    taken = {*origin.dims, *(c.name for c in origin.coordinates), *(v.name for v in origin.variables)}
    row = next(name for name in ("sample", "drawn", "drawn_sample") if name not in taken)
    sizes = dict(zip(origin.dims, values.shape[2:], strict=True))
    meant = dict(zip(origin.dims, spec.size, strict=True))
    data: dict[str, Any] = {}
    coords: dict[str, Any] = {}
    for coordinate in origin.coordinates:
        shape = tuple(sizes.get(dim, 0) for dim in coordinate.dims)
        if set(coordinate.dims) <= set(sizes) and all(sizes[dim] == meant[dim] for dim in coordinate.dims):
            along = np.array(coordinate.values).reshape(shape)
            coords[coordinate.name] = (coordinate.dims, along, _attributes(coordinate.attributes))
    for name in dict.fromkeys(variable.name for variable in origin.variables):
        parts = [i for i, variable in enumerate(origin.variables) if variable.name == name]
        first = origin.variables[parts[0]]
        attributes = _attributes(first.attributes)
        if not first.at:
            data[name] = ((row, *origin.dims), values[:, parts[0]], attributes)
            continue
        dim = first.at[0][0]
        levels = [origin.variables[i].at[0][1] for i in parts]
        data[name] = xarray.DataArray(
            values[:, parts], dims=(row, dim, *origin.dims), coords={dim: levels}, attrs=attributes
        )
        kept = next((c for c in origin.coordinates if c.name == dim), None)
        if kept is not None:
            data[name][dim].attrs.update(_attributes(kept.attributes))
    if seeds is not None:
        coords["seed"] = (row, np.asarray(seeds, dtype=np.int64), {"long_name": "seed of the sample"})
    if labels is not None and spec.classes:
        names = [spec.classes[label] if 0 <= label < len(spec.classes) else "none" for label in labels]
        coords["class"] = (row, np.array(names, dtype=object), {"long_name": "class of the sample"})
    attributes = _attributes(origin.attributes)
    attributes["comment"] = "Drawn from a diffusion model by justimage; not a measurement, analysis or forecast."
    dataset = xarray.Dataset(data, coords=coords, attrs=attributes)
    return xarray.decode_cf(dataset, mask_and_scale=False)


def _attributes(attributes: Attributes) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in attributes}


def write_fields(dataset: Any, path: Path) -> None:
    """Write a dataset of `to_xarray` as NetCDF (.nc) or Zarr (.zarr), whole or not at all, in place of what is there.

    Raises ValueError for other names.
    """
    if path.suffix not in (".nc", ".zarr"):
        raise ValueError(f"{path} ends neither in .nc nor in .zarr")
    with whole(path) as beside:
        store_fields(dataset, beside, path.suffix)


def store_fields(dataset: Any, path: Path, form: str, growing: str = "") -> None:
    """Write a dataset as .nc or .zarr under any name. growing: a dimension along which NetCDF can be appended to."""
    if form == ".zarr":
        dataset.to_zarr(path, mode="w", consolidated=False)
    else:
        dataset.to_netcdf(path, engine="h5netcdf", unlimited_dims=[growing] if growing else None)
