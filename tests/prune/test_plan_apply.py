"""Plans: text that reads back, operations computed as stated, results that depend on nothing else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from penjing.errors import ConfigError, InputError
from penjing.files import hash_tree, read_json, write_json
from penjing.models import tiny
from penjing.models.checkpoint import load_model, open_checkpoint
from penjing.prune import cut, plan
from penjing.prune.plan import Operation


@given(st.lists(st.integers(0, 300), unique=True))
def test_runs_read_back(indices: list[int]) -> None:
    assert plan.read_runs(plan.write_runs(indices), where="x") == indices


@pytest.mark.parametrize("text", ["a", "1-", "3-b", "1,,2", "-1"])
def test_runs_that_are_none(text: str) -> None:
    with pytest.raises(ConfigError, match=r"p: '.*' is not an index or a run"):
        plan.read_runs(text, where="p")


def test_the_result_does_not_depend_on_the_shards_of_the_source(tmp_path: Path) -> None:
    model = tiny.save("qwen2", tmp_path / "one")
    model.save_pretrained(tmp_path / "many", max_shard_size="6KB")
    (tmp_path / "bin").mkdir()
    torch.save(model.state_dict(), tmp_path / "bin" / "pytorch_model.bin")
    (tmp_path / "bin" / "config.json").write_bytes((tmp_path / "one" / "config.json").read_bytes())
    (tmp_path / "bin" / "generation_config.json").write_bytes((tmp_path / "one" / "generation_config.json").read_bytes())
    hashes = []
    for name in ("one", "many", "bin"):
        with open_checkpoint(tmp_path / name) as source:
            pruning = plan.build(source.config, layers={"layers": [0, 2]}, keep={"hidden": np.arange(0, 32, 2)})
            cut.apply(pruning, source, tmp_path / f"{name}-cut")
        hashes.append(hash_tree(tmp_path / f"{name}-cut"))
    assert len(set(hashes)) == 1
    config = open_checkpoint(tmp_path / "one-cut").config
    assert config["layer_types"] == ["full_attention", "sliding_attention"] and config["max_window_layers"] == 1


def test_streamed_is_bitwise_what_slicing_in_memory_gives(tmp_path: Path) -> None:
    model = tiny.make("llama").to(torch.bfloat16)
    model.save_pretrained(tmp_path / "source")
    rows = np.array([1, 2, 5, 30])
    with open_checkpoint(tmp_path / "source") as source:
        pruning = plan.build(
            source.config, keep={"hidden": rows, **{f"layers.{layer}.ffn": np.array([3, 9]) for layer in range(3)}}
        )
        cut.apply(pruning, source, tmp_path / "out")
    state = model.state_dict()
    result = open_checkpoint(tmp_path / "out")
    assert result.dtype("lm_head.weight") == "BF16"
    down = state["model.layers.2.mlp.down_proj.weight"][rows][:, [3, 9]]
    assert torch.equal(result.read("model.layers.2.mlp.down_proj.weight"), down)
    assert torch.equal(result.read("model.embed_tokens.weight"), state["model.embed_tokens.weight"][:, rows])


def test_operations_do_what_they_say(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    model = tiny.save("llama", tmp_path / "source")
    state = {name: value.double().numpy() for name, value in model.state_dict().items()}
    name = "model.layers.0.mlp.down_proj.weight"
    matrix, scale = rng.normal(size=(16, 32)).astype(np.float32), rng.normal(size=24).astype(np.float32)
    added, other = rng.normal(size=(16, 24)).astype(np.float32), rng.normal(size=(24, 16)).astype(np.float32)
    with open_checkpoint(tmp_path / "source") as source:
        pruning = plan.build(source.config, keep={"hidden": np.arange(16)})
        pruning = plan.with_operations(
            pruning,
            {
                name: [
                    Operation("map", 0, matrix),
                    Operation("scale", 1, scale),
                    Operation("multiply", value=0.5),
                    Operation("add", array=added),
                ],
                "model.layers.1.mlp.up_proj.weight": [Operation("replace", array=other)],
                "model.layers.1.self_attn.q_proj.weight": [Operation("map", 1, matrix)],
            },
        )
        pruning.save(tmp_path / "plan")
        again = plan.load(tmp_path / "plan")
        cut.apply(again, source, tmp_path / "out")
        cut.apply(pruning, source, tmp_path / "direct")
    assert hash_tree(tmp_path / "out") == hash_tree(tmp_path / "direct")
    result = open_checkpoint(tmp_path / "out")
    assert np.allclose(result.read_float(name), 0.5 * matrix @ (state[name] * scale) + added, atol=1e-5)
    assert np.array_equal(result.read_float("model.layers.1.mlp.up_proj.weight"), other)
    query = "model.layers.1.self_attn.q_proj.weight"
    assert np.allclose(result.read_float(query), state[query] @ matrix.T, atol=1e-5)
    with (
        open_checkpoint(tmp_path / "source") as source,
        pytest.raises(ConfigError, match=r"the array of 'map' on '.*' has the wrong"),
    ):
        cut.apply(plan.with_operations(pruning, {query: [Operation("map", 0, matrix)]}), source, tmp_path / "bad")
    assert not (tmp_path / "bad").exists()


def test_an_untied_head_is_made_from_the_embedding(tmp_path: Path) -> None:
    model = tiny.save("llama-tied-biased", tmp_path / "source")
    scale = np.linspace(0.5, 2, 32).astype(np.float32)
    with open_checkpoint(tmp_path / "source") as source:
        pruning = plan.build(
            source.config,
            overrides={"tie_word_embeddings": False},
            made_from={"lm_head.weight": "model.embed_tokens.weight"},
            operations={"lm_head.weight": (Operation("scale", 1, scale),)},
        )
        pruning.save(tmp_path / "plan")
        cut.apply(plan.load(tmp_path / "plan"), source, tmp_path / "out")
    loaded = load_model(tmp_path / "out")
    embedding = model.get_input_embeddings().weight
    assert torch.equal(loaded.get_input_embeddings().weight, embedding)
    assert torch.allclose(loaded.lm_head.weight, embedding * torch.from_numpy(scale))


def test_t5_without_its_first_block_keeps_its_positions(tmp_path: Path) -> None:
    model = tiny.save("t5", tmp_path / "source")
    with open_checkpoint(tmp_path / "source") as source:
        cut.apply(plan.build(source.config, layers={"decoder": [1, 2]}), source, tmp_path / "out")
    table = "decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    assert torch.equal(load_model(tmp_path / "out").state_dict()[table], model.state_dict()[table])


def test_damaged_plans_are_refused(tmp_path: Path) -> None:
    tiny.save("llama", tmp_path / "source")
    pruning = plan.build(open_checkpoint(tmp_path / "source").config, layers={"layers": [0, 2]})
    pruning.save(tmp_path / "plan")
    file = tmp_path / "plan" / "plan.json"
    value = read_json(file)
    for change, error, message in (
        ({"version": 9}, InputError, "a plan of another version; found 9; expected 1"),
        ({"layers": {"layers": "0,7"}}, ConfigError, "index out of range among the layers of layers; found 7"),
        ({"layers": {"layers": "0,x"}}, ConfigError, "layers.layers: 'x' is not an index or a run"),
        ({"keep": {"hidden": "3,3"}}, ConfigError, "index repeated among the places of hidden; found 3"),
    ):
        write_json(file, {**value, **change})
        with pytest.raises(error) as caught:
            plan.load(tmp_path / "plan")
        assert message in str(caught.value)
    write_json(file, {"version": 1})
    with pytest.raises(InputError, match=r"not a pruning plan: no 'source'"):
        plan.load(tmp_path / "plan")


def test_a_second_copy_of_a_tied_weight_must_be_equal(tmp_path: Path) -> None:
    from penjing.models.checkpoint import write_checkpoint

    model = tiny.make("llama-tied-biased")
    state = dict(model.state_dict())
    config = model.config.to_dict()
    state["lm_head.weight"] = state["model.embed_tokens.weight"].clone()
    write_checkpoint(tmp_path / "equal", config=config, tensors=state)
    with open_checkpoint(tmp_path / "equal") as source:
        cut.apply(plan.build(source.config, layers={"layers": [0]}), source, tmp_path / "out")
    assert "lm_head.weight" not in open_checkpoint(tmp_path / "out").names
    state["lm_head.weight"] = state["lm_head.weight"] + 1
    write_checkpoint(tmp_path / "other", config=config, tensors=state)
    with (
        open_checkpoint(tmp_path / "other") as source,
        pytest.raises(InputError, match=r"differ although the configuration ties them"),
    ):
        cut.apply(plan.build(source.config, layers={"layers": [0]}), source, tmp_path / "bad")
