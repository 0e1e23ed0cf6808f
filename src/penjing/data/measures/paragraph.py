"""Measures of paragraphs (lines). Each gives one value per line of the batch; 0 means that the rule has nothing to say."""

from __future__ import annotations

import re

import numpy as np

from penjing.data.kernels.bits import AT, CELLS, HEADING, LONG_NUMBER, URL
from penjing.data.measures.facts import Facts, Floats

_COUNTER = re.compile(  # looked for in lines of at most 40 characters
    r"(?:\d[\d,.]{0,40}\s?[kKmMw万千]?\+?\s?(?:likes?|views?|shares?|comments?|replies|reads?|followers?|votes?|次阅读|人阅读|阅读|点赞|评论|"
    r"回复|浏览|收藏|关注|转发|播放|次)|(?:阅读|点赞|评论|回复|浏览|收藏|关注|转发|播放|热度|人气|点击)(?:量|数|次数)?\s?[:：(（]?\s?\d[\d,.]{0,40}\s?[万千]?[)）]?)"
)


def han_characters_if_tiny(facts: Facts) -> Floats:
    """Han characters of a line without a terminal mark that is no heading, list item or table; large for other lines."""
    return np.where(_loose(facts), facts.lines["han"], 1e9)


def tokens(facts: Facts) -> Floats:
    """Pieces between white space; large for blank lines."""
    return np.where(facts.filled, facts.lines["tokens"], 1e9).astype(float)


def tokens_if_tiny(facts: Facts) -> Floats:
    """Pieces between white space of a line without a terminal mark that is no heading, list item or table; large for others."""
    return np.where(_loose(facts), facts.lines["tokens"], 1e9)


def unterminated(facts: Facts) -> Floats:
    """1 for a line without a terminal mark (quotes and brackets after it allowed)."""
    return (facts.filled & (facts.lines["terminal"] == 0)).astype(float)


def unterminated_c4(facts: Facts) -> Floats:
    """1 for a line that does not end in . ? ! " or ', or that ends in `...` (C4)."""
    last = facts.lines["last"]
    good = np.isin(last, [ord(c) for c in ".?!\"'"]) & ~((last == 0x2E) & (facts.lines["ends_in_ellipsis"] != 0))
    return (facts.filled & ~good).astype(float)


def javascript(facts: Facts) -> Floats:
    """1 for a line with "javascript"."""
    return (facts.phrase_lines("javascript") > 0).astype(float)


def policy(facts: Facts) -> Floats:
    """Different policy and cookie phrases."""
    return facts.phrase_lines("policy").astype(float)


def longest_token(facts: Facts) -> Floats:
    """Characters of the longest stretch without white space."""
    return facts.lines["longest_token"].astype(float)


def longest_token_western(facts: Facts) -> Floats:
    """Characters of the longest stretch without white space, in lines that are mostly not Han."""
    return np.where(facts.lines["han"] * 4 < facts.lines["characters"], facts.lines["longest_token"], 0).astype(float)


def interface_phrase(facts: Facts) -> Floats:
    """1 for a short line (at most 10 pieces and 20 Han) that begins or ends with an interface phrase or is one."""
    short = _short(facts)
    values = np.zeros(len(facts.lines.starts))
    for line in np.flatnonzero(short & (facts.phrase_lines("interface") > 0)):
        values[line] = _at_an_end(facts, int(line), "interface")
    return values


def counter(facts: Facts) -> Floats:
    """1 for a short line that is numbers only, mostly capitals, or a counter ("3 likes", "阅读 1234")."""
    lines = facts.lines
    short = _short(facts) & (lines["characters"] <= 40) & (lines["terminal"] == 0)
    numbers = short & (lines["digits"] > 0) & (lines["han"] + lines["latin"] + lines["other_letters"] + lines["kana"] == 0)
    capitals = short & (lines["upper"] >= 4) & (lines["upper"] > 0.6 * (lines["characters"] - lines["spaces"]))
    values = (numbers | capitals).astype(float)
    for line in np.flatnonzero(short & (lines["digits"] > 0) & (values == 0)):
        text = _text(facts, int(line)).strip()
        if _COUNTER.fullmatch(text) or (sum(map(len, _COUNTER.findall(text))) > 0.7 * len(text) and len(text) < 40):
            values[line] = 1.0
    return values


