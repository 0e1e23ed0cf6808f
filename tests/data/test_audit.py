"""Acceptance sampling is exact, and the indicators see what they say and nothing else."""

from __future__ import annotations

import math
import time

import pytest

from penjing.data.audit.acceptance import (
    adjusted_upper,
    allowed_defects,
    alpha_of_round,
    binomial_cdf,
    kappa,
    lower_bound,
    needed_sample,
    power,
    upper_bound,
)
from penjing.data.audit.drift import stability_index, state
from penjing.data.audit.indicators import defects, has_private_data, lexicon, measures


def test_binomial_probabilities_equal_the_sum_of_their_terms() -> None:
    for c, n, p in ((0, 10, 0.3), (3, 50, 0.02), (40, 100, 0.5), (99, 100, 0.99)):
        exact = sum(math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(c + 1))
        assert binomial_cdf(c, n, p) == pytest.approx(exact, rel=1e-11)
    assert binomial_cdf(5600, 5_600_000, 0.001) == pytest.approx(0.5036, abs=5e-4)


@pytest.mark.parametrize(
    ("confidence", "needed"),
    [
        (0.90, (2302, 3889, 5321, 6679, 9273, 15404, 27042, 60335)),
        (0.95, (2995, 4742, 6294, 7752, 10511, 16959, 29058, 63281)),
        (0.99, (4603, 6636, 8403, 10042, 13105, 20140, 33097, 69058)),
    ],
)
def test_sample_sizes_for_one_in_a_thousand(confidence: float, needed: tuple[int, ...]) -> None:
    alpha = 1 - confidence
    for c, n in zip((0, 1, 2, 3, 5, 10, 20, 50), needed, strict=True):
        assert needed_sample(c, p1=0.001, alpha=alpha) == n
        assert allowed_defects(n, p1=0.001, alpha=alpha) == c
        assert allowed_defects(n - 1, p1=0.001, alpha=alpha) == c - 1
        assert upper_bound(c, n, alpha=alpha) <= 0.001 < upper_bound(c, n - 1, alpha=alpha)


def test_bounds_and_power() -> None:
    for c, n, percent in (
        (0, 1000, 0.299),
        (1, 1000, 0.474),
        (3, 10_000, 0.078),
        (4, 10_000, 0.092),
        (5, 10_000, 0.105),
    ):
        assert 100 * upper_bound(c, n, alpha=0.05) == pytest.approx(percent, abs=6e-4)
    assert power(0, 2995, rate=0.0003) == pytest.approx(0.41, abs=0.005)
    assert power(10, 16959, rate=0.0003) == pytest.approx(0.985, abs=0.001)
    assert 1 - lower_bound(60, 60, alpha=0.05) == pytest.approx(0.0487, abs=1e-4)
    assert sum(alpha_of_round(0.05, i) for i in range(1, 1000)) < 0.05
    assert adjusted_upper(0, 3000, alpha=0.05, found=48, planted=60) > 1.25 * upper_bound(0, 3000, alpha=0.05)
    assert adjusted_upper(0, 3000, alpha=0.05, found=0, planted=60) == 1.0
    assert kappa(20, 5, 10, 15) == pytest.approx(0.4)
    assert kappa(0, 0, 0, 9) is None


def test_private_data_is_recognised_by_its_check_digit_and_date() -> None:
    assert has_private_data("call 13800138000 now")
    assert has_private_data("身份证11010519491231002X。")
    assert not has_private_data("编号110105194912310021")
    assert not has_private_data("编号11010519491331002X")
    assert not has_private_data("order 213800138000 and 1380013800")
    assert has_private_data("mail bob.lee@site.co.uk please")
    assert not has_private_data("@home and a@b")


def test_defects_name_their_class() -> None:
    toxic = lexicon(["zounds", "坏词"])
    none = defects("An ordinary paragraph about rivers. Call us about <the> weather.", toxic=toxic)
    assert not any(none.values())
    assert defects("那是坏词呀", toxic=toxic)["toxic"]
    assert not defects("zoundsful", toxic=toxic)["toxic"]
    assert defects("限时优惠，电话400-123-4567", toxic=toxic)["advertising"]
    assert not defects("限时优惠\n电话400-123-4567", toxic=toxic)["advertising"]
    assert not lexicon([])("anything")


def test_indicators_stay_linear_on_hostile_text() -> None:
    toxic = lexicon(["x"])
    hostile = [
        "<" * 200_000,
        "a" * 200_000 + "@",
        "a.@" * 70_000,
        "<a " * 70_000,
        "1" * 200_000,
        "微信" * 100_000,
        "&#1" * 70_000,
        "a@" + "b." * 100_000,
        "QQ " * 70_000,
    ]
    started = time.process_time()
    for text in hostile:
        defects(text, toxic=toxic)
        measures(text)
    assert time.process_time() - started < 20


def test_drift_is_zero_for_equal_histograms_and_grows() -> None:
    same = {"zh": 500.0, "en": 500.0}
    assert stability_index(same, same) == 0
    assert state(stability_index({"zh": 520.0, "en": 480.0}, same)) == "steady"
    assert state(stability_index({"zh": 900.0, "en": 100.0}, same)) == "fail"
