"""The scorecard: a perfect cleaning gets full marks, none gets none, and every kind of mistake shows where it belongs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import penjing
from penjing.data.scorecard import Reason, scorecard, wilson
from penjing.data.weather import weather

SHARES = {"edited": 0.3, "copies": 0.1, "near_copies": 0.1, "mojibake": 0.1, "junk": 0.1, "tracking": 0.1}


@pytest.fixture(scope="module")
def crawl() -> list[dict[str, Any]]:
    import pydoc_data.topics

    path = Path(penjing.__file__).parent / "samples" / "prose_zh_a.jsonl"
    rows = [{"id": item["id"], "text": item["text"], "lang": "zh"} for item in map(json.loads, path.open(encoding="utf-8"))]
    rows += [{"id": name, "text": text, "lang": "en"} for name, text in pydoc_data.topics.topics.items() if len(text) < 5000]
    return weather([{**row, "url": None, "source": "s", "meta": "{}"} for row in rows], shares=SHARES, seed=3)


def label(row: dict[str, Any]) -> dict[str, Any]:
    return row["meta"]["weather"]


def perfect(crawl: list[dict[str, Any]]) -> dict[str, tuple[str, str | None]]:
    return {row["id"]: (label(row).get("clean_text", row["text"]), label(row)["lang"]) for row in crawl
            if label(row)["kind"] in ("clean", "edited")}


def rates(scores: dict[str, Any], name: str, lang: str = "all") -> dict[str, float | None]:
    return {kind: share["rate"] for kind, share in scores[name][lang].items()}


def test_a_perfect_cleaning_gets_full_marks(crawl: list[dict[str, Any]]) -> None:
    scores = scorecard(crawl, perfect(crawl))
    for lang in ("zh", "en", "all"):
        assert scores["recall"][lang]["rate"] == scores["precision"][lang]["rate"] == 1
        assert scores["lost_documents"][lang]["number"] == scores["characters_lost"][lang]["edited"]["number"] == 0
        assert set(rates(scores, "vanish", lang).values()) == set(rates(scores, "strings_gone", lang).values()) == {1}
        assert scores["clusters"][lang]["left_per_cluster"] == 1 and scores["language_right"][lang]["rate"] == 1
    assert len(rates(scores, "strings_gone")) == 13 and scores["examples"] == {}
    assert len(rates(scores, "vanish")) >= 12
    kinds = [label(row)["kind"] for row in crawl]
    assert scores["recall"]["all"]["of"] == sum(kind in ("copy", "near-copy", "junk", "mojibake") for kind in kinds)


def test_no_cleaning_gets_no_marks(crawl: list[dict[str, Any]]) -> None:
    scores = scorecard(crawl, {row["id"]: (row["text"], None) for row in crawl})
    assert scores["recall"]["all"]["rate"] == 0 and scores["precision"] == {}
    assert set(rates(scores, "vanish").values()) == set(rates(scores, "strings_gone").values()) == {0}
    assert scores["characters_lost"]["all"]["clean"]["number"] == 0 and scores["language_right"]["all"]["rate"] == 0
    assert scores["clusters"]["all"]["left"] == scores["clusters"]["all"]["documents"]


def test_dropping_everything_is_full_recall_and_every_cluster_lost(crawl: list[dict[str, Any]]) -> None:
    scores = scorecard(crawl, {})
    origins = {label(row)["origin"] for row in crawl if label(row)["origin"]}
    assert scores["recall"]["all"]["rate"] == 1
    assert scores["precision"]["all"]["of"] == len(crawl)
    assert scores["precision"]["all"]["number"] == len(crawl) - len(origins)
    assert scores["lost_documents"]["all"]["number"] == len(origins)


def test_a_copy_may_stay_in_place_of_its_original(crawl: list[dict[str, Any]]) -> None:
    left = perfect(crawl)
    copy = next(row for row in crawl if label(row)["kind"] == "near-copy")
    left[copy["id"]] = (copy["text"], label(copy)["lang"])
    del left[label(copy)["origin"]]
    scores = scorecard(crawl, left)
    assert scores["precision"]["all"]["rate"] == scores["recall"]["all"]["rate"] == 1
    left[label(copy)["origin"]] = ("both stay", "zh")
    assert scorecard(crawl, left)["vanish"]["all"][f"near-copy: {label(copy)['variant']}"]["rate"] < 1


def test_a_wrongly_dropped_document_names_the_rule(crawl: list[dict[str, Any]]) -> None:
    left = perfect(crawl)
    with_company = {label(row)["origin"] for row in crawl if label(row)["kind"] in ("copy", "near-copy", "mojibake")}
    alone = next(name for name in left if name not in with_company)
    del left[alone]
    scores = scorecard(crawl, left, reasons={alone: Reason("too-short")})
    assert scores["lost_documents"]["all"]["number"] == 1
    assert scores["precision"]["all"]["of"] - scores["precision"]["all"]["number"] == 1
    assert [item["value"] for item in scores["examples"]["wrongly dropped"]] == ["too-short"]


def test_a_natural_copy_is_not_lost_but_only_if_its_text_is_there(crawl: list[dict[str, Any]]) -> None:
    left = perfect(crawl)
    with_company = {label(row)["origin"] for row in crawl if label(row)["kind"] in ("copy", "near-copy", "mojibake")}
    alone, other = [name for name in left if name not in with_company][:2]
    text, lang = left.pop(alone)
    why = {alone: Reason("near", kept="page-between"), "page-between": Reason("near", kept=other)}
    assert scorecard(crawl, left, reasons=why)["lost_documents"]["all"]["number"] == 1
    left[other] = (f"{left[other][0]}\n{text}", lang)
    scores = scorecard(crawl, left, reasons=why)
    assert scores["lost_documents"]["all"]["number"] == 0 and scores["natural_copies"]["all"] == 1
    assert scores["precision"]["all"]["rate"] == 1
    assert scorecard(crawl, left)["lost_documents"]["all"]["number"] == 1


def test_lost_sentences_and_left_strings_are_counted(crawl: list[dict[str, Any]]) -> None:
    left = perfect(crawl)
    row = next(row for row in crawl if label(row)["kind"] == "edited" and label(row)["lang"] == "zh"
               and any(item["type"] == "navigation" for item in label(row)["defects"]))
    span = next(item["span_text"] for item in label(row)["defects"] if item["type"] == "navigation")
    clean = label(row)["clean_text"]
    first, rest = clean.split("。", 1)
    left[row["id"]] = (f"{span}\n{rest}", "zh")
    scores = scorecard(crawl, left)
    share = scores["strings_gone"]["zh"]["navigation"]
    assert share["of"] - share["number"] == 1
    lost = scores["characters_lost"]["zh"]["edited"]["number"]
    assert 0.5 * len(first) < lost <= len(first)


def test_repaired_mojibake_counts_as_gone_unless_its_original_stays_too(crawl: list[dict[str, Any]]) -> None:
    left = perfect(crawl)
    row = next(row for row in crawl if label(row)["variant"] == "gb18030-as-latin-1")
    left[row["id"]] = (row["text"].encode("latin-1").decode("gb18030"), "zh")
    kind = f"mojibake: {label(row)['variant']}"
    assert scorecard(crawl, left)["vanish"]["zh"][kind]["rate"] < 1
    del left[label(row)["origin"]]
    scores = scorecard(crawl, left)
    assert scores["vanish"]["zh"][kind]["rate"] == 1 and scores["lost_documents"]["all"]["number"] == 0
    left[row["id"]] = (row["text"], None)
    scores = scorecard(crawl, left)
    assert scores["lost_documents"]["all"]["number"] == 1 and scores["examples"]["mojibake left"][0]["id"] == row["id"]


def test_a_corpus_without_labels_is_refused() -> None:
    with pytest.raises(ValueError, match="no document carries weather labels"):
        scorecard([{"id": "a", "text": "b", "meta": {}}], {})


def test_wilson_agrees_with_published_values() -> None:
    # Newcombe (1998), Statistics in Medicine 17, table I, method 3.
    published = ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (29, 29, 0.8830, 1.0))
    for number, of, low, high in published:
        assert wilson(number, of) == pytest.approx((low, high), abs=6e-5)
