"""The decontaminate stage: benchmark records are found whatever the punctuation, and only where they are."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from penjing.contract import VOLATILE, Job
from penjing.data.contamination import read_records
from penjing.data.document import CorpusWriter, documents, open_corpus
from penjing.errors import InputError
from penjing.files import hash_tree
from penjing.stages import decontaminate

QUESTION = (
    "A train leaves the northern harbour at seven in the morning and reaches the second town, forty miles away, "
    "after fifty minutes. How fast did it go on average?"
)
CHINESE = "小明有三个苹果，小红比小明多五个苹果，他们把所有的苹果平均分给四个朋友，每人得到几个苹果？"


def benchmark(path: Path) -> Path:
    records = [
        {"id": "train", "question": QUESTION, "choices": ["48", "50"]},
        {"id": "apples", "q": {"zh": CHINESE}},
        {"id": "short", "question": "Why?"},
    ]
    path.write_text("\n".join(json.dumps(record, ensure_ascii=False) for record in records), encoding="utf-8")
    return path


def corpus(path: Path) -> Path:
    texts = {
        "copy": "Exercises.\n\n" + QUESTION.upper().replace(",", " --") + "\n\nAnswers follow.",
        "zh": "练习题：" + CHINESE.replace("，", ",") + "答案见下页。",
        "half": "A train leaves the northern harbour at seven in the morning and reaches the second town, and "
        "that is all we know about the railways of that far country.",
        "clean": "The harbour in the north has trains and apples and towns of every size and colour you may like.",
    }
    with CorpusWriter(path, provenance={}) as writer:
        for name, text in texts.items():
            writer.write(documents([{"id": name, "text": text, "source": "s"}]), f"part-{name}")
    return path


def run(
    tmp_path: Path, name: str, source: Path, benchmarks: list[Path], *, workers: int = 1, **settings: object
) -> tuple[Path, dict]:
    out = tmp_path / name
    out.mkdir()
    inputs = {"corpus": source, "benchmarks": benchmarks}
    return out, decontaminate.run(decontaminate.Config(**settings), inputs, out, Job(workers=workers, engine="thread"))


def test_records_are_found_with_their_spans(tmp_path: Path) -> None:
    source, target = corpus(tmp_path / "in"), benchmark(tmp_path / "bench.jsonl")
    out, figures = run(tmp_path, "out", source, [target])
    kept = {name for batch in open_corpus(out).batches(["id"]) for name in batch.column("id").to_pylist()}
    assert kept == {"half", "clean"}
    found = {row["id"]: row for row in pq.read_table(out / "matches.parquet").to_pylist()}
    assert (found["copy"]["record"], found["copy"]["field"], found["copy"]["coverage"]) == ("train", "question", 1.0)
    assert found["copy"]["span"].startswith("A TRAIN LEAVES") and found["copy"]["span"].endswith("ON AVERAGE?")
    assert found["zh"]["span"] == CHINESE.replace("，", ",")
    assert figures["benchmarks"] == {"bench.jsonl": {"records": 3, "found": 2, "documents": 2}}
    assert figures["texts_too_short"] == 6
    assert figures["funnel"]["dropped"]["contaminated"]["documents"] == 2
    flagged, figures = run(tmp_path, "flag", source, [target], action="flag", coverage=0.15, workers=2)
    assert open_corpus(flagged).documents == 4
    assert figures["documents_flagged"] == 3


def test_the_result_does_not_depend_on_workers(tmp_path: Path) -> None:
    source, target = corpus(tmp_path / "in"), benchmark(tmp_path / "bench.jsonl")
    one, _ = run(tmp_path, "one", source, [target])
    two, _ = run(tmp_path, "two", source, [tmp_path / "bench.jsonl"], workers=2)
    assert hash_tree(one, ignore=VOLATILE) == hash_tree(two, ignore=VOLATILE)


def test_every_kind_of_benchmark_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id,question\nx,hello there\n", encoding="utf-8")
    (tmp_path / "b.txt").write_text("line one\n", encoding="utf-8")
    (tmp_path / "c.json").write_text('[{"q": ["u", {"v": "w"}]}]', encoding="utf-8")
    with gzip.open(tmp_path / "d.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write('{"id": 7, "text": "t"}\n\n["s"]\n')
    assert list(read_records(tmp_path / "a.csv")) == [("x", {"id": "x", "question": "hello there"})]
    assert list(read_records(tmp_path / "b.txt")) == [("1", {"line": "line one\n"})]
    assert list(read_records(tmp_path / "c.json")) == [("0", {"q.0": "u", "q.1.v": "w"})]
    assert list(read_records(tmp_path / "d.jsonl.gz")) == [("7", {"text": "t"}), ("3", {"0": "s"})]
    (tmp_path / "bad.jsonl").write_text('{"a": 1}\n{"a": \n', encoding="utf-8")
    with pytest.raises(InputError, match=r"bad\.jsonl:2: not JSON"):
        list(read_records(tmp_path / "bad.jsonl"))
    with pytest.raises(InputError, match=r"x\.pdf: not a benchmark file; expected one of \.jsonl"):
        list(read_records(tmp_path / "x.pdf"))


def test_real_boolq_passages_are_found_in_wikipedia(shared: Path, tmp_path: Path) -> None:
    rows = pq.read_table(shared / "wiki" / "wiki_en.parquet").to_pylist()
    with CorpusWriter(tmp_path / "wiki", provenance={}) as writer:
        writer.write(documents([{**row, "meta": {}} for row in rows]))
    out, figures = run(
        tmp_path, "out", tmp_path / "wiki", [shared / "benchmarks" / "boolq", shared / "benchmarks" / "gsm8k"]
    )
    with (shared / "benchmarks" / "boolq" / "val_subset.jsonl").open(encoding="utf-8") as file:
        passages = "\n".join(json.loads(line)["query"] for line in file)
    held = {row["id"] for row in rows if row["text"].strip() in passages and len(row["text"].split()) >= 13}
    found = set(pq.read_table(out / "matches.parquet").column("id").to_pylist())
    assert len(held) > 1300
    assert held <= found
    assert all("boolq" in name for name in found)
    assert figures["benchmarks"]["test.jsonl"]["found"] == 0
