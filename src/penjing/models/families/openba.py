"""OpenBA: pre-LayerNorm encoder-decoder with fused, head-major projections; in penjing's own modeling code (`models/openba`)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from penjing.models.family import Family, Row, Stack


def _qkv_bias(config: Mapping[str, Any]) -> bool:
    return bool(config.get("add_qkv_bias", True))


def _ffn_bias(config: Mapping[str, Any]) -> bool:
    return bool(config.get("add_ffn_bias", False))


def _linear(name: str, axes: str, when: Callable[[Mapping[str, Any]], bool]) -> tuple[Row, Row]:
    return Row(f"{name}.weight", axes), Row(f"{name}.bias", axes.split(",")[0], "bias", when)


def _norm(name: str) -> tuple[Row, Row]:
    return Row(f"{name}.weight", "hidden", "norm"), Row(f"{name}.bias", "hidden", "bias")


_SELF = (
    *_norm("input_layernorm"),
    *_linear("self_attn.qkv", "head*3*head_dim, hidden", _qkv_bias),
    *_linear("self_attn.o", "hidden, head*head_dim", _qkv_bias),
    *_norm("post_attn_layernorm"),
)
_CROSS = (
    *_linear("inter_attn.q", "cross_head*head_dim, hidden", _qkv_bias),
    *_linear("inter_attn.kv", "cross_head*2*head_dim, hidden", _qkv_bias),
    *_linear("inter_attn.o", "hidden, cross_head*head_dim", _qkv_bias),
    *_norm("post_inter_attn_layernorm"),
)
_MLP = (
    *_linear("mlp.fc_in", "ffn+ffn, hidden", _ffn_bias),
    *_linear("mlp.fc_out", "hidden, ffn", _ffn_bias),
)


def is_nominal(config: Mapping[str, Any]) -> bool:
    """Whether ffn_hidden_size is the first OpenBA's nominal size, of which the FFN has two thirds."""
    said = config.get("ffn_is_nominal")
    return bool(config["ffn_hidden_size"] == 4 * config["hidden_size"] if said is None else said)


def _adjust(config: Mapping[str, Any], sizes: dict[str, int]) -> dict[str, int]:
    if is_nominal(config):
        sizes["ffn"] = 256 * -(-int(2 * sizes["ffn"] / 3) // 256)
    return sizes


def _follow(old: Mapping[str, Any], new: dict[str, Any]) -> None:
    new["ffn_is_nominal"] = False


def _settle(config: Mapping[str, Any], names: Iterable[str], shape_of: Callable[[str], tuple[int, ...]]) -> dict[str, Any]:
    """The FFN's true width from the weights, and the head as the file has it."""
    settled = dict(config)
    listed = set(names)
    first = "encoder.block.0.mlp.fc_out.weight"
    if first in listed:
        width = shape_of(first)[1]
        if _adjust(config, {"ffn": config["ffn_hidden_size"]})["ffn"] != width:
            settled |= {"ffn_hidden_size": width, "ffn_is_nominal": False}
    if listed and bool(config.get("tie_word_embeddings", False)) == ("lm_head.weight" in listed):
        settled["tie_word_embeddings"] = "lm_head.weight" not in listed
    return settled


FAMILY = Family(
    model_type="openba",
    stacks=(Stack("encoder", "encoder.block.{i}.", "encoder_layers", _SELF + _MLP),
            Stack("decoder", "decoder.block.{i}.", "decoder_layers", _SELF + _CROSS + _MLP)),
    rows=(
        Row("shared_embedding.weight", "vocab, hidden", "embedding"),
        *_norm("encoder.final_layernorm"),
        *_norm("decoder.final_layernorm"),
        Row("lm_head.weight", "vocab, hidden", "linear", lambda config: not config.get("tie_word_embeddings", False)),
        Row("lm_head.bias", "vocab", "bias", lambda config: bool(config.get("add_lm_head_bias", True))),
    ),
    keys={"vocab": "vocab_size", "hidden": "hidden_size", "encoder_layers": "num_layers", "decoder_layers": "num_decoder_layers",
          "heads": "num_heads", "head_dim": "kv_channels", "ffn": "ffn_hidden_size"},
    implied={"decoder_layers": lambda sizes: sizes["encoder_layers"]},
    aliases={"lm_head.weight": "shared_embedding.weight", "encoder.embed_tokens.weight": "shared_embedding.weight",
             "decoder.embed_tokens.weight": "shared_embedding.weight"},
    ignored=(r"rotary_emb(ed)?\.inv_freq$",),
    norm="layer",
    norm_eps="layernorm_epsilon",
    adjust=_adjust,
    follow=_follow,
    settle=_settle,
    seq2seq=True,
    auto_map={"AutoConfig": "configuration_openba.OpenBAConfig",
              "AutoModelForSeq2SeqLM": "modeling_openba.OpenBAForConditionalGeneration"},
)
