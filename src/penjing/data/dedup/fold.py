"""Text folded to what two copies of it have in common: code points and tokens, by one compiled pass over UTF-8 bytes.

Two tables drive the same kernel. `skeleton_table` keeps letters, numbers and marks only (compatibility forms, case
and the traditional/simplified difference folded away): the view in which punctuation, spaces and emoji do not exist.
`language_model_table` keeps punctuation as tokens, folds digits to 0 and ends a sentence at each line feed: the view
that perplexity is measured on. A token is one Han, kana, Hangul or South-East Asian character, or a run of other
letters and digits.
"""

from __future__ import annotations

import functools
import importlib.util
import threading
import unicodedata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numba import njit

SEPARATOR, WORD, SINGLE, IGNORED, BREAK = range(5)
BREAK_TOKEN = np.uint64(0)
"""The token that stands for the end of a line in the language-model view; no other token is 0."""

_SINGLE_RANGES = (
    (0x0E00, 0x0EFF),
    (0x1000, 0x109F),
    (0x1780, 0x17FF),
    (0x1950, 0x19DF),
    (0x2E80, 0x2FDF),
    (0x3005, 0x3007),
    (0x3040, 0x31FF),
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xA960, 0xA97F),
    (0xAC00, 0xD7FF),
    (0xF900, 0xFAFF),
    (0x1B000, 0x1B16F),
    (0x20000, 0x3FFFF),
)


@dataclass(frozen=True)
class FoldTable:
    """What each code point becomes: `entries[c]` is its kind in the bits from 28 on, and below them its folded code
    point or, with bit 27 set, the number of its sequence; sequence i is `sequences[starts[i]:starts[i+1]]`, entries
    again."""

    entries: np.ndarray
    starts: np.ndarray
    sequences: np.ndarray


@dataclass(frozen=True)
class Folded:
    """A folded batch. Document d has code points `points[point_offsets[d]:point_offsets[d+1]]` and likewise tokens
    (64-bit hashes); `token_points[t]` is where token t begins in `points`, `token_bytes[t]` in the bytes of the batch."""

    points: np.ndarray
    point_offsets: np.ndarray
    tokens: np.ndarray
    token_offsets: np.ndarray
    token_points: np.ndarray
    token_bytes: np.ndarray


@functools.cache
def skeleton_table() -> FoldTable:
    """NFKD, case-folded, simplified; separators, punctuation, symbols, emoji and joiners vanish."""
    simplified = _simplified_characters()

    def sequence(code: int, character: str, category: str) -> list[int]:
        folded = unicodedata.normalize("NFKD", character).casefold() if not 0xAC00 <= code <= 0xD7A3 else character
        if folded == character and category[0] in "LN":
            return [ord(simplified.get(character, character))]
        kept = [
            ord(simplified.get(c, c)) for c in folded if unicodedata.category(c)[0] in "LNM" and not _vanishes(ord(c))
        ]
        return kept[: len(character.encode())]  # never longer than the UTF-8 it replaces, so buffers cannot overflow

    def kind(code: int, category: str) -> int:
        if category == "Cf" or _vanishes(code):
            return IGNORED
        if category[0] not in "LNM" and not (
            category == "So" and unicodedata.normalize("NFKD", chr(code)) != chr(code)
        ):
            return SEPARATOR
        return SINGLE if _SINGLE_FLAGS[code] else WORD

    return _build(kind, sequence, simplified)


@functools.cache
def language_model_table() -> FoldTable:
    """NFKD without accents, case-folded, digits as 0, punctuation and symbols as single tokens, line feed as sentence
    end."""

    def sequence(code: int, character: str, category: str) -> list[int]:
        if 0xAC00 <= code <= 0xD7A3:
            return [code]
        folded = unicodedata.normalize("NFKD", character).casefold()
        kept = ["0" if unicodedata.category(c) == "Nd" else c for c in folded if unicodedata.category(c)[0] in "LNPS"]
        return [ord(c) for c in kept][: len(character.encode())]

    def kind(code: int, category: str) -> int:
        if code == 0x0A:
            return BREAK
        if category in ("Cf", "Mn", "Me", "Cc") and code not in (0x09, 0x0D):
            return IGNORED
        if category[0] in "ZC":
            return SEPARATOR
        if category[0] in "PS":
            return SINGLE
        return SINGLE if _is_single(code) else WORD

    return _build(kind, sequence, {})


