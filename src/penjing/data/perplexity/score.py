"""Perplexity of documents: 10 to the power of minus the mean log10 probability per word and line end."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from llvmlite import ir  # type: ignore[import-untyped]
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np import arrayobj

from penjing.data.dedup.fold import mix64
from penjing.data.perplexity.counts import BEGIN
from penjing.data.perplexity.model import Tables, bucket_of, shift_of
from penjing.data.perplexity.units import Vocabulary

BLOCK = 256
"""Words that are looked up together."""
_STEP = np.uint64(0x9E3779B97F4A7C15)


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


@intrinsic
def _prefetch(typing, array, index):  # type: ignore[no-untyped-def]
    """Ask for the cache line of array[index] without waiting for it."""
    def code(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        struct = arrayobj.make_array(signature.args[0])(context, builder, arguments[0])
        pointer = cgutils.get_item_pointer(context, builder, signature.args[0], struct, [arguments[1]], wraparound=False)
        pointer = builder.bitcast(pointer, cgutils.voidptr_t)
        number = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [cgutils.voidptr_t, number, number, number])
        function = builder.module.declare_intrinsic("llvm.prefetch", [cgutils.voidptr_t], kind)
        builder.call(function, [pointer, number(0), number(3), number(1)])
        return context.get_dummy_value()

    return types.void(array, types.intp), code


@njit(cache=True, nogil=True)
def _score(words, offsets, unigrams, entries, order):  # type: ignore[no-untyped-def]
    # How long an n-gram ends at a word depends on the words alone, not on the words before having been scored. So a block of
    # words is looked up order by order: all hashes of an order first, each asking for its cache line, then all probes.
    documents = len(offsets) - 1
    total = np.zeros(documents, np.float64)
    events = np.zeros(documents, np.int64)
    unknown = np.zeros(documents, np.int64)
    mask, shift = np.uint64(len(entries) - 1), shift_of(len(entries))
    hashes = np.empty(BLOCK, np.uint64)
    active = np.empty(BLOCK, np.int64)
    room = np.empty(BLOCK, np.int64)  # words of the sentence before each word, at most order - 1
    matched = np.empty(BLOCK + 1, np.int64)
    values = np.empty(BLOCK + 1, np.float32)
    backoffs = np.zeros((BLOCK + 1, order + 1), np.float32)  # of row i + 1, m: the m words that end at word i of the block
    matched[0] = 0
    length = 0
    document = coming = 0  # the one that is added up, and the one whose beginning is awaited
    for start in range(0, offsets[documents], BLOCK):
        size = min(BLOCK, offsets[documents] - start)
        left = 0
        for i in range(size):
            word = words[start + i]
            while coming < documents and offsets[coming] <= start + i:
                length = 0
                coming += 1
            length = 0 if word == BEGIN else length
            values[i + 1] = unigrams[word, 0]
            backoffs[i + 1, 1] = unigrams[word, 1]
            matched[i + 1] = 1
            room[i] = min(length, order - 1)
            if length:
                h = mix64(np.uint64(word) + np.uint64(1)) | np.uint64(1)
                h = mix64(h * _STEP + np.uint64(words[start + i - 1]) + np.uint64(1)) | np.uint64(1)
                _prefetch(entries, np.intp(bucket_of(h, shift)))
                hashes[left] = h
                active[left] = i
                left += 1
            length += 1
        level = 1
        while left:
            still = 0
            level += 1
            for place in range(left):
                h = hashes[place]
                slot = bucket_of(h, shift)
                first, second, third, last = (entries[slot].key == h, entries[slot + np.uint64(1)].key == h,
                                              entries[slot + np.uint64(2)].key == h, entries[slot + np.uint64(3)].key == h)
                if not (first | second | third | last):
                    if entries[slot + np.uint64(3)].key == 0:
                        continue
                    slot = (slot + np.uint64(4)) & mask
                    while entries[slot].key != h and entries[slot].key != 0:
                        slot = (slot + np.uint64(1)) & mask
                    if entries[slot].key == 0:
                        continue
                else:
                    slot += np.uint64(second) + np.uint64(2) * np.uint64(third) + np.uint64(3) * np.uint64(last)
                i = active[place]
                matched[i + 1] = level
                values[i + 1] = entries[slot].log_probability
                backoffs[i + 1, level] = entries[slot].log_backoff
                if level <= room[i]:
                    h = mix64(h * _STEP + np.uint64(words[start + i - level]) + np.uint64(1)) | np.uint64(1)
                    _prefetch(entries, np.intp(bucket_of(h, shift)))
                    hashes[still] = h
                    active[still] = i
                    still += 1
            left = still
        for i in range(size):
            while start + i >= offsets[document + 1]:
                document += 1
            word = words[start + i]
            if word == BEGIN:
                continue
            logged = np.float64(values[i + 1])
            known = min(matched[i], order - 1) if start + i > offsets[document] else 0
            for m in range(matched[i + 1], known + 1):
                logged += backoffs[i, m]
            total[document] += logged
            events[document] += 1
            unknown[document] += word == 0
        matched[0] = matched[size]
        for m in range(order + 1):
            backoffs[0, m] = backoffs[size, m]
    return total, events, unknown
