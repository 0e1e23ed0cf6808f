"""Proposals: legal sizes near a share of the parameters, and a schedule in the shape of OpenBA-V2's."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from penjing.errors import ConfigError
from penjing.files import write_json
from penjing.models import cost, tiny
from penjing.models.family import of
from penjing.prune import propose, rules

LLAMA_8B = {"model_type": "llama", "vocab_size": 128256, "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
            "num_key_value_heads": 8, "intermediate_size": 14336, "tie_word_embeddings": False}
LLAMA_70B = {**LLAMA_8B, "hidden_size": 8192, "num_hidden_layers": 80, "num_attention_heads": 64, "intermediate_size": 28672}
OPENBA_15B = {"model_type": "openba", "kv_channels": 128, "vocab_size": 250368, "tie_word_embeddings": True, "num_layers": 12,
              "num_decoder_layers": 36, "hidden_size": 4096, "ffn_hidden_size": 11008, "num_heads": 40}


@pytest.mark.parametrize("config", [LLAMA_8B, LLAMA_70B, OPENBA_15B], ids=["8b", "70b", "openba"])
@pytest.mark.parametrize("keep", [0.8, 0.5, 0.26])
@pytest.mark.parametrize("axes", ["both", "width"])
def test_sizes_come_near_and_are_legal(config: dict[str, Any], keep: float, axes: Any) -> None:
    sizes = propose.sizes_for(config, keep, axes=axes, tensor_parallel=2)
    assert not rules.problems(config, sizes, tensor_parallel=2)
    share = cost.count_parameters(of(config).resize(config, sizes)) / cost.count_parameters(config)
    assert share == pytest.approx(keep, rel=0.03)
    assert sizes["hidden"] % 128 == 0 and sizes["ffn"] % 128 == 0


@pytest.mark.parametrize("case", [case for case in tiny.CASES if case not in ("bloom",)])
def test_every_family_can_be_halved(case: str) -> None:
    model = tiny.make(case)
    config = model.config.to_dict()
    sizes = propose.sizes_for(config, 0.6)
    assert not rules.problems(config, sizes)


def test_alibi_models_are_cut_in_depth() -> None:
    config = {"model_type": "bloom", "vocab_size": 2000, "hidden_size": 256, "n_layer": 24, "n_head": 8}
    sizes = propose.sizes_for(config, 0.5)
    assert set(sizes) == {"layers"} and 10 <= sizes["layers"] <= 14


def test_schedule_cuts_depth_in_steps_and_then_width() -> None:
    schedule = propose.propose(OPENBA_15B, 0.26, tensor_parallel=4)
    assert schedule[0].parameters == 14_567_703_040
    assert schedule[-1].parameters / schedule[0].parameters == pytest.approx(0.26, rel=0.05)
    depths = [item.sizes["encoder_layers"] + item.sizes["decoder_layers"] for item in schedule]
    assert depths == sorted(depths, reverse=True) and depths[-1] == depths[-2] < 48
    assert all(before - after <= 0.25 * before for before, after in pairwise(depths))
    assert all(item.sizes["hidden"] == 4096 for item in schedule[:-1]) and schedule[-1].sizes["hidden"] < 4096
    assert all(set(item.settings) == {"layers"} for item in schedule[1:-1])
    for before, after in pairwise(schedule):
        assert after.recovery_tokens == pytest.approx(10 * (before.parameters - after.parameters))
        assert after.flops_per_token < before.flops_per_token


@pytest.mark.parametrize(("have", "goal", "steps"), [
    ({"layers": 80}, {"layers": 59}, [69, 59]),
    ({"layers": 48}, {"layers": 36}, [36]),
    ({"layers": 3}, {"layers": 2}, [2]),
    ({"layers": 4}, {"layers": 4}, []),
    ({"layers": 32}, {"layers": 8}, [25, 20, 16, 13, 10, 8]),
    ({"layers": 13}, {"layers": 10}, [10]),
])
def test_depth_goes_in_about_equal_shares(have: dict[str, int], goal: dict[str, int], steps: list[int]) -> None:
    assert [step["layers"] for step in propose._steps(have, goal, 0.25)] == steps


def test_heads_of_large_models_stay_divisible() -> None:
    sizes = propose.sizes_for(LLAMA_8B | {"num_attention_heads": 40, "num_key_value_heads": 40, "hidden_size": 5120}, 0.6)
    assert sizes["heads"] % 4 == 0 and sizes["hidden"] % sizes["heads"] == 0


def test_a_70b_is_planned_from_its_configuration_and_reads_like_openba_v2s_table(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from penjing.cli.command_plan import app

    write_json(tmp_path / "config.json", LLAMA_70B)
    result = CliRunner().invoke(app, ["prune", str(tmp_path), "--keep", "0.4"])
    lines = result.stdout.splitlines()
    assert result.exit_code == 0 and lines[0].split()[:2] == ["stage", "#params"] and "FLOPs/token" in lines[0]
    assert lines[2].split()[:4] == ["as", "it", "is", "70.6G"]
    assert [line.split()[0] for line in lines[3:]] == ["stage"] * 3
    assert [line.partition("{")[2].split(":")[0] for line in lines[3:]] == ['"layers"', '"layers"', '"ffn"']


@pytest.mark.parametrize(("keep", "message"), [
    (1.5, "'keep' is the share of parameters that stays; found 1.5"),
    (0.0001, "no legal sizes near keep: 0.0001"),
])
def test_impossible_shares(keep: float, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        propose.sizes_for(LLAMA_8B, keep)
