"""Which documents go, for which reason, and which document stays in their place.

All documents are ranked first (documents of an old index, then source priority, length, id, content), so that every
later step is a function of the set of documents and not of their order or of the number of workers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from penjing.data.dedup.bloom import Bloom
from penjing.data.dedup.cluster import stars
from penjing.data.dedup.index import url_numbers
from penjing.data.dedup.search import Search
from penjing.data.dedup.signature import Signatures
from penjing.data.dedup.verify import similarities

KEEP, URL, EXACT, NEAR = range(4)
RULES = (None, "url", "exact", "near")


@dataclass(frozen=True)
class Rules:
    """The switches of a decision."""

    url: bool = True
    url_filter: Bloom | None = None
    exact: bool = True
    search: Search | None = None
    """Where candidates for near copies come from; None looks for none."""
    similarity: float = 0.65
    exact_min_letters: int = 20
    near_min_tokens: int = 32
    url_max_texts: int = 20
    source_priority: Sequence[str] = ()


@dataclass(frozen=True)
class Decisions:
    """Per document, in the order given: `rule` (N,) int8, `kept` (N,) int64 index of the document that stays, `value`
    (N,)."""

    rule: np.ndarray
    kept: np.ndarray
    value: np.ndarray
    rank: np.ndarray
    """(N,) int64: place among all documents from the best to the worst."""
    figures: dict[str, object] = field(default_factory=dict)


def decide(table: pa.Table, signatures: Signatures, rules: Rules, *, old: int = 0) -> Decisions:
    """Decisions over N documents: `table` has id, source and url_key (fixed 16 bytes, null = no address).

    The first `old` documents come from an index: they always stay and are never compared with each other.
    """
    order = ranks(table, signatures, rules.source_priority, old=old)
    count = len(order)
    signatures = signatures.take(order)
    rule = np.zeros(count, np.int8)
    kept = np.arange(count, dtype=np.int64)
    value = np.zeros(count)
    figures: dict[str, object] = {}
    if rules.url:
        keys, present = (column[order] for column in url_numbers(table.column("url_key")))
        pages, containers = busy_addresses(np.flatnonzero(present), keys, signatures.keys, rules.url_max_texts)
        figures["addresses_of_many_texts"] = containers
        if rules.url_filter is None:
            _drop_repeats(pages, keys, rule, kept, value, URL, old)
        else:
            figures["address_filter"] = _drop_claimed(pages, keys, rule, kept, value, rules.url_filter, old)
    if rules.exact:
        free = np.flatnonzero((rule == KEEP) & (signatures.letters >= rules.exact_min_letters))
        _drop_repeats(free, signatures.keys, rule, kept, value, EXACT, old)
    if rules.search is not None:
        figures.update(_drop_near(signatures, rules, rules.search, rule, kept, value, old))
    while not np.array_equal(kept, kept[kept]):
        kept = kept[kept]
    back = np.empty(count, np.int64)
    back[order] = np.arange(count)
    return Decisions(rule[back], order[kept[back]], value[back], back, figures)


def ranks(table: pa.Table, signatures: Signatures, source_priority: Sequence[str], *, old: int = 0) -> np.ndarray:
    """(N,) int64: the documents from the best to the worst."""
    return rank_order(rank_keys(table, signatures.letters, signatures.keys, source_priority, old=old))


def rank_keys(table: pa.Table, letters: np.ndarray, keys: np.ndarray, source_priority: Sequence[str], *, old: int) -> pa.Table:
    """What documents are ranked by, in this order; the first `old` rows are an old index's."""
    place = pc.index_in(table.column("source"), pa.array(list(source_priority), pa.string()))
    return pa.table(
        {
            "new": np.arange(len(table)) >= old,
            "source": pc.fill_null(place, len(source_priority)),
            "letters": letters,
            "id": table.column("id"),
            "high": keys[:, 0],
            "low": keys[:, 1],
        }
    )


def rank_order(keys: pa.Table) -> np.ndarray:
    """(N,) int64: rows of `rank_keys` from the best to the worst, equal ones in the order given; no id comes after any id."""
    if not len(keys):
        return np.zeros(0, np.int64)
    sort = [(name, "descending" if name == "letters" else "ascending") for name in keys.column_names]
    order: np.ndarray = pc.sort_indices(keys, sort_keys=sort).to_numpy().astype(np.int64)
    return order


