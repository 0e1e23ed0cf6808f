"""YAML with line numbers: values as plain Python, and for every key the line it stands on."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from penjing.errors import ConfigError, fault
from penjing.lookup import did_you_mean

Key = tuple[str | int, ...]


@dataclass
class Source:
    """A recipe file as read: its values and where each of them stands."""

    name: str
    text: str
    values: dict[str, Any]
    lines: dict[Key, int] = field(default_factory=dict)
    overrides: dict[Key, str] = field(default_factory=dict)
    """Keys that a `--set` put there, with its text: faults in them name the option instead of a line."""

    def where(self, key: Key) -> str:
        """`file:line` of a key, or of the nearest key above it that the file has; the option for a `--set`."""
        for length in range(len(key), -1, -1):
            if key[:length] in self.overrides:
                return f"--set {self.overrides[key[:length]]}"
            if key[:length] in self.lines:
                return f"{self.name}:{self.lines[key[:length]]}"
        return f"{self.name}:1"


def shipped() -> list[str]:
    """Names of the recipes that come with penjing."""
    folder = resources.files("penjing.recipe") / "shipped"
    return sorted(item.name.removesuffix(".yaml") for item in folder.iterdir() if item.name.endswith(".yaml"))


def read(recipe: str) -> Source:
    """A recipe by path, or a shipped one by name; ConfigError when there is none or it is not YAML."""
    path = Path(recipe)
    if path.suffix in {".yaml", ".yml"} or path.is_file():
        try:
            return parse(path.read_text(encoding="utf-8"), name=str(path))
        except FileNotFoundError as error:
            raise ConfigError(fault("recipe not found", where=recipe, fix=_nearest(path.stem))) from error
        except (IsADirectoryError, UnicodeDecodeError) as error:
            raise ConfigError(fault("not a recipe", where=recipe, found=str(error), expected="a YAML file in UTF-8")) from error
    if recipe not in shipped():
        raise ConfigError(fault(f"unknown recipe '{recipe}'", expected=f"a .yaml file or one of {', '.join(shipped())}",
                                fix=did_you_mean(recipe, shipped())))
    return parse((resources.files("penjing.recipe") / "shipped" / f"{recipe}.yaml").read_text(encoding="utf-8"),
                 name=f"{recipe}.yaml")


def parse(text: str, *, name: str) -> Source:
    """YAML 1.2 text as a Source; ConfigError with the line when it is not well formed."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError

    yaml = YAML(typ="rt")
    yaml.allow_duplicate_keys = False
    try:
        loaded = yaml.load(io.StringIO(text))
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        problem = str(error.problem or error.context or "not well formed").split(" with value")[0]
        raise ConfigError(fault(f"not well-formed YAML: {problem}", where=f"{name}:{line}")) from error
    if not isinstance(loaded, dict):
        raise ConfigError(fault("not a recipe", where=f"{name}:1", expected="a mapping with `name` and `stages`"))
    source = Source(name, text, {})
    source.values = _plain(loaded, (), source.lines)
    return source


def scalar(text: str) -> Any:
    """The value a `--set key=text` means: YAML 1.2 scalar, list or mapping."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        return _plain(YAML(typ="rt").load(io.StringIO(text)), (), {})
    except YAMLError:
        return text


def _nearest(name: str) -> str | None:
    return did_you_mean(name, shipped())


def _plain(value: Any, key: Key, lines: dict[Key, int]) -> Any:
    if isinstance(value, dict):
        result = {}
        for name, item in value.items():
            step = name if isinstance(name, int) else str(name)
            position = value.lc.data.get(name) if hasattr(value, "lc") and value.lc.data else None
            if position is not None:
                lines[(*key, step)] = position[0] + 1
            result[step] = _plain(item, (*key, step), lines)
        return result
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        found = []
        for index, item in enumerate(value):
            position = value.lc.data.get(index) if hasattr(value, "lc") and value.lc.data else None
            if position is not None:
                lines[(*key, index)] = position[0] + 1
            found.append(_plain(item, (*key, index), lines))
        return found
    if isinstance(value, bool) or value is None:
        return value
    for kind in (int, float, str):
        if isinstance(value, kind):
            return kind(value)
    return str(value)
