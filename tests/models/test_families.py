"""Every table names exactly the weights that transformers makes, with their shapes, and the counts follow from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from penjing.errors import InputError
from penjing.models import axes, cost, tiny
from penjing.models.checkpoint import load_model, open_checkpoint, write_checkpoint
from penjing.models.family import names, of
from penjing.prune import cut, plan


@pytest.mark.parametrize("case", tiny.CASES)
def test_table_is_the_state_dict(case: str, tmp_path: Path) -> None:
    model = tiny.save(case, tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    family = of(checkpoint.config)
    table = family.tensors(checkpoint.config)
    found = family.match(checkpoint.config, checkpoint.names)
    assert {name: tensor.shape for name, tensor in table.items()} == {name: checkpoint.shape(found[name]) for name in table}
    state = model.state_dict()
    assert set(state) == set(table) | (set(family.tied_aliases(checkpoint.config)) & set(state))
    assert cost.count_parameters(checkpoint.config) == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("case", tiny.CASES)
def test_flops_are_six_per_weight_plus_attention(case: str) -> None:
    config = tiny.make(case).config.to_dict()
    family = of(config)
    sizes = family.sizes(config)
    tables = sum(tensor.kind == "embedding" for tensor in family.tensors(config).values())
    assert tables >= 1
    per_token = cost.flops_per_token(config, sequence_length=16)
    assert per_token < 6 * (cost.count_parameters(config) + sizes["vocab"] * sizes["hidden"]) + 1e5
    assert per_token > cost.flops_per_token(config, sequence_length=8) > 0


def test_every_family_that_transformers_has_is_tried() -> None:
    assert {"chatglm"} | {tiny.CASES[case][0] for case in tiny.CASES} >= {name.replace("-", "_") for name in names()}


def test_names_of_the_bare_model_and_buffers_are_known() -> None:
    """Published GPT-2, BLOOM and OPT files leave the prefix out; old ones hold causal masks; T5's hold the embedding
    three times.
    """
    for case, prefix in (("gpt2", "transformer."), ("bloom", "transformer."), ("opt", "model.")):
        config = tiny.make(case).config.to_dict()
        table = of(config).tensors(config)
        bare = [name.removeprefix(prefix) for name in table]
        found = of(config).match(config, [*bare, "lm_head.weight", *(["h.0.attn.bias"] if case == "gpt2" else [])])
        assert [found[name] for name in table] == bare
    config = tiny.make("t5").config.to_dict()
    table = of(config).tensors(config)
    found = of(config).match(config, [*table, "encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"])
    assert set(found) == set(table)
    only_alias = [name for name in table if name != "shared.weight"] + ["decoder.embed_tokens.weight"]
    assert of(config).match(config, only_alias)["shared.weight"] == "decoder.embed_tokens.weight"


def test_chatglm_counts_what_was_published() -> None:
    """ChatGLM2-6B and 3-6B: 6,243,584,000 parameters; with the 32 rotary frequencies in the file, the 12,487,168,064 bytes that its
    published index states.
    """
    config = {
        "model_type": "chatglm",
        "padded_vocab_size": 65024,
        "hidden_size": 4096,
        "num_layers": 28,
        "num_attention_heads": 32,
        "multi_query_group_num": 2,
        "kv_channels": 128,
        "ffn_hidden_size": 13696,
        "add_qkv_bias": True,
        "add_bias_linear": False,
    }
    assert cost.count_parameters(config) == 6_243_584_000
    assert 2 * (cost.count_parameters(config) + 32) == 12_487_168_064
    table = of(config).tensors(config)
    assert len(table) == 28 * 7 + 3
    assert table["transformer.encoder.layers.0.self_attention.query_key_value.weight"].shape == (4608, 4096)
    smaller = of(config).resize(config, heads=16, kv_heads=1, ffn=6848)
    assert of(smaller).tensors(smaller)["transformer.encoder.layers.9.mlp.dense_h_to_4h.weight"].shape == (2 * 6848, 4096)


def as_chatglm(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights of a native GLM under the names and in the layouts of the published ChatGLM code."""
    ends = {"model.embed_tokens.weight": "transformer.embedding.word_embeddings.weight",
            "model.norm.weight": "transformer.encoder.final_layernorm.weight", "lm_head.weight": "transformer.output_layer.weight"}
    parts = {"self_attn.o_proj.weight": "self_attention.dense.weight", "mlp.gate_up_proj.weight": "mlp.dense_h_to_4h.weight",
             "mlp.down_proj.weight": "mlp.dense_4h_to_h.weight", "input_layernorm.weight": "input_layernorm.weight",
             "post_attention_layernorm.weight": "post_attention_layernorm.weight"}
    found = {}
    for name, value in state.items():
        if name in ends:
            found[ends[name]] = value
            continue
        _, _, layer, part = name.split(".", 3)
        place = f"transformer.encoder.layers.{layer}."
        if part in parts:
            found[place + parts[part]] = value
        elif part.startswith("self_attn.q_proj."):
            kind = part.rpartition(".")[2]
            fused = [state[f"model.layers.{layer}.self_attn.{one}_proj.{kind}"] for one in "qkv"]
            found[f"{place}self_attention.query_key_value.{kind}"] = torch.cat(fused)
    return found


