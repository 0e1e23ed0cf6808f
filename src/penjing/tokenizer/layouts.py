"""What surrounds a vocabulary in tokenizer.json: normaliser, pre-tokeniser, decoder and added tokens, for files that lack them.

A SentencePiece model says all of it itself. tiktoken rank files and GPT-2's pair of files do not: their pre-tokenisation
patterns and special tokens are facts about the models they belong to.
"""

from __future__ import annotations

import base64
from typing import Any

from penjing.tokenizer.vocabulary import CONTROL, UNKNOWN, USER_DEFINED

CL100K_PATTERN = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
                  r"|\s+(?!\S)|\s+")
"""Pre-tokenisation of cl100k_base and Llama-3."""
QWEN_PATTERN = CL100K_PATTERN.replace(r"\p{N}{1,3}", r"\p{N}")
"""The same with one digit at a time, as Qwen has it."""


def added_token(index: int, *, content: str, special: bool = True, single_word: bool = False, lstrip: bool = False,
                rstrip: bool = False, normalized: bool = False) -> dict[str, Any]:
    """One entry of `added_tokens` in tokenizer.json."""
    return {"id": index, "content": content, "single_word": single_word, "lstrip": lstrip, "rstrip": rstrip,
            "normalized": normalized, "special": special}


def added_tokens(proto: Any, beside: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Added tokens of a SentencePiece model: its unknown, control and user-defined pieces, and those known from beside it."""
    found = {index: added_token(index, content=piece.piece, special=piece.type != USER_DEFINED)
             for index, piece in enumerate(proto.pieces) if piece.type in (UNKNOWN, CONTROL, USER_DEFINED)}
    found.update({token["id"]: token for token in beside})
    return [found[index] for index in sorted(found)]


def sentencepiece(proto: Any) -> dict[str, Any]:
    """tokenizer.json around a SentencePiece model: the same normalisation, and `<s>` in front where LLaMA's files have it."""
    spec = proto.normalizer_spec
    unigram = proto.trainer_spec.model_type == 1
    steps: list[dict[str, Any]] = []
    if spec.precompiled_charsmap:
        steps.append({"type": "Precompiled", "precompiled_charsmap": base64.b64encode(spec.precompiled_charsmap).decode()})
    if spec.remove_extra_whitespaces:
        steps.append({"type": "Strip", "strip_left": True, "strip_right": True})
        steps.append({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "})
    if spec.add_dummy_prefix:
        steps.append({"type": "Prepend", "prepend": "▁"})
    steps.append({"type": "Replace", "pattern": {"String": " "}, "content": "▁"})
    decoders: list[dict[str, Any]] = [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"},
                                      {"type": "Fuse"}]
    if spec.add_dummy_prefix:
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    unknown = next((index for index, piece in enumerate(proto.pieces) if piece.type == UNKNOWN), None)
    fallback = bool(proto.trainer_spec.byte_fallback)
    model: dict[str, Any]
    if unigram:
        model = {"type": "Unigram", "unk_id": unknown, "byte_fallback": fallback}
    else:
        model = {"type": "BPE", "dropout": None, "unk_token": proto.pieces[unknown].piece if unknown is not None else None,
                 "continuing_subword_prefix": None, "end_of_word_suffix": None, "fuse_unk": True, "byte_fallback": fallback,
                 "ignore_merges": False}
    return {"version": "1.0", "truncation": None, "padding": None, "normalizer": {"type": "Sequence", "normalizers": steps},
            "pre_tokenizer": None, "post_processor": _template(proto, unigram), "decoder":
            {"type": "Sequence", "decoders": decoders}, "model": model}


def _template(proto: Any, unigram: bool) -> dict[str, Any] | None:
    """`<s>` in front for BPE models that have it (LLaMA), `</s>` behind for unigram models (T5)."""
    index = proto.trainer_spec.eos_id if unigram else proto.trainer_spec.bos_id
    if not 0 <= index < len(proto.pieces):
        return None
    token = proto.pieces[index].piece
    special = {"SpecialToken": {"id": token, "type_id": 0}}
    first = {"Sequence": {"id": "A", "type_id": 0}}
    second = {"Sequence": {"id": "B", "type_id": 0}}
    single = [first, special] if unigram else [special, first]
    pair = [first, special, second, special] if unigram else [special, first, special, second]
    return {"type": "TemplateProcessing", "single": single, "pair": pair,
            "special_tokens": {token: {"id": token, "ids": [index], "tokens": [token]}}}


def byte_level(*, pattern: str | None = None, add_prefix_space: bool = False) -> dict[str, Any]:
    """tokenizer.json around byte-level BPE; `pattern` None means GPT-2's own."""
    level = {"type": "ByteLevel", "add_prefix_space": add_prefix_space, "trim_offsets": True, "use_regex": pattern is None}
    before: dict[str, Any] = level
    if pattern is not None:
        split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        before = {"type": "Sequence", "pretokenizers": [split, level]}
    return {"version": "1.0", "truncation": None, "padding": None, "normalizer": None, "pre_tokenizer": before,
            "post_processor": None, "decoder": {**level, "use_regex": True}}


def gpt2_added_tokens(vocab: dict[str, int]) -> list[dict[str, Any]]:
    """GPT-2's one special token, where its vocabulary has it."""
    token = "<|endoftext|>"
    return [added_token(vocab[token], content=token)] if token in vocab else []


def tiktoken(name: str) -> dict[str, Any]:
    """tokenizer.json around tiktoken ranks, by the name of the file: Qwen's pattern, else that of cl100k_base."""
    layout = byte_level(pattern=QWEN_PATTERN if "qwen" in name.lower() else CL100K_PATTERN)
    if "qwen" in name.lower():
        layout["normalizer"] = {"type": "NFC"}
    layout["model"] = {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                       "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False}
    return layout


def tiktoken_added_tokens(name: str, size: int) -> list[dict[str, Any]]:
    """Special tokens that follow the ranks, where the name of the file says whose they are."""
    if "qwen" not in name.lower():
        return []
    return [added_token(size + offset, content=content)
            for offset, content in enumerate(("<|endoftext|>", "<|im_start|>", "<|im_end|>"))]


def wordpiece() -> dict[str, Any]:
    """tokenizer.json around a BERT vocabulary, lower-casing, Chinese characters apart."""
    return {"version": "1.0", "truncation": None, "padding": None,
            "normalizer": {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "strip_accents": None,
                           "lowercase": True}, "pre_tokenizer": {"type": "BertPreTokenizer"}, "post_processor": None,
            "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
            "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
                      "max_input_chars_per_word": 100}}


def renumber(value: Any, new_id: Any) -> Any:
    """A layout with the ids in its post-processor's special tokens and in `unk_id` mapped by `new_id`."""
    if isinstance(value, list):
        return [renumber(item, new_id) for item in value]
    if not isinstance(value, dict):
        return value
    out = {}
    for key, item in value.items():
        if key == "ids" and isinstance(item, list) and all(isinstance(index, int) for index in item):
            out[key] = [new_id(index) for index in item]
        elif key == "unk_id" and isinstance(item, int):
            out[key] = new_id(item)
        elif key in ("sep", "cls") and isinstance(item, list) and len(item) == 2 and isinstance(item[1], int):
            out[key] = [item[0], new_id(item[1])]
        else:
            out[key] = renumber(item, new_id)
    return out
