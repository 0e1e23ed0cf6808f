"""What a stage is given and what it gives back: the one contract between the recipe and the stages.

A stage is a module `penjing.stages.<verb>` with

    VERSION = 1                                   raised when the same settings would give another result
    INPUTS = {"corpus": CORPUS, "teacher": CHECKPOINT + "?", "models": CHECKPOINT + "*"}
    OUTPUT = CORPUS
    class Config(penjing.config.Config): ...
    def run(config, inputs, out, job) -> dict     figures of the result, JSON values, shown by `status` and the report
    def price(config, inputs) -> Estimate         what it will cost, from estimates of the inputs; touches no data
    def external(config) -> list[Path]            optional: files outside the run that the settings name; their content counts

`inputs` maps each name to a Path, to None for an absent optional (`?`) input, to a list of paths for a many (`*`) input.
`out` exists, is empty on a fresh start, and holds what an interrupted run left behind otherwise: the stage goes on from it.
Everything written into `out` is the artefact and must be a function of (config, inputs) alone; what is not (timings, logs)
goes under the names in `VOLATILE`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from penjing.rundir import VOLATILE

__all__ = ["CHECKPOINT", "CORPUS", "FILES", "SCORES", "TOKENIZER", "TOKENIZER_FILES", "TOKENS", "VOLATILE", "Estimate", "Inputs", "Job"]

CORPUS = "corpus"
"""Directory with corpus.json and Parquet shards."""
TOKENS = "tokens"
"""Directory with tokens.json and Megatron .bin/.idx shards."""
TOKENIZER = "tokenizer"
"""Directory with a tokenizer, one of TOKENIZER_FILES or a checkpoint that has one."""
TOKENIZER_FILES = ("*.model", "tokenizer.json*", "merges.txt", "*.tiktoken*", "vocab.txt")
"""Files one of which a tokenizer directory has: SentencePiece, tokenizers, GPT-2's pair, tiktoken ranks, WordPiece."""
CHECKPOINT = "checkpoint"
"""Hugging Face directory: config.json, safetensors, tokenizer files."""
SCORES = "scores"
"""Directory with scores.json."""
FILES = "files"
"""Any directory."""


Inputs = Mapping[str, Any]


@dataclass(frozen=True)
class Job:
    """How a stage is to be carried out; never part of its fingerprint, never changes its result."""

    workers: int = 1
    """Processes or threads for data work."""
    engine: str = "local"
    """`local`, `thread`, `ray` or `slurm`: where shard functions run."""
    metrics: Path | None = None
    """The stage's metrics.jsonl; None keeps no record."""
    tensorboard: bool = False
    stop: Callable[[], bool] = field(default=lambda: False)
    """True once the user asked to stop; long loops look at it, save their state and raise Interrupted."""

    def record(self, **figures: object) -> None:
        """Append one line to metrics.jsonl: wall time in seconds since the epoch and the given figures, units in the keys."""
        if self.metrics is None:
            return
        line = json.dumps({"time_s": round(time.time(), 3), **figures}, ensure_ascii=False)
        with self.metrics.open("a", encoding="utf-8") as file:
            file.write(line + "\n")


@dataclass(frozen=True)
class Estimate:
    """The price of a stage and the size of what it makes. None means unknown beforehand, never zero."""

    flops: float | None = None
    memory_bytes: float | None = None
    """Peak memory of one process."""
    disk_bytes: float | None = None
    """Size of the artefact."""
    documents: float | None = None
    text_bytes: float | None = None
    tokens: float | None = None
    """Tokens in the artefact, or trained on by the stage."""
    parameters: float | None = None
    vocab_size: int | None = None
    model: Mapping[str, Any] | None = None
    """The config.json the resulting checkpoint will have, as far as known."""
    notes: tuple[str, ...] = ()
