"""BLOOM: ALiBi positions, LayerNorm, one projection in which each head holds its own query, key and value."""

from __future__ import annotations

from penjing.models.family import Family, Row, Stack

_ALIBI = "ALiBi slopes follow from the number of heads, so the heads that stay would see other distances (force: true allows)"
_FIXED = {
    "heads": _ALIBI,
    "hidden": f"hidden is heads x head_dim, and {_ALIBI}",
    "ffn": "it is always 4 x hidden, config.json has no key for it",
}

FAMILY = Family(
    model_type="bloom",
    stacks=(
        Stack(
            "layers",
            "transformer.h.{i}.",
            "layers",
            (
                Row("input_layernorm.weight", "hidden", "norm"),
                Row("input_layernorm.bias", "hidden", "bias"),
                Row("self_attention.query_key_value.weight", "head*3*head_dim, hidden"),
                Row("self_attention.query_key_value.bias", "head*3*head_dim", "bias"),
                Row("self_attention.dense.weight", "hidden, head*head_dim"),
                Row("self_attention.dense.bias", "hidden", "bias"),
                Row("post_attention_layernorm.weight", "hidden", "norm"),
                Row("post_attention_layernorm.bias", "hidden", "bias"),
                Row("mlp.dense_h_to_4h.weight", "ffn, hidden"),
                Row("mlp.dense_h_to_4h.bias", "ffn", "bias"),
                Row("mlp.dense_4h_to_h.weight", "hidden, ffn"),
                Row("mlp.dense_4h_to_h.bias", "hidden", "bias"),
            ),
        ),
    ),
    rows=(
        Row("transformer.word_embeddings.weight", "vocab, hidden", "embedding"),
        Row("transformer.word_embeddings_layernorm.weight", "hidden", "norm"),
        Row("transformer.word_embeddings_layernorm.bias", "hidden", "bias"),
        Row("transformer.ln_f.weight", "hidden", "norm"),
        Row("transformer.ln_f.bias", "hidden", "bias"),
        Row("lm_head.weight", "vocab, hidden", "linear", lambda config: not config.get("tie_word_embeddings", True)),
    ),
    keys={"vocab": "vocab_size", "hidden": "hidden_size", "layers": "n_layer", "heads": "n_head"},
    other_keys={"hidden_size": ("n_embed",), "n_layer": ("num_hidden_layers",), "n_head": ("num_attention_heads",)},
    implied={"head_dim": lambda sizes: sizes["hidden"] // sizes["heads"], "ffn": lambda sizes: 4 * sizes["hidden"]},
    aliases={"lm_head.weight": "transformer.word_embeddings.weight"},
    ignored=(),
    prefix="transformer.",
    norm="layer",
    norm_eps="layer_norm_epsilon",
    hidden_is_heads=True,
    fixed=_FIXED,
    tied_default=True,
)
