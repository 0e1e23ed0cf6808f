"""Byte-pair encoding by tables: which merges a vocabulary implies, and what they make of any sequence of symbols.

Legend: M merges, N sequences, V pieces. The kernel is naive (quadratic in the length of one sequence), which is right for
pieces and words; whole documents are encoded by `encode.py`.

The lemma everything here rests on: no merge ever crosses a border of the final segmentation, so inside a final token the
merges are exactly those that the token's own spelling would go through alone. Hence a piece is reachable in some text if and
only if its own spelling encodes to it, and what a text becomes without that piece is decided by the two parts of its last merge.
"""

# ruff: noqa: N802 - arrays carry shape suffixes
from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numba
import numpy as np

from penjing.tokenizer.vocabulary import NORMAL, UNUSED, USER_DEFINED, Vocabulary

_LARGE = np.int64(1) << 62


@dataclass(frozen=True)
class MergeTable:
    """Merges keyed for look-up: `keys` sorted, key = left << 32 | right."""

    keys: np.ndarray
    priority: np.ndarray
    """int64, lower goes first; equal priorities are settled leftmost first."""
    joined: np.ndarray


@dataclass(frozen=True)
class Runs:
    """What merging made of N sequences."""

    symbols: np.ndarray
    """int32, the final symbols of all sequences, one after the other."""
    offsets_N1: np.ndarray
    last_left_N: np.ndarray
    """Left part of the last merge of each sequence; -1 when nothing merged."""
    last_right_N: np.ndarray

    def __getitem__(self, index: int) -> np.ndarray:
        return self.symbols[self.offsets_N1[index]: self.offsets_N1[index + 1]]

    @property
    def lengths_N(self) -> np.ndarray:
        return np.diff(self.offsets_N1)


