# mypy: disable-error-code="no-untyped-def"
"""Words of every document in one pass: a run of letters and digits is a word, and so is each Han character or kana.

The spans may come from elsewhere too (`spans_of`): the statistics take word boundaries as they are given, so that the same
rules can be checked against tools that split words in another way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from numba import njit

from penjing.data.kernels import Bytes, Offsets
from penjing.data.kernels.characters import (
    DIGIT,
    EMOJI,
    HAN,
    KANA,
    LETTER,
    MARK,
    PUNCTUATION,
    script_classes,
)
from penjing.data.kernels.scan import code_point

HAS_LETTER, ALL_SYMBOLS = 1, 2


@dataclass(frozen=True)
class Words:
    """Words of a batch, one after another; document d owns `first[d]` to `first[d + 1]`."""

    starts: npt.NDArray[np.int64]
    """Byte where each word begins in the batch's data."""
    ends: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int32]
    """Characters."""
    hashes: npt.NDArray[np.uint64]
    flags: npt.NDArray[np.uint8]
    first: npt.NDArray[np.int64]

    def take(self, rows: npt.NDArray[np.int64]) -> Words:
        """The words of some documents."""
        chosen, first = rows_of(self.first, rows)
        return Words(self.starts[chosen], self.ends[chosen], self.lengths[chosen], self.hashes[chosen], self.flags[chosen], first)


