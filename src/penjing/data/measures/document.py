"""Measures of whole documents. Shares are of characters that are not white space unless the docstring says otherwise."""

from __future__ import annotations

from urllib.parse import urlsplit

import numpy as np

from penjing.data.kernels.bits import BULLET
from penjing.data.kernels.words import ALL_SYMBOLS, HAS_LETTER, per_document
from penjing.data.measures.facts import Facts, Floats, share

STOP_WORDS_ZH = tuple("的了是在和不有我他这那也就都而与之以为于人中")
STOP_WORDS_EN = ("the", "be", "to", "of", "and", "that", "have", "with")


def characters(facts: Facts) -> Floats:
    """Characters, white space included."""
    return facts.characters


def words(facts: Facts) -> Floats:
    """Words that are not symbols alone; a Han character is a word."""
    return facts.real_words


def sentences(facts: Facts) -> Floats:
    """Sentences; a line ends one."""
    return facts.sum("sentences")


def sentences_c4(facts: Facts) -> Floats:
    """Sentences when ellipses do not end one (as datatrove's sentence splitters count them); a line ends one."""
    return facts.sum("plain_sentences")


def mean_line_length(facts: Facts) -> Floats:
    """Characters per line that is not blank."""
    return share(facts.sum("characters"), facts.num_lines)


def max_line_length(facts: Facts) -> Floats:
    """Characters in the longest line."""
    return facts.largest("characters")


def language_score(facts: Facts) -> Floats:
    """Score of language identification in [0, 1]: Han among letters for zh, CLD2's share of the text for others."""
    from penjing.data.kernels.scan import scan
    from penjing.data.language import identify

    counts = scan(facts.data, facts.offsets, skip_fences=True)
    return identify(facts.data, facts.offsets, counts, hints=list(facts.langs)).scores.astype(np.float64)


def han_share(facts: Facts) -> Floats:
    """Han among letters, lines in code fences left out."""
    outside = facts.lines["fenced"] == 0
    letters, han = np.zeros(len(facts)), np.zeros(len(facts))
    for name in ("han", "kana", "latin", "other_letters"):
        part = np.add.reduceat(np.where(outside, facts.lines[name], 0).astype(float), facts.lines.first[:-1])
        letters += part
        if name == "han":
            han = part
    return np.where(letters > 0, share(han, letters), 1.0)


def foreign_share(facts: Facts) -> Floats:
    """Letters that are neither Han nor Latin."""
    return share(facts.sum("kana") + facts.sum("other_letters"), facts.visible)


def digit_share(facts: Facts) -> Floats:
    """Digits among characters that are neither white space nor punctuation."""
    return share(facts.sum("digits"), facts.visible - facts.sum("punctuation"))


def digit_share_of_all(facts: Facts) -> Floats:
    """Digits among all characters."""
    return share(facts.sum("digits"), facts.characters)


def capital_share(facts: Facts) -> Floats:
    """Capital letters."""
    return share(facts.sum("upper"), facts.visible)


def alpha_word_share(facts: Facts) -> Floats:
    """Words with a letter among all words."""
    return share(per_document(facts.words, HAS_LETTER), facts.num_words)


def special_share(facts: Facts) -> Floats:
    """Characters that are neither letters nor digits nor white space."""
    alnum = sum(facts.sum(name) for name in ("han", "kana", "latin", "other_letters", "digits"))
    return share(facts.visible - alnum, facts.visible)


def mean_word_length(facts: Facts) -> Floats:
    """Characters per word that is not symbols alone."""
    return share(per_document(facts.words, ALL_SYMBOLS, have=False, characters=True), words(facts))


def hashes_per_word(facts: Facts) -> Floats:
    """`#` per word."""
    return share(facts.sum("hashes"), facts.num_words)


def ellipses_per_word(facts: Facts) -> Floats:
    """`...` and `…` per word."""
    return share(facts.sum("ellipses"), facts.num_words)


def bullet_lines(facts: Facts) -> Floats:
    """Lines that begin with a bullet among lines that are not blank."""
    return share(facts.count((facts.lines["bits"] & BULLET) != 0), facts.num_lines)


def bullet_lines_gopher(facts: Facts) -> Floats:
    """Lines that begin with • or - among all lines, blank ones too (as datatrove counts)."""
    first = facts.lines["first"]
    return share(facts.count((first == 0x2022) | (first == 0x2D)), _all_lines(facts))


def ellipsis_lines(facts: Facts) -> Floats:
    """Lines that end in an ellipsis among lines that are not blank."""
    return share(facts.count(facts.lines["ends_in_ellipsis"] != 0), facts.num_lines)


def ellipsis_lines_gopher(facts: Facts) -> Floats:
    """Lines that end in an ellipsis among all lines, blank ones too (as datatrove counts)."""
    return share(facts.count(facts.lines["ends_in_ellipsis"] != 0), _all_lines(facts))


