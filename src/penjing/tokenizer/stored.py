"""Token ids that lie about in a checkpoint's JSON files, found by the names of their keys and renumbered."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from penjing.files import read_json

ID_KEY = re.compile(r"(_token_ids?|_token_index|_tokens_ids?|suppress_tokens|bad_words_ids|force_words_ids|forced_decoder_ids"
                    r"|sequence_bias|eos_token_ids?)$")
FILES = ("config.json", "generation_config.json")
NAMING_FILES = ("special_tokens_map.json", "tokenizer_config.json")
TOKEN_KEY = re.compile(r"(_token|_special_tokens)$")


def stored_ids(directory: Path, ids: Mapping[str, int]) -> frozenset[int]:
    """Every token id that config.json or generation_config.json holds, and the id (in `ids`) of every token that the tokenizer's
    files give a part to, as `pad_token` or another; none of them may be dropped."""
    found: set[int] = set()

    def note(index: int) -> int:
        found.add(index)
        return index

    for name in FILES:
        if (directory / name).is_file():
            _walk(read_json(directory / name), note)
    found |= {ids[token] for token in _named_tokens(directory) if token in ids}
    return frozenset(index for index in found if index >= 0)


def renumbered(content: dict[str, Any], new_id: np.ndarray) -> dict[str, Any]:
    """The same JSON object with every token id mapped; ids outside the map (none, -1) stay."""
    result = _walk(content, lambda index: int(new_id[index]) if 0 <= index < len(new_id) else index)
    assert isinstance(result, dict)
    return result


def _named_tokens(directory: Path) -> set[str]:
    """Texts of the tokens that have a part: `<pad>` may be an ordinary piece that only special_tokens_map.json knows as padding."""
    found: set[str] = set()
    for name in NAMING_FILES:
        for key, value in (read_json(directory / name) if (directory / name).is_file() else {}).items():
            if TOKEN_KEY.search(key):
                values = value.values() if isinstance(value, dict) and "content" not in value else (
                    value if isinstance(value, list) else [value])
                found |= {str(item["content"] if isinstance(item, dict) and "content" in item else item) for item in values}
    return found


def _walk(value: Any, change: Any, ids: bool = False) -> Any:
    if isinstance(value, dict):
        return {key: _walk(item, change, ids or bool(ID_KEY.search(key))) for key, item in value.items()}
    if isinstance(value, list):
        return [_walk(item, change, ids) for item in value]
    if ids and isinstance(value, int) and not isinstance(value, bool):
        return change(value)
    return value
