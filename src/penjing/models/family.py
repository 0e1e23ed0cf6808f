"""What a checkpoint of one architecture consists of: every weight by its Hugging Face name, every dimension by its
meaning.

One table of axes per architecture serves depth and width pruning, vocabulary surgery, tensor-parallel sharding,
conversion and the counts of parameters and FLOPs. A family is a module `penjing.models.families.<model_type>` with a
constant `FAMILY`. `penjing stage verify-family` proves a new table on tiny random models.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from penjing import lookup
from penjing.errors import ConfigError, InputError, fault
from penjing.models import axes

FAMILIES = "penjing.models.families"
LAYER_UNITS = frozenset({"ffn", "head", "kv_head", "cross_head"})
"""Units that every layer has its own copy of."""
UNIT_SIZES = {"head": "heads", "cross_head": "heads", "kv_head": "kv_heads"}
"""Size name of a unit where it is not the unit's own name."""
When = Callable[[Mapping[str, Any]], bool]


@dataclass(frozen=True)
class Row:
    """One line of a table: a weight's name (inside its layer), a label for each dimension, and what kind of weight it
    is.
    """

    name: str
    axes: str
    kind: str = "linear"
    """`linear` (multiplied with the tokens' states), `embedding`, `norm`, `bias`, `positions` or `bias-table`."""
    when: When | None = None
    """Whether a configuration has this weight; None means always."""
    only_first: bool = False
    """Held by the first layer of the stack only, and used by all (T5's relative positions)."""


@dataclass(frozen=True)
class Stack:
    """A pile of equal layers: `layers` of a decoder-only model, or `encoder` and `decoder`."""

    name: str
    prefix: str
    """Name of a layer with `{i}` for its number, ending in a dot."""
    size: str
    """Size name of the number of layers: `layers`, `encoder_layers` or `decoder_layers`."""
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Tensor:
    """A weight of one configuration."""

    name: str
    shape: tuple[int, ...]
    axes: tuple[str, ...]
    """One label per dimension, units by their full names (`hidden`, `layers.3.ffn`)."""
    kind: str
    stack: str | None = None
    layer: int | None = None


@dataclass(frozen=True)
class VocabTensor:
    """A weight with a dimension of one place per token."""

    name: str
    dim: int
    role: str
    """`input`, `output` or `bias`."""


