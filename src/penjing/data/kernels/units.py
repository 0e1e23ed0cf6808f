# mypy: disable-error-code="no-untyped-def"
"""Which lines hold a unit of up to 20 characters that stands four times in a row."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit

from penjing.data.kernels import Bytes

MAX_UNIT_BYTES = 60


def holds_repeated_unit(data: Bytes, starts: npt.NDArray[np.int64], ends: npt.NDArray[np.int64],
                        chosen: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Per line: very likely some stretch of bytes with a letter stands four or more times in a row; never missed when it does."""
    result = np.zeros(len(starts), np.bool_)
    _units(data, starts, ends, chosen, result)
    return result


@njit(cache=True, nogil=True)
def _units(data, starts, ends, chosen, result):
    # In text of period d each three bytes were seen exactly d bytes before: follow how long one distance lasts.
    last = np.full(1 << 16, -1000, np.int64)
    for line in range(len(starts)):
        if not chosen[line]:
            continue
        start, stop = starts[line], ends[line]
        period, run, letters = 0, 0, 0
        for position in range(start, stop - 2):
            key = (np.int64(data[position]) * 0x9E3779B1 ^ np.int64(data[position + 1]) * 0x85EBCA6B
                   ^ np.int64(data[position + 2]) * 0xC2B2AE35) >> 9 & 0xFFFF
            distance = position - last[key]
            last[key] = position
            if distance > MAX_UNIT_BYTES or position - distance < start:
                period = 0
                continue
            if distance != period:
                period, run, letters = distance, 0, 0
            run += 1
            byte = data[position + 2]
            letters += byte >= 0x80 or 97 <= byte | 0x20 <= 122
            if letters and run >= max(1, 3 * period - 2):
                result[line] = True
                break
