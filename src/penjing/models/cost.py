"""What a model costs: parameters, FLOPs and memory, from config.json alone, exact wherever the table of axes is exact.

FLOPs are model FLOPs (a multiply and an add are two), forward plus backward = three times forward, attention scores
over the whole sequence (causal masking not subtracted), as PaLM, appendix B, counts them. Norms, softmax and
activations are left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from penjing.models.family import Tensor, of


def count_parameters(config: Mapping[str, Any]) -> int:
    """Number of weights, a tied embedding once."""
    return of(config).count_parameters(config)


def parameters_by_part(config: Mapping[str, Any]) -> dict[str, int]:
    """Number of weights in `embeddings`, `head`, each stack, and `other`."""
    parts: dict[str, int] = {}
    for tensor in of(config).tensors(config).values():
        if tensor.stack is not None:
            part = tensor.stack
        elif tensor.kind == "embedding":
            part = "embeddings"
        else:
            part = "head" if "vocab" in tensor.axes else "other"
        parts[part] = parts.get(part, 0) + _items(tensor)
    return parts


def flops_per_token(config: Mapping[str, Any], *, sequence_length: int) -> float:
    """Forward and backward FLOPs per token.

    For an encoder-decoder a sample is `sequence_length` tokens in and as many out, and the cost is per token of either.
    """
    family = of(config)
    if family.seq2seq:
        return flops_per_sample(config, encoder_length=sequence_length, decoder_length=sequence_length) / (2 * sequence_length)
    return flops_per_sample(config, encoder_length=0, decoder_length=sequence_length) / sequence_length


def flops_per_sample(config: Mapping[str, Any], *, encoder_length: int, decoder_length: int) -> float:
    """Forward and backward FLOPs of one sequence (decoder-only: `decoder_length` tokens) or one pair of sequences."""
    family = of(config)
    sizes = family.sizes(config)
    inner = sizes["heads"] * sizes["head_dim"]
    forward = 0.0
    for tensor in family.tensors(config).values():
        if tensor.kind == "linear" and len(tensor.shape) == 2:
            forward += 2.0 * _items(tensor) * _rows_through(tensor, encoder_length, decoder_length)
    if family.tied(config):
        forward += 2.0 * sizes["vocab"] * sizes.get("embed", sizes["hidden"]) * decoder_length
    for stack in family.stacks:
        length = encoder_length if stack.name == "encoder" else decoder_length
        forward += sizes[stack.size] * 4.0 * length * length * inner
        if stack.name == "decoder":
            forward += sizes[stack.size] * 4.0 * length * encoder_length * inner
    return 3.0 * forward


def openba_table_flops(
    config: Mapping[str, Any],
    *,
    tokens: float,
    encoder_length: int,
    decoder_length: int,
    raw_length: int,
    logit_rows: int = 250_000,
) -> float:
    """The FLOPs column of OpenBA-V2's compression table, for `tokens` raw text tokens cut into samples of `raw_length`.

    The column counts attention projections four times (forward, backward and a recomputed forward), scores, FFN and
    logits three times. The authors do not publish their formula; this one is within 1.2% of every printed figure. For
    your own runs use `flops_per_sample`, which counts nothing twice.
    """
    sizes = of(config).sizes(config)
    inner, hidden, ffn = sizes["heads"] * sizes["head_dim"], sizes["hidden"], sizes["ffn"]
    enc, dec = encoder_length, decoder_length
    encoder = 4.0 * 8 * enc * hidden * inner + 3.0 * 4 * enc * enc * inner + 3.0 * 6 * enc * hidden * ffn
    decoder = (
        4.0 * (12 * dec * hidden * inner + 4 * enc * hidden * inner)
        + 3.0 * (4 * dec * dec + 4 * dec * enc) * inner
        + 3.0 * 6 * dec * hidden * ffn
    )
    per_sample = sizes["encoder_layers"] * encoder + sizes["decoder_layers"] * decoder + 3.0 * 2 * dec * logit_rows * hidden
    return tokens / raw_length * per_sample


def training_memory_bytes(
    config: Mapping[str, Any],
    *,
    tokens_per_step: int,
    sequence_length: int,
    weight_bytes: int = 4,
    gradient_bytes: int = 4,
    optimizer_bytes: int = 8,
    activation_bytes: int = 4,
    recompute: bool = False,
) -> float:
    """Peak bytes of one process that trains the whole model: weights, gradients, optimizer state, activations and
    logits.

    Activations follow the usual count of 34 bytes per token, layer and hidden place at 2 bytes each (17 numbers), or
    one number with recomputation; logits count twice (values and gradient) in float32. An estimate, not a bound.
    """
    family = of(config)
    sizes = family.sizes(config)
    layers = sum(sizes[stack.size] for stack in family.stacks)
    static = count_parameters(config) * float(weight_bytes + gradient_bytes + optimizer_bytes)
    inner = sizes["heads"] * sizes["head_dim"]
    per_layer = 9 * sizes["hidden"] + 4 * inner + 3 * sizes["ffn"]
    numbers = tokens_per_step * (layers * sizes["hidden"] + per_layer if recompute else layers * per_layer)
    return static + numbers * float(activation_bytes) + 8.0 * tokens_per_step * sizes["vocab"]


def _rows_through(tensor: Tensor, encoder_length: int, decoder_length: int) -> float:
    """How many tokens a weight is multiplied with; keys and values of cross-attention see the encoder's."""
    if tensor.stack == "encoder":
        return encoder_length
    from_encoder = [label for label in tensor.axes if "cross_head" in label]
    if from_encoder and _is_cross_key_or_value(tensor):
        return encoder_length
    return decoder_length


def _is_cross_key_or_value(tensor: Tensor) -> bool:
    part = tensor.name.rsplit(".", 2)[-2]
    return part in ("k", "v", "kv", "k_proj", "v_proj")


def _items(tensor: Tensor) -> int:
    return int(np.prod(tensor.shape, dtype=np.int64))