def test_chatglm_is_cut_as_the_native_glm_that_it_is(tmp_path: Path) -> None:
    """Both tables cut the same model: the results are the same weights in two layouts, along every axis and in depth."""
    model = tiny.save("glm", tmp_path / "glm")
    old = model.config
    config = {"model_type": "chatglm", "padded_vocab_size": 48, "hidden_size": 32, "num_layers": 3, "num_attention_heads": 4,
              "multi_query_attention": True, "multi_query_group_num": 2, "kv_channels": 8, "ffn_hidden_size": 24,
              "add_qkv_bias": True, "layernorm_epsilon": old.rms_norm_eps}
    inverse = {"transformer.rotary_pos_emb.inv_freq": torch.zeros(2)}
    write_checkpoint(tmp_path / "chatglm", config=config, tensors=as_chatglm(dict(model.state_dict())) | inverse)
    rng = np.random.default_rng(0)
    keep = {"hidden": np.sort(rng.permutation(32)[:20]), "vocab": np.arange(40)}
    for layer in range(3):
        groups = rng.permutation(2)[:1]
        keep |= {f"layers.{layer}.ffn": np.sort(rng.permutation(24)[:10]), f"layers.{layer}.kv_head": groups,
                 f"layers.{layer}.head": np.arange(2 * groups[0], 2 * groups[0] + 2)}
    for name in ("glm", "chatglm"):
        with open_checkpoint(tmp_path / name) as source:
            made = plan.corrected(plan.build(source.config, layers={"layers": [0, 2]}, keep=keep), norm_scale="mask")
            cut.apply(made, source, tmp_path / f"{name}-cut")
    native = as_chatglm(dict(load_model(tmp_path / "glm-cut").state_dict()))
    with open_checkpoint(tmp_path / "chatglm-cut") as found:
        assert set(found.names) == set(native)
        for name, value in native.items():
            assert torch.equal(found.read(name), value)
        assert of(found.config).sizes(found.config) == of(found.config).sizes(
            config | {"padded_vocab_size": 40, "hidden_size": 20, "num_layers": 2, "num_attention_heads": 2,
                      "multi_query_group_num": 1, "ffn_hidden_size": 10})


