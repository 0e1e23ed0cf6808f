"""GLM-4-0414 (`glm4`): GLM with a norm after attention and one after the FFN as well."""

from __future__ import annotations

from penjing.models.families.glm import FUSED
from penjing.models.families.llama import NORMS, attention, family, has
from penjing.models.family import Row

_AFTER = (
    Row("post_self_attn_layernorm.weight", "hidden", "norm"),
    Row("post_mlp_layernorm.weight", "hidden", "norm"),
)
FAMILY = family("glm4", attention(bias=has("attention_bias", default=True), output_bias=None) + FUSED + NORMS + _AFTER,
                defaults={"head_dim": 128, "num_key_value_heads": 8})
