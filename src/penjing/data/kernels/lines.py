# mypy: disable-error-code="no-untyped-def"
"""Facts about every line of every document in one pass; what documents are is the sum of their lines.

A line is what stands between newlines, blank lines included. Lines inside Markdown code fences are marked, so that rules about
prose can leave them alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from numba import njit

from penjing.data.kernels import Bytes, Offsets
from penjing.data.kernels.bits import AT, BULLET, CELLS, CUT_BRACKET, DOTTED, HEADING, LONG_NUMBER, SPACED_HAN, SQUARE, URL
from penjing.data.kernels.characters import (
    CATEGORIES,
    DIGIT,
    EMOJI,
    HAN,
    KANA,
    LATIN,
    LETTER,
    PUNCTUATION,
    REPLACEMENT,
    SPACE,
    SYMBOL,
    general_categories,
    script_classes,
)
from penjing.data.kernels.scan import code_point
from penjing.data.kernels.words import mix

FACTS = ("characters", "spaces", "han", "kana", "latin", "other_letters", "upper", "digits", "punctuation", "symbols", "garbled",
         "hashes", "ellipses", "parentheses", "braces", "pipes", "bracketed", "url_characters", "tags", "sentences",
         "longest_token", "tokens", "first", "last", "ends_in_ellipsis", "terminal", "bits", "fenced", "unpunctuated",
         "plain_sentences")
"""Columns of `Lines.facts`, all int32. characters: without the newline; garbled: U+FFFD and well-known mojibake; ellipses:
`...` and `…`; bracketed: characters inside 【】; tokens, longest_token: runs without white space, in number and characters;
first, last: code points after trimming; terminal: 2 when the very last character is a mark that ends sentences, 1 when white
space, quotes or brackets follow it, or it is an ellipsis; bits: see URL … ; unpunctuated: longest stretch of characters
without punctuation."""
COLUMN = {name: index for index, name in enumerate(FACTS)}

_TERMINAL = ".!?。！？…؟।｡．‼⁇⁈⁉"
_CLOSING = "\"'”’）)】」』》]"
_BULLETS = "•-*·●○■□▪◦‣–—※►▶➢◆◇"
(_CHARACTERS, _SPACES, _HAN, _KANA, _LATIN, _OTHER, _UPPER, _DIGITS, _PUNCT, _SYMBOLS, _GARBLED, _HASHES, _ELLIPSES, _PARENS,
 _BRACES, _PIPES, _BRACKETED, _URLS, _TAGS, _SENTENCES, _LONGEST, _TOKENS, _FIRST, _LAST, _ENDS, _TERM, _BITS, _FENCED,
 _BARE, _PLAIN) = range(30)


@dataclass(frozen=True)
class Lines:
    """Lines of a batch; document d owns `first[d]` to `first[d + 1]`."""

    starts: npt.NDArray[np.int64]
    """Byte where the line begins; `begin` and `end` are those of the trimmed line."""
    ends: npt.NDArray[np.int64]
    begin: npt.NDArray[np.int64]
    end: npt.NDArray[np.int64]
    exact: npt.NDArray[np.uint64]
    """Hash of the line's bytes."""
    folded: npt.NDArray[np.uint64]
    """Hash without case, punctuation, spaces and with every digit as 0; 0 when nothing is left."""
    facts: npt.NDArray[np.int32]
    first: npt.NDArray[np.int64]

    def __getitem__(self, name: str) -> npt.NDArray[np.int32]:
        """One column of the facts."""
        return self.facts[:, COLUMN[name]]


def lines(data: Bytes, offsets: Offsets) -> Lines:
    """The lines of every document and their facts."""
    number = int(np.count_nonzero(data == 0x0A)) + len(offsets) - 1
    spans = np.empty((4, number), np.int64)
    exact, folded = np.empty(number, np.uint64), np.empty(number, np.uint64)
    facts = np.zeros((number, len(FACTS)), np.int32)
    first = np.zeros(len(offsets), np.int64)
    _lines(data, offsets, script_classes(), _marks(), spans[0], spans[1], spans[2], spans[3], exact, folded, facts, first)
    return Lines(spans[0], spans[1], spans[2], spans[3], exact, folded, facts, first)


