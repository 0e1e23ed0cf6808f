"""Which pieces to keep: the fewest tokens lost for every row given up, never breaking a kept piece's own merge path.

`leaf` removes, again and again, the piece that no other kept piece is made of and whose removal costs the fewest extra tokens;
its count flows to what it falls apart into. Every state on the way is closed, so one pass gives every size. `closure` keeps the
most frequent pieces and all their merge paths. `frequency` keeps the most frequent pieces and nothing else, as OpenBA-V2's
scripts do; it is here to be compared with and breaks the contract for BPE.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from penjing.errors import InputError, fault
from penjing.tokenizer.build import fallback, refuse_wordpiece
from penjing.tokenizer.merges import MergeTree, Symbols, flatten, merge_table, merge_tree, run
from penjing.tokenizer.plan import VocabPlan, source_hash
from penjing.tokenizer.vocabulary import NORMAL, UNKNOWN, Vocabulary

PruneMethod = Literal["leaf", "closure", "frequency"]
UNKNOWN_COST = 10
"""How many tokens' worth of loss it is that a character becomes unknown, where there are no byte pieces."""


@dataclass(frozen=True)
class Order:
    """Removal order: dropping the first n pieces of `removed` leaves a closed vocabulary, for every n."""

    removed: np.ndarray
    """int64, old ids in the order of removal; what is never removed is not in it."""
    extra_tokens: np.ndarray
    """int64, tokens added to the corpus by each removal (an upper bound: freed pieces may merge elsewhere)."""
    size: int
    """Ids before any removal, added tokens included."""

    @property
    def smallest(self) -> int:
        """What is left when everything that may go is gone."""
        return self.size - len(self.removed)

    def kept(self, size: int) -> tuple[int, ...]:
        """The old ids left when `size` remain."""
        gone = np.zeros(self.size, dtype=bool)
        gone[self.removed[: max(0, self.size - size)]] = True
        return tuple(np.flatnonzero(~gone).tolist())


def plan_pruning(vocabulary: Vocabulary, counts: Mapping[str, np.ndarray], *, size: int | None = None,
                 target: Mapping[str, float] | None = None, method: PruneMethod = "leaf", pad_to_multiple: int = 1,
                 keep: frozenset[int] = frozenset()) -> VocabPlan:
    """A plan that keeps `size` ids, or the fewest that cover the share `target[lang]` of each language's tokens.

    counts: language -> int64 [V]. Raises InputError when the size is below what must stay or not below what there is, or a
    language asked for is not in the corpus.
    """
    refuse_wordpiece(vocabulary)
    total = np.sum([values for _, values in sorted(counts.items())], axis=0)
    order = removal_order(vocabulary, total, method=method, keep=keep)
    if size is None:
        assert target is not None
        size = size_for_coverage(order, counts, target)
    check_size(vocabulary, order, size)
    notes = {"method": method, "asked": size if target is None else {"coverage": dict(target)}}
    return planned(vocabulary, order, size, counts, pad_to_multiple=pad_to_multiple, notes=notes)


def planned(vocabulary: Vocabulary, order: Order, size: int, counts: Mapping[str, np.ndarray], *, pad_to_multiple: int = 1,
            notes: dict[str, Any] | None = None) -> VocabPlan:
    """The plan that keeps `size` ids of a removal order."""
    total = np.sum([values for _, values in sorted(counts.items())], axis=0)
    kept = order.kept(size)
    return VocabPlan("prune", vocabulary.kind, source_hash(vocabulary), vocabulary.total, kept, (), pad_to_multiple,
                     counts={index: int(total[index]) for index in kept},
                     spelling={index: vocabulary.text(index) for index in kept}, notes=notes or {})


def check_size(vocabulary: Vocabulary, order: Order, size: int) -> None:
    """Refuse sizes that cannot be reached, naming both numbers."""
    if size < order.smallest:
        raise InputError(fault("the size to prune to is below the pieces that must stay", where=vocabulary.name, found=size,
                               expected=f"at least {order.smallest} ({len(vocabulary.special_ids)} special, control and byte "
                               "pieces, and those asked to be kept)"))
    if size > vocabulary.total:
        raise InputError(fault("the size to prune to is above the present one", where=vocabulary.name, found=size,
                               expected=f"at most {vocabulary.total}"))


def removal_order(vocabulary: Vocabulary, counts_V: np.ndarray, *, method: PruneMethod = "leaf",
                  keep: frozenset[int] = frozenset()) -> Order:
    """In which order pieces go, by the corpus counts of their ids (int64 [total])."""
    if len(counts_V) != vocabulary.total:
        raise InputError(fault("counts are of another vocabulary", where=vocabulary.name, found=f"{len(counts_V)} counts",
                               expected=f"{vocabulary.total} ids"))
    fixed = np.zeros(vocabulary.total, dtype=bool)
    fixed[sorted(vocabulary.special_ids | keep)] = True
    if vocabulary.kind == "unigram":
        from penjing.tokenizer.unigram import unigram_order

        return unigram_order(vocabulary, counts_V, fixed, method)
    if method == "frequency":
        ids = np.flatnonzero(~fixed)
        removed = ids[np.lexsort((-ids, counts_V[ids]))]
        return Order(removed, np.zeros(len(removed), dtype=np.int64), vocabulary.total)
    tree = merge_tree(vocabulary)
    _fix_alphabet(vocabulary, fixed)
    if method == "closure":
        return _closure_order(vocabulary, counts_V, fixed, tree)
    return _leaf_order(vocabulary, counts_V, fixed, tree)


