"""The normalise stage: counts conserve, dropped text is kept aside, workers do not change the result."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq

from penjing.config import parse
from penjing.contract import VOLATILE, Job
from penjing.data.document import CorpusWriter, documents, open_corpus
from penjing.files import hash_tree
from penjing.stages import normalise

ROWS = [
    {"id": "zh", "text": "盆景是一門藝術，也是一種生活。" * 5, "source": "web"},
    {"id": "en", "text": "A bonsai is a tree in a shallow tray, kept small by patient hands.", "source": "web"},
    {"id": "ru", "text": "Это обычный русский текст, который не нужен.", "source": "web"},
    {"id": "code", "text": "int main() { return 0; }", "source": "code"},
]


def make_corpus(path: Path, shards: int = 3) -> Path:
    with CorpusWriter(path, provenance={}) as writer:
        for shard in range(shards):
            rows = [{**row, "id": f"{row['id']}-{shard}"} for row in ROWS]
            writer.write(documents(rows), shard=f"part-{shard:05d}")
    return path


def test_counts_conserve_and_dropped_documents_are_kept_aside(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path / "in")
    out = tmp_path / "out"
    out.mkdir()
    figures = normalise.run(parse(normalise.Config, {"code_sources": ["code"]}, where="t"), {"corpus": corpus}, out, Job())
    funnel = figures["funnel"]
    total = {part: sum(item["documents"] for item in funnel[part].values()) for part in ("in", "out", "dropped")}
    assert total == {"in": 12, "out": 9, "dropped": 3}
    assert funnel["dropped"]["DP6-language"]["documents"] == 3
    assert funnel["edited"]["DP8-simplified"]["documents"] == 3
    assert set(open_corpus(out).languages) == {"zh", "en", "code"}
    gone = pq.read_table(out / "dropped" / "part-00000.parquet").to_pylist()
    assert [(row["id"], row["rule"], row["bound"], row["text"]) for row in gone] == [
        ("ru-0", "DP6-language", "one of zh, en", ROWS[2]["text"])]
    assert funnel["samples"][0]["id"] == "ru-0"


def test_workers_do_not_change_the_result(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path / "in")
    settings = parse(normalise.Config, {}, where="t")
    hashes = set()
    for workers in (1, 2):
        out = tmp_path / f"out-{workers}"
        out.mkdir()
        normalise.run(settings, {"corpus": corpus}, out, Job(workers=workers))
        hashes.add(hash_tree(out, ignore=VOLATILE))
    assert len(hashes) == 1
