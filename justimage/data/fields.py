"""Fields: NetCDF and Zarr through xarray, with variables and levels as channels."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from justimage.data.arrays import Arrays, Missing
from justimage.data.axes import FieldOptions, FieldPlan, channel_names, labels_along, origin_of, plan_of, sample_name
from justimage.data.origin import Origin
from justimage.data.stores import check_chunks, name_damage, open_dataset
from justimage.disk.cache import state_of


class _Lazy:
    """Samples (N, C, *S) of one or more datasets, read when asked for; float32."""

    dtype = np.dtype(np.float32)

    def __init__(
        self,
        name: str,
        parts: Sequence[Any],
        coordinates: Sequence[Any],
        counts: Sequence[int],
        plan: FieldPlan,
        files: Sequence[str],
    ):
        self.name, self.parts, self.coordinates, self.plan, self.files = name, parts, coordinates, plan, files
        self.ends = np.cumsum(counts)
        self.shape = (int(self.ends[-1]), len(plan.channels), *plan.size)

    def place(self, index: int) -> tuple[int, int]:
        """Which part a sample lies in, and where in it."""
        part = int(np.searchsorted(self.ends, index, side="right"))
        return part, index - (int(self.ends[part - 1]) if part else 0)

    def called(self, index: int) -> str:
        """What a sample is called: its time, or whatever its dimension counts; or its file."""
        part, inside = self.place(index)
        if self.plan.sample_dim is None and len(self.files) > 1:
            return f"the sample of {self.files[part]}"
        return sample_name(self.coordinates[part], inside, self.plan.sample_dim)

    def __getitem__(self, index: int | slice, /) -> np.ndarray:
        if not isinstance(index, slice):
            part, inside = self.place(index)
            with name_damage(f"{self.called(index)} of {self.name}"):
                return self.plan.read(self.parts[part], inside)
        with name_damage(self.name):
            start, stop, _ = index.indices(self.shape[0])
            found, begin = [], 0
            for part, end in zip(self.parts, self.ends.tolist(), strict=True):
                if start < end and begin < stop:  # one piece of each file: chunks are decompressed once
                    found.append(self.plan.read(part, slice(max(start - begin, 0), min(stop, end) - begin)))
                begin = end
            return np.concatenate(found)


def read_fields(
    paths: Sequence[Path],
    options: FieldOptions,
    *,
    missing: Missing = "stop",
    fill_values: Sequence[float] = (),
    memory_gb: float = 2.0,
) -> Arrays:
    """Samples from NetCDF files or Zarr stores; several are joined along the samples.

    What fits into memory_gb is read at once, more is read as needed. Raises ValueError for variables, dimensions,
    levels and coordinates that do not exist (with those that do), variables that do not share their dimensions, files
    that differ, and damaged ones.
    """
    parts = [open_dataset(path) for path in paths]
    plan = plan_of(parts[0], options, str(paths[0]))
    channels, origin = channel_names(parts[0], plan), origin_of(parts[0], plan)
    twice = next((name for name in channels if channels.count(name) > 1), None)
    if twice is not None:
        raise ValueError(
            f"{paths[0]} gives the channel {twice} twice; name each variable and each level once, and give "
            "equal levels values of their own"
        )
    counts, of_all = [], set(origin.coordinates)
    for path, part in zip(paths, parts, strict=True):
        if part is not parts[0]:
            its = plan_of(part, options, str(path))
            _compare(path, part, its, paths[0], channels, origin, plan)
            of_all &= set(origin_of(part, its).coordinates)
        counts.append(part.sizes[plan.sample_dim] if plan.sample_dim else 1)
        if path.is_dir():
            check_chunks(path, part, dict.fromkeys(name for name, _ in plan.channels), missing)
    if not sum(counts):
        raise ValueError(f"{paths[0]} holds no samples: its dimension {plan.sample_dim} has the length 0")
    # A single time or number of each file, where there is one, is that of its samples and not of the grid.
    origin = replace(origin, coordinates=tuple(each for each in origin.coordinates if each.dims or each in of_all))
    name = paths[0].name if len(paths) == 1 else f"{paths[0].parent.name or '.'} ({len(paths)} files)"
    files = [file for path in paths for file in ([path] if path.is_file() else sorted(path.rglob("*")))]
    with name_damage(name):
        coordinates = [part.drop_vars(list(part.data_vars)).load() for part in parts]
    lazy = _Lazy(name, parts, coordinates, counts, plan, [path.name for path in paths])
    y, classes = labels_along(coordinates, counts, plan, options.label, name)
    x: Any = lazy
    if 4 * np.prod(lazy.shape, dtype=np.int64) <= memory_gb * 2**30:
        x = lazy[:]
        for part in parts:
            part.close()
    return Arrays(
        x,
        y,
        classes=classes,
        name=name,
        channels=channels,
        origin=origin,
        missing=missing,
        fill_values=fill_values,
        where=lazy.called,
        identity=f"{state_of(files)} {plan} {options}",
    )


def _compare(
    path: Path, part: Any, its: FieldPlan, first_path: Path, channels: list[str], origin: Origin, plan: FieldPlan
) -> None:
    """Raises ValueError where a file's variables, levels, units or grid are not the first one's."""

    def refuse(what: str, found: Any, expected: Any) -> None:
        raise ValueError(
            f"{path} differs from {first_path} in its {what}: {str(found)[:200]}, not {str(expected)[:200]}"
        )

    both = origin, origin_of(part, its)
    units = [[dict(variable.attributes).get("units") for variable in each.variables] for each in both]
    grids = [{c.name: c.values for c in each.coordinates if c.dims} for each in both]
    for what, expected, found in (
        ("dimensions", (plan.sample_dim, plan.level_dim, *plan.dims), (its.sample_dim, its.level_dim, *its.dims)),
        ("sizes", plan.size, its.size),
        ("channels", channels, channel_names(part, its)),
        ("units", *units),
        ("coordinates", list(grids[0]), list(grids[1])),
    ):
        if expected != found:
            refuse(what, found, expected)
    for name, values in grids[0].items():
        if len(values) != len(grids[1][name]) or not np.allclose(values, grids[1][name], rtol=1e-5):
            refuse(f"coordinate {name}", grids[1][name], values)
