"""Head, middle and tail: perplexity cut-offs at percentiles per language, kept so that later data is judged alike."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from penjing.data.perplexity.spread import ROUNDING
from penjing.errors import InputError, fault
from penjing.files import read_json, write_json

VERSION = 1
FILE = "cutoffs.json"


def weighted_percentiles(values: np.ndarray, weights: np.ndarray, percents: Sequence[float]) -> list[float]:
    """For each percent, the least value such that at least that share of the weight lies strictly below it.

    Infinite when no value has so much below it (`values` (N,), `weights` (N,) not negative).
    """
    order = np.argsort(values, kind="stable")
    before = np.concatenate([[0.0], np.cumsum(weights[order], dtype=np.float64)])
    unique, first = np.unique(values[order], return_index=True)
    below = before[first]
    places = np.searchsorted(below, np.asarray(percents, np.float64) / 100 * before[-1] * (1 - ROUNDING), side="left")
    return [float(unique[p]) if p < len(unique) else math.inf for p in places]


def cutoffs(perplexity: np.ndarray, weights: np.ndarray, *, head: float, middle: float, low: float) -> dict[str, Any]:
    """Cut-offs of one language: `low`, `head`, `middle` (None = no bound) and the table of percentiles 0 to 99."""
    finite = np.isfinite(perplexity)
    values, mass = perplexity[finite], weights[finite]
    return cutoffs_at(weighted_percentiles(values, mass, percents_of(head, middle, low)), documents=len(values), low=low)


def percents_of(head: float, middle: float, low: float) -> list[float]:
    """The percentiles that cut-offs are made of."""
    return [low, head, middle, *range(100)]


def cutoffs_at(found: Sequence[float], *, documents: int, low: float) -> dict[str, Any]:
    """Cut-offs from the values at `percents_of`; see `cutoffs`."""
    bounds: list[float | None] = [value if math.isfinite(value) else None for value in found]
    return {
        "low": bounds[0] if low > 0 else None,
        "head": bounds[1],
        "middle": bounds[2],
        "documents": documents,
        "percentiles": bounds[3:],
    }


def tier_of(perplexity: np.ndarray, bounds: Mapping[str, Any]) -> np.ndarray:
    """(N,) of "low", "head", "middle" or "tail"; a value on a bound belongs to the worse side, one that is not finite
    to the tail."""
    tiers = np.full(len(perplexity), "tail", dtype="<U6")
    for name in ("middle", "head", "low"):
        if bounds[name] is not None:
            tiers[perplexity < bounds[name]] = name
        elif name != "low":
            tiers[np.isfinite(perplexity)] = name
    return tiers


def write_cutoffs(path: Path, groups: Mapping[str, Mapping[str, Any]], settings: Mapping[str, Any]) -> None:
    """Write the cut-offs with the settings they were made with."""
    write_json(path, {"version": VERSION, **settings, "groups": dict(sorted(groups.items()))})


def read_cutoffs(path: Path) -> dict[str, Any]:
    """Frozen cut-offs by language (or language and source); InputError when the file is not one."""
    found = read_json(path)
    if not isinstance(found, dict) or found.get("version") != VERSION or "groups" not in found:
        raise InputError(fault("not a file of perplexity cut-offs", where=path, expected=f"{FILE} of a score stage"))
    groups: dict[str, Any] = found["groups"]
    return groups
