# mypy: disable-error-code="no-untyped-def"
"""Many literal phrases found in one pass over the bytes, ASCII letters without regard to case.

A phrase is looked for where its first three bytes (one Han character) occur; Latin phrases may ask for word boundaries.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from numba import njit

from penjing.data.kernels import Bytes

_BUCKETS = 1 << 16


@dataclass(frozen=True)
class Phrases:
    """Phrases of several lists; `lists[i]` is the number of the list that phrase i belongs to (at most 64 lists)."""

    texts: tuple[str, ...]
    lists: npt.NDArray[np.int32]
    whole_word: npt.NDArray[np.bool_]
    data: Bytes
    starts: npt.NDArray[np.int64]
    filled: npt.NDArray[np.uint8]
    """A bit for each bucket that is not empty: small enough for the nearest cache."""
    buckets: npt.NDArray[np.int32]
    """First phrase of each hash of three bytes, -1 for none."""
    chain: npt.NDArray[np.int32]
    """The next phrase of the same bucket, -1 at the end."""


def compile_phrases(lists: Iterable[Iterable[str]], *, whole_words: bool = True) -> Phrases:
    """Phrases ready for the kernels. Latin phrases match whole words only when `whole_words`; phrases of fewer than three
    bytes are left out, as they match everywhere.
    """
    kept = [(text, number) for number, phrases in enumerate(lists)
            for text in sorted({phrase.strip().lower() for phrase in phrases}) if len(text.encode()) >= 3]
    encoded = [text.encode() for text, _ in kept]
    data = np.frombuffer(b"".join(encoded) or b"\0", np.uint8)
    starts = np.zeros(len(kept) + 1, np.int64)
    starts[1:] = np.cumsum([len(piece) for piece in encoded], dtype=np.int64) if encoded else []
    buckets, chain = np.full(_BUCKETS, -1, np.int32), np.full(max(1, len(kept)), -1, np.int32)
    for index in range(len(encoded) - 1, -1, -1):
        slot = _slot_of(encoded[index])
        chain[index] = buckets[slot]
        buckets[slot] = index
    filled = np.zeros(1 << 13, np.uint8)
    for piece in encoded:
        filled[_slot_of(piece) >> 3] |= 1 << (_slot_of(piece) & 7)
    whole = np.array([whole_words and text[0].isascii() and text[-1].isascii() for text, _ in kept] or [False])
    return Phrases(tuple(text for text, _ in kept), np.array([number for _, number in kept] or [0], np.int32), whole, data,
                   starts, filled, buckets, chain)


def hits(data: Bytes, offsets: npt.NDArray[np.int64], phrases: Phrases) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    """Every occurrence: (phrase numbers, byte positions), in order of position; longest phrase first, none inside another."""
    capacity = 1024
    while True:
        which, where = np.empty(capacity, np.int32), np.empty(capacity, np.int64)
        found = _hits(data, offsets, phrases.data, phrases.starts, phrases.filled, phrases.buckets, phrases.chain,
                      phrases.whole_word, which, where)
        if found <= capacity:
            return which[:found], where[:found]
        capacity = found


def _slot_of(piece: bytes) -> int:
    return ((piece[0] * 0x9E3779B1 ^ piece[1] * 0x85EBCA6B ^ piece[2] * 0xC2B2AE35) >> 7) & (_BUCKETS - 1)


@njit(cache=True, nogil=True, inline="always")
def lower(byte):
    """ASCII lower case of a byte."""
    return byte + 32 if 65 <= byte <= 90 else byte


@njit(cache=True, nogil=True, inline="always")
def _wordlike(byte):
    return 48 <= byte <= 57 or 65 <= byte <= 90 or 97 <= byte <= 122 or byte == 95


@njit(cache=True, nogil=True)
def _hits(data, offsets, texts, starts, filled, buckets, chain, whole, which, where):
    found = 0
    for document in range(len(offsets) - 1):
        position, end = offsets[document], offsets[document + 1]
        begin = position
        while position + 2 < end:
            first, second, third = lower(data[position]), lower(data[position + 1]), lower(data[position + 2])
            slot = ((np.int64(first) * 0x9E3779B1 ^ np.int64(second) * 0x85EBCA6B ^ np.int64(third) * 0xC2B2AE35) >> 7) & 0xFFFF
            if not filled[slot >> 3] >> (slot & 7) & 1:
                position += 1 if first < 0xC0 else 2 if first < 0xE0 else 3 if first < 0xF0 else 4
                continue
            phrase = buckets[slot]
            best, best_length = -1, 0
            while phrase >= 0:
                length = starts[phrase + 1] - starts[phrase]
                if length > best_length and position + length <= end:
                    at = starts[phrase]
                    same = True
                    for step in range(length):
                        if lower(data[position + step]) != texts[at + step]:
                            same = False
                            break
                    if same and whole[phrase]:
                        same = not (position > begin and _wordlike(data[position - 1])) and \
                            not (position + length < end and _wordlike(data[position + length]))
                    if same:
                        best, best_length = phrase, length
                phrase = chain[phrase]
            if best >= 0:
                if found < len(which):
                    which[found], where[found] = best, position
                found += 1
                position += best_length
            else:
                position += 1
    return found
