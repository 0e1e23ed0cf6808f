"""What an architecture and the machine it will run on demand of sizes, checked before anything is cut."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from penjing.errors import ConfigError, fault
from penjing.models.family import of

SHARDED = ("heads", "kv_heads", "ffn")
"""Sizes that tensor parallelism divides among its ranks."""


def problems(
    config: Mapping[str, Any],
    sizes: Mapping[str, int],
    *,
    tensor_parallel: int = 1,
    multiple_of: Mapping[str, int] | None = None,
    force: bool = False,
) -> list[str]:
    """Every reason why a model of `config` cannot be cut to `sizes` (names as `Family.sizes` gives them); empty when it
    can.

    `force` is for what the architecture can say but what changes the meaning of the weights that stay; which heads stay under ALiBi
    is checked where they are chosen (`plan.build`), because any number of them has one right choice.
    """
    family = of(config)
    old = family.sizes(config)
    new = {**old, **sizes}
    found = []
    for name, value in sizes.items():
        if name not in old:
            found.append(f"{family.model_type} has no size '{name}' (it has {', '.join(old)})")
        elif value < 1:
            found.append(f"{name} is cut to {value}")
        elif value > old[name]:
            found.append(f"{name} cannot grow from {old[name]} to {value}")
        elif name == "head_dim" and value != old[name]:
            found.append(f"head_dim stays {old[name]}: rotary positions and the scale of attention depend on it")
        elif name in family.fixed and value != family.implied[name](new):
            found.append(f"{name} cannot be {value}: {family.fixed[name]}")
    if found:
        return found
    heads, groups = new["heads"], new.get("kv_heads", new["heads"])
    if heads % groups:
        found.append(f"{heads} heads cannot share {groups} key/value heads equally")
    elif heads // groups > old["heads"] // old.get("kv_heads", old["heads"]):
        found.append(
            f"{heads} heads on {groups} key/value heads is {heads // groups} per group, more than the "
            f"{old['heads'] // old.get('kv_heads', old['heads'])} there are"
        )
    if family.hidden_is_heads and new["hidden"] != heads * old["head_dim"]:
        found.append(
            f"hidden must be heads x head_dim in {family.model_type}: {heads} x {old['head_dim']} is "
            f"{heads * old['head_dim']}, not {new['hidden']}"
        )
    if family.heads_divide_hidden and new["hidden"] % heads:
        found.append(
            f"hidden {new['hidden']} is not a multiple of {heads} heads, and transformers loads no {family.model_type} without that"
        )
    unknown = sorted(set(multiple_of or {}) - set(old))
    if unknown:
        found.append(f"multiple_of names '{unknown[0]}', and {family.model_type} has {', '.join(old)}")
    for name, divisor in {**family.divisors, **(multiple_of or {})}.items():
        if name in new and new[name] != old[name] and new[name] % divisor:
            found.append(f"{name} {new[name]} is not a multiple of {divisor}")
    for name in SHARDED:
        if name in new and new[name] % tensor_parallel:
            found.append(f"{name} {new[name]} does not divide among {tensor_parallel} tensor-parallel ranks")
    reason = family.no_depth(config)
    if reason and any(new[stack.size] != old[stack.size] for stack in family.stacks):
        found.append(reason)
    return found


def nearest(config: Mapping[str, Any], sizes: Mapping[str, int], name: str, **limits: Any) -> list[dict[str, int]]:
    """The nearest legal sizes below and above for `name` (with hidden following heads where the two are one); at most
    two.
    """
    old = of(config).sizes(config)
    if name not in old:
        return []
    wanted = sizes.get(name, old[name])
    found = []
    for step in (-1, 1):
        value = wanted if step < 0 else wanted + 1
        while 1 <= value <= old[name]:
            candidate = _completed(config, {**sizes, name: value}, name)
            if not problems(config, candidate, **limits):
                found.append({key: candidate[key] for key in candidate if candidate[key] != old[key] or key == name})
                break
            value += step
    return found


def check(config: Mapping[str, Any], sizes: Mapping[str, int], *, where: str = "prune", **limits: Any) -> None:
    """ConfigError with every problem and the nearest legal sizes, when there is one."""
    found = problems(config, sizes, **limits)
    if not found:
        return
    offers: list[dict[str, int]] = []
    for name in sizes:
        offers += [offer for offer in nearest(config, sizes, name, **limits) if offer not in offers]
    texts = [", ".join(f"{key} {value}" for key, value in offer.items()) for offer in offers[:4]]
    raise ConfigError(fault("; ".join(found), where=where, fix=f"nearest legal: {' | '.join(texts)}" if texts else None))


def complete(config: Mapping[str, Any], sizes: Mapping[str, int]) -> dict[str, int]:
    """Sizes with those that follow from them: whole groups go before heads within groups, hidden and heads move
    together.
    """
    family = of(config)
    old = family.sizes(config)
    new = dict(sizes)
    if family.hidden_is_heads:
        if "hidden" in new and "heads" not in new and new["hidden"] % old["head_dim"] == 0:
            new["heads"] = new["hidden"] // old["head_dim"]
        elif "heads" in new and "hidden" not in new:
            new["hidden"] = new["heads"] * old["head_dim"]
    for name, rule in family.implied.items():
        if name not in family.keys and name not in new and rule({**old, **new}) != old[name]:
            new[name] = rule({**old, **new})
    if "kv_heads" in old and ("heads" in new) != ("kv_heads" in new):
        per_group = old["heads"] // old["kv_heads"]
        if "heads" in new:
            new["kv_heads"] = (
                new["heads"] // per_group if new["heads"] % per_group == 0 else _groups(new["heads"], old["kv_heads"])
            )
        else:
            new["heads"] = new["kv_heads"] * per_group
    return new


def _completed(config: Mapping[str, Any], sizes: Mapping[str, int], name: str) -> dict[str, int]:
    pair = {"heads": ("hidden", "kv_heads"), "hidden": ("heads", "kv_heads"), "kv_heads": ("heads",)}.get(name, ())
    family = of(config)
    follow = [key for key in pair if family.hidden_is_heads or (key in ("kv_heads", "heads") and name != "hidden")]
    return complete(config, {key: value for key, value in sizes.items() if key not in follow})


def _groups(heads: int, groups: int) -> int:
    return max((count for count in range(1, groups + 1) if heads % count == 0), default=1)


def layer_sizes(config: Mapping[str, Any], layers: Mapping[str, Sequence[int]]) -> dict[str, int]:
    """Size names of the stacks for the layers kept of each."""
    return {of(config).stack(name).size: len(kept) for name, kept in layers.items()}
