"""How much to cut where: exact sizes for a share of the parameters, and a schedule of stages in the shape of
OpenBA-V2's.

Depth comes before width, because dropping layers hurts less (OpenBA-V2, section 4.1.1). Layers, hidden, heads and FFN
shrink by one factor s, so that parameters outside the embeddings shrink by s cubed: OpenBA-V2's own 48 to 32 layers and
4096 to 2560 places are s = 0.67 and 0.63 for a quarter of the parameters.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, Literal

from penjing.errors import ConfigError, fault
from penjing.models.cost import count_parameters, flops_per_token
from penjing.models.family import of
from penjing.prune import rules

Axes = Literal["both", "width", "depth"]
MAX_LAYER_SHARE = 0.25
"""Largest share of a model's layers that one stage drops: OpenBA-V2's first stage takes 12 of 48."""
TOKENS_PER_DROPPED_PARAMETER = 10.0
"""Recovery tokens for each parameter a stage drops. OpenBA-V2's stages used 4.4, 7.4, 16 and, for width, 10.4 (65
billion).
"""


_SHAPE_WEIGHT = 0.05


@dataclass(frozen=True)
class Proposal:
    """One stage of a schedule, or the model it starts from."""

    name: str
    sizes: dict[str, int]
    parameters: int
    flops_per_token: float
    recovery_tokens: float
    settings: dict[str, Any]
    """Settings of the `prune` stage that makes this cut."""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def sizes_for(config: Mapping[str, Any], keep: float, *, axes: Axes = "both", **limits: Any) -> dict[str, int]:
    """Sizes of the legal model nearest to `keep` of the parameters of `config`.

    `limits` are those of `rules.problems` (tensor_parallel, multiple_of). ConfigError when no legal model comes within
    a tenth.
    """
    if not 0 < keep < 1:
        raise ConfigError(
            fault("'keep' is the share of parameters that stays", found=keep, expected="a number between 0 and 1")
        )
    total = count_parameters(config)
    low, high = 0.01, 1.0
    for _ in range(24):
        middle = (low + high) / 2
        share = _parameters(config, _scaled(config, middle, axes, limits)) / total
        low, high = (middle, high) if share < keep else (low, middle)
    best: tuple[float, dict[str, int]] | None = None
    for sizes in _near(config, low, axes, limits, keep * total):
        if not rules.problems(config, sizes, **limits):
            miss = abs(_parameters(config, sizes) / total - keep) / keep
            if best is None or miss + _SHAPE_WEIGHT * _unevenness(config, sizes) < best[0]:
                best = miss + _SHAPE_WEIGHT * _unevenness(config, sizes), sizes
    if best is None:
        raise ConfigError(
            fault(f"no legal sizes found for keep: {keep}", fix="give hidden, ffn, heads and layers yourself")
        )
    share = _parameters(config, best[1]) / total
    if abs(share - keep) > 0.1 * keep:
        raise ConfigError(
            fault(
                f"no legal sizes near keep: {keep}; the nearest keeps {share:.3f}",
                fix="embeddings do not shrink with layers: allow width too, or prune the vocabulary",
            )
        )
    return best[1]


def propose(
    config: Mapping[str, Any],
    keep: float,
    *,
    sequence_length: int = 2048,
    max_layer_share: float = MAX_LAYER_SHARE,
    tokens_per_dropped_parameter: float = TOKENS_PER_DROPPED_PARAMETER,
    **limits: Any,
) -> list[Proposal]:
    """A schedule to `keep` of the parameters: depth in stages of at most `max_layer_share` of the layers, then width at
    once.

    The first entry is the model as it is. Staging is not a free gain: compare with one direct cut at equal tokens.
    """
    family = of(config)
    goal = sizes_for(config, keep, **limits)
    schedule = [
        Proposal(
            "as it is",
            family.sizes(config),
            count_parameters(config),
            flops_per_token(config, sequence_length=sequence_length),
            0.0,
            {},
        )
    ]
    now = dict(config)
    depth = {stack.name: goal.get(stack.size, family.sizes(config)[stack.size]) for stack in family.stacks}
    for step in _steps({stack.name: family.sizes(config)[stack.size] for stack in family.stacks}, depth, max_layer_share):
        now = _add(
            schedule,
            now,
            {family.stack(name).size: count for name, count in step.items()},
            {"layers": step if len(step) > 1 else next(iter(step.values()))},
            sequence_length,
            tokens_per_dropped_parameter,
        )
    width = {
        name: value
        for name, value in goal.items()
        if name not in {stack.size for stack in family.stacks} and value != family.sizes(now)[name]
    }
    if width:
        _add(
            schedule,
            now,
            width,
            {name: value for name, value in width.items() if name != "head_dim"},
            sequence_length,
            tokens_per_dropped_parameter,
        )
    return schedule


def _steps(have: Mapping[str, int], goal: Mapping[str, int], max_share: float) -> list[dict[str, int]]:
    """Layers of each stack after every depth stage: as few stages as the share allows, each dropping about the same share."""
    largest = [dict(have)]
    while largest[-1] != goal:
        largest.append({name: max(goal[name], now - max(1, int(now * max_share))) for name, now in largest[-1].items()})
    count = max(1, len(largest) - 1)
    even = [{name: round(have[name] * (goal[name] / have[name]) ** (number / count)) for name in have} for number in range(count + 1)]
    pairs = [(one[name], two[name]) for one, two in pairwise(even) for name in have]
    fits = all(one - two <= max(1, int(one * max_share)) for one, two in pairs)
    return [two for one, two in pairwise(even if fits else largest) if one != two]


def _add(
    schedule: list[Proposal],
    config: Mapping[str, Any],
    sizes: Mapping[str, int],
    settings: dict[str, Any],
    sequence_length: int,
    tokens_per_parameter: float,
) -> dict[str, Any]:
    new = of(config).resize(config, sizes)
    parameters = count_parameters(new)
    dropped = schedule[-1].parameters - parameters
    schedule.append(
        Proposal(
            f"stage {len(schedule)}",
            of(new).sizes(new),
            parameters,
            flops_per_token(new, sequence_length=sequence_length),
            dropped * tokens_per_parameter,
            settings,
        )
    )
    return new


def _near(
    config: Mapping[str, Any], factor: float, axes: Axes, limits: Mapping[str, Any], parameters: float
) -> Iterator[dict[str, int]]:
    """Sizes around one factor: rounded from somewhat smaller and larger ones, a layer more or less, FFN made to fit."""
    family = of(config)
    old = family.sizes(config)
    seen: set[tuple[tuple[str, int], ...]] = set()
    for step in range(-12, 13):
        base = _scaled(config, min(1.0, factor * (1 + step / 40)), axes, limits)
        stacks = [stack.size for stack in family.stacks if stack.size in base]
        for changed, by in [("", 0), *[(name, by) for name in stacks for by in (-1, 1)]]:
            sizes = {**base, **({changed: min(old[changed], max(1, base[changed] + by))} if changed else {})}
            key = tuple(sorted(sizes.items()))
            if key not in seen:
                seen.add(key)
                yield sizes
                if axes != "depth":
                    yield _fill_ffn(config, sizes, parameters, limits)


def _unevenness(config: Mapping[str, Any], sizes: Mapping[str, int]) -> float:
    """How far apart the factors of the single sizes are."""
    old = of(config).sizes(config)
    factors = [value / old[name] for name, value in sizes.items() if name != "kv_heads"]
    return max(factors) - min(factors) if factors else 0.0


def _scaled(config: Mapping[str, Any], factor: float, axes: Axes, limits: Mapping[str, Any]) -> dict[str, int]:
    """Every size that may shrink, times `factor`, rounded to what hardware and architecture like."""
    family = of(config)
    old = family.sizes(config)
    sizes: dict[str, int] = {}
    if axes != "width" and family.no_depth(config) is None:
        for stack in family.stacks:
            sizes[stack.size] = max(1, round(old[stack.size] * factor))
    if axes == "depth":
        return sizes
    if "ffn" in family.keys:
        sizes["ffn"] = _rounded(old["ffn"] * factor, _multiple("ffn", old["ffn"], limits), old["ffn"])
    if family.kept_heads is None or axes == "width":
        groups = old["heads"] // old.get("kv_heads", old["heads"])
        even = 1 << max(0, (old["heads"] // 10).bit_length() - 1)  # 40 heads go by fours: 32 divide among ranks, 31 do not
        unit = math.lcm(groups * int(limits.get("tensor_parallel", 1)), family.divisors.get("heads", 1), even)
        sizes["heads"] = _rounded(old["heads"] * factor, unit, old["heads"])
        sizes = rules.complete(config, sizes)
    if not family.hidden_is_heads:
        step = _multiple("hidden", old["hidden"], limits)
        step = math.lcm(step, sizes.get("heads", old["heads"])) if family.heads_divide_hidden else step
        sizes["hidden"] = _rounded(old["hidden"] * factor, step, old["hidden"])
    return sizes


def _fill_ffn(
    config: Mapping[str, Any], sizes: Mapping[str, int], parameters: float, limits: Mapping[str, Any]
) -> dict[str, int]:
    """The same sizes with the FFN that brings the model nearest to the number of parameters."""
    family = of(config)
    if "ffn" not in sizes or "ffn" not in family.keys:
        return dict(sizes)
    old = family.sizes(config)["ffn"]
    step = _multiple("ffn", old, limits)
    per_place = (_parameters(config, {**sizes, "ffn": step}) - _parameters(config, {**sizes, "ffn": 2 * step})) / -step
    here = _parameters(config, sizes)
    wanted = sizes["ffn"] + (parameters - here) / per_place
    near = sizes["ffn"]
    return {**sizes, "ffn": _rounded(min(max(wanted, near * 0.75), near * 1.25), step, old)}


def _parameters(config: Mapping[str, Any], sizes: Mapping[str, int]) -> int:
    return count_parameters(of(config).resize(config, sizes))


def _multiple(name: str, size: int, limits: Mapping[str, Any]) -> int:
    said = (limits.get("multiple_of") or {}).get(name)
    if said:
        return int(said)
    step = 1
    while step < 128 and step * 2 <= size / 16:
        step *= 2
    parallel = int(limits.get("tensor_parallel", 1))
    return step if step % parallel == 0 else step * parallel


def _rounded(value: float, step: int, largest: int) -> int:
    return min(largest, max(step, round(value / step) * step))
