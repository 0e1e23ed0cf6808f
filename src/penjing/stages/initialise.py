"""Make a model of a given shape with random weights and a given tokenizer: something to train from nothing."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from penjing.config import Config as Base
from penjing.config import generator
from penjing.contract import CHECKPOINT, TOKENIZER, Estimate, Inputs, Job
from penjing.errors import ConfigError, fault
from penjing.files import write_json

VERSION = 1
INPUTS = {"tokenizer": TOKENIZER}
OUTPUT = CHECKPOINT
_CHUNK_ROWS = 4096


class Config(Base):
    model_type: str = "llama"
    """Architecture; see `penjing list families`."""
    hidden_size: int = Field(128, ge=8)
    """Width of the residual stream."""
    num_layers: int = Field(4, ge=1)
    """Layers of a decoder-only model, or of the decoder."""
    num_encoder_layers: int | None = Field(None, ge=1)
    """Layers of the encoder, where there is one."""
    num_heads: int = Field(4, ge=1)
    """Attention heads."""
    num_kv_heads: int | None = Field(None, ge=1)
    """Key and value heads, fewer for grouped queries; default as many as heads."""
    head_dim: int | None = Field(None, ge=2)
    """Size of a head; default hidden_size / num_heads."""
    ffn_size: int | None = Field(None, ge=8)
    """Width of the feed-forward layers; default 8/3 of hidden_size, rounded up to a multiple of 32."""
    max_positions: int = Field(2048, ge=16)
    """Longest sequence the model is meant for."""
    tie_embeddings: bool = True
    """One table for input and output."""
    vocab_multiple: int = Field(1, ge=1)
    """The table's rows are rounded up to a multiple of this."""
    initializer_range: float | None = Field(None, gt=0)
    """Standard deviation of the weights; default sqrt(2 / (5 hidden)) (Nguyen and Salazar 2019). Projections back into the
    residual stream get it divided by sqrt(2 layers), as GPT-2's."""
    overrides: dict[str, Any] = {}
    """Further entries of config.json, by their Hugging Face names."""
    seed: int = 0
    """Seed of everything random in this stage; the recipe's seed fills it."""


def run(config: Config, inputs: Inputs, out: Path, job: Job) -> dict[str, Any]:
    """A Hugging Face checkpoint that loads with AutoModelForCausalLM and AutoTokenizer."""
    from penjing.models.checkpoint import Output, write_checkpoint
    from penjing.models.cost import count_parameters
    from penjing.models.family import of
    from penjing.tokenizer.encode import load_encoder

    encoder = load_encoder(inputs["tokenizer"])
    made = model_config(config, vocab_size=encoder.vocab_size, bos_id=encoder.bos_id, eos_id=encoder.eos_id)
    deviation = made.get("initializer_range") or math.sqrt(0.4 / config.hidden_size)
    back = deviation / math.sqrt(2 * (config.num_layers + (config.num_encoder_layers or 0)))
    outputs = []
    for name, tensor in of(made).tensors(made).items():
        into_residual = tensor.stack is not None and tensor.kind == "linear" and tensor.axes[0].endswith("hidden")
        rows = _rows(config.seed, name, tensor.shape, tensor.kind, back if into_residual else deviation)
        outputs.append(Output(name, "F32", tensor.shape, rows))
    write_checkpoint(out, config=made, tensors=outputs, source=inputs["tokenizer"])
    keys = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
    tokens = {key: made[key] for key in keys if made.get(key) is not None}
    write_json(out / "generation_config.json", tokens)
    return {"parameters": count_parameters(made), "vocab_size": made["vocab_size"], "model_type": config.model_type}


def price(config: Config, inputs: Inputs) -> Estimate:
    """Parameters and size, once the vocabulary is known."""
    from penjing.models.cost import count_parameters

    tokenizer: Estimate = inputs["tokenizer"]
    if not tokenizer.vocab_size:
        return Estimate(notes=("the vocabulary is not known yet",))
    made = model_config(config, vocab_size=tokenizer.vocab_size, bos_id=None, eos_id=None)
    parameters = count_parameters(made)
    return Estimate(parameters=parameters, disk_bytes=4.0 * parameters, memory_bytes=3e8, vocab_size=made["vocab_size"],
                    model=made)


