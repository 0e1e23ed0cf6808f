"""Tokenizer files that cannot be right are refused with a sentence that names what was found."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from penjing.errors import InputError
from penjing.tokenizer.apply import check_rows
from penjing.tokenizer.build import subset
from penjing.tokenizer.grow import Wish, plan_growth
from penjing.tokenizer.plan import read_plan
from penjing.tokenizer.read import read_model_proto, read_vocabulary
from penjing.tokenizer.vocabulary import Vocabulary


def write(directory: Path, model: dict[str, Any], **more: Any) -> Path:
    content = {"version": "1.0", "added_tokens": [], "normalizer": None, "pre_tokenizer": None, "decoder": None, "model": model, **more}
    (directory / "tokenizer.json").write_text(json.dumps(content))
    return directory


def test_merge_without_its_piece(tmp_path: Path) -> None:
    model = {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": ["a b"]}
    with pytest.raises(InputError, match=r"merge 0 joins 'a' and 'b' but 'ab' is not a piece"):
        read_vocabulary(write(tmp_path, model))


def test_list_of_merges_cut_short(shared: Path, tmp_path: Path) -> None:
    source = shared / "tokenizers" / "gpt2_50k"
    (tmp_path / "vocab.json").write_bytes((source / "vocab.json").read_bytes())
    lines = (source / "merges.txt").read_text(encoding="utf-8").split("\n")
    (tmp_path / "merges.txt").write_text("\n".join(lines[:30_001]), encoding="utf-8")
    with pytest.raises(InputError, match="merges are missing; found 30000 merges, and 20000 pieces that none of them makes"):
        read_vocabulary(tmp_path)


def test_two_pieces_with_one_id(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="two pieces share one id; found 3 pieces; expected 3 different ids, not 2"):
        read_vocabulary(write(tmp_path, {"type": "BPE", "vocab": {"a": 0, "b": 1, "c": 1}, "merges": []}))


def test_holes_in_the_ids(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="ids without a piece; found 2 holes, the first at 1"):
        read_vocabulary(write(tmp_path, {"type": "BPE", "vocab": {"a": 0, "b": 3}, "merges": []}))


def test_byte_level_without_its_bytes(tmp_path: Path) -> None:
    model = {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": []}
    with pytest.raises(InputError, match="without all byte pieces; found 2 pieces; expected the 243 bytes"):
        read_vocabulary(write(tmp_path, model, pre_tokenizer={"type": "ByteLevel", "add_prefix_space": False}))


def test_duplicate_piece_in_a_model(shared: Path, tmp_path: Path) -> None:
    proto = read_model_proto((shared / "models" / "stories260K" / "tokenizer.model").read_bytes(), where="stories")
    proto.pieces.add(piece=proto.pieces[300].piece, score=-300.0, type=1)
    (tmp_path / "tokenizer.model").write_bytes(proto.SerializeToString())
    with pytest.raises(InputError, match="duplicate piece .*; found ids 300 and 512; expected every piece once"):
        read_vocabulary(tmp_path)


def test_model_and_json_of_different_tokenizers(shared: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes((shared / "tokenizers" / "llama2_32k" / "tokenizer.model").read_bytes())
    (tmp_path / "tokenizer.json").write_bytes((shared / "models" / "stories260K" / "tokenizer.json").read_bytes())
    with pytest.raises(InputError, match=r"tokenizer.model and tokenizer.json disagree on"):
        read_vocabulary(tmp_path)


def test_not_a_model_not_a_rank_file_not_there(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"\xff\xff\xff nothing")
    with pytest.raises(InputError, match="not a SentencePiece model"):
        read_vocabulary(tmp_path)
    (tmp_path / "x.tiktoken").write_text("IQ== 0\nnot-base64 one\n")
    with pytest.raises(InputError, match=r"x.tiktoken:2: not a line of tiktoken ranks"):
        read_vocabulary(tmp_path / "x.tiktoken")
    (tmp_path / "y.tiktoken").write_text("IQ== 0\nIg== 5\n")
    with pytest.raises(InputError, match="ranks are not 0 … n - 1; found 2 entries, largest 5"):
        read_vocabulary(tmp_path / "y.tiktoken")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no tokenizer found; expected tokenizer.model"):
        read_vocabulary(tmp_path / "empty")


def test_wordpiece_is_counted_but_not_changed(vocabulary: Callable[[str], Vocabulary]) -> None:
    with pytest.raises(InputError, match="WordPiece vocabulary can be counted but not grown or pruned"):
        subset(vocabulary("bert_zh_21k"), tuple(range(100)))
    with pytest.raises(InputError, match="WordPiece vocabulary can be counted but not grown or pruned"):
        plan_growth(vocabulary("bert_zh_21k"), np.zeros(0x110000, np.int64), None, Wish(25_000))


def test_embedding_and_vocabulary_sizes_are_compared(vocabulary: Callable[[str], Vocabulary]) -> None:
    llama = vocabulary("llama2_32k")
    check_rows(llama, 32_064, Path("model"))
    with pytest.raises(InputError, match="ids exceed the embedding; found 32000 ids; expected at most 31999"):
        check_rows(llama, 31_999, Path("model"))
    with pytest.raises(InputError, match="embedding is larger than the vocabulary; found 50257 rows; expected 32000 ids"):
        check_rows(llama, 50_257, Path("model"))


def test_plan_with_an_id_twice(tmp_path: Path) -> None:
    plan = {"version": 1, "operation": "prune", "kind": "unigram", "source": "", "size_before": 4, "pad_to_multiple": 1,
            "kept": [[0, "a", 1], [0, "a", 1]], "new": []}
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(InputError, match="an id is kept twice; found 2 lines; expected 1 ids"):
        read_plan(tmp_path / "plan.json")
