"""Rules as data: what each looks at, its bounds per language, what follows, and where the bound comes from.

A rule set is a TOML file in `rulesets/`. A decision is an expression over a table of measures, so bounds can change without
reading the text again: `decide` works on the statistics that a filter stage wrote.
"""

from __future__ import annotations

import json
import math
import operator
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from penjing.data.measures import LEVELS, check
from penjing.data.measures.edits import EDITS
from penjing.errors import ConfigError, InputError, fault
from penjing.lookup import did_you_mean

if TYPE_CHECKING:
    from penjing.data.measures.facts import PhraseLists

LANGUAGES = ("zh", "en")
ACTIONS = {"document": ("drop", "flag"), "paragraph": ("cut", "flag", "edit"), "sentence": ("cut", "flag", "edit", "mask")}
_TESTS: dict[str, Callable[[Any, Any], Any]] = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}
_FOLDER = Path(__file__).parent / "rulesets"

Bound = float | tuple[float, float]


@dataclass(frozen=True)
class Rule:
    """One rule. `bounds` holds a language only when the rule is on for it; an `edit` has none."""

    id: str
    name: str
    level: str
    action: str
    source: str
    measures: Mapping[str, str] = field(default_factory=dict)
    """Language -> measure."""
    test: str = ">"
    bounds: Mapping[str, Bound] = field(default_factory=dict)
    edit: str | None = None
    after: str = ""
    """"also": looked at again after paragraphs and sentences were cut; "only": not before."""

    def fires(self, values: npt.NDArray[Any], lang: str) -> npt.NDArray[np.bool_]:
        """Where the rule holds, for values of documents (lines, sentences) in one language."""
        bound = self.bounds.get(lang)
        if bound is None:
            return np.zeros(len(values), bool)
        kind = values.dtype.type if values.dtype.kind == "f" else np.float64
        if isinstance(bound, tuple):  # compared in the precision of the values: 3 of 10 is not more than 0.3
            return np.asarray((values < kind(bound[0])) | (values > kind(bound[1])))
        return np.asarray(_TESTS[self.test](values, kind(bound)))

    def bound_text(self, lang: str) -> str:
        """The bound as reports show it: `< 200`."""
        bound = self.bounds.get(lang)
        if bound is None:
            return ""
        return f"outside [{bound[0]:g}, {bound[1]:g}]" if isinstance(bound, tuple) else f"{self.test} {bound:g}"

    def as_json(self) -> dict[str, Any]:
        """The rule as it stands in reports."""
        return {"id": self.id, "name": self.name, "level": self.level, "action": self.action, "measures": dict(self.measures),
                "test": self.test, "bounds": dict(self.bounds), "edit": self.edit, "after": self.after, "source": self.source}


@dataclass(frozen=True)
class RuleSet:
    """Named rules in the order they are looked at."""

    name: str
    about: str
    rules: tuple[Rule, ...]
    fences: bool = True
    """Whether Markdown code fences are left alone by paragraph and sentence rules."""
    symbols: bool = False
    """Whether runs of punctuation are words, as in datatrove's rules."""

    def at(self, level: str, *, edits: bool = False) -> list[Rule]:
        """Rules of a level with a measure, or its edits."""
        return [rule for rule in self.rules if rule.level == level and (rule.edit is not None) == edits]

    def measures_at(self, level: str) -> list[str]:
        """Every measure that a level needs, sorted."""
        return sorted({name for rule in self.at(level) for lang, name in rule.measures.items() if lang in rule.bounds})


def names() -> list[str]:
    """The rule sets there are."""
    return sorted(path.stem for path in _FOLDER.glob("*.toml") if path.stem != "phrases")


