"""The same modules with less traffic: parts of a model that eager PyTorch computes in many passes over memory, in few.

On a processor a small model spends most of its time outside matrix products. Root-mean-square norms take about 25 passes
forward and backward as transformers writes them and 10 here, and give their result in the type of the product that follows, so
that it is not converted once per projection. A module is only replaced after it has been compared with its replacement.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from penjing.errors import ConfigError, fault


class RMSNorm(torch.autograd.Function):
    """x / rms(x) * weight, computed in fp32 (fp64 if x is), given in `kind`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float, kind: torch.dtype | None) -> Tensor:
        wide = x if x.dtype == torch.float64 else x.float()
        norm = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        scale = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        return (wide * scale).mul_(weight).to(kind or x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, scale = ctx.saved_tensors
        wide = x if x.dtype == torch.float64 else x.float()
        unit = wide * scale
        pull = grad.to(wide.dtype)
        both = pull * unit
        grad_weight = both.flatten(0, -2).sum(0) if ctx.needs_input_grad[1] else None
        share = torch.mv(both.flatten(0, -2), weight.to(wide.dtype)).view(scale.shape).div_(x.shape[-1])
        grad_x = (pull * weight).sub_(unit.mul_(share)).mul_(scale)
        return grad_x.to(x.dtype), None if grad_weight is None else grad_weight.to(weight.dtype), None, None


def lighten(model: nn.Module, *, product: torch.dtype | None) -> int:
    """Replace the norms of a model that runs on a processor, uncompiled; gives how many were replaced."""
    count = 0
    for module in model.modules():
        eps = getattr(module, "variance_epsilon", None)
        if type(module).__name__.endswith("RMSNorm") and eps is not None and _same(module, eps):
            module.forward = _forward(module, float(eps), product)
            count += 1
    return count


def lighten_on_gpu(model: Any, product: torch.dtype | None, *, whole: bool) -> None:
    """What a GPU has in bf16 that autocast leaves in fp32, and the other way round.

    The hidden states between the layers become bf16, as they are under FSDP's mixed precision (norms go on computing in fp32), and
    the rotary embeddings' cosines stay fp32, which they are not there. `whole`: this process holds whole tables, and their
    gradients are summed in their `.grad` row by row, where autograd would make and add a table of zeros for every micro-batch.
    """
    from penjing.train.distributed import layers_of

    inside = {id(module) for layer in layers_of(model) for module in layer.modules()}
    kind = torch.bfloat16 if product == torch.bfloat16 else None
    for module in model.modules():
        if id(module) in inside:
            continue
        if type(module) is nn.Embedding and whole:
            module.forward = _rows_forward(module, kind)  # type: ignore[method-assign]
        elif kind is not None and "Rotary" in type(module).__name__ and hasattr(module, "inv_freq"):
            module.forward = _wide_forward(module.forward)


class Rows(torch.autograd.Function):
    """Rows of a table, in `kind`; their gradients are added to the table's `.grad`."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, ids: Tensor, padding: int | None, kind: torch.dtype | None) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.table, ctx.padding = table, padding
        return F.embedding(ids, table).to(kind or table.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, None, None, None]:
        (ids,) = ctx.saved_tensors
        table = ctx.table
        if ctx.needs_input_grad[0]:
            if table.grad is None:
                table.grad = torch.zeros_like(table)
            lines = grad.reshape(-1, grad.shape[-1]).to(table.dtype)
            if ctx.padding is not None:
                lines = lines.masked_fill((ids == ctx.padding).view(-1, 1), 0.0)
            table.grad.index_add_(0, ids.flatten(), lines)
        return None, None, None, None


def _rows_forward(module: nn.Embedding, kind: torch.dtype | None) -> Any:
    def forward(ids: Tensor) -> Tensor:
        mixed = torch.is_autocast_enabled("cuda") or torch.is_autocast_enabled("cpu")
        made: Tensor = Rows.apply(module.weight, ids, module.padding_idx, kind if mixed else None)
        return made

    return forward


def _wide_forward(forward: Any) -> Any:
    def wide(x: Tensor, *args: Any, **kwargs: Any) -> Any:
        return forward(x.new_empty(0, dtype=torch.float32), *args, **kwargs)  # it only asks for its type and device

    return wide


def multiply_in_8_bits(model: Any, device: torch.device) -> int:
    """Let every matrix in the layers be multiplied in fp8, scaled by row; gives how many. The ends of the model stay as they are.

    ConfigError without torchao or a GPU that can.
    """
    able = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 9)
    if not able:
        found = torch.cuda.get_device_name(device) if device.type == "cuda" else "a processor"
        raise ConfigError(fault("this device does not multiply in 8 bits", where="fp8", found=found,
                                expected="a GPU of compute capability 8.9 or more (L40S, H100, H200, B200)", fix="set fp8: false"))
    try:
        from torchao.float8 import Float8LinearConfig, convert_to_float8_training
    except ImportError as error:
        raise ConfigError(fault("fp8 is asked for and torchao is not installed", where="fp8", fix="pip install torchao")) from error
    from penjing.train.distributed import layers_of

    recipe, count = Float8LinearConfig.from_recipe_name("rowwise"), 0

    def fits(module: nn.Module, _: str) -> bool:  # the kernels want multiples of 16
        return isinstance(module, nn.Linear) and module.in_features % 16 == 0 and module.out_features % 16 == 0

    for layer in layers_of(model):
        count += sum(fits(module, name) for name, module in layer.named_modules())
        convert_to_float8_training(layer, config=recipe, module_filter_fn=fits)
    return count


def _forward(module: nn.Module, eps: float, product: torch.dtype | None) -> Any:
    def forward(x: Tensor) -> Tensor:
        kind = product if torch.is_autocast_enabled("cpu") else None
        made: Tensor = RMSNorm.apply(x, module.weight, eps, kind)
        return made

    return forward


def _same(module: Any, eps: float) -> bool:
    with torch.no_grad():
        x = torch.linspace(-3, 2, 3 * module.weight.numel()).view(3, -1).to(module.weight.dtype)
        return bool(torch.allclose(module(x), RMSNorm.apply(x, module.weight, eps, None), rtol=1e-5, atol=1e-6))
