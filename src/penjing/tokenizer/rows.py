"""What the row of a new token begins as: made from the rows of the old tokens that spelled it.

An input row stands for what was read, so later tokens count more (the last byte says which character it is); an output row is
what makes the model begin to write the piece, so the first old token counts more. Sums of nearly orthogonal rows come out short;
new rows are scaled to the usual length of the rows they stand beside, and a little noise keeps any two apart.
"""


from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from penjing.config import generator

Init = Literal["position", "uniform", "idf", "first_last", "multivariate", "focus", "random"]
Role = Literal["input", "output", "bias"]
NOISE = 0.02
"""Standard deviation of the tie-breaking noise, in units of the standard deviation of the old rows."""
IDF_CONSTANT = 1e-3
FIRST_SHARES = (0.7, 0.2, 0.1)
"""`first_last`: shares of the first, second and third old token in an output row; reversed for an input row."""


@dataclass(frozen=True)
class RowStatistics:
    """What the existing rows of one weight look like."""

    mean_H: np.ndarray
    std: float
    norm: float
    """Mean length of the rows that new rows should resemble."""
    covariance_HH: np.ndarray | None = None


def weights(old: tuple[int, ...], init: Init, role: Role, frequency_V: np.ndarray | None) -> np.ndarray:
    """Shares (sum 1) of the old tokens in a new row; `frequency_V` is each old id's share of the corpus, for `idf`."""
    number = len(old)
    if init == "position":
        ramp = np.arange(1, number + 1, dtype=np.float64)
        raw = ramp if role == "input" else ramp[::-1]
    elif init == "first_last":
        raw = np.full(number, 1e-3)
        raw[: min(3, number)] = FIRST_SHARES[: min(3, number)]
        raw = raw if role == "output" else raw[::-1]
    elif init == "idf":
        assert frequency_V is not None
        raw = IDF_CONSTANT / (IDF_CONSTANT + frequency_V[list(old)])
    else:
        raw = np.ones(number)
    return raw / raw.sum()


def new_rows(olds: list[tuple[int, ...]], *, init: Init, role: Role, statistics: RowStatistics, old_rows: dict[int, np.ndarray],
             frequency_V: np.ndarray | None, seed: int, first: int, name: str) -> np.ndarray:
    """float32 [n, H], rows of new tokens `first`, `first + 1`, … made of `old_rows` (old id -> float32 [H])."""
    hidden = len(statistics.mean_H)
    out = np.empty((len(olds), hidden), dtype=np.float64)
    for at, old in enumerate(olds):
        rng = generator(seed, "rows", name, first + at)
        if init == "random":
            out[at] = rng.normal(0.0, 0.02, hidden)
            continue
        if init == "multivariate" or not old:
            out[at] = _drawn(statistics, rng)
            continue
        share = weights(old, init, role, frequency_V)
        out[at] = share @ np.stack([old_rows[index] for index in old]).astype(np.float64)
        length = float(np.linalg.norm(out[at]))
        if length > 0:
            out[at] *= statistics.norm / length
        out[at] += rng.normal(0.0, NOISE * statistics.std, hidden)
    return out.astype(np.float32)


def _drawn(statistics: RowStatistics, rng: np.random.Generator) -> np.ndarray:
    """One draw from the normal distribution of the existing rows."""
    if statistics.covariance_HH is None:
        return statistics.mean_H + rng.normal(0.0, statistics.std, len(statistics.mean_H))
    return statistics.mean_H + statistics.covariance_HH @ rng.normal(0.0, 1.0, len(statistics.mean_H))


def measure_rows(chunks: Iterator[np.ndarray], like: np.ndarray, *, covariance: bool) -> RowStatistics:
    """Statistics of a weight read in chunks of float32 rows.

    like: bool [V], the rows whose mean length new rows are scaled to. With `covariance`, a factor F with F F' = covariance.
    """
    total: np.ndarray | None = None
    square: np.ndarray | None = None
    squares, number, start = 0.0, 0, 0
    lengths: list[np.ndarray] = []
    for chunk in chunks:
        rows = chunk[: max(0, len(like) - start)].astype(np.float64)
        if not len(rows):
            break
        total = rows.sum(axis=0) if total is None else total + rows.sum(axis=0)
        squares += float((rows * rows).sum())
        if covariance:
            square = rows.T @ rows if square is None else square + rows.T @ rows
        lengths.append(np.linalg.norm(rows, axis=1)[like[start: start + len(rows)]])
        number += len(rows)
        start += len(rows)
    assert total is not None
    mean = total / number
    std = float(np.sqrt(max(0.0, squares / (number * len(mean)) - float((mean * mean).mean()))))
    factor = None
    if square is not None:
        values, vectors = np.linalg.eigh(square / number - np.outer(mean, mean))
        factor = vectors * np.sqrt(np.maximum(values, 0.0))
    norms = np.concatenate(lengths)
    return RowStatistics(mean, std, float(norms.mean()) if len(norms) else 0.0, factor)
