"""Can this model be laid out over processes like that? Asked before any process is started; no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from penjing.errors import ConfigError, PenjingError, fault
from penjing.models.family import of
from penjing.train.config import ParallelConfig

PIPELINED = frozenset({"llama", "mistral", "qwen2", "qwen3", "glm", "glm4", "gpt2", "codegen", "opt", "openba"})
"""Architectures that `parallel.pipeline` can cut into stretches of layers."""
TENSOR_CUT = frozenset({"llama", "mistral", "qwen2", "qwen3", "glm", "glm4", "gpt2", "openba", "opt"})
"""Architectures whose matrices `parallel.tensor` can cut."""


def check(parallel: ParallelConfig, model: Mapping[str, Any], *, batch_rows: int | None = None,
          micro_rows: int | None = None, sequence_length: int | None = None) -> None:
    """ConfigError when the model of this config.json, or its batches, cannot be cut as `parallel` says."""
    kind = model.get("model_type")
    if parallel.pipeline > 1 and kind not in PIPELINED:
        raise ConfigError(fault(f"a pipeline cannot be made of {kind}", where="parallel.pipeline",
                                expected=f"one of {', '.join(sorted(PIPELINED))}", fix="use parallel.shard or parallel.tensor"))
    if parallel.tensor > 1 and kind not in TENSOR_CUT:
        raise ConfigError(fault(f"tensor parallelism does not know how to cut {kind}", where="parallel.tensor",
                                expected=f"one of {', '.join(sorted(TENSOR_CUT))}", fix="use parallel.shard"))
    if parallel.context > 1 and model.get("is_encoder_decoder"):
        raise ConfigError(fault("rows of an encoder-decoder cannot be cut over processes", where="parallel.context",
                                fix="use parallel.shard or parallel.tensor"))
    sizes = _sizes(model)
    for unit in ("heads", "kv_heads", "ffn"):
        if sizes.get(unit, parallel.tensor) % parallel.tensor:
            raise ConfigError(fault("tensor parallelism does not divide the model", where="parallel.tensor", found=parallel.tensor,
                                    expected=f"a divisor of {sizes[unit]} {unit}"))
    stages = parallel.pipeline * parallel.pipeline_chunks
    layers = sizes.get("layers", sizes.get("encoder_layers", stages) + sizes.get("decoder_layers", 0))
    if layers < stages:
        raise ConfigError(fault("more pipeline stages than layers", where="parallel.pipeline",
                                found=f"{stages} = pipeline {parallel.pipeline} x pipeline_chunks {parallel.pipeline_chunks}",
                                expected=f"at most {layers}"))
    ranks = parallel.replicate * parallel.shard
    if batch_rows is not None and batch_rows % ranks:
        raise ConfigError(fault("the rows of a batch do not divide among the processes", where="batch_rows", found=batch_rows,
                                expected=f"a multiple of {ranks} = parallel.replicate x parallel.shard"))
    if batch_rows is not None and parallel.pipeline > 1:
        pipeline_rows(batch_rows // ranks, micro_rows, pipeline=parallel.pipeline, chunks=parallel.pipeline_chunks, ranks=ranks)
    if sequence_length is not None:
        check_rows(parallel.context, sequence_length)


def pipeline_rows(share: int, micro_rows: int | None, *, pipeline: int, chunks: int, ranks: int) -> int:
    """Rows per micro-batch of a process's `share`: as given, or such that twice as many micro-batches as processes flow.

    ConfigError unless micro-batches are equal, at least as many as processes, and a multiple of them when the schedule is interleaved.
    """
    fitting = [size for size in range(share, 0, -1)
               if share % size == 0 and share // size >= pipeline and (chunks == 1 or share // size % pipeline == 0)]
    if not fitting or (micro_rows is not None and micro_rows not in fitting):
        what = f"a multiple of {pipeline}" if chunks > 1 else f"at least {pipeline}"
        raise ConfigError(fault("the micro-batches do not suit the pipeline", where="batch_rows" if not fitting else "micro_rows",
                                found=f"{share} rows a process" + (f" in parts of {micro_rows}" if micro_rows else ""),
                                expected=f"{what} equal micro-batches for parallel.pipeline {pipeline}",
                                fix=f"set batch_rows to a multiple of {2 * pipeline * ranks}" if not fitting
                                else f"set micro_rows to one of {', '.join(map(str, fitting))}"))
    return micro_rows or next((size for size in fitting if share // size >= 2 * pipeline), fitting[-1])


def check_rows(contexts: int, sequence_length: int) -> None:
    """ConfigError unless every process can have two equal chunks of a row."""
    if contexts > 1 and sequence_length % (2 * contexts):
        raise ConfigError(fault("rows cannot be cut into equal parts", where="parallel.context", found=contexts,
                                expected=f"a divisor of half of sequence_length {sequence_length}"))


def _sizes(model: Mapping[str, Any]) -> dict[str, int]:
    try:
        return of(model).sizes(model)
    except PenjingError:  # an architecture without a table can be trained, if not cut
        return {}