class Scratch(threading.local):
    """Buffers that are used again by the next fold of the same thread, which overwrites what the last one gave."""

    def __init__(self) -> None:
        self.points = np.empty(0, np.uint32)
        self.tokens = np.empty(0, np.uint64)

    def fit(self, size: int, tokens: int) -> tuple[np.ndarray, np.ndarray]:
        """(points, tokens) buffers of at least the given sizes."""
        if len(self.points) < size or len(self.tokens) < tokens:
            self.points, self.tokens = np.empty(size * 5 // 4, np.uint32), np.empty(tokens * 5 // 4, np.uint64)
        return self.points, self.tokens


def fold(
    texts: pa.Array | pa.ChunkedArray, table: FoldTable, *, places: bool = False, scratch: Scratch | None = None
) -> Folded:
    """Every document of an Arrow string array folded; null counts as empty. Invalid UTF-8 bytes are separators.

    `places` fills `token_points` and `token_bytes`, which are empty otherwise. With `scratch` the result holds until
    its next use.
    """
    data, offsets = text_buffers(texts)
    return fold_bytes(data, offsets, table, places=places, scratch=scratch)


def fold_bytes(
    data: np.ndarray, offsets: np.ndarray, table: FoldTable, *, places: bool = False, scratch: Scratch | None = None
) -> Folded:
    """`fold` on raw UTF-8: uint8 data and int64 offsets (documents + 1)."""
    size = int(offsets[-1] - offsets[0])
    most = size + len(offsets)
    points, tokens = (scratch or Scratch()).fit(size, most)
    token_points = np.empty(most if places else 0, np.int64)
    token_bytes = np.empty(most if places else 0, np.int64)
    point_offsets = np.zeros(len(offsets), np.int64)
    token_offsets = np.zeros(len(offsets), np.int64)
    found = (points, tokens, token_points, token_bytes, point_offsets, token_offsets)
    _fold(data, offsets, table.entries, table.starts, table.sequences, *found)
    count, total = int(token_offsets[-1]), int(point_offsets[-1])
    return Folded(
        points[:total], point_offsets, tokens[:count], token_offsets, token_points[:count], token_bytes[:count]
    )


def fold_letters(texts: pa.Array | pa.ChunkedArray, table: FoldTable, *, scratch: Scratch | None = None) -> Folded:
    """`fold` without tokens, in a third of the time: for keys of whole texts."""
    data, offsets = text_buffers(texts)
    size = int(offsets[-1] - offsets[0])
    points, _ = (scratch or Scratch()).fit(size + len(offsets), 0)
    point_offsets = np.zeros(len(offsets), np.int64)
    _fold_letters(data, offsets, table.entries, table.starts, table.sequences, points, point_offsets)
    none = np.empty(0, np.int64)
    return Folded(points[: point_offsets[-1]], point_offsets, np.empty(0, np.uint64), np.zeros(len(offsets), np.int64), none, none)


def text_buffers(texts: pa.Array | pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """(uint8 data, int64 offsets) of an Arrow string array, without copying the text of a single large_string chunk."""
    if isinstance(texts, pa.ChunkedArray):
        texts = texts.combine_chunks() if texts.num_chunks != 1 else texts.chunk(0)
        if isinstance(texts, pa.ChunkedArray):
            texts = pa.array([], pa.large_string())
    if not pa.types.is_large_string(texts.type):
        texts = texts.cast(pa.large_string())
    if texts.null_count:
        texts = texts.fill_null("")
    if len(texts) == 0:
        return np.zeros(0, np.uint8), np.zeros(1, np.int64)
    _, offset_buffer, data_buffer = texts.buffers()
    offsets = np.frombuffer(offset_buffer, np.int64, len(texts) + 1, texts.offset * 8)
    data = (
        np.frombuffer(data_buffer, np.uint8) if data_buffer is not None and data_buffer.size else np.zeros(0, np.uint8)
    )
    return data, offsets


_PLAIN_RANGES = ((0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xAC00, 0xD7A3), (0x20000, 0x2F7FF), (0x2FA20, 0x323AF))
"""Han and Hangul characters that no form of normalisation changes here, only the table of simplified characters."""


def _single_flags() -> bytearray:
    flags = bytearray(0x110000)
    for low, high in _SINGLE_RANGES:
        flags[low : high + 1] = b"\1" * (high + 1 - low)
    return flags


_SINGLE_FLAGS = _single_flags()


def _is_single(code: int) -> bool:
    return _SINGLE_FLAGS[code] == 1


def _vanishes(code: int) -> bool:
    """Variation selectors, joiners, enclosing marks and tags: they change how a character looks, not which one it
    is."""
    return (
        0xFE00 <= code <= 0xFE0F or 0xE0000 <= code <= 0xE0FFF or code in (0x200C, 0x200D) or 0x20D0 <= code <= 0x20FF
    )


def _simplified_characters() -> dict[str, str]:
    spec = importlib.util.find_spec("opencc")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("opencc-python-reimplemented is needed for the traditional to simplified table")
    lines = (Path(spec.origin).parent / "dictionary" / "TSCharacters.txt").read_text(encoding="utf-8").splitlines()
    return {line.split("\t")[0]: line.split("\t")[1].split(" ")[0][0] for line in lines if "\t" in line}


def _build(
    kind: Callable[[int, str], int], sequence: Callable[[int, str, str], list[int]], simplified: Mapping[str, str]
) -> FoldTable:
    kinds = np.zeros(0x110000, np.uint8)
    single = np.arange(0x110000, dtype=np.int32)
    starts: list[int] = [0]
    sequences: list[int] = []
    plain = np.zeros(0x110000, bool)
    for low, high in _PLAIN_RANGES:
        plain[low : high + 1] = True
    kinds[plain] = SINGLE
    for character, simple in simplified.items():
        if plain[ord(character)]:
            single[ord(character)] = ord(simple)
    outside = np.flatnonzero(~plain[:0x20000]).tolist()
    for code in [*outside, *range(0x2F800, 0x2FA20), *range(0xE0000, 0xE1000)]:
        if 0xD800 <= code <= 0xF8FF:
            continue
        character = chr(code)
        category = unicodedata.category(character)
        if category == "Cn":
            continue
        what = kind(code, category)
        kinds[code] = what
        if what not in (WORD, SINGLE):
            continue
        parts = sequence(code, character, category)
        if not parts:
            kinds[code] = IGNORED if category[0] == "M" else SEPARATOR
        elif len(parts) == 1:
            single[code] = parts[0]
            if what == WORD and _is_single(parts[0]):
                kinds[code] = SINGLE
        else:
            single[code] = -len(starts)
            sequences.extend(parts)
            starts.append(len(sequences))
    entries = (kinds.astype(np.uint32) << np.uint32(28)) | np.where(single >= 0, single, 0).astype(np.uint32)
    many = single < 0
    entries[many] = (
        (kinds[many].astype(np.uint32) << np.uint32(28)) | np.uint32(1 << 27) | (-single[many] - 1).astype(np.uint32)
    )
    spelled = np.asarray(sequences, np.int64)
    entry = (np.maximum(kinds[spelled], WORD).astype(np.uint32) << np.uint32(28)) | spelled.astype(np.uint32)
    return FoldTable(entries, np.asarray(starts, np.int64), entry)


@njit(cache=True, nogil=True, inline="always")
def mix64(h):  # type: ignore[no-untyped-def]
    """The finishing step of MurmurHash3: every input bit reaches every output bit."""
    h ^= h >> np.uint64(33)
    h *= np.uint64(0xFF51AFD7ED558CCD)
    h ^= h >> np.uint64(33)
    h *= np.uint64(0xC4CEB9FE1A85EC53)
    h ^= h >> np.uint64(33)
    return h


@njit(cache=True, nogil=True, inline="always")
def _decode(data, i, end):  # type: ignore[no-untyped-def]
    """(code point, length) of a character that is not ASCII; an invalid byte gives (0x10FFFF, 1), which is a separator."""
    b = np.int64(data[i])
    if 0xE0 <= b < 0xF0 and i + 2 < end and (data[i + 1] & 0xC0) == 0x80 and (data[i + 2] & 0xC0) == 0x80:
        return ((b & 0x0F) << 12) | ((np.int64(data[i + 1]) & 0x3F) << 6) | (np.int64(data[i + 2]) & 0x3F), 3
    if 0xC2 <= b < 0xE0 and i + 1 < end and (data[i + 1] & 0xC0) == 0x80:
        return ((b & 0x1F) << 6) | (np.int64(data[i + 1]) & 0x3F), 2
    if 0xF0 <= b < 0xF5 and i + 3 < end:
        second, third, fourth = np.int64(data[i + 1]), np.int64(data[i + 2]), np.int64(data[i + 3])
        if (second & 0xC0) == 0x80 and (third & 0xC0) == 0x80 and (fourth & 0xC0) == 0x80:
            code = ((b & 0x07) << 18) | ((second & 0x3F) << 12) | ((third & 0x3F) << 6) | (fourth & 0x3F)
            if code < 0x110000:
                return code, 4
    return 0x10FFFF, 1


@njit(cache=True, nogil=True)
def _fold(  # type: ignore[no-untyped-def]
    data, offsets, entries, starts, sequences, points, tokens, token_points, token_bytes, point_offsets, token_offsets
):
    seed = np.uint64(0x9E3779B97F4A7C15)
    prime = np.uint64(0x9FB21C651E98DF25)
    places = len(token_points) > 0
    letter = np.zeros(128, np.uint32)  # ASCII letters and digits, which make up most of most words; 0 = anything else
    for b in range(128):
        if entries[b] >> 28 == 1 and not entries[b] & 0x8000000:
            letter[b] = entries[b] & 0x1FFFFF
    one = np.uint64(1)
    two = np.uint64(2)
    three = np.uint64(3)
    p = np.uint64(0)
    t = np.uint64(0)
    for d in range(len(offsets) - 1):
        i = np.uint64(offsets[d])
        end = np.uint64(offsets[d + 1])
        running = False
        h = seed
        while i < end:
            at = i
            b = data[i]
            if b < 0x80:
                point = letter[b]
                if point:
                    if not running:
                        h = seed
                        if places:
                            token_points[t] = p
                            token_bytes[t] = at
                        running = True
                    while True:
                        points[p] = point
                        p += one
                        h = (h ^ np.uint64(point)) * prime
                        h ^= h >> np.uint64(32)
                        i += one
                        if i >= end or data[i] >= 0x80:
                            break
                        point = letter[data[i]]
                        if not point:
                            if entries[data[i]] >> 28 == 0:  # a space or mark ends the word
                                tokens[t] = mix64(h)
                                t += one
                                running = False
                                i += one
                            break
                    continue
                entry = entries[b]
                i += one
                if entry >> 28 == 0 and not running:
                    continue
            elif 0xE0 <= b < 0xF0 and i + two < end and (data[i + one] & 0xC0) == 0x80 and (data[i + two] & 0xC0) == 0x80:
                entry = entries[
                    ((np.uint32(b) & 0x0F) << 12) | ((np.uint32(data[i + one]) & 0x3F) << 6) | (np.uint32(data[i + two]) & 0x3F)
                ]
                i += three
            else:
                code, length = _decode(data, np.int64(i), np.int64(end))
                entry = entries[code]
                i += np.uint64(length)
            kind = entry >> 28
            if kind == 1 and not entry & 0x8000000:
                if not running:
                    h = seed
                    if places:
                        token_points[t] = p
                        token_bytes[t] = at
                    running = True
                point = entry & 0x1FFFFF
                points[p] = point
                p += one
                h = (h ^ np.uint64(point)) * prime
                h ^= h >> np.uint64(32)
                continue
            if kind == 3:
                continue
            if running and kind != 1:
                tokens[t] = mix64(h)
                t += one
                running = False
            if kind == 2 and not entry & 0x8000000:
                if places:
                    token_points[t] = p
                    token_bytes[t] = at
                point = entry & 0x1FFFFF
                points[p] = point
                p += one
                h = (seed ^ np.uint64(point)) * prime
                tokens[t] = mix64(h ^ (h >> np.uint64(32)))
                t += one
                continue
            if kind == 0 or kind == 4:
                if kind == 4 and np.int64(t) > token_offsets[d] and tokens[t - one] != 0:
                    tokens[t] = np.uint64(0)
                    if places:
                        token_points[t] = p
                        token_bytes[t] = at
                    t += one
                continue
            row = np.int64(entry & 0x7FFFFFF)
            for j in range(starts[row], starts[row + 1]):
                part = sequences[j]
                alone = part >> 28 == 2 or kind == 2
                if running and alone:
                    tokens[t] = mix64(h)
                    t += one
                    running = False
                if not running:
                    h = seed
                    if places:
                        token_points[t] = p
                        token_bytes[t] = at
                point = part & 0x1FFFFF
                points[p] = point
                p += one
                h = (h ^ np.uint64(point)) * prime
                h ^= h >> np.uint64(32)
                if alone:
                    tokens[t] = mix64(h)
                    t += one
                else:
                    running = True
        if running:
            tokens[t] = mix64(h)
            t += one
        point_offsets[d + 1] = np.int64(p)
        token_offsets[d + 1] = np.int64(t)


@njit(cache=True, nogil=True, boundscheck=False)
def _fold_letters(data, offsets, entries, starts, sequences, points, point_offsets):  # type: ignore[no-untyped-def]
    """Every character is written and the place moves on only past those that count, so that nothing is mispredicted in running text.

    No ASCII character becomes several.
    """
    letter = np.empty(128, np.uint32)
    counts = np.empty(128, np.uint64)
    for b in range(128):
        kind = entries[b] >> 28
        letter[b] = entries[b] & 0x1FFFFF
        counts[b] = 1 if kind == 1 or kind == 2 else 0
    one = np.uint64(1)
    three = np.uint64(3)
    p = np.uint64(0)
    for d in range(len(offsets) - 1):
        i = np.uint64(offsets[d])
        end = np.uint64(offsets[d + 1])
        while i < end:
            b = data[i]
            if b < 0x80:
                points[p] = letter[b]
                p += counts[b]
                i += one
                continue
            if 0xE0 <= b < 0xF0 and i + np.uint64(2) < end:
                second = data[i + one]
                third = data[i + np.uint64(2)]
                if (second & 0xC0) == 0x80 and (third & 0xC0) == 0x80:
                    entry = entries[((np.uint32(b) & 0x0F) << 12) | ((np.uint32(second) & 0x3F) << 6) | (np.uint32(third) & 0x3F)]
                    i += three
                else:
                    entry = entries[0x10FFFF]
                    i += one
            else:
                code, length = _decode(data, np.int64(i), np.int64(end))
                entry = entries[code]
                i += np.uint64(length)
            kind = entry >> 28
            if not entry & 0x8000000:
                points[p] = entry & 0x1FFFFF
                p += np.uint64(kind == 1 or kind == 2)
                continue
            row = np.int64(entry & 0x7FFFFFF)
            for j in range(starts[row], starts[row + 1]):
                points[p] = sequences[j] & 0x1FFFFF
                p += one
        point_offsets[d + 1] = np.int64(p)
