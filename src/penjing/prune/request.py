"""What a person may ask of a cut, and the plan that follows from it: sizes found, checked, layers and places chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from penjing import console, lookup
from penjing.config import Config
from penjing.contract import Job
from penjing.errors import ConfigError, fault
from penjing.files import read_json
from penjing.models import cost
from penjing.models.checkpoint import Checkpoint, load_model, open_checkpoint
from penjing.models.family import of
from penjing.prune import depth, propose, rules, width
from penjing.prune import plan as plans

Amount = int | float
Layers = Amount | list[int]


class Request(Config):
    """What to cut and by which rule. A size is a whole number of places that stay, or a share of them below 1."""

    keep: float | None = Field(default=None, gt=0, lt=1)
    """Share of the parameters that stays; sizes are found for it. Not together with sizes."""
    keep_axes: Literal["both", "width", "depth"] = "both"
    """What `keep` may shrink."""
    layers: Layers | dict[str, Layers] | None = None
    """Layers that stay: how many, what share, or which (from 0); for an encoder-decoder by `encoder` and `decoder`."""
    drop_layers: list[int] | dict[str, list[int]] | None = None
    """Layers that go, by number, instead of `layers`."""
    layer_numbers: Literal["current", "original"] = "current"
    """Whether listed layers are numbered as in this model or as in the model it was first cut from."""
    layer_base: Literal[0, 1] = 0
    """The number of the first layer in lists."""
    hidden: Amount | None = None
    """Places of the residual stream that stay."""
    ffn: Amount | None = None
    """FFN neurons that stay in every layer."""
    heads: Amount | None = None
    """Query heads that stay in every layer."""
    kv_heads: Amount | None = None
    """Key/value heads (groups) that stay in every layer; they follow from heads when not given."""
    depth_rule: Literal["spaced", "block-influence", "greedy", "best", "list"] = "spaced"
    """How layers are chosen; all but spaced and list measure the model on the tokens or corpus input."""
    depth_shortlist: int | None = Field(default=None, ge=1)
    """`greedy` and `best` try only this many layers, those of least block influence; all when not given."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the model is measured; auto takes a GPU when there is one."""
    importance: str = "random"
    """How places are chosen: random (as OpenBA-V2), magnitude, a metric that needs data, or package.module:function."""
    importance_settings: dict[str, Any] = {}
    """Further settings of the metric."""
    rotation: str = "none"
    """`none`, or a basis that the residual stream is turned into before hidden is cut (see docs), or
    package.module:function.
    """
    refit: bool = False
    """Refit output projections in closed form on the calibration data after the cut."""
    untie: bool = False
    """Give a model whose output head is its embedding a head of its own, as a rotation needs (and a refit can use); the plan
    says what it costs.
    """
    norm_scale: Literal["none", "mask", "calibrated"] = "none"
    """`mask` scales the weights of RMSNorms so that cutting hidden equals masking it exactly; `calibrated` scales every norm by
    what was measured of the places that stay, for places chosen for what they carry (a rotation contains it, a refit replaces it).
    """
    tensor_parallel: int = Field(default=1, ge=1)
    """Ranks that heads and FFN neurons of the result must divide among."""
    multiple_of: dict[str, int] = {}
    """Sizes of the result that must be multiples: {hidden: 128}."""
    force: bool = False
    """Allow cuts that the architecture can say but that change the meaning of what stays: under ALiBi, heads by importance instead
    of those whose slopes the smaller model has.
    """
    seed: int = 0
    """Seed of random choices."""


