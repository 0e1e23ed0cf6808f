"""Exact statements about a defect rate from a sample: bounds, plans, power, and what repeated rounds cost.

A claim "fewer than p1 defects, at confidence 1 - alpha" is accepted with at most c defects in n when a corpus that is exactly
p1 bad would show so few with probability at most alpha. That is the same as a one-sided Clopper-Pearson bound at or below p1.
Nothing is approximated by a normal curve: at one defect in a thousand such approximations accept bad data.
"""

from __future__ import annotations

import math


def binomial_cdf(c: int, n: int, p: float) -> float:
    """Probability of at most `c` defects in `n` when each is one with probability `p`."""
    if c < 0:
        return 0.0
    if c >= n or p <= 0:
        return 1.0
    if p >= 1:
        return 0.0
    return incomplete_beta(n - c, c + 1, 1 - p)


def upper_bound(defects: int, n: int, *, alpha: float) -> float:
    """One-sided Clopper-Pearson upper bound of the defect rate at confidence 1 - alpha."""
    if n == 0 or defects >= n:
        return 1.0
    return _solve(lambda p: binomial_cdf(defects, n, p) - alpha)


def lower_bound(defects: int, n: int, *, alpha: float) -> float:
    """One-sided Clopper-Pearson lower bound of the defect rate at confidence 1 - alpha."""
    if n == 0 or defects <= 0:
        return 0.0
    return _solve(lambda p: alpha - (1 - binomial_cdf(defects - 1, n, p)))


def needed_sample(c: int, *, p1: float, alpha: float) -> int:
    """Smallest sample in which at most `c` defects prove a rate below `p1` at confidence 1 - alpha."""
    low, high = c, max(2 * c, 16)
    while binomial_cdf(c, high, p1) > alpha:
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        if binomial_cdf(c, middle, p1) <= alpha:
            high = middle
        else:
            low = middle
    return high


def allowed_defects(n: int, *, p1: float, alpha: float) -> int:
    """Most defects in a sample of `n` that still prove a rate below `p1`; -1 when even none does not."""
    low, high = -1, n
    while high - low > 1:
        middle = (low + high) // 2
        if binomial_cdf(middle, n, p1) <= alpha:
            low = middle
        else:
            high = middle
    return low


def power(c: int, n: int, *, rate: float) -> float:
    """Probability that a corpus whose true defect rate is `rate` is accepted by the plan (n, c)."""
    return binomial_cdf(c, n, rate)


def alpha_of_round(alpha: float, number: int) -> float:
    """What round `number` (from 1) may spend, so that all rounds together, however many, err with at most `alpha`."""
    return alpha / (number * (number + 1))


def adjusted_upper(defects: int, n: int, *, alpha: float, found: int, planted: int) -> float:
    """Upper bound of the true rate when readers find only part of the defects: of `planted` known-bad items they found `found`.

    The bound of the observed rate is divided by the lower bound of the readers' sensitivity, half of alpha for each.
    """
    observed = upper_bound(defects, n, alpha=alpha / 2)
    sensitivity = lower_bound(found, planted, alpha=alpha / 2)
    return min(1.0, observed / sensitivity) if sensitivity > 0 else 1.0


def kappa(both: int, first_only: int, second_only: int, neither: int) -> float | None:
    """Cohen's kappa of two readers who each say defect or not; None when it is not defined."""
    n = both + first_only + second_only + neither
    if n == 0:
        return None
    agreed = (both + neither) / n
    first, second = (both + first_only) / n, (both + second_only) / n
    chance = first * second + (1 - first) * (1 - second)
    return None if chance == 1 else (agreed - chance) / (1 - chance)


def incomplete_beta(a: float, b: float, x: float) -> float:
    """Regularised incomplete beta function I_x(a, b), by its continued fraction (modified Lentz)."""
    if x <= 0:
        return 0.0
    if x >= 1:
        return 1.0
    if x > (a + 1) / (a + b + 2):
        return 1.0 - incomplete_beta(b, a, 1 - x)
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)) / a
    tiny = 1e-300
    c, d = 1.0, 1.0 - (a + b) * x / (a + 1)
    d = 1.0 / (d if abs(d) > tiny else tiny)
    result = d
    for m in range(1, 100_000):
        for numerator in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1.0 + numerator * d
            d = 1.0 / (d if abs(d) > tiny else tiny)
            c = 1.0 + numerator / c
            c = c if abs(c) > tiny else tiny
            step = c * d
            result *= step
        if abs(step - 1) < 1e-14:
            return front * result
    raise ArithmeticError(f"incomplete beta did not converge at a={a}, b={b}, x={x}")


def _solve(excess: object) -> float:
    """Where a falling function of p in (0, 1) is zero."""
    low, high = 0.0, 1.0
    for _ in range(200):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        if excess(middle) > 0:  # type: ignore[operator]
            low = middle
        else:
            high = middle
    return high
