"""FOCUS-like beginnings for new rows: the mean of the rows of old tokens that stand in similar company in the corpus.

Dobler and de Melo (FOCUS, 2023) compare tokens by vectors trained on text of the new tokenizer.
Differs: the vectors here are weighted counts of neighbours under a random projection: no training, no other library.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from penjing.config import generator
from penjing.models.checkpoint import Checkpoint
from penjing.tokenizer.rows import NOISE, Role, RowStatistics, new_rows

DIMENSIONS = 256
WINDOW = 3
NEIGHBOURS = 10
TEMPERATURE = 0.1
MAX_TOKENS = 4_000_000
"""Tokens of the corpus that companies are counted on."""


def company_vectors(streams: Iterable[np.ndarray], size: int, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(float32 [V, D] of unit length, counts int64 [V]) of every id in streams of token ids."""
    taken, number = [], 0
    for ids in streams:
        taken.append(ids[: MAX_TOKENS - number])
        number += len(taken[-1])
        if number >= MAX_TOKENS:
            break
    tokens = np.concatenate(taken) if taken else np.zeros(0, dtype=np.int64)
    counts = np.bincount(tokens, minlength=size).astype(np.int64)
    coins = generator(seed, "focus", "projection").integers(0, 2, size=(size, DIMENSIONS), dtype=np.int8)
    signs = coins * np.int8(2) - np.int8(1)
    damping = (1.0 / np.sqrt(np.maximum(counts, 1))).astype(np.float32)
    vectors = np.zeros((size, DIMENSIONS), dtype=np.float32)
    for distance in range(1, WINDOW + 1):
        for left, right in ((tokens[:-distance], tokens[distance:]), (tokens[distance:], tokens[:-distance])):
            pairs, repeats = np.unique(left * size + right, return_counts=True)
            for start in range(0, len(pairs), 1 << 16):
                owner, other = np.divmod(pairs[start: start + (1 << 16)], size)
                share = (repeats[start: start + (1 << 16)].astype(np.float32) * damping[other])[:, None]
                starts = np.flatnonzero(np.concatenate([[True], owner[1:] != owner[:-1]])) if len(owner) else owner
                sums = np.add.reduceat(signs[other] * share, starts, axis=0)
                vectors[owner[starts]] += sums
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.maximum(lengths, 1e-12), counts


def similar_old_tokens(vectors: np.ndarray, counts: np.ndarray, *, old_size: int, usable: np.ndarray,
                       new_ids: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """For each new id the most similar usable old ids and their shares (sum 1); empty where the corpus shows no company.

    usable: bool [old_size], old ids that may lend their rows.
    """
    old = np.flatnonzero(usable & (counts[:old_size] > 0))
    found = []
    for start in range(0, len(new_ids), 512):
        group = new_ids[start: start + 512]
        likeness = vectors[group] @ vectors[old].T
        for row, index in enumerate(group.tolist()):
            if not counts[index] or not len(old):
                found.append((np.zeros(0, dtype=np.int64), np.zeros(0)))
                continue
            number = min(NEIGHBOURS, len(old))
            best = np.argpartition(-likeness[row], number - 1)[:number]
            best = best[np.lexsort((old[best], -likeness[row][best]))]
            share = np.exp((likeness[row][best].astype(np.float64) - likeness[row][best[0]]) / TEMPERATURE)
            found.append((old[best].astype(np.int64), share / share.sum()))
    return found


def focus_rows(olds: list[tuple[int, ...]], similar: list[tuple[np.ndarray, np.ndarray]], checkpoint: Checkpoint, name: str,
               statistics: RowStatistics, *, seed: int, first: int, role: Role) -> np.ndarray:
    """float32 [n, H]; pieces without company begin like `position`."""
    needed = np.array(sorted({int(index) for ids, _ in similar for index in ids} | {index for old in olds for index in old}),
                      dtype=np.int64)
    rows = dict(zip(needed.tolist(), checkpoint.read_float(name, needed), strict=True)) if len(needed) else {}
    out = new_rows(olds, init="position", role=role, statistics=statistics, old_rows=rows, frequency_V=None, seed=seed,
                   first=first, name=name)
    for at, (ids, share) in enumerate(similar):
        if not len(ids):
            continue
        row = share @ np.stack([rows[index] for index in ids.tolist()]).astype(np.float64)
        length = float(np.linalg.norm(row))
        row = row * (statistics.norm / length) if length > 0 else row
        noise = generator(seed, "rows", name, first + at).normal(0.0, NOISE * statistics.std, len(row))
        out[at] = (row + noise).astype(np.float32)
    return out