def load(name: str, *, overrides: Mapping[str, Any] | None = None) -> RuleSet:
    """A rule set by name or TOML file, with changed bounds; ConfigError when something in it is wrong.

    `overrides` maps a rule's id to false (off), to a number (both languages), or to {zh, en} with a number, [low, high] or false.
    """
    path = Path(name) if name.endswith(".toml") else _FOLDER / f"{name}.toml"
    if not path.is_file() or name == "phrases":
        raise ConfigError(fault(f"unknown rule set '{name}'", expected=f"one of {', '.join(names())}, or a .toml file",
                                fix=did_you_mean(name, names())))
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(fault("not readable as TOML", where=path, found=str(error))) from error
    rules = [_rule(entry, f"{path.name}: rule {entry.get('id', '?')}") for entry in values.get("rule", [])]
    known = [rule.id for rule in rules]
    twice = {name for name in known if known.count(name) > 1}
    if twice:
        raise ConfigError(fault(f"rule id '{min(twice)}' occurs twice", where=path))
    for key, change in (overrides or {}).items():
        hits = [rule.id for rule in rules if rule.id == key or (rule.id.startswith(key) and rule.id[len(key):].isalpha()
                                                                and len(rule.id) == len(key) + 1 and key[-1:].isdigit())]
        if not hits:
            raise ConfigError(fault(f"no rule '{key}' in rule set '{values.get('name', name)}'", expected="one of its ids",
                                    fix=did_you_mean(key, known)))
        rules = [changed for rule in rules
                 if (changed := _override(rule, change) if rule.id in hits else rule) is not None]
    return RuleSet(str(values.get("name", path.stem)), str(values.get("about", "")), tuple(rules),
                   bool(values.get("fences", True)), bool(values.get("symbols", False)))


def combine(names_or_paths: Sequence[str], *, overrides: Mapping[str, Any] | None = None) -> RuleSet:
    """Several rule sets as one; equal ids are told apart by the set's name."""
    if len(names_or_paths) == 1:
        return load(names_or_paths[0], overrides=overrides)
    sets = [load(name) for name in names_or_paths]
    used: set[str] = set()
    rules: list[Rule] = []
    for one in sets:
        for rule in one.rules:
            name = rule.id if rule.id not in used else f"{one.name}.{rule.id}"
            used.add(name)
            rules.append(replace(rule, id=name))
    for key, change in (overrides or {}).items():
        if key not in used:
            raise ConfigError(fault(f"no rule '{key}' in these rule sets", fix=did_you_mean(key, used)))
        rules = [changed for rule in rules if (changed := _override(rule, change) if rule.id == key else rule) is not None]
    return RuleSet("+".join(one.name for one in sets), "", tuple(rules), all(one.fences for one in sets),
                   any(one.symbols for one in sets))


def phrase_lists(lexicons: Mapping[str, Sequence[str]] | None = None, *, blocked_domains: Sequence[str] = ()) -> PhraseLists:
    """The shipped phrase lists together with the operator's files: {"strict": [paths], "soft": [...], "political": [...], …}."""
    from penjing.data.kernels.phrases import compile_phrases
    from penjing.data.measures.facts import PhraseLists

    shipped = tomllib.loads((_FOLDER / "phrases.toml").read_text(encoding="utf-8"))
    lists: dict[str, list[str]] = {key: list(value) for key, value in shipped.items() if isinstance(value, list)}
    for key in ("strict", "soft", "political"):
        lists.setdefault(key, [])
    for key, paths in (lexicons or {}).items():
        if key not in lists:
            raise ConfigError(fault(f"unknown lexicon '{key}'", expected=f"one of {', '.join(sorted(lists))}",
                                    fix=did_you_mean(key, lists)))
        for path in paths:
            lists[key].extend(_read_list(path))
    domains = {line.lower().removeprefix("www.") for path in blocked_domains for line in _read_list(path)}
    return PhraseLists(tuple(lists), compile_phrases(lists.values()), frozenset(domains))


def decide(stats: Mapping[str, npt.NDArray[Any]], langs: npt.NDArray[Any], rules: Sequence[Rule]) -> npt.NDArray[np.bool_]:
    """[rules, rows]: where each rule fires, from columns of measures alone."""
    fired = np.zeros((len(rules), len(langs)), bool)
    of_lang = {lang: np.flatnonzero(langs == lang) for lang in {lang for rule in rules for lang in rule.bounds}}
    for index, rule in enumerate(rules):
        for lang in rule.bounds:
            rows = of_lang[lang]
            if len(rows):
                fired[index, rows] = rule.fires(np.asarray(stats[rule.measures[lang]])[rows], lang)
    return fired


