"""Token shards: Megatron-LM's stock pair of files, `<name>.bin` (ids, nothing else) and `<name>.idx` (where each
sequence is).

The index is little-endian: 9 bytes magic, u64 version 1, u8 dtype code, u64 sequences, u64 document marks, i32
lengths in tokens, i64 byte offsets into .bin, i64 document marks (the first sequence of every document, then the
number of sequences). A document may hold several sequences; penjing's supervised documents hold two, the prompt and
the answer.

Nothing is summed or copied when a shard is opened: the arrays are mapped, so opening costs the same at any size.
Offsets are 64-bit from the first to the last operation (an i32 sum wraps at 2 GiB under NumPy 2).
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
import xxhash
from numpy.typing import NDArray

from penjing.errors import InputError, fault
from penjing.files import atomic_write, disk_faults

MAGIC = b"MMIDIDX\x00\x00"
HEADER = struct.Struct("<9sQBQQ")
"""magic, version, dtype code, sequences, document marks: 34 bytes."""

DTYPES: dict[int, np.dtype] = {
    1: np.dtype("<u1"), 2: np.dtype("<i1"), 3: np.dtype("<i2"), 4: np.dtype("<i4"), 5: np.dtype("<i8"),
    8: np.dtype("<u2"),
}
"""Megatron's dtype codes for integers. 6 and 7 are floats, in an order that differs between versions, and hold no
ids."""

_BLOCK = 16 << 20


def dtype_for(vocab_size: int) -> np.dtype:
    """Megatron's rule: 16 bits unsigned below 65,500 ids, 32 bits signed from there on."""
    return np.dtype("<u2") if vocab_size < 65500 else np.dtype("<i4")


@dataclass(frozen=True)
class Shard:
    """An opened shard. All arrays are views into mapped files."""

    prefix: Path
    ids: NDArray[np.integer]
    """Every token of the shard, in the file's dtype."""
    lengths: NDArray[np.int32]
    """Tokens in each sequence."""
    offsets: NDArray[np.int64]
    """First byte of each sequence in .bin."""
    marks: NDArray[np.int64]
    """First sequence of each document, and the number of sequences as the last mark."""

    @property
    def dtype(self) -> np.dtype:
        """How ids are stored."""
        return self.ids.dtype

    @property
    def sequences(self) -> int:
        """Number of sequences."""
        return len(self.lengths)

    @property
    def documents(self) -> int:
        """Number of documents."""
        return max(len(self.marks) - 1, 0)

    @property
    def tokens(self) -> int:
        """Tokens in .bin."""
        return len(self.ids)

    def sequence(self, index: int) -> NDArray[np.integer]:
        """The ids of one sequence, a view."""
        start = int(self.offsets[index]) // self.dtype.itemsize
        return self.ids[start : start + int(self.lengths[index])]

    def document(self, index: int) -> list[NDArray[np.integer]]:
        """The sequences of one document."""
        return [self.sequence(i) for i in range(int(self.marks[index]), int(self.marks[index + 1]))]


def files_of(prefix: Path) -> tuple[Path, Path]:
    """`<prefix>.bin` and `<prefix>.idx` (a prefix may hold dots)."""
    return prefix.with_name(prefix.name + ".bin"), prefix.with_name(prefix.name + ".idx")


def open_shard(prefix: Path) -> Shard:
    """The shard at `prefix`; InputError, with file and byte offset, for a wrong header or a file that is cut short."""
    bin_path, idx_path = files_of(prefix)
    for path in (idx_path, bin_path):
        if not path.is_file():
            raise InputError(fault("file not found", where=path, expected="a .bin/.idx pair"))
    dtype, sequences, marks_count, raw = _open_index(idx_path)
    at = HEADER.size
    lengths = np.frombuffer(raw, "<i4", sequences, at)
    at += 4 * sequences
    offsets = np.frombuffer(raw, "<i8", sequences, at)
    at += 8 * sequences
    marks = np.frombuffer(raw, "<i8", marks_count, at)
    size = bin_path.stat().st_size
    end = int(offsets[-1]) + int(lengths[-1]) * dtype.itemsize if sequences else 0
    if size < end:
        raise InputError(fault("token file is cut short", where=bin_path, found=f"{size} bytes",
                               expected=f"{end} bytes ({idx_path.name} points there)", fix="copy or tokenise it again"))
    if size % dtype.itemsize:
        raise InputError(fault("token file does not hold whole ids", where=bin_path, found=f"{size} bytes",
                               expected=f"a multiple of {dtype.itemsize} (dtype {dtype.name})"))
    ids = np.memmap(bin_path, dtype, "r") if size else np.zeros(0, dtype)
    return Shard(prefix, np.asarray(ids), lengths, offsets, marks)


