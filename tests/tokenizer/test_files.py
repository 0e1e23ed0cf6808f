"""What is written back: special tokens, chat template and every stored id go with the vocabulary, and both files agree."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import sentencepiece
from transformers import AutoTokenizer

from penjing.tokenizer.build import build, subset
from penjing.tokenizer.count import flat_encoder
from penjing.tokenizer.grow import Wish, plan_growth
from penjing.tokenizer.plan import VocabPlan
from penjing.tokenizer.prune import plan_pruning
from penjing.tokenizer.read import read_vocabulary
from penjing.tokenizer.vocabulary import Vocabulary
from penjing.tokenizer.write import write_tokenizer

TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"


def chat_source(shared: Path, directory: Path) -> Path:
    """The tokenizer of stories260K with two chat tokens behind its pieces, a chat template and a padding token."""
    directory.mkdir()
    source = shared / "models" / "stories260K"
    (directory / "tokenizer.model").write_bytes((source / "tokenizer.model").read_bytes())
    content = json.loads((source / "tokenizer.json").read_text())
    for index, token in ((512, "<|im_start|>"), (513, "<|im_end|>")):
        content["added_tokens"].append({"id": index, "content": token, "single_word": False, "lstrip": False, "rstrip": False,
                                        "normalized": False, "special": True})
    (directory / "tokenizer.json").write_text(json.dumps(content))
    config = json.loads((source / "tokenizer_config.json").read_text())
    config |= {"tokenizer_class": "LlamaTokenizer", "pad_token": "<|im_end|>", "added_tokens_decoder": {
        str(index): {"content": token, "special": True, "lstrip": False, "rstrip": False, "normalized": False, "single_word": False}
        for index, token in ((512, "<|im_start|>"), (513, "<|im_end|>"))}}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    (directory / "chat_template.jinja").write_text(TEMPLATE)
    return directory


def changed(source: Path, plan: VocabPlan, vocabulary: Vocabulary, out: Path) -> Vocabulary:
    result = build(vocabulary, plan)
    write_tokenizer(result, out, source=source, new_id=plan.new_id_of())
    return result


def test_chat_tokens_and_template_survive_growth_and_pruning(shared: Path, tmp_path: Path, zh: list[str]) -> None:
    source = chat_source(shared, tmp_path / "source")
    vocabulary = read_vocabulary(source)
    assert vocabulary.total == 514
    characters = np.bincount(np.frombuffer("".join(zh).encode("utf-32-le"), dtype=np.uint32), minlength=0x110000)
    growth = plan_growth(vocabulary, characters, None, Wish(900))
    changed(source, growth, vocabulary, tmp_path / "grown")
    counts = np.bincount(flat_encoder(vocabulary)(["Once upon a time there was a cat."])[0], minlength=514)
    pruning = plan_pruning(vocabulary, {"en": counts}, size=300)
    changed(source, pruning, vocabulary, tmp_path / "pruned")
    messages = [{"role": "user", "content": "a cat"}, {"role": "assistant", "content": "a time"}]
    rendered = AutoTokenizer.from_pretrained(source).apply_chat_template(messages, tokenize=False)
    for name, first in (("grown", 512), ("pruned", 298)):
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / name)
        assert tokenizer.apply_chat_template(messages, tokenize=False) == rendered
        assert tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"]) == [first, first + 1]
        assert tokenizer.pad_token_id == first + 1
        ids = tokenizer(rendered, add_special_tokens=False)["input_ids"]
        assert [index for index in ids if index >= first and index < first + 2] == [first, first + 1] * 2
        assert tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id == 1


def test_model_holds_the_ids_of_added_tokens_when_pieces_come_after_them(shared: Path, tmp_path: Path, zh: list[str]) -> None:
    source = chat_source(shared, tmp_path / "source")
    vocabulary = read_vocabulary(source)
    characters = np.bincount(np.frombuffer("".join(zh).encode("utf-32-le"), dtype=np.uint32), minlength=0x110000)
    plan = plan_growth(vocabulary, characters, None, Wish(900))
    changed(source, plan, vocabulary, tmp_path / "grown")
    processor = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "grown" / "tokenizer.model"))
    assert processor.id_to_piece(512) == "<|im_start|>" and processor.is_control(512)
    assert processor.get_piece_size() == 900
    again = read_vocabulary(tmp_path / "grown")
    assert again.pieces == build(vocabulary, plan).pieces and again.total == 900
    texts = [line for line in zh[:200] if "<|" not in line]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "grown")
    assert tokenizer(texts, add_special_tokens=False)["input_ids"] == processor.encode(texts)


def test_sentinels_of_t5_are_renumbered(vocabulary: Callable[[str], Vocabulary], shared: Path, tmp_path: Path) -> None:
    source = tmp_path / "t5"
    source.mkdir()
    (source / "spiece.model").write_bytes((shared / "tokenizers" / "t5_32k" / "spiece.model").read_bytes())
    (source / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "T5Tokenizer", "extra_ids": 100,
                                                              "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}))
    old = read_vocabulary(source)
    assert old.total == 32_100
    counts = np.bincount(flat_encoder(replace(old, added=()))(["A small test of T5."])[0], minlength=32_100)
    plan = plan_pruning(old, {"en": counts}, size=20_000)
    new = subset(old, plan.kept)
    write_tokenizer(new, tmp_path / "out", source=source, new_id=plan.new_id_of())
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.convert_tokens_to_ids(["<extra_id_0>", "<extra_id_99>"]) == [19_999, 19_900]
    ids = tokenizer("A small <extra_id_0> test")["input_ids"]
    assert 19_999 in ids and ids[-1] == tokenizer.eos_token_id == 1
    assert sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "out" / "spiece.model")).get_piece_size() == 19_900


def test_openba_ids_follow_the_number_of_pieces(shared: Path, tmp_path: Path) -> None:
    """The mapping of OpenBA: `<extra_id_0>` at n + 99, the modes at n + 100 … n + 102, the line break after them."""
    source = tmp_path / "openba"
    source.mkdir()
    (source / "spiece.model").write_bytes((shared / "tokenizers" / "t5_32k" / "spiece.model").read_bytes())
    (source / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "OpenBATokenizer", "extra_ids": 100,
                                                              "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}))
    old = read_vocabulary(source)
    plan = plan_pruning(old, {"en": np.arange(old.total)}, size=10_104)
    new = subset(old, plan.kept)
    ids = {token["content"]: token["id"] for token in new.added}
    pieces = len(new)
    assert (pieces, ids["<extra_id_0>"], ids["<R>"], ids["<S>"], ids["<X>"], ids["\n"]) == (
        10_000, pieces + 99, pieces + 100, pieces + 101, pieces + 102, pieces + 103)


def test_pair_of_gpt2_files_is_written_back(shared: Path, tmp_path: Path) -> None:
    source = shared / "tokenizers" / "gpt2_50k"
    old = read_vocabulary(source)
    plan = plan_pruning(old, {"en": np.arange(old.total)[::-1].copy()}, size=20_000)
    new = subset(old, plan.kept)
    write_tokenizer(new, tmp_path / "out", source=source, new_id=plan.new_id_of())
    (tmp_path / "out" / "tokenizer.json").unlink()
    again = read_vocabulary(tmp_path / "out")
    assert again.pieces == new.pieces and np.array_equal(again.merges_M3, new.merges_M3)
