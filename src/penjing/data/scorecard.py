"""Marks a cleaning by the labels that `weather` left: what should have gone and has, what should have stayed and is gone.

Documents. Junk and mojibake should vanish, and of every cluster (a document with its copies and near copies) all but
one. A dropped document is rightly dropped when it is one of those; the last of a cluster is not, and when a whole
cluster is gone exactly one of its documents was dropped wrongly. Mojibake that was repaired counts as gone. Clean
documents may be copies of one another before any weather: a cluster that gave way to a document which is still there
and holds at least four fifths of its text is a natural copy, counted apart and not lost.

    recall     of the documents that should vanish, the part that has
    precision  of the documents that were dropped, the part that should vanish

Strings. Of an inserted string too little to matter may be left: at most a tenth of the n-grams that the clean text
does not have. A labelled token (a tag, an address, a full-width word, a zero-width space) must not be there at all.

Text. Lost are the characters of sentences of the clean text that are not there any more, counted by n-grams of 4
characters (zh) or 12 (en), punctuation, spaces and width aside: one changed character counts as that many at most.

Every share comes with its 95% Wilson interval.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

ALL = "all"
GRAM = {"zh": 4, "en": 12}
RESIDUE = 0.1
"""An inserted string counts as gone when at most this part of its own n-grams is left."""
REPAIRED = 0.8
"""Mojibake counts as repaired when at least this part of the clean text's characters is there."""
NATURAL = 0.8
"""A document counts as a natural copy when at least this part of its characters is in the one that stayed for it."""
EXAMPLES = 20

_NOT_LETTERS = re.compile(r"[\W_]+")
_SENTENCE = re.compile(r"[。！？!?；;\n]+|\.\s")
Z = 1.959964


@dataclass
class Share:
    """So many of so many."""

    number: int = 0
    of: int = 0

    def add(self, hit: bool) -> None:
        """Count one more, a hit or not."""
        self.number += bool(hit)
        self.of += 1

    def as_json(self) -> dict[str, Any]:
        """number, of, rate and the bounds of the 95% Wilson interval; rate and bounds are None when `of` is 0."""
        if not self.of:
            return {"number": 0, "of": 0, "rate": None, "low": None, "high": None}
        low, high = wilson(self.number, self.of)
        return {"number": self.number, "of": self.of, "rate": round(self.number / self.of, 6),
                "low": round(low, 6), "high": round(high, 6)}


@dataclass(frozen=True)
class Reason:
    """Why a document was dropped: the rule, and the id of the document that stayed in its place, if any."""

    rule: str
    kept: str | None = None


@dataclass(frozen=True)
class _Member:
    name: str
    lang: str
    left: bool
    variant: str
    clean: str
    repaired: bool = False


@dataclass
class _Tables:
    recall: dict[str, Share] = field(default_factory=lambda: defaultdict(Share))
    precision: dict[str, Share] = field(default_factory=lambda: defaultdict(Share))
    lost: dict[str, Share] = field(default_factory=lambda: defaultdict(Share))
    language: dict[str, Share] = field(default_factory=lambda: defaultdict(Share))
    vanish: dict[str, dict[str, Share]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(Share)))
    defects: dict[str, dict[str, Share]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(Share)))
    text: dict[str, dict[str, Share]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(Share)))
    clusters: dict[str, list[int]] = field(default_factory=lambda: defaultdict(lambda: [0, 0, 0]))
    natural: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    examples: dict[str, list[dict[str, Any]]] = field(default_factory=lambda: defaultdict(list))


