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
from penjing.train import layout, seq2seq
from penjing.train.distributed import World
from penjing.train.feed import Part
from penjing.train.loss import Losses
from penjing.train.model import Objective


@dataclass(frozen=True)
class Ends:
    """Where the layers of an architecture are and what stands around them, as paths below the base model."""

    first: tuple[str, ...]
    """Modules that turn ids into the first hidden states."""
    last: tuple[str, ...]
    """Modules between the last layer and the output table."""
    layers: tuple[str, ...] = ("layers",)
    """Lists of layers, in the order they are gone through."""
    after: tuple[str, ...] = ()
    """For each list but the last, the module that follows its last layer."""


_LLAMA = Ends(("embed_tokens",), ("norm",))
ENDS: Mapping[str, Ends] = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "glm", "glm4"), _LLAMA),
    "gpt2": Ends(("wte", "wpe", "drop"), ("ln_f",), ("h",)),
    "codegen": Ends(("wte", "drop"), ("ln_f",), ("h",)),
    "opt": Ends(("decoder.embed_tokens", "decoder.embed_positions", "decoder.project_in"),
                ("decoder.final_layer_norm", "decoder.project_out"), ("decoder.layers",)),
    "openba": Ends(("shared_embedding", "encoder.embed_tokens", "decoder.embed_tokens"), ("decoder.final_layernorm",),
                   ("encoder.block", "decoder.block"), ("encoder.final_layernorm",)),
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
    ends, count, base = ENDS[model.config.model_type], world.stages, model.base_model
    places = [(path, number) for path in ends.layers for number in range(len(base.get_submodule(path)))]
    layers = [base.get_submodule(path)[number] for path, number in places]
    head = model.get_output_embeddings()
    head_name = next(name for name, module in model.named_modules() if module is head)
    tied = head.weight is model.get_input_embeddings().weight
    costs = [sum(parameter.numel() for parameter in layer.parameters()) for layer in layers]
    stretches = stretch(costs, head.weight.numel(), count)
    table = {name for name, parameter in model.named_parameters() if tied and parameter is head.weight}
    paths = (*ends.first, *ends.after, *ends.last)
    kept: dict[str, Any] = {path: getattr(base.get_submodule(path.rpartition(".")[0]), path.rpartition(".")[2], None) for path in paths}
    ranks: dict[str, set[int]] = {path: {0} for path in ends.first} | {path: {count - 1} for path in ends.last}
    for path, group in zip(ends.after, ends.layers, strict=False):  # with the last layer of its list
        at = max(number for number, place in enumerate(places) if place[0] == group)
        ranks[path] = {number for number, held in enumerate(stretches) if at in held}
    _check_work(model, [[layers[at] for at in held] + [kept[path] for path in paths if number in ranks[path]]
                        + [head] * (number == count - 1) for number, held in enumerate(stretches)], trained, world)
    for path, module in kept.items():
        if module is not None:
            tabular = path in ends.first and isinstance(module, nn.Embedding)
            base.set_submodule(path, Nothing() if tabular else Elsewhere())
    for path in ends.layers:
        base.set_submodule(path, nn.ModuleList(Elsewhere() for _ in base.get_submodule(path)))
    model.set_submodule(head_name, Nothing())
    found = {}
    for number in range(world.pipeline_rank, count, world.parallel.pipeline):
        stage = copy.deepcopy(model)
        inner = stage.base_model
        for at in stretches[number]:
            path, place = places[at]
            inner.get_submodule(path)[place] = layers[at]
        for path in paths:
            # A tied table is at both ends under one name, so that the parameter is called what it is called elsewhere.
            if kept[path] is not None and (number in ranks[path] or (tied and number == count - 1 and path == ends.first[0])):
                inner.set_submodule(path, kept[path])
        if number == count - 1:
            stage.set_submodule(head_name, head)
        if stage.config.model_type == "openba":
            seq2seq.prepare_openba(stage)
            if number:
                seq2seq.drop_no_inputs(stage)
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

    def forward(self, *states: Tensor, number: Tensor) -> Tensor | tuple[Tensor, ...]:
        at = int(number)
        given = None if self.is_first else states
        if self.is_last:
            losses = self.objective(self.parts[at], given)
            self.losses[at] = Losses(losses.total.detach(), losses.nll_T, losses.distil)
            return losses.total * self.share
        made = tuple(self._onwards(one) for one in self.objective.states(self.parts[at], given))
        return made if len(made) > 1 else made[0]

    def _onwards(self, states: Tensor) -> Tensor:
        states = states.to(self.wire)
        if not torch.is_grad_enabled() or (states.requires_grad and not states.is_leaf):
            return states
        return states.view_as(states) if states.requires_grad else states.detach().requires_grad_()  # nothing up to here is trained


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
        self._schedules: dict[tuple[Any, ...], Any] = {}

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
        device = part.tokens.device
        nll = torch.empty(part.targets.numel(), dtype=torch.float32, device=device)
        with torch.no_grad():
            for number, stage in zip(self.numbers, self.stages, strict=True):
                stage.parts, stage.share, stage.losses = [part], 1.0, {}
                states = self._empty(part, device) if number else ()
                for one in states:
                    dist.recv(one, group=self.group, group_src=(number - 1) % ways)
                made = stage(*states, number=torch.zeros((), dtype=torch.long))
                if number == self.count - 1:
                    nll = stage.losses[0].nll_T
                    continue
                for one in made if isinstance(made, tuple) else (made,):
                    dist.send(one.contiguous(), group=self.group, group_dst=(number + 1) % ways)
            dist.broadcast(nll, group=self.group, group_src=(self.count - 1) % ways)
        return Losses(nll.sum(), nll, torch.zeros_like(nll[:1]).sum())

    def _empty(self, part: Part, device: torch.device | str, *, grad: bool = False) -> tuple[Tensor, ...]:
        """What travels from stage to stage for a part: hidden states of the decoder, after those of the encoder if there is one."""
        shapes = [ids.shape for ids in (part.encoder_tokens, part.tokens) if ids is not None]
        return tuple(torch.empty(*shape, self.hidden_size, dtype=self.wire, device=device, requires_grad=grad) for shape in shapes)

    def _schedule(self, parts: list[Part]) -> Any:
        from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleInterleaved1F1B

        states = self._empty(parts[0], "meta", grad=True)
        key = (len(parts), *(one.shape for one in states))
        if key not in self._schedules:
            loss = torch.empty((), device="meta", requires_grad=True)
            stages = [PipelineStage(
                stage, number, self.count, self.world.device, input_args=torch.zeros(1, dtype=torch.long) if number == 0 else states,
                output_args=states if number < self.count - 1 else loss, group=self.group)
                for number, stage in zip(self.numbers, self.stages, strict=True)]
            self._schedules[key] = (
                ScheduleInterleaved1F1B(stages, len(parts), loss_fn=_as_it_is, scale_grads=False) if len(stages) > 1  # type: ignore[arg-type]
                else Schedule1F1B(stages[0], len(parts), loss_fn=_as_it_is, scale_grads=False))
        return self._schedules[key]


def join_twins(parameters: Mapping[str, nn.Parameter], group: Any) -> None:
    """Sum the gradients of parameters that the first and the last process both hold. Others must not call it."""
    for parameter in parameters.values():
        gradient = parameter.grad
        if gradient is not None:
            local = gradient.to_local() if hasattr(gradient, "to_local") else gradient
            dist.all_reduce(local, group=group)


def _check_work(model: Any, held: list[list[Any]], trained: set[str], world: World) -> None:
    """ConfigError unless every process, of whose stages `held` lists the modules, has something to train."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for rank in range(world.parallel.pipeline):
        modules = [module for stage in held[rank :: world.parallel.pipeline] for module in stage if module is not None]
        if not any(names[id(parameter)] in trained for module in modules for parameter in module.parameters()):
            raise ConfigError(fault(f"process {rank} of the pipeline would have nothing to train", where="trainable",
                                    fix="use parallel.shard, or train more"))


def _as_it_is(loss: Tensor, _: Tensor) -> Tensor:
    return loss
