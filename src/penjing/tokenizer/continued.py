"""Byte-pair training that goes on from where a vocabulary stands: which neighbours, joined, save most tokens.

Runs of symbols are laid one after the other; every pair of neighbours keeps its weighted count and a chain of places where it
stands, so that a merge touches only those places. Ties are settled by the lower ids, so the result does not depend on the order
of the runs' text, only on the runs.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable

import numba
import numpy as np

_EMPTY = np.int64(-1)


class PairCounts:
    """Weighted counts of neighbouring symbols in many runs, kept up to date while pairs are merged."""

    def __init__(self, symbols: np.ndarray, offsets_N1: np.ndarray, weights_N: np.ndarray, *, banned: int) -> None:
        """symbols: int32 of all N runs; weights_N: how often each run occurs; symbols >= `banned` never pair."""
        length = len(symbols)
        self._symbol = symbols.astype(np.int32).copy()
        self._next = np.arange(1, length + 1, dtype=np.int64)
        self._previous = np.arange(-1, length - 1, dtype=np.int64)
        starts, ends = offsets_N1[:-1], offsets_N1[1:]
        filled = ends > starts
        self._next[ends[filled] - 1] = -1
        self._previous[starts[filled]] = -1
        self._weight = np.repeat(weights_N.astype(np.int64), ends - starts)
        capacity = 1 << max(10, int(np.ceil(np.log2(max(2, 2 * length)))) + 1)
        self._keys = np.full(capacity, _EMPTY, dtype=np.int64)
        self._counts = np.zeros(capacity, dtype=np.int64)
        self._heads = np.full(capacity, -1, dtype=np.int64)
        self._nodes = np.empty((3 * length + 4, 2), dtype=np.int64)
        self._state = np.zeros(2, dtype=np.int64)
        self._banned = banned
        _fill(self._symbol, self._next, self._weight, self._keys, self._counts, self._heads, self._nodes, self._state, banned)

    def pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """(keys, counts) of all pairs now; key = left << 32 | right."""
        used = self._keys != _EMPTY
        return self._keys[used], self._counts[used]

    def count(self, key: int) -> int:
        """The pair's count now."""
        slot = _slot(self._keys, key)
        return int(self._counts[slot]) if self._keys[slot] == key else 0

    def merge(self, key: int, joined: int) -> np.ndarray:
        """Replace the pair by `joined` everywhere, left to right; the keys whose count rose."""
        if self._state[1] * 3 > len(self._keys) * 2:
            self._grow()
        return _merge(key, joined, self._symbol, self._next, self._previous, self._weight, self._keys, self._counts, self._heads,
                      self._nodes, self._state, self._banned)

    def _grow(self) -> None:
        keys = np.full(2 * len(self._keys), _EMPTY, dtype=np.int64)
        counts, heads = np.zeros(len(keys), dtype=np.int64), np.full(len(keys), -1, dtype=np.int64)
        _rehash(self._keys, self._counts, self._heads, keys, counts, heads)
        self._keys, self._counts, self._heads = keys, counts, heads


def train(pairs: PairCounts, *, join: Callable[[int, int], int | None], limit: int, min_count: int) -> list[tuple[int, int]]:
    """Merge the most frequent allowed pair again and again: [(id, count), …], at most `limit` new ids.

    join(left, right) gives the id the pair becomes (new, or that of a piece with the same spelling), or None to refuse it.
    """
    keys, counts = pairs.pairs()
    heap = [(-int(count), int(key)) for key, count in zip(keys, counts, strict=True) if count >= min_count]
    heapq.heapify(heap)
    made: list[tuple[int, int]] = []
    seen: set[int] = set()
    refused: set[int] = set()
    while heap and len(made) < limit:
        negative, key = heapq.heappop(heap)
        if key in refused:
            continue
        now = pairs.count(key)
        if now != -negative:
            if now >= min_count:
                heapq.heappush(heap, (-now, key))
            continue
        joined = join(key >> 32, key & 0xFFFFFFFF)
        if joined is None:
            refused.add(key)
            continue
        for raised in pairs.merge(key, joined).tolist():
            count = pairs.count(raised)
            if count >= min_count:
                heapq.heappush(heap, (-count, raised))
        if joined not in seen:
            seen.add(joined)
            made.append((joined, now))
    return made


