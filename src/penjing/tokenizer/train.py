"""A SentencePiece model trained from a corpus, the same for the same lines: one thread, lines drawn by hash."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow.compute as pc
import xxhash

from penjing.data.document import open_corpus
from penjing.errors import InputError, fault
from penjing.tokenizer.read import of_proto, read_model_proto
from penjing.tokenizer.vocabulary import Vocabulary

DEFAULT_COVERAGE = 0.9995
MAX_LINE_BYTES = 4192
"""SentencePiece leaves out longer lines; they are cut here instead."""


@dataclass(frozen=True)
class TrainerConfig:
    """What to train; the fields are those of the stage train-tokenizer."""

    vocab_size: int
    kind: Literal["bpe", "unigram"] = "bpe"
    text_bytes: int = 100_000_000
    character_coverage: float | None = None
    split_digits: bool = True
    byte_fallback: bool = True
    pad_token: bool = False
    seed: int = 0


def train_sentencepiece(corpus: Path, config: TrainerConfig, *, languages: list[str] | None = None) -> tuple[Vocabulary, int]:
    """The trained vocabulary and the bytes of text it was trained on.

    Raises InputError when there is no text, or too little of it for that many pieces.
    """
    import sentencepiece

    lines, size = _drawn_lines(corpus, config, languages)
    if not lines:
        raise InputError(fault("no text to train a tokenizer on", where=corpus))
    coverage = character_coverage(lines, config)
    model = io.BytesIO()
    options: dict[str, Any] = {
               "model_type": config.kind, "vocab_size": config.vocab_size, "character_coverage": coverage,
               "split_digits": config.split_digits, "byte_fallback": config.byte_fallback, "num_threads": 1,
               "normalization_rule_name": "identity", "add_dummy_prefix": True, "remove_extra_whitespaces": False,
               "allow_whitespace_only_pieces": True, "unk_id": 0, "bos_id": 1, "eos_id": 2,
               "pad_id": 3 if config.pad_token else -1,
               "max_sentence_length": 2 * MAX_LINE_BYTES, "minloglevel": 2, "hard_vocab_limit": config.kind == "bpe"}
    try:
        sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(lines), model_writer=model, **options)
    except (RuntimeError, OSError) as error:
        raise InputError(fault("SentencePiece could not train", where=corpus, found=" ".join(str(error).split())[:300],
                               expected=f"{config.vocab_size} pieces from {size} bytes of text",
                               fix="ask for fewer pieces or give more text")) from error
    proto = read_model_proto(model.getvalue(), where="the trained model")
    return of_proto(proto, model.getvalue(), name=str(corpus)), size


def character_coverage(lines: list[str], config: TrainerConfig) -> float:
    """The coverage asked for; else DEFAULT_COVERAGE, or less (SentencePiece takes 0.98 at least) where characters would take over half
    of the pieces."""
    if config.character_coverage is not None:
        return config.character_coverage
    points = np.frombuffer("".join(lines).encode("utf-32-le", errors="surrogatepass"), dtype=np.uint32)
    counts = np.sort(np.bincount(points))[::-1]
    within = float(counts[: config.vocab_size // 2].sum() / max(1, counts.sum()))
    return max(0.98, min(DEFAULT_COVERAGE, within)) if config.byte_fallback else DEFAULT_COVERAGE


def _drawn_lines(corpus: Path, config: TrainerConfig, languages: list[str] | None) -> tuple[list[str], int]:
    """Lines whose hash (with the seed) lies below the share of the text that is wanted, in the corpus's order."""
    opened = open_corpus(corpus)
    present = sum(item["bytes"] for lang, item in opened.languages.items() if languages is None or lang in languages)
    share = min(1.0, config.text_bytes / max(1, present))
    bound = int(share * (1 << 64))
    lines: list[str] = []
    size = 0
    for line in _lines(opened.batches(columns=["text", "lang"], rows=1024), languages):
        raw = line.encode("utf-8", errors="surrogatepass")
        if share < 1 and xxhash.xxh3_64_intdigest(raw, seed=config.seed) >= bound:
            continue
        lines.append(line)
        size += len(raw)
    return lines, size


def _lines(batches: Iterator[object], languages: list[str] | None) -> Iterator[str]:
    for batch in batches:
        texts = pc.fill_null(batch.column("text"), "").to_pylist()  # type: ignore[attr-defined]
        langs = pc.fill_null(batch.column("lang"), "").to_pylist()  # type: ignore[attr-defined]
        for text, lang in zip(texts, langs, strict=True):
            if languages is not None and lang not in languages:
                continue
            for line in text.split("\n"):
                for start in range(0, len(line), MAX_LINE_BYTES // 4):
                    part = line[start: start + MAX_LINE_BYTES // 4]
                    if part.strip():
                        yield part
