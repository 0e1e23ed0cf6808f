"""Whether a changed vocabulary keeps its word on real text, line by line, with the lines that break it.

Grown: the new ids, expanded through the plan, are the old ids. Pruned: where all old tokens are kept, the ids map one to one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from penjing.errors import InputError, fault
from penjing.tokenizer.plan import NewPiece, VocabPlan, source_hash
from penjing.tokenizer.vocabulary import Vocabulary

MAX_EXAMPLES = 10
Encoded = tuple[np.ndarray, np.ndarray]
"""Ids of all texts, and how many each text has."""
_SUMMED = ("lines", "covered", "exact", "changed", "tokens_before", "tokens_after", "tokens_covered", "compared", "disagree")


@dataclass
class Verdict:
    """Lines seen, lines under the contract, lines that keep it, by language."""

    lines: int = 0
    covered: int = 0
    exact: int = 0
    changed: int = 0
    """Lines whose ids differ at all after mapping kept ids (grown: lines in which a new piece occurs)."""
    tokens_before: int = 0
    tokens_after: int = 0
    tokens_covered: int = 0
    """Old tokens on covered lines."""
    compared: int = 0
    """Lines on which the `.model` and tokenizer.json were compared."""
    disagree: int = 0
    """Those on which they give different ids."""
    counterexamples: list[dict[str, Any]] = field(default_factory=list)

    def compare_engines(self, texts: Sequence[str], one: Encoded, other: Encoded) -> None:
        """Count the texts on which two engines of the same tokenizer give different ids."""
        self.compared += len(texts)
        if np.array_equal(one[0], other[0]) and np.array_equal(one[1], other[1]):
            return
        rows = zip(np.split(one[0], np.cumsum(one[1])[:-1]), np.split(other[0], np.cumsum(other[1])[:-1]), strict=True)
        self.disagree += sum(not np.array_equal(left, right) for left, right in rows)

    def add(self, other: Verdict) -> None:
        """Add another part's verdict."""
        for name in _SUMMED:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.counterexamples = (self.counterexamples + other.counterexamples)[:MAX_EXAMPLES]

    @staticmethod
    def of(figures: Mapping[str, Any]) -> Verdict:
        """A verdict out of its own JSON."""
        return Verdict(**{name: figures[name] for name in Verdict.__dataclass_fields__})

    def as_json(self) -> dict[str, Any]:
        """Counts and shares."""
        lines = max(1, self.lines)
        return {"lines": self.lines, "covered": self.covered, "covered_share": round(self.covered / lines, 6),
                "exact": self.exact,
                "exact_share_of_covered": round(self.exact / max(1, self.covered), 6), "changed": self.changed,
                "changed_share": round(self.changed / lines, 6), "tokens_before": self.tokens_before,
                "tokens_after": self.tokens_after,
                "tokens_covered": self.tokens_covered, "compared": self.compared, "disagree": self.disagree,
                "tokens_change": round(self.tokens_after / max(1, self.tokens_before) - 1, 6),
                "covered_token_share": round(self.tokens_covered / max(1, self.tokens_before), 6),
                "counterexamples": self.counterexamples}


