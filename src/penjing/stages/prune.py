"""Cut a model in depth and width: plan what stays, then stream the cut checkpoint out of the source."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

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

VERSION = 1
INPUTS = {"checkpoint": CHECKPOINT, "tokens": TOKENS + "?", "corpus": CORPUS + "?", "plan": FILES + "?"}
OUTPUT = CHECKPOINT


class Config(Request):
    """What to cut, how to measure it and how to write it."""

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
            figures["loss_before"] = depth.loss(placed(config, source.path), samples)
            figures["loss_after"] = depth.loss(placed(config, out), samples)
            job.record(loss_before=figures["loss_before"], loss_after=figures["loss_after"])
        return figures


def price(config: Config, inputs: Mapping[str, Estimate]) -> Estimate:
    given = inputs["checkpoint"]
    if given.model is None:
        return Estimate(notes=("the model is not known beforehand",))
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
