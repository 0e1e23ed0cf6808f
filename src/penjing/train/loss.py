"""Cross-entropy and distillation whose logits never exist all at once.

The last matrix product, the softmax and their gradients are done for a few positions at a time, and the gradients with respect
to the hidden states and the output table are made in the same pass, so nothing is computed twice and memory does not grow with
the vocabulary. Softmax and sums are fp32 (fp64 if the model is). On a GPU what happens to the logits between the products is one
compiled kernel that leaves their gradient in their place, and the table's gradient is summed in fp32 by the product itself.

Shape suffixes: T positions, H hidden, V vocabulary, C positions of one chunk.
"""



from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from penjing.train.matrices import add_product

IGNORED = -100


@dataclass(frozen=True)
class Teacher:
    """A teacher's last hidden states and output table, and how to learn from them."""

    hidden_TH: Tensor
    table_VH: Tensor
    bias_V: Tensor | None
    weight: float
    temperature: float
    reverse: bool


@dataclass(frozen=True)
class Losses:
    """Sums over positions, not means, in fp32."""

    total: Tensor
    """What is differentiated: weighted cross-entropy, z-loss and distillation."""
    nll_T: Tensor
    """Cross-entropy of each position in nats, 0 where there is no label; detached."""
    distil: Tensor
    """Sum of the divergence from the teacher; detached."""


def labelled(targets_T: Tensor, weights_T: Tensor) -> Tensor:
    """Positions that have a label and a weight."""
    return torch.nonzero((targets_T != IGNORED) & (weights_T != 0)).squeeze(1)


