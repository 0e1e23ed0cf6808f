"""A trained n-gram model: its words, its tables for scoring, and its ARPA text.

Every n-gram of two or more words is one entry of an open-addressing hash table, keyed by a hash that starts at the last word and
takes in one earlier word at a time, so that the longest known n-gram is found by walking back from the word that is scored.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numba import njit

from penjing.data.dedup.fold import mix64
from penjing.data.perplexity.counts import BEGIN, count_ngrams
from penjing.data.perplexity.kneser_ney import Smoothed, smooth
from penjing.data.perplexity.units import Vocabulary
from penjing.errors import InputError, fault
from penjing.files import open_text_bytes

ENTRY = np.dtype([("key", "<u8"), ("log_probability", "<f4"), ("log_backoff", "<f4")])


@dataclass(frozen=True)
class Tables:
    """What scoring reads. unigrams (vocabulary, 2) float32 = log10 probability and backoff; entries (capacity,) of ENTRY."""

    order: int
    unigrams: np.ndarray
    entries: np.ndarray


@dataclass(frozen=True)
class Trained:
    """A model as trained: its orders, its discounts, and how many words it saw."""

    orders: list[Smoothed]
    discounts: list[tuple[float, float, float]]
    words_seen: int


def train(streams: Iterable[np.ndarray], *, order: int, vocabulary: int, prune: Sequence[int] = ()) -> Trained:
    """A model of the given sentences (arrays of word numbers from <s> to </s>, any number of sentences in each)."""
    parts = [part for part in streams if len(part)]
    words = np.concatenate(parts) if parts else np.zeros(0, np.int32)
    if not len(words):
        raise InputError(fault("no text to train a language model on"))
    orders, discounts = smooth(count_ngrams(words, order=order, vocabulary=vocabulary), prune=prune)
    return Trained(orders, discounts, int((words != BEGIN).sum()))


def tables_of(orders: Sequence[Smoothed]) -> Tables:
    """The scoring tables of smoothed orders."""
    unigrams = np.stack([orders[0].log_probability, orders[0].log_backoff], axis=1)
    number = sum(len(order.word) for order in orders[1:])
    entries = _empty(number)
    below = _first_hash(np.arange(len(unigrams)))
    for order in orders[1:]:
        hashes = _step(below[order.suffix], order.first)
        _fill(entries, hashes, order.log_probability, order.log_backoff)
        below = hashes
    return Tables(len(orders), unigrams, entries)


def _empty(number: int) -> np.ndarray:
    """A hash table with room for that many n-grams, at most half full, at the start of a cache line."""
    size = 1 << max(4, int(number * 2).bit_length())
    raw = np.zeros(size * ENTRY.itemsize + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size * ENTRY.itemsize].view(ENTRY)


def fill_entries(keys: np.ndarray, log_probabilities: np.ndarray, log_backoffs: np.ndarray) -> np.ndarray:
    """The hash table of the given n-grams, at most two thirds full."""
    entries = _empty(len(keys))
    _fill(entries, keys, log_probabilities, log_backoffs)
    return entries


def write_arpa(path: Path, orders: Sequence[Smoothed], words: Sequence[str]) -> None:
    """The model as ARPA text, which kenlm, SRILM and others read."""
    import polars as pl

    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    spelled = pl.Series("words", list(words))
    with temporary.open("wb") as file:
        counts = "".join(f"ngram {n}={len(order.word)}\n" for n, order in enumerate(orders, 1))
        file.write(f"\\data\\\n{counts}".encode())
        text = pl.Series("text", [""])
        for n, order in enumerate(orders, 1):
            last = spelled.gather(order.word)
            text = last if n == 1 else text.gather(order.prefix) + " " + last
            probability = order.log_probability.copy()
            if n == 1:
                probability[BEGIN] = 0.0
            frame = pl.DataFrame({"p": probability, "text": text})
            if n < len(orders):
                frame = frame.with_columns(b=pl.Series(order.log_backoff))
            file.write(f"\n\\{n}-grams:\n".encode())
            frame.write_csv(file, include_header=False, separator="\t", quote_style="never", float_precision=7)
        file.write(b"\n\\end\\\n")
    temporary.replace(path)


def read_arpa(path: Path) -> tuple[list[str], Tables]:
    """(words by number, scoring tables) of an ARPA file, plain, .gz or .zst; InputError with the line when it is not one."""
    with open_text_bytes(path) as file:
        lines = (line.decode("utf-8").rstrip("\r\n") for line in file)
        return _parse(lines, path)


def _parse(lines: Iterable[str], path: Path) -> tuple[list[str], Tables]:
    words = ["<unk>", "<s>", "</s>"]
    number = {word: index for index, word in enumerate(words)}
    unigrams: dict[int, tuple[float, float]] = {}
    hashes: list[np.ndarray] = []
    values: list[np.ndarray] = []
    order = 0
    section: list[list[str]] = []

    def close() -> None:
        if order == 1:
            for row in section:
                if row[1] not in number:
                    number[row[1]] = len(words)
                    words.append(row[1])
                unigrams[number[row[1]]] = (float(row[0]), float(row[2]) if len(row) > 2 else 0.0)
        elif order > 1 and section:
            ids = np.array([[number[word] for word in row[1].split(" ")] for row in section])
            found = _first_hash(ids[:, -1])
            for column in range(order - 2, -1, -1):
                found = _step(found, ids[:, column])
            hashes.append(found)
            values.append(
                np.array([(float(row[0]), float(row[2]) if len(row) > 2 else 0.0) for row in section], np.float32)
            )

    for at, line in enumerate(lines, 1):
        if line.startswith("\\"):
            try:
                close()
            except (KeyError, ValueError) as error:
                raise InputError(
                    fault(f"unreadable {order}-gram before this line", where=f"{path}:{at}", found=error)
                ) from error
            section = []
            order = int(line[1:].split("-")[0]) if line.endswith("-grams:") else 0
        elif order and line:
            section.append(line.split("\t"))
    if not unigrams:
        raise InputError(fault("not an ARPA language model", where=path, expected="\\1-grams: and what follows"))
    table = np.zeros((len(words), 2), np.float32)
    table[0, 0] = -100.0
    for index, pair in unigrams.items():
        table[index] = pair
    entries = _empty(sum(map(len, hashes)))
    for found, pairs in zip(hashes, values, strict=True):
        _fill(entries, found, np.ascontiguousarray(pairs[:, 0]), np.ascontiguousarray(pairs[:, 1]))
    return words, Tables(len(hashes) + 1, table, entries)


def spelled_ngrams(orders: Sequence[Smoothed], vocabulary: Vocabulary) -> dict[str, tuple[float, float]]:
    """Every n-gram as text with its log10 probability and backoff (for small models and tests)."""
    found: dict[str, tuple[float, float]] = {}
    text: list[str] = []
    for n, order in enumerate(orders, 1):
        last = [vocabulary.words[word] for word in order.word]
        text = last if n == 1 else [f"{text[prefix]} {word}" for prefix, word in zip(order.prefix, last, strict=True)]
        rows: Any = zip(order.log_probability.tolist(), order.log_backoff.tolist(), strict=True)
        found.update(zip(text, rows, strict=True))
    return found


def _first_hash(words: np.ndarray) -> np.ndarray:
    return _mix(words.astype(np.uint64) + np.uint64(1))


def _step(hashes: np.ndarray, earlier: np.ndarray) -> np.ndarray:
    return _mix(hashes * np.uint64(0x9E3779B97F4A7C15) + earlier.astype(np.uint64) + np.uint64(1))


@njit(cache=True, nogil=True)
def _mix(values):  # type: ignore[no-untyped-def]
    out = np.empty(len(values), np.uint64)
    for i in range(len(values)):
        out[i] = mix64(values[i]) | np.uint64(1)
    return out


@njit(cache=True, nogil=True)
def _fill(entries, hashes, log_probability, log_backoff):  # type: ignore[no-untyped-def]
    mask, shift = np.uint64(len(entries) - 1), shift_of(len(entries))
    for i in range(len(hashes)):
        slot = bucket_of(hashes[i], shift)
        while entries[slot].key != 0:
            slot = (slot + np.uint64(1)) & mask
        entries[slot].key = hashes[i]
        entries[slot].log_probability = log_probability[i]
        entries[slot].log_backoff = log_backoff[i]


@njit(cache=True, nogil=True, inline="always")
def shift_of(size):  # type: ignore[no-untyped-def]
    """By how much a key is shifted to the right to give a bucket of a table of `size` slots, a power of two."""
    shift = np.uint64(66)
    while size > 1:
        size >>= 1
        shift -= np.uint64(1)
    return shift


@njit(cache=True, nogil=True, inline="always")
def bucket_of(key, shift):  # type: ignore[no-untyped-def]
    """The first of the four slots, one cache line, where a key belongs; what finds no room there goes on into the next.

    It is the key's first bits, so that a table is filled from front to back with the sorted keys that a model holds.
    """
    return (key >> shift) << np.uint64(2)
