"""Lighter modules give what the originals gave, and so do their gradients."""

from __future__ import annotations

from pathlib import Path

import torch

from penjing.train.light import lighten
from penjing.train.model import load


def test_lighter_norms_equal_the_originals(tiny_checkpoint: Path) -> None:
    ids = torch.arange(3, 60)[None]
    found = {}
    for light in (False, True):
        model = load(tiny_checkpoint).double()
        model.set_attn_implementation("sdpa")
        assert not light or lighten(model, product=None) == 5
        model(input_ids=ids, labels=ids).loss.backward()
        found[light] = {name: parameter.grad for name, parameter in model.named_parameters()}
    for name, grad in found[False].items():
        torch.testing.assert_close(found[True][name], grad, rtol=0, atol=1e-7)


def test_a_norm_that_is_another_function_is_left_alone() -> None:
    class ShiftedRMSNorm(torch.nn.Module):  # Gemma's: 1 + weight
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.variance_epsilon = torch.nn.Parameter(torch.zeros(8)), 1e-6

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.variance_epsilon) * (1 + self.weight)

    assert lighten(torch.nn.Sequential(ShiftedRMSNorm()), product=None) == 0
