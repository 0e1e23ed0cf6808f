"""Tables over all code points: general category, script class, and what normalisation does with each character.

Built once per process from `unicodedata`; code points beyond plane 3 are treated as unassigned, but for tags (plane
14).
"""

from __future__ import annotations

import functools
import unicodedata

import numpy as np
import numpy.typing as npt

LIMIT = 0x110000
_BUILT = 0x40000

CATEGORIES = ("Lu", "Ll", "Lt", "Lm", "Lo", "Mn", "Mc", "Me", "Nd", "Nl", "No", "Pc", "Pd", "Ps", "Pe", "Pi", "Pf", "Po", "Sm",
              "Sc", "Sk", "So", "Zs", "Zl", "Zp", "Cc", "Cf", "Cs", "Co", "Cn")
UNASSIGNED = CATEGORIES.index("Cn")

# Script classes, as `scan` counts them.
SPACE, HAN, KANA, HANGUL, LATIN, CYRILLIC, ARABIC, LETTER = range(8)
DIGIT, PUNCTUATION, SYMBOL, EMOJI, MARK, CONTROL, REPLACEMENT = range(8, 15)
NUM_CLASSES = 16
"""The sixteenth count is bits: 1 = holds `&`, 2 = may not be in NFC."""

# What rewriting does with a character.
KEEP, DROP, TO_SPACE, NEWLINE, FOLD, DECORATION, JOINER, PUNCT = range(8)

_HAN = ((0x2E80, 0x2FDF), (0x3005, 0x3007), (0x3021, 0x3029), (0x3038, 0x303B), (0x3400, 0x4DBF), (0x4E00, 0x9FFF),
        (0xF900, 0xFAFF), (0x20000, 0x3FFFD))
_KANA = ((0x3041, 0x3096), (0x309D, 0x309F), (0x30A1, 0x30FA), (0x30FD, 0x30FF), (0x31F0, 0x31FF), (0xFF66, 0xFF6F),
         (0xFF71, 0xFF9D), (0x1B000, 0x1B16F))
_HANGUL = ((0x1100, 0x11FF), (0x3131, 0x318E), (0xA960, 0xA97C), (0xAC00, 0xD7FB), (0xFFA1, 0xFFDC))
_LATIN = ((0x41, 0x5A), (0x61, 0x7A), (0xAA, 0xAA), (0xBA, 0xBA), (0xC0, 0xD6), (0xD8, 0xF6), (0xF8, 0x24F),
          (0x1E00, 0x1EFF), (0xFF21, 0xFF3A), (0xFF41, 0xFF5A))
_CYRILLIC = ((0x400, 0x52F), (0x1C80, 0x1C88), (0x2DE0, 0x2DFF), (0xA640, 0xA69F))
_ARABIC = ((0x600, 0x6FF), (0x750, 0x77F), (0x8A0, 0x8FF), (0xFB50, 0xFDFF), (0xFE70, 0xFEFC))
_SPACES = (0x09, 0x0B, 0x0C, 0x20, 0xA0, 0x1680, *range(0x2000, 0x200B), 0x202F, 0x205F, 0x3000, 0xFFFC)
_DROPPED = (0x00AD, 0x200B, 0x2060, 0xFEFF, 0x180E)
# Differs: the specification removes all of So and Sk; signs that carry meaning (°, ℃, №, ㎡, ©, ™, ^, `) stay.
_DECORATIONS = ((0x2190, 0x21FF), (0x2300, 0x23FF), (0x2500, 0x27BF), (0x2900, 0x297F), (0x2B00, 0x2BFF), (0x1F000, 0x1FAFF))
_JOINERS = (0x200C, 0x200D, 0x20E3, *range(0xFE00, 0xFE10), *range(0xE0020, 0xE0080), *range(0x1F3FB, 0x1F400))
_FOLDED_SYMBOLS = "＠＃％＆＋＝＿"

Table = npt.NDArray[np.uint8]


