"""Growing a vocabulary: the promises of the contract, on real tokenizers and held-out text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import sentencepiece

from penjing.errors import InputError
from penjing.tokenizer.build import build
from penjing.tokenizer.grow import Wish, only_special, plan_growth, special_pieces
from penjing.tokenizer.merges import merge_tree
from penjing.tokenizer.plan import NewPiece, read_plan, write_plan
from penjing.tokenizer.runs import runs_in
from penjing.tokenizer.vocabulary import UNKNOWN, Vocabulary
from penjing.tokenizer.write import fast_tokenizer

Vocabularies = Callable[[str], Vocabulary]


def encode(vocabulary: Vocabulary, texts: list[str]) -> list[list[int]]:
    return [item.ids for item in fast_tokenizer(vocabulary).encode_batch_fast(texts, add_special_tokens=False)]


def one_unknown(ids: list[int], unknown: set[int]) -> list[int]:
    """Neighbouring unknown characters are one unknown piece."""
    return [index for at, index in enumerate(ids) if index not in unknown or at == 0 or ids[at - 1] != index]


def runs(texts: list[str], kind: str) -> list[tuple[str, int]]:
    return sorted(runs_in(texts, kind).items(), key=lambda item: (-item[1], item[0]))


def cases() -> list[object]:
    """Every kind of growth on every kind of file; two of them by default, the rest with the slow tests."""
    default = {("llama2_32k", "words"), ("gpt2_50k", "all")}
    names = ("llama2_32k", "llama_hf_32k", "gpt2_50k", "gpt_neox_50k", "qwen_151k", "glm_chinese_50k", "chinese_llama_alpaca2_55k")
    return [pytest.param(name, kind, marks=() if (name, kind) in default else pytest.mark.slow)
            for name in names for kind in ("characters", "words", "all")
            if kind != "characters" or name in ("llama2_32k", "llama_hf_32k", "gpt2_50k", "gpt_neox_50k")]


@pytest.mark.parametrize(("name", "kind"), cases())
def test_expanding_new_ids_gives_exactly_the_old_ids(name: str, kind: str, vocabulary: Vocabularies, zh: list[str],
                                                     characters: np.ndarray, held_out: list[str]) -> None:
    old = vocabulary(name)
    chosen_on = zh[:300] + held_out[300:500]
    plan = plan_growth(old, characters, runs(chosen_on, kind), Wish(old.total + 1500, kind))  # type: ignore[arg-type]
    new = build(old, plan)
    assert len(plan.new) >= 1400
    expansion = plan.old_ids_of()
    before, after = encode(old, held_out), encode(new, held_out)
    assert sum(map(len, after)) < sum(map(len, before))
    unknown = {index for index in range(len(old)) if old.types_V[index] == UNKNOWN}
    for own, grown in zip(before, after, strict=True):
        expanded = [index for new_id in grown for index in expansion[new_id]]
        assert one_unknown(expanded, unknown) == one_unknown(own, unknown)


@pytest.mark.parametrize("kind", ["characters", pytest.param("words", marks=pytest.mark.slow)])
def test_english_and_code_keep_their_ids_when_chinese_is_added(kind: str, vocabulary: Vocabularies, zh: list[str],
                                                               characters: np.ndarray, held_out: list[str]) -> None:
    old = vocabulary("llama2_32k")
    new = build(old, plan_growth(old, characters, runs(zh, kind), Wish(old.total + 2000, kind)))  # type: ignore[arg-type]
    ascii_lines = [line for line in held_out if line.isascii()]
    assert len(ascii_lines) > 500
    assert encode(old, ascii_lines) == encode(new, ascii_lines)


def test_no_new_piece_is_unreachable(vocabulary: Vocabularies, zh: list[str], characters: np.ndarray) -> None:
    old = vocabulary("gpt2_50k")
    new = build(old, plan_growth(old, characters, runs(zh[:300], "words"), Wish(old.total + 1000, "words")))
    assert merge_tree(new).reachable_V.all()


def test_model_and_json_agree_and_text_survives(vocabulary: Vocabularies, zh: list[str], characters: np.ndarray,
                                                held_out: list[str]) -> None:
    old = vocabulary("llama2_32k")
    new = build(old, plan_growth(old, characters, runs(zh[:300], "words"), Wish(old.total + 1000, "words")))
    processor = sentencepiece.SentencePieceProcessor(model_proto=new.proto)
    from_model = processor.encode(held_out)
    assert from_model == encode(new, held_out)
    assert processor.decode(from_model) == held_out


def test_added_tokens_keep_their_ids(vocabulary: Vocabularies, characters: np.ndarray) -> None:
    old = vocabulary("gpt_neox_50k")
    new = build(old, plan_growth(old, characters, None, Wish(old.total + 300)))
    assert {token["content"]: token["id"] for token in new.added} == {token["content"]: token["id"] for token in old.added}
    assert new.pieces[: len(old)] == old.pieces
    assert encode(new, ["a<|endoftext|>b"]) == encode(old, ["a<|endoftext|>b"])


def test_new_characters_become_one_token(vocabulary: Vocabularies, zh: list[str], characters: np.ndarray) -> None:
    old = vocabulary("llama2_32k")
    new = build(old, plan_growth(old, characters, None, Wish(old.total + 7400, min_count=1)))
    han = ["".join(character for character in line if "一" <= character <= "鿿") for line in zh]
    tokens = sum(len(ids) - 1 for ids in encode(new, han))
    assert tokens <= 1.02 * sum(map(len, han))


def test_piece_that_would_spell_an_old_one_is_refused(vocabulary: Vocabularies) -> None:
    old = vocabulary("llama2_32k")
    long_piece = next(piece for piece in old.pieces if len(piece) == 9 and piece.isalpha())
    start = next(long_piece[:cut] for cut in range(2, 9) if long_piece[:cut] not in old.ids)
    from penjing.tokenizer.plan import VocabPlan, source_hash

    plan = VocabPlan("grow", old.kind, source_hash(old), old.total, tuple(range(old.total)), (NewPiece(start, 1, ()),))
    with pytest.raises(InputError, match="would spell an old piece"):
        build(old, plan)


def test_plan_for_another_vocabulary_is_refused(vocabulary: Vocabularies, characters: np.ndarray) -> None:
    plan = plan_growth(vocabulary("llama2_32k"), characters, None, Wish(32_100))
    with pytest.raises(InputError, match="made for another vocabulary"):
        build(vocabulary("gpt2_50k"), plan)


def test_size_below_the_present_one_names_both_numbers(vocabulary: Vocabularies, characters: np.ndarray) -> None:
    with pytest.raises(InputError, match="found 31000; expected more than 32000"):
        plan_growth(vocabulary("llama2_32k"), characters, None, Wish(31_000))


def test_corpus_without_chinese_has_nothing_to_add(vocabulary: Vocabularies) -> None:
    latin = np.bincount(np.frombuffer("plain text".encode("utf-32-le"), dtype=np.uint32), minlength=0x110000)
    with pytest.raises(InputError, match="0 Chinese characters in the corpus"):
        plan_growth(vocabulary("llama2_32k"), latin, None, Wish(33_000))


def test_edited_plan_adds_only_what_is_left_in_it(vocabulary: Vocabularies, characters: np.ndarray) -> None:
    old = vocabulary("llama2_32k")
    plan = plan_growth(old, characters, None, Wish(old.total + 50))
    edited = replace(plan, new=plan.new[:10] + plan.new[20:])
    assert build(old, edited).pieces[old.total:] == tuple(piece.piece for piece in edited.new)


@pytest.mark.parametrize("name", ["llama2_32k", "gpt2_50k", "t5_32k"])
def test_special_tokens_are_one_id_each_and_change_no_other_text(vocabulary: Callable[[str], Vocabulary], name: str) -> None:
    old = vocabulary(name)
    special = special_pieces(["<R>", "[gMASK]", "<mark_0..2>"])
    assert [item.piece for item in special] == ["<R>", "[gMASK]", "<mark_0>", "<mark_1>", "<mark_2>"]
    plan = only_special(old, special, 64)
    new = build(old, plan)
    first = old.total
    assert new.total == plan.size_after == first + 5 and {first, first + 4} <= new.special_ids
    encode, before = fast_tokenizer(new), fast_tokenizer(old)
    assert encode.encode("a<R>b", add_special_tokens=False).ids.count(first) == 1
    for text in ("Hello world, 盆景是中国传统的艺术。", "x <r> [gmask]"):
        assert encode.encode(text, add_special_tokens=False).ids == before.encode(text, add_special_tokens=False).ids
    if new.proto is not None:
        processor = sentencepiece.SentencePieceProcessor(model_proto=new.proto)
        assert processor.IsControl(first) and processor.IdToPiece(first) == "<R>"
    with pytest.raises(InputError, match="special token '<R>' cannot be added: it is there already"):
        build(new, only_special(new, special, 64))


def test_a_plan_with_special_tokens_survives_being_written(vocabulary: Callable[[str], Vocabulary], tmp_path: Path) -> None:
    plan = only_special(vocabulary("llama2_32k"), special_pieces(["<R>"]), 1)
    write_plan(tmp_path / "plan.json", plan)
    assert read_plan(tmp_path / "plan.json") == plan
