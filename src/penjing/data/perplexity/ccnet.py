"""CCNet's own models: `<lang>.sp.model` beside `<lang>.arpa.bin` (kenlm's binary, read by the optional `kenlm`
library) or `.arpa`.

A document is scored as CCNet does it: normalised whole, which joins its lines without a space, cut into pieces, one sentence.
Differs: perplexities are not rounded to one decimal.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import sentencepiece

from penjing.data.perplexity.model import read_arpa
from penjing.data.perplexity.score import Scores, score
from penjing.data.perplexity.units import normalise_for_pieces, piece_vocabulary
from penjing.errors import ConfigError, InputError, fault

BINARY, TEXT, PIECES = ".arpa.bin", ".arpa", ".sp.model"


@dataclass(frozen=True)
class KenlmModel:
    """A binary model scored by the kenlm library."""

    library_model: Any
    pieces: bytes

    def score(self, texts: pa.Array) -> Scores:
        """Scores of an Arrow array of texts."""
        processor = sentencepiece.SentencePieceProcessor(model_proto=self.pieces)
        total, events, unknown = (np.zeros(len(texts)), np.zeros(len(texts), np.int64), np.zeros(len(texts), np.int64))
        for row, text in enumerate(texts.to_pylist()):
            words = processor.encode_as_pieces(normalise_for_pieces(text or "", lines=False))
            if words:
                scored = list(self.library_model.full_scores(" ".join(words)))
                total[row] = sum(item[0] for item in scored)
                events[row] = len(scored)
                unknown[row] = sum(item[2] for item in scored)
        return Scores(total, events, unknown)


@dataclass(frozen=True)
class ArpaModel:
    """An ARPA model scored by our own tables."""

    vocabulary: Any
    tables: Any

    def score(self, texts: pa.Array) -> Scores:
        """Scores of an Arrow array of texts."""
        return score(texts, self.vocabulary, self.tables)


def languages(path: Path) -> list[str]:
    """Languages with both parts in a CCNet directory; empty when it is not one."""
    found = [file.name.removesuffix(PIECES) for file in sorted(path.glob(f"*{PIECES}"))]
    return [lang for lang in found if (path / f"{lang}{BINARY}").is_file() or (path / f"{lang}{TEXT}").is_file()]


def load(path: Path, lang: str) -> KenlmModel | ArpaModel:
    """The model of one language; ConfigError when it is binary and the kenlm library is not installed."""
    pieces = (path / f"{lang}{PIECES}").read_bytes()
    text = path / f"{lang}{TEXT}"
    if text.is_file():
        words, tables = read_arpa(text)
        return ArpaModel(piece_vocabulary(pieces, words, joined=True), tables)
    if importlib.util.find_spec("kenlm") is None:
        raise ConfigError(
            fault(
                "binary language models need the kenlm library",
                where=path / f"{lang}{BINARY}",
                fix="pip install 'penjing[kenlm]', or put the .arpa text beside it",
            )
        )
    import kenlm

    try:
        return KenlmModel(kenlm.Model(str(path / f"{lang}{BINARY}")), pieces)
    except (OSError, RuntimeError) as error:
        raise InputError(fault("not a kenlm model", where=path / f"{lang}{BINARY}", found=str(error)[:200])) from error
