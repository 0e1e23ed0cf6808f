"""Add pieces to a checkpoint's vocabulary: Chinese characters (Ziya2), words, or words of any kind, by what they save.

New pieces rank below every old one, so that expanding new ids through the plan gives exactly the old ids on every text; the new
rows of embedding and head are made from the rows of the old tokens that spelled each piece.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from penjing.config import Config as Settings
from penjing.contract import CHECKPOINT, CORPUS, Estimate, Inputs, Job

VERSION = 1
INPUTS = {"checkpoint": CHECKPOINT, "corpus": CORPUS}
OUTPUT = CHECKPOINT

Init = Literal["position", "uniform", "idf", "first_last", "multivariate", "focus", "random"]


class Config(Settings):
    """Settings of grow-vocab."""

    size: int = Field(gt=0)
    """Size of the vocabulary afterwards, before padding; fewer pieces are added when the corpus has no more."""
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
    plan: Path | None = None
    """An edited vocab_plan.json to apply instead of making one."""
    plan_only: bool = False
    """Write vocab_plan.json and stop, for a person to read and edit."""
    measure_inits: list[Init] = []
    """Ways of making rows whose bits per character, before any training, are measured and reported."""
    measure_tokens: int = Field(default=20_000, ge=1)
    """Tokens of each language that this is measured on."""
    seed: int = 0
    """Seed of the tie-breaking noise and of drawn rows."""


def run(config: Config, inputs: Inputs, out: Path, job: Job) -> dict[str, Any]:
    """Write the grown checkpoint into `out`; figures before and after."""
    from penjing.tokenizer.apply import Rows
    from penjing.tokenizer.change import change_vocabulary, languages_of, similar_tokens
    from penjing.tokenizer.count import Counts
    from penjing.tokenizer.grow import Wish, plan_growth
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
        runs = None
        if config.pieces != "characters":
            runs = collect_runs(corpus, kind=config.pieces, languages=languages, job=job, state=state)
        wish = Wish(config.size, config.pieces, config.min_count, config.pad_to_multiple)
        return plan_growth(vocabulary, counts.all_characters(languages), runs, wish)

    def rows(vocabulary: Vocabulary, counts: Counts, plan: VocabPlan) -> Rows:
        tokens = counts.all_tokens()
        similar = None
        if "focus" in (config.init, config.head_init):
            similar = similar_tokens(corpus, vocabulary, plan, seed=config.seed)
        return Rows(config.init, config.head_init, config.seed, frequency_V=tokens / max(1, tokens.sum()), focus=similar)

    _, figures = change_vocabulary(inputs["checkpoint"], corpus, out, job, plan_only=config.plan_only, planner=planner, rows=rows)
    return figures


def price(config: Config, inputs: Mapping[str, Any]) -> Estimate:
    """Parameters and disk of the grown checkpoint."""
    from penjing.tokenizer.price import resized

    return resized(inputs["checkpoint"], config.size, config.pad_to_multiple)
