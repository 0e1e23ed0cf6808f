"""The scorecard stage over real stages: weather, then de-duplication, then the marks."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

import penjing
from penjing.contract import Job
from penjing.data.document import CorpusWriter, documents, open_corpus
from penjing.errors import GateError, InputError
from penjing.files import hash_tree, read_json
from penjing.stages import cleaning_scorecard, dedup, weather


@pytest.fixture(scope="module")
def crawl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("crawl")
    path = Path(penjing.__file__).parent / "samples" / "prose_zh_a.jsonl"
    rows = [{"id": item["id"], "source": "prose", "text": item["text"], "lang": "zh"}
            for item in map(json.loads, path.open(encoding="utf-8"))]
    with CorpusWriter(root / "clean", provenance={}) as writer:
        writer.write(documents(rows))
    (root / "weathered").mkdir()
    settings = weather.Config(copies=0.2, near_copies=0.2, forget_language=False)
    weather.run(settings, {"corpus": root / "clean"}, root / "weathered", Job())
    return root / "weathered"


def marks(tmp_path: Path, weathered: Path, cleaned: Path, **settings: float) -> dict[str, Any]:
    inputs = {"weathered": weathered, "cleaned": cleaned, "through": None}
    return cleaning_scorecard.run(cleaning_scorecard.Config(**settings), inputs, tmp_path / "scores", Job())


def test_de_duplication_is_marked_by_the_copies_it_finds(crawl: Path, tmp_path: Path) -> None:
    (tmp_path / "unique").mkdir()
    dedup.run(dedup.Config(), {"corpus": crawl, "old": None}, tmp_path / "unique", Job())
    figures = marks(tmp_path, crawl, tmp_path / "unique")
    scores = read_json(tmp_path / "scores" / "scores.json")
    gone = {kind: share["rate"] for kind, share in scores["vanish"]["zh"].items()}
    assert gone["copy: other-url"] == gone["copy: tracking-url"] == gone["near-copy: same-url"] == 1
    assert gone["near-copy: punctuation"] == gone["near-copy: emoji"] == 1
    assert gone["junk: gibberish"] == 0, "de-duplication has no eye for gibberish"
    assert scores["lost_documents"]["all"]["number"] == 0 and scores["precision"]["all"]["rate"] == 1
    assert 0 < figures["recall"] < 1 and figures["precision"] == 1
    assert json.loads(json.dumps(figures, allow_nan=False)) == figures
    assert all(0 <= row["low"] <= row["rate"] <= row["high"] <= 1 for row in figures["table"] if row["rate"] is not None)
    lines = (tmp_path / "scores" / "table.txt").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 1 + len({row["what"] for row in figures["table"]})
    assert re.search(r"^gone: copy: other-url +\d+/\d+ 100\.0% \[", "\n".join(lines), re.MULTILINE)
    first = hash_tree(tmp_path / "scores")
    marks(tmp_path, crawl, tmp_path / "unique")
    assert hash_tree(tmp_path / "scores") == first


def test_a_gate_says_no_and_keeps_the_marks(crawl: Path, tmp_path: Path) -> None:
    said = r"scores\.json: the cleaning's recall is too low; found 0\.0000 as the lower 95% bound; expected at least 0\.9"
    with pytest.raises(GateError, match=said):
        marks(tmp_path, crawl, crawl, min_recall=0.9)
    assert read_json(tmp_path / "scores" / "scores.json")["recall"]["all"]["rate"] == 0


def test_rules_are_found_where_documents_were_set_aside(crawl: Path, tmp_path: Path) -> None:
    from penjing.data.document import DROPPED_SCHEMA, ShardWriter

    rows = [row for batch in open_corpus(crawl).batches() for row in batch.to_pylist()]
    alone = next(row for row in rows if json.loads(row["meta"])["weather"]["kind"] == "clean" and not any(
        json.loads(other["meta"])["weather"]["origin"] == row["id"] for other in rows if other is not row))
    with CorpusWriter(tmp_path / "left", provenance={}) as writer:
        writer.write(documents([row for row in rows if row is not alone]))
    with ShardWriter(tmp_path / "left" / "dropped" / "part-00000.parquet", DROPPED_SCHEMA) as aside:
        aside.write(documents([alone]).select(["id", "source", "lang", "text"]).append_column("rule", [["few-words"]]))
    figures = marks(tmp_path, crawl, tmp_path / "left")
    lost = [item for item in figures["samples"] if item["rule"] == "wrongly dropped"]
    assert [(item["id"], item["value"]) for item in lost] == [(alone["id"], "few-words")]


def test_corpora_that_do_not_belong_together_are_faults(crawl: Path, tmp_path: Path) -> None:
    with CorpusWriter(tmp_path / "other", provenance={}) as writer:
        writer.write(documents([{"id": "x", "source": "s", "text": "a"}]))
    with pytest.raises(InputError, match="no document of the weathered corpus is in the cleaned one"):
        marks(tmp_path, crawl, tmp_path / "other")
    with pytest.raises(InputError, match="no document carries weather labels"):
        marks(tmp_path, tmp_path / "other", crawl)
