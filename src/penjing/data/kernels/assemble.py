# mypy: disable-error-code="no-untyped-def"
"""Texts put together anew from their lines, some of which are gone and some replaced."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit

from penjing.data.kernels import Bytes, Offsets
from penjing.data.kernels.lines import Lines
from penjing.data.kernels.scan import code_point


def assemble(data: Bytes, lines: Lines, documents: npt.NDArray[np.int64], gone: npt.NDArray[np.bool_],
             replaced: npt.NDArray[np.int64], texts: list[bytes]) -> tuple[Bytes, Offsets]:
    """(data, offsets) of the chosen documents without the lines that are `gone`; the line `replaced[i]` becomes `texts[i]`.

    Where lines went no more than one blank line stays, and none at either end.
    """
    other = np.full(len(lines.starts), -1, np.int64)
    other[replaced] = np.arange(len(replaced))
    new_offsets = np.concatenate([[0], np.cumsum([len(text) for text in texts])]).astype(np.int64)
    new_data = np.frombuffer(b"".join(texts) or b"\0", np.uint8)
    size = int(np.sum(lines.ends[lines.first[documents + 1] - 1] - lines.starts[lines.first[documents]]))
    out, out_offsets = np.empty(size + len(new_data) + len(documents), np.uint8), np.zeros(len(documents) + 1, np.int64)
    used = _assemble(data, lines.starts, lines.ends, lines.first, lines["tokens"], documents, gone, other, new_data, new_offsets,
                     out, out_offsets)
    return out[:used], out_offsets


@njit(cache=True, nogil=True)
def _assemble(data, starts, ends, first, tokens, documents, gone, other, new_data, new_offsets, out, out_offsets):
    place = 0
    for index in range(len(documents)):
        begin = place
        gap, last_blank = False, True
        for line in range(first[documents[index]], first[documents[index] + 1]):
            if gone[line]:
                gap = True
                continue
            blank = tokens[line] == 0
            if blank and gap and last_blank:
                continue
            if place > begin:
                out[place] = 0x0A
                place += 1
            new = other[line]
            if new >= 0:
                for at in range(new_offsets[new], new_offsets[new + 1]):
                    out[place] = new_data[at]
                    place += 1
                last_blank = False
            else:
                for at in range(starts[line], ends[line]):
                    out[place] = data[at]
                    place += 1
                last_blank = blank or _white(data, starts[line], ends[line])
            gap = gap and blank
        while place > begin and out[place - 1] == 0x0A:
            place -= 1
        out_offsets[index + 1] = place
    return place


@njit(cache=True, nogil=True)
def _white(data, position, end):
    """Whether there is nothing but what `str.strip` strips."""
    while position < end:
        point, length = code_point(data, position)
        if not (9 <= point <= 13 or 0x1C <= point <= 0x20 or point == 0x85 or point == 0xA0 or point == 0x1680
                or 0x2000 <= point <= 0x200A or point == 0x2028 or point == 0x2029 or point == 0x202F or point == 0x205F
                or point == 0x3000):
            return False
        position += length
    return True
