"""Rules: measures equal plain definitions, rule sets load whole, bounds are data, edits do what they say and stay linear."""

from __future__ import annotations

import random
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penjing.data import rules
from penjing.data.kernels import views
from penjing.data.kernels.words import spans_of
from penjing.data.measures import LEVELS, edits, measures
from penjing.data.measures import names as measure_names
from penjing.data.rules_apply import apply, facts_of, measured
from penjing.errors import ConfigError

ZH = ("盆景是一门古老的艺术，它把山水和树木放进小小的盆里。养盆景的人要有耐心，每天浇水，每年修剪。"
      "日子久了，小树就有了大树的样子。")
EN = ("A bonsai is a tree that lives in a shallow tray. The grower has to be patient, and the work of many years shows in the "
      "shape of the trunk. Water it with care. Prune it in spring. Look at it often.")


def measure_one(text: str, lang: str = "en", name: str = "ziya2", words: list[str] | None = None) -> dict[str, float]:
    """Every document measure of one text."""
    chosen = rules.load(name)
    column = pa.array([text], pa.large_string())
    given_words = spans_of(*views(column), [words]) if words is not None else None
    facts = facts_of(column, [lang], [None], chosen, rules.phrase_lists(), words=given_words)
    return {key: float(value[0]) for key, value in measured(facts, chosen).items()}


def run(texts: list[str], lang: str, chosen: rules.RuleSet, lexicons: dict | None = None):
    facts = facts_of(pa.array(texts, pa.large_string()), [lang] * len(texts), [None] * len(texts), chosen,
                     rules.phrase_lists(lexicons))
    return apply(facts, chosen)


def test_every_rule_set_loads_and_the_table_is_whole() -> None:
    assert rules.names() == ["c4", "fineweb", "fineweb2-zh", "gopher", "gopher-calibrated", "ziya2"]
    for name in rules.names():
        assert rules.load(name).rules
    ids = {rule.id for rule in rules.load("ziya2").rules}
    for letter, count in (("D", 44), ("P", 16), ("S", 15)):
        for number in range(1, count + 1):
            key = f"{letter}{number:02d}"
            assert any(one == key or (one.startswith(key) and len(one) == 4) for one in ids), key
    assert all(rule.source for rule in rules.load("ziya2").rules)


def test_every_measure_is_documented() -> None:
    for level in ("document", "paragraph", "sentence"):
        for name, function in measures(level).items():
            assert function.__doc__, name
    assert all(function.__doc__ for function in edits.EDITS.values())


def test_bounds_are_data() -> None:
    chosen = rules.load("ziya2", overrides={"D01": {"zh": 40, "en": False}, "D27": 0.5, "P03": False})
    by_id = {rule.id: rule for rule in chosen.rules}
    assert by_id["D01"].bounds == {"zh": 40.0}
    assert by_id["D27f"].bounds == {"zh": 0.5, "en": 0.5}
    assert "P03" not in by_id


@pytest.mark.parametrize(("overrides", "message"), [
    ({"D99": 1}, "no rule 'D99' in rule set 'ziya2'"),
    ({"D01": "many"}, "rule D01: zh: wrong bound; found 'many'; expected a number, or false to switch it off"),
    ({"D13": 3}, r"rule D13: zh: wrong bound; found 3; expected \[low, high\]"),
    ({"D01": {"fr": 3}}, "rule D01: unknown language 'fr'; expected one of zh, en"),
])
def test_wrong_bounds_are_said(overrides: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        rules.load("ziya2", overrides=overrides)


def test_a_rule_file_with_a_typo_is_said(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('version = 1\n[[rule]]\nid = "X"\nlevel = "document"\naction = "drop"\n'
                    'measure = "digit_shar"\ntest = ">"\nzh = 1\n')
    with pytest.raises(ConfigError, match=r"unknown document measure 'digit_shar'.*did you mean 'digit_share'"):
        rules.load(str(path))


def reference_repetition(words: list[str], text: str) -> dict[str, float]:
    """Gopher's repetition figures written plainly."""
    result = {}
    for n in (2, 3, 4):
        grams = [" ".join(words[i : i + n]) for i in range(len(words) - n + 1)]
        if grams:
            gram, number = Counter(grams).most_common(1)[0]
            result[f"top_{n}_gram"] = len(gram) * number / len(text)
    for n in range(5, 11):
        seen, repeated, index = set(), 0, 0
        while index < len(words) - n + 1:
            gram = tuple(words[index : index + n])
            if gram in seen:
                repeated += sum(map(len, gram))
                index += n
            else:
                seen.add(gram)
                index += 1
        result[f"duplicate_{n}_grams"] = repeated / len(text)
    return result


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from(["a", "bb", "c", "树", "dd,", "木", "x1"]), min_size=1, max_size=80))
def test_repetition_equals_the_plain_definition(words: list[str]) -> None:
    text = " ".join(words)
    found = measure_one(text, name="gopher", words=words)
    for name, value in reference_repetition(words, text).items():
        assert found[name] == pytest.approx(value, abs=1e-6), name


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from(["", "  ", "one line", "one more line", "- item", "• dot", "ends...", "Done.", "三个字"]),
                max_size=14))
