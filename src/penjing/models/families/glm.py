"""GLM-4 in transformers' own form (`glm`): LLaMA's names, gate and up in one matrix, biases on q, k and v, half-rotary
heads.
"""

from __future__ import annotations

from penjing.models.families.llama import NORMS, attention, family, has
from penjing.models.family import Row

FUSED = (
    Row("mlp.gate_up_proj.weight", "ffn+ffn, hidden"),
    Row("mlp.down_proj.weight", "hidden, ffn"),
)
FAMILY = family("glm", attention(bias=has("attention_bias", default=True), output_bias=None) + FUSED + NORMS,
                defaults={"head_dim": 128, "num_key_value_heads": 2})
