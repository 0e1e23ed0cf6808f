"""Parquet and CSV files as documents."""

from __future__ import annotations

import codecs
import csv
import io
import itertools
import json
from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from penjing.data.encoding import decode
from penjing.data.readers import Damage, Options, Record
from penjing.data.readers.lines import as_record
from penjing.data.readers.stream import open_bytes
from penjing.data.readers.whole import read_stretches
from penjing.errors import InputError, fault

_UNREADABLE = (pa.ArrowException, ValueError, OSError)
"""What Arrow raises on damaged files; a name that is not UTF-8 is a ValueError."""


def row_groups(name: str) -> list[int]:
    """Bytes of each row group of a Parquet file; InputError when it is not one."""
    with open_bytes(name) as file:
        try:
            metadata = pq.ParquetFile(file).metadata
        except _UNREADABLE as error:
            raise InputError(fault("not readable as Parquet", where=name, found=str(error)[:200])) from error
        return [metadata.row_group(index).total_byte_size for index in range(metadata.num_row_groups)]


def read_parquet(name: str, options: Options) -> Iterator[Record | Damage]:
    """One document per row; offset = row number. A damaged row group is one `Damage`, the next one is tried."""
    with open_bytes(name) as opened:
        try:
            file = pq.ParquetFile(opened)
            names = file.schema_arrow.names
        except _UNREADABLE as error:
            yield Damage(name, 0, "not readable as Parquet", 0, str(error)[:200])
            return
        missing = [field for field in options.text_field.split("+") if field not in names]
        if missing:
            raise InputError(fault(f"no column '{missing[0]}'", where=name, found=", ".join(names),
                                   fix="set text_field"))
        row = 0
        for group in range(file.metadata.num_row_groups):
            size = file.metadata.row_group(group).num_rows
            if group >= options.start and (options.end is None or group < options.end):
                try:
                    for record in _group(file, group):
                        yield from as_record(record, name, row, options)
                        row += 1
                    continue
                except _UNREADABLE as error:
                    yield Damage(name, row, "damaged row group", size, str(error)[:200])
            row += size


def _group(file: Any, group: int) -> Iterator[dict[str, Any]]:
    for batch in file.iter_batches(row_groups=[group], batch_size=1024, use_threads=False):
        for record in _rows(batch):
            if isinstance(record.get("meta"), str):
                try:
                    inner = json.loads(record["meta"])
                except ValueError:
                    inner = None
                if isinstance(inner, dict):
                    del record["meta"]
                    record = {**inner, **record}
            yield {key: value.hex() if isinstance(value, bytes) else value for key, value in record.items()}


def _rows(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    """The rows of a batch. Text that is not UTF-8, which writers put into Parquet unchecked, is decoded by what it is; nested fields
    that hold such text are left out."""
    try:
        rows: list[dict[str, Any]] = batch.to_pylist()
        return rows
    except UnicodeDecodeError:
        columns = {name: _decoded(batch.column(name)) for name in batch.schema.names}
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _decoded(column: pa.Array) -> list[Any]:
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        raw = column.cast(pa.large_binary()).to_pylist()
        return [None if value is None else decode(value)[0] for value in raw]
    try:
        values: list[Any] = column.to_pylist()
        return values
    except UnicodeDecodeError:
        return [None] * len(column)


def read_csv(name: str, options: Options) -> Iterator[Record | Damage]:
    """One document per row under a header line; comma, tab or semicolon; offset = row number. Up to `max_record_bytes` the encoding
    is told from the whole file, in a longer one from so much of it."""
    damage: list[Damage] = []
    stretches = read_stretches(name, damage)
    held = bytearray()
    for stretch in stretches:
        held += stretch
        if len(held) > options.max_record_bytes:
            break
    text, encoding = decode(bytes(held), declared=options.encoding)
    if not text.strip() and not damage:
        yield Damage(name, 0, "empty file")
        return
    text_lines: Iterator[str] = io.StringIO(text, newline="")
    if len(held) > options.max_record_bytes:
        text_lines = _decoded_lines(itertools.chain([bytes(held)], stretches), encoding)
    head = text.partition("\n")[0]
    del held, text
    delimiter = max(",\t;", key=head.count)
    rows = csv.DictReader(text_lines, delimiter=delimiter)
    old_limit = csv.field_size_limit(options.max_record_bytes)
    number = 0
    try:
        for number, row in enumerate(rows, 1):
            extra = row.pop(None, None)
            if extra:
                yield Damage(name, number, "more cells than the header has", 0, str(row)[:200])
                continue
            for record in as_record(row, name, number, options):
                if isinstance(record, dict):
                    record["encoding"] = encoding
                yield record
    except csv.Error as error:
        yield Damage(name, number + 1, f"not CSV: {error}")
    finally:
        csv.field_size_limit(old_limit)
    yield from damage


def _decoded_lines(stretches: Iterable[bytes], encoding: str) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder(encoding)("replace")
    pending = ""
    for stretch in stretches:
        *whole, pending = (pending + decoder.decode(stretch)).split("\n")
        for line in whole:
            yield line + "\n"
    pending += decoder.decode(b"", final=True)
    if pending:
        yield pending
