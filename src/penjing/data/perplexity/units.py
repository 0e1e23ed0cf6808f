"""Text as numbered words: either our own tokens (Han characters, words, punctuation) or SentencePiece pieces.

Both give sentences, one per line of text; a document's stream is its lines, each from <s> to </s>.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import sentencepiece
from numba import njit

from penjing.data.dedup.fold import BREAK_TOKEN, Scratch, fold, language_model_table
from penjing.data.perplexity.counts import BEGIN, END

_SCRATCH = Scratch()
SPECIAL = ("<unk>", "<s>", "</s>")
_FULL_WIDTH = str.maketrans(
    {
        "，": ",",
        "。": ".",
        "、": ",",
        "„": '"',
        "”": '"',
        "“": '"',
        "«": '"',
        "»": '"',
        "」": '"',
        "「": '"',
        "《": '"',
        "》": '"',
        "´": "'",
        "∶": ":",
        "：": ":",
        "？": "?",
        "！": "!",
        "（": "(",
        "）": ")",
        "；": ";",
        "–": "-",
        "—": " - ",
        "．": ". ",
        "～": "~",
        "’": "'",
        "…": "...",
        "━": "-",
        "〈": "<",
        "〉": ">",
        "【": "[",
        "】": "]",
        "％": "%",
        "►": "-",
    }
)
_CONTROL = re.compile("[" + "".join(map(chr, [*range(32), *range(127, 160)])) + "]")
_DIGIT = re.compile(r"\d")


def normalise_for_pieces(text: str, *, lines: bool = True) -> str:
    """The view SentencePiece pieces are trained and scored on, after CCNet: lower case, no accents, digits as 0, ASCII
    punctuation, no control characters. With `lines` false line feeds vanish too, which joins lines without a space,
    as CCNet does.
    """
    if lines:
        return "\n".join(normalise_for_pieces(line, lines=False) for line in text.split("\n"))
    text = text.strip().lower()
    text = "".join(c for c in unicodedata.normalize("NFD", text) if unicodedata.category(c) != "Mn")
    return _CONTROL.sub("", _DIGIT.sub("0", text).translate(_FULL_WIDTH))


@dataclass(frozen=True)
class TokenVocabulary:
    """The words of a model by token hash: an open-addressing table; absent tokens are <unk>."""

    words: list[str]
    """All words by number; the first three are <unk>, <s>, </s>."""
    keys: np.ndarray
    """(capacity,) uint64 token hashes, 0 = free."""
    numbers: np.ndarray
    """(capacity,) int32 word numbers."""

    def streams(self, texts: pa.Array) -> tuple[np.ndarray, np.ndarray]:
        """(numbers, offsets): document d's sentences laid end to end, with <s> and </s>."""
        folded = fold(texts, language_model_table(), scratch=_SCRATCH)
        out = np.empty(3 * len(folded.tokens) + 3 * len(folded.token_offsets), np.int32)
        return _number(folded.tokens, folded.token_offsets, self.keys, self.numbers, out)


@dataclass(frozen=True)
class PieceVocabulary:
    """SentencePiece pieces as words. `joined` scores a document as one line, as CCNet does."""

    words: list[str]
    pieces: bytes
    """The SentencePiece model."""
    joined: bool = False

    def streams(self, texts: pa.Array) -> tuple[np.ndarray, np.ndarray]:
        """(numbers, offsets): document d's sentences laid end to end, with <s> and </s>."""
        processor = sentencepiece.SentencePieceProcessor(model_proto=self.pieces)
        number = {word: index for index, word in enumerate(self.words)}
        table = np.array([number.get(processor.id_to_piece(i), 0) for i in range(processor.get_piece_size())], np.int32)
        parts: list[np.ndarray] = []
        offsets = [0]
        total = 0
        ends = np.array([END], np.int32)
        begins = np.array([BEGIN], np.int32)
        for text in texts.to_pylist():
            for line in normalise_for_pieces(text or "", lines=not self.joined).split("\n"):
                if line.strip():
                    encoded = np.asarray(processor.encode(line), np.int64)
                    unknown = np.flatnonzero(encoded == processor.unk_id())
                    ids = table[encoded]
                    if len(unknown):  # a model of piece texts, CCNet's, may know what SentencePiece does not
                        spelled = processor.encode_as_pieces(line)
                        ids[unknown] = [number.get(spelled[place], 0) for place in unknown.tolist()]
                    parts += [begins, ids, ends]
                    total += len(ids) + 2
            offsets.append(total)
        return np.concatenate(parts) if parts else ends[:0], np.asarray(offsets, np.int64)


Vocabulary = TokenVocabulary | PieceVocabulary


