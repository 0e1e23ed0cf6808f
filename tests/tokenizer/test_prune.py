"""Pruning a vocabulary: what is covered keeps its ids one to one, and nothing kept is out of reach."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import sentencepiece

from penjing.errors import InputError
from penjing.tokenizer.build import gather, subset
from penjing.tokenizer.count import flat_encoder
from penjing.tokenizer.merges import merge_tree
from penjing.tokenizer.plan import read_plan, write_plan
from penjing.tokenizer.prune import plan_pruning, removal_order
from penjing.tokenizer.vocabulary import Vocabulary
from penjing.tokenizer.write import fast_tokenizer

Vocabularies = Callable[[str], Vocabulary]
KINDS = ["llama2_32k", "gpt2_50k", "gpt_neox_50k", "glm_chinese_50k", "t5_32k", "chinese_sp_20k"]


def count(vocabulary: Vocabulary, texts: list[str]) -> np.ndarray:
    return np.bincount(flat_encoder(vocabulary)(texts)[0], minlength=vocabulary.total).astype(np.int64)


def encode(vocabulary: Vocabulary, texts: list[str]) -> list[list[int]]:
    return [item.ids for item in fast_tokenizer(vocabulary).encode_batch_fast(texts, add_special_tokens=False)]


def cases() -> list[object]:
    """Every kind of tokenizer and both closed methods; one of each kind by default, the rest with the slow tests."""
    default = {("llama2_32k", "leaf"), ("gpt2_50k", "closure"), ("chinese_sp_20k", "leaf")}
    return [pytest.param(name, method, marks=() if (name, method) in default else pytest.mark.slow)
            for name in (*KINDS, "qwen_151k", "chinese_llama_alpaca2_55k") for method in ("leaf", "closure")]


@pytest.mark.parametrize(("name", "method"), cases())
def test_covered_lines_map_one_to_one(name: str, method: str, vocabulary: Vocabularies, zh: list[str],
                                      held_out: list[str]) -> None:
    old = vocabulary(name)
    counts = {"all": count(old, zh[:300] + held_out[::3])}
    plan = plan_pruning(old, counts, size=int(old.total * 0.4), method=method)  # type: ignore[arg-type]
    new = subset(old, plan.kept)
    assert len(plan.kept) == int(old.total * 0.4)
    if new.merges_M3 is not None:
        assert merge_tree(new).reachable_V.all()
    new_id = plan.new_id_of()
    covered = 0
    for before, after in zip(encode(old, held_out), encode(new, held_out), strict=True):
        expected = new_id[before]
        if (expected >= 0).all():
            covered += 1
            assert expected.tolist() == after
    assert covered > 300


def test_frequency_alone_breaks_byte_pair_encodings(vocabulary: Vocabularies, zh: list[str], held_out: list[str]) -> None:
    """Why closure is the default: the authors' rule leaves pieces out of reach and changes covered lines."""
    old = vocabulary("llama2_32k")
    plan = plan_pruning(old, {"all": count(old, zh)}, size=9000, method="frequency")
    new = gather(old, plan.kept)
    assert not merge_tree(new).reachable_V.all()
    new_id = plan.new_id_of()
    pairs = [(new_id[before], after) for before, after in zip(encode(old, held_out), encode(new, held_out), strict=True)]
    broken = [after for expected, after in pairs if (expected >= 0).all() and expected.tolist() != after]
    assert broken


@pytest.mark.slow
def test_leaf_greedy_costs_no_more_tokens_than_closure(vocabulary: Vocabularies, zh: list[str], held_out: list[str]) -> None:
    old = vocabulary("llama2_32k")
    texts = zh + held_out
    counts = {"all": count(old, texts)}
    tokens = {}
    for method in ("leaf", "closure"):
        new = subset(old, plan_pruning(old, counts, size=2000, method=method).kept)  # type: ignore[arg-type]
        tokens[method] = sum(map(len, encode(new, texts)))
    assert tokens["leaf"] <= tokens["closure"]


def test_special_control_and_byte_pieces_always_stay(vocabulary: Vocabularies, zh: list[str]) -> None:
    for name in ("llama2_32k", "chinese_sp_20k"):
        old = vocabulary(name)
        order = removal_order(old, count(old, zh[:50]))
        assert not set(order.removed.tolist()) & old.special_ids
    with pytest.raises(InputError, match="special, control and byte pieces are always kept"):
        subset(vocabulary("llama2_32k"), tuple(range(5, 32_000)))


def test_smallest_size_for_a_coverage(vocabulary: Vocabularies, zh: list[str], held_out: list[str]) -> None:
    old = vocabulary("llama2_32k")
    counts = {"zh": count(old, zh), "en": count(old, held_out[300:])}
    plan = plan_pruning(old, counts, target={"zh": 0.99, "en": 0.97})
    kept = np.array(plan.kept)
    shares = {lang: values[kept].sum() / values.sum() for lang, values in counts.items()}
    assert shares["zh"] >= 0.99 and shares["en"] >= 0.97
    smaller = np.array(plan_pruning(old, counts, size=len(plan.kept) - 200).kept)
    less = {lang: values[smaller].sum() / values.sum() for lang, values in counts.items()}
    assert less["zh"] < 0.99 or less["en"] < 0.97


def test_too_small_a_size_names_both_numbers(vocabulary: Vocabularies, zh: list[str]) -> None:
    old = vocabulary("llama2_32k")
    with pytest.raises(InputError, match="found 100; expected at least 259"):
        plan_pruning(old, {"zh": count(old, zh[:20])}, size=100)


def test_language_that_is_not_there_is_refused(vocabulary: Vocabularies, zh: list[str]) -> None:
    old = vocabulary("llama2_32k")
    with pytest.raises(InputError, match="no text in language 'ja'; found languages zh"):
        plan_pruning(old, {"zh": count(old, zh[:20])}, target={"ja": 0.99})


def test_model_and_json_agree_after_pruning(vocabulary: Vocabularies, zh: list[str], held_out: list[str]) -> None:
    for name in ("glm_chinese_50k",):
        old = vocabulary(name)
        new = subset(old, plan_pruning(old, {"all": count(old, zh)}, size=old.total // 3).kept)
        assert sentencepiece.SentencePieceProcessor(model_proto=new.proto).encode(held_out) == encode(new, held_out)


def test_plan_survives_its_file_and_an_edit_that_breaks_it_is_refused(vocabulary: Vocabularies, zh: list[str],
                                                                      tmp_path: Path) -> None:
    old = vocabulary("llama2_32k")
    plan = plan_pruning(old, {"zh": count(old, zh)}, size=20_000)
    write_plan(tmp_path / "plan.json", plan)
    assert read_plan(tmp_path / "plan.json") == plan
    tree = merge_tree(old)
    part = next(int(tree.left_V[index]) for index in plan.kept if tree.left_V[index] >= 0)
    text = (tmp_path / "plan.json").read_text().splitlines()
    edited = [line for line in text if not line.strip().startswith(f"[{part}, ")]
    assert len(edited) == len(text) - 1
    (tmp_path / "plan.json").write_text("\n".join(edited))
    with pytest.raises(InputError, match="lack a part of their own merge path"):
        subset(old, read_plan(tmp_path / "plan.json").kept)


def test_counts_of_another_vocabulary_are_refused(vocabulary: Vocabularies) -> None:
    old = vocabulary("llama2_32k")
    with pytest.raises(InputError, match="found 7 counts; expected 32000 ids"):
        removal_order(replace(old), np.ones(7, dtype=np.int64))
