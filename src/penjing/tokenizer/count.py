"""How often each token and each character occurs in a corpus, by language, and what that costs: fertility and coverage.

Shards are counted one by one (all workers), each into its own file under `state`; sums do not depend on their order.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc

from penjing.contract import Job
from penjing.data.document import open_corpus, shard_batches
from penjing.data.engine import map_shards
from penjing.errors import InputError, fault
from penjing.files import atomic_write
from penjing.tokenizer.read import read_vocabulary
from penjing.tokenizer.scripts import SCRIPTS, script_table
from penjing.tokenizer.vocabulary import Vocabulary

CODEPOINTS = 0x110000
EncodeFlat = Callable[[Sequence[str]], tuple[np.ndarray, np.ndarray]]
"""Texts to (ids of all texts int64, number of ids of each text int64)."""


@dataclass
class Counts:
    """Counts of a corpus under one tokenizer. Languages are the corpus's; "" = not identified."""

    tokens: dict[str, np.ndarray] = field(default_factory=dict)
    """Language -> int64 [V], occurrences of each id."""
    characters: dict[str, np.ndarray] = field(default_factory=dict)
    """Language -> int64 [0x110000], occurrences of each code point."""
    totals: dict[str, dict[str, int]] = field(default_factory=dict)
    """Language -> documents, bytes (UTF-8), characters, tokens."""
    scripts: dict[str, dict[str, int]] = field(default_factory=dict)
    """Main script of a document -> the same."""

    def add(self, other: Counts) -> None:
        """Add another part."""
        for mine, theirs in ((self.tokens, other.tokens), (self.characters, other.characters)):
            for lang, values in theirs.items():
                mine[lang] = mine[lang] + values if lang in mine else values
        for total, part in ((self.totals, other.totals), (self.scripts, other.scripts)):
            for key, figures in part.items():
                into = total.setdefault(key, dict.fromkeys(figures, 0))
                for name, value in figures.items():
                    into[name] += value

    def all_tokens(self, languages: Sequence[str] | None = None) -> np.ndarray:
        """int64 [V] over all or some languages."""
        chosen = [self.tokens[lang] for lang in (languages or sorted(self.tokens))]
        return np.sum(chosen, axis=0)

    def all_characters(self, languages: Sequence[str] | None = None) -> np.ndarray:
        """int64 [0x110000] over all or some languages."""
        chosen = [self.characters[lang] for lang in (languages or sorted(self.characters))]
        return np.sum(chosen, axis=0)


def fertility(totals: Mapping[str, Mapping[str, int]]) -> dict[str, dict[str, float]]:
    """Tokens per character and bytes per token, for each key (language or script) and for all."""
    whole: dict[str, int] = {}
    for figures in totals.values():
        for name, value in figures.items():
            whole[name] = whole.get(name, 0) + value
    out = {}
    for key, figures in [*sorted(totals.items()), ("all", whole)]:
        if figures.get("tokens"):
            out[key] = {"documents": figures["documents"], "tokens": figures["tokens"],
                        "tokens_per_character": round(figures["tokens"] / max(1, figures["characters"]), 5),
                        "bytes_per_token": round(figures["bytes"] / figures["tokens"], 5)}
    return out


def coverage(counts_V: np.ndarray, sizes: Sequence[int]) -> dict[int, float]:
    """Share of all tokens covered by the K most frequent ids, for each K."""
    cumulative = np.cumsum(np.sort(counts_V)[::-1])
    total = max(1, int(cumulative[-1])) if len(cumulative) else 1
    return {size: float(cumulative[min(size, len(cumulative)) - 1] / total) for size in sizes if size >= 1}


def count_corpus(tokenizer: Path, corpus: Path, *, job: Job, state: Path, label: str = "count tokens") -> Counts:
    """Counts of `corpus` under the tokenizer in directory `tokenizer`, shard by shard; `state` keeps finished shards."""
    opened = open_corpus(corpus)
    if not opened.documents:
        raise InputError(fault("the corpus is empty", where=corpus, expected="at least one document"))
    units = [{"name": shard.stem, "shard": str(shard), "tokenizer": str(tokenizer),
              "out": str(state / f"{label}-{shard.stem}.npz")} for shard in opened.shards]
    map_shards(count_shard, units, job=job, label=label, state=state)
    counts = Counts()
    for unit in units:
        counts.add(load_counts(Path(unit["out"])))
    return counts


def count_shard(unit: Mapping[str, Any]) -> dict[str, int]:
    """Count one shard into its own file (what a worker does)."""
    vocabulary, encode = _tokenizer(unit["tokenizer"])
    counts = count_batches(shard_batches(Path(unit["shard"]), columns=["text", "lang"], rows=1024), encode, vocabulary.total)
    save_counts(Path(unit["out"]), counts)
    return {"documents": sum(total["documents"] for total in counts.totals.values())}


def count_batches(batches: Any, encode: EncodeFlat, size: int) -> Counts:
    """Counts of record batches with the columns text and lang."""
    counts = Counts()
    table = script_table()
    for batch in batches:
        languages = pc.fill_null(batch.column("lang"), "").to_pylist()
        texts = pc.fill_null(batch.column("text"), "").to_pylist()
        for lang in sorted(set(languages)):
            chosen = [text for text, own in zip(texts, languages, strict=True) if own == lang]
            counts.add(_count_texts(chosen, lang, encode, size, table))
    return counts