def _marks() -> npt.NDArray[np.uint8]:
    """Bits per code point: 1 terminal, 2 closing, 4 bullet, 8 upper case."""
    table = np.zeros(0x110000, np.uint8)
    for text, bit in ((_TERMINAL, 1), (_CLOSING, 2), (_BULLETS, 4)):
        for character in text:
            table[ord(character)] |= bit
    table[general_categories() == CATEGORIES.index("Lu")] |= 8
    return table


@njit(cache=True, nogil=True)
def _lines(data, offsets, classes, marks, starts, ends, begins, stops, exact, folded, facts, first):
    line = 0
    for document in range(len(offsets) - 1):
        position, end = offsets[document], offsets[document + 1]
        fence, fence_length = 0, 0
        while True:
            stop = position
            while stop < end and data[stop] != 0x0A:
                stop += 1
            starts[line], ends[line] = position, stop
            row = facts[line]
            begin, finish = _measure(data, position, stop, classes, marks, row, exact, folded, line)
            begins[line], stops[line] = begin, finish
            if finish - begin >= 3 and (data[begin] == 0x60 or data[begin] == 0x7E):
                run = 1
                while begin + run < finish and data[begin + run] == data[begin]:
                    run += 1
                if run >= 3 and fence == 0:
                    fence, fence_length = data[begin], run
                    row[_FENCED] = 1
                elif run >= fence_length and data[begin] == fence:
                    fence = 0
                    row[_FENCED] = 1
            if fence:
                row[_FENCED] = 1
            line += 1
            if stop >= end:
                break
            position = stop + 1
        first[document + 1] = line


