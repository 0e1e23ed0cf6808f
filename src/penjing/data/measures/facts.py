"""Everything counted about a batch of documents, counted when it is first asked for and at most once."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from penjing.data.kernels import Bytes, Offsets
from penjing.data.kernels.grams import GRAMS, grams
from penjing.data.kernels.lines import Lines, Repeats, Sentences, lines, repeats, sentences
from penjing.data.kernels.phrases import Phrases, hits
from penjing.data.kernels.words import ALL_SYMBOLS, Words, members, per_document, rows_of, split

Floats = npt.NDArray[np.float64]


def _once(method: Callable[..., Any]) -> Callable[..., Any]:
    """Keep what a method gave for its arguments on the object itself, which lives for one batch."""
    @functools.wraps(method)
    def kept(self: Facts, *arguments: Any) -> Any:
        key = (method.__name__, arguments)
        if key not in self._kept:
            self._kept[key] = method(self, *arguments)
        return self._kept[key]

    return kept


@dataclass(frozen=True)
class PhraseLists:
    """Named lists of phrases, compiled together; `names[i]` is list i."""

    names: tuple[str, ...]
    compiled: Phrases
    domains: frozenset[str] = frozenset()
    """Hosts whose documents the URL rule refuses."""


@dataclass(eq=False)
class Facts:
    """A batch of documents and what is known about it. `wanted` says which n-gram counts are needed, as bits per document."""

    data: Bytes
    offsets: Offsets
    langs: Sequence[str | None]
    urls: Sequence[str | None]
    phrases: PhraseLists
    wanted: npt.NDArray[np.uint8]
    given_words: Words | None = None
    """Word boundaries from elsewhere, in place of our own."""
    symbols: bool = False
    """Whether runs of punctuation are words."""
    removed: Mapping[str, Floats] = field(default_factory=dict)
    """After the paragraph rules: characters each rule removed per document, under the rule's id."""
    characters_before: Floats | None = None
    whole: Facts | None = None
    """The batch these documents are rows of, if they are."""
    rows: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    _kept: dict[Any, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.langs)

    def take(self, rows: npt.NDArray[np.int64]) -> Facts:
        """The same about some of the documents. What is counted is taken over, from the same bytes."""
        return Facts(self.data, self.offsets, [self.langs[row] for row in rows], [self.urls[row] for row in rows], self.phrases,
                     self.wanted[rows], symbols=self.symbols, whole=self, rows=rows)

    @functools.cached_property
    def lines(self) -> Lines:
        """Lines and their facts."""
        return lines(self.data, self.offsets) if self.whole is None else self.whole.lines.take(self.rows)

    @functools.cached_property
    def repeats(self) -> Repeats:
        """Repeated lines and paragraphs."""
        if self.whole is None:
            return repeats(self.data, self.lines)
        found = self.whole.repeats
        return Repeats(found.counts[self.rows], found.again[rows_of(self.whole.lines.first, self.rows)[0]])

    @functools.cached_property
    def words(self) -> Words:
        """Words."""
        if self.whole is not None:
            return self.whole.words.take(self.rows)
        return self.given_words if self.given_words is not None else split(self.data, self.offsets, symbols=self.symbols)

    @functools.cached_property
    def grams(self) -> dict[str, Floats]:
        """Counts of n-grams by name."""
        if self.whole is not None:
            return {name: counts[self.rows] for name, counts in self.whole.grams.items()}
        counted = grams(self.data, self.offsets, self.words, self.wanted)
        return {name: counted[:, index] for index, name in enumerate(GRAMS)}

    @functools.cached_property
    def num_words(self) -> Floats:
        """Words per document."""
        return np.diff(self.words.first).astype(np.float64)

    @functools.cached_property
    def real_words(self) -> Floats:
        """Words that are not symbols alone."""
        return per_document(self.words, ALL_SYMBOLS, have=False) if self.symbols or self.given_words is not None else self.num_words

    @_once
    def sum(self, column: str) -> Floats:
        """Sum of a line fact over each document."""
        return np.add.reduceat(self.lines[column].astype(np.float64), self.lines.first[:-1]) if len(self) else np.zeros(0)

    @_once
    def largest(self, column: str) -> Floats:
        """Largest value of a line fact in each document."""
        if not len(self):
            return np.zeros(0)
        return np.maximum.reduceat(self.lines[column], self.lines.first[:-1]).astype(np.float64)

    def count(self, mask: npt.NDArray[np.bool_]) -> Floats:
        """Lines of each document for which `mask` holds."""
        return np.add.reduceat(mask.astype(np.float64), self.lines.first[:-1]) if len(self) else np.zeros(0)

    @functools.cached_property
    def filled(self) -> npt.NDArray[np.bool_]:
        """Which lines are not blank."""
        return self.lines["tokens"] > 0

    @functools.cached_property
    def num_lines(self) -> Floats:
        """Lines that are not blank."""
        return self.count(self.filled)

    @functools.cached_property
    def newlines(self) -> Floats:
        """Newlines per document."""
        return np.diff(self.lines.first).astype(np.float64) - 1

    @functools.cached_property
    def characters(self) -> Floats:
        """Characters per document, newlines included."""
        return self.sum("characters") + self.newlines

    @functools.cached_property
    def visible(self) -> Floats:
        """Characters that are not white space."""
        return self.sum("characters") - self.sum("spaces")

    @functools.cached_property
    def line_document(self) -> npt.NDArray[np.int64]:
        """The document each line belongs to."""
        return np.repeat(np.arange(len(self)), np.diff(self.lines.first))

    @functools.cached_property
    def line_is_chinese(self) -> npt.NDArray[np.bool_]:
        """Which lines belong to Chinese documents."""
        return np.array([lang == "zh" for lang in self.langs], bool)[self.line_document]

    @functools.cached_property
    def found(self) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
        """Phrases that occur: (phrase, byte)."""
        if self.whole is None:
            return hits(self.data, self.offsets, self.phrases.compiled)
        which, where = self.whole.found
        mine = np.zeros(len(self.whole), bool)
        mine[self.rows] = True
        chosen = mine[np.searchsorted(self.offsets, where, side="right") - 1]
        return which[chosen], where[chosen]

    @_once
    def phrase_lines(self, name: str) -> npt.NDArray[np.int32]:
        """Different phrases of the list `name` in each line."""
        if self.whole is not None:
            taken: npt.NDArray[np.int32] = self.whole.phrase_lines(name)[rows_of(self.whole.lines.first, self.rows)[0]]
            return taken
        result = np.zeros(len(self.lines.starts), np.int32)
        if name in self.phrases.names and len(self.found[0]):
            which, where = self.found
            chosen = self.phrases.compiled.lists[which] == self.phrases.names.index(name)
            line = np.searchsorted(self.lines.starts, where[chosen], side="right") - 1
            pairs = np.unique(np.stack([line, which[chosen].astype(np.int64)]), axis=1) if chosen.any() else np.zeros((2, 0), int)
            np.add.at(result, pairs[0], 1)
        return result

    def phrase_documents(self, name: str) -> Floats:
        """Lines of each document that hold a phrase of the list `name`."""
        return self.count(self.phrase_lines(name) > 0)

    def sentences(self, chosen: npt.NDArray[np.bool_]) -> Sentences:
        """Sentences of the chosen lines."""
        return sentences(self.data, self.lines, chosen)

    def distinct_of(self, words: tuple[str, ...]) -> Floats:
        """How many of these words occur in each document."""
        return self._members(words)[0]

    def occurrences_of(self, words: tuple[str, ...]) -> Floats:
        """How many words of each document are among these."""
        return self._members(words)[1]

    @_once
    def _members(self, words: tuple[str, ...]) -> tuple[Floats, Floats]:
        return members(self.words, words)


def share(part: Floats, whole: Floats) -> Floats:
    """part / whole, 0 where there is nothing."""
    return np.divide(part, whole, out=np.zeros(len(part)), where=whole > 0)
