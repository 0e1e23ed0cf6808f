"""GLM's blanks and UniLM's masks as published."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penjing.objectives import unilm as u
from penjing.objectives.example import NO_LOSS
from penjing.objectives.glm import GlmSpecial, blank_infilling, gap_span, glm, sentence_spans, short_spans

SPECIAL = GlmSpecial(mask=900, sentence_mask=901, gap_mask=902, start=903, end=904)


def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_the_published_example():
    sample = blank_infilling(np.arange(1, 13), [(2, 4), (7, 10)], mask=900, special=SPECIAL)
    assert sample.tokens.tolist() == [1, 2, 900, 5, 6, 7, 900, 11, 12, 903, 3, 4, 903, 8, 9, 10]
    assert sample.positions.tolist() == [*range(9), 2, 2, 2, 6, 6, 6, 6]
    assert sample.block_positions.tolist() == [0] * 9 + [1, 2, 3, 1, 2, 3, 4]
    assert sample.targets.tolist() == [NO_LOSS] * 9 + [3, 4, 904, 8, 9, 10, 904] and sample.prefix == 9


def test_spans_may_be_written_in_another_order():
    sample = blank_infilling(np.arange(1, 13), [(2, 4), (7, 10)], mask=900, special=SPECIAL, order=[1, 0])
    assert sample.tokens[9:].tolist() == [903, 8, 9, 10, 903, 3, 4]
    assert sample.positions[9:].tolist() == [6, 6, 6, 6, 2, 2, 2]


def test_flat_positions_are_glm_130b_s():
    masked = blank_infilling(np.arange(1, 13), [(2, 4)], mask=900, special=SPECIAL, flat=True)
    assert masked.positions[11:].tolist() == [2, 2, 2] and not masked.block_positions.any()
    gap = blank_infilling(np.arange(1, 13), [(8, 12)], mask=902, special=SPECIAL, flat=True)
    assert gap.tokens.tolist() == [*range(1, 9), 902, 903, 9, 10, 11, 12] and gap.positions.tolist() == list(range(14))


def rebuild(sample, length):
    part_a, part_b = sample.tokens[: sample.prefix].tolist(), sample.tokens[sample.prefix :]
    starts = np.flatnonzero(part_b == SPECIAL.start)
    spans = {int(sample.positions[sample.prefix + s]): part_b[s + 1 : e].tolist()
             for s, e in zip(starts, [*starts[1:], len(part_b)], strict=True)}
    text = []
    for place, token in enumerate(part_a):
        text += spans[place] if token >= 900 else [token]
    assert len(text) == length
    return text


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 300), st.integers(0, 500), st.integers(0, 2))
def test_blanks_filled_in_rebuild_the_text(length, seed, task):
    text = rng(seed).integers(0, 800, length)
    mixture = [0.0, 0.0, 0.0]
    mixture[task] = 1.0
    ends = np.zeros(1000, bool)
    ends[:80] = True
    sample = glm(text, rng(seed), special=SPECIAL, mixture=mixture, sentence_ends=ends)
    assert rebuild(sample, length) == text.tolist()
    inputs, targets = sample.tokens[sample.prefix :], sample.targets[sample.prefix :]
    assert (targets[:-1][inputs[1:] != SPECIAL.start] == inputs[1:][inputs[1:] != SPECIAL.start]).all()
    assert (targets[np.append(inputs[1:] == SPECIAL.start, True)] == SPECIAL.end).all()


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 400), st.integers(0, 500))
def test_spans_are_apart_and_mask_15_percent(length, seed):
    spans = short_spans(length, rng(seed))
    assert all(b - a >= 1 for a, b in spans) and spans[0][0] >= 0 and spans[-1][1] <= length
    assert all(second[0] - first[1] >= 1 for first, second in pairwise(spans))
    assert sum(b - a for a, b in spans) <= max(round(0.15 * length), 1)


def test_span_lengths_are_poisson_of_three():
    lengths = [b - a for seed in range(300) for a, b in short_spans(600, rng(seed))[:-1]]
    assert 3.0 < np.mean(lengths) < 3.2, "a mean of 3, with 0 raised to 1"


def test_sentences_are_whole_and_not_neighbours():
    ends = np.zeros(100, bool)
    ends[7] = True
    text = np.array([1, 2, 7] * 20)
    spans = sentence_spans(text, ends, rng(0))
    assert all(a % 3 == 0 and b - a == 3 for a, b in spans) and sum(b - a for a, b in spans) >= 9
    assert all(second[0] > first[1] for first, second in pairwise(spans))
    assert sentence_spans(np.array([1, 2, 3]), ends, rng(0)) == []


def test_a_gap_takes_a_quarter_to_all():
    lengths = [100 - gap_span(100, rng(seed))[0][0] for seed in range(2000)]
    assert min(lengths) == 25 and max(lengths) == 100 and 60 < np.mean(lengths) < 65


UNILM = u.UnilmSpecial(mask=900, start=901, end=902)


@pytest.mark.parametrize("task, prefix", [(0, "all"), (1, "first"), (2, "none"), (3, "none")])
def test_unilm_masks_15_percent_in_place(task, prefix):
    text = np.arange(400)
    sample = u.unilm(text, rng(5), special=UNILM, vocab_size=900, task=task)
    whole = np.where(sample.targets == NO_LOSS, sample.tokens, sample.targets)
    assert whole[0] == 901 and whole[-1] == 902 and np.count_nonzero(whole == 902) == 2
    assert whole[(whole != 901) & (whole != 902)].tolist() == text.tolist()
    learned = sample.targets != NO_LOSS
    assert 60 <= learned.sum() <= 63
    assert 0.6 < (sample.tokens[learned] == 900).mean() < 0.95
    cut = int(np.flatnonzero(whole == 902)[0]) + 1
    assert sample.prefix == {"all": len(whole), "first": cut, "none": 0}[prefix]


def test_a_fifth_of_unilm_s_masks_are_wide():
    singles = wides = 0
    for seed in range(40):
        learned = u.unilm(np.arange(2000), rng(seed), special=UNILM, vocab_size=900, task=0).targets != NO_LOSS
        edges = np.flatnonzero(np.diff(np.concatenate(([0], learned, [0]))))
        runs = edges[1::2] - edges[::2]
        singles, wides = singles + int((runs == 1).sum()), wides + int((runs > 1).sum())
    # Single draws that happen to touch count as wide here, hence more than a fifth.
    assert 0.2 < wides / (singles + wides) < 0.42


def test_one_token_is_enough():
    assert rebuild(glm(np.array([5]), rng(0), special=SPECIAL, mixture=(1, 0, 0)), 1) == [5]
    assert len(u.unilm(np.array([5]), rng(0), special=UNILM, vocab_size=900, task=1).tokens) == 4
