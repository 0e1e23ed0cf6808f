"""Tiny random models of every family, small enough to make, cut and train in a moment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers

_LLAMA: dict[str, Any] = {
    "vocab_size": 48, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 24, "head_dim": 8, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2,
}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", _LLAMA),
    "llama-tied-biased": ("llama", {**_LLAMA, "tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}),
    "mistral": ("mistral", _LLAMA),
    "qwen2": ("qwen2", {**_LLAMA, "use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1}),
    "qwen3": ("qwen3", {**_LLAMA, "head_dim": 16, "tie_word_embeddings": True}),
}


def make(case: str, *, seed: int = 0) -> Any:
    """A model of a case with random weights in every tensor: biases and norms are not left at 0 and 1."""
    model_type, settings = CASES[case]
    config = transformers.AutoConfig.for_model(model_type, **settings)
    torch.manual_seed(seed)
    kind = transformers.AutoModelForSeq2SeqLM if config.is_encoder_decoder else transformers.AutoModelForCausalLM
    model = kind.from_config(config).float().eval()
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter += 0.3 * torch.randn(parameter.shape, generator=noise)
            else:
                parameter.copy_(torch.randn(parameter.shape, generator=noise) * parameter.shape[-1] ** -0.5)
    return model


def save(case: str, path: Path, *, seed: int = 0, **how: Any) -> Any:
    """Make a model and save it with transformers; gives the model."""
    model = make(case, seed=seed)
    model.save_pretrained(path, **how)
    return model


def logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """Logits of a batch; an encoder-decoder reads the batch on both sides."""
    with torch.no_grad():
        more = {"decoder_input_ids": ids.flip(1)} if model.config.is_encoder_decoder else {}
        return model(input_ids=ids, **more, use_cache=False).logits