def implied_merges(pieces: Sequence[str], types_V: np.ndarray, scores_V: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All merges a scored BPE vocabulary implies: (merges int32 [M, 3], priority int64 [M]), best first.

    Every split of a normal or user-defined piece into two such pieces counts, as SentencePiece joins any two neighbours whose
    concatenation it knows. Equal scores get equal priority.
    """
    joinable = np.isin(types_V, (NORMAL, USER_DEFINED, UNUSED))
    ids = {piece: index for index, piece in enumerate(pieces) if joinable[index]}
    found: list[tuple[int, int, int]] = []
    for piece, index in ids.items():
        for cut in range(1, len(piece)):
            left = ids.get(piece[:cut])
            if left is not None:
                right = ids.get(piece[cut:])
                if right is not None:
                    found.append((left, right, index))
    merges = np.array(found, dtype=np.int32).reshape(-1, 3)
    score = -scores_V[merges[:, 2]] if len(merges) else np.zeros(0)
    order = np.lexsort((merges[:, 1], merges[:, 0], merges[:, 2], score))
    merges = np.ascontiguousarray(merges[order])
    _, priority = np.unique(score[order], return_inverse=True)
    return merges, priority.astype(np.int64)


def table(merges_M3: np.ndarray, priority_M: np.ndarray) -> MergeTable:
    """A look-up table; where a pair is listed twice the first listing counts."""
    keys = (merges_M3[:, 0].astype(np.int64) << 32) | merges_M3[:, 1].astype(np.int64)
    unique, first = np.unique(keys, return_index=True)
    return MergeTable(unique, priority_M[first].astype(np.int64), merges_M3[first, 2].astype(np.int32))


def merge_table(vocabulary: Vocabulary) -> MergeTable:
    """The table of a BPE vocabulary's own merges."""
    assert vocabulary.merges_M3 is not None and vocabulary.priority_M is not None
    return table(vocabulary.merges_M3, vocabulary.priority_M)


class Symbols:
    """Spellings to symbol ids: a character's piece where there is one, else an id past the vocabulary that never merges."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._ids = {piece: index for index, piece in enumerate(vocabulary.pieces)
                     if len(piece) == 1 and vocabulary.types_V[index] in (NORMAL, USER_DEFINED, UNUSED)}
        self._next = vocabulary.total
        self.strangers: dict[int, str] = {}

    def of(self, spelling: str) -> list[int]:
        """One id per character."""
        out = []
        for character in spelling:
            index = self._ids.get(character)
            if index is None:
                index = self._next
                self._ids[character] = index
                self.strangers[index] = character
                self._next += 1
            out.append(index)
        return out


def flatten(sequences: Iterable[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """(symbols int32, offsets int64 [N + 1]) of sequences of ids."""
    lengths: list[int] = [0]
    flat: list[int] = []
    for sequence in sequences:
        flat.extend(sequence)
        lengths.append(len(sequence))
    return np.array(flat, dtype=np.int32), np.cumsum(np.array(lengths, dtype=np.int64))


def run(merges: MergeTable, symbols: np.ndarray, offsets_N1: np.ndarray) -> Runs:
    """Apply `merges` to each of N sequences by itself until nothing merges."""
    number = len(offsets_N1) - 1
    out = np.empty(len(symbols), dtype=np.int32)
    out_offsets = np.zeros(number + 1, dtype=np.int64)
    left = np.full(number, -1, dtype=np.int32)
    right = np.full(number, -1, dtype=np.int32)
    end = _run(merges.keys, merges.priority, merges.joined, symbols, offsets_N1, out, out_offsets, left, right)
    return Runs(out[:end].copy(), out_offsets, left, right)


@numba.njit(cache=True)
def _find(keys: np.ndarray, key: int) -> int:
    low, high = 0, len(keys)
    while low < high:
        middle = (low + high) >> 1
        if keys[middle] < key:
            low = middle + 1
        else:
            high = middle
    if low < len(keys) and keys[low] == key:
        return low
    return -1


@numba.njit(cache=True)
def _run(keys, priority, joined, symbols, offsets, out, out_offsets, left, right) -> int:  # type: ignore[no-untyped-def]
    end = 0
    longest = 1
    for n in range(len(offsets) - 1):
        longest = max(longest, offsets[n + 1] - offsets[n])
    work = np.empty(longest, dtype=np.int32)
    slot = np.empty(longest, dtype=np.int64)
    for n in range(len(offsets) - 1):
        length = offsets[n + 1] - offsets[n]
        for i in range(length):
            work[i] = symbols[offsets[n] + i]
        for i in range(length - 1):
            slot[i] = _find(keys, (np.int64(work[i]) << 32) | np.int64(work[i + 1]))
        while length > 1:
            best, at = _LARGE, -1
            for i in range(length - 1):
                if slot[i] >= 0 and priority[slot[i]] < best:
                    best, at = priority[slot[i]], i
            if at < 0:
                break
            left[n], right[n] = work[at], work[at + 1]
            work[at] = joined[slot[at]]
            for i in range(at + 1, length - 1):
                work[i] = work[i + 1]
                slot[i] = slot[i + 1]
            length -= 1
            if at > 0:
                slot[at - 1] = _find(keys, (np.int64(work[at - 1]) << 32) | np.int64(work[at]))
            if at < length - 1:
                slot[at] = _find(keys, (np.int64(work[at]) << 32) | np.int64(work[at + 1]))
        for i in range(length):
            out[end + i] = work[i]
        end += length
        out_offsets[n + 1] = end
    return end


@dataclass(frozen=True)
class MergeTree:
    """The two parts of each piece's own last merge."""

    left_V: np.ndarray
    """int32; -1 for pieces of one symbol and for unreachable pieces."""
    right_V: np.ndarray
    reachable_V: np.ndarray
    """bool; special pieces count as reachable."""
    other_V2: np.ndarray | None = None
    """int32 [V, 2], the parts of the last merge when equal scores are settled by rank, as tokenizer.json does; None where scores
    do not tie."""

    def parts(self, index: int) -> list[int]:
        """Ids that a piece needs to be reachable, by either way of settling ties."""
        found = [int(self.left_V[index]), int(self.right_V[index])]
        if self.other_V2 is not None:
            found += self.other_V2[index].tolist()
        return [part for part in dict.fromkeys(found) if part >= 0]


def merge_tree(vocabulary: Vocabulary) -> MergeTree:
    """How each piece of a BPE vocabulary is put together, and which pieces no text can ever produce."""
    assert vocabulary.merges_M3 is not None and vocabulary.priority_M is not None
    left, right, reachable = _last_merges(vocabulary, merge_table(vocabulary))
    if not has_ties(vocabulary):
        return MergeTree(left, right, reachable)
    ranked = table(vocabulary.merges_M3, np.arange(len(vocabulary.merges_M3)))
    other_left, other_right, other_reachable = _last_merges(vocabulary, ranked)
    return MergeTree(left, right, reachable | other_reachable, np.stack([other_left, other_right], axis=1))


def has_ties(vocabulary: Vocabulary) -> bool:
    """Whether different pieces share a score, so that a `.model` settles by place what tokenizer.json settles by rank."""
    if vocabulary.priority_M is None or vocabulary.merges_M3 is None or len(vocabulary.priority_M) < 2:
        return False
    same = vocabulary.priority_M[1:] == vocabulary.priority_M[:-1]
    return bool((same & (vocabulary.merges_M3[1:, 2] != vocabulary.merges_M3[:-1, 2])).any())


def _last_merges(vocabulary: Vocabulary, merges: MergeTable) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    size = len(vocabulary)
    symbols = Symbols(vocabulary)
    normal = [index for index in range(size) if vocabulary.types_V[index] == NORMAL]
    runs = run(merges, *flatten(symbols.of(vocabulary.pieces[index]) for index in normal))
    left = np.full(size, -1, dtype=np.int32)
    right = np.full(size, -1, dtype=np.int32)
    reachable = np.ones(size, dtype=bool)
    at = np.array(normal, dtype=np.int64)
    whole = np.zeros(len(normal), dtype=bool)
    single = runs.lengths_N == 1
    whole[single] = runs.symbols[runs.offsets_N1[:-1][single]] == at[single]
    reachable[at[~whole]] = False
    left[at[whole]] = runs.last_left_N[whole]
    right[at[whole]] = runs.last_right_N[whole]
    return left, right, reachable
