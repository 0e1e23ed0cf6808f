"""O-UL2 as rows: one sample per row, 80% cut in the middle and 20% with every kind of noise, both sides full.

The text of a sample is as long as its task can hold at the row's two lengths, so that at 1040/1040 less than 3% is padding.
"""

from __future__ import annotations

import numpy as np

from penjing.config import generator
from penjing.objectives.joint import Arrays, Segment, lay_pair, lay_single
from penjing.objectives.mixture import Mixture
from penjing.objectives.packing import ConcatRows, Documents
from penjing.objectives.span import Example
from penjing.objectives.special import Special
from penjing.objectives.ul2 import half_denoising, half_length, mix_denoising, mix_length


class HalfMixRows:
    """Rows of O-UL2 samples from one source. `decoder` 0: decoder-only rows of `encoder` positions."""

    truncated_tokens = 0

    def __init__(self, documents: Documents, *, encoder: int, decoder: int, special: Special, mix_share: float,
                 seed: int) -> None:
        self.documents = documents
        self.decoder = decoder
        self._special = special
        self._seed = seed
        sides = (encoder, decoder) if decoder else ((encoder + 1) // 2, encoder + 1 - (encoder + 1) // 2)
        self.lengths = (half_length(*sides), mix_length(*sides, sentinels=len(special.sentinels)))
        """Tokens of a sample of each task."""
        self._tasks = Mixture([1 - mix_share, mix_share])
        self._stream = ConcatRows(documents, width=1, seed=seed)
        per_row = float(np.dot(self._tasks.shares, self.lengths))
        self.rows_per_epoch = documents.tokens / per_row
        self.tokens_per_row = float(np.mean([self._used(self._example(row)) for row in range(32)]))

    def fill(self, arrays: Arrays, at: int, row: int, segments: list[Segment] | None = None) -> tuple[int, int]:
        """Lay row `row` into place `at`; its denoiser is 3 (cut in the middle) or 0 (mixed)."""
        example = self._example(row)
        if self.decoder:
            lay_pair(arrays, at, [example], start=self._special.decoder_start)
        else:
            lay_single(arrays, at, [example])
        return example.denoiser, 0

    def _example(self, row: int) -> Example:
        task, _ = self._tasks.locate(row)
        before = self._tasks.counts(row)
        start = int(before[0]) * self.lengths[0] + int(before[1]) * self.lengths[1]
        ids = self.documents.shard.ids
        pieces = self._stream.cut(start, self.lengths[task])
        tokens = np.concatenate([ids[piece.start : piece.start + piece.length] for piece in pieces])
        rng = generator(self._seed, "denoise", self.documents.name, row)
        return (half_denoising, mix_denoising)[task](tokens, rng, special=self._special)

    def _used(self, example: Example) -> int:
        return len(example.encoder) + len(example.labels) - (0 if self.decoder else 1)
