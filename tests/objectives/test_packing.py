"""Packing: nothing lost, nothing twice, hardly anything padded."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penjing.errors import InputError
from penjing.objectives import kernels
from penjing.objectives.instruction import vector_fit
from penjing.objectives.packing import ConcatRows, PackedRows, best_fit, documents_of
from penjing.objectives.shards import ShardWriter, open_shard
from penjing.objectives.ul2 import DENOISERS


def shard_of(tmp_path, lengths, *, prompts=None):
    with ShardWriter(tmp_path / "s", dtype=np.dtype("<i4")) as writer:
        at = 0
        for number, length in enumerate(lengths):
            ids = np.arange(at, at + length)
            at += length
            if prompts is None:
                writer.add(ids)
            else:
                writer.add(ids[: prompts[number]], ids[prompts[number] :])
    return documents_of("s", open_shard(tmp_path / "s"))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 130), min_size=1, max_size=200), st.integers(0, 3))
def test_best_fit_holds_every_item_once_and_no_bin_overflows(sizes, seed):
    packing = best_fit(np.array(sizes), 130, rng=np.random.default_rng(seed))
    assert sorted(packing.items.tolist()) == list(range(len(sizes)))
    loads = np.add.reduceat(np.array(sizes)[packing.items], packing.edges[:-1])
    assert loads.max() <= 130
    assert len(packing) == len(best_fit(np.array(sizes), 130))
    # Two bins that fit into one would never both be open.
    assert len(packing) == 1 or np.sort(loads)[:2].sum() > 130


@pytest.mark.parametrize("median", [180, 300, 800, 1500])
def test_best_fit_pads_less_than_half_a_percent(median):
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(np.log(median), 0.8, 20000).astype(int), 1, 4096)
    assert best_fit(lengths, 4096).fill > 0.995


def test_causal_best_fit_with_split_documents_is_full(tmp_path):
    rng = np.random.default_rng(0)
    rows = PackedRows(shard_of(tmp_path, np.maximum(rng.lognormal(6, 1.2, 20000).astype(int), 1)), width=2048, seed=0)
    assert rows.tokens_per_row / 2048 > 0.999


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 90), st.integers(1, 60)), min_size=1, max_size=120))
def test_two_sided_fit_holds_every_item_once(items):
    encoder, decoder = np.array(items).T
    packing = vector_fit(encoder, decoder, 90, 60, pool=16)
    assert sorted(packing.items.tolist()) == list(range(len(items)))
    assert np.add.reduceat(encoder[packing.items], packing.edges[:-1]).max() <= 90
    assert np.add.reduceat(decoder[packing.items], packing.edges[:-1]).max() <= 60


def test_two_sided_fit_is_full_when_the_sides_match():
    rng = np.random.default_rng(0)
    encoder, decoder = rng.integers(5, 400, 20000), rng.integers(1, 120, 20000)
    assert vector_fit(encoder, decoder, 1024, 304, rng=rng).fill > 0.97


def test_concat_reads_every_token_once_per_epoch_in_a_new_order(tmp_path):
    rows = ConcatRows(shard_of(tmp_path, [5, 1, 17, 40, 2, 3, 0, 9]), width=7, seed=1)
    ids = rows.documents.shard.ids
    read = [int(token) for row in range(33) for piece in rows.pieces(row) for token in ids[piece.start :][: piece.length]]
    assert len(read) == 231
    first, second, third = read[:77], read[77:154], read[154:]
    assert sorted(first) == sorted(second) == sorted(third) == list(range(77))
    assert first != second != third


def test_a_row_of_concat_is_the_same_from_a_fresh_start(tmp_path):
    documents = shard_of(tmp_path, [5, 1, 17, 40, 2, 3, 9])
    played = ConcatRows(documents, width=7, seed=1)
    for row in range(500):
        last = played.pieces(row)
    assert ConcatRows(documents, width=7, seed=1).pieces(499) == last


def test_packed_rows_read_every_token_once_per_epoch(tmp_path):
    rows = PackedRows(shard_of(tmp_path, [5, 1, 17, 40, 2, 3, 9]), width=16, seed=1, overlong="split")
    ids = rows.documents.shard.ids
    for epoch in range(2):
        read = Counter(int(token) for row in range(int(rows.rows_per_epoch))
                       for piece in rows.pieces(epoch * int(rows.rows_per_epoch) + row)
                       for token in ids[piece.start :][: piece.length])
        assert read == Counter(range(77))


def test_whole_documents_are_never_cut(tmp_path):
    documents = shard_of(tmp_path, [5, 1, 17, 40, 2, 3, 9], prompts=[2, 0, 5, 10, 1, 1, 4])
    dropped = PackedRows(documents, width=16, seed=1, overlong="drop")
    assert dropped.truncated_tokens == 57
    pieces = [piece for row in range(int(dropped.rows_per_epoch)) for piece in dropped.pieces(row)]
    assert sorted(piece.length for piece in pieces) == [1, 2, 3, 5, 9] and not any(piece.goes_on for piece in pieces)
    assert {piece.length: piece.prompt for piece in pieces} == {5: 2, 1: 0, 2: 1, 3: 1, 9: 4}


def test_truncating_takes_the_prompt_first(tmp_path):
    documents = shard_of(tmp_path, [20, 40], prompts=[10, 2])
    rows = PackedRows(documents, width=16, seed=1, overlong="truncate", together=False)
    found = sorted(piece for row in range(2) for piece in rows.pieces(row))
    assert [(piece.start, piece.length, piece.prompt, piece.goes_on) for piece in found] == [(4, 16, 6, False), (22, 16, 0, True)]
    assert rows.truncated_tokens == 28


def test_held_out_documents_are_disjoint_and_complete(tmp_path):
    shard = shard_of(tmp_path, list(range(1, 101))).shard
    train = documents_of("s", shard, held_out_percent=10)
    held = documents_of("s", shard, held_out_percent=10, held_out=True)
    assert len(held.number) == 10 and sorted([*train.number, *held.number]) == list(range(100))


def test_two_sequences_are_prompt_and_answer_only_where_the_source_is_supervised(tmp_path):
    shard = shard_of(tmp_path, [20, 40], prompts=[10, 2]).shard
    assert documents_of("s", shard).prompts.tolist() == [10, 2]
    assert documents_of("s", shard, supervised=False).prompts is None


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(1, 900), min_size=1, max_size=60), st.lists(st.integers(0, 5), min_size=7, max_size=7).filter(any),
       st.integers(40, 1500), st.integers(0, 1200).filter(lambda d: d == 0 or d >= 30), st.integers(8, 700), st.integers(0, 9))
def test_a_plan_never_overflows_and_lays_the_stream_in_order(runs, shares, encoder, decoder, nominal, seed):
    density = np.array([task.density for task in DENOISERS])
    mean_span = np.array([task.mean_span for task in DENOISERS])
    plan, laid = kernels.plan_block(np.array(runs), np.array(shares) / sum(shares), density, mean_span, encoder, decoder, 6,
                                    nominal, 8, 1, 100, seed)
    sizes = kernels.plan_ids(plan, density, mean_span, 1, 100)
    for row in range(6):
        here = plan[:, 0] == row
        if decoder:
            assert sizes[here, 0].sum() <= encoder and sizes[here, 1].sum() <= decoder
        else:
            assert sizes[here].sum() - here.sum() <= encoder
    assert (np.diff(plan[:, 0]) >= 0).all() and (plan[:, 2] > 0).all()
    assert plan[:, 1].tolist() == np.cumsum([0, *plan[:, 2]])[: len(plan)].tolist() and laid == plan[:, 2].sum()
    borders = set(np.cumsum(runs).tolist())
    for _, start, length, kind, tail in plan.tolist():
        assert not borders & set(range(start + 1, start + length)), "a piece stays inside its document"
        assert shares[kind] > 0 and (1 <= tail <= max(1, round(0.25 * length))) == (kind == 2)


def test_a_source_without_documents_is_named(tmp_path):
    with pytest.raises(InputError, match=r"s\.bin: source 's' has no documents; leave the source out"):
        shard_of(tmp_path, [0, 0])
