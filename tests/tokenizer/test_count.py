"""Counting: sums, fertility and coverage that do not depend on how the corpus is cut up, and the published coverage table."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from penjing.contract import Job
from penjing.data.document import CorpusWriter, documents, open_corpus
from penjing.errors import InputError
from penjing.tokenizer.count import count_corpus, coverage, fertility
from penjing.tokenizer.read import read_vocabulary
from penjing.tokenizer.report import read_frequencies
from penjing.tokenizer.vocabulary import Vocabulary
from penjing.tokenizer.write import fast_tokenizer


def test_counts_are_those_of_the_library_and_survive_another_cut(shared: Path, corpus: Path, tmp_path: Path) -> None:
    tokenizer = shared / "models" / "stories260K"
    counts = count_corpus(tokenizer, corpus, job=Job(), state=tmp_path / "one")
    texts = {lang: [] for lang in ("zh", "en")}
    rows = []
    for batch in open_corpus(corpus).batches():
        for row in batch.to_pylist():
            texts[row["lang"]].append(row["text"])
            rows.append(row)
    library = fast_tokenizer(read_vocabulary(tokenizer))
    for lang, own in texts.items():
        ids = np.concatenate([item.ids for item in library.encode_batch_fast(own, add_special_tokens=False)])
        assert np.array_equal(counts.tokens[lang], np.bincount(ids, minlength=512))
        assert counts.totals[lang] == {"documents": len(own), "bytes": sum(len(text.encode()) for text in own),
                                       "characters": sum(map(len, own)), "tokens": len(ids)}
        assert counts.characters[lang].sum() == counts.totals[lang]["characters"]
    assert counts.characters["zh"][ord("的")] == sum(text.count("的") for text in texts["zh"])
    with CorpusWriter(tmp_path / "again", provenance={}) as writer:
        for at, row in enumerate(rows):
            writer.write(documents([row]), shard=f"part-{at % 3}")
    again = count_corpus(tokenizer, tmp_path / "again", job=Job(workers=2, engine="thread"), state=tmp_path / "two")
    assert again.totals == counts.totals and again.scripts == counts.scripts
    assert all(np.array_equal(again.tokens[lang], counts.tokens[lang]) for lang in counts.tokens)


def test_fertility_is_tokens_per_character_and_bytes_per_token() -> None:
    found = fertility({"zh": {"documents": 1, "bytes": 300, "characters": 100, "tokens": 150},
                       "en": {"documents": 1, "bytes": 400, "characters": 400, "tokens": 100}})
    assert found["zh"]["tokens_per_character"] == 1.5 and found["en"]["bytes_per_token"] == 4.0
    assert found["all"]["tokens_per_character"] == 0.5


def test_published_frequencies_give_the_coverage_table_of_openba_v2(shared: Path) -> None:
    counts = read_frequencies(shared / "tokenizers" / "vocab_frequency" / "openba_v2_vocab_freq.txt.gz", size=250_204)
    assert counts.sum() == 200_894_358_000 and (counts > 0).sum() == 245_698
    table = {5_000: 78.84, 10_000: 87.47, 20_000: 94.28, 25_000: 95.82, 30_000: 96.84, 40_000: 98.11, 50_000: 98.80, 60_000: 99.22,
             80_000: 99.64, 100_000: 99.823, 120_000: 99.910, 150_000: 99.968, 200_000: 99.996}
    found = coverage(counts, list(table))
    for size, percent in table.items():
        assert 100 * found[size] == pytest.approx(percent, abs=0.005)


def test_empty_corpus_is_refused(shared: Path, tmp_path: Path) -> None:
    with CorpusWriter(tmp_path / "empty", provenance={}) as writer:
        writer.write(documents([]))
    with pytest.raises(InputError, match="the corpus is empty"):
        count_corpus(shared / "models" / "stories260K", tmp_path / "empty", job=Job(), state=tmp_path / "state")


@pytest.mark.slow
def test_every_shared_tokenizer_is_read(shared: Path, vocabulary: Callable[[str], Vocabulary]) -> None:
    sizes = {"bert_zh_21k": ("wordpiece", 21128), "chinese_llama_alpaca2_55k": ("sentencepiece-bpe", 55296),
             "chinese_sp_20k": ("unigram", 20000), "glm_chinese_50k": ("sentencepiece-bpe", 50000), "gpt2_50k": ("byte-bpe", 50257),
             "gpt_neox_50k": ("byte-bpe", 50277), "llama2_32k": ("sentencepiece-bpe", 32000),
             "llama_hf_32k": ("sentencepiece-bpe", 32003), "qwen_151k": ("byte-bpe", 151646), "t5_32k": ("unigram", 32000)}
    assert set(sizes) == {path.name for path in (shared / "tokenizers").iterdir()} - {"vocab_frequency"}
    for name, (kind, total) in sizes.items():
        found = vocabulary(name)
        assert (found.kind, found.total) == (kind, total)
