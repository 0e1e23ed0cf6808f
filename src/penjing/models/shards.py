"""Weight files, opened without loading them: safetensors headers and row ranges, and `.bin` files read without running
code.

Weights travel as storage bits (a bfloat16 is an unsigned 16-bit number), so that cutting and copying never rounds.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from penjing.errors import InputError, fault
from penjing.files import atomic_write, disk_faults

STORAGE: dict[str, np.dtype[Any]] = {
    name: np.dtype(kind)
    for name, kind in {
        "F64": "<f8",
        "F32": "<f4",
        "F16": "<f2",
        "BF16": "<u2",
        "F8_E4M3": "u1",
        "F8_E5M2": "u1",
        "I64": "<i8",
        "I32": "<i4",
        "I16": "<i2",
        "I8": "i1",
        "U64": "<u8",
        "U32": "<u4",
        "U16": "<u2",
        "U8": "u1",
        "BOOL": "u1",
    }.items()
}
"""Safetensors dtype -> the NumPy type its bits are moved in."""
TORCH_NAMES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2", "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool",
    "U16": "uint16", "U32": "uint32", "U64": "uint64",
}
DTYPES = {torch_name: name for name, torch_name in TORCH_NAMES.items()}
"""PyTorch dtype name -> safetensors dtype."""
_MAX_HEADER_BYTES = 100 << 20
_WINDOW_BYTES = 64 << 20


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies: `file` from byte `offset`, in row-major order."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    offset: int

    @property
    def num_bytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * STORAGE[self.dtype].itemsize

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Shape of one step along the first dimension; a scalar counts as one row."""
        return self.shape[1:]


def read_header(path: Path) -> tuple[dict[str, Entry], dict[str, str]]:
    """The entries and the metadata of a safetensors file; InputError when it is truncated or not one."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(8)
            length = struct.unpack("<Q", head)[0] if len(head) == 8 else 0
            if length < 2 or length > min(size - 8, _MAX_HEADER_BYTES):
                raise InputError(fault("not a safetensors file, or truncated", where=path, found=f"{size:,} bytes"))
            header = json.loads(file.read(length))
    except FileNotFoundError as error:
        raise InputError(fault("weight file not found", where=path)) from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(fault("safetensors header is damaged", where=path, found=str(error))) from error
    if not isinstance(header, dict):
        raise InputError(fault("safetensors header is damaged", where=path, found=type(header).__name__, expected="an object"))
    metadata = header.pop("__metadata__", {})
    entries = {}
    for name, item in header.items():
        if not _is_entry(item):
            raise InputError(fault(f"safetensors header is damaged at tensor '{name}'", where=path, found=str(item)[:80],
                                   expected="dtype, shape and data_offsets"))
        if item["dtype"] not in STORAGE:
            raise InputError(
                fault(
                    f"tensor '{name}' has a dtype that cannot be read",
                    where=path,
                    found=item["dtype"],
                    expected=f"one of {', '.join(STORAGE)}",
                )
            )
        start, stop = item["data_offsets"]
        entry = Entry(name, item["dtype"], tuple(item["shape"]), path, 8 + length + start)
        if stop - start != entry.num_bytes:
            raise InputError(
                fault(
                    f"tensor '{name}' has the wrong number of bytes",
                    where=path,
                    found=stop - start,
                    expected=entry.num_bytes,
                )
            )
        if 8 + length + stop > size:
            raise InputError(
                fault(
                    "safetensors file is truncated",
                    where=path,
                    found=f"{size:,} bytes",
                    expected=f"{8 + length + stop:,}",
                    fix="fetch the file again",
                )
            )
        entries[name] = entry
    return entries, metadata


def _is_entry(item: object) -> bool:
    if not isinstance(item, dict) or not isinstance(item.get("dtype"), str):
        return False
    shape, offsets = item.get("shape"), item.get("data_offsets")
    if not isinstance(shape, list) or not isinstance(offsets, list) or len(offsets) != 2:
        return False
    return all(isinstance(value, int) and value >= 0 for value in [*shape, *offsets])


def read_rows(file: int, entry: Entry, start: int, stop: int, into: np.ndarray | None = None) -> np.ndarray:
    """Rows start..stop of a tensor as storage bits, read with one call; `into` is reused when it is given and large
    enough.
    """
    row_items = int(np.prod(entry.row_shape, dtype=np.int64))
    kind = STORAGE[entry.dtype]
    count = (stop - start) * row_items
    flat = into[:count] if into is not None and into.dtype == kind and into.size >= count else np.empty(count, kind)
    view = memoryview(flat.data).cast("B") if count else memoryview(b"")
    position, done = entry.offset + start * row_items * kind.itemsize, 0
    while done < len(view):
        got = os.preadv(file, [view[done:]], position + done)
        if got == 0:
            raise InputError(
                fault(f"file ended inside tensor '{entry.name}'", where=entry.file, fix="fetch the file again")
            )
        done += got
    return flat.reshape((stop - start, *entry.row_shape))


def header_bytes(specs: Iterable[tuple[str, str, tuple[int, ...]]], metadata: Mapping[str, str]) -> bytes:
    """A safetensors header (with its length) for tensors (name, dtype, shape) laid out in the given order."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    offset = 0
    for name, dtype, shape in specs:
        num_bytes = int(np.prod(shape, dtype=np.int64)) * STORAGE[dtype].itemsize
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + num_bytes]}
        offset += num_bytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def write_shard(
    path: Path, header: bytes, parts: Iterable[tuple[str, int, Callable[[], Iterable[np.ndarray]]]]
) -> None:
    """Write a safetensors file from its header and, for each tensor, (name, number of bytes, maker of its chunks)."""
    with disk_faults(path), atomic_write(path) as file:
        file.write(header)
        pending = 0
        for name, num_bytes, chunks in parts:
            written = 0
            for chunk in chunks():
                block = np.ascontiguousarray(chunk)
                written += file.write(memoryview(block.data).cast("B") if block.size else b"")
                pending += block.nbytes
                if pending >= _WINDOW_BYTES:
                    file.flush()
                    _settle(file.fileno())
                    pending = 0
            if written != num_bytes:
                raise ValueError(f"{name}: {written} bytes made, {num_bytes} announced")


