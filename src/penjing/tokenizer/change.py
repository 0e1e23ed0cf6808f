"""The whole of a vocabulary change on a checkpoint: count, plan, apply, count again, check the contract; figures for a stage."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc

from penjing.contract import Job
from penjing.data.document import open_corpus, shard_batches
from penjing.errors import InputError, fault
from penjing.tokenizer.apply import PLAN_NAME, Rows, apply_plan, check_rows, parameters_before_after
from penjing.tokenizer.build import build
from penjing.tokenizer.contract_check import Checker, Verdict
from penjing.tokenizer.count import Counts, count_corpus, flat_encoder, library_encoder
from penjing.tokenizer.focus import company_vectors, similar_old_tokens
from penjing.tokenizer.plan import VocabPlan, read_plan, write_plan
from penjing.tokenizer.read import read_vocabulary
from penjing.tokenizer.report import change_figures
from penjing.tokenizer.vocabulary import NORMAL, UNKNOWN, Vocabulary

CHECKED_LINES = 20_000
"""Lines of each language on which the contract is checked inside a grow or prune stage; `verify-tokenizer` checks them all."""


def change_vocabulary(checkpoint: Path, corpus: Path, out: Path, job: Job, *, plan_only: bool,
                      planner: Callable[[Vocabulary, Counts, Path], VocabPlan],
                      rows: Callable[[Vocabulary, Counts, VocabPlan], Rows]) -> tuple[VocabPlan, dict[str, Any]]:
    """Plan and, unless `plan_only`, write the changed checkpoint into `out`; the plan and the stage's figures."""
    from penjing.models import family as families
    from penjing.models.checkpoint import open_checkpoint

    vocabulary = read_vocabulary(checkpoint)
    config = open_checkpoint(checkpoint).config
    check_rows(vocabulary, families.of(config).sizes(config)["vocab"], checkpoint)
    state = out / "state"
    before = count_corpus(checkpoint, corpus, job=job, state=state, label="count tokens before")
    plan = planner(vocabulary, before, state)
    parameters = parameters_before_after(config, plan.rows)
    if plan_only:
        write_plan(out / PLAN_NAME, plan)
        figures = change_figures(plan, before, None, None)
        return plan, {**figures, "parameters": parameters, "plan_only": True}
    changed = apply_plan(plan, vocabulary, checkpoint, out, rows=rows(vocabulary, before, plan))
    after = count_corpus(out, corpus, job=job, state=state, label="count tokens after")
    verdicts = check_on(corpus, vocabulary, changed, plan, lines=CHECKED_LINES)
    figures = change_figures(plan, before, after, {lang: verdict.as_json() for lang, verdict in verdicts.items()})
    return plan, {**figures, "parameters": parameters, "plan_only": False}


def verify_shard(unit: Mapping[str, Any]) -> dict[str, Any]:
    """Check the lines of one shard (what a worker does): language -> verdict, and the lines on which the engines differ."""
    old, new = read_vocabulary(Path(unit["old"])), read_vocabulary(Path(unit["new"]))
    plan = read_plan(Path(unit["plan"]))
    checker = Checker(plan, unknown=frozenset(np.flatnonzero(old.types_V == UNKNOWN).tolist()))
    old_encode, new_encode = flat_encoder(old), flat_encoder(new)
    other = library_encoder(new) if new.proto is not None else None
    verdicts: dict[str, Verdict] = {}
    for lang, texts in _batched_lines(shard_batches(Path(unit["shard"]), columns=["text", "lang"], rows=512), unit["lines"]):
        verdict = verdicts.setdefault(lang, Verdict())
        encoded = new_encode(texts)
        checker.check(texts, old_encode(texts), encoded, verdict)
        if other is not None:
            verdict.compare_engines(texts, encoded, other(texts))
    return {lang: verdict.as_json() for lang, verdict in verdicts.items()}


def forget(state: Path) -> None:
    """Remove what a finished stage kept in order to be resumed."""
    shutil.rmtree(state, ignore_errors=True)


def check_on(corpus: Path, old: Vocabulary, new: Vocabulary, plan: VocabPlan, *, lines: int | None) -> dict[str, Verdict]:
    """Verdicts by language over the lines of a corpus, at most `lines` of each language."""
    checker = Checker(plan, unknown=frozenset(np.flatnonzero(old.types_V == UNKNOWN).tolist()))
    old_encode, new_encode = flat_encoder(old), flat_encoder(new)
    verdicts: dict[str, Verdict] = {}
    for lang, texts in _lines(corpus, lines):
        verdict = verdicts.setdefault(lang, Verdict())
        checker.check(texts, old_encode(texts), new_encode(texts), verdict)
    return verdicts


def _lines(corpus: Path, limit: int | None) -> Iterator[tuple[str, list[str]]]:
    """(language, lines) in batches, in the corpus's order, at most `limit` lines of each language."""
    yield from _batched_lines(open_corpus(corpus).batches(columns=["text", "lang"], rows=512), limit)


def _batched_lines(batches: Iterable[Any], limit: int | None) -> Iterator[tuple[str, list[str]]]:
    seen: dict[str, int] = {}
    for batch in batches:
        languages = pc.fill_null(batch.column("lang"), "").to_pylist()
        by_language: dict[str, list[str]] = {}
        for text, lang in zip(pc.fill_null(batch.column("text"), "").to_pylist(), languages, strict=True):
            if limit is None or seen.get(lang, 0) < limit:
                by_language.setdefault(lang, []).extend(line for line in text.split("\n") if line)
        for lang, texts in sorted(by_language.items()):
            room = len(texts) if limit is None else max(0, limit - seen.get(lang, 0))
            chosen = texts[:room]
            seen[lang] = seen.get(lang, 0) + len(chosen)
            if chosen:
                yield lang, chosen


def similar_tokens(corpus: Path, vocabulary: Vocabulary, plan: VocabPlan, *, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """For each new piece of a plan, old ids in similar company in the corpus and their shares."""
    grown = build(vocabulary, plan)
    encode = flat_encoder(grown)
    streams = (encode(pc.fill_null(batch.column("text"), "").to_pylist())[0]
               for batch in open_corpus(corpus).batches(columns=["text"], rows=256))
    vectors, counts = company_vectors(streams, plan.size_after, seed=seed)
    usable = np.zeros(plan.size_before, dtype=bool)
    usable[: len(vocabulary)] = vocabulary.types_V == NORMAL
    return similar_old_tokens(vectors, counts, old_size=plan.size_before, usable=usable,
                              new_ids=np.arange(plan.size_before, plan.size_after))


def languages_of(corpus: Path, wanted: list[str] | None) -> list[str] | None:
    """The wanted languages, after refusing one that the corpus does not have."""
    if wanted is None:
        return None
    present = open_corpus(corpus).languages
    for lang in wanted:
        if not present.get(lang, {}).get("documents"):
            raise InputError(fault(f"the corpus has no text in language '{lang}'", where=corpus,
                                   found=f"languages {', '.join(sorted(present)) or 'none'}", expected=f"'{lang}'"))
    return wanted
