"""A small real pipeline on a handful of documents: collect, hold-out, dedup."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

WORDS = ("river", "stone", "lantern", "orchard", "letter", "winter", "kettle", "harbour", "violin", "meadow", "copper", "thread")


def write_documents(path: Path, count: int = 40) -> None:
    """`count` different English documents, a tenth of them twice."""
    lines = []
    for index in range(count):
        picked = [WORDS[(index * 7 + step * (1 + index % 5)) % len(WORDS)] for step in range(60)]
        text = " ".join(f"{word}{index * step % 13}" for step, word in enumerate(picked))
        lines.append(json.dumps({"id": f"d{index}", "text": text}))
        if index % 10 == 0:
            lines.append(json.dumps({"id": f"copy{index}", "text": text + "!"}))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    """A JSON lines file of real small documents."""
    path = tmp_path / "documents.jsonl"
    write_documents(path)
    return path


@pytest.fixture
def recipe_text(documents: Path) -> str:
    """Three stages: collect -> split -> unique."""
    return f"""penjing: 1
name: small
seed: 3
vars: {{words: {documents}}}
stages:
  raw:
    kind: collect
    sources:
      - {{name: words, path: "${{words}}", lang: en}}
  split:
    kind: hold-out
    from: raw
    fraction: 0.2
  unique:
    kind: dedup
    from: split
    near_min_tokens: 5
result: unique
"""
