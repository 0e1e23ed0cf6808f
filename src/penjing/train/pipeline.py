"""Pipeline parallelism: stretches of layers on different processes, micro-batches flowing through them.

A stage is the transformers model itself with everything that is not its own replaced by modules that pass their input on, so its
parameters keep their full names and a state or checkpoint does not know that there ever was a pipeline. Which documents lie where
is known to every process (the batch is a pure function of the step), so only hidden states and their gradients travel. The
schedules are torch's: 1F1B, or interleaved 1F1B when a process holds several stages.

A table shared by input and output lies on the first and on the last process: their gradients are summed, so both copies stay equal.

Shape suffixes: B rows, S positions, H hidden, T = B*S.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from penjing.errors import ConfigError, fault
from penjing.train import layout
from penjing.train.distributed import World
from penjing.train.feed import Part
from penjing.train.loss import Losses
from penjing.train.model import Objective


@dataclass(frozen=True)
class Ends:
    """What stands before and after the layers of an architecture, as attributes of the module that holds them."""

    first: tuple[str, ...]
    """Modules that turn ids into the first hidden states; `stack.name` is below the base model."""
    last: tuple[str, ...]
    layers: str = "layers"
    stack: str = ""


_LLAMA = Ends(("embed_tokens",), ("norm",))
ENDS: Mapping[str, Ends] = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "glm", "glm4"), _LLAMA),
    "gpt2": Ends(("wte", "wpe", "drop"), ("ln_f",), layers="h"),
    "codegen": Ends(("wte", "drop"), ("ln_f",), layers="h"),
    "opt": Ends(("embed_tokens", "embed_positions", "project_in"), ("final_layer_norm", "project_out"), stack="decoder"),
}
"""Architectures whose forward pass adds nothing between the ends and the layers when it is given hidden states instead of ids."""


class Elsewhere(nn.Module):
    """Stands for a layer, norm or dropout that another stage holds."""

    def forward(self, hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        return hidden_states


class Nothing(nn.Module):
    """Stands for a table that another stage holds; adds nothing where its result is added."""

    def forward(self, *_: Any, **__: Any) -> Tensor:
        return torch.zeros(())


def split(model: Any, world: World, *, trained: set[str]) -> tuple[dict[int, Any], set[str]]:
    """This process's stages by number, each the whole model with only its own layers in it. `model` is used up.

    Also the names of parameters that the first and the last stage both hold. ConfigError for an architecture that cannot be
    cut, with fewer layers than stages, or where a process would have nothing to train.
    """
    layout.check(world.parallel, model.config.to_dict())
    ends, count = ENDS[model.config.model_type], world.stages
    stack = _stack(model, ends)
    layers = list(getattr(stack, ends.layers))
    head = model.get_output_embeddings()
    head_name = next(name for name, module in model.named_modules() if module is head)
    tied = head.weight is model.get_input_embeddings().weight
    costs = [sum(parameter.numel() for parameter in layer.parameters()) for layer in layers]
    stretches = stretch(costs, head.weight.numel(), count)
    table = {name for name, parameter in model.named_parameters() if tied and parameter is head.weight}
    _check_work(model, ends, stretches, trained, world)
    kept: dict[str, nn.Module | None] = {name: getattr(stack, name, None) for name in (*ends.first, *ends.last)}
    for name, module in kept.items():
        if module is not None:
            tabular = name in ends.first and isinstance(module, nn.Embedding)
            setattr(stack, name, Nothing() if tabular else Elsewhere())
    setattr(stack, ends.layers, nn.ModuleList(Elsewhere() for _ in layers))
    model.set_submodule(head_name, Nothing())
    found = {}
    for number in range(world.pipeline_rank, count, world.parallel.pipeline):
        stage = copy.deepcopy(model)
        inner = _stack(stage, ends)
        for place in stretches[number]:
            getattr(inner, ends.layers)[place] = layers[place]
        last = number == count - 1
        mine = (*(ends.first if number == 0 else ()), *(ends.last if last else ()))
        for name in mine:
            if kept[name] is not None:
                setattr(inner, name, kept[name])
        if last:
            stage.set_submodule(head_name, head)
            if tied and number:  # so that the parameter is called what it is called elsewhere
                setattr(inner, ends.first[0], kept[ends.first[0]])
        stage.train(model.training)
        found[number] = stage
    return found, table


def stretch(costs: Sequence[int], tail: int, count: int) -> list[range]:
    """Cut layers of these costs into `count` stretches whose dearest, the last with `tail` added, is as cheap as it can be."""
    ends = [0]
    for cost in costs:
        ends.append(ends[-1] + cost)
    size = len(costs)
    best = [[(0.0, 0)] * (size + 1) for _ in range(count + 1)]
    for upto in range(1, size + 1):
        best[1][upto] = (float(ends[upto] + (tail if count == 1 else 0)), 0)
    for stages in range(2, count + 1):
        more = tail if stages == count else 0
        for upto in range(stages, size + 1):
            best[stages][upto] = min((max(best[stages - 1][cut][0], ends[upto] - ends[cut] + more), cut)
                                     for cut in range(stages - 1, upto))
    found, upto = [], size
    for stages in range(count, 0, -1):
        cut = best[stages][upto][1]
        found.append(range(cut, upto))
        upto = cut
    return found[::-1]


class Stage(nn.Module):
    """One stretch of layers: from a micro-batch's number and hidden states to hidden states, or, the last one, to its loss."""

    def __init__(self, objective: Objective, *, first: bool, last: bool, wire: torch.dtype) -> None:
        super().__init__()
        self.objective, self.is_first, self.is_last, self.wire = objective, first, last, wire
        self.parts: list[Part] = []
        self.share = 1.0
        self.losses: dict[int, Losses] = {}

    def forward(self, states: Tensor, *, number: Tensor) -> Tensor:
        at = int(number)
        hidden_BSH = None if self.is_first else states
        if self.is_last:
            losses = self.objective(self.parts[at], hidden_BSH)
            self.losses[at] = Losses(losses.total.detach(), losses.nll_T, losses.distil)
            return losses.total * self.share
        out_BSH = self.objective.hidden(self.parts[at], hidden_BSH).to(self.wire)
        if torch.is_grad_enabled() and not out_BSH.requires_grad:  # nothing up to here is trained
            out_BSH = out_BSH.detach().requires_grad_()
        return out_BSH


