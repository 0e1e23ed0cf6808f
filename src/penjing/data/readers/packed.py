"""The body of an HTTP response as it was before it was sent: chunks joined, content encodings undone, with a bound on its size.

Gzip, deflate (with and without its header), Zstandard, and Brotli (`pip install brotli`); several, one inside the other, as the
header lists them. Servers that say a page is packed when it is not are common, so text that begins like a page is taken as it is.
"""

from __future__ import annotations

import importlib
import io
import zlib
from typing import Any

_PLAIN = ("", "identity", "none", "utf-8")
_GZIP = ("gzip", "x-gzip", "deflate")
_STRETCH = 1 << 16


class TooLongError(ValueError):
    """More bytes than allowed come out."""


def unpack(content: bytes, *, transfer: str, encoding: str, limit: int) -> bytes | str:
    """The content, or in words why it cannot be read. `transfer` and `encoding` are the values of the two headers."""
    if "chunked" in transfer.lower():
        content = _unchunk(content)
    names = [name.strip() for name in encoding.lower().split(",")]
    for name in reversed(names):
        if name in _PLAIN:
            continue
        try:
            found = _undo(content, name, limit)
        except TooLongError:
            return f"record longer than {limit} bytes"
        except ModuleNotFoundError:
            return "content encoding br needs the brotli package: pip install brotli"
        if found is None:
            if content.lstrip()[:1] == b"<":  # said to be packed but is not
                continue
            return f"content encoding {name} cannot be read"
        content = found
    return content


def _undo(content: bytes, name: str, limit: int) -> bytes | None:
    if name in _GZIP:
        for bits in (47, -15):
            machine = zlib.decompressobj(bits)
            try:
                data = machine.decompress(content, limit + 1)
            except zlib.error:
                continue
            if len(data) > limit:
                raise TooLongError
            return data
        return None
    if name == "zstd":
        return _unzstd(content, limit)
    return _unbrotli(content, limit) if name == "br" else None


def _unzstd(content: bytes, limit: int) -> bytes | None:
    import zstandard

    try:
        with zstandard.ZstdDecompressor().stream_reader(io.BytesIO(content), read_across_frames=True) as reader:
            data = reader.read(limit + 1)
    except zstandard.ZstdError:
        return None
    if len(data) > limit:
        raise TooLongError
    return data


def _unbrotli(content: bytes, limit: int) -> bytes | None:
    brotli: Any = importlib.import_module("brotli")
    machine = brotli.Decompressor()
    data = bytearray()
    try:
        for start in range(0, len(content), _STRETCH):
            data += machine.process(content[start : start + _STRETCH])
            if len(data) > limit:
                raise TooLongError
    except brotli.error:
        return None
    return bytes(data) if machine.is_finished() or data else None


def _unchunk(content: bytes) -> bytes:
    """Chunks put together; content that is not in chunks, whatever the header says, as it is."""
    parts: list[bytes] = []
    position = 0
    while position < len(content):
        end = content.find(b"\n", position, position + 64)
        try:
            size = int(content[position:end].split(b";")[0].strip(), 16) if end >= 0 else -1
        except ValueError:
            size = -1
        if size < 0:
            return b"".join(parts) + content[position:]
        if size == 0:
            break
        parts.append(content[end + 1 : end + 1 + size])
        position = end + 1 + size
        position += 2 if content[position : position + 2] == b"\r\n" else 1
    return b"".join(parts)
