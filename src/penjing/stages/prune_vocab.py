"""Drop the pieces of a checkpoint's vocabulary that a corpus has least use for, without breaking any piece that stays.

On every text whose old tokens are all kept, ids map one to one and kept tokens' logits are bit-identical.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from penjing.config import Config as Settings
from penjing.contract import CHECKPOINT, CORPUS, Estimate, Inputs, Job

VERSION = 2
INPUTS = {"checkpoint": CHECKPOINT, "corpus": CORPUS}
OUTPUT = CHECKPOINT


class Config(Settings):
    """Settings of prune-vocab."""

    size: int | None = Field(default=None, gt=0)
    """Size of the vocabulary afterwards, before padding."""
    coverage: float | dict[str, float] | None = None
    """Instead of a size: the smallest vocabulary that covers this share of the tokens, of every language or of each by name."""
    method: Literal["leaf", "closure", "frequency"] = "leaf"
    """`leaf`: fewest extra tokens, closed; `closure`: most frequent with their merge paths; `frequency`: as OpenBA-V2's scripts
    do, which breaks byte-pair encodings and is there to be compared with."""
    keep: list[str] = []
    """Pieces to keep whatever their frequency, as text."""
    pad_to_multiple: int = Field(default=64, ge=1)
    """Embedding rows are rounded up to a multiple of this."""
    plan: Path | None = None
    """An edited vocab_plan.json to apply instead of making one."""
    plan_only: bool = False
    """Write vocab_plan.json and stop, for a person to read and edit."""

    @model_validator(mode="after")
    def _one_target(self) -> Config:
        if sum(value is not None for value in (self.size, self.coverage, self.plan)) != 1:
            raise ValueError("exactly one of size, coverage and plan")
        return self


def run(config: Config, inputs: Inputs, out: Path, job: Job) -> dict[str, Any]:
    """Write the pruned checkpoint into `out`; figures before and after."""
    from penjing.tokenizer.apply import Rows
    from penjing.tokenizer.change import change_vocabulary, forget
    from penjing.tokenizer.count import Counts
    from penjing.tokenizer.plan import VocabPlan, fits, read_plan
    from penjing.tokenizer.prune import covered_share, kept_by_name, plan_pruning
    from penjing.tokenizer.stored import stored_ids
    from penjing.tokenizer.vocabulary import Vocabulary

    shares: dict[str, float] = {}

    def planner(vocabulary: Vocabulary, counts: Counts, state: Path) -> VocabPlan:
        if config.plan is not None:
            plan = read_plan(config.plan)
            fits(plan, vocabulary)
        else:
            target = config.coverage
            if isinstance(target, float):
                target = {lang: target for lang in counts.tokens if counts.tokens[lang].sum()}
            keep = stored_ids(inputs["checkpoint"], vocabulary.ids) | kept_by_name(vocabulary, config.keep)
            plan = plan_pruning(vocabulary, counts.tokens, size=config.size, target=target, method=config.method,
                                pad_to_multiple=config.pad_to_multiple, keep=frozenset(keep))
        shares.update(covered_share(plan.kept, counts.tokens))
        return plan

    def rows(vocabulary: Vocabulary, counts: Counts, plan: VocabPlan) -> Rows:
        return Rows()

    _, figures = change_vocabulary(inputs["checkpoint"], inputs["corpus"], out, job, plan_only=config.plan_only, planner=planner,
                                   rows=rows)
    forget(out / "state")
    return {**figures, "covered_token_share": {lang: round(share, 6) for lang, share in sorted(shares.items())}}


def price(config: Config, inputs: Mapping[str, Any]) -> Estimate:
    """Parameters and disk of the pruned checkpoint."""
    from penjing.tokenizer.price import resized

    return resized(inputs["checkpoint"], config.size, config.pad_to_multiple)
