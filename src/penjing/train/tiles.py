"""Where the documents of a batch are computed: short ones laid together into square tiles, long ones each on its own.

A tile holds whole documents and a bias that keeps them apart, so a layer's attention over hundreds of documents is a handful of
batched matrix products. On a processor that is two to four times as fast as the flash kernel for short documents, because writing
the scores out costs less than their many small passes; from about 160 tokens on the strips of strips.py are faster still.

Shape suffixes: n tiles, W positions of a tile (q: queries, k: keys), T positions on the line.
"""



from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

LEVELS = (64, 96, 128, 160)
"""Sides of tiles. A document goes to the smallest that holds it."""
_PLACES = 1024
"""Places computed at a time: scores of a few heads then stay in the second-level cache."""


@dataclass(frozen=True)
class Tiles:
    """Tiles of one size. Empty places hold position 0 of the line and see only themselves."""

    index_q: Tensor
    """Position on the line of each of the n*W places for queries."""
    empty_q: Tensor
    """Places without a query."""
    index_k: Tensor
    bias_n1WW: Tensor
    """0 where a query sees a key, -inf elsewhere."""
    width: int

    @property
    def count(self) -> int:
        """Number of tiles."""
        return len(self.bias_n1WW)


@dataclass(frozen=True)
class Long:
    """A document that is computed where it lies."""

    start_q: int
    length_q: int
    start_k: int
    length_k: int
    bias_1WW: Tensor | None
    """None where plain causal or plain full attention is meant."""
    backwards: bool


@dataclass(frozen=True)
class Plan:
    """All tiles and long documents of a layout, and the way back from the tiles laid end to end to the line."""

    tiles: tuple[Tiles, ...]
    longs: tuple[Long, ...]
    back_q: Tensor
    """Place, on all tiles laid end to end and then one row of zeros, of each query on the line."""
    back_k: Tensor


def plan(cu_q: Tensor, cu_k: Tensor, kind: Tensor, prefix: Tensor, causal: bool, window: int) -> Plan:
    """The plan of a layout; equal layouts (all layers of a step) share one."""
    parts = [tensor.numpy().tobytes() for tensor in (cu_q, cu_k, kind, prefix)]
    return _plan(parts[0], parts[1], parts[2], parts[3], causal, window)


@lru_cache(maxsize=64)
def _plan(cu_q_bytes: bytes, cu_k_bytes: bytes, kind_bytes: bytes, prefix_bytes: bytes, causal: bool, window: int) -> Plan:
    cu_q, cu_k = np.frombuffer(cu_q_bytes, np.int32).astype(np.int64), np.frombuffer(cu_k_bytes, np.int32).astype(np.int64)
    kind, prefix = np.frombuffer(kind_bytes, np.int8), np.frombuffer(prefix_bytes, bool)
    real = np.flatnonzero(kind)
    documents = np.stack([cu_q[real], np.diff(cu_q)[real], cu_k[real], np.diff(cu_k)[real], kind[real] == 2], 1)
    side = documents[:, [1, 3]].max(1, initial=0)
    order = np.lexsort((real, -side))
    tiles: list[Tiles] = []
    below = 0
    back_q, back_k = np.full(cu_q[-1], -1), np.full(cu_k[-1], -1)
    offsets = [0, 0]
    for width in LEVELS:
        chosen = documents[order][(side[order] > below) & (side[order] <= width)]
        below = width
        if len(chosen):
            tiles.extend(_tiles(chosen, width, prefix, causal, window, back_q, back_k, offsets))
    longs = tuple(_long(row, prefix, causal, window) for row in documents[order][side[order] > below])
    back_q[back_q < 0], back_k[back_k < 0] = offsets[0], offsets[1]
    return Plan(tuple(tiles), longs, torch.from_numpy(back_q), torch.from_numpy(back_k))


