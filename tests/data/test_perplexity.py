"""Perplexity models: probabilities that sum to one, ARPA text that scores the same, units that fold as they say."""

from __future__ import annotations

import gzip
import itertools
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from penjing.data.perplexity.counts import BEGIN, END
from penjing.data.perplexity.model import ENTRY, Tables, _fill, read_arpa, spelled_ngrams, tables_of, train, write_arpa
from penjing.data.perplexity.score import score, score_streams
from penjing.data.perplexity.store import load_language, manifest
from penjing.data.perplexity.tiers import cutoffs, tier_of, weighted_percentiles
from penjing.data.perplexity.units import (
    TokenVocabulary,
    count_tokens,
    normalise_for_pieces,
    piece_vocabulary,
    token_hashes,
    token_vocabulary,
    train_pieces,
)
from penjing.errors import ConfigError, InputError

TEXTS = pa.array(
    [
        "the cat sat on the mat\nthe dog sat on the cat",
        "the cat ate the fish.\n\na dog ate a cat 12 times",
        "天地玄黃，宇宙洪荒。\n日月盈昃",
    ],
    pa.large_string(),
)

LMPLZ = {
    "<unk>": (-0.86530143, 0.0),
    "<s>": (0.0, -0.088637516),
    "</s>": (-0.86530143, 0.0),
    "a": (-0.86530143, -0.19748943),
    "b": (-0.7191734, -0.17609124),
    "c": (-0.67966485, -0.26884535),
    "d": (-0.7191734, -0.13621975),
    "a </s>": (-0.694814, 0.0),
    "c </s>": (-0.5168468, 0.0),
    "d </s>": (-0.43311357, 0.0),
    "<s> a": (-0.95393896, -0.30103),
    "a a": (-0.694814, -0.30103),
    "c a": (-0.5168468, -0.30103),
    "<s> b": (-0.60559726, -0.30103),
    "a b": (-0.5921517, -0.30103),
    "b c": (-0.49637115, -0.30103),
    "<s> d": (-0.60559726, -0.30103),
    "b d": (-0.55110997, -0.30103),
    "c a </s>": (-0.2211533, 0.0),
    "b c </s>": (-0.31387228, 0.0),
    "<s> d </s>": (-0.16466427, 0.0),
    "b d </s>": (-0.16466427, 0.0),
    "<s> a a": (-0.5724681, 0.0),
    "b c a": (-0.49652994, 0.0),
    "<s> a b": (-0.33609378, 0.0),
    "a a b": (-0.20212016, 0.0),
    "<s> b c": (-0.18082434, 0.0),
    "a b c": (-0.30735227, 0.0),
    "a b d": (-0.5125419, 0.0),
}


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


def test_every_value_equals_what_lmplz_computes() -> None:
    """Reference values: kenlm's lmplz -o 3 --discount_fallback on these five sentences (log10 probability, log10 backoff)."""
    lines = ["a b c", "a b d", "b c a", "a a b c", "d"]
    vocabulary = count_tokens([pa.array(["\n".join(lines)], pa.large_string())], min_count=1, largest=10)
    stream, _ = vocabulary.streams(pa.array(["\n".join(lines)], pa.large_string()))
    ngrams = spelled_ngrams(train([stream], order=3, vocabulary=len(vocabulary.words)).orders, vocabulary)
    assert len(ngrams) == len(LMPLZ)
    for words, (probability, backoff) in LMPLZ.items():
        if words != "<s>":
            assert ngrams[words][0] == pytest.approx(probability, abs=1e-5), words
        assert ngrams[words][1] == pytest.approx(backoff, abs=1e-5), words


def test_ccnet_files_are_read_and_a_document_is_one_line(tmp_path: Path) -> None:
    texts = pa.array(["河水流向大海 云遮住了月亮", "医生在读一封长信", "人们走过古老的桥"] * 20, pa.large_string())
    vocabulary = train_pieces([texts], tmp_path / "state", size=60)
    joined = piece_vocabulary(vocabulary.pieces, joined=True)
    model = train([joined.streams(texts)[0]], order=3, vocabulary=len(joined.words))
    write_arpa(tmp_path / "zh.arpa", model.orders, joined.words)
    (tmp_path / "zh.sp.model").write_bytes(vocabulary.pieces)
    assert list(manifest(tmp_path)["languages"]) == ["zh"]
    scores = load_language(tmp_path, "zh").score(
        pa.array(["河水流向大海\n医生在读一封长信", "河水流向大海医生在读一封长信"], pa.large_string())
    )
    assert scores.log_probability[0] == scores.log_probability[1]
    assert scores.events[0] == scores.events[1]
    (tmp_path / "zh.arpa").rename(tmp_path / "zh.arpa.bin")
    load_language.cache_clear()
    with pytest.raises((ConfigError, InputError), match=r"need the kenlm library|not a kenlm model"):
        load_language(tmp_path, "zh").score(texts)


