"""What a recipe says, checked whole: every fault at once, each with its place.

    penjing: 1
    name: my-model
    seed: 7
    vars: {data: ../corpus}                        `${data}` in any string; `--set data=DIR` replaces it
    defaults: {train: {batch_rows: 16}}            settings for every stage of a kind, unless the stage says otherwise
    stages:
      raw:    {kind: collect, sources: [{name: web, path: "${data}/*.jsonl.gz"}]}
      clean:  {kind: normalise, from: raw}         the one required input
      base:   {kind: given, path: ../llama, as: checkpoint}
      grown:  {kind: grow-vocab, from: {checkpoint: base, corpus: clean}, size: 40000}
    result: grown

`from` names earlier stages; a value with a `/` in it is a path. `--set STAGE=PATH` puts an existing artefact in a stage's place:
the stages that only fed it are left out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from penjing import lookup
from penjing.config import Config, faults_in
from penjing.contract import CHECKPOINT, CORPUS, FILES, SCORES, TOKENIZER, TOKENIZER_FILES, TOKENS
from penjing.errors import ConfigError, PenjingError, fault
from penjing.lookup import did_you_mean
from penjing.recipe.source import Key, Source, scalar

_TOP = ("penjing", "name", "about", "seed", "vars", "defaults", "stages", "result")
_NAME = re.compile(r"[a-z0-9][a-z0-9-]*")
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_-]*)\}")
_MARK = {CHECKPOINT: "config.json", CORPUS: "corpus.json", TOKENS: "tokens.json", SCORES: "scores.json"}
ARTEFACTS = (CORPUS, TOKENS, TOKENIZER, CHECKPOINT, SCORES, FILES)


@dataclass(frozen=True)
class Step:
    """One stage of a recipe, checked. `inputs` maps input names to stage names, Paths, lists of both, or None."""

    name: str
    kind: str
    output: str
    inputs: Mapping[str, Any]
    config: Config | None
    module: ModuleType | None
    given: Path | None = None
    """Set when the stage is an existing artefact instead of work."""


@dataclass(frozen=True)
class Recipe:
    """A checked recipe: steps in the order they run."""

    name: str
    about: str
    seed: int
    steps: tuple[Step, ...]
    result: str | None
    source: Source = field(repr=False)
    replaced: tuple[str, ...] = ()
    """Stages left out because `--set STAGE=PATH` put an artefact in the place of what they fed."""

    def step(self, name: str) -> Step:
        """The step called `name`; ConfigError with the nearest name when there is none."""
        for item in self.steps:
            if item.name == name:
                return item
        known = [item.name for item in self.steps]
        raise ConfigError(fault(f"the recipe has no stage '{name}'", expected=f"one of {', '.join(known)}",
                                fix=did_you_mean(name, known)))


def check(source: Source, *, sets: Sequence[str] = ()) -> Recipe:
    """The recipe in `source` with the `--set` options applied; ConfigError listing every fault, one a line."""
    reader = _Reader(source)
    reader.apply(sets)
    recipe = reader.recipe()
    if reader.faults:
        raise ConfigError("\n".join(reader.faults))
    return recipe


def is_name(text: str) -> bool:
    """Whether `text` may name a stage: lower-case letters, digits and dashes."""
    return _NAME.fullmatch(text) is not None


def stage_names(value: Any) -> list[str]:
    """The stage names in one input's value (a name, a Path, a list of both, or None)."""
    items = value if isinstance(value, list) else [value]
    return [item for item in items if isinstance(item, str)]


def check_artefact(path: Path, kind: str) -> str | None:
    """What is wrong with `path` as an artefact of `kind`, or None."""
    if not path.exists():
        return fault("no such file or directory", found=path, expected=f"a {kind}")
    if kind in _MARK and not (path / _MARK[kind]).is_file():
        return fault(f"not a {kind}", found=f"{path} without {_MARK[kind]}", expected=f"a directory with {_MARK[kind]}")
    if kind == TOKENIZER and not any(next(path.glob(name), None) for name in TOKENIZER_FILES):
        return fault("not a tokenizer", found=f"{path} without any of {', '.join(TOKENIZER_FILES)}")
    return None


