"""Vocabulary changes on every architecture: kept logits are bit-identical, old logits survive growth, the result loads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from penjing.files import read_json
from penjing.models import tiny
from penjing.models.checkpoint import load_model
from penjing.tokenizer.apply import Rows, apply_plan
from penjing.tokenizer.grow import Wish, plan_growth
from penjing.tokenizer.plan import VocabPlan
from penjing.tokenizer.prune import plan_pruning
from penjing.tokenizer.read import read_vocabulary

DEFAULT = ["llama-tied-biased", "gpt2", "mt5-own-head", "openba"]
ROWS = 520
"""The tokenizer has 512 ids; the rest is padding."""


def cases() -> list[Any]:
    return [pytest.param(case, marks=() if case in DEFAULT else pytest.mark.slow) for case in tiny.CASES]


def logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        if model.config.is_encoder_decoder:
            return model(input_ids=ids, decoder_input_ids=ids).logits
        return model(input_ids=ids).logits


@pytest.mark.parametrize("case", cases())
def test_logits_of_kept_and_old_tokens_are_bit_identical(case: str, shared: Path, tmp_path: Path) -> None:
    model_type, settings = tiny.CASES[case]
    source = tmp_path / "source"
    tiny.build(model_type, {**settings, "vocab_size": ROWS}).save_pretrained(source)
    for name in ("tokenizer.model", "tokenizer.json", "tokenizer_config.json"):
        (source / name).write_bytes((shared / "models" / "stories260K" / name).read_bytes())
    vocabulary = read_vocabulary(source)
    rng = np.random.default_rng(0)
    counts = {"en": rng.integers(1, 1000, vocabulary.total)}
    pruned = plan_pruning(vocabulary, counts, size=400, pad_to_multiple=16)
    characters = np.zeros(0x110000, dtype=np.int64)
    characters[0x4E00:0x4E00 + 100] = np.arange(100, 0, -1)
    grown = plan_growth(vocabulary, characters, None, Wish(600, pad_to_multiple=16))
    old = load_model(source)
    for name, plan in (("pruned", pruned), ("grown", grown)):
        out = tmp_path / name
        apply_plan(plan, vocabulary, source, out, rows=Rows())
        new = load_model(out)
        _same_logits(old, new, plan, rng)
        config = read_json(out / "config.json")
        assert config["vocab_size"] == plan.rows == (400 if name == "pruned" else 608)
        for weight in (new.get_input_embeddings().weight, new.get_output_embeddings().weight):
            assert weight.shape[0] == plan.rows
        assert torch.isfinite(logits(new, torch.arange(plan.size_after - 30, plan.size_after)[None])).all()


def _same_logits(old: Any, new: Any, plan: VocabPlan, rng: np.random.Generator) -> None:
    kept = np.array(plan.kept)
    ids = rng.choice(kept[kept >= 3], size=(2, 12))
    before = logits(old, torch.from_numpy(ids))[..., torch.from_numpy(kept)]
    after = logits(new, torch.from_numpy(plan.new_id_of()[ids]))[..., torch.from_numpy(plan.new_id_of()[kept])]
    assert torch.equal(before, after)