def count_tokens(texts: Iterable[pa.Array], *, min_count: int, largest: int) -> TokenVocabulary:
    """The vocabulary of our own tokens: those seen at least `min_count` times, at most `largest`, most frequent first."""
    hashes = np.zeros(0, np.uint64)
    counts = np.zeros(0, np.int64)
    spelling: dict[int, str] = {}
    for batch in texts:
        folded = fold(batch, language_model_table(), places=True)
        found, at, number = np.unique(folded.tokens, return_index=True, return_counts=True)
        ends = np.append(folded.token_points, len(folded.points))
        for token, place in zip(found.tolist(), at.tolist(), strict=True):
            if token not in spelling:
                spelling[token] = (
                    folded.points[ends[place] : ends[place + 1]].astype("<u4").tobytes().decode("utf-32-le")
                )
        merged, inverse = np.unique(np.concatenate([hashes, found]), return_inverse=True)
        counts = np.bincount(inverse, weights=np.concatenate([counts, number])).astype(np.int64)
        hashes = merged
    wanted = (counts >= min_count) & (hashes != BREAK_TOKEN)
    hashes, counts = hashes[wanted], counts[wanted]
    order = np.lexsort((hashes, -counts))[:largest]
    return token_vocabulary([*SPECIAL, *(spelling[token] for token in hashes[order].tolist())], hashes[order])


def token_vocabulary(words: list[str], hashes: np.ndarray) -> TokenVocabulary:
    """The lookup table of a vocabulary; `hashes` are those of words[3:]."""
    capacity = 1 << max(4, int(2 * len(hashes)).bit_length())
    keys = np.zeros(capacity, np.uint64)
    numbers = np.zeros(capacity, np.int32)
    _insert(keys, numbers, hashes.astype(np.uint64))
    return TokenVocabulary(words, keys, numbers)


def token_hashes(words: list[str]) -> np.ndarray:
    """Hashes of words that are each one token (what `fold` gives for them alone)."""
    folded = fold(pa.array(words, pa.large_string()), language_model_table())
    if not (np.diff(folded.token_offsets) == 1).all():
        bad = words[int(np.flatnonzero(np.diff(folded.token_offsets) != 1)[0])]
        raise ValueError(f"{bad!r} is not one token")
    return folded.tokens


def train_pieces(texts: Iterable[pa.Array], folder: Path, *, size: int) -> PieceVocabulary:
    """A SentencePiece unigram model of at most `size` pieces, trained on the normalised lines of the texts."""

    def lines() -> Iterable[str]:
        for batch in texts:
            for text in batch.to_pylist():
                yield from (line[:4000] for line in normalise_for_pieces(text or "").split("\n") if line.strip())

    folder.mkdir(parents=True, exist_ok=True)
    settings: dict[str, Any] = {
        "model_type": "unigram",
        "vocab_size": size,
        "hard_vocab_limit": False,
        "character_coverage": 0.9995,
        "num_threads": 1,
        "input_sentence_size": 400_000,
        "shuffle_input_sentence": False,
        "minloglevel": 2,
        "max_sentence_length": 16384,
    }
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines()), model_prefix=str(folder / "pieces"), **settings
    )
    return piece_vocabulary((folder / "pieces.model").read_bytes())


def piece_vocabulary(pieces: bytes, words: list[str] | None = None, *, joined: bool = False) -> PieceVocabulary:
    """The vocabulary of a SentencePiece model; `words` when a language model already numbers them."""
    if words is None:
        processor = sentencepiece.SentencePieceProcessor(model_proto=pieces)
        found = [processor.id_to_piece(i) for i in range(processor.get_piece_size())]
        words = [*SPECIAL, *(piece for piece in found if piece not in SPECIAL)]
    return PieceVocabulary(words, pieces, joined)


@njit(cache=True, nogil=True)
def _insert(keys, numbers, hashes):  # type: ignore[no-untyped-def]
    mask = np.uint64(len(keys) - 1)
    for i in range(len(hashes)):
        slot = hashes[i] & mask
        while keys[slot] != 0:
            slot = (slot + np.uint64(1)) & mask
        keys[slot] = hashes[i]
        numbers[slot] = i + 3


@njit(cache=True, nogil=True)
def _number(tokens, offsets, keys, numbers, out):  # type: ignore[no-untyped-def]
    mask = np.uint64(len(keys) - 1)
    ends = np.zeros(len(offsets), np.int64)
    at = 0
    for d in range(len(offsets) - 1):
        inside = False
        for t in range(offsets[d], offsets[d + 1]):
            token = tokens[t]
            if token == 0:
                if inside:
                    out[at] = 2
                    at += 1
                    inside = False
                continue
            if not inside:
                out[at] = 1
                at += 1
                inside = True
            slot = token & mask
            number = 0
            while keys[slot] != 0:
                if keys[slot] == token:
                    number = numbers[slot]
                    break
                slot = (slot + np.uint64(1)) & mask
            out[at] = number
            at += 1
        if inside:
            out[at] = 2
            at += 1
        ends[d + 1] = at
    return out[:at], ends
