"""Bytes of a local file or a URL, decompressed as they come, with damage reported instead of raised.

Kinds of compression are told by their first bytes. Gzip files of many members (WARC, WET, log files) are read member by
member; a file that is cut short gives everything before the cut and then one `Cut`.
"""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
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
        with _url_faults(name):
            opened: BinaryIO = _fsspec(name).open(name, "rb").open()
            return opened
    try:
        return Path(name).open("rb")
    except OSError as error:
        raise InputError(fault("cannot be read", where=name, found=error.strerror)) from error


def expand_url(name: str) -> list[str]:
    """The files behind a URL: itself, everything under it, or what its glob matches, sorted."""
    fsspec = _fsspec(name)
    with _url_faults(name):
        files, root = fsspec.core.url_to_fs(name)
        scheme = name.partition("://")[0]
        if any(mark in root for mark in "*?["):
            found = files.glob(root)
        elif files.isdir(root):
            found = files.find(root)
        else:
            found = [root] if files.exists(root) else []
    return sorted(f"{scheme}://{str(item).lstrip('/') if scheme != 'file' else item}" for item in found)


_PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "hf": "huggingface_hub", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs",
             "oss": "ossfs", "http": "aiohttp requests", "https": "aiohttp requests"}


@contextmanager
def _url_faults(name: str) -> Iterator[None]:
    """Say what is missing for a kind of URL, or why one cannot be opened."""
    scheme = name.partition("://")[0]
    try:
        yield
    except ImportError as error:
        package = _PACKAGES.get(scheme, "the package that fsspec names")
        raise ConfigError(fault(f"{scheme}:// URLs need another package", where=name, found=str(error)[:200],
                                fix=f"pip install {package}")) from error
    except Exception as error:  # every kind of storage has network errors of its own
        raise InputError(fault("URL cannot be opened", where=name, found=str(error)[:200] or type(error).__name__)) from error


def blocks(file: BinaryIO, *, resume: bool = False) -> Iterator[bytes | Cut]:
    """Decompressed blocks of an open file, each about 1 MiB at most however well the file is compressed; at most one `Cut`, the
    last item.

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
            for data in machine.pieces(block):
                started = True
                if data:
                    yield data
        except (zlib.error, lzma.LZMAError, OSError, ValueError, _zstd_error()) as error:
            yield Cut(offset, f"damaged compressed data: {error}")
            if not resume or make is not _Gzip:
                return
            skipped, block = _next_member(file, block[2:])
            machine, started, offset = make(), False, offset + 2 + skipped
            continue
        rest = machine.rest
        offset += len(block) - len(rest)
        if machine.eof:
            rest = rest.lstrip(b"\0")
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
    """One gzip member. `pieces` decompresses a block, at most `BLOCK` bytes at a time; `rest` is what stands after the member."""

    def __init__(self) -> None:
        self._machine = zlib.decompressobj(31)

    def pieces(self, block: bytes) -> Iterator[bytes]:
        while True:
            data = self._machine.decompress(block, BLOCK)
            block = self._machine.unconsumed_tail
            yield data
            if self.eof or (not block and len(data) < BLOCK):
                return

    @property
    def eof(self) -> bool:
        return self._machine.eof

    @property
    def rest(self) -> bytes:
        return self._machine.unused_data


class _Held:
    """The same for xz and bzip2, whose decompressors keep what they have not used."""

    def __init__(self, machine: Any) -> None:
        self._machine = machine

    def pieces(self, block: bytes) -> Iterator[bytes]:
        yield self._machine.decompress(block, BLOCK)
        while not self.eof and not self._machine.needs_input:
            yield self._machine.decompress(b"", BLOCK)

    @property
    def eof(self) -> bool:
        return bool(self._machine.eof)

    @property
    def rest(self) -> bytes:
        return bytes(self._machine.unused_data)


class _Zstd:
    """The same for a Zstandard frame. Its decompressor gives out all that a piece of input holds, so pieces are small."""

    _PIECE = 1 << 10

    def __init__(self) -> None:
        import zstandard

        self._machine = zstandard.ZstdDecompressor().decompressobj()
        self.rest = b""

    def pieces(self, block: bytes) -> Iterator[bytes]:
        held = bytearray()
        for at in range(0, len(block), self._PIECE):
            held += self._machine.decompress(block[at : at + self._PIECE])
            if self.eof:
                self.rest = self._machine.unused_data + block[at + self._PIECE :]
                break
            if len(held) >= BLOCK:
                yield bytes(held)
                held.clear()
        yield bytes(held)

    @property
    def eof(self) -> bool:
        return self._machine.eof


def _decompressor(magic: bytes) -> Any:
    if magic[:2] == b"\x1f\x8b":
        return _Gzip
    if magic[:4] == b"\x28\xb5\x2f\xfd":
        return _Zstd
    if magic[:6] == b"\xfd7zXZ\x00":
        return lambda: _Held(lzma.LZMADecompressor())
    if magic[:3] == b"BZh":
        return lambda: _Held(bz2.BZ2Decompressor())
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
