"""LLaMA 1 to 3 and everything with its names: RMSNorm, rotary positions, SwiGLU, grouped-query attention."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from penjing.models.family import Family, Row, Stack


def has(key: str, *, default: bool = False) -> Callable[[Mapping[str, Any]], bool]:
    """True for configurations in which `key` is set."""
    return lambda config: bool(config.get(key, default))


def untied(config: Mapping[str, Any]) -> bool:
    return not config.get("tie_word_embeddings", False)


def attention(
    *,
    bias: Callable[[Mapping[str, Any]], bool] | None,
    output_bias: Callable[[Mapping[str, Any]], bool] | None,
    qk_norm: bool = False,
) -> tuple[Row, ...]:
    """Separate q, k, v and o projections with grouped queries; a None bias means that there never is one."""
    rows = [
        Row("self_attn.q_proj.weight", "head*head_dim, hidden"),
        Row("self_attn.k_proj.weight", "kv_head*head_dim, hidden"),
        Row("self_attn.v_proj.weight", "kv_head*head_dim, hidden"),
        Row("self_attn.o_proj.weight", "hidden, head*head_dim"),
    ]
    if bias is not None:
        rows += [
            Row("self_attn.q_proj.bias", "head*head_dim", "bias", bias),
            Row("self_attn.k_proj.bias", "kv_head*head_dim", "bias", bias),
            Row("self_attn.v_proj.bias", "kv_head*head_dim", "bias", bias),
        ]
    if output_bias is not None:
        rows.append(Row("self_attn.o_proj.bias", "hidden", "bias", output_bias))
    if qk_norm:
        rows += [Row("self_attn.q_norm.weight", "head_dim", "norm"), Row("self_attn.k_norm.weight", "head_dim", "norm")]
    return tuple(rows)


GATED = (
    Row("mlp.gate_proj.weight", "ffn, hidden"),
    Row("mlp.up_proj.weight", "ffn, hidden"),
    Row("mlp.down_proj.weight", "hidden, ffn"),
)
NORMS = (Row("input_layernorm.weight", "hidden", "norm"), Row("post_attention_layernorm.weight", "hidden", "norm"))
ENDS = (
    Row("model.embed_tokens.weight", "vocab, hidden", "embedding"),
    Row("model.norm.weight", "hidden", "norm"),
    Row("lm_head.weight", "vocab, hidden", "linear", untied),
)
KEYS = {
    "vocab": "vocab_size",
    "hidden": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "ffn": "intermediate_size",
}
IMPLIED = {"kv_heads": lambda sizes: sizes["heads"], "head_dim": lambda sizes: sizes["hidden"] // sizes["heads"]}
TIED = {"lm_head.weight": "model.embed_tokens.weight"}


def family(model_type: str, layer: tuple[Row, ...], **more: Any) -> Family:
    """A family with LLaMA's names around the given layer."""
    return Family(
        model_type=model_type,
        stacks=(Stack("layers", "model.layers.{i}.", "layers", layer),),
        rows=ENDS,
        keys=KEYS,
        implied=IMPLIED,
        aliases=TIED,
        **{"prefix": "model.", **more},
    )


_MLP_BIAS = (
    Row("mlp.gate_proj.bias", "ffn", "bias", has("mlp_bias")),
    Row("mlp.up_proj.bias", "ffn", "bias", has("mlp_bias")),
    Row("mlp.down_proj.bias", "hidden", "bias", has("mlp_bias")),
)
FAMILY = family(
    "llama",
    attention(bias=has("attention_bias"), output_bias=has("attention_bias")) + GATED + _MLP_BIAS + NORMS,
    heads_divide_hidden=True,
)
