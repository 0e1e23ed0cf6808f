"""The normalise stage: counts conserve, dropped text is kept aside, workers do not change the result."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

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


def test_a_document_that_is_too_large_is_set_aside_unread(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path / "in")
    with CorpusWriter(corpus, provenance={}) as writer:
        writer.write(documents([{"id": "long", "text": "盆景" * 2000, "source": "web"}, *ROWS]), shard="part-00000")
    out = tmp_path / "out"
    out.mkdir()
    figures = normalise.run(parse(normalise.Config, {"max_document_bytes": 4096}, where="t"), {"corpus": corpus}, out, Job())
    assert figures["funnel"]["dropped"]["DP1-size"] == {"documents": 1, "bytes": 12000}
    total = {part: sum(item["documents"] for item in figures["funnel"][part].values()) for part in ("in", "out", "dropped")}
    assert total["in"] == total["out"] + total["dropped"] == 13
    aside = pq.read_table(out / "dropped" / "part-00000.parquet")
    row = next(row for row in aside.to_pylist() if row["id"] == "long")
    assert (row["value"], row["bound"]) == (12000.0, "<= 4096 bytes")


def test_a_batch_of_nothing_but_too_large_documents(tmp_path: Path) -> None:
    with CorpusWriter(tmp_path / "in", provenance={}) as writer:
        writer.write(documents([{"id": "long", "text": "盆景" * 2000, "source": "web"}]))
    (tmp_path / "out").mkdir()
    figures = normalise.run(parse(normalise.Config, {"max_document_bytes": 4096}, where="t"), {"corpus": tmp_path / "in"},
                            tmp_path / "out", Job())
    assert (figures["documents"], figures["dropped_documents"]) == (0, 1)


@pytest.mark.slow
def test_a_line_of_200_megabytes_costs_no_more_than_two_gigabytes(tmp_path: Path) -> None:
    """Set aside when it is read; one of 60 MB goes through normalise and the whole rule table, in a process of its own."""
    seed = "盆景是一门古老的艺术它把山水和树木放进小小的盆里"
    with (tmp_path / "lines.jsonl").open("w", encoding="utf-8") as file:
        for size in (200_000_000, 60_000_000, *[900] * 30):
            file.write('{"text": "')
            for _ in range(size // len(seed.encode()) // 10):
                file.write(seed * 10)
            file.write('"}\n')
    script = """
import resource, sys
from pathlib import Path
from penjing.config import parse
from penjing.contract import Job
from penjing.stages import collect, filter as filter_stage, normalise
work, before = Path(sys.argv[1]), None
for name, stage, settings in (("raw", collect, {"sources": [{"name": "s", "path": str(work / "lines.jsonl")}]}),
                              ("normal", normalise, {}), ("clean", filter_stage, {})):
    (work / name).mkdir()
    figures = stage.run(parse(stage.Config, settings, where="t"), {"corpus": before}, work / name, Job())
    print(sum(item["documents"] for item in figures["funnel"]["dropped"].values()), sorted(figures["funnel"]["dropped"]))
    before = work / name
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10)
"""
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True)
    raw, normal, clean, peak = done.stdout.splitlines()
    assert raw.startswith("1 ")
    assert normal == "0 []"
    assert "'D02'" in clean
    assert int(peak) < 2000
