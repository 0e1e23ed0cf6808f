# mypy: disable-error-code="no-untyped-def"
"""Facts about every line of every document in one pass; what documents are is the sum of their lines.

A line is what stands between newlines, blank lines included. Lines inside Markdown code fences are marked, so that rules about
prose can leave them alone.
"""

from __future__ import annotations

import functools
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
from penjing.data.kernels.words import mix, rows_of

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
    """[len(FACTS), lines]."""
    first: npt.NDArray[np.int64]

    def __getitem__(self, name: str) -> npt.NDArray[np.int32]:
        """One column of the facts."""
        return self.facts[COLUMN[name]]

    def take(self, rows: npt.NDArray[np.int64]) -> Lines:
        """The lines of some documents."""
        chosen, first = rows_of(self.first, rows)
        return Lines(self.starts[chosen], self.ends[chosen], self.begin[chosen], self.end[chosen], self.exact[chosen],
                     self.folded[chosen], self.facts[:, chosen], first)


def lines(data: Bytes, offsets: Offsets) -> Lines:
    """The lines of every document and their facts."""
    number = int(np.count_nonzero(data == 0x0A)) + len(offsets) - 1
    spans = np.empty((4, number), np.int64)
    exact, folded = np.empty(number, np.uint64), np.empty(number, np.uint64)
    facts = np.zeros((len(FACTS), number), np.int32)
    first = np.zeros(len(offsets), np.int64)
    _lines(data, offsets, _table(), spans[0], spans[1], spans[2], spans[3], exact, folded, facts, first)
    return Lines(spans[0], spans[1], spans[2], spans[3], exact, folded, facts, first)


@functools.cache
def _table() -> npt.NDArray[np.uint8]:
    """Per code point its script class (4 bits) and, above, bits: 1 terminal, 2 closing, 4 bullet, 8 upper case."""
    table = np.zeros(0x110000, np.uint8)
    for text, bit in ((_TERMINAL, 1), (_CLOSING, 2), (_BULLETS, 4)):
        for character in text:
            table[ord(character)] |= bit
    table[general_categories() == CATEGORIES.index("Lu")] |= 8
    return np.asarray(table << 4 | script_classes(), np.uint8)


@njit(cache=True, nogil=True)
def _lines(data, offsets, table, starts, ends, begins, stops, exact, folded, facts, first):
    line = 0
    for document in range(len(offsets) - 1):
        position, end = offsets[document], offsets[document + 1]
        fence, fence_length = 0, 0
        while True:
            stop = position
            while stop < end and data[stop] != 0x0A:
                stop += 1
            starts[line], ends[line] = position, stop
            if position == stop:
                begin = finish = position
                folded[line] = 0
            else:
                begin, finish, folded[line] = _measure(data, position, stop, table, facts, line)
            begins[line], stops[line] = begin, finish
            exact[line] = _hash(data, position, stop)
            if finish - begin >= 3 and (data[begin] == 0x60 or data[begin] == 0x7E):
                run = 1
                while begin + run < finish and data[begin + run] == data[begin]:
                    run += 1
                if run >= 3 and fence == 0:
                    fence, fence_length = data[begin], run
                    facts[_FENCED, line] = 1
                elif run >= fence_length and data[begin] == fence:
                    fence = 0
                    facts[_FENCED, line] = 1
            if fence:
                facts[_FENCED, line] = 1
            line += 1
            if stop >= end:
                break
            position = stop + 1
        first[document + 1] = line


@njit(cache=True, nogil=True, inline="always")
def _hash(data, start, stop):
    """Hash of a stretch of bytes, eight at a time; never 0."""
    value = np.uint64(0xCBF29CE484222325) + np.uint64(stop - start)
    position = start
    while position + 8 <= stop:
        word = np.uint64(0)
        for step in range(8):
            word |= np.uint64(data[position + step]) << np.uint64(8 * step)
        value = mix(value ^ word) * np.uint64(0x9E3779B97F4A7C15)
        position += 8
    while position < stop:
        value = (value ^ np.uint64(data[position])) * np.uint64(0x100000001B3)
        position += 1
    return mix(value) | np.uint64(1)


