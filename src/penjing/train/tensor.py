"""Tensor parallelism from the Family's axes: which matrices are cut, by rows or by columns, and how those that hold several are.

A matrix whose outputs are heads or FFN places is cut by outputs, one whose inputs are, by inputs. One that holds several, one
after the other (gate and up of OpenBA and GLM, q, k and v of GPT-2), is seen as having one dimension more, and each of its parts is
cut; states and checkpoints hold the same numbers in the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from penjing.models import axes
from penjing.models.family import of
from penjing.train import layout
from penjing.train.distributed import World

HEAD_COUNTS: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "glm", "glm4"), ()),
    "openba": ("heads",), "opt": ("num_heads",), "gpt2": ("num_heads", "split_size"),
}
"""Architectures that can be cut, and what their attention modules know of the number of heads."""
_UNITS = frozenset({"ffn", "head", "kv_head", "cross_head"})


def cut(model: Any, world: World) -> set[str]:
    """Cut the matrices of every layer over the tensor-parallel processes.

    Gives the names of parameters that every process holds whole and uses for its own heads only, whose gradients must be summed.
    ConfigError for an architecture that cannot be cut or sizes that do not divide.
    """
    ways = world.parallel.tensor
    if ways == 1:
        return set()
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    config = model.config.to_dict()
    layout.check(world.parallel, config)
    family = of(config)
    mesh = world.mesh["tensor"]
    modules = dict(model.named_modules())
    plan: dict[str, Any] = {}
    owners: set[int] = set()
    shared: set[str] = set()
    held = {name for name, _ in model.named_parameters()}
    for name, tensor in family.tensors(config).items():
        owner = name.removesuffix(".weight")
        if tensor.stack is not None and tensor.kind == "norm" and tensor.axes == ("head_dim",) and name in held:
            shared.add(name)
        if tensor.kind != "linear" or tensor.stack is None or owner not in modules or len(tensor.axes) != 2:
            continue
        module = modules[owner]
        flipped = type(module).__name__ == "Conv1D"  # its weight is inputs by outputs
        outputs, inputs = tensor.axes[::-1] if flipped else tensor.axes
        parts = len(axes.parse(outputs))
        if _is_cut(outputs) and (parts > 1 or flipped):
            _cut_outputs(module, mesh, parts, flipped=flipped)
        elif _is_cut(inputs) and flipped:
            _cut_inputs(module, mesh)
        elif _is_cut(outputs) or _is_cut(inputs):
            plan[owner] = ColwiseParallel() if _is_cut(outputs) else RowwiseParallel()
        if _is_cut(outputs):
            owners.add(id(modules[owner.rpartition(".")[0]]))
    parallelize_module(model, mesh, plan)
    for module in modules.values():
        for count in HEAD_COUNTS[config["model_type"]] if id(module) in owners else ():
            if hasattr(module, count):
                setattr(module, count, getattr(module, count) // ways)
    return shared


def join(parameters: Mapping[str, nn.Parameter], world: World) -> None:
    """Sum the gradients of whole parameters that each process used for its own heads."""
    group = world.mesh["tensor"].get_group()
    for parameter in parameters.values():
        if parameter.grad is not None:
            gradient = parameter.grad
            torch.distributed.all_reduce(gradient.to_local() if hasattr(gradient, "to_local") else gradient, group=group)


def _is_cut(label: str) -> bool:
    return bool({unit.rsplit(".", 1)[-1] for unit in axes.units(label)} & _UNITS)


def _cut_outputs(module: Any, mesh: Any, parts: int, *, flipped: bool) -> None:
    """Every one of `parts` equal parts of the outputs over the processes; results are the local parts, one after the other."""
    from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

    weight = module.weight.data
    wide = weight.unflatten(1, (parts, -1)) if flipped else weight.unflatten(0, (parts, -1))
    module.weight = _as(module.weight, distribute_tensor(wide, mesh, [Shard(2 if flipped else 1)]))
    if module.bias is not None:
        module.bias = _as(module.bias, distribute_tensor(module.bias.data.unflatten(0, (parts, -1)), mesh, [Shard(1)]))

    def forward(x: Tensor) -> Tensor:
        # The same input on every process; its gradients are summed on the way back.
        x = DTensor.from_local(x, mesh, [Replicate()], run_check=False).to_local(grad_placements=[Partial()])
        local = module.weight.to_local()
        matrix = local.flatten(1).T if flipped else local.flatten(0, 1)
        bias = None if module.bias is None else module.bias.to_local().flatten()
        return F.linear(x, matrix, bias)

    module.forward = forward


def _cut_inputs(module: Any, mesh: Any) -> None:
    """The inputs of a Conv1D over the processes; results are summed."""
    from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

    module.weight = _as(module.weight, distribute_tensor(module.weight.data, mesh, [Shard(0)]))

    def forward(x: Tensor) -> Tensor:
        part = F.linear(x, module.weight.to_local().T)
        whole = DTensor.from_local(part, mesh, [Partial()], run_check=False).redistribute(placements=[Replicate()]).to_local()
        return whole if module.bias is None else whole + module.bias

    module.forward = forward


def _as(old: nn.Parameter, new: Tensor) -> nn.Parameter:
    return nn.Parameter(new, requires_grad=old.requires_grad)


def placement_of(ways: int) -> Callable[[nn.Parameter], Any]:
    """FSDP's choice of dimension: matrices with a leading dimension of parts are cut along their last, where that divides."""
    from torch.distributed.tensor import Shard

    def choose(parameter: nn.Parameter) -> Any:
        several = parameter.ndim == 3 and parameter.shape[0] < parameter.shape[1] and parameter.shape[2] % ways == 0
        return Shard(2) if several else None

    return choose
