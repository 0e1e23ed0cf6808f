"""What rules look at. A measure is a function of `Facts` in `document`, `paragraph` or `sentence`; its name is its place, and
its first docstring line says what it gives and in which unit. An edit is a function of text in `edits`.
"""

from __future__ import annotations

import ast
import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from penjing.errors import ConfigError, fault
from penjing.lookup import did_you_mean, module

LEVELS = ("document", "paragraph", "sentence")

Values = npt.NDArray[np.float32]


def measure(level: str, name: str) -> Callable[..., Any]:
    """The measure called `name` at a level; ConfigError, with the nearest name, when there is none."""
    known = measures(level)
    check(level, name)
    return known[name]


def check(level: str, name: str) -> None:
    """ConfigError, with the nearest name, when a level has no measure `name`."""
    known = names(level)
    if name not in known:
        raise ConfigError(fault(f"unknown {level} measure '{name}'", expected=f"one of {', '.join(sorted(known))}",
                                fix=did_you_mean(name, known)))


@functools.cache
def names(level: str) -> tuple[str, ...]:
    """Names of the measures of a level, read from the source: importing one takes compiled kernels along."""
    tree = ast.parse((Path(__file__).parent / f"{level}.py").read_text(encoding="utf-8"))
    return tuple(item.name for item in tree.body if isinstance(item, ast.FunctionDef) and not item.name.startswith("_"))


@functools.cache
def measures(level: str) -> dict[str, Callable[..., Any]]:
    """Every measure of a level by name."""
    place = module("penjing.data.measures", level, what="level")
    return {name: item for name, item in vars(place).items()
            if inspect.isfunction(item) and item.__module__ == place.__name__ and not name.startswith("_")}