def test_a_ccnet_model_may_know_a_character_that_its_pieces_do_not(tmp_path: Path) -> None:
    texts = pa.array(["河水流向大海 云遮住了月亮", "医生在读一封长信", "人们走过古老的桥"] * 20, pa.large_string())
    vocabulary = train_pieces([texts], tmp_path / "state", size=60)
    assert vocabulary.streams(pa.array(["鑫"]))[0].tolist().count(0) == 1
    joined = piece_vocabulary(vocabulary.pieces, joined=True)
    model = train([joined.streams(texts)[0]], order=2, vocabulary=len(joined.words))
    write_arpa(tmp_path / "plain" / "zh.arpa", model.orders, joined.words)
    known = (tmp_path / "plain" / "zh.arpa").read_text(encoding="utf-8")
    count = int(known.split("ngram 1=")[1].split("\n")[0])
    known = known.replace(f"ngram 1={count}\n", f"ngram 1={count + 1}\n").replace("\n\\2-grams:", "-1.5\t鑫\t0\n\n\\2-grams:", 1)
    for folder, text in (("plain", None), ("knows", known)):
        (tmp_path / folder).mkdir(exist_ok=True)
        if text is not None:
            (tmp_path / folder / "zh.arpa").write_text(text, encoding="utf-8")
        (tmp_path / folder / "zh.sp.model").write_bytes(vocabulary.pieces)
    document = pa.array(["医生鑫"], pa.large_string())
    scores = {folder: load_language(tmp_path / folder, "zh").score(document) for folder in ("plain", "knows")}
    assert scores["plain"].unknown.tolist() == [1] and scores["knows"].unknown.tolist() == [0]
    assert scores["plain"].events.tolist() == scores["knows"].events.tolist()


@pytest.mark.parametrize("crowded", [False, True])
def test_blocks_of_words_are_scored_as_one_word_after_another(crowded: bool) -> None:
    """Streams longer than a block, with documents of all lengths, against a walk over the spelled n-grams."""
    vocabulary, orders, tables = trained(prune=(0, 0, 1))
    if crowded:  # as full as a table can be: most n-grams lie behind the bucket where they belong
        held = tables.entries[tables.entries["key"] != 0]
        entries = np.zeros(1 << len(held).bit_length(), ENTRY)
        _fill(entries, held["key"].copy(), held["log_probability"].copy(), held["log_backoff"].copy())
        tables = Tables(tables.order, tables.unigrams, entries)
    spelled = spelled_ngrams(orders, vocabulary)
    chance = np.random.default_rng(4)
    words, offsets = [], [0]
    while len(words) < 2000:
        for _ in range(chance.integers(0, 4)):
            words += [BEGIN, *chance.integers(3, len(vocabulary.words), chance.integers(0, 40)).tolist(), 2]
        offsets.append(len(words))
    found = score_streams(np.array(words, np.int32), np.array(offsets), tables)

    def log_probability(context: tuple[str, ...], word: str) -> float:
        known = " ".join((*context, word))
        if known in spelled:
            return spelled[known][0]
        return spelled.get(" ".join(context), (0.0, 0.0))[1] + log_probability(context[1:], word)

    for row, (low, high) in enumerate(itertools.pairwise(offsets)):
        total, said = 0.0, 0
        sentence: list[str] = []
        for number in words[low:high]:
            if number == BEGIN:
                sentence = ["<s>"]
                continue
            total += log_probability(tuple(sentence[-3:]), vocabulary.words[number])
            said += 1
            sentence.append(vocabulary.words[number])
        assert found.events[row] == said
        assert found.log_probability[row] == pytest.approx(total, abs=1e-5 * max(1, said))