def model_config(config: Config, *, vocab_size: int, bos_id: int | None, eos_id: int | None) -> dict[str, Any]:
    """The config.json of the model; ConfigError for sizes that do not fit together."""
    from penjing.models.family import of

    if config.num_heads % (config.num_kv_heads or config.num_heads):
        raise ConfigError(fault("num_kv_heads must divide num_heads", found=f"{config.num_kv_heads} and {config.num_heads}"))
    if config.head_dim is None and config.hidden_size % config.num_heads:
        raise ConfigError(fault("hidden_size must be a multiple of num_heads, or head_dim be given",
                                found=f"{config.hidden_size} and {config.num_heads}"))
    family = of({"model_type": config.model_type})
    head_dim = config.head_dim or config.hidden_size // config.num_heads
    sizes = {
        "vocab": -(-vocab_size // config.vocab_multiple) * config.vocab_multiple, "hidden": config.hidden_size,
        "layers": config.num_layers, "decoder_layers": config.num_layers,
        "encoder_layers": config.num_encoder_layers or config.num_layers, "heads": config.num_heads,
        "kv_heads": config.num_kv_heads or config.num_heads, "head_dim": head_dim,
        "ffn": config.ffn_size or -(-8 * config.hidden_size // 3 // 32) * 32,
    }
    made: dict[str, Any] = {"model_type": config.model_type, **_GIVEN.get(config.model_type, {})}
    made |= {key: sizes[size] for size, key in family.keys.items() if size in sizes}
    for key in _POSITIONS.get(config.model_type, ("max_position_embeddings",)):
        made[key] = config.max_positions
    made |= {"tie_word_embeddings": config.tie_embeddings, "dtype": "float32", "use_cache": True,
             "initializer_range": config.initializer_range or math.sqrt(0.4 / config.hidden_size)}
    made |= {key: value for key, value in (("bos_token_id", bos_id), ("eos_token_id", eos_id)) if value is not None}
    return {**made, **config.overrides}


_GIVEN: dict[str, dict[str, Any]] = {
    "llama": {"architectures": ["LlamaForCausalLM"], "hidden_act": "silu", "rms_norm_eps": 1e-5, "attention_bias": False,
              "mlp_bias": False, "attention_dropout": 0.0, "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"}},
    "qwen2": {"architectures": ["Qwen2ForCausalLM"], "hidden_act": "silu", "rms_norm_eps": 1e-6, "attention_dropout": 0.0,
              "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"}},
    "qwen3": {"architectures": ["Qwen3ForCausalLM"], "hidden_act": "silu", "rms_norm_eps": 1e-6, "attention_bias": False,
              "attention_dropout": 0.0, "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"}},
    "openba": {"architectures": ["OpenBAForConditionalGeneration"], "is_encoder_decoder": True, "add_qkv_bias": True,
               "add_ffn_bias": False, "add_lm_head_bias": True, "hidden_dropout": 0.0, "attention_dropout": 0.0,
               "decoder_start_token_id": 0, "pad_token_id": 0},
}
"""What config.json says beside sizes."""
_POSITIONS = {"openba": ("max_seq_length", "decoder_max_seq_length")}


def _rows(seed: int, name: str, shape: tuple[int, ...], kind: str, deviation: float) -> Any:
    def chunks() -> Iterator[np.ndarray]:
        if kind == "norm":
            yield (np.zeros if name.endswith("bias") else np.ones)(shape, np.float32)
            return
        if kind in ("bias", "bias-table"):
            yield np.zeros(shape, np.float32)
            return
        rng = generator(seed, "initialise", name)
        for start in range(0, shape[0], _CHUNK_ROWS):
            rows = min(_CHUNK_ROWS, shape[0] - start)
            yield (rng.standard_normal((rows, *shape[1:]), dtype=np.float32) * np.float32(deviation)).astype(np.float32)

    return chunks
