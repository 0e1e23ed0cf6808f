"""Cut a model in depth and width: plan what stays, then stream the cut checkpoint out of the source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from penjing import console, lookup
from penjing.config import Config as Settings
from penjing.config import generator
from penjing.contract import CHECKPOINT, CORPUS, FILES, TOKENS, Estimate, Inputs, Job
from penjing.errors import ConfigError, InputError, fault
from penjing.files import read_json, write_json
from penjing.models import cost
from penjing.models.checkpoint import Checkpoint, load_model, open_checkpoint
from penjing.models.family import of
from penjing.prune import cut, depth, propose, rules, width
from penjing.prune import plan as plans

VERSION = 1
INPUTS = {"checkpoint": CHECKPOINT, "tokens": TOKENS + "?", "corpus": CORPUS + "?", "plan": FILES + "?"}
OUTPUT = CHECKPOINT

Amount = int | float
Layers = Amount | list[int]


class Config(Settings):
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
    norm_scale: Literal["none", "mask"] = "none"
    """`mask` scales the weights of RMSNorms so that cutting hidden equals masking it exactly."""
    tensor_parallel: int = Field(default=1, ge=1)
    """Ranks that heads and FFN neurons of the result must divide among."""
    multiple_of: dict[str, int] = {}
    """Sizes of the result that must be multiples: {hidden: 128}."""
    force: bool = False
    """Allow cuts that the architecture can say but that change the meaning of what stays (heads under ALiBi)."""
    calibration_samples: int = Field(default=64, ge=1)
    """Sequences taken from the tokens or corpus input."""
    calibration_length: int = Field(default=256, ge=8)
    """Tokens in each."""
    measure: bool = True
    """With data: report the loss before and right after the cut."""
    max_shard_gigabytes: float = Field(default=4.0, gt=0)
    """Largest weight file of the result; an interrupted cut keeps the files it finished."""
    plan_only: bool = False
    """Write plan.json and stop; edit it and give it as the plan input of another prune stage. With `keep` a schedule of
    several stages to the same share is written beside it, in the shape of OpenBA-V2's table.
    """
    seed: int = 0
    """Seed of random choices."""


def run(config: Config, inputs: Inputs, out: Path, job: Job) -> dict[str, Any]:
    with open_checkpoint(inputs["checkpoint"]) as source:
        samples = calibration_samples(config, source, inputs)
        if inputs.get("plan") is not None:
            plan = plans.load(Path(inputs["plan"]))
            measured: dict[str, Any] = {}
        else:
            plan, measured = make_plan(config, source, samples)
        figures = describe(plan) | measured
        if config.plan_only:
            plan.save(out)
            if config.keep is not None:
                figures["schedule"] = schedule(config, source.config)
                write_json(out / "schedule.json", {"version": 1, "stages": figures["schedule"]})
            return figures
        cut.apply(plan, source, out, stop=job.stop, max_shard_bytes=int(config.max_shard_gigabytes * 1e9))
        if samples and config.measure:
            figures["loss_before"] = depth.loss(_placed(config, source.path), samples)
            figures["loss_after"] = depth.loss(_placed(config, out), samples)
            job.record(loss_before=figures["loss_before"], loss_after=figures["loss_after"])
        return figures


def price(config: Config, inputs: Mapping[str, Estimate]) -> Estimate:
    given = inputs["checkpoint"]
    if given.model is None:
        return Estimate(notes=("the model is not known beforehand",))
    sizes, kept = wanted(config, given.model)
    counts = {of(given.model).stack(name).size: len(item) if isinstance(item, list) else item for name, item in kept.items()}
    rules.check(
        given.model,
        {**sizes, **counts},
        tensor_parallel=config.tensor_parallel,
        multiple_of=config.multiple_of,
        force=config.force,
    )
    model = of(given.model).resize(given.model, {**sizes, **counts})
    parameters = cost.count_parameters(model)
    bytes_each = (given.disk_bytes / given.parameters) if given.disk_bytes and given.parameters else 4.0
    needs_model = config.depth_rule not in ("spaced", "list") or config.importance not in ("random", "magnitude")
    memory = 3e8 + (4.0 * cost.count_parameters(given.model) if needs_model else 0.0)
    return Estimate(
        memory_bytes=memory,
        disk_bytes=parameters * bytes_each,
        parameters=parameters,
        vocab_size=of(model).sizes(model)["vocab"],
        model=model,
    )


def importance_names() -> list[tuple[str, str]]:
    """(name, first line of its docstring) of every importance metric, without importing the ones that need torch."""
    found = [("random", _first_line(width.random.__doc__)), ("magnitude", _first_line(width.magnitude.__doc__))]
    return found + list(width.data_metrics().items())


def schedule(config: Config, model: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Stages that lead to `keep` one after another, depth before width, with parameters, FLOPs and recovery tokens of
    each.
    """
    proposals = propose.propose(model, config.keep or 1.0, tensor_parallel=config.tensor_parallel, multiple_of=config.multiple_of)
    return [item.as_json() for item in proposals]


