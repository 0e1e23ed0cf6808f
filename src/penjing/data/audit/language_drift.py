"""Drift of topic and of perplexity: how far the words of a corpus have moved from a reference, and how much it surprises a model of it.

Both look at one language at a time, on tokens of the skeleton view (a Han character or a word; no punctuation, case or width).

Topic: the Jensen-Shannon distance in bits between the distributions of tokens, 0 for equal ones and 1 for ones without a common token.
Two samples of one corpus are not at 0, so the distance between the halves of the reference is taken off.

Perplexity: a bigram model (Witten and Bell's interpolation with tokens and a floor) is counted on each half of the reference. A document
is scored by the half that does not hold it, one of the corpus by the first half unless its text stands there. Reported are the relative
shift of the geometric mean perplexity, and the stability index of the documents' perplexities over the deciles of the reference. It is
not the model of the stage `score`: it needs nothing but the two samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from penjing.data.audit.drift import FAIL, WARN, stability_index
from penjing.data.dedup.fold import fold, skeleton_table

LEAST_DOCUMENTS = 30
"""Documents of a language that both sides must have to be compared."""
TOP = 10


def language_drift(texts: Sequence[str], reference: Sequence[str]) -> dict[str, Any]:
    """{"topic": …, "perplexity": …} of documents of one language against a reference's; both need at least two documents."""
    ours, theirs = _Tokens(texts), _Tokens(reference)
    halves = theirs.half(0), theirs.half(1)
    distance = _distance(ours, theirs)
    floor = _distance(*halves)
    excess = max(0.0, distance - floor)
    models = [_Bigrams(half) for half in halves]
    usual = np.concatenate([models[0].score(halves[1]), models[1].score(halves[0])])
    known = set(reference[::2])
    apart = [_Tokens([text for text in texts if (text in known) is held]) for held in (False, True)]
    scores = np.concatenate([model.score(side) for model, side in zip(models, apart, strict=True)])
    if not len(scores) or not len(usual):
        scores = usual = np.zeros(1)  # nothing but single tokens: nothing to compare
    edges = np.quantile(usual, np.linspace(0.1, 0.9, 9))
    index = stability_index(*(_counts(np.searchsorted(edges, values)) for values in (scores, usual)))
    shift = float(np.exp(scores.mean() - usual.mean()) - 1)
    return {
        "topic": {"distance_bits": distance, "of_it_chance": floor, "more": _more(ours, theirs), "fewer": _more(theirs, ours),
                  "state": _state(excess)},
        "perplexity": {"geometric_mean": float(np.exp(scores.mean())), "reference": float(np.exp(usual.mean())), "shift": shift,
                       "stability_index": index, "state": _state(index)},
    }


class _Tokens:
    """Tokens of some documents, as 64-bit hashes; `text_of` finds one's spelling again."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = pa.array(texts, pa.large_string())
        folded = fold(self._texts, skeleton_table(), places=True)
        self.tokens, self.offsets = folded.tokens, folded.token_offsets
        self._points, self._places = folded.points, folded.token_points
        self.kinds, self.counts = np.unique(self.tokens, return_counts=True)

    def half(self, which: int) -> _Tokens:
        """Every other document."""
        return _Tokens(self._texts.take(pa.array(np.arange(which, len(self._texts), 2))).to_pylist())

    def spelling(self, token: np.uint64) -> str:
        """One token as it stands in the folded text."""
        at = int(np.flatnonzero(self.tokens == token)[0])
        end = int(self._places[at + 1]) if at + 1 < len(self._places) else len(self._points)
        return "".join(map(chr, self._points[self._places[at] : end]))[:40]


def _shares(ours: _Tokens, theirs: _Tokens) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    kinds = np.union1d(ours.kinds, theirs.kinds)
    found = []
    for side in (ours, theirs):
        counts = np.zeros(len(kinds))
        counts[np.searchsorted(kinds, side.kinds)] = side.counts
        found.append(counts / max(1.0, counts.sum()))
    return kinds, found[0], found[1]


def _distance(ours: _Tokens, theirs: _Tokens) -> float:
    _, p, q = _shares(ours, theirs)
    middle = (p + q) / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        total = sum(float(np.where(one > 0, one * np.log2(one / middle), 0.0).sum()) for one in (p, q))
    return total / 2


def _more(ours: _Tokens, theirs: _Tokens) -> list[str]:
    """The tokens that one side has so much more of that they make up most of the distance."""
    kinds, p, q = _shares(ours, theirs)
    with np.errstate(divide="ignore", invalid="ignore"):
        weight = np.where(p > q, p * np.log2(2 * p / (p + q)), 0.0)
    order = np.lexsort((kinds, -weight))[:TOP]
    return [ours.spelling(kinds[i]) for i in order if weight[i] > 0]


class _Bigrams:
    """Tokens and pairs of tokens with the chance of each after the other."""

    def __init__(self, side: _Tokens) -> None:
        self._kinds, self._counts = side.kinds, side.counts
        pairs, firsts = _pairs(side)
        self._pairs, places, counts = np.unique(pairs, return_index=True, return_counts=True)
        self._pair_counts = counts
        first = firsts[places]
        self._first, place = np.unique(first, return_inverse=True)
        self._after = np.bincount(place, weights=counts)
        self._different = np.bincount(place)

    def score(self, side: _Tokens) -> np.ndarray:
        """Mean negative log chance of a token, by document with at least two tokens."""
        total, kinds = float(self._counts.sum()), len(self._kinds)
        alone = (_look(self._kinds, self._counts, side.tokens) + kinds / (kinds + 2**20)) / (total + kinds)
        pairs, firsts = _pairs(side)
        after, different = _look(self._first, self._after, firsts), _look(self._first, self._different, firsts)
        both = _look(self._pairs, self._pair_counts, pairs)
        second = np.ones(len(side.tokens), bool)
        second[side.offsets[:-1][np.diff(side.offsets) > 0]] = False
        chance = np.where(after > 0, (both + different * alone[second]) / np.maximum(after + different, 1), alone[second])
        owner = np.repeat(np.arange(len(side.offsets) - 1), np.diff(side.offsets))[second]
        number = np.bincount(owner, minlength=len(side.offsets) - 1)
        sums = np.bincount(owner, weights=-np.log(chance), minlength=len(side.offsets) - 1)
        found: np.ndarray = sums[number > 0] / number[number > 0]
        return found


def _pairs(side: _Tokens) -> tuple[np.ndarray, np.ndarray]:
    """(one number for each pair of neighbouring tokens of a document, its first token)."""
    second = np.ones(len(side.tokens), bool)
    second[side.offsets[:-1][np.diff(side.offsets) > 0]] = False
    at = np.flatnonzero(second)
    first = side.tokens[at - 1]
    mixed = first * np.uint64(0x9E3779B97F4A7C15) ^ side.tokens[at]
    return (mixed ^ (mixed >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9), first


def _look(kinds: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The value of each wanted kind, 0 where there is none."""
    if not len(kinds):
        return np.zeros(len(wanted))
    place = np.minimum(np.searchsorted(kinds, wanted), len(kinds) - 1)
    return np.where(kinds[place] == wanted, values[place], 0).astype(float)


def _counts(bins: np.ndarray) -> dict[str, float]:
    names, counts = np.unique(bins, return_counts=True)
    return {str(name): float(count) for name, count in zip(names.tolist(), counts.tolist(), strict=True)}


def _state(index: float) -> str:
    return "fail" if index > FAIL else "warn" if index > WARN else "steady"
