"""Width: groups before heads, random as the authors drew it, magnitude as the weights have it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from penjing.errors import ConfigError
from penjing.models import tiny
from penjing.models.checkpoint import open_checkpoint
from penjing.prune import plan, rules, width


def test_random_follows_the_authors(tmp_path: Path) -> None:
    tiny.save("openba", tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    sizes = {"hidden": 16, "heads": 3, "ffn": 12}
    scores = width.random(width.Context(checkpoint, seed=3), width.shrinking_units(checkpoint.config, sizes))
    keep = width.select(checkpoint.config, sizes, scores)
    assert len(keep["hidden"]) == 16
    for layer in range(3):
        assert np.array_equal(keep[f"decoder.{layer}.head"], keep[f"decoder.{layer}.cross_head"])
    drawn = {tuple(places) for unit, places in keep.items() if unit.endswith(".ffn")}
    assert len(drawn) == 5 and all(list(places) == sorted(places) for places in drawn)
    again = width.select(
        checkpoint.config, sizes, width.random(width.Context(checkpoint, seed=3), {"decoder.1.ffn": 24}) | scores
    )
    assert np.array_equal(again["decoder.1.ffn"], keep["decoder.1.ffn"])


def test_magnitude_is_the_norm_of_all_that_belongs_to_a_place(tmp_path: Path) -> None:
    model = tiny.save("llama", tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    scores = width.magnitude(width.Context(checkpoint), {"layers.1.ffn": 24, "layers.1.head": 4, "layers.1.kv_head": 2})
    layer = {name: value.double() for name, value in model.model.layers[1].state_dict().items()}
    ffn = (
        layer["mlp.gate_proj.weight"].square().sum(1)
        + layer["mlp.up_proj.weight"].square().sum(1)
        + layer["mlp.down_proj.weight"].square().sum(0)
    )
    heads = layer["self_attn.q_proj.weight"].square().sum(1).view(4, 8).sum(1) + layer["self_attn.o_proj.weight"].square().sum(
        0
    ).view(4, 8).sum(1)
    groups = sum(layer[f"self_attn.{part}_proj.weight"].square().sum(1).view(2, 8).sum(1) for part in "kv")
    for unit, expected in (("ffn", ffn), ("head", heads), ("kv_head", groups)):
        assert np.allclose(scores[f"layers.1.{unit}"], expected.sqrt().numpy())


def test_whole_groups_go_before_heads_within_groups() -> None:
    config = tiny.make("llama").config.to_dict()
    assert rules.complete(config, {"heads": 2}) == {"heads": 2, "kv_heads": 1}
    scores = {
        f"layers.{layer}.{unit}": np.array(values, float)
        for layer in range(3)
        for unit, values in (("kv_head", [1, 2]), ("head", [9, 8, 1, 2]))
    }
    keep = width.select(config, {"heads": 2, "kv_heads": 1}, scores)
    assert keep["layers.0.kv_head"].tolist() == [1] and keep["layers.0.head"].tolist() == [2, 3]
    keep = width.select(config, {"heads": 2, "kv_heads": 2}, scores)
    assert "layers.0.kv_head" not in keep and keep["layers.0.head"].tolist() == [0, 3]


def test_best_keeps_the_lower_place_of_equals_and_no_nan() -> None:
    assert width.best(np.array([1.0, 3.0, 3.0, np.nan, 3.0]), 2).tolist() == [1, 2]
    assert width.best(np.array([np.nan, -np.inf, 0.0]), 1).tolist() == [2]


def test_metric_names_are_places() -> None:
    assert width.metric("penjing.prune.width:magnitude") is width.magnitude
    with pytest.raises(ConfigError, match=r"unknown importance metric 'randon'.*did you mean 'random'"):
        width.metric("randon")


@pytest.mark.parametrize(
    ("case", "sizes", "message"),
    [
        ("bloom", {"ffn": 64}, "ffn cannot be 64: it is always 4 x hidden"),
        ("bloom", {"heads": 2, "hidden": 24}, "hidden must be heads x head_dim in bloom: 2 x 8 is 16, not 24"),
        ("llama", {"hidden": 30}, "hidden 30 is not a multiple of 4 heads, and transformers loads no llama without that"),
        ("llama", {"heads": 3, "kv_heads": 2}, "3 heads cannot share 2 key/value heads equally"),
        ("gpt2", {"hidden": 24, "heads": 2}, "hidden must be heads x head_dim in gpt2: 2 x 8 is 16, not 24"),
        ("codegen", {"heads": 6, "hidden": 48}, "heads 6 is not a multiple of 4"),
        ("llama", {"head_dim": 4}, "head_dim stays 8: rotary positions"),
        ("llama", {"heads": 4, "kv_heads": 1}, "4 heads on 1 key/value heads is 4 per group, more than the 2 there are"),
        ("llama", {"hiden": 4}, "llama has no size 'hiden'"),
        ("t5", {"kv_heads": 2}, "t5 has no size 'kv_heads'"),
    ],
)
def test_rules_of_architectures(case: str, sizes: dict[str, int], message: str) -> None:
    config = tiny.make(case).config.to_dict()
    assert any(message in problem for problem in rules.problems(config, sizes))


def test_nearest_legal_sizes_are_offered_and_legal() -> None:
    config = tiny.make("gpt2").config.to_dict()
    offers = rules.nearest(config, {"hidden": 20}, "hidden")
    assert offers == [{"hidden": 16, "heads": 2}, {"hidden": 24, "heads": 3}]
    for offer in offers:
        assert not rules.problems(config, offer)
    with pytest.raises(ConfigError, match=r"nearest legal: ffn 16 \| ffn 24"):
        rules.check(tiny.make("llama").config.to_dict(), {"ffn": 20}, multiple_of={"ffn": 8})


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        ({"layers.0.ffn": [0, 1]}, "llama has one number of ffn for all layers"),
        ({"hidden": [0, 40]}, "index out of range among the places of hidden; found 40; expected 0 to 31"),
        ({"hidden": [1, 1]}, "index repeated among the places of hidden; found 1"),
        ({"hidden": [2, 1]}, "the places of hidden are not in ascending order"),
        ({"hidden": []}, "the places of hidden are cut to zero"),
        ({"layers.9.ffn": [0]}, "llama has no unit 'layers.9.ffn' to cut"),
        ({f"layers.{layer}.head": [0, 1] for layer in range(3)}, "kept heads of layers.0.head do not follow the kept groups"),
    ],
)
def test_plans_are_checked_when_they_are_made(keep: dict[str, list[int]], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        plan.build(tiny.make("llama").config.to_dict(), keep={unit: np.array(places) for unit, places in keep.items()})
    assert message in str(caught.value)
