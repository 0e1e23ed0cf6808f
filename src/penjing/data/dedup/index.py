"""Signatures on disk: one Parquet file per shard while a run goes on, and the index a later crawl is checked against.

The index holds, for every document that stayed, its id, source, address key, exact key, SimHash, MinHash bands and sketch, and, when
paragraphs were cut, the 64-bit key of every paragraph that stayed: enough to find and verify copies in new data without reading the
old text again. It has one part per shard; a later run copies the old parts and adds its own, so that no part is ever read whole with
the others.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash

from penjing.data.dedup.signature import Signatures, SignatureShape, concatenate, sign
from penjing.data.dedup.url import canonical_url
from penjing.data.document import shard_batches
from penjing.errors import InputError, fault
from penjing.files import read_json, write_json

VERSION = 2
MANIFEST = "index.json"
DOCUMENT_COLUMNS = ["id", "source", "url_key"]
_GROUP_ROWS = 1 << 15


def sign_shard(unit: dict[str, Any]) -> dict[str, Any]:
    """Write the signatures of `unit["shard"]` to `unit["to"]`; `unit["shape"]` is a SignatureShape as a dict."""
    shape = SignatureShape(**unit["shape"])
    rows = write_tables(Path(unit["to"]), _signed(Path(unit["shard"]), shape), shape)
    return {"documents": rows}


def _signed(shard: Path, shape: SignatureShape) -> Iterable[pa.Table]:
    for batch in shard_batches(shard, columns=["id", "url", "source", "text", "lang"], rows=2048):
        signatures = sign(batch.column("text"), shape)
        urls = batch.column("url")
        if urls.null_count == batch.num_rows:
            keys = pa.nulls(batch.num_rows, pa.binary(16))
        else:
            pairs = zip(urls.to_pylist(), batch.column("lang").to_pylist(), strict=True)
            keys = pa.array([url_key(url, lang) for url, lang in pairs], pa.binary(16))
        columns = {"id": batch.column("id"), "source": batch.column("source"), "url_key": keys}
        yield as_table(pa.table(columns), signatures)


def url_key(url: str | None, lang: str | None = None) -> bytes | None:
    """16 bytes for a canonical address and language (one file may hold a text and its translation); None without an
    address."""
    canonical = canonical_url(url) if url else ""
    return xxhash.xxh3_128_digest(f"{lang or ''} {canonical}".encode()) if canonical else None


def url_numbers(keys: pa.ChunkedArray | pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """((N, 2) uint64, (N,) bool present) of a column of 16-byte keys."""
    whole = keys.combine_chunks() if isinstance(keys, pa.ChunkedArray) else keys
    if isinstance(whole, pa.ChunkedArray):
        whole = pa.concat_arrays(whole.chunks) if whole.num_chunks else pa.array([], pa.binary(16))
    present = pc.is_valid(whole).to_numpy(zero_copy_only=False)
    filled = pc.fill_null(whole, b"\0" * 16)
    raw = np.frombuffer(filled.buffers()[1], np.uint8)[filled.offset * 16 :] if len(filled) else np.zeros(0, np.uint8)
    return raw[: len(filled) * 16].view(">u8").astype(np.uint64).reshape(-1, 2), present


def as_table(documents: pa.Table, signatures: Signatures) -> pa.Table:
    """Signatures beside their documents' id, source and url_key, as one table."""
    offsets = (signatures.sketch_offsets - signatures.sketch_offsets[0]).astype(np.int64)
    bands = signatures.bands
    width = bands.shape[1]
    band_lists = pa.LargeListArray.from_arrays(np.arange(len(signatures) + 1) * width, bands.reshape(-1))
    columns = {
        "key_high": signatures.keys[:, 0],
        "key_low": signatures.keys[:, 1],
        "letters": signatures.letters,
        "tokens": signatures.tokens,
        "simhash": signatures.simhash,
        "bands": band_lists,
        "top": signatures.tops,
        "sketch": pa.LargeListArray.from_arrays(offsets, signatures.sketch),
    }
    for name, column in columns.items():
        documents = documents.append_column(name, pa.array(column) if isinstance(column, np.ndarray) else column)
    return documents


def from_table(table: pa.Table) -> Signatures:
    """The signatures in a table made by `as_table`."""
    table = table.combine_chunks()

    def numbers(name: str) -> np.ndarray:
        column: np.ndarray = table.column(name).to_numpy()
        return column

    sketch, offsets = _lists(table.column("sketch"), np.uint32)
    bands, band_offsets = _lists(table.column("bands"), np.uint64)
    width = int(band_offsets[1]) if len(table) else 0
    return Signatures(
        np.stack([numbers("key_high"), numbers("key_low")], axis=1),
        numbers("letters"),
        numbers("tokens"),
        numbers("simhash"),
        bands.reshape(len(table), width),
        sketch,
        offsets,
        numbers("top"),
    )