@dataclass(frozen=True)
class Family:
    """The table of one architecture and what it demands of sizes."""

    model_type: str
    stacks: tuple[Stack, ...]
    rows: tuple[Row, ...]
    keys: Mapping[str, str]
    """Size name -> key of config.json."""
    implied: Mapping[str, Callable[[Mapping[str, int]], int]] = field(default_factory=dict)
    """Sizes that are a function of the others when the configuration does not say them (or cannot: no entry in `keys`).
    """
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Values of configuration keys that old checkpoints leave out."""
    aliases: Mapping[str, str] = field(default_factory=dict)
    """Second names under which files may hold a tied weight again: alias -> weight."""
    ignored: tuple[str, ...] = (r"rotary_emb\.inv_freq$",)
    """Patterns of buffers that old files hold and no model reads."""
    prefix: str = ""
    """Prefix that checkpoints of the bare model leave out, `transformer.`."""
    norm: str = "rms"
    """`rms` or `layer`."""
    norm_eps: str = "rms_norm_eps"
    shared_units: frozenset[str] = frozenset()
    """Units of LAYER_UNITS that all layers of a stack share, as `<stack>.<unit>`."""
    per_layer: tuple[str, ...] = ("layer_types",)
    """Configuration lists with one entry per layer."""
    hidden_is_heads: bool = False
    """hidden must equal heads x head_dim, so the two are cut together."""
    heads_divide_hidden: bool = False
    """transformers refuses configurations whose hidden is not a multiple of the number of heads, whatever head_dim says."""
    fixed: Mapping[str, str] = field(default_factory=dict)
    """Sizes without a key in config.json that follow from others (`implied`), with the reason to give when another is asked for."""
    kept_heads: Callable[[int, int], list[int]] | None = None
    """Where what a head does depends on its number (ALiBi): for an old and a new number of heads the old ones that mean the same
    in the new model, in its order. No other choice is right, whatever a metric says.
    """
    divisors: Mapping[str, int] = field(default_factory=dict)
    """Sizes that must be multiples of something."""
    tied_default: bool = False
    scaled_head: When = lambda config: False
    """Whether a configuration scales the tied head by hidden ** -0.5, so that a cut of hidden must be made up for."""
    last_norm: str = ""
    """Name of the norm before the head, where `scaled_head` can be true."""
    no_depth: Callable[[Mapping[str, Any]], str | None] = lambda config: None
    """The reason why layers of a configuration cannot be dropped, or None."""
    other_keys: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Older names of configuration keys: key -> names."""
    follow: Callable[[Mapping[str, Any], dict[str, Any]], None] = lambda old, new: None
    """Sets keys of a resized configuration that follow from others, or raises ConfigError."""
    settle: Callable[[Mapping[str, Any], Iterable[str], Callable[[str], tuple[int, ...]]], dict[str, Any]] = (
        lambda config, names, shape_of: dict(config))
    """A configuration made to say what the names and shapes in the file say."""
    other_model: Callable[[Mapping[str, Any]], str | None] = lambda config: None
    """What a configuration of the same `model_type` is that this table is not for, or None."""
    adjust: Callable[[Mapping[str, Any], dict[str, int]], dict[str, int]] = lambda config, sizes: sizes
    """Sizes that a configuration says in another way than by their value."""
    seq2seq: bool = False
    auto_map: Mapping[str, str] = field(default_factory=dict)
    """Auto class -> `file.Class` of modeling code that is ours (`models/<model_type>/`) and goes with every checkpoint."""

    def sizes(self, config: Mapping[str, Any]) -> dict[str, int]:
        """Every size of a configuration by its name; InputError when one is missing or not a positive whole number."""
        other = self.other_model(config)
        if other is not None:
            raise InputError(fault(f"this is {other}, which the {self.model_type} table is not for", where="config.json",
                                   fix=f"write a table for it beside models/families/{self.model_type}.py"))
        found: dict[str, int] = {}
        for name, key in self.keys.items():
            value = next(
                (config[name] for name in (key, *self.other_keys.get(key, ())) if config.get(name) is not None), None
            )
            value = self.defaults.get(key) if value is None else value
            if value is None:
                if name in self.implied:
                    continue
                raise InputError(
                    fault(f"'{key}' is missing", where="config.json", expected=f"the {name} of {self.model_type}")
                )
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InputError(
                    fault(
                        f"'{key}' is not a size",
                        where="config.json",
                        found=repr(value),
                        expected="a whole number above 0",
                    )
                )
            found[name] = value
        found = self.adjust(config, found)
        for name, rule in self.implied.items():
            if name not in found:
                found[name] = rule(found)
        return found

    def tied(self, config: Mapping[str, Any]) -> bool:
        """Whether input embedding and output head are one weight."""
        return bool(config.get("tie_word_embeddings", self.tied_default))

    def units(self, config: Mapping[str, Any]) -> dict[str, int]:
        """Size of every unit that may be cut, by its full name; layers are not units."""
        found: dict[str, int] = {}
        for tensor in self.tensors(config).values():
            for label in tensor.axes:
                for unit in axes.units(label):
                    found.setdefault(unit, 0)
        sizes = self.sizes(config)
        return {unit: sizes[self.size_of_unit(unit)] for unit in found}

    @staticmethod
    def size_of_unit(unit: str) -> str:
        """Size name of a unit: `layers.3.head` -> `heads`."""
        last = unit.rsplit(".", 1)[-1]
        return UNIT_SIZES.get(last, last)

    def tensors(self, config: Mapping[str, Any]) -> dict[str, Tensor]:
        """Every weight of a configuration by its name, tied weights once, in the order of the layers."""
        sizes = self.sizes(config)
        found: dict[str, Tensor] = {}
        for row in self.rows:
            if row.kind == "embedding":
                self._add(found, row, config, sizes, "", None, None)
        for stack in self.stacks:
            live = [row for row in stack.rows if row.when is None or row.when(config)]
            for layer in range(sizes[stack.size]):
                for row in live:
                    if not row.only_first or layer == 0:
                        self._add(found, row, config, sizes, stack.prefix.format(i=layer), stack, layer)
        for row in self.rows:
            if row.kind != "embedding":
                self._add(found, row, config, sizes, "", None, None)
        return found

    def count_parameters(self, config: Mapping[str, Any]) -> int:
        """Number of weights, without making the table of every layer."""
        sizes = _Sizes(self.sizes(config))

        def items(row: Row) -> int:
            return math.prod(axes.size(label.strip(), sizes) for label in row.axes.split(","))

        total = sum(items(row) for row in self.rows if row.when is None or row.when(config))
        for stack in self.stacks:
            live = [row for row in stack.rows if row.when is None or row.when(config)]
            total += sum(items(row) * (1 if row.only_first else sizes[stack.size]) for row in live)
        return total

    def vocab_tensors(self, config: Mapping[str, Any]) -> list[VocabTensor]:
        """The weights with a dimension of tokens, in table order; a tied head is not named twice."""
        found = []
        for tensor in self.tensors(config).values():
            for dim, label in enumerate(tensor.axes):
                if label == "vocab":
                    role = "input" if tensor.kind == "embedding" else "bias" if len(tensor.shape) == 1 else "output"
                    found.append(VocabTensor(tensor.name, dim, role))
        return found

    def resize(
        self,
        config: Mapping[str, Any],
        changed: Mapping[str, int] | None = None,
        *,
        keep_layers: Mapping[str, Sequence[int]] | None = None,
        **sizes: int,
    ) -> dict[str, Any]:
        """A configuration with other sizes (`changed`, or by keyword); every key that the change touches is written
        out.

        `keep_layers` maps a stack's name to the old numbers of the layers that stay, so that lists with one entry per
        layer follow. ConfigError when the architecture has no key for a size, or ties it to another.
        """
        old = self.sizes(config)
        new = {**old, **(changed or {}), **sizes}
        for stack in self.stacks:
            kept = (keep_layers or {}).get(stack.name)
            if kept is not None:
                new[stack.size] = len(kept)
        unknown = set(new) - set(old)
        if unknown:
            raise ConfigError(
                fault(f"{self.model_type} has no size '{sorted(unknown)[0]}'", expected=f"one of {', '.join(old)}")
            )
        result = dict(config)
        if new == old:
            return result
        for name, key in self.keys.items():
            said = config.get(key) is not None or any(config.get(other) for other in self.other_keys.get(key, ()))
            if said or name not in self.implied or self.implied[name](new) != new[name]:
                result[key] = new[name]
        for key, others in self.other_keys.items():
            if result.get(key) is not None:
                for other in others:
                    result.pop(other, None)
        self._renumber_lists(result, config, old, new, keep_layers or {})
        self.follow(config, result)
        got = self.sizes(result)
        free = {"embed"} if self.follow is not Family.follow and "embed" not in sizes else set()
        wrong = {name: value for name, value in new.items() if got[name] != value and name not in free}
        if wrong:
            name, value = next(iter(wrong.items()))
            raise ConfigError(
                fault(
                    f"{self.model_type} cannot have {name} {value} with these other sizes",
                    found=got[name],
                    expected="sizes that the architecture can say in its config.json",
                )
            )
        return result

    def match(
        self, config: Mapping[str, Any], names: Iterable[str], *, where: str | Path = "checkpoint"
    ) -> dict[str, str]:
        """Weight name -> name in the file, for every weight of the table.

        Buffers and second names of tied weights are left out. InputError when a weight is missing or a name is in no
        table.
        """
        table = self.tensors(config)
        alias = self.tied_aliases(config)
        found: dict[str, str] = {}
        extra = []
        for name in names:
            canonical = next((form for form in self._forms(name) if form in table), None)
            if canonical is not None:
                found[canonical] = name
            elif not any(form in alias for form in self._forms(name)) and not self.is_ignored(name):
                extra.append(name)
        for name in [name for name in names if any(form in alias for form in self._forms(name))]:
            target = next(alias[form] for form in self._forms(name) if form in alias)
            found.setdefault(target, name)
        missing = [name for name in table if name not in found]
        if missing:
            raise InputError(
                fault(
                    f"{len(missing)} of the {len(table)} tensors of {self.model_type} are missing, first "
                    f"'{missing[0]}'",
                    where=where,
                    fix="is config.json the one these weights were saved with?",
                )
            )
        if extra:
            raise InputError(
                fault(
                    f"{len(extra)} tensors are in no row of the {self.model_type} table, first '{extra[0]}'",
                    where=where,
                    fix="is config.json the one these weights were saved with?",
                )
            )
        return found

    def tied_aliases(self, config: Mapping[str, Any]) -> dict[str, str]:
        """Alias -> weight, for the names that this configuration's files may hold a second time."""
        table_names = {row.name for row in self.rows if row.when is None or row.when(config)}
        return {alias: target for alias, target in self.aliases.items() if alias not in table_names}

    def is_ignored(self, name: str) -> bool:
        """Whether a name in a file is a buffer that no model reads."""
        return any(pattern.search(name) for pattern in self._ignored)

    def stack(self, name: str) -> Stack:
        """The stack called `name`; ConfigError when there is none."""
        for stack in self.stacks:
            if stack.name == name:
                return stack
        raise ConfigError(
            fault(
                f"{self.model_type} has no stack '{name}'",
                expected=f"one of {', '.join(stack.name for stack in self.stacks)}",
            )
        )

    @cached_property
    def _ignored(self) -> list[re.Pattern[str]]:
        return [re.compile(pattern) for pattern in self.ignored]

    def _forms(self, name: str) -> list[str]:
        forms = [name]
        if self.prefix:
            forms.append(name.removeprefix(self.prefix) if name.startswith(self.prefix) else self.prefix + name)
        return forms

    def _add(
        self,
        found: dict[str, Tensor],
        row: Row,
        config: Mapping[str, Any],
        sizes: Mapping[str, int],
        prefix: str,
        stack: Stack | None,
        layer: int | None,
    ) -> None:
        if stack is None and row.when is not None and not row.when(config):
            return
        short = [label.strip() for label in row.axes.split(",")]
        shape = tuple(axes.size(label, _Sizes(sizes)) for label in short)
        full = tuple(self._full(label, stack, layer) for label in short)
        name = prefix + row.name
        found[name] = Tensor(name, shape, full, row.kind, stack.name if stack else None, layer)

    def _full(self, label: str, stack: Stack | None, layer: int | None) -> str:
        if stack is None:
            return label

        def name(match: re.Match[str]) -> str:
            unit = match.group(0)
            if unit not in LAYER_UNITS:
                return unit
            shared = f"{stack.name}.{unit}"
            return shared if shared in self.shared_units else f"{stack.name}.{layer}.{unit}"

        return re.sub(r"[a-z_]+", name, label)

    def _renumber_lists(
        self,
        result: dict[str, Any],
        config: Mapping[str, Any],
        old: Mapping[str, int],
        new: Mapping[str, int],
        keep_layers: Mapping[str, Sequence[int]],
    ) -> None:
        stack = self.stacks[-1]
        before, after = old[stack.size], new[stack.size]
        kept = keep_layers.get(stack.name)
        if kept is None:
            kept = range(after) if after <= before else None
        for key in self.per_layer:
            values = config.get(key)
            if isinstance(values, list) and len(values) == before and after != before:
                if kept is None:
                    raise ConfigError(
                        fault(
                            f"'{key}' has one entry per layer and cannot be made longer", found=before, expected=after
                        )
                    )
                result[key] = [values[index] for index in kept]
        window = config.get("max_window_layers")
        if isinstance(window, int) and config.get("use_sliding_window") and kept is not None:
            result["max_window_layers"] = sum(1 for index in kept if index < window)


class _Sizes(dict[str, int]):
    """Sizes looked up by unit name."""

    def __missing__(self, unit: str) -> int:
        return self[UNIT_SIZES[unit]]


def of(config: Mapping[str, Any]) -> Family:
    """The family of a configuration, by its `model_type`; InputError says what to write for an unknown one."""
    model_type = config.get("model_type")
    if not isinstance(model_type, str):
        raise InputError(fault("no 'model_type'", where="config.json", expected="a Hugging Face configuration"))
    known = names()
    if model_type.replace("_", "-") not in known:
        near = lookup.did_you_mean(model_type, known)
        place = f"models/families/{model_type.replace('-', '_')}.py"
        raise InputError(
            fault(
                f"unknown architecture '{model_type}'",
                where="config.json",
                expected=f"one of {', '.join(known)}",
                fix=f"write its table of axes in {place} and prove it with 'penjing stage verify-family'"
                + (f" ({near})" if near else ""),
            )
        )
    family = lookup.module(FAMILIES, model_type.replace("_", "-"), what="architecture").FAMILY
    assert isinstance(family, Family)
    return family


def names() -> list[str]:
    """The model types that have a table."""
    return lookup.names(FAMILIES)
