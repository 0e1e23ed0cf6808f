# mypy: disable-error-code="no-untyped-def"
"""Repetition inside a document: most frequent and repeated word n-grams, repeated character n-grams, entropy.

Word n-grams follow Gopher as datatrove counts them: the share of characters in the most frequent 2-, 3- and 4-gram, and in
5- to 10-grams seen before, moving on by n words after each repeat so that overlaps are not counted twice.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit

from penjing.data.kernels import Bytes, Offsets
from penjing.data.kernels.characters import LIMIT
from penjing.data.kernels.scan import code_point
from penjing.data.kernels.words import Words, mix

GRAMS = ("top_2", "top_3", "top_4", "dup_5", "dup_6", "dup_7", "dup_8", "dup_9", "dup_10", "unique_words", "word_entropy",
         "char_entropy", "char_3_repeats", "char_3", "char_10_repeats", "char_10", "char_13_repeats", "char_13")
"""Columns: characters in the top and in the repeated n-grams; distinct words; entropies in nats; for characters, grams in the
sqrt(distinct) most frequent repeated ones (n = 3, 10), or seen before (n = 13), each followed by the number of grams."""


TOP, REPEATED, UNIQUE, ENTROPY, CHAR_3, CHAR_10, CHAR_13 = 1, 2, 4, 8, 16, 32, 64
"""What to count, as bits per document: what nothing asks for costs nothing and stays 0."""
FIRST_WORDS = 1000
"""Distinct words and their entropy are those of the first thousand words, so that long documents are not mistaken for poor."""


def grams(data: Bytes, offsets: Offsets, words: Words, wanted: npt.NDArray[np.uint8] | None = None) -> npt.NDArray[np.float64]:
    """float64 [documents, len(GRAMS)]; `wanted` holds bits per document, None counts everything."""
    if wanted is None:
        wanted = np.full(len(offsets) - 1, 127, np.uint8)
    result = np.zeros((len(offsets) - 1, len(GRAMS)))
    longest = int(np.max(np.diff(offsets), initial=1)) + 16
    size = 16
    while size < 2 * longest:
        size *= 2
    _grams(data, offsets, words.lengths, words.hashes, words.first, wanted, result,
           np.zeros(size, np.uint64), np.zeros(size, np.int32), np.empty(longest, np.uint64), np.empty(longest, np.int32),
           np.empty(longest, np.uint64), np.empty(longest, np.int32), np.zeros(LIMIT, np.int32))
    return result


@njit(cache=True, nogil=True, inline="always")
def _find(keys, counts, mask, key):
    """Slot of `key`, or of the empty slot where it belongs (counts 0 = empty)."""
    slot = np.int64(key & np.uint64(mask))
    while counts[slot] != 0 and keys[slot] != key:
        slot = (slot + 1) & mask
    return slot


@njit(cache=True, nogil=True, inline="always")
def _room(number):
    size = 16
    while size < 2 * number:
        size *= 2
    return size


@njit(cache=True, nogil=True)
def _grams(data, offsets, lengths, hashes, first, wanted, result, keys, counts, rolled, slots, points, spans, tally):
    prime = np.uint64(0x9E3779B97F4A7C15)
    for document in range(len(offsets) - 1):
        begin = first[document]
        number = first[document + 1] - begin
        row = result[document]
        want = wanted[document]
        if want & UNIQUE and number:
            for index in range(min(number, FIRST_WORDS)):
                rolled[index] = hashes[begin + index]
            row[9], row[10], _ = _count(rolled, min(number, FIRST_WORDS), keys, counts, slots)
        if want & (TOP | REPEATED):
            for index in range(number):
                rolled[index] = hashes[begin + index]
                spans[index] = lengths[begin + index]
            for n in range(2, 11 if want & REPEATED else 5):
                size = number - n + 1
                if size <= 0:
                    break
                for index in range(size):
                    rolled[index] = mix(rolled[index] * prime + hashes[begin + index + n - 1])
                    spans[index] += lengths[begin + index + n - 1]
                if n <= 4:
                    if want & TOP:
                        row[n - 2] = _top(rolled, size, spans, n, keys, counts, slots)
                else:
                    row[n - 2] = _repeated(rolled, size, spans, n, keys, counts)
                    if row[n - 2] == 0:  # a longer repeat would hold a shorter one
                        break
        if not want & (ENTROPY | CHAR_3 | CHAR_10 | CHAR_13):
            continue
        size = 0
        position, end = offsets[document], offsets[document + 1]
        while position < end:
            point, length = code_point(data, position)
            position += length
            if point != 0x20 and point != 0x0A:
                points[size] = np.uint64(point)
                size += 1
        if size and want & ENTROPY:
            row[11] = _entropy(points, size, tally)
        for column, n, bit in ((12, 3, CHAR_3), (14, 10, CHAR_10), (16, 13, CHAR_13)):
            if size < n or not want & bit:
                continue
            row[column + 1] = size - n + 1
            power = np.uint64(1)
            for _ in range(n):
                power *= prime
            value = np.uint64(0)
            for index in range(size):
                value = value * prime + points[index] + np.uint64(1)
                if index >= n:
                    value -= power * (points[index - n] + np.uint64(1))
                if index >= n - 1:
                    rolled[index - n + 1] = value
            distinct, _, seen_before = _count(rolled, size - n + 1, keys, counts, slots)
            if n == 13:
                row[column] = seen_before
            elif seen_before:
                row[column] = _frequent(size - n + 1, counts, slots, distinct)


@njit(cache=True, nogil=True)
def _entropy(points, number, tally):
    """Entropy of characters in nats; leaves the counters at zero."""
    for index in range(number):
        tally[points[index]] += 1
    entropy = 0.0
    for index in range(number):
        count = tally[points[index]]
        if count:
            share = count / number
            entropy -= share * np.log(share)
            tally[points[index]] = 0
    return entropy


@njit(cache=True, nogil=True)
def _count(values, number, keys, counts, slots):
    """(distinct, entropy in nats, values seen before); leaves counts and slots for the caller."""
    size = _room(number)
    counts[:size] = 0
    distinct = 0
    for index in range(number):
        slot = _find(keys, counts, size - 1, mix(values[index]))
        if counts[slot] == 0:
            keys[slot] = mix(values[index])
            distinct += 1
        counts[slot] += 1
        slots[index] = slot
    entropy = 0.0
    if number <= FIRST_WORDS:
        for slot in range(size):
            if counts[slot]:
                share = counts[slot] / number
                entropy -= share * np.log(share)
    return distinct, entropy, number - distinct


@njit(cache=True, nogil=True)
def _top(values, number, spans, n, keys, counts, slots):
    size = _room(number)
    counts[:size] = 0
    most = 0
    for index in range(number):
        slot = _find(keys, counts, size - 1, values[index])
        keys[slot] = values[index]
        counts[slot] += 1
        slots[index] = slot
        most = max(most, counts[slot])
    for index in range(number):
        if counts[slots[index]] == most:
            return (spans[index] + n - 1) * most
    return 0


@njit(cache=True, nogil=True)
def _repeated(values, number, spans, n, keys, counts):
    size = _room(number)
    counts[:size] = 0
    repeated, index = 0, 0
    while index < number:
        slot = _find(keys, counts, size - 1, values[index])
        if counts[slot]:
            repeated += spans[index]
            index += n
        else:
            keys[slot], counts[slot] = values[index], 1
            index += 1
    return repeated


@njit(cache=True, nogil=True)
def _frequent(number, counts, slots, distinct):
    """Occurrences of the int(sqrt(distinct)) most frequent grams, those that occur once not counted."""
    wanted = int(np.sqrt(distinct))
    histogram = np.zeros(number + 1, np.int32)
    most = 1
    for index in range(number):
        count = counts[slots[index]]
        if count > 0:
            histogram[count] += 1
            most = max(most, count)
            counts[slots[index]] = -count
    total = 0
    for count in range(most, 1, -1):
        take = min(wanted, histogram[count])
        total += take * count
        wanted -= take
        if wanted <= 0:
            break
    return total
