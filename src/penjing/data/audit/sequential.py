"""A sequential plan (Wald 1945): read documents one after the other in a random order and stop as soon as the answer is clear.

Two rates are set against each other: `good`, which should be accepted, and `claim`, which must not be. After n documents with d
defects the likelihood ratio of the two decides: below one boundary accept, above the other refuse, else read on. Wald's boundaries
keep the errors approximately; here the chance of accepting at the claim is worked out exactly for the plan that is used, the end of
the sample included, and the boundary is drawn in until it is at most alpha.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Plan:
    """Accept after `first + d * step` documents with d defects (rounded up); refuse when d defects come within
    `d * step - refuse_before` documents; at most `most` documents are read, and then the answer is no."""

    good: float
    claim: float
    alpha: float
    beta: float
    first: float
    step: float
    refuse_before: float
    most: int

    def accept_at(self, defects: int) -> int:
        """Documents after which so many defects are accepted."""
        return math.ceil(self.first + defects * self.step)

    def refuse_up_to(self, defects: int) -> int:
        """Documents up to which so many defects are refused; 0 or less for a number that is never refused."""
        return math.floor(defects * self.step - self.refuse_before)


def plan(*, good: float, claim: float, alpha: float, beta: float, most: int) -> Plan:
    """The plan whose exact chance of accepting a corpus that is `claim` bad is at most `alpha`.

    `beta` is the chance of refusing one that is `good`, kept as Wald's approximation keeps it when `most` is large enough.
    ValueError unless good < claim.
    """
    if not 0 < good < claim < 1:
        raise ValueError("0 < good < claim < 1")
    clean = math.log((1 - good) / (1 - claim))  # what a document without a defect speaks for the good rate
    defect = math.log(claim / good) + clean
    step = defect / clean
    refuse_before = math.log((1 - alpha) / beta) / clean
    bound = alpha / (1 - beta)
    for _ in range(60):
        made = Plan(good, claim, alpha, beta, -math.log(bound) / clean, step, refuse_before, most)
        if operating(made, claim)["accepts"] <= alpha:
            return made
        bound *= 0.97
    raise ArithmeticError("no boundary keeps alpha")  # Wald's inequality: bound = alpha does


def operating(made: Plan, rate: float) -> dict[str, float]:
    """Exactly, for a true defect rate: chance to accept, to refuse, to reach the end undecided, and documents read on average.

    Between two places where a boundary changes the number of defects only grows, so the distribution is carried from one to the next.
    """
    events = {made.most}
    d = 0
    while made.accept_at(d) <= made.most:
        events.add(made.accept_at(d))
        d += 1
    accepted_below = d
    for d in range(int((made.most + made.refuse_before) / made.step) + 3):
        if 0 < made.refuse_up_to(d) < made.most:
            events.add(made.refuse_up_to(d))
    chance = np.zeros(1)
    chance[0] = 1.0
    accepts = refuses = read = 0.0
    at = 0
    for n in sorted(events):
        limit = _refused_from(made, n)
        grown = np.convolve(chance, _binomial(n - at, rate, limit))
        read += chance.sum() * (n - at)
        refused = max(0.0, chance.sum() - grown[:limit].sum())
        refuses += refused
        read -= _saved(chance, n - at, rate, limit)
        chance = grown[:limit]
        for d in range(min(accepted_below, len(chance))):
            if made.accept_at(d) == n:
                accepts += chance[d]
                chance[d] = 0.0
        at = n
    return {"accepts": float(accepts), "refuses": float(refuses), "undecided": float(chance.sum()), "documents": float(read)}


def follow(made: Plan, defects: Sequence[bool]) -> dict[str, object]:
    """What the plan says about documents read in this order: `answer` accept, refuse or undecided, after `n` with `defects`."""
    found = 0
    for n, bad in enumerate(defects[: made.most], 1):
        found += bool(bad)
        if bad and n <= made.refuse_up_to(found):
            return {"answer": "refuse", "n": n, "defects": found}
        if n >= made.accept_at(found):
            return {"answer": "accept", "n": n, "defects": found}
    return {"answer": "undecided", "n": min(len(defects), made.most), "defects": found}


def _refused_from(made: Plan, n: int) -> int:
    """The smallest number of defects that is refused when it is reached by document n (and not before the last boundary)."""
    d = max(0, math.ceil((n + made.refuse_before) / made.step) - 2)
    while made.refuse_up_to(d) < n:
        d += 1
    return d


def _binomial(n: int, rate: float, most: int) -> np.ndarray:
    """Chances of 0 to `most` defects in n documents."""
    k = np.arange(min(n, most) + 1)
    logs = np.array([math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) for i in k])
    found: np.ndarray = np.exp(logs + k * math.log(rate) + (n - k) * math.log1p(-rate))
    return found


def _saved(chance: np.ndarray, documents: int, rate: float, limit: int) -> float:
    """Documents that are not read between two boundaries because the corpus is refused on the way."""
    total = 0.0
    for d, share in enumerate(chance):
        need = limit - d
        if share < 1e-12 or need > documents:
            continue
        # the need-th defect comes at document m with the negative binomial chance; documents - m are saved
        cdf = 0.0
        log = need * math.log(rate)
        for m in range(need, documents + 1):
            chance_m = math.exp(log)
            cdf += chance_m
            total += share * chance_m * (documents - m)
            log += math.log(m) - math.log(m - need + 1) + math.log1p(-rate)
    return total