class Checker:
    """Checks batches of texts encoded by the old and the new tokenizer."""

    def __init__(self, plan: VocabPlan, *, unknown: frozenset[int] = frozenset()) -> None:
        self.plan = plan
        self.new_id = plan.new_id_of()
        expansions = plan.old_ids_of()
        self._lengths = np.array([len(old) for old in expansions], dtype=np.int64)
        self._starts = np.concatenate([[0], np.cumsum(self._lengths)[:-1]])
        self._flat = np.array([index for old in expansions for index in old], dtype=np.int64)
        self._unknown = np.array(sorted(unknown), dtype=np.int64)
        self._special = tuple(piece.piece for piece in plan.new if piece.special)

    def expand(self, ids: np.ndarray) -> np.ndarray:
        """New ids written as old ones."""
        lengths = self._lengths[ids]
        ends = np.cumsum(lengths)
        within = np.arange(int(ends[-1]) if len(ends) else 0) - np.repeat(ends - lengths, lengths)
        return self._flat[np.repeat(self._starts[ids], lengths) + within]

    def check(self, texts: Sequence[str], old: tuple[np.ndarray, np.ndarray], new: tuple[np.ndarray, np.ndarray],
              verdict: Verdict) -> None:
        """Add the texts to `verdict`; old and new are (ids, lengths) as the encoders give them."""
        old_rows = np.split(old[0], np.cumsum(old[1])[:-1])
        new_rows = np.split(new[0], np.cumsum(new[1])[:-1])
        for text, before, after in zip(texts, old_rows, new_rows, strict=True):
            verdict.lines += 1
            verdict.tokens_before += len(before)
            verdict.tokens_after += len(after)
            if self.plan.operation == "grow":
                covered = not any(content in text for content in self._special)  # a special token is made of no old ones
                expected, got = self._one_unknown(before), self._one_unknown(self.expand(after))
                changed = not np.array_equal(before, after)
            else:
                expected, got = self.new_id[before], after
                covered = bool((expected >= 0).all())
                changed = not np.array_equal(expected, after)
            verdict.changed += changed
            if not covered:
                continue
            verdict.covered += 1
            verdict.tokens_covered += len(before)
            if np.array_equal(expected, got):
                verdict.exact += 1
            elif len(verdict.counterexamples) < MAX_EXAMPLES:
                verdict.counterexamples.append(_counterexample(text, expected, got))

    def _one_unknown(self, ids: np.ndarray) -> np.ndarray:
        """Runs of the unknown piece as one: SentencePiece writes neighbouring unknown characters as a single unknown."""
        if not len(self._unknown) or len(ids) < 2:
            return ids
        repeated = np.isin(ids[1:], self._unknown) & (ids[1:] == ids[:-1])
        return ids[np.concatenate([[True], ~repeated])]


def _counterexample(text: str, expected: np.ndarray, found: np.ndarray) -> dict[str, Any]:
    """The text and the ids around the first place where they differ."""
    shared = min(len(expected), len(found))
    different = np.flatnonzero(expected[:shared] != found[:shared])
    at = int(different[0]) if len(different) else shared
    window = slice(max(0, at - 4), at + 12)
    return {"text": text[:400], "at": at, "expected": expected[window].tolist(), "found": found[window].tolist()}


def derived_plan(old: Vocabulary, new: Vocabulary) -> VocabPlan:
    """The plan that leads from one vocabulary to another, where no plan was kept.

    Raises InputError when the new one neither extends the old one nor is a part of it.
    """
    from penjing.tokenizer.build import extend

    old_contents = [old.text_of_id(index) for index in range(old.total)]
    new_contents = [new.text_of_id(index) for index in range(new.total)]
    if new_contents[: old.total] == old_contents:
        added = tuple(NewPiece(new.pieces[index], 0, (), None if new.scores_V is None or new.kind != "unigram"
                               else float(new.scores_V[index])) for index in range(old.total, len(new)))
        _, expansions = extend(old, added)
        pieces = tuple(NewPiece(item.piece, 0, made, item.score) for item, made in zip(added, expansions, strict=True))
        return VocabPlan("grow", old.kind, source_hash(old), old.total, tuple(range(old.total)), pieces)
    place = {content: index for index, content in enumerate(old_contents)}
    kept = [place.get(content, -1) for content in new_contents]
    if -1 in kept or kept != sorted(kept):
        stranger = next((content for content in new_contents if content not in place), None)
        raise InputError(fault("the new vocabulary neither extends the old one nor is a part of it in the same order",
                               where=new.name, found=f"the piece {stranger!r}" if stranger is not None else "another order",
                               expected=f"pieces of {old.name}", fix="give the plan of the change"))
    return VocabPlan("prune", old.kind, source_hash(old), old.total, tuple(kept))
