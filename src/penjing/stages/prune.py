"""Cut a model in depth and width: plan what stays, then stream the cut checkpoint out of the source."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from penjing import console
from penjing.config import generator
from penjing.contract import CHECKPOINT, CORPUS, FILES, TOKENS, Estimate, Inputs, Job
from penjing.errors import InputError, fault
from penjing.files import write_json
from penjing.models import cost
from penjing.models.checkpoint import Checkpoint, open_checkpoint
from penjing.models.family import of
from penjing.prune import cut, depth, width
from penjing.prune import plan as plans
from penjing.prune.request import Request, check_sizes, describe, make_plan, placed, schedule

VERSION = 2
INPUTS = {"checkpoint": CHECKPOINT, "tokens": TOKENS + "?", "corpus": CORPUS + "?", "plan": FILES + "?"}
OUTPUT = CHECKPOINT
MEASURED_ON = 16
"""Sequences kept apart for the loss before and after."""


class Config(Request):
    """What to cut, how to measure it and how to write it.

    `auto` is what `bench/prune_quality.py` found best among what the inputs allow: with text (tokens or corpus) measured choices and
    a refit, without text OpenBA-V2's spaced layers and random places. It stays with the latter where importance is set to random or
    magnitude, or norm_scale to mask.
    """

    depth_rule: Literal["auto", "spaced", "block-influence", "greedy", "best", "list"] = "auto"  # type: ignore[assignment]
    """How layers are chosen; auto: best with text, block-influence for models over 2 GB in float32, spaced without text."""
    importance: str = "auto"
    """How places are chosen: auto (output-energy with text, random without), random (as OpenBA-V2), magnitude, a metric that
    needs data, or package.module:function."""
    rotation: str = "auto"
    """auto: pca with text where the model allows it; pca, selection, none, or package.module:function."""
    refit: bool | Literal["auto"] = "auto"  # type: ignore[assignment]
    """Refit the cut model's projections in closed form on the text; auto: with text, where the architecture allows it."""
    calibration_samples: int = Field(default=64, ge=1)
    """Sequences taken from the tokens or corpus input."""
    calibration_length: int = Field(default=256, ge=8)
    """Tokens in each."""
    measure: bool = True
    """With data: report the loss before and right after the cut, on up to 16 sequences that nothing was chosen or fitted by."""
    max_shard_gigabytes: float = Field(default=4.0, gt=0)
    """Largest weight file of the result; an interrupted cut keeps the files it finished."""
    plan_only: bool = False
    """Write plan.json and stop; edit it and give it as the plan input of another prune stage. With `keep` a schedule of
    several stages to the same share is written beside it, in the shape of OpenBA-V2's table.
    """


def run(config: Config, inputs: Inputs, out: Path, job: Job) -> dict[str, Any]:
    figures = _carry_out(config, inputs, out, job)
    shutil.rmtree(out / "state", ignore_errors=True)
    return figures


def _carry_out(config: Config, inputs: Inputs, out: Path, job: Job) -> dict[str, Any]:
    with open_checkpoint(inputs["checkpoint"]) as source:
        samples, unseen = calibration_samples(config, source, inputs)
        config, optional = decided(config, source.config, text=bool(samples))
        if inputs.get("plan") is not None:
            plan = plans.load(Path(inputs["plan"]))
            measured: dict[str, Any] = {}
        else:
            work = out / "state" if samples else None
            if work is not None:
                work.mkdir(parents=True, exist_ok=True)
            plan, measured = make_plan(config, source, samples, work=work, job=job)
            if optional:
                settings = {**config.importance_settings, "untie": config.untie or bool(config.importance_settings.get("untie"))}
                plan = refitted(plan, width.Context(source, seed=config.seed, samples=samples, work=work, settings=settings, job=job))
        figures = describe(plan) | measured
        if config.plan_only:
            plan.save(out)
            if config.keep is not None:
                figures["schedule"] = schedule(config, source.config)
                write_json(out / "schedule.json", {"version": 1, "stages": figures["schedule"]})
            return figures
        cut.apply(plan, source, out, stop=job.stop, max_shard_bytes=int(config.max_shard_gigabytes * 1e9))
        if samples and config.measure:
            figures["measured_on"] = "other text" if unseen else "calibration text"
            figures["loss_before"] = depth.loss(placed(config, source.path), unseen or samples)
            figures["loss_after"] = depth.loss(placed(config, out), unseen or samples)
            job.record(loss_before=figures["loss_before"], loss_after=figures["loss_after"])
        return figures


