"""Signatures on disk: one Parquet file per shard while a run goes on, and the index a later crawl is checked against.

The index holds, for every document that stayed, its id, source, address key, exact key, SimHash, MinHash bands and
sketch: enough to find and verify copies in new data without reading the old text again.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from penjing.data.dedup.signature import Signatures, SignatureShape, concatenate, sign
from penjing.data.dedup.url import canonical_url
from penjing.data.document import shard_batches
from penjing.errors import InputError, fault
from penjing.files import read_json, write_json

VERSION = 1
MANIFEST = "index.json"


def sign_shard(unit: dict[str, Any]) -> dict[str, Any]:
    """Write the signatures of `unit["shard"]` to `unit["to"]`; `unit["shape"]` is a SignatureShape as a dict."""
    shape = SignatureShape(**unit["shape"])
    tables = []
    for batch in shard_batches(Path(unit["shard"]), columns=["id", "url", "source", "text", "lang"], rows=2048):
        signatures = sign(batch.column("text"), shape)
        urls = [
            url_key(url, lang)
            for url, lang in zip(batch.column("url").to_pylist(), batch.column("lang").to_pylist(), strict=True)
        ]
        tables.append(
            as_table(
                pa.table(
                    {
                        "id": batch.column("id"),
                        "source": batch.column("source"),
                        "url_key": pa.array(urls, pa.binary(16)),
                    }
                ),
                signatures,
            )
        )
    rows = sum(table.num_rows for table in tables)
    write_table(Path(unit["to"]), tables, shape)
    return {"documents": rows}


def url_key(url: str | None, lang: str | None = None) -> bytes | None:
    """16 bytes for a canonical address and language (one file may hold a text and its translation); None without an
    address."""
    canonical = canonical_url(url) if url else ""
    return xxhash.xxh3_128_digest(f"{lang or ''} {canonical}".encode()) if canonical else None


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


def write_table(path: Path, tables: list[pa.Table], shape: SignatureShape) -> None:
    """Signature tables into one Parquet file that is whole or absent."""
    if not tables:
        tables = [
            as_table(
                pa.table(
                    {
                        "id": pa.array([], pa.string()),
                        "source": pa.array([], pa.string()),
                        "url_key": pa.array([], pa.binary(16)),
                    }
                ),
                sign(pa.array([], pa.large_string()), shape),
            )
        ]
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    pq.write_table(pa.concat_tables(tables), temporary, compression="zstd", use_dictionary=["source"])
    temporary.replace(path)


def read_tables(paths: list[Path]) -> tuple[pa.Table, Signatures]:
    """Documents (id, source, url_key) and signatures of several files, in order."""
    tables = [pq.read_table(path) for path in paths]
    return (
        pa.concat_tables([table.select(["id", "source", "url_key"]) for table in tables]),
        concatenate([from_table(table) for table in tables]),
    )


def write_index(out: Path, documents: pa.Table, signatures: Signatures, shape: SignatureShape) -> dict[str, Any]:
    """Write an index directory; gives its size and bytes per document."""
    out.mkdir(parents=True, exist_ok=True)
    write_table(out / "signatures.parquet", [as_table(documents, signatures)], shape)
    size = (out / "signatures.parquet").stat().st_size
    manifest = {
        "version": VERSION,
        "documents": len(documents),
        "shape": vars(shape),
        "bytes": size,
        "bytes_per_document": round(size / max(len(documents), 1), 1),
    }
    write_json(out / MANIFEST, manifest)
    return manifest


def read_index(path: Path, shape: SignatureShape) -> tuple[pa.Table, Signatures]:
    """An index made with the same signature shape; InputError when it is absent or made otherwise."""
    if not (path / MANIFEST).is_file():
        raise InputError(
            fault(
                "no de-duplication index here",
                where=path,
                expected=MANIFEST,
                fix="make the old corpus with keep_index: true",
            )
        )
    manifest = read_json(path / MANIFEST)
    if manifest.get("version") != VERSION or manifest.get("shape") != vars(shape):
        raise InputError(
            fault(
                "the index was made with other signatures",
                where=path,
                found=json.dumps(manifest.get("shape")),
                expected=json.dumps(vars(shape)),
            )
        )
    return read_tables([path / "signatures.parquet"])
