"""Normalisation's promises, step by step, on real characters."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penjing.data.document import documents
from penjing.data.kernels import to_column, views
from penjing.data.kernels.rewrite import NATURAL, SIMPLIFY, rewrite
from penjing.data.normalise import Settings, normalise


def clean(text: str, *, lang: str | None = None, source: str = "web", **more: object) -> str:
    """The text after normalisation; the reason when it was dropped."""
    result = normalise(documents([{"id": "a", "text": text, "lang": lang, "source": source}]), Settings(**more))
    if result.dropped.num_rows:
        return "dropped: " + result.dropped.column("rule")[0].as_py()
    return result.kept.column("text")[0].as_py()


ZH = "这是一段普通的中文文字"
EN = "This is a plain English sentence of some length"


@pytest.mark.parametrize(("before", "after"), [
    (f"{ZH}\u200b和\ufeff控制\x07字符\u00ad", f"{ZH}和控制字符"),  # DP3
    (f"{ZH}\r\n第二行\r第三行", f"{ZH}\n第二行\n第三行"),  # DP2
    (f"  {ZH}\u3000\u3000 空格\t。 \n\n\n\n\n  第二段 ", f"{ZH} 空格 。\n\n第二段"),  # DP4
    (f"{ZH}ＡＢＣ１２３，！（）：；①②½10²㎡", f"{ZH}ABC123，！（）：；①②½10²㎡"),  # DP5: not NFKC
    ("繁體中文的頭髮和發展，乾隆皇帝的乾淨餅乾，瞭望台", "繁体中文的头发和发展，乾隆皇帝的干净饼干，瞭望台"),  # DP8
    (f"{ZH}😀👨\u200d👩\u200d👧★✦■25°C ™ № ℃", f"{ZH}25°C ™ № ℃"),  # DP9
    (f"{ZH}！！！！！！真的。。。。。", f"{ZH}！！！真的。。。"),  # DP10
    (f"{ZH}...然后……完", f"{ZH}……然后……完"),
    (f"{EN}…… and so on......", f"{EN}... and so on..."),
    ("#### Heading of the fourth level\n\nThis is the text under the heading.",
     "#### Heading of the fourth level\n\nThis is the text under the heading."),
    (f"{ZH}&amp;amp;amp; &lt;b&gt; &nbsp;x &unknown; &", f"{ZH}&amp; <b> x &unknown; &"),  # two passes
    (f"{EN} cafe\u0301", f"{EN} café"),  # NFC
])
def test_steps(before: str, after: str) -> None:
    assert clean(before) == after


def test_fenced_code_and_urls_keep_their_characters() -> None:
    text = (f"{ZH}，網址 http://x.cn/繁體/路徑 體。\n\n"
            "```python\nx  =  '繁體'   # ★ !!!!!!\n\tif  y:\n\n\n\n        pass\n```\n尾巴體")
    assert clean(text) == (f"{ZH}，网址 http://x.cn/繁體/路徑 体。\n\n```python\nx  =  '繁體'   # ★ !!!!!!\n\tif  y:"
                           "\n\n\n\n        pass\n```\n尾巴体")


def test_code_sources_are_fenced_with_their_layout() -> None:
    row = {"id": "a", "text": "def f():\r\n\treturn '★体'\x00  \n", "source": "code", "meta": {"language": "Python"}}
    kept = normalise(documents([row]), Settings(code_sources=("code",))).kept
    assert kept.column("text")[0].as_py() == "```python\ndef f():\n\treturn '★体'\n```"
    assert kept.column("lang")[0].as_py() == "code"


def test_share_of_traditional_is_kept_in_meta() -> None:
    kept = normalise(documents([{"id": "a", "text": "繁體字體", "source": "s", "meta": {"x": 1}}]), Settings()).kept
    assert json.loads(kept.column("meta")[0].as_py()) == {"t2s": 0.5, "x": 1}


@pytest.mark.parametrize(("text", "reason"), [
    ("Это обычный русский текст, который не нужен в этом корпусе.", "DP6-language"),
    ("これは日本語の文章です。漢字と仮名が混ざっています。", "DP6-language"),
    ("坏文件" + "\ufffd" * 3 + "中文文字", "DP1-garbled"),
    ("\u200b\n ", "DP3-empty"),
])
def test_what_is_not_wanted_is_dropped_with_its_step(text: str, reason: str) -> None:
    assert clean(text) == f"dropped: {reason}"


def test_hints_decide_only_what_is_uncertain() -> None:
    assert clean("foo bar", lang="en") == "foo bar"
    assert clean(ZH, lang="en") == ZH


def test_simplification_equals_opencc(shared: Path) -> None:
    import gzip

    import opencc

    with gzip.open(shared / "wiki/wiki_zh.jsonl.gz") as file:
        rows = [json.loads(line) for line in file]
    texts = [row["text"] for row in rows if row.get("script") == "traditional"][:150]
    plain = np.full(len(texts), NATURAL, np.uint8)
    data, offsets = views(pa.array(texts, pa.large_string()))
    before = to_column(*rewrite(data, offsets, plain)[:2]).to_pylist()
    after = to_column(*rewrite(data, offsets, plain | SIMPLIFY)[:2]).to_pylist()
    convert = opencc.OpenCC("t2s").convert
    assert len(texts) == 150 and before != after
    assert after == [convert(text) for text in before]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.text(alphabet=st.characters(codec="utf-8"), max_size=60), min_size=1, max_size=5),
       st.integers(0, 31))
def test_any_text_gives_valid_text_and_twice_is_once(texts: list[str], plan: int) -> None:
    data, offsets = views(pa.array(texts, pa.large_string()))
    plans = np.full(len(texts), plan, np.uint8)
    once = to_column(*rewrite(data, offsets, plans)[:2])
    once.validate(full=True)
    again = to_column(*rewrite(*views(once), plans)[:2])
    again.validate(full=True)
    assert again.to_pylist() == once.to_pylist()
