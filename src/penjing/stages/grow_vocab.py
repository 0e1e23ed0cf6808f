"""Add pieces to a checkpoint's vocabulary: Chinese characters (Ziya2), words, or words of any kind, by what they save.

New pieces rank below every old one, so that expanding new ids through the plan gives exactly the old ids on every text; the new
rows of embedding and head are made from the rows of the old tokens that spelled each piece.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from penjing.config import Config as Settings
from penjing.contract import CHECKPOINT, CORPUS, Estimate, Inputs, Job
from penjing.errors import ConfigError, fault

VERSION = 2
INPUTS = {"checkpoint": CHECKPOINT, "corpus": CORPUS}
OUTPUT = CHECKPOINT

Init = Literal["position", "uniform", "idf", "first_last", "multivariate", "focus", "random"]


class Config(Settings):
    """Settings of grow-vocab."""

    size: int | None = Field(default=None, gt=0)
    """Size of the vocabulary afterwards, special tokens included, before padding; fewer pieces are added when the corpus has no
    more. None: only the special tokens are added."""
    special_tokens: list[str] = []
    """Special tokens to add: sentinels and modes of UL2, GLM's masks, marks of a chat. `<extra_id_0..99>` stands for a hundred. Their
    rows are drawn like the existing ones."""
    pieces: Literal["characters", "words", "all"] = "characters"
    """`characters`: Chinese characters and punctuation; `words`: these and Chinese words; `all`: words of any script too."""
    languages: list[str] | None = None
    """Languages of the corpus that the choice is made on; all by default."""
    min_count: int = Field(default=2, ge=1)
    """A piece seen fewer times is not added."""
    init: Init = "position"
    """How new rows begin: mean of the old tokens' rows weighted by position, uniform, idf, first_last; multivariate (drawn like
    the existing rows), focus (mean of similar tokens' rows), random."""
    head_init: Init | None = None
    """The same for the rows of an untied output head; like `init` by default."""
    pad_to_multiple: int = Field(default=64, ge=1)
    """Embedding rows are rounded up to a multiple of this."""
    calibrate: bool = False
    """Move the output rows of new tokens to where the corpus's frequencies put them, if that lowers the bits per character of text
    that was not used for it. Worth it where the base has never seen the language: rows made of byte tokens it never wrote begin far
    too low. Decoder-only models; runs the model once over `measure_characters` of each language."""
    plan: Path | None = None
    """An edited vocab_plan.json to apply instead of making one."""
    plan_only: bool = False
    """Write vocab_plan.json and stop, for a person to read and edit."""
    measure_inits: list[Init] = []
    """Ways of making rows whose bits per character, before any training, are measured and reported."""
    measure_characters: int = Field(default=20_000, ge=1)
    """Characters of each language that this is measured on."""
    context_length: int = Field(default=256, ge=2)
    """Tokens the model sees at a time when this is measured."""
    seed: int = 0
    """Seed of the tie-breaking noise and of drawn rows."""

    @model_validator(mode="after")
    def _something_to_add(self) -> Config:
        if self.size is None and not self.special_tokens and self.plan is None:
            raise ValueError("size, special_tokens or plan")
        return self


def run(config: Config, inputs: Inputs, out: Path, job: Job) -> dict[str, Any]:
    """Write the grown checkpoint into `out`; figures before and after."""
    from penjing.stages._calibration import calibrate
    from penjing.tokenizer.apply import Rows
    from penjing.tokenizer.change import change_vocabulary, forget, languages_of, similar_tokens
    from penjing.tokenizer.count import Counts
    from penjing.tokenizer.grow import Wish, only_special, plan_growth, special_pieces
    from penjing.tokenizer.plan import VocabPlan, fits, read_plan
    from penjing.tokenizer.runs import collect_runs
    from penjing.tokenizer.vocabulary import Vocabulary

    corpus: Path = inputs["corpus"]
    languages = languages_of(corpus, config.languages)

    def planner(vocabulary: Vocabulary, counts: Counts, state: Path) -> VocabPlan:
        if config.plan is not None:
            plan = read_plan(config.plan)
            fits(plan, vocabulary)
            return plan
        special = special_pieces(config.special_tokens)
        if config.size is None:
            return only_special(vocabulary, special, config.pad_to_multiple)
        runs = None
        if config.pieces != "characters":
            runs = collect_runs(corpus, kind=config.pieces, languages=languages, job=job, state=state)
        wish = Wish(config.size - len(special), config.pieces, config.min_count, config.pad_to_multiple)
        plan = plan_growth(vocabulary, counts.all_characters(languages), runs, wish)
        return replace(plan, new=(*plan.new, *special))

    def rows(vocabulary: Vocabulary, counts: Counts, plan: VocabPlan, how: Config = config) -> Rows:
        tokens = counts.all_tokens()
        similar = None
        if "focus" in (how.init, how.head_init):
            similar = similar_tokens(corpus, vocabulary, plan, seed=how.seed)
        return Rows(how.init, how.head_init, how.seed, frequency_V=tokens / max(1, tokens.sum()), focus=similar)

    plan, figures = change_vocabulary(inputs["checkpoint"], corpus, out, job, plan_only=config.plan_only, planner=planner,
                                      rows=rows)
    if config.measure_inits and not config.plan_only:
        figures["initial_bits_per_character"] = _measure(config, inputs["checkpoint"], corpus, plan, out / "state", rows, job)
    if config.calibrate and not config.plan_only:
        figures["calibration"] = calibrate(out, corpus, first=figures["vocab_before"], characters=config.measure_characters,
                                           context_length=config.context_length)
    forget(out / "state")
    return figures


def _measure(config: Config, checkpoint: Path, corpus: Path, plan: Any, state: Path, rows: Any, job: Job) -> dict[str, Any]:
    """Bits per character of each language before any training: of the old model, and of each way of making rows."""
    import shutil

    from penjing.data.engine import stop_if_asked
    from penjing.models.checkpoint import open_checkpoint
    from penjing.tokenizer.apply import apply_plan
    from penjing.tokenizer.change import count_corpus
    from penjing.tokenizer.inits import measured_texts
    from penjing.tokenizer.read import read_vocabulary

    if open_checkpoint(checkpoint).config.get("is_encoder_decoder"):
        raise ConfigError(fault("measure_inits scores decoder-only models", where=checkpoint, found="an encoder-decoder",
                                fix="leave measure_inits out"))
    texts = measured_texts(corpus, characters=config.measure_characters)
    found = {"before": _bits(checkpoint, texts, config.context_length)}
    vocabulary = read_vocabulary(checkpoint)
    before = count_corpus(checkpoint, corpus, job=job, state=state, label="count tokens before")
    for init in config.measure_inits:
        stop_if_asked(job, "measure inits")
        trial = state / f"init-{init}"
        how = config.model_copy(update={"init": init, "head_init": None})
        apply_plan(plan, vocabulary, checkpoint, trial, rows=rows(vocabulary, before, plan, how))
        found[init] = _bits(trial, texts, config.context_length)
        shutil.rmtree(trial)
    return found


def _bits(checkpoint: Path, texts: Mapping[str, list[str]], context_length: int) -> dict[str, float]:
    from penjing.evaluate.perplexity import document_losses, summarise
    from penjing.models.checkpoint import load_model
    from penjing.tokenizer.encode import load_encoder

    model, encoder = load_model(checkpoint), load_encoder(checkpoint)
    start = encoder.bos_id if encoder.bos_id is not None else encoder.eos_id or 0
    return {lang: round(summarise(document_losses(model, encoder, own, context_length=context_length, start_id=start),
                                  resamples=1).bits_per_character, 5) for lang, own in sorted(texts.items())}


def price(config: Config, inputs: Mapping[str, Any]) -> Estimate:
    """Parameters and disk of the grown checkpoint."""
    from penjing.tokenizer.price import resized

    return resized(inputs["checkpoint"], config.size, config.pad_to_multiple)
