"""Candidate pairs that share a MinHash band (locality-sensitive hashing)."""

from __future__ import annotations

import numpy as np
from numba import njit

from penjing.data.dedup.near import ANCHORS, window_of

LONGEST_RUN = 2048
"""Up to so many documents that share a band are all paired; in a longer run each with the best ones and a window, as in `near`."""


def band_pairs(bands: np.ndarray, *, old: int = 0) -> tuple[np.ndarray, int]:
    """(unique pairs (P, 2) int64 with first < second, pairs left out because a run was too long) from (N, bands)
    uint64.

    The first `old` documents are not paired with each other.
    """
    found = [column_pairs(np.ascontiguousarray(bands[:, band]), old=old) for band in range(bands.shape[1])]
    return merge_pairs([pairs for pairs, _ in found]), sum(skipped for _, skipped in found)


def column_pairs(column: np.ndarray, *, old: int = 0) -> tuple[np.ndarray, int]:
    """(pairs (P, 2), pairs left out) of the documents with equal values in one band."""
    order = np.argsort(column, kind="stable").astype(np.int64)
    pairs, skipped = _run_pairs(column, order, old, LONGEST_RUN)
    return pairs, int(skipped)


def merge_pairs(parts: list[np.ndarray]) -> np.ndarray:
    """The different pairs of several lists, ordered; document numbers stay below 2^32."""
    if not parts:
        return np.empty((0, 2), np.int64)
    packed = np.unique(
        np.concatenate([(p[:, 0].astype(np.uint64) << np.uint64(32)) | p[:, 1].astype(np.uint64) for p in parts])
    )
    return np.stack([packed >> np.uint64(32), packed & np.uint64(0xFFFFFFFF)], axis=1).astype(np.int64)


@njit(cache=True, nogil=True)
def _run_pairs(column, order, old, longest):  # type: ignore[no-untyped-def]
    """Runs are in the order of documents, the best first, so that the first ones of a run are its anchors."""
    n = len(order)
    number = 0
    skipped = np.int64(0)
    for phase in range(2):
        if phase == 1:
            pairs = np.empty((number, 2), np.int64)
        at = 0
        start = 0
        while start < n:
            end = start + 1
            while end < n and column[order[end]] == column[order[start]]:
                end += 1
            size = end - start
            window = window_of(size, longest)
            compared = np.int64(0)
            for i in range(start, end):
                last = end if i < start + ANCHORS else min(end, i + window)
                for j in range(i + 1, last):
                    compared += 1
                    a, b = order[i], order[j]
                    if a < old and b < old:
                        continue
                    if phase == 1:
                        pairs[at, 0] = min(a, b)
                        pairs[at, 1] = max(a, b)
                    at += 1
            if phase == 0:
                skipped += np.int64(size) * (size - 1) // 2 - compared
            start = end
        number = at
    return pairs, skipped