@njit(cache=True, nogil=True)
def _measure(data, start, stop, table, facts, line):
    """(first byte, byte after the last, folded hash) of the trimmed stretch; its facts go to `facts[:, line]`, which are 0.

    Runs of small Latin letters and of Han are taken in loops of their own: they are nearly all of a text.
    """
    prime = np.uint64(0x100000001B3)
    fold = np.uint64(0xCBF29CE484222325)
    position = start
    begin, finish = stop, start
    characters = spaces = han = kana = latin = other = upper = digits = punctuation = symbols = garbled = 0
    hashes = ellipses = parens = braces = pipes = bracketed = urls = tags = 0
    sentence_count = longest = tokens = bits = barest = plain = 0
    first_point = np.int32(0)
    token, bare, digits_run, groups = 0, 0, 0, 0
    url = bracket = False
    kept = 0
    previous, before = np.int32(0), np.int32(0)
    last, last_but_one, last_but_two = np.int32(0), np.int32(0), np.int32(0)
    sentence_open = plain_open = False
    tag = np.int64(-1)
    while position < stop:
        byte = data[position]
        if 97 <= byte <= 122:
            run = position
            while position < stop and 97 <= data[position] <= 122:
                fold = (fold ^ np.uint64(data[position])) * prime
                position += 1
            number = position - run
            if begin == stop:
                begin, first_point = run, np.int32(byte)
            finish = position
            tokens += token == 0
            token += number
            characters += number
            bare += number
            latin += number
            kept += number
            sentence_open = plain_open = True
            digits_run = groups = 0
            if url:
                urls += number
            if bracket:
                bracketed += number
            end_point = np.int32(data[position - 1])
            if number >= 3:
                last_but_two, last_but_one = np.int32(data[position - 3]), np.int32(data[position - 2])
                before = last_but_one
            elif number == 2:
                last_but_two, last_but_one = last, np.int32(byte)
                before = np.int32(byte)
            else:
                last_but_two, last_but_one = last_but_one, last
                before = previous
            last = previous = end_point
            continue
        if byte == 0x20:
            characters += 1
            bare += 1
            spaces += 1
            longest = max(longest, token)
            token = digits_run = groups = 0
            url = False
            before, previous = previous, np.int32(0x20)
            position += 1
            continue
        if 0xE4 <= byte <= 0xE9:
            point, length = code_point(data, position)
            if table[point] == HAN:
                if begin == stop:
                    begin, first_point = position, point
                if previous == 0x20 and table[before] & 15 == HAN:
                    bits |= SPACED_HAN
                url = False
                tokens += token == 0
                run = position
                number = 0
                while True:
                    fold = (fold ^ np.uint64(point)) * prime
                    number += 1
                    if point == 0x62F7 and previous == 0x65A4 and before == 0x951F:
                        garbled += 3
                    before, previous = previous, point
                    last_but_two, last_but_one, last = last_but_one, last, point
                    position += 3
                    if position >= stop or not 0xE4 <= data[position] <= 0xE9:
                        break
                    point, length = code_point(data, position)
                    if table[point] != HAN:
                        break
                finish = position
                token += number
                characters += number
                bare += number
                han += number
                kept += number
                sentence_open = plain_open = True
                digits_run = groups = 0
                if bracket:
                    bracketed += number
                continue
        point, length = code_point(data, position)
        name = table[point] & 15
        mark = table[point] >> 4
        characters += 1
        bare += 1
        if url and (name == SPACE or point >= 0x2E80 or point == 0x22 or point == 0x3C or point == 0x3E):
            url = False
        if name == SPACE:
            spaces += 1
            longest = max(longest, token)
            token = 0
            digits_run = groups = 0
        else:
            if begin == stop:
                begin = position
                first_point = point
                if mark & 4:
                    bits |= BULLET
            finish = position + length
            if token == 0:
                tokens += 1
            token += 1
            if name <= LETTER:
                sentence_open = plain_open = True
                kept += 1
                low = point + 32 if 65 <= point <= 90 else point
                fold = (fold ^ np.uint64(low)) * prime
                digits_run = groups = 0
                if name == HAN:
                    han += 1
                    if previous == 0x20 and table[before] & 15 == HAN:
                        bits |= SPACED_HAN
                elif name == LATIN:
                    latin += 1
                elif name == KANA:
                    kana += 1
                else:
                    other += 1
                if mark & 8:
                    upper += 1
            elif name == DIGIT:
                sentence_open = plain_open = True
                kept += 1
                digits += 1
                fold = (fold ^ np.uint64(0x30)) * prime
                if digits_run == 0:
                    groups += 1
                    if groups == 4:
                        bits |= DOTTED
                digits_run += 1
                if digits_run == 11:
                    bits |= LONG_NUMBER
            elif name == PUNCTUATION:
                punctuation += 1
                barest = max(barest, bare - 1)
                bare = 0
                if point == 0x23:
                    hashes += 1
                elif point == 0x28 or point == 0x29 or point == 0xFF08 or point == 0xFF09 or point == 0x5D:
                    parens += 1
                elif point == 0x5B:
                    parens += 1
                    bits |= SQUARE
                elif point == 0x7B or point == 0x7D:
                    braces += 1
                elif point == 0x40:
                    bits |= AT
                elif point == 0x3010:
                    parens += 1
                    bracket = True
                elif point == 0x3011:
                    parens += 1
                    bracket = False
                elif point == 0x2026:
                    ellipses += 1
                elif point == 0x2E and previous == 0x2E and before == 0x2E:
                    ellipses += 1
                    point = np.int32(0)  # the next dot begins a new run of three
                    mark = table[0] >> 4
                if point == 0x2F and previous == 0x2F and before == 0x3A and not url:
                    back = position - 2
                    while back > start and 97 <= data[back - 1] | 0x20 <= 122:
                        back -= 1
                    url = True
                    bits |= URL
                    urls += position - back
                elif point == 0x2E and not url and position - start >= 3 and data[position - 1] | 0x20 == 0x77 and \
                        data[position - 2] | 0x20 == 0x77 and data[position - 3] | 0x20 == 0x77:
                    url = True
                    bits |= URL
                    urls += 3
                if not (point == 0x2E and digits_run):
                    groups = 0
                digits_run = 0
            elif name == SYMBOL or name == EMOJI:  # noqa: SIM109
                symbols += 1
                digits_run = groups = 0
                if point == 0x7C:
                    pipes += 1
                elif point == 0x3C:
                    bits |= CUT_BRACKET
                    tag = position
                elif point == 0x3E and tag >= 0:
                    if position - tag < 200 and _tag_start(data[tag + 1]):
                        tags += 1
                    tag = np.int64(-1)
            elif name == REPLACEMENT:
                garbled += 1
            # 锟斤拷 and â€: what UTF-8 read as GBK or as Latin-1 looks like
            if point == 0x62F7 and previous == 0x65A4 and before == 0x951F:
                garbled += 3
            elif (point == 0x20AC and previous == 0xE2) or (0x80 <= point < 0xC0 and (previous == 0xC3 or previous == 0xC2)):
                garbled += 2
            if url:
                urls += 1
            if bracket and point != 0x3010:
                bracketed += 1
            last_but_two, last_but_one, last = last_but_one, last, point if point else np.int32(0x2E)
            if name == PUNCTUATION and mark & 1:
                after = position + length
                if sentence_open and (point >= 0x80 or after >= stop or data[after] == 0x20 or data[after] == 0x22
                                      or data[after] == 0x27 or data[after] == 0x29 or data[after] >= 0xE2):
                    sentence_count += 1
                    sentence_open = False
                if plain_open and point != 0x2026 and (point != 0x2E or (
                        (after >= stop or (data[after] != 0x2E and not _wordy(data[after]))) and previous != 0x2E)):
                    plain += 1
                    plain_open = False
        before, previous = previous, point
        position += length
    longest = max(longest, token)
    barest = max(barest, bare)
    last_mark, last_mark_but_one = table[last] >> 4, table[last_but_one] >> 4
    terminal = 0
    if last_mark & 1:
        terminal = 2 if last != 0x2026 and finish == stop else 1
    elif last_mark & 2 and last_mark_but_one & 1:
        terminal = 1
    if pipes >= 2 and tokens and (first_point == 0x7C or pipes >= 3):
        bits |= CELLS
    if begin < finish and _headlike(data, begin, finish, table):
        bits |= HEADING
    if characters:
        facts[_CHARACTERS, line], facts[_SPACES, line], facts[_HAN, line], facts[_KANA, line] = characters, spaces, han, kana
        facts[_LATIN, line], facts[_OTHER, line], facts[_UPPER, line], facts[_DIGITS, line] = latin, other, upper, digits
        facts[_PUNCT, line], facts[_SYMBOLS, line], facts[_GARBLED, line] = punctuation, symbols, garbled
        facts[_HASHES, line], facts[_ELLIPSES, line], facts[_PARENS, line] = hashes, ellipses, parens
        facts[_BRACES, line], facts[_PIPES, line], facts[_BRACKETED, line] = braces, pipes, bracketed
        facts[_URLS, line], facts[_TAGS, line], facts[_SENTENCES, line] = urls, tags, sentence_count + sentence_open
        facts[_LONGEST, line], facts[_TOKENS, line], facts[_FIRST, line], facts[_LAST, line] = longest, tokens, first_point, last
        facts[_ENDS, line] = last == 0x2026 or (last == 0x2E and last_but_one == 0x2E and last_but_two == 0x2E)
        facts[_TERM, line], facts[_BITS, line], facts[_BARE, line] = terminal, bits, barest
        facts[_PLAIN, line] = plain + plain_open
    if finish < begin:
        begin = finish = start
    return begin, finish, mix(fold) | np.uint64(1) if kept else np.uint64(0)


