"""CodeGen (MOSS): rotary positions, attention and FFN side by side, q, v and k in four blocks of a quarter of the heads
each.
"""

from __future__ import annotations

from penjing.models.family import Family, Row, Stack

FAMILY = Family(
    model_type="codegen",
    stacks=(Stack("layers", "transformer.h.{i}.", "layers", (
        Row("ln_1.weight", "hidden", "norm"),
        Row("ln_1.bias", "hidden", "bias"),
        Row("attn.qkv_proj.weight", "head/4*3*head%4*head_dim, hidden"),
        Row("attn.out_proj.weight", "hidden, head*head_dim"),
        Row("mlp.fc_in.weight", "ffn, hidden"),
        Row("mlp.fc_in.bias", "ffn", "bias"),
        Row("mlp.fc_out.weight", "hidden, ffn"),
        Row("mlp.fc_out.bias", "hidden", "bias"),
    )),),
    rows=(
        Row("transformer.wte.weight", "vocab, hidden", "embedding"),
        Row("transformer.ln_f.weight", "hidden", "norm"),
        Row("transformer.ln_f.bias", "hidden", "bias"),
        Row("lm_head.weight", "vocab, hidden", "linear", lambda config: not config.get("tie_word_embeddings", False)),
        Row("lm_head.bias", "vocab", "bias"),
    ),
    keys={"vocab": "vocab_size", "hidden": "n_embd", "layers": "n_layer", "heads": "n_head", "ffn": "n_inner"},
    implied={"head_dim": lambda sizes: sizes["hidden"] // sizes["heads"], "ffn": lambda sizes: 4 * sizes["hidden"]},
    aliases={"lm_head.weight": "transformer.wte.weight"},
    ignored=(r"\.attn\.(causal_mask|bias|masked_bias)$",),
    prefix="transformer.",
    norm="layer",
    norm_eps="layer_norm_epsilon",
    hidden_is_heads=True,
    divisors={"heads": 4},
)
