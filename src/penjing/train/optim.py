"""Which parameters are trained, AdamW over them, and clipping by the global norm."""

from __future__ import annotations

import re
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from penjing.errors import ConfigError, fault
from penjing.train.config import TrainConfig


def choose_trainable(model: nn.Module, config: TrainConfig) -> dict[str, nn.Parameter]:
    """The parameters `config.trainable` names, by name; all others stop requiring gradients.

    ConfigError when nothing fits. With `new-rows` the tables keep their gradients for new rows only (`keep_new_rows`), and get no
    weight decay, so old rows stay bit for bit what they were.
    """
    tables = _tables(model)
    wanted = {name for name, _ in model.named_parameters() if _is_chosen(name, config.trainable, tables)}
    if not wanted:
        raise ConfigError(fault("no parameter fits trainable", found=config.trainable,
                                expected="for example " + ", ".join(list(dict(model.named_parameters()))[:3])))
    chosen = {}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in wanted)
        if name in wanted:
            chosen[name] = parameter
    if config.trainable == "new-rows":
        first = config.new_rows_from or 0
        for name, parameter in chosen.items():
            if first >= parameter.shape[0]:
                raise ConfigError(fault("new_rows_from is beyond the vocabulary", found=first,
                                        expected=f"below {parameter.shape[0]} rows of {name}"))
    return chosen


def keep_new_rows(parameters: Iterable[nn.Parameter], first: int) -> None:
    """Zero the gradients of the rows before `first`, also of tables that are sharded."""
    from torch.distributed.tensor import DTensor
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    for parameter in parameters:
        gradient, start = parameter.grad, 0
        if gradient is None:
            continue
        if isinstance(gradient, DTensor):
            _, offset = compute_local_shape_and_global_offset(gradient.shape, gradient.device_mesh, gradient.placements)
            gradient, start = gradient.to_local(), offset[0] if offset else 0
        gradient[: max(0, first - start)] = 0


def build_optimizer(chosen: dict[str, nn.Parameter], config: TrainConfig) -> torch.optim.AdamW:
    """AdamW with decay on tensors of two or more dimensions only, one group per (decay, device mesh)."""
    groups: dict[tuple[bool, object], list[nn.Parameter]] = {}
    for name, parameter in chosen.items():
        # A bias in several parts has two dimensions when it is cut over processes.
        decays = parameter.ndim >= 2 and not name.endswith(".bias") and config.trainable != "new-rows"
        groups.setdefault((decays, getattr(parameter, "device_mesh", None)), []).append(parameter)
    parts = [{"params": parameters, "weight_decay": config.weight_decay if decays else 0.0}
             for (decays, _), parameters in groups.items()]
    return torch.optim.AdamW(parts, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """The rate of the next step for every group."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def gradient_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """Global L2 norm of the gradients, as a plain fp32 tensor; sharded gradients are summed over their meshes."""
    by_mesh: dict[object, list[Tensor]] = {}
    for parameter in parameters:
        if parameter.grad is not None:
            by_mesh.setdefault(getattr(parameter.grad, "device_mesh", None), []).append(parameter.grad)
    squares = []
    for gradients in by_mesh.values():
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        squares.append((norm.full_tensor() if hasattr(norm, "full_tensor") else norm).square())
    if not squares:
        return torch.zeros(())
    return torch.stack(squares).sum().sqrt()


def scale_gradients(parameters: Iterable[nn.Parameter], factor: float) -> None:
    """Multiply all gradients in place."""
    by_mesh: dict[object, list[Tensor]] = {}
    for parameter in parameters:
        if parameter.grad is not None:
            by_mesh.setdefault(getattr(parameter.grad, "device_mesh", None), []).append(parameter.grad)
    for gradients in by_mesh.values():
        torch._foreach_mul_(gradients, factor)


def _tables(model: nn.Module) -> set[str]:
    """Names of the input and output embedding tables (and the output's bias)."""
    tables = set()
    owners = [getattr(model, "get_input_embeddings", lambda: None)(), getattr(model, "get_output_embeddings", lambda: None)()]
    held = {id(parameter) for owner in owners if owner is not None for parameter in owner.parameters()}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if id(parameter) in held:
            tables.add(name)
    return tables


def _is_chosen(name: str, trainable: str, tables: set[str]) -> bool:
    if trainable == "all":
        return True
    if trainable in ("embeddings", "new-rows"):
        return name in tables
    if trainable == "head":
        return name.startswith(("lm_head", "embed_out"))
    if trainable.startswith("re:"):
        return re.search(trainable[3:], name) is not None
    first, _, last = trainable.removeprefix("layers:").partition("-")
    place = re.search(r"\.(?:layers|block|h|blocks)\.(\d+)\.", name)
    return place is not None and int(first) <= int(place[1]) <= int(last or first)
