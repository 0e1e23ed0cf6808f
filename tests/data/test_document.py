"""What a corpus on disk promises: counts from footers, whole or absent, equal bytes for equal documents."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from penjing.data.document import (
    SCHEMA,
    CorpusWriter,
    ShardWriter,
    documents,
    export_jsonl,
    finish_corpus,
    open_corpus,
    shard_batches,
)
from penjing.errors import InputError

ROWS = [
    {"id": "a", "text": "盆景是艺术。", "lang": "zh", "source": "books", "meta": {"page": 3}},
    {"id": "b", "text": "A tree in a tray.", "lang": "en", "source": "books", "url": "http://x/b"},
    {"id": "c", "text": "", "lang": None, "source": "web"},
]


def test_counts_and_documents_come_back(tmp_path: Path) -> None:
    with CorpusWriter(tmp_path, provenance={"stage": "test"}) as writer:
        writer.write(documents(ROWS[:2]))
        writer.write(documents(ROWS[2:]), shard="part-00001")
    corpus = open_corpus(tmp_path)
    assert corpus.documents == 3
    assert corpus.text_bytes == 18 + 17
    assert corpus.languages == {"": {"documents": 1, "bytes": 0}, "en": {"documents": 1, "bytes": 17},
                                "zh": {"documents": 1, "bytes": 18}}
    assert corpus.manifest["sources"] == {"books": {"documents": 2, "bytes": 35}, "web": {"documents": 1, "bytes": 0}}
    assert corpus.manifest["provenance"] == {"stage": "test"}
    table = pa.Table.from_batches(list(corpus.batches()))
    assert table.schema.equals(SCHEMA)
    assert table.column("id").to_pylist() == ["a", "b", "c"]
    assert table.column("meta").to_pylist() == ['{"page": 3}', "{}", "{}"]


def test_batch_sizes_do_not_change_the_bytes(tmp_path: Path) -> None:
    table = documents({"id": str(n), "text": f"text {n} " * (n % 7), "source": "s"} for n in range(20_000))
    for name, step in (("one", 20_000), ("many", 777)):
        with ShardWriter(tmp_path / f"{name}.parquet") as writer:
            for start in range(0, 20_000, step):
                writer.write(table.slice(start, step))
    assert (tmp_path / "one.parquet").read_bytes() == (tmp_path / "many.parquet").read_bytes()


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), CorpusWriter(tmp_path, provenance={}) as writer:
        writer.write(documents(ROWS))
        raise RuntimeError("stop")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(InputError, match=r"no corpus\.json here; expected a finished corpus"):
        open_corpus(tmp_path)


def test_a_vanished_or_damaged_shard_is_named(tmp_path: Path) -> None:
    with CorpusWriter(tmp_path, provenance={}) as writer:
        writer.write(documents(ROWS))
    corpus = open_corpus(tmp_path)
    shard = corpus.shards[0]
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"part-00000\.parquet: shard is damaged"):
        list(corpus.batches())
    shard.unlink()
    with pytest.raises(InputError, match="1 of 1 shards are missing"):
        open_corpus(tmp_path)
    with pytest.raises(InputError, match="shard is missing"):
        finish_corpus(tmp_path, provenance={}, keep=["part-00000"])


def test_shards_of_others_are_counted_from_their_columns(tmp_path: Path) -> None:
    table = pa.table({"id": ["a"], "text": ["四个汉字"], "lang": ["zh"], "source": ["x"]})
    pq.write_table(table, tmp_path / "p.parquet")
    assert finish_corpus(tmp_path, provenance={}).languages == {"zh": {"documents": 1, "bytes": 12}}


def test_row_groups_and_batches_are_bounded_in_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("penjing.data.document.ROW_GROUP_BYTES", 10_000)
    monkeypatch.setattr("penjing.data.document.BATCH_BYTES", 3_000)
    table = documents({"id": str(n), "text": "x" * (n * 37 % 2500), "source": "s"} for n in range(200))
    for name, step in (("one", 200), ("many", 7)):
        with ShardWriter(tmp_path / f"{name}.parquet") as writer:
            for start in range(0, 200, step):
                writer.write(table.slice(start, step))
    assert (tmp_path / "one.parquet").read_bytes() == (tmp_path / "many.parquet").read_bytes()
    assert pq.ParquetFile(tmp_path / "one.parquet").num_row_groups > 15
    batches = list(shard_batches(tmp_path / "one.parquet"))
    assert max(sum(map(len, batch.column("text").to_pylist())) for batch in batches) <= 3_000
    assert pa.Table.from_batches(batches).equals(table)


@pytest.mark.parametrize("compress", [True, False])
def test_a_corpus_goes_out_as_json_lines_and_comes_back(tmp_path: Path, compress: bool) -> None:
    from penjing.data.readers import Options, read

    with CorpusWriter(tmp_path / "corpus", provenance={}) as writer:
        writer.write(documents(ROWS))
    (path,) = export_jsonl(open_corpus(tmp_path / "corpus"), tmp_path / "out", compress=compress)
    rows = [row for row in read(str(path), Options()) if isinstance(row, dict)]
    assert [(row["id"], row["text"]) for row in rows] == [(row["id"], row["text"]) for row in ROWS]
    assert rows[0]["meta"] == {"page": 3, "origin": "books"}
