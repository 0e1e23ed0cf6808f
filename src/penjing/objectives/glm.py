"""GLM's blank infilling: spans are cut out of the text (part A), then written one after the other (part B).

Everyone sees all of A; B sees A and what of B came before. Positions are two: the place in A (a span sits at its blank) and the
place inside the span. Sources: GLM (Du et al. 2022) as THUDM's blocklm_utils does it; GLM-130B's one-dimensional positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from penjing.config import generator
from penjing.objectives.causal import Arrays
from penjing.objectives.example import NO_LOSS
from penjing.objectives.joint import Segment
from penjing.objectives.packing import ConcatRows, Documents
from penjing.objectives.span import Ids, segment

MASKED_SHARE = 0.15
MEAN_SPAN = 3.0
LONGEST_SPAN = 40
SHORTEST_GAP_SHARE = 0.25
"""The least share of a text that [gMASK] takes (GLM-10B's setting; the paper says one half)."""
MIXTURE = (0.5, 0.3, 0.2)
"""[MASK], [sMASK], [gMASK] as GLM-10B was trained; GLM large for Chinese used 0.4, 0.3, 0.3."""

Span = tuple[int, int]


@dataclass(frozen=True)
class GlmSpecial:
    """Ids of the blanks and of the borders of a filled span."""

    mask: int
    sentence_mask: int
    gap_mask: int
    start: int
    end: int


@dataclass(frozen=True)
class GlmExample:
    """One sample. The first `prefix` positions are part A; targets are not shifted further: position i predicts targets[i]."""

    tokens: NDArray[np.int64]
    targets: NDArray[np.int64]
    positions: NDArray[np.int64]
    block_positions: NDArray[np.int64]
    prefix: int


def blank_infilling(tokens: Ids, spans: Sequence[Span], *, mask: int, special: GlmSpecial,
                    order: Sequence[int] | NDArray[np.int64] | None = None, flat: bool = False) -> GlmExample:
    """The sample in which `spans` ([start, end), rising, at least one token apart) are blanks, written in `order`.

    flat: GLM-130B's positions: a span's inputs all have the place of their blank, and a [gMASK] span's go on counting.
    """
    from penjing.objectives import kernels

    places = np.array(spans, np.int64).reshape(-1, 2)
    chosen = np.arange(len(places)) if order is None else np.asarray(order, np.int64)
    going_on = flat and mask == special.gap_mask
    rows, prefix = kernels.fill_blanks(tokens, places, chosen, mask, special.start, special.end, flat, going_on, NO_LOSS)
    return GlmExample(rows[0], rows[1], rows[2], rows[3], int(prefix))


def short_spans(length: int, rng: np.random.Generator, *, most: int | None = None) -> list[Span]:
    """[MASK]: 15% of the text in spans of Poisson(3) tokens, at least one token apart, at most `most` of them."""
    goal = max(round(MASKED_SHARE * length), 1)
    limit = (length + 1) // 2 if most is None else min(most, (length + 1) // 2)
    lengths = np.clip(rng.poisson(MEAN_SPAN, min(goal, max(limit, 1))), 1, LONGEST_SPAN)
    total = np.cumsum(lengths)
    lengths = lengths[: int(np.searchsorted(total, goal)) + 1]
    lengths[-1] -= max(int(total[len(lengths) - 1]) - goal, 0)
    while len(lengths) > 1 and length - int(lengths.sum()) < len(lengths) - 1:
        lengths = lengths[:-1]
    masked = int(lengths.sum())
    gaps = segment(length - masked + 2, len(lengths) + 1, rng)
    gaps[0] -= 1
    begins = np.cumsum(gaps[:-1]) + np.cumsum(lengths) - lengths
    return list(zip(begins.tolist(), (begins + lengths).tolist(), strict=True))


def sentence_spans(tokens: Ids, ends: NDArray[np.bool_], rng: np.random.Generator) -> list[Span]:
    """[sMASK]: whole sentences, no two in a row, until 15% is masked. `ends[id]`: the token closes a sentence. [] if none."""
    borders = np.flatnonzero(ends[tokens]) + 1
    edges = sorted({0, *borders.tolist(), len(tokens)})
    if len(edges) < 3:
        return []
    sentences = list(pairwise(edges))
    taken: set[int] = set()
    masked = 0
    for number in rng.permutation(len(sentences)).tolist():
        if masked >= MASKED_SHARE * len(tokens):
            break
        if number - 1 in taken or number + 1 in taken:
            continue
        taken.add(number)
        masked += sentences[number][1] - sentences[number][0]
    return [sentences[number] for number in sorted(taken)]


def gap_span(length: int, rng: np.random.Generator) -> list[Span]:
    """[gMASK]: one suffix of a uniform length between a quarter and all of the text."""
    least = max(round(SHORTEST_GAP_SHARE * length), 1)
    return [(length - int(rng.integers(least, length + 1)), length)]


def glm(tokens: Ids, rng: np.random.Generator, *, special: GlmSpecial, mixture: Sequence[float] = MIXTURE,
        sentence_ends: NDArray[np.bool_] | None = None, flat: bool = False, most: int | None = None) -> GlmExample:
    """A sample of a task drawn by `mixture`; a text without two sentences gets [MASK] spans instead of [sMASK]."""
    task = int(np.searchsorted(np.cumsum(mixture), rng.random() * sum(mixture), side="right"))
    spans: list[Span] = []
    mask = special.mask
    if task == 1 and sentence_ends is not None:
        spans, mask = sentence_spans(tokens, sentence_ends, rng), special.sentence_mask
        if most is not None and len(spans) > most:
            spans = spans[:most]
    elif task == 2:
        spans, mask = gap_span(len(tokens), rng), special.gap_mask
    if not spans:
        spans, mask = short_spans(len(tokens), rng, most=most), special.mask
    return blank_infilling(tokens, spans, mask=mask, special=special, order=rng.permutation(len(spans)), flat=flat)


class GlmRows:
    """Decoder-only rows of GLM samples, one per piece of a document, isolated from each other."""

    truncated_tokens = 0
    TEXT_SHARE = 0.9
    """Share of a row that is text; a blank adds two ids, and 15% in spans of three makes a tenth."""

    def __init__(self, documents: Documents, *, width: int, special: GlmSpecial, mixture: Sequence[float],
                 sentence_ends: NDArray[np.bool_] | None, positions: Literal["2d", "1d"], isolate: bool, seed: int) -> None:
        self.documents = documents
        self._width = width
        self._special = special
        self._mixture = tuple(mixture)
        self._ends = sentence_ends
        self._flat = positions == "1d"
        self._isolate = isolate
        self._seed = seed
        self._text = max(int(width * self.TEXT_SHARE), 1)
        self._stream = ConcatRows(documents, width=self._text, seed=seed)
        self.rows_per_epoch = self._stream.rows_per_epoch
        self.tokens_per_row = float(np.mean([sum(len(item.tokens) for item in self.examples(row)) for row in range(32)]))

    def examples(self, row: int) -> list[GlmExample]:
        """The samples of a row, in order; together they fit."""
        ids = self.documents.shard.ids
        pieces = [ids[piece.start : piece.start + piece.length] for piece in self._stream.pieces(row)]
        if not self._isolate:
            pieces = [np.concatenate(pieces)]
        rng = generator(self._seed, "denoise", self.documents.name, row)
        spare = (self._width - self._text) // 2
        found = []
        text = self._text
        for number, tokens in enumerate(pieces):
            # Every piece gets blanks by its size, one at least; where tiny pieces outnumber the blanks, the rest is one text.
            waiting = len(pieces) - number
            if spare < waiting:
                tokens, waiting = np.concatenate(pieces[number:]), 1
            most = min(max(round(spare * len(tokens) / max(text, 1)), 1), max(spare - waiting + 1, 1))
            example = glm(tokens, rng, special=self._special, mixture=self._mixture, sentence_ends=self._ends, flat=self._flat,
                          most=most)
            found.append(example)
            spare -= (len(example.tokens) - len(tokens)) // 2
            text -= len(tokens)
            if text <= 0:
                break
        return found

    def fill(self, arrays: Arrays, at: int, row: int, segments: list[Segment] | None = None) -> tuple[int, int]:
        """Lay row `row` into place `at`."""
        end = 0
        for number, item in enumerate(self.examples(row), 1):
            begin, end = end, end + len(item.tokens)
            arrays["tokens_BS"][at, begin:end] = item.tokens
            arrays["targets_BS"][at, begin:end] = item.targets
            arrays["weights_BS"][at, begin:end] = item.targets != NO_LOSS
            arrays["segments_BS"][at, begin:end] = number
            arrays["positions_BS"][at, begin:end] = item.positions
            arrays["block_positions_BS"][at, begin:end] = item.block_positions
            arrays["prefix_BS"][at, begin : begin + item.prefix] = True
        return 0, 0
