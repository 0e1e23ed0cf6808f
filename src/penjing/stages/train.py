"""Train a checkpoint on tokens: from nothing, further, after pruning, or from a teacher."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from penjing.config import parse
from penjing.contract import CHECKPOINT, TOKENS, Estimate, Inputs, Job
from penjing.errors import ConfigError, InputError, fault
from penjing.files import hash_tree, read_json
from penjing.objectives.stream import StreamConfig
from penjing.train.config import PLAIN_CHUNK, TrainConfig
from penjing.train.layout import check as check_layout

VERSION = 1
INPUTS = {"checkpoint": CHECKPOINT, "tokens": TOKENS + "*", "teacher": CHECKPOINT + "?", "held_out": TOKENS + "?",
          "reference": CHECKPOINT + "?"}
"""`reference`: the model whose losses d-ul2 measures the denoisers against, usually the one before the first cut; it is
measured once, on the batches that the shares are moved by, and takes the place of `reference_losses`."""
OUTPUT = CHECKPOINT


class Config(TrainConfig, StreamConfig):
    """How long and how to train, and how tokens become batches, in one list of settings."""


def run(config: Config, inputs: Inputs, out: Path, job: Job) -> dict[str, Any]:
    """A checkpoint and train.json; goes on from out/state after an interruption, bit for bit."""
    # Threads that spin while they wait made training six times slower on a busy two-core machine. Read when torch loads.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    processes = config.parallel.world
    if processes == 1 or "RANK" in os.environ:
        return carry_out(config, inputs, out, job)
    _check(config, inputs)  # before any process is started
    from penjing.train.launch import launch
    from penjing.train.loop import figures_of

    spec = {"config": config.model_dump(mode="json"), "out": str(out), "metrics": job.metrics and str(job.metrics),
            "tensorboard": job.tensorboard,
            "inputs": {name: [str(path) for path in value] if isinstance(value, list | tuple) else value and str(value)
                       for name, value in inputs.items()}}
    launch(spec, processes=processes, job=job, threads=config.threads)
    return figures_of(out)


def carry_out(config: Config, inputs: Inputs, out: Path, job: Job) -> dict[str, Any]:
    """`run` in this process, which is one of those that torchrun or `train.launch` started, or the only one."""
    from penjing.objectives.stream import build_stream
    from penjing.train.held_out import open_held_out
    from penjing.train.loop import train

    _check(config, inputs)
    stream = build_stream(_part(config, StreamConfig), inputs["tokens"])
    rows = read_json(inputs["checkpoint"] / "config.json").get("vocab_size", stream.vocab_size)
    if stream.vocab_size > rows:
        raise InputError(fault("the tokens are of a larger vocabulary than the checkpoint", where=inputs["checkpoint"],
                               found=f"{rows} rows for {stream.vocab_size} ids", fix="tokenise with this checkpoint's "
                               "tokenizer, or extend its vocabulary first"))
    held_out = validation = None
    decoder_only = config.architecture == "decoder"
    if config.objective == "d-ul2" and inputs.get("held_out") is not None:
        validation = build_stream(_part(config, StreamConfig), inputs["held_out"])
    elif config.objective == "d-ul2" and config.held_out_percent:
        kept_apart = _part(config, StreamConfig).model_copy(update={"part": "held-out"})
        validation = build_stream(kept_apart, inputs["tokens"])
    if inputs.get("held_out") is not None and decoder_only:
        held_out = open_held_out(inputs["held_out"], sequence_length=config.sequence_length, vocab_size=rows)
    figures: dict[str, Any] = {}
    if inputs.get("reference") is not None and validation is not None:
        losses = measured_losses(config, inputs["reference"], validation)
        stream.config = stream.config.model_copy(update={"reference_losses": tuple(losses)})
        figures["reference_losses"] = [round(loss, 4) for loss in losses]
    identity = {name: hash_tree(path, ignore=frozenset({"stage.json"})) for name, path in _paths(inputs)}
    return figures | train(_part(config, TrainConfig), checkpoint=inputs["checkpoint"], stream=stream, out=out, job=job,
                           teacher=inputs.get("teacher"), held_out=held_out, validation=validation, identity=identity)


def measured_losses(config: TrainConfig, model: Path, validation: Any) -> list[float]:
    """What `model` loses on each of the seven denoisers, on the first `reweigh_batches` batches of the held-out stream."""
    import torch

    from penjing.train import model as models
    from penjing.train.held_out import denoiser_losses

    device = torch.device("cpu")
    product = models.PRODUCTS[models.resolve_precision(config.precision, device)]
    objective = models.Objective(models.load(model), config, product=product)
    return denoiser_losses(objective, validation, batches=config.reweigh_batches, device=device)


def work(spec: Mapping[str, Any]) -> None:
    """What one worker of `train.launch`, torchrun or srun does: the run of `spec` {"config", "inputs", "out", "metrics"}."""
    out = Path(spec["out"])
    metrics = spec.get("metrics")
    for folder in (out / "state", *([Path(metrics).parent] if metrics else [])):  # started by hand, nobody has made them
        folder.mkdir(parents=True, exist_ok=True)
    job = Job(metrics=Path(metrics) if metrics else None, tensorboard=bool(spec.get("tensorboard")),
              stop=(out / "state" / "stop").exists)
    inputs = {name: [Path(path) for path in value] if isinstance(value, list) else None if value is None else Path(value)
              for name, value in spec["inputs"].items()}
    carry_out(parse(Config, dict(spec["config"]), where="train"), inputs, out, job)


def price(config: Config, inputs: Inputs) -> Estimate:
    """FLOPs of the tokens (and a third of the teacher's), memory of one process, size of the result."""
    from penjing.models.cost import count_parameters, flops_per_token, training_memory_bytes

    model = inputs["checkpoint"].model
    parameters = inputs["checkpoint"].parameters
    if model is None:
        return Estimate(tokens=float(config.tokens), parameters=parameters, vocab_size=inputs["checkpoint"].vocab_size,
                        disk_bytes=None if parameters is None else 4.0 * parameters)
    check_layout(config.parallel, model, batch_rows=config.batch_rows, micro_rows=config.micro_rows,
                 sequence_length=config.sequence_length)
    parameters = count_parameters(model)
    flops = config.tokens * flops_per_token(model, sequence_length=config.sequence_length)
    teacher = inputs.get("teacher")
    if teacher is not None and teacher.model is not None:
        flops += config.tokens * flops_per_token(teacher.model, sequence_length=config.sequence_length) / 3
    ways = config.parallel
    rows = config.micro_rows or max(1, 16384 // config.sequence_length)
    tokens = min(rows, config.batch_rows) * config.sequence_length
    memory = training_memory_bytes(model, tokens_per_step=tokens, sequence_length=config.sequence_length,
                                   recompute=config.recompute != "none")
    memory -= 8.0 * model.get("vocab_size", 0) * max(0, tokens - (config.loss_chunk_tokens or PLAIN_CHUNK))  # logits are made in chunks
    held = 16.0 * parameters  # weights, gradients and two moments in 32 bits
    memory = held / (ways.world / ways.replicate) + (memory - held) / (ways.context * ways.tensor)
    memory = max(memory, 4.0 * parameters)  # the main process holds the whole when it exports
    return Estimate(flops=flops, memory_bytes=memory + 4e8, disk_bytes=4.0 * parameters, tokens=float(config.tokens),
                    parameters=float(parameters), vocab_size=model.get("vocab_size"), model=model)


def _check(config: Config, inputs: Inputs) -> None:
    described = read_json(inputs["checkpoint"] / "config.json")
    check_layout(config.parallel, described, batch_rows=config.batch_rows, micro_rows=config.micro_rows,
                 sequence_length=config.sequence_length)
    limit = described.get("max_position_embeddings") or described.get("max_seq_length")
    if bool(described.get("is_encoder_decoder")) != (config.architecture == "encoder-decoder"):
        raise ConfigError(fault("the stream is for another kind of model", where="architecture", found=config.architecture,
                                expected="encoder-decoder" if described.get("is_encoder_decoder") else "decoder"))
    if limit and config.sequence_length > limit:
        raise ConfigError(fault("rows are longer than the model's positions", where="sequence_length",
                                found=config.sequence_length, expected=f"at most {limit} (max_position_embeddings)"))
    if inputs.get("reference") is not None and config.objective != "d-ul2":
        raise ConfigError(fault("only d-ul2 has a use for a reference model", where="objective", found=config.objective,
                                fix="leave the input 'reference' out"))
    if config.distil is not None and inputs.get("teacher") is None:
        raise ConfigError(fault("distil is set but there is no teacher", fix="give the stage an input named teacher"))


def _part(config: Config, kind: type[Any]) -> Any:
    return parse(kind, {name: getattr(config, name) for name in kind.model_fields}, where="train")


def _paths(inputs: Inputs) -> list[tuple[str, Path]]:
    found: list[tuple[str, Path]] = []
    for name, value in inputs.items():
        for number, path in enumerate(value if isinstance(value, list | tuple) else [value]):
            if path is not None:
                found.append((f"{name}/{number}", Path(path)))
    return found
