"""Encoder-decoders: packed pairs equal pairs alone, UL2 is learned, D-UL2 moves its shares and survives a stop."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from penjing.contract import Job
from penjing.errors import ConfigError, Interrupted
from penjing.objectives.stream import StreamConfig, build_stream
from penjing.objectives.tokens import write_tokens
from penjing.train.config import TrainConfig
from penjing.train.feed import split
from penjing.train.loop import train
from penjing.train.model import Objective, load

SPECIAL = {**{f"<extra_id_{i}>": 199 - i for i in range(60)}, "<R>": 200, "<S>": 201, "<X>": 202}


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tokens(tmp_path_factory.mktemp("tokens"))


def make_tokens(out: Path) -> Path:
    rng = np.random.default_rng(0)
    texts = [np.append(3 + (int(rng.integers(90)) + np.arange(int(rng.integers(40, 200)))) % 90, 1) for _ in range(80)]
    write_tokens(out, {"counting": [(text,) for text in texts]}, vocab_size=203, eos_id=1, special=SPECIAL)
    return out


@pytest.fixture(scope="module", params=["openba", "t5"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(request.param, tmp_path_factory.mktemp(request.param))


def make(kind: str, path: Path) -> Path:
    torch.manual_seed(0)
    if kind == "openba":
        from penjing.models.openba import OpenBAConfig, OpenBAForConditionalGeneration

        OpenBAForConditionalGeneration(OpenBAConfig(
            vocab_size=203, hidden_size=32, kv_channels=8, ffn_hidden_size=48, num_layers=1, num_decoder_layers=2, num_heads=4,
            hidden_dropout=0.0, attention_dropout=0.0, max_seq_length=256, decoder_max_seq_length=256)).save_pretrained(path)
    else:
        from transformers import T5Config, T5ForConditionalGeneration

        T5ForConditionalGeneration(T5Config(
            vocab_size=203, d_model=32, d_kv=8, d_ff=48, num_layers=1, num_decoder_layers=2, num_heads=4, dropout_rate=0.0,
            feed_forward_proj="gated-gelu", tie_word_embeddings=True, decoder_start_token_id=0)).save_pretrained(path)
    return path


def stream_config(**more: object) -> StreamConfig:
    return StreamConfig(**{"objective": "ul2", "architecture": "encoder-decoder", "sequence_length": 96, "decoder_length": 96,
                           "piece_length": 40, "batch_rows": 4, **more})


def test_packed_pairs_equal_pairs_alone(checkpoint: Path, tokens: Path) -> None:
    batch = build_stream(stream_config(), tokens).batch(0)
    assert batch.decoder_segments_BD.max() > 1
    model = load(checkpoint).double().eval()
    packed = float(Objective(model, TrainConfig(tokens=1))(split(batch, slice(None))).total.detach())

    from penjing.models.checkpoint import load_model

    plain, alone = load_model(checkpoint).double(), 0.0
    for row in range(4):
        for number in range(1, int(batch.decoder_segments_BD[row].max()) + 1):
            here, there = batch.decoder_segments_BD[row] == number, batch.encoder_segments_BE[row] == number
            logits = plain(input_ids=torch.from_numpy(batch.encoder_tokens_BE[row][there])[None],
                           decoder_input_ids=torch.from_numpy(batch.decoder_tokens_BD[row][here])[None]).logits[0]
            targets = torch.from_numpy(batch.targets_BD[row][here])
            alone += float(torch.nn.functional.cross_entropy(logits, targets, ignore_index=-100, reduction="sum").detach())
    assert packed == pytest.approx(alone, rel=1e-6)


def test_ul2_is_learned_and_reported_by_denoiser(checkpoint: Path, tokens: Path, tmp_path: Path) -> None:
    config = TrainConfig(tokens=20000, lr=1e-2, precision="fp32")
    figures = train(config, checkpoint=checkpoint, stream=build_stream(stream_config(), tokens), out=tmp_path, job=Job())
    report = json.loads((tmp_path / "train.json").read_text())
    assert figures["final_loss"] < figures["curve"][0]["loss"] - 0.3
    assert len(report["final_loss_by_denoiser"]) >= 3


def test_d_ul2_moves_its_shares_and_resumes_bitwise(tokens: Path, tmp_path: Path) -> None:
    checkpoint = make("openba", tmp_path / "model")
    shape = stream_config(objective="d-ul2", held_out_percent=20.0)
    stream, validation = build_stream(shape, tokens), build_stream(shape.model_copy(update={"part": "held-out"}), tokens)
    config = TrainConfig(tokens=5000, lr=1e-2, reweigh_every=3, reweigh_batches=1, save_every=2, precision="fp32")

    def run(out: Path, stop: int) -> dict:
        calls = iter(range(1, 1000))
        out.mkdir(exist_ok=True)
        return train(config, checkpoint=checkpoint, stream=stream, validation=validation, out=out,
                     job=Job(stop=lambda: next(calls) >= stop))

    run(tmp_path / "whole", 10**6)
    with pytest.raises(Interrupted):
        run(tmp_path / "parts", 5)
    run(tmp_path / "parts", 10**6)
    shares = json.loads((tmp_path / "whole" / "train.json").read_text())["denoiser_shares"]
    assert sum(shares) == pytest.approx(1) and shares[0] != pytest.approx(0.02, abs=1e-3)
    for name in ("train.json", "model.safetensors"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes()


def test_d_ul2_without_held_out_texts_is_refused(tokens: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="d-ul2 has nothing to measure its denoisers on"):
        train(TrainConfig(tokens=100), checkpoint=make("openba", tmp_path / "model"), out=tmp_path, job=Job(),
              stream=build_stream(stream_config(objective="d-ul2"), tokens))
