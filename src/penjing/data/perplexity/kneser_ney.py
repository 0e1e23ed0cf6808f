"""Interpolated modified Kneser-Ney smoothing (Chen and Goodman 1998), with the choices of lmplz (Heafield et al. 2013).

Orders below the highest count in how many contexts an n-gram occurs, except n-grams that begin a sentence, which keep their
counts. Discounts come per order from the numbers of n-grams seen once to four times. Pruned n-grams leave their mass to the
backoff of their context. Unigrams are interpolated with the uniform distribution over the vocabulary without <s>.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from penjing.data.perplexity.counts import BEGIN, Order

FALLBACK = (0.5, 1.0, 1.5)
"""Discounts of an order whose counts of counts give none (very small or closed-vocabulary text), as lmplz --discount_fallback."""


@dataclass(frozen=True)
class Smoothed:
    """One order of a model: base-10 logarithms, and the links to the orders below; arrays are (M,)."""

    log_probability: np.ndarray
    log_backoff: np.ndarray
    prefix: np.ndarray
    word: np.ndarray
    suffix: np.ndarray
    first: np.ndarray


def smooth(
    orders: Sequence[Order], *, prune: Sequence[int] = ()
) -> tuple[list[Smoothed], list[tuple[float, float, float]]]:
    """(smoothed orders, discounts per order). `prune[n-1]` drops n-grams seen at most that often; missing entries
    repeat the last.

    Thresholds must not fall from one order to the next, so that the parts of a kept n-gram are kept.
    """
    limits = [prune[min(n, len(prune) - 1)] if prune else 0 for n in range(len(orders))]
    if limits[0] or any(a > b for a, b in itertools.pairwise(limits)):
        raise ValueError(f"pruning thresholds must begin with 0 and must not fall: {limits}")
    adjusted = [_adjusted(orders, n) for n in range(len(orders))]
    kept = [
        order.raw > limit if n else np.ones(len(order.word), bool)
        for n, (order, limit) in enumerate(zip(orders, limits, strict=True))
    ]
    discounts = [
        _discounts(counts[np.arange(len(counts)) != BEGIN] if n == 0 else counts) for n, counts in enumerate(adjusted)
    ]
    probability = _unigrams(adjusted[0], discounts[0])
    probabilities = [probability]
    backoffs: list[np.ndarray] = []
    for n in range(1, len(orders)):
        order, counts = orders[n], adjusted[n]
        contexts = len(orders[n - 1].word)
        total = np.bincount(order.prefix, weights=counts, minlength=contexts)
        spared = np.where(kept[n], np.asarray((0.0, *discounts[n]))[np.minimum(counts, 3)], counts)
        gamma = np.bincount(order.prefix, weights=spared, minlength=contexts) / np.maximum(total, 1)
        gamma[total == 0] = 1.0
        own = np.where(kept[n], counts - spared, 0.0) / total[order.prefix]
        probabilities.append(own + gamma[order.prefix] * probabilities[n - 1][order.suffix])
        backoffs.append(gamma)
    backoffs.append(np.ones(len(orders[-1].word)))
    return _compact(orders, kept, probabilities, backoffs), discounts


def _adjusted(orders: Sequence[Order], n: int) -> np.ndarray:
    order = orders[n]
    if n == len(orders) - 1:
        return order.raw.copy()
    contexts = np.bincount(orders[n + 1].suffix, minlength=len(order.word))
    if n == 0:
        contexts[BEGIN] = 0
        return contexts
    return np.where(order.first == BEGIN, order.raw, contexts)


def _discounts(counts: np.ndarray) -> tuple[float, float, float]:
    t = [float((counts == k).sum()) for k in range(5)]
    if 0 in t[1:4]:
        return FALLBACK
    y = t[1] / (t[1] + 2 * t[2])
    one, two, three = (k - (k + 1) * y * t[k + 1] / t[k] for k in (1, 2, 3))
    sound = 0 <= one <= 1 and 0 <= two <= 2 and 0 <= three <= 3
    return (one, two, three) if sound else FALLBACK


def _unigrams(counts: np.ndarray, discounts: tuple[float, float, float]) -> np.ndarray:
    total = counts.sum()
    taken = np.asarray((0.0, *discounts))[np.minimum(counts, 3)]
    probability = (counts - taken) / max(total, 1) + (taken.sum() / total if total else 1.0) / (len(counts) - 1)
    probability[BEGIN] = 1.0
    return probability


def _compact(
    orders: Sequence[Order], kept: list[np.ndarray], probabilities: list[np.ndarray], backoffs: list[np.ndarray]
) -> list[Smoothed]:
    """The kept n-grams, renumbered."""
    made: list[Smoothed] = []
    renumber = np.zeros(1, np.int64)
    for order, keep, probability, backoff in zip(orders, kept, probabilities, backoffs, strict=True):
        prefix, suffix = order.prefix[keep], order.suffix[keep]
        if made:
            prefix, suffix = renumber[prefix], renumber[suffix]
        with np.errstate(divide="ignore"):
            made.append(
                Smoothed(
                    np.log10(probability[keep]).astype(np.float32),
                    np.log10(backoff[keep]).astype(np.float32),
                    prefix,
                    order.word[keep],
                    suffix,
                    order.first[keep],
                )
            )
        renumber = np.cumsum(keep) - 1
    return made
