"""Columns of many documents in files, read by slices: what lets a global step run in units that hold a part each.

A *block* is a run of neighbouring shards whose signatures lie in flat `.npy` files, so that any rows are read without the others
(memory-mapped). A *row file* holds structured rows sorted by one field; a unit that works on a range of that field reads its slice
from every such file. Documents are numbered through: old index first, then shard after shard.
"""

from __future__ import annotations

import bisect
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from penjing.files import read_json, write_json

BLOCK_DOCUMENTS = 1 << 17
"""Documents of a block, and of a range of keys or ranks, when the number of parts is not given."""
MOST_DOCUMENTS = 1 << 32
"""A pair of documents is one 64-bit number."""
GONE = np.dtype([("document", "<i8"), ("kept", "<i8"), ("value", "<f8")])
"""A dropped document, the document that stays for it, and how alike they are."""


@dataclass(frozen=True)
class Signed:
    """Signatures of one shard, `rows` documents, and where its verdicts go; `verdicts` None for a part of the old index."""

    path: Path
    rows: int
    verdicts: Path | None


@dataclass(frozen=True)
class Block:
    """Documents `start` to `start + rows`, whose columns are in `folder`."""

    folder: Path
    start: int
    rows: int

    @property
    def end(self) -> int:
        """Number after the last document."""
        return self.start + self.rows

    def column(self, name: str) -> np.ndarray:
        """A column, memory-mapped."""
        return mapped(self.folder / f"{name}.npy")


def parts_of(documents: int) -> int:
    """How many parts a corpus of so many documents is cut into."""
    return -(-documents // BLOCK_DOCUMENTS)


def share(path: Path, values: Sequence[Any]) -> Path:
    """Write a list that many units need, as JSON, so that a thousand units do not each carry it; `listed` reads it. Gives `path`."""
    write_json(path, json.loads(json.dumps(list(values), default=str)))
    return path


def listed(path: str | Path) -> list[Any]:
    """A list written by `share`; paths are strings."""
    found: list[Any] = read_json(Path(path))
    return found


def mapped(path: Path) -> np.ndarray:
    """An array on disk, memory-mapped; an empty one cannot be mapped and is read."""
    try:
        found: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError:
        found = np.load(path, allow_pickle=False)
    return found


def save(path: Path, array: np.ndarray) -> None:
    """Write an array whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.tmp.npy")
    np.save(temporary, array, allow_pickle=False)
    temporary.replace(path)


def save_rows(path: Path, kind: np.dtype, *, by: str, **columns: np.ndarray) -> None:
    """Write structured rows sorted by one field (ties as given)."""
    rows = np.empty(len(next(iter(columns.values()))), kind)
    order = np.argsort(columns[by], kind="stable")
    for name, column in columns.items():
        rows[name] = column[order]
    save(path, rows)


def rows_between(path: Path, by: str, low: int, high: int) -> np.ndarray:
    """The rows of a row file with low <= field < high, copied out of it."""
    rows = mapped(path)
    field = rows[by] if rows.dtype.names else rows
    start = bisect.bisect_left(field, low)
    return np.array(rows[start : bisect.bisect_left(field, high, lo=start)])


def gather(blocks: Sequence[Block], name: str, documents: np.ndarray) -> np.ndarray:
    """A column's values for any documents, wherever they lie."""
    return _gathered(blocks, documents, lambda block, rows: block.column(name)[rows])


def gather_ids(blocks: Sequence[Block], documents: np.ndarray) -> list[str | None]:
    """The ids of any documents."""
    out: np.ndarray = _gathered(blocks, documents, lambda block, rows: _ids(block, rows), kind=object)
    return list(out)


def gather_sketches(blocks: Sequence[Block], documents: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(sketch values, offsets, tops) of any documents, in the order given."""
    sizes = np.zeros(len(documents), np.int64)
    places = [(block, chosen, documents[chosen] - block.start) for block, chosen in _by_block(blocks, documents)]
    for block, chosen, rows in places:
        offsets = block.column("offsets")
        sizes[chosen] = offsets[rows + 1] - offsets[rows]
    ends = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])
    values = np.empty(ends[-1], np.uint32)
    tops = np.empty(len(documents), np.uint32)
    for block, chosen, rows in places:
        sketch, starts = block.column("sketch"), block.column("offsets")[rows]
        index = np.arange(int(sizes[chosen].sum()))
        within = index - np.repeat(np.cumsum(sizes[chosen]) - sizes[chosen], sizes[chosen])
        values[within + np.repeat(ends[:-1][chosen], sizes[chosen])] = sketch[within + np.repeat(starts, sizes[chosen])]
        tops[chosen] = block.column("tops")[rows]
    return values, ends, tops


def ids_table(block: Block) -> pa.Table:
    """The id and source of a block's documents, memory-mapped."""
    with pa.memory_map(str(block.folder / "documents.arrow")) as file:
        return pa.ipc.open_file(file).read_all()


def part_of(part: int, parts: int) -> tuple[int, int]:
    """[low, high) of the 64-bit keys that belong to one of `parts` equal ranges."""
    return (part << 64) // parts, ((part + 1) << 64) // parts


def _ids(block: Block, rows: np.ndarray) -> np.ndarray:
    found = np.empty(len(rows), object)
    found[:] = ids_table(block).column("id").take(pa.array(rows)).to_pylist()
    return found


def _by_block(blocks: Sequence[Block], documents: np.ndarray) -> list[tuple[Block, np.ndarray]]:
    owner = np.searchsorted(np.array([block.end for block in blocks]), documents, side="right")
    order = np.argsort(owner, kind="stable")
    edges = np.searchsorted(owner[order], np.arange(len(blocks) + 1))
    return [(block, order[edges[i] : edges[i + 1]]) for i, block in enumerate(blocks) if edges[i + 1] > edges[i]]


def _gathered(blocks, documents, take, kind=None):  # type: ignore[no-untyped-def]
    if not len(documents):
        return np.empty(0, kind or np.int64)
    out = None
    for block, chosen in _by_block(blocks, documents):
        values = take(block, documents[chosen] - block.start)
        if out is None:
            out = np.empty((len(documents), *values.shape[1:]), values.dtype)
        out[chosen] = values
    return out
