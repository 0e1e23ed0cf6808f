"""Paragraphs that stand in several documents: all but the first go.

A paragraph is a line, or a block between blank lines. Two are the same when their letters and digits are; ones with few letters
("Yes.", "2023-01-01") are left alone. The first is the one in the best document, by the order in which documents are kept.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from penjing.data.dedup.fold import fold, skeleton_table
from penjing.data.dedup.signature import exact_keys
from penjing.data.document import shard_batches

SEPARATORS = {"line": "\n", "block": "\n\n"}
SCHEMA = pa.schema([("document", pa.int64()), ("place", pa.int32()), ("key", pa.uint64())])


def sign_paragraphs(unit: dict[str, Any]) -> dict[str, Any]:
    """Write (document row, place in it, key) of every paragraph of `unit["shard"]` with at least `letters` letters."""
    tables = [SCHEMA.empty_table()]
    base = 0
    for batch in shard_batches(Path(unit["shard"]), columns=["text"], rows=2048):
        document, place, key = paragraph_keys(
            batch.column("text"), separator=SEPARATORS[unit["by"]], letters=unit["letters"]
        )
        tables.append(pa.table([document + base, place, key], schema=SCHEMA))
        base += batch.num_rows
    path = Path(unit["to"])
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    table = pa.concat_tables(tables)
    pq.write_table(table, temporary, compression="zstd")
    temporary.replace(path)
    return {"paragraphs": table.num_rows}


def paragraph_keys(texts: pa.Array, *, separator: str, letters: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(document (P,) int64, place (P,) int32, key (P,) uint64) of the paragraphs with at least `letters` letters and digits."""
    lists = pc.split_pattern(texts.cast(pa.large_string()).fill_null(""), separator)
    sizes = pc.list_value_length(lists).to_numpy().astype(np.int64)
    folded = fold(lists.flatten(), skeleton_table())
    document = np.repeat(np.arange(len(sizes)), sizes)
    place = np.arange(len(document)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    keep = np.diff(folded.point_offsets) >= letters
    return document[keep], place[keep].astype(np.int32), exact_keys(folded)[keep, 0]


def repeated_paragraphs(document: np.ndarray, place: np.ndarray, key: np.ndarray, rank: np.ndarray) -> np.ndarray:
    """(P,) bool: the paragraphs that repeat one in a better document, or an earlier one of the same; `rank` is by document."""
    order = np.lexsort((place, rank[document], key))
    again = np.zeros(len(order), bool)
    again[1:] = key[order[1:]] == key[order[:-1]]
    repeated = np.zeros(len(order), bool)
    repeated[order] = again
    return repeated


def without(text: str, places: set[int], *, separator: str) -> str:
    """`text` without the paragraphs at the given places."""
    parts = text.split(separator)
    return separator.join(part for place, part in enumerate(parts) if place not in places)