def compiled_chunk(vocab: int) -> int:
    """Positions whose logits take about 1 GiB where the compiled kernel is used, which holds them once and in 16 bits."""
    return int(max(512, 1 << (2**29 // vocab).bit_length() - 1))


def chunked_loss(hidden_TH: Tensor, table_VH: Tensor, bias_V: Tensor | None, targets_T: Tensor, weights_T: Tensor, *,
                 chunk: int, z_loss: float = 0.0, teacher: Teacher | None = None, product: torch.dtype | None = None,
                 vocab: int | None = None, kept: Tensor | None = None, compiled: bool = False,
                 into_table: float | None = None) -> Losses:
    """Weighted sums of the losses of T positions.

    `product` is the type the matrix products run in (bf16 under mixed precision). `vocab` is the number of real rows of a
    padded table; the others never receive probability. Positions with target -100 or weight 0 cost nothing; `kept` names the
    others (`labelled`), if the caller knows them. `compiled`: compile what happens between the products.
    `into_table`: the gradients of this multiple of the total are added to the table's and bias's `.grad` here and now, which spares
    a large vocabulary three passes over them; the backward pass then has none for them.
    """
    kept = labelled(targets_T, weights_T) if kept is None else kept
    everything = kept.numel() == targets_T.numel()
    hidden = hidden_TH if everything else hidden_TH.index_select(0, kept)
    targets, weights = (targets_T, weights_T) if everything else (targets_T[kept], weights_T[kept])
    if teacher is not None and not everything:
        teacher = Teacher(teacher.hidden_TH.index_select(0, kept), teacher.table_VH, teacher.bias_V, teacher.weight,
                          teacher.temperature, teacher.reverse)
    total, nll, distil = _Chunked.apply(hidden, table_VH, bias_V, targets, weights, chunk, z_loss, teacher, product, vocab, compiled,
                                        into_table)
    nll_T = nll if everything else torch.zeros_like(targets_T, dtype=nll.dtype).index_copy_(0, kept, nll)
    return Losses(total, nll_T, distil)


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, table: Tensor, bias: Tensor | None, targets: Tensor, weights: Tensor, chunk: int,
                z_loss: float, teacher: Teacher | None, product: torch.dtype | None, vocab: int | None, compiled: bool,
                into_table: float | None) -> tuple[Tensor, Tensor, Tensor]:
        kind = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        factor = product or hidden.dtype
        needs = ctx.needs_input_grad
        matrix = table.detach().to(factor)
        grad_hidden = torch.zeros_like(hidden) if needs[0] else None
        grad_table = _gradient_of(table, kind, into_table is not None) if needs[1] else None
        grad_bias = _gradient_of(bias, kind, into_table is not None) if bias is not None and needs[2] else None
        total = torch.zeros((), dtype=kind, device=hidden.device)
        distil = torch.zeros_like(total)
        nll = torch.zeros(hidden.shape[0], dtype=kind, device=hidden.device)
        label_share = 1.0 if teacher is None else 1.0 - teacher.weight
        multiple = 1.0 if into_table is None else into_table
        in_place = _compiled_pull() if compiled and teacher is None and kind == torch.float32 else None
        for start in range(0, hidden.shape[0], chunk):
            part = slice(start, start + chunk)
            hidden_CH = hidden[part].to(factor)
            logits_CV = hidden_CH @ matrix.T
            weights_C, targets_C = weights[part].to(kind), targets[part]
            divergence = None
            if in_place is not None:
                nll[part], logsum_C = in_place(logits_CV, bias, targets_C, weights_C, label_share, z_loss, vocab)
                grad_CV = logits_CV
            else:
                logits_CV = _wide(logits_CV, bias, kind, vocab)
                teacher_grad_CV = None
                if teacher is not None and teacher.weight:
                    divergence, teacher_grad_CV = _distil(logits_CV, teacher, part, weights_C, factor, kind, vocab)
                nll[part], logsum_C, grad_CV = _pull(logits_CV, targets_C, weights_C, label_share, z_loss, wanted=any(needs[:3]))
                if teacher_grad_CV is not None:
                    grad_CV += teacher_grad_CV
            total += label_share * (nll[part] * weights_C).sum()
            if z_loss:
                total += z_loss * (logsum_C.square() * weights_C).sum()
            if divergence is not None and teacher is not None:
                distil += divergence
                total += teacher.weight * divergence
            if grad_bias is not None:
                grad_bias.add_(grad_CV.sum(0, dtype=kind), alpha=multiple)
            if grad_hidden is not None or grad_table is not None:
                grad_CV = grad_CV.to(factor)
            if grad_hidden is not None:
                grad_hidden[part] = grad_CV @ matrix
            if grad_table is not None:
                add_product(grad_table, grad_CV.T, hidden_CH, multiple)
            del logits_CV, grad_CV  # before the next chunk's are made
        ctx.grads = (grad_hidden, grad_table, grad_bias) if into_table is None else (grad_hidden, None, None)
        ctx.types = (hidden.dtype, table.dtype, None if bias is None else bias.dtype)
        ctx.mark_non_differentiable(nll, distil)
        return total, nll, distil

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        out = [None if made is None else made.mul_(grad).to(kind) for made, kind in zip(ctx.grads, ctx.types, strict=True)]
        ctx.grads = (None, None, None)
        return (*out, *([None] * 9))


def _gradient_of(parameter: Tensor, kind: torch.dtype, own: bool) -> Tensor:
    """Where its gradient is summed: in the parameter's own `.grad`, or beside it."""
    if not own:
        return torch.zeros(parameter.shape, dtype=kind, device=parameter.device)
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return parameter.grad


def _pull(logits_CV: Tensor, targets_C: Tensor, weights_C: Tensor, label_share: float, z_loss: float, *,
          wanted: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Cross-entropy, log-sum and, if wanted, the gradient with respect to the logits."""
    chosen_C = logits_CV.gather(1, targets_C[:, None]).squeeze(1)
    logp_CV = F.log_softmax(logits_CV, 1)  # one fused kernel, where logsumexp would be four
    nll_C = -logp_CV.gather(1, targets_C[:, None]).squeeze(1)
    logsum_C = nll_C + chosen_C
    if not wanted:
        return nll_C, logsum_C, logp_CV
    # d(nll)/dlogits = softmax - onehot; the z term adds 2 z lse softmax
    pull_C = weights_C * (label_share + 2 * z_loss * logsum_C) if z_loss else weights_C * label_share
    grad_CV = logp_CV.exp_().mul_(pull_C[:, None])
    return nll_C, logsum_C, grad_CV.scatter_add_(1, targets_C[:, None], (-label_share * weights_C)[:, None])


def _pull_in_place(logits_CV: Tensor, bias_V: Tensor | None, targets_C: Tensor, weights_C: Tensor, label_share: float, z_loss: float,
                   vocab: int | None) -> tuple[Tensor, Tensor]:
    """The same in one kernel when compiled: two readings of the logits and one writing of their gradient over them."""
    wide_CV = logits_CV.float() if bias_V is None else logits_CV.float() + bias_V.detach().float()
    place_V = torch.arange(logits_CV.shape[1], device=logits_CV.device)
    if vocab is not None and vocab < logits_CV.shape[1]:
        wide_CV = wide_CV.masked_fill(place_V >= vocab, float("-inf"))
    logsum_C = wide_CV.logsumexp(1)
    nll_C = logsum_C - wide_CV.gather(1, targets_C[:, None]).squeeze(1)
    pull_C = weights_C * (label_share + 2 * z_loss * logsum_C)
    grad_CV = (wide_CV - logsum_C[:, None]).exp() * pull_C[:, None]
    is_target_CV = place_V[None] == targets_C[:, None]
    logits_CV.copy_(torch.where(is_target_CV, grad_CV - (label_share * weights_C)[:, None], grad_CV))
    return nll_C, logsum_C


@cache
def _compiled_pull() -> Callable[..., tuple[Tensor, Tensor]]:
    return torch.compile(_pull_in_place)


def _wide(made_CV: Tensor, bias_V: Tensor | None, kind: torch.dtype, vocab: int | None) -> Tensor:
    logits_CV = made_CV.to(kind)
    if bias_V is not None:
        logits_CV += bias_V.detach().to(kind)
    if vocab is not None and vocab < logits_CV.shape[1]:
        logits_CV[:, vocab:] = float("-inf")
    return logits_CV


def _distil(logits_CV: Tensor, teacher: Teacher, part: slice, weights_C: Tensor, factor: torch.dtype, kind: torch.dtype,
            vocab: int | None) -> tuple[Tensor, Tensor]:
    """Sum of the weighted divergence times temperature squared, and its gradient with respect to the student's logits."""
    heat = teacher.temperature
    known_CV = _wide(teacher.hidden_TH[part].to(factor) @ teacher.table_VH.to(factor).T, teacher.bias_V, kind, vocab)
    log_teacher = F.log_softmax(known_CV / heat, 1)
    log_student = F.log_softmax(logits_CV / heat, 1)
    if vocab is not None:  # -inf - -inf outside the real rows
        log_teacher, log_student = log_teacher.clamp(min=-1e4), log_student.clamp(min=-1e4)
    share_C = weights_C * heat * heat
    if teacher.reverse:
        student = log_student.exp()
        gap = log_student - log_teacher
        each_C = (student * gap).sum(1)
        grad = student * (gap - each_C[:, None])
    else:
        target = log_teacher.exp()
        each_C = (target * (log_teacher - log_student)).sum(1)
        grad = log_student.exp() - target
    return (each_C * share_C).sum(), grad * (teacher.weight * share_C / heat)[:, None]
