"""The weather stage: a corpus in, a labelled crawl out, the same bytes every time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from penjing.contract import Estimate, Job
from penjing.data.document import CorpusWriter, documents, open_corpus
from penjing.errors import InputError, Interrupted
from penjing.files import hash_tree
from penjing.stages import weather

TEXT = {"zh": "清晨的集市上，卖豆腐的老人推着车慢慢走过石桥，河面上有一层薄雾。第{n}天，他停下来，和卖花的姑娘说话。" * 2,
        "en": "On morning number {n} the baker opened the door, swept the step and looked at the river for a while. " * 2}


def corpus(path: Path, *, number: int = 40) -> Path:
    rows = [{"id": f"{lang}-{n}", "source": "s", "text": TEXT[lang].format(n=n), "lang": lang}
            for lang in TEXT for n in range(number)]
    rows += [{"id": "item", "source": "ins", "text": "问\n答", "lang": "zh", "meta": {"prompt": "问", "answer": "答"}}]
    with CorpusWriter(path, provenance={}) as writer:
        writer.write(documents(rows))
    return path


def test_the_same_settings_give_the_same_bytes(tmp_path: Path) -> None:
    source = corpus(tmp_path / "in")
    hashes = set()
    for name, workers in (("a", 1), ("b", 2)):
        (tmp_path / name).mkdir()
        (tmp_path / name / ".part-00000.parquet.99.tmp").write_bytes(b"left by a killed run")
        weather.run(weather.Config(), {"corpus": source}, tmp_path / name, Job(workers=workers))
        hashes.add(hash_tree(tmp_path / name))
    assert len(hashes) == 1


def test_a_stopped_run_leaves_no_corpus_and_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    source = corpus(tmp_path / "in")
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    with pytest.raises(Interrupted):
        weather.run(weather.Config(), {"corpus": source}, tmp_path / "a", Job(stop=lambda: True))
    assert not (tmp_path / "a" / "corpus.json").exists()
    for name in ("a", "b"):
        weather.run(weather.Config(), {"corpus": source}, tmp_path / name, Job())
    assert hash_tree(tmp_path / "a") == hash_tree(tmp_path / "b")


def test_the_figures_add_up_and_the_language_is_forgotten(tmp_path: Path) -> None:
    figures = weather.run(weather.Config(), {"corpus": corpus(tmp_path / "in")}, tmp_path / "out", Job())
    out = open_corpus(tmp_path / "out")
    funnel = figures["funnel"]
    came, went, added = (sum(item["documents"] for item in funnel[key].values()) for key in ("in", "out", "added"))
    assert came == 81 and came + added == went == out.documents == figures["documents"]
    assert sum(item["bytes"] for item in funnel["out"].values()) == out.text_bytes
    rows = [row for batch in out.batches() for row in batch.to_pylist()]
    assert {row["lang"] for row in rows if row["id"] != "item"} == {None}
    assert [row["lang"] for row in rows if row["id"] == "item"] == ["zh"]
    assert all("weather" in json.loads(row["meta"]) for row in rows if row["id"] != "item")
    assert json.loads(json.dumps(figures)) == figures


def test_an_empty_corpus_and_equal_ids_are_faults(tmp_path: Path) -> None:
    with CorpusWriter(tmp_path / "empty", provenance={}) as writer:
        writer.write(documents([]))
    with pytest.raises(InputError, match="the corpus holds no documents"):
        weather.run(weather.Config(), {"corpus": tmp_path / "empty"}, tmp_path / "out", Job())
    with CorpusWriter(tmp_path / "twice", provenance={}) as writer:
        writer.write(documents([{"id": "x", "source": "s", "text": "a"}] * 2))
    with pytest.raises(InputError, match="two documents are called 'x'; expected unique ids"):
        weather.run(weather.Config(), {"corpus": tmp_path / "twice"}, tmp_path / "out", Job())


def test_the_price_counts_what_is_added() -> None:
    price = weather.price(weather.Config(), {"corpus": Estimate(documents=100, text_bytes=1000)})
    assert price.documents == pytest.approx(120) and price.text_bytes == pytest.approx(1200)
    assert weather.price(weather.Config(), {"corpus": Estimate()}).documents is None
