"""A pruning plan: which layers and which places of each unit stay, as JSON that a person may read and edit before the
cut.

A plan names the model it is for, the layers kept of each stack, the places kept of each unit (`hidden`, `layers.3.ffn`,
…) in the numbering of the source, and the configuration that results. It may carry operations on single weights (a
rotation folded into the checkpoint, a refit, a corrected norm); their arrays lie beside it in
`plan-arrays.safetensors`. Index lists are written as runs, `"0-3,5,8-11"`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from penjing.errors import ConfigError, InputError, fault
from penjing.files import canonical_json, hash_text, read_json, write_json
from penjing.models.checkpoint import Checkpoint
from penjing.models.family import Family, of
from penjing.prune.arrays import StoredArray, chunks_of, opened

VERSION = 1
PLAN_FILE = "plan.json"
ARRAYS_FILE = "plan-arrays.safetensors"
OPERATIONS = ("scale", "map", "multiply", "add", "replace")


@dataclass(frozen=True)
class Operation:
    """A change of one weight on its way into the cut checkpoint, computed in float32.

    In this order, whatever the order in the list: `scale` multiplies a dimension of the uncut weight with a vector,
    `map` replaces the selection on a dimension by a matrix [new length, old length], `multiply` is by one number, `add`
    adds an array of the new shape, `replace` puts an array of the new shape in the weight's place.
    """

    kind: str
    dim: int = 0
    array: np.ndarray | StoredArray | None = None
    """In memory, or on the disk until it is needed."""
    value: float = 1.0


@dataclass(frozen=True)
class PruningPlan:
    """What stays of a model, and what becomes of it."""

    source: Mapping[str, str]
    """`headers`: hash of config and tensor shapes; `content`: hash of the weights, where it was taken."""
    source_config: Mapping[str, Any]
    target_config: Mapping[str, Any]
    layers: Mapping[str, tuple[int, ...]]
    """Stack -> numbers of the layers that stay, ascending."""
    keep: Mapping[str, np.ndarray]
    """Unit -> places that stay; units that are not named stay whole."""
    operations: Mapping[str, tuple[Operation, ...]] = field(default_factory=dict)
    """New weight name -> operations."""
    made_from: Mapping[str, str] = field(default_factory=dict)
    """New weight name -> old weight name, where it is not the one that renumbering gives (an untied head)."""
    how: Mapping[str, Any] = field(default_factory=dict)
    """How the plan was made: rules, metric, seed. For people."""
    history: tuple[Mapping[str, Any], ...] = ()
    """What earlier plans did to this model, oldest first."""

    @property
    def family(self) -> Family:
        return of(self.source_config)

    def to_json(self) -> tuple[dict[str, Any], dict[str, np.ndarray | StoredArray]]:
        """The plan as JSON values, and the arrays its operations refer to by name."""
        arrays: dict[str, np.ndarray | StoredArray] = {}
        seen: dict[int, str] = {}
        operations: dict[str, list[dict[str, Any]]] = {}
        for name, items in self.operations.items():
            operations[name] = []
            for item in items:
                entry: dict[str, Any] = {"kind": item.kind}
                if item.kind in ("scale", "map"):
                    entry["dim"] = item.dim
                if item.kind == "multiply":
                    entry["value"] = item.value
                if item.array is not None:
                    key = seen.setdefault(id(item.array), f"array-{len(seen):04d}")
                    stored = isinstance(item.array, StoredArray)
                    arrays[key] = item.array if stored else np.ascontiguousarray(item.array, dtype=np.float32)
                    entry["array"] = key
                operations[name].append(entry)
        plan = {
            "version": VERSION,
            "source": dict(self.source),
            "how": dict(self.how),
            "layers": {name: write_runs(kept) for name, kept in self.layers.items()},
            "keep": {unit: write_runs(kept) for unit, kept in self.keep.items()},
            "operations": operations,
            "made_from": dict(self.made_from),
            "source_config": dict(self.source_config),
            "target_config": dict(self.target_config),
            "history": [dict(item) for item in self.history],
        }
        return plan, arrays

    def save(self, directory: Path) -> None:
        """Write plan.json, and the arrays of its operations when it has any."""
        from penjing.models import shards

        plan, arrays = self.to_json()
        directory.mkdir(parents=True, exist_ok=True)
        if arrays:
            header = shards.header_bytes([(key, "F32", value.shape) for key, value in arrays.items()], {"format": "np"})
            parts = [(key, value.nbytes, lambda value=value: chunks_of(value)) for key, value in arrays.items()]
            shards.write_shard(directory / ARRAYS_FILE, header, parts)
        write_json(directory / PLAN_FILE, plan)

    def summary(self) -> dict[str, Any]:
        """One entry of the history that travels in the checkpoint."""
        family = self.family
        return {
            "source": dict(self.source),
            "how": dict(self.how),
            "sizes": family.sizes(self.source_config),
            "layers": {name: write_runs(kept) for name, kept in self.layers.items()},
            "keep_hash": hash_text(canonical_json({unit: write_runs(kept) for unit, kept in self.keep.items()})),
        }


def load(path: Path) -> PruningPlan:
    """Read a plan (a directory, or its plan.json) that may have been edited; InputError or ConfigError says what is
    wrong.
    """
    file = path / PLAN_FILE if path.is_dir() else path
    value = read_json(file)
    if not isinstance(value, dict):
        raise InputError(fault("not a pruning plan", where=file, found=type(value).__name__, expected="an object"))
    missing = [key for key in ("version", "source", "layers", "keep", "source_config") if key not in value]
    for key in ("source", "layers", "keep", "source_config", "target_config", "operations", "made_from", "how"):
        if not isinstance(value.get(key, {}), dict):
            raise InputError(fault(f"'{key}' is not an object of names and values", where=file, found=str(value[key])[:60]))
    if missing:
        raise InputError(fault(f"not a pruning plan: no '{missing[0]}'", where=file))
    if value["version"] != VERSION:
        raise InputError(fault("a plan of another version", where=file, found=value["version"], expected=VERSION))
    arrays = _load_arrays(file, value.get("operations", {}))
    operations = {}
    for name, items in value.get("operations", {}).items():
        if not isinstance(items, list) or not all(isinstance(item, dict) and "kind" in item for item in items):
            raise InputError(fault(f"the operations of '{name}' are not a list of kinds", where=file, found=str(items)[:60]))
        operations[name] = tuple(
            Operation(item["kind"], item.get("dim", 0), arrays.get(item.get("array")), item.get("value", 1.0))
            for item in items
        )
    plan = build(
        value["source_config"],
        layers={name: read_runs(text, where=f"{file}: layers.{name}") for name, text in value["layers"].items()},
        keep={unit: np.array(read_runs(text, where=f"{file}: keep.{unit}")) for unit, text in value["keep"].items()},
        source=value["source"],
        operations=operations,
        how=value.get("how", {}),
        history=value.get("history", ()),
        made_from=value.get("made_from", {}),
        overrides=_overrides(value),
        force=bool(value.get("how", {}).get("force")),
    )
    return plan


def build(
    config: Mapping[str, Any],
    *,
    layers: Mapping[str, Sequence[int]] | None = None,
    keep: Mapping[str, np.ndarray] | None = None,
    source: Mapping[str, str] | None = None,
    operations: Mapping[str, tuple[Operation, ...]] | None = None,
    made_from: Mapping[str, str] | None = None,
    how: Mapping[str, Any] | None = None,
    history: Sequence[Mapping[str, Any]] = (),
    overrides: Mapping[str, Any] | None = None,
    force: bool = False,
) -> PruningPlan:
    """A checked plan: every index in range, none twice, nothing cut to zero, equal counts in all layers that stay.

    `overrides` are further keys of the new config.json (`rms_norm_eps`, `tie_word_embeddings`). `force` allows heads under ALiBi
    that will see other distances than they did.
    """
    family = of(config)
    sizes = family.sizes(config)
    kept_layers = {}
    for stack in family.stacks:
        kept = (layers or {}).get(stack.name)
        kept_layers[stack.name] = (
            tuple(range(sizes[stack.size])) if kept is None else tuple(int(index) for index in kept)
        )
        _check_indices(kept_layers[stack.name], sizes[stack.size], f"layers of {stack.name}")
    unknown = set(layers or {}) - set(kept_layers)
    if unknown:
        family.stack(sorted(unknown)[0])
    units = family.units(config)
    kept_units: dict[str, np.ndarray] = {}
    for unit, places in (keep or {}).items():
        if unit not in units:
            raise ConfigError(
                fault(
                    f"{family.model_type} has no unit '{unit}' to cut",
                    expected=f"one of {', '.join(list(units)[:6])}, …",
                )
            )
        places = np.asarray(places, dtype=np.int64)
        if unit.endswith(".head") and family.kept_heads is not None and places.size != units[unit] and not force:
            _check_numbered_heads(family, places, units[unit], unit)
        else:
            _check_indices(places, units[unit], f"places of {unit}")
        if places.size != units[unit]:
            kept_units[unit] = places
    new_sizes = _new_sizes(family, units, kept_units, kept_layers)
    _check_groups(family, units, kept_units, kept_layers, sizes, new_sizes)
    target = family.resize(config, new_sizes, keep_layers=kept_layers)
    target.update(overrides or {})
    return PruningPlan(
        source=dict(source or {}),
        source_config=dict(config),
        target_config=target,
        layers=kept_layers,
        keep=kept_units,
        operations=dict(operations or {}),
        made_from=dict(made_from or {}),
        how=dict(how or {}),
        history=tuple(history),
    )


def with_operations(
    plan: PruningPlan,
    operations: Mapping[str, Sequence[Operation]],
    *,
    made_from: Mapping[str, str] | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> PruningPlan:
    """The plan with more operations; those for one weight are added to what it has."""
    joined = {**plan.operations}
    for name, items in operations.items():
        joined[name] = (*joined.get(name, ()), *items)
    return replace(
        plan,
        operations=joined,
        made_from={**plan.made_from, **(made_from or {})},
        target_config={**plan.target_config, **(overrides or {})},
    )


def untied(plan: PruningPlan) -> PruningPlan:
    """The plan with a head of its own for a model whose head is its embedding, computing what it did; as it is for others.

    T5's scale of a tied head goes into the new one.
    """
    family = plan.family
    if not family.tied(plan.target_config):
        return plan
    overrides = {"tie_word_embeddings": False}
    target = {**plan.target_config, **overrides}
    head = next(item.name for item in family.vocab_tensors(target) if item.role == "output")
    embedding = next(item.name for item in family.vocab_tensors(target) if item.role == "input")
    operations: dict[str, list[Operation]] = {head: list(plan.operations.get(embedding, ()))}
    if family.scaled_head(plan.source_config) and not family.scaled_head(target):
        factor = family.sizes(target)["hidden"] ** -0.5
        operations[head].append(Operation("multiply", value=factor))
    return with_operations(plan, {name: items for name, items in operations.items() if items},
                           made_from={head: plan.made_from.get(embedding, embedding)}, overrides=overrides)


def header_hash(checkpoint: Checkpoint) -> str:
    """A hash of a model's configuration and of the names and shapes of its weights; reads no weight."""
    table = of(checkpoint.config).match(checkpoint.config, checkpoint.names, where=checkpoint.path)
    shapes = sorted((name, list(checkpoint.shape(file_name))) for name, file_name in table.items())
    return hash_text(canonical_json([_identity(checkpoint.config), shapes]))