def _names(inputs: Mapping[str, Any], wanted: Mapping[str, str]) -> list[str]:
    """What the items of a stage's many-input are called: stage names, or the names of directories."""
    values = next((inputs[name] for name, artefact in wanted.items() if "*" in artefact), None) or []
    return [item if isinstance(item, str) else item.name for item in values if item is not None]


class _Reader:
    def __init__(self, source: Source) -> None:
        self.source = source
        self.values = source.values
        self.faults: list[str] = []
        self.given: dict[str, str] = {}
        self.vars: dict[str, Any] = dict(self.values.get("vars") or {}) if isinstance(self.values.get("vars"), dict) else {}

    def fault(self, key: Key, text: str) -> None:
        shown = ".".join(map(str, key))
        self.faults.append(f"{self.source.where(key)}: {shown + ': ' if shown else ''}{text}")

    def apply(self, sets: Sequence[str]) -> None:
        stages: dict[str, Any] = self.values["stages"] if isinstance(self.values.get("stages"), dict) else {}
        names = list(stages)
        for option in sets:
            path, equals, text = option.partition("=")
            steps = path.split(".")
            if not equals or not path:
                self.faults.append(f"--set {option}: " + fault("not an assignment", expected="KEY=VALUE"))
            elif len(steps) == 1 and path in self.vars:
                self.vars[path] = scalar(text)
            elif len(steps) == 1 and path in names:
                self.given[path] = text
            elif path in ("seed", "name"):
                self.values[path] = scalar(text)
                self.source.overrides[(path,)] = option
            elif len(steps) > 1 and steps[0] in names and isinstance(stages[steps[0]], dict):
                target = stages[steps[0]]
                for step in steps[1:-1]:
                    target = target.setdefault(step, {}) if isinstance(target, dict) else {}
                if isinstance(target, dict):
                    target[steps[-1]] = scalar(text)
                self.source.overrides[("stages", *steps)] = option
            else:
                known = [*self.vars, *names, "seed", "name"]
                self.faults.append(f"--set {option}: " + fault(
                    f"nothing is called '{steps[0]}'", expected="a variable, a stage, STAGE.key, seed or name",
                    fix=did_you_mean(steps[0], known)))

    def recipe(self) -> Recipe:
        values = self.values
        for key in values:
            if key not in _TOP:
                self.fault((key,), fault(f"unknown key '{key}'", expected=f"one of {', '.join(_TOP)}",
                                         fix=did_you_mean(str(key), _TOP)))
        if values.get("penjing") != 1:
            self.fault(("penjing",), fault("recipe format", found=values.get("penjing"), expected="penjing: 1 at the top"))
        name, seed = values.get("name"), values.get("seed", 0)
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            self.fault(("name",), fault("wrong name", found=name, expected="lower-case letters, digits and dashes"))
        if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
            self.fault(("seed",), fault("wrong seed", found=repr(seed), expected="an integer from 0"))
            seed = 0
        stages = values.get("stages")
        if not isinstance(stages, dict) or not stages:
            self.fault(("stages",), fault("no stages", found=type(stages).__name__, expected="a mapping of stage names"))
            stages = {}
        defaults = values.get("defaults") or {}
        if not isinstance(defaults, dict):
            self.fault(("defaults",), fault("wrong defaults", expected="a mapping from stage kind to settings"))
            defaults = {}
        left_out = self._left_out(stages)
        steps: dict[str, Step | None] = {}
        for stage, entry in stages.items():
            if stage not in left_out:
                steps[str(stage)] = self._step(str(stage), entry, defaults, steps, seed, list(stages))
        kinds = lookup.names("penjing.stages")
        for kind in defaults:
            if kind not in kinds:
                self.fault(("defaults", kind), fault(f"unknown stage kind '{kind}'", fix=did_you_mean(str(kind), kinds)))
        result = values.get("result")
        if result is not None and result not in steps:
            self.fault(("result",), fault(f"no stage is called '{result}'", expected=f"one of {', '.join(steps)}",
                                          fix=did_you_mean(str(result), steps)))
        return Recipe(str(name), str(values.get("about") or ""), seed, tuple(step for step in steps.values() if step),
                      str(result) if result else None, self.source, tuple(sorted(left_out)))

    def _left_out(self, stages: dict[str, Any]) -> set[str]:
        """Stages whose every use leads only into a stage that an artefact replaces."""
        if not self.given:
            return set()
        users: dict[str, set[str]] = {name: set() for name in stages}
        for name, entry in stages.items():
            if name in self.given or not isinstance(entry, dict):
                continue
            origin = entry.get("from")
            values = list(origin.values()) if isinstance(origin, dict) else [origin]
            for value in values:
                for used in stage_names(value):
                    if used in users:
                        users[used].add(name)
        fed: set[str] = set()
        for name in self.given:
            entry = stages[name] if isinstance(stages[name], dict) else {}
            origin = entry.get("from")
            for value in list(origin.values()) if isinstance(origin, dict) else [origin]:
                fed.update(stage_names(value))
        out: set[str] = set()
        changed = True
        while changed:
            changed = False
            for name in reversed(list(stages)):
                feeds_given = name in fed or any(user in out for user in self._users_of(stages, name))
                if name not in out and name not in self.given and feeds_given and users[name] <= out:
                    out.add(name)
                    changed = True
        return out

    @staticmethod
    def _users_of(stages: dict[str, Any], name: str) -> list[str]:
        found = []
        for user, entry in stages.items():
            origin = entry.get("from") if isinstance(entry, dict) else None
            for value in list(origin.values()) if isinstance(origin, dict) else [origin]:
                if name in stage_names(value):
                    found.append(user)
        return found

    def _step(self, name: str, entry: Any, defaults: dict[str, Any], steps: dict[str, Step | None], seed: int,
              order: list[str]) -> Step | None:
        key: Key = ("stages", name)
        if not _NAME.fullmatch(name):
            self.fault(key, fault("wrong stage name", found=name, expected="lower-case letters, digits and dashes"))
        if not isinstance(entry, dict):
            self.fault(key, fault("not a stage", found=type(entry).__name__, expected="a mapping with `kind`"))
            return None
        kind = str(entry.get("kind", ""))
        if not kind:
            self.fault(key, fault("no kind", expected=f"kind: one of {', '.join(lookup.names('penjing.stages'))}"))
            return None
        if kind == "given":
            return self._given(name, entry.get("path"), str(entry.get("as", FILES)), (*key, "path"))
        try:
            module = lookup.module("penjing.stages", kind, what="stage kind")
        except PenjingError as error:
            self.fault((*key, "kind"), str(error))
            return None
        if name in self.given:
            return self._given(name, self.given[name], module.OUTPUT, key)
        inputs = self._inputs(name, kind, module, entry.get("from"), steps, order)
        shared = defaults.get(kind) or {}
        settings = {**shared, **{k: v for k, v in entry.items() if k not in ("kind", "from")}} if isinstance(shared, dict) else {}
        settings = self._fill(settings, key)
        if "seed" in module.Config.model_fields and "seed" not in settings:
            settings["seed"] = seed
        if "names" in module.Config.model_fields and "names" not in settings:
            settings["names"] = _names(inputs, module.INPUTS)
        found = faults_in(module.Config, settings)
        for path, text in found:
            place: Key = (*key, *path)
            if path and path[0] not in entry and isinstance(shared, dict) and path[0] in shared:
                place = ("defaults", kind, *path)
            self.fault(place, text)
        config = None if found else module.Config.model_validate(settings)
        return Step(name, kind, module.OUTPUT, inputs, config, module)

    def _given(self, name: str, path: Any, kind: str, key: Key) -> Step | None:
        if kind not in ARTEFACTS:
            self.fault(("stages", name, "as"), fault(f"unknown artefact '{kind}'", expected=f"one of {', '.join(ARTEFACTS)}",
                                                     fix=did_you_mean(kind, ARTEFACTS)))
            return None
        filled = self._fill(path, key)
        if not isinstance(filled, str) or not filled:
            self.fault(key, fault("no path", expected="path: an existing file or directory"))
            return None
        place = Path(filled).expanduser()
        problem = check_artefact(place, kind)
        if problem:
            self.fault(key, problem)
        return Step(name, "given", kind, {}, None, None, given=place)

    def _inputs(self, name: str, kind: str, module: ModuleType, origin: Any, steps: dict[str, Step | None],
                order: list[str]) -> dict[str, Any]:
        wanted: dict[str, str] = module.INPUTS
        required = [item for item, artefact in wanted.items() if not artefact.endswith("?")]
        key: Key = ("stages", name, "from")
        if origin is None:
            origin = {}
        elif not isinstance(origin, dict):
            if len(required) == 1 or len(wanted) == 1:
                origin = {(required or list(wanted))[0]: origin}
            else:
                self.fault(key, fault(f"{kind} takes more than one input", found=origin,
                                      expected=f"a mapping with {', '.join(wanted)}"))
                return {}
        result: dict[str, Any] = dict.fromkeys(wanted)
        for item, value in origin.items():
            if item not in wanted:
                self.fault((*key, item), fault(f"{kind} has no input '{item}'", expected=f"one of {', '.join(wanted) or 'none'}",
                                               fix=did_you_mean(str(item), wanted)))
                continue
            artefact = wanted[item].rstrip("?*")
            many = wanted[item].rstrip("?").endswith("*")
            if isinstance(value, list) and not many:
                self.fault((*key, item), fault(f"input '{item}' takes one {artefact}", found=f"a list of {len(value)}"))
                continue
            resolved = [self._reference(item, part, artefact, (*key, item), steps, order)
                        for part in (value if isinstance(value, list) else [value])]
            result[item] = resolved if many else resolved[0]
        for item in required:
            if not result[item] and item not in origin:
                self.fault(key, fault(f"input '{item}' is missing", expected=f"from: {{{item}: a stage that makes a "
                                      f"{wanted[item].rstrip('?*')}}}"))
        return result

    def _reference(self, item: str, value: Any, artefact: str, key: Key, steps: dict[str, Step | None],
                   order: list[str]) -> str | Path | None:
        value = self._fill(value, key)
        if not isinstance(value, str):
            self.fault(key, fault("not a stage or path", found=repr(value)))
            return None
        if value in order:
            if value not in steps:
                self.fault(key, fault(f"stage '{value}' comes later or is left out", expected="a stage above this one"))
                return None
            made = steps[value]
            if made is not None and artefact != FILES and made.output != artefact and not (
                    artefact == TOKENIZER and made.output == CHECKPOINT):
                self.fault(key, fault(f"'{value}' does not make what '{item}' needs", found=made.output, expected=artefact))
            return value
        if "/" in value or value.startswith((".", "~")):
            place = Path(value).expanduser()
            problem = check_artefact(place, artefact)
            if problem:
                self.fault(key, problem)
            return place
        self.fault(key, fault(f"no stage is called '{value}'", expected="an earlier stage or a path with a '/'",
                              fix=did_you_mean(value, order)))
        return None

    def _fill(self, value: Any, key: Key) -> Any:
        if isinstance(value, dict):
            return {name: self._fill(item, (*key, name)) for name, item in value.items()}
        if isinstance(value, list):
            return [self._fill(item, (*key, index)) for index, item in enumerate(value)]
        if not isinstance(value, str) or "${" not in value:
            return value
        whole = _VARIABLE.fullmatch(value)
        if whole and whole[1] in self.vars:
            return self.vars[whole[1]]

        def put(match: re.Match[str]) -> str:
            if match[1] not in self.vars:
                self.fault(key, fault(f"unknown variable '{match[1]}'", expected=f"one of {', '.join(self.vars) or 'none'}",
                                      fix=did_you_mean(match[1], self.vars)))
                return ""
            return str(self.vars[match[1]])

        return _VARIABLE.sub(put, value)
