# mypy: disable-error-code="no-untyped-def"
"""Normalisation of text in one compiled pass per document: steps DP3, DP4, DP5, DP8, DP9 and DP10.

First the characters: control characters go, spaces become one space, lines are trimmed, wide letters are folded,
decoration goes. Then the result: Traditional becomes Simplified by longest phrase, runs of one mark are capped at
three, ellipses get one form. Fenced code inside a document keeps its layout; code and URLs keep their characters.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from numba import njit

from penjing.data.kernels import Bytes, Offsets
from penjing.data.kernels.characters import (
    DECORATION,
    DROP,
    FOLD,
    HAN,
    JOINER,
    LIMIT,
    NEWLINE,
    PUNCT,
    TO_SPACE,
    actions,
    script_classes,
)
from penjing.data.kernels.scan import code_point, put

NATURAL, SIMPLIFY, UNDECORATE, CAP, WIDTH = 1, 2, 4, 8, 16
"""Bits of a document's plan; without NATURAL only control characters go and line ends become `\\n` (code)."""
EDITS = ("DP3-control", "DP4-space", "DP5-width", "DP8-simplified", "DP9-decoration", "DP10-repeated")
"""Columns of the second result: characters changed or removed by each step."""
MAX_RUN = 3


@dataclass(frozen=True)
class Simplifier:
    """Traditional to Simplified: one-character map, and phrases (key and value one after another) found by first
    character."""

    single: npt.NDArray[np.int32]
    first: npt.NDArray[np.int32]
    """Index into `starts` of the phrases that begin with a character, -1 for none; the next character's entry ends
    them."""
    starts: npt.NDArray[np.int32]
    lengths: npt.NDArray[np.int32]
    keys: npt.NDArray[np.int32]
    values: npt.NDArray[np.int32]


@functools.cache
def simplifier() -> Simplifier:
    """The `t2s` dictionaries of OpenCC (TSCharacters, TSPhrases) as the opencc-python-reimplemented package carries
    them."""
    import importlib.util

    spec = importlib.util.find_spec("opencc")
    assert spec is not None and spec.origin is not None, "opencc-python-reimplemented is a dependency"
    folder = Path(spec.origin).parent / "dictionary"
    single = np.arange(LIMIT, dtype=np.int32)
    for key, value in _pairs(folder / "TSCharacters.txt"):
        single[ord(key)] = ord(value)
    phrases = sorted(_pairs(folder / "TSPhrases.txt"), key=lambda pair: (pair[0][0], -len(pair[0]), pair[0]))
    first = np.full(LIMIT, -1, np.int32)
    starts: list[int] = []
    lengths: list[int] = []
    keys: list[int] = []
    values: list[int] = []
    for key, value in phrases:
        assert len(key) == len(value), "t2s phrases keep their length"
        if first[ord(key[0])] < 0:
            first[ord(key[0])] = len(starts)
        starts.append(len(keys))
        lengths.append(len(key))
        keys.extend(map(ord, key))
        values.extend(map(ord, value))
    return Simplifier(single, first, *(np.array(part, np.int32) for part in (starts, lengths, keys, values)))


def rewrite(data: Bytes, offsets: Offsets, plans: npt.NDArray[np.uint8]) -> tuple[Bytes, Offsets, npt.NDArray[np.int64]]:
    """(data, offsets, edits int64 [documents, len(EDITS)]) of the documents rewritten as their `plans` say."""
    table = simplifier()
    total, longest = len(data), int(np.max(np.diff(offsets), initial=0))
    out = np.empty(2 * total + 16 * len(offsets), np.uint8)
    out_offsets = np.zeros(len(offsets), np.int64)
    edits = np.zeros((len(offsets) - 1, len(EDITS)), np.int64)
    used = _rewrite(data, offsets, plans, actions(), script_classes(), table.single, table.first, table.starts,
                    table.lengths, table.keys, table.values, np.empty(longest + 2, np.int32),
                    np.empty(longest + 2, np.uint8), out, out_offsets, edits)
    return out[:used].copy(), out_offsets, edits


def _pairs(path: Path) -> list[tuple[str, str]]:
    rows = (line.rstrip("\n").split("\t") for line in path.read_text(encoding="utf-8").splitlines() if line)
    return [(row[0], row[1].split(" ")[0]) for row in rows]


@njit(cache=True, nogil=True)
def _rewrite(data, offsets, plans, action, script, single, first, starts, lengths, keys, values, points, guarded, out,
             out_offsets, edits):
    place = 0
    for document in range(len(offsets) - 1):
        plan = plans[document]
        edit = edits[document]
        if plan & NATURAL:
            size = _clean(data, offsets[document], offsets[document + 1], plan, action, points, guarded, edit)
            place = _finish(points, guarded, size, plan, action, script, single, first, starts, lengths, keys, values,
                            out, place, edit)
        else:
            place = _code(data, offsets[document], offsets[document + 1], action, out, place, edit)
        out_offsets[document + 1] = place
    return place


@njit(cache=True, nogil=True)
def _code(data, position, end, action, out, place, edit):
    while position < end:
        point, length = code_point(data, position)
        position += length
        if point == 0x0D:
            if position < end and data[position] == 0x0A:
                continue
            point = np.int32(0x0A)
        if action[point] == DROP and point != 9:
            edit[0] += 1
            continue
        place = put(out, place, point)
    return place


