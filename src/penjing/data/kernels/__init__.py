"""Compiled loops over UTF-8 text in Arrow buffers: many documents per call, no Python object per document.

Every kernel takes `data` (uint8, the bytes of all documents one after another) and `offsets` (int64, n + 1) as Arrow's
large_string keeps them. Text must be valid UTF-8, which Arrow's string type guarantees and `views` checks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from penjing.errors import InputError, fault

if TYPE_CHECKING:
    import pyarrow as pa

Bytes = npt.NDArray[np.uint8]
Offsets = npt.NDArray[np.int64]


def views(column: pa.Array | pa.ChunkedArray) -> tuple[Bytes, Offsets]:
    """(data, offsets) of a text column without copying where Arrow allows; null counts as empty.

    Raises InputError when the column holds bytes that are not UTF-8.
    """
    import pyarrow as pa

    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
    column = column.cast(pa.large_string())
    if column.null_count:
        column = column.fill_null("")
    try:
        column.validate(full=True)
    except pa.ArrowInvalid as error:
        raise InputError(fault("a text column holds bytes that are not UTF-8", found=str(error)[:120])) from error
    _, offset_buffer, data_buffer = column.buffers()
    if offset_buffer is None or len(column) == 0:
        return np.zeros(0, np.uint8), np.zeros(1, np.int64)
    offsets = np.frombuffer(offset_buffer, np.int64)[column.offset : column.offset + len(column) + 1]
    data = np.frombuffer(data_buffer, np.uint8) if data_buffer is not None else np.zeros(0, np.uint8)
    return data[offsets[0] : offsets[-1]], offsets - offsets[0]


def to_column(data: Bytes, offsets: Offsets) -> pa.Array:
    """A large_string column over the buffers a kernel wrote."""
    import pyarrow as pa

    return pa.LargeStringArray.from_buffers(len(offsets) - 1, pa.py_buffer(offsets), pa.py_buffer(data))