def make_plan(
    config: Config, source: Checkpoint, samples: Sequence[Mapping[str, np.ndarray]]
) -> tuple[plans.PruningPlan, dict[str, Any]]:
    """The plan that the settings ask for, and what was measured to make it."""
    family = of(source.config)
    family.match(source.config, source.names, where=source.path)
    sizes, layers = wanted(config, source.config, history=_origins(source))
    counts = {family.stack(name).size: len(item) if isinstance(item, list) else item for name, item in layers.items()}
    limits: dict[str, Any] = {"tensor_parallel": config.tensor_parallel, "multiple_of": config.multiple_of, "force": config.force}
    rules.check(source.config, {**sizes, **counts}, **limits)
    kept, measured = _choose_layers(config, source, layers, samples)
    metric = width.metric(config.importance)
    units = width.shrinking_units(source.config, sizes)
    scores: width.Scores = {}
    if units:
        context = width.Context(source, seed=config.seed, samples=samples, settings=config.importance_settings)
        scores = metric(context, units)
    keep = width.select(source.config, sizes, scores)
    identity = {"headers": plans.header_hash(source)}
    if config.depth_rule not in ("spaced", "list") or config.importance != "random":
        identity["content"] = source.fingerprint()
    how = {
        "depth_rule": config.depth_rule,
        "importance": config.importance,
        "seed": config.seed,
        "norm_scale": config.norm_scale,
        "rotation": config.rotation,
        "refit": config.refit,
    }
    plan = plans.build(source.config, layers=kept, keep=keep, source=identity, how=how, history=_history(source))
    plan = plans.corrected(plan, norm_scale=config.norm_scale)
    context = width.Context(source, seed=config.seed, samples=samples, settings=config.importance_settings)
    if config.rotation != "none":
        plan = _place(config.rotation, "penjing.prune.rotation")(plan, context)
    if config.refit:
        plan = lookup.attribute("penjing.prune.refit:refit", what="refit")(plan, context)
    return plan, measured


def wanted(
    config: Config, model: Mapping[str, Any], *, history: Mapping[str, Sequence[int]] | None = None
) -> tuple[dict[str, int], dict[str, int | list[int]]]:
    """Width sizes, and for each stack the number of layers that stay or their list, as the settings ask."""
    family = of(model)
    old = family.sizes(model)
    stack_sizes = {stack.size for stack in family.stacks}
    asked = {name: getattr(config, name) for name in ("hidden", "ffn", "heads", "kv_heads") if getattr(config, name) is not None}
    if config.keep is not None:
        if asked or config.layers is not None or config.drop_layers is not None:
            raise ConfigError(
                fault(
                    "'keep' finds the sizes itself",
                    found=f"keep and {', '.join(asked) or 'layers'}",
                    fix="give either keep or sizes",
                )
            )
        sizes = propose.sizes_for(
            model, config.keep, axes=config.keep_axes, tensor_parallel=config.tensor_parallel, multiple_of=config.multiple_of
        )
        counts: dict[str, int | list[int]] = {stack.name: sizes.get(stack.size, old[stack.size]) for stack in family.stacks}
        return {name: value for name, value in sizes.items() if name not in stack_sizes}, counts
    unknown = set(asked) - set(old)
    if unknown:
        raise ConfigError(fault(f"{family.model_type} has no size '{sorted(unknown)[0]}'", expected=f"one of {', '.join(old)}"))
    sizes = rules.complete(model, {name: _count(value, old[name], name) for name, value in asked.items()})
    return sizes, _wanted_layers(config, model, history or {})


