"""The order of training: `Stream.batch(step)` is a pure function of the settings, the tokens and the step.

Nothing is kept between steps, so a run resumes at any step in constant time, on any number of ranks: rank r of n asks
for its slice of the step's rows, and the rows are the same whoever asks. A stage's order depends on the recipe alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from penjing.config import Config
from penjing.errors import ConfigError, InputError, fault
from penjing.objectives import causal
from penjing.objectives.example import Batch
from penjing.objectives.mixture import Mixture, resolve
from penjing.objectives.packing import ConcatRows, Documents, Overlong, PackedRows, documents_of
from penjing.objectives.tokens import Tokens, open_tokens

OBJECTIVES = {
    "causal": "predict the next token; for decoder-only models",
}
"""Every objective by name, and what it is."""


class StreamConfig(Config):
    """How tokens become training steps."""

    objective: Literal["causal"] = "causal"
    """What is predicted; see `penjing list objectives`."""
    sequence_length: int = Field(1024, ge=2)
    """Positions in a row of a decoder-only model, in tokens."""
    batch_rows: int = Field(8, ge=1)
    """Rows in a step, over all ranks and accumulation steps."""
    sources: dict[str, float] = Field(default_factory=dict)
    """Weight of each source, in tokens; names or patterns (`wanjuan.*`). Empty: every source by its size."""
    packing: Literal["concat", "best-fit", "padded"] = "concat"
    """How text documents share rows: cut from one stream, laid whole by best fit, or one to a row (wasteful)."""
    supervised_packing: Literal["concat", "best-fit", "padded"] = "best-fit"
    """The same for sources of prompts and answers."""
    overlong: Overlong = "split"
    """What best fit does with a text document longer than a row: split it, truncate it, or drop it."""
    supervised_overlong: Overlong = "truncate"
    """The same for prompt and answer; truncating takes the prompt's beginning first."""
    cross_document_attention: bool = False
    """True: documents in a row see the ones before them (in-context examples). False: they are isolated."""
    reset_positions: bool = True
    """Positions start at 0 in every isolated document; with visible neighbours they run over the row."""
    prompt_loss_weight: float = Field(1.0, ge=0)
    """Weight of a prompt's tokens in the loss; 0 trains on answers only."""
    held_out_percent: float = Field(0.0, ge=0, le=50)
    """Share of each source's documents kept out of training, the same ones in every stage."""
    part: Literal["train", "held-out"] = "train"
    """Which documents the stream is made of."""
    max_epochs: float | None = Field(None, gt=0)
    """Stop with an error when a source would be read more often than this; None repeats sources for ever."""
    seed: int = 0
    """Seed of every random choice; the recipe fills it."""


Rows = ConcatRows | PackedRows


