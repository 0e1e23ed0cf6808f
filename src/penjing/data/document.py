"""What a corpus is on disk: Parquet shards of documents and a `corpus.json` that is written last.

Every shard carries its own counts (documents, bytes of UTF-8 text, by language and by source) in the Parquet
footer, so that `corpus.json` is made, and checked, without reading the text again. A shard appears under its name
only when it is whole. Dropped documents are kept aside in `dropped/` with the rule, the value and the bound that
dropped them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from penjing.errors import InputError, fault
from penjing.files import atomic_write, disk_faults, read_json, write_json

VERSION = 1
MANIFEST = "corpus.json"
FOOTER_KEY = b"penjing"
ROW_GROUP_ROWS = 8192
ROW_GROUP_BYTES = 32 << 20
"""A row group ends with the document that reaches either; so equal documents give equal files, and memory is bounded."""
BATCH_BYTES = 4 << 20
"""Batches that are read hold at most about this much text, or one document."""

SCHEMA = pa.schema(
    [
        pa.field("id", pa.string()),
        pa.field("url", pa.string()),
        pa.field("source", pa.string()),
        pa.field("text", pa.large_string()),
        pa.field("lang", pa.string()),
        pa.field("meta", pa.string()),
    ]
)
"""id: unique name; url: where it was seen; source: which collection; text; lang: "zh", "en", …, null = not
identified; meta: a JSON object with whatever else is known."""

DROPPED_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string()),
        pa.field("source", pa.string()),
        pa.field("lang", pa.string()),
        pa.field("text", pa.large_string()),
        pa.field("rule", pa.string()),
        pa.field("value", pa.float64()),
        pa.field("bound", pa.string()),
    ]
)
"""A document (or a paragraph or sentence of one, then id is `document#part`) that was removed, and why."""


@dataclass
class Counts:
    """Documents and bytes of text: in all, by language ("" = not identified) and by source."""

    documents: int = 0
    text_bytes: int = 0
    languages: dict[str, dict[str, int]] = field(default_factory=dict)
    sources: dict[str, dict[str, int]] = field(default_factory=dict)

    def add(self, other: Counts) -> None:
        """Add another part's counts to this one."""
        self.documents += other.documents
        self.text_bytes += other.text_bytes
        for mine, theirs in ((self.languages, other.languages), (self.sources, other.sources)):
            for key, item in theirs.items():
                tally(mine, key, item["documents"], item["bytes"])

    def as_json(self) -> dict[str, Any]:
        """The counts as they stand in corpus.json, keys sorted."""
        return {
            "documents": self.documents, "text_bytes": self.text_bytes,
            "languages": dict(sorted(self.languages.items())), "sources": dict(sorted(self.sources.items())),
        }


def tally(into: dict[str, dict[str, int]], key: str, documents: int, size: int) -> None:
    """Add `documents` and `size` bytes under `key`."""
    item = into.setdefault(key, {"documents": 0, "bytes": 0})
    item["documents"] += int(documents)
    item["bytes"] += int(size)


def count(table: pa.Table | pa.RecordBatch) -> Counts:
    """Counts of a table that has the columns text, and perhaps lang and source. Bytes are bytes of UTF-8 text."""
    sizes = pc.fill_null(pc.binary_length(table.column("text")), 0).cast(pa.int64())
    counts = Counts(table.num_rows, int(pc.sum(sizes).as_py() or 0))
    for column, into in (("lang", counts.languages), ("source", counts.sources)):
        if column not in table.schema.names:
            tally(into, "", table.num_rows, counts.text_bytes)
            continue
        keys = pc.fill_null(table.column(column).cast(pa.string()), "")
        grouped = pa.table({"key": keys, "size": sizes}).group_by("key").aggregate([("size", "count"), ("size", "sum")])
        for key, number, size in zip(*(grouped.column(name).to_pylist() for name in ("key", "size_count", "size_sum")),
                                     strict=True):
            tally(into, key, number, size)
    return Counts(counts.documents, counts.text_bytes, dict(sorted(counts.languages.items())),
                  dict(sorted(counts.sources.items())))


def documents(rows: Iterable[Mapping[str, Any]]) -> pa.Table:
    """A table of documents out of plain dicts; `meta` may be a dict, missing columns become null (meta becomes {})."""
    columns: dict[str, list[Any]] = {name: [] for name in SCHEMA.names}
    for row in rows:
        for name in SCHEMA.names:
            value = row.get(name)
            if name == "meta" and not isinstance(value, str):
                value = json.dumps(value or {}, ensure_ascii=False, sort_keys=True)
            columns[name].append(value)
    return pa.table(columns, schema=SCHEMA)