def size_for_coverage(order: Order, counts: Mapping[str, np.ndarray], target: Mapping[str, float]) -> int:
    """The smallest size at which each language in `target` has at least that share of its tokens kept."""
    size = order.smallest
    for lang, share in target.items():
        if lang not in counts or not counts[lang].sum():
            raise InputError(fault(f"the corpus has no text in language '{lang}'", found=f"languages {', '.join(sorted(counts))}",
                                   expected=f"'{lang}', whose coverage is asked for"))
        lost = np.cumsum(counts[lang][order.removed])
        allowed = int(np.searchsorted(lost, (1 - share) * counts[lang].sum(), side="right"))
        size = max(size, order.size - allowed)
    return size


def covered_share(kept: tuple[int, ...], counts: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Share of each language's tokens whose ids are kept."""
    at = np.array(kept, dtype=np.int64)
    return {lang: float(values[at].sum() / max(1, values.sum())) for lang, values in sorted(counts.items())}


def kept_by_name(vocabulary: Vocabulary, texts: list[str]) -> frozenset[int]:
    """Ids of pieces named as text; InputError for a text that is no piece."""
    by_text = {vocabulary.text(index): index for index in range(len(vocabulary))}
    found = set()
    for text in texts:
        index = vocabulary.ids.get(text, by_text.get(text))
        if index is None:
            raise InputError(fault(f"'{text}' is asked to be kept but is not a piece", where=vocabulary.name))
        found.add(index)
    return frozenset(found)


def _fix_alphabet(vocabulary: Vocabulary, fixed: np.ndarray) -> None:
    """The byte alphabet of byte-level BPE always stays, or some text could not be written at all."""
    if vocabulary.kind == "byte-bpe":
        fixed[[index for index, piece in enumerate(vocabulary.pieces) if len(piece) == 1]] = True


def _leaf_order(vocabulary: Vocabulary, counts_V: np.ndarray, fixed: np.ndarray, tree: MergeTree) -> Order:
    size = len(vocabulary)
    count = counts_V.astype(np.int64).copy()
    needed = np.zeros(vocabulary.total, dtype=np.int64)
    for index in range(size):
        needed[tree.parts(index)] += 1
    parts = _parts_when_removed(vocabulary, tree)
    removable = [index for index in range(size) if not fixed[index] and vocabulary.types_V[index] == NORMAL]
    cost_of = {index: removal_cost(vocabulary, parts[index]) for index in removable}
    removed = [] if vocabulary.ignore_merges else [index for index in removable if not tree.reachable_V[index]]
    extra = [0] * len(removed)
    gone = set(removed)
    heap = [(int(count[index]) * cost_of[index], int(count[index]), -index) for index in removable
            if needed[index] == 0 and index not in gone]
    heapq.heapify(heap)
    while heap:
        cost, seen, negative = heapq.heappop(heap)
        index = -negative
        if seen != count[index]:
            heapq.heappush(heap, (int(count[index]) * cost_of[index], int(count[index]), negative))
            continue
        removed.append(index)
        extra.append(cost)
        for part in parts[index]:
            if part < len(count):
                count[part] += seen
        for part in tree.parts(index):
            if part < size:
                needed[part] -= 1
                if needed[part] == 0 and part in cost_of and part not in gone:
                    heapq.heappush(heap, (int(count[part]) * cost_of[part], int(count[part]), -part))
    return Order(np.array(removed, dtype=np.int64), np.array(extra, dtype=np.int64), vocabulary.total)


def removal_cost(vocabulary: Vocabulary, parts: list[int]) -> int:
    """Tokens that each occurrence of a piece costs once it is gone; text that becomes unknown costs UNKNOWN_COST.

    One byte for one character is no longer, but the model has to learn it anew, so it counts as one.
    """
    if any(vocabulary.types_V[part] == UNKNOWN for part in parts if part < len(vocabulary)):
        return UNKNOWN_COST
    return max(1, len(parts) - 1)


def _parts_when_removed(vocabulary: Vocabulary, tree: MergeTree) -> dict[int, list[int]]:
    """What each normal piece falls apart into: the parts of its last merge, or the bytes of a single character."""
    parts: dict[int, list[int]] = {}
    alone = []
    for index in range(len(vocabulary)):
        if vocabulary.types_V[index] != NORMAL:
            continue
        left, right = int(tree.left_V[index]), int(tree.right_V[index])
        if left >= 0:
            parts[index] = [left, right]
        elif len(vocabulary.pieces[index]) == 1:
            parts[index] = fallback(vocabulary, vocabulary.pieces[index]) or [index]
        else:
            alone.append(index)
    if alone:
        symbols = Symbols(vocabulary)
        runs = run(merge_table(vocabulary), *flatten(symbols.of(vocabulary.pieces[index]) for index in alone))
        for at, index in enumerate(alone):
            parts[index] = runs[at].tolist()
    return parts


def _closure_order(vocabulary: Vocabulary, counts_V: np.ndarray, fixed: np.ndarray, tree: MergeTree) -> Order:
    """Pieces by falling frequency, each with its merge path; the order of removal is the reverse."""
    taken = fixed.copy()
    order: list[int] = []

    def take(index: int) -> None:
        if index >= len(vocabulary) or taken[index]:
            return
        taken[index] = True
        for part in tree.parts(index):
            take(part)
        order.append(index)

    ids = np.arange(vocabulary.total)
    for index in np.flatnonzero(fixed).tolist():
        if index < len(vocabulary):
            for part in tree.parts(index):
                take(part)
    mandatory = len(order)
    for index in ids[np.lexsort((ids, -counts_V))].tolist():
        if tree.reachable_V[index] if index < len(vocabulary) else False:
            take(index)
    for index in range(len(vocabulary)):
        take(index)
    removed = np.array(order[mandatory:][::-1], dtype=np.int64)
    return Order(removed, np.zeros(len(removed), dtype=np.int64), vocabulary.total)
