"""D-UL2 in the train stage against a model: its losses on the batches that move the shares take the place of constants."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from penjing.contract import Job
from penjing.errors import ConfigError
from penjing.files import hash_tree, read_json
from penjing.objectives.tokens import write_tokens
from penjing.stages import train

SPECIAL = {**{f"<extra_id_{i}>": 199 - i for i in range(60)}, "<R>": 200, "<S>": 201, "<X>": 202}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    from penjing.models.openba import OpenBAConfig, OpenBAForConditionalGeneration

    rng = np.random.default_rng(0)
    root = tmp_path_factory.mktemp("reference")
    texts = [np.append(3 + (int(rng.integers(90)) + np.arange(int(rng.integers(40, 200)))) % 90, 1) for _ in range(80)]
    write_tokens(root / "tokens", {"counting": [(text,) for text in texts]}, vocab_size=203, eos_id=1, special=SPECIAL)
    for name, seed in (("model", 0), ("other", 1)):
        torch.manual_seed(seed)
        OpenBAForConditionalGeneration(OpenBAConfig(
            vocab_size=203, hidden_size=32, kv_channels=8, ffn_hidden_size=48, num_layers=1, num_decoder_layers=2, num_heads=4,
            hidden_dropout=0.0, attention_dropout=0.0, max_seq_length=256, decoder_max_seq_length=256)).save_pretrained(root / name)
    return {name: root / name for name in ("tokens", "model", "other")}


def config(**more: object) -> train.Config:
    return train.Config(**{"tokens": 4000, "lr": 1e-2, "precision": "fp32", "objective": "d-ul2", "architecture": "encoder-decoder",
                           "sequence_length": 96, "decoder_length": 96, "piece_length": 40, "batch_rows": 4, "reweigh_every": 3,
                           "reweigh_batches": 2, "denoiser_shares": [1] * 7, **more})


def test_shares_move_by_what_is_lost_against_the_reference(made: dict[str, Path], tmp_path: Path) -> None:
    inputs = {"checkpoint": made["model"], "tokens": [made["tokens"]], "held_out": made["tokens"]}
    found = train.run(config(), inputs | {"reference": made["other"]}, tmp_path / "model", Job())
    losses = found["reference_losses"]
    assert len(losses) == 7 and all(abs(loss - np.log(203)) < 0.5 for loss in losses), "a random model is near uniform"
    same = train.run(config(reference_losses=losses), inputs, tmp_path / "constants", Job())
    other = train.run(config(reference_losses=[9.0, 9.0, 9.0, 9.0, 9.0, 9.0, 1.0]), inputs, tmp_path / "wrong", Job())
    assert "reference_losses" not in same and "reference_losses" not in other
    shares = {name: read_json(tmp_path / name / "train.json")["denoiser_shares"] for name in ("model", "constants", "wrong")}
    np.testing.assert_allclose(shares["model"], shares["constants"], atol=2e-3)
    assert shares["wrong"][6] > 0.5 > max(shares["model"])


def test_a_reference_is_part_of_what_a_run_is(made: dict[str, Path], tmp_path: Path) -> None:
    inputs = {"checkpoint": made["model"], "tokens": [made["tokens"]], "held_out": made["tokens"], "reference": made["other"]}
    hashes = []
    for name in ("once", "again"):
        train.run(config(tokens=1500), inputs, tmp_path / name, Job())
        hashes.append(hash_tree(tmp_path / name, ignore=frozenset({"state", "metrics.jsonl", "tensorboard"})))
    assert hashes[0] == hashes[1]
    assert json.loads((tmp_path / "once" / "train.json").read_text())["denoiser_shares"]


def test_a_reference_without_d_ul2_is_refused(made: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="only d-ul2 has a use for a reference model"):
        train.run(config(objective="ul2"), {"checkpoint": made["model"], "tokens": [made["tokens"]], "reference": made["other"]},
                  tmp_path, Job())