class ShardWriter:
    """One Parquet file that appears under its name when the block ends well; it counts what it is given.

    Where row groups end does not depend on the size of the batches, so equal documents give equal files.
    """

    def __init__(self, path: Path, schema: pa.Schema = SCHEMA, *, compression: str = "zstd") -> None:
        self.path = path
        self.schema = schema
        self.counts = Counts()
        self._compression = compression
        self._temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        self._waiting: list[pa.Table] = []
        self._rows = self._bytes = 0
        self._writer: pq.ParquetWriter | None = None

    def __enter__(self) -> ShardWriter:
        return self

    def write(self, table: pa.Table | pa.RecordBatch) -> None:
        """Append documents; columns are put in the schema's order and cast, columns the schema lacks are dropped."""
        if isinstance(table, pa.RecordBatch):
            table = pa.Table.from_batches([table])
        if not table.num_rows:
            return
        table = self._fit(table)
        if "text" in table.schema.names:
            self.counts.add(count(table))
        sizes = _text_sizes(table)
        start = 0
        while start < table.num_rows:
            room = np.searchsorted(np.cumsum(sizes[start:]), ROW_GROUP_BYTES - self._bytes) + 1
            stop = start + min(int(room), ROW_GROUP_ROWS - self._rows, table.num_rows - start)
            self._waiting.append(table.slice(start, stop - start))
            self._rows += stop - start
            self._bytes += int(sizes[start:stop].sum())
            if self._rows >= ROW_GROUP_ROWS or self._bytes >= ROW_GROUP_BYTES:
                self._flush()
            start = stop

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        if kind is None:
            with disk_faults(self.path):
                self._flush()
                writer = self._open()
                footer = json.dumps(self.counts.as_json(), ensure_ascii=False)
                writer.add_key_value_metadata({FOOTER_KEY: footer.encode()})
                writer.close()
                with self._temporary.open("rb+") as file:
                    os.fsync(file.fileno())
                self._temporary.replace(self.path)
            return
        if self._writer is not None:
            self._writer.close()
        self._temporary.unlink(missing_ok=True)

    def _open(self) -> pq.ParquetWriter:
        if self._writer is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._writer = pq.ParquetWriter(self._temporary, self.schema, compression=self._compression,
                                            use_dictionary=["source", "lang", "rule"])
        return self._writer

    def _flush(self) -> None:
        if not self._waiting:
            return
        table = pa.concat_tables(self._waiting).combine_chunks()
        with disk_faults(self.path):
            self._open().write_table(table, row_group_size=table.num_rows)
        self._waiting, self._rows, self._bytes = [], 0, 0

    def _fit(self, table: pa.Table) -> pa.Table:
        columns = []
        for item in self.schema:
            if item.name in table.schema.names:
                columns.append(table.column(item.name).cast(item.type))
            else:
                value = "{}" if item.name == "meta" else None
                columns.append(pa.chunked_array([pa.array([value] * table.num_rows, item.type)]))
        return pa.table(columns, schema=self.schema)


class CorpusWriter:
    """Writes a corpus into directory `out`: shards by name, `corpus.json` last, when the block ends well.

    Shards that other processes wrote there with `ShardWriter` (one per unit of work) are part of the corpus too,
    and so is what an interrupted run left behind: `has(shard)` says what is already whole.
    """

    def __init__(self, out: Path, *, provenance: Mapping[str, Any]) -> None:
        self.out = out
        self.provenance = dict(provenance)
        self._shards: dict[str, ShardWriter] = {}
        out.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> CorpusWriter:
        return self

    def has(self, shard: str) -> bool:
        """Whether that shard is already whole on disk."""
        return (self.out / f"{shard}.parquet").is_file()

    def write(self, batch: pa.Table | pa.RecordBatch, shard: str = "part-00000") -> None:
        """Append documents to a shard; it is begun anew at its first write of this run."""
        if shard not in self._shards:
            self._shards[shard] = ShardWriter(self.out / f"{shard}.parquet").__enter__()
        self._shards[shard].write(batch)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        for shard in self._shards.values():
            shard.__exit__(kind, error, trace)
        if kind is None:
            finish_corpus(self.out, provenance=self.provenance)


def finish_corpus(out: Path, *, provenance: Mapping[str, Any], keep: Sequence[str] | None = None) -> Corpus:
    """Write corpus.json over the shards in `out`, from their footers.

    With `keep`, the shards' names in order, every one must be there (InputError), and no other counts.
    """
    names = [f"{name}.parquet" for name in keep] if keep is not None else sorted(p.name for p in out.glob("*.parquet"))
    counts = Counts()
    for name in names:
        counts.add(shard_counts(out / name))
    manifest = {"version": VERSION, **counts.as_json(), "shards": names, "provenance": dict(provenance)}
    with disk_faults(out):
        write_json(out / MANIFEST, manifest)
    return Corpus(out, manifest)


def shard_counts(path: Path) -> Counts:
    """The counts in a shard's footer, or counted from its columns when it was not written by penjing."""
    try:
        file = pq.ParquetFile(path)
    except FileNotFoundError as error:
        raise InputError(fault("shard is missing", where=path, fix="it vanished while it was needed; make the corpus "
                               "again")) from error
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(fault("shard is not readable as Parquet", where=path, found=str(error)[:200])) from error
    with file:
        footer = (file.metadata.metadata or {}).get(FOOTER_KEY)
        if footer is not None:
            stored = json.loads(footer)
            return Counts(stored["documents"], stored["text_bytes"], stored["languages"], stored["sources"])
        counts = Counts()
        wanted = [name for name in ("text", "lang", "source") if name in file.schema_arrow.names]
        for batch in file.iter_batches(columns=wanted):
            counts.add(count(batch))
        return counts


