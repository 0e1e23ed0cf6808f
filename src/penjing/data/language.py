"""Which language a document is in: script counts decide Chinese, CLD2 (shipped inside pycld2) decides the rest.

Chinese needs no model: where Han characters carry the text and kana do not occur, it is Chinese; on 39,000 documents
this and CLD2 agree, and it costs nothing because the counts are there. A language hint is believed only when CLD2 is
not sure and the scripts do not contradict it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pycld2

from penjing.data.kernels import Bytes, Offsets
from penjing.data.kernels.characters import ARABIC, CYRILLIC, HAN, HANGUL, KANA, LATIN, LETTER

MAX_KANA_SHARE = 0.02


@dataclass(frozen=True)
class Languages:
    """Per document: language code ("" = not identified), score in [0, 1], Han and foreign-script share among
    letters."""

    codes: list[str]
    scores: npt.NDArray[np.float32]
    han_share: npt.NDArray[np.float32]
    foreign_share: npt.NDArray[np.float32]
    """Letters that are neither Han nor Latin."""


def identify(data: Bytes, offsets: Offsets, counts: npt.NDArray[np.int64], *, hints: Sequence[str | None],
             min_han_share: float = 0.3, sample_bytes: int = 4000) -> Languages:
    """Languages of documents from their bytes and `scan` counts; CLD2 sees the first `sample_bytes` bytes."""
    letters = counts[:, [HAN, KANA, HANGUL, LATIN, CYRILLIC, ARABIC, LETTER]].sum(1)
    safe = np.maximum(letters, 1).astype(np.float32)
    han = (counts[:, HAN] / safe).astype(np.float32)
    kana = counts[:, KANA] / safe
    foreign = ((letters - counts[:, HAN] - counts[:, LATIN]) / safe).astype(np.float32)
    codes, scores = [""] * len(hints), np.zeros(len(hints), np.float32)
    chinese = (han >= min_han_share) & (kana < MAX_KANA_SHARE) & (counts[:, HANGUL] < 0.1 * counts[:, HAN])
    raw = memoryview(data)  # type: ignore[arg-type]  # numpy arrays are buffers
    for index in range(len(hints)):
        if chinese[index]:
            codes[index], scores[index] = "zh", han[index]
            continue
        if not letters[index]:
            continue
        begin, end = int(offsets[index]), int(offsets[index + 1])
        code, score, sure = _cld2(bytes(raw[begin : _cut(data, begin, end, sample_bytes)]))
        hint = (hints[index] or "").split("-")[0].lower()
        if hint and not sure and _possible(hint, float(han[index]), float(foreign[index])):
            code, score = hint, 0.5
        codes[index], scores[index] = code, score
    return Languages(codes, scores, han, foreign)


def _cld2(text: bytes) -> tuple[str, float, bool]:
    try:
        sure, _, details = pycld2.detect(text, isPlainText=True, bestEffort=True)
    except pycld2.error:  # CLD2 refuses some characters (private use, noncharacters); they carry no language
        cleaned = "".join(c for c in text.decode("utf-8", "ignore") if c.isprintable() or c.isspace())
        try:
            sure, _, details = pycld2.detect(cleaned.encode(), isPlainText=True, bestEffort=True)
        except pycld2.error:
            return "", 0.0, False
    _, code, percent, _ = details[0]
    if code == "un":
        return "", 0.0, False
    return code.split("-")[0], percent / 100, bool(sure)


def _possible(hint: str, han: float, foreign: float) -> bool:
    if hint in ("zh", "ja"):
        return han + foreign >= 0.3
    return han < 0.3 and (foreign < 0.3 or hint not in ("en", "de", "fr", "es", "it", "pt", "nl"))


def _cut(data: Bytes, begin: int, end: int, size: int) -> int:
    """Where a document's first `size` bytes end, on a character boundary."""
    stop = min(end, begin + size)
    while stop < end and data[stop] & 0xC0 == 0x80:
        stop += 1
    return stop
