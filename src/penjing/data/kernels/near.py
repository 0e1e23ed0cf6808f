# mypy: disable-error-code="no-untyped-def"
"""Sentences that nearly repeat an earlier one of the same document: edit distance at most 10% of the longer.

Their lengths, a 64-bit set of characters and counts of pairs of characters rule out nearly all, a banded edit distance decides.
Differs: a sentence is compared with the 200 before it, so that the cost stays linear in the text.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit

from penjing.data.kernels import Bytes
from penjing.data.kernels.lines import Sentences
from penjing.data.kernels.scan import code_point

EXACT_BELOW = 16
SHORTEST = 6
LONGEST = 1000
WINDOW = 200
_RING, _BUCKETS = 256, 128


def near_repeats(data: Bytes, found: Sentences, document: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Per sentence: whether it nearly repeats an earlier one of its document."""
    result = np.zeros(len(found.starts), np.bool_)
    size = int(np.max(found.ends - found.starts, initial=0)) + 1
    _near(data, found.starts, found.ends, found.folded, document, np.empty(int(np.sum(found.ends - found.starts)) + 1, np.int32),
          np.empty((2, min(size, LONGEST + 2) + 2), np.int32), result)
    return result


@njit(cache=True, nogil=True)
def _near(data, starts, ends, folded, document, points, rows, result):
    number = len(starts)
    first = np.empty(number, np.int64)
    length = np.empty(number, np.int32)
    sets = np.zeros(number, np.uint64)
    pairs = np.zeros((_RING, _BUCKETS), np.uint8)  # pairs of characters by their hash, how often each occurs
    possible = np.empty(WINDOW, np.uint8)
    used = 0
    begin = 0  # the first sentence of the document
    for sentence in range(number):
        if document[sentence] != document[begin]:
            begin = sentence
        first[sentence] = used
        position, bits = starts[sentence], np.uint64(0)
        mine = pairs[sentence % _RING]
        mine[:] = 0
        before = np.uint64(0)
        while position < ends[sentence]:
            point, size = code_point(data, position)
            position += size
            if point == 0x20:
                continue
            points[used] = point
            used += 1
            bits |= np.uint64(1) << (np.uint64(point) & np.uint64(63))
            bucket = (np.uint64(point) * np.uint64(0x9E3779B97F4A7C15) + before) >> np.uint64(57)
            before = np.uint64(point) * np.uint64(0xD6E8FEB86659FD93)
            mine[bucket] += mine[bucket] < 255
        size, mask, fold = np.int32(used - first[sentence]), bits, folded[sentence]
        length[sentence], sets[sentence] = size, mask
        if not SHORTEST <= size <= LONGEST:
            continue
        low = max(begin, sentence - WINDOW)
        # First without a branch, so that many are looked at in one instruction: nearly always there is none.
        some = np.uint8(0)
        for place in range(sentence - low):
            other = min(length[low + place], np.int32(30_000))
            longer = max(size, other)
            allowed = longer * np.int32(52_429) >> np.int32(19)  # longer // 10
            near = (abs(size - other) <= allowed) & (_popcount(mask ^ sets[low + place]) <= np.uint64(2 * allowed))
            close = np.uint8(folded[low + place] == fold if longer < EXACT_BELOW else near)
            possible[place] = close
            some |= close
        if not some:
            continue
        for place in range(sentence - low - 1, -1, -1):
            if not possible[place]:
                continue
            earlier = low + place
            longer = max(size, length[earlier])
            if longer < EXACT_BELOW:
                same = folded[earlier] == fold and fold != 0
            else:
                allowed = longer // 10
                same = length[earlier] >= SHORTEST and _apart(mine, pairs[earlier % _RING]) <= 4 * allowed and \
                    _within(points, first[sentence], size, first[earlier], length[earlier], allowed, rows)
            if same:
                result[sentence] = True
                break


@njit(cache=True, nogil=True)
def _apart(a, b):
    """How many pairs of characters one text has more often than the other; an edit changes at most four."""
    total = np.int32(0)
    for bucket in range(_BUCKETS):
        total += abs(np.int32(a[bucket]) - np.int32(b[bucket]))
    return total


@njit(cache=True, nogil=True, inline="always")
def _popcount(value):
    value -= (value >> np.uint64(1)) & np.uint64(0x5555555555555555)
    value = (value & np.uint64(0x3333333333333333)) + ((value >> np.uint64(2)) & np.uint64(0x3333333333333333))
    value = (value + (value >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return (value * np.uint64(0x0101010101010101)) >> np.uint64(56)


@njit(cache=True, nogil=True)
def _within(points, a, size_a, b, size_b, allowed, rows):
    """Whether the edit distance of two stretches of `points` is at most `allowed`."""
    far = allowed + 1
    for column in range(min(size_b, allowed) + 1):
        rows[0, column] = column
    for i in range(1, size_a + 1):
        low, high = max(0, i - allowed), min(size_b, i + allowed)
        best = far
        for column in range(low, high + 1):
            if column == 0:
                value = i
            else:
                value = far
                if abs(i - 1 - (column - 1)) <= allowed:
                    value = min(value, rows[(i - 1) & 1, column - 1] + (points[a + i - 1] != points[b + column - 1]))
                if column <= min(size_b, i - 1 + allowed):
                    value = min(value, rows[(i - 1) & 1, column] + 1)
                if column > low:
                    value = min(value, rows[i & 1, column - 1] + 1)
            rows[i & 1, column] = value
            best = min(best, value)
        if best > allowed:
            return False
    return rows[size_a & 1, size_b] <= allowed