def source_names(plan: PruningPlan) -> dict[str, str]:
    """New weight name -> old weight name for every weight of the cut model."""
    family = plan.family
    old_table = family.tensors(plan.source_config)
    found = {}
    for name, tensor in family.tensors(plan.target_config).items():
        if name in plan.made_from:
            found[name] = plan.made_from[name]
            continue
        if tensor.stack is None or tensor.layer is None:
            found[name] = name
            continue
        prefix = family.stack(tensor.stack).prefix
        row = name[len(prefix.format(i=tensor.layer)) :]
        old = prefix.format(i=plan.layers[tensor.stack][tensor.layer]) + row
        found[name] = old if old in old_table else prefix.format(i=0) + row
    return found


def write_runs(indices: Sequence[int] | np.ndarray) -> str:
    """Indices as text: runs of neighbours joined by a dash, in the given order.

    >>> write_runs([0, 1, 2, 3, 5, 8, 9])
    '0-3,5,8-9'
    """
    values = np.asarray(indices, dtype=np.int64)
    if not values.size:
        return ""
    starts = np.concatenate([[0], np.flatnonzero(np.diff(values) != 1) + 1])
    stops = np.concatenate([starts[1:], [values.size]]) - 1
    return ",".join(
        f"{values[a]}" if a == b else f"{values[a]}-{values[b]}" for a, b in zip(starts, stops, strict=True)
    )