@njit(cache=True, nogil=True)
def _headlike(data, begin, finish, table):
    point, length = code_point(data, begin)
    if table[point] >> 4 & 12 == 4 or point == 0x23 or point == 0x2B or point == 0x3E or point == 0x7C or point == 0x21 or \
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
                row[2] += facts[0, line]
        used[:size] = 0
        for line in range(low, high):
            if begin[line] < end[line]:
                row[3] += 1
                if _seen(keys, used, size, exact[line]):
                    row[4] += 1
                    row[5] += facts[0, line]
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
                    characters += facts[0, line] + (1 if begun else 0)
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
        return self.facts[COLUMN[name]]


def sentences(data: Bytes, found: Lines, chosen: npt.NDArray[np.bool_]) -> Sentences:
    """The sentences of the chosen lines: they end after 。！？…; and after . ! ? before white space."""
    capacity = int(np.sum(found["sentences"][chosen])) * 2 + int(chosen.sum()) + 16
    while True:
        line, spans = np.empty(capacity, np.int64), np.empty((2, capacity), np.int64)
        used = _sentences(data, found.starts, found.ends, chosen, _table(), line, spans[0], spans[1])
        if used <= capacity:
            break
        capacity = used
    facts, folded = np.zeros((len(FACTS), used), np.int32), np.empty(used, np.uint64)
    starts, ends = spans[0][:used].copy(), spans[1][:used].copy()
    _facts_of(data, starts, ends, line, found.starts, found.ends, found.folded, found.facts, _table(), facts, folded)
    return Sentences(line[:used], starts, ends, folded, facts)