def rows_of(first: npt.NDArray[np.int64], rows: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """(the items of the documents `rows`, where each one's begin among them), when document d owns first[d] to first[d + 1]."""
    sizes = np.diff(first)[rows]
    after = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    return np.arange(after[-1]) + np.repeat(first[rows] - after[:-1], sizes), after


def split(data: Bytes, offsets: Offsets, *, symbols: bool = False) -> Words:
    """The words of every document by our own boundaries.

    With `symbols`, a run of one punctuation mark or symbol is a word too (flag ALL_SYMBOLS), as tokenizers have it.
    """
    size = len(data) + 1
    starts, ends = np.empty(size, np.int64), np.empty(size, np.int64)
    lengths, hashes, flags = np.empty(size, np.int32), np.empty(size, np.uint64), np.empty(size, np.uint8)
    first = np.zeros(len(offsets), np.int64)
    used = _split(data, offsets, script_classes(), starts, ends, lengths, hashes, flags, first, symbols)
    return Words(starts[:used], ends[:used], lengths[:used], hashes[:used], flags[:used], first)


def per_document(words: Words, bit: int, *, have: bool = True, characters: bool = False) -> npt.NDArray[np.float64]:
    """Words of each document whose flags have that bit (or lack it), or the characters of those words."""
    result = np.zeros(len(words.first) - 1)
    _per_document(words.lengths, words.flags, words.first, np.uint8(bit), have, characters, result)
    return result


def members(words: Words, known: Sequence[str]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Per document: how many of the `known` words (at most 64) occur, and how many words are among them."""
    hashes = np.array([hash_of(word) for word in known], np.uint64)
    table = np.full(1 << 12, -1, np.int8)
    for index in range(len(hashes) - 1, -1, -1):
        slot = int(hashes[index]) & (len(table) - 1)
        while table[slot] >= 0:
            slot = (slot + 1) & (len(table) - 1)
        table[slot] = index
    result = np.zeros((2, len(words.first) - 1))
    _members(words.hashes, words.first, hashes, table, result[0], result[1])
    return result[0], result[1]


def spans_of(data: Bytes, offsets: Offsets, words: Sequence[Sequence[str]]) -> Words:
    """Given words of every document, found one after another in its text, in the same form. ValueError when one is not there."""
    starts: list[int] = []
    ends: list[int] = []
    first = np.zeros(len(offsets), np.int64)
    raw = data.tobytes()
    for document, given in enumerate(words):
        position, end = int(offsets[document]), int(offsets[document + 1])
        for word in given:
            piece = word.encode()
            found = raw.find(piece, position, end)
            if found < 0:
                raise ValueError(f"document {document}: word {word!r} does not follow in the text")
            position = found + len(piece)
            starts.append(found)
            ends.append(position)
        first[document + 1] = len(starts)
    number = len(starts)
    begin, stop = np.array(starts, np.int64), np.array(ends, np.int64)
    lengths, hashes, flags = np.empty(number, np.int32), np.empty(number, np.uint64), np.empty(number, np.uint8)
    _describe(data, begin, stop, script_classes(), lengths, hashes, flags)
    return Words(begin, stop, lengths, hashes, flags, first)


def hash_of(word: str) -> int:
    """The hash that `Words.hashes` holds for this word."""
    data = np.frombuffer(word.encode(), np.uint8)
    hashes = np.empty(1, np.uint64)
    _describe(data, np.zeros(1, np.int64), np.array([len(data)], np.int64), script_classes(), np.empty(1, np.int32),
              hashes, np.empty(1, np.uint8))
    return int(hashes[0])


@njit(cache=True, nogil=True, inline="always")
def mix(value):
    """Spread the bits of a 64-bit value."""
    value ^= value >> np.uint64(32)
    value *= np.uint64(0xD6E8FEB86659FD93)
    value ^= value >> np.uint64(32)
    return value


@njit(cache=True, nogil=True)
def _split(data, offsets, classes, starts, ends, lengths, hashes, flags, first, symbols):
    used = 0
    prime = np.uint64(0x100000001B3)
    for document in range(len(offsets) - 1):
        position, end = offsets[document], offsets[document + 1]
        inside = False
        seed = np.uint64(0xCBF29CE484222325)
        letter = False
        count = 0
        begin = position
        mark = np.int32(0)
        while position < end:
            point, length = code_point(data, position)
            name = classes[point]
            single = HAN <= name <= KANA
            part = (HAN < name <= DIGIT and not single) or (name == MARK and inside) or point == 0x5F
            if inside and not part:
                starts[used], ends[used], lengths[used] = begin, position, count
                hashes[used], flags[used] = mix(seed), letter
                used += 1
                inside = False
            if single:
                seed = np.uint64(0xCBF29CE484222325)
                for step in range(length):
                    seed = (seed ^ np.uint64(data[position + step])) * prime
                starts[used], ends[used], lengths[used] = position, position + length, 1
                hashes[used], flags[used] = mix(seed), HAS_LETTER
                used += 1
            elif symbols and PUNCTUATION <= name <= EMOJI and not part:
                if point == mark:  # the run goes on: the word made for it grows
                    used -= 1
                    begin, count = starts[used], lengths[used] + 1
                else:
                    begin, count = position, 1
                seed = np.uint64(0xCBF29CE484222325)
                for step in range(begin, position + length):
                    seed = (seed ^ np.uint64(data[step])) * prime
                starts[used], ends[used], lengths[used] = begin, position + length, count
                hashes[used], flags[used] = mix(seed), ALL_SYMBOLS
                used += 1
                mark = point
                position += length
                continue
            elif part:
                if not inside:
                    inside, begin, count, letter = True, position, 0, False
                    seed = np.uint64(0xCBF29CE484222325)
                for step in range(length):
                    seed = (seed ^ np.uint64(data[position + step])) * prime
                count += 1
                letter = letter or name <= LETTER
            mark = np.int32(0)
            position += length
        if inside:
            starts[used], ends[used], lengths[used] = begin, end, count
            hashes[used], flags[used] = mix(seed), letter
            used += 1
        first[document + 1] = used
    return used


@njit(cache=True, nogil=True)
def _per_document(lengths, flags, first, bit, have, characters, result):
    for document in range(len(first) - 1):
        for word in range(first[document], first[document + 1]):
            if (flags[word] & bit != 0) == have:
                result[document] += lengths[word] if characters else 1


@njit(cache=True, nogil=True)
def _members(hashes, first, known, table, different, total):
    mask = np.uint64(len(table) - 1)
    for document in range(len(first) - 1):
        seen = np.uint64(0)
        count = 0
        for word in range(first[document], first[document + 1]):
            slot = hashes[word] & mask
            while table[slot] >= 0:
                if known[table[slot]] == hashes[word]:
                    seen |= np.uint64(1) << np.uint64(table[slot])
                    count += 1
                    break
                slot = (slot + np.uint64(1)) & mask
        total[document] = count
        while seen:
            seen &= seen - np.uint64(1)
            different[document] += 1


@njit(cache=True, nogil=True)
def _describe(data, starts, ends, classes, lengths, hashes, flags):
    prime = np.uint64(0x100000001B3)
    for word in range(len(starts)):
        seed = np.uint64(0xCBF29CE484222325)
        position, count, letter, symbols = starts[word], 0, False, True
        while position < ends[word]:
            point, length = code_point(data, position)
            for step in range(length):
                seed = (seed ^ np.uint64(data[position + step])) * prime
            name = classes[point]
            letter = letter or HAN <= name <= LETTER
            symbols = symbols and not HAN <= name <= DIGIT and name != MARK
            position += length
            count += 1
        lengths[word], hashes[word] = count, mix(seed)
        flags[word] = (HAS_LETTER if letter else 0) | (ALL_SYMBOLS if symbols else 0)
