"""Odd and broken corpora go through every cleaning stage counted, or stop with one clear sentence; nothing is lost in silence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from penjing.contract import Job
from penjing.data.document import CorpusWriter, documents, open_corpus
from penjing.errors import InputError
from penjing.stages import audit, decontaminate, dedup, hold_out, mixture, perplexity_model, score

ODD: list[dict[str, Any]] = [
    {"id": "null-text", "text": None, "lang": "en", "source": "s"},
    {"id": "null-lang", "text": "some words without a language", "lang": None, "source": "s"},
    {"id": None, "text": "a document without a name", "lang": "en", "source": "s"},
    {"id": "null-source", "text": "a document without a source", "lang": "en", "source": None},
    {"id": "empty", "text": "", "lang": "zh", "source": "s"},
    {"id": "blank", "text": " \n\t\n ", "lang": "zh", "source": "s"},
    {"id": "nul", "text": "a\0b\0c\ufffd\ufeff\u200b", "lang": "en", "source": "s"},
    {"id": "emoji", "text": "👨‍👩‍👧‍👦❤️🏴󠁧󠁢󠁥󠁮󠁧󠁿", "lang": "zh", "source": "s"},
    {"id": "twice", "text": "one of two documents with one name", "lang": "en", "source": "s"},
    {"id": "twice", "text": "the other of two documents with one name", "lang": "en", "source": "s"},
    {"id": "bad-url", "text": "an address that is none", "lang": "en", "source": "s", "url": "http://[::1"},
    {"id": "line", "text": "字" * 300_000, "lang": "zh", "source": "s"},
    {"id": "word", "text": "w" * 600_000, "lang": "en", "source": "s"},
    {"id": "marks", "text": "e" + "\u0301" * 50_000, "lang": "en", "source": "s"},
    {"id": "tags", "text": "<b>" * 30_000, "lang": "en", "source": "s"},
    {"id": "lines", "text": "\n" * 200_000 + "x", "lang": "en", "source": "s"},
    {"id": "plain", "text": "河水流向大海。云遮住了月亮。", "lang": "zh", "source": "s"},
]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    with CorpusWriter(path, provenance={}) as writer:
        writer.write(documents(rows[::2]), "part-00000")
        writer.write(documents(rows[1::2]), "part-00001")
    return path


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("odd") / "corpus", ODD)


@pytest.fixture(scope="module")
def model(odd: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("model")
    perplexity_model.run(perplexity_model.Config(order=3, arpa=False), {"corpus": odd}, out, Job())
    return out


STAGES: dict[str, Callable[[Path, Path, Path], tuple[ModuleType, Any, dict[str, Any]]]] = {
    "dedup": lambda odd, model, bench: (dedup, dedup.Config(paragraphs="line"), {"corpus": odd, "old": None}),
    "score": lambda odd, model, bench: (score, score.Config(), {"corpus": odd, "model": model, "frozen": None}),
    "hold_out": lambda odd, model, bench: (hold_out, hold_out.Config(fraction=0.5), {"corpus": odd}),
    "decontaminate": lambda odd, model, bench: (
        decontaminate,
        decontaminate.Config(),
        {"corpus": odd, "benchmarks": [bench]},
    ),
    "mixture": lambda odd, model, bench: (mixture, mixture.Config(epochs=2), {"corpora": [odd]}),
}


@pytest.mark.parametrize("name", STAGES)
def test_odd_documents_are_counted_and_conserved(name: str, odd: Path, model: Path, tmp_path: Path) -> None:
    bench = tmp_path / "bench.txt"
    bench.write_text(
        "a benchmark line of more than thirteen words that is nowhere in the corpus we look at here\n", encoding="utf-8"
    )
    stage, config, inputs = STAGES[name](odd, model, bench)
    out = tmp_path / "out"
    out.mkdir()
    funnel = stage.run(config, inputs, out, Job())["funnel"]
    total = {key: sum(item[key] for item in funnel["in"].values()) for key in ("documents", "bytes")}
    assert total == {"documents": len(ODD), "bytes": sum(len((row["text"] or "").encode()) for row in ODD)}
    for key in total:
        parts = [item[key] for part in ("out", "dropped") for item in funnel[part].values()]
        edited = sum(item[key] for item in funnel["edited"].values()) if key == "bytes" else 0
        assert sum(parts) + edited == total[key]
    if name != "mixture":
        assert open_corpus(out).documents == sum(item["documents"] for item in funnel["out"].values())


def test_an_audit_reads_odd_documents(odd: Path, tmp_path: Path) -> None:
    report = audit.run(audit.Config(), {"corpus": odd, "reference": odd, "marks": None}, tmp_path, Job())
    assert report["metrics"]["markup"]["examples"] == ["tags"]
    assert report["sampled"] == len(ODD)
    assert {item["state"] for item in report["drift"].values()} == {"steady"}


@pytest.mark.parametrize("name", STAGES)
def test_a_shard_that_is_gone_or_damaged_is_named(name: str, model: Path, tmp_path: Path) -> None:
    source = write(tmp_path / "corpus", ODD[:4])
    bench = tmp_path / "bench.txt"
    bench.write_text("a line\n", encoding="utf-8")
    stage, config, inputs = STAGES[name](source, model, bench)
    (source / "part-00001.parquet").write_bytes(b"PAR1 nothing PAR1")
    (tmp_path / "out").mkdir()
    with pytest.raises(InputError, match=r"part-00001\.parquet: shard is damaged"):
        stage.run(config, inputs, tmp_path / "out", Job())
    (source / "part-00001.parquet").unlink()
    with pytest.raises(InputError, match=r"1 of 2 shards are missing; found no part-00001\.parquet"):
        stage.run(config, inputs, tmp_path / "out", Job())
