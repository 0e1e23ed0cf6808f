"""Files that are either whole or absent, and hashes of what is in them.

Every artefact is written under a temporary name, flushed to the disk and renamed: the rename is the commit. Hashes are
XXH3-128 of the content, so a fingerprint means the same on every machine.
"""

from __future__ import annotations

import errno
import gzip
import io
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import xxhash

from penjing.errors import InputError, fault

_BLOCK = 1 << 20
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
SAMPLED_ABOVE_BYTES = 256 << 20
"""Files larger than this are fingerprinted by their size and 64 evenly spaced blocks of 1 MiB instead of every byte."""


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """A binary file that appears at `path` only when the block ends well; on any error nothing is left behind."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text so that `path` is either the old content or all of the new."""
    with atomic_write(path) as file:
        file.write(text.encode())


def write_json(path: Path, value: object) -> None:
    """Write `value` as readable JSON with keys in the given order, atomically."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """The JSON value in `path`; InputError when it is absent or not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(fault("file not found", where=path)) from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(fault("not readable as JSON", where=path, found=str(error))) from error


def canonical_json(value: object) -> str:
    """The one spelling of `value` that fingerprints are made of: sorted keys, no spaces."""
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"), default=str)


def hash_text(text: str) -> str:
    """XXH3-128 of the UTF-8 bytes, as 32 hexadecimal digits."""
    return xxhash.xxh3_128_hexdigest(text.encode())


def hash_file(path: Path) -> str:
    """XXH3-128 of a file's content (for very large files of its size and sampled blocks, marked `s:`)."""
    size = path.stat().st_size
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        if size <= SAMPLED_ABOVE_BYTES:
            while block := file.read(_BLOCK):
                digest.update(block)
            return digest.hexdigest()
        digest.update(str(size).encode())
        for index in range(64):
            file.seek((size - _BLOCK) * index // 63)
            digest.update(file.read(_BLOCK))
    return f"s:{digest.hexdigest()}"


def hash_tree(path: Path, *, ignore: frozenset[str] = frozenset()) -> str:
    """One hash of a file, or of a directory's relative names and contents; entries named in `ignore` do not count."""
    if path.is_file():
        return hash_file(path)
    if not path.is_dir():
        raise InputError(fault("no such file or directory", where=path))
    lines = []
    for file in sorted(path.rglob("*")):
        relative = file.relative_to(path)
        if file.is_file() and not ignore.intersection(relative.parts):
            lines.append(f"{relative.as_posix()}\t{hash_file(file)}")
    return hash_text("\n".join(lines))


def size_of(path: Path) -> int:
    """Bytes in a file or under a directory."""
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


@contextmanager
def disk_faults(where: Path) -> Iterator[None]:
    """Turn a full disk or a read-only place into an InputError that says what to do."""
    try:
        yield
    except OSError as error:
        code = error.errno or next((code for code in _FULL if os.strerror(code) in str(error)), None)  # Arrow keeps it in the text
        if code in _FULL:
            text = fault("no space left on the disk", where=where, fix="free some space and run the same command again; "
                         "everything finished so far is kept")
            raise InputError(text) from error
        if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise InputError(fault("cannot be written", where=where, found=error.strerror, fix="choose another "
                                   "directory or change its permissions; everything finished so far is kept")) from error
        raise


def open_text_bytes(path: Path) -> BinaryIO:
    """The decompressed bytes of a plain, `.gz` or `.zst` file, chosen by its first bytes, not its name."""
    with path.open("rb") as probe:
        magic = probe.read(4)
    if magic[:2] == b"\x1f\x8b":
        return gzip.open(path, "rb")  # type: ignore[return-value]
    if magic == b"\x28\xb5\x2f\xfd":
        import zstandard

        reader = zstandard.ZstdDecompressor().stream_reader(path.open("rb"), closefd=True, read_across_frames=True)
        return io.BufferedReader(reader)
    return path.open("rb")
