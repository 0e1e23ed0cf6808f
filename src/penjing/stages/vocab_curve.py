"""OpenBA's trade-off curve for a model: vocabulary size against parameters, coverage, fertility and bits per byte, per language.

Bits per byte are those of the pruned model before any recovery training.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from penjing.config import Config as Settings
from penjing.contract import CHECKPOINT, CORPUS, FILES, Estimate, Inputs, Job

VERSION = 2
INPUTS = {"checkpoint": CHECKPOINT, "corpus": CORPUS, "held_out": CORPUS + "?"}
OUTPUT = FILES


class Config(Settings):
    """Settings of vocab-curve."""

    sizes: list[int] | None = None
    """Sizes of the vocabulary to measure; by default `points` of them from all down to a twelfth."""
    points: int = Field(default=8, ge=2)
    """Number of sizes when none are given."""
    method: Literal["leaf", "closure"] = "leaf"
    """As in prune-vocab."""
    measure_characters: int = Field(default=20_000, ge=0)
    """Characters of each language on which fertility and bits per byte are measured; 0 leaves bits per byte out."""
    context_length: int = Field(default=256, ge=2)
    """Tokens the model sees at a time when bits per byte are measured."""


def run(config: Config, inputs: Inputs, out: Path, job: Job) -> dict[str, Any]:
    """Write curve.json and curve.svg; the table as figures."""
    from penjing.data.engine import stop_if_asked
    from penjing.files import write_json, write_text
    from penjing.models.checkpoint import open_checkpoint
    from penjing.models.family import of
    from penjing.tokenizer.apply import Rows, apply_plan, check_rows, parameters_before_after
    from penjing.tokenizer.change import forget
    from penjing.tokenizer.count import count_corpus
    from penjing.tokenizer.curve import drawing, point, sizes_for
    from penjing.tokenizer.inits import measured_texts
    from penjing.tokenizer.prune import check_size, planned, removal_order
    from penjing.tokenizer.read import read_vocabulary
    from penjing.tokenizer.stored import stored_ids

    checkpoint: Path = inputs["checkpoint"]
    vocabulary = read_vocabulary(checkpoint)
    settings = open_checkpoint(checkpoint).config
    check_rows(vocabulary, of(settings).sizes(settings)["vocab"], checkpoint)
    counts = count_corpus(checkpoint, inputs["corpus"], job=job, state=out / "state", label="count tokens")
    order = removal_order(vocabulary, counts.all_tokens(), method=config.method, keep=stored_ids(checkpoint, vocabulary.ids))
    texts = measured_texts(inputs["held_out"] or inputs["corpus"], characters=config.measure_characters or 20_000)
    scored = bool(config.measure_characters) and not settings.get("is_encoder_decoder")
    points = []
    for size in sizes_for(order, config.sizes, config.points):
        stop_if_asked(job, "vocabulary curve")
        check_size(vocabulary, order, size)
        item = point(vocabulary, order, size, counts.tokens, texts)
        item["parameters"] = parameters_before_after(settings, size)["after"]
        if scored:
            trial = out / "state" / f"size-{size}"
            apply_plan(planned(vocabulary, order, size, counts.tokens), vocabulary, checkpoint, trial, rows=Rows())
            item["bits_per_byte"] = _bits(trial, texts, config.context_length)
            shutil.rmtree(trial)
        points.append(item)
        job.record(size=size)
    write_json(out / "curve.json", {"version": 1, "points": points})
    write_text(out / "curve.svg", drawing(points))
    forget(out / "state")
    return {"vocab_before": vocabulary.total, "smallest": order.smallest, "curve": points}


def _bits(checkpoint: Path, texts: Mapping[str, list[str]], context_length: int) -> dict[str, float]:
    from penjing.evaluate.perplexity import document_losses, summarise
    from penjing.models.checkpoint import load_model
    from penjing.tokenizer.encode import load_encoder

    model, encoder = load_model(checkpoint), load_encoder(checkpoint)
    start = encoder.bos_id if encoder.bos_id is not None else encoder.eos_id or 0
    return {lang: round(summarise(document_losses(model, encoder, own, context_length=context_length, start_id=start),
                                  resamples=1).bits_per_byte, 5) for lang, own in sorted(texts.items())}


def price(config: Config, inputs: Mapping[str, Any]) -> Estimate:
    """The model is loaded once per size when bits per byte are measured."""
    model = inputs["checkpoint"]
    return Estimate(memory_bytes=1e9 + 4.0 * (model.parameters or 0), disk_bytes=1e6)
