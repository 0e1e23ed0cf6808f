"""Qwen3 (dense): LLaMA's names, RMSNorm on every query and key head, head_dim free of hidden."""

from penjing.models.families.llama import GATED, NORMS, attention, family, has

_BIAS = has("attention_bias")
FAMILY = family(
    "qwen3", attention(bias=_BIAS, output_bias=_BIAS, qk_norm=True) + GATED + NORMS, defaults={"head_dim": 128}
)