@pytest.mark.parametrize(("change", "what"), [
    ({"padded_vocab_size": None}, "the first ChatGLM-6B"),
    ({"multi_query_attention": False}, "each head holds its own query, key and value"),
    ({"rmsnorm": False}, "a ChatGLM with other norms"),
])
def test_other_models_of_the_same_type_are_refused(change: dict[str, Any], what: str) -> None:
    config = {"model_type": "chatglm", "padded_vocab_size": 48, "hidden_size": 32, "num_layers": 3, "num_attention_heads": 4,
              "multi_query_group_num": 2, "kv_channels": 8, "ffn_hidden_size": 24, **change}
    config = {key: value for key, value in config.items() if value is not None}
    with pytest.raises(InputError, match=rf"this is .*{what}.*, which the chatglm table is not for; write a table for it"):
        of(config).sizes(config)


def test_head_rows_of_a_fused_projection() -> None:
    sizes, kept = {"head": 4, "head_dim": 2}, {"head": [0, 2]}
    gathered = {
        label: axes.gather(label, sizes, kept).tolist() for label in ("head*3*head_dim", "head*head_dim", "head*2*head_dim")
    }
    assert gathered["head*3*head_dim"] == [0, 1, 2, 3, 4, 5, 12, 13, 14, 15, 16, 17]
    assert gathered["head*head_dim"] == [0, 1, 4, 5]
    assert gathered["head*2*head_dim"] == [0, 1, 2, 3, 8, 9, 10, 11]


_LABELS = ("head", "head*dim", "head*3*dim", "head*dim+head*dim", "dim*head", "head/2*3*head%2*dim", "dim+head*2", "3*head")


@given(label=st.sampled_from(_LABELS), heads=st.integers(1, 5), dim=st.integers(1, 3), data=st.data())
def test_gathering_is_what_a_labelled_array_says(label: str, heads: int, dim: int, data: st.DataObject) -> None:
    """Every place carries (term, head, rest); after the cut the same tags stand in the same order, without the heads
    that went.
    """
    heads *= 2
    keep = sorted(data.draw(st.sets(st.integers(0, heads - 1), min_size=2).map(lambda kept: sorted(kept)[: len(kept) // 2 * 2])))
    sizes, kept = {"head": heads, "dim": dim}, {"head": np.array(keep)}
    owners = axes.owners(label, "head", sizes)
    assert owners is not None and len(owners) == axes.size(label, sizes)
    index = axes.gather(label, sizes, kept)
    index = np.arange(len(owners)) if index is None else index
    assert len(index) == axes.size(label, {**sizes, "head": len(keep)})
    small = axes.owners(label, "head", {**sizes, "head": len(keep)})
    assert small is not None
    assert [-1 if place < 0 else keep[place] for place in small] == owners[index].tolist()
    assert len(set(index.tolist())) == len(index)


def test_rows_of_blocks_that_each_hold_three_parts() -> None:
    label, sizes = "head/2*3*head%2*head_dim", {"head": 4, "head_dim": 1}
    assert axes.gather(label, sizes, {"head": [1, 2]}).tolist() == [1, 3, 5, 6, 8, 10]
    assert axes.gather(label, sizes, {"head": [0, 1, 2, 3]}) is None


def test_unknown_architecture_says_what_to_write_where() -> None:
    with pytest.raises(
        InputError,
        match=r"unknown architecture 'lama'.*write its table of axes in models/families/lama.py.*"
        r"did you mean 'llama'",
    ):
        of({"model_type": "lama"})


def test_missing_and_extra_tensors_are_named(tmp_path: Path) -> None:
    tiny.save("llama", tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    family = of(checkpoint.config)
    with pytest.raises(InputError, match=r"1 of the 30 tensors of llama are missing, first 'model.norm.weight'"):
        family.match(checkpoint.config, [name for name in checkpoint.names if name != "model.norm.weight"])
    with pytest.raises(InputError, match=r"1 tensors are in no row of the llama table, first 'model.extra'"):
        family.match(checkpoint.config, [*checkpoint.names, "model.extra"])
    family.match(checkpoint.config, [*checkpoint.names, "model.layers.0.self_attn.rotary_emb.inv_freq"])
