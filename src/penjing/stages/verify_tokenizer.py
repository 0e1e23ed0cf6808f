"""Check on a corpus that a changed vocabulary keeps its word, line by line, and show the lines on which it does not.

Grown: the new ids, expanded through the plan, are exactly the old ids. Pruned: where every old token is kept, ids map one to one.
The `.model` and tokenizer.json of the result are compared on the same lines.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from penjing.config import Config as Settings
from penjing.contract import CORPUS, FILES, TOKENIZER, Estimate, Inputs, Job
from penjing.errors import GateError, fault

VERSION = 1
INPUTS = {"old": TOKENIZER, "new": TOKENIZER, "corpus": CORPUS}
OUTPUT = FILES


class Config(Settings):
    """Settings of verify-tokenizer."""

    plan: Path | None = None
    """The vocab_plan.json of the change; by default the one in the directory `new`, or derived from the two vocabularies."""
    lines: int | None = Field(default=None, ge=1)
    """Lines of each language and shard that are checked; all by default."""
    require: bool = True
    """End with exit code 4 when a line breaks the contract; growth of unigram vocabularies promises nothing and never does."""
    max_disagreement: float = Field(default=1.0, ge=0, le=1)
    """Share of lines on which the `.model` and tokenizer.json may differ."""


def run(config: Config, inputs: Inputs, out: Path, job: Job) -> dict[str, Any]:
    """Write verdict.json; the same as figures. GateError when the contract is broken."""
    from penjing.console import say
    from penjing.data.document import open_corpus
    from penjing.data.engine import map_shards
    from penjing.files import write_json
    from penjing.tokenizer.apply import PLAN_NAME
    from penjing.tokenizer.change import forget, verify_shard
    from penjing.tokenizer.contract_check import Verdict, derived_plan
    from penjing.tokenizer.plan import fits, read_plan, write_plan
    from penjing.tokenizer.read import read_vocabulary

    old, new = read_vocabulary(inputs["old"]), read_vocabulary(inputs["new"])
    beside = inputs["new"] / PLAN_NAME if inputs["new"].is_dir() else None
    given = config.plan or (beside if beside is not None and beside.is_file() else None)
    plan = read_plan(given) if given is not None else derived_plan(old, new)
    fits(plan, old)
    write_plan(out / PLAN_NAME, plan)
    units = [{"name": shard.stem, "shard": str(shard), "old": str(inputs["old"]), "new": str(inputs["new"]),
              "plan": str(out / PLAN_NAME), "lines": config.lines} for shard in open_corpus(inputs["corpus"]).shards]
    verdicts: dict[str, Verdict] = {}
    for part in map_shards(verify_shard, units, job=job, label="verify tokenizer", state=out / "state"):
        for lang, figures in part.items():
            verdicts.setdefault(lang, Verdict()).add(Verdict.of(figures))
    total = Verdict()
    for _, verdict in sorted(verdicts.items()):
        total.add(verdict)
    figures = {"operation": plan.operation, "kind": plan.kind, "vocab_before": plan.size_before, "vocab_after": plan.size_after,
               "all": total.as_json(), "languages": {lang: verdict.as_json() for lang, verdict in sorted(verdicts.items())}}
    write_json(out / "verdict.json", {"version": 1, **figures})
    forget(out / "state")
    broken = total.covered - total.exact
    promised = not (plan.operation == "grow" and plan.kind == "unigram")
    for example in total.counterexamples[:3]:
        say(f"  counterexample: {example['text'][:120]!r}, around token {example['at']}: expected {example['expected']}, found "
            f"{example['found']}")
    if config.require and promised and broken:
        raise GateError(fault(f"{broken} of {total.covered} lines under the contract break it", where=out / "verdict.json",
                              expected="none", fix="the counterexamples are in verdict.json"))
    share = total.disagree / max(1, total.compared)
    if share > config.max_disagreement:
        raise GateError(fault("the .model and tokenizer.json disagree", where=inputs["new"], found=f"{share:.2%} of the lines",
                              expected=f"at most {config.max_disagreement:.2%}"))
    return figures


def price(config: Config, inputs: Mapping[str, Any]) -> Estimate:
    """Small: two tokenizers and one shard at a time."""
    return Estimate(memory_bytes=1e9, disk_bytes=1e6)
