"""Prices: the table of OpenBA-V2, model FLOPs term by term, memory that grows with what it should."""

from __future__ import annotations

from typing import Any

import pytest

from penjing.models import cost, tiny

OPENBA = {"model_type": "openba", "kv_channels": 128, "vocab_size": 250368, "tie_word_embeddings": True}


@pytest.mark.parametrize(
    ("layers", "hidden", "ffn", "heads", "tokens", "lengths", "claimed"),
    [
        ((12, 36), 4096, 11008, 40, 350e9, (570, 380, 570), 277.1),
        ((10, 30), 4096, 11008, 40, 10e9, (570, 380, 570), 6.7),
        ((8, 27), 4096, 11008, 40, 10e9, (570, 380, 570), 5.9),
        ((8, 24), 4096, 11008, 40, 15e9, (570, 380, 570), 8.1),
        ((8, 24), 2560, 6912, 20, 65e9, (570, 380, 570), 13.0),
        ((8, 24), 2560, 6912, 20, 700e9, (1040, 1040, 2048), 99.1),
    ],
)
def test_flops_column_within_two_percent(
    layers: tuple[int, int], hidden: int, ffn: int, heads: int, tokens: float, lengths: tuple[int, int, int], claimed: float
) -> None:
    config = {
        **OPENBA,
        "num_layers": layers[0],
        "num_decoder_layers": layers[1],
        "hidden_size": hidden,
        "ffn_hidden_size": ffn,
        "num_heads": heads,
    }
    found = cost.openba_table_flops(
        config, tokens=tokens, encoder_length=lengths[0], decoder_length=lengths[1], raw_length=lengths[2]
    )
    assert found / 1e20 == pytest.approx(claimed, rel=0.02)


def test_flops_of_a_decoder_written_out() -> None:
    config: dict[str, Any] = {
        "model_type": "llama",
        "vocab_size": 100,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 48,
        "tie_word_embeddings": True,
    }
    weights = 2 * (32 * 32 * 2 + 32 * 16 * 2 + 3 * 32 * 48) + 100 * 32
    attention = 2 * 2 * 2 * 32 * 10
    assert cost.flops_per_token(config, sequence_length=10) == 3 * (2 * weights + attention)
    assert cost.flops_per_token({**config, "tie_word_embeddings": False}, sequence_length=10) == 3 * (2 * weights + attention)


def test_flops_of_an_encoder_decoder_written_out() -> None:
    config = tiny.make("openba").config.to_dict()
    enc, dec, hidden, inner, ffn = 7, 5, 32, 48, 24
    encoder = 2 * enc * (4 * hidden * inner + 3 * hidden * ffn) + 4 * enc * enc * inner
    decoder = 2 * dec * (6 * hidden * inner + 3 * hidden * ffn) + 2 * enc * 2 * hidden * inner + 4 * dec * (dec + enc) * inner
    expected = 3 * (2 * encoder + 3 * decoder + 2 * dec * 48 * hidden)
    assert cost.flops_per_sample(config, encoder_length=enc, decoder_length=dec) == expected


@pytest.mark.parametrize("case", ["llama", "t5-own-head", "openba", "opt-projected"])
def test_parts_add_up(case: str) -> None:
    model = tiny.make(case)
    config = {**model.config.to_dict(), **({"tie_word_embeddings": False} if case == "t5-own-head" else {})}
    assert sum(cost.parameters_by_part(config).values()) == cost.count_parameters(config)


def test_memory_grows_with_the_step_and_shrinks_with_recomputation() -> None:
    config = tiny.make("llama").config.to_dict()
    small = cost.training_memory_bytes(config, tokens_per_step=128, sequence_length=64)
    large = cost.training_memory_bytes(config, tokens_per_step=256, sequence_length=64)
    assert 16 * cost.count_parameters(config) < small < large
    assert cost.training_memory_bytes(config, tokens_per_step=256, sequence_length=64, recompute=True) < large
