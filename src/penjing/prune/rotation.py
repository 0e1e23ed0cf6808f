"""One rotation of the residual stream, folded into the weights, so that the first places hold nearly all of it.

Cutting hidden by choosing places loses much, whatever the metric, because what a model writes is spread over all places.
A norm without its scale does not change under a rotation of the stream; so each norm's scale is folded into the
projections that read it, the embedding and every projection that writes are turned by Q, every one that reads by Q
transposed, and the model computes what it did. With Q the principal directions of the normalised stream (as in SliceGPT,
arXiv 2401.15024, but one Q for the whole model) the first places carry most of the variance, and the cut keeps the first.
The result is an ordinary checkpoint of the same architecture.

Differs: SliceGPT turns each block by its own matrix and needs shortcut matrices and model classes of its own.

LayerNorm also takes the mean away. Q then keeps the direction of ones where it is and lays the principal directions on
Helmert's basis, whose first k-1 vectors live in the first k places and have mean zero there; the others are constant on
them, which the norm takes away. So a cut to any k is again a plain LayerNorm model.

Legend: D hidden, k hidden after the cut, Q [k, D].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from penjing.errors import ConfigError, fault
from penjing.models.checkpoint import Checkpoint
from penjing.models.family import Family, Tensor
from penjing.prune.arrays import as_array
from penjing.prune.calibrate import Calibration
from penjing.prune.importance import calibration_of
from penjing.prune.plan import Operation, PruningPlan, build, source_names, with_operations
from penjing.prune.width import Context

MIN_SCALE = 1e-4
"""Smallest norm scale, relative to the norm's root mean square, through which a LayerNorm's shift is carried."""


def rotate(plan: PruningPlan, source: Checkpoint, calibration: Calibration, *, hidden: int, untie: bool = False,
           rescale: bool = True, covariance: np.ndarray | None = None) -> PruningPlan:
    """The plan with hidden cut to `hidden` places of the rotated stream, as operations that `apply` carries out.

    A tied head cannot take the last norm's scale: ConfigError unless `untie` allows a head of its own. ConfigError also
    where the stream is not only read through norms (`why_not`). `rescale` corrects each norm for the energy that the cut
    takes away; at full width it changes nothing.
    """
    family, config = plan.family, plan.source_config
    reason = why_not(family, config, calibration)
    if reason:
        raise ConfigError(fault(f"{family.model_type} cannot be rotated: {reason}", fix="choose hidden by a metric instead"))
    size = family.sizes(config)["hidden"]
    if not 1 <= hidden <= size:
        raise ConfigError(fault("hidden cannot be cut to this size", found=hidden, expected=f"1 to {size}"))
    tied = family.tied(config)
    size_of_head = family.sizes(config)["vocab"] * (family.sizes(config).get("embed") or hidden)
    if tied and not untie:
        raise ConfigError(fault("input and output embedding are one weight, and a rotation would give the output its own",
                                fix=f"set untie: true ({size_of_head:,} more parameters) or choose hidden by a metric"))
    basis = principal(calibration.arrays["hidden.covariance"] if covariance is None else covariance,
                      centred=family.norm == "layer")[:hidden].astype(np.float32)
    overrides = {"tie_word_embeddings": False} if tied else {}
    cut = build(config, layers=plan.layers, keep={**plan.keep, "hidden": np.arange(hidden)}, source=plan.source,
                operations=plan.operations, made_from=plan.made_from, how={**plan.how, "hidden": "rotation"},
                history=plan.history, overrides={**_extra(plan), **overrides})
    head = _head_name(family, cut.target_config)
    made_from = {head: _embedding(family, config)} if tied else {}
    cut = with_operations(cut, {}, made_from=made_from)
    return with_operations(cut, _operations(cut, source, calibration, basis, head, rescale=rescale))


def pca(plan: PruningPlan, context: Context) -> PruningPlan:
    """Cut hidden along the principal directions of the normalised stream (`rotation: pca` of the prune stage).

    Of the context's settings it reads `untie`: true gives a tied model a head of its own.
    """
    places = plan.keep.get("hidden")
    if places is None:
        return plan
    return rotate(plan, context.checkpoint, calibration_of(context), hidden=len(places),
                  untie=bool(context.settings.get("untie", False)))


def auto(plan: PruningPlan, context: Context) -> PruningPlan:
    """`pca` where the model allows it; otherwise (a tied head, a norm on the stream itself) the places that the metric chose.

    `plan.json` says which it was: `how.hidden` is `rotation` or absent.
    """
    family, config = plan.family, plan.source_config
    tied = family.tied(config) and not context.settings.get("untie", False)
    if tied or why_not(family, config, calibration_of(context)) is not None:
        return plan
    return pca(plan, context)


def selection(plan: PruningPlan, context: Context) -> PruningPlan:
    """No rotation: the places that the metric chose, with norms rescaled by what was measured (`rotation: selection`)."""
    return scale_norms(plan, calibration_of(context))


def why_not(family: Family, config: Mapping[str, Any], calibration: Calibration) -> str | None:
    """The reason why a model's stream cannot be rotated, or None."""
    for norm, readers in calibration.readers.items():
        if not readers:
            return f"'{norm}' is not read by projections alone (a norm on the stream itself, or after a block)"
    table = family.tensors(config)
    seen = {name for readers in calibration.readers.values() for name in readers} | set(calibration.writers)
    for name, tensor in table.items():
        if tensor.kind == "linear" and "hidden" in tensor.axes and name not in seen:
            return f"'{name}' reads the stream without a norm"
    return None


