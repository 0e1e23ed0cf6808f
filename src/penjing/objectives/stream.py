"""The order of training: `Stream.batch(step)` is a pure function of the settings, the tokens and the step.

Nothing is kept between steps, so a run resumes at any step in constant time, on any number of ranks: rank r of n asks for
its slice of the step's rows, and the rows are the same whoever asks. A stage's order depends on the recipe alone.
D-UL2 alone has a state, a small JSON value that the checkpoint keeps: the shares, and from which block on they hold.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from penjing.config import generator
from penjing.errors import ConfigError, InputError, fault
from penjing.objectives import causal, joint
from penjing.objectives.causal import Arrays, CausalRows
from penjing.objectives.example import Batch
from penjing.objectives.glm import GlmRows, GlmSpecial
from penjing.objectives.instruction import InstructionRows
from penjing.objectives.joint import DenoisingRows, Segment, matched_decoder_length
from penjing.objectives.mixture import Mixture, resolve
from penjing.objectives.oul2 import HalfMixRows
from penjing.objectives.packing import ConcatRows, Documents, PackedRows, documents_of
from penjing.objectives.settings import OBJECTIVES, Objective, StreamConfig
from penjing.objectives.shards import verify
from penjing.objectives.special import GLM_NAMES, UNILM_NAMES, Special, find_special, pick
from penjing.objectives.tokens import Tokens, open_tokens
from penjing.objectives.ul2 import DENOISERS, denoise, update_shares
from penjing.objectives.unilm import UnilmRows, UnilmSpecial

__all__ = ["OBJECTIVES", "Objective", "Stream", "StreamConfig", "build_stream"]

State = dict[str, Any]


class Rows(Protocol):
    """The rows of one source, found by number."""

    documents: Documents
    rows_per_epoch: float
    tokens_per_row: float
    """Mean positions per row that are not padding, both sides together."""
    truncated_tokens: int

    def fill(self, arrays: Arrays, at: int, row: int, segments: Any = None) -> tuple[int, int]: ...


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
        """Share of tokens (that are not padding) of each source that the mixture asks for."""
        self.special = self._special() if self._uses_sentinels() else None
        self.decoder_length = self._decoder_length()
        """Positions of the decoder's row; 0 for decoder-only."""
        self.rows = tuple(self._rows_of(documents[name]) for name in self.sources)
        self.mixture = Mixture([shares[name] / rows.tokens_per_row for name, rows in zip(self.sources, self.rows, strict=True)])

        self._validation: dict[tuple[int, int], ConcatRows] = {}

    @property
    def num_rows(self) -> int:
        """Rows in a step, over all ranks."""
        return self.config.batch_rows

    @property
    def tokens_per_step(self) -> int:
        """Positions in a step, padding included, encoder and decoder together."""
        return self.config.batch_rows * (self.config.sequence_length + self.decoder_length)

    def batch(self, step: int, *, rows: slice = slice(None), state: State | None = None) -> Batch:
        """The rows `rows` of step `step` (from 0). InputError when a source runs dry (`max_epochs`)."""
        chosen = range(self.num_rows)[rows]
        arrays = self._allocate(len(chosen))
        source_B, denoiser_B = np.zeros(len(chosen), np.int32), np.zeros(len(chosen), np.int32)
        truncated = 0
        for at, row in enumerate(chosen):
            source, index = self.mixture.locate(step * self.num_rows + row)
            self._check_supply(source, index, step)
            source_B[at] = source
            denoiser_B[at], lost = self.rows[source].fill(arrays, at, index, self._segments(state, source))
            truncated += lost
        self._check_ids(arrays, source_B)
        return Batch(source_B=source_B, denoiser_B=denoiser_B, truncated_tokens=truncated, **arrays)

    def locate(self, step: int, row: int) -> tuple[int, int]:
        """(source, row of that source) behind row `row` of step `step`."""
        return self.mixture.locate(step * self.num_rows + row)

    # ---------------------------------------------------------------------------------------------- D-UL2

    def initial_state(self) -> State | None:
        """What d-ul2 starts from: JSON values for the checkpoint; None for objectives without a state."""
        if self.config.objective != "d-ul2":
            return None
        return {"version": 1, "shares": list(self.config.shares), "since_step": 0,
                "segments": {name: [list(rows.first)] for name, rows in zip(self.sources, self.rows, strict=True)
                             if isinstance(rows, DenoisingRows)}}

    def next_state(self, state: State, *, step: int, losses: Sequence[float]) -> State:
        """The state from step `step` on, after these validation losses of the seven denoisers.

        Blocks of rows that were begun before `step` keep the old shares, so that no token is skipped or read twice.
        """
        shares = update_shares(state["shares"], losses, self.config.reference_losses, rate=self.config.share_rate,
                               floor=self.config.share_floor, clamp=self.config.clamp_losses)
        counts = self.mixture.counts(step * self.num_rows)
        segments = {}
        for source, (name, rows) in enumerate(zip(self.sources, self.rows, strict=True)):
            if isinstance(rows, DenoisingRows):
                held = self._segments(state, source) or [rows.first]
                # Shares are rounded so that a state read back from JSON gives the same blocks.
                found = rows.after(int(counts[source]), held, [round(float(share), 9) for share in shares])
                segments[name] = [list(item) for item in found]
        return {"version": 1, "shares": shares.tolist(), "since_step": step, "segments": segments}

    def denoiser_batch(self, index: int, denoiser: int) -> Batch:
        """Validation batch `index` for denoiser `denoiser` (1 … 7): for every denoiser the same texts, one to a row.

        Texts are `piece_length` tokens, or as long as every denoiser's sample fits. Build the stream over the held-out part.
        """
        assert self.special is not None
        length = self.config.piece_length
        while length > 1 and not self._fits_all(length):
            length -= max(length // 64, 1)
        arrays = self._allocate(self.num_rows)
        source_B = np.zeros(self.num_rows, np.int32)
        for at in range(self.num_rows):
            source, row = self.mixture.locate(index * self.num_rows + at)
            documents = self.rows[source].documents
            if (source, length) not in self._validation:
                self._validation[source, length] = ConcatRows(documents, width=length, seed=self.config.seed)
            pieces = self._validation[source, length].pieces(row)
            tokens = np.concatenate([documents.shard.ids[piece.start : piece.start + piece.length] for piece in pieces])
            rng = generator(self.config.seed, "validation", documents.name, row)
            example = denoise(tokens, rng, denoiser, special=self.special)
            source_B[at] = source
            if self.decoder_length:
                joint.lay_pair(arrays, at, [example], start=self.special.decoder_start)
            else:
                joint.lay_single(arrays, at, [example])
        return Batch(source_B=source_B, denoiser_B=np.full(self.num_rows, denoiser, np.int32),
                     **arrays)  # type: ignore[arg-type]

    # ---------------------------------------------------------------------------------------------- figures

    def describe(self) -> dict[str, Any]:
        """Figures of the stream: per source its documents, tokens, rows per epoch, fill, and share of rows."""
        width = self.config.sequence_length + self.decoder_length
        figures: dict[str, Any] = {}
        for name, rows, share in zip(self.sources, self.rows, self.mixture.shares, strict=True):
            figures[name] = {
                "documents": len(rows.documents.number), "tokens": rows.documents.tokens, "rows_per_epoch": rows.rows_per_epoch,
                "fill": rows.tokens_per_row / width, "token_share": self.shares[name], "row_share": float(share),
                "truncated_tokens": rows.truncated_tokens,
            }
        return figures

    def epochs(self, steps: int) -> dict[str, float]:
        """How often each source has been read after `steps` steps."""
        counts = self.mixture.counts(steps * self.num_rows)
        return {name: float(count / rows.rows_per_epoch)
                for name, count, rows in zip(self.sources, counts, self.rows, strict=True)}

    # ---------------------------------------------------------------------------------------------- how rows are made

    def _rows_of(self, documents: Documents) -> Rows:
        config, width = self.config, self.config.sequence_length
        supervised = documents.prompts is not None
        isolate = not config.cross_document_attention
        if supervised and self.decoder_length:
            assert self.special is not None
            return InstructionRows(documents, encoder=width, decoder=self.decoder_length, special=self.special, seed=config.seed)
        if supervised or config.objective == "causal" or (config.objective == "prefix" and not self.decoder_length):
            packing = config.supervised_packing if supervised else config.packing
            rows: ConcatRows | PackedRows
            if packing == "concat":
                rows = ConcatRows(documents, width=width, seed=config.seed)
            else:
                rows = PackedRows(documents, width=width, seed=config.seed, together=packing == "best-fit",
                                  overlong=config.supervised_overlong if supervised else config.overlong)
            return CausalRows(rows, isolate=isolate, reset_positions=config.reset_positions,
                              prompt_loss_weight=config.prompt_loss_weight, split=config.objective == "prefix", seed=config.seed)
        if config.objective == "glm":
            special = pick(self.tokens[0].special, GLM_NAMES, where=self.tokens[0].path, purpose="GLM's blanks")
            return GlmRows(documents, width=width, special=GlmSpecial(**special), mixture=config.glm_mixture,
                           sentence_ends=self._sentence_ends(), positions=config.glm_positions, isolate=isolate, seed=config.seed)
        if config.objective == "unilm":
            special = pick(self.tokens[0].special, UNILM_NAMES, where=self.tokens[0].path, purpose="UniLM's masks")
            return UnilmRows(documents, width=width, special=UnilmSpecial(**special), vocab_size=self.vocab_size,
                             seed=config.seed)
        assert self.special is not None
        if config.objective == "o-ul2":
            return HalfMixRows(documents, encoder=width, decoder=self.decoder_length, special=self.special,
                               mix_share=config.mix_share, seed=config.seed)
        return DenoisingRows(documents, encoder=width, decoder=self.decoder_length, special=self.special, shares=config.shares,
                             denoisers=config.denoisers or DENOISERS, piece_length=config.piece_length, isolate=isolate,
                             seed=config.seed)

    def _uses_sentinels(self) -> bool:
        config = self.config
        return config.architecture == "encoder-decoder" or config.objective in ("span", "ul2", "d-ul2", "o-ul2")

    def _special(self) -> Special:
        modes = self.config.mode_tokens and self.config.objective != "span"
        return find_special(self.tokens[0].special, eos=self.eos_id, decoder_start=self.config.decoder_start_id, modes=modes,
                            where=self.tokens[0].path)

    def _decoder_length(self) -> int:
        config = self.config
        if config.architecture == "decoder":
            return 0
        if config.decoder_length is not None:
            return config.decoder_length
        if config.objective == "o-ul2":
            return config.sequence_length
        assert self.special is not None
        return matched_decoder_length(config.sequence_length, config.shares, piece_length=config.piece_length,
                                      denoisers=config.denoisers or DENOISERS, prefix=0 if self.special.modes is None else 1,
                                      sentinels=len(self.special.sentinels))

    def _allocate(self, rows: int) -> Arrays:
        config = self.config
        if self.decoder_length:
            return joint.allocate_pair(rows, config.sequence_length, self.decoder_length)
        shape = (rows, config.sequence_length)
        arrays = causal.allocate(*shape)
        if config.objective in ("span", "ul2", "d-ul2", "o-ul2"):
            arrays["denoisers_BS"] = np.zeros(shape, np.int8)
        both_ways = config.bidirectional_prefix
        if both_ways is None:
            both_ways = config.objective == "prefix"
        if both_ways or config.objective in ("glm", "unilm"):
            arrays["prefix_BS"] = np.zeros(shape, bool)
        if config.objective == "glm":
            arrays["block_positions_BS"] = np.zeros(shape, np.int32)
        if config.objective == "unilm":
            arrays["reversed_B"] = np.zeros(rows, bool)
        return arrays

    def _sentence_ends(self) -> NDArray[np.bool_] | None:
        listed = self.tokens[0].manifest.get("sentence_ends")
        if listed is None:
            return None
        ends = np.zeros(1 << 16 if self.tokens[0].manifest["dtype"] == "uint16" else self.vocab_size, bool)
        ends[np.asarray(listed, np.int64)] = True
        return ends

    def _segments(self, state: State | None, source: int) -> list[Segment] | None:
        held = (state or {}).get("segments", {}).get(self.sources[source])
        return None if held is None else [Segment(int(item[0]), int(item[1]), tuple(item[2])) for item in held]

    def _fits_all(self, length: int) -> bool:
        from penjing.objectives import kernels

        assert self.special is not None
        prefix = 0 if self.special.modes is None else 1
        for task in DENOISERS:
            tails = (1, max(round(task.density * length), 1)) if not task.mean_span else (0,)
            for tail in tails:
                encoder, labels = kernels.sample_sizes(length, tail, task.density, task.mean_span, prefix,
                                                       len(self.special.sentinels))
                if self.decoder_length and (encoder > self.config.sequence_length or labels > self.decoder_length):
                    return False
                if not self.decoder_length and encoder + labels - 1 > self.config.sequence_length:
                    return False
        return True

    def _check_ids(self, arrays: Arrays, source_B: NDArray[np.int32]) -> None:
        """InputError with file and offset when a row holds an id that the vocabulary does not have."""
        sides = [arrays[name] for name in ("tokens_BS", "encoder_tokens_BE", "targets_BD") if name in arrays]
        if all(int(side.max(initial=0)) < self.vocab_size for side in sides):
            return
        for source in np.unique(source_B).tolist():
            verify(self.rows[source].documents.shard.prefix, vocab_size=self.vocab_size)
        raise InputError(fault("a special token's id is beyond the vocabulary", where=self.tokens[0].path,
                               expected=f"ids below {self.vocab_size}", fix="make the tokens again with this tokenizer"))

    def _check_supply(self, source: int, index: int, step: int) -> None:
        limit = self.config.max_epochs
        rows = self.rows[source]
        if limit is not None and index + 1 > limit * rows.rows_per_epoch:
            raise InputError(fault(
                f"source '{self.sources[source]}' runs dry at step {step}", where=rows.documents.shard.prefix,
                found=f"{rows.documents.tokens} tokens", expected=f"at most {limit:g} epochs (max_epochs)",
                fix="lower its weight, train fewer tokens, or raise max_epochs"))


def build_stream(config: StreamConfig, tokens: Path | Sequence[Path]) -> Stream:
    """The stream of a stage over one or several TOKENS directories, which must be of the same tokenizer.

    ConfigError for weights that name no source or sum to zero; InputError for tokens that do not fit together, or a tokenizer
    without the special tokens that the objective needs.
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
                                    held_out=config.part == "held-out",
                                    supervised=places[name].sources[name]["kind"] == "supervised") for name in shares}
    return Stream(config, documents, shares=shares, tokens=opened)
