"""OpenBA's own index over pairs (source, target), which no stock reader understands; read, written, merged and converted here.

Header as stock up to the dtype code at byte 17, then u64 lengths (two per pair), u64 span-corruption pairs, u64 multi-task
pairs, i32 lengths, i64 byte offsets, i64 numbers of the span-corruption pairs, i64 numbers of the multi-task pairs. The target
of a span-corruption pair is empty.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from penjing.errors import InputError, fault
from penjing.files import atomic_write
from penjing.objectives.shards import DTYPES, MAGIC, ShardWriter, dtype_for, files_of

HEADER = struct.Struct("<9sQBQQQ")
"""magic, version, dtype code, lengths, span-corruption pairs, multi-task pairs: 42 bytes."""

_BLOCK = 16 << 20


@dataclass(frozen=True)
class Pairs:
    """An opened file of pairs; views into mapped files."""

    prefix: Path
    ids: NDArray[np.integer]
    lengths: NDArray[np.int32]
    offsets: NDArray[np.int64]
    span_corruption: NDArray[np.int64]
    """Numbers of the pairs that are plain text."""
    multitask: NDArray[np.int64]
    """Numbers of the pairs that are instruction and answer."""

    def __len__(self) -> int:
        return len(self.lengths) // 2

    def pair(self, number: int) -> tuple[NDArray[np.integer], NDArray[np.integer]]:
        """(source, target) of a pair."""
        source, target = (self._slot(2 * number + side) for side in (0, 1))
        return source, target

    def _slot(self, slot: int) -> NDArray[np.integer]:
        start = int(self.offsets[slot]) // self.ids.dtype.itemsize
        return self.ids[start : start + int(self.lengths[slot])]


def open_pairs(prefix: Path) -> Pairs:
    """The pairs at `prefix`; InputError with file and byte offset for a wrong header or a file that is cut short."""
    bin_path, idx_path = files_of(prefix)
    for path in (idx_path, bin_path):
        if not path.is_file():
            raise InputError(fault("file not found", where=path, expected="a .bin/.idx pair"))
    raw = idx_path.read_bytes()
    if raw[: len(MAGIC)] != MAGIC:
        raise InputError(fault("wrong magic at byte 0", where=idx_path, found=repr(raw[: len(MAGIC)]), expected=repr(MAGIC)))
    if len(raw) < HEADER.size:
        raise InputError(fault("index is cut short inside its header", where=idx_path, found=f"{len(raw)} bytes",
                               expected=f"at least {HEADER.size}"))
    _, version, code, slots, plain, tasks = HEADER.unpack_from(raw)
    expected = HEADER.size + 12 * slots + 8 * (plain + tasks)
    if version != 1 or code not in DTYPES or len(raw) != expected or plain + tasks != slots // 2:
        raise InputError(fault("not an OpenBA index of pairs", where=idx_path, expected=f"{expected} bytes for {slots} lengths, "
                               f"{plain} span-corruption and {tasks} multi-task pairs", found=f"{len(raw)} bytes",
                               fix="a stock index is read by objectives.shards"))
    at = HEADER.size
    lengths = np.frombuffer(raw, "<i4", slots, at)
    offsets = np.frombuffer(raw, "<i8", slots, at := at + 4 * slots)
    span_corruption = np.frombuffer(raw, "<i8", plain, at := at + 8 * slots)
    multitask = np.frombuffer(raw, "<i8", tasks, at + 8 * plain)
    dtype = DTYPES[code]
    size = bin_path.stat().st_size
    end = int(offsets[-1]) + int(lengths[-1]) * dtype.itemsize if slots else 0
    if size < end:
        raise InputError(fault("token file is cut short", where=bin_path, found=f"{size} bytes", expected=f"{end} bytes"))
    ids = np.asarray(np.memmap(bin_path, dtype, "r")) if size else np.zeros(0, dtype)
    return Pairs(prefix, ids, lengths, offsets, span_corruption, multitask)


def write_pairs(prefix: Path, pairs: Iterable[tuple[NDArray[np.integer], NDArray[np.integer]]], *, vocab_size: int) -> Pairs:
    """Write pairs; one with an empty target counts as span corruption, any other as multi-task."""
    dtype = dtype_for(vocab_size)
    lengths: list[int] = []
    bin_path, idx_path = files_of(prefix)
    with atomic_write(bin_path) as file:
        for source, target in pairs:
            for side in (source, target):
                lengths.append(len(side))
                file.write(np.ascontiguousarray(side, dtype).tobytes())
    with atomic_write(idx_path) as file:
        file.write(_index(dtype, np.array(lengths, np.int64)))
    return open_pairs(prefix)


def merge_pairs(prefixes: Sequence[Path], out: Path) -> Pairs:
    """One file with the pairs of all, in order; offsets stay 64-bit throughout. InputError for different dtypes."""
    parts = [open_pairs(prefix) for prefix in prefixes]
    if not parts:
        raise InputError(fault("nothing to merge", where=out))
    dtype = parts[0].ids.dtype
    for part in parts[1:]:
        if part.ids.dtype != dtype:
            raise InputError(fault("pairs of different dtypes cannot be merged", where=files_of(part.prefix)[1],
                                   found=part.ids.dtype.name, expected=dtype.name))
    bin_path, idx_path = files_of(out)
    with atomic_write(bin_path) as file:
        for part in parts:
            for start in range(0, len(part.ids), _BLOCK):
                file.write(part.ids[start : start + _BLOCK].tobytes())
    first = np.cumsum([0, *(len(part) for part in parts)])
    plain = np.concatenate([part.span_corruption + shift for part, shift in zip(parts, first, strict=False)])
    tasks = np.concatenate([part.multitask + shift for part, shift in zip(parts, first, strict=False)])
    lengths = np.concatenate([part.lengths for part in parts]).astype(np.int64)
    with atomic_write(idx_path) as file:
        file.write(_index(dtype, lengths, plain, tasks))
    return open_pairs(out)


def to_stock(prefix: Path, out: Path, *, eos_id: int) -> None:
    """Two stock shards: `<out>-text` with the span-corruption texts, `<out>-tasks` with prompts and answers. An empty kind
    is not written. Text that lacks eos at its end gets none: OpenBA's chunks run across documents."""
    pairs = open_pairs(prefix)
    for suffix, numbers in (("text", pairs.span_corruption), ("tasks", pairs.multitask)):
        if not len(numbers):
            continue
        with ShardWriter(out.with_name(f"{out.name}-{suffix}"), dtype=pairs.ids.dtype) as writer:
            for number in numbers.tolist():
                source, target = pairs.pair(number)
                if suffix == "tasks" and (not len(target) or int(target[-1]) != eos_id):
                    target = np.append(target, np.asarray(eos_id, target.dtype))
                writer.add(source) if suffix == "text" else writer.add(source, target)


def _index(dtype: np.dtype, lengths: NDArray[np.int64], plain: NDArray[np.int64] | None = None,
           tasks: NDArray[np.int64] | None = None) -> bytes:
    if plain is None or tasks is None:
        empty = lengths[1::2] == 0
        plain, tasks = np.flatnonzero(empty), np.flatnonzero(~empty)
    code = next(code for code, known in DTYPES.items() if known == dtype)
    offsets = np.zeros(len(lengths), np.int64)
    np.cumsum(lengths[:-1] * dtype.itemsize, out=offsets[1:])
    return b"".join((HEADER.pack(MAGIC, 1, code, len(lengths), len(plain), len(tasks)), lengths.astype("<i4").tobytes(),
                     offsets.astype("<i8").tobytes(), plain.astype("<i8").tobytes(), tasks.astype("<i8").tobytes()))