def _count_texts(texts: list[str], lang: str, encode: EncodeFlat, size: int, table: np.ndarray) -> Counts:
    ids, lengths = encode(texts)
    if len(ids) and int(ids.max()) >= size:
        raise InputError(fault("the tokenizer gives ids outside its vocabulary", found=int(ids.max()), expected=f"below {size}"))
    points = np.frombuffer("".join(texts).encode("utf-32-le", errors="surrogatepass"), dtype=np.uint32)
    sizes = np.array([len(text) for text in texts], dtype=np.int64)
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    utf8 = (1 + (points >= 0x80) + (points >= 0x800) + (points >= 0x10000)).astype(np.int64)
    summed = np.concatenate([[0], np.cumsum(utf8)])
    octets = summed[offsets[1:]] - summed[offsets[:-1]]
    counts = Counts()
    counts.tokens[lang] = np.bincount(ids, minlength=size).astype(np.int64)
    counts.characters[lang] = np.bincount(points, minlength=CODEPOINTS).astype(np.int64)
    counts.totals[lang] = {"documents": len(texts), "bytes": int(octets.sum()), "characters": int(sizes.sum()),
                           "tokens": int(lengths.sum())}
    main = _main_scripts(table[points], offsets)
    for index in np.unique(main).tolist():
        own = main == index
        counts.scripts[SCRIPTS[index]] = {"documents": int(own.sum()), "bytes": int(octets[own].sum()),
                                          "characters": int(sizes[own].sum()), "tokens": int(lengths[own].sum())}
    return counts


def _main_scripts(scripts: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """For each document the script most of its letters are in (the last script, "other", when it has no letters)."""
    number = len(offsets) - 1
    document = np.repeat(np.arange(number), np.diff(offsets))
    last = len(SCRIPTS) - 1
    votes = np.bincount(document * len(SCRIPTS) + scripts, minlength=number * len(SCRIPTS)).reshape(number, len(SCRIPTS))
    votes[:, last] = 0
    return np.where(votes.any(axis=1), votes.argmax(axis=1), last)


def flat_encoder(vocabulary: Vocabulary) -> EncodeFlat:
    """The fastest engine for a vocabulary: SentencePiece for its own models, `tokenizers` for everything else.

    No special tokens are put around the text.
    """
    if vocabulary.proto is not None and not any(int(token["id"]) >= len(vocabulary) for token in vocabulary.added):
        import sentencepiece

        processor = sentencepiece.SentencePieceProcessor(model_proto=vocabulary.proto)

        def with_sentencepiece(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
            return _flat(processor.encode(list(texts), num_threads=1))

        return with_sentencepiece
    return library_encoder(vocabulary)


def library_encoder(vocabulary: Vocabulary) -> EncodeFlat:
    """The `tokenizers` library on what tokenizer.json says."""
    from penjing.tokenizer.write import fast_tokenizer

    tokenizer = fast_tokenizer(vocabulary)

    def with_tokenizers(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        return _flat([item.ids for item in tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)])

    return with_tokenizers


def _flat(rows: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    lengths = np.array([len(row) for row in rows], dtype=np.int64)
    flat = np.fromiter((index for row in rows for index in row), dtype=np.int64, count=int(lengths.sum()))
    return flat, lengths


def save_counts(path: Path, counts: Counts) -> None:
    """Write counts as an .npz of sparse arrays (places and values)."""
    arrays: dict[str, np.ndarray] = {}
    for what, tables in (("tokens", counts.tokens), ("characters", counts.characters)):
        for lang, values in tables.items():
            seen = np.flatnonzero(values)
            arrays[f"{what}/{lang}/{len(values)}"] = np.stack([seen, values[seen]])
    for kind, totals in (("totals", counts.totals), ("scripts", counts.scripts)):
        for key, figures in totals.items():
            for name, value in figures.items():
                arrays[f"{kind}/{key}/{name}"] = np.array(value)
    with atomic_write(path) as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def load_counts(path: Path) -> Counts:
    """Counts that `save_counts` wrote."""
    counts = Counts()
    with np.load(path) as arrays:
        for key in arrays.files:
            kind, lang, *rest = key.split("/")
            if kind in ("tokens", "characters"):
                values = np.zeros(int(rest[0]), dtype=np.int64)
                values[arrays[key][0]] = arrays[key][1]
                (counts.tokens if kind == "tokens" else counts.characters)[lang] = values
            else:
                into = counts.totals if kind == "totals" else counts.scripts
                into.setdefault(lang, {})[rest[0]] = int(arrays[key])
    return counts


@lru_cache(maxsize=2)
def _tokenizer(path: str) -> tuple[Vocabulary, EncodeFlat]:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    vocabulary = read_vocabulary(Path(path))
    return vocabulary, file_encoder(Path(path), vocabulary)


def file_encoder(path: Path, vocabulary: Vocabulary) -> EncodeFlat:
    """The fastest engine for a tokenizer on disk: byte-level BPE goes through `encode.py`, which is faster than the library."""
    if vocabulary.kind != "byte-bpe" or not (path / "tokenizer.json").is_file():
        return flat_encoder(vocabulary)
    from penjing.tokenizer.encode import load_encoder

    encoder = load_encoder(path)

    def with_encoder(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        rows = encoder.encode_batch(texts)
        lengths = np.array([len(row) for row in rows], dtype=np.int64)
        return np.concatenate(rows).astype(np.int64) if rows else np.zeros(0, dtype=np.int64), lengths

    return with_encoder