def principal(covariance: np.ndarray, *, centred: bool) -> np.ndarray:
    """Rows are the new places' directions [D, D], orthogonal, by falling variance; with `centred` in Helmert's order."""
    size = len(covariance)
    covariance = covariance.astype(np.float64)
    if not centred:
        _, vectors = np.linalg.eigh(covariance)
        return _signed(vectors.T[::-1])
    helmert = np.zeros((size, size))
    helmert[0] = 1 / np.sqrt(size)
    for row in range(1, size):
        helmert[row, :row] = 1 / np.sqrt(row * (row + 1))
        helmert[row, row] = -row / np.sqrt(row * (row + 1))
    free = helmert[1:]  # a basis of everything orthogonal to ones
    _, vectors = np.linalg.eigh(free @ covariance @ free.T)
    directions = _signed(vectors.T[::-1]) @ free
    return helmert.T @ np.concatenate([helmert[:1], directions])


def norm_scale(sample: np.ndarray, basis: np.ndarray, *, centred: bool) -> float:
    """What a norm's scale must be multiplied with after the cut: mean of |kept part| / |whole| times sqrt(D/k)."""
    sample_ND = sample.astype(np.float64)
    kept_Nk = sample_ND @ basis.astype(np.float64).T
    if centred:
        sample_ND = sample_ND - sample_ND.mean(-1, keepdims=True)
        kept_Nk = kept_Nk - kept_Nk.mean(-1, keepdims=True)
    ratio_N = np.linalg.norm(kept_Nk, axis=-1) / np.maximum(np.linalg.norm(sample_ND, axis=-1), 1e-12)
    return float(ratio_N.mean() * np.sqrt(basis.shape[1] / basis.shape[0]))


def scale_norms(plan: PruningPlan, calibration: Calibration) -> PruningPlan:
    """The plan with every norm's scale corrected for a selection of hidden by a metric.

    Only for places chosen for what they carry: for places chosen at random the correction makes the loss worse.
    """
    places = plan.keep.get("hidden")
    if places is None:
        return plan
    family = plan.family
    basis = np.eye(family.sizes(plan.source_config)["hidden"], dtype=np.float32)[places]
    found: dict[str, Sequence[Operation]] = {}
    for name, old in source_names(plan).items():
        if f"{old}.sample" in calibration.arrays:
            scale = norm_scale(calibration.arrays[f"{old}.sample"], basis, centred=family.norm == "layer")
            found[name] = [Operation("multiply", value=scale)]
    return with_operations(plan, found)


def basis_of(plan: PruningPlan) -> np.ndarray:
    """Q of a plan: [k, D] such that the cut model's stream stands for Q times the source's."""
    size = plan.family.sizes(plan.source_config)["hidden"]
    name = _embedding(plan.family, plan.source_config)
    for item in plan.operations.get(name, ()):
        if item.kind == "map" and item.array is not None:
            return as_array(item.array)
    return np.eye(size, dtype=np.float32)[plan.keep.get("hidden", np.arange(size))]


