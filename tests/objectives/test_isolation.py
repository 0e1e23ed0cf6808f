"""Packed rows give each sample the logits it has alone (fp32, 1e-5), in models of both architectures."""

from __future__ import annotations

import numpy as np
import pytest

from penjing.objectives.example import cross_mask, decoder_mask, encoder_mask, self_mask
from penjing.objectives.stream import StreamConfig, build_stream

pytestmark = pytest.mark.slow
torch = pytest.importorskip("torch")


def bias(mask):
    return torch.where(torch.from_numpy(mask)[:, None], 0.0, torch.finfo(torch.float32).min)


@pytest.mark.parametrize("objective", ["causal", "prefix", "ul2", "glm"])
def test_decoder_only_rows(path, objective):
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=32000, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                                         num_attention_heads=2, attn_implementation="eager")).eval()
    batch = build_stream(StreamConfig(objective=objective, sequence_length=192, batch_rows=2, piece_length=64), path).batch(1)
    mask = self_mask(batch)
    ids, positions = torch.from_numpy(batch.tokens_BS), torch.from_numpy(batch.positions_BS).long()
    with torch.no_grad():
        packed = model(ids, attention_mask=bias(mask), position_ids=positions, use_cache=False).logits
        compared = 0
        for row in range(2):
            for number in range(1, int(batch.segments_BS[row].max()) + 1):
                where = np.flatnonzero(batch.segments_BS[row] == number)
                part = slice(int(where[0]), int(where[-1]) + 1)
                alone = model(ids[row : row + 1, part], attention_mask=bias(mask[row : row + 1, part, part]),
                              position_ids=positions[row : row + 1, part], use_cache=False).logits
                assert (packed[row, part] - alone[0]).abs().max() < 1e-5
                if objective == "causal":
                    plain = model(ids[row : row + 1, part], use_cache=False).logits
                    assert (packed[row, part] - plain[0]).abs().max() < 1e-5
                compared += 1
    assert compared > 4


def test_encoder_decoder_rows(path):
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = T5ForConditionalGeneration(T5Config(vocab_size=32000, d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2,
                                                decoder_start_token_id=0)).eval()
    made = build_stream(StreamConfig(objective="ul2", architecture="encoder-decoder", sequence_length=192, batch_rows=2,
                                     piece_length=64, sources={"web": 0.7, "tasks": 0.3}), path)
    compared = 0
    for step in range(3):
        batch = made.batch(step)
        with torch.no_grad():
            states = model.encoder(torch.from_numpy(batch.encoder_tokens_BE), attention_mask=bias(encoder_mask(batch)))[0]
            packed = model.decoder(torch.from_numpy(batch.decoder_tokens_BD), attention_mask=bias(decoder_mask(batch)),
                                   encoder_hidden_states=states, encoder_attention_mask=bias(cross_mask(batch)),
                                   use_cache=False)[0]
            for row in range(2):
                for number in range(1, int(batch.decoder_segments_BD[row].max()) + 1):
                    here, there = batch.encoder_segments_BE[row] == number, batch.decoder_segments_BD[row] == number
                    alone = model(input_ids=torch.from_numpy(batch.encoder_tokens_BE[row][here])[None],
                                  decoder_input_ids=torch.from_numpy(batch.decoder_tokens_BD[row][there])[None],
                                  output_hidden_states=True, use_cache=False).decoder_hidden_states[-1]
                    assert (packed[row][torch.from_numpy(there)] - alone[0]).abs().max() < 1e-5
                    compared += 1
    assert compared > 6
