"""Bytes of a local file or a URL, decompressed as they come, with damage reported instead of raised.

Kinds of compression are told by their first bytes. Gzip files of many members (WARC, WET, log files) are read member by
member; a file that is cut short gives everything before the cut and then one `Cut`.
"""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from penjing.errors import ConfigError, InputError, fault

BLOCK = 1 << 20


@dataclass(frozen=True)
class Cut:
    """The decompressed stream ends here, too early: offset in the compressed file, and why."""

    offset: int
    what: str


def is_url(name: str) -> bool:
    """Whether `name` is a URL for fsspec (`s3://…`, `hf://…`, `https://…`)."""
    scheme = name.partition("://")[0]
    return "://" in name and scheme.replace("+", "").replace("-", "").isalnum() and len(scheme) > 1


def open_bytes(name: str) -> BinaryIO:
    """The file as it is, compressed or not; InputError when it is not there."""
    if is_url(name):
        return _fsspec(name).open(name, "rb").open()
    try:
        return Path(name).open("rb")
    except OSError as error:
        raise InputError(fault("cannot be read", where=name, found=error.strerror)) from error


def expand_url(name: str) -> list[str]:
    """The files behind a URL: itself, everything under it, or what its glob matches, sorted."""
    fsspec = _fsspec(name)
    try:
        files, root = fsspec.core.url_to_fs(name)
        scheme = name.partition("://")[0]
        if any(mark in root for mark in "*?["):
            found = files.glob(root)
        elif files.isdir(root):
            found = files.find(root)
        else:
            found = [root] if files.exists(root) else []
    except (ImportError, ValueError, OSError) as error:
        raise InputError(fault("URL cannot be opened", where=name, found=str(error)[:200])) from error
    return sorted(f"{scheme}://{str(item).lstrip('/') if scheme != 'file' else item}" for item in found)


def blocks(file: BinaryIO, *, resume: bool = False) -> Iterator[bytes | Cut]:
    """Decompressed blocks of an open file, at most about 1 MiB of input at a time; at most one `Cut`, the last item.

    With `resume`, reading goes on after a damaged gzip member with the next one that can be found, after a `Cut` for each.
    """
    first = file.read(BLOCK)
    make = _decompressor(first[:6])
    if make is None:
        while first:
            yield first
            first = file.read(BLOCK)
        return
    machine, started, offset, block = make(), False, 0, first
    while block:
        try:
            data = machine.decompress(block)
            started = True
        except (zlib.error, lzma.LZMAError, OSError, ValueError, _zstd_error()) as error:
            yield Cut(offset, f"damaged compressed data: {error}")
            if not resume or make is not _Gzip:
                return
            skipped, block = _next_member(file, block[2:])
            machine, started, offset = make(), False, offset + 2 + skipped
            continue
        if data:
            yield data
        rest = machine.unused_data if machine.eof else b""
        offset += len(block) - len(rest)
        if machine.eof:
            rest = rest.lstrip(b"\0") or b""
            machine, started = make(), False
        block = rest or file.read(BLOCK)
    if started:
        yield Cut(offset, "compressed data is cut short")


def _next_member(file: BinaryIO, block: bytes) -> tuple[int, bytes]:
    """(bytes passed over, what follows) up to the next gzip header; nothing follows at the end."""
    passed = 0
    while block:
        found = block.find(b"\x1f\x8b\x08")
        if found >= 0:
            return passed + found, block[found:] + file.read(BLOCK)
        passed += max(0, len(block) - 2)
        more = file.read(BLOCK)
        block = block[-2:] + more if more else b""
    return passed, b""


class _Gzip:
    def __init__(self) -> None:
        self._machine = zlib.decompressobj(31)

    def decompress(self, data: bytes) -> bytes:
        return self._machine.decompress(data)

    @property
    def eof(self) -> bool:
        return self._machine.eof

    @property
    def unused_data(self) -> bytes:
        return self._machine.unused_data


def _decompressor(magic: bytes) -> Any:
    if magic[:2] == b"\x1f\x8b":
        return _Gzip
    if magic[:4] == b"\x28\xb5\x2f\xfd":
        import zstandard

        return lambda: zstandard.ZstdDecompressor().decompressobj()
    if magic[:6] == b"\xfd7zXZ\x00":
        return lzma.LZMADecompressor
    if magic[:3] == b"BZh":
        return bz2.BZ2Decompressor
    return None


def _zstd_error() -> type[Exception]:
    import zstandard

    return zstandard.ZstdError


def _fsspec(name: str) -> Any:
    try:
        import fsspec
    except ModuleNotFoundError as error:
        raise ConfigError(
            fault("URLs need the fsspec package", where=name, fix="pip install 'penjing[web]'")
        ) from error
    return fsspec