def make_plan(
    request: Request,
    source: Checkpoint,
    samples: Sequence[Mapping[str, np.ndarray]],
    *,
    work: Path | None = None,
    job: Job | None = None,
) -> tuple[plans.PruningPlan, dict[str, Any]]:
    """The plan that the settings ask for, and what was measured to make it.

    `work` is where a calibration is kept and streams and new weights wait (the system's temporary directory when it is None).
    """
    family = of(source.config)
    family.match(source.config, source.names, where=source.path)
    if request.norm_scale == "mask" and request.rotation not in ("none", "selection"):
        raise ConfigError(
            fault("norm_scale: mask makes a cut equal masking, which a rotation is not", found=f"rotation: {request.rotation}",
                  fix="give one of them; a rotation scales its norms itself")
        )
    sizes, layers, _ = check_sizes(request, source.config, history=_origins(source))
    settings = {**request.importance_settings, "untie": request.untie or bool(request.importance_settings.get("untie"))}
    context = width.Context(source, seed=request.seed, samples=samples, work=work, settings=settings, job=job)
    kept, measured = _choose_layers(request, context, layers)
    metric = width.metric(request.importance)
    units = width.shrinking_units(source.config, sizes)
    scores: width.Scores = {}
    if units:
        scores = metric(context, units)
    keep = width.select(source.config, sizes, scores, force=request.force)
    identity = {"headers": plans.header_hash(source)}
    if request.depth_rule not in ("spaced", "list") or request.importance != "random" or _looks(request):
        identity["content"] = source.fingerprint()
    how = {
        "depth_rule": request.depth_rule,
        "importance": request.importance,
        "seed": request.seed,
        "norm_scale": request.norm_scale,
        "rotation": request.rotation,
        "refit": request.refit,
        **({"untie": True} if request.untie else {}),
        **({"force": True} if request.force else {}),
    }
    plan = plans.build(source.config, layers=kept, keep=keep, source=identity, how=how, history=_history(source), force=request.force)
    plan = plans.corrected(plan, norm_scale=request.norm_scale)
    if request.rotation != "none":
        plan = _place(request.rotation, "penjing.prune.rotation")(plan, context)
    if request.norm_scale == "calibrated" and request.rotation != "selection" and plan.how.get("hidden") != "rotation":
        plan = _place("selection", "penjing.prune.rotation")(plan, context)
    if request.untie:
        plan = plans.untied(plan)
    if request.refit:
        plan = lookup.attribute("penjing.prune.refit:refit", what="refit")(plan, context, job=job)
    return plan, measured


def wanted(
    request: Request, model: Mapping[str, Any], *, history: Mapping[str, Sequence[int]] | None = None
) -> tuple[dict[str, int], dict[str, int | list[int]]]:
    """Width sizes, and for each stack the number of layers that stay or their list, as the settings ask."""
    family = of(model)
    old = family.sizes(model)
    stack_sizes = {stack.size for stack in family.stacks}
    asked = {
        name: getattr(request, name) for name in ("hidden", "ffn", "heads", "kv_heads") if getattr(request, name) is not None
    }
    if request.keep is not None:
        if asked or request.layers is not None or request.drop_layers is not None:
            raise ConfigError(
                fault(
                    "'keep' finds the sizes itself",
                    found=f"keep and {', '.join(asked) or 'layers'}",
                    fix="give either keep or sizes",
                )
            )
        result = _untied(request, model)  # a head of its own counts among what is left
        share = request.keep * cost.count_parameters(model) / cost.count_parameters(result)
        sizes = propose.sizes_for(
            result, share, axes=request.keep_axes, tensor_parallel=request.tensor_parallel, multiple_of=request.multiple_of
        )
        counts: dict[str, int | list[int]] = {stack.name: sizes.get(stack.size, old[stack.size]) for stack in family.stacks}
        return {name: value for name, value in sizes.items() if name not in stack_sizes}, counts
    unknown = set(asked) - set(old)
    if unknown:
        raise ConfigError(fault(f"{family.model_type} has no size '{sorted(unknown)[0]}'", expected=f"one of {', '.join(old)}"))
    sizes = rules.complete(model, {name: _count(value, old[name], name) for name, value in asked.items()})
    return sizes, _wanted_layers(request, model, history)


