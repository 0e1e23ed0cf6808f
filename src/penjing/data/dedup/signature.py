"""The few numbers that stand for a document: exact key, SimHash, MinHash bands, and a sketch of its shingles.

A shingle is `width` neighbouring tokens of the skeleton view (`fold`). SimHash (Charikar 2002; 64 bits as Manku, Jain
and Das Sarma 2007) sums the bits of its features; MinHash is the one-permutation form with the empty bins filled from
the next full one (Shrivastava and Li 2014), cut into bands; the sketch keeps the `size` smallest of the 32-bit
shingle hashes, from which the Jaccard similarity of two documents is exact when both have at most `size` different
shingles and has a standard error of at most 0.5 / sqrt(size) otherwise.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import xxhash
from numba import njit

from penjing.data.dedup.fold import Folded, Scratch, fold, fold_letters, mix64, skeleton_table

COMPLETE = 0xFFFFFFFF
_SCRATCH = Scratch()


@dataclass(frozen=True)
class SignatureShape:
    """How signatures are made; two sets of signatures compare only when their shapes are equal."""

    feature_tokens: int = 2
    """Tokens in one SimHash feature."""
    shingle_tokens: int = 5
    """Tokens in one shingle of the sketch and of MinHash."""
    sketch: int = 256
    """Shingle hashes kept per document; 0 makes neither sketch, SimHash nor number of tokens (exact copies only)."""
    bands: int = 0
    """MinHash bands; 0 makes none."""
    rows: int = 8
    """MinHash values in one band."""


@dataclass(frozen=True)
class Signatures:
    """Signatures of N documents.

    keys (N, 2) uint64; letters (N,) int64 = code points of the skeleton; tokens (N,) int64; simhash (N,) uint64; bands
    (N, bands) uint64; document d's sketch is `sketch[sketch_offsets[d]:sketch_offsets[d+1]]`, ascending uint32, and
    `tops[d]` is the value up to which it is complete.
    """

    keys: np.ndarray
    letters: np.ndarray
    tokens: np.ndarray
    simhash: np.ndarray
    bands: np.ndarray
    sketch: np.ndarray
    sketch_offsets: np.ndarray
    tops: np.ndarray

    def __len__(self) -> int:
        return len(self.letters)

    def take(self, rows: np.ndarray) -> Signatures:
        """The signatures of the given documents, in the given order."""
        sketch, offsets = take_ragged(self.sketch, self.sketch_offsets, rows)
        return Signatures(
            self.keys[rows],
            self.letters[rows],
            self.tokens[rows],
            self.simhash[rows],
            self.bands[rows],
            sketch,
            offsets,
            self.tops[rows],
        )


def sign(texts: pa.Array | pa.ChunkedArray, shape: SignatureShape) -> Signatures:
    """Signatures of an Arrow array of texts."""
    folding = fold if shape.sketch else fold_letters
    return sign_folded(folding(texts, skeleton_table(), scratch=_SCRATCH), shape)


def sign_folded(folded: Folded, shape: SignatureShape) -> Signatures:
    """Signatures of documents already folded with the skeleton table."""
    documents = len(folded.point_offsets) - 1
    tops = np.full(documents, COMPLETE, np.uint32)
    simhash = np.zeros(documents, np.uint64)
    bands = np.zeros((documents, shape.bands), np.uint64)
    sketch, offsets = np.zeros(0, np.uint32), np.zeros(documents + 1, np.int64)
    if shape.sketch:
        widths = (shape.feature_tokens, shape.shingle_tokens)
        sketch = _sign(
            folded.tokens, folded.token_offsets, *widths, shape.sketch, shape.rows, simhash, bands, offsets, tops
        )
    return Signatures(
        exact_keys(folded),
        np.diff(folded.point_offsets),
        np.diff(folded.token_offsets),
        simhash,
        bands,
        sketch,
        offsets,
        tops,
    )


def exact_keys(folded: Folded) -> np.ndarray:
    """(N, 2) uint64: XXH3-128 of each document's folded code points."""
    view = memoryview(folded.points.view(np.uint8).data)
    ends = (folded.point_offsets * 4).tolist()
    digest = xxhash.xxh3_128_digest
    raw = b"".join(digest(view[start:end]) for start, end in itertools.pairwise(ends))
    return np.frombuffer(raw, ">u8").astype(np.uint64).reshape(-1, 2)


