"""Weather: labelled, deterministic, and nothing touched that is not said to be."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import penjing
from penjing.data.weather import EDITS, JUNK, edited, garbled, junk, nearly, resident_id, weather

SHARES = {"edited": 0.2, "copies": 0.05, "near_copies": 0.06, "mojibake": 0.03, "junk": 0.06, "tracking": 0.1}


def prose() -> list[dict[str, Any]]:
    """The shipped Chinese pages and the language reference that CPython carries."""
    import pydoc_data.topics

    rows = []
    for name in ("prose_zh_a", "prose_zh_b"):
        path = Path(penjing.__file__).parent / "samples" / f"{name}.jsonl"
        for line in path.read_text(encoding="utf-8").splitlines():
            item = json.loads(line)
            rows.append({"id": item["id"], "url": None, "source": "prose", "text": item["text"], "lang": "zh", "meta": "{}"})
    for name, text in pydoc_data.topics.topics.items():
        rows.append({"id": name, "url": None, "source": "topics", "text": text, "lang": None, "meta": "{}"})
    return rows


@pytest.fixture(scope="module")
def crawl() -> list[dict[str, Any]]:
    return weather(prose(), shares=SHARES, seed=0)


def label(row: dict[str, Any]) -> dict[str, Any]:
    return row["meta"]["weather"]


def test_about_a_third_is_touched_in_every_way_and_language(crawl: list[dict[str, Any]]) -> None:
    touched = [row for row in crawl if label(row)["kind"] != "clean"]
    assert 0.25 < len(touched) / len(crawl) < 0.4
    kinds = Counter((label(row)["lang"], label(row)["kind"]) for row in crawl)
    for lang in ("zh", "en"):
        for kind in ("clean", "edited", "copy", "near-copy", "mojibake", "junk"):
            assert kinds[lang, kind] >= 1, (lang, kind)
        types = {item["type"] for row in crawl if label(row)["lang"] == lang for item in label(row)["defects"]}
        assert types == {*EDITS, "html-script"} - ({"traditional"} if lang == "en" else set())


def test_every_label_is_true(crawl: list[dict[str, Any]]) -> None:
    clean = {row["id"]: row["text"] for row in prose()}
    for row in crawl:
        mark = label(row)
        for item in mark["defects"]:
            wanted = item.get("token") or item["span_text"]
            assert wanted not in mark["clean_text"]
            if mark["kind"] in ("edited", "copy"):
                assert wanted in row["text"], (row["id"], item)
        if mark["kind"] == "clean":
            assert row["text"] == clean[row["id"]] and mark["origin"] == row["id"] and not mark["defects"]
        elif mark["kind"] == "edited":
            assert mark["clean_text"] == clean[row["id"]] != row["text"]
        elif mark["kind"] == "junk":
            assert mark["origin"] is None and row["text"] not in clean.values()
        else:
            assert mark["origin"] in clean and row["id"] not in clean
    assert set(clean) <= {row["id"] for row in crawl}


def test_copies_are_exact_and_stand_under_another_address(crawl: list[dict[str, Any]]) -> None:
    by_id = {row["id"]: row for row in crawl}
    copies = [row for row in crawl if label(row)["kind"] == "copy"]
    assert {label(row)["variant"] for row in copies} == {"other-url", "tracking-url"}
    for row in copies:
        original = by_id[label(row)["origin"]]
        assert row["text"] == original["text"] and row["url"] != original["url"]
        same_page = row["url"].split("?")[0] == original["url"].split("?")[0]
        assert same_page == (label(row)["variant"] == "tracking-url")


def test_near_copies_differ_as_much_as_they_say() -> None:
    text = "\n".join(row["text"] for row in prose()[:5])
    rng = np.random.default_rng(0)
    for rate in (1, 3):
        copy = nearly(text, f"edit-{rate}%", "zh", rng)
        same = sum(block.size for block in matching(text, copy))
        assert 0.6 * rate / 100 < 1 - same / max(len(text), len(copy)) < 1.4 * rate / 100
    letters = re.compile(r"[^\w]+")
    for variant in ("punctuation", "emoji"):
        copy = nearly(text, variant, "zh", rng)
        assert copy != text and letters.sub("", copy) == letters.sub("", text)
    assert nearly(text, "same-url", "zh", rng).startswith(text)


def matching(a: str, b: str) -> list[Any]:
    from difflib import SequenceMatcher

    return SequenceMatcher(None, a, b, autojunk=False).get_matching_blocks()


def test_neither_order_nor_company_changes_a_document(crawl: list[dict[str, Any]]) -> None:
    assert weather(prose()[::-1], shares=SHARES, seed=0) == crawl
    other = weather(prose(), shares=SHARES, seed=1)
    assert [row["id"] for row in other] != [row["id"] for row in crawl]
    assert {row["id"] for row in other if label(row)["kind"] == "edited"} != {
        row["id"] for row in crawl if label(row)["kind"] == "edited"}
    ids = [row["id"] for row in crawl]
    assert len(set(ids)) == len(ids)
    places = [ids.index(row["id"]) for row in prose()]
    assert places != sorted(places)


def test_supervised_items_pass_untouched() -> None:
    items = [{"id": f"s{i}", "url": None, "source": "ins", "text": "问题：一加一等于几？\n二" * 9, "lang": "zh",
              "meta": json.dumps({"prompt": "问题：一加一等于几？", "answer": "二"})} for i in range(20)]
    out = weather(items, shares=dict.fromkeys(SHARES, 1.0), seed=0)
    assert sorted(out, key=lambda row: row["id"]) == sorted(
        ({**row, "meta": json.loads(row["meta"])} for row in items), key=lambda row: row["id"])


def test_two_documents_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="two documents are called 'zh-a-0001'"):
        weather([prose()[0], prose()[0]], shares=SHARES, seed=0)


def test_no_share_leaves_every_text_alone() -> None:
    out = weather(prose(), shares=dict.fromkeys(SHARES, 0.0), seed=0)
    assert {row["id"]: row["text"] for row in out} == {row["id"]: row["text"] for row in prose()}


def test_traditional_characters_go_back_to_the_text_they_came_from() -> None:
    import opencc

    text = prose()[1]["text"]
    changed, defects = edited(text, "zh", ["traditional"], np.random.default_rng(0))
    back = opencc.OpenCC("t2s").convert(changed)
    assert len(defects) > 10 and sum(a == b for a, b in zip(back, text, strict=True)) / len(text) > 0.99


def test_resident_ids_carry_the_check_digit_of_gb_11643() -> None:
    weights = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
    for seed in range(50):
        number = resident_id(np.random.default_rng(seed))
        total = sum(int(digit) * weight for digit, weight in zip(number, weights, strict=False))
        assert len(number) == 18 and number[17] == "10X98765432"[total % 11]
    checksum_of_the_standard = sum(int(d) * w for d, w in zip("11010519491231002", weights, strict=True)) % 11
    assert "10X98765432"[checksum_of_the_standard] == "X"


def test_mojibake_of_gb18030_can_be_read_back() -> None:
    text = prose()[2]["text"]
    wrong = garbled(text, wrote="gb18030", read="latin-1")
    assert not re.search("[\u4e00-\u9fff]", wrong) and wrong.encode("latin-1").decode("gb18030") == text


@pytest.mark.parametrize("lang", ["zh", "en"])
@pytest.mark.parametrize("variant", JUNK)
def test_junk_pages_differ_from_draw_to_draw(variant: str, lang: str) -> None:
    pages = {junk(variant, lang, np.random.default_rng(seed))[0] for seed in range(12)}
    assert len(pages) >= (3 if variant == "stub" else 10) and all(pages)