def calibration_samples(config: Config, source: Checkpoint, inputs: Inputs) -> list[dict[str, np.ndarray]]:
    """Sequences of token ids from the tokens or corpus input; none when neither was given.

    An encoder-decoder reads the first half of a sequence and is scored on the second.
    """
    length, count = config.calibration_length, config.calibration_samples
    if inputs.get("tokens") is not None:
        from penjing.objectives.tokens import open_tokens

        tokens = open_tokens(Path(inputs["tokens"]))
        stream = np.concatenate([np.asarray(tokens.shard(name).ids[: 64 * length * count]) for name in sorted(tokens.sources)])
    elif inputs.get("corpus") is not None:
        stream = _encode_corpus(Path(inputs["corpus"]), source.path, 8 * length * count)
    else:
        return []
    vocab = of(source.config).sizes(source.config)["vocab"]
    if stream.size and int(stream.max()) >= vocab:
        raise InputError(
            fault(
                "calibration tokens are of another tokenizer",
                found=f"id {int(stream.max())}",
                expected=f"ids below the model's {vocab}",
            )
        )
    if stream.size < 2 * length:
        raise InputError(fault("too few calibration tokens", found=int(stream.size), expected=f"at least {2 * length}"))
    windows = stream.size // length
    starts = generator(config.seed, "prune", "calibration").permutation(windows)[:count] * length
    samples = []
    for start in np.sort(starts):
        ids = stream[start : start + length].astype(np.int64)
        half = length // 2
        samples.append({"input_ids": ids[:half], "labels": ids[half:]} if of(source.config).seq2seq else {"input_ids": ids})
    return samples


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


def _wanted_layers(config: Config, model: Mapping[str, Any], history: Mapping[str, Sequence[int]]) -> dict[str, int | list[int]]:
    family = of(model)
    old = family.sizes(model)
    if config.layers is not None and config.drop_layers is not None:
        raise ConfigError(fault("'layers' and 'drop_layers' both say which layers stay", fix="give one of them"))
    asked = config.layers if config.layers is not None else config.drop_layers
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
        if config.layer_numbers == "original":
            listed = depth.renumber(value, history.get(name, range(count)), base=config.layer_base)
        else:
            listed = [number - config.layer_base for number in value]
        found[name] = depth.kept(count, listed) if config.layers is None else sorted(listed)
    return found


def _choose_layers(
    config: Config, source: Checkpoint, layers: Mapping[str, int | list[int]], samples: Sequence[Mapping[str, np.ndarray]]
) -> tuple[dict[str, list[int]], dict[str, Any]]:
    family = of(source.config)
    old = family.sizes(source.config)
    kept = {name: item for name, item in layers.items() if isinstance(item, list)}
    drops = {name: old[family.stack(name).size] - item for name, item in layers.items() if not isinstance(item, list)}
    drops = {name: number for name, number in drops.items() if number}
    measured: dict[str, Any] = {}
    if drops:
        if config.depth_rule == "list":
            raise ConfigError(
                fault(
                    "depth_rule: list needs the layers themselves",
                    found=f"layers: {dict(layers)}",
                    fix="give layers or drop_layers as lists, or another depth_rule",
                )
            )
        model = None if config.depth_rule == "spaced" else _placed(config, source.path)
        chosen, measured = depth.choose(
            config.depth_rule,
            source.config,
            drops,
            model=model,
            samples=samples,
            note=console.say,
            shortlist=config.depth_shortlist,
        )
        kept |= {name: depth.kept(old[family.stack(name).size], gone) for name, gone in chosen.items()}
    return kept, measured


def _encode_corpus(corpus: Path, model: Path, wanted_tokens: int) -> np.ndarray:
    from penjing.data.document import open_corpus
    from penjing.tokenizer.encode import load_encoder

    encoder = load_encoder(model)
    parts: list[np.ndarray] = []
    have = 0
    for batch in open_corpus(corpus).batches(columns=["text"], rows=256):
        for ids in encoder.encode_batch(batch.column("text").to_pylist()):
            parts.append(np.asarray(ids, np.int64))
            if encoder.eos_id is not None:
                parts.append(np.array([encoder.eos_id]))
            have += len(ids) + 1
        if have >= wanted_tokens:
            break
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)


def _count(value: Amount, size: int, what: str) -> int:
    """A number of places from a whole number, or from a share below 1 of `size`."""
    if isinstance(value, float) and 0 < value < 1:
        return max(1, round(value * size))
    if value != int(value) or value < 1:
        raise ConfigError(fault(f"wrong {what}", found=value, expected="a whole number above 0 or a share below 1"))
    return int(value)


def _placed(config: Config, path: Path) -> Any:
    """A model on the device that the settings name."""
    import torch

    device = config.device if config.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    return load_model(path).to(device)


def _place(name: str, package: str) -> Any:
    return lookup.attribute(name if ":" in name else f"{package}:{name.replace('-', '_')}", what="rotation")


def _history(source: Checkpoint) -> tuple[Mapping[str, Any], ...]:
    file = source.path / plans.PLAN_FILE
    if not file.is_file():
        return ()
    value = read_json(file)
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


def _first_line(text: str | None) -> str:
    return (text or "").strip().partition("\n")[0]