def _lists(column: pa.ChunkedArray, kind: type) -> tuple[np.ndarray, np.ndarray]:
    values: list[np.ndarray] = [np.zeros(0, kind)]
    offsets = [np.zeros(1, np.int64)]
    for chunk in column.chunks:
        own = chunk.offsets.to_numpy()
        values.append(chunk.values.to_numpy()[own[0] : own[-1]])
        offsets.append(own[1:] - own[0] + offsets[-1][-1])
    return np.concatenate(values), np.concatenate(offsets)


def write_tables(path: Path, tables: Iterable[pa.Table], shape: SignatureShape) -> int:
    """Signature tables into one Parquet file that is whole or absent, a row group at a time; gives the number of rows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    schema = empty_table(shape).schema
    rows = 0
    waiting: list[pa.Table] = []
    with pq.ParquetWriter(temporary, schema, compression="zstd", use_dictionary=["source"]) as writer:
        for table in tables:
            waiting.append(table.cast(schema))
            rows += table.num_rows
            if sum(part.num_rows for part in waiting) >= _GROUP_ROWS:
                writer.write_table(pa.concat_tables(waiting))
                waiting = []
        if waiting:
            writer.write_table(pa.concat_tables(waiting))
    temporary.replace(path)
    return rows


def empty_table(shape: SignatureShape) -> pa.Table:
    """A signature table without documents."""
    columns = {"id": pa.array([], pa.string()), "source": pa.array([], pa.string()), "url_key": pa.array([], pa.binary(16))}
    return as_table(pa.table(columns), sign(pa.array([], pa.large_string()), shape))


def read_tables(paths: list[Path]) -> tuple[pa.Table, Signatures]:
    """Documents (id, source, url_key) and signatures of several files, in order."""
    tables = [pq.read_table(path) for path in paths]
    return (
        pa.concat_tables([table.select(DOCUMENT_COLUMNS) for table in tables]),
        concatenate([from_table(table) for table in tables]),
    )


def keep_part(unit: dict[str, Any]) -> dict[str, Any]:
    """Write one part of an index: the rows of `signed` whose verdict is to stay, or with `copy` an old part as it is.

    `paragraphs` (a file of keys, or None) goes beside it.
    """
    to = Path(unit["to"])
    if unit["copy"] is not None:
        _copy(Path(unit["copy"]), to)
        rows = pq.read_metadata(to).num_rows
    else:
        stays = pc.is_null(pq.read_table(unit["verdicts"], columns=["rule"]).column("rule"))
        at = 0
        shape = SignatureShape(**unit["shape"])

        def kept() -> Iterable[pa.Table]:
            nonlocal at
            with pq.ParquetFile(unit["signed"]) as file:
                for group in range(file.num_row_groups):
                    table = file.read_row_group(group)
                    yield table.filter(stays.slice(at, table.num_rows))
                    at += table.num_rows

        rows = write_tables(to, kept(), shape)
    size = to.stat().st_size
    if unit["paragraphs"] is not None:
        beside = to.parent.parent / "paragraphs" / to.name
        _copy(Path(unit["paragraphs"]), beside)
        size += beside.stat().st_size
    return {"name": to.name, "documents": rows, "bytes": size}


def _copy(source: Path, to: Path) -> None:
    to.parent.mkdir(parents=True, exist_ok=True)
    temporary = to.with_name(f".{to.name}.tmp")
    shutil.copyfile(source, temporary)
    temporary.replace(to)


def write_manifest(
    out: Path, parts: list[dict[str, Any]], shape: SignatureShape, *, paragraphs: dict[str, Any] | None, generation: int
) -> dict[str, Any]:
    """Write index.json over finished parts; gives it."""
    documents, size = sum(part["documents"] for part in parts), sum(part["bytes"] for part in parts)
    manifest = {
        "version": VERSION,
        "generation": generation,
        "documents": documents,
        "shape": vars(shape),
        "paragraphs": paragraphs,
        "bytes": size,
        "bytes_per_document": round(size / max(documents, 1), 1),
        "parts": parts,
    }
    write_json(out / MANIFEST, manifest)
    return manifest


def open_index(path: Path, shape: SignatureShape, *, paragraphs: dict[str, Any] | None) -> dict[str, Any]:
    """The manifest of an index made with the same signature shape and paragraphs; InputError when it is absent or made otherwise."""
    if not (path / MANIFEST).is_file():
        raise InputError(
            fault(
                "no de-duplication index here",
                where=path,
                expected=MANIFEST,
                fix="make the old corpus with keep_index: true",
            )
        )
    manifest: dict[str, Any] = read_json(path / MANIFEST)
    if manifest.get("version") != VERSION or manifest.get("shape") != vars(shape):
        raise InputError(
            fault(
                "the index was made with other signatures",
                where=path,
                found=json.dumps(manifest.get("shape")),
                expected=json.dumps(vars(shape)),
            )
        )
    if paragraphs is not None and manifest["paragraphs"] != paragraphs:
        raise InputError(
            fault(
                "the index was made with other settings for paragraphs",
                where=path,
                found=json.dumps(manifest["paragraphs"]),
                expected=json.dumps(paragraphs),
                fix="use the settings of the old corpus, or make it again with these",
            )
        )
    return manifest
