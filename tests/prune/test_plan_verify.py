"""Cutting equals masking, for every family and axis; and a wrong table does not get through."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from penjing.models import tiny
from penjing.models.families import bloom, gpt2, llama, t5
from penjing.models.family import Family, Row, Stack
from penjing.prune.verify import verify

FAST = ("llama", "qwen3", "gpt2", "codegen", "t5", "openba")


@pytest.mark.parametrize("case", [case if case in FAST else pytest.param(case, marks=pytest.mark.slow) for case in tiny.CASES])
def test_cut_equals_mask(case: str) -> None:
    checks = verify(tiny.make(case))
    assert len(checks) >= 7
    assert not [check for check in checks if not check.passed]


def _with_row(family: Family, name: str, axes: str) -> Family:
    def changed(row: Row) -> Row:
        return replace(row, axes=axes) if row.name == name else row

    stacks = tuple(Stack(stack.name, stack.prefix, stack.size, tuple(map(changed, stack.rows))) for stack in family.stacks)
    return replace(family, stacks=stacks, rows=tuple(map(changed, family.rows)))


@pytest.mark.parametrize(("case", "module", "name", "axes"), [
    ("llama", llama, "mlp.down_proj.weight", "hidden, 24"),
    ("llama", llama, "self_attn.o_proj.weight", "hidden, head_dim*head"),
    ("gpt2", gpt2, "attn.c_attn.weight", "hidden, head*3*head_dim"),
    ("bloom", bloom, "self_attention.query_key_value.weight", "head*head_dim+head*head_dim+head*head_dim, hidden"),
    ("t5", t5, "layer.0.SelfAttention.relative_attention_bias.weight", "bucket, 3"),
])
def test_a_wrong_label_is_found(case: str, module: Any, name: str, axes: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FAMILY", _with_row(module.FAMILY, name, axes))
    assert [check for check in verify(tiny.make(case)) if not check.passed]


def test_a_forgotten_config_key_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {name: key for name, key in llama.FAMILY.keys.items() if name != "head_dim"}
    monkeypatch.setattr(llama, "FAMILY", replace(llama.FAMILY, keys=keys))
    assert [check for check in verify(tiny.make("llama")) if not check.passed]


def test_a_forgotten_scale_of_the_tied_head_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(t5, "FAMILY", replace(t5.FAMILY, scaled_head=lambda config: False))
    failed = [check.name for check in verify(tiny.make("t5")) if not check.passed]
    assert failed == ["cutting hidden equals masking"]
