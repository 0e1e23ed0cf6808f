"""Perplexity of documents: 10 to the power of minus the mean log10 probability per word and line end."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numba import njit

from penjing.data.dedup.fold import mix64
from penjing.data.perplexity.model import Tables
from penjing.data.perplexity.units import Vocabulary


@dataclass(frozen=True)
class Scores:
    """Per document (N,): sum of log10 probabilities, number of scored events (words and one end per line), unknown words."""

    log_probability: np.ndarray
    events: np.ndarray
    unknown: np.ndarray

    @property
    def perplexity(self) -> np.ndarray:
        """(N,) float64; infinite for documents without a word."""
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            return np.where(self.events > 0, 10.0 ** (-self.log_probability / np.maximum(self.events, 1)), np.inf)


def score(texts: pa.Array, vocabulary: Vocabulary, tables: Tables) -> Scores:
    """Scores of an Arrow array of texts."""
    return score_streams(*vocabulary.streams(texts), tables)


def score_streams(words: np.ndarray, offsets: np.ndarray, tables: Tables) -> Scores:
    """Scores of documents given as sentences of word numbers, each from <s> to </s>."""
    return Scores(*_score(words, offsets, tables.unigrams, tables.entries, tables.order))


@njit(cache=True, nogil=True)
def _score(words, offsets, unigrams, entries, order):  # type: ignore[no-untyped-def]
    documents = len(offsets) - 1
    total = np.zeros(documents, np.float64)
    events = np.zeros(documents, np.int64)
    unknown = np.zeros(documents, np.int64)
    mask = np.uint64(len(entries) - 1)
    backoffs = np.zeros(order + 1, np.float32)  # backoffs[m] belongs to the m words before the one that is scored
    fresh = np.zeros(order + 1, np.float32)
    for d in range(documents):
        known = 0  # length of the longest context whose backoff is known
        length = 0  # words of this sentence before the current one
        for t in range(offsets[d], offsets[d + 1]):
            word = words[t]
            if word == 1:
                backoffs[1] = unigrams[1, 1]
                known = 1
                length = 1
                continue
            value = unigrams[word, 0]
            fresh[1] = unigrams[word, 1]
            matched = 1
            h = mix64(np.uint64(word) + np.uint64(1)) | np.uint64(1)
            while matched < order and matched <= length:
                h = mix64(h * np.uint64(0x9E3779B97F4A7C15) + np.uint64(words[t - matched]) + np.uint64(1)) | np.uint64(
                    1
                )
                slot = (h >> np.uint64(1)) & mask
                while entries[slot].key != 0 and entries[slot].key != h:
                    slot = (slot + np.uint64(1)) & mask
                if entries[slot].key == 0:
                    break
                matched += 1
                value = entries[slot].log_probability
                fresh[matched] = entries[slot].log_backoff
            logged = np.float64(value)
            for m in range(matched, known + 1):
                logged += backoffs[m]
            total[d] += logged
            events[d] += 1
            if word == 0:
                unknown[d] += 1
            known = min(matched, order - 1)
            for m in range(1, known + 1):
                backoffs[m] = fresh[m]
            length += 1
    return total, events, unknown
