"""UniLM: one masked-token task under four masks: both directions, sequence to sequence, left to right, right to left.

Source: UniLM (Dong et al. 2019). Differs: the next-sentence task of the bidirectional third is left out (it needs a second
head and later work found no use in it).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from penjing.config import generator
from penjing.objectives.causal import Arrays
from penjing.objectives.example import NO_LOSS
from penjing.objectives.joint import Segment
from penjing.objectives.packing import ConcatRows, Documents
from penjing.objectives.span import Ids

TASKS = ("bidirectional", "sequence-to-sequence", "left-to-right", "right-to-left")
RATIOS = (1 / 3, 1 / 3, 1 / 6, 1 / 6)
MASKED_SHARE = 0.15


@dataclass(frozen=True)
class UnilmSpecial:
    """Ids of the mask and of the borders `[SOS] first [EOS] second [EOS]`."""

    mask: int
    start: int
    end: int


@dataclass(frozen=True)
class UnilmExample:
    """One sample: the prediction is made at the masked position itself, nothing is shifted."""

    tokens: NDArray[np.int64]
    targets: NDArray[np.int64]
    task: int
    """Index into TASKS."""
    prefix: int
    """Positions that everyone sees: all, the first part, or none."""


def unilm(tokens: Ids, rng: np.random.Generator, *, special: UnilmSpecial, vocab_size: int, task: int) -> UnilmExample:
    """15% of the ids masked: 80% by [MASK], 10% by a random id, 10% left; a fifth of the draws masks two or three in a row."""
    from penjing.objectives import kernels

    cut = int(rng.integers(1, len(tokens))) if len(tokens) > 1 else len(tokens)
    whole = np.concatenate(([special.start], tokens[:cut], [special.end], tokens[cut:], [special.end])).astype(np.int64)
    goal = max(round(MASKED_SHARE * len(whole)), 1)
    chosen = np.zeros(len(whole), bool)
    candidates = rng.permutation(np.arange(1, len(whole)))
    wide = rng.random(len(candidates)) < 0.2
    widths = np.where(wide, rng.integers(2, 4, len(candidates)), 1)
    kernels.mark(candidates, widths, goal, chosen)
    places = np.flatnonzero(chosen)
    targets = np.full(len(whole), NO_LOSS, np.int64)
    targets[places] = whole[places]
    draw = rng.random(len(places))
    inputs = whole.copy()
    inputs[places[draw < 0.8]] = special.mask
    swapped = places[(draw >= 0.8) & (draw < 0.9)]
    inputs[swapped] = rng.integers(0, vocab_size, len(swapped))
    prefix = (len(whole), cut + 2, 0, 0)[task]
    return UnilmExample(inputs, targets, task, prefix)


class UnilmRows:
    """Rows of one UniLM sample each, cut from the documents end to end."""

    truncated_tokens = 0

    def __init__(self, documents: Documents, *, width: int, special: UnilmSpecial, vocab_size: int, seed: int) -> None:
        self.documents = documents
        self._special = special
        self._vocab_size = vocab_size
        self._seed = seed
        self._stream = ConcatRows(documents, width=max(width - 3, 1), seed=seed)
        self.rows_per_epoch = self._stream.rows_per_epoch
        self.tokens_per_row = float(width)

    def example(self, row: int) -> UnilmExample:
        """The sample of a row."""
        ids = self.documents.shard.ids
        tokens = np.concatenate([ids[piece.start : piece.start + piece.length] for piece in self._stream.pieces(row)])
        rng = generator(self._seed, "denoise", self.documents.name, row)
        task = int(rng.choice(4, p=RATIOS))
        return unilm(tokens, rng, special=self._special, vocab_size=self._vocab_size, task=task)

    def fill(self, arrays: Arrays, at: int, row: int, segments: list[Segment] | None = None) -> tuple[int, int]:
        """Lay row `row` into place `at`; its denoiser is 1 + the index of its task."""
        item = self.example(row)
        end = len(item.tokens)
        arrays["tokens_BS"][at, :end] = item.tokens
        arrays["targets_BS"][at, :end] = item.targets
        arrays["weights_BS"][at, :end] = item.targets != NO_LOSS
        arrays["segments_BS"][at, :end] = 1
        arrays["positions_BS"][at, :end] = np.arange(end)
        arrays["prefix_BS"][at, : item.prefix] = True
        arrays["reversed_B"][at] = item.task == 3
        return 1 + item.task, 0
