"""train-tokenizer, grow-vocab and prune-vocab on a real small checkpoint: what comes out loads and keeps its word."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from penjing.config import parse
from penjing.contract import Job
from penjing.data.document import CorpusWriter, documents
from penjing.errors import ConfigError, GateError, InputError
from penjing.files import hash_tree, read_json
from penjing.stages import grow_vocab, prune_vocab, train_tokenizer, verify_tokenizer, vocab_curve
from penjing.tokenizer.build import gather
from penjing.tokenizer.count import count_corpus
from penjing.tokenizer.plan import read_plan
from penjing.tokenizer.prune import plan_pruning
from penjing.tokenizer.read import read_vocabulary
from penjing.tokenizer.write import write_tokenizer


@pytest.fixture(scope="module")
def corpus(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("vocab-stages") / "corpus"
    with CorpusWriter(out, provenance={"made": "for tests"}) as writer:
        for lang, name, number in (("zh", "web_mix_zh", 120), ("en", "redpajama_stackexchange_en", 40)):
            with gzip.open(shared / "corpus" / lang / f"{name}.jsonl.gz", "rt", encoding="utf-8") as file:
                rows = [json.loads(row) for row, _ in zip(file, range(number), strict=False)]
            writer.write(documents({"id": row["id"], "source": name, "text": row["text"], "lang": lang} for row in rows),
                         shard=f"part-{lang}")
    return out


def run(module: Any, inputs: dict[str, Path], out: Path, **settings: Any) -> dict[str, Any]:
    out.mkdir(parents=True, exist_ok=True)
    figures: dict[str, Any] = module.run(parse(module.Config, settings, where="test"), inputs, out, Job())
    return figures


@pytest.fixture(scope="module")
def grown(shared: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("grown") / "model"
    inputs = {"checkpoint": shared / "models" / "stories260K", "corpus": corpus}
    return out, run(grow_vocab, inputs, out, size=1800, pieces="words")


def test_trained_tokenizer_is_the_same_twice_and_loads(corpus: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        run(train_tokenizer, {"corpus": corpus}, tmp_path / name, size=2000)
    ignore = frozenset({"state"})
    assert hash_tree(tmp_path / "one", ignore=ignore) == hash_tree(tmp_path / "two", ignore=ignore)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "one")
    text = "盆景是中国的艺术。Bonsai, 2024!\n\tx = 1"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    processor = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "one" / "tokenizer.model"))
    assert ids == processor.encode(text)
    assert tokenizer.decode(ids) == text
    assert len(tokenizer) == 2000


def test_grown_checkpoint_loads_and_writes_the_same_english(shared: Path, grown: tuple[Path, dict[str, Any]]) -> None:
    out, figures = grown
    assert figures["vocab_before"] == 512 and figures["vocab_after"] == 1800 and figures["rows_after"] == 1856
    assert figures["tokens_change"]["zh"] < -0.5 and figures["tokens_change"]["en"] <= 0
    assert all(verdict["exact"] == verdict["lines"] for verdict in figures["contract"].values())
    texts = []
    for directory in (shared / "models" / "stories260K", out):
        tokenizer = AutoTokenizer.from_pretrained(directory)
        model = AutoModelForCausalLM.from_pretrained(directory)
        ids = torch.tensor([tokenizer("Once upon a time")["input_ids"]])
        with torch.no_grad():
            texts.append(tokenizer.decode(model.generate(ids, max_new_tokens=12, do_sample=False)[0]))
    assert texts[0] == texts[1]
    assert model.config.vocab_size == model.get_input_embeddings().weight.shape[0] == 1856


def test_no_two_new_rows_are_identical_and_lengths_match(shared: Path, grown: tuple[Path, dict[str, Any]]) -> None:
    out, _ = grown
    rows = AutoModelForCausalLM.from_pretrained(out).get_input_embeddings().weight.detach().numpy()
    new = rows[512:1800]
    assert len(np.unique(new, axis=0)) == len(new)
    old_length = np.linalg.norm(rows[259:512], axis=1).mean()
    assert abs(np.linalg.norm(new, axis=1).mean() / old_length - 1) < 0.05


def test_pruned_checkpoint_gives_bit_identical_logits_on_covered_text(grown: tuple[Path, dict[str, Any]], corpus: Path,
                                                                      tmp_path: Path) -> None:
    source, _ = grown
    figures = run(prune_vocab, {"checkpoint": source, "corpus": corpus}, tmp_path / "pruned", size=900)
    assert figures["vocab_after"] == 900 and figures["parameters"]["after"] < figures["parameters"]["before"]
    assert all(verdict["exact"] == verdict["covered"] for verdict in figures["contract"].values())
    plan = read_plan(tmp_path / "pruned" / "vocab_plan.json")
    kept = np.array(plan.kept)
    old_model = AutoModelForCausalLM.from_pretrained(source)
    new_model = AutoModelForCausalLM.from_pretrained(tmp_path / "pruned")
    old_ids = torch.from_numpy(np.random.default_rng(0).choice(kept, size=(2, 40)))
    new_ids = torch.from_numpy(plan.new_id_of()[old_ids.numpy()])
    with torch.no_grad():
        old_logits = old_model(old_ids).logits[..., torch.from_numpy(kept)]
        new_logits = new_model(new_ids).logits[..., : len(kept)]
    assert torch.equal(old_logits, new_logits)


def test_stored_ids_follow_the_renumbering(shared: Path, corpus: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for file in (shared / "models" / "stories260K").iterdir():
        (source / file.name).write_bytes(file.read_bytes())
    period = read_json(source / "tokenizer.json")["model"]["vocab"]["."]
    generation = read_json(source / "generation_config.json")
    assert read_json(source / "tokenizer.json")["model"]["vocab"]["\u200a"]
    (source / "special_tokens_map.json").write_text(json.dumps({"pad_token": {"content": "\u200a", "lstrip": False}}))
    changed = {**generation, "eos_token_id": [2, period], "suppress_tokens": [-1]}
    (source / "generation_config.json").write_text(json.dumps(changed))
    run(prune_vocab, {"checkpoint": source, "corpus": corpus}, tmp_path / "pruned", size=400, pad_to_multiple=1)
    vocab = read_json(tmp_path / "pruned" / "tokenizer.json")["model"]["vocab"]
    assert "\u200a" in vocab  # nothing in the corpus uses it; special_tokens_map.json calls it the padding
    stored = read_json(tmp_path / "pruned" / "generation_config.json")
    assert stored["eos_token_id"] == [2, vocab["."]] and vocab["."] != period
    assert stored["suppress_tokens"] == [-1]


def test_special_tokens_can_be_all_that_is_added(shared: Path, corpus: Path, tmp_path: Path) -> None:
    inputs = {"checkpoint": shared / "models" / "stories260K", "corpus": corpus}
    figures = run(grow_vocab, inputs, tmp_path / "model", special_tokens=["<extra_id_0..3>", "<R>"], pad_to_multiple=1)
    assert (figures["vocab_before"], figures["vocab_after"], figures["added"]) == (512, 517, 5)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert tokenizer("<R> it<extra_id_2>", add_special_tokens=False).input_ids[0] == 516 and len(tokenizer) == 517
    assert tokenizer("<R> it<extra_id_2>", add_special_tokens=False).input_ids[-1] == 514
    old = AutoModelForCausalLM.from_pretrained(inputs["checkpoint"]).get_input_embeddings().weight
    new = AutoModelForCausalLM.from_pretrained(tmp_path / "model").get_input_embeddings().weight
    assert torch.equal(new[:512], old) and len(torch.unique(new[512:], dim=0)) == 5
    with pytest.raises(ConfigError, match="size, special_tokens or plan"):
        run(grow_vocab, inputs, tmp_path / "nothing")


def test_plan_only_writes_a_plan_that_gives_the_same_checkpoint(shared: Path, corpus: Path, grown: tuple[Path, dict[str, Any]],
                                                                tmp_path: Path) -> None:
    inputs = {"checkpoint": shared / "models" / "stories260K", "corpus": corpus}
    figures = run(grow_vocab, inputs, tmp_path / "plan", size=1800, pieces="words", plan_only=True)
    assert figures["plan_only"] and not (tmp_path / "plan" / "config.json").exists()
    run(grow_vocab, inputs, tmp_path / "model", size=1800, plan=str(tmp_path / "plan" / "vocab_plan.json"))
    ignore = frozenset({"state"})
    assert hash_tree(tmp_path / "model", ignore=ignore) == hash_tree(grown[0], ignore=ignore)


@pytest.mark.slow
def test_resumed_growth_is_byte_for_byte_the_same(shared: Path, corpus: Path, grown: tuple[Path, dict[str, Any]],
                                                  tmp_path: Path) -> None:
    inputs = {"checkpoint": shared / "models" / "stories260K", "corpus": corpus}
    run(grow_vocab, inputs, tmp_path / "model", size=1800, pieces="words")
    (tmp_path / "model" / "config.json").unlink()
    (tmp_path / "model" / "tokenizer.json").write_text("half")
    run(grow_vocab, inputs, tmp_path / "model", size=1800, pieces="words")
    ignore = frozenset({"state"})
    assert hash_tree(tmp_path / "model", ignore=ignore) == hash_tree(grown[0], ignore=ignore)


def test_tokenizer_with_more_ids_than_rows_is_refused(shared: Path, corpus: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for file in (shared / "models" / "stories260K").iterdir():
        (source / file.name).write_bytes(file.read_bytes())
    for name in ("tokenizer.model", "tokenizer.json"):
        (source / name).unlink()
    (source / "tokenizer.model").write_bytes((shared / "tokenizers" / "llama2_32k" / "tokenizer.model").read_bytes())
    with pytest.raises(InputError, match="ids exceed the embedding; found 32000 ids; expected at most 512"):
        run(prune_vocab, {"checkpoint": source, "corpus": corpus}, tmp_path / "out", size=400)


def test_language_the_corpus_lacks_is_refused(shared: Path, corpus: Path, tmp_path: Path) -> None:
    inputs = {"checkpoint": shared / "models" / "stories260K", "corpus": corpus}
    with pytest.raises(InputError, match="no text in language 'ja'; found languages en, zh"):
        run(grow_vocab, inputs, tmp_path / "out", size=900, languages=["ja"])


def test_verifier_accepts_growth_and_pruning_and_compares_both_files(shared: Path, corpus: Path, grown: tuple[Path, dict[str, Any]],
                                                                     tmp_path: Path) -> None:
    base = shared / "models" / "stories260K"
    figures = run(verify_tokenizer, {"old": base, "new": grown[0], "corpus": corpus}, tmp_path / "grown", max_disagreement=0.0)
    every = figures["all"]
    assert figures["operation"] == "grow" and every["exact"] == every["covered"] == every["lines"] > 500
    assert every["compared"] == every["lines"] and every["disagree"] == 0
    assert read_json(tmp_path / "grown" / "verdict.json")["all"] == every


def test_verifier_derives_the_plan_where_none_was_kept(shared: Path, corpus: Path, grown: tuple[Path, dict[str, Any]],
                                                       tmp_path: Path) -> None:
    for name in ("tokenizer.model", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((grown[0] / name).read_bytes())
    figures = run(verify_tokenizer, {"old": shared / "models" / "stories260K", "new": tmp_path, "corpus": corpus}, tmp_path / "out",
                  lines=100)
    assert figures["operation"] == "grow" and figures["all"]["exact"] == figures["all"]["lines"]


def test_verifier_refuses_frequency_pruning_with_counterexamples(corpus: Path, grown: tuple[Path, dict[str, Any]],
                                                                 tmp_path: Path) -> None:
    old = read_vocabulary(grown[0])
    counts = count_corpus(grown[0], corpus, job=Job(), state=tmp_path / "state").tokens
    plan = plan_pruning(old, counts, size=1000, method="frequency")
    write_tokenizer(gather(old, plan.kept), tmp_path / "new", source=grown[0], new_id=plan.new_id_of())
    inputs = {"old": grown[0], "new": tmp_path / "new", "corpus": corpus}
    with pytest.raises(GateError, match="lines under the contract break it"):
        run(verify_tokenizer, inputs, tmp_path / "out")
    verdict = read_json(tmp_path / "out" / "verdict.json")["all"]
    assert verdict["exact"] < verdict["covered"] and verdict["counterexamples"]
    example = verdict["counterexamples"][0]
    assert example["expected"] != example["found"] and example["text"]
    assert run(verify_tokenizer, inputs, tmp_path / "again", require=False)["all"] == verdict


def test_curve_trades_rows_for_tokens(grown: tuple[Path, dict[str, Any]], corpus: Path, tmp_path: Path) -> None:
    figures = run(vocab_curve, {"checkpoint": grown[0], "corpus": corpus, "held_out": None}, tmp_path, sizes=[1800, 1000, 500],
                  measure_characters=1500, context_length=64)
    whole, half, small = figures["curve"]
    assert [item["size"] for item in figures["curve"]] == [1800, 1000, 500]
    assert whole["coverage"]["zh"] == 1.0 > half["coverage"]["zh"] > small["coverage"]["zh"]
    assert whole["tokens_per_character"]["zh"] < half["tokens_per_character"]["zh"] < small["tokens_per_character"]["zh"]
    assert whole["parameters"] > half["parameters"] > small["parameters"]
    assert all(set(item["bits_per_byte"]) == {"zh", "en"} for item in figures["curve"])
    assert (tmp_path / "curve.svg").read_text().count("<polyline") == 7


@pytest.mark.slow
def test_beginnings_of_rows_are_measured_before_training(shared: Path, corpus: Path, tmp_path: Path) -> None:
    inputs = {"checkpoint": shared / "models" / "stories260K", "corpus": corpus}
    figures = run(grow_vocab, inputs, tmp_path, size=700, measure_inits=["position", "uniform"], measure_characters=600,
                  context_length=64)
    bits = figures["initial_bits_per_character"]
    assert set(bits) == {"before", "position", "uniform"} and bits["position"]["zh"] != bits["uniform"]["zh"]
    assert not list((tmp_path / "state").glob("init-*"))


def test_prune_wants_exactly_one_target() -> None:
    for settings in ({}, {"size": 100, "coverage": 0.9}):
        with pytest.raises(ConfigError, match="exactly one of size, coverage and plan"):
            parse(prune_vocab.Config, settings, where="test")