def read_runs(text: str, *, where: str) -> list[int]:
    """Indices from the text that `write_runs` gives; ConfigError when it is not such a text."""
    found: list[int] = []
    for part in str(text).split(",") if str(text).strip() else []:
        run = re.fullmatch(r"(\d+)(?:-(\d+))?", part.strip())
        if run is None:
            raise ConfigError(
                fault(f"'{part.strip()}' is not an index or a run", where=where, expected="text like '0-3,5,8-11'")
            )
        found.extend(range(int(run[1]), int(run[2] or run[1]) + 1))
    return found


def _check_indices(indices: Sequence[int] | np.ndarray, size: int, what: str) -> None:
    values = np.asarray(indices, dtype=np.int64)
    if values.size == 0:
        raise ConfigError(fault(f"the {what} are cut to zero", expected="at least one"))
    if values.min() < 0 or values.max() >= size:
        wrong = values.min() if values.min() < 0 else values.max()
        raise ConfigError(fault(f"index out of range among the {what}", found=int(wrong), expected=f"0 to {size - 1}"))
    if np.any(np.diff(values) <= 0):
        if len(np.unique(values)) != values.size:
            unique, counts = np.unique(values, return_counts=True)
            raise ConfigError(
                fault(f"index repeated among the {what}", found=int(unique[counts > 1][0]), expected="each once")
            )
        raise ConfigError(fault(f"the {what} are not in ascending order", found=write_runs(values)[:60]))