@njit(cache=True, nogil=True)
def _clean(data, position, end, plan, action, points, guarded, edit):
    size = 0
    newlines = 2  # leading blank lines go
    space = False
    fence, fence_length = np.int32(0), 0
    url = False
    previous = np.int32(0)
    while position < end:
        point, length = code_point(data, position)
        start = position
        position += length
        do = action[point]
        if do == NEWLINE:
            if point == 0x0D and position < end and data[position] == 0x0A:
                continue
            space = url = False
            newlines += 1
            if newlines <= 2 or fence:
                points[size] = 0x0A
                guarded[size] = fence != 0
                size += 1
            else:
                edit[1] += 1
            continue
        if newlines and (point == 0x60 or point == 0x7E):  # at the start of a line: a code fence opens or closes
            run = 1
            while start + run < end and data[start + run] == point:
                run += 1
            if run >= 3:
                if not fence:
                    fence, fence_length = point, run
                elif point == fence and run >= fence_length:
                    fence = np.int32(0)
                for _ in range(run):
                    points[size] = point
                    guarded[size] = 1
                    size += 1
                position = start + run
                newlines = 0
                space = False
                continue
        if fence:
            if do == DROP and point != 9:
                edit[0] += 1
                continue
            newlines = newlines if point == 0x20 or point == 9 else 0
            points[size] = point
            guarded[size] = 1
            size += 1
            continue
        if do == DROP:
            edit[0] += 1
            continue
        if do == TO_SPACE:
            if space or newlines or point != 0x20:
                edit[1] += 1
            space = not newlines
            url = False
            continue
        if do == JOINER:
            indic = 0x0600 <= previous < 0x0E00
            if (plan & UNDECORATE and not (indic and point < 0x2010)) or not previous:
                edit[4] += 1
                continue
        elif do == DECORATION and plan & UNDECORATE:
            edit[4] += 1
            continue
        elif do == FOLD and plan & WIDTH:
            edit[2] += 1
            point = np.int32(point - 0xFEE0)
        if space:
            points[size] = 0x20
            guarded[size] = 0
            size += 1
            space = False
        newlines = 0
        if point == 0x2F and size >= 2 and points[size - 1] == 0x2F and points[size - 2] == 0x3A:
            url = True
        elif url and ((point >= 0x3000 and do == PUNCT) or point == 0x22 or point == 0x3C or point == 0x3E or point == 0x29
                      or 0xFF01 <= point <= 0xFF0F):
            url = False
        points[size] = point
        guarded[size] = url
        size += 1
        previous = point
    while size and points[size - 1] == 0x0A:
        size -= 1
    return size


@njit(cache=True, nogil=True)
def _finish(points, guarded, size, plan, action, script, single, first, starts, lengths, keys, values, out, place,
            edit):
    index = 0
    last, run = np.int32(-1), 0
    headline = True
    while index < size:
        point = points[index]
        if guarded[index]:
            place = put(out, place, point)
            index += 1
            last, run = np.int32(-1), 0
            headline = False
            continue
        if plan & SIMPLIFY and point >= 0x3400:
            matched = 0
            entry = first[point]
            if entry >= 0:
                while entry < len(starts) and keys[starts[entry]] == point:
                    length, at = lengths[entry], starts[entry]
                    if index + length <= size:
                        matched = length
                        for step in range(length):
                            if points[index + step] != keys[at + step] or guarded[index + step]:
                                matched = 0
                                break
                        if matched:
                            for step in range(length):
                                edit[3] += keys[at + step] != values[at + step]
                                place = put(out, place, values[at + step])
                            break
                    entry += 1
            if matched:
                index += matched
                last, run, headline = np.int32(-1), 0, False
                continue
            changed = single[point]
            if changed != point:
                edit[3] += 1
                point = changed
        if plan & CAP:
            if point == 0x2026 or (point == 0x2E and index + 2 < size and points[index + 1] == 0x2E
                                   and points[index + 2] == 0x2E):
                stop = index
                while stop < size and not guarded[stop] and (points[stop] == 0x2026 or points[stop] == 0x2E):
                    stop += 1
                before = script[points[index - 1]] == HAN or _wide(points[index - 1]) if index else False
                after = script[points[stop]] == HAN or _wide(points[stop]) if stop < size else False
                if before or (after and index == 0):
                    edit[5] += not (stop - index == 2 and points[index] == 0x2026 and points[index + 1] == 0x2026)
                    place = put(out, place, np.int32(0x2026))
                    place = put(out, place, np.int32(0x2026))
                else:
                    edit[5] += not (stop - index == 3 and points[index] == 0x2E)
                    for _ in range(3):
                        place = put(out, place, np.int32(0x2E))
                index = stop
                last, run, headline = np.int32(-1), 0, False
                continue
            if point == last:
                run += 1
                limit = 6 if point == 0x23 and headline else MAX_RUN
                if run > limit and action[point] == PUNCT:
                    edit[5] += 1
                    index += 1
                    continue
            else:
                headline = last == 0x0A or (last == -1 and index == 0)
                last, run = point, 1
        place = put(out, place, point)
        index += 1
    return place


@njit(cache=True, nogil=True, inline="always")
def _wide(point):
    return 0x3000 < point < 0x3040 or 0xFF00 < point < 0xFF60 or point == 0x201C or point == 0x201D
