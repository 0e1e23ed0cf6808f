"""How documents become rows: cut out of one long stream, or laid whole beside each other with best fit.

Rows are described by pieces and found by number, so any row of any epoch costs the same and needs nothing before it.

    ConcatRows   documents in a shuffled order, end to end, cut every S tokens (Ziya2's stage 1): nothing is padded
    PackedRows   whole documents, best fit decreasing (Ziya2's stages 2-3): nothing is cut; longer ones are split or cut
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Literal, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from penjing.config import generator
from penjing.errors import InputError, fault
from penjing.objectives.shards import Shard, files_of, without_gaps

T = TypeVar("T")
Overlong = Literal["split", "truncate", "drop"]


class Piece(NamedTuple):
    """A run of one document's tokens inside a row."""

    document: int
    start: int
    """First token, counted from the start of the shard's .bin."""
    length: int
    prompt: int
    """How many tokens from its start on belong to a prompt; more than its length where the prompt goes on behind it."""
    goes_on: bool
    """Whether the document has a token after the last of these."""


@dataclass(frozen=True)
class Documents:
    """The documents of one source that take part: where they start and how long they are, in tokens."""

    name: str
    shard: Shard
    number: NDArray[np.int64]
    """Index in the shard."""
    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]
    prompts: NDArray[np.int64] | None
    """Tokens of the prompt; None for plain text."""

    @property
    def tokens(self) -> int:
        """All their tokens."""
        return int(self.lengths.sum(dtype=np.int64))


HELD_OUT_SEED = 20259
"""Held-out documents are the same whatever a stage's seed is, so that no later stage trains on them."""