@dataclass(frozen=True)
class Corpus:
    """A finished corpus: its directory and what corpus.json says."""

    path: Path
    manifest: Mapping[str, Any]

    @property
    def shards(self) -> list[Path]:
        """The Parquet files, in order."""
        return [self.path / name for name in self.manifest["shards"]]

    @property
    def documents(self) -> int:
        """Number of documents."""
        return int(self.manifest["documents"])

    @property
    def text_bytes(self) -> int:
        """Bytes of UTF-8 text."""
        return int(self.manifest["text_bytes"])

    @property
    def languages(self) -> dict[str, dict[str, int]]:
        """{lang: {"documents", "bytes"}}; "" = not identified."""
        return dict(self.manifest["languages"])

    def batches(self, columns: Sequence[str] | None = None, rows: int = 4096) -> Iterator[pa.RecordBatch]:
        """Every document, shard after shard, in record batches of at most `rows` rows; `columns` None = all six."""
        for shard in self.shards:
            yield from shard_batches(shard, columns=columns, rows=rows)


def shard_batches(path: Path, *, columns: Sequence[str] | None = None, rows: int = 4096) -> Iterator[pa.RecordBatch]:
    """The documents of one shard in record batches of at most `rows` rows and about `BATCH_BYTES` of text.

    Raises InputError when the file is missing or damaged.
    """
    try:
        with pq.ParquetFile(path) as file:
            for group in range(file.num_row_groups):
                for batch in file.iter_batches(batch_size=rows, row_groups=[group], columns=list(columns or SCHEMA.names),
                                               use_threads=False):
                    yield from _small(batch)
    except FileNotFoundError as error:
        raise InputError(fault("shard is missing", where=path, fix="it vanished while it was needed; make the corpus "
                               "again")) from error
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(fault("shard is damaged", where=path, found=str(error)[:200], fix="make the corpus "
                               "again")) from error


def _small(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    ends = np.cumsum(_text_sizes(batch))
    start, base = 0, 0
    while start < batch.num_rows:
        stop = max(start + 1, int(np.searchsorted(ends, base + BATCH_BYTES, side="right")))
        yield batch.slice(start, stop - start)
        start, base = stop, int(ends[stop - 1])


def _text_sizes(table: pa.Table | pa.RecordBatch) -> np.ndarray:
    if "text" not in table.schema.names:
        return np.zeros(table.num_rows, np.int64)
    sizes: np.ndarray = pc.fill_null(pc.binary_length(table.column("text")), 0).cast(pa.int64()).to_numpy(zero_copy_only=False) \
        if isinstance(table, pa.RecordBatch) else \
        pc.fill_null(pc.binary_length(table.column("text")), 0).cast(pa.int64()).to_numpy()
    return sizes


def export_jsonl(corpus: Corpus, out: Path, *, compress: bool = True) -> list[Path]:
    """The corpus as JSON lines, one `.jsonl.zst` (or `.jsonl`) per shard, fields as in the schema with meta as an object."""
    import zstandard

    written = []
    for shard in corpus.shards:
        path = out / (shard.stem + (".jsonl.zst" if compress else ".jsonl"))
        with disk_faults(out), atomic_write(path) as file:
            stream: Any = zstandard.ZstdCompressor(level=3).stream_writer(file, closefd=False) if compress else file
            for batch in shard_batches(shard):
                for row in batch.to_pylist():
                    row["meta"] = json.loads(row["meta"] or "{}")
                    stream.write(json.dumps({k: v for k, v in row.items() if v is not None}, ensure_ascii=False).encode() + b"\n")
            if compress:
                stream.close()
        written.append(path)
    return written


def open_corpus(path: Path) -> Corpus:
    """The corpus in directory `path`; InputError when it is not one, or not finished."""
    if not path.is_dir():
        raise InputError(fault("no such corpus directory", where=path))
    if not (path / MANIFEST).is_file():
        raise InputError(fault(f"no {MANIFEST} here", where=path, expected="a finished corpus",
                               fix="the stage that makes it was interrupted or the path is wrong"))
    manifest = read_json(path / MANIFEST)
    if not isinstance(manifest, dict) or manifest.get("version") != VERSION or "shards" not in manifest:
        found = manifest.get("version") if isinstance(manifest, dict) else type(manifest).__name__
        raise InputError(fault("not a corpus manifest this version reads", where=path / MANIFEST,
                               found=f"version {found}", expected=f"version {VERSION}"))
    missing = [name for name in manifest["shards"] if not (path / name).is_file()]
    if missing:
        raise InputError(fault(f"{len(missing)} of {len(manifest['shards'])} shards are missing", where=path,
                               found=f"no {missing[0]}"))
    return Corpus(path, manifest)
