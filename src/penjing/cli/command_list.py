"""`penjing list WHAT`: what there is, by name, with one line each."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import textwrap
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from penjing import lookup
from penjing.cli.tables import print_table
from penjing.errors import ConfigError, fault

app = typer.Typer(add_completion=False)


class What(StrEnum):
    """What can be listed."""

    stages = "stages"
    recipes = "recipes"
    rules = "rules"
    families = "families"
    objectives = "objectives"
    importance = "importance"


@app.command("list")
def list_(
    what: Annotated[What, typer.Argument(help="What to list.")],
    name: Annotated[str | None, typer.Argument(help="With `stages`: one kind, to see its inputs, output and settings.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """List stages, recipes, rules, families, objectives or importance metrics; `list stages KIND` shows a stage's settings."""
    if name is not None:
        _one(what, name, as_json)
        return
    rows = _ROWS[what]()
    if as_json:
        print(json.dumps({"version": 1, what.value: [{"name": name, "about": about} for name, about in rows]},
                         ensure_ascii=False, indent=2))
        return
    print_table(["name", "about"], [[name, about] for name, about in rows])


def _one(what: What, name: str, as_json: bool) -> None:
    """One stage: what it does, takes and makes, and every setting with its type, default and meaning."""
    from penjing.cli.settings import settings_of

    if what is not What.stages:
        raise ConfigError(fault(f"`penjing list {what.value}` takes no name", found=name, expected="`penjing list stages KIND`"))
    module = lookup.module("penjing.stages", name, what="stage")
    settings = settings_of(module.Config)
    inputs = {key: _input(str(kind)) for key, kind in module.INPUTS.items()}
    if as_json:
        print(json.dumps({"version": 1, "name": name, "about": module.__doc__, "inputs": inputs, "output": module.OUTPUT,
                          "settings": [vars(setting) for setting in settings]}, ensure_ascii=False, indent=2))
        return
    print(f"{name}\n{(module.__doc__ or '').strip()}\n")
    print("inputs   " + (", ".join(f"{key}: {kind}" for key, kind in inputs.items()) or "none"))
    print(f"output   {module.OUTPUT}\n")
    for setting in settings:
        print(f"{setting.name}: {setting.type}" + ("  (required)" if setting.required else f" = {setting.default}"))
        if setting.about:
            print(textwrap.fill(setting.about, width=110, initial_indent="    ", subsequent_indent="    "))


def _input(kind: str) -> str:
    """`tokens*?` as people say it: tokens, several, optional."""
    notes = ", ".join(note for mark, note in (("*", "one or several"), ("?", "optional")) if mark in kind)
    return kind.rstrip("*?") + (f" ({notes})" if notes else "")


def _modules(package: str) -> list[tuple[str, str]]:
    return [(name, _first_sentence(f"{package}.{name.replace('-', '_')}")) for name in lookup.names(package)]


def _recipes() -> list[tuple[str, str]]:
    from penjing.recipe import source

    return [(name, str(source.read(name).values.get("about", ""))) for name in source.shipped()]


def _rules() -> list[tuple[str, str]]:
    from penjing.data import rules

    return [(rule.id, f"{rule.level}, {rule.action}: {rule.name} ({rule.source})") for rule in rules.load("ziya2").rules]


def _objectives() -> list[tuple[str, str]]:
    from penjing.objectives.settings import OBJECTIVES

    return list(OBJECTIVES.items())


def _importance() -> list[tuple[str, str]]:
    from penjing.stages import prune

    return prune.importance_names()


def _first_sentence(module: str) -> str:
    """First sentence of a module's docstring, read from its source so that nothing is imported."""
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        return ""
    text = ast.get_docstring(ast.parse(Path(spec.origin).read_text(encoding="utf-8"))) or ""
    paragraph = " ".join(text.partition("\n\n")[0].split())
    return re.split(r"(?<=[.!?])\s", paragraph, maxsplit=1)[0]


_ROWS = {
    What.stages: lambda: _modules("penjing.stages"),
    What.recipes: _recipes,
    What.rules: _rules,
    What.families: lambda: _modules("penjing.models.families"),
    What.objectives: _objectives,
    What.importance: _importance,
}
