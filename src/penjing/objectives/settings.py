"""The settings of a stream: how tokens become training steps."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from penjing.config import Config
from penjing.errors import fault
from penjing.objectives.packing import Overlong
from penjing.objectives.ul2 import DUL2_REFERENCE, DUL2_START, UNIFORM, Denoiser

OBJECTIVES = {
    "causal": "predict the next token; decoder-only",
    "prefix": "prefix LM: the beginning is read both ways, the rest is predicted; both architectures",
    "span": "T5 span corruption, one density and mean span; both architectures",
    "ul2": "UL2's seven denoisers in fixed shares; both architectures",
    "d-ul2": "Dynamic-UL2: denoisers that lag behind a reference get more of the data; both architectures",
    "o-ul2": "Optimized-UL2: cut in the middle (80%) and mixed noise (20%), no padding; both architectures",
    "glm": "GLM blank infilling with two positions; decoder-only with a two-way prefix",
    "unilm": "UniLM's masked tokens under four masks; decoder-only with given masks",
}
"""Every objective by name, and what it is."""

Objective = Literal["causal", "prefix", "span", "ul2", "d-ul2", "o-ul2", "glm", "unilm"]


class StreamConfig(Config):
    """How tokens become training steps."""

    objective: Objective = "causal"
    """What is predicted; see `penjing list objectives`."""
    architecture: Literal["decoder", "encoder-decoder"] = "decoder"
    """What the model is; an encoder-decoder reads samples on one side and writes them on the other."""
    sequence_length: int = Field(1024, ge=2)
    """Positions in a row of a decoder-only model, or of the encoder, in tokens."""
    decoder_length: int | None = Field(None, ge=16)
    """Positions in a row of the decoder; None: what the objective needs for both sides to be full."""
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
    piece_length: int = Field(568, ge=16)
    """About how many tokens a denoiser sample is made of (UL2 family)."""
    denoiser_shares: tuple[float, ...] | None = Field(None, min_length=7, max_length=7)
    """Share of the tokens of each of the seven denoisers; None: equal shares, or OpenBA-V2's start for d-ul2."""
    span_density: float = Field(0.15, gt=0, lt=1)
    """Share of the tokens that `span` masks."""
    span_mean: int = Field(3, ge=1)
    """Mean length of the spans that `span` masks, in tokens."""
    mode_tokens: bool = True
    """Put `<R>`, `<S>` or `<X>` in front of samples (UL2 family and instructions of encoder-decoders)."""
    mix_share: float = Field(0.2, ge=0, le=1)
    """Share of o-ul2's samples that carry every kind of noise."""
    reference_losses: tuple[float, ...] = Field(DUL2_REFERENCE, min_length=7, max_length=7)
    """Loss per denoiser that d-ul2 steers towards: measure it on the model before pruning."""
    share_rate: float = Field(1.0, gt=0)
    """How fast d-ul2's shares follow the losses."""
    share_floor: float = Field(1e-4, gt=0, lt=1)
    """How much of an equal share every denoiser keeps."""
    clamp_losses: bool = True
    """A denoiser ahead of its reference keeps its share (the paper); off: it loses some (the released code)."""
    glm_mixture: tuple[float, float, float] = (0.5, 0.3, 0.2)
    """Shares of [MASK] spans, [sMASK] sentences and [gMASK] endings."""
    glm_positions: Literal["2d", "1d"] = "2d"
    """GLM's two positions, or GLM-130B's single one for rotary models."""
    bidirectional_prefix: bool | None = None
    """Whether inputs see each other both ways in decoder-only rows; None: as the objective was published."""
    decoder_start_id: int = Field(0, ge=0)
    """The id that a decoder starts from."""
    held_out_percent: float = Field(0.0, ge=0, le=50)
    """Share of each source's documents kept out of training, the same ones in every stage."""
    part: Literal["train", "held-out"] = "train"
    """Which documents the stream is made of."""
    max_epochs: float | None = Field(None, gt=0)
    """Stop with an error when a source would be read more often than this; None repeats sources for ever."""
    seed: int = 0
    """Seed of every random choice; the recipe fills it."""

    @model_validator(mode="after")
    def _fits_together(self) -> StreamConfig:
        if self.architecture == "encoder-decoder" and self.objective in ("causal", "glm", "unilm"):
            raise ValueError(fault(f"objective {self.objective} is for decoder-only models",
                                   expected="prefix, span, ul2, d-ul2 or o-ul2 for an encoder-decoder"))
        if self.architecture == "decoder" and self.decoder_length is not None:
            raise ValueError("decoder_length is for architecture encoder-decoder; a decoder-only row has sequence_length")
        if self.denoiser_shares is not None and (min(self.denoiser_shares) < 0 or sum(self.denoiser_shares) <= 0):
            raise ValueError("denoiser_shares must be zero or more, and not all zero")
        if min(self.glm_mixture) < 0 or sum(self.glm_mixture) <= 0:
            raise ValueError("glm_mixture must be zero or more, and not all zero")
        return self

    @property
    def shares(self) -> tuple[float, ...]:
        """Shares of the denoisers at the start, summing to one."""
        if self.objective == "span" or self.objective == "prefix":
            return (1.0,)
        given = self.denoiser_shares or (DUL2_START if self.objective == "d-ul2" else UNIFORM)
        return tuple(share / sum(given) for share in given)

    @property
    def denoisers(self) -> tuple[Denoiser, ...] | None:
        """The one denoiser of `span` and `prefix`; None: UL2's seven."""
        if self.objective == "span":
            return (Denoiser("R", self.span_mean, self.span_density),)
        if self.objective == "prefix":
            return (Denoiser("S", 0, 1.0),)
        return None
