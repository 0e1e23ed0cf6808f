"""N-grams of a stream of word numbers, each order numbered from the one below, with sorts only.

An n-gram is stored as (number of its first n-1 words, last word); its suffix is the number of its last n-1 words. Both links
together are all that smoothing needs: contexts group by prefix, lower orders are reached by suffix.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

UNKNOWN, BEGIN, END = 0, 1, 2
"""Numbers of <unk>, <s> and </s>; words follow."""


@dataclass(frozen=True)
class Order:
    """All M n-grams of one order; every array is (M,). Order 1 has M = vocabulary size and prefix = suffix = 0."""

    prefix: np.ndarray
    """Number of the (n-1)-gram of the first n-1 words."""
    word: np.ndarray
    """The last word."""
    suffix: np.ndarray
    """Number of the (n-1)-gram of the last n-1 words."""
    first: np.ndarray
    """The first word."""
    raw: np.ndarray
    """How often it occurs."""


def count_ngrams(words: np.ndarray, *, order: int, vocabulary: int) -> list[Order]:
    """Orders 1 to `order` of `words` (N,): sentences laid end to end, each from BEGIN to END."""
    words = words.astype(np.int64)
    starts = words == BEGIN
    if len(words) and not starts[0]:
        raise ValueError("a stream of sentences begins with <s>")
    begun = np.maximum.accumulate(np.where(starts, np.arange(len(words)), 0)) if len(words) else words
    depth = np.arange(len(words)) - begun
    numbers = np.arange(vocabulary, dtype=np.int64)
    zeros = np.zeros(vocabulary, np.int64)
    orders = [Order(zeros, numbers, zeros, numbers, np.bincount(words, minlength=vocabulary))]
    current = words
    for n in range(2, order + 1):
        places = np.flatnonzero(depth >= n - 1)
        keys = current[places - 1] * vocabulary + words[places]
        unique, first_at, inverse, raw = np.unique(keys, return_index=True, return_inverse=True, return_counts=True)
        prefix = unique // vocabulary
        below = orders[-1]
        orders.append(Order(prefix, unique % vocabulary, current[places[first_at]], below.first[prefix], raw))
        current = np.full(len(words), -1, np.int64)
        current[places] = inverse
    return orders
