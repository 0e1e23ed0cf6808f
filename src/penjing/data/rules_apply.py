"""Rules on a batch: document, then paragraph, then sentence, then the document rules that look again.

Nothing is dropped while it is measured. The statistics of every document come first; decisions are made on them; text is
written anew only for the documents in which something was cut or edited.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from penjing.data.kernels import grams as gram_kernel
from penjing.data.kernels import to_column, views
from penjing.data.kernels.assemble import assemble
from penjing.data.kernels.words import Words
from penjing.data.measures import edits, measure
from penjing.data.measures.facts import Facts, PhraseLists
from penjing.data.rules import LANGUAGES, Rule, RuleSet, decide

_GRAM_BITS = {
    **dict.fromkeys(("top_2_gram", "top_3_gram", "top_4_gram"), gram_kernel.TOP),
    **dict.fromkeys((f"duplicate_{n}_grams" for n in range(5, 11)), gram_kernel.REPEATED),
    "unique_words": gram_kernel.UNIQUE, "word_entropy": gram_kernel.UNIQUE, "character_entropy": gram_kernel.ENTROPY,
    "character_3_grams": gram_kernel.CHAR_3, "character_10_grams": gram_kernel.CHAR_10,
    "character_13_grams": gram_kernel.CHAR_13,
}
LARGEST_COUNTED = 8 << 20
"""Bytes of a document whose repetition is counted; what is larger is the maximum length's business (D02), as its n-grams would
take tens of times its size in memory."""
Bools = npt.NDArray[np.bool_]


@dataclass
class Tally:
    """What one rule did: documents (or lines, sentences) it fired on, bytes of them, and those nothing else caught."""

    fired: int = 0
    bytes: int = 0
    sole: int = 0
    sole_bytes: int = 0
    documents: int = 0
    """Documents touched; for document rules the same as fired."""


@dataclass
class Applied:
    """What became of a batch."""

    stats: dict[str, npt.NDArray[np.float32]]
    """Every measure of the document rules, one value per document of the batch."""
    keep: Bools
    rule: list[str | None]
    """Of dropped documents the first rule that dropped them, its value and bound."""
    value: npt.NDArray[np.float64]
    bound: list[str]
    texts: pa.Array
    """Texts of all documents, cut and edited where rules said so."""
    tallies: dict[str, Tally] = field(default_factory=dict)
    cuts: list[dict[str, Any]] = field(default_factory=list)
    """Samples of what was cut: document (row), rule, value, bound, text."""
    sole_drops: dict[str, dict[str, int]] = field(default_factory=dict)


def facts_of(texts: pa.Array | pa.ChunkedArray, langs: Sequence[str | None], urls: Sequence[str | None], rules: RuleSet,
             phrases: PhraseLists, *, words: Words | None = None) -> Facts:
    """Facts about a batch, prepared for what `rules` ask."""
    data, offsets = views(texts)
    wanted = np.zeros(len(langs), np.uint8)
    for lang in LANGUAGES:
        bits = 0
        for rule in rules.at("document"):
            if lang in rule.bounds:
                bits |= _GRAM_BITS.get(rule.measures[lang], 0)
        wanted[np.array([one == lang for one in langs], bool)] = bits
    wanted[np.diff(offsets) > LARGEST_COUNTED] = 0
    return Facts(data, offsets, langs, urls, phrases, wanted, given_words=words, symbols=rules.symbols)


def measured(facts: Facts, rules: RuleSet, only: Sequence[Rule] | None = None) -> dict[str, npt.NDArray[np.float32]]:
    """Every measure that the document rules (or only these) need, float32."""
    chosen = rules.at("document") if only is None else only
    needed = sorted({name for rule in chosen for lang, name in rule.measures.items() if lang in rule.bounds})
    return {name: measure("document", name)(facts).astype(np.float32) for name in needed}


def apply(facts: Facts, rules: RuleSet, *, stats: Mapping[str, npt.NDArray[np.float32]] | None = None) -> Applied:
    """The whole table on a batch. `stats`, measured before on the same documents, are not measured again."""
    langs = np.array([lang or "" for lang in facts.langs], object)
    documents = rules.at("document")
    sizes = np.diff(facts.offsets)
    known = dict(stats) if stats is not None else measured(facts, rules)
    fired = decide(known, langs, documents)
    only = np.array([rule.after == "only" for rule in documents], bool)
    late_only = fired[only].copy() if len(documents) else fired
    fired[only] = False
    drops = np.array([rule.action == "drop" for rule in documents], bool)
    alive = ~fired[drops].any(0) if len(documents) else np.ones(len(langs), bool)
    result = Applied(known, alive.copy(), [None] * len(langs), np.full(len(langs), np.nan), [""] * len(langs),
                     _texts(facts), {rule.id: Tally() for rule in rules.rules})
    rows = np.flatnonzero(alive)
    part = facts if len(rows) == len(langs) else facts.take(rows)
    cutter = _Cutter(part, rules, langs[rows], rows, result)
    inside = cutter.run()
    changed = rows[inside]
    if len(changed):
        result.texts = cutter.texts(inside)
    again = [index for index, rule in enumerate(documents) if rule.after]
    if again and len(changed):
        late = [documents[index] for index in again]
        second = facts_of(result.texts.take(pa.array(changed)), [facts.langs[row] for row in changed],
                          [facts.urls[row] for row in changed], rules, facts.phrases)
        second.removed = {rule: count[inside] for rule, count in cutter.removed.items()}
        second.characters_before = part.characters[inside]
        values = measured(second, rules, late)
        verdicts = decide(values, langs[changed], late)
        late_only[:, changed] = False
        for position, index in enumerate(again):
            new = verdicts[position] & ~fired[index, changed]
            fired[index, changed[new]] = True
            for lang, name in late[position].measures.items():
                hit = new & (langs[changed] == lang)
                if hit.any():
                    known[name] = known[name].copy()
                    known[name][changed[hit]] = values[name][hit]
    if only.any():
        fired[only] |= late_only & alive
    _count_documents(documents, fired, drops, sizes, result)
    result.keep = ~fired[drops].any(0) if len(documents) else result.keep
    causes = np.argmax(fired & drops[:, None], axis=0) if len(documents) else np.zeros(len(langs), np.int64)
    for row in np.flatnonzero(~result.keep).tolist():
        rule = documents[causes[row]]
        result.rule[row] = rule.id
        result.value[row] = known[rule.measures[langs[row]]][row]
        result.bound[row] = rule.bound_text(langs[row])
    return result


def _count_documents(documents: Sequence[Rule], fired: Bools, drops: Bools, sizes: npt.NDArray[np.int64],
                     result: Applied) -> None:
    causes = fired[drops].sum(0) if len(documents) else np.zeros(fired.shape[1])
    for index, rule in enumerate(documents):
        tally = result.tallies[rule.id]
        tally.fired = tally.documents = int(fired[index].sum())
        tally.bytes = int(sizes[fired[index]].sum())
        if rule.action == "drop":
            sole = fired[index] & (causes == 1)
            tally.sole, tally.sole_bytes = int(sole.sum()), int(sizes[sole].sum())


def _texts(facts: Facts) -> pa.Array:
    return to_column(np.ascontiguousarray(facts.data), np.ascontiguousarray(facts.offsets))


class _Cutter:
    """Paragraph and sentence rules on the documents that are still alive."""

    def __init__(self, facts: Facts, rules: RuleSet, langs: npt.NDArray[Any], rows: npt.NDArray[np.int64],
                 result: Applied) -> None:
        self.facts, self.rules, self.langs, self.rows, self.result = facts, rules, langs, rows, result
        self.codes = np.array([LANGUAGES.index(lang) if lang in LANGUAGES else -1 for lang in langs.tolist()], np.int8)
        """The place of each document's language in LANGUAGES, -1 for others."""
        self.removed: dict[str, npt.NDArray[np.float64]] = {}
        self._pieces: dict[int, list[tuple[int, int]]] = {}
        self._edited: dict[int, str] = {}

    def run(self) -> npt.NDArray[np.int64]:
        """Which of these documents change, sorted."""
        paragraphs = self.rules.at("paragraph")
        sentences = self.rules.at("sentence")
        line_edits, edits_after = self.rules.at("paragraph", edits=True), self.rules.at("sentence", edits=True)
        if not (paragraphs or sentences or line_edits or edits_after) or not len(self.langs):
            return np.zeros(0, np.int64)
        lines = self.facts.lines
        document = self.facts.line_document
        line_langs = self.codes[document]
        open_lines = self.facts.filled & ((lines["fenced"] == 0) | (not self.rules.fences))
        cut = np.zeros(len(open_lines), bool)
        self._judge(paragraphs, "paragraph", open_lines, line_langs, document, cut)
        self.cut = cut
        left = open_lines & ~cut
        if sentences:
            self._sentences(sentences, left, document)
        self._edit([*line_edits, *edits_after], left, line_langs, document)
        changed = np.zeros(len(self.langs), bool)
        changed[document[cut]] = True
        for line in (*self._pieces, *self._edited):
            changed[document[line]] = True
        return np.flatnonzero(changed)

    def _judge(self, rules: Sequence[Rule], level: str, open_units: Bools, unit_langs: npt.NDArray[Any],
               document: npt.NDArray[np.int64], cut: Bools, found: Any = None) -> None:
        """Fill `cut`, count each rule, keep samples."""
        starts, ends = (self.facts.lines.starts, self.facts.lines.ends) if found is None else (found.starts, found.ends)
        fired = np.zeros((len(rules), len(cut)), bool)
        values: list[npt.NDArray[Any]] = []
        of_lang = {lang: (unit_langs == code) & open_units for code, lang in enumerate(LANGUAGES)}
        for index, rule in enumerate(rules):
            per_measure: dict[str, npt.NDArray[Any]] = {}
            shown = np.zeros(len(cut))
            for lang, bound in rule.bounds.items():
                name = rule.measures[lang]
                if name not in per_measure:
                    function = measure(level, name)
                    per_measure[name] = function(self.facts) if found is None else function(self.facts, found)
                rows = of_lang[lang]
                fired[index, rows] = rule.fires(per_measure[name][rows], lang)
                shown[rows] = per_measure[name][rows]
                del bound
            values.append(shown)
        cuts = np.array([rule.action == "cut" for rule in rules], bool)
        causes = fired[cuts].sum(0) if len(rules) else np.zeros(len(cut))
        size = ends - starts
        characters = (self.facts.lines if found is None else found)["characters"]
        for index, rule in enumerate(rules):
            hit = fired[index]
            tally = self.result.tallies[rule.id]
            tally.fired, tally.bytes = int(hit.sum()), int(size[hit].sum())
            tally.documents = len(np.unique(document[hit]))
            if rule.action != "cut":
                continue
            sole = hit & (causes == 1)
            tally.sole, tally.sole_bytes = int(sole.sum()), int(size[sole].sum())
            first = hit & ~cut
            cut |= hit
            weights = characters[first].astype(np.float64)
            self.removed[rule.id] = np.bincount(document[first], weights, len(self.langs)).astype(np.float64)
            for unit in np.flatnonzero(hit)[:20].tolist():
                lang = LANGUAGES[unit_langs[unit]]
                text = self.facts.data[starts[unit] : ends[unit]].tobytes().decode("utf-8")
                self.result.cuts.append({"row": int(self.rows[document[unit]]), "unit": unit, "rule": rule.id, "text": text,
                                         "value": float(values[index][unit]), "bound": rule.bound_text(lang)})

    def _sentences(self, rules: Sequence[Rule], left: Bools, document: npt.NDArray[np.int64]) -> None:
        found = self.facts.sentences(left)
        of_document = document[found.line]
        cut = np.zeros(len(found.line), bool)
        self._judge(rules, "sentence", np.ones(len(cut), bool), self.codes[of_document], of_document, cut, found)
        hit = np.unique(found.line[cut])
        low, high = np.searchsorted(found.line, hit), np.searchsorted(found.line, hit, side="right")
        for line, first, last in zip(hit.tolist(), low.tolist(), high.tolist(), strict=True):
            self._pieces[line] = [(int(found.starts[i]), int(found.ends[i])) for i in range(first, last) if not cut[i]]

    def _edit(self, rules: Sequence[Rule], left: Bools, line_langs: npt.NDArray[Any], document: npt.NDArray[np.int64]) -> None:
        if not rules:
            return
        lines = self.facts.lines
        triggers = lines["bits"].astype(np.int64)
        wanted = {rule.edit for rule in rules}
        if "handles" in wanted:
            triggers |= np.where((self.facts.phrase_lines("contact") > 0), edits.HANDLE, 0)
        if "read_more" in wanted:
            triggers |= np.where(self.facts.phrase_lines("read_more") > 0, edits.MORE, 0)
        if "repeated_units" in wanted:
            from penjing.data.kernels.units import holds_repeated_unit

            triggers |= np.where(holds_repeated_unit(self.facts.data, lines.starts, lines.ends, left), edits.UNIT, 0)
        functions = [edits.EDITS[str(rule.edit)] for rule in rules]
        due = np.zeros(len(left), np.int64)  # a bit for every edit that may find something in a line
        for index, rule in enumerate(rules):
            on = np.zeros(len(left), bool)
            for lang in rule.bounds:
                on |= line_langs == LANGUAGES.index(lang)
            due |= (left & on & ((triggers & edits.TRIGGERS[str(rule.edit)]) != 0)).astype(np.int64) << index
        touched: list[set[int]] = [set() for _ in rules]
        lines_due = np.flatnonzero(due)
        for line, bits in zip(lines_due.tolist(), due[lines_due].tolist(), strict=True):
            text = first = self._current(line)
            for index, function in enumerate(functions):
                if bits >> index & 1:
                    after = function(text)
                    if after != text:
                        tally = self.result.tallies[rules[index].id]
                        tally.fired += 1
                        tally.bytes += abs(len(text.encode()) - len(after.encode()))
                        touched[index].add(int(document[line]))
                        text = after
            if text is not first:
                self._edited[line] = text
        for rule, documents in zip(rules, touched, strict=True):
            self.result.tallies[rule.id].documents = len(documents)

    def _current(self, line: int) -> str:
        if line in self._edited:
            return self._edited[line]
        data = self.facts.data
        spans = self._pieces.get(line) or ([] if line in self._pieces else
                                           [(int(self.facts.lines.starts[line]), int(self.facts.lines.ends[line]))])
        return b"".join(data[start:stop].tobytes() for start, stop in spans).decode("utf-8")

    def texts(self, inside: npt.NDArray[np.int64]) -> pa.Array:
        """All texts of the batch, those of `inside` put together anew; no more than one blank line stays where lines were cut."""
        gone = self.cut.copy()
        replaced: list[int] = []
        new: list[bytes] = []
        for line in sorted({*self._pieces, *self._edited}):
            text = self._current(line).rstrip()
            if text:
                replaced.append(line)
                new.append(text.encode())
            else:
                gone[line] = True
        made = to_column(*assemble(self.facts.data, self.facts.lines, inside, gone, np.array(replaced, np.int64), new))
        mask = np.zeros(len(self.result.texts), bool)
        mask[self.rows[inside]] = True
        return pc.replace_with_mask(self.result.texts, pa.array(mask), made)
