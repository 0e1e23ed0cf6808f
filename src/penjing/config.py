"""Settings: frozen pydantic models that refuse unknown keys, and the generator that every random choice comes from.

Each field is documented by a string under it; that string is also the command-line help and the docs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import xxhash
from pydantic import BaseModel, ConfigDict, ValidationError

from penjing.errors import ConfigError, fault
from penjing.lookup import did_you_mean


class Config(BaseModel):
    """Base of every stage's settings: frozen, unknown keys refused, field docs taken from the strings under the fields."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


def faults_in(kind: type[BaseModel], values: dict[str, Any]) -> list[tuple[tuple[str | int, ...], str]]:
    """Every fault of `values` as settings of `kind`: pairs of (path of the key, sentence). Empty when all is well."""
    try:
        kind.model_validate(values)
    except ValidationError as error:
        return [(tuple(item["loc"]), _sentence(kind, item)) for item in error.errors()]
    return []


def parse(kind: type[Config], values: dict[str, Any], *, where: str) -> Any:
    """`values` as a `kind`; ConfigError naming every fault when they do not fit."""
    found = faults_in(kind, values)
    if found:
        raise ConfigError("\n".join(f"{where}: {'.'.join(map(str, path))}: {text}" for path, text in found))
    return kind.model_validate(values)


def generator(seed: int, *path: str | int) -> np.random.Generator:
    """A generator that depends on the recipe's seed and on a path of names (stage, shard, …) and on nothing else."""
    digest = xxhash.xxh3_128_intdigest("/".join(map(str, path)).encode())
    return np.random.default_rng([seed, digest & 0xFFFFFFFFFFFFFFFF, digest >> 64])


def _sentence(kind: type[BaseModel], item: Any) -> str:
    if item["type"] == "extra_forbidden":
        key = str(item["loc"][-1])
        known = _keys_at(kind, item["loc"][:-1])
        return fault(f"unknown key '{key}'", expected=f"one of {', '.join(known)}" if known else "no such key",
                     fix=did_you_mean(key, known))
    if item["type"] == "missing":
        return "this key is required and missing"
    message = str(item["msg"])
    expected = message.removeprefix("Input should be ").removeprefix("Value error, ")
    return fault("wrong value", found=repr(item["input"])[:80], expected=expected)


def _keys_at(kind: type[BaseModel], path: tuple[str | int, ...]) -> list[str]:
    current: Any = kind
    for step in path:
        fields = getattr(current, "model_fields", None)
        if not fields or step not in fields:
            return []
        current = fields[step].annotation
    return sorted(getattr(current, "model_fields", {}))
