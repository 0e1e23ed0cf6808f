"""The causal objective: predict the next token, inside each document of the row, with prompts weighted as asked.

Prefix LM is the same with the beginning of every document read both ways and not learned.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from penjing.config import generator
from penjing.objectives.example import NO_LOSS
from penjing.objectives.packing import ConcatRows, PackedRows, Piece

Arrays = dict[str, NDArray]


def allocate(rows: int, width: int) -> Arrays:
    """Empty decoder-only rows: padding everywhere, no loss anywhere."""
    return {
        "tokens_BS": np.zeros((rows, width), np.int64), "targets_BS": np.full((rows, width), NO_LOSS, np.int64),
        "weights_BS": np.zeros((rows, width), np.float32), "segments_BS": np.zeros((rows, width), np.int32),
        "positions_BS": np.zeros((rows, width), np.int32),
    }


def fill_row(arrays: Arrays, at: int, pieces: Sequence[Piece], ids: NDArray[np.integer], *, isolate: bool = True,
             reset_positions: bool = True, prompt_loss_weight: float = 1.0) -> None:
    """Lay `pieces` of the shard's `ids` into row `at`.

    Isolated, the last token of a document has no target: its successor belongs to another document, and no document
    predicts another one's first token. A piece that was cut has as last target the document's next token, so no loss
    is lost at a cut. Not isolated, the row is one segment and joins are predicted too.
    """
    tokens, targets = arrays["tokens_BS"][at], arrays["targets_BS"][at]
    weights, segments, positions = arrays["weights_BS"][at], arrays["segments_BS"][at], arrays["positions_BS"][at]
    end = 0
    for number, piece in enumerate(pieces, 1):
        begin, end = end, end + piece.length
        tokens[begin:end] = ids[piece.start : piece.start + piece.length]
        learned = piece.length if piece.goes_on else piece.length - 1
        targets[begin : begin + learned] = ids[piece.start + 1 : piece.start + 1 + learned]
        weights[begin : begin + learned] = 1.0
        if piece.prompt and prompt_loss_weight != 1.0:
            # The target of the prompt's last token is the answer's first one.
            masked = min(piece.prompt - 1, learned)
            weights[begin : begin + masked] = prompt_loss_weight
            if prompt_loss_weight == 0.0:
                targets[begin : begin + masked] = NO_LOSS
        segments[begin:end] = number if isolate else 1
        if isolate and reset_positions:
            positions[begin:end] = ramp(piece.length)
        if not isolate and not piece.goes_on and number < len(pieces):
            targets[end - 1] = ids[pieces[number].start]
            weights[end - 1] = 1.0
    if not (isolate and reset_positions):
        positions[:end] = ramp(end)


def ramp(length: int) -> NDArray[np.int32]:
    """0, 1, … below `length`; a view, not to be written to."""
    return _COUNT[:length] if length <= len(_COUNT) else np.arange(length, dtype=np.int32)


_COUNT = np.arange(1 << 16, dtype=np.int32)


class CausalRows:
    """Rows of one source for the causal objective, or for prefix LM when `split` is set."""

    def __init__(self, rows: ConcatRows | PackedRows, *, isolate: bool, reset_positions: bool, prompt_loss_weight: float,
                 split: bool = False, seed: int = 0) -> None:
        self.rows = rows
        self.documents = rows.documents
        self.rows_per_epoch = rows.rows_per_epoch
        self.tokens_per_row = rows.tokens_per_row
        self.truncated_tokens = rows.truncated_tokens
        self._isolate = isolate
        self._reset_positions = reset_positions
        self._prompt_loss_weight = prompt_loss_weight
        self._split = split
        self._seed = seed

    def fill(self, arrays: Arrays, at: int, row: int, segments: Any = None) -> tuple[int, int]:
        """Lay row `row` into place `at`."""
        pieces = self.rows.pieces(row)
        fill_row(arrays, at, pieces, self.documents.shard.ids, isolate=self._isolate, reset_positions=self._reset_positions,
                 prompt_loss_weight=self._prompt_loss_weight)
        if self._split:
            rng = generator(self._seed, "prefix", self.documents.name, row)
            begin = 0
            for piece in pieces:
                # A supervised document splits where its answer begins, any other one anywhere.
                cut = min(piece.prompt, piece.length) or (int(rng.integers(1, piece.length)) if piece.length > 1 else 0)
                if cut:
                    arrays["targets_BS"][at, begin : begin + cut - 1] = NO_LOSS
                    arrays["weights_BS"][at, begin : begin + cut - 1] = 0.0
                    if "prefix_BS" in arrays:
                        arrays["prefix_BS"][at, begin : begin + cut] = True
                begin += piece.length
        return 0, 0
