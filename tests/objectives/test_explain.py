"""A row as people read it."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from penjing.errors import ConfigError
from penjing.objectives.explain import render
from penjing.objectives.stream import StreamConfig, build_stream
from penjing.objectives.tokens import write_tokens

WORDS = {**{i: f"w{i} " for i in range(100)}, 1: ""}


def decode(ids) -> str:
    return "".join(WORDS[i] for i in ids)


@pytest.fixture
def small(tmp_path: Path) -> Path:
    special = {"</s>": 1, **{f"<extra_id_{i}>": 80 - i for i in range(10)}, "<R>": 90, "<S>": 91, "<X>": 92}
    documents = [(np.append(np.arange(10, 34), 1),), (np.append(np.arange(40, 60), 1),)]
    tasks = [([10, 11, 12], [20, 21, 1])]
    return write_tokens(tmp_path, {"web": documents, "qa": tasks}, vocab_size=100, eos_id=1, special=special).path


def test_causal_row_shows_input_and_learned_targets(small):
    stream = build_stream(StreamConfig(sequence_length=46, batch_rows=1, sources={"web": 1}), small)
    text = render(stream, 0, 0, decode=decode, colour=False)
    assert text.startswith("step 0, row 0: row 0 of source 'web', objective causal\nsegment 1: positions 0–")
    long = "input   " + "".join(f"w{i} " for i in range(10, 34)) + "</s>\n"
    assert long in text
    assert "target  «" + "".join(f"w{i} " for i in range(11, 34)) + "</s>» [1 not learned]" in text
    assert text.endswith("46 of 46 positions used (100.0%), 44 targets")
    assert "\x1b" not in text


def test_prompts_that_are_not_learned_are_counted(small):
    stream = build_stream(StreamConfig(sequence_length=16, batch_rows=1, sources={"qa": 1}, prompt_loss_weight=0), small)
    text = render(stream, 0, 0, decode=decode, colour=False)
    assert "target  [2 not learned] «w20 w21 </s>» [1 not learned]" in text
    weighted = build_stream(StreamConfig(sequence_length=16, batch_rows=1, sources={"qa": 1}, prompt_loss_weight=0.5), small)
    assert "weights 2 at 0.5, 3 at 1" in render(weighted, 0, 0, decode=decode, colour=False)


def test_encoder_decoder_row_shows_both_sides_and_the_denoiser(small):
    stream = build_stream(StreamConfig(objective="ul2", architecture="encoder-decoder", sequence_length=64, batch_rows=1,
                                       sources={"web": 1}, denoiser_shares=(0, 0, 1, 0, 0, 0, 0)), small)
    text = render(stream, 0, 0, decode=decode, colour=False)
    assert "denoiser 3 (S)" in text
    assert re.search(r"encoder <S>[w0-9 ]+(</s>)?<extra_id_0></s>", text)
    assert re.search(r"decoder w0 <extra_id_0>", text) and re.search(r"target  «<extra_id_0>[w0-9 ]*(</s>)+»", text)


def test_colours_change_nothing_but_colour(small):
    stream = build_stream(StreamConfig(objective="ul2", sequence_length=128, batch_rows=2, sources={"web": 1}), small)
    plain = render(stream, 1, 1, decode=decode, colour=False)
    coloured = render(stream, 1, 1, decode=decode, colour=True)
    assert "\x1b[1;31m<extra_id_0>\x1b[0m" in coloured
    assert re.sub(r"\x1b\[[0-9;]*m", "", coloured) == re.sub("[«»]", "", plain)


def test_terminal_codes_in_the_text_are_made_harmless(small):
    stream = build_stream(StreamConfig(sequence_length=16, batch_rows=1, sources={"web": 1}), small)
    text = render(stream, 0, 0, decode=lambda ids: "a\x1b[31m\nb" * len(ids), colour=False)
    assert "\x1b" not in text and "a␛[31m⏎b" in text


def test_long_texts_are_cut(small):
    stream = build_stream(StreamConfig(sequence_length=1024, batch_rows=1, cross_document_attention=True), small)
    assert len(render(stream, 0, 0, decode=decode, colour=False, width=100)) < 700


def test_a_row_that_is_not_there_is_named(small):
    stream = build_stream(StreamConfig(sequence_length=16, batch_rows=2), small)
    with pytest.raises(ConfigError, match="there is no row 2 in step 5; expected rows 0 to 1"):
        render(stream, 5, 2)
