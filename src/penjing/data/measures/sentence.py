"""Measures of sentences. Each gives one value per sentence; `facts` are those of the batch the sentences belong to."""

from __future__ import annotations

import numpy as np

from penjing.data.kernels.lines import Sentences
from penjing.data.kernels.near import near_repeats
from penjing.data.measures.facts import Facts, Floats


def toxic(facts: Facts, found: Sentences) -> Floats:
    """Weight of lexicon hits: a strict phrase counts 2, a soft one 1; 2 and more is toxic."""
    values = np.zeros(len(found.starts))
    which, where = facts.found
    for name, weight in (("strict", 2.0), ("soft", 1.0)):
        if name in facts.phrases.names and len(which):
            chosen = facts.phrases.compiled.lists[which] == facts.phrases.names.index(name)
            place = np.searchsorted(found.starts, where[chosen], side="right") - 1
            inside = (place >= 0) & (where[chosen] < found.ends[np.maximum(place, 0)])
            pairs = np.unique(np.stack([place[inside], which[chosen][inside].astype(np.int64)]), axis=1)
            np.add.at(values, pairs[0], weight)
    return values


def repeated(facts: Facts, found: Sentences) -> Floats:
    """Characters of a sentence that occurred before in the document (case, digits and punctuation set aside), else 0."""
    document = facts.line_document[found.line]
    key = found.folded ^ (document.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15))
    order = np.argsort(key, kind="stable")
    same = np.zeros(len(key), bool)
    same[order[1:]] = key[order[1:]] == key[order[:-1]]
    return np.where(same & (found.folded != 0), found["characters"], 0).astype(float)


def nearly_repeated(facts: Facts, found: Sentences) -> Floats:
    """1 for a sentence within an edit distance of 10% of an earlier one; one of at most 15 characters must be equal."""
    return near_repeats(facts.data, found, facts.line_document[found.line]).astype(float)


def unpunctuated(facts: Facts, found: Sentences) -> Floats:
    """Longest stretch of characters without punctuation."""
    return found["unpunctuated"].astype(float)


def foreign_scrap(facts: Facts, found: Sentences) -> Floats:
    """Share of Latin among letters, for sentences of fewer than 5 pieces in Chinese documents; else 0."""
    letters = np.maximum(found["latin"] + found["han"], 1)
    chosen = facts.line_is_chinese[found.line] & (found["tokens"] < 5) & (found["latin"] > 0) & (found["terminal"] == 0)
    return np.where(chosen, found["latin"] / letters, 0.0)


def dangling(facts: Facts, found: Sentences) -> Floats:
    """1 for the document's last sentence when it ends in an ellipsis."""
    return (_last_of_document(facts, found) & (found["ends_in_ellipsis"] != 0)).astype(float)


def truncated(facts: Facts, found: Sentences) -> Floats:
    """1 for the document's last sentence when it has no terminal mark and an earlier sentence of its line has one."""
    last = _last_of_document(facts, found) & (found["terminal"] == 0)
    follows = np.zeros(len(last), bool)
    follows[1:] = found.line[1:] == found.line[:-1]
    return (last & follows).astype(float)


def _last_of_document(facts: Facts, found: Sentences) -> np.ndarray:
    document = facts.line_document[found.line]
    result = np.zeros(len(document), bool)
    if len(document):
        result[:-1] = document[1:] != document[:-1]
        result[-1] = True
    return result
