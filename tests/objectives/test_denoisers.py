"""Span corruption, UL2, D-UL2's update, O-UL2 and instructions: the published vectors, and nothing ever lost."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penjing.errors import InputError
from penjing.objectives import kernels
from penjing.objectives.instruction import instruction
from penjing.objectives.span import rebuild, span_counts, span_mask
from penjing.objectives.special import Special, find_special, openba_special
from penjing.objectives.ul2 import (
    DENOISERS,
    DUL2_REFERENCE,
    DUL2_START,
    denoise,
    half_denoising,
    half_length,
    mix_denoising,
    mix_length,
    mix_runs,
    ul2,
    update_shares,
)

OPENBA = openba_special()
TEXT = np.arange(100, 120)


def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("length, density, mean_span, seed, expected", [
    (20, 0.15, 3, 0, "00000000000000000111"), (20, 0.5, 3, 0, "00000111111110000101"), (20, 0.5, 3, 1, "01100010000001111111"),
    (32, 0.5, 8, 0, "00000000111110000000011111111111"), (2, 0.5, 3, 0, "01"), (3, 0.15, 3, 0, "001"),
])
def test_masks_are_openba_s(length, density, mean_span, seed, expected):
    mask = span_mask(length, rng(seed), density=density, mean_span=mean_span)
    assert "".join(map(str, mask.astype(int))) == expected


def test_samples_are_openba_s():
    short = denoise(TEXT, rng(0), 1, special=OPENBA)
    assert short.encoder.tolist() == [250200, *range(100, 117), 250199, 1]
    assert short.labels.tolist() == [250199, 117, 118, 119, 1]
    assert short.decoder_input(0).tolist() == [0, 250199, 117, 118, 119]
    extreme = denoise(TEXT, rng(0), 4, special=OPENBA)
    assert extreme.encoder.tolist() == [250202, *range(100, 105), 250199, *range(113, 117), 250198, 118, 250197, 1]
    assert extreme.labels.tolist() == [250199, *range(105, 113), 250198, 117, 250197, 119, 1]
    tail = denoise(TEXT, rng(0), 3, special=OPENBA)
    assert tail.encoder.tolist() == [250201, *range(100, 116), 250199, 1]
    assert tail.labels.tolist() == [250199, *range(116, 120), 1]
    assert [len(denoise(TEXT, rng(seed), 3, special=OPENBA).labels) - 2 for seed in (0, 1, 1234)] == [4, 3, 5]


@pytest.mark.parametrize("number, noise, spans, encoder, labels", [
    (1, 85, 28, 513, 114), (2, 85, 11, 496, 97), (4, 284, 95, 381, 380), (5, 284, 36, 322, 321), (6, 85, 1, 486, 87),
    (7, 284, 4, 290, 289),
])
def test_lengths_at_568_are_the_table_s(number, noise, spans, encoder, labels):
    task = DENOISERS[number - 1]
    assert span_counts(568, density=task.density, mean_span=task.mean_span, most=100) == (noise, spans)
    sample = denoise(np.arange(568), rng(3), number, special=OPENBA)
    assert (len(sample.encoder), len(sample.labels)) == (encoder, labels)
    assert sample.labels[-2] == 567, "the last span touches the end"


@settings(max_examples=150, deadline=None)
@given(st.integers(1, 700), st.integers(1, 7), st.integers(0, 1000))
def test_input_and_target_rebuild_the_text(length, number, seed):
    text = np.arange(1000, 1000 + length)
    sample = denoise(text, rng(seed), number, special=OPENBA)
    assert rebuild(sample, OPENBA).tolist() == text.tolist()


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 900), st.integers(0, 1000))
def test_o_ul2_rebuilds_the_text(length, seed):
    text = np.arange(1000, 1000 + length)
    for sample in (mix_denoising(text, rng(seed), special=OPENBA), half_denoising(text, rng(seed), special=OPENBA)):
        assert rebuild(sample, OPENBA).tolist() == text.tolist()


@pytest.mark.parametrize("number", range(1, 8))
@pytest.mark.parametrize("length", [1, 2, 3])
def test_the_shortest_texts_work(length, number):
    sample = denoise(np.arange(5, 5 + length), rng(0), number, special=OPENBA)
    assert rebuild(sample, OPENBA).tolist() == list(range(5, 5 + length))


def test_sentinels_are_capped():
    sample = denoise(np.arange(2048), rng(0), 4, special=OPENBA)
    used = set(sample.labels.tolist()) - set(range(2048))
    assert len(used) == 100 and min(used) == 250100
    few = Special(np.array([9001, 9000]), eos=1)
    assert rebuild(denoise(np.arange(10, 60), rng(0), 4, special=few), few).tolist() == list(range(10, 60))


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 3000), st.integers(1, 7), st.integers(1, 120))
def test_the_planner_knows_every_sample_s_size(length, number, sentinels):
    task = DENOISERS[number - 1]
    special = Special(np.arange(9000, 9000 - sentinels, -1), eos=1, modes={"R": 1, "S": 2, "X": 3})
    tail = max(1, length // 5) if not task.mean_span else 0
    sample = denoise(np.arange(10000, 10000 + length), rng(length), number, special=special, tail=tail or None)
    sizes = kernels.sample_sizes(length, tail, task.density, task.mean_span, 1, sentinels)
    assert sizes == (len(sample.encoder), len(sample.labels))


def test_ul2_draws_by_its_shares():
    kinds = [ul2(TEXT, rng(seed), special=OPENBA, shares=(0, 0, 0.5, 0, 0.5, 0, 0)).denoiser for seed in range(200)]
    assert set(kinds) == {3, 5} and 70 < kinds.count(3) < 130


REFERENCE = np.array(DUL2_REFERENCE)


@pytest.mark.parametrize("excess, unclamped, clamped", [
    ([0.1, 0, 0.2, 0, -0.1, 0, 0], [0.018787, 0.017, 0.829884, 0.084944, 0.015384, 0.017, 0.017],
     [0.018756, 0.016973, 0.828545, 0.084807, 0.016973, 0.016973, 0.016973]),
    ([0.3] * 7, [0.020012, 0.020012, 0.799934, 0.100004, 0.020012, 0.020012, 0.020012],
     [0.020012, 0.020012, 0.799934, 0.100004, 0.020012, 0.020012, 0.020012]),
    ([0.2, -0.2, 0.2, -0.2, 0.2, -0.2, 0.2], [0.020980, 0.014068, 0.838641, 0.070283, 0.020980, 0.014068, 0.020980],
     [0.020533, 0.016814, 0.820763, 0.084011, 0.020533, 0.016814, 0.020533]),
])
def test_d_ul2_s_vectors(excess, unclamped, clamped):
    losses = REFERENCE + excess
    assert update_shares(DUL2_START, losses, REFERENCE, clamp=False).round(6).tolist() == unclamped
    assert update_shares(DUL2_START, losses, REFERENCE).round(6).tolist() == clamped


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(0, 30), min_size=7, max_size=7), st.integers(1, 30))
def test_d_ul2_s_shares_sum_to_one_and_keep_their_floor(losses, times):
    shares = np.array(DUL2_START)
    for _ in range(times):
        shares = update_shares(shares, losses, DUL2_REFERENCE)
    assert abs(shares.sum() - 1) < 1e-12 and shares.min() >= 1e-4 / 7 * (1 - 1e-9)


def test_d_ul2_refuses_a_loss_that_is_not_a_number():
    with pytest.raises(InputError, match="losses per denoiser must be seven finite numbers"):
        update_shares(DUL2_START, [float("nan")] * 7, DUL2_REFERENCE)


def test_mix_denoising_s_vector():
    text, noise = mix_runs(400, rng(0))
    expected = ("2,16 4,11 2,4 6,2 2,1 19,14 8,6 18,6 11,44 6,1 6,2 6,1 3,6 17,1 14,4 11,1 7,3 7,1 3,1 12,1 4,3 5,5 10,13 "
                "17,53")
    assert " ".join(f"{a},{b}" for a, b in zip(text, noise, strict=True)) == expected
    sample = mix_denoising(np.arange(1000, 1400), rng(0), special=OPENBA)
    assert (len(sample.encoder), len(sample.labels)) == (226, 225)
    assert sample.encoder[0] == OPENBA.modes["X"]


def test_mix_denoising_at_1700_is_the_spec_s():
    _, noise = mix_runs(1700, rng(0))
    assert len(noise) == 98 and noise[-1] == 224
    counts = {len(mix_runs(1700, rng(seed))[1]) for seed in range(300)}
    assert min(counts) >= 93 and max(counts) <= 106


def test_o_ul2_lengths_fit_for_every_draw():
    length = mix_length(1040, 1040, sentinels=100)
    for seed in range(300):
        sample = mix_denoising(np.arange(1000, 1000 + length), rng(seed), special=OPENBA)
        assert len(sample.encoder) <= 1040 and len(sample.labels) <= 1040
    half = half_denoising(np.arange(half_length(1040, 1040)), rng(0), special=OPENBA)
    assert (len(half.encoder), len(half.labels)) == (1040, 1040)
    half = half_denoising(np.arange(2048), rng(0), special=OPENBA)
    assert (len(half.encoder), len(half.labels)) == (1027, 1026)


def test_instruction_has_as_many_labels_as_inputs():
    sample = instruction(np.array([11, 12, 13]), np.array([21, 22, 1]), special=OPENBA, encoder_length=10, decoder_length=8)
    assert sample.encoder.tolist() == [250201, 11, 12, 13, 250199, 1]
    assert sample.labels.tolist() == [250199, 21, 22, 1]
    assert sample.decoder_input(0).tolist() == [0, 250199, 21, 22]


def test_instruction_is_cut_to_its_sides():
    sample = instruction(np.arange(50), np.append(np.arange(60, 90), 1), special=OPENBA, encoder_length=10, decoder_length=8)
    assert sample.encoder.tolist() == [250201, 0, 1, 2, 3, 4, 5, 6, 250199, 1]
    assert sample.labels.tolist() == [250199, 60, 61, 62, 63, 64, 65, 66]


def test_a_tokenizer_without_sentinels_or_modes_is_named():
    with pytest.raises(InputError) as error:
        find_special({"<s>": 1}, eos=1, where="tok")
    assert str(error.value) == ("tok: the tokenizer has no sentinels; expected special tokens <extra_id_0>, <extra_id_1>, …; "
                                "add them with grow-vocab's special_tokens: ['<extra_id_0..99>'], or use another objective")
    with pytest.raises(InputError, match=r"tok: the tokenizer lacks a token for UL2's modes; expected one of <R>, \[R\]"):
        find_special({"<extra_id_0>": 5}, eos=1, where="tok")
    assert find_special({"<extra_id_0>": 5, "<extra_id_1>": 4}, eos=1, modes=False).sentinels.tolist() == [5, 4]
