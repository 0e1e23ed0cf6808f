"""The exercises stage: a supervised corpus, the same bytes every time, wrong settings told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from penjing.config import parse
from penjing.contract import Job
from penjing.data.document import open_corpus
from penjing.errors import ConfigError
from penjing.files import hash_tree
from penjing.stages import exercises


def test_the_corpus_is_supervised_and_reproducible(tmp_path: Path) -> None:
    hashes = set()
    for name in ("a", "b"):
        figures = exercises.run(exercises.Config(count=301), {}, tmp_path / name, Job())
        hashes.add(hash_tree(tmp_path / name))
    assert len(hashes) == 1
    corpus = open_corpus(tmp_path / "a")
    assert corpus.documents == figures["documents"] == 301
    assert {lang: item["documents"] for lang, item in corpus.languages.items()} == {"en": 150, "zh": 151}
    assert figures["funnel"]["out"] == corpus.languages
    for batch in corpus.batches():
        for row in batch.to_pylist():
            meta = json.loads(row["meta"])
            assert row["text"] == f"{meta['prompt']}\n{meta['answer']}" and meta["task"] == "arithmetic"
    estimate = exercises.price(exercises.Config(count=301), {})
    assert 0.7 < estimate.text_bytes / corpus.text_bytes < 1.4


def test_wrong_settings_are_told() -> None:
    with pytest.raises(ConfigError, match=r"kinds: wrong value; found .*'summ'.*; expected names from sum, .*; did you mean"):
        parse(exercises.Config, {"kinds": ["summ"]}, where="r.yaml:2")
    with pytest.raises(ConfigError, match="expected each language once"):
        parse(exercises.Config, {"languages": ["zh", "zh"]}, where="r.yaml:2")


def test_more_problems_than_there_are_is_a_fault(tmp_path: Path) -> None:
    settings = exercises.Config(count=60_000, kinds=["area"], languages=["en"])
    with pytest.raises(ConfigError, match=r"exercises: no more than .* different problems .*; lower count or allow more kinds"):
        exercises.run(settings, {}, tmp_path, Job())
    assert not (tmp_path / "corpus.json").exists()
