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
    longest = int(np.max(np.diff(offsets)[wanted != 0], initial=1)) + 16
    size = 16
    while size < 2 * longest:
        size *= 2
    _grams(data, offsets, words.lengths, words.hashes, words.first, wanted, result,
           np.zeros(size, np.uint64), np.zeros(size, np.int32), np.empty(longest, np.uint64), np.empty(longest, np.int32),
           np.empty(longest, np.uint64), np.empty(longest, np.int32), np.empty(longest, np.int32),
           np.zeros(size // 4 + 1, np.uint64), np.zeros(LIMIT, np.int32))
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
def _grams(data, offsets, lengths, hashes, first, wanted, result, keys, counts, rolled, slots, points, spans, places, seen,
           tally):
    prime = np.uint64(0x9E3779B97F4A7C15)
    for document in range(len(offsets) - 1):
        begin = first[document]
        number = first[document + 1] - begin
        row = result[document]
        want = wanted[document]
        if want & UNIQUE and number:
            for index in range(min(number, FIRST_WORDS)):
                rolled[index] = hashes[begin + index]
            row[9], row[10] = _count(rolled, min(number, FIRST_WORDS), keys, counts)
        if want & (TOP | REPEATED):
            # Only where both (n - 1)-grams of an n-gram were repeated can the n-gram be: `places` holds those positions.
            for index in range(number):
                rolled[index] = hashes[begin + index]
                spans[index] = lengths[begin + index]
            size = max(0, number - 1)
            for index in range(size):
                rolled[index] = mix(rolled[index] * prime + hashes[begin + index + 1])
            left = _candidates(rolled, size, seen, places)
            for n in range(2, 11 if want & REPEATED else 5):
                size = number - n + 1
                if size <= 0:
                    break
                if n > 2:
                    left = _narrow(places, left, size)
                    for place in range(left):
                        index = places[place]
                        rolled[index] = mix(rolled[index] * prime + hashes[begin + index + n - 1])
                        spans[index] += lengths[begin + index + n - 1]
                else:
                    for place in range(left):
                        index = places[place]
                        spans[index] += lengths[begin + index + 1]
                most = _tally(rolled, places, left, keys, counts, slots)
                if n <= 4:
                    if want & TOP:
                        row[n - 2] = _top(lengths, begin, spans, places, left, n, most, counts, slots)
                else:
                    row[n - 2] = _repeated(spans, places, left, n, counts, slots)
                    if row[n - 2] == 0:  # a longer repeat would hold a shorter one
                        break
                left = _repeats(places, left, counts, slots)
        if not want & (ENTROPY | CHAR_3 | CHAR_10 | CHAR_13):
            continue
        size = 0
        position, end = offsets[document], offsets[document + 1]
        while position < end:
            point, length = code_point(data, position)
            position += length
            points[size] = np.uint64(point)
            size += np.int64((point != 0x20) & (point != 0x0A))
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
            for index in range(n - 1):
                value = value * prime + points[index] + np.uint64(1)
            value = value * prime + points[n - 1] + np.uint64(1)
            rolled[0] = mix(value)
            for index in range(n, size):
                value = value * prime + points[index] + np.uint64(1) - power * (points[index - n] + np.uint64(1))
                rolled[index - n + 1] = mix(value)
            left = _candidates(rolled, size - n + 1, seen, places)
            most = _tally(rolled, places, left, keys, counts, slots)
            distinct_left = 0
            for place in range(left):
                if counts[slots[place]] > 0:
                    distinct_left += 1
                    counts[slots[place]] = -counts[slots[place]]
            if n == 13:
                row[column] = left - distinct_left
            elif left > distinct_left:
                row[column] = _frequent(left, counts, slots, size - n + 1 - left + distinct_left, most)


@njit(cache=True, nogil=True)
def _weight(count, number, known):
    """p log p of p = count / number; `known` (64 zeros at first) keeps the small counts, which come again and again."""
    if count >= 64:
        share = count / number
        return share * np.log(share)
    if known[count] == 0.0:
        share = count / number
        known[count] = share * np.log(share)
    return known[count]


@njit(cache=True, nogil=True)
def _entropy(points, number, tally):
    """Entropy of characters in nats; leaves the counters at zero."""
    for index in range(number):
        tally[points[index]] += 1
    entropy = 0.0
    known = np.zeros(64)
    for index in range(number):
        count = tally[points[index]]
        if count:
            entropy -= _weight(count, number, known)
            tally[points[index]] = 0
    return entropy


@njit(cache=True, nogil=True)
def _count(values, number, keys, counts):
    """(distinct, entropy in nats) of at most FIRST_WORDS values."""
    size = _room(number)
    counts[:size] = 0
    distinct = 0
    for index in range(number):
        key = mix(values[index])
        slot = _find(keys, counts, size - 1, key)
        if counts[slot] == 0:
            keys[slot] = key
            distinct += 1
        counts[slot] += 1
    entropy = 0.0
    known = np.zeros(64)
    for slot in range(size):
        count = counts[slot]
        if count:
            entropy -= _weight(count, number, known)
    return distinct, entropy


@njit(cache=True, nogil=True)
def _candidates(values, number, seen, places):
    """Fill `places` with the positions of all values that occur twice (and few others), in order; how many.

    Two bits per bucket, eight buckets per value: a bitmap that stays in the nearest cache instead of a table that does not.
    """
    bits = 6
    while 1 << bits < 8 * number:
        bits += 1
    words = 1 << (bits - 6)
    once, twice = seen[:words], seen[words : 2 * words]
    once[:] = 0
    twice[:] = 0
    shift = np.uint64(64 - bits)
    for index in range(number):
        bucket = values[index] >> shift
        word, bit = bucket >> np.uint64(6), np.uint64(1) << (bucket & np.uint64(63))
        twice[word] |= once[word] & bit
        once[word] |= bit
    used = 0
    for index in range(number):
        bucket = values[index] >> shift
        places[used] = index
        used += int(twice[bucket >> np.uint64(6)] >> (bucket & np.uint64(63)) & np.uint64(1))
    return used


@njit(cache=True, nogil=True)
def _tally(values, places, number, keys, counts, slots):
    """Count the values at `places`; `slots` says where in `counts` each one's number stands; the largest number."""
    size = _room(number)
    counts[:size] = 0
    most = 0
    for place in range(number):
        value = values[places[place]]
        slot = _find(keys, counts, size - 1, value)
        keys[slot] = value
        counts[slot] += 1
        slots[place] = slot
        most = max(most, counts[slot])
    return most


@njit(cache=True, nogil=True)
def _repeats(places, number, counts, slots):
    """Leave in `places` only what occurs twice."""
    used = 0
    for place in range(number):
        places[used] = places[place]
        used += abs(counts[slots[place]]) > 1
    return used


@njit(cache=True, nogil=True)
def _narrow(places, number, size):
    """Leave in `places` what is below `size` and is followed by its neighbour."""
    used = 0
    for place in range(number - 1):
        index = places[place]
        if index < size and places[place + 1] == index + 1:
            places[used] = index
            used += 1
    return used


@njit(cache=True, nogil=True)
def _top(lengths, begin, spans, places, number, n, most, counts, slots):
    """Characters in the most frequent n-gram, the first one among equals."""
    if most < 2:
        total = 0
        for index in range(n):
            total += lengths[begin + index]
        return total + n - 1
    for place in range(number):
        if counts[slots[place]] == most:
            return (spans[places[place]] + n - 1) * most
    return 0


@njit(cache=True, nogil=True)
def _repeated(spans, places, number, n, counts, slots):
    """Characters in n-grams seen before, moving on by n words after each; leaves counts negative where seen."""
    repeated, following = 0, 0
    for place in range(number):
        index, slot = places[place], slots[place]
        if index < following:
            continue
        if counts[slot] < 0:
            repeated += spans[index]
            following = index + n
        else:
            counts[slot] = -counts[slot]
    return repeated


@njit(cache=True, nogil=True)
def _frequent(number, counts, slots, distinct, most):
    """Occurrences of the int(sqrt(distinct)) most frequent grams, those that occur once not counted; counts are negative."""
    wanted = int(np.sqrt(distinct))
    histogram = np.zeros(most + 1, np.int32)
    for place in range(number):
        count = -counts[slots[place]]
        if count > 0:
            histogram[count] += 1
            counts[slots[place]] = count
    total = 0
    for count in range(most, 1, -1):
        take = min(wanted, histogram[count])
        total += take * count
        wanted -= take
        if wanted <= 0:
            break
    return total
