"""Who keeps and who goes: stars around the best document, never chains.

Documents are numbered by rank, the best first. The best document that is still free becomes the centre of a cluster
and takes every free document that is a verified pair of it; the next free one follows. Each dropped document
therefore has a verified pair with the document that is kept for it, whatever else it resembles, and the result
depends on the ranks alone.
"""

from __future__ import annotations

import numpy as np
from numba import njit


def stars(documents: int, pairs: np.ndarray) -> np.ndarray:
    """(documents,) int64: the rank of each document's centre; itself when it is kept. Pairs (P, 2) of ranks."""
    if not len(pairs):
        return np.arange(documents, dtype=np.int64)
    low, high = pairs.min(axis=1), pairs.max(axis=1)
    order = np.lexsort((high, low))
    return _stars(documents, low[order], high[order])


def chains(documents: int, pairs: np.ndarray) -> np.ndarray:
    """(documents,) int64: the best rank in each document's connected component (the transitive closure, for
    comparison)."""
    parent = np.arange(documents, dtype=np.int64)
    _unite(parent, pairs)
    return parent


@njit(cache=True, nogil=True)
def _stars(documents, low, high):  # type: ignore[no-untyped-def]
    centre = np.full(documents, -1, np.int64)
    p = 0
    for d in range(documents):
        free = centre[d] < 0
        if free:
            centre[d] = d
        while p < len(low) and low[p] == d:
            if free and centre[high[p]] < 0:
                centre[high[p]] = d
            p += 1
    return centre


@njit(cache=True, nogil=True)
def _unite(parent, pairs):  # type: ignore[no-untyped-def]
    for p in range(len(pairs)):
        a, b = pairs[p, 0], pairs[p, 1]
        while parent[a] != a:
            parent[a] = parent[parent[a]]
            a = parent[a]
        while parent[b] != b:
            parent[b] = parent[parent[b]]
            b = parent[b]
        if a < b:
            parent[b] = a
        else:
            parent[a] = b
    for d in range(len(parent)):
        a = d
        while parent[a] != a:
            a = parent[a]
        parent[d] = a