@functools.cache
def general_categories() -> Table:
    """Index into `CATEGORIES` for every code point."""
    table = np.full(LIMIT, UNASSIGNED, np.uint8)
    index = {name: number for number, name in enumerate(CATEGORIES)}
    category = unicodedata.category
    table[:_BUILT] = np.fromiter((index[category(chr(point))] for point in range(_BUILT)), np.uint8, _BUILT)
    table[0xE0020:0xE0080] = index["Cf"]
    table[0xF0000:] = index["Co"]
    return table


@functools.cache
def script_classes() -> Table:
    """The script class of every code point (`SPACE` … `REPLACEMENT`)."""
    general = general_categories()
    by_category = np.array([_class_of(name) for name in CATEGORIES], np.uint8)
    table = by_category[general]
    for ranges, name in ((_HAN, HAN), (_KANA, KANA), (_HANGUL, HANGUL), (_LATIN, LATIN), (_CYRILLIC, CYRILLIC),
                         (_ARABIC, ARABIC)):
        for first, last in ranges:
            part = table[first : last + 1]
            part[(part == LETTER) | (general[first : last + 1] == CATEGORIES.index("Nl"))] = name
    for first, last in _DECORATIONS:
        part = table[first : last + 1]
        part[part == SYMBOL] = EMOJI
    table[[9, 10, 11, 12, 13]] = SPACE
    table[0xFFFD] = REPLACEMENT
    return table


@functools.cache
def suspects() -> Table:
    """Bits per code point: 1 for `&`, 2 when its presence means that a text may not be in normal form C."""
    table = np.zeros(LIMIT, np.uint8)
    normal, combining = unicodedata.is_normalized, unicodedata.combining
    for point in range(0x80, 0x30000):
        if 0xAC00 <= point <= 0xD7A3 or 0x4E00 <= point <= 0x9FFF or 0xD800 <= point <= 0xDFFF:
            continue
        character = chr(point)
        if combining(character) or not normal("NFC", character):
            table[point] = 2
    table[0x1100:0x1200] = 2
    table[ord("&")] = 1
    return table


@functools.cache
def actions() -> Table:
    """What rewriting does with every code point (`KEEP` … `PUNCT`)."""
    general = general_categories()
    table = np.full(LIMIT, KEEP, np.uint8)
    for number, name in enumerate(CATEGORIES):
        if name in ("Cc", "Cf", "Cs", "Co", "Cn"):
            table[general == number] = DROP
        elif name[0] == "P":
            table[general == number] = PUNCT
        elif name == "Zs":
            table[general == number] = TO_SPACE
    for first, last in _DECORATIONS:
        part = table[first : last + 1]
        part[(general[first : last + 1] == CATEGORIES.index("So")) | (part == DROP)] = DECORATION
    table[list(_SPACES)] = TO_SPACE
    table[list(_DROPPED)] = DROP
    table[list(_JOINERS)] = JOINER
    table[0xFF10:0xFF1A] = table[0xFF21:0xFF3B] = table[0xFF41:0xFF5B] = FOLD
    table[[ord(character) for character in _FOLDED_SYMBOLS]] = FOLD
    table[[0x0A, 0x0D, 0x85, 0x2028, 0x2029]] = NEWLINE
    # Later Unicode versions add Han characters; an old table must not delete them.
    table[0x3400:0xA000] = np.where(table[0x3400:0xA000] == DROP, KEEP, table[0x3400:0xA000])
    table[0x20000:0x3FFFE] = np.where(table[0x20000:0x3FFFE] == DROP, KEEP, table[0x20000:0x3FFFE])
    return table


def _class_of(category: str) -> int:
    if category[0] == "L":
        return LETTER
    if category[0] == "M":
        return MARK
    if category[0] == "N":
        return DIGIT
    if category[0] == "P":
        return PUNCTUATION
    if category[0] == "S":
        return SYMBOL
    return SPACE if category[0] == "Z" else CONTROL
