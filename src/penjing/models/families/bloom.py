"""BLOOM: ALiBi positions (their number decides which heads stay), LayerNorm, one projection in which each head holds its own
query, key and value.
"""

from __future__ import annotations

from fractions import Fraction

from penjing.models.family import Family, Row, Stack

_FIXED = {"ffn": "it is always 4 x hidden, config.json has no key for it"}


def alibi_exponents(heads: int) -> list[Fraction]:
    """x of each head's slope 2 ** -x. Source: transformers' `build_alibi_tensor`, after Press et al., arXiv 2108.12409."""
    power = 1 << (heads.bit_length() - 1)
    first = [Fraction(8 * (head + 1), power) for head in range(power)]
    return first + [Fraction(4 * (2 * head + 1), power) for head in range(heads - power)]


def alibi_heads(old: int, new: int) -> list[int]:
    """The heads of a model with `old` heads that have the slopes of a model with `new` ones, in the new order.

    There always is exactly one such choice: of 112 heads the first 64 to 111, of 32 every second for 16.
    """
    place = {exponent: head for head, exponent in enumerate(alibi_exponents(old))}
    return [place[exponent] for exponent in alibi_exponents(new)]


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
    kept_heads=alibi_heads,
    tied_default=True,
)
