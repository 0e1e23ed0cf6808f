"""Mistral: LLaMA's names, never a bias, a sliding window that no weight depends on."""

from penjing.models.families.llama import GATED, NORMS, attention, family

FAMILY = family("mistral", attention(bias=None, output_bias=None) + GATED + NORMS, defaults={"num_key_value_heads": 8})