@njit(cache=True, nogil=True)
def _measure(data, start, stop, classes, marks, row, exact, folded, line):
    prime = np.uint64(0x100000001B3)
    whole = fold = np.uint64(0xCBF29CE484222325)
    position = start
    begin, finish = stop, start
    token, bare, digits_run, groups = 0, 0, 0, 0
    url = bracket = False
    kept = 0
    previous, before = np.int32(0), np.int32(0)
    last, last_but_one, last_but_two = np.int32(0), np.int32(0), np.int32(0)
    sentence_open = plain_open = False
    tag = np.int64(-1)
    while position < stop:
        point, length = code_point(data, position)
        for step in range(length):
            whole = (whole ^ np.uint64(data[position + step])) * prime
        name = classes[point]
        row[_CHARACTERS] += 1
        bare += 1
        if url and (name == SPACE or point >= 0x2E80 or point == 0x22 or point == 0x3C or point == 0x3E):
            url = False
        if name == SPACE:
            row[_SPACES] += 1
            token = 0
            digits_run = groups = 0
        else:
            if begin == stop:
                begin = position
                row[_FIRST] = point
                if marks[point] & 4:
                    row[_BITS] |= BULLET
            finish = position + length
            if token == 0:
                row[_TOKENS] += 1
            token += 1
            row[_LONGEST] = max(row[_LONGEST], token)
            if name <= LETTER:
                sentence_open = plain_open = True
                kept += 1
                low = point + 32 if 65 <= point <= 90 else point
                fold = (fold ^ np.uint64(low)) * prime
                digits_run = groups = 0
                if name == HAN:
                    row[_HAN] += 1
                    if classes[previous] == SPACE and previous == 0x20 and classes[before] == HAN:
                        row[_BITS] |= SPACED_HAN
                elif name == LATIN:
                    row[_LATIN] += 1
                elif name == KANA:
                    row[_KANA] += 1
                else:
                    row[_OTHER] += 1
                if marks[point] & 8:
                    row[_UPPER] += 1
            elif name == DIGIT:
                sentence_open = plain_open = True
                kept += 1
                row[_DIGITS] += 1
                fold = (fold ^ np.uint64(0x30)) * prime
                if digits_run == 0:
                    groups += 1
                    if groups == 4:
                        row[_BITS] |= DOTTED
                digits_run += 1
                if digits_run == 11:
                    row[_BITS] |= LONG_NUMBER
            elif name == PUNCTUATION:
                row[_PUNCT] += 1
                bare = 0
                if point == 0x23:
                    row[_HASHES] += 1
                elif point == 0x28 or point == 0x29 or point == 0xFF08 or point == 0xFF09 or point == 0x5D:
                    row[_PARENS] += 1
                elif point == 0x5B:
                    row[_PARENS] += 1
                    row[_BITS] |= SQUARE
                elif point == 0x7B or point == 0x7D:
                    row[_BRACES] += 1
                elif point == 0x40:
                    row[_BITS] |= AT
                elif point == 0x3010:
                    row[_PARENS] += 1
                    bracket = True
                elif point == 0x3011:
                    row[_PARENS] += 1
                    bracket = False
                elif point == 0x2026:
                    row[_ELLIPSES] += 1
                elif point == 0x2E and previous == 0x2E and before == 0x2E:
                    row[_ELLIPSES] += 1
                    point = np.int32(0)  # the next dot begins a new run of three
                if point == 0x2F and previous == 0x2F and before == 0x3A and not url:
                    back = position - 2
                    while back > start and 97 <= data[back - 1] | 0x20 <= 122:
                        back -= 1
                    url = True
                    row[_BITS] |= URL
                    row[_URLS] += position - back
                elif point == 0x2E and not url and position - start >= 3 and data[position - 1] | 0x20 == 0x77 and \
                        data[position - 2] | 0x20 == 0x77 and data[position - 3] | 0x20 == 0x77:
                    url = True
                    row[_BITS] |= URL
                    row[_URLS] += 3
                if not (point == 0x2E and digits_run):
                    groups = 0
                digits_run = 0
            elif name == SYMBOL or name == EMOJI:  # noqa: SIM109
                row[_SYMBOLS] += 1
                digits_run = groups = 0
                if point == 0x7C:
                    row[_PIPES] += 1
                elif point == 0x3C:
                    row[_BITS] |= CUT_BRACKET
                    tag = position
                elif point == 0x3E and tag >= 0:
                    if position - tag < 200 and _tag_start(data[tag + 1]):
                        row[_TAGS] += 1
                    tag = np.int64(-1)
            elif name == REPLACEMENT:
                row[_GARBLED] += 1
            # 锟斤拷 and â€: what UTF-8 read as GBK or as Latin-1 looks like
            if point == 0x62F7 and previous == 0x65A4 and before == 0x951F:
                row[_GARBLED] += 3
            elif (point == 0x20AC and previous == 0xE2) or (0x80 <= point < 0xC0 and (previous == 0xC3 or previous == 0xC2)):
                row[_GARBLED] += 2
            if url:
                row[_URLS] += 1
            if bracket and point != 0x3010:
                row[_BRACKETED] += 1
            last_but_two, last_but_one, last = last_but_one, last, point if point else np.int32(0x2E)
        row[_BARE] = max(row[_BARE], bare)
        if name == PUNCTUATION and marks[point] & 1 and sentence_open:
            after = position + length
            if point >= 0x80 or after >= stop or data[after] == 0x20 or data[after] == 0x22 or data[after] == 0x27 or \
                    data[after] == 0x29 or data[after] >= 0xE2:
                row[_SENTENCES] += 1
                sentence_open = False
        if plain_open and name == PUNCTUATION and marks[point] & 1 and point != 0x2026:
            after = position + length
            if point != 0x2E or ((after >= stop or (data[after] != 0x2E and not _wordy(data[after]))) and previous != 0x2E):
                row[_PLAIN] += 1
                plain_open = False
        before, previous = previous, point
        position += length
    if plain_open:
        row[_PLAIN] += 1
    if sentence_open:
        row[_SENTENCES] += 1
    row[_LAST] = last
    row[_ENDS] = last == 0x2026 or (last == 0x2E and last_but_one == 0x2E and last_but_two == 0x2E)
    if marks[last] & 1:
        row[_TERM] = 2 if last != 0x2026 and finish == stop else 1
    elif marks[last] & 2 and marks[last_but_one] & 1:
        row[_TERM] = 1
    if row[_PIPES] >= 2 and row[_TOKENS] and (row[_FIRST] == 0x7C or row[_PIPES] >= 3):
        row[_BITS] |= CELLS
    if begin < finish and _headlike(data, begin, finish, marks):
        row[_BITS] |= HEADING
    exact[line] = mix(whole) | np.uint64(1)
    folded[line] = mix(fold) | np.uint64(1) if kept else np.uint64(0)
    if finish < begin:
        begin = finish = start
    return begin, finish