@njit(cache=True, nogil=True)
def _sentences(data, starts, ends, chosen, table, line, begin, end):
    used = 0
    for number in range(len(starts)):
        if not chosen[number]:
            continue
        position, stop, first = starts[number], ends[number], starts[number]
        while position < stop:
            byte = data[position]
            if byte < 0x80:
                position += 1
                if not table[byte] & 16:
                    continue
                point = np.int32(byte)
            elif byte >= 0xE4:  # no mark that ends sentences but ！ ． ？ ｡, which begin with 0xEF
                point, length = code_point(data, position)
                position += length
                if byte != 0xEF or not table[point] & 16:
                    continue
            else:
                point, length = code_point(data, position)
                position += length
                if not table[point] & 16:
                    continue
            while position < stop:
                following, length = code_point(data, position)
                if not table[following] & 48:
                    break
                point = following if table[following] & 16 and following >= 0x80 else point
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
def _facts_of(data, starts, ends, line, line_starts, line_ends, line_folded, line_facts, table, facts, folded):
    for number in range(len(starts)):
        owner = line[number]
        if starts[number] == line_starts[owner] and ends[number] == line_ends[owner]:  # the only sentence of its line
            for fact in range(len(facts)):
                facts[fact, number] = line_facts[fact, owner]
            facts[_FENCED, number] = 0
            folded[number] = line_folded[owner]
        else:
            _, _, folded[number] = _measure(data, starts[number], ends[number], table, facts, number)
