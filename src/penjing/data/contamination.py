"""Benchmark text inside a corpus: which documents hold how much of which benchmark record, and where.

Every text field of every record is an item. An item's n-grams of skeleton tokens (Han characters or words; punctuation, case and
width do not matter) are looked up in every document; a document holds an item when at least `coverage` of the n-grams of the
item, or of the document if that is the shorter one, are shared. N-grams shared by many records are templates ("which
of the following statements") and do not count. Items shorter than n tokens cannot be told from chance and are
counted, not searched.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numba import njit

from penjing.data.dedup.fold import fold, skeleton_table, text_buffers
from penjing.data.dedup.signature import shingle
from penjing.errors import InputError, fault
from penjing.files import open_text_bytes

READABLE = (".jsonl", ".json", ".parquet", ".csv", ".tsv", ".txt")


@dataclass(frozen=True)
class Benchmarks:
    """The searchable items. `keys` (capacity,) is an open-addressing table of n-gram hashes (0 = free); the n-gram in
    slot s belongs to the items `owners[starts[rows[s]]:starts[rows[s] + 1]]`; `sizes` (items,) are the items' numbers
    of different n-grams."""

    n: int
    keys: np.ndarray
    rows: np.ndarray
    starts: np.ndarray
    owners: np.ndarray
    sizes: np.ndarray
    names: list[tuple[str, str, str]]
    """(file, record, field) of every item."""
    too_short: int
    templates: int


@dataclass(frozen=True)
class Matches:
    """One row per (document, item) pair that share n-grams: document, item, shared n-grams, coverage (of the item or
    of the document, whichever has fewer n-grams), and the bytes
    (start, end) of the longest shared stretch within the document."""

    document: np.ndarray
    item: np.ndarray
    shared: np.ndarray
    coverage: np.ndarray
    span: np.ndarray


def read_records(path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """(record name, {field: text}) of a benchmark file: JSON lines, JSON, Parquet, CSV, TSV or plain lines, also .gz and .zst.

    Nested fields are named with dots. InputError with the line when a record is not readable.
    """
    kind = next((suffix for suffix in path.suffixes[::-1] if suffix in READABLE), None)
    if kind is None:
        raise InputError(
            fault("not a benchmark file", where=path, expected=f"one of {', '.join(READABLE)}, perhaps .gz or .zst")
        )
    if kind == ".parquet":
        for number, row in enumerate(row for batch in pq.ParquetFile(path).iter_batches() for row in batch.to_pylist()):
            yield str(row.get("id", number)), dict(_strings(row))
        return
    with open_text_bytes(path) as file:
        lines = io.TextIOWrapper(file, encoding="utf-8", errors="replace")
        if kind in (".csv", ".tsv"):
            for number, row in enumerate(csv.DictReader(lines, delimiter="\t" if kind == ".tsv" else ",")):
                yield (
                    str(row.get("id", number)),
                    {key: value for key, value in row.items() if key and isinstance(value, str)},
                )
        elif kind == ".txt":
            for number, line in enumerate(lines, 1):
                yield str(number), {"line": line}
        elif kind == ".json":
            value = json.load(lines)
            for number, row in enumerate(value if isinstance(value, list) else [value]):
                yield _name(row, number), dict(_strings(row))
        else:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except json.JSONDecodeError as error:
                    raise InputError(fault("not JSON", where=f"{path}:{number}", found=error.msg)) from error
                yield _name(row, number), dict(_strings(row))


def benchmark_files(paths: Sequence[Path]) -> list[Path]:
    """The readable files among the given files and directories, in order; InputError when there is none."""
    files: list[Path] = []
    for path in paths:
        if path.is_file():
            files.append(path)
        elif path.is_dir():
            files += [file for file in sorted(path.rglob("*")) if file.is_file() and set(file.suffixes) & set(READABLE)]
        else:
            raise InputError(fault("no such benchmark file or directory", where=path))
    if not files:
        raise InputError(fault("no benchmark files", where=paths[0] if paths else None, expected=", ".join(READABLE)))
    return files


def index_benchmarks(files: Sequence[Path], *, n: int, template_records: int) -> Benchmarks:
    """The n-grams of every item; those in more than `template_records` records are left out as templates."""
    texts: list[str] = []
    names: list[tuple[str, str, str]] = []
    for file in files:
        for record, fields in read_records(file):
            for field, text in fields.items():
                texts.append(text)
                names.append((file.name, record, field))
    folded = fold(pa.array(texts, pa.large_string()), skeleton_table())
    hashes, items = _ngrams(folded.tokens, folded.token_offsets, n)
    records = np.unique(np.array([f"{file}\t{record}" for file, record, _ in names]), return_inverse=True)[1]
    pairs = (
        np.unique(np.stack([hashes, items.astype(np.uint64)], axis=1), axis=0)
        if len(hashes)
        else np.zeros((0, 2), np.uint64)
    )
    grams, first = np.unique(pairs[:, 0], return_index=True)
    ends = np.append(first, len(pairs))
    owners = pairs[:, 1].astype(np.int64)
    if len(grams):
        by_record = np.unique(np.stack([pairs[:, 0], records[owners].astype(np.uint64)], axis=1), axis=0)
        spread = np.bincount(np.searchsorted(grams, by_record[:, 0]), minlength=len(grams))
    else:
        spread = np.zeros(0, np.int64)
    rare = spread <= template_records
    keep = np.repeat(rare, np.diff(ends))
    grams, owners = grams[rare], owners[keep]
    starts = np.concatenate([[0], np.cumsum(np.diff(ends)[rare])]).astype(np.int64)
    sizes = np.bincount(owners, minlength=len(names))
    keys = np.zeros(1 << max(4, int(2 * len(grams)).bit_length()), np.uint64)
    rows = np.zeros(len(keys), np.int64)
    _insert(keys, rows, grams)
    short = int((np.diff(folded.token_offsets) < n).sum())
    return Benchmarks(n, keys, rows, starts, owners, sizes, names, short, int((~rare).sum()))


def find(texts: pa.Array, benchmarks: Benchmarks, *, coverage: float) -> Matches:
    """The items that documents share at least `coverage` of; documents (N,) are rows of `texts`."""
    folded = fold(texts, skeleton_table(), places=True)
    documents, positions, grams = _look_up(
        folded.tokens, folded.token_offsets, benchmarks.n, benchmarks.keys, benchmarks.rows
    )
    counts = np.diff(benchmarks.starts)[grams]
    spread = np.repeat(np.arange(len(grams)), counts)
    within = np.arange(len(spread)) - np.repeat(np.cumsum(counts) - counts, counts)
    item = benchmarks.owners[benchmarks.starts[grams[spread]] + within]
    hit = np.stack([documents[spread], item, grams[spread], positions[spread]], axis=1)
    order = np.lexsort((hit[:, 3], hit[:, 1], hit[:, 0]))
    hit = hit[order]
    pair_start = np.ones(len(hit), bool)
    pair_start[1:] = (hit[1:, :2] != hit[:-1, :2]).any(axis=1)
    first = np.flatnonzero(pair_start)
    ends = np.append(first, len(hit))[1:]
    found: list[tuple[int, int, int, float, int, int]] = []
    _, offsets = text_buffers(texts)
    for start, end in zip(first.tolist(), ends.tolist(), strict=True):
        document, which = int(hit[start, 0]), int(hit[start, 1])
        shared = len(np.unique(hit[start:end, 2]))
        own = int(folded.token_offsets[document + 1] - folded.token_offsets[document]) - benchmarks.n + 1
        share = shared / min(int(benchmarks.sizes[which]), own)
        if share < coverage:
            continue
        low, high = _longest(hit[start:end, 3])
        last = int(folded.token_offsets[document + 1])
        stop = high + benchmarks.n
        byte_end = int(folded.token_bytes[stop]) if stop < last else int(offsets[document + 1])
        base = int(offsets[document])
        found.append((document, which, shared, share, int(folded.token_bytes[low]) - base, byte_end - base))
    table = np.array(found, np.float64).reshape(-1, 6)
    return Matches(
        table[:, 0].astype(np.int64),
        table[:, 1].astype(np.int64),
        table[:, 2].astype(np.int64),
        table[:, 3],
        table[:, 4:].astype(np.int64),
    )


def _longest(positions: np.ndarray) -> tuple[int, int]:
    """First and last position of the longest stretch of neighbouring n-grams."""
    breaks = np.flatnonzero(np.diff(positions) > 1)
    starts = np.concatenate([[0], breaks + 1])
    ends = np.concatenate([breaks, [len(positions) - 1]])
    best = int(np.argmax(positions[ends] - positions[starts]))
    return int(positions[starts[best]]), int(positions[ends[best]])


def _name(row: Any, number: int) -> str:
    return str(row.get("id", number)) if isinstance(row, dict) else str(number)


def _strings(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield path or "text", value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _strings(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _strings(item, f"{path}.{index}" if path else str(index))


@njit(cache=True, nogil=True)
def _ngrams(tokens, offsets, n):  # type: ignore[no-untyped-def]
    total = 0
    for d in range(len(offsets) - 1):
        total += max(0, offsets[d + 1] - offsets[d] - n + 1)
    hashes = np.empty(total, np.uint64)
    items = np.empty(total, np.int64)
    at = 0
    for d in range(len(offsets) - 1):
        for i in range(offsets[d], offsets[d + 1] - n + 1):
            hashes[at] = shingle(tokens, i, n)
            items[at] = d
            at += 1
    return hashes, items


@njit(cache=True, nogil=True)
def _insert(keys, rows, grams):  # type: ignore[no-untyped-def]
    mask = np.uint64(len(keys) - 1)
    for i in range(len(grams)):
        slot = grams[i] & mask
        while keys[slot] != 0:
            slot = (slot + np.uint64(1)) & mask
        keys[slot] = grams[i]
        rows[slot] = i


@njit(cache=True, nogil=True)
def _look_up(tokens, offsets, n, keys, rows):  # type: ignore[no-untyped-def]
    mask = np.uint64(len(keys) - 1)
    capacity = 1024
    documents = np.empty(capacity, np.int64)
    positions = np.empty(capacity, np.int64)
    grams = np.empty(capacity, np.int64)
    number = 0
    for d in range(len(offsets) - 1):
        for i in range(offsets[d], offsets[d + 1] - n + 1):
            h = shingle(tokens, i, n)
            slot = h & mask
            while keys[slot] != 0 and keys[slot] != h:
                slot = (slot + np.uint64(1)) & mask
            if keys[slot] == 0:
                continue
            if number == capacity:
                capacity *= 2
                documents = np.concatenate((documents, np.empty(number, np.int64)))
                positions = np.concatenate((positions, np.empty(number, np.int64)))
                grams = np.concatenate((grams, np.empty(number, np.int64)))
            documents[number] = d
            positions[number] = i
            grams[number] = rows[slot]
            number += 1
    return documents[:number], positions[:number], grams[:number]
