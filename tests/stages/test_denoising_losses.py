"""Held-out losses of encoder-decoders by denoiser: the same masks for all, padding that changes nothing, honest comparisons."""

from __future__ import annotations

import json
import shutil
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from penjing.config import generator
from penjing.contract import Job
from penjing.data.document import CorpusWriter, documents
from penjing.errors import ConfigError, InputError, Interrupted
from penjing.evaluate import denoising
from penjing.files import hash_tree, read_json
from penjing.models.checkpoint import load_model
from penjing.objectives.special import find_special
from penjing.objectives.ul2 import denoise
from penjing.stages import denoising_losses, initialise, openba_tokenizer, train_tokenizer
from penjing.tokenizer.encode import load_encoder

SETTINGS: dict[str, Any] = {"piece_length": 48, "pieces_per_language": 3, "names": ["one", "two"]}


def prose(name: str, count: int) -> list[dict[str, str]]:
    lines = resources.files("penjing.samples").joinpath(name).read_text(encoding="utf-8").splitlines()[:count]
    return [{"id": f"{number:04d}", "text": json.loads(line)["text"], "lang": "zh"} for number, line in enumerate(lines)]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two small random OpenBA models of one tokenizer, and text that neither has seen."""
    root = tmp_path_factory.mktemp("denoising")
    english = {"id": "en", "text": (denoising.__doc__ or "") * 2, "lang": "en"}
    for name, rows in (("corpus", prose("prose_zh_a.jsonl", 20)), ("held-out", [*prose("prose_zh_b.jsonl", 4), english])):
        with CorpusWriter(root / name, provenance={"made": "for tests"}) as writer:
            writer.write(documents(rows))
    for name in ("pieces", "tokenizer", "one", "two"):
        (root / name).mkdir()
    config = train_tokenizer.Config(size=1500, character_coverage=0.98)
    train_tokenizer.run(config, {"corpus": root / "corpus"}, root / "pieces", Job())
    openba_tokenizer.run(openba_tokenizer.Config(), {"tokenizer": root / "pieces"}, root / "tokenizer", Job())
    for seed, name in enumerate(("one", "two")):
        shape = initialise.Config(model_type="openba", hidden_size=16, num_encoder_layers=1, num_layers=2, num_heads=2, ffn_size=32,
                                  max_positions=128, seed=seed)
        initialise.run(shape, {"tokenizer": root / "tokenizer"}, root / name, Job())
    return root


def measure(made: Path, out: Path, models: tuple[str, ...] = ("one", "two"), **settings: Any) -> dict[str, Any]:
    out.mkdir(exist_ok=True)
    config = denoising_losses.Config(**{**SETTINGS, **settings})
    return denoising_losses.run(config, {"models": [made / name for name in models], "held_out": made / "held-out"}, out, Job())


@pytest.fixture(scope="module")
def figures(made: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return measure(made, tmp_path_factory.mktemp("figures") / "out", compare=[("one", "two"), ("one", "one")])


def test_a_random_model_knows_nothing_on_any_denoiser(made: Path, figures: dict[str, Any]) -> None:
    rows = read_json(made / "one" / "config.json")["vocab_size"]
    score = figures["scores"]["one"]
    assert list(score["by_denoiser"]) == ["R 3/0.15", "R 8/0.15", "S", "X 3/0.5", "X 8/0.5", "X 64/0.15", "X 64/0.5"]
    assert all(abs(item["loss"] - np.log(rows)) < 0.5 and item["low"] <= item["loss"] <= item["high"]
               for item in score["by_denoiser"].values())
    assert score["pieces"] == 6 and set(score["by_language"]) == {"en", "zh"}
    assert abs(score["loss"] - np.mean([item["loss"] for item in score["by_denoiser"].values()])) < 1e-5


def test_batches_give_what_single_examples_give(made: Path) -> None:
    encoder, model = load_encoder(made / "tokenizer"), load_model(made / "one")
    special = find_special(encoder.special, eos=1)
    ids = encoder.encode(prose("prose_zh_b.jsonl", 1)[0]["text"]).astype(np.int64)
    pieces = {"zh": [ids[:40], ids[40:63], ids[63:70]]}  # of different lengths, so that rows are padded
    found = denoising.piece_losses(model, pieces, special=special, bytes_V=np.ones(encoder.vocab_size, np.int64), seed=5)["zh"]
    for row, piece in enumerate(pieces["zh"]):
        for number in range(1, 8):
            example = denoise(piece, generator(5, "denoising", "zh", row, number), number, special=special)
            with torch.inference_mode():
                loss = model(input_ids=torch.tensor(example.encoder)[None], labels=torch.tensor(example.labels)[None]).loss
            assert found.nats_NK[row, number - 1] == pytest.approx(float(loss) * len(example.labels), rel=1e-4)
            assert found.tokens_NK[row, number - 1] == len(example.labels)


def test_bytes_are_those_of_the_masked_text(made: Path) -> None:
    encoder = load_encoder(made / "tokenizer")
    text = "盆景 and 12 lines\n🙂 of text"
    sizes = denoising_losses._bytes_of(made / "tokenizer")
    assert int(sizes[encoder.encode(text)].sum()) == len(text.encode()) + 2  # a dummy space before each of the two lines
    assert all(sizes[encoder.special[name]] == 0 for name in ("<pad>", "</s>", "<extra_id_0>", "<S>"))


def test_differences_are_paired(figures: dict[str, Any]) -> None:
    other, same = figures["differences"]
    scores = figures["scores"]
    assert other["difference"] == pytest.approx(scores["one"]["loss"] - scores["two"]["loss"], abs=2e-6)
    assert other["low"] <= other["difference"] <= other["high"]
    assert same["difference"] == same["low"] == same["high"] == 0.0


def test_a_stopped_run_goes_on_to_the_same_bytes(made: Path, figures: dict[str, Any], tmp_path: Path) -> None:
    config = denoising_losses.Config(**SETTINGS)
    inputs = {"models": [made / "one", made / "two"], "held_out": made / "held-out"}
    (tmp_path / "out").mkdir()
    calls = iter([False, True])
    with pytest.raises(Interrupted):
        denoising_losses.run(config, inputs, tmp_path / "out", Job(stop=lambda: next(calls)))
    kept = tmp_path / "out" / "state" / "one.json"
    before = kept.stat().st_mtime_ns
    measure(made, tmp_path / "out")
    assert kept.stat().st_mtime_ns == before
    measure(made, tmp_path / "whole")
    ignore = frozenset({"state"})
    assert hash_tree(tmp_path / "out", ignore=ignore) == hash_tree(tmp_path / "whole", ignore=ignore)
    assert read_json(tmp_path / "out" / "scores.json")["models"] == figures["scores"]


def test_models_of_two_tokenizers_are_not_compared_piece_by_piece(made: Path) -> None:
    one = denoising.PieceLosses(np.ones((2, 7)), np.full((2, 7), 3), np.ones((2, 7)))
    other = denoising.PieceLosses(np.ones((2, 7)), np.full((2, 7), 4), np.ones((2, 7)))
    with pytest.raises(InputError, match="expected models of one tokenizer"):
        denoising.difference(one, other)


def test_bad_settings_are_named(made: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="compare: no model is called 'three'; expected one of one, two"):
        measure(made, tmp_path, compare=[("one", "three")])
    with pytest.raises(ConfigError, match="every model needs a name of its own"):
        measure(made, tmp_path, names=["one", "one"])
    with pytest.raises(InputError, match="held-out text is too short to score"):
        measure(made, tmp_path, piece_length=100_000)


def test_a_decoder_only_model_is_sent_to_evaluate(made: Path, tmp_path: Path) -> None:
    (tmp_path / "llama").mkdir()
    shape = initialise.Config(hidden_size=16, num_layers=1, num_heads=2)
    initialise.run(shape, {"tokenizer": made / "tokenizer"}, tmp_path / "llama", Job())
    inputs = {"models": [tmp_path / "llama"], "held_out": made / "held-out"}
    (tmp_path / "out").mkdir()
    with pytest.raises(InputError, match="denoisers are measured on encoder-decoders.*stage evaluate scores the others"):
        denoising_losses.run(denoising_losses.Config(names=["llama"]), inputs, tmp_path / "out", Job())
    shutil.rmtree(tmp_path / "out")


def test_a_model_answers_a_prompt_of_its_format(made: Path) -> None:
    from penjing.generate.sample import Sampling, continue_texts

    # The decoder starts from pad and the encoder reads its end token, as in training.
    assert read_json(made / "one" / "generation_config.json")["decoder_start_token_id"] == 0
    sampling = Sampling(max_new_tokens=4, temperature=0)
    [answer] = continue_texts(made / "one", ["<S> 春天 <extra_id_0>"], sampling=sampling)
    model, encoder = load_model(made / "one"), load_encoder(made / "tokenizer")
    ids = torch.tensor([[*encoder.encode("<S> 春天 <extra_id_0>").tolist(), 1]])
    with torch.inference_mode():
        out = model.generate(ids, max_new_tokens=4, do_sample=False)[0].tolist()
    special = set(encoder.special.values()) - {encoder.special["\n"]}
    assert answer == encoder.decode([number for number in out if number not in special])
