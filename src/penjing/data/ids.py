"""Ids that occur more than once in a corpus of any size: found by their hashes, a range of hashes at a time.

Per shard the 64-bit hashes of its ids lie sorted in a file; per range of hashes a unit finds those that several documents have; per
shard the documents with such a hash are named. Only these are ever held together, so that later ones can be given names of their own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import xxhash

from penjing.contract import Job
from penjing.data.dedup.columns import listed, mapped, part_of, parts_of, rows_between, save, share
from penjing.data.engine import map_shards
from penjing.files import read_json, write_json

MARK = "#"
"""Between an id and the number of its repetition."""


def save_hashes(path: Path, ids: Sequence[str]) -> None:
    """Write the sorted hashes of a shard's ids."""
    save(path, np.sort(_hashes(ids)))


def _hashes(ids: Sequence[str]) -> np.ndarray:
    digest = xxhash.xxh3_64_intdigest
    return np.fromiter((digest(name.encode()) for name in ids), np.uint64, len(ids))


def renames(shards: Sequence[Path], hashes: Sequence[Path], *, state: Path, job: Job) -> dict[str, list[tuple[int, str]]]:
    """{shard file name: [(row, new id)]}: every later document with an id that was seen before gets `id#2`, `id#3`, …, the first
    that no document has."""
    parts = max(1, parts_of(sum(len(mapped(path)) for path in hashes)))
    every = share(state / "hashes.json", hashes)
    ranges: list[dict[str, Any]] = [
        {"name": f"part-{part:05d}", "part": part, "parts": parts, "hashes": every, "to": state / "repeated" / f"{part:05d}.npy"}
        for part in range(parts)
    ]
    if not sum(map_shards(find_repeated, ranges, job=job, label="repeated ids", state=state)):
        return {}
    repeated = share(state / "repeated.json", [unit["to"] for unit in ranges])
    named: list[dict[str, Any]] = [
        {"name": shard.name, "shard": shard, "repeated": repeated, "to": state / "named" / f"{shard.stem}.json"}
        for shard in shards
    ]
    map_shards(name_repeated, named, job=job, label="names of repeated ids", state=state)
    found = [[(row, name) for row, name in read_json(Path(unit["to"]))] for unit in named]
    counts = Counter(name for rows in found for _, name in rows)
    used, seen = set(counts), Counter[str]()
    plan: dict[str, list[tuple[int, str]]] = {}
    for shard, rows in zip(shards, found, strict=True):
        for row, name in rows:
            if counts[name] == 1:
                continue
            seen[name] += 1
            if seen[name] == 1:
                continue
            while f"{name}{MARK}{seen[name]}" in used:
                seen[name] += 1
            used.add(f"{name}{MARK}{seen[name]}")
            plan.setdefault(shard.name, []).append((row, f"{name}{MARK}{seen[name]}"))
    return plan


def find_repeated(unit: dict[str, Any]) -> int:
    """Write the hashes in one range that occur more than once; gives how many."""
    low, high = part_of(unit["part"], unit["parts"])
    values = np.sort(np.concatenate([rows_between(Path(path), "", low, high) for path in listed(unit["hashes"])]))
    twice = np.unique(values[1:][values[1:] == values[:-1]])
    save(Path(unit["to"]), twice)
    return len(twice)


def name_repeated(unit: dict[str, Any]) -> int:
    """Write [row, id] of a shard's documents whose id, or what stands before a mark in it, has a repeated hash; gives how many."""
    repeated = np.concatenate([mapped(Path(path)) for path in listed(unit["repeated"])])
    names: list[str] = pq.read_table(unit["shard"], columns=["id"]).column("id").to_pylist()
    own = np.isin(_hashes(names), repeated)
    rows = [row for row, name in enumerate(names) if own[row] or any(_has(part, repeated) for part in _before_marks(name))]
    write_json(Path(unit["to"]), [[row, names[row]] for row in rows])
    return len(rows)


def _before_marks(name: str) -> Iterator[str]:
    at = name.find(MARK)
    while at >= 0:
        yield name[:at]
        at = name.find(MARK, at + 1)


def _has(name: str, hashes: np.ndarray) -> bool:
    value = np.uint64(xxhash.xxh3_64_intdigest(name.encode()))
    place = int(np.searchsorted(hashes, value))
    return place < len(hashes) and hashes[place] == value