def read_more_lines(facts: Facts) -> Floats:
    """Lines that end in "read more", 展开, 更多 and the like."""
    return share(facts.count(_ends_with(facts, "read_more")), facts.num_lines)


def bracketed_share(facts: Facts) -> Floats:
    """Characters inside 【】."""
    return share(facts.sum("bracketed"), facts.visible)


def stop_words_zh(facts: Facts) -> Floats:
    """How many of 22 frequent Chinese function characters occur."""
    return facts.distinct_of(STOP_WORDS_ZH)


def stop_words_en(facts: Facts) -> Floats:
    """How many of the, be, to, of, and, that, have, with occur (as written, lower case)."""
    return facts.distinct_of(STOP_WORDS_EN)


def terminal_lines(facts: Facts) -> Floats:
    """Lines that end in a terminal mark, quotes and brackets after it allowed, among lines that are not blank."""
    return np.where(facts.num_lines > 0, share(facts.count(facts.lines["terminal"] > 0), facts.num_lines), 0.0)


def terminal_lines_fineweb(facts: Facts) -> Floats:
    """Lines whose very last character is a terminal mark, among lines that are not blank (as datatrove counts)."""
    return share(facts.count((facts.lines["terminal"] == 2) & facts.filled), facts.num_lines)


def short_lines(facts: Facts) -> Floats:
    """Lines of at most 30 characters among lines that are not blank."""
    return share(facts.count((facts.lines["characters"] <= 30) & facts.filled), facts.num_lines)


def newlines_per_word(facts: Facts) -> Floats:
    """Newlines per word."""
    return share(facts.newlines, facts.num_words)


def duplicate_lines(facts: Facts) -> Floats:
    """Lines that occurred before in the document, among lines."""
    return share(facts.repeats.counts[:, 1].astype(float), facts.repeats.counts[:, 0].astype(float))


def duplicate_line_characters(facts: Facts) -> Floats:
    """Characters in repeated lines among all characters (Gopher)."""
    return share(facts.repeats.counts[:, 2].astype(float), facts.characters)


def duplicate_line_characters_fineweb(facts: Facts) -> Floats:
    """Characters in repeated lines that are not blank, among characters without newlines (FineWeb)."""
    return share(facts.repeats.counts[:, 5].astype(float), facts.sum("characters"))


def duplicate_paragraphs(facts: Facts) -> Floats:
    """Paragraphs that occurred before, among paragraphs."""
    return share(facts.repeats.counts[:, 7].astype(float), facts.repeats.counts[:, 6].astype(float))


def duplicate_paragraph_characters(facts: Facts) -> Floats:
    """Characters in repeated paragraphs among all characters."""
    return share(facts.repeats.counts[:, 8].astype(float), facts.characters)


def top_2_gram(facts: Facts) -> Floats:
    """Characters in the most frequent word 2-gram among all characters."""
    return share(facts.grams["top_2"], facts.characters)


def top_3_gram(facts: Facts) -> Floats:
    """Characters in the most frequent word 3-gram among all characters."""
    return share(facts.grams["top_3"], facts.characters)


def top_4_gram(facts: Facts) -> Floats:
    """Characters in the most frequent word 4-gram among all characters."""
    return share(facts.grams["top_4"], facts.characters)


def duplicate_5_grams(facts: Facts) -> Floats:
    """Characters in word 5-grams seen before among all characters."""
    return share(facts.grams["dup_5"], facts.characters)


def duplicate_6_grams(facts: Facts) -> Floats:
    """Characters in word 6-grams seen before among all characters."""
    return share(facts.grams["dup_6"], facts.characters)


def duplicate_7_grams(facts: Facts) -> Floats:
    """Characters in word 7-grams seen before among all characters."""
    return share(facts.grams["dup_7"], facts.characters)


def duplicate_8_grams(facts: Facts) -> Floats:
    """Characters in word 8-grams seen before among all characters."""
    return share(facts.grams["dup_8"], facts.characters)


def duplicate_9_grams(facts: Facts) -> Floats:
    """Characters in word 9-grams seen before among all characters."""
    return share(facts.grams["dup_9"], facts.characters)


def duplicate_10_grams(facts: Facts) -> Floats:
    """Characters in word 10-grams seen before among all characters."""
    return share(facts.grams["dup_10"], facts.characters)


def character_13_grams(facts: Facts) -> Floats:
    """Character 13-grams seen before, among them all."""
    return share(facts.grams["char_13_repeats"], facts.grams["char_13"])


def character_3_grams(facts: Facts) -> Floats:
    """Character 3-grams that are among the sqrt(distinct) most frequent repeated ones, among them all."""
    return share(facts.grams["char_3_repeats"], facts.grams["char_3"])


