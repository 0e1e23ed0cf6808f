"""One row per document of a shard: the rule that drops it, by how much, and the document that stays in its place."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from penjing.data.dedup.decide import KEEP, RULES
from penjing.data.dedup.sieve import VERDICT_SCHEMA


def write_verdict(path: Path, rule: np.ndarray, value: np.ndarray, kept: Sequence[str | None], *, similarity: float) -> None:
    """Write the verdicts on a shard's documents; `kept` holds ids, None where the document stays or none is at hand."""
    bounds = [None, "same address", "same text without punctuation and emoji", f">= {similarity}"]
    codes = pa.array(rule)
    table = pa.table(
        [
            pa.array(RULES, pa.string()).take(codes),
            pa.array(value, mask=rule == KEEP),
            pa.array(bounds, pa.string()).take(codes),
            pa.array(kept, pa.string()),
        ],
        schema=VERDICT_SCHEMA,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    pq.write_table(table, temporary)
    temporary.replace(path)


def count_sources(source: pa.ChunkedArray, kept: np.ndarray) -> dict[str, dict[str, int]]:
    """{source: {"documents", "kept"}} of some documents, `kept` (N,) bool."""
    table = pa.table({"source": pc.fill_null(source, ""), "kept": pa.array(kept).cast(pa.int64())})
    counted = table.group_by("source").aggregate([("kept", "count"), ("kept", "sum")]).to_pylist()
    return {row["source"]: {"documents": row["kept_count"], "kept": row["kept_sum"]} for row in counted}
