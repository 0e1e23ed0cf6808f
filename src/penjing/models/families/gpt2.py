"""GPT-2 (CPM, Wenzhong): learned positions, LayerNorm, q, k and v in one `Conv1D` whose weight is [in, out]."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from penjing.models.family import Family, Row, Stack

_QKV = "head*head_dim+head*head_dim+head*head_dim"


def _no_depth(config: Mapping[str, Any]) -> str | None:
    if config.get("scale_attn_by_inverse_layer_idx"):
        return "layers cannot be dropped: attention is scaled by the layer's number (scale_attn_by_inverse_layer_idx)"
    return None


FAMILY = Family(
    model_type="gpt2",
    stacks=(Stack("layers", "transformer.h.{i}.", "layers", (
        Row("ln_1.weight", "hidden", "norm"),
        Row("ln_1.bias", "hidden", "bias"),
        Row("attn.c_attn.weight", f"hidden, {_QKV}"),
        Row("attn.c_attn.bias", _QKV, "bias"),
        Row("attn.c_proj.weight", "head*head_dim, hidden"),
        Row("attn.c_proj.bias", "hidden", "bias"),
        Row("ln_2.weight", "hidden", "norm"),
        Row("ln_2.bias", "hidden", "bias"),
        Row("mlp.c_fc.weight", "hidden, ffn"),
        Row("mlp.c_fc.bias", "ffn", "bias"),
        Row("mlp.c_proj.weight", "ffn, hidden"),
        Row("mlp.c_proj.bias", "hidden", "bias"),
    )),),
    rows=(
        Row("transformer.wte.weight", "vocab, hidden", "embedding"),
        Row("transformer.wpe.weight", "position, hidden", "positions"),
        Row("transformer.ln_f.weight", "hidden", "norm"),
        Row("transformer.ln_f.bias", "hidden", "bias"),
        Row("lm_head.weight", "vocab, hidden", "linear", lambda config: not config.get("tie_word_embeddings", True)),
    ),
    keys={"vocab": "vocab_size", "hidden": "n_embd", "layers": "n_layer", "heads": "n_head", "ffn": "n_inner",
          "position": "n_positions"},
    implied={"head_dim": lambda sizes: sizes["hidden"] // sizes["heads"], "ffn": lambda sizes: 4 * sizes["hidden"]},
    defaults={"n_positions": 1024},
    aliases={"lm_head.weight": "transformer.wte.weight"},
    ignored=(r"\.attn\.bias$", r"\.attn\.masked_bias$"),
    prefix="transformer.",
    norm="layer",
    norm_eps="layer_norm_epsilon",
    hidden_is_heads=True,
    tied_default=True,
    no_depth=_no_depth,
)
