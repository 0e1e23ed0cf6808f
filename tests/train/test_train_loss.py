"""The chunked loss is the plain loss, with gradients, at any chunk."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from penjing.train import loss
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


@pytest.mark.parametrize("z_loss", [0.0, 1e-2])
@pytest.mark.parametrize("vocab", [None, 29])
def test_what_a_gpu_compiles_equals_the_plain_way(vocab: int | None, z_loss: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel that leaves the gradient in the logits' place, uncompiled, and gradients that go straight into the table's and bias's."""
    monkeypatch.setattr(loss, "_compiled_pull", lambda: loss._pull_in_place)
    found = []
    for compiled in (False, True):
        hidden, table, bias, targets, weights = (x.detach().float() if x.is_floating_point() else x.clamp(max=28) for x in case())
        targets[::5] = -100
        leaves = [torch.nn.Parameter(x) for x in (hidden, table, bias)]
        losses = chunked_loss(*leaves, targets, weights, chunk=7, z_loss=z_loss, vocab=vocab, compiled=compiled,
                              into_table=3.0 if compiled else None)
        (losses.total * 3.0).backward()
        found.append([losses.total.detach(), losses.nll_T, *(leaf.grad for leaf in leaves)])
    for ours, theirs in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


class Live(TorchDispatchMode):
    """The most bytes that tensors made under it held at one time."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if id(storage) not in self.known:
                    self.known.add(id(storage))
                    self.now += storage.nbytes()
                    weakref.finalize(storage, self._forget, id(storage), storage.nbytes())
        self.most = max(self.most, self.now)
        return made

    def _forget(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size


def test_logits_of_a_large_vocabulary_never_exist_whole() -> None:
    """8,192 positions and 250,240 ids, counted on tensors without content."""
    positions, hidden, vocab = 8192, 2560, 250_240
    peaks = {}
    for name in ("chunked", "plain"):
        with FakeTensorMode():
            states, table = torch.randn(positions, hidden, requires_grad=True), torch.nn.Parameter(torch.randn(vocab, hidden))
            targets, weights = torch.randint(0, vocab, (positions,)), torch.ones(positions)
            with Live() as live:
                if name == "chunked":
                    chunked_loss(states, table, None, targets, weights, chunk=1024, product=torch.bfloat16,
                                 kept=torch.arange(positions), into_table=1.0).total.backward()
                else:
                    F.cross_entropy((states.bfloat16() @ table.bfloat16().T).float(), targets, reduction="sum").backward()
            peaks[name] = live.most
    logits, tables = 4 * positions * vocab, 4 * vocab * hidden + 2 * vocab * hidden  # fp32; the table's gradient and its bf16 copy
    assert peaks["plain"] > 2 * logits + tables
    assert peaks["chunked"] < logits / 2 + 1.5 * tables
