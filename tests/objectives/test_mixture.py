"""Mixtures: Megatron's order, exact shares, found at any row in constant time."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penjing.errors import ConfigError
from penjing.objectives.mixture import CYCLE, Mixture, blend, resolve


def test_megatron_s_vectors():
    assert blend([0.5, 0.5], 6).tolist() == [0, 1, 0, 1, 0, 1]
    assert blend([0.7, 0.2, 0.1], 10).tolist() == [0, 1, 0, 2, 0, 0, 1, 0, 0, 0]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(0.01, 1), min_size=1, max_size=6), st.integers(1, 3000))
def test_no_source_is_ever_a_row_from_its_share(weights, rows):
    chosen = blend(weights, rows)
    shares = np.array(weights) / sum(weights)
    counts = np.cumsum(chosen[:, None] == np.arange(len(weights)), axis=0)
    assert np.abs(counts - shares * np.arange(1, rows + 1)[:, None]).max() <= len(weights)
    assert (counts - shares * np.arange(1, rows + 1)[:, None]).max() < 1 + 1e-9


def test_rows_of_a_source_are_counted_without_gaps():
    mixture = Mixture([3, 1, 2])
    start = 5 * CYCLE - 500
    seen = {source: int(mixture.counts(start)[source]) for source in range(3)}
    for row in range(start, start + 1000):
        source, index = mixture.locate(row)
        assert index == seen[source]
        seen[source] += 1
    assert [seen[s] for s in range(3)] == mixture.counts(start + 1000).tolist()


def test_row_ten_billion_has_exact_shares():
    counts = Mixture([0.7, 0.2, 0.1]).counts(10**10)
    assert np.abs(counts / 10**10 - [0.7, 0.2, 0.1]).max() < 1 / CYCLE


def test_patterns_share_by_size():
    sizes = {"wanjuan.exam": 30, "wanjuan.news": 10, "pile": 60}
    assert resolve({"wanjuan.*": 1, "pile": 3}, sizes) == pytest.approx(
        {"wanjuan.exam": 0.1875, "wanjuan.news": 0.0625, "pile": 0.75})
    assert resolve({}, sizes) == pytest.approx({"wanjuan.exam": 0.3, "wanjuan.news": 0.1, "pile": 0.6})
    assert resolve({"pile": 2, "wanjuan.exam": 0}, sizes) == {"pile": 1.0}


def test_a_wrong_name_and_a_zero_sum_are_named():
    with pytest.raises(ConfigError) as error:
        resolve({"pille": 1}, {"pile": 1, "web": 1})
    assert str(error.value) == "sources: no source 'pille' among the tokens; expected one of pile, web; did you mean 'pile'?"
    with pytest.raises(ConfigError, match=r"sources: weights sum to zero; found \{'pile': 0.0\}; give one source"):
        resolve({"pile": 0.0}, {"pile": 1})