def decided(config: Config, model: Mapping[str, Any], *, text: bool) -> tuple[Config, bool]:
    """The settings with every `auto` decided, and whether a refit is to be tried on top that may turn out not to be possible."""
    measured = text and config.importance not in ("random", "magnitude") and config.norm_scale != "mask"
    small = 4.0 * cost.count_parameters(model) < 2e9
    decisions = {
        "depth_rule": "spaced" if not measured else "best" if small else "block-influence",
        "importance": "output-energy" if measured else "random",
        "rotation": "auto" if measured else "none",
        "refit": False,
    }
    values = {name: value for name, value in decisions.items() if getattr(config, name) == "auto"}
    return config.model_copy(update=values), measured and config.refit == "auto"


def refitted(plan: plans.PruningPlan, context: width.Context) -> plans.PruningPlan:
    """The plan refitted; as it is, with a note, where the architecture does not allow it. A plan that cuts nothing is left alone."""
    from penjing.prune.refit import refit

    if plan.source_config == plan.target_config:
        return plan
    try:
        plan = refit(plan, context, job=context.job)
    except InputError as problem:
        console.say(f"not refitted: {problem}")
        return plan
    return replace(plan, how={**plan.how, "refit": True})


def price(config: Config, inputs: Mapping[str, Estimate]) -> Estimate:
    given = inputs["checkpoint"]
    if given.model is None:
        return Estimate(notes=("the model is not known beforehand",))
    config, _ = decided(config, given.model, text=any(inputs.get(name) is not None for name in ("tokens", "corpus")))
    model = check_sizes(config, given.model)[2]
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


def calibration_samples(
    config: Config, source: Checkpoint, inputs: Inputs
) -> tuple[list[dict[str, np.ndarray]], list[dict[str, np.ndarray]]]:
    """(sequences of token ids from the tokens or corpus input, others to measure the cut on); none when neither was given.

    Of little text a fifth is for measuring, of fewer than five sequences nothing. An encoder-decoder reads the first half of a
    sequence and is scored on the second.
    """
    length, count = config.calibration_length, config.calibration_samples
    if inputs.get("tokens") is not None:
        from penjing.objectives.tokens import open_tokens

        tokens = open_tokens(Path(inputs["tokens"]))
        stream = np.concatenate([np.asarray(tokens.shard(name).ids[: 64 * length * count]) for name in sorted(tokens.sources)])
    elif inputs.get("corpus") is not None:
        stream = _encode_corpus(Path(inputs["corpus"]), source.path, 8 * length * count)
    else:
        return [], []
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
    apart = min(MEASURED_ON, windows // 5)
    order = generator(config.seed, "prune", "calibration").permutation(windows) * length
    chosen, rest = order[: min(count, windows - apart)], order[min(count, windows - apart) :][:apart]
    seq2seq = of(source.config).seq2seq
    return _sequences(stream, chosen, length, seq2seq), _sequences(stream, rest, length, seq2seq)


def _sequences(stream: np.ndarray, starts: np.ndarray, length: int, seq2seq: bool) -> list[dict[str, np.ndarray]]:
    rows = [stream[start : start + length].astype(np.int64) for start in np.sort(starts)]
    half = length // 2
    return [{"input_ids": ids[:half], "labels": ids[half:]} if seq2seq else {"input_ids": ids} for ids in rows]


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


def _first_line(text: str | None) -> str:
    return (text or "").strip().partition("\n")[0]
