"""From a tokenizer and tokens to a trained checkpoint through the two stages."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from penjing.contract import Estimate, Job
from penjing.errors import ConfigError, InputError
from penjing.files import hash_tree, read_json
from penjing.stages import initialise, train


@pytest.fixture(scope="module")
def started(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A random model with the TinyStories tokenizer, and tokens of a real story."""
    from penjing.objectives.tokens import write_manifest, write_tokens
    from penjing.tokenizer.encode import load_encoder

    source = shared / "models" / "stories260K"
    root = tmp_path_factory.mktemp("started")
    config = initialise.Config(hidden_size=32, num_layers=2, num_heads=4, num_kv_heads=2, max_positions=256)
    figures = initialise.run(config, {"tokenizer": source}, root / "model", Job())
    encoder = load_encoder(source)
    story = (source / "tinystories_sample.txt").read_text(encoding="utf-8")
    parts = [part for part in story.split("\n") if part.strip()]
    documents = [(np.append(ids, encoder.eos_id),) for ids in encoder.encode_batch(parts)]
    tokens = write_tokens(root / "tokens", {"stories": documents}, vocab_size=encoder.vocab_size, eos_id=encoder.eos_id)
    facts = {"stories": {**tokens.sources["stories"], "bytes": sum(len(part.encode()) for part in parts)}}
    write_manifest(root / "tokens", vocab_size=encoder.vocab_size, eos_id=encoder.eos_id, special={}, sources=facts)
    assert figures["vocab_size"] == encoder.vocab_size
    return root / "model", root / "tokens"


def config(**more: object) -> train.Config:
    return train.Config(**{"tokens": 6000, "lr": 1e-2, "sequence_length": 64, "batch_rows": 4, "packing": "best-fit",
                           "precision": "fp32", **more})


def test_initialise_is_the_same_for_the_same_seed(shared: Path, tmp_path: Path) -> None:
    source = {"tokenizer": shared / "models" / "stories260K"}
    shape = {"hidden_size": 32, "num_layers": 2, "num_heads": 4}
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        initialise.run(initialise.Config(seed=seed, **shape), source, tmp_path / name, Job())
    assert hash_tree(tmp_path / "a") == hash_tree(tmp_path / "b") != hash_tree(tmp_path / "c")


def test_initialised_model_knows_nothing_yet(started: tuple[Path, Path]) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(started[0])
    ids = torch.tensor([AutoTokenizer.from_pretrained(started[0]).encode("Once upon a time")])
    loss = float(model(input_ids=ids, labels=ids).loss.detach())
    assert abs(loss - np.log(512)) < 0.5


def test_trained_checkpoint_loads_and_scores_better(started: tuple[Path, Path], tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokens = started
    figures = train.run(config(evaluate_every=10), {"checkpoint": model, "tokens": [tokens], "held_out": tokens}, tmp_path,
                        Job(metrics=tmp_path / "metrics.jsonl"))
    assert figures["bits_per_byte"]["stories"] < 4.0
    assert figures["curve"][0]["loss"] > figures["final_loss"]
    scores = [entry["bits_per_byte"]["stories"] for entry in read_json(tmp_path / "train.json")["held_out"]]
    assert scores == sorted(scores, reverse=True) and len(scores) >= 2
    trained = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert trained.config.use_cache and AutoTokenizer.from_pretrained(tmp_path).encode("a story")


def test_metrics_name_what_a_run_is_watched_by(started: tuple[Path, Path], tmp_path: Path) -> None:
    import json

    train.run(config(tokens=1000), {"checkpoint": started[0], "tokens": [started[1]]}, tmp_path,
              Job(metrics=tmp_path / "metrics.jsonl"))
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    assert {"step", "tokens", "loss", "lr", "grad_norm", "tokens_per_s", "mfu", "mfu_strict", "hfu"} <= set(steps[0])
    assert lines[0]["event"] == "start" and "GFLOPS measured" in lines[0]["peak"]
    assert 0 < steps[-1]["mfu_strict"] < steps[-1]["mfu"]


def test_distilled_student_is_nearer_to_its_teacher(started: tuple[Path, Path], tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model, tokens = started
    inputs = {"checkpoint": model, "tokens": [tokens]}
    train.run(config(), inputs, tmp_path / "teacher", Job())
    train.run(config(tokens=3000), inputs, tmp_path / "alone", Job())
    taught = config(tokens=3000, distil={"weight": 1.0})
    train.run(taught, {**inputs, "teacher": tmp_path / "teacher"}, tmp_path / "taught", Job())
    ids = torch.from_numpy(np.fromfile(tokens / "stories.bin", "<u2")[:256].astype(np.int64))[None]
    found = {}
    for name in ("teacher", "alone", "taught"):
        with torch.no_grad():
            found[name] = AutoModelForCausalLM.from_pretrained(tmp_path / name)(input_ids=ids).logits.log_softmax(-1)
    gap = {name: float((found["teacher"].exp() * (found["teacher"] - other)).sum(-1).mean()) for name, other in found.items()}
    assert gap["taught"] < 0.8 * gap["alone"]


def test_new_rows_alone_are_trained(started: tuple[Path, Path], tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    train.run(config(tokens=1000, trainable="new-rows", new_rows_from=400), {"checkpoint": started[0], "tokens": [started[1]]},
              tmp_path, Job())
    before, after = load_file(started[0] / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    for name, old in before.items():
        if name == "model.embed_tokens.weight":
            np.testing.assert_array_equal(old[:400], after[name][:400])
            assert (old[400:] != after[name][400:]).any()
        else:
            np.testing.assert_array_equal(old, after[name])


def test_price_counts_tokens_times_flops(started: tuple[Path, Path]) -> None:
    model = read_json(started[0] / "config.json")
    estimate = train.price(config(), {"checkpoint": Estimate(model=model), "tokens": [Estimate()]})
    assert estimate.parameters == 2 * (32 * 32 * 2 + 32 * 16 * 2 + 3 * 32 * 96 + 64) + 512 * 32 + 32
    assert estimate.flops and estimate.flops > 6 * 6000 * estimate.parameters * 0.9


@pytest.mark.parametrize(("wrong", "kind", "says"), [
    ({"sequence_length": 512}, ConfigError, "rows are longer than the model's positions"),
    ({"distil": {"weight": 1.0}}, ConfigError, "distil is set but there is no teacher"),
    ({"trainable": "re:nothing-like-it"}, ConfigError, "no parameter fits trainable"),
    ({"sources": {"tales": 1.0}}, ConfigError, "tales"),
])
def test_wrong_settings_are_named(started: tuple[Path, Path], tmp_path: Path, wrong: dict, kind: type, says: str) -> None:
    with pytest.raises(kind, match=says):
        train.run(config(**wrong), {"checkpoint": started[0], "tokens": [started[1]]}, tmp_path, Job())


def test_tokens_of_a_larger_vocabulary_are_refused(started: tuple[Path, Path], tmp_path: Path) -> None:
    from penjing.objectives.tokens import write_tokens

    other = write_tokens(tmp_path / "tokens", {"a": [(np.arange(600),)]}, vocab_size=600, eos_id=2)
    with pytest.raises(InputError, match="tokens are of a larger vocabulary than the checkpoint"):
        train.run(config(), {"checkpoint": started[0], "tokens": [other.path]}, tmp_path / "out", Job())
