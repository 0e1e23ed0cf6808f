"""Which writing system a character belongs to, coarsely: enough to say what a vocabulary costs each kind of text."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

SCRIPTS = ("Han", "Latin", "Kana", "Hangul", "Cyrillic", "Greek", "Arabic", "Hebrew", "Devanagari", "Thai", "other")
_RANGES: dict[str, tuple[tuple[int, int], ...]] = {
    "Han": ((0x2E80, 0x2FDF), (0x3005, 0x3007), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3FFFF)),
    "Latin": ((0x41, 0x5A), (0x61, 0x7A), (0xAA, 0xAA), (0xBA, 0xBA), (0xC0, 0xD6), (0xD8, 0xF6), (0xF8, 0x24F),
              (0x1E00, 0x1EFF), (0xFF21, 0xFF3A), (0xFF41, 0xFF5A)),
    "Kana": ((0x3041, 0x30FF), (0x31F0, 0x31FF), (0xFF66, 0xFF9F)),
    "Hangul": ((0x1100, 0x11FF), (0x3130, 0x318F), (0xAC00, 0xD7A3)),
    "Cyrillic": ((0x400, 0x52F),),
    "Greek": ((0x370, 0x3FF), (0x1F00, 0x1FFF)),
    "Arabic": ((0x600, 0x6FF), (0x750, 0x77F), (0xFB50, 0xFDFF), (0xFE70, 0xFEFF)),
    "Hebrew": ((0x590, 0x5FF),),
    "Devanagari": ((0x900, 0x97F),),
    "Thai": ((0xE00, 0xE7F),),
}
HAN_PATTERN = "[〇㐀-䶿一-鿿豈-﫿\U00020000-\U0003ffff]+"
"""A run of Han characters, as a regular expression."""
_CJK_MARKS = ((0x3001, 0x3003), (0x3008, 0x3011), (0x3014, 0x301F), (0xFF01, 0xFF0F), (0xFF1A, 0xFF20), (0xFF3B, 0xFF40),
              (0xFF5B, 0xFF65), (0xFFE0, 0xFFE6), (0x2014, 0x2014), (0x2018, 0x2019), (0x201C, 0x201D), (0x2026, 0x2026),
              (0x00B7, 0x00B7))


@lru_cache(maxsize=1)
def script_table() -> np.ndarray:
    """uint8 [0x110000]: place in SCRIPTS of every code point."""
    table = np.full(0x110000, len(SCRIPTS) - 1, dtype=np.uint8)
    for name, ranges in _RANGES.items():
        for first, last in ranges:
            table[first: last + 1] = SCRIPTS.index(name)
    return table


@lru_cache(maxsize=1)
def chinese_table() -> np.ndarray:
    """bool [0x110000]: Han characters and the punctuation and full-width forms of Chinese text."""
    table = np.zeros(0x110000, dtype=bool)
    for first, last in (*_RANGES["Han"][1:], *_CJK_MARKS):
        table[first: last + 1] = True
    return table


def is_chinese(text: str) -> bool:
    """Whether every character is Han or Chinese punctuation."""
    table = chinese_table()
    return bool(text) and all(table[ord(character)] for character in text)
