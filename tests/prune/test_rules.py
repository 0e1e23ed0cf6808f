"""What architectures demand of sizes is what transformers and the weights demand, no more and no less."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from huggingface_hub.errors import StrictDataclassClassValidationError

from penjing.errors import ConfigError
from penjing.files import read_json, write_json
from penjing.models import tiny
from penjing.models.checkpoint import load_model, open_checkpoint
from penjing.models.families.bloom import alibi_exponents, alibi_heads
from penjing.models.family import of
from penjing.prune import cut, plan, propose, rules
from penjing.prune.request import Request, check_sizes, make_plan


def makes(config: dict[str, Any]) -> str:
    """What plain transformers says to a configuration: nothing, or why not."""
    try:
        settings = transformers.AutoConfig.for_model(**config)
        with torch.device("meta"):
            transformers.AutoModelForCausalLM.from_config(settings)
    except (ValueError, StrictDataclassClassValidationError) as error:
        return str(error)
    return ""


@pytest.mark.parametrize("case", ["llama", "mistral", "qwen2", "qwen3", "glm", "glm4", "gpt2", "opt", "bloom", "codegen"])
@pytest.mark.parametrize("with_head_dim", [True, False])
def test_sizes_that_pass_are_sizes_that_transformers_makes(case: str, with_head_dim: bool) -> None:
    config = {key: value for key, value in tiny.make(case).config.to_dict().items() if value is not None}
    if not with_head_dim and config.get("head_dim") == config.get("hidden_size", 0) // 4:
        del config["head_dim"]
    legal = 0
    for hidden, heads in product((12, 16, 20, 24, 30, 32), (1, 2, 3, 4)):
        sizes = rules.complete(config, {"hidden": hidden, "heads": heads})
        found = rules.problems(config, sizes)
        if not found:
            assert makes(of(config).resize(config, sizes)) == ""
            legal += 1
        elif case == "llama" and "not a multiple" in found[0]:
            assert "not a multiple of the number of attention heads" in makes(of(config).resize(config, sizes))
    assert legal >= (1 if of(config).hidden_is_heads else 10)


def test_nearest_sizes_of_a_13b_are_ones_it_can_have() -> None:
    config = {"model_type": "llama", "vocab_size": 32000, "hidden_size": 5120, "num_hidden_layers": 40, "num_attention_heads": 40,
              "num_key_value_heads": 40, "intermediate_size": 13824}
    with pytest.raises(ConfigError, match=r"hidden 5120 is not a multiple of 24 heads.*nearest legal: heads 20, kv_heads 20 \| heads 32, "):
        rules.check(config, rules.complete(config, {"heads": 24}))
    with pytest.raises(ConfigError, match=r"nearest legal: hidden 3480 \| hidden 3520"):
        rules.check(config, {"hidden": 3500})
    with pytest.raises(ConfigError, match=r"heads 20 does not divide among 8 tensor-parallel ranks.*: heads 16, kv_heads 16 \| heads 32"):
        check_sizes(Request(heads=20, tensor_parallel=8), config)
    with pytest.raises(ConfigError, match=r"multiple_of names 'hiden', and llama has vocab, hidden"):
        check_sizes(Request(layers=20, multiple_of={"hiden": 64}), config)
    for keep, axes in product((0.3, 0.5, 0.7), ("both", "width")):
        sizes = propose.sizes_for(config, keep, axes=axes)  # type: ignore[arg-type]
        assert sizes["hidden"] % sizes["heads"] == 0


@pytest.mark.parametrize("heads", [8, 12, 32, 112])
def test_alibi_slopes_are_those_of_transformers_and_so_are_the_heads_that_keep_them(heads: int) -> None:
    from transformers.models.bloom.modeling_bloom import build_alibi_tensor

    def slopes(count: int) -> torch.Tensor:
        return build_alibi_tensor(torch.ones(1, 2), count, torch.float32)[:, 0, 1]

    torch.testing.assert_close(slopes(heads), torch.tensor([2.0 ** -float(x) for x in alibi_exponents(heads)]))
    for fewer in range(1, heads):
        kept = alibi_heads(heads, fewer)
        assert len(set(kept)) == fewer
        torch.testing.assert_close(slopes(heads)[kept], slopes(fewer))
    assert alibi_heads(112, 100) == list(range(100)) and alibi_heads(32, 16) == list(range(1, 32, 2))


def test_heads_under_alibi_are_those_whose_slopes_the_smaller_model_has(tmp_path: Path) -> None:
    tiny.save("bloom", tmp_path / "model")
    with open_checkpoint(tmp_path / "model") as source:
        made, _ = make_plan(Request(heads=3, importance="magnitude"), source, [])
        assert [made.keep[f"layers.{layer}.head"].tolist() for layer in range(3)] == [[1, 3, 0]] * 3
        made.save(tmp_path / "plan")
        cut.apply(plan.load(tmp_path / "plan"), source, tmp_path / "out")
        small = load_model(tmp_path / "out").config
        assert (small.hidden_size, small.n_head) == (24, 3)
        value = read_json(tmp_path / "plan" / "plan.json")
        value["keep"]["layers.1.head"] = "0-2"
        write_json(tmp_path / "plan" / "plan.json", value)
        with pytest.raises(ConfigError, match=r"heads of layers.1.head would see other distances.*found 0-2; expected 1,3,0; keep those"):
            plan.load(tmp_path / "plan")
        forced, _ = make_plan(Request(heads=3, importance="magnitude", force=True), source, [])
        assert all(np.all(np.diff(forced.keep[f"layers.{layer}.head"]) > 0) for layer in range(3))
        forced.save(tmp_path / "forced")
        cut.apply(plan.load(tmp_path / "forced"), source, tmp_path / "forced-out")


@pytest.mark.parametrize("case", ["t5", "mt5"])
def test_heads_that_share_one_table_of_positions_go_together(case: str) -> None:
    config = tiny.make(case).config.to_dict()
    with pytest.raises(ConfigError, match=f"{case} has no unit 'decoder.1.head' to cut"):
        plan.build(config, keep={"decoder.1.head": np.arange(2)})
    with pytest.raises(ConfigError, match=f"{case} has one number of heads for all layers"):
        plan.build(config, keep={"decoder.head": np.arange(2)})  # the encoder's and cross-attention's must follow
    own = tiny.make("umt5").config.to_dict()
    assert "decoder.1.head" in of(own).units(own)


def test_lists_with_an_entry_per_layer_follow_the_layers_that_stay() -> None:
    config = tiny.make("qwen2").config.to_dict()
    kept = plan.build(config, layers={"layers": [1, 2]}).target_config
    assert config["layer_types"] == ["full_attention", "sliding_attention", "sliding_attention"]
    assert kept["layer_types"] == ["sliding_attention"] * 2 and kept["max_window_layers"] == 0
    assert makes({key: value for key, value in kept.items() if value is not None}) == ""
