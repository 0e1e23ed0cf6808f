"""What a vocabulary is, whatever file it came from: pieces by id, their types, and the order in which they are put together.

Four kinds are known. `sentencepiece-bpe` (LLaMA) joins the neighbouring symbols whose joined piece has the highest score;
`byte-bpe` (GPT-2, Llama-3, Qwen) joins by an explicit list of merges over an alphabet of 256 bytes; `unigram` (T5, mT5) takes
the path of the highest summed score; `wordpiece` (BERT) takes the longest match and is read for counting only.
"""


from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np

from penjing.errors import InputError, fault

Kind = Literal["sentencepiece-bpe", "unigram", "byte-bpe", "wordpiece"]

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""Piece types, numbered as SentencePiece numbers them."""
MAX_ORPHANS = 0.01
"""Share of pieces that no merge makes above which a list of merges is taken to be incomplete."""


@dataclass(frozen=True)
class Vocabulary:
    """Pieces by id with everything needed to write the tokenizer back in the formats it was read from."""

    kind: Kind
    pieces: tuple[str, ...]
    """By id, as they are spelled in the tokenizer's own files (byte alphabet for `byte-bpe`)."""
    types_V: np.ndarray
    """uint8, one of the piece types."""
    scores_V: np.ndarray | None
    """float64; None for `byte-bpe`."""
    merges_M3: np.ndarray | None
    """int32, rows (left id, right id, joined id) in order of priority; None for `unigram` and `wordpiece`."""
    priority_M: np.ndarray | None
    """int64, equal for merges that the tokenizer does not rank against each other (equal scores: leftmost wins)."""
    any_split: bool = False
    """True when every pair whose join is a piece may merge (SentencePiece, tiktoken), False when only listed merges may."""
    byte_fallback: bool = False
    ignore_merges: bool = False
    """True when a whole pre-token that is a piece is taken without merging (Llama-3)."""
    added: tuple[dict[str, Any], ...] = ()
    """Added tokens as tokenizer.json spells them: id, content, special, …; an id may lie outside `pieces`."""
    layout: dict[str, Any] = field(default_factory=dict, compare=False)
    """tokenizer.json without vocab, merges and added tokens; empty when there was no such file."""
    proto: bytes | None = field(default=None, compare=False, repr=False)
    """The SentencePiece ModelProto; None when there was no `.model`."""
    name: str = ""
    """Where it came from, for messages."""

    def __len__(self) -> int:
        return len(self.pieces)

    @cached_property
    def ids(self) -> dict[str, int]:
        """Id of every piece."""
        return {piece: index for index, piece in enumerate(self.pieces)}

    @property
    def total(self) -> int:
        """One more than the largest id, added tokens included: the least number of embedding rows."""
        return max([len(self.pieces), *(int(token["id"]) + 1 for token in self.added)])

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Ids that are never dropped: unknown, control, user-defined, unused and byte pieces and all added tokens."""
        typed = np.flatnonzero(self.types_V != NORMAL).tolist()
        return frozenset([*typed, *(int(token["id"]) for token in self.added)])

    def text_of_id(self, index: int) -> str:
        """The spelling of an id in the files: the piece, the added token, or a name for an unused id."""
        if index < len(self.pieces):
            return self.pieces[index]
        return next((str(token["content"]) for token in self.added if int(token["id"]) == index), f"<reserved_{index}>")

    def text(self, index: int) -> str:
        """The piece as a reader sees it; bytes that are not UTF-8 by themselves are written `<0xE4>`."""
        if index >= len(self.pieces):
            return next((str(token["content"]) for token in self.added if token["id"] == index), f"<reserved {index}>")
        piece = self.pieces[index]
        if self.kind != "byte-bpe" or self.types_V[index] != NORMAL:
            return piece
        return visible(piece_bytes(piece))


def check(vocabulary: Vocabulary) -> Vocabulary:
    """`vocabulary`, after refusing what no operation can be right on: duplicate pieces and missing byte pieces."""
    if len(vocabulary.ids) != len(vocabulary.pieces):
        seen: dict[str, int] = {}
        for index, piece in enumerate(vocabulary.pieces):
            if piece in seen:
                raise InputError(fault(f"duplicate piece {piece!r}", where=vocabulary.name,
                                       found=f"ids {seen[piece]} and {index}", expected="every piece once",
                                       fix="remove one of the two from the tokenizer files"))
            seen[piece] = index
    if vocabulary.merges_M3 is not None and not vocabulary.any_split and not vocabulary.ignore_merges:
        _check_merges(vocabulary)
    if vocabulary.kind == "byte-bpe":
        missing = [byte for byte in UTF8_BYTES if BYTE_SYMBOLS[byte] not in vocabulary.ids]
        if missing:
            raise InputError(fault("byte-level vocabulary without all byte pieces", where=vocabulary.name,
                                   found=f"{len(UTF8_BYTES) - len(missing)} pieces", expected=f"the {len(UTF8_BYTES)} bytes that "
                                   "occur in UTF-8"))
    return vocabulary


def _check_merges(vocabulary: Vocabulary) -> None:
    """Refuse a file whose list of merges was cut short: pieces that no merge makes, beyond a few that files do have."""
    assert vocabulary.merges_M3 is not None
    made = np.zeros(len(vocabulary), dtype=bool)
    made[vocabulary.merges_M3[:, 2]] = True
    long = np.fromiter((len(piece) > 1 for piece in vocabulary.pieces), dtype=bool, count=len(vocabulary))
    orphans = np.flatnonzero(long & ~made & (vocabulary.types_V == NORMAL))
    if len(orphans) > MAX_ORPHANS * len(vocabulary):
        raise InputError(fault("merges are missing", where=vocabulary.name, found=f"{len(vocabulary.merges_M3)} merges, and "
                               f"{len(orphans)} pieces that none of them makes, the first {vocabulary.pieces[orphans[0]]!r}",
                               expected=f"a merge for each of the {int(long.sum())} pieces longer than one symbol"))


def _byte_alphabet() -> list[str]:
    """The printable character that stands for each byte in byte-level BPE files (GPT-2's table, by its rule)."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    symbols, shifted = [], 0
    for byte in range(256):
        if byte in printable:
            symbols.append(chr(byte))
        else:
            symbols.append(chr(0x100 + shifted))
            shifted += 1
    return symbols


BYTE_SYMBOLS: Sequence[str] = tuple(_byte_alphabet())
UTF8_BYTES: Sequence[int] = tuple(byte for byte in range(0xF5) if byte not in (0xC0, 0xC1))
"""The bytes that occur in UTF-8 text; GPT-NeoX has pieces for no others."""
_BYTE_OF = {symbol: byte for byte, symbol in enumerate(BYTE_SYMBOLS)}


def byte_spelling(text: str | bytes) -> str:
    """Text in the byte alphabet.

    >>> byte_spelling("é a")
    'Ã©Ġa'
    """
    raw = text.encode() if isinstance(text, str) else text
    return "".join(BYTE_SYMBOLS[byte] for byte in raw)


def piece_bytes(piece: str) -> bytes:
    """The bytes behind a byte-alphabet spelling; characters outside the alphabet stand for themselves (added tokens)."""
    return b"".join(bytes([_BYTE_OF[symbol]]) if symbol in _BYTE_OF else symbol.encode() for symbol in piece)


def visible(raw: bytes) -> str:
    """Bytes as text, with the bytes that are not UTF-8 written `<0xE4>`."""
    out = []
    for character in raw.decode("utf-8", errors="surrogateescape"):
        code = ord(character)
        out.append(f"<0x{code - 0xDC00:02X}>" if 0xDC80 <= code <= 0xDCFF else character)
    return "".join(out)
