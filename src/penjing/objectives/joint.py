"""Denoiser samples laid into rows without waste: encoder and decoder together, or input and target behind each other.

A source's documents, shuffled and end to end, are one endless stream. Block b of `BLOCK_ROWS` rows takes the tokens
[b*C, (b+1)*C) of it, so any block is found in constant time; inside the block the plan (which piece goes to which row, for
which denoiser, how long) is made by `kernels.plan_block`, which fills both sides at once because it may choose the
lengths of the pieces. C is what fits for sure: measured on blocks of the source itself, less a small margin.

When D-UL2 moves the shares, C moves too. The blocks from then on start where the old ones end; that is all the state there is:
(first block, first token, shares) of the last changes.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from penjing.config import generator
from penjing.errors import InputError, fault
from penjing.objectives.causal import ramp
from penjing.objectives.example import NO_LOSS
from penjing.objectives.packing import ConcatRows, Documents, Piece
from penjing.objectives.span import Example
from penjing.objectives.special import Special
from penjing.objectives.ul2 import DENOISERS, Denoiser, denoise_as

BLOCK_ROWS = 64
"""Rows that are planned together."""
SHORTEST = 8
"""Pieces are not cut shorter than this, in tokens."""
MARGIN = 0.003
"""Share of a block left free, on top of the fullest of the measured blocks, so that the tokens always fit."""
_PROBES = 8

Arrays = dict[str, NDArray]


class Segment(NamedTuple):
    """From `block` on, which starts at token `token` of the stream, the denoisers have these shares."""

    block: int
    token: int
    shares: tuple[float, ...]


@dataclass(frozen=True)
class Sample:
    """A planned sample of a row: where its tokens start in the stream, how many, for which denoiser."""

    start: int
    length: int
    denoiser: int
    tail: int


@dataclass(frozen=True)
class Block:
    """A planned block: samples of row r are samples[edges[r] : edges[r + 1]]."""

    samples: list[Sample]
    edges: list[int]
    pieces: list[Piece]
    starts: list[int]
    truncated: int


def allocate_pair(rows: int, encoder: int, decoder: int) -> Arrays:
    """Empty encoder-decoder rows."""
    return {
        "encoder_tokens_BE": np.zeros((rows, encoder), np.int64), "encoder_segments_BE": np.zeros((rows, encoder), np.int32),
        "encoder_positions_BE": np.zeros((rows, encoder), np.int32),
        "decoder_tokens_BD": np.zeros((rows, decoder), np.int64), "decoder_segments_BD": np.zeros((rows, decoder), np.int32),
        "decoder_positions_BD": np.zeros((rows, decoder), np.int32),
        "targets_BD": np.full((rows, decoder), NO_LOSS, np.int64), "weights_BD": np.zeros((rows, decoder), np.float32),
        "denoisers_BD": np.zeros((rows, decoder), np.int8),
    }


def lay_pair(arrays: Arrays, at: int, examples: Sequence[Example], *, start: int) -> None:
    """Put samples beside each other into an encoder-decoder row; sample number n is segment n on both sides."""
    end_e = end_d = 0
    for number, example in enumerate(examples, 1):
        begin_e, begin_d = end_e, end_d
        end_e, end_d = end_e + len(example.encoder), end_d + len(example.labels)
        arrays["encoder_tokens_BE"][at, begin_e:end_e] = example.encoder
        arrays["encoder_segments_BE"][at, begin_e:end_e] = number
        arrays["encoder_positions_BE"][at, begin_e:end_e] = ramp(end_e - begin_e)
        arrays["decoder_tokens_BD"][at, begin_d] = start
        arrays["decoder_tokens_BD"][at, begin_d + 1 : end_d] = example.labels[:-1]
        arrays["decoder_segments_BD"][at, begin_d:end_d] = number
        arrays["decoder_positions_BD"][at, begin_d:end_d] = ramp(end_d - begin_d)
        arrays["targets_BD"][at, begin_d:end_d] = example.labels
        arrays["weights_BD"][at, begin_d:end_d] = 1.0
        arrays["denoisers_BD"][at, begin_d:end_d] = example.denoiser


def lay_single(arrays: Arrays, at: int, examples: Sequence[Example]) -> None:
    """Put samples into a decoder-only row: input, then labels; only the labels are learned."""
    end = 0
    for number, example in enumerate(examples, 1):
        whole = np.concatenate((example.encoder, example.labels))
        begin, end = end, end + len(whole) - 1
        seen = begin + len(example.encoder)
        arrays["tokens_BS"][at, begin:end] = whole[:-1]
        arrays["targets_BS"][at, seen - 1 : end] = example.labels
        arrays["weights_BS"][at, seen - 1 : end] = 1.0
        arrays["segments_BS"][at, begin:end] = number
        arrays["positions_BS"][at, begin:end] = ramp(end - begin)
        arrays["denoisers_BS"][at, seen - 1 : end] = example.denoiser
        if "prefix_BS" in arrays:
            arrays["prefix_BS"][at, begin:seen] = True


class DenoisingRows:
    """Rows of denoiser samples from one source. `decoder` 0: decoder-only rows of `encoder` positions."""

    truncated_tokens = 0

    def __init__(self, documents: Documents, *, encoder: int, decoder: int, special: Special, shares: Sequence[float],
                 denoisers: Sequence[Denoiser] = DENOISERS, piece_length: int, isolate: bool, seed: int) -> None:
        self.documents = documents
        self.encoder, self.decoder = encoder, decoder
        self._special = special
        self._denoisers = tuple(denoisers)
        self._piece_length = piece_length
        self._isolate = isolate
        self._seed = seed
        self._stream = ConcatRows(documents, width=1, seed=seed)
        self._blocks: OrderedDict[tuple[int, int, tuple[float, ...]], Block] = OrderedDict()
        self._budgets: dict[tuple[float, ...], tuple[int, float]] = {}
        self.first = Segment(0, 0, tuple(float(share) for share in shares))
        tokens, self.tokens_per_row = self._budget(self.first.shares)
        self.rows_per_epoch = documents.tokens / tokens * BLOCK_ROWS

    def fill(self, arrays: Arrays, at: int, row: int, segments: Sequence[Segment] | None = None) -> tuple[int, int]:
        """Lay row `row` into place `at`; (denoiser of the row or -1, tokens of the block that did not fit)."""
        examples, lost = self.examples(row, segments)
        if self.decoder:
            lay_pair(arrays, at, examples, start=self._special.decoder_start)
        else:
            lay_single(arrays, at, examples)
        kinds = {example.denoiser for example in examples}
        return kinds.pop() if len(kinds) == 1 else -1, lost

    def examples(self, row: int, segments: Sequence[Segment] | None = None) -> tuple[list[Example], int]:
        """The samples of a row, in order, and the tokens lost at the end of its block (0 but for strange corpora)."""
        number, inside = divmod(row, BLOCK_ROWS)
        segment = self._segment(number, segments or (self.first,))
        block = self._block(number, segment)
        rng = generator(self._seed, "denoise", self.documents.name, number, inside)
        chosen = block.samples[block.edges[inside] : block.edges[inside + 1]]
        found = [denoise_as(self._denoisers[sample.denoiser], self._tokens(block, sample), rng, special=self._special,
                            tail=sample.tail, number=sample.denoiser + 1) for sample in chosen]
        return found, block.truncated if inside == BLOCK_ROWS - 1 else 0

    def pieces(self, row: int, segments: Sequence[Segment] | None = None) -> list[Sample]:
        """The planned samples of a row: positions in the stream, lengths, denoisers (from 0)."""
        number, inside = divmod(row, BLOCK_ROWS)
        block = self._block(number, self._segment(number, segments or (self.first,)))
        return block.samples[block.edges[inside] : block.edges[inside + 1]]

    def after(self, rows: int, segments: Sequence[Segment], shares: Sequence[float]) -> list[Segment]:
        """The segments once the shares change behind the first `rows` rows: blocks already begun keep the old
        shares."""
        block = -(-rows // BLOCK_ROWS)
        last = self._segment(block, segments)
        token = last.token + (block - last.block) * self._budget(last.shares)[0]
        kept = [item for item in segments if item.block < block]
        needed = rows // BLOCK_ROWS
        while len(kept) > 1 and kept[1].block <= needed:
            kept.pop(0)
        return [*kept, Segment(block, token, tuple(float(share) for share in shares))]

    def _segment(self, block: int, segments: Sequence[Segment]) -> Segment:
        found = [item for item in segments if item.block <= block]
        if not found:
            raise InputError(fault("the stream's state is later than the step that was asked for",
                                   found=f"state from block {segments[0].block}", expected=f"block {block}",
                                   fix="use the state of the checkpoint you resume from"))
        return found[-1]

    def _tokens(self, block: Block, sample: Sample) -> NDArray[np.integer]:
        ids = self.documents.shard.ids
        parts = []
        place = bisect_right(block.starts, sample.start) - 1
        start, left = sample.start, sample.length
        while left:
            piece = block.pieces[place]
            skipped = start - block.starts[place]
            count = min(left, piece.length - skipped)
            parts.append(ids[piece.start + skipped : piece.start + skipped + count])
            start, left, place = start + count, left - count, place + 1
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _block(self, number: int, segment: Segment) -> Block:
        key = (number, segment.token, segment.shares)
        if key in self._blocks:
            self._blocks.move_to_end(key)
            return self._blocks[key]
        budget = self._budget(segment.shares)[0]
        position = segment.token + (number - segment.block) * budget
        pieces = self._stream.cut(position, budget)
        seed = int(generator(self._seed, "plan", self.documents.name, number).integers(1 << 62))
        plan, laid = self._plan(pieces, segment.shares, seed=seed, scale=1.0, isolate=self._isolate)
        if laid < budget:
            # The block is unlike the measured ones (many tiny documents): longer pieces, then pieces across documents.
            for scale, isolate in ((2.0, self._isolate), (4.0, self._isolate), (4.0, False)):
                plan, laid = self._plan(pieces, segment.shares, seed=seed, scale=scale, isolate=isolate)
                if laid == budget:
                    break
        samples = [Sample(start, length, kind, tail) for _, start, length, kind, tail in plan.tolist()]
        edges = np.searchsorted(plan[:, 0], np.arange(BLOCK_ROWS + 1)).tolist()
        starts = np.concatenate(([0], np.cumsum([piece.length for piece in pieces])[:-1])).tolist()
        block = Block(samples, edges, pieces, starts, budget - laid)
        self._blocks[key] = block
        while len(self._blocks) > 4:
            self._blocks.popitem(last=False)
        return block

    def _plan(self, pieces: Sequence[Piece], shares: Sequence[float], *, seed: int, scale: float,
              isolate: bool) -> tuple[NDArray[np.int64], int]:
        from penjing.objectives import kernels

        runs = np.array([piece.length for piece in pieces], np.int64)
        if not isolate:
            runs = runs.sum(keepdims=True)
        density = np.array([item.density for item in self._denoisers])
        mean_span = np.array([item.mean_span for item in self._denoisers], np.int64)
        prefix = 0 if self._special.modes is None else 1
        plan, laid = kernels.plan_block(
            runs, np.asarray(shares, np.float64), density, mean_span, self.encoder, self.decoder, BLOCK_ROWS,
            max(int(self._piece_length * scale), SHORTEST), SHORTEST, prefix, len(self._special.sentinels), seed)
        return plan, int(laid)

    def _budget(self, shares: tuple[float, ...]) -> tuple[int, float]:
        """(tokens that a block takes, mean ids per row that are not padding) at these shares."""
        if shares not in self._budgets:
            room = BLOCK_ROWS * (self.encoder + self.decoder)
            laid, used = [], 0
            for probe in range(_PROBES):
                pieces = self._stream.cut(self.documents.tokens * probe // _PROBES, room)
                plan, tokens = self._plan(pieces, shares, seed=probe, scale=1.0, isolate=self._isolate)
                laid.append(tokens)
                used += self._ids(plan)
            budget = int(min(laid) * (1 - MARGIN))
            if budget < BLOCK_ROWS:
                raise InputError(fault("rows are too short for denoiser samples", found=f"{self.encoder} encoder and "
                                       f"{self.decoder} decoder positions", expected="at least 16 each",
                                       fix="choose longer rows"))
            self._budgets[shares] = (budget, used / _PROBES / BLOCK_ROWS * budget / float(np.mean(laid)))
        return self._budgets[shares]

    def _ids(self, plan: NDArray[np.int64]) -> int:
        from penjing.objectives import kernels

        density = np.array([item.density for item in self._denoisers])
        mean_span = np.array([item.mean_span for item in self._denoisers], np.int64)
        prefix = 0 if self._special.modes is None else 1
        ids = kernels.plan_ids(plan, density, mean_span, prefix, len(self._special.sentinels))
        return int(ids.sum()) - (0 if self.decoder else len(plan))


def matched_decoder_length(encoder: int, shares: Sequence[float], *, piece_length: int,
                           denoisers: Sequence[Denoiser] = DENOISERS, prefix: int = 1, sentinels: int = 100) -> int:
    """The decoder length at which rows of this mixture of denoisers are fullest, a multiple of 8.

    The lengths around the ratio of the mixture's two sides are tried on texts as long as web documents are.
    """
    side_e = side_d = 0.0
    for share, task in zip(shares, denoisers, strict=True):
        if task.mean_span:
            spans = task.density / task.mean_span
            side_e += share * (1 - task.density + spans + (prefix + 1) / piece_length)
            side_d += share * (task.density + spans + 1 / piece_length)
        else:
            side_e += share * (1 - task.density / 2 + (prefix + 2) / piece_length)
            side_d += share * (task.density / 2 + 2 / piece_length)
    tried = sorted({max(8 * round(encoder * side_d / side_e * factor / 8), 16) for factor in np.arange(0.9, 1.31, 0.02)})
    return max(tried, key=lambda decoder: _fill(encoder, decoder, shares, piece_length, denoisers, prefix, sentinels))


def _fill(encoder: int, decoder: int, shares: Sequence[float], piece_length: int, denoisers: Sequence[Denoiser], prefix: int,
          sentinels: int) -> float:
    from penjing.objectives import kernels

    density = np.array([item.density for item in denoisers])
    mean_span = np.array([item.mean_span for item in denoisers], np.int64)
    used, probes = 0, 6
    for seed in range(probes):
        count = BLOCK_ROWS * (encoder + decoder) // 100
        runs = generator(0, "web documents", seed).lognormal(5.7, 1.0, count).astype(np.int64) + 1
        plan, _ = kernels.plan_block(runs, np.asarray(shares, np.float64), density, mean_span, encoder, decoder,
                                     BLOCK_ROWS, piece_length, SHORTEST, prefix, sentinels, seed)
        used += int(kernels.plan_ids(plan, density, mean_span, prefix, sentinels).sum())
    return used / (probes * BLOCK_ROWS * (encoder + decoder))
