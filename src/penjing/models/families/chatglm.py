"""ChatGLM2, ChatGLM3 and GLM-4-9B as published with their own code: q, k and v one after another in one matrix, gate
and up too.

The first ChatGLM-6B has the same model_type and another architecture; its config.json lacks `padded_vocab_size`. It and what
the published code can build but no published model uses are refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from penjing.models.families.llama import has
from penjing.models.family import Family, Row, Stack

_QKV = "head*head_dim+kv_head*head_dim+kv_head*head_dim"
_BIASED = has("add_bias_linear")


def _other_model(config: Mapping[str, Any]) -> str | None:
    if "padded_vocab_size" not in config:
        return "the first ChatGLM-6B (no padded_vocab_size)"
    if not config.get("multi_query_attention", True):
        return "a ChatGLM in which each head holds its own query, key and value (multi_query_attention: false)"
    if not config.get("rmsnorm", True) or config.get("apply_residual_connection_post_layernorm"):
        return "a ChatGLM with other norms (rmsnorm: false or apply_residual_connection_post_layernorm: true)"
    return None


FAMILY = Family(
    model_type="chatglm",
    stacks=(Stack("layers", "transformer.encoder.layers.{i}.", "layers", (
        Row("input_layernorm.weight", "hidden", "norm"),
        Row("self_attention.query_key_value.weight", f"{_QKV}, hidden"),
        Row("self_attention.query_key_value.bias", _QKV, "bias",
            lambda config: config.get("add_qkv_bias", False) or config.get("add_bias_linear", False)),
        Row("self_attention.dense.weight", "hidden, head*head_dim"),
        Row("self_attention.dense.bias", "hidden", "bias", _BIASED),
        Row("post_attention_layernorm.weight", "hidden", "norm"),
        Row("mlp.dense_h_to_4h.weight", "ffn+ffn, hidden"),
        Row("mlp.dense_h_to_4h.bias", "ffn+ffn", "bias", _BIASED),
        Row("mlp.dense_4h_to_h.weight", "hidden, ffn"),
        Row("mlp.dense_4h_to_h.bias", "hidden", "bias", _BIASED),
    )),),
    rows=(
        Row("transformer.embedding.word_embeddings.weight", "vocab, hidden", "embedding"),
        Row("transformer.encoder.final_layernorm.weight", "hidden", "norm",
            lambda config: config.get("post_layer_norm", True)),
        Row("transformer.output_layer.weight", "vocab, hidden"),
    ),
    keys={"vocab": "padded_vocab_size", "hidden": "hidden_size", "layers": "num_layers", "heads": "num_attention_heads",
          "kv_heads": "multi_query_group_num", "head_dim": "kv_channels", "ffn": "ffn_hidden_size"},
    ignored=(r"rotary_pos_emb\.inv_freq$",),
    norm_eps="layernorm_epsilon",
    other_model=_other_model,
)