def _settle(file: int) -> None:
    """Put on the disk what was written and forget it.

    A stream that fills the page cache pays for a fresh page each time (2 s of CPU per GB on the machine this was measured
    on, 0.3 s when its own pages come back), and pushes out what other programs need.
    """
    os.fdatasync(file)
    forget(file, 0, 0)


def forget(file: int, offset: int, length: int) -> None:
    """Tell the system that a part of a file will not be read again soon; nothing where it cannot be told."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(file, offset, length, os.POSIX_FADV_DONTNEED)


def pickled_entries(path: Path) -> tuple[dict[str, Entry], list[str]]:
    """Where the tensors of a `.bin` file lie in it, and the names of those that must be loaded (transposed, or an old file).

    Nothing but the pickle is read; a tensor is then a range of the file, as in safetensors.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        loaded = _unpickled(path)
    size = path.stat().st_size
    entries: dict[str, Entry] = {}
    rest = []
    for name, tensor in loaded.items():
        start = getattr(tensor.untyped_storage(), "_checkpoint_offset", None)
        dtype = DTYPES.get(str(tensor.dtype).removeprefix("torch."))
        if start is None or dtype is None or not tensor.is_contiguous():
            rest.append(name)
            continue
        entry = Entry(name, dtype, tuple(tensor.shape), path, start + tensor.storage_offset() * STORAGE[dtype].itemsize)
        if entry.offset + entry.num_bytes > size:
            raise InputError(fault(f"file ends inside tensor '{name}'", where=path, fix="fetch the file again"))
        entries[name] = entry
    return entries, rest


def load_pickled(path: Path) -> dict[str, Any]:
    """The tensors of a `.bin` file in memory; one that wants to run code is refused."""
    return _unpickled(path)


def _unpickled(path: Path) -> dict[str, Any]:
    import pickle

    import torch

    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise InputError(fault("weight file not found", where=path)) from error
    except pickle.UnpicklingError as error:
        raise InputError(
            fault(
                "this pickle holds more than tensors and is not opened, because opening it could run code",
                where=path,
                fix="ask for the weights as safetensors",
            )
        ) from error
    except (RuntimeError, EOFError, OSError) as error:
        raise InputError(
            fault("not readable as PyTorch weights", where=path, found=str(error).splitlines()[0])
        ) from error
    loaded = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else loaded
    if not isinstance(loaded, dict) or not all(isinstance(value, torch.Tensor) for value in loaded.values()):
        raise InputError(fault("not a dictionary of tensors", where=path))
    return loaded
