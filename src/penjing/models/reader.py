"""A model directory opened for reading: nothing of its weights is held in memory.

Safetensors (one file or an index of shards) and `.bin` files are known; weights are given as torch tensors, as
float32, or as storage bits, whole or by rows.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from penjing.errors import InputError, fault
from penjing.files import hash_text, read_json
from penjing.models import family, shards
from penjing.models.shards import DTYPES, STORAGE, TORCH_NAMES, Entry

CHUNK_BYTES = 16 << 20
_SAMPLED_ABOVE_BYTES = 1 << 20
_SAMPLE_BYTES = 64 << 10


class Checkpoint:
    """A model directory opened for reading; nothing of the weights is held in memory."""

    def __init__(self, path: Path, config: dict[str, Any], entries: dict[str, Entry], pickled: dict[str, Path]) -> None:
        self.path = path
        self.config = config
        self._entries = entries
        self._pickled = pickled
        self._tensors: dict[Path, dict[str, Any]] = {}
        self._files: dict[Path, int] = {}

    @property
    def names(self) -> list[str]:
        """Names of the tensors as the files have them."""
        return [*self._entries, *self._pickled]

    def shape(self, name: str) -> tuple[int, ...]:
        return self._entry(name).shape

    def dtype(self, name: str) -> str:
        """Safetensors dtype name: F32, BF16, …"""
        return self._entry(name).dtype

    def num_bytes(self, name: str) -> int:
        return self._entry(name).num_bytes

    def read(self, name: str, rows: Any = None) -> Any:
        """A torch tensor: all of it, a slice or some rows of the first dimension."""
        import torch

        bits = self.read_bits(name, rows)
        tensor = torch.from_numpy(bits)
        return tensor.view(getattr(torch, TORCH_NAMES[self.dtype(name)]))

    def read_float(self, name: str, rows: Any = None) -> np.ndarray:
        """Weights as NumPy float32, whatever they are stored in."""
        return to_float(self.read_bits(name, rows), self.dtype(name))

    def read_bits(self, name: str, rows: Any = None) -> np.ndarray:
        """Storage bits of a tensor, of a slice or of some rows of its first dimension, as a new array."""
        entry = self._entry(name)
        if not entry.shape:
            return self.row_range(name, 0, 1).reshape(())
        count = entry.shape[0]
        if rows is None or isinstance(rows, slice):
            start, stop, step = (rows or slice(None)).indices(count)
            if step == 1:
                return self.row_range(name, start, max(start, stop))
            rows = np.arange(count)[rows]
        index = np.asarray(rows, dtype=np.int64)
        if index.size and (index.min() < 0 or index.max() >= count):
            raise InputError(
                fault(
                    f"row out of range in '{name}'",
                    where=self.path,
                    found=f"{index.min()}..{index.max()}",
                    expected=f"0..{count - 1}",
                )
            )
        parts = [part.copy() for part in self.row_chunks(name, index)]
        return np.concatenate(parts) if parts else np.empty((0, *entry.row_shape), STORAGE[entry.dtype])

    def row_range(self, name: str, start: int, stop: int, into: np.ndarray | None = None) -> np.ndarray:
        """Rows start..stop as storage bits with one read; `into` is a flat buffer that may be reused."""
        entry = self._entry(name)
        if entry.offset < 0:
            return self._pickled_rows(name, start, stop)
        return shards.read_rows(self._open(entry.file), entry, start, stop, into)

    def row_chunks(
        self, name: str, rows: np.ndarray | None = None, *, chunk_bytes: int = CHUNK_BYTES
    ) -> Iterator[np.ndarray]:
        """The tensor (or the given rows, in the given order) piece by piece; a piece is valid until the next one is
        asked for.
        """
        entry = self._entry(name)
        if not entry.shape:
            yield self.row_range(name, 0, 1).reshape(1)
            return
        kind = STORAGE[entry.dtype]
        row_items = int(np.prod(entry.row_shape, dtype=np.int64))
        per_chunk = max(1, chunk_bytes // max(1, row_items * kind.itemsize))
        buffer = np.empty(min(per_chunk, entry.shape[0]) * row_items, kind)
        if rows is None:
            for start in range(0, entry.shape[0], per_chunk):
                yield self.row_range(name, start, min(start + per_chunk, entry.shape[0]), buffer)
            return
        ascending = bool(np.all(rows[1:] > rows[:-1]))
        position = 0
        while position < len(rows):
            if ascending:
                stop = int(np.searchsorted(rows, rows[position] + per_chunk))
            else:
                stop = _window_end(rows, position, per_chunk)
            window = rows[position:stop]
            low, high = int(window.min()), int(window.max())
            block = self.row_range(name, low, high + 1, buffer)
            whole = ascending and len(window) == high - low + 1
            yield block if whole else block[window - low]
            position = stop

    def fingerprint(self) -> str:
        """A hash of the weights, equal however they are spread over files: of every byte of tensors up to 1 MiB, of 16 evenly
        spaced blocks of 64 KiB of larger ones."""
        lines = []
        for name in sorted(self.names):
            entry = self._entry(name)
            digest = xxhash.xxh3_128()
            if entry.offset < 0 or entry.num_bytes <= _SAMPLED_ABOVE_BYTES:
                for chunk in self.row_chunks(name) if entry.num_bytes else ():
                    digest.update(np.ascontiguousarray(chunk).data)
            else:
                descriptor = self._open(entry.file)
                for index in range(16):
                    at = (entry.num_bytes - _SAMPLE_BYTES) * index // 15
                    digest.update(os.pread(descriptor, _SAMPLE_BYTES, entry.offset + at))
            lines.append(f"{name}\t{entry.dtype}\t{list(entry.shape)}\t{digest.hexdigest()}")
        return hash_text("\n".join(lines))

    def close(self) -> None:
        """Close the files; the checkpoint may be read again."""
        for descriptor in self._files.values():
            os.close(descriptor)
        self._files.clear()
        self._tensors.clear()

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def _entry(self, name: str) -> Entry:
        if name in self._entries:
            return self._entries[name]
        if name not in self._pickled:
            raise InputError(fault(f"no tensor '{name}'", where=self.path))
        tensor = self._pickled_tensor(name)
        dtype = DTYPES.get(str(tensor.dtype).removeprefix("torch."))
        if dtype is None:
            raise InputError(
                fault(f"tensor '{name}' has a dtype that cannot be read", where=self.path, found=tensor.dtype)
            )
        return Entry(name, dtype, tuple(tensor.shape), self._pickled[name], -1)

    def _open(self, file: Path) -> int:
        if file not in self._files:
            self._files[file] = os.open(file, os.O_RDONLY)
        return self._files[file]

    def _pickled_tensor(self, name: str) -> Any:
        file = self._pickled[name]
        if file not in self._tensors:
            self._tensors.clear()
            self._tensors[file] = shards.load_pickled(file)
        if name not in self._tensors[file]:
            raise InputError(fault(f"no tensor '{name}', although the index says so", where=file))
        return self._tensors[file][name]

    def _pickled_rows(self, name: str, start: int, stop: int) -> np.ndarray:
        import torch

        tensor = self._pickled_tensor(name)
        rows = (tensor.reshape(1) if tensor.dim() == 0 else tensor)[start:stop].contiguous().clone()
        if rows.dtype in (torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2, torch.bool):
            rows = rows.view(torch.uint16 if rows.dtype == torch.bfloat16 else torch.uint8)
        return rows.numpy()


def open_checkpoint(path: str | Path) -> Checkpoint:
    """A model directory, opened without reading weights; InputError says what is missing or damaged."""
    path = Path(path)
    if not path.is_dir():
        raise InputError(fault("no such model directory", where=path))
    config = read_json(path / "config.json")
    if not isinstance(config, dict):
        raise InputError(fault("not a Hugging Face configuration", where=path / "config.json"))
    files, is_safe = _weight_files(path)
    known = config.get("model_type") in family.names()
    if not is_safe:
        return _open_pickled(path, config, files, known=known)
    entries: dict[str, Entry] = {}
    for file, listed in files.items():
        found, _ = shards.read_header(file)
        absent = [name for name in listed or () if name not in found]
        if absent:
            raise InputError(fault(f"no tensor '{absent[0]}', although the index says so", where=file))
        repeated = entries.keys() & found.keys()
        if repeated:
            raise InputError(fault(f"tensor '{sorted(repeated)[0]}' is in two files", where=file))
        entries.update(found)
    checkpoint = Checkpoint(path, config, entries, {})
    return _settled(checkpoint) if known else checkpoint


def _open_pickled(path: Path, config: dict[str, Any], files: dict[Path, list[str] | None], *, known: bool) -> Checkpoint:
    entries: dict[str, Entry] = {}
    pickled: dict[str, Path] = {}
    for file, listed in files.items():
        found, rest = shards.pickled_entries(file)
        absent = [name for name in listed or () if name not in found and name not in rest]
        if absent:
            raise InputError(fault(f"no tensor '{absent[0]}', although the index says so", where=file))
        entries.update(found)
        pickled.update(dict.fromkeys(rest, file))
    checkpoint = Checkpoint(path, config, entries, pickled)
    return _settled(checkpoint) if known else checkpoint


def _settled(checkpoint: Checkpoint) -> Checkpoint:
    settle = family.of(checkpoint.config).settle
    checkpoint.config = settle(checkpoint.config, checkpoint.names, checkpoint.shape)
    return checkpoint


def _weight_files(path: Path) -> tuple[dict[Path, list[str] | None], bool]:
    """Weight file -> names the index lists for it (None without an index), and whether they are safetensors."""
    for stem, is_safe in (("model.safetensors", True), ("pytorch_model.bin", False)):
        index = path / f"{stem}.index.json"
        if index.is_file():
            weight_map = read_json(index).get("weight_map", {})
            files: dict[Path, list[str] | None] = {path / name: [] for name in sorted(set(weight_map.values()))}
            for name, file in weight_map.items():
                listed = files[path / file]
                assert listed is not None
                listed.append(name)
            return files, is_safe
        if (path / stem).is_file():
            return {path / stem: None}, is_safe
    raise InputError(
        fault("no weights", where=path, expected="model.safetensors, pytorch_model.bin or the index of either")
    )


def _window_end(rows: np.ndarray, start: int, span: int) -> int:
    """End of the longest run of `rows` from `start` that lies within `span` rows of the file."""
    low = high = int(rows[start])
    for stop in range(start + 1, len(rows)):
        low, high = min(low, int(rows[stop])), max(high, int(rows[stop]))
        if high - low >= span:
            return stop
    return len(rows)


def to_float(bits: np.ndarray, dtype: str) -> np.ndarray:
    """Storage bits of a float dtype as float32."""
    if dtype == "BF16":
        return (bits.astype(np.uint32) << 16).view(np.float32)
    if dtype.startswith("F8"):
        import torch

        return torch.from_numpy(bits).view(getattr(torch, TORCH_NAMES[dtype])).float().numpy()
    return bits.astype(np.float32)


def from_float(values: np.ndarray, dtype: str) -> np.ndarray:
    """float32 values as storage bits of `dtype`, rounded to nearest, ties to even."""
    values = np.ascontiguousarray(values, dtype=np.float32)
    if dtype == "BF16":
        bits = values.view(np.uint32)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        return np.where(np.isnan(values), 0x7FC0, rounded).astype(np.uint16)
    if dtype.startswith("F8"):
        import torch

        return torch.from_numpy(values).to(getattr(torch, TORCH_NAMES[dtype])).view(torch.uint8).numpy()
    with np.errstate(over="ignore"):
        return values.astype(STORAGE[dtype])
