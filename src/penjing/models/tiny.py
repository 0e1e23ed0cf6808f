"""Tiny random models of every family, small enough to make, cut and train in a moment."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import torch
import transformers

from penjing.errors import ConfigError, fault
from penjing.files import read_json
from penjing.models.family import of

_LLAMA: dict[str, Any] = {
    "vocab_size": 48,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 24,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_GPT: dict[str, Any] = {"vocab_size": 48, "n_embd": 32, "n_layer": 3, "n_head": 4, "bos_token_id": 1, "eos_token_id": 2}
_OPT: dict[str, Any] = {
    "vocab_size": 48,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "ffn_dim": 24,
    "max_position_embeddings": 64,
    "word_embed_proj_dim": 32,
    "activation_function": "relu",
}
_T5: dict[str, Any] = {
    "vocab_size": 48,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 24,
    "num_layers": 2,
    "num_decoder_layers": 3,
    "num_heads": 3,
    "relative_attention_num_buckets": 8,
    "decoder_start_token_id": 0,
}
_OPENBA: dict[str, Any] = {
    "vocab_size": 48, "hidden_size": 32, "kv_channels": 8, "ffn_hidden_size": 24, "num_layers": 2, "num_decoder_layers": 3,
    "num_heads": 6, "hidden_dropout": 0.0, "attention_dropout": 0.0,
}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", _LLAMA),
    "llama-tied-biased": ("llama", {**_LLAMA, "tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True}),
    "mistral": ("mistral", _LLAMA),
    "qwen2": ("qwen2", {**_LLAMA, "use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1}),
    "qwen3": ("qwen3", {**_LLAMA, "head_dim": 16, "tie_word_embeddings": True}),
    "glm": ("glm", _LLAMA),
    "glm4": ("glm4", _LLAMA),
    "gpt2": ("gpt2", {**_GPT, "n_inner": 24, "n_positions": 64}),
    "gpt2-default-ffn": ("gpt2", {**_GPT, "n_positions": 64}),
    "codegen": ("codegen", {**_GPT, "n_inner": 24, "n_positions": 64, "n_ctx": 64, "rotary_dim": 4, "n_head": 8, "n_embd": 64}),
    "opt": ("opt", _OPT),
    "opt-projected": ("opt", {**_OPT, "word_embed_proj_dim": 12, "do_layer_norm_before": False}),
    "bloom": ("bloom", {"vocab_size": 48, "hidden_size": 32, "n_layer": 3, "n_head": 4}),
    "t5": ("t5", _T5),
    "t5-gated": ("t5", {**_T5, "feed_forward_proj": "gated-gelu"}),
    "t5-own-head": ("t5", {**_T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
    "mt5": ("mt5", _T5),
    "mt5-own-head": ("mt5", {**_T5, "tie_word_embeddings": False}),
    "umt5": ("umt5", _T5),
    "openba": ("openba", _OPENBA),
    "openba-tied": ("openba", {**_OPENBA, "tie_word_embeddings": True, "add_ffn_bias": True}),
    "openba-nominal": ("openba", {**_OPENBA, "ffn_hidden_size": 128}),
}


def make(case: str, *, seed: int = 0) -> Any:
    """A model of a case with random weights in every tensor: biases and norms are not left at 0 and 1."""
    model_type, settings = CASES[case]
    return build(model_type, settings, seed=seed)


def build(model_type: str, settings: dict[str, Any], *, seed: int = 0) -> Any:
    """A transformers model of `model_type`, float32, with random weights in every tensor."""
    if model_type == "openba":
        importlib.import_module("penjing.models.openba")
    config = transformers.AutoConfig.for_model(model_type, **settings)
    torch.manual_seed(seed)
    kind = transformers.AutoModelForSeq2SeqLM if config.is_encoder_decoder else transformers.AutoModelForCausalLM
    model = kind.from_config(config).float().eval()
    if settings.get("tie_word_embeddings") is False and model_type in ("t5", "mt5", "umt5"):
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    noise = torch.Generator().manual_seed(seed)
    scale = 0.5 if model_type in ("t5", "mt5", "umt5") else 1.0  # T5 does not divide scores by the root of head_dim
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter += 0.3 * torch.randn(parameter.shape, generator=noise)
            else:
                parameter.copy_(torch.randn(parameter.shape, generator=noise) * scale * parameter.shape[-1] ** -0.5)
    return model


def save(case: str, path: Path, *, seed: int = 0, **how: Any) -> Any:
    """Make a model and save it with transformers; gives the model."""
    model = make(case, seed=seed)
    model.save_pretrained(path, **how)
    return model


def cases(model_types: list[str]) -> list[str]:
    """The cases of some model types, or all; ConfigError for a type without one."""
    known = {model_type for model_type, _ in CASES.values()}
    for name in model_types:
        if name not in known:
            raise ConfigError(
                fault(
                    f"no tiny example of '{name}'",
                    expected=f"one of {', '.join(sorted(known))}",
                    fix="give a checkpoint input with its config.json instead",
                )
            )
    return [case for case, (model_type, _) in CASES.items() if not model_types or model_type in model_types]


def like(path: Path, *, seed: int = 0) -> Any:
    """A tiny model of the class and settings of a model directory, which needs only its config.json."""
    config = read_json(path / "config.json")
    family = of(config)
    old = family.sizes(config)
    small = {name: min(old[name], size) for name, size in _SMALL.items() if name in old}
    small["heads"] = min(old["heads"], 4 * (old["heads"] // old.get("kv_heads", old["heads"])), 8)
    if "kv_heads" in old:
        small["kv_heads"] = small["heads"] // min(small["heads"], old["heads"] // old["kv_heads"])
    small["hidden"] = small["heads"] * small["head_dim"]
    if "head_dim" not in family.keys:
        del small["head_dim"]
    shrunk = family.resize(config, small)
    for key in ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"):
        if isinstance(shrunk.get(key), int):
            shrunk[key] = min(shrunk[key], 2)
    model_type = shrunk.pop("model_type")
    return build(model_type, shrunk, seed=seed)


_SMALL = {
    "vocab": 48,
    "head_dim": 8,
    "ffn": 24,
    "layers": 3,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "position": 64,
    "embed": 16,
}
