"""The verify-family stage: proves built-in tables and the table of a directory that holds only config.json."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from penjing.contract import Job
from penjing.errors import ConfigError, GateError
from penjing.files import hash_tree, read_json, write_json
from penjing.models.families import mistral
from penjing.stages import verify_family


def test_a_table_is_proved(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    config = verify_family.Config(families=["mistral"])
    figures = verify_family.run(config, {}, tmp_path / "a", Job())
    assert figures == {"cases": 1, "checks": 11, "failed": 0}
    verify_family.run(config, {}, tmp_path / "b", Job())
    assert hash_tree(tmp_path / "a") == hash_tree(tmp_path / "b")


def test_a_configuration_alone_is_enough(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "out").mkdir()
    write_json(tmp_path / "model" / "config.json", {
        "model_type": "qwen2", "vocab_size": 151936, "hidden_size": 1536, "num_hidden_layers": 28, "num_attention_heads": 12,
        "num_key_value_heads": 2, "intermediate_size": 8960, "tie_word_embeddings": True})
    assert verify_family.run(verify_family.Config(), {"checkpoint": tmp_path / "model"}, tmp_path / "out", Job())["failed"] == 0


def test_a_wrong_table_stops_at_the_gate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mistral, "FAMILY", replace(mistral.FAMILY, norm_eps="epsilon"))
    with pytest.raises(GateError, match=r"1 checks failed, first 'cutting hidden equals masking' of mistral"):
        verify_family.run(verify_family.Config(families=["mistral"]), {}, tmp_path, Job())
    assert [item["passed"] for item in read_json(tmp_path / "verified.json")["cases"]["mistral"]].count(False) == 1


def test_an_unknown_family_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no tiny example of 'lama'; expected one of bloom, codegen"):
        verify_family.run(verify_family.Config(families=["lama"]), {}, tmp_path, Job())
