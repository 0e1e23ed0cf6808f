"""Which source a row comes from: Megatron's blending rule, found again at any row in constant time.

The rule keeps each source's count within one row of its weight. It is played once over a cycle of `CYCLE` rows; later
rows repeat the cycle, so row 10^10 costs as much as row 0 and there is no state to save. The first cycle is
Megatron's own order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

import numpy as np
from numpy.typing import NDArray

from penjing.errors import ConfigError, fault
from penjing.lookup import did_you_mean

CYCLE = 1 << 16
"""Rows after which the order repeats: a weight is realised to within 1/65,536."""


def blend(weights: Sequence[float], steps: int) -> NDArray[np.int32]:
    """The source of each of the first `steps` rows by Megatron's rule; weights need not sum to one.

    Source: Megatron-LM's build_blending_indices; at step i the largest w*max(i, 1) - count, the first of equals.

    >>> blend([0.7, 0.2, 0.1], 10).tolist()
    [0, 1, 0, 2, 0, 0, 1, 0, 0, 0]
    """
    from penjing.objectives import kernels

    total = float(sum(weights))
    scaled = np.asarray(weights, np.float64)
    return kernels.blend(scaled if abs(total - 1) < 1e-12 else scaled / total, steps)


class Mixture:
    """An endless order of rows over sources with given shares of rows."""

    def __init__(self, weights: Sequence[float]) -> None:
        if not weights or min(weights) < 0 or not sum(weights) > 0:
            raise ConfigError(fault("weights of the sources must be zero or more and must not all be zero",
                                    found=list(weights)))
        self.shares = np.asarray(weights, np.float64) / sum(weights)
        self._chosen = blend(weights, CYCLE)
        self._rank = np.empty(CYCLE, np.int32)
        self._counts = np.bincount(self._chosen, minlength=len(weights)).astype(np.int64)
        for k in range(len(weights)):
            self._rank[self._chosen == k] = np.arange(self._counts[k])

    def locate(self, row: int) -> tuple[int, int]:
        """(source, how many rows of that source came before) of the row at this global index."""
        cycle, place = divmod(row, CYCLE)
        source = int(self._chosen[place])
        return source, cycle * int(self._counts[source]) + int(self._rank[place])

    def counts(self, rows: int) -> NDArray[np.int64]:
        """Rows of each source among the first `rows` rows."""
        cycle, place = divmod(rows, CYCLE)
        return cycle * self._counts + np.bincount(self._chosen[:place], minlength=len(self.shares))


def resolve(weights: Mapping[str, float], sizes: Mapping[str, int], *, where: str = "sources") -> dict[str, float]:
    """The share of tokens of each source, summing to one, sources of weight 0 left out.

    `weights` names sources or patterns (`wanjuan.*`); a pattern's weight is divided over what it matches by size. No
    weights at all: every source by its size. ConfigError for a name that is not there, or a sum of zero.
    """
    if not weights:
        weights = {name: float(size) for name, size in sizes.items()}
    shares: dict[str, float] = {}
    for pattern, weight in weights.items():
        matched = [pattern] if pattern in sizes else [name for name in sizes if fnmatchcase(name, pattern)]
        if not matched:
            raise ConfigError(fault(f"no source '{pattern}' among the tokens", where=where,
                                    expected=f"one of {', '.join(sorted(sizes))}", fix=did_you_mean(pattern, sizes)))
        if weight < 0:
            raise ConfigError(fault(f"weight of '{pattern}' is negative", where=where, found=weight))
        total = sum(sizes[name] for name in matched)
        for name in matched:
            part = sizes[name] / total if total else 1 / len(matched)
            shares[name] = shares.get(name, 0.0) + weight * part
    total_weight = sum(shares.values())
    if not total_weight > 0:
        raise ConfigError(fault("weights sum to zero", where=where, found=dict(weights),
                                fix="give one source a weight above 0"))
    return {name: share / total_weight for name, share in shares.items() if share > 0}
