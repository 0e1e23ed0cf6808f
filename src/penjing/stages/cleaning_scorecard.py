"""Marks a cleaning by the labels of the weather stage: precision and recall by defect and language, with intervals."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from pydantic import Field

from penjing.config import Config as Base
from penjing.console import say
from penjing.contract import CORPUS, SCORES, Estimate, Inputs, Job
from penjing.data.document import Corpus, open_corpus
from penjing.data.scorecard import ALL, scorecard
from penjing.errors import GateError, InputError, fault
from penjing.files import write_json

VERSION = 1
INPUTS = {"weathered": CORPUS, "cleaned": CORPUS, "through": CORPUS + "*?"}
"""`through`: corpora between the two, whose `dropped/` says which rule a document fell to."""
OUTPUT = SCORES


class Config(Base):
    """When the cleaning is not good enough. None: never."""

    min_precision: float | None = Field(None, ge=0, le=1)
    """Lower bound of the 95% interval of precision over all languages that must be reached."""
    min_recall: float | None = Field(None, ge=0, le=1)
    """Lower bound of the 95% interval of recall over all languages that must be reached."""


def run(config: Config, inputs: Inputs, out: Path, job: Job) -> dict[str, Any]:
    """Writes scores.json. GateError, with scores.json written, when a bound of the settings is not reached."""
    weathered, cleaned = open_corpus(inputs["weathered"]), open_corpus(inputs["cleaned"])
    left = {row["id"]: (row["text"] or "", row["lang"]) for batch in cleaned.batches(columns=["id", "text", "lang"])
            for row in batch.to_pylist()}
    corpora = [cleaned, *(open_corpus(path) for path in inputs.get("through") or [])]
    reasons = {name: rule for corpus in corpora for name, rule in _reasons(corpus)}
    try:
        scores = scorecard(_rows(weathered), left, reasons=reasons)
    except ValueError as error:
        text = fault(str(error), where=weathered.path, expected="a corpus made by the weather stage")
        raise InputError(text) from error
    if not any(name in left for batch in weathered.batches(columns=["id"]) for name in batch.column("id").to_pylist()):
        raise InputError(fault("no document of the weathered corpus is in the cleaned one", where=cleaned.path,
                               expected="a corpus cleaned from it, with the same ids"))
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "scores.json", {"version": 1, **scores})
    figures = _figures(scores)
    for line in table(scores):
        say(f"  {line}")
    for name, bound in (("precision", config.min_precision), ("recall", config.min_recall)):
        low = scores[name].get(ALL, {"low": None})["low"]
        if bound is not None and (low is None or low < bound):
            raise GateError(fault(f"the cleaning's {name} is too low", where=out / "scores.json",
                                  found=f"{low or 0:.4f} as the lower 95% bound", expected=f"at least {bound}"))
    return figures


def price(config: Config, inputs: Mapping[str, Estimate]) -> Estimate:
    """Holds the cleaned text in memory."""
    size = inputs["cleaned"].text_bytes
    return Estimate(memory_bytes=None if size is None else 3 * size, disk_bytes=200_000)


def table(scores: Mapping[str, Any]) -> list[str]:
    """The marks as lines of text: language, what, so many of so many, percent and interval."""
    lines = []
    for row in _figures(scores)["table"]:
        rate = "-" if row["rate"] is None else f"{100 * row['rate']:6.2f}% [{100 * row['low']:.1f}, {100 * row['high']:.1f}]"
        lines.append(f"{row['lang']:<6}{row['what']:<44}{row['number']:>7} of {row['of']:<7}{rate}")
    return lines


def _figures(scores: Mapping[str, Any]) -> dict[str, Any]:
    rows = []
    for what, name in (("recall of what should vanish", "recall"), ("precision of what was dropped", "precision"),
                       ("documents lost for good", "lost_documents"), ("language told right", "language_right")):
        rows += [{"lang": lang, "what": what, **share} for lang, share in scores[name].items()]
    for prefix, name in (("gone: ", "vanish"), ("strings gone: ", "strings_gone"), ("characters lost: ", "characters_lost")):
        rows += [{"lang": lang, "what": f"{prefix}{kind}", **share}
                 for lang, kinds in scores[name].items() for kind, share in kinds.items()]
    totals = {name: scores[name].get(ALL, {"rate": None})["rate"] for name in ("recall", "precision", "lost_documents")}
    samples = [item for items in scores["examples"].values() for item in items[:5]]
    return {**totals, "copies_left_per_cluster": scores["clusters"].get(ALL, {}).get("left_per_cluster"),
            "clusters": scores["clusters"], "table": rows, "samples": samples}


def _rows(corpus: Corpus) -> Iterator[dict[str, Any]]:
    for batch in corpus.batches(columns=["id", "text", "meta"], rows=512):
        for row in batch.to_pylist():
            yield {**row, "text": row["text"] or "", "meta": json.loads(row["meta"] or "{}")}


def _reasons(corpus: Corpus) -> Iterator[tuple[str, str]]:
    for path in sorted((corpus.path / "dropped").glob("*.parquet")):
        dropped = pq.read_table(path, columns=["id", "rule"])
        yield from zip(dropped.column("id").to_pylist(), dropped.column("rule").to_pylist(), strict=True)
