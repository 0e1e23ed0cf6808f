"""The small language in which a family says what each dimension of a weight means.

A label is a sum of products: `head*head_dim` (rows of a query projection), `head*3*head_dim` (a fused projection in
which each head holds its own query, key and value: BLOOM, OpenBA), `head*head_dim+kv_head*head_dim+kv_head*head_dim`
(the three laid one after another: GPT-2, ChatGLM), `head/4*3*head%4*head_dim` (four blocks, each with its own three
parts: CodeGen). A factor is a unit that may be cut (`hidden`, `layers.3.ffn`), a fixed number, or one of the two halves
of a unit that the layout splits: `unit/n` counts n equal blocks, `unit%n` the places inside a block.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import numpy as np

Indices = Mapping[str, np.ndarray]
"""Kept places of each unit, in the order in which they are to stand; a unit that is not named is kept whole."""


@lru_cache(maxsize=65536)
def parse(label: str) -> tuple[tuple[str, ...], ...]:
    """The terms of a label, each a tuple of factors."""
    return tuple(tuple(factor.strip() for factor in term.split("*")) for term in label.split("+"))


def units(label: str) -> list[str]:
    """The names of the units in a label, in order, without numbers and repetitions."""
    found = [_unit(factor) for term in parse(label) for factor in term if not factor.isdigit()]
    return list(dict.fromkeys(found))


def size(label: str, sizes: Mapping[str, int]) -> int:
    """Length of a dimension labelled `label` when the units have `sizes`."""
    total = 0
    for term in parse(label):
        length = 1
        for factor in term:
            length *= _length(factor, sizes)
        total += length
    return total


def gather(label: str, sizes: Mapping[str, int], kept: Indices) -> np.ndarray | None:
    """For each place of the cut dimension its place in the uncut one, int64; None when the dimension is kept as it is.

    Example: `head*3*head_dim` with 4 heads, head_dim 2 and heads 0 and 2 kept gives 0..5 and 12..17.
    """
    if not any(unit in kept for unit in units(label)):
        return None
    parts, offset = [], 0
    for term in parse(label):
        parts.append(_gather_term(term, sizes, kept) + offset)
        offset += int(np.prod([_length(factor, sizes) for factor in term], dtype=np.int64))
    index = np.concatenate(parts)
    return None if index.size == offset and np.array_equal(index, np.arange(offset)) else index


def _gather_term(term: tuple[str, ...], sizes: Mapping[str, int], kept: Indices) -> np.ndarray:
    new_lengths = [_new_length(factor, sizes, kept) for factor in term]
    strides = np.cumprod([1, *[_length(factor, sizes) for factor in reversed(term)]])[:-1][::-1]
    index = np.zeros(new_lengths, dtype=np.int64)
    for dim, factor in enumerate(term):
        shape = [1] * len(term)
        shape[dim] = -1
        if factor.isdigit():
            place = np.arange(int(factor)).reshape(shape)
        elif "/" in factor or "%" in factor:
            place = _split_places(term, dim, sizes, kept)
        else:
            place = _places(factor, sizes, kept).reshape(shape)
        index += place * strides[dim]
    return index.reshape(-1)


def _split_places(term: tuple[str, ...], dim: int, sizes: Mapping[str, int], kept: Indices) -> np.ndarray:
    """Old block (`/`) or old place in the block (`%`) of every new (block, place) pair, shaped to broadcast over the
    term.
    """
    factor = term[dim]
    unit, blocks = _unit(factor), int(factor[len(_unit(factor)) + 1:])
    outer, inner = term.index(f"{unit}/{blocks}"), term.index(f"{unit}%{blocks}")
    places = _places(unit, sizes, kept)
    if places.size % blocks:
        raise ValueError(f"{places.size} kept of {unit} cannot be laid out in {blocks} equal blocks")
    per_block = sizes[unit] // blocks
    value = places // per_block if "/" in factor else places % per_block
    shape = [1] * len(term)
    shape[outer], shape[inner] = blocks, places.size // blocks
    return value.reshape(shape)


def _places(unit: str, sizes: Mapping[str, int], kept: Indices) -> np.ndarray:
    return np.asarray(kept[unit], dtype=np.int64) if unit in kept else np.arange(sizes[unit])


def _unit(factor: str) -> str:
    return factor.split("/")[0].split("%")[0]


def _length(factor: str, sizes: Mapping[str, int]) -> int:
    if factor.isdigit():
        return int(factor)
    if "/" in factor:
        return int(factor.split("/")[1])
    if "%" in factor:
        unit, blocks = factor.split("%")
        return sizes[unit] // int(blocks)
    return sizes[factor]


def _new_length(factor: str, sizes: Mapping[str, int], kept: Indices) -> int:
    unit = _unit(factor)
    if factor.isdigit() or unit not in kept:
        return _length(factor, sizes)
    return _length(factor, {unit: len(kept[unit])})


def owners(label: str, unit: str, sizes: Mapping[str, int]) -> np.ndarray | None:
    """For each place of a dimension the place of `unit` it belongs to, -1 for none; None when the label lacks the unit.
    """
    if unit not in units(label):
        return None
    size_of_unit = sizes[unit]
    owner = np.full(size(label, sizes), -1, dtype=np.int64)
    for place in range(size_of_unit) if label != unit else ():
        term_rows = gather_one(label, sizes, unit, place)
        owner[term_rows] = place
    return np.arange(size_of_unit) if label == unit else owner


def gather_one(label: str, sizes: Mapping[str, int], unit: str, place: int) -> np.ndarray:
    """The places of a dimension that belong to one place of a unit."""
    parts, offset = [], 0
    for term in parse(label):
        length = int(np.prod([_length(factor, sizes) for factor in term], dtype=np.int64))
        if any(_unit(factor) == unit for factor in term):
            parts.append(_places_of_one(term, sizes, unit, place) + offset)
        offset += length
    return np.concatenate(parts)


def _places_of_one(term: tuple[str, ...], sizes: Mapping[str, int], unit: str, place: int) -> np.ndarray:
    lengths = [_length(factor, sizes) for factor in term]
    index = np.arange(int(np.prod(lengths, dtype=np.int64))).reshape(lengths)
    at: list[int | slice] = [slice(None)] * len(term)
    for dim, factor in enumerate(term):
        if _unit(factor) != unit:
            continue
        blocks = int(factor[len(unit) + 1:]) if factor != unit else 1
        inner = sizes[unit] // blocks
        at[dim] = place if factor == unit else place // inner if "/" in factor else place % inner
    return index[tuple(at)].reshape(-1)
