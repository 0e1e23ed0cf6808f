"""Language models on disk: one directory with a model per language, and the models another tool made.

    model.json                 version, and per language: units, order, words, n-grams, discounts, training text
    <lang>/words.parquet       the words by number
    <lang>/ngrams.safetensors  unigrams, and the hashed n-grams with their probabilities and backoffs
    <lang>/pieces.model        the SentencePiece model, when words are pieces
    <lang>/model.arpa          the same model as ARPA text, when wanted

A directory of CCNet's files (`ccnet`) is read as it is.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.numpy import load_file, save_file

from penjing.data.perplexity import ccnet
from penjing.data.perplexity.model import Tables, fill_entries
from penjing.data.perplexity.score import Scores, score
from penjing.data.perplexity.units import TokenVocabulary, Vocabulary, piece_vocabulary, token_hashes, token_vocabulary
from penjing.errors import InputError, fault
from penjing.files import read_json, write_json

VERSION = 1
MANIFEST = "model.json"


@dataclass(frozen=True)
class LanguageModel:
    """Vocabulary and tables of one language."""

    vocabulary: Vocabulary
    tables: Tables

    def score(self, texts: pa.Array) -> Scores:
        """Scores of an Arrow array of texts."""
        return score(texts, self.vocabulary, self.tables)


def save_language(folder: Path, vocabulary: Vocabulary, tables: Tables) -> None:
    """Write the words and tables of one language."""
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"word": vocabulary.words}), folder / "words.parquet", compression="zstd")
    full = np.sort(tables.entries[tables.entries["key"] != 0], order="key")
    save_file(
        {
            "unigrams": tables.unigrams,
            "keys": np.ascontiguousarray(full["key"]),
            "log_probabilities": np.ascontiguousarray(full["log_probability"]),
            "log_backoffs": np.ascontiguousarray(full["log_backoff"]),
        },
        folder / "ngrams.safetensors",
    )
    if not isinstance(vocabulary, TokenVocabulary):
        (folder / "pieces.model").write_bytes(vocabulary.pieces)


def write_manifest(out: Path, languages: Mapping[str, Mapping[str, Any]]) -> None:
    """Write model.json, the last file of a model directory."""
    write_json(out / MANIFEST, {"version": VERSION, "languages": dict(sorted(languages.items()))})


def manifest(path: Path) -> dict[str, Any]:
    """What model.json says; InputError when `path` is not a model directory."""
    foreign = ccnet.languages(path) if path.is_dir() else []
    if foreign and not (path / MANIFEST).is_file():
        return {"version": VERSION, "languages": {lang: {"units": "ccnet"} for lang in foreign}}
    if not (path / MANIFEST).is_file():
        raise InputError(
            fault(f"no {MANIFEST} here", where=path, expected="a directory made by the stage perplexity-model")
        )
    found: dict[str, Any] = read_json(path / MANIFEST)
    if found.get("version") != VERSION:
        raise InputError(
            fault(
                "not a language model this version reads",
                where=path / MANIFEST,
                found=f"version {found.get('version')}",
                expected=f"version {VERSION}",
            )
        )
    return found


@functools.lru_cache(maxsize=8)
def load_language(path: Path, lang: str) -> LanguageModel | ccnet.KenlmModel | ccnet.ArpaModel:
    """The model of one language; kept in memory for the next call."""
    about = manifest(path)["languages"].get(lang)
    if about is None:
        raise InputError(
            fault(
                f"no language model for '{lang}'",
                where=path,
                expected=f"one of {', '.join(sorted(manifest(path)['languages']))}",
            )
        )
    if about["units"] == "ccnet":
        return ccnet.load(path, lang)
    folder = path / lang
    words: list[str] = pq.read_table(folder / "words.parquet").column("word").to_pylist()
    arrays = load_file(folder / "ngrams.safetensors")
    tables = Tables(
        about["order"],
        arrays["unigrams"],
        fill_entries(arrays["keys"], arrays["log_probabilities"], arrays["log_backoffs"]),
    )
    if about["units"] == "tokens":
        return LanguageModel(token_vocabulary(words, token_hashes(words[3:])), tables)
    return LanguageModel(
        piece_vocabulary((folder / "pieces.model").read_bytes(), words, joined=about.get("joined", False)), tables
    )
