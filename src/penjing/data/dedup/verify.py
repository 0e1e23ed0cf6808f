"""Jaccard similarity of candidate pairs, from their sketches."""

from __future__ import annotations

import numpy as np
from numba import njit

from penjing.data.dedup.signature import Signatures


def similarities(pairs: np.ndarray, signatures: Signatures) -> np.ndarray:
    """(P,) float64 Jaccard similarity of the shingle sets of each pair (P, 2).

    Exact when both sketches hold every shingle; otherwise estimated on the part of the hash range both cover.
    """
    return similarities_of(pairs, signatures.sketch, signatures.sketch_offsets, signatures.tops)


def similarities_of(pairs: np.ndarray, sketch: np.ndarray, offsets: np.ndarray, tops: np.ndarray) -> np.ndarray:
    """`similarities` of documents whose sketches are given by themselves, as in `Signatures`."""
    out: np.ndarray = _similarities(pairs, sketch, offsets, tops)
    return out


@njit(cache=True, nogil=True)
def _similarities(pairs, sketch, offsets, tops):  # type: ignore[no-untyped-def]
    out = np.zeros(len(pairs), np.float64)
    for p in range(len(pairs)):
        a, b = pairs[p, 0], pairs[p, 1]
        i, j = offsets[a], offsets[b]
        i_end, j_end = offsets[a + 1], offsets[b + 1]
        top = min(tops[a], tops[b])
        both = 0
        either = 0
        while i < i_end or j < j_end:
            if j >= j_end or (i < i_end and sketch[i] < sketch[j]):
                value = sketch[i]
                i += 1
                match = 0
            elif i >= i_end or sketch[j] < sketch[i]:
                value = sketch[j]
                j += 1
                match = 0
            else:
                value = sketch[i]
                i += 1
                j += 1
                match = 1
            if value > top:
                break
            either += 1
            both += match
        if either > 0:
            out[p] = both / either
    return out
