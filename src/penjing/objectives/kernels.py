"""The compiled loops of this room. Imported inside functions, so that settings can be checked without loading numba."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray


@njit(cache=True)
def blend(weights: NDArray[np.float64], steps: int) -> NDArray[np.int32]:
    """Megatron's rule: at step i the source with the largest w*max(i,1) - count, the first of equals."""
    counts = np.zeros(len(weights))
    chosen = np.empty(steps, np.int32)
    for i in range(steps):
        scale = max(i, 1)
        best, best_error = 0, weights[0] * scale - counts[0]
        for k in range(1, len(weights)):
            error = weights[k] * scale - counts[k]
            if error > best_error:
                best, best_error = k, error
        chosen[i] = best
        counts[best] += 1
    return chosen


@njit(cache=True)
def best_fit(sizes: NDArray[np.int32], order: NDArray[np.int64], capacity: int) -> tuple[NDArray[np.int32], int]:
    """Bin of every item: items in `order`, each into the bin with the least room that still holds it, else a new bin.

    Bins with equal room form a linked list per room; a bit set over rooms finds the next room >= size 64 at a time.
    """
    bins = np.empty(len(sizes), np.int32)
    head = np.full(capacity + 1, -1, np.int32)
    following = np.full(len(sizes), -1, np.int32)
    words = np.zeros(capacity // 64 + 2, np.uint64)
    one = np.uint64(1)
    opened = 0
    for item in order:
        size = sizes[item]
        word = size >> 6
        bits = words[word] & (~np.uint64(0) << np.uint64(size & 63))
        while bits == 0 and word < len(words) - 1:
            word += 1
            bits = words[word]
        if bits != 0:
            room = word << 6
            while bits & one == 0:
                bits >>= one
                room += 1
            bin_id = head[room]
            head[room] = following[bin_id]
            if head[room] < 0:
                words[room >> 6] &= ~(one << np.uint64(room & 63))
        else:
            room = capacity
            bin_id = opened
            opened += 1
        bins[item] = bin_id
        rest = room - size
        if rest > 0:
            following[bin_id] = head[rest]
            head[rest] = bin_id
            words[rest >> 6] |= one << np.uint64(rest & 63)
    return bins, opened