class Stream:
    """Training steps over the sources of a stage. Made by `build_stream`."""

    def __init__(self, config: StreamConfig, documents: Mapping[str, Documents], *, shares: Mapping[str, float],
                 tokens: Sequence[Tokens]) -> None:
        self.config = config
        self.tokens = tuple(tokens)
        self.vocab_size = tokens[0].vocab_size
        self.eos_id = tokens[0].eos_id
        self.sources = tuple(shares)
        """Names of the sources, in the order of `Batch.source_B`."""
        self.shares = dict(shares)
        """Share of tokens of each source that the mixture asks for."""
        self._documents = [documents[name] for name in self.sources]
        self._rows = [self._rows_of(item) for item in self._documents]
        self._mixture = Mixture([shares[name] / rows.tokens_per_row
                                 for name, rows in zip(self.sources, self._rows, strict=True)])

    @property
    def num_rows(self) -> int:
        """Rows in a step, over all ranks."""
        return self.config.batch_rows

    @property
    def tokens_per_step(self) -> int:
        """Positions in a step, padding included."""
        return self.config.batch_rows * self.config.sequence_length

    def batch(self, step: int, *, rows: slice = slice(None), state: Mapping[str, Any] | None = None) -> Batch:
        """The rows `rows` of step `step` (from 0). InputError when a source runs dry (`max_epochs`)."""
        chosen = range(self.num_rows)[rows]
        arrays = causal.allocate(len(chosen), self.config.sequence_length)
        source_B = np.zeros(len(chosen), np.int32)
        for at, row in enumerate(chosen):
            source, index = self._mixture.locate(step * self.num_rows + row)
            self._check_supply(source, index, step)
            source_B[at] = source
            documents = self._documents[source]
            causal.fill_row(arrays, at, self._rows[source].pieces(index), documents.shard.ids,
                            isolate=not self.config.cross_document_attention,
                            reset_positions=self.config.reset_positions,
                            prompt_loss_weight=self.config.prompt_loss_weight)
        return Batch(source_B=source_B, denoiser_B=np.zeros(len(chosen), np.int32), **arrays)  # type: ignore[arg-type]

    def describe(self) -> dict[str, Any]:
        """Figures of the stream: per source its documents, tokens, rows per epoch, fill, and share of rows."""
        figures: dict[str, Any] = {}
        for name, documents, rows, share in zip(self.sources, self._documents, self._rows, self._mixture.shares,
                                                strict=True):
            figures[name] = {
                "documents": len(documents.number), "tokens": documents.tokens, "rows_per_epoch": rows.rows_per_epoch,
                "fill": rows.tokens_per_row / self.config.sequence_length, "token_share": self.shares[name],
                "row_share": float(share), "truncated_tokens": rows.truncated_tokens,
            }
        return figures

    def epochs(self, steps: int) -> dict[str, float]:
        """How often each source has been read after `steps` steps."""
        counts = self._mixture.counts(steps * self.num_rows)
        return {name: float(count / rows.rows_per_epoch)
                for name, count, rows in zip(self.sources, counts, self._rows, strict=True)}

    def _rows_of(self, documents: Documents) -> Rows:
        config = self.config
        supervised = documents.prompts is not None
        packing = config.supervised_packing if supervised else config.packing
        if packing == "concat":
            return ConcatRows(documents, width=config.sequence_length, seed=config.seed)
        return PackedRows(documents, width=config.sequence_length, seed=config.seed, together=packing == "best-fit",
                          overlong=config.supervised_overlong if supervised else config.overlong)

    def _check_supply(self, source: int, index: int, step: int) -> None:
        limit = self.config.max_epochs
        if limit is not None and index + 1 > limit * self._rows[source].rows_per_epoch:
            raise InputError(fault(
                f"source '{self.sources[source]}' runs dry at step {step}", where=self._documents[source].shard.prefix,
                found=f"{self._documents[source].tokens} tokens", expected=f"at most {limit:g} epochs (max_epochs)",
                fix="lower its weight, train fewer tokens, or raise max_epochs"))


def build_stream(config: StreamConfig, tokens: Path | Sequence[Path]) -> Stream:
    """The stream of a stage over one or several TOKENS directories, which must be of the same tokenizer.

    ConfigError for weights that name no source or sum to zero; InputError for tokens that do not fit together.
    """
    opened = [open_tokens(path) for path in ([tokens] if isinstance(tokens, Path) else tokens)]
    if not opened:
        raise ConfigError(fault("no tokens to train on", expected="at least one tokens directory"))
    for other in opened[1:]:
        if other.vocab_size != opened[0].vocab_size or other.manifest["dtype"] != opened[0].manifest["dtype"]:
            raise InputError(fault("tokens of different vocabularies cannot be mixed", where=other.path,
                                   found=f"{other.vocab_size} ids",
                                   expected=f"{opened[0].vocab_size} ids as in {opened[0].path}"))
    places: dict[str, Tokens] = {}
    for item in opened:
        for name in item.sources:
            if name in places:
                raise InputError(fault(f"source '{name}' is in two tokens directories", where=item.path,
                                       found=f"also in {places[name].path}", fix="rename it when tokenising"))
            places[name] = item
    sizes = {name: int(item.sources[name]["tokens"]) for name, item in places.items()}
    shares = resolve(config.sources, sizes)
    documents = {name: documents_of(name, places[name].shard(name), held_out_percent=config.held_out_percent,
                                    held_out=config.part == "held-out") for name in shares}
    return Stream(config, documents, shares=shares, tokens=opened)
