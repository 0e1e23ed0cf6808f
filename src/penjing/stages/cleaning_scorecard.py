"""Marks a cleaning by the labels of the weather stage: precision and recall by defect and language, with intervals."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from penjing.config import Config as Base
from penjing.console import say
from penjing.contract import CORPUS, SCORES, Estimate, Inputs, Job
from penjing.data.scorecard import ALL, Reason, scorecard
from penjing.errors import GateError, InputError, fault
from penjing.files import write_json, write_text

if TYPE_CHECKING:
    from penjing.data.document import Corpus

VERSION = 1
INPUTS = {"weathered": CORPUS, "cleaned": CORPUS, "through": CORPUS + "*?"}
"""`through`: corpora between the two, whose `dropped/` says which rule a document fell to, or for which copy."""
OUTPUT = SCORES
HEADLINES = 7
"""Lines of table.txt that are shown at the end of the stage: the column names and the marks over all kinds."""


class Config(Base):
    """When the cleaning is not good enough. None: never."""

    min_precision: float | None = Field(None, ge=0, le=1)
    """Lower bound of the 95% interval of precision over all languages that must be reached."""
    min_recall: float | None = Field(None, ge=0, le=1)
    """Lower bound of the 95% interval of recall over all languages that must be reached."""


def run(config: Config, inputs: Inputs, out: Path, job: Job) -> dict[str, Any]:
    """Writes scores.json and table.txt. GateError, with both written, when a bound of the settings is not reached."""
    from penjing.data.document import open_corpus

    weathered, cleaned = open_corpus(inputs["weathered"]), open_corpus(inputs["cleaned"])
    left = {row["id"]: (row["text"] or "", row["lang"]) for batch in cleaned.batches(columns=["id", "text", "lang"])
            for row in batch.to_pylist()}
    corpora = [cleaned, *(open_corpus(path) for path in inputs.get("through") or [])]
    reasons = {name: reason for corpus in corpora for name, reason in _reasons(corpus)}
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
    lines = table(scores)
    write_text(out / "table.txt", "\n".join(lines) + "\n")
    for line in lines[:HEADLINES]:
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
    """The marks as lines of text: what, then for all and each language so many of so many, percent and 95% interval."""
    found: dict[str, dict[str, str]] = {}
    for row in _figures(scores)["table"]:
        rate = "" if row["rate"] is None else f" {100 * row['rate']:.1f}% [{100 * row['low']:.1f}, {100 * row['high']:.1f}]"
        found.setdefault(row["what"], {})[row["lang"]] = f"{row['number']}/{row['of']}{rate}"
    columns = [lang for lang in (ALL, "zh", "en", "other") if any(lang in cells for cells in found.values())]
    lines = [f"{'':<36}" + "".join(f"{lang:<34}" for lang in columns)]
    lines += [f"{what:<36}" + "".join(f"{cells.get(lang, '-'):<34}" for lang in columns) for what, cells in found.items()]
    return [line.rstrip() for line in lines]


def _figures(scores: Mapping[str, Any]) -> dict[str, Any]:
    rows = []
    for what, name in (("recall of what should vanish", "recall"), ("precision of what was dropped", "precision"),
                       ("documents lost for good", "lost_documents"), ("language told right", "language_right")):
        rows += [{"lang": lang, "what": what, **share} for lang, share in scores[name].items()]
    for prefix, name in (("characters lost: ", "characters_lost"), ("gone: ", "vanish"), ("strings gone: ", "strings_gone")):
        rows += [{"lang": lang, "what": f"{prefix}{kind}", **share}
                 for lang, kinds in scores[name].items() for kind, share in kinds.items()]
    totals = {name: scores[name].get(ALL, {"rate": None})["rate"] for name in ("recall", "precision", "lost_documents")}
    samples = [item for items in scores["examples"].values() for item in items[:5]]
    return {**totals, "left_per_cluster": scores["clusters"].get(ALL, {}).get("left_per_cluster"),
            "natural_copies": scores["natural_copies"].get(ALL, 0), "clusters": scores["clusters"],
            "table": rows, "samples": samples}


def _rows(corpus: Corpus) -> Iterator[dict[str, Any]]:
    for batch in corpus.batches(columns=["id", "text", "meta"], rows=512):
        for row in batch.to_pylist():
            yield {**row, "text": row["text"] or "", "meta": json.loads(row["meta"] or "{}")}


def _reasons(corpus: Corpus) -> Iterator[tuple[str, Reason]]:
    import pyarrow.parquet as pq

    for path in sorted((corpus.path / "dropped").glob("*.parquet")):
        with pq.ParquetFile(path) as file:
            wanted = [name for name in ("id", "rule", "kept") if name in file.schema_arrow.names]
            for row in file.read(columns=wanted).to_pylist():
                yield row["id"], Reason(row["rule"], row.get("kept"))
