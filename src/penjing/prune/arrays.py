"""Arrays of a plan that lie on the disk: a refit makes as many new weights as the cut model has, and none of them waits in
memory until it is written into the checkpoint.

A store is one file without a name in the directory it is given (the system's temporary one otherwise), so that nothing is
left of it when its process ends, however it ends.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from penjing.files import disk_faults
from penjing.models.reader import from_float, to_float
from penjing.models.shards import Entry, read_header, read_rows

CHUNK_BYTES = 16 << 20


class StoredArray:
    """A float32 array in a file, read when it is asked for. `dtype` is what the file holds: F32, or BF16 for weights that
    end as such anyway.
    """

    def __init__(self, file: IO[bytes], entry: Entry) -> None:
        self._file = file
        self._entry = entry

    @property
    def shape(self) -> tuple[int, ...]:
        return self._entry.shape

    @property
    def nbytes(self) -> int:
        """Bytes as float32."""
        return 4 * int(np.prod(self.shape, dtype=np.int64))

    def read(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Rows start..stop as a new float32 array."""
        stop = self.shape[0] if stop is None else stop
        return to_float(read_rows(self._file.fileno(), self._entry, start, stop), self._entry.dtype)

    def chunks(self, chunk_bytes: int = CHUNK_BYTES) -> Iterator[np.ndarray]:
        """All rows, some megabytes at a time."""
        step = max(1, chunk_bytes * self.shape[0] // max(1, self.nbytes))
        for start in range(0, self.shape[0], step):
            yield self.read(start, min(start + step, self.shape[0]))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("an array on the disk cannot be had without a copy")
        values = self.read()
        return values if dtype is None else values.astype(dtype)


class Store:
    """A file that arrays are added to."""

    def __init__(self, directory: Path | None = None) -> None:
        if directory is not None:
            directory.mkdir(parents=True, exist_ok=True)
        self._where = directory or Path(tempfile.gettempdir())
        with disk_faults(self._where):
            self._file: IO[bytes] = tempfile.TemporaryFile(prefix="penjing-", dir=directory, buffering=0)  # noqa: SIM115
        self._end = 0

    def add(self, name: str, shape: tuple[int, ...], rows: Iterable[np.ndarray], *, dtype: str = "F32") -> StoredArray:
        """Write an array of `shape` from float32 blocks of its rows, in order."""
        entry = Entry(name, dtype, shape, self._where, self._end)
        done = 0
        with disk_faults(self._where):
            for block in rows:
                view = memoryview(np.ascontiguousarray(from_float(block, dtype)).data).cast("B")
                while view.nbytes:
                    wrote = os.pwrite(self._file.fileno(), view, self._end)
                    view, self._end, done = view[wrote:], self._end + wrote, done + wrote
        if done != entry.num_bytes:
            raise ValueError(f"{name}: {done} bytes made, {entry.num_bytes} announced")
        return StoredArray(self._file, entry)


def opened(file: Path) -> dict[str, StoredArray]:
    """The arrays of a safetensors file; it stays open as long as one of them lives, even when the file is replaced."""
    entries, _ = read_header(file)
    handle = file.open("rb")
    return {name: StoredArray(handle, entry) for name, entry in entries.items()}


def as_array(value: np.ndarray | StoredArray) -> np.ndarray:
    """All of an array, in memory."""
    return value.read() if isinstance(value, StoredArray) else value


def chunks_of(value: np.ndarray | StoredArray) -> Iterator[np.ndarray]:
    """The rows of an array in blocks of some megabytes."""
    if isinstance(value, StoredArray):
        yield from value.chunks()
        return
    step = max(1, CHUNK_BYTES // max(1, value.nbytes // max(1, len(value)))) if value.ndim else 1
    if value.ndim == 0:
        yield value.reshape(1)
        return
    for start in range(0, len(value), step):
        yield value[start:start + step]
