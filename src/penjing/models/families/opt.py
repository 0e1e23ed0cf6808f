"""OPT: learned positions (two rows more than positions), LayerNorm, ReLU, sometimes embeddings narrower than the
stream.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from penjing.errors import ConfigError, fault
from penjing.models.family import Family, Row, Stack


def _projected(config: Mapping[str, Any]) -> bool:
    return config.get("word_embed_proj_dim", config["hidden_size"]) != config["hidden_size"]


def _plain(config: Mapping[str, Any]) -> bool:
    return not _projected(config)


def _biased(config: Mapping[str, Any]) -> bool:
    return bool(config.get("enable_bias", True))


def _affine(config: Mapping[str, Any]) -> bool:
    return bool(config.get("layer_norm_elementwise_affine", True))


def _last_norm(config: Mapping[str, Any]) -> bool:
    return _affine(config) and config.get("do_layer_norm_before", True) and not config.get("_remove_final_layer_norm")


def _untied(config: Mapping[str, Any]) -> bool:
    return not config.get("tie_word_embeddings", True)


def _follow(old: Mapping[str, Any], new: dict[str, Any]) -> None:
    """Embeddings as wide as the stream stay so; narrower ones stay narrower."""
    if not _projected(old):
        new["word_embed_proj_dim"] = new["hidden_size"]
    elif not _projected(new):
        raise ConfigError(
            fault(
                "hidden cannot become as wide as the embeddings, because the projections between them would go",
                found=new["hidden_size"],
                expected=f"other than {new['word_embed_proj_dim']}",
            )
        )


def _linear(name: str, axes: str) -> tuple[Row, Row]:
    return Row(f"{name}.weight", axes), Row(f"{name}.bias", axes.split(",")[0], "bias", _biased)


def _norm(name: str) -> tuple[Row, Row]:
    return Row(f"{name}.weight", "hidden", "norm", _affine), Row(f"{name}.bias", "hidden", "bias", _affine)


FAMILY = Family(
    model_type="opt",
    stacks=(
        Stack(
            "layers",
            "model.decoder.layers.{i}.",
            "layers",
            (
                *_linear("self_attn.k_proj", "head*head_dim, hidden"),
                *_linear("self_attn.v_proj", "head*head_dim, hidden"),
                *_linear("self_attn.q_proj", "head*head_dim, hidden"),
                *_linear("self_attn.out_proj", "hidden, head*head_dim"),
                *_norm("self_attn_layer_norm"),
                *_linear("fc1", "ffn, hidden"),
                *_linear("fc2", "hidden, ffn"),
                *_norm("final_layer_norm"),
            ),
        ),
    ),
    rows=(
        Row("model.decoder.embed_tokens.weight", "vocab, hidden", "embedding", _plain),
        Row("model.decoder.embed_tokens.weight", "vocab, embed", "embedding", _projected),
        Row("model.decoder.embed_positions.weight", "position+2, hidden", "positions"),
        Row("model.decoder.project_in.weight", "hidden, embed", "linear", _projected),
        Row("model.decoder.project_out.weight", "embed, hidden", "linear", _projected),
        Row("model.decoder.final_layer_norm.weight", "hidden", "norm", _last_norm),
        Row("model.decoder.final_layer_norm.bias", "hidden", "bias", _last_norm),
        Row("lm_head.weight", "vocab, hidden", "linear", lambda config: _untied(config) and _plain(config)),
        Row("lm_head.weight", "vocab, embed", "linear", lambda config: _untied(config) and _projected(config)),
    ),
    keys={
        "vocab": "vocab_size",
        "hidden": "hidden_size",
        "layers": "num_hidden_layers",
        "heads": "num_attention_heads",
        "ffn": "ffn_dim",
        "position": "max_position_embeddings",
        "embed": "word_embed_proj_dim",
    },
    implied={"head_dim": lambda sizes: sizes["hidden"] // sizes["heads"], "embed": lambda sizes: sizes["hidden"]},
    aliases={"lm_head.weight": "model.decoder.embed_tokens.weight"},
    ignored=(),
    prefix="model.",
    norm="layer",
    hidden_is_heads=True,
    tied_default=True,
    follow=_follow,
)