def scorecard(weathered: Iterable[Mapping[str, Any]], cleaned: Mapping[str, tuple[str, str | None]], *,
              reasons: Mapping[str, Reason] | None = None) -> dict[str, Any]:
    """The marks of a cleaning.

    `weathered`: rows with id, text and meta (a dict with the label under "weather"; rows without are passed over).
    `cleaned`: id -> (text, lang) of what is left. `reasons`: id -> why it was dropped, where known.
    Languages are zh, en, other (foreign junk) and all. ValueError when no row carries a label.
    """
    tables = _Tables()
    why = reasons or {}
    clusters: dict[str, list[_Member]] = defaultdict(list)
    labelled = 0
    for row in weathered:
        label = row["meta"].get("weather")
        if label is None:
            continue
        labelled += 1
        lang, kind, name = _language(label["lang"]), label["kind"], row["id"]
        left = cleaned.get(name)
        if kind == "junk":
            _vanish(tables, lang, f"junk: {label['variant']}", left is None)
            _dropped(tables, lang, left is None, rightly=True)
            if left is not None:
                _example(tables, "junk left", name, lang, label["variant"], left[0])
            continue
        if kind == "mojibake":
            variant = f"mojibake: {label['variant']}"
            _dropped(tables, lang, left is None, rightly=True)
            if left is not None:
                kept, of = _present(label["clean_text"], left[0], lang)
                if kept >= REPAIRED * of:
                    clusters[label["origin"]].append(_Member(name, lang, True, variant, "", repaired=True))
                    continue
                _example(tables, "mojibake left", name, lang, label["variant"], left[0])
            _vanish(tables, lang, variant, left is None)
            continue
        clean = label.get("clean_text", row["text"])
        variant = f"{kind}: {label['variant']}".rstrip(": ")
        clusters[label["origin"]].append(_Member(name, lang, left is not None, variant, clean if left is None else ""))
        if left is None:
            continue
        _count(tables.language, lang, left[1] == lang)
        if kind != "near-copy":
            _strings(tables, lang, label, left[0], name)
            kept, of = _present(clean, left[0], lang)
            for key in (lang, ALL):
                share = tables.text[key]["clean" if kind == "clean" else "edited"]
                share.number += of - kept
                share.of += of
            if of and kept < 0.9 * of:
                _example(tables, "text lost", name, lang, f"{100 * (1 - kept / of):.0f}%", clean)
    if not labelled:
        raise ValueError("no document carries weather labels")
    for origin, members in clusters.items():
        _cluster(tables, origin, members, cleaned, why)
    return _as_json(tables)


def wilson(number: int, of: int, *, z: float = Z) -> tuple[float, float]:
    """The Wilson score interval of a share (1927); z = 1.96 gives 95%."""
    rate, square = number / of, z * z
    centre = (rate + square / (2 * of)) / (1 + square / of)
    half = z / (1 + square / of) * math.sqrt(rate * (1 - rate) / of + square / (4 * of * of))
    return max(0.0, centre - half), min(1.0, centre + half)


def _cluster(tables: _Tables, origin: str, members: list[_Member], cleaned: Mapping[str, tuple[str, str | None]],
             why: Mapping[str, Reason]) -> None:
    pages = [member for member in members if not member.repaired]
    if not pages:
        return
    lang = pages[0].lang
    left = sum(member.left for member in members)
    gone = [member for member in pages if not member.left]
    natural = not left and any(_natural(member, cleaned, why) for member in gone)
    lost = not left and not natural
    for key in (lang, ALL) if natural else ():
        tables.natural[key] += 1
    _count(tables.lost, lang, lost)
    for place in range(len(gone)):
        _dropped(tables, lang, True, rightly=not lost or place > 0)
    for place in range(len(pages) - 1):
        _count(tables.recall, lang, place < len(gone))
    for member in members:
        if member.repaired:
            _vanish(tables, lang, member.variant, left == 1)
    if lost:
        reason = why.get(pages[0].name)
        _example(tables, "wrongly dropped", pages[0].name, lang, reason.rule if reason else "", pages[0].clean)
    if len(pages) == 1:
        return
    for key in (lang, ALL):
        tables.clusters[key][0] += 1
        tables.clusters[key][1] += len(pages)
        tables.clusters[key][2] += left
    original_left = any(member.left for member in pages if member.name == origin)
    for member in pages:
        if member.name != origin:
            missed = member.left and original_left
            for key in (lang, ALL):
                tables.vanish[key][member.variant].add(not missed)
            if missed:
                _example(tables, "copy left", member.name, lang, member.variant, "")


