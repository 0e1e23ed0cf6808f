"""A `Vocabulary` back to files: `.model` and `tokenizer.json` that agree, and every id stored beside them.

`tokenizer.json` is the file that `AutoTokenizer` reads; `tokenizer_config.json` therefore names the class that takes it as it is.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np

from penjing.files import atomic_write, read_json, write_json, write_text
from penjing.tokenizer.read import MODEL_NAMES
from penjing.tokenizer.vocabulary import UNKNOWN, Vocabulary

FAST_CLASS = "PreTrainedTokenizerFast"
"""The tokenizer class that takes tokenizer.json as it is; others build their own pipeline around the vocabulary."""
COPIED = ("special_tokens_map.json", "chat_template.jinja", "chat_template.json")


def fast_json(vocabulary: Vocabulary) -> dict[str, Any]:
    """The content of tokenizer.json."""
    content = copy.deepcopy(vocabulary.layout)
    model = content.pop("model", None) or {}
    content["added_tokens"] = sorted(vocabulary.added, key=lambda token: int(token["id"]))
    if vocabulary.kind == "unigram":
        assert vocabulary.scores_V is not None
        vocab: Any = [[piece, score] for piece, score in zip(vocabulary.pieces, vocabulary.scores_V.tolist(), strict=True)]
        unknown = np.flatnonzero(vocabulary.types_V == UNKNOWN)
        model = {**model, "type": "Unigram", "unk_id": int(unknown[0]) if len(unknown) else None, "vocab": vocab}
    else:
        table = {piece: index for index, piece in enumerate(vocabulary.pieces)}
        model = {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                    "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": vocabulary.byte_fallback,
                    "ignore_merges": vocabulary.ignore_merges, **model, "vocab": table}
        if vocabulary.merges_M3 is not None:
            spell = vocabulary.pieces
            model["merges"] = [[spell[left], spell[right]] for left, right, _ in vocabulary.merges_M3.tolist()]
    return {"version": content.pop("version", "1.0"), **content, "model": model}


def fast_tokenizer(vocabulary: Vocabulary) -> Any:
    """A `tokenizers.Tokenizer` of the vocabulary."""
    from tokenizers import Tokenizer

    return Tokenizer.from_str(json.dumps(fast_json(vocabulary), ensure_ascii=False))


def write_tokenizer(vocabulary: Vocabulary, out: Path, *, source: Path | None, new_id: np.ndarray | None = None) -> None:
    """Write every tokenizer file into `out`.

    source: the directory the old tokenizer came from; what it stores beside the vocabulary is carried over.
    new_id: int64 [old size], the new id of each old id, for ids stored in tokenizer_config.json and added_tokens.json.
    """
    out.mkdir(parents=True, exist_ok=True)
    write_text(out / "tokenizer.json", json.dumps(fast_json(vocabulary), ensure_ascii=False, indent=1) + "\n")
    if vocabulary.proto is not None:
        with atomic_write(out / _model_name(vocabulary, source)) as file:
            file.write(vocabulary.proto)
    if source is None or not source.is_dir():
        write_json(out / "tokenizer_config.json", default_config(vocabulary))
        return
    config_path = source / "tokenizer_config.json"
    config = read_json(config_path) if config_path.is_file() else default_config(vocabulary)
    write_json(out / "tokenizer_config.json", carried_config(config, new_id))
    if (source / "vocab.json").is_file() and (source / "merges.txt").is_file():
        _write_pair(vocabulary, out)
    if (source / "added_tokens.json").is_file():
        old = read_json(source / "added_tokens.json")
        write_json(out / "added_tokens.json", {token: _mapped(index, new_id) for token, index in old.items()})
    for name in COPIED:
        if (source / name).is_file():
            with atomic_write(out / name) as file:
                file.write((source / name).read_bytes())


def carried_config(config: dict[str, Any], new_id: np.ndarray | None) -> dict[str, Any]:
    """tokenizer_config.json with its ids mapped, naming the class that takes tokenizer.json as it is."""
    kept = {key: value for key, value in config.items()
            if key not in ("auto_map", "use_fast", "sp_model_kwargs", "vocab_file", "tokenizer_file", "legacy", "backend")}
    kept["tokenizer_class"] = FAST_CLASS
    if "added_tokens_decoder" in kept:
        kept["added_tokens_decoder"] = {str(_mapped(int(index), new_id)): token
                                        for index, token in config["added_tokens_decoder"].items()}
    return kept


def default_config(vocabulary: Vocabulary) -> dict[str, Any]:
    """tokenizer_config.json for a vocabulary that comes without one: the special tokens by their usual spellings."""
    contents = {str(token["content"]) for token in vocabulary.added} | {
        piece for piece, kind in zip(vocabulary.pieces, vocabulary.types_V.tolist(), strict=True) if kind in (2, 3)}
    usual = {"bos_token": ("<s>", "<|begin_of_text|>"), "eos_token": ("</s>", "<|endoftext|>", "<|end_of_text|>", "<eos>"),
             "unk_token": ("<unk>",), "pad_token": ("<pad>",)}
    config: dict[str, Any] = {"tokenizer_class": FAST_CLASS, "clean_up_tokenization_spaces": False}
    for key, names in usual.items():
        found = next((name for name in names if name in contents), None)
        if found is not None:
            config[key] = found
    return config


def _write_pair(vocabulary: Vocabulary, out: Path) -> None:
    model = fast_json(vocabulary)["model"]
    write_text(out / "vocab.json", json.dumps(model["vocab"], ensure_ascii=False))
    write_text(out / "merges.txt", "#version: 0.2\n" + "".join(f"{left} {right}\n" for left, right in model["merges"]))


def _mapped(index: int, new_id: np.ndarray | None) -> int:
    return index if new_id is None or index >= len(new_id) else int(new_id[index])


def _model_name(vocabulary: Vocabulary, source: Path | None) -> str:
    """The SentencePiece file keeps its name: checkpoints are loaded by it."""
    if source is not None and source.is_dir():
        for name in MODEL_NAMES:
            if (source / name).is_file():
                return name
    return "spiece.model" if vocabulary.kind == "unigram" else "tokenizer.model"