def single_word(facts: Facts) -> Floats:
    """1 for a line of one Latin word, or of one or two Han characters, without a terminal mark; headings are left alone."""
    lines = facts.lines
    one = facts.filled & (lines["tokens"] == 1) & (lines["terminal"] == 0) & (lines["punctuation"] == 0)
    one &= np.where(lines["han"] > 0, lines["characters"] <= 2, lines["latin"] > 0)
    return (one & _loose(facts)).astype(float)


def toxic(facts: Facts) -> Floats:
    """Weight of lexicon hits: a strict phrase counts 2, a soft one 1; 2 and more is toxic."""
    return (2 * facts.phrase_lines("strict") + facts.phrase_lines("soft")).astype(float)


def contact_ad(facts: Facts) -> Floats:
    """1 for a line with a contact handle (keyword with a number or handle) and an advertising word."""
    contact = (facts.phrase_lines("contact") > 0) & ((facts.lines["digits"] >= 5) | (facts.lines["latin"] >= 5)
                                                     | (facts.lines["bits"] & (AT | LONG_NUMBER | URL) != 0))
    return (contact & (facts.phrase_lines("advertising") > 0)).astype(float)


def repeated(facts: Facts) -> Floats:
    """1 for a line that occurred before in the document, without regard to case, digits and punctuation."""
    long_enough = facts.lines["characters"] - facts.lines["spaces"] >= 8
    return (facts.repeats.again & long_enough).astype(float)


def cells(facts: Facts) -> Floats:
    """Pipes of a line that is cells between pipes."""
    return np.where(facts.lines["bits"] & CELLS != 0, facts.lines["pipes"], 0).astype(float)


def political(facts: Facts) -> Floats:
    """Different phrases of the operator's political list."""
    return facts.phrase_lines("political").astype(float)


def _short(facts: Facts) -> np.ndarray:
    return facts.filled & (facts.lines["tokens"] <= 10) & (facts.lines["han"] <= 20)


def _text(facts: Facts, line: int) -> str:
    return facts.data[facts.lines.starts[line] : facts.lines.ends[line]].tobytes().decode("utf-8")


def _loose(facts: Facts) -> np.ndarray:
    """Lines without a terminal mark that neither head nor belong to a list or table: not marked as such, and not followed by
    a line of 30 characters of Chinese or 60 of other text.
    """
    lines = facts.lines
    number = len(lines.starts)
    filled = np.flatnonzero(facts.filled)
    place = np.searchsorted(filled, np.arange(number), side="right")
    has_next = place < len(filled)
    following = filled[np.minimum(place, max(0, len(filled) - 1))] if len(filled) else np.zeros(number, np.int64)
    same = has_next & (facts.line_document[following] == facts.line_document) if number else has_next
    long_next = same & (lines["characters"][following] >= np.where(lines["han"][following] > 10, 30, 60))
    return facts.filled & (lines["terminal"] == 0) & (lines["bits"] & (CELLS | HEADING) == 0) & ~long_next


def _at_an_end(facts: Facts, line: int, name: str) -> float:
    which, where = facts.found
    compiled = facts.phrases.compiled
    begin, end = facts.lines.begin[line], facts.lines.end[line]
    low, high = np.searchsorted(where, begin), np.searchsorted(where, end)
    for hit in range(low, high):
        if compiled.lists[which[hit]] == facts.phrases.names.index(name):
            stop = where[hit] + compiled.starts[which[hit] + 1] - compiled.starts[which[hit]]
            if where[hit] - begin <= 3 or end - stop <= 3:
                return 1.0
    return 0.0