def test_line_figures_equal_the_plain_definition(parts: list[str]) -> None:
    import re

    text = "\n".join(parts)
    found = measure_one(text, name="gopher") | measure_one(text, name="fineweb")
    pieces = re.split("\n+", text)
    again = [piece for index, piece in enumerate(pieces) if piece in pieces[:index]]
    if text:
        assert found["duplicate_lines"] == pytest.approx(len(again) / len(pieces))
        assert found["duplicate_line_characters"] == pytest.approx(sum(map(len, again)) / len(text))
    every = text.splitlines()
    if every:
        bullets = sum(line.lstrip().startswith(("•", "-")) for line in every)
        assert found["bullet_lines_gopher"] == pytest.approx(bullets / len(every))
        dots = sum(line.rstrip().endswith(("...", "…")) for line in every)
        assert found["ellipsis_lines_gopher"] == pytest.approx(dots / len(every))
    filled = [line for line in text.split("\n") if line.strip()]
    if filled:
        assert found["short_lines"] == pytest.approx(sum(len(line) <= 30 for line in filled) / len(filled))
        assert found["terminal_lines_fineweb"] == pytest.approx(sum(line.endswith(".") for line in filled) / len(filled))
    paragraphs = re.split(r"\n{2,}", text.strip())
    again = [piece for index, piece in enumerate(paragraphs) if piece in paragraphs[:index]]
    if text.strip() and all(line.strip() or not line for line in parts):
        assert found["duplicate_paragraphs"] == pytest.approx(len(again) / len(paragraphs))


def test_good_text_passes_the_whole_table_unchanged() -> None:
    chosen = rules.load("ziya2", overrides={"D01": {"zh": 30, "en": 20}})
    for text, lang in ((ZH, "zh"), (EN, "en")):
        done = run([text], lang, chosen)
        assert done.keep[0], (done.rule[0], done.value[0], done.bound[0])
        assert done.texts[0].as_py() == text


@pytest.mark.parametrize(("text", "lang", "rule"), [
    ("短文。", "zh", "D01"),
    (ZH + "\n\n" + "\n\n".join(["第一天浇水修剪晒太阳换盆土。"] * 30), "zh", "D23"),
    ("lorem ipsum dolor sit amet. " + EN * 2, "en", "D38"),
    ("{ } { } { }" + EN, "en", "D37"),
    (EN + " \ufffd\ufffd", "en", "D42"),
    ("<p><b>x</b></p><div><i>y</i></div>" + EN, "en", "D41"),
])
def test_bad_text_is_dropped_by_its_rule(text: str, lang: str, rule: str) -> None:
    chosen = rules.load("ziya2", overrides={"D01": {"zh": 30, "en": 20}})
    done = run([text], lang, chosen)
    assert done.tallies[rule].fired == 1, [key for key, item in done.tallies.items() if item.fired]
    assert not done.keep[0] and done.bound[0]


def test_paragraphs_and_sentences_are_cut_and_the_rest_stays() -> None:
    text = "\n".join([
        ZH, "登录", "点赞 1234", "请阅读我们的隐私政策再继续使用本站。",
        "加微信 abc12345 领取优惠，限时秒杀包邮。", "| 甲 | 乙 | 丙 |",
        "第二段也是一段完整的话[12]，访问 http://x.cn/a 或写信到 a@b.com ，"
        "电话 13812345678。",
        "```", "登录", "| a | b | c |", "```", "哈哈哈哈哈哈哈，真有意思。", ZH, "最后一句没有写完……"])
    done = run([text], "zh", rules.load("ziya2", overrides={
        "D01": {"zh": 30}, **dict.fromkeys(("P09", "D24", "D25", "D26", "D27", "D29", "D22", "D17"), False)}))
    assert done.keep[0], done.rule[0]
    assert done.texts[0].as_py() == "\n".join([
        ZH, "第二段也是一段完整的话，访问 或写信到 <email> ，电话 <phone>。", "```", "登录", "| a | b | c |", "```",
        "哈哈，真有意思。"])
    for rule in ("P06", "P07", "P04", "P11", "P14", "P15", "S02", "S03", "S05", "S10", "P12", "S14"):
        assert done.tallies[rule].fired >= 1, rule


def test_lexicons_are_the_operators_files(tmp_path: Path) -> None:
    (tmp_path / "strict.txt").write_text("# a comment\nbadword\n坏词\n")
    chosen = rules.load("ziya2", overrides={"D01": {"zh": 30, "en": 20}, "P10d": False})
    lexicons = {"strict": [str(tmp_path / "strict.txt")]}
    done = run([EN + "\nThis line has a BADWORD in it.\nThis one has badwordish only, as a part."], "en", chosen, lexicons)
    assert done.texts[0].as_py() == EN + "\nThis one has badwordish only, as a part."
    assert done.tallies["P10"].fired == 1
    with pytest.raises(ConfigError, match=r"unknown lexicon 'strct'.*did you mean 'strict'"):
        rules.phrase_lists({"strct": []})


