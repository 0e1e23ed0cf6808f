"""Matrices in 16 bits beside their fp32 weights, for one GPU that holds the whole model.

Autocast converts every weight for every micro-batch, rounds every weight's gradient to 16 bits, converts it back and adds it. Here the
16-bit copy is made once per update, and the gradient's product is added to the fp32 sum by the matrix product itself, which rounds
nothing and spares five passes over the weights. Copies are made anew after an optimizer's step, which changes weights without raising
torch's version counter, and whenever that counter has risen.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@torch.library.custom_op("penjing::add_product", mutates_args={"total"})
def _add_product(total: Tensor, grad: Tensor, x: Tensor) -> None:
    add_product(total, grad.reshape(-1, grad.shape[-1]).T, x.reshape(-1, x.shape[-1]))


@_add_product.register_fake
def _(total: Tensor, grad: Tensor, x: Tensor) -> None:
    return None


def add_product(total_MN: Tensor, a_MK: Tensor, b_KN: Tensor, factor: float = 1.0) -> None:
    """total += factor * a @ b. On a GPU 16-bit factors are summed in fp32 and not rounded in between."""
    if a_MK.dtype == total_MN.dtype:
        total_MN.addmm_(a_MK, b_KN, alpha=factor)
    elif a_MK.is_cuda:
        torch.ops.aten.addmm.dtype_out(total_MN, a_MK, b_KN, total_MN.dtype, alpha=factor, out=total_MN)
    else:
        total_MN.add_(a_MK @ b_KN, alpha=factor)


class _Multiply(torch.autograd.Function):
    """x times a copy; the gradient of the weight goes to its sum."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, copy: Tensor, total: Tensor) -> Tensor:
        ctx.save_for_backward(x, copy, total)
        return F.linear(x, copy)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, None, None]:
        x, copy, total = ctx.saved_tensors
        torch.ops.penjing.add_product(total, grad, x)
        return grad @ copy if ctx.needs_input_grad[0] else None, None, None, None


class Matrix(nn.Linear):
    """A linear layer with a copy of its weight in 16 bits and, if it is trained, the sum of its gradients in fp32."""

    short_weight: Tensor
    grad_sum: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """B S in to B S out, in 16 bits."""
        x = x.to(self.short_weight.dtype)
        if self.weight.requires_grad and torch.is_grad_enabled():
            made: Tensor = _Multiply.apply(x, self.weight, self.short_weight, self.grad_sum)
        else:
            made = F.linear(x, self.short_weight)
        return made if self.bias is None else made + self.bias.to(made.dtype)


class Copies:
    """All matrices in layers that have a copy: linear layers whose weight is their own.

    One that a step does not use has gradients of zero, where autograd would give it none.
    """

    def __init__(self, layers: Iterable[nn.Module], kind: torch.dtype) -> None:
        found = [module for layer in layers for module in layer.modules() if type(module) is nn.Linear]
        users = Counter(id(linear.weight) for linear in found)
        self.matrices = [_give_copy(linear, kind) for linear in found
                         if linear.weight.dtype == torch.float32 and users[id(linear.weight)] == 1]
        self._seen: list[int] = []

    def follow(self, optimizer: torch.optim.Optimizer) -> None:
        """Make the copies anew after each of its steps."""
        optimizer.register_step_post_hook(lambda *_: self._seen.clear())

    def ready(self, *, learning: bool) -> None:
        """Before a forward pass: copies of weights that changed, and sums that are the gradients of the weights, at first zero."""
        versions = [matrix.weight._version for matrix in self.matrices]
        if versions != self._seen:
            with torch.no_grad():
                torch._foreach_copy_([matrix.short_weight for matrix in self.matrices], [matrix.weight for matrix in self.matrices])
            self._seen = versions
        if learning:
            fresh = [matrix for matrix in self.matrices if matrix.weight.requires_grad and matrix.weight.grad is not matrix.grad_sum]
            if fresh:
                torch._foreach_zero_([matrix.grad_sum for matrix in fresh])
            for matrix in fresh:
                matrix.weight.grad = matrix.grad_sum


def _give_copy(linear: nn.Linear, kind: torch.dtype) -> Matrix:
    made: Any = linear
    made.__class__ = Matrix
    made.register_buffer("short_weight", torch.empty_like(linear.weight, dtype=kind, requires_grad=False), persistent=False)
    if linear.weight.requires_grad:
        made.register_buffer("grad_sum", torch.empty_like(linear.weight, requires_grad=False), persistent=False)
    matrix: Matrix = made
    return matrix
