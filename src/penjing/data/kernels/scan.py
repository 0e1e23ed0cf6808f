# mypy: disable-error-code="no-untyped-def"
"""Counts of script classes per document: what language identification and sanity checks look at."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit

from penjing.data.kernels import Bytes, Offsets
from penjing.data.kernels.characters import CONTROL, NUM_CLASSES, script_classes, suspects


def scan(data: Bytes, offsets: Offsets, *, skip_fences: bool = False) -> npt.NDArray[np.int64]:
    """Characters of each class per document, int64 [documents, NUM_CLASSES]; the last column is bits (see characters).

    With `skip_fences`, what stands in Markdown code fences does not count (control and replacement characters do):
    program code says nothing about the language of the text around it.
    """
    counts = np.zeros((len(offsets) - 1, NUM_CLASSES), np.int64)
    _scan(data, offsets, script_classes(), suspects(), counts, skip_fences)
    return counts


@njit(cache=True, nogil=True, inline="always")
def code_point(data, position):
    """(code point, bytes it takes) at `position`."""
    first = data[position]
    if first < 0x80:
        return np.int32(first), 1
    if first < 0xE0:
        return np.int32((first & 0x1F) << 6 | data[position + 1] & 0x3F), 2
    if first < 0xF0:
        return np.int32((first & 0x0F) << 12 | (data[position + 1] & 0x3F) << 6 | data[position + 2] & 0x3F), 3
    return np.int32((first & 0x07) << 18 | (data[position + 1] & 0x3F) << 12 | (data[position + 2] & 0x3F) << 6
                    | data[position + 3] & 0x3F), 4


@njit(cache=True, nogil=True, inline="always")
def put(out, position, point):
    """Write `point` as UTF-8 at `position`; the position after it."""
    if point < 0x80:
        out[position] = point
        return position + 1
    if point < 0x800:
        out[position] = 0xC0 | point >> 6
        out[position + 1] = 0x80 | point & 0x3F
        return position + 2
    if point < 0x10000:
        out[position] = 0xE0 | point >> 12
        out[position + 1] = 0x80 | point >> 6 & 0x3F
        out[position + 2] = 0x80 | point & 0x3F
        return position + 3
    out[position] = 0xF0 | point >> 18
    out[position + 1] = 0x80 | point >> 12 & 0x3F
    out[position + 2] = 0x80 | point >> 6 & 0x3F
    out[position + 3] = 0x80 | point & 0x3F
    return position + 4


@njit(cache=True, nogil=True)
def _scan(data, offsets, classes, bits, counts, fences):
    for document in range(len(offsets) - 1):
        position, end = offsets[document], offsets[document + 1]
        row = counts[document]
        inside, fresh = False, True
        while position < end:
            if fences and fresh and position + 2 < end and data[position] == 0x60 and data[position + 1] == 0x60 \
                    and data[position + 2] == 0x60:
                inside = not inside
            point, length = code_point(data, position)
            position += length
            fresh = point == 0x0A or (fresh and point == 0x20)
            name = classes[point]
            if not inside or name >= CONTROL:
                row[name] += 1
            row[15] |= bits[point]
