"""The filter stage: counts conserve, each rule is reported, bounds change without measuring again, workers change nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from penjing.config import parse
from penjing.contract import VOLATILE, Job
from penjing.data.document import CorpusWriter, documents, open_corpus
from penjing.errors import InputError
from penjing.files import hash_tree
from penjing.stages import filter as filter_stage

ZH = "盆景是一门古老的艺术，它把山水和树木放进小小的盆里。养盆景的人要有耐心，每天浇水，每年修剪。第{}年，小树就有了大树的样子。"
SETTINGS = {"rules": {"D01": {"zh": 40, "en": 20}}}


@pytest.fixture()
def corpus(tmp_path: Path) -> Path:
    place = tmp_path / "corpus"
    with CorpusWriter(place, provenance={"made": "by a test"}) as writer:
        for shard in range(2):
            rows = [{"id": f"good-{shard}-{n}", "text": ZH.format(n + 2), "lang": "zh", "source": "web"} for n in range(5)]
            rows += [{"id": f"short-{shard}", "text": "太短。", "lang": "zh", "source": "web"},
                     {"id": f"page-{shard}", "text": ZH.format(9) + "\n登录\n点赞 1234", "lang": "zh", "source": "web"},
                     {"id": f"code-{shard}", "text": "```\nx\n```", "lang": "code", "source": "code"},
                     {"id": f"poem-{shard}", "text": "短诗。", "lang": "zh", "source": "poems"}]
            writer.write(documents(rows), shard=f"part-{shard:05d}")
    return place


def run(corpus: Path, out: Path, settings: dict, *, workers: int = 1, measured: Path | None = None) -> dict:
    out.mkdir()
    config = parse(filter_stage.Config, {"exempt_sources": ["poems"], **settings}, where="test")
    return filter_stage.run(config, {"corpus": corpus, "measured": measured}, out, Job(workers=workers))


def test_counts_conserve_and_each_rule_is_reported(tmp_path: Path, corpus: Path) -> None:
    figures = run(corpus, tmp_path / "out", {"rules": {**SETTINGS["rules"], "P09": False}})
    funnel = figures["funnel"]
    total = {part: sum(item["documents"] for item in funnel[part].values()) for part in ("in", "out", "dropped")}
    assert total == {"in": 18, "out": 16, "dropped": 2}
    assert funnel["dropped"] == {"D01": {"documents": 2, "bytes": 18}}
    rules = {rule["id"]: rule for rule in json.loads((tmp_path / "out" / "rules.json").read_text())["rules"]}
    assert rules["D01"]["fired"] == 2 and rules["D01"]["bytes"] == 18
    assert rules["P06"]["fired"] == 4 and rules["P06"]["documents"] == 2
    assert rules["D01"]["retention_without"] == round(16 / 18, 6)  # the short ones break other rules too
    assert rules["D30"]["fired"] == 2
    gone = pq.read_table(tmp_path / "out" / "dropped" / "part-00000.parquet").to_pylist()
    assert [(row["id"], row["rule"], row["value"], row["bound"]) for row in gone] == [("short-0", "D01", 3.0, "< 40")]
    texts = {row["id"]: row["text"] for batch in open_corpus(tmp_path / "out").batches() for row in batch.to_pylist()}
    assert texts["page-1"] == ZH.format(9)
    assert texts["poem-0"] == "短诗。" and texts["code-0"] == "```\nx\n```"
    assert {sample["rule"] for sample in funnel["samples"]} >= {"D01", "P06", "P07"}
    assert figures["histograms"]["characters"]["zh"]["bounds"] == ["< 40"]


def test_changed_bounds_use_the_statistics_again_and_give_the_same(tmp_path: Path, corpus: Path,
                                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    run(corpus, tmp_path / "first", SETTINGS)
    other = {"rules": {"D01": {"zh": 4, "en": 20}, "D29": {"zh": 0.9}}}
    fresh = run(corpus, tmp_path / "fresh", other)
    monkeypatch.setattr("penjing.data.kernels.grams._grams", None)  # measuring again would fail
    again = run(corpus, tmp_path / "again", other, measured=tmp_path / "first")
    assert again == fresh
    assert hash_tree(tmp_path / "again", ignore=VOLATILE) == hash_tree(tmp_path / "fresh", ignore=VOLATILE)
    with CorpusWriter(tmp_path / "other", provenance={"made": "elsewhere"}) as writer:
        writer.write(documents([{"id": "a", "text": "x", "source": "s"}]))
    with pytest.raises(InputError, match="these statistics are not of this corpus"):
        run(tmp_path / "other", tmp_path / "wrong", SETTINGS, measured=tmp_path / "first")


def test_workers_do_not_change_the_result(tmp_path: Path, corpus: Path) -> None:
    one = run(corpus, tmp_path / "one", SETTINGS)
    two = run(corpus, tmp_path / "two", SETTINGS, workers=2)
    assert one == two
    assert hash_tree(tmp_path / "one", ignore=VOLATILE) == hash_tree(tmp_path / "two", ignore=VOLATILE)