def _open_index(path: Path) -> tuple[np.dtype, int, int, NDArray[np.uint8]]:
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(HEADER.size)
    if head[: len(MAGIC)] != MAGIC:
        raise InputError(fault("wrong magic at byte 0", where=path, found=repr(head[: len(MAGIC)]),
                               expected=repr(MAGIC),
                               fix="this is not a Megatron memory-mapped index"))
    if len(head) < HEADER.size:
        raise InputError(fault("index is cut short inside its header", where=path, found=f"{size} bytes",
                               expected=f"at least {HEADER.size}"))
    _, version, code, sequences, marks = HEADER.unpack(head)
    if version != 1:
        raise InputError(fault("unknown index version at byte 9", where=path, found=version, expected=1))
    if code not in DTYPES:
        raise InputError(fault("no integer dtype at byte 17", where=path, found=f"code {code}",
                               expected=f"one of {', '.join(map(str, sorted(DTYPES)))}"))
    expected = HEADER.size + 12 * sequences + 8 * marks
    if size != expected:
        raise InputError(fault("index has the wrong size for its header", where=path, found=f"{size} bytes",
                               expected=f"{expected} bytes for {sequences} sequences and {marks} document marks",
                               fix="it is cut short, or not a stock index (objectives.openba_index reads OpenBA's)"))
    return DTYPES[code], sequences, marks, np.memmap(path, np.uint8, "r")


def without_gaps(shard: Shard) -> bool:
    """Whether every sequence begins where the one before ends."""
    return bool(np.all(np.diff(shard.offsets) == shard.lengths[:-1].astype(np.int64) * shard.dtype.itemsize))


def index_bytes(dtype: np.dtype, lengths: NDArray[np.integer], marks: NDArray[np.integer]) -> bytes:
    """The stock .idx for sequences that follow each other without gaps."""
    code = next(code for code, known in DTYPES.items() if known == dtype)
    lengths = np.asarray(lengths, np.int64)
    if len(lengths) and (lengths.min() < 0 or lengths.max() > np.iinfo(np.int32).max):
        raise InputError(fault("a sequence is too long for the index", found=int(lengths.max()),
                               expected=f"0 to {np.iinfo(np.int32).max} tokens"))
    offsets = np.zeros(len(lengths), np.int64)
    np.cumsum(lengths[:-1] * dtype.itemsize, out=offsets[1:])
    return b"".join((HEADER.pack(MAGIC, 1, code, len(lengths), len(marks)), lengths.astype("<i4").tobytes(),
                     offsets.astype("<i8").tobytes(), np.asarray(marks).astype("<i8").tobytes()))


class ShardWriter:
    """Writes one shard, document by document; both files appear together, .idx last, when the block ends well."""

    def __init__(self, prefix: Path, *, dtype: np.dtype) -> None:
        self.prefix = prefix
        self.dtype = np.dtype(dtype)
        self.tokens = 0
        self._bin, self._idx = files_of(prefix)
        self._temporary = self._bin.with_name(f".{self._bin.name}.{os.getpid()}.tmp")
        self._lengths: list[NDArray[np.int64]] = []
        self._marks: list[NDArray[np.int64]] = []
        self._sequences = 0
        self._digest = xxhash.xxh3_128()
        self._waiting: list[NDArray[np.integer]] = []
        self._waiting_tokens = 0
        prefix.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._temporary.open("wb")

    def __enter__(self) -> ShardWriter:
        return self

    def add(self, *sequences: NDArray[np.integer]) -> None:
        """Append one document made of these sequences."""
        self._mark([len(part) for part in sequences], [0])
        self._waiting += sequences
        self._waiting_tokens += sum(map(len, sequences))
        if self._waiting_tokens >= 1 << 20:
            self._flush()

    def extend(self, shard: Shard) -> None:
        """Append every document of another shard; InputError when it stores ids in another dtype."""
        if shard.dtype != self.dtype:
            raise InputError(fault("shards of different dtypes cannot be merged", where=files_of(shard.prefix)[1],
                                   found=shard.dtype.name, expected=self.dtype.name,
                                   fix="tokenise both for the same vocabulary size"))
        self._flush()
        self._mark(shard.lengths, shard.marks[:-1])
        if shard.sequences and without_gaps(shard):
            first = int(shard.offsets[0]) // self.dtype.itemsize
            total = int(shard.lengths.sum(dtype=np.int64))
            for start in range(first, first + total, _BLOCK):
                self._put(shard.ids[start : min(start + _BLOCK, first + total)])
        else:
            for index in range(shard.sequences):
                self._put(shard.sequence(index))

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        try:
            if kind is None:
                with disk_faults(self._bin):
                    self._flush()
                    self._file.flush()
                    os.fsync(self._file.fileno())
                    lengths = np.concatenate(self._lengths) if self._lengths else np.zeros(0, np.int64)
                    marks = np.concatenate([*self._marks, np.array([self._sequences], np.int64)])
                    self._temporary.replace(self._bin)
                    with atomic_write(self._idx) as file:
                        file.write(index_bytes(self.dtype, lengths, marks))
        finally:
            self._file.close()
            self._temporary.unlink(missing_ok=True)

    @property
    def checksum(self) -> str:
        """XXH3-128 of the .bin, once the block has ended."""
        return self._digest.hexdigest()

    def _mark(self, lengths: Sequence[int] | NDArray[np.integer], firsts: Sequence[int] | NDArray[np.integer]) -> None:
        self._lengths.append(np.asarray(lengths, np.int64))
        self._marks.append(np.asarray(firsts, np.int64) + self._sequences)
        self._sequences += len(lengths)

    def _flush(self) -> None:
        if self._waiting:
            self._put(np.concatenate(self._waiting))
            self._waiting, self._waiting_tokens = [], 0

    def _put(self, ids: NDArray[np.integer]) -> None:
        if len(ids) and ids.dtype != self.dtype:
            bounds = np.iinfo(self.dtype)
            if int(ids.min()) < bounds.min or int(ids.max()) > bounds.max:
                raise InputError(fault("an id does not fit the shard's dtype", where=self._bin, found=int(ids.max()),
                                       expected=f"{bounds.min} to {bounds.max} ({self.dtype.name})"))
        data = np.ascontiguousarray(ids, self.dtype).tobytes()
        self._digest.update(data)
        with disk_faults(self._bin):
            self._file.write(data)
        self.tokens += len(ids)


