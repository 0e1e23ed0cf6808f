"""The chunked loss is the plain loss, with gradients, at any chunk."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from penjing.train.loss import Teacher, chunked_loss


def case(seed: int = 0) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(seed)
    hidden = torch.randn(23, 8, dtype=torch.float64, requires_grad=True)
    table = torch.randn(31, 8, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(31, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(0, 31, (23,))
    targets[::5] = -100
    return hidden, table, bias, targets, torch.rand(23, dtype=torch.float32)


@pytest.mark.parametrize("chunk", [1, 7, 64])
@pytest.mark.parametrize("z_loss", [0.0, 1e-2])
@pytest.mark.parametrize("direction", [None, "forward", "reverse"])
def test_chunked_loss_equals_plain_loss(chunk: int, z_loss: float, direction: str | None) -> None:
    hidden, table, bias, targets, weights = case()
    teacher = None
    if direction:
        torch.manual_seed(9)
        teacher = Teacher(torch.randn(23, 5, dtype=torch.float64), torch.randn(31, 5, dtype=torch.float64), None, 0.4, 2.0,
                          direction == "reverse")
    losses = chunked_loss(hidden, table, bias, targets, weights, chunk=chunk, z_loss=z_loss, teacher=teacher)
    ours = torch.autograd.grad(losses.total * 3.0, (hidden, table, bias))

    logits = hidden @ table.T + bias
    kept = (targets != -100) * weights
    nll = F.cross_entropy(logits, targets, reduction="none")
    label_share = 0.6 if direction else 1.0
    plain = label_share * (nll * kept).sum() + z_loss * (logits.logsumexp(1).square() * kept).sum()
    if teacher is not None:
        log_teacher = F.log_softmax(teacher.hidden_TH @ teacher.table_VH.T / 2.0, 1)
        log_student = F.log_softmax(logits / 2.0, 1)
        first, second = (log_student, log_teacher) if direction == "reverse" else (log_teacher, log_student)
        divergence = (first.exp() * (first - second)).sum(1)
        plain = plain + 0.4 * 4.0 * (divergence * kept).sum()
    theirs = torch.autograd.grad(plain * 3.0, (hidden, table, bias))
    torch.testing.assert_close(losses.total, plain, rtol=0, atol=1e-10)
    torch.testing.assert_close(losses.nll_T, nll * (kept > 0), rtol=0, atol=1e-10)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


def test_padded_vocabulary_rows_get_no_probability() -> None:
    hidden, table, bias, targets, weights = case()
    targets = targets.clamp(max=28)
    losses = chunked_loss(hidden, table, bias, targets, weights, chunk=7, vocab=29)
    nll = F.cross_entropy((hidden @ table.T + bias)[:, :29], targets, reduction="none")
    torch.testing.assert_close(losses.nll_T, nll * (targets != -100), rtol=0, atol=1e-10)
    grad = torch.autograd.grad(losses.total, table)[0]
    assert not grad[29:].any() and grad[:29].any()


def test_loss_is_fp32_when_products_are_bf16() -> None:
    hidden, table, _, targets, weights = (tensor.float() if tensor.is_floating_point() else tensor for tensor in case())
    exact = chunked_loss(hidden, table, None, targets, weights, chunk=8)
    rough = chunked_loss(hidden, table, None, targets, weights, chunk=8, product=torch.bfloat16)
    assert rough.total.dtype == torch.float32
    assert abs(float((rough.total / exact.total).detach()) - 1) < 5e-3