def head_factor(plan: PruningPlan) -> float:
    """What a head of its own must be multiplied with, where T5 scales the logits by hidden ** -0.5 before or after the cut."""
    family = plan.family
    factor = 1.0
    if family.scaled_head(plan.source_config):
        factor *= family.sizes(plan.source_config)["hidden"] ** -0.5
    if family.scaled_head(plan.target_config):
        factor /= family.sizes(plan.target_config)["hidden"] ** -0.5
    return float(factor)


def _signed(rows: np.ndarray) -> np.ndarray:
    """Each row with its largest entry positive, so that the same covariance gives the same basis everywhere."""
    largest = rows[np.arange(len(rows)), np.abs(rows).argmax(1)]
    return rows * np.where(largest < 0, -1.0, 1.0)[:, None]


def _operations(plan: PruningPlan, source: Checkpoint, calibration: Calibration, basis: np.ndarray, head: str, *,
                rescale: bool) -> dict[str, list[Operation]]:
    family = plan.family
    centred = family.norm == "layer"
    table = family.tensors(plan.source_config)
    files = family.match(plan.source_config, source.names, where=source.path)
    norm_of = {name: norm for norm, names in calibration.readers.items() for name in names}
    found: dict[str, list[Operation]] = {}
    news = source_names(plan)
    for new, old in news.items():
        tensor = table[old]
        if new == head:
            norm = norm_of.get(head) or norm_of[old]
            found[new] = [Operation("scale", 1, _scale_of(source, files, norm, centred)), Operation("map", 1, basis)]
            factor = head_factor(plan)
            if factor != 1.0:
                found[new].append(Operation("multiply", value=factor))
        elif tensor.kind == "norm" and tensor.axes == ("hidden",):
            scale = norm_scale(calibration.arrays[f"{old}.sample"], basis, centred=centred) \
                if rescale and f"{old}.sample" in calibration.arrays else 1.0
            found[new] = [Operation("replace", array=np.full(len(basis), scale, np.float32))]
        elif tensor.axes == ("hidden",) and _norm_shift(old, table):
            found[new] = [Operation("replace", array=_shift(source, files, old, basis))]
        elif old in norm_of:
            dim = _hidden_dim(tensor)
            found[new] = [Operation("scale", dim, _scale_of(source, files, norm_of[old], centred)), Operation("map", dim, basis)]
        else:
            found[new] = [Operation("map", dim, basis) for dim, label in enumerate(tensor.axes) if label == "hidden"]
    return {name: items for name, items in found.items() if items}


def _scale_of(source: Checkpoint, files: Mapping[str, str], norm: str, centred: bool) -> np.ndarray:
    scale = source.read_float(files[norm]).astype(np.float32)
    if centred:  # the norm's shift is divided by it
        least = MIN_SCALE * float(np.sqrt(np.mean(np.square(scale))) or 1.0)
        scale = np.where(np.abs(scale) < least, np.where(scale < 0, -least, least), scale).astype(np.float32)
    return scale


def _shift(source: Checkpoint, files: Mapping[str, str], bias: str, basis: np.ndarray) -> np.ndarray:
    """The shift of a cut LayerNorm: readers take scale * Q^T, so it is Q (shift / scale), with no part lost at full width."""
    scale = _scale_of(source, files, bias.removesuffix("bias") + "weight", True)
    return (basis @ (source.read_float(files[bias]) / scale)).astype(np.float32)


def _norm_shift(name: str, table: Mapping[str, Tensor]) -> bool:
    partner = table.get(name.removesuffix("bias") + "weight")
    return name.endswith(".bias") and partner is not None and partner.kind == "norm"


def _hidden_dim(tensor: Tensor) -> int:
    return tensor.axes.index("hidden")


def _head_name(family: Family, config: Mapping[str, Any]) -> str:
    return next(item.name for item in family.vocab_tensors(config) if item.role == "output")


def _embedding(family: Family, config: Mapping[str, Any]) -> str:
    return next(item.name for item in family.vocab_tensors(config) if item.role == "input")


def _extra(plan: PruningPlan) -> dict[str, Any]:
    keys = set(plan.family.keys.values()) | set(plan.family.per_layer)
    return {key: value for key, value in plan.target_config.items()
            if key not in keys and plan.source_config.get(key) != value}
