"""Paragraphs that stand in several documents: all but the first go.

A paragraph is a line, or a block between blank lines. Two are the same when their letters and digits are; ones with few letters
("Yes.", "2023-01-01") are left alone. The first is the one in the best document, by the order in which documents are kept; what an
old index holds comes before everything new.

It is done in units: per shard the keys of its paragraphs, sorted; per range of keys those that repeat; per shard the places to cut.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from penjing.data.dedup.columns import listed, mapped, part_of, rows_between, save_rows
from penjing.data.dedup.fold import fold_letters, skeleton_table
from penjing.data.dedup.signature import exact_keys
from penjing.data.document import shard_batches

SEPARATORS = {"line": "\n", "block": "\n\n"}
_ROW = np.dtype([("key", "<u8"), ("rank", "<i8"), ("document", "<i8"), ("place", "<i4")])
_CUT = np.dtype([("document", "<i8"), ("place", "<i4")])


def sign_paragraphs(unit: dict[str, Any]) -> dict[str, Any]:
    """Write key, rank, document and place of every paragraph of `unit["shard"]` with at least `letters` letters, in documents that
    stay; `ranks` is a file that holds the shard's ranks from row `rank_start` on, `start` the number of its first document."""
    stays = pc.is_null(pq.read_table(unit["verdicts"], columns=["rule"]).column("rule")).to_numpy()
    ranks = np.array(mapped(Path(unit["ranks"]))[unit["rank_start"] : unit["rank_start"] + len(stays)])
    found: dict[str, list[np.ndarray]] = {"key": [], "rank": [], "document": [], "place": []}
    base = 0
    for batch in shard_batches(Path(unit["shard"]), columns=["text"], rows=2048):
        document, place, key = paragraph_keys(batch.column("text"), separator=SEPARATORS[unit["by"]], letters=unit["letters"])
        document += base
        base += batch.num_rows
        keep = stays[document]
        document = document[keep]
        columns = {"key": key[keep], "rank": ranks[document], "document": document + unit["start"], "place": place[keep]}
        for name, column in columns.items():
            found[name].append(column)
    save_rows(Path(unit["to"]), _ROW, by="key", **{name: np.concatenate([np.empty(0, _ROW[name]), *c]) for name, c in found.items()})
    return {"paragraphs": sum(map(len, found["key"]))}


def paragraph_keys(texts: pa.Array, *, separator: str, letters: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(document (P,) int64, place (P,) int32, key (P,) uint64) of the paragraphs with at least `letters` letters and digits."""
    lists = pc.split_pattern(texts.cast(pa.large_string()).fill_null(""), separator)
    sizes = pc.list_value_length(lists).to_numpy().astype(np.int64)
    folded = fold_letters(lists.flatten(), skeleton_table())
    document = np.repeat(np.arange(len(sizes)), sizes)
    place = np.arange(len(document)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    keep = np.diff(folded.point_offsets) >= letters
    return document[keep], place[keep].astype(np.int32), exact_keys(folded)[keep, 0]


def repeat_paragraphs(unit: dict[str, Any]) -> dict[str, Any]:
    """Write the paragraphs of one range of keys that repeat one of the old index, of a better document, or an earlier one."""
    low, high = part_of(unit["part"], unit["parts"])
    rows = np.concatenate([rows_between(Path(path), "key", low, high) for path in listed(unit["signed"])])
    rows = rows[np.lexsort((rows["place"], rows["rank"], rows["key"]))]
    again = np.zeros(len(rows), bool)
    again[1:] = rows["key"][1:] == rows["key"][:-1]
    for path in listed(unit["old"]):
        known = pq.read_table(path).column("key").to_numpy()
        again |= np.isin(rows["key"], known[(known >= np.uint64(low)) & (known <= np.uint64(high - 1))])
    save_rows(Path(unit["to"]), _CUT, by="document", document=rows["document"][again], place=rows["place"][again])
    return {"repeated": int(again.sum())}


def cut_paragraphs(unit: dict[str, Any]) -> dict[str, Any]:
    """Write what is to be cut from one shard (document, place), and to `keys`, when given, the sorted keys of what stays."""
    start, end = unit["start"], unit["start"] + unit["rows"]
    cuts = np.concatenate([rows_between(Path(path), "document", start, end) for path in listed(unit["repeated"])])
    _write(Path(unit["to"]), pa.table({"document": cuts["document"] - start, "place": cuts["place"]}))
    if unit["keys"] is not None:
        rows = mapped(Path(unit["signed"]))
        keys = rows["key"][~np.isin(_name(rows), _name(cuts))]
        _write(Path(unit["keys"]), pa.table({"key": np.unique(keys)}))
    return {"cut": len(cuts)}


def _name(rows: np.ndarray) -> np.ndarray:
    """One number for a paragraph's document and place."""
    return (rows["document"].astype(np.int64) << 32) | rows["place"].astype(np.int64)


def _write(path: Path, table: pa.Table) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    pq.write_table(table, temporary, compression="zstd", use_dictionary=False)
    temporary.replace(path)


def without(text: str, places: set[int], *, separator: str) -> str:
    """`text` without the paragraphs at the given places."""
    parts = text.split(separator)
    return separator.join(part for place, part in enumerate(parts) if place not in places)
