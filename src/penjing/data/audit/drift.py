"""How far a corpus has moved from a reference: population stability of its make-up, shift of the means of its measures."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

WARN, FAIL = 0.1, 0.25
"""Population stability index from which a histogram is worth a look, and from which the gate says no."""


def stability_index(counts: Mapping[str, float], reference: Mapping[str, float]) -> float:
    """Population stability index: sum over the bins of (p - q) ln(p / q). Half a count is added to each bin of both."""
    bins = sorted(set(counts) | set(reference))
    if not bins:
        return 0.0
    p = np.array([counts.get(name, 0.0) + 0.5 for name in bins])
    q = np.array([reference.get(name, 0.0) + 0.5 for name in bins])
    p, q = p / p.sum(), q / q.sum()
    return float(((p - q) * np.log(p / q)).sum())


def length_bins(characters: np.ndarray) -> dict[str, float]:
    """Documents per power of two of their length in characters."""
    names, counts = np.unique(np.floor(np.log2(np.maximum(characters, 1))).astype(int), return_counts=True)
    return {f"2^{name:02d}": float(count) for name, count in zip(names.tolist(), counts.tolist(), strict=True)}


def shift(mean: float, reference: float) -> float:
    """Relative shift of a mean; infinite when only the reference is zero."""
    if reference == 0:
        return 0.0 if mean == 0 else math.inf
    return mean / reference - 1


def state(index: float) -> str:
    """`steady`, `warn` or `fail` for a stability index."""
    return "fail" if index > FAIL else "warn" if index > WARN else "steady"
