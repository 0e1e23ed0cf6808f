"""One row per document of a shard: the rule that drops it, by how much, and the document that stays in its place."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from penjing.data.dedup.decide import KEEP, RULES
from penjing.data.dedup.sieve import VERDICT_SCHEMA


def write_verdict(path: Path, rule: np.ndarray, value: np.ndarray, kept: Sequence[str | None], *, similarity: float) -> None:
    """Write the verdicts on a shard's documents; `kept` holds ids, None where the document stays or none is at hand."""
    names = [RULES[code] for code in rule.tolist()]
    bounds = {"url": "same address", "exact": "same text without punctuation and emoji", "near": f">= {similarity}"}
    table = pa.table(
        [
            pa.array(names, pa.string()),
            pa.array(value, mask=rule == KEEP),
            pa.array([bounds.get(name or "") for name in names], pa.string()),
            pa.array(kept, pa.string()),
        ],
        schema=VERDICT_SCHEMA,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    pq.write_table(table, temporary)
    temporary.replace(path)
