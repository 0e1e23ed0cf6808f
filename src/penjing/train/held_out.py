"""Bits per byte on tokens that are not trained on: the one figure that compares models with different vocabularies.

The loss of every token of the sources is summed, in nats, and divided by ln 2 and by the bytes of the text they were made of.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from penjing.errors import InputError, fault
from penjing.objectives import causal
from penjing.objectives.example import Batch
from penjing.objectives.packing import PackedRows, documents_of
from penjing.objectives.tokens import open_tokens
from penjing.train.feed import Part, split
from penjing.train.metrics import Tally
from penjing.train.model import Objective


@dataclass(frozen=True)
class HeldOut:
    """Rows that hold every token of the held-out sources once, and the bytes of each source's text."""

    rows: dict[str, PackedRows]
    bytes_per_label: dict[str, float]
    """Bytes of text per predicted token, by source. The first token of a document is not predicted."""
    width: int

    @property
    def sources(self) -> tuple[str, ...]:
        """Names of the sources, in the order of `Part.sources_B`."""
        return tuple(self.rows)

    def parts(self, source: str) -> Iterator[Part]:
        """All rows of one source, about 16k positions at a time."""
        rows, number = self.rows[source], self.sources.index(source)
        count, size = int(rows.rows_per_epoch), max(1, 16384 // self.width)
        for start in range(0, count, size):
            chosen = range(start, min(start + size, count))
            arrays = causal.allocate(len(chosen), self.width)
            for at, row in enumerate(chosen):
                causal.fill_row(arrays, at, rows.pieces(row), rows.documents.shard.ids)
            batch = Batch(np.full(len(chosen), number, np.int32), np.zeros(len(chosen), np.int32))
            yield split(replace(batch, **arrays), slice(None))  # type: ignore[arg-type]


def open_held_out(tokens: Path, *, sequence_length: int, vocab_size: int) -> HeldOut:
    """The held-out tokens in rows of whole documents; InputError when they are of another vocabulary."""
    opened = open_tokens(tokens)
    if opened.vocab_size > vocab_size:
        raise InputError(fault("held-out tokens are of another vocabulary", where=tokens, found=f"{opened.vocab_size} ids",
                               expected=f"at most the model's {vocab_size}"))
    rows, measure = {}, {}
    for name, facts in opened.sources.items():
        documents = documents_of(name, opened.shard(name))
        rows[name] = PackedRows(documents, width=sequence_length, seed=0, overlong="split")
        if facts.get("bytes"):
            measure[name] = int(facts["bytes"]) / max(1, documents.tokens - len(documents.number))
    return HeldOut(rows, measure, sequence_length)


def bits_per_byte(objective: nn.Module, held_out: HeldOut, *, device: torch.device,
                  tokens: int | None = None) -> dict[str, float]:
    """Bits per byte of each source (bits per token where its bytes are not known). `tokens`: at most about so many a source."""
    tally = Tally(len(held_out.sources))
    with _measuring(objective):
        for number, name in enumerate(held_out.sources):
            for made in held_out.parts(name):
                part = made.to(device)
                tally.add(part, objective(part).nll_T)
                if tokens is not None and tally.sources[number, 1] >= tokens:
                    break
    return {name: loss / math.log(2) / held_out.bytes_per_label.get(name, 1.0)
            for name, loss in tally.by_source(held_out.sources).items()}


def denoiser_losses(objective: nn.Module, stream: Any, *, batches: int, device: torch.device) -> list[float]:
    """Mean loss of each of UL2's seven denoisers over the same texts of a held-out stream."""
    found = []
    with _measuring(objective):
        for denoiser in range(1, 8):
            tally = Tally(len(stream.sources))
            for index in range(batches):
                part = split(stream.denoiser_batch(index, denoiser), slice(None)).to(device)
                tally.add(part, objective(part).nll_T)
            found.append(tally.loss)
    return found


@contextmanager
def _measuring(objective: nn.Module) -> Iterator[None]:
    """Without gradients, dropout and teachers, whether `objective` is one or a pipeline of several."""
    was_training = objective.training
    ours = [module for module in objective.modules() if isinstance(module, Objective)]
    teachers = [one._teacher for one in ours]
    objective.eval()
    for one in ours:
        one._teacher = (None,)
    try:
        with torch.no_grad():
            yield
    finally:
        for one, teacher in zip(ours, teachers, strict=True):
            one._teacher = teacher
        objective.train(was_training)
