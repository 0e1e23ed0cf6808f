"""Arithmetic word problems in Chinese and English with worked answers, right by construction.

A small stand-in for the worked mathematics of Ziya2's third stage. A problem is a `Template`: names of numbers with
the values they may take, one to four steps of arithmetic over them, and the same story in two languages. Every
equation in an answer is written by the code that computed it, so no answer can be wrong; the stories vary in names,
things, wording and prompt prefix (`问题：… 回答：…`, `Question: … Answer: …` and their kin, Ziya2, appendix A).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from penjing.config import generator

LANGUAGES = ("zh", "en")
PREFIXES = {
    "zh": (("问题：", "回答："), ("题目：", "解答："), ("问：", "答：")),
    "en": (("Question: ", "Answer:"), ("Problem: ", "Solution:"), ("Q: ", "A:")),
}
CLOSINGS = {"zh": ("答案是{n}{unit}。", "所以答案是{n}{unit}。"), "en": ("The answer is {n}.", "So the answer is {n}.")}
NAMES = {
    "zh": ("小明", "小红", "小华", "李雷", "王芳", "小刚", "阿青", "张丽", "小雨", "大川", "陈静", "小宁"),
    "en": ("Anna", "Ben", "Carla", "David", "Emma", "Frank", "Grace", "Henry", "Ivy", "Jack", "Lena", "Oscar"),
}
THINGS = {
    "zh": (("个", "苹果"), ("支", "铅笔"), ("本", "练习本"), ("颗", "糖"), ("张", "邮票"), ("块", "积木"), ("个", "橘子"), ("枚",
           "贝壳")),
    "en": (("", "apples"), ("", "pencils"), ("", "notebooks"), ("", "sweets"), ("", "stamps"), ("", "blocks"), ("", "oranges"),
           ("", "shells")),
}
SIGNS = {"+": "+", "-": "-", "*": "×", "/": "÷"}


@dataclass(frozen=True)
class Step:
    """One line of the working: `name` = `left` `sign` `right`, and what is said about it."""

    name: str
    left: str
    sign: str
    right: str
    zh: str
    en: str


@dataclass(frozen=True)
class Template:
    """A story in two languages. `numbers` are drawn in order; a bound may be a number or the name of an earlier one.

    Each pair in `multiples` names a number and the factor it is multiplied by once both are drawn, so that divisions
    come out even. The answer is the last step's number; `unit` follows it in Chinese.
    """

    kind: str
    numbers: dict[str, tuple[int | str, int | str]]
    steps: tuple[Step, ...]
    zh: tuple[str, ...]
    en: tuple[str, ...]
    unit: str
    multiples: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Exercise:
    """One problem: prompt (with its prefixes), worked answer, the number it comes to, kind and language."""

    kind: str
    lang: str
    prompt: str
    answer: str
    result: int

    @property
    def text(self) -> str:
        """Prompt and answer as one text."""
        return f"{self.prompt}\n{self.answer}"


TEMPLATES: tuple[Template, ...] = (
    Template(
        "sum", {"a": (3, 60), "b": (3, 60)},
        (Step("r", "a", "+", "b", "把两部分合起来", "Put both parts together"),),
        ("{who}有{a}{m}{thing}，{other}又送来{b}{m}。{who}现在一共有多少{m}{thing}？",
         "{who}上午数了{a}{m}{thing}，下午数了{b}{m}，一天共数了多少{m}？"),
        ("{who} has {a} {thing} and gets {b} more from {other}. How many {thing} does {who} have now?",
         "{who} counts {a} {thing} in the morning and {b} in the afternoon. How many {thing} is that in the whole day?"), "{m}"),
    Template(
        "difference", {"b": (3, 40), "a": ("b", 90)},
        (Step("r", "a", "-", "b", "从原来的数里去掉用掉的", "Take away what is gone"),),
        ("{who}有{a}{m}{thing}，送给{other}{b}{m}，还剩多少{m}？",
         "盒子里有{a}{m}{thing}，{who}拿走了{b}{m}，盒子里还有多少{m}？"),
        ("{who} has {a} {thing} and gives {b} of them to {other}. How many {thing} are left?",
         "There are {a} {thing} in a box and {who} takes out {b}. How many {thing} stay in the box?"), "{m}"),
    Template(
        "product", {"a": (2, 12), "b": (3, 20)},
        (Step("r", "a", "*", "b", "每份的数量乘以份数", "Multiply the number in each by the number of them"),),
        ("{who}买了{a}袋{thing}，每袋{b}{m}，一共有多少{m}？",
         "{who}有{a}个盒子，每个盒子装{b}{m}{thing}，一共装了多少{m}{thing}？"),
        ("{who} buys {a} bags with {b} {thing} in each bag. How many {thing} are there in all?",
         "{who} fills {a} boxes and puts {b} {thing} into every box. How many {thing} does {who} need?"), "{m}"),
    Template(
        "quotient", {"k": (2, 9), "a": (3, 20)},
        (Step("r", "a", "/", "k", "总数除以人数", "Divide the total by the number of children"),),
        ("{who}把{a}{m}{thing}平均分给{k}个小朋友，每人得到多少{m}？", "{k}个同学平分{a}{m}{thing}，每个同学分到多少{m}？"),
        ("{who} shares {a} {thing} equally among {k} children. How many {thing} does each child get?",
         "{k} friends of {who} split {a} {thing} into equal parts. How many {thing} are in one part?"), "{m}", (("a", "k"),)),
    Template(
        "compare", {"a": (5, 60), "d": (2, 30)},
        (Step("b", "a", "+", "d", "先算多的那个人有多少", "First find how many the other one has"),
         Step("r", "a", "+", "b", "再把两个人的加起来", "Then add both together")),
        ("{who}有{a}{m}{thing}，{other}比{who}多{d}{m}。两人一共有多少{m}？",
         "{who}收集了{a}{m}{thing}，{other}比{who}多收集了{d}{m}，他们一共收集了多少{m}？"),
        ("{who} has {a} {thing}. {other} has {d} more than {who}. How many {thing} do they have together?",
         "{who} finds {a} {thing} and {other} finds {d} more than that. How many {thing} do the two find?"), "{m}"),
    Template(
        "times-as-many", {"a": (3, 25), "k": (2, 6)},
        (Step("b", "a", "*", "k", "先算另一个人的数量", "First find the larger number"),
         Step("r", "b", "-", "a", "再求相差多少", "Then find the difference")),
        ("{who}有{a}{m}{thing}，{other}的数量是{who}的{k}倍。{other}比{who}多多少{m}？",
         "{who}收集了{a}{m}{thing}，{other}收集的是{who}的{k}倍，{other}多收集了多少{m}？"),
        ("{who} has {a} {thing} and {other} has {k} times as many. How many more {thing} does {other} have than {who}?",
         "{other} collects {k} times as many {thing} as {who}, who has {a}. By how many is {other} ahead?"), "{m}"),
    Template(
        "shopping", {"p": (2, 15), "n": (2, 8), "q": (3, 20)},
        (Step("c", "p", "*", "n", "先算{thing}的钱", "First find the price of the {thing}"),
         Step("r", "c", "+", "q", "再加上书包挂件的钱", "Then add the price of the ticket")),
        ("{thing}每{m}{p}元，{who}买了{n}{m}，又买了一个{q}元的书包挂件，一共花了多少元？",
         "{who}去买东西：{thing}{n}{m}，每{m}{p}元；书包挂件一个，{q}元。一共要付多少元？"),
        ("{who} buys {n} {thing} for {p} dollars each and a ticket for {q} dollars. How many dollars does {who} spend?",
         "Each of the {n} {thing} costs {p} dollars and a ticket costs {q} dollars. What does {who} pay in all, in dollars?"),
        "元"),
    Template(
        "change", {"p": (2, 9), "n": (2, 9), "k": (1, 40)},
        (Step("c", "p", "*", "n", "先算要付的钱", "First find the price"),
         Step("m0", "c", "+", "k", "", ""),
         Step("r", "m0", "-", "c", "用付出的钱减去价钱", "Take the price from the money paid")),
        ("{thing}每{m}{p}元，{who}买了{n}{m}，付了{m0}元，应找回多少元？",
         "{who}带了{m0}元，买了{n}{m}{thing}，每{m}{p}元，还剩多少元？"),
        ("{who} buys {n} {thing} for {p} dollars each and pays with {m0} dollars. How many dollars come back?",
         "With {m0} dollars in hand {who} buys {n} {thing} at {p} dollars apiece. How many dollars are left?"), "元"),
    Template(
        "speed", {"v": (3, 90), "t": (2, 9)},
        (Step("r", "v", "*", "t", "路程等于速度乘以时间", "Distance is speed times time"),),
        ("一辆车每小时行{v}千米，{t}小时行多少千米？", "{who}坐的船每小时走{v}千米，走了{t}小时，一共走了多少千米？"),
        ("A car drives {v} kilometres every hour. How many kilometres does it drive in {t} hours?",
         "The boat of {who} goes {v} kilometres per hour for {t} hours. How far does it go, in kilometres?"), "千米"),
    Template(
        "rectangle", {"b": (2, 20), "a": ("b", 40)},
        (Step("h", "a", "+", "b", "先算一条长加一条宽", "First add the length and the width"),
         Step("r", "h", "*", "two", "周长是它的两倍", "The way around is twice that")),
        ("一块长方形菜地长{a}米，宽{b}米，绕它走一圈是多少米？", "{who}给长{a}米、宽{b}米的长方形花坛围篱笆，要多少米篱笆？"),
        ("A garden is {a} metres long and {b} metres wide. How many metres is it to walk around it once?",
         "{who} puts a fence around a field {a} metres long and {b} metres wide. How many metres of fence are needed?"), "米"),
    Template(
        "area", {"b": (2, 20), "a": ("b", 30)},
        (Step("r", "a", "*", "b", "面积等于长乘以宽", "The area is length times width"),),
        ("{who}的房间长{a}米，宽{b}米，面积是多少平方米？", "一个长方形操场长{a}米，宽{b}米，它的面积是多少平方米？"),
        ("The room of {who} is {a} metres long and {b} metres wide. How many square metres is it?",
         "A rectangle is {a} metres by {b} metres. What is its area in square metres?"), "平方米"),
    Template(
        "saving", {"s": (5, 60), "w": (2, 15), "n": (2, 10)},
        (Step("c", "w", "*", "n", "先算后来存的钱", "First find what is saved later"),
         Step("r", "s", "+", "c", "再加上原来的钱", "Then add the money from the start")),
        ("{who}有{s}元，以后每星期存{w}元，{n}个星期后一共有多少元？",
         "存钱罐里原有{s}元，{who}每星期放进{w}元，放了{n}个星期，现在有多少元？"),
        ("{who} has {s} dollars and saves {w} dollars every week. How many dollars are there after {n} weeks?",
         "A jar holds {s} dollars. {who} adds {w} dollars a week for {n} weeks. How many dollars are in it then?"), "元"),
    Template(
        "share-the-rest", {"k": (2, 6), "e": (2, 12), "g": (2, 15)},
        (Step("rest", "g", "*", "k", "", ""), Step("a", "rest", "+", "e", "", ""),
         Step("left", "a", "-", "e", "先去掉吃掉的", "First take away what was used"),
         Step("r", "left", "/", "k", "剩下的平均分", "Then divide the rest")),
        ("{who}有{a}{m}{thing}，自己用了{e}{m}，剩下的平均分给{k}个朋友，每人分到多少{m}？",
         "一箱{thing}有{a}{m}，先拿走{e}{m}，其余平均装进{k}个袋子，每袋多少{m}？"),
        ("{who} has {a} {thing}, uses {e} of them and shares the rest equally among {k} friends. How many does each friend get?",
         "Out of {a} {thing} {who} keeps {e} and packs the others evenly into {k} bags. How many {thing} are in a bag?"), "{m}"),
    Template(
        "work", {"x": (4, 30), "y": (4, 30), "t": (2, 9)},
        (Step("s", "x", "+", "y", "先算两人一小时做多少", "First find what both make in an hour"),
         Step("r", "s", "*", "t", "再乘以小时数", "Then multiply by the hours")),
        ("{who}每小时做{x}个零件，{other}每小时做{y}个，两人一起做{t}小时，共做多少个？",
         "甲每小时包{x}个饺子，乙每小时包{y}个饺子，一起包{t}小时，一共包多少个？"),
        ("{who} makes {x} parts an hour and {other} makes {y}. How many parts do they make together in {t} hours?",
         "In one hour {who} folds {x} paper birds and {other} folds {y}. How many birds do they fold in {t} hours?"), "个"),
    Template(
        "train", {"a": (20, 90), "d0": (2, 19), "u": (2, 30)},
        (Step("s", "a", "-", "d0", "先减去下车的人", "First take away the people who get off"),
         Step("r", "s", "+", "u", "再加上上车的人", "Then add the people who get on")),
        ("车厢里有{a}人，到站后下去{d0}人，又上来{u}人，现在有多少人？",
         "公交车上原有{a}名乘客，这一站下了{d0}名，上了{u}名，车上现在有多少名乘客？"),
        ("There are {a} people on a train. At a station {d0} get off and {u} get on. How many people are on the train now?",
         "{who} counts {a} people on a bus. Then {d0} leave and {u} come in. How many people does {who} count now?"), "人"),
    Template(
        "market", {"p": (2, 9), "n": (2, 6), "q": (2, 9), "k": (2, 6), "e": (1, 20)},
        (Step("c", "p", "*", "n", "先算{thing}的钱", "First find the price of the {thing}"),
         Step("d", "q", "*", "k", "再算面包的钱", "Then find the price of the bread"),
         Step("both", "c", "+", "d", "两样加起来", "Add both prices"),
         Step("r", "both", "+", "e", "再加上路费", "Then add the bus fare")),
        ("{who}买了{n}{m}{thing}，每{m}{p}元，又买了{k}个面包，每个{q}元，来回路费{e}元，一共花了多少元？",
         "{thing}每{m}{p}元，面包每个{q}元。{who}买了{n}{m}{thing}和{k}个面包，还付了{e}元路费，共用去多少元？"),
        ("{who} buys {n} {thing} at {p} dollars each and {k} loaves of bread at {q} dollars each, and pays {e} dollars for "
         "the bus. How many dollars is that?",
         "The {thing} cost {p} dollars each and bread costs {q} dollars a loaf. {who} takes {n} {thing} and {k} loaves and pays "
         "{e} dollars for the bus. What is the sum in dollars?"), "元"),
    Template(
        "two-legs", {"v": (3, 60), "t": (2, 6), "w": (3, 20), "u": (2, 6)},
        (Step("c", "v", "*", "t", "先算坐车的路程", "First find the way by car"),
         Step("d", "w", "*", "u", "再算骑车的路程", "Then find the way by bicycle"),
         Step("r", "c", "+", "d", "最后加起来", "Add both parts")),
        ("{who}先坐了{t}小时车，每小时{v}千米，又骑了{u}小时自行车，每小时{w}千米，一共走了多少千米？",
         "{who}去看{other}，坐车{t}小时，车速每小时{v}千米，再骑车{u}小时，每小时{w}千米，全程多少千米？"),
        ("{who} drives for {t} hours at {v} kilometres per hour and then rides a bicycle for {u} hours at {w} kilometres per "
         "hour. How many kilometres is the trip?",
         "To visit {other}, {who} spends {t} hours in a car going {v} kilometres per hour and {u} hours on a bicycle going {w} "
         "kilometres per hour. How far is it, in kilometres?"), "千米"),
)
"""The stories. A step with nothing said about it only makes a number for the story and is not shown."""


def kinds() -> tuple[str, ...]:
    """Names of the kinds of problems, in the order of `TEMPLATES`."""
    return tuple(template.kind for template in TEMPLATES)


def exercises(lang: str, count: int, *, seed: int, wanted: Sequence[str] = ()) -> Iterator[Exercise]:
    """`count` different problems in `lang`, the kinds in turn; `wanted` empty = all kinds.

    Raises ValueError when the templates do not hold so many different problems.
    """
    chosen = [template for template in TEMPLATES if not wanted or template.kind in wanted]
    rng = generator(seed, "exercises", lang)
    seen: set[str] = set()
    for index in range(count):
        for _ in range(200):
            item = compose(chosen[index % len(chosen)], lang, rng)
            if item.prompt not in seen:
                break
        else:
            raise ValueError(f"no more than {index} different problems could be made in '{lang}'")
        seen.add(item.prompt)
        yield item


def compose(template: Template, lang: str, rng: np.random.Generator) -> Exercise:
    """One problem of a template: numbers drawn, steps computed, story told."""
    values = _draw(template, rng)
    who, other = (NAMES[lang][i] for i in rng.permutation(len(NAMES[lang]))[:2])
    measure, thing = _one(THINGS[lang], rng)
    words: dict[str, Any] = {"who": who, "other": other, "m": measure, "thing": thing}
    lines = []
    for step in template.steps:
        left, right = values[step.left], values[step.right]
        values[step.name] = _apply(step.sign, left, right)
        said = getattr(step, lang).format(**words)
        if said:
            equation = f"{left} {SIGNS[step.sign]} {right} = {values[step.name]}"
            lines.append(f"{said}：{equation}。" if lang == "zh" else f"{said}: {equation}.")
    story = _one(getattr(template, lang), rng).format(**words, **values)
    before, after = _one(PREFIXES[lang], rng)
    result = values[template.steps[-1].name]
    closing = _one(CLOSINGS[lang], rng).format(n=result, unit=template.unit.format(**words) if lang == "zh" else "")
    joint = "" if lang == "zh" else " "
    return Exercise(template.kind, lang, f"{before}{story}\n{after}", joint.join([*lines, closing]), result)


def _draw(template: Template, rng: np.random.Generator) -> dict[str, int]:
    values = {"two": 2}
    for name, (low, high) in template.numbers.items():
        least = values[low] + 1 if isinstance(low, str) else low
        most = values[high] if isinstance(high, str) else high
        values[name] = int(rng.integers(least, most + 1))
    for name, factor in template.multiples:
        values[name] *= values[factor]
    return values


def _apply(sign: str, left: int, right: int) -> int:
    if sign == "/":
        whole, rest = divmod(left, right)
        assert rest == 0, "templates divide multiples only"
        return whole
    return {"+": left + right, "-": left - right, "*": left * right}[sign]


def _one(options: Sequence[Any], rng: np.random.Generator) -> Any:
    return options[int(rng.integers(0, len(options)))]