def _rule(entry: Mapping[str, Any], where: str) -> Rule:
    known = {"id", "name", "level", "action", "measure", "edit", "test", "source", "after", *LANGUAGES}
    for key in entry:
        if key not in known:
            raise ConfigError(fault(f"unknown key '{key}'", where=where, fix=did_you_mean(key, known)))
    level, action = str(entry.get("level")), str(entry.get("action"))
    if level not in LEVELS or action not in ACTIONS.get(level, ()):
        raise ConfigError(fault("wrong level or action", where=where, found=f"{level}, {action}",
                                expected=f"one of {json.dumps(ACTIONS)}"))
    if not entry.get("id"):
        raise ConfigError(fault("a rule without an id", where=where))
    common: dict[str, Any] = {"id": str(entry["id"]), "name": str(entry.get("name", "")), "level": level, "action": action,
              "source": str(entry.get("source", "")), "after": str(entry.get("after", ""))}
    if common["after"] not in ("", "also", "only"):
        raise ConfigError(fault("wrong after", where=where, found=common["after"], expected="also or only"))
    edit = entry.get("edit")
    if edit is not None:
        if edit not in EDITS:
            raise ConfigError(fault(f"unknown edit '{edit}'", where=where, expected=f"one of {', '.join(EDITS)}",
                                    fix=did_you_mean(str(edit), EDITS)))
        on = {lang: 0.0 for lang in LANGUAGES if entry.get(lang, True) is not False}
        return Rule(**common, edit=str(edit), bounds=on)
    named = entry.get("measure")
    measured = {lang: str(named[lang]) for lang in LANGUAGES if lang in named} if isinstance(named, dict) else \
        dict.fromkeys(LANGUAGES, str(named))
    for name in measured.values():
        check(level, name)
    test = str(entry.get("test"))
    if test not in (*_TESTS, "outside"):
        raise ConfigError(fault(f"unknown test '{test}'", where=where, expected=f"one of {', '.join(_TESTS)}, outside"))
    bounds = {lang: _bound(entry[lang], test, f"{where}: {lang}") for lang in LANGUAGES
              if lang in entry and entry[lang] is not False}
    return Rule(**common, measures=measured, test=test, bounds=bounds)


def _bound(value: Any, test: str, where: str) -> Bound:
    if test == "outside":
        if isinstance(value, list | tuple) and len(value) == 2 and all(_number(item) for item in value):
            return (float(value[0]), float(value[1]))
        raise ConfigError(fault("wrong bound", where=where, found=repr(value), expected="[low, high]"))
    if _number(value):
        return float(value)
    raise ConfigError(fault("wrong bound", where=where, found=repr(value), expected="a number, or false to switch it off"))


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _override(rule: Rule, change: Any) -> Rule | None:
    if change is False:
        return None
    if isinstance(change, Mapping):
        for key in change:
            if key not in LANGUAGES:
                raise ConfigError(fault(f"unknown language '{key}'", where=f"rule {rule.id}",
                                        expected=f"one of {', '.join(LANGUAGES)}"))
        changes = dict(change)
    else:
        changes = dict.fromkeys(rule.bounds, change)
    bounds = dict(rule.bounds)
    for lang, value in changes.items():
        if value is False:
            bounds.pop(lang, None)
        elif rule.edit is not None:
            bounds[lang] = 0.0
        else:
            bounds[lang] = _bound(value, rule.test, f"rule {rule.id}: {lang}")
    return replace(rule, bounds=bounds)


def _read_list(path: str) -> list[str]:
    from penjing.files import open_text_bytes

    place = Path(path)
    if not place.is_file():
        raise InputError(fault("word list not found", where=path))
    with open_text_bytes(place) as file:
        text = file.read().decode("utf-8-sig")
    return [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
