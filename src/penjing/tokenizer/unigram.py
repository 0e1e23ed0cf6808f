"""Unigram vocabularies (T5, mT5, OpenBA): the segmentation is the path of the highest summed score.

Pruning is exact by nature: the best path survives in every subset that contains it. Two traps: the penalty of the unknown piece
is the lowest score minus 10, so the lowest-scored piece stays; and an unknown character is tried only where no single-character
piece is, so the characters of kept pieces stay. Growing has no such order: a new piece competes with every old path, so scores
are re-estimated from counts and the share of changed text is measured, not promised.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from penjing.errors import InputError, fault
from penjing.tokenizer.build import fallback, filled, proto_of
from penjing.tokenizer.continued import PairCounts, train
from penjing.tokenizer.merges import flatten
from penjing.tokenizer.plan import NewPiece
from penjing.tokenizer.prune import Order, removal_cost
from penjing.tokenizer.scripts import is_chinese
from penjing.tokenizer.vocabulary import NORMAL, USER_DEFINED, Vocabulary

UNKNOWN_PENALTY = 10.0
MARGIN = 0.1
"""By how much a new piece's score beats the summed scores of what it was before, at least."""
MAX_PIECE_CHARACTERS = 8


class Lattice:
    """Best paths over a changing set of pieces."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        assert vocabulary.scores_V is not None
        self.vocabulary = vocabulary
        joinable = np.isin(vocabulary.types_V, (NORMAL, USER_DEFINED))
        scores = vocabulary.scores_V.tolist()
        self.pieces = {piece: (index, scores[index]) for index, piece in enumerate(vocabulary.pieces) if joinable[index]}
        self.longest = max((len(piece) for piece in self.pieces), default=1)
        self.unknown = min((score for _, score in self.pieces.values()), default=0.0) - UNKNOWN_PENALTY

    def best(self, text: str) -> tuple[list[int | str], float]:
        """(ids, with the character itself where it is unknown; summed score) of the best path."""
        ends: list[tuple[float, int, int | str]] = [(0.0, 0, "")]
        for end in range(1, len(text) + 1):
            found: tuple[float, int, int | str] | None = None
            for start in range(max(0, end - self.longest), end):
                item = self.pieces.get(text[start:end])
                if item is not None:
                    score = ends[start][0] + item[1]
                    if found is None or score > found[0]:
                        found = (score, start, item[0])
            if text[end - 1] not in self.pieces:
                score = ends[end - 1][0] + self.unknown
                if found is None or score > found[0]:
                    found = (score, end - 1, text[end - 1])
            assert found is not None
            ends.append(found)
        path: list[int | str] = []
        at = len(text)
        while at:
            path.append(ends[at][2])
            at = ends[at][1]
        return path[::-1], ends[-1][0]

    def ids(self, text: str) -> list[int]:
        """The best path as ids, unknown characters as their bytes or the unknown piece."""
        out: list[int] = []
        for part in self.best(text)[0]:
            out.extend([part] if isinstance(part, int) else fallback(self.vocabulary, part))
        return out


def unigram_order(vocabulary: Vocabulary, counts_V: np.ndarray, fixed: np.ndarray, method: str) -> Order:
    """Removal order by falling usefulness; with `frequency` by counts alone, else closed over characters and by tokens lost."""
    assert vocabulary.scores_V is not None
    normal = np.flatnonzero(vocabulary.types_V == NORMAL)
    if method == "frequency":
        ids = normal[~fixed[normal]]
        removed = ids[np.lexsort((-ids, counts_V[ids]))]
        return Order(removed, np.zeros(len(removed), dtype=np.int64), vocabulary.total)
    fixed[normal[np.argmin(vocabulary.scores_V[normal])]] = True
    lattice = Lattice(vocabulary)
    count = counts_V.astype(np.int64).copy()
    single = {piece: index for index, piece in enumerate(vocabulary.pieces)
              if len(piece) == 1 and vocabulary.types_V[index] == NORMAL}
    needed = np.zeros(vocabulary.total, dtype=np.int64)
    members: dict[int, list[int]] = {}
    for index in normal.tolist():
        piece = vocabulary.pieces[index]
        members[index] = [single[character] for character in set(piece) if character in single] if len(piece) > 1 else []
        needed[members[index]] += 1
    waiting = [index for index in normal.tolist() if not fixed[index] and needed[index] == 0]
    heap = [(int(count[index]), int(count[index]), -index) for index in waiting]
    heapq.heapify(heap)
    removed_ids: list[int] = []
    extra: list[int] = []
    while heap:
        cost, seen, negative = heapq.heappop(heap)
        index = -negative
        piece = vocabulary.pieces[index]
        kept = lattice.pieces.pop(piece)
        parts = lattice.ids(piece) if seen else []
        real = int(count[index]) * removal_cost(vocabulary, parts) if seen else int(count[index])
        if real > cost or seen != count[index]:
            lattice.pieces[piece] = kept
            heapq.heappush(heap, (max(real, int(count[index])), int(count[index]), negative))
            continue
        removed_ids.append(index)
        extra.append(cost)
        for part in parts:
            count[part] += seen
        for part in members[index]:
            needed[part] -= 1
            if needed[part] == 0 and not fixed[part]:
                heapq.heappush(heap, (int(count[part]), int(count[part]), -part))
    return Order(np.array(removed_ids, dtype=np.int64), np.array(extra, dtype=np.int64), vocabulary.total)


def extend_unigram(vocabulary: Vocabulary, new: Sequence[NewPiece]) -> tuple[Vocabulary, list[tuple[int, ...]]]:
    """`vocabulary` with new scored pieces appended, and the best old path of each.

    Raises InputError for a piece that is there already or has no score.
    """
    assert vocabulary.scores_V is not None
    lattice = Lattice(vocabulary)
    taken = {*vocabulary.pieces, *(str(token["content"]) for token in vocabulary.added)}
    expansions, scores = [], []
    for item in new:
        if item.piece in taken or not item.piece:
            raise InputError(fault(f"piece {item.piece!r} cannot be added: it is a piece already", where=vocabulary.name))
        if item.score is None:
            raise InputError(fault(f"new piece {item.piece!r} has no score", where=vocabulary.name, expected="a unigram score"))
        taken.add(item.piece)
        expansions.append(tuple(lattice.ids(item.piece)))
        scores.append(item.score)
    pieces, types = filled(vocabulary)
    old_scores = np.concatenate([vocabulary.scores_V, np.zeros(len(pieces) - len(vocabulary))])
    result = replace(vocabulary, pieces=(*pieces, *(item.piece for item in new)),
                     types_V=np.concatenate([types, np.full(len(new), NORMAL, dtype=np.uint8)]),
                     scores_V=np.concatenate([old_scores, np.array(scores, dtype=np.float64)]))
    return replace(result, proto=proto_of(result)), expansions


def plan_unigram_growth(vocabulary: Vocabulary, new_characters: list[tuple[str, int]], runs: list[tuple[str, int]] | None,
                        budget: int, min_count: int) -> list[NewPiece]:
    """The most useful new pieces with scores log(count / tokens), raised where needed to beat what the piece was before."""
    candidates = list(new_characters)
    if runs is not None:
        candidates += _frequent_words(vocabulary, runs, budget, min_count)
    lattice = Lattice(vocabulary)
    total = max(1, sum(count for _, count in candidates))
    normal = vocabulary.types_V == NORMAL
    assert vocabulary.scores_V is not None
    low = float(vocabulary.scores_V[normal].min())
    scored = []
    for piece, count in candidates:
        path, score = lattice.best(piece)
        gain = count * removal_cost(vocabulary, lattice.ids(piece))
        known = all(isinstance(part, int) for part in path)
        own = max(low, math.log(count / total))
        scored.append((-gain, piece, count, max(own, score + MARGIN) if known and len(path) > 1 else own))
    chosen = sorted(scored)[:budget]
    return [NewPiece(piece, count, tuple(lattice.ids(piece)), round(min(score, -1e-3), 6)) for _, piece, count, score in chosen]


def _frequent_words(vocabulary: Vocabulary, runs: list[tuple[str, int]], limit: int, min_count: int) -> list[tuple[str, int]]:
    """Words of Chinese that are no pieces yet, by byte-pair training over characters: (word, count)."""
    ids: dict[str, int] = {}
    names: list[str] = []

    def named(text: str) -> int:
        if text not in ids:
            ids[text] = len(names)
            names.append(text)
        return ids[text]

    symbols, offsets = flatten([named(character) for character in text] for text, _ in runs)
    pairs = PairCounts(symbols, offsets, np.array([count for _, count in runs], dtype=np.int64), banned=1 << 30)

    def join(left: int, right: int) -> int | None:
        text = names[left] + names[right]
        return named(text) if len(text) <= MAX_PIECE_CHARACTERS and is_chinese(text) else None

    made = train(pairs, join=join, limit=2 * limit, min_count=max(2, min_count))
    return [(names[index], count) for index, count in made if names[index] not in vocabulary.ids][:limit]