def merge(prefixes: Iterable[Path], out: Path) -> Shard:
    """One shard at `out` with the documents of all `prefixes`, in their order; they must share a dtype."""
    shards = [open_shard(prefix) for prefix in prefixes]
    if not shards:
        raise InputError(fault("nothing to merge", where=out))
    with ShardWriter(out, dtype=shards[0].dtype) as writer:
        for shard in shards:
            writer.extend(shard)
    return open_shard(out)


def append(prefix: Path, more: Path) -> Shard:
    """The shard at `prefix` with the documents of `more` behind its own; the old files stay until the new are whole."""
    return merge([prefix, more], prefix)


def checksum(prefix: Path) -> str:
    """XXH3-128 of the .bin."""
    digest = xxhash.xxh3_128()
    with files_of(prefix)[0].open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def verify(prefix: Path, *, vocab_size: int | None = None, expected_checksum: str | None = None) -> Shard:
    """Read everything and check it: offsets, marks, the range of the ids, the checksum. InputError names file and
    offset."""
    shard = open_shard(prefix)
    bin_path, idx_path = files_of(prefix)
    at = HEADER.size
    if shard.sequences:
        if int(shard.lengths.min()) < 0:
            bad = int(np.argmax(shard.lengths < 0))
            raise InputError(fault(f"negative length at byte {at + 4 * bad}", where=idx_path,
                                   found=int(shard.lengths[bad])))
        size = shard.dtype.itemsize
        ends = shard.offsets + shard.lengths.astype(np.int64) * size
        wrong = (shard.offsets < 0) | (ends > shard.tokens * size) | (shard.offsets % size != 0)
        if wrong.any():
            bad = int(np.argmax(wrong))
            byte = at + 4 * shard.sequences + 8 * bad
            raise InputError(fault(f"sequence {bad} points outside the token file, at byte {byte}", where=idx_path,
                                   found=f"bytes {int(shard.offsets[bad])} to {int(ends[bad])}",
                                   expected=f"within {shard.tokens * size} bytes of {bin_path.name}"))
    at += 12 * shard.sequences
    if len(shard.marks) and (int(shard.marks[0]) != 0 or int(shard.marks[-1]) != shard.sequences
                             or bool(np.any(np.diff(shard.marks) < 0))):
        raise InputError(fault(f"document marks from byte {at} on are not rising from 0 to the number of sequences",
                               where=idx_path, found=f"{int(shard.marks[0])} … {int(shard.marks[-1])}",
                               expected=f"0 … {shard.sequences}"))
    for start in range(0, shard.tokens, _BLOCK):
        block = shard.ids[start : start + _BLOCK]
        if vocab_size is not None and len(block) and (int(block.max()) >= vocab_size or int(block.min()) < 0):
            bad = start + int(np.argmax((block >= vocab_size) | (block < 0)))
            raise InputError(fault(f"id beyond the vocabulary at byte {bad * shard.dtype.itemsize}", where=bin_path,
                                   found=int(shard.ids[bad]), expected=f"0 to {vocab_size - 1}",
                                   fix="these tokens were made with another tokenizer"))
    if expected_checksum is not None and (found := checksum(prefix)) != expected_checksum:
        raise InputError(fault("checksum differs", where=bin_path, found=found, expected=expected_checksum,
                               fix="the file was changed or damaged after it was written; tokenise again"))
    return shard
