"""Instruction samples for encoder-decoder models: the prompt is read, the answer is written, several to a row.

Source: OpenBA's "flan" samples. Differs from the released code, whose decoder input is one id longer than its labels, so that
a position without a label enters the loss: here input and labels have the same length and every label is real.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from penjing.config import generator
from penjing.errors import InputError, fault
from penjing.objectives.joint import Arrays, Segment, lay_pair
from penjing.objectives.packing import Documents, Packing, Recent
from penjing.objectives.span import Example, Ids
from penjing.objectives.special import Special


def instruction(prompt: Ids, answer: Ids, *, special: Special, encoder_length: int, decoder_length: int) -> Example:
    """encoder = `<S>` prompt `<extra_id_0>` eos, labels = `<extra_id_0>` answer; `answer` ends in eos.

    What is longer than its side is cut at its end, as OpenBA does: prompts to E-3 ids (E-2 without a mode token), answers to
    D-1.
    """
    prefix, first = special.prefix("S"), special.sentinels[0]
    kept = prompt[: encoder_length - len(prefix) - 2]
    encoder = np.concatenate((prefix, kept, [first, special.eos])).astype(np.int64)
    labels = np.concatenate(([first], answer[: decoder_length - 1])).astype(np.int64)
    return Example(encoder, labels)


def vector_fit(encoder: NDArray[np.integer], decoder: NDArray[np.integer], room_e: int, room_d: int, *,
               rng: np.random.Generator | None = None, pool: int = 1024) -> Packing:
    """Two-sided packing: each row takes, among the next `pool` items, what fits its remaining room best on both sides.

    Of three ideas of "best" the one that needs the fewest rows for these items is used. Every item must fit a row by itself.
    """
    from penjing.objectives import kernels

    order = np.arange(len(encoder)) if rng is None else rng.permutation(len(encoder))
    sizes = np.asarray(encoder, np.int32), np.asarray(decoder, np.int32)
    tries = (kernels.vector_fit(*sizes, order, room_e, room_d, pool, balance) for balance in (0.0, 0.5, 1.0))
    items, edges = min(tries, key=lambda found: len(found[1]))
    used = int(np.sum(encoder, dtype=np.int64) + np.sum(decoder, dtype=np.int64))
    rows = len(edges) - 1
    return Packing(items, edges, used / (rows * (room_e + room_d)) if rows else 1.0)


class InstructionRows:
    """Encoder-decoder rows of whole instruction samples of one source."""

    def __init__(self, documents: Documents, *, encoder: int, decoder: int, special: Special, seed: int) -> None:
        if documents.prompts is None:
            raise InputError(fault(f"source '{documents.name}' has no prompts", expected="prompt and answer documents"))
        self.documents = documents
        self.encoder, self.decoder = encoder, decoder
        self._special = special
        self._seed = seed
        extra = len(special.prefix("S")) + 2
        answers = documents.lengths - documents.prompts
        self._size_e = np.minimum(documents.prompts + extra, encoder)
        self._size_d = np.minimum(answers + 1, decoder)
        self.truncated_tokens = int((documents.prompts + extra - self._size_e + answers + 1 - self._size_d).sum(dtype=np.int64))
        self._plan = Recent(self._pack)
        packing, _ = self._plan(0)
        self._per_epoch = len(packing)
        self.rows_per_epoch = float(self._per_epoch)
        self.tokens_per_row = packing.fill * (encoder + decoder)

    def examples(self, row: int) -> list[Example]:
        """The samples of a row, in order."""
        epoch, inside = divmod(row, self._per_epoch)
        packing, order = self._plan(epoch)
        place = int(order[inside])
        found = []
        ids = self.documents.shard.ids
        assert self.documents.prompts is not None
        for item in packing.items[packing.edges[place] : packing.edges[place + 1]]:
            start, length = int(self.documents.starts[item]), int(self.documents.lengths[item])
            prompt = int(self.documents.prompts[item])
            found.append(instruction(ids[start : start + prompt], ids[start + prompt : start + length], special=self._special,
                                     encoder_length=self.encoder, decoder_length=self.decoder))
        return found

    def fill(self, arrays: Arrays, at: int, row: int, segments: list[Segment] | None = None) -> tuple[int, int]:
        """Lay row `row` into place `at`."""
        lay_pair(arrays, at, self.examples(row), start=self._special.decoder_start)
        return 0, 0

    def _pack(self, epoch: int) -> tuple[Packing, NDArray[np.int64]]:
        rng = generator(self._seed, "packing", self.documents.name, epoch)
        # Another order would give another number of rows, so every epoch has the rows of epoch 0, shuffled.
        packing = vector_fit(self._size_e, self._size_d, self.encoder, self.decoder,
                             rng=generator(self._seed, "packing", self.documents.name, 0))
        return packing, rng.permutation(len(packing))