def concatenate(parts: list[Signatures]) -> Signatures:
    """One set of signatures out of several, in order."""
    parts = [part for part in parts if len(part.keys)] or parts[:1]  # shards that earlier stages left empty have no shape
    offsets, end = [np.zeros(1, np.int64)], 0
    for part in parts:
        offsets.append(part.sketch_offsets[1:] - part.sketch_offsets[0] + end)
        end = int(offsets[-1][-1]) if len(offsets[-1]) else end
    columns = {
        name: np.concatenate([getattr(part, name) for part in parts])
        for name in ("keys", "letters", "tokens", "simhash", "bands", "sketch", "tops")
    }
    return Signatures(**columns, sketch_offsets=np.concatenate(offsets))


def take_ragged(values: np.ndarray, offsets: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows of a ragged array: (values, offsets) of the chosen rows in the chosen order."""
    sizes = np.diff(offsets)[rows]
    chosen = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])
    index = np.arange(chosen[-1]) + np.repeat(offsets[:-1][rows] - chosen[:-1], sizes)
    return values[index], chosen


@njit(cache=True, nogil=True, inline="always")
def shingle(tokens, i, width):  # type: ignore[no-untyped-def]
    """The 64-bit hash of `width` tokens from place i on."""
    h = tokens[i]
    for j in range(1, width):
        h = h * np.uint64(0x9E3779B97F4A7C15) + tokens[i + j]
    return mix64(h)


@njit(cache=True, nogil=True)
def _sign(  # type: ignore[no-untyped-def]
    tokens, token_offsets, feature_width, width, size, rows, simhash, bands, offsets, tops
):
    """Fill simhash, bands, offsets and tops; give the sketches."""
    documents = len(token_offsets) - 1
    longest = 0
    total = 0
    for d in range(documents):
        number = token_offsets[d + 1] - token_offsets[d]
        longest = max(longest, number)
        total += number if number < size else size
    shingles = np.empty(longest, np.uint64)
    buffer = np.empty(longest, np.uint32)
    ordered = np.empty(longest, np.uint32)
    places = np.empty(longest + 1, np.int64)
    out = np.empty(total, np.uint32)
    planes = np.zeros(40, np.uint64)
    smallest = np.empty(bands.shape[1] * rows, np.uint32)
    filled = np.empty(bands.shape[1] * rows, np.uint32)
    for d in range(documents):
        start = token_offsets[d]
        number = token_offsets[d + 1] - start
        offsets[d + 1] = offsets[d]
        if number == 0:
            continue
        simhash[d] = _sim_hash(tokens, start, number, min(feature_width, number), planes)
        used = min(width, number)
        many = number - used + 1
        if used == 5:  # written out, which the compiler does for a fixed width only
            multiplier = np.uint64(0x9E3779B97F4A7C15)
            for i in range(many):
                at = start + i
                h = (tokens[at] * multiplier + tokens[at + 1]) * multiplier + tokens[at + 2]
                shingles[i] = mix64((h * multiplier + tokens[at + 3]) * multiplier + tokens[at + 4])
        else:
            for i in range(many):
                shingles[i] = shingle(tokens, start + i, used)
        if bands.shape[1]:
            _min_hash(shingles[:many], rows, smallest, filled, bands[d])
        kept, tops[d] = _sketch(shingles[:many], size, buffer, places, ordered, out[offsets[d] :])
        offsets[d + 1] += kept
    return out[: offsets[documents]]


@njit(cache=True, nogil=True, inline="always")
def _add(a, b, c):  # type: ignore[no-untyped-def]
    """(carries, sums) of three columns of 64 one-bit numbers."""
    different = a ^ b
    return (a & b) | (different & c), different ^ c


@njit(cache=True, nogil=True)
def _sim_hash(tokens, start, number, width, planes):  # type: ignore[no-untyped-def]
    """Bit-sliced counting: plane k holds bit k of all 64 counters. Eight features go through a tree of adders (Harley and Seal)
    before one carry ripples up, so that a feature costs a few word operations."""
    features = number - width + 1
    planes[:] = 0
    ones = np.uint64(0)
    twos = np.uint64(0)
    fours = np.uint64(0)
    i = start
    last = start + features
    while i + 8 <= last:
        twos_a, ones = _add(ones, shingle(tokens, i, width), shingle(tokens, i + 1, width))
        twos_b, ones = _add(ones, shingle(tokens, i + 2, width), shingle(tokens, i + 3, width))
        fours_a, twos = _add(twos, twos_a, twos_b)
        twos_a, ones = _add(ones, shingle(tokens, i + 4, width), shingle(tokens, i + 5, width))
        twos_b, ones = _add(ones, shingle(tokens, i + 6, width), shingle(tokens, i + 7, width))
        fours_b, twos = _add(twos, twos_a, twos_b)
        carry, fours = _add(fours, fours_a, fours_b)
        k = 3
        while carry != 0:
            both = planes[k] & carry
            planes[k] ^= carry
            carry = both
            k += 1
        i += 8
    planes[0] = ones
    planes[1] = twos
    planes[2] = fours
    while i < last:
        carry = shingle(tokens, i, width)
        k = 0
        while carry != 0:
            both = planes[k] & carry
            planes[k] ^= carry
            carry = both
            k += 1
        i += 1
    used = 1
    while features >> used:
        used += 1
    value = np.uint64(0)
    for bit in range(64):
        count = np.int64(0)
        for k in range(used):
            count |= np.int64((planes[k] >> np.uint64(bit)) & np.uint64(1)) << k
        if 2 * count > features:
            value |= np.uint64(1) << np.uint64(bit)
    return value


@njit(cache=True, nogil=True)
def _min_hash(shingles, rows, smallest, filled, bands):  # type: ignore[no-untyped-def]
    number = len(smallest)
    smallest[:] = np.uint32(0xFFFFFFFF)
    for h in shingles:
        place = ((h >> np.uint64(32)) * np.uint64(number)) >> np.uint64(32)
        low = np.uint32(h & np.uint64(0xFFFFFFFE))
        if low < smallest[place]:
            smallest[place] = low
    for k in range(number):
        j = k
        steps = 0
        while smallest[j] == np.uint32(0xFFFFFFFF):
            j = j + 1 if j + 1 < number else 0
            steps += 1
        filled[k] = smallest[j] + np.uint32(steps * 0x9E3779B1 & 0xFFFFFFFF)
    for b in range(len(bands)):
        h = np.uint64(b + 1)
        for r in range(rows):
            h = mix64(h ^ np.uint64(filled[b * rows + r])) + np.uint64(0x9E3779B97F4A7C15)
        bands[b] = h


@njit(cache=True, nogil=True)
def _sorted(values, number, bound, places, ordered):  # type: ignore[no-untyped-def]
    """The first `number` values, all below `bound` and evenly spread as hashes are, in ascending order: one bucket for each, then
    what fell into one bucket put right."""
    if number < 2:
        return values[:number]
    scale = (np.uint64(number) << np.uint64(32)) // bound
    places[: number + 1] = 0
    for i in range(number):
        bucket = min((np.uint64(values[i]) * scale) >> np.uint64(32), np.uint64(number - 1))
        places[bucket + np.uint64(1)] += 1
    for i in range(number):
        places[i + 1] += places[i]
    for i in range(number):
        bucket = min((np.uint64(values[i]) * scale) >> np.uint64(32), np.uint64(number - 1))
        ordered[places[bucket]] = values[i]
        places[bucket] += 1
    moves = 0
    for i in range(1, number):
        value = ordered[i]
        j = i
        while j > 0 and ordered[j - 1] > value:
            ordered[j] = ordered[j - 1]
            j -= 1
        ordered[j] = value
        moves += i - j
        if moves > 16 * number + 1024:  # few different values, many times, in one bucket: a text made to be slow
            return np.sort(ordered[:number])
    return ordered[:number]


@njit(cache=True, nogil=True)
def _sketch(shingles, size, buffer, places, ordered, out):  # type: ignore[no-untyped-def]
    """Write the `size` smallest different 32-bit hashes, ascending; give their number and the value up to which all are there.

    Only hashes below a bound that should let 1.4 times as many through are sorted; too few and the bound is raised.
    """
    share = 1.4 * size / len(shingles) if len(shingles) > 2 * size else 1.0
    while True:
        bound = np.uint64(share * 4294967296.0)
        taken = 0
        for h in shingles:
            high = h >> np.uint64(32)
            if high < bound:
                buffer[taken] = np.uint32(high)
                taken += 1
        chosen = _sorted(buffer, taken, bound, places, ordered)
        unique = 0
        for i in range(taken):
            if i == 0 or chosen[i] != chosen[i - 1]:
                chosen[unique] = chosen[i]
                unique += 1
        if unique >= size or share >= 1.0:
            break
        share = min(1.0, share * 3.0)
    kept = unique if unique < size else size
    out[:kept] = chosen[:kept]
    if unique > size or share < 1.0:
        return kept, chosen[kept - 1]
    return kept, np.uint32(0xFFFFFFFF)
