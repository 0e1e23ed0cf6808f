"""A checkpoint made into what this process trains: cut, sped up and sharded as the layout says, with its optimizer.

The order is fixed: pipeline, 8-bit products, tensor parallel, activation checkpointing, compile, FSDP2.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from penjing.train import distributed, light, model, optim, pipeline, tensor
from penjing.train.config import TrainConfig
from penjing.train.distributed import World
from penjing.train.memory import keep_freed_memory
from penjing.train.outline import Outline


@dataclass(frozen=True)
class Assembled:
    """The model as one process holds it."""

    models: dict[int, nn.Module]
    """The whole model under 0, or this process's stages of it by number."""
    objective: Any
    """From a part of a batch to its losses: a model.Objective, sharded or not, or a pipeline.Pipeline."""
    parameters: dict[str, nn.Parameter]
    """What this process trains, under the names of the whole model."""
    own: dict[str, nn.Parameter]
    """What it answers for in norms and states: of tables held at both ends of a pipeline, the first end's."""
    twins: dict[str, nn.Parameter]
    """Tables that the other end of the pipeline holds too: their gradients are summed."""
    partial: dict[str, nn.Parameter]
    """Parameters used for this process's heads only: their gradients are summed over the tensor-parallel processes."""
    optimizer: torch.optim.Optimizer
    precision: str
    shape: dict[str, Any]
    """config.json of the whole model."""
    total: int
    """Parameters of the whole model."""
    trained: int
    """Of these, how many are trained."""


def assemble(config: TrainConfig, world: World, *, checkpoint: Path, teacher: Path | None) -> Assembled:
    """Load `checkpoint` and lay it out; ConfigError for a layout that the model or the settings cannot have."""
    precision = model.resolve_precision(config.precision, world.device)
    product = model.PRODUCTS[precision]
    unread: Outline | None = None
    whole: Any
    if world.size == 1:
        whole = model.load(checkpoint)
    else:
        whole, unread = model.load_outline(checkpoint)
    whole.train()
    shape = whole.config.to_dict()
    chosen = optim.choose_trainable(whole, config)
    total, trained = sum(p.numel() for p in whole.parameters()), sum(p.numel() for p in chosen.values())
    config = config.settled(world.device.type, total)
    models: dict[int, nn.Module] = {0: whole}
    twins: set[str] = set()
    if config.parallel.pipeline > 1:
        models, twins = pipeline.split(whole, world, trained=set(chosen))
    taught = model.load(teacher).to(world.device) if teacher is not None and world.is_last_stage else None
    if taught is not None and world.device.type == "cuda":
        light.lighten_on_gpu(taught, product, whole=True)
        distributed.speed_up(taught, config.model_copy(update={"recompute": "none"}))
    if world.device.type == "cpu" and not config.compile:
        for one in (*models.values(), *([taught] if taught is not None else [])):
            light.lighten(one, product=product)
    objective, partial = _lay_out(models, config, world, taught, product, unread)
    if unread is not None:
        unread.close()
    if world.device.type == "cpu":
        keep_freed_memory()
    named = {name: parameter for one in models.values() for name, parameter in one.named_parameters()}
    parameters = {name: named[name] for name in chosen if name in named}
    optimizer = optim.build_optimizer(parameters, config)
    if isinstance(objective, model.Objective) and objective.copies is not None:
        objective.copies.follow(optimizer)
    return Assembled(
        models, objective, parameters, precision=precision, shape=shape, total=total, trained=trained,
        own={name: parameter for name, parameter in parameters.items() if name not in twins or world.pipeline_rank == 0},
        twins={name: parameter for name, parameter in parameters.items() if name in twins},
        partial={name: parameter for name, parameter in parameters.items() if name in partial},
        optimizer=optimizer)


def _read(one: nn.Module, unread: Outline | None, world: World) -> None:
    if unread is not None:
        unread.watch(one)
        unread.fill(one, world.device)


def _lay_out(models: dict[int, nn.Module], config: TrainConfig, world: World, teacher: nn.Module | None,
             product: torch.dtype | None, unread: Outline | None) -> tuple[Any, set[str]]:
    """One module to losses, and the names of parameters whose gradients are partial. `unread`: what is still to be read of them."""
    sharded = world.copies > 1
    wire = product if sharded and product is not None else torch.float32
    place = tensor.placement_of(world.parallel.shard * world.parallel.context)
    stages: dict[int, pipeline.Stage] = {}
    partial: set[str] = set()
    for number, one in models.items():
        last = number == world.stages - 1
        gpu, alone = world.device.type == "cuda", not sharded and world.parallel.pipeline == world.parallel.tensor == 1
        objective = model.Objective(one, config, teacher=teacher if last else None, product=product, autocast=not sharded)
        root: nn.Module = objective
        if world.parallel.pipeline > 1:
            root = stages[number] = pipeline.Stage(objective, first=number == 0, last=last, wire=wire)
        if config.fp8:
            light.multiply_in_8_bits(one, world.device)
        partial |= tensor.cut(one, world)
        if not sharded:
            _read(one, unread, world)
            one.to(world.device)
        if gpu:
            light.lighten_on_gpu(one, product, whole=alone)
        if gpu and alone:
            objective.keep_sums()
        distributed.speed_up(one, config)
        distributed.shard(one, root, world, config, product, placement=place)
        if sharded:  # a device never holds more than its shares
            _read(one, unread, world)
    if not stages:
        return root, partial
    hidden_size = next(iter(models.values())).config.hidden_size  # type: ignore[union-attr]
    return pipeline.Pipeline(stages, world, hidden_size, wire), partial  # type: ignore[arg-type]