def _natural(member: _Member, cleaned: Mapping[str, tuple[str, str | None]], why: Mapping[str, Reason]) -> bool:
    """Whether the document gave way, perhaps over several steps, to one that is there and holds its text."""
    seen: set[str] = set()
    name: str | None = member.name
    while name is not None and name not in cleaned and name not in seen:
        seen.add(name)
        name = why[name].kept if name in why else None
    if name is None or name not in cleaned:
        return False
    kept, of = _present(member.clean, cleaned[name][0], member.lang)
    return kept >= NATURAL * of


def _strings(tables: _Tables, lang: str, label: Mapping[str, Any], text: str, name: str) -> None:
    squeezed = clean = None
    for defect in label["defects"]:
        if "token" in defect:
            gone = defect["token"] not in text
        else:
            if squeezed is None or clean is None:
                squeezed, clean = squeeze(text), squeeze(label["clean_text"])
            gone = _residue(squeeze(defect["span_text"]), clean, squeezed, GRAM[lang]) <= RESIDUE
        for key in (lang, ALL):
            tables.defects[key][defect["type"]].add(gone)
        if not gone:
            _example(tables, f"string left: {defect['type']}", name, lang, defect.get("token") or defect["span_text"], text)


def squeeze(text: str) -> str:
    """The letters and digits of a text in compatibility form: what counts when width, spaces and punctuation do not."""
    return _NOT_LETTERS.sub("", unicodedata.normalize("NFKC", text))


def _residue(span: str, clean: str, text: str, size: int) -> float:
    grams = [gram for gram in _grams(span, min(size, len(span))) if gram not in clean]
    return sum(gram in text for gram in grams) / len(grams) if grams else 0.0


def _present(clean: str, text: str, lang: str) -> tuple[int, int]:
    """(letters and digits of `clean` that are in `text`, letters and digits of `clean`)."""
    squeezed = squeeze(text)
    kept = of = 0
    for sentence in filter(None, map(squeeze, _SENTENCE.split(clean))):
        of += len(sentence)
        if sentence in squeezed:
            kept += len(sentence)
        else:
            grams = _grams(sentence, min(GRAM[lang], len(sentence)))
            kept += round(len(sentence) * sum(gram in squeezed for gram in grams) / len(grams))
    return kept, of


def _grams(text: str, size: int) -> list[str]:
    return [text[at : at + size] for at in range(len(text) - size + 1)] if size else []


def _vanish(tables: _Tables, lang: str, variant: str, gone: bool) -> None:
    _count(tables.recall, lang, gone)
    for key in (lang, ALL):
        tables.vanish[key][variant].add(gone)


def _dropped(tables: _Tables, lang: str, dropped: bool, *, rightly: bool) -> None:
    if dropped:
        _count(tables.precision, lang, rightly)


def _count(table: dict[str, Share], lang: str, hit: bool) -> None:
    for key in (lang, ALL):
        table[key].add(hit)


def _example(tables: _Tables, what: str, name: str, lang: str, value: str, text: str) -> None:
    if len(tables.examples[what]) < EXAMPLES:
        tables.examples[what].append({"id": name, "lang": lang, "rule": what, "value": value[:200], "bound": "",
                                      "text": text[:400]})


def _language(lang: str) -> str:
    return lang if lang in GRAM else "other"


def _as_json(tables: _Tables) -> dict[str, Any]:
    def shares(table: Mapping[str, Share]) -> dict[str, Any]:
        return {key: share.as_json() for key, share in sorted(table.items())}

    result: dict[str, Any] = {
        "recall": shares(tables.recall), "precision": shares(tables.precision),
        "lost_documents": shares(tables.lost), "language_right": shares(tables.language),
    }
    for name, nested in (("vanish", tables.vanish), ("strings_gone", tables.defects), ("characters_lost", tables.text)):
        result[name] = {lang: shares(table) for lang, table in sorted(nested.items())}
    result["natural_copies"] = dict(sorted(tables.natural.items()))
    result["clusters"] = {
        lang: {"clusters": number, "documents": documents, "left": left, "left_per_cluster": round(left / number, 4)}
        for lang, (number, documents, left) in sorted(tables.clusters.items())
    }
    result["examples"] = dict(sorted(tables.examples.items()))
    return result
