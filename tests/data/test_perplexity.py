"""Perplexity models: probabilities that sum to one, ARPA text that scores the same, units that fold as they say."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from penjing.data.perplexity.counts import BEGIN, END
from penjing.data.perplexity.model import Tables, read_arpa, spelled_ngrams, tables_of, train, write_arpa
from penjing.data.perplexity.score import score, score_streams
from penjing.data.perplexity.tiers import cutoffs, tier_of, weighted_percentiles
from penjing.data.perplexity.units import (
    TokenVocabulary,
    count_tokens,
    normalise_for_pieces,
    token_hashes,
    token_vocabulary,
)
from penjing.errors import InputError

TEXTS = pa.array(
    [
        "the cat sat on the mat\nthe dog sat on the cat",
        "the cat ate the fish.\n\na dog ate a cat 12 times",
        "天地玄黃，宇宙洪荒。\n日月盈昃",
    ],
    pa.large_string(),
)


def trained(order: int = 4, **settings: object) -> tuple[TokenVocabulary, list, Tables]:
    vocabulary = count_tokens([TEXTS], min_count=1, largest=1000)
    model = train([vocabulary.streams(TEXTS)[0]], order=order, vocabulary=len(vocabulary.words), **settings)
    return vocabulary, model.orders, tables_of(model.orders)


@pytest.mark.parametrize("prune", [(0,), (0, 0, 1), (0, 1, 1, 2)])
def test_probabilities_after_any_context_sum_to_one(prune: tuple[int, ...]) -> None:
    vocabulary, _, tables = trained(prune=prune)
    stream, _ = vocabulary.streams(TEXTS)
    words = len(vocabulary.words)
    for at in (0, 1, 2, 5, 9, 17, 25):
        context = stream[max(at - 3, 0) : at + 1]
        context = context[np.flatnonzero(context == BEGIN)[-1] :] if (context == BEGIN).any() else context
        candidates = [w for w in range(words) if w != BEGIN]
        streams = np.concatenate([np.append(context, w) for w in candidates]).astype(np.int32)
        before = score_streams(context, np.array([0, len(context)]), tables).log_probability[0]
        offsets = np.arange(len(candidates) + 1) * (len(context) + 1)
        total = score_streams(streams, offsets, tables).log_probability - before
        assert (10.0**total).sum() == pytest.approx(1.0, abs=2e-6)


def test_arpa_text_scores_like_the_tables(tmp_path: Path) -> None:
    vocabulary, orders, tables = trained()
    write_arpa(tmp_path / "model.arpa", orders, vocabulary.words)
    words, again = read_arpa(tmp_path / "model.arpa")
    other = token_vocabulary(words, token_hashes(words[3:]))
    one, two = score(TEXTS, vocabulary, tables), score(TEXTS, other, again)
    np.testing.assert_allclose(one.log_probability, two.log_probability, atol=1e-5)
    assert one.events.tolist() == two.events.tolist() == [14, 15, 16]
    ngrams = spelled_ngrams(orders, vocabulary)
    assert ngrams["the cat"][0] > ngrams["the dog"][0]


def test_a_broken_arpa_file_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "bad.arpa"
    path.write_text(
        "\\data\\\nngram 1=1\nngram 2=1\n\n\\1-grams:\n-1\ta\t-0.3\n\n\\2-grams:\n-1\ta missing\n\n\\end\\\n"
    )
    with pytest.raises(InputError, match=r"bad.arpa:11: unreadable 2-gram before this line; found 'missing'"):
        read_arpa(path)
    path.write_text("nothing here\n")
    with pytest.raises(InputError, match="not an ARPA language model"):
        read_arpa(path)


def test_units_fold_case_accents_digits_and_width() -> None:
    vocabulary = count_tokens([pa.array(["Café １２ ＡＢ，x\n你好"], pa.large_string())], min_count=1, largest=100)
    assert sorted(vocabulary.words[3:]) == sorted(["cafe", "00", "ab", ",", "x", "你", "好"])
    stream, offsets = vocabulary.streams(pa.array(["cafe\n\n\n你", "", "zzz"], pa.large_string()))
    assert [vocabulary.words[i] for i in stream[: offsets[1]]] == ["<s>", "cafe", "</s>", "<s>", "你", "</s>"]
    assert stream[offsets[2] : offsets[3]].tolist() == [BEGIN, 0, END]
    assert normalise_for_pieces(" Été 12，\x07ok。") == "ete 00,ok."


def test_familiar_text_is_less_surprising_than_shuffled_text(shared: Path) -> None:
    with gzip.open(shared / "wiki" / "wiki_zh.jsonl.gz", "rt", encoding="utf-8") as file:
        texts = [json.loads(line)["text"] for line, _ in zip(file, range(600), strict=False)]
    train_on, held = pa.array(texts[:500], pa.large_string()), texts[500:]
    vocabulary = count_tokens([train_on], min_count=2, largest=10_000)
    tables = tables_of(
        train([vocabulary.streams(train_on)[0]], order=5, vocabulary=len(vocabulary.words), prune=(0, 0, 1)).orders
    )
    rng = np.random.default_rng(0)
    shuffled = ["".join(rng.permutation(list(text))) for text in held]
    plain = score(pa.array(held, pa.large_string()), vocabulary, tables).perplexity
    mixed = score(pa.array(shuffled, pa.large_string()), vocabulary, tables).perplexity
    assert (plain < mixed).mean() > 0.97
    assert np.median(mixed) > 2 * np.median(plain)


def test_percentiles_weigh_and_ties_go_to_the_worse_side() -> None:
    values = np.array([1.0, 2.0, 2.0, 2.0, 5.0])
    assert weighted_percentiles(values, np.ones(5), [0, 20, 30, 80, 100]) == [1.0, 2.0, 5.0, 5.0, np.inf]
    bounds = cutoffs(np.arange(100.0), np.ones(100), head=30, middle=60, low=1)
    assert (bounds["low"], bounds["head"], bounds["middle"]) == (1.0, 30.0, 60.0)
    tiers = tier_of(np.array([0.5, 1.0, 29.9, 30.0, 60.0, np.inf, np.nan]), bounds)
    assert tiers.tolist() == ["low", "head", "head", "middle", "tail", "tail", "tail"]
    by_bytes = cutoffs(np.arange(100.0), np.arange(100.0), head=30, middle=60, low=0)
    assert by_bytes["head"] == pytest.approx(55, abs=1)
