"""Qwen2 and Qwen2.5: LLaMA's names, biases on q, k and v, a window that may differ from layer to layer."""

from penjing.models.families.llama import GATED, NORMS, attention, family

FAMILY = family("qwen2", attention(bias=lambda config: True, output_bias=None) + GATED + NORMS)
