"""Explain shows every rule with its measure, value, bound and verdict."""

from __future__ import annotations

from penjing.data.explain import describe, explain
from penjing.data.rules import load

ZH = "盆景是一门古老的艺术，它把山水和树木放进小小的盆里。养盆景的人要有耐心，每天浇水，每年修剪。"


def test_every_rule_has_a_line_and_the_reason_names_value_and_bound() -> None:
    found = explain(ZH)
    assert {line.rule for line in found.lines} >= {rule.id for rule in load("ziya2").rules}
    assert (found.lang, found.kept, found.reason) == ("zh", False, "D01: 46, < 200")
    line = next(line for line in found.lines if line.rule == "D01")
    assert (line.measure, line.value, line.bound, line.verdict) == ("characters", 46.0, "< 200", "drop")
    assert found.table().num_rows == len(found.lines)
    assert describe("document", "characters") == "Characters, white space included."


def test_cuts_and_edits_are_shown_with_the_text_that_stays() -> None:
    rules = load("ziya2", overrides={"D01": {"zh": 20}, "P09": False})
    found = explain(ZH + "\n登录\n", rules=rules)
    assert found.kept and found.text == ZH
    line = next(line for line in found.lines if line.rule == "P06")
    assert (line.verdict, line.text) == ("cut", "登录")


def test_another_language_stops_at_normalisation() -> None:
    found = explain("Это обычный русский текст, который не нужен в этом корпусе.")
    assert not found.kept and found.reason.startswith("DP6-language: ")