class Pipeline(nn.Module):
    """This process's stages and the schedule that runs them with the others'."""

    def __init__(self, stages: dict[int, Stage], world: World, hidden_size: int, wire: torch.dtype) -> None:
        super().__init__()
        self.world, self.hidden_size, self.wire = world, hidden_size, wire
        self.count = world.stages
        self.numbers = sorted(stages)
        self.stages = [stages[number] for number in self.numbers]
        self.held = nn.ModuleList(self.stages)
        self.group = world.mesh["pipeline"].get_group()
        self._schedules: dict[tuple[int, ...], Any] = {}

    def gradients(self, parts: list[Part], share: float) -> list[tuple[Part, Losses]]:
        """Forward and backward over all parts; the last stage's process gets their losses, the others nothing."""
        for stage in self.stages:
            stage.parts, stage.share, stage.losses = parts, share, {}
        numbers = torch.arange(len(parts))
        first, last = self.numbers[0] == 0, self.numbers[-1] == self.count - 1
        self._schedule(parts).step(*((numbers,) if first else ()), number=numbers, target=numbers if last else None,
                                   losses=[] if last else None, return_outputs=False)
        made = self.stages[-1].losses if last else {}
        return [(parts[number], made[number]) for number in sorted(made)]

    def forward(self, part: Part) -> Losses:
        """Losses of one part on every process, without gradients."""
        ways = self.world.parallel.pipeline
        states, nll = torch.zeros(0), torch.zeros(0)
        with torch.no_grad():
            for number, stage in zip(self.numbers, self.stages, strict=True):
                stage.parts, stage.share, stage.losses = [part], 1.0, {}
                if number:
                    states = torch.empty(*part.tokens.shape, self.hidden_size, dtype=self.wire, device=part.tokens.device)
                    dist.recv(states, group=self.group, group_src=(number - 1) % ways)
                states = stage(states, number=torch.zeros((), dtype=torch.long))
                if number < self.count - 1:
                    dist.send(states.contiguous(), group=self.group, group_dst=(number + 1) % ways)
                else:
                    nll = stage.losses[0].nll_T
            if not nll.numel():
                nll = torch.empty(part.targets.numel(), dtype=torch.float32, device=part.tokens.device)
            dist.broadcast(nll, group=self.group, group_src=(self.count - 1) % ways)
        return Losses(nll.sum(), nll, torch.zeros_like(nll[:1]).sum())

    def _schedule(self, parts: list[Part]) -> Any:
        from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleInterleaved1F1B

        key = (len(parts), *parts[0].tokens.shape)
        if key not in self._schedules:
            states = torch.empty(*parts[0].tokens.shape, self.hidden_size, dtype=self.wire, device="meta", requires_grad=True)
            stages = [PipelineStage(
                stage, number, self.count, self.world.device, input_args=torch.zeros(1, dtype=torch.long) if number == 0 else states,
                output_args=states if number < self.count - 1 else torch.empty((), device="meta", requires_grad=True),
                group=self.group) for number, stage in zip(self.numbers, self.stages, strict=True)]
            loss = _as_it_is
            self._schedules[key] = (
                ScheduleInterleaved1F1B(stages, len(parts), loss_fn=loss, scale_grads=False) if len(stages) > 1  # type: ignore[arg-type]
                else Schedule1F1B(stages[0], len(parts), loss_fn=loss, scale_grads=False))
        return self._schedules[key]


def join_twins(parameters: Mapping[str, nn.Parameter], group: Any) -> None:
    """Sum the gradients of parameters that the first and the last process both hold. Others must not call it."""
    for parameter in parameters.values():
        gradient = parameter.grad
        if gradient is not None:
            local = gradient.to_local() if hasattr(gradient, "to_local") else gradient
            dist.all_reduce(local, group=group)


def _check_work(model: Any, ends: Ends, stretches: list[range], trained: set[str], world: World) -> None:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    inner = _stack(model, ends)
    layers = getattr(inner, ends.layers)
    for rank in range(world.parallel.pipeline):
        numbers = range(rank, world.stages, world.parallel.pipeline)
        modules = [layers[place] for number in numbers for place in stretches[number]]
        modules += [getattr(inner, name) for name in ends.first if rank == 0]
        if rank == world.parallel.pipeline - 1:
            modules += [model.get_output_embeddings(), *(getattr(inner, name) for name in ends.last)]
        if not any(names[id(parameter)] in trained for module in modules if module is not None for parameter in module.parameters()):
            raise ConfigError(fault(f"process {rank} of the pipeline would have nothing to train", where="trainable",
                                    fix="use parallel.shard, or train more"))


def _stack(model: Any, ends: Ends) -> Any:
    return getattr(model.base_model, ends.stack) if ends.stack else model.base_model


def _as_it_is(loss: Tensor, _: Tensor) -> Tensor:
    return loss
