"""Which places of each unit stay: by a metric's scores, or at random as OpenBA-V2 did it.

A metric is a function `(context, units) -> scores`: for each unit one number per place, higher stays. `random` and
`magnitude` live here, those that need data in `prune/importance.py`, yours at `package.module:function`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from penjing import lookup
from penjing.config import generator
from penjing.contract import Job
from penjing.errors import ConfigError, fault
from penjing.models import axes
from penjing.models.checkpoint import Checkpoint
from penjing.models.family import Family, of
from penjing.prune.plan import unit_sizes

Scores = dict[str, np.ndarray]


@dataclass(frozen=True)
class Context:
    """What a metric may look at."""

    checkpoint: Checkpoint
    seed: int = 0
    samples: Sequence[Mapping[str, np.ndarray]] = ()
    """Calibration sequences as keyword arguments of the model's forward, one sequence each: `input_ids` int64 [length],
    and for an encoder-decoder `labels`. Empty when the stage was given no data.
    """
    work: Path | None = None
    """A directory for what does not fit in memory; None means no disk may be used."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Further settings of the metric."""
    job: Job | None = None
    """Whose wish to stop long measurements follow."""

    @property
    def config(self) -> dict[str, Any]:
        return self.checkpoint.config

    @property
    def family(self) -> Family:
        return of(self.checkpoint.config)


Metric = Callable[[Context, Mapping[str, int]], Scores]


def metric(name: str) -> Metric:
    """The metric called `name`; ConfigError when there is none."""
    if ":" in name:
        return lookup.attribute(name, what="importance metric")
    here = {"random": random, "magnitude": magnitude}
    if name in here:
        return here[name]
    known = sorted({*here, *data_metrics()})
    if name not in known:
        raise ConfigError(
            fault(
                f"unknown importance metric '{name}'",
                expected=f"one of {', '.join(known)}, or package.module:function",
                fix=lookup.did_you_mean(name, known),
            )
        )
    return lookup.attribute(f"penjing.prune.importance:{name.replace('-', '_')}", what="importance metric")


def data_metrics() -> dict[str, str]:
    """The metrics in `prune/importance.py` as users write them, with their first lines, read without importing them."""
    import ast

    file = Path(__file__).with_name("importance.py")
    if not file.is_file():
        return {}
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return {
        node.name.replace("_", "-"): (ast.get_docstring(node) or "").partition("\n")[0]
        for node in tree.body
        if isinstance(node, ast.FunctionDef)
        and not node.name.startswith("_")
        and [argument.arg for argument in node.args.args[:2]] == ["context", "units"]
    }


def random(context: Context, units: Mapping[str, int]) -> Scores:
    """A random order of the places of each unit: one for hidden, one per layer for heads and for FFN neurons.

    Self- and cross-attention of a layer share their heads, as in OpenBA-V2 (section 4.1.2). Source: uniform sampling
    without replacement. Differs: each unit has its own generator, so the draw of one does not depend on the others.
    """
    found = {}
    for unit, size in units.items():
        name = unit.replace(".cross_head", ".head")
        found[unit] = generator(context.seed, "prune", "random", name).permutation(size).astype(np.float64)
    return found


def magnitude(context: Context, units: Mapping[str, int]) -> Scores:
    """L2 norm of all weights that belong to a place, over every matrix that has the unit; biases and norms do not
    count.
    """
    family, source = context.family, context.checkpoint
    files = family.match(source.config, source.names, where=source.path)
    sizes = unit_sizes(source.config)
    squares = {unit: np.zeros(size) for unit, size in units.items()}
    for tensor in family.tensors(source.config).values():
        if len(tensor.shape) != 2 or tensor.kind == "bias-table":
            continue
        wanted = [(dim, unit) for dim, label in enumerate(tensor.axes) for unit in axes.units(label) if unit in squares]
        if not wanted:
            continue
        sums = [np.zeros(length) for length in tensor.shape]
        start = 0
        for block in source.row_chunks(files[tensor.name]):
            values = np.square(to_float64(source, files[tensor.name], block))
            sums[0][start : start + len(values)] = values.sum(1)
            sums[1] += values.sum(0)
            start += len(values)
        for dim, unit in wanted:
            owner = axes.owners(tensor.axes[dim], unit, sizes)
            assert owner is not None
            inside = owner >= 0
            squares[unit] += np.bincount(owner[inside], weights=sums[dim][inside], minlength=squares[unit].size)
    return {unit: np.sqrt(values) for unit, values in squares.items()}


def to_float64(source: Checkpoint, name: str, block: np.ndarray) -> np.ndarray:
    """Storage bits of a weight's rows as float64, so that sums do not depend on how the file was read."""
    from penjing.models.checkpoint import to_float

    return to_float(block, source.dtype(name)).astype(np.float64)


def select(
    config: Mapping[str, Any], sizes: Mapping[str, int], scores: Mapping[str, np.ndarray], *, force: bool = False
) -> dict[str, np.ndarray]:
    """Places that stay for each unit that shrinks to `sizes`, best scores first to stay, ascending; ties go to the
    lower place. Heads whose number means something (ALiBi) are not chosen by score unless `force` says so.

    With grouped queries whole groups are chosen first, by the score of their key/value head, then the best heads of
    each group.
    """
    family = of(config)
    old = family.sizes(config)
    keep: dict[str, np.ndarray] = {}
    for unit, size in family.units(config).items():
        name = family.size_of_unit(unit)
        if unit.endswith(".head") and "kv_heads" in old:
            continue
        if sizes.get(name, size) < size and unit.endswith(".head") and family.kept_heads is not None and not force:
            keep[unit] = np.array(family.kept_heads(size, sizes[name]))
        elif sizes.get(name, size) < size:
            keep[unit] = best(scores[unit], sizes[name])
    if "kv_heads" in old and (sizes.get("heads", old["heads"]), sizes.get("kv_heads", old["kv_heads"])) != (
        old["heads"],
        old["kv_heads"],
    ):
        for unit in family.units(config):
            if unit.endswith(".kv_head"):
                head_unit = unit.removesuffix("kv_head") + "head"
                groups = keep.get(unit, np.arange(old["kv_heads"]))
                keep[head_unit] = _heads_of_groups(scores.get(head_unit), groups, old, sizes.get("heads", old["heads"]))
    return keep


def shrinking_units(config: Mapping[str, Any], sizes: Mapping[str, int]) -> dict[str, int]:
    """The units that a cut to `sizes` must choose from, with their present sizes."""
    family = of(config)
    old = family.sizes(config)
    changed = {name for name, value in sizes.items() if value != old[name]}
    if changed & {"heads", "kv_heads"}:
        changed |= {"heads", "kv_heads"} & set(old)
    return {unit: size for unit, size in family.units(config).items() if family.size_of_unit(unit) in changed}


def best(scores: np.ndarray, count: int) -> np.ndarray:
    """Places of the `count` highest scores, ascending; NaN counts as lowest."""
    order = np.argsort(-np.nan_to_num(np.asarray(scores, np.float64), nan=-np.inf), kind="stable")
    return np.sort(order[:count])


def _heads_of_groups(scores: np.ndarray | None, groups: np.ndarray, old: Mapping[str, int], heads: int) -> np.ndarray:
    per_group = old["heads"] // old["kv_heads"]
    count = heads // len(groups)
    values = np.zeros(old["heads"]) if scores is None else np.asarray(scores, np.float64)
    parts = [group * per_group + best(values[group * per_group : (group + 1) * per_group], count) for group in groups]
    return np.concatenate(parts)