def documents_of(name: str, shard: Shard, *, held_out_percent: float = 0.0, held_out: bool = False,
                 supervised: bool | None = None) -> Documents:
    """The training (or the held-out) documents of a shard; empty ones are left out. InputError when none is left.

    supervised: whether documents of two sequences are prompt and answer; None: they are if there are any.
    """
    itemsize = shard.dtype.itemsize
    if not without_gaps(shard):
        raise InputError(fault("sequences do not follow each other in the token file", where=files_of(shard.prefix)[1],
                               fix="rewrite it with `penjing.objectives.shards.merge([prefix], new_prefix)`"))
    first, last = shard.marks[:-1], shard.marks[1:]
    edges = np.append(shard.offsets // itemsize, shard.tokens if not shard.sequences else
                      (int(shard.offsets[-1]) // itemsize + int(shard.lengths[-1])))
    starts = edges[first]
    lengths = edges[last] - starts
    two = (last - first) == (2 if supervised is not False else -1)
    prompts = None
    if bool(two.any()):
        prompts = np.zeros(len(first), np.int64)
        prompts[two] = shard.lengths[first[two]]
    keep = lengths > 0
    if held_out_percent:
        count = max(1, round(len(first) * held_out_percent / 100)) if len(first) > 1 else 0
        chosen = np.zeros(len(first), bool)
        chosen[generator(HELD_OUT_SEED, "held-out", name).permutation(len(first))[:count]] = True
        keep &= chosen if held_out else ~chosen
    number = np.flatnonzero(keep).astype(np.int64)
    if not len(number):
        raise InputError(fault(f"source '{name}' has no documents", where=files_of(shard.prefix)[0],
                               fix="leave the source out of the mixture, or make its tokens again"))
    return Documents(name, shard, number, starts[number], lengths[number], None if prompts is None else prompts[number])


@dataclass(frozen=True)
class Packing:
    """Items laid into bins: bin b holds items[edges[b] : edges[b + 1]]."""

    items: NDArray[np.int64]
    edges: NDArray[np.int64]
    fill: float
    """Share of the bins' room that is used."""

    def __len__(self) -> int:
        return len(self.edges) - 1


def best_fit(sizes: NDArray[np.integer], capacity: int, *, rng: np.random.Generator | None = None) -> Packing:
    """Best fit decreasing: long items first, each into the fullest bin that still holds it.

    With `rng`, equal sizes go in random order, so that epochs differ in who lies beside whom; the number of bins does
    not. Raises ValueError for an item larger than the capacity.
    """
    from penjing.objectives import kernels

    small = np.asarray(sizes, np.int32)
    if len(small) and (int(small.max()) > capacity or int(small.min()) < 1):
        raise ValueError(f"item sizes must be 1 to {capacity}, found {int(small.min())} to {int(small.max())}")
    if rng is None:
        order = np.argsort(-small, kind="stable")
    else:
        shuffled = rng.permutation(len(small))
        order = shuffled[np.argsort(-small[shuffled], kind="stable")]
    bins, count = kernels.best_fit(small, order, capacity)
    items = order[np.argsort(bins[order], kind="stable")]
    edges = np.zeros(count + 1, np.int64)
    np.cumsum(np.bincount(bins, minlength=count), out=edges[1:])
    return Packing(items, edges, float(small.sum(dtype=np.int64)) / (count * capacity) if count else 1.0)


class ConcatRows:
    """Rows cut every `width` tokens from the documents laid end to end; a fresh shuffle every epoch, no gap between
    epochs."""

    def __init__(self, documents: Documents, *, width: int, seed: int) -> None:
        self.documents = documents
        self.width = width
        self._seed = seed
        self._total = documents.tokens
        self.rows_per_epoch = self._total / width
        self.tokens_per_row = float(width)
        self.truncated_tokens = 0
        self._order = Recent(self._shuffle)

    def pieces(self, row: int) -> list[Piece]:
        """What row `row` (counted over all epochs) holds."""
        return self.cut(row * self.width, self.width)

    def cut(self, position: int, count: int) -> list[Piece]:
        """The `count` tokens from `position` of the endless stream on, as pieces of documents."""
        found: list[Piece] = []
        end = position + count
        while position < end:
            epoch, inside = divmod(position, self._total)
            order, edges = self._order(epoch)
            place = int(np.searchsorted(edges, inside, side="right")) - 1
            while position < end and place < len(order):
                index = int(order[place])
                skipped = inside - int(edges[place])
                left = int(self.documents.lengths[index]) - skipped
                length = min(left, end - position)
                prompt = 0 if self.documents.prompts is None else max(int(self.documents.prompts[index]) - skipped, 0)
                found.append(Piece(int(self.documents.number[index]), int(self.documents.starts[index]) + skipped,
                                   length, prompt, length < left))
                position += length
                inside += length
                place += 1
        return found

    def _shuffle(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        order = generator(self._seed, "documents", self.documents.name, epoch).permutation(len(self.documents.number))
        edges = np.zeros(len(order) + 1, np.int64)
        np.cumsum(self.documents.lengths[order], out=edges[1:])
        return order, edges


class PackedRows:
    """Rows of whole documents. Longer ones are split into full rows and a rest, cut to one row, or dropped (and
    counted)."""

    def __init__(self, documents: Documents, *, width: int, seed: int, overlong: Overlong = "split",
                 together: bool = True) -> None:
        self.documents = documents
        self.width = width
        self._seed = seed
        self._together = together
        lengths = documents.lengths
        long = lengths > width
        self.truncated_tokens = 0
        item_document = np.arange(len(lengths), dtype=np.int64)
        item_start = np.zeros(len(lengths), np.int64)
        item_length = lengths.copy()
        if overlong == "split" and bool(long.any()):
            parts = -(-lengths // width)
            item_document = np.repeat(item_document, parts)
            nth = np.arange(len(item_document)) - np.repeat(np.cumsum(parts) - parts, parts)
            item_start = nth * width
            item_length = np.minimum(lengths[item_document] - item_start, width)
        elif overlong == "truncate":
            self.truncated_tokens = int((lengths[long] - width).sum(dtype=np.int64))
            if documents.prompts is not None:
                item_start = np.where(long, np.minimum(documents.prompts, lengths - width), 0)
            item_length = np.minimum(lengths - item_start, width)
        elif overlong == "drop":
            self.truncated_tokens = int(lengths[long].sum(dtype=np.int64))
            item_document, item_start, item_length = item_document[~long], item_start[~long], item_length[~long]
        if not len(item_length):
            raise InputError(fault(f"every document of source '{documents.name}' is longer than a row",
                                   where=files_of(documents.shard.prefix)[0],
                                   found=f"at least {int(lengths.min())} tokens", expected=f"at most {width}",
                                   fix="choose longer rows, or overlong: split"))
        self._document, self._start, self._length = item_document, item_start, item_length
        self._plan = Recent(self._pack)
        first, _ = self._plan(0)
        self.rows_per_epoch = float(len(first))
        self.tokens_per_row = int(item_length.sum(dtype=np.int64)) / len(first)

    def pieces(self, row: int) -> list[Piece]:
        """What row `row` (counted over all epochs) holds."""
        epoch, inside = divmod(row, int(self.rows_per_epoch))
        packing, order = self._plan(epoch)
        place = int(order[inside])
        found = []
        for item in packing.items[packing.edges[place] : packing.edges[place + 1]]:
            document = int(self._document[item])
            start, length = int(self._start[item]), int(self._length[item])
            prompt = 0 if self.documents.prompts is None else max(int(self.documents.prompts[document]) - start, 0)
            found.append(Piece(int(self.documents.number[document]), int(self.documents.starts[document]) + start,
                               length, prompt, start + length < int(self.documents.lengths[document])))
        return found

    def _pack(self, epoch: int) -> tuple[Packing, NDArray[np.int64]]:
        rng = generator(self._seed, "packing", self.documents.name, epoch)
        if self._together:
            packing = best_fit(self._length, self.width, rng=rng)
        else:
            count = len(self._length)
            packing = Packing(np.arange(count), np.arange(count + 1), float(self._length.mean()) / self.width)
        order = rng.permutation(len(packing))
        return packing, order


class Recent(Generic[T]):
    """Remembers the last two results of a function of one number (the epochs around a seam)."""

    def __init__(self, function: Callable[[int], T]) -> None:
        self._function = function
        self._kept: OrderedDict[int, T] = OrderedDict()

    def __call__(self, number: int) -> T:
        if number in self._kept:
            self._kept.move_to_end(number)
        else:
            self._kept[number] = self._function(number)
            while len(self._kept) > 2:
                self._kept.popitem(last=False)
        return self._kept[number]