@numba.njit(cache=True, inline="always")
def _slot(keys, key):  # type: ignore[no-untyped-def]
    mask = len(keys) - 1
    mixed = np.uint64(key) * np.uint64(0x9E3779B97F4A7C15)
    at = np.int64((mixed >> np.uint64(20)) & np.uint64(mask))
    while keys[at] != -1 and keys[at] != key:
        at = (at + 1) & mask
    return at


@numba.njit(cache=True)
def _add(key, amount, place, keys, counts, heads, nodes, state):  # type: ignore[no-untyped-def]
    at = _slot(keys, key)
    if keys[at] == -1:
        keys[at] = key
        state[1] += 1
    counts[at] += amount
    node = state[0]
    nodes[node, 0] = place
    nodes[node, 1] = heads[at]
    heads[at] = node
    state[0] += 1


@numba.njit(cache=True)
def _fill(symbol, following, weight, keys, counts, heads, nodes, state, banned):  # type: ignore[no-untyped-def]
    for place in range(len(symbol) - 1, -1, -1):
        after = following[place]
        if after >= 0 and symbol[place] < banned and symbol[after] < banned:
            key = (np.int64(symbol[place]) << 32) | np.int64(symbol[after])
            _add(key, weight[place], place, keys, counts, heads, nodes, state)


@numba.njit(cache=True)
def _merge(key, joined, symbol, following, previous, weight, keys, counts, heads, nodes, state, banned):  # type: ignore[no-untyped-def]
    left, right = np.int32(key >> 32), np.int32(key & 0xFFFFFFFF)
    at = _slot(keys, key)
    number = 0
    node = heads[at]
    while node >= 0:
        number += 1
        node = nodes[node, 1]
    places = np.empty(number, dtype=np.int64)
    node, number = heads[at], 0
    while node >= 0:
        places[number] = nodes[node, 0]
        number += 1
        node = nodes[node, 1]
    places.sort()
    heads[at] = -1
    raised = np.empty(2 * number, dtype=np.int64)
    end = 0
    for index in range(number):
        place = places[index]
        if symbol[place] != left:
            continue
        after = following[place]
        if after < 0 or symbol[after] != right:
            continue
        amount = weight[place]
        before, behind = previous[place], following[after]
        if before >= 0 and symbol[before] < banned:
            counts[_slot(keys, (np.int64(symbol[before]) << 32) | np.int64(left))] -= amount
        if behind >= 0 and symbol[behind] < banned:
            counts[_slot(keys, (np.int64(right) << 32) | np.int64(symbol[behind]))] -= amount
        symbol[place] = joined
        symbol[after] = -1
        following[place] = behind
        if behind >= 0:
            previous[behind] = place
        if before >= 0 and symbol[before] < banned:
            new = (np.int64(symbol[before]) << 32) | np.int64(joined)
            _add(new, amount, before, keys, counts, heads, nodes, state)
            raised[end] = new
            end += 1
        if behind >= 0 and symbol[behind] < banned:
            new = (np.int64(joined) << 32) | np.int64(symbol[behind])
            _add(new, amount, place, keys, counts, heads, nodes, state)
            raised[end] = new
            end += 1
    counts[_slot(keys, key)] = 0
    return np.unique(raised[:end])


@numba.njit(cache=True)
def _rehash(keys, counts, heads, new_keys, new_counts, new_heads):  # type: ignore[no-untyped-def]
    for index in range(len(keys)):
        if keys[index] != -1:
            at = _slot(new_keys, keys[index])
            new_keys[at], new_counts[at], new_heads[at] = keys[index], counts[index], heads[index]