def check_sizes(
    request: Request, model: Mapping[str, Any], *, history: Mapping[str, Sequence[int]] | None = None
) -> tuple[dict[str, int], dict[str, int | list[int]], dict[str, Any]]:
    """What `wanted` gives, checked against the rules, and the configuration that results; ConfigError with the nearest
    legal sizes.
    """
    sizes, layers = wanted(request, model, history=history)
    family = of(model)
    counts = {family.stack(name).size: len(item) if isinstance(item, list) else item for name, item in layers.items()}
    rules.check(
        model, {**sizes, **counts}, tensor_parallel=request.tensor_parallel, multiple_of=request.multiple_of, force=request.force
    )
    return sizes, layers, family.resize(_untied(request, model), {**sizes, **counts})


def _untied(request: Request, model: Mapping[str, Any]) -> Mapping[str, Any]:
    """The configuration with a head of its own, where one is asked for and there is none."""
    return {**model, "tie_word_embeddings": False} if request.untie and of(model).tied(model) else model


def schedule(request: Request, model: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Stages that lead to `keep` one after another, depth before width, with parameters, FLOPs and recovery tokens of
    each.
    """
    proposals = propose.propose(
        model, request.keep or 1.0, tensor_parallel=request.tensor_parallel, multiple_of=request.multiple_of
    )
    return [item.as_json() for item in proposals]


def describe(plan: plans.PruningPlan) -> dict[str, Any]:
    """Figures of a plan: sizes, parameters and FLOPs before and after, layers dropped."""
    family = plan.family
    before, after = family.sizes(plan.source_config), family.sizes(plan.target_config)
    parameters = [cost.count_parameters(model) for model in (plan.source_config, plan.target_config)]
    flops = [cost.flops_per_token(model, sequence_length=2048) for model in (plan.source_config, plan.target_config)]
    gone = {name: sorted(set(range(before[family.stack(name).size])) - set(kept)) for name, kept in plan.layers.items()}
    return {
        "sizes_before": before,
        "sizes_after": after,
        "parameters_before": parameters[0],
        "parameters_after": parameters[1],
        "kept_share": round(parameters[1] / parameters[0], 6),
        "flops_per_token_before": flops[0],
        "flops_per_token_after": flops[1],
        "layers_dropped": gone,
    }


def placed(request: Request, path: Path) -> Any:
    """A model on the device that the settings name, for the functions of `depth`; one that does not fit is read layer by layer.

    On a GPU it fits when its float32 weights take at most three quarters of what is free; otherwise, and layer by layer, it runs
    on the processor. There the limit is fixed (`layerwise.RESIDENT_BYTES`), so that a result does not depend on the machine.
    """
    import torch

    from penjing.prune import layerwise

    model = open_checkpoint(path).config
    on_gpu = request.device == "cuda" or (request.device == "auto" and torch.cuda.is_available())
    if on_gpu and 4 * cost.count_parameters(model) <= 0.75 * torch.cuda.mem_get_info()[0]:
        return load_model(path).to("cuda")
    return load_model(path) if layerwise.fits(model) else depth.layered(path)


def _wanted_layers(
    request: Request, model: Mapping[str, Any], history: Mapping[str, Sequence[int]] | None
) -> dict[str, int | list[int]]:
    family = of(model)
    old = family.sizes(model)
    if request.layers is not None and request.drop_layers is not None:
        raise ConfigError(fault("'layers' and 'drop_layers' both say which layers stay", fix="give one of them"))
    asked = request.layers if request.layers is not None else request.drop_layers
    if not isinstance(asked, dict):
        if asked is not None and len(family.stacks) > 1:
            raise ConfigError(
                fault(
                    f"{family.model_type} has two stacks",
                    found=f"one value: {asked}",
                    expected=" and ".join(stack.name for stack in family.stacks),
                    fix="write layers: {decoder: 24}",
                )
            )
        asked = {} if asked is None else {family.stacks[0].name: asked}
    found: dict[str, int | list[int]] = {stack.name: old[stack.size] for stack in family.stacks}
    for name, value in asked.items():
        count = old[family.stack(name).size]
        if not isinstance(value, list):
            found[name] = _count(value, count, f"layers of {name}")
            continue
        if request.layer_numbers == "original":
            if history is None:  # beforehand only their number is known
                found[name] = len(value) if request.layers is not None else count - len(value)
                continue
            listed = depth.renumber(value, history.get(name, range(count)), base=request.layer_base)
        else:
            listed = [number - request.layer_base for number in value]
        found[name] = depth.kept(count, listed) if request.layers is None else sorted(listed)
    return found


def _looks(request: Request) -> bool:
    """Whether a setting beside the metric and the depth rule looks at the data."""
    return request.rotation != "none" or request.refit or request.norm_scale == "calibrated"


def _influences(request: Request, context: width.Context) -> dict[str, np.ndarray] | None:
    """Block influences from the calibration that the plan needs anyway; None when it needs none."""
    measured = request.importance in width.data_metrics() or _looks(request)
    if not context.samples or not measured or request.depth_rule in ("spaced", "list"):
        return None
    from penjing.prune.importance import calibration_of

    arrays = calibration_of(context, taylor=request.importance == "taylor").arrays
    return {stack.name: arrays[f"{stack.name}.block_influence"] for stack in context.family.stacks}


def _choose_layers(
    request: Request, context: width.Context, layers: Mapping[str, int | list[int]]
) -> tuple[dict[str, list[int]], dict[str, Any]]:
    source, samples = context.checkpoint, context.samples
    family = of(source.config)
    old = family.sizes(source.config)
    kept = {name: item for name, item in layers.items() if isinstance(item, list)}
    drops = {name: old[family.stack(name).size] - item for name, item in layers.items() if not isinstance(item, list)}
    drops = {name: number for name, number in drops.items() if number}
    measured: dict[str, Any] = {}
    if drops:
        if request.depth_rule == "list":
            raise ConfigError(
                fault(
                    "depth_rule: list needs the layers themselves",
                    found=f"layers: {dict(layers)}",
                    fix="give layers or drop_layers as lists, or another depth_rule",
                )
            )
        influences = _influences(request, context)
        ranked = request.depth_rule == "spaced" or (request.depth_rule == "block-influence" and influences is not None)
        model = None if ranked else placed(request, source.path)
        chosen, measured = depth.choose(
            request.depth_rule,
            source.config,
            drops,
            model=model,
            samples=samples,
            note=console.say,
            shortlist=request.depth_shortlist,
            work=context.work,
            influences=influences,
        )
        kept |= {name: depth.kept(old[family.stack(name).size], gone) for name, gone in chosen.items()}
    return kept, measured


def _count(value: Amount, size: int, what: str) -> int:
    """A number of places from a whole number, or from a share below 1 of `size`."""
    if isinstance(value, float) and 0 < value < 1:
        return max(1, round(value * size))
    if value != int(value) or value < 1:
        raise ConfigError(fault(f"wrong {what}", found=value, expected="a whole number above 0 or a share below 1"))
    return int(value)


def _place(name: str, package: str) -> Any:
    return lookup.attribute(name if ":" in name else f"{package}:{name.replace('-', '_')}", what="rotation")


def _history(source: Checkpoint) -> tuple[Mapping[str, Any], ...]:
    file = source.path / plans.PLAN_FILE
    value = read_json(file) if file.is_file() else {}
    if "source_config" not in value or "layers" not in value:
        return ()
    entry = {
        "source": value.get("source", {}),
        "how": value.get("how", {}),
        "layers": value.get("layers", {}),
        "sizes": of(value["source_config"]).sizes(value["source_config"]),
    }
    return (*value.get("history", ()), entry)


def _origins(source: Checkpoint) -> dict[str, list[int]]:
    """For each stack the numbers that the layers of this model had in the first model of its history."""
    found: dict[str, list[int]] = {}
    for entry in _history(source):
        for name, text in entry.get("layers", {}).items():
            kept = plans.read_runs(text, where=f"{source.path}: history")
            found[name] = [found[name][index] for index in kept] if name in found else kept
    return found
