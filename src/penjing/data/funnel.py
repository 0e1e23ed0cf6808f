"""The funnel of a data stage: what came in, what went out, what was dropped and why, with samples. Counts conserve:
in = out + dropped, in documents; edits are counted beside them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from penjing.data.document import tally

SAMPLES = 20
SAMPLE_CHARACTERS = 400

Funnel = dict[str, Any]


def samples_of(dropped: pa.Table, into: dict[str, dict[str, int]], samples: list[dict[str, Any]]) -> None:
    """Count a batch of dropped documents by rule and keep the first `SAMPLES` of each rule.

    Which ones are kept depends on the documents alone: the order within a shard, and shards in order.
    """
    if not dropped.num_rows:
        return
    sizes = pc.fill_null(pc.binary_length(dropped.column("text")), 0).to_pylist()
    rules = dropped.column("rule").to_pylist()
    held: dict[str, int] = {}
    for one in samples:
        held[one["rule"]] = held.get(one["rule"], 0) + 1
    for index, (rule, size) in enumerate(zip(rules, sizes, strict=True)):
        tally(into, rule, 1, size)
        if held.get(rule, 0) < SAMPLES:
            held[rule] = held.get(rule, 0) + 1
            samples.append(shown(dropped.slice(index, 1).to_pylist()[0]))


def shown(row: Mapping[str, Any]) -> dict[str, Any]:
    """A dropped document as the report shows it."""
    value = row["value"]
    return {"id": row["id"], "lang": row["lang"] or "", "rule": row["rule"],
            "value": None if value is None or value != value else round(float(value), 6), "bound": row["bound"],
            "text": (row["text"] or "")[:SAMPLE_CHARACTERS]}


def sum_funnels(parts: Iterable[Mapping[str, Any]]) -> Funnel:
    """The funnels of shards, in order, as one; at most `SAMPLES` samples of each rule."""
    total: Funnel = {"in": {}, "out": {}, "dropped": {}, "edited": {}, "samples": []}
    held: dict[str, int] = {}
    for part in parts:
        for kind in ("in", "out", "dropped", "edited"):
            for key, item in part[kind].items():
                tally(total[kind], key, item["documents"], item["bytes"])
        for one in part["samples"]:
            if held.get(one["rule"], 0) < SAMPLES:
                held[one["rule"]] = held.get(one["rule"], 0) + 1
                total["samples"].append(one)
    for kind in ("in", "out", "dropped", "edited"):
        total[kind] = dict(sorted(total[kind].items()))
    return total