@njit(cache=True, nogil=True)
def _headlike(data, begin, finish, marks):
    point, length = code_point(data, begin)
    if marks[point] & 12 == 4 or point == 0x23 or point == 0x2B or point == 0x3E or point == 0x7C or point == 0x21 or \
            point == 0x5B or point == 0x60 or point == 0x3A or point == 0x7B2C:
        return True
    position, digits = begin, 0
    while position < finish and digits < 4:
        point, length = code_point(data, position)
        if 0x30 <= point <= 0x39 or point == 0x4E00 or point == 0x4E8C or point == 0x4E09 or point == 0x56DB or point == 0x4E94 \
                or point == 0x516D or point == 0x4E03 or point == 0x516B or point == 0x4E5D or point == 0x5341:
            digits += 1
            position += length
        else:
            return digits > 0 and (point == 0x2E or point == 0x3001 or point == 0x29 or point == 0xFF09 or point == 0xFF0E)
    return False


@njit(cache=True, nogil=True, inline="always")
def _wordy(byte):
    return 48 <= byte <= 57 or 97 <= byte | 0x20 <= 122


@njit(cache=True, nogil=True, inline="always")
def _tag_start(byte):
    return 97 <= byte | 0x20 <= 122 or byte == 0x2F or byte == 0x21


@dataclass(frozen=True)
class Repeats:
    """Lines and paragraphs that were seen before in the same document, as Gopher, FineWeb and datatrove count them."""

    counts: npt.NDArray[np.int64]
    """[documents, 9]: lines between runs of newlines, repeated ones, characters in them; the same for lines that are not
    blank; the same for paragraphs between runs of two or more newlines of the trimmed text."""
    again: npt.NDArray[np.bool_]
    """Per line: its folded hash occurred earlier in the document."""


def repeats(data: Bytes, found: Lines) -> Repeats:
    """Repetition of lines and paragraphs."""
    documents = len(found.first) - 1
    counts = np.zeros((documents, 9), np.int64)
    again = np.zeros(len(found.starts), np.bool_)
    longest = int(np.max(np.diff(found.first), initial=1)) + 2
    size = 16
    while size < 2 * longest:
        size *= 2
    _repeats(found.starts, found.ends, found.begin, found.end, found.exact, found.folded, found.facts, found.first, data,
             np.zeros(size, np.uint64), np.zeros(size, np.uint8), counts, again)
    return Repeats(counts, again)


@njit(cache=True, nogil=True, inline="always")
def _seen(keys, used, size, key):
    slot = np.int64(key & np.uint64(size - 1))
    while used[slot]:
        if keys[slot] == key:
            return True
        slot = (slot + 1) & (size - 1)
    keys[slot], used[slot] = key, 1
    return False


