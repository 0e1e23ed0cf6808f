"""Exercises: every equation holds, the answer is the last one, and the stories say the numbers they are worked with."""

from __future__ import annotations

import operator
import re

import pytest

from penjing.data.exercises import LANGUAGES, PREFIXES, TEMPLATES, Exercise, exercises, kinds

OPERATE = {"+": operator.add, "-": operator.sub, "×": operator.mul, "÷": operator.truediv}
EQUATION = re.compile(r"(\d+) ([-+×÷]) (\d+) = (\d+)")


@pytest.fixture(scope="module", params=LANGUAGES)
def problems(request: pytest.FixtureRequest) -> list[Exercise]:
    return list(exercises(request.param, 1500, seed=0))


def test_every_equation_holds_and_the_last_one_is_the_answer(problems: list[Exercise]) -> None:
    for item in problems:
        equations = EQUATION.findall(item.answer)
        assert 1 <= len(equations) <= 4
        for left, sign, right, result in equations:
            assert OPERATE[sign](int(left), int(right)) == int(result), item
        closing = item.answer.rsplit("答案是" if item.lang == "zh" else "answer is", 1)[1]
        assert int(re.findall(r"\d+", closing)[0]) == int(equations[-1][3]) == item.result > 0


def test_the_working_uses_numbers_of_the_story_or_earlier_results(problems: list[Exercise]) -> None:
    for item in problems:
        known = {int(number) for number in re.findall(r"\d+", item.prompt)} | {2}
        for left, _, right, result in EQUATION.findall(item.answer):
            assert {int(left), int(right)} <= known, item
            known.add(int(result))


def test_the_stories_contain_every_number_that_is_needed(problems: list[Exercise]) -> None:
    needed = {template.kind: {name for step in template.steps if step.zh for name in (step.left, step.right)}
              - {step.name for step in template.steps if step.zh} - {"two"} for template in TEMPLATES}
    for template in TEMPLATES:
        for story in (*template.zh, *template.en):
            assert needed[template.kind] <= set(re.findall(r"\{(\w+)\}", story)), story


def test_problems_are_many_and_all_different(problems: list[Exercise]) -> None:
    assert len({item.prompt for item in problems}) == len(problems) == 1500
    assert {item.kind for item in problems} == set(kinds()) and len(kinds()) >= 12
    stories = {re.sub(r"\d+", "#", item.prompt) for item in problems}
    assert len(stories) > 700
    assert not any("{" in item.text or "}" in item.text for item in problems)


def test_prompts_carry_the_prefixes_of_ziya2(problems: list[Exercise]) -> None:
    lang = problems[0].lang
    used = set()
    for item in problems:
        before, after = next(pair for pair in PREFIXES[lang] if item.prompt.startswith(pair[0]) and item.prompt.endswith(pair[1]))
        used.add(before)
        assert item.text == f"{item.prompt}\n{item.answer}" and after
    assert used == {before for before, _ in PREFIXES[lang]}


def test_seed_and_language_decide_everything() -> None:
    assert list(exercises("zh", 50, seed=4)) == list(exercises("zh", 50, seed=4))
    assert list(exercises("zh", 50, seed=4)) != list(exercises("zh", 50, seed=5))
    assert list(exercises("en", 50, seed=4)) == list(exercises("en", 80, seed=4))[:50]


def test_kinds_can_be_chosen_and_an_exhausted_kind_says_so() -> None:
    assert {item.kind for item in exercises("en", 40, seed=0, wanted=["sum", "area"])} == {"sum", "area"}
    with pytest.raises(ValueError, match=r"no more than \d+ different problems could be made in 'en'"):
        list(exercises("en", 60_000, seed=0, wanted=["area"]))