def _check_numbered_heads(family: Family, places: np.ndarray, size: int, unit: str) -> None:
    assert family.kept_heads is not None
    _check_indices(np.sort(places), size, f"places of {unit}")
    right = family.kept_heads(size, places.size)
    if places.tolist() != right:
        raise ConfigError(
            fault(
                f"these heads of {unit} would see other distances: the ALiBi slopes of {family.model_type} follow from the number of "
                "heads and their order",
                found=write_runs(places)[:60],
                expected=write_runs(right)[:200],
                fix="keep those, or allow the change with force: true",
            )
        )


def _new_sizes(
    family: Family, units: Mapping[str, int], keep: Mapping[str, np.ndarray], layers: Mapping[str, tuple[int, ...]]
) -> dict[str, int]:
    """Sizes of the cut model; all layers that stay must agree, because the configuration says one number for all."""
    found: dict[str, tuple[int, str]] = {}
    for unit, old in units.items():
        if not _stays(unit, layers):
            continue
        name = family.size_of_unit(unit)
        new = len(keep[unit]) if unit in keep else old
        if name in found and found[name][0] != new:
            raise ConfigError(
                fault(
                    f"{family.model_type} has one number of {name} for all layers",
                    found=f"{new} in {unit} but {found[name][0]} in {found[name][1]}",
                    expected="the same in every layer that stays",
                )
            )
        found[name] = (new, unit)
    return {name: new for name, (new, _) in found.items()}


def _stays(unit: str, layers: Mapping[str, tuple[int, ...]]) -> bool:
    parts = unit.split(".")
    return len(parts) < 3 or int(parts[1]) in layers[parts[0]]


