"""JSON lines, and files that are one document each (text, Markdown)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from penjing.data.encoding import decode
from penjing.data.readers import Damage, Options, Record
from penjing.data.readers.stream import Cut, blocks, open_bytes
from penjing.data.readers.whole import read_whole

KNOWN = ("id", "url", "lang")


def read_jsonl(name: str, options: Options) -> Iterator[Record | Damage]:
    """One document per line. A line that is not a JSON object with a text is `Damage`; so is one that is too long."""
    for offset, line in lines(name, options):
        if isinstance(line, Damage):
            yield line
            continue
        if line.isspace() or not line:
            continue
        try:
            row = json.loads(line.decode("utf-8-sig" if offset == 0 else "utf-8"))
        except UnicodeDecodeError:
            text, encoding = decode(line, declared=options.encoding)
            try:
                row = json.loads(text)
            except ValueError:
                yield Damage(name, offset, "not UTF-8 and not JSON", len(line), _sample(line))
                continue
            if isinstance(row, dict):
                row["encoding"] = encoding
        except (ValueError, RecursionError):
            yield Damage(name, offset, "not JSON", len(line), _sample(line))
            continue
        yield from as_record(row, name, offset, options, size=len(line))


def as_record(row: Any, name: str, offset: int, options: Options, *, size: int = 0) -> Iterator[Record | Damage]:
    """A row of any kind of table as a document; `Damage` when it has no usable text. Other fields go to meta."""
    if not isinstance(row, dict):
        yield Damage(name, offset, "not an object", size, str(row)[:200])
        return
    parts = []
    fields = options.text_field.split("+")
    for field in fields:
        value = row.get(field)
        if value is None:
            yield Damage(
                name, offset, f"no field '{field}'", size, json.dumps(row, ensure_ascii=False, default=str)[:200]
            )
            return
        if not isinstance(value, str):
            yield Damage(name, offset, f"field '{field}' is {type(value).__name__}, not text", size, str(value)[:200])
            return
        parts.append(value)
    record: Record = {"text": "\n".join(parts), "offset": offset}
    meta: dict[str, Any] = {}
    for key, value in row.items():
        if key in KNOWN and isinstance(value, str | int) and not isinstance(value, bool):
            record[key] = str(value)
        elif key == "encoding":
            record[key] = value
        elif key == "meta" and isinstance(value, dict):
            meta.update(value)
        elif key not in fields and value is not None and value != "":
            meta["origin" if key == "source" else key] = value
    record["meta"] = meta
    yield record


def read_text(name: str, options: Options) -> Iterator[Record | Damage]:
    """The whole file as one document, decoded by what it is."""
    data, damage = read_whole(name, options)
    yield from damage
    if data is None:
        return
    text, encoding = decode(data, declared=options.encoding)
    if text.strip():
        yield {"text": text, "encoding": encoding, "offset": 0, "meta": {}}
    elif not damage:
        yield Damage(name, 0, "empty file")


def lines(name: str, options: Options) -> Iterator[tuple[int, bytes | Damage]]:
    """(offset in the decompressed bytes, line without its newline); too long lines and cut-short files as `Damage`.

    With a byte range, the lines that begin inside it: ranges that touch give every line once.
    """
    limit = options.max_record_bytes
    with open_bytes(name) as file:
        offset, skip_first = options.start, False
        if options.start:
            file.seek(options.start - 1)
            skip_first, offset = True, options.start - 1
        pending, skipping = bytearray(), 0
        for block in blocks(file) if not options.start else _plain(file):
            if isinstance(block, Cut):
                yield offset, Damage(name, block.offset, block.what)
                break
            position = 0
            while (found := block.find(b"\n", position)) >= 0:
                piece = block[position:found]
                length = len(pending) + skipping + len(piece) + 1
                if not skip_first:
                    if options.end is not None and offset >= options.end:
                        return
                    if skipping or len(pending) + len(piece) > limit:
                        yield (
                            offset,
                            Damage(name, offset, f"record longer than {limit} bytes", length - 1, _sample(pending)),
                        )
                    else:
                        yield offset, bytes(pending + piece) if pending else piece
                skip_first = False
                offset += length
                position = found + 1
                if pending or skipping:
                    pending, skipping = bytearray(), 0
            rest = block[position:]
            if skipping:
                skipping += len(rest)
            elif len(pending) + len(rest) > limit:
                held = (pending + rest)[:200]
                skipping, pending = len(pending) + len(rest) - len(held), held
            else:
                pending += rest
        if (pending or skipping) and not skip_first and (options.end is None or offset < options.end):
            if skipping:
                yield (
                    offset,
                    Damage(
                        name, offset, f"record longer than {limit} bytes", len(pending) + skipping, _sample(pending)
                    ),
                )
            else:
                yield offset, bytes(pending)


def _plain(file: Any) -> Iterator[bytes | Cut]:
    while block := file.read(1 << 20):
        yield block


def _sample(line: bytes | bytearray) -> str:
    return bytes(line[:200]).decode("utf-8", "replace")
