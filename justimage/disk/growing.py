"""Arrays that grow on disk: the memory of one batch, whatever is written."""

import io
import os
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np


class File(io.FileIO):
    """A file whose `write` writes all it is given; `error` is what the system refused, if it did."""

    error: OSError | None = None

    def write(self, data: Any) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Write all of it; returns the number of bytes."""
        left = memoryview(data).cast("B")
        size = len(left)
        try:
            while left:
                left = left[super().write(left) :]
        except OSError as error:
            self.error = error
            raise
        return size


def write_array_header(file: BinaryIO, count: int, shape: tuple[int, ...], dtype: Any) -> None:
    """The header of a .npy with `count` rows of this shape; numpy pads it to the same length for any count."""
    descr = np.lib.format.dtype_to_descr(np.dtype(dtype))
    np.lib.format.write_array_header_2_0(file, {"descr": descr, "fortran_order": False, "shape": (count, *shape)})


class GrowingArray:
    """A .npy (N, ...) written row by row: the memory of one batch, whatever N is.

    Its header counts the rows after every `append`, so that what was written can be read whenever writing stops.
    """

    def __init__(self, path: Path):
        self.path, self.count = path, 0
        self._row: tuple[tuple[int, ...], Any] = (), np.uint8
        self._file = File(path, "wb")

    def append(self, rows: np.ndarray) -> None:
        """Write rows (n, ...) after the others, all or none; all have the shape and type of the first ones."""
        if not self.count:
            self._row = rows.shape[1:], rows.dtype
            self._head(0)
        self._file.seek(0, os.SEEK_END)
        before = self._file.tell()
        try:
            self._file.write(np.ascontiguousarray(rows).data)
            self._head(self.count + len(rows))
        except BaseException:
            self._file.truncate(before)
            self._head(self.count)
            raise
        self.count += len(rows)

    def cut(self, count: int) -> None:
        """Keep the first `count` rows."""
        if count == self.count:
            return
        shape, dtype = self._row
        end = self._head(count) + count * int(np.prod(shape)) * np.dtype(dtype).itemsize
        self._file.truncate(end)
        self.count = count

    def _head(self, count: int) -> int:
        """Write the header; returns its length."""
        header = io.BytesIO()
        write_array_header(header, count, *self._row)
        self._file.seek(0)
        return self._file.write(header.getvalue())

    def close(self) -> None:
        """Close the file."""
        self._file.close()
