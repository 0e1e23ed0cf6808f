"""Percentiles of values that lie in many files, without ever holding them together: the same numbers as sorting them all.

Every part counts the weight of its values by their first 26 bits (17 of them tell perplexities from 1 to 131,072 apart to one in
16,384); summed, the counts say in which few buckets the percentiles are; the parts then give the values of those buckets only.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

_SHIFT = np.uint64(38)
ROUNDING = 1e-12
"""Share of the weight that a percentile may fall short by, so that 30 % of 10 documents is 3 of them."""


@dataclass(frozen=True)
class Spread:
    """Buckets of values, ascending: their keys, the weight in each, the least value of each."""

    keys: np.ndarray
    """(B,) uint64, the first bits of the values."""
    weights: np.ndarray
    """(B,) float64."""
    least: np.ndarray
    """(B,) float64."""
    documents: int
    """Values in all."""

    @property
    def below(self) -> np.ndarray:
        """(B,) the weight strictly below each bucket."""
        return np.concatenate([[0.0], np.cumsum(self.weights)[:-1]]) if len(self.weights) else self.weights


def keys_of(values: np.ndarray) -> np.ndarray:
    """(N,) uint64 buckets of values that are finite and not negative; the order of values is the order of buckets."""
    return (np.ascontiguousarray(values, np.float64) + 0.0).view(np.uint64) >> _SHIFT  # + 0.0 makes -0.0 a plain zero


def spread_of(values: np.ndarray, weights: np.ndarray) -> Spread:
    """The spread of one part (`values` (N,) finite and not negative, `weights` (N,))."""
    keys, place = np.unique(keys_of(values), return_inverse=True)
    least = np.full(len(keys), math.inf)
    np.minimum.at(least, place, values)
    return Spread(keys, np.bincount(place, weights, len(keys)).astype(np.float64), least, len(values))


def together(parts: Iterable[Spread]) -> Spread:
    """The spread of all parts."""
    found = Spread(np.zeros(0, np.uint64), np.zeros(0), np.zeros(0), 0)
    for part in parts:
        keys, place = np.unique(np.concatenate([found.keys, part.keys]), return_inverse=True)
        least = np.full(len(keys), math.inf)
        np.minimum.at(least, place, np.concatenate([found.least, part.least]))
        weights = np.bincount(place, np.concatenate([found.weights, part.weights]), len(keys))
        found = Spread(keys, weights, least, found.documents + part.documents)
    return found


def buckets_needed(spread: Spread, percents: Sequence[float]) -> np.ndarray:
    """The keys of the buckets whose values decide the percentiles."""
    places = np.searchsorted(spread.below, _wanted(spread, percents), side="left") - 1
    return np.unique(spread.keys[places[places >= 0]])


def percentiles(spread: Spread, percents: Sequence[float], values: np.ndarray, weights: np.ndarray) -> list[float]:
    """For each percent, the least value such that at least that share of the weight lies strictly below it, or infinity.

    values, weights: all of those in the buckets that `buckets_needed` named, equal ones put together or not.
    """
    order = np.argsort(values, kind="stable")
    values, weights = values[order], weights[order]
    keys = keys_of(values)
    found = []
    for wanted in _wanted(spread, percents).tolist():
        bucket = int(np.searchsorted(spread.below, wanted, side="left")) - 1
        if bucket < 0:
            found.append(float(spread.least[0]) if len(spread.least) else math.inf)
            continue
        start, end = np.searchsorted(keys, [spread.keys[bucket], spread.keys[bucket] + np.uint64(1)])
        own, first = np.unique(values[start:end], return_index=True)
        below = spread.below[bucket] + np.concatenate([[0.0], np.cumsum(weights[start:end])])[first]
        enough = int(np.searchsorted(below, wanted, side="left"))
        if enough < len(own):
            found.append(float(own[enough]))
        else:
            found.append(float(spread.least[bucket + 1]) if bucket + 1 < len(spread.least) else math.inf)
    return found


def _wanted(spread: Spread, percents: Sequence[float]) -> np.ndarray:
    total = float(spread.weights.sum())
    return np.asarray(percents, np.float64) / 100 * total * (1 - ROUNDING)
