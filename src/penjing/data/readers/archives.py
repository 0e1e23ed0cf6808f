"""WARC and WET archives, and tar archives of pages. Records are read one by one; damage is reported and stepped over.

A gzip member that is damaged, or a record whose length is wrong, costs what stands up to the next record that can be found.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator
from typing import Any, BinaryIO

from penjing.data.encoding import decode
from penjing.data.readers import Damage, Options, Record, kind_of
from penjing.data.readers.packed import unpack
from penjing.data.readers.pages import page_record
from penjing.data.readers.stream import Cut, blocks, open_bytes
from penjing.data.readers.whole import Unpacked

_VERSION = re.compile(rb"WARC/[01]\.\d\d?\r?\n")
_HTML = ("text/html", "application/xhtml")


class _Stream:
    """Decompressed bytes with look-ahead; `cuts` holds damage of the compression that stands behind what is held."""

    def __init__(self, file: BinaryIO) -> None:
        self._blocks = blocks(file, resume=True)
        self._held = bytearray()
        self.offset = 0
        self.cuts: list[Cut] = []
        self.lost: list[Cut] = []
        self.reported: Cut | None = None

    def fill(self, size: int) -> bool:
        """Hold at least `size` bytes when there are that many before the end or the next damage."""
        while len(self._held) < size and not self.cuts:
            block = next(self._blocks, None)
            if block is None:
                return False
            if isinstance(block, Cut):
                self.cuts.append(block)
            else:
                self._held += block
        return len(self._held) >= size

    def take(self, size: int) -> bytes:
        """The next bytes, at most `size`."""
        self.fill(size)
        data = bytes(self._held[:size])
        del self._held[:size]
        self.offset += len(data)
        return data

    def skip(self, size: int) -> int:
        """Step over bytes; how many there were."""
        left = size
        while left > 0:
            got = len(self.take(min(left, 1 << 20)))
            if not got:
                break
            left -= got
        return size - left

    def seek_record(self) -> bool:
        """Go to the next record; False at the end. Damage that is stepped over on the way is put into `lost`."""
        while True:
            self.fill(16)
            found = _VERSION.search(self._held)
            if found:
                self.offset += found.start()
                del self._held[: found.start()]
                return True
            if self.cuts:  # nothing that is held before the damage begins a record
                self.offset += len(self._held)
                self._held.clear()
                self.lost.extend(cut for cut in self.cuts if cut is not self.reported)
                self.cuts.clear()
                continue
            keep = min(len(self._held), 12)
            self.offset += len(self._held) - keep
            del self._held[: len(self._held) - keep]
            if not self.fill(keep + 1) and not self.cuts:
                return False

    def why(self, otherwise: str) -> str:
        """What ended the bytes: the damage, now reported, or `otherwise`."""
        if self.cuts:
            self.reported = self.cuts[0]
            return self.cuts[0].what
        return otherwise

    def head(self, limit: int = 1 << 16) -> bytes | None:
        """A block of header lines with the blank line after it, None when it does not end."""
        size = 1024
        while True:
            whole = self.fill(size)
            for mark in (b"\r\n\r\n", b"\n\n"):
                found = self._held.find(mark, 0, size)
                if found >= 0:
                    return self.take(found + len(mark))
            if not whole or size >= limit:
                return None
            size *= 4


def read_warc(name: str, options: Options) -> Iterator[Record | Damage]:
    """Pages of responses (2xx, HTML or plain text) and texts of conversion records (WET); other records are stepped over."""
    with open_bytes(name) as file:
        stream = _Stream(file)
        records = 0
        while True:
            at = stream.offset
            more = stream.seek_record()
            for cut in stream.lost:
                yield Damage(name, cut.offset, cut.what)
            stream.lost.clear()
            if not more:
                break
            if stream.offset - at > 4 and records:
                yield Damage(name, at, "bytes between records", stream.offset - at)
            at = stream.offset
            records += 1
            head = stream.head()
            if head is None:
                yield Damage(name, at, stream.why("record header does not end"))
                stream.take(1)
                continue
            fields = _fields(head)
            length = fields.get("content-length", "")
            if not length.isdigit():
                yield Damage(name, at, "record without a length", len(head), head[:200].decode("utf-8", "replace"))
                continue
            size = int(length)
            if size > options.max_record_bytes:
                yield Damage(name, at, f"record longer than {options.max_record_bytes} bytes", size)
                stream.skip(size)
                continue
            body = stream.take(size)
            if len(body) < size:
                yield Damage(name, at, stream.why("record is cut short"), len(body))
                continue
            found = _document(fields, body, name, at, options)
            if found is not None:
                yield found
        if not records:
            yield Damage(name, 0, "no WARC records", stream.offset)


def read_tar(name: str, options: Options) -> Iterator[Record | Damage]:
    """Pages and texts in a tar archive, by their names; offset = place in the unpacked archive."""
    position = 0
    stream = Unpacked(name)
    wrong = ""
    try:
        with tarfile.open(fileobj=stream, mode="r|") as archive:  # type: ignore[call-overload]
            for member in archive:
                position = member.offset
                kind = kind_of(member.name)
                if not member.isfile() or kind not in ("html", "text", "markdown"):
                    continue
                if member.size > options.max_record_bytes:
                    yield Damage(name, position, f"record longer than {options.max_record_bytes} bytes", member.size)
                    continue
                opened = archive.extractfile(member)
                data = opened.read() if opened is not None else b""
                if kind == "html":
                    yield page_record(data, name, position, options, id=member.name)
                    continue
                text, encoding = decode(data, declared=options.encoding)
                yield {"text": text, "encoding": encoding, "offset": position, "id": member.name, "meta": {}}
    except (tarfile.TarError, EOFError, OSError, ValueError) as error:
        wrong = str(error)
    yield from stream.damage
    if wrong and not stream.damage:
        yield Damage(name, position, f"damaged tar archive: {wrong[:100]}")


def _fields(head: bytes) -> dict[str, str]:
    fields: dict[str, str] = {}
    for line in head.decode("utf-8", "replace").splitlines()[1:]:
        key, mark, value = line.partition(":")
        if mark:
            fields.setdefault(key.strip().lower(), value.strip())
    return fields


def _document(fields: dict[str, str], body: bytes, name: str, at: int, options: Options) -> Record | Damage | None:
    kind = fields.get("warc-type", "").lower()
    record_id = fields.get("warc-record-id", "").strip("<>") or None
    url = fields.get("warc-target-uri", "").strip("<>") or None
    more: dict[str, Any] = {key: value for key, value in (("id", record_id), ("url", url)) if value}
    if kind == "conversion":
        text, encoding = decode(body)
        if not text.strip():
            return Damage(name, at, "page without main text", len(body), url or "")
        return {"text": text, "encoding": encoding, "offset": at, "meta": _date(fields), **more}
    if kind == "resource" and fields.get("content-type", "").startswith(_HTML):
        return page_record(body, name, at, options, **more)
    if kind != "response" or not fields.get("content-type", "application/http").startswith("application/http"):
        return None
    cut = min((place for mark in (b"\r\n\r\n", b"\n\n") if (place := body.find(mark)) >= 0), default=-1)
    if cut < 0:
        return Damage(name, at, "response without a header", len(body), url or "")
    head = body[: cut + 2]
    content = body[cut:].removeprefix(b"\r\n\r\n").removeprefix(b"\n\n")
    status = head.split(None, 2)[1:2]
    http = _fields(head)
    media = http.get("content-type", "").lower()
    if not status or not status[0].startswith(b"2") or not (media.startswith((*_HTML, "text/plain")) or not media):
        return None
    packed = {"transfer": http.get("transfer-encoding", ""), "encoding": http.get("content-encoding", "")}
    unpacked = unpack(content, **packed, limit=options.max_record_bytes)
    if isinstance(unpacked, str):
        return Damage(name, at, unpacked, len(content), url or "")
    declared = media.partition("charset=")[2].strip("\"' ;") or None
    if media.startswith("text/plain"):
        text, encoding = decode(unpacked, declared=declared)
        return {"text": text, "encoding": encoding, "offset": at, "meta": _date(fields), **more} if text.strip() else None
    found = page_record(unpacked, name, at, options, declared=declared, **more)
    if isinstance(found, dict):
        found["meta"] = {**found["meta"], **_date(fields)}
    return found


def _date(fields: dict[str, str]) -> dict[str, str]:
    return {"date": fields["warc-date"]} if "warc-date" in fields else {}