@njit(cache=True, nogil=True)
def _repeats(starts, ends, begin, end, exact, folded, facts, first, data, keys, used, counts, again):
    blank = np.uint64(3)
    prime = np.uint64(0x9E3779B97F4A7C15)
    for document in range(len(first) - 1):
        low, high = first[document], first[document + 1]
        size = 16
        while size < 2 * (high - low + 2):
            size *= 2
        row = counts[document]
        used[:size] = 0
        # lines between runs of newlines; an empty first or last piece counts, as splitting gives it
        for line in range(low, high):
            empty = ends[line] == starts[line]
            if empty and line != low and line != high - 1:
                continue
            row[0] += 1
            if _seen(keys, used, size, blank if empty else exact[line]):
                row[1] += 1
                row[2] += facts[line, 0]
        used[:size] = 0
        for line in range(low, high):
            if begin[line] < end[line]:
                row[3] += 1
                if _seen(keys, used, size, exact[line]):
                    row[4] += 1
                    row[5] += facts[line, 0]
        used[:size] = 0
        for line in range(low, high):
            if folded[line]:
                again[line] = _seen(keys, used, size, folded[line])
        # paragraphs of the trimmed text: at least one empty line between them
        used[:size] = 0
        line = low
        while line < high and begin[line] == end[line]:
            line += 1
        top = high
        while top > line and begin[top - 1] == end[top - 1]:
            top -= 1
        while line < top:
            value, characters = np.uint64(0x51), 0
            begun = False
            while line < top and (not begun or ends[line] > starts[line]):
                if ends[line] > starts[line]:
                    value = mix(value * prime + exact[line])
                    characters += facts[line, 0] + (1 if begun else 0)
                    begun = True
                line += 1
            if begun:
                row[6] += 1
                if _seen(keys, used, size, value):
                    row[7] += 1
                    row[8] += characters




@dataclass(frozen=True)
class Sentences:
    """Sentences of chosen lines, one after another, measured like lines."""

    line: npt.NDArray[np.int64]
    starts: npt.NDArray[np.int64]
    ends: npt.NDArray[np.int64]
    """Bytes; a sentence keeps the marks and the space that follow it, so that the sentences of a line make up the line."""
    folded: npt.NDArray[np.uint64]
    facts: npt.NDArray[np.int32]

    def __getitem__(self, name: str) -> npt.NDArray[np.int32]:
        """One column of the facts."""
        return self.facts[:, COLUMN[name]]


def sentences(data: Bytes, found: Lines, chosen: npt.NDArray[np.bool_]) -> Sentences:
    """The sentences of the chosen lines: they end after 。！？…; and after . ! ? before white space."""
    capacity = int(np.sum(found["sentences"][chosen])) * 2 + int(chosen.sum()) + 16
    while True:
        line, spans = np.empty(capacity, np.int64), np.empty((2, capacity), np.int64)
        used = _sentences(data, found.starts, found.ends, chosen, _marks(), line, spans[0], spans[1])
        if used <= capacity:
            break
        capacity = used
    facts, folded = np.zeros((used, len(FACTS)), np.int32), np.empty(used, np.uint64)
    _facts_of(data, spans[0][:used], spans[1][:used], script_classes(), _marks(), facts, folded)
    return Sentences(line[:used], spans[0][:used].copy(), spans[1][:used].copy(), folded, facts)


@njit(cache=True, nogil=True)
def _sentences(data, starts, ends, chosen, marks, line, begin, end):
    used = 0
    for number in range(len(starts)):
        if not chosen[number]:
            continue
        position, stop, first = starts[number], ends[number], starts[number]
        while position < stop:
            point, length = code_point(data, position)
            position += length
            if not marks[point] & 1:
                continue
            while position < stop:
                following, length = code_point(data, position)
                if not marks[following] & 3:
                    break
                point = following if marks[following] & 1 and following >= 0x80 else point
                position += length
            if point >= 0x80 or position >= stop or data[position] == 0x20:
                while position < stop and data[position] == 0x20:
                    position += 1
                if used < len(line):
                    line[used], begin[used], end[used] = number, first, position
                used += 1
                first = position
        if first < stop:
            if used < len(line):
                line[used], begin[used], end[used] = number, first, stop
            used += 1
    return used


@njit(cache=True, nogil=True)
def _facts_of(data, starts, ends, classes, marks, facts, folded):
    exact = np.empty(1, np.uint64)
    fold = np.empty(1, np.uint64)
    for number in range(len(starts)):
        _measure(data, starts[number], ends[number], classes, marks, facts[number], exact, fold, 0)
        folded[number] = fold[0]
