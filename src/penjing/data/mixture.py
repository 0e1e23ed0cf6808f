"""A mixture of sources: how often each document of each source is taken, so that shares are met and no source is overused.

Budgets are in bytes of text (or in tokens, when a rate of bytes per token is given). A source with weight w should give
w / sum(w) of the budget; it gives at most `epochs` times what it has, and what it cannot give is shared among the others by their
weights. Which documents make up a fraction of an epoch is decided by a hash of their ids, so a larger budget contains a smaller.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from penjing.errors import ConfigError, fault


@dataclass(frozen=True)
class Share:
    """What one source gives: `amount` of the budget's unit, which is `epochs` times what it has."""

    weight: float
    available: float
    wanted: float
    amount: float
    epochs: float
    capped: bool


def plan(
    available: Mapping[str, float],
    weights: Mapping[str, float],
    *,
    budget: float | None,
    epochs: Mapping[str, float] | float,
) -> dict[str, Share]:
    """The shares of every weighted source. Budget None = the most that meets the weights exactly within the caps.

    Raises ConfigError when a source is absent or empty, or a budget is more than all caps together.
    """
    chosen = {name: weight for name, weight in sorted(weights.items()) if weight > 0}
    for name in chosen:
        if available.get(name, 0) <= 0:
            raise ConfigError(
                fault(
                    f"no text of source '{name}'",
                    expected=f"one of {', '.join(sorted(available))}",
                    fix="correct the name or take it out of the weights",
                )
            )
    if not chosen:
        raise ConfigError(fault("no source has a weight above 0"))
    limits = {
        name: available[name] * (epochs if isinstance(epochs, int | float) else epochs.get(name, 1.0))
        for name in chosen
    }
    total_weight = sum(chosen.values())
    if budget is None:
        budget = min(limits[name] * total_weight / weight for name, weight in chosen.items())
    if budget > sum(limits.values()) * (1 + 1e-9):
        raise ConfigError(
            fault(
                "the budget is more than the sources have within their epochs",
                found=f"{budget:.0f}",
                expected=f"at most {sum(limits.values()):.0f}",
                fix="raise epochs or lower the budget",
            )
        )
    amounts = _fill(chosen, limits, budget)
    return {
        name: Share(
            weight,
            available[name],
            budget * weight / total_weight,
            amounts[name],
            amounts[name] / available[name],
            amounts[name] < budget * weight / total_weight * (1 - 1e-9),
        )
        for name, weight in chosen.items()
    }


def _fill(weights: Mapping[str, float], limits: Mapping[str, float], budget: float) -> dict[str, float]:
    """Share out the budget by weight; sources at their limit leave the rest to the others."""
    amounts = dict.fromkeys(weights, 0.0)
    open_sources = set(weights)
    left = budget
    while open_sources and left > budget * 1e-12:
        total = sum(weights[name] for name in open_sources)
        full = {name for name in open_sources if amounts[name] + left * weights[name] / total >= limits[name]}
        if not full:
            for name in open_sources:
                amounts[name] += left * weights[name] / total
            break
        for name in full:
            left -= limits[name] - amounts[name]
            amounts[name] = limits[name]
        open_sources -= full
    return amounts


def times(place: float, epochs: float) -> int:
    """How often a document is taken in `epochs` epochs; `place` in [0, 1) is where its id hashes to."""
    whole = int(epochs)
    return whole + (place < epochs - whole)