def _check_groups(
    family: Family,
    units: Mapping[str, int],
    keep: Mapping[str, np.ndarray],
    layers: Mapping[str, tuple[int, ...]],
    sizes: Mapping[str, int],
    new_sizes: Mapping[str, int],
) -> None:
    """With grouped queries every kept head must sit in a kept group, and all groups must keep equally many."""
    old_per_group = sizes["heads"] // sizes.get("kv_heads", sizes["heads"])
    for unit in units:
        if not unit.endswith(".kv_head") or not _stays(unit, layers):
            continue
        head_unit = unit.removesuffix("kv_head") + "head"
        heads = keep.get(head_unit, np.arange(units[head_unit]))
        groups = keep.get(unit, np.arange(units[unit]))
        new_per_group, rest = divmod(len(heads), len(groups))
        if rest or not np.array_equal(heads // old_per_group, np.repeat(groups, max(1, new_per_group))):
            raise ConfigError(
                fault(
                    f"kept heads of {head_unit} do not follow the kept groups of {unit}",
                    found=f"heads {write_runs(heads)[:60]}, groups {write_runs(groups)[:60]}",
                    expected=f"equally many heads of every kept group of {old_per_group}",
                )
            )


def _identity(config: Mapping[str, Any]) -> dict[str, Any]:
    """What of a configuration decides whether two models have equal weights in equal places."""
    return {"model_type": config.get("model_type"), **of(config).sizes(config)}


def _overrides(value: Mapping[str, Any]) -> dict[str, Any]:
    """Keys of the stored target that are not sizes but were set on purpose."""
    source, target = value["source_config"], value.get("target_config", {})
    keys = set(of(source).keys.values()) | set(of(source).per_layer) | {"max_window_layers"}
    return {key: item for key, item in target.items() if key not in keys and source.get(key) != item}


def _load_arrays(file: Path, operations: Mapping[str, Any]) -> dict[str, np.ndarray | StoredArray]:
    """The arrays that a stored plan's operations name: whole weights stay on the disk, vectors and bases are read."""
    listed = [item for items in operations.values() for item in items if isinstance(item, dict)]
    wanted = {item["array"]: item.get("kind") for item in listed if item.get("array")}
    if not wanted:
        return {}
    found = opened(file.parent / ARRAYS_FILE)
    absent = sorted(set(wanted) - set(found))
    if absent:
        raise InputError(fault(f"no array '{absent[0]}', although the plan says so", where=file.parent / ARRAYS_FILE))
    return {name: found[name] if kind in ("replace", "add") else found[name].read() for name, kind in wanted.items()}


def unit_sizes(config: Mapping[str, Any]) -> dict[str, int]:
    """Every unit of a model and its fixed factors (`head_dim`), for `axes.gather`."""
    family = of(config)
    return {**family.sizes(config), **family.units(config)}


def corrected(plan: PruningPlan, *, norm_scale: str = "none") -> PruningPlan:
    """The plan with what a cut of hidden must make up for.

    T5 multiplies the logits of a tied head by hidden ** -0.5, so its last norm takes sqrt(new / old).
    `norm_scale="mask"` multiplies the weights of all RMSNorms by sqrt(old / new) and their epsilon by old / new: then
    cutting equals masking.
    """
    family = plan.family
    old, new = family.sizes(plan.source_config)["hidden"], family.sizes(plan.target_config)["hidden"]
    operations: dict[str, list[Operation]] = {}
    overrides: dict[str, Any] = {}
    if old != new:
        if norm_scale == "mask":
            if family.norm != "rms":
                raise ConfigError(fault(f"norm_scale: mask is for RMSNorm, and {family.model_type} has LayerNorm"))
            for name, tensor in family.tensors(plan.target_config).items():
                if tensor.kind == "norm" and tensor.axes == ("hidden",):
                    operations.setdefault(name, []).append(Operation("multiply", value=float(np.sqrt(old / new))))
            epsilon = plan.source_config.get(family.norm_eps, 1e-6)
            overrides[family.norm_eps] = epsilon * old / new
        if family.scaled_head(plan.source_config):
            operations.setdefault(family.last_norm, []).append(Operation("multiply", value=float(np.sqrt(new / old))))
    return with_operations(plan, operations, overrides=overrides) if operations else plan
