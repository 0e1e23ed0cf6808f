"""Bits per byte: every token once, the same however texts are cut and batched, with an interval that covers."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from penjing.errors import InputError
from penjing.evaluate.perplexity import DocumentLoss, document_losses, summarise

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def stories(shared: Path):  # type: ignore[no-untyped-def]
    from penjing.models.checkpoint import load_model
    from penjing.tokenizer.encode import load_encoder

    path = shared / "models" / "stories260K"
    sample = (path / "tinystories_sample.txt").read_text(encoding="utf-8")
    texts = [part.strip() for part in sample.split("<|endoftext|>") if part.strip()]
    return load_model(path), load_encoder(path), texts


def naive_nats(model, ids: list[int], start: int) -> float:  # type: ignore[no-untyped-def]
    whole = torch.tensor([[start, *ids]])
    with torch.inference_mode():
        logits = model(input_ids=whole[:, :-1]).logits[0].double()
    return float(torch.nn.functional.cross_entropy(logits, whole[0, 1:], reduction="sum"))


def test_equals_one_pass_over_each_document(stories) -> None:  # type: ignore[no-untyped-def]
    model, encoder, texts = stories
    short = [text[:400] for text in texts] + ["a", ""]
    losses = document_losses(model, encoder, short, context_length=512, start_id=1)
    for text, ids, loss in zip(short, encoder.encode_batch(short), losses, strict=True):
        assert loss.tokens == len(ids) and loss.bytes == len(text.encode())
        expected = naive_nats(model, list(map(int, ids)), 1) if len(ids) else 0.0
        assert loss.nats == pytest.approx(expected, abs=2e-3 * max(1, len(ids)) ** 0.5)


def test_windows_score_every_token_once_and_with_context(stories) -> None:  # type: ignore[no-untyped-def]
    model, encoder, texts = stories
    whole = document_losses(model, encoder, texts, context_length=512, start_id=1)
    cut = document_losses(model, encoder, texts, context_length=64, start_id=1)
    for a, b in zip(whole, cut, strict=True):
        assert a.tokens == b.tokens
        assert a.nats <= b.nats * 1.02 and b.nats < a.nats * 1.25  # less context costs a little, never much


def test_trained_model_beats_uniform_by_far(stories) -> None:  # type: ignore[no-untyped-def]
    model, encoder, texts = stories
    score = summarise(document_losses(model, encoder, texts, context_length=512, start_id=1))
    assert score.nats_per_token < 0.4 * math.log(512)
    assert score.low <= score.bits_per_byte <= score.high


def test_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(5)
    hits = 0
    for trial in range(120):
        sizes = rng.integers(50, 400, 60)
        rates = rng.gamma(4.0, 0.25, 60)  # mean 1 nat per byte
        losses = [DocumentLoss(float(size * rate), int(size), int(size), int(size)) for size, rate in zip(sizes, rates, strict=True)]
        score = summarise(losses, seed=trial, resamples=400)
        hits += score.low <= 1 / math.log(2) <= score.high
    assert 105 <= hits <= 120


def test_ids_beyond_the_embedding_are_a_clear_fault(stories) -> None:  # type: ignore[no-untyped-def]
    model, encoder, texts = stories
    with pytest.raises(InputError, match=r"ids that the model has no row for; found id 512; expected below 512"):
        document_losses(model, encoder, texts[:1], context_length=64, start_id=512)


def test_no_text_is_a_clear_fault() -> None:
    with pytest.raises(InputError, match="no text to score"):
        summarise([])
