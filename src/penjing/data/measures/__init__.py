"""What rules look at. A measure is a function of `Facts` in `document`, `paragraph` or `sentence`; its name is its place, and
its first docstring line says what it gives and in which unit. An edit is a function of text in `edits`.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
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
    if name not in known:
        raise ConfigError(fault(f"unknown {level} measure '{name}'", expected=f"one of {', '.join(sorted(known))}",
                                fix=did_you_mean(name, known)))
    return known[name]


@functools.cache
def measures(level: str) -> dict[str, Callable[..., Any]]:
    """Every measure of a level by name."""
    place = module("penjing.data.measures", level, what="level")
    return {name: item for name, item in vars(place).items()
            if inspect.isfunction(item) and item.__module__ == place.__name__ and not name.startswith("_")}