def _drop_claimed(
    rows: np.ndarray, keys: np.ndarray, rule: np.ndarray, kept: np.ndarray, value: np.ndarray, seen: Bloom, old: int
) -> dict[str, float]:
    """Drop by a Bloom filter, which also knows addresses whose documents are long gone. `kept` stays the document itself when
    the one with that address is not at hand."""
    claimed = seen.add(keys[rows])
    gone = rows[claimed & (rows >= old)]
    _drop_repeats(rows, keys, rule, kept, value, URL, old)
    rule[gone] = URL
    value[gone] = 1.0
    return {"keys": seen.keys, "bytes": seen.words.nbytes, "rate": seen.rate, "expected_wrongful_drops": seen.wrongful}


def busy_addresses(rows: np.ndarray, addresses: np.ndarray, texts: np.ndarray, most: int) -> tuple[np.ndarray, dict[str, int]]:
    """The rows whose address names a page, and how many do not: an address with more than `most` different texts
    names a file or a feed that holds many documents, and dropping all but one of them would delete a whole source."""
    if not len(rows):
        return rows, {"addresses": 0, "documents": 0}
    order = rows[np.lexsort((texts[rows, 1], texts[rows, 0], addresses[rows, 1], addresses[rows, 0]))]
    new_address = np.ones(len(order), bool)
    new_address[1:] = (addresses[order[1:]] != addresses[order[:-1]]).any(axis=1)
    new_text = new_address.copy()
    new_text[1:] |= (texts[order[1:]] != texts[order[:-1]]).any(axis=1)
    group = np.cumsum(new_address) - 1
    crowded = np.bincount(group, weights=new_text) > most
    inside = crowded[group]
    return np.sort(order[~inside]), {"addresses": int(crowded.sum()), "documents": int(inside.sum())}


def _drop_repeats(
    rows: np.ndarray, keys: np.ndarray, rule: np.ndarray, kept: np.ndarray, value: np.ndarray, what: int, old: int
) -> None:
    gone, first = drop_repeats(rows, keys, old)
    rule[gone], kept[gone], value[gone] = what, first, 1.0


def drop_repeats(rows: np.ndarray, keys: np.ndarray, old: int) -> tuple[np.ndarray, np.ndarray]:
    """(rows that go, the row that stays for each): every one of `rows` (ascending ranks) whose 128-bit key was seen at a better
    rank, but for the first `old`."""
    if not len(rows):
        return rows, rows
    order = rows[np.lexsort((rows, keys[rows, 1], keys[rows, 0]))]
    same = np.zeros(len(order), bool)
    same[1:] = (keys[order[1:]] == keys[order[:-1]]).all(axis=1)
    first = np.maximum.accumulate(np.where(same, 0, np.arange(len(order))))
    gone = same & (order >= old)
    return order[gone], order[first[gone]]


def _drop_near(
    signatures: Signatures,
    rules: Rules,
    search: Search,
    rule: np.ndarray,
    kept: np.ndarray,
    value: np.ndarray,
    old: int,
) -> dict[str, object]:
    free = np.flatnonzero((rule == KEEP) & (signatures.tokens >= rules.near_min_tokens))
    chosen = signatures.take(free)
    old_free = int((free < old).sum())
    pairs, skipped, figures = search(chosen, old_free)
    likeness = similarities(pairs, chosen)
    sure = likeness >= rules.similarity
    pairs, likeness = pairs[sure], likeness[sure]
    centre = stars(len(free), pairs)
    gone = np.flatnonzero(centre != np.arange(len(free)))
    rule[free[gone]] = NEAR
    kept[free[gone]] = free[centre[gone]]
    strength = {(a, b): s for (a, b), s in zip(pairs.tolist(), likeness.tolist(), strict=True)}
    value[free[gone]] = [strength[centre[d], d] for d in gone.tolist()]
    figures.update(candidates=len(sure), verified=int(sure.sum()), comparisons_left_out=skipped)
    return figures
