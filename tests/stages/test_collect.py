"""Collect: every kind of file in, equal results for any number of workers, damage counted with its place."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pytest

from penjing.config import parse
from penjing.contract import VOLATILE, Job
from penjing.data.document import open_corpus
from penjing.errors import InputError
from penjing.files import hash_tree
from penjing.stages import collect


def config(*sources: dict, **more: object) -> collect.Config:
    return parse(collect.Config, {"sources": list(sources), **more}, where="test")


def write_lines(path: Path, *rows: object) -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def test_samples_and_cpython_topics_become_a_corpus(tmp_path: Path) -> None:
    settings = config({"name": "zh", "path": "package:penjing.samples/prose_zh_a.jsonl"},
                      {"name": "topics", "path": "cpython:topics", "license": "PSF-2.0"})
    figures = collect.run(settings, {}, tmp_path, Job())
    corpus = open_corpus(tmp_path)
    assert figures["documents"] == corpus.documents > 100
    assert {"zh", "en"} <= set(corpus.languages)
    texts = pa.Table.from_batches(list(corpus.batches())).to_pylist()
    assert any("try" in row["text"] and row["id"] == "cpython/topics/exceptions" for row in texts)
    assert all(path.is_file() for path in collect.external(settings))


def test_docstrings_are_the_same_every_time_and_stop_at_the_limit(tmp_path: Path) -> None:
    settings = config({"name": "docs", "path": "cpython:docstrings", "limit_bytes": 60_000})
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        collect.run(settings, {}, tmp_path / name, Job(workers=2))
    assert hash_tree(tmp_path / "a", ignore=VOLATILE) == hash_tree(tmp_path / "b", ignore=VOLATILE)
    corpus = open_corpus(tmp_path / "a")
    texts = [row["text"] for row in pa.Table.from_batches(list(corpus.batches())).to_pylist()]
    assert len(set(texts)) == len(texts)
    assert 60_000 <= corpus.text_bytes < 60_000 + max(len(text.encode()) for text in texts)


def test_a_big_file_is_cut_into_units_that_give_every_line_once(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_lines(tmp_path / "big.jsonl", *({"id": f"{n}", "text": f"第{n}行 " * (n % 50 + 1)} for n in range(500)))
    monkeypatch.setattr(collect, "UNIT_BYTES", 4096)
    settings = config({"name": "big", "path": str(tmp_path / "big.jsonl")})
    for name, workers in (("one", 1), ("three", 3)):
        (tmp_path / name).mkdir()
        collect.run(settings, {}, tmp_path / name, Job(workers=workers))
    corpus = open_corpus(tmp_path / "one")
    assert len(corpus.shards) > 10
    ids = pa.Table.from_batches(list(corpus.batches())).column("id").to_pylist()
    assert ids == [str(n) for n in range(500)]
    assert hash_tree(tmp_path / "one", ignore=VOLATILE) == hash_tree(tmp_path / "three", ignore=VOLATILE)


def test_damaged_records_are_counted_and_named(tmp_path: Path) -> None:
    path = write_lines(
        tmp_path / "bad.jsonl", {"text": "good"}, "{not json", {"title": "no text"}, {"text": 5}, ["text"], "",
        {"text": "x" * 3000}, {"text": "again", "id": 7, "score": 0.5})
    settings = config({"name": "bad", "path": str(path)}, max_record_bytes=2048, max_damage=0.9)
    out = tmp_path / "out"
    out.mkdir()
    figures = collect.run(settings, {}, out, Job())
    assert figures["documents"] == 2 and figures["damaged_records"] == 5
    notes = [json.loads(line) for line in (out / "damaged" / "bad-00000.jsonl").read_text().splitlines()]
    assert [(note["offset"], note["what"]) for note in notes] == [
        (17, "not JSON"), (27, "no field 'text'"), (48, "field 'text' is int, not text"), (60, "not an object"),
        (70, "record longer than 2048 bytes")]
    funnel = figures["funnel"]
    dropped = sum(item["documents"] for item in funnel["dropped"].values())
    assert sum(i["documents"] for i in funnel["in"].values()) == dropped + sum(
        i["documents"] for i in funnel["out"].values())
    assert funnel["samples"][0]["id"] == "bad.jsonl:17"


def test_too_much_damage_stops_with_one_sentence(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "bad.jsonl", *["{broken"] * 3, {"text": "good"})
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(InputError) as caught:
        collect.run(config({"name": "bad", "path": str(path)}), {}, out, Job())
    assert str(caught.value) == (
        "bad.jsonl:0: 3 of 4 records of source 'bad' are damaged; found 3 times 'not JSON'; expected at most a share of "
        "0.05; see damaged/*.jsonl, repair the source or raise max_damage")


def test_a_gzip_file_cut_short_gives_what_is_there(tmp_path: Path) -> None:
    rows = [{"id": str(n), "text": f"{n * n * 7919} " * 90} for n in range(300)]
    whole = gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode(), mtime=0)
    (tmp_path / "cut.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    out = tmp_path / "out"
    out.mkdir()
    figures = collect.run(config({"name": "cut", "path": str(tmp_path / "cut.jsonl.gz")}), {}, out, Job())
    assert 50 < figures["documents"] < 300
    assert "damaged: compressed data is cut short" in figures["funnel"]["dropped"]


def test_ids_that_occur_twice_are_told_apart(tmp_path: Path) -> None:
    write_lines(tmp_path / "a.jsonl", {"id": "x", "text": "1"}, {"id": "y", "text": "2"}, {"id": "x", "text": "3"})
    write_lines(tmp_path / "b.jsonl", {"id": "x", "text": "4"}, {"id": "x#2", "text": "5"})
    out = tmp_path / "out"
    out.mkdir()
    figures = collect.run(config({"name": "s", "path": str(tmp_path / "*.jsonl")}), {}, out, Job())
    table = pa.Table.from_batches(list(open_corpus(out).batches()))
    assert table.column("id").to_pylist() == ["x", "y", "x#3", "x#4", "x#2"]
    assert figures["renamed_ids"] == 2


def test_nothing_to_read_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing to read here"):
        collect.run(config({"name": "s", "path": str(tmp_path / "*.jsonl")}), {}, tmp_path, Job())
    with pytest.raises(Exception, match=r"unknown collection 'cpython:topcis'.*did you mean 'topics'"):
        collect.external(config({"name": "s", "path": "cpython:topcis"}))


def test_an_interrupted_run_ends_with_the_same_files(tmp_path: Path) -> None:
    for n in range(4):
        write_lines(tmp_path / f"{n}.jsonl", *({"text": f"{n}-{i}"} for i in range(5)))
    settings = config({"name": "s", "path": str(tmp_path / "*.jsonl")})
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    collect.run(settings, {}, tmp_path / "a", Job())
    asked: list[int] = []
    with pytest.raises(BaseException, match="stopped on request"):
        collect.run(settings, {}, tmp_path / "b", Job(stop=lambda: asked.append(1) or len(asked) > 2))
    assert not (tmp_path / "b" / "corpus.json").exists()
    collect.run(settings, {}, tmp_path / "b", Job())
    assert hash_tree(tmp_path / "a", ignore=VOLATILE) == hash_tree(tmp_path / "b", ignore=VOLATILE)


def test_gb18030_csv_is_read_as_chinese(tmp_path: Path, shared: Path) -> None:
    settings = config({"name": "med", "path": str(shared / "dirty/encodings/medical_qa_gb18030.csv.gz"),
                       "text_field": "title+ask+answer", "lang": "zh"})
    figures = collect.run(settings, {}, tmp_path, Job())
    assert figures["encodings"] == {"gb18030": 1453}
    text = next(open_corpus(tmp_path).batches()).column("text")[0].as_py()
    assert sum("一" <= c <= "鿿" for c in text) > 0.6 * len(text)
