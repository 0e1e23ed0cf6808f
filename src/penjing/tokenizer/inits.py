"""Which texts the beginnings of new rows are measured on: whole documents of each language, cut to a budget of tokens."""

from __future__ import annotations

from pathlib import Path

import pyarrow.compute as pc

from penjing.data.document import open_corpus

CHARACTERS_PER_DOCUMENT = 2000


def measured_texts(corpus: Path, *, characters: int) -> dict[str, list[str]]:
    """Language -> the beginnings of documents in the corpus's order, about `characters` of each language in all."""
    found: dict[str, list[str]] = {}
    room: dict[str, int] = {}
    for batch in open_corpus(corpus).batches(columns=["text", "lang"], rows=64):
        languages = pc.fill_null(batch.column("lang"), "").to_pylist()
        for text, lang in zip(pc.fill_null(batch.column("text"), "").to_pylist(), languages, strict=True):
            left = room.setdefault(lang, characters)
            part = text[: min(left, CHARACTERS_PER_DOCUMENT)]
            if part.strip():
                found.setdefault(lang, []).append(part)
                room[lang] -= len(part)
    return found