def character_10_grams(facts: Facts) -> Floats:
    """Character 10-grams that are among the sqrt(distinct) most frequent repeated ones, among them all."""
    return share(facts.grams["char_10_repeats"], facts.grams["char_10"])


def character_entropy(facts: Facts) -> Floats:
    """Entropy of characters in nats."""
    return facts.grams["char_entropy"]


def word_entropy(facts: Facts) -> Floats:
    """Entropy of the first thousand words in nats."""
    return facts.grams["word_entropy"]


def unique_words(facts: Facts) -> Floats:
    """Distinct words among the first thousand words."""
    return share(facts.grams["unique_words"], np.minimum(facts.num_words, 1000))


def punctuation_share(facts: Facts) -> Floats:
    """Punctuation marks."""
    return share(facts.sum("punctuation"), facts.visible)


def url_share(facts: Facts) -> Floats:
    """Characters of URLs."""
    return share(facts.sum("url_characters"), facts.visible)


def space_share(facts: Facts) -> Floats:
    """White space, newlines included, among all characters."""
    return share(facts.sum("spaces") + facts.newlines, facts.characters)


def parenthesis_share(facts: Facts) -> Floats:
    """Round, square and 【】 brackets."""
    return share(facts.sum("parentheses"), facts.visible)


def brace_share(facts: Facts) -> Floats:
    """Curly braces outside code fences."""
    braces = np.where(facts.lines["fenced"] == 0, facts.lines["braces"], 0).astype(float)
    return share(np.add.reduceat(braces, facts.lines.first[:-1]), facts.visible)


def braces(facts: Facts) -> Floats:
    """Number of curly braces."""
    return facts.sum("braces")


def lorem_ipsum(facts: Facts) -> Floats:
    """Lines with "lorem ipsum"."""
    return facts.phrase_documents("lorem")


def boilerplate_share(facts: Facts) -> Floats:
    """Lines with policy or boilerplate phrases among lines that are not blank."""
    return share(facts.count((facts.phrase_lines("policy") > 0) | (facts.phrase_lines("boilerplate") > 0)), facts.num_lines)


def blocked_url(facts: Facts) -> Floats:
    """1 when the document's host, or a domain above it, is on a block list."""
    if not facts.phrases.domains:
        return np.zeros(len(facts))
    return np.array([_blocked(url, facts.phrases.domains) for url in facts.urls], float)


def tags_per_200(facts: Facts) -> Floats:
    """HTML tags outside code fences per 200 characters."""
    tags = np.where(facts.lines["fenced"] == 0, facts.lines["tags"], 0).astype(float)
    return 200 * share(np.add.reduceat(tags, facts.lines.first[:-1]), facts.characters)


def garbled_share(facts: Facts) -> Floats:
    """U+FFFD and well-known mojibake."""
    return share(facts.sum("garbled"), facts.visible)


def sensitive_per_line(facts: Facts) -> Floats:
    """Different sensitive phrases (strict and soft lists) per line."""
    both = facts.phrase_lines("strict") + facts.phrase_lines("soft")
    return share(np.add.reduceat(both.astype(float), facts.lines.first[:-1]), facts.num_lines)


def interface_cut_share(facts: Facts) -> Floats:
    """Characters that P06, P07 and P08 removed, among those before."""
    if facts.characters_before is None:
        return np.zeros(len(facts))
    return share(sum((facts.removed.get(rule, np.zeros(len(facts))) for rule in ("P06", "P07", "P08")), np.zeros(len(facts))),
                 facts.characters_before)


def toxic_line_share(facts: Facts) -> Floats:
    """Lines with a strict phrase or two different soft ones, among lines that are not blank."""
    return share(facts.count((facts.phrase_lines("strict") > 0) | (facts.phrase_lines("soft") >= 2)), facts.num_lines)


def _all_lines(facts: Facts) -> Floats:
    last = facts.lines.first[1:] - 1
    return np.diff(facts.lines.first) - (facts.lines["characters"][last] == 0)


def _ends_with(facts: Facts, name: str) -> np.ndarray:
    result = np.zeros(len(facts.lines.starts), bool)
    which, where = facts.found
    if name in facts.phrases.names and len(which):
        compiled = facts.phrases.compiled
        chosen = compiled.lists[which] == facts.phrases.names.index(name)
        stop = where[chosen] + np.diff(compiled.starts)[which[chosen]]
        line = np.searchsorted(facts.lines.starts, where[chosen], side="right") - 1
        left = facts.lines.end[line] - stop
        result[line[(left >= 0) & (left <= 6)]] = True  # an arrow, dots or a bracket may follow
    return result


def _blocked(url: str | None, domains: frozenset[str]) -> bool:
    if not url:
        return False
    try:
        host = (urlsplit(url if "//" in url else f"//{url}").hostname or "").lower()
    except ValueError:
        return False
    parts = host.split(".")
    return any(".".join(parts[index:]) in domains for index in range(len(parts)))
