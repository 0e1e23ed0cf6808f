"""Parting a shard by row-aligned verdicts: kept documents into the corpus, dropped ones aside with their reason, all
counted.

Every stage that only drops documents (de-duplication, perplexity tails, contamination, held-out parts) decides first
and sifts second, so that a changed bound needs no second look at the text's content and an interrupted run goes on
shard by shard.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from penjing.data.dedup.paragraph import SEPARATORS, without
from penjing.data.document import DROPPED_SCHEMA, ShardWriter, count, shard_batches, tally

VERDICT_SCHEMA = pa.schema(
    [("rule", pa.string()), ("value", pa.float64()), ("bound", pa.string()), ("kept", pa.string())]
)
"""One row per document of the shard: rule null = keep; `kept` names the document that stays in its place, if any."""
ASIDE_SCHEMA = DROPPED_SCHEMA.append(pa.field("kept", pa.string()))
SAMPLES = 20
_SAMPLE_CHARACTERS = 400


def sift(unit: dict[str, Any]) -> dict[str, Any]:
    """Part one shard: unit has `shard`, `verdicts`, `out`, and `aside` (false writes no dropped documents), and perhaps
    `cuts` and `by` (paragraphs to cut from kept documents). Gives its
    funnel."""
    shard, out = Path(unit["shard"]), Path(unit["out"])
    verdicts = pq.read_table(unit["verdicts"])
    funnel = empty_funnel()
    at = 0
    aside = unit.get("aside", True)
    cuts = _cuts(unit)
    with ShardWriter(out / shard.name) as keep, ShardWriter(out / "dropped" / shard.name, ASIDE_SCHEMA) as drop:
        for batch in shard_batches(shard):
            table = pa.Table.from_batches([batch])
            said = verdicts.slice(at, table.num_rows)
            at += table.num_rows
            stays = pc.is_null(said.column("rule"))
            kept = table.filter(stays)
            keep.write(_edit(kept, stays, at - table.num_rows, cuts, unit, funnel) if cuts else kept)
            gone = table.filter(pc.invert(stays))
            why = said.filter(pc.invert(stays))
            if aside:
                for name in VERDICT_SCHEMA.names:
                    gone = gone.append_column(name, why.column(name))
                drop.write(gone)
            count_batch(funnel, table, said)
    for name, item in keep.counts.languages.items():  # what was cut inside a document leaves "out", not "in"
        funnel["out"][name] = dict(item)
    if not unit.get("aside", True) or not drop.counts.documents:
        drop.path.unlink()
    return funnel


def _cuts(unit: dict[str, Any]) -> dict[int, set[int]]:
    """{row: places of the paragraphs to cut} of a shard; `unit["cuts"]` is a Parquet file with document and place."""
    if not unit.get("cuts"):
        return {}
    table = pq.read_table(unit["cuts"])
    found: dict[int, set[int]] = {}
    for document, place in zip(table.column("document").to_pylist(), table.column("place").to_pylist(), strict=True):
        found.setdefault(document, set()).add(place)
    return found


def _edit(
    kept: pa.Table,
    stays: pa.ChunkedArray,
    base: int,
    cuts: dict[int, set[int]],
    unit: dict[str, Any],
    funnel: dict[str, Any],
) -> pa.Table:
    rows = (np.flatnonzero(stays.to_numpy(zero_copy_only=False)) + base).tolist()
    touched = {at: cuts[row] for at, row in enumerate(rows) if row in cuts}
    if not touched:
        return kept
    texts = kept.column("text").to_pylist()
    for at, places in touched.items():
        before = len(texts[at].encode())
        texts[at] = without(texts[at], places, separator=SEPARATORS[unit["by"]])
        tally(funnel["edited"], "paragraph", 1, before - len(texts[at].encode()))
    return kept.set_column(kept.schema.get_field_index("text"), "text", pa.array(texts, pa.large_string()))


def count_batch(funnel: dict[str, Any], table: pa.Table, verdicts: pa.Table) -> None:
    """Add a batch of documents and their verdicts to a funnel: `in`, `dropped` and samples (`out` is what was written)."""
    for lang, item in count(table).languages.items():
        tally(funnel["in"], lang, item["documents"], item["bytes"])
    sizes = pc.fill_null(pc.binary_length(table.column("text")), 0)
    seen: dict[str, int] = {}
    for sample in funnel["samples"]:
        seen[sample["rule"]] = seen.get(sample["rule"], 0) + 1
    rules = verdicts.column("rule")
    for row in np.flatnonzero(pc.is_valid(rules).to_numpy(zero_copy_only=False)).tolist():
        rule = rules[row].as_py()
        tally(funnel["dropped"], rule, 1, sizes[row].as_py())
        seen[rule] = seen.get(rule, 0) + 1
        if seen[rule] <= SAMPLES:
            why = {name: verdicts.column(name)[row].as_py() for name in ("value", "bound", "kept")}
            text = (table.column("text")[row].as_py() or "")[:_SAMPLE_CHARACTERS]
            lang = table.column("lang")[row].as_py() or ""
            funnel["samples"].append(
                {"id": table.column("id")[row].as_py(), "lang": lang, "rule": rule, **why, "text": text}
            )


def empty_funnel() -> dict[str, Any]:
    """A funnel that has counted nothing."""
    return {"in": {}, "out": {}, "dropped": {}, "edited": {}, "samples": []}


def merge_funnels(parts: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """One funnel out of the shards' funnels, in their order; at most 20 samples per reason."""
    total = empty_funnel()
    seen: dict[str, int] = {}
    for part in parts:
        for name in ("in", "out", "dropped", "edited"):
            for key, item in part[name].items():
                tally(total[name], key, item["documents"], item["bytes"])
        for sample in part["samples"]:
            seen[sample["rule"]] = seen.get(sample["rule"], 0) + 1
            if seen[sample["rule"]] <= SAMPLES:
                total["samples"].append(sample)
    for name in ("in", "out", "dropped", "edited"):
        total[name] = dict(sorted(total[name].items()))
    return total
