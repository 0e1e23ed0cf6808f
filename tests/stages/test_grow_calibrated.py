"""Calibrated rows begin where the corpus's frequencies put them, and only where that is better on other text."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from penjing.contract import Job
from penjing.data.document import SCHEMA, CorpusWriter
from penjing.files import hash_file
from penjing.stages import _calibration, grow_vocab
from penjing.tokenizer.calibrate import Contexts, calibrated


@pytest.fixture(scope="module")
def bilingual(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = []
    stories = (shared / "models" / "stories260K" / "tinystories_sample.txt").read_text(encoding="utf-8").split("<|endoftext|>")
    for index, text in enumerate(part.strip() for part in stories if part.strip()):
        rows.append({"id": f"e{index}", "text": text, "lang": "en"})
    with gzip.open(shared / "corpus" / "zh" / "web_mix_zh.jsonl.gz", "rt", encoding="utf-8") as file:
        for index, line in zip(range(60), file, strict=False):
            rows.append({"id": f"z{index}", "text": json.loads(line)["text"][:600], "lang": "zh"})
    path = tmp_path_factory.mktemp("corpus") / "corpus"
    with CorpusWriter(path, provenance={}) as writer:
        writer.write(pa.Table.from_pylist([{"url": None, "source": "s", "meta": "{}", **row} for row in rows], schema=SCHEMA))
    return path


def grow(base: Path, corpus: Path, out: Path, **settings: object) -> dict:  # type: ignore[type-arg]
    out.mkdir()
    config = grow_vocab.Config(size=4000, languages=["zh"], min_count=1, measure_characters=6000, **settings)  # type: ignore[arg-type]
    return grow_vocab.run(config, {"checkpoint": base, "corpus": corpus}, out, Job())


def test_calibration_beats_the_mean_rows_and_random_rows_on_chinese(shared: Path, bilingual: Path, tmp_path: Path) -> None:
    base = shared / "models" / "stories260K"
    figures = grow(base, bilingual, tmp_path / "made", calibrate=True, measure_inits=["position", "random"])
    calibration, inits = figures["calibration"], figures["initial_bits_per_character"]
    assert calibration["kept"]
    after = calibration["bits_per_character_after"]
    assert after["zh"] < 0.9 * min(inits["position"]["zh"], inits["random"]["zh"])
    assert after["en"] < 1.05 * calibration["bits_per_character_before"]["en"]


def test_calibration_is_deterministic_and_only_moves_new_rows(shared: Path, bilingual: Path, tmp_path: Path) -> None:
    from penjing.models.checkpoint import open_checkpoint

    base = shared / "models" / "stories260K"
    grow(base, bilingual, tmp_path / "plain")
    for name in ("one", "two"):
        grow(base, bilingual, tmp_path / name, calibrate=True)
    one, plain = open_checkpoint(tmp_path / "one"), open_checkpoint(tmp_path / "plain")
    assert hash_file(tmp_path / "one" / "model.safetensors") == hash_file(tmp_path / "two" / "model.safetensors")
    for name in one.names:
        a, b = np.asarray(one.read(name)), np.asarray(plain.read(name))
        if name.endswith("embed_tokens.weight"):
            assert np.array_equal(a[:512], b[:512]) and not np.array_equal(a[512:], b[512:])
            assert len(np.unique(a, axis=0)) == len(np.unique(b, axis=0))
        else:
            assert np.array_equal(a, b), name
    assert not (tmp_path / "one" / "state").exists()


def test_decision_survives_a_kill_before_the_weights_are_written(shared: Path, bilingual: Path, tmp_path: Path) -> None:
    base = shared / "models" / "stories260K"
    grow(base, bilingual, tmp_path / "whole", calibrate=True)
    grow(base, bilingual, tmp_path / "killed")
    settings = {"first": 512, "characters": 6000, "context_length": 256}
    write = _calibration._write_rows
    try:
        def dies(*_: object) -> None:
            raise KeyboardInterrupt

        _calibration._write_rows = dies  # type: ignore[assignment]
        with pytest.raises(KeyboardInterrupt):
            _calibration.calibrate(tmp_path / "killed", bilingual, **settings)
    finally:
        _calibration._write_rows = write
    _calibration.calibrate(tmp_path / "killed", bilingual, **settings)
    assert hash_file(tmp_path / "killed" / "model.safetensors") == hash_file(tmp_path / "whole" / "model.safetensors")


def test_mean_logit_of_each_token_is_its_share() -> None:
    """With hidden states that say the language, the calibrated softmax gives the new tokens their frequencies."""
    rng = np.random.default_rng(3)
    uses = np.arange(4000) % 2 == 0
    hidden = rng.normal(0, 0.3, (4000, 8))
    hidden[:, 0] = np.where(uses, 2.0, -2.0)
    rows = rng.normal(0, 0.5, (10, 8))
    targets = np.where(uses, rng.choice([0, 6, 7, 8, 9], 4000, p=[0.2, 0.4, 0.2, 0.15, 0.05]), rng.integers(0, 6, 4000))
    made = calibrated(Contexts(hidden, targets, uses), rows, first=6, last=10, share=0.0)
    logits = hidden[uses] @ np.concatenate([rows[:6], made]).T
    share = np.exp(logits - logits.max(1, keepdims=True))
    mean = (share / share.sum(1, keepdims=True)).mean(0)
    assert np.allclose(mean[6:], [0.4, 0.2, 0.15, 0.05], atol=0.04)
    outside = hidden[~uses] @ np.concatenate([rows[:6], made]).T
    assert (outside[:, 6:].mean() < outside[:, :6].max(1).mean())
