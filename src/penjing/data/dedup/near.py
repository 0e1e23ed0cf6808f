"""Every pair of fingerprints within a Hamming distance, by the block-permutation index (Manku, Jain and Das Sarma
2007).

The 64 bits are cut into b blocks. Two fingerprints within k bits differ in at most k blocks, so they agree on some b
- k whole blocks: one sorted table per choice of b - k blocks finds every such pair, none is missed. More blocks mean
more tables with longer prefixes; the plan takes the b that costs least for the number of fingerprints.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
from numba import njit

LONGEST_RUN = 4096
"""Up to so many fingerprints that share a prefix are all compared with each other. In a longer run (template spam) each is compared with
the `ANCHORS` best documents, which are the likely centres, and with a window of neighbours that shrinks so that a run costs about as
much as one of this length: memory stays bounded, and what is left out is counted."""
ANCHORS = 16
LEAST_WINDOW = 16


@dataclass(frozen=True)
class TablePlan:
    """`masks` has one uint64 per table: the bits a pair must share to meet there."""

    distance: int
    blocks: int
    masks: np.ndarray


def plan_tables(documents: int, distance: int, *, blocks: int | None = None) -> TablePlan:
    """The tables that find every pair within `distance` bits among `documents` fingerprints at the least cost."""
    if distance == 0:
        return TablePlan(0, 1, np.array([0xFFFFFFFFFFFFFFFF], np.uint64))
    choices = [blocks] if blocks else range(distance + 1, min(distance + 7, 33))
    best = min(choices, key=lambda b: _cost(documents, distance, b))
    bounds = [round(64 * i / best) for i in range(best + 1)]
    block_masks = [((1 << (high - low)) - 1) << low for low, high in itertools.pairwise(bounds)]
    masks = [sum(kept) for kept in itertools.combinations(block_masks, best - distance)]
    return TablePlan(distance, best, np.array(masks, np.uint64))


def _cost(documents: int, distance: int, blocks: int) -> float:
    tables = math.comb(blocks, distance)
    bits = 64 * (blocks - distance) // blocks
    sort = documents * (math.log2(documents + 2) * 2 + 10)
    return tables * (sort + documents * documents / 2 / 2**bits)


def near_pairs(fingerprints: np.ndarray, plan: TablePlan, *, old: int = 0) -> tuple[np.ndarray, int]:
    """(pairs (P, 2) int64 with first < second, comparisons left out because a run was too long).

    Each pair is given once. The first `old` fingerprints are not compared with each other (an index that is clean
    already).
    """
    found = [table_pairs(fingerprints, plan, table, old=old) for table in range(len(plan.masks))]
    return np.concatenate([pairs for pairs, _ in found]), sum(skipped for _, skipped in found)


def table_pairs(fingerprints: np.ndarray, plan: TablePlan, table: int, *, old: int = 0) -> tuple[np.ndarray, int]:
    """The part of `near_pairs` that meets in one table and in no earlier one."""
    order = np.lexsort((fingerprints, fingerprints & plan.masks[table])).astype(np.int64)
    arguments = (fingerprints, order, plan.masks, table, plan.distance, old)
    count, skipped = _table_pairs(*arguments, np.empty((0, 2), np.int64), LONGEST_RUN)
    pairs = np.empty((count, 2), np.int64)
    if count:
        _table_pairs(*arguments, pairs, LONGEST_RUN)
    return pairs, int(skipped)


@njit(cache=True, nogil=True)
def popcount(x):  # type: ignore[no-untyped-def]
    """Number of one bits."""
    x -= (x >> np.uint64(1)) & np.uint64(0x5555555555555555)
    x = (x & np.uint64(0x3333333333333333)) + ((x >> np.uint64(2)) & np.uint64(0x3333333333333333))
    x = (x + (x >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return np.int64((x * np.uint64(0x0101010101010101)) >> np.uint64(56))


@njit(cache=True, nogil=True)
def window_of(size, longest):  # type: ignore[no-untyped-def]
    """Neighbours that each member of a run is compared with."""
    return size if size <= longest else max(longest * longest // size, LEAST_WINDOW)


@njit(cache=True, nogil=True)
def anchors_of(order, start, end):  # type: ignore[no-untyped-def]
    """Positions of the best documents (smallest numbers) of a run, the best first."""
    found = np.empty(ANCHORS, np.int64)
    number = 0
    for position in range(start, end):
        if number == ANCHORS and order[position] > order[found[number - 1]]:
            continue
        at = number if number < ANCHORS else ANCHORS - 1
        while at > 0 and order[found[at - 1]] > order[position]:
            found[at] = found[at - 1]
            at -= 1
        found[at] = position
        number = min(number + 1, ANCHORS)
    return found[:number]


@njit(cache=True, nogil=True)
def _table_pairs(fingerprints, order, masks, table, distance, old, pairs, longest):  # type: ignore[no-untyped-def]
    """Pairs that meet in this table and in no earlier one; with an empty `pairs` only counted."""
    mask = masks[table]
    write = len(pairs) > 0
    number = 0
    skipped = np.int64(0)
    n = len(order)
    start = 0
    while start < n:
        prefix = fingerprints[order[start]] & mask
        end = start + 1
        while end < n and (fingerprints[order[end]] & mask) == prefix:
            end += 1
        size = end - start
        window = window_of(size, longest)
        compared = np.int64(0)
        for i in range(start, end):
            for j in range(i + 1, min(end, i + window)):
                compared += 1
                if _near(fingerprints, order[i], order[j], masks, table, distance, old):
                    if write:
                        pairs[number, 0] = min(order[i], order[j])
                        pairs[number, 1] = max(order[i], order[j])
                    number += 1
        if size > longest:
            anchors = anchors_of(order, start, end)
            for k in range(len(anchors)):
                i = anchors[k]
                for j in range(start, end):
                    if abs(i - j) < window or order[j] < order[i]:  # compared already, or with a better anchor
                        continue
                    compared += 1
                    if _near(fingerprints, order[i], order[j], masks, table, distance, old):
                        if write:
                            pairs[number, 0] = order[i]
                            pairs[number, 1] = order[j]
                        number += 1
            skipped += np.int64(size) * (size - 1) // 2 - compared
        start = end
    return number, skipped


@njit(cache=True, nogil=True, inline="always")
def _near(fingerprints, a, b, masks, table, distance, old):  # type: ignore[no-untyped-def]
    """Whether two documents are a pair of this table and of no earlier one."""
    difference = fingerprints[a] ^ fingerprints[b]
    if popcount(difference) > distance or (a < old and b < old):
        return False
    for t in range(table):  # noqa: SIM110 - compiled
        if difference & masks[t] == 0:
            return False
    return True
