"""Why a document is kept or dropped: every measure, every bound and every verdict, for one text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from penjing.data.document import documents
from penjing.data.measures import measure
from penjing.data.normalise import Settings, normalise
from penjing.data.rules import RuleSet, load, phrase_lists
from penjing.data.rules_apply import apply, facts_of, measured


@dataclass(frozen=True)
class Line:
    """One line of the table."""

    step: str
    """`normalise`, `document`, `paragraph` or `sentence`."""
    rule: str
    name: str
    measure: str
    value: float | None
    bound: str
    verdict: str
    """ok, drop, flag, cut, edit, mask or off."""
    text: str = ""
    """For paragraphs and sentences the first piece that was hit."""


@dataclass(frozen=True)
class Explanation:
    """What would become of one text."""

    lang: str
    kept: bool
    reason: str
    """The first rule that drops it, with value and bound; empty when it is kept."""
    text: str
    """The text that would be kept, cut and edited."""
    lines: tuple[Line, ...]

    def table(self) -> pa.Table:
        """The lines as a table: step, rule, name, measure, value, bound, verdict, text."""
        return pa.Table.from_pylist([vars(line) for line in self.lines])

    def as_json(self) -> dict[str, Any]:
        """Everything as JSON values."""
        return {"lang": self.lang, "kept": self.kept, "reason": self.reason, "text": self.text,
                "lines": [vars(line) for line in self.lines]}


def explain(text: str, *, rules: RuleSet | None = None, lang: str | None = None, source: str = "", url: str | None = None,
            settings: Settings | None = None, lexicons: dict[str, list[str]] | None = None) -> Explanation:
    """Every measure, bound and verdict for one document, from normalisation to the last sentence rule."""
    rules = rules or load("ziya2")
    row = {"id": "text", "text": text, "lang": lang, "source": source, "url": url}
    normal = normalise(documents([row]), settings or Settings())
    lines = [Line("normalise", step, step, "", float(item["bytes"]), "", "edit") for step, item in normal.edits.items()]
    if normal.dropped.num_rows:
        gone = normal.dropped.to_pylist()[0]
        lines.append(Line("normalise", gone["rule"], gone["rule"], "", gone["value"], gone["bound"], "drop"))
        reason = f"{gone['rule']}: {gone['value']:g}, {gone['bound']}"
        return Explanation(gone["lang"] or "", False, reason, "", tuple(lines))
    kept = normal.kept
    found = kept.column("lang")[0].as_py() or ""
    phrases = phrase_lists(lexicons)
    facts = facts_of(kept.column("text"), [found], [url], rules, phrases)
    done = apply(facts, rules)
    before = measured(facts, rules)
    for rule in rules.at("document"):
        name = rule.measures.get(found, "")
        if found not in rule.bounds:
            lines.append(Line("document", rule.id, rule.name, name, None, "", "off"))
            continue
        value = float(done.stats[name][0]) if done.tallies[rule.id].fired else float(before[name][0])
        verdict = rule.action if done.tallies[rule.id].fired else "ok"
        lines.append(Line("document", rule.id, rule.name, name, value, rule.bound_text(found), verdict))
    for rule in (rule for rule in rules.rules if rule.level != "document"):
        tally = done.tallies[rule.id]
        hit = next((cut for cut in done.cuts if cut["rule"] == rule.id), None)
        name = rule.edit or rule.measures.get(found, "")
        verdict = "off" if found not in rule.bounds else (rule.action if tally.fired else "ok")
        bound = rule.bound_text(found) if rule.edit is None else ""
        lines.append(Line(rule.level, rule.id, rule.name, name, float(tally.fired), bound, verdict,
                          hit["text"].strip()[:80] if hit else ""))
    if not done.keep[0]:
        reason = f"{done.rule[0]}: {done.value[0]:g}, {done.bound[0]}"
        return Explanation(found, False, reason, done.texts[0].as_py(), tuple(lines))
    return Explanation(found, True, "", done.texts[0].as_py(), tuple(lines))


def describe(level: str, name: str) -> str:
    """What a measure gives, in one line."""
    return (measure(level, name).__doc__ or "").strip().splitlines()[0]