@pytest.mark.parametrize(("edit", "before", "after"), [
    ("identities", "身份证11010519491231002X和110105194912310021", "身份证<id>和110105194912310021"),
    ("addresses", "8.8.8.8 and 192.168.1.1 and 999.1.1.1", "<ip> and 192.168.1.1 and 999.1.1.1"),
    ("mobiles", "13812345678, 138123456789, 23812345678", "<phone>, 138123456789, 23812345678"),
    ("handles", "QQ：123456789，微信号 abc_12345，版本 123456", "QQ：<handle>，微信号 <handle>，版本 123456"),
    ("repeated_units", "哈哈哈哈哈 10000000 ---- abcabcabcabc", "哈哈 10000000 ---- abcabc"),
    ("han_spaces", "中 文 abc 中文", "中文 abc 中文"),
    ("citations", "见[12]和[edit]。a[i]", "见和。a[i]"),
    ("read_more", "正文到此。阅读全文>>", "正文到此。"),
])
def test_edits(edit: str, before: str, after: str) -> None:
    assert edits.EDITS[edit](before) == after


@pytest.mark.parametrize("text", ["a" * 40_000, "1." * 20_000, "a@" * 20_000, "http://" * 6_000, "微信：" * 12_000, "[1" * 20_000,
                                  "ab" * 20_000, "中 " * 20_000, "read more" * 4_000, "1" * 40_000])
def test_edits_stay_linear_on_hostile_text(text: str) -> None:
    def seconds(part: str) -> float:
        began = time.process_time()
        for function in edits.EDITS.values():
            function(part)
        return time.process_time() - began

    short, long = max(seconds(text[: len(text) // 8]), 1e-3), seconds(text)
    assert long < 40 * short + 0.2


PIECES = ["1", "12", "a", "A", ".", "-", "_", "+", "@", ":", "/", "//", "://", "www.", "http", "[", "]", "[edit", "[注 ", " ", "  ",
          "中", "，", "微信", "QQ", "号", "：", "vx", "read more", "点击查看", ">", "…", "&", "&#", "&#x", ";", "amp", "k+", "阅读", "1,",
          "x.", "%", "\t"]


@pytest.mark.parametrize("seed", range(6))
def test_edits_stay_linear_on_fuzzed_text(seed: int) -> None:
    """Short pieces of what the patterns look for, repeated: eight times the text may cost no more than a linear pattern's share."""
    from penjing.data import normalise
    from penjing.data.measures import paragraph

    chance = random.Random(seed)
    functions = {**edits.EDITS, "entity": lambda text: normalise._ENTITY.sub("", text),
                 "counter": lambda text: paragraph._COUNTER.sub("", text)}
    for _ in range(20):
        unit = "".join(chance.choice(PIECES) for _ in range(chance.randint(1, 5)))
        tail = "".join(chance.choice(PIECES) for _ in range(chance.randint(0, 2)))
        for name, function in functions.items():
            spent = []
            for size in (4_000, 32_000):
                text = unit * (size // len(unit)) + tail
                best = 1e9
                for _ in range(2):
                    began = time.process_time()
                    function(text)
                    best = min(best, time.process_time() - began)
                spent.append(best)
            assert spent[1] < 30 * spent[0] + 0.02, (name, unit, tail, spent)


def test_repetition_of_very_large_documents_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("penjing.data.rules_apply.LARGEST_COUNTED", 300)
    chosen = rules.load("ziya2")
    facts = facts_of(pa.array([EN * 3, EN], pa.large_string()), ["en", "en"], [None, None], chosen, rules.phrase_lists())
    found = measured(facts, chosen)
    assert found["duplicate_5_grams"][0] == 0 and found["words"][0] == 3 * found["words"][1]
    assert found["word_entropy"][1] > 3


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(alphabet=st.characters(codec="utf-8"), max_size=200), min_size=1, max_size=4),
       st.sampled_from(["zh", "en", ""]))
def test_any_text_goes_through_the_whole_table(texts: list[str], lang: str) -> None:
    done = run(texts, lang, rules.load("ziya2", overrides={"D01": {"zh": 0, "en": 0}}))
    done.texts.validate(full=True)
    assert len(done.texts) == len(texts)
    assert all(np.isfinite(values).all() for values in done.stats.values())
    if lang == "":
        assert done.texts.to_pylist() == texts and done.keep.all()


def test_a_share_exactly_at_its_bound_is_not_beyond_it() -> None:
    rule = next(rule for rule in rules.load("gopher").rules if rule.id == "dup_para_frac")
    shares = np.array([3 / 10, 0.300001, 0.299999], np.float32)
    assert rule.fires(shares, "en").tolist() == [False, True, False]


@pytest.mark.parametrize("level", LEVELS)
def test_measure_names_read_from_the_source_are_those_of_the_module(level: str) -> None:
    assert measure_names(level) == tuple(measures(level))
