"""T5 and FLAN-T5: relative positions held by the first block of a stack and shared by all, RMSNorm, a tied head that
may be scaled.

In transformers the file decides whether the head is tied: a `lm_head.weight` that differs from `shared.weight` is a
head of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from penjing.models.family import Family, Row, Stack, When


def gated(config: Mapping[str, Any]) -> bool:
    return str(config.get("feed_forward_proj", "relu")).startswith("gated")


def _ungated(config: Mapping[str, Any]) -> bool:
    return not gated(config)


def _attention(name: str, head: str) -> tuple[Row, ...]:
    return (
        Row(f"{name}.q.weight", f"{head}*head_dim, hidden"),
        Row(f"{name}.k.weight", f"{head}*head_dim, hidden"),
        Row(f"{name}.v.weight", f"{head}*head_dim, hidden"),
        Row(f"{name}.o.weight", f"hidden, {head}*head_dim"),
    )


def _ffn(place: str) -> tuple[Row, ...]:
    return (
        Row(f"{place}.DenseReluDense.wi.weight", "ffn, hidden", "linear", _ungated),
        Row(f"{place}.DenseReluDense.wi_0.weight", "ffn, hidden", "linear", gated),
        Row(f"{place}.DenseReluDense.wi_1.weight", "ffn, hidden", "linear", gated),
        Row(f"{place}.DenseReluDense.wo.weight", "hidden, ffn"),
        Row(f"{place}.layer_norm.weight", "hidden", "norm"),
    )


def _scaled(config: Mapping[str, Any]) -> bool:
    return bool(config.get("scale_decoder_outputs", config.get("tie_word_embeddings") is not False))


def settle(config: Mapping[str, Any], names: Iterable[str], shape_of: Callable[[str], tuple[int, ...]]) -> dict[str, Any]:
    """The configuration with `tie_word_embeddings` as the file has it; the scale of the head keeps what it meant."""
    has_head = "lm_head.weight" in set(names)
    settled = dict(config)
    if bool(config.get("tie_word_embeddings", True)) == has_head:
        settled["scale_decoder_outputs"] = _scaled(config)
        settled["tie_word_embeddings"] = not has_head
    return settled


def family(model_type: str, *, shared_bias: bool, scaled: When) -> Family:
    """A family of T5's names; with `shared_bias` the first block's relative positions serve the whole stack."""
    bias = Row(
        "layer.0.SelfAttention.relative_attention_bias.weight", "bucket, head", "bias-table", only_first=shared_bias
    )
    norm = Row("layer.0.layer_norm.weight", "hidden", "norm")
    encoder = (*_attention("layer.0.SelfAttention", "head"), bias, norm, *_ffn("layer.1"))
    decoder = (
        *_attention("layer.0.SelfAttention", "head"),
        bias,
        norm,
        *_attention("layer.1.EncDecAttention", "cross_head"),
        Row("layer.1.layer_norm.weight", "hidden", "norm"),
        *_ffn("layer.2"),
    )
    return Family(
        model_type=model_type,
        stacks=(
            Stack("encoder", "encoder.block.{i}.", "encoder_layers", encoder),
            Stack("decoder", "decoder.block.{i}.", "decoder_layers", decoder),
        ),
        rows=(
            Row("shared.weight", "vocab, hidden", "embedding"),
            Row("encoder.final_layer_norm.weight", "hidden", "norm"),
            Row("decoder.final_layer_norm.weight", "hidden", "norm"),
            Row(
                "lm_head.weight", "vocab, hidden", "linear", lambda config: not config.get("tie_word_embeddings", True)
            ),
        ),
        keys={
            "vocab": "vocab_size",
            "hidden": "d_model",
            "encoder_layers": "num_layers",
            "decoder_layers": "num_decoder_layers",
            "heads": "num_heads",
            "head_dim": "d_kv",
            "ffn": "d_ff",
            "bucket": "relative_attention_num_buckets",
        },
        implied={"decoder_layers": lambda sizes: sizes["encoder_layers"]},
        defaults={"relative_attention_num_buckets": 32},
        aliases={
            "lm_head.weight": "shared.weight",
            "encoder.embed_tokens.weight": "shared.weight",
            "decoder.embed_tokens.weight": "shared.weight",
        },
        ignored=(r"EncDecAttention\.relative_attention_bias\.weight$",),
        norm_eps="layer_norm_epsilon",
        shared_units=frozenset({"encoder.head", "decoder.head"}) if shared_bias else frozenset(),
        tied_default=True,
        scaled_head=scaled,
        last_norm="decoder.final_layer_norm.weight",
        settle=settle,
        seq2seq=True,
    )


FAMILY = family("t5", shared_bias=True, scaled=_scaled)


def unscaled_family(model_type: str) -> Family:
    """T5's table under another name, for models that never scale the head."""
    return replace(family(model_type, shared_bias=True, scaled=lambda config: False), settle=_settle_unscaled)


def _settle_unscaled(
    config: Mapping[str, Any], names: Iterable[str], shape_of: Callable[[str], tuple[int, ...]]
) -> dict[str, Any]:
    return {**config, "tie_word_embeddings": "lm_head.weight" not in set(names)}


def scaled(config: Mapping[str, Any]) -> bool:
    """Whether a T5 configuration multiplies decoder outputs by hidden ** -0.5."""
    return _scaled(config)
