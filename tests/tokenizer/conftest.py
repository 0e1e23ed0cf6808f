"""Real vocabularies and real lines for the tokenizer room's tests, read once."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest

from penjing.data.document import CorpusWriter, documents
from penjing.tokenizer.read import read_vocabulary
from penjing.tokenizer.vocabulary import Vocabulary


@pytest.fixture(scope="session")
def vocabulary(shared: Path) -> Callable[[str], Vocabulary]:
    """A vocabulary of the shared data by the name of its directory."""
    return lru_cache(lambda name: read_vocabulary(shared / "tokenizers" / name))


@pytest.fixture(scope="session")
def lines(shared: Path) -> Callable[[str, int], list[str]]:
    """The first lines of a shared text, by path under `corpus/`."""

    @lru_cache
    def read(name: str, number: int) -> list[str]:
        found: list[str] = []
        with gzip.open(shared / "corpus" / f"{name}.jsonl.gz", "rt", encoding="utf-8") as file:
            for row in file:
                found += [line for line in json.loads(row)["text"].split("\n") if line]
                if len(found) >= number:
                    break
        return found[:number]

    return read


@pytest.fixture(scope="session")
def zh(lines: Callable[[str, int], list[str]]) -> list[str]:
    """Chinese lines to choose pieces on."""
    return lines("zh/web_mix_zh", 800)


@pytest.fixture(scope="session")
def held_out(lines: Callable[[str, int], list[str]]) -> list[str]:
    """Lines of three kinds that nothing was chosen on."""
    return [*lines("zh/reviews_book_zh", 300), *lines("en/redpajama_stackexchange_en", 500),
            *lines("code/redpajama_github_code", 500)]


@pytest.fixture(scope="session")
def characters(zh: list[str]) -> np.ndarray:
    """Occurrences of each code point in the Chinese lines."""
    points = np.frombuffer("".join(zh).encode("utf-32-le"), dtype=np.uint32)
    return np.bincount(points, minlength=0x110000)


@pytest.fixture(scope="session")
def corpus(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small finished corpus with Chinese and English documents."""
    out = tmp_path_factory.mktemp("vocab") / "corpus"
    with CorpusWriter(out, provenance={"made": "for tests"}) as writer:
        for lang, name, number in (("zh", "web_mix_zh", 150), ("en", "redpajama_stackexchange_en", 60)):
            rows = []
            with gzip.open(shared / "corpus" / lang / f"{name}.jsonl.gz", "rt", encoding="utf-8") as file:
                for row, _ in zip(file, range(number), strict=False):
                    item = json.loads(row)
                    rows.append({"id": item["id"], "source": name, "text": item["text"], "lang": lang})
            writer.write(documents(rows), shard=f"part-{lang}")
    return out