def _tiles(documents: np.ndarray, width: int, prefix: np.ndarray, causal: bool, window: int, back_q: np.ndarray,
           back_k: np.ndarray, offsets: list[int]) -> list[Tiles]:
    shelves: list[list[np.ndarray]] = []
    used: list[list[int]] = []
    for document in documents:  # first fit, longest first, over the few tiles that were opened last
        for number in range(max(0, len(shelves) - 16), len(shelves)):
            if used[number][0] + document[1] <= width and used[number][1] + document[3] <= width:
                break
        else:
            shelves.append([])
            used.append([0, 0])
            number = len(shelves) - 1
        shelves[number].append(document)
        used[number][0] += int(document[1])
        used[number][1] += int(document[3])
    count = len(shelves)
    places = [_places(shelves, (0, 1), width), _places(shelves, (2, 3), width)]
    (index_q, owner_q, rank_q), (index_k, owner_k, rank_k) = places
    seen = (owner_q[:, :, None] == owner_k[:, None, :]) & (owner_q >= 0)[:, :, None]
    if causal:
        distance = rank_q[:, :, None] - rank_k[:, None, :]
        ordered = distance >= 0
        if window:
            ordered &= distance < window
        if prefix.size:
            ordered |= prefix[index_k][:, None, :]
        seen &= ordered
    empty = owner_q < 0
    seen[empty, 0] = True
    for index, owner, back, which in ((index_q, owner_q, back_q, 0), (index_k, owner_k, back_k, 1)):
        flat = np.flatnonzero(owner.reshape(-1) >= 0)
        back[index.reshape(-1)[flat]] = flat + offsets[which]
        offsets[which] += owner.size
    bias = torch.zeros(count, 1, width, width).masked_fill_(~torch.from_numpy(seen)[:, None], float("-inf"))
    made, start = [], 0
    while start < count:  # powers of two: few shapes ever occur, and each costs the matrix library a compilation
        size = min(1 << (count - start).bit_length() - 1, max(1, _PLACES // width))
        part = slice(start, start + size)
        made.append(Tiles(torch.from_numpy(index_q[part].reshape(-1)), torch.from_numpy(np.flatnonzero(empty[part])),
                          torch.from_numpy(index_k[part].reshape(-1)), bias[part], width))
        start += size
    return made


def _places(shelves: list[list[np.ndarray]], columns: tuple[int, int], width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Position on the line, number of the document in its tile (-1: none) and rank in reading order, each n by W."""
    index = np.zeros((len(shelves), width), np.int64)
    owner, rank = np.full((len(shelves), width), -1), np.zeros((len(shelves), width), np.int64)
    for number, shelf in enumerate(shelves):
        at = 0
        for place, document in enumerate(shelf):
            start, length = int(document[columns[0]]), int(document[columns[1]])
            index[number, at : at + length] = np.arange(start, start + length)
            owner[number, at : at + length] = place
            order = np.arange(length)[::-1] if document[4] else np.arange(length)
            # Of a part of a document (context parallel), the keys that are not queries come before them.
            rank[number, at : at + length] = order + int(document[3]) - length
            at += length
    return index, owner, rank


def _long(document: np.ndarray, prefix: np.ndarray, causal: bool, window: int) -> Long:
    start_q, length_q, start_k, length_k, backwards = (int(value) for value in document)
    shown = prefix[start_k : start_k + length_k] if prefix.size else prefix
    windowed = causal and 0 < window < length_k
    bias = None
    if causal and (windowed or shown.any() or length_q != length_k):
        distance = np.arange(length_k - length_q, length_k)[:, None] - np.arange(length_k)[None, :]
        seen = (distance >= 0) & (distance < (window or length_k + 1))
        if backwards and shown.size:
            shown = shown[::-1]
        if shown.size:
            seen |= shown[None, :]
        bias = torch.zeros(1, length_q, length_k).masked_fill_(~torch.from_numpy(seen), float("-inf"))
    return Long(start_q, length_q, start_k, length_k, bias, bool(backwards))
