"""A name is a place: `objectives.ul2`, `stages.train`, `families.llama` are modules, found by name, never registered.

Code outside the tree is named `package.module:attribute`.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import importlib.util
import pkgutil
from collections.abc import Iterable
from types import ModuleType
from typing import Any

from penjing.errors import ConfigError, fault


def did_you_mean(name: str, known: Iterable[str]) -> str | None:
    """The nearest known name as a question, or None when nothing is near.

    >>> did_you_mean("prunne", ["prune", "train"])
    "did you mean 'prune'?"
    """
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"did you mean '{near[0]}'?" if near else None


@functools.cache
def _listed(package: str) -> tuple[str, ...]:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.submodule_search_locations is None:
        raise ValueError(f"{package} is not a package")
    found = pkgutil.iter_modules(list(spec.submodule_search_locations))
    return tuple(sorted(module.name.replace("_", "-") for module in found if not module.name.startswith("_")))


def names(package: str) -> list[str]:
    """The public module names directly inside `package`, as users write them (`verify-tokenizer`, not `verify_tokenizer`)."""
    return list(_listed(package))


def module(package: str, name: str, *, what: str) -> ModuleType:
    """The module called `name` in `package`.

    Raises ConfigError, with the nearest known name, when there is none. An import that fails inside the module is not hidden.
    """
    known = names(package)
    if name not in known:
        raise ConfigError(
            fault(f"unknown {what} '{name}'", expected=f"one of {', '.join(known)}", fix=did_you_mean(name, known))
        )
    return importlib.import_module(f"{package}.{name.replace('-', '_')}")


def attribute(path: str, *, what: str) -> Any:
    """The object at `package.module:attribute`; ConfigError when the module or the attribute is not there."""
    module_name, _, attribute_name = path.partition(":")
    try:
        spec = importlib.util.find_spec(module_name)
    except (ModuleNotFoundError, ValueError):
        spec = None
    if spec is None or not attribute_name:
        raise ConfigError(fault(f"unknown {what} '{path}'", expected="package.module:attribute of an importable module"))
    loaded = importlib.import_module(module_name)
    if not hasattr(loaded, attribute_name):
        raise ConfigError(fault(f"module {module_name} has no '{attribute_name}' (wanted as {what})", expected=path))
    return getattr(loaded, attribute_name)
