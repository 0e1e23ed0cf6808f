"""Known-bad documents of every defect class, planted into clean ones: what share of them do the automatic detectors see?

A detector that is never wrong about what it finds still says nothing about what it overlooks. Each class has several forms, from the
plain one to those that people use so as not to be found; the share of planted documents that are seen is given by form, with an exact
lower bound. It is the recall on these forms, not on the web: a form that nobody planted is a form that nobody counted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from penjing.data.audit.acceptance import lower_bound
from penjing.data.audit.indicators import Lexicon, defects

PER_CLASS = 60
"""Planted documents of each class: 60 of 60 seen shows a recall of 95.1% at 95%."""
_SURNAMES = "王李张刘陈杨赵黄周吴"
_WEIGHTS = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)

Form = Callable[[np.random.Generator], str]


def _digits(rng: np.random.Generator, number: int) -> str:
    return "".join(str(d) for d in rng.integers(0, 10, number))


def _mobile(rng: np.random.Generator) -> str:
    return f"1{rng.integers(3, 10)}{_digits(rng, 9)}"


def _resident(rng: np.random.Generator) -> str:
    body = f"{rng.integers(110000, 659000)}{rng.integers(1950, 2015)}{rng.integers(1, 13):02d}{rng.integers(1, 29):02d}{_digits(rng, 3)}"
    return body + "10X98765432"[sum(int(digit) * weight for digit, weight in zip(body, _WEIGHTS, strict=True)) % 11]


def _handle(rng: np.random.Generator) -> str:
    return f"abc{_digits(rng, 6)}"


def _spaced(text: str) -> str:
    return f"{text[:3]} {text[3:7]} {text[7:]}"


FORMS: dict[str, dict[str, Form]] = {
    "privacy": {
        "e-mail": lambda rng: f"联系邮箱 {_handle(rng)}@mail.example.com 。",
        "e-mail with (at)": lambda rng: f"write to {_handle(rng)} (at) example (dot) com",
        "e-mail, full width": lambda rng: f"邮箱：{_handle(rng)}＠example．com",
        "mobile number": lambda rng: f"{_SURNAMES[rng.integers(10)]}先生，电话{_mobile(rng)}。",
        "mobile number with spaces": lambda rng: f"手机 {_spaced(_mobile(rng))}",
        "mobile number with +86": lambda rng: f"call +86-{_mobile(rng)}",
        "resident number": lambda rng: f"身份证号{_resident(rng)}，",
        "resident number with spaces": lambda rng: f"证件 {(n := _resident(rng))[:6]} {n[6:14]} {n[14:]}",
    },
    "advertising": {
        "handle and offer": lambda rng: f"全场优惠，加微信：{_handle(rng)}咨询",
        "telephone and offer": lambda rng: f"加盟热线 400-{_digits(rng, 3)}-{_digits(rng, 4)}",
        "English": lambda rng: f"Limited offer! Buy now, whatsapp: {_handle(rng)}",
        "handle in disguise": lambda rng: f"全场优惠，加薇❤：{_handle(rng)}",
        "offer without a handle": lambda rng: "限时特价，点击购买，先到先得，欢迎选购！",
        "in two paragraphs": lambda rng: f"办证贷款\n\n微信：{_handle(rng)}",
    },
    "markup": {
        "tags": lambda rng: "<div class='c'><p>文字</p><br/><span>x</span></div>" * 9,
        "entities": lambda rng: "&nbsp;&lt;&gt;&amp;&quot;" * 9,
        "wiki": lambda rng: "{{Infobox|name=x}} [[File:a.png|thumb]] '''bold''' " * 9,
        "script": lambda rng: "function(){var a=document.getElementById('x');return a;} " * 9,
    },
    "garbled": {
        "replacement characters": lambda rng: "\ufffd" * 40,
        "GBK read twice": lambda rng: "锟斤拷锟斤拷" * 9,
        "UTF-8 as Windows-1252": lambda rng: "donâ€™t itâ€™s cafÃ© " * 9,
        "UTF-8 as GBK": lambda rng: "鐩嗘櫙鏄竴闂ㄥ彜鑰佺殑鑹烘湳" * 9,
        "random Han": lambda rng: "".join(chr(c) for c in rng.integers(0x4E00, 0x9FA5, 200)),
    },
}


def lexicon_forms(words: Sequence[str]) -> dict[str, Form]:
    """Forms of the class `toxic` out of the user's own words."""

    def word(rng: np.random.Generator) -> str:
        return words[int(rng.integers(len(words)))].strip()

    return {
        "as it is": lambda rng: f" {word(rng)} ",
        "upper case": lambda rng: f" {word(rng).upper()} ",
        "full width": lambda rng: " " + "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in word(rng)) + " ",
        "with a hidden character": lambda rng: f" {(w := word(rng))[:1]}\u200b{w[1:]} ",
    }


def detector_recall(
    hosts: Sequence[str], rng: np.random.Generator, *, toxic: Lexicon, words: Sequence[str] = (), confidence: float = 0.95
) -> dict[str, dict[str, object]]:
    """Per class: planted, found, recall with its lower bound, and found of planted by form. Nothing without a clean host.

    `hosts` are documents of the corpus; those that have a defect already are left out.
    """
    clean = [text for text in hosts if text and not any(defects(text, toxic=toxic).values())]
    if not clean:
        return {}
    report: dict[str, dict[str, object]] = {}
    words = [one for one in words if one.strip()]
    for name, forms in {**FORMS, **({"toxic": lexicon_forms(words)} if words else {})}.items():
        by_form = {form: [0, 0] for form in forms}
        for number in range(PER_CLASS):
            form = list(forms)[number % len(forms)]
            lines = clean[int(rng.integers(len(clean)))][:2000].split("\n")
            lines.insert(int(rng.integers(len(lines) + 1)), forms[form](rng))
            by_form[form][0] += defects("\n".join(lines), toxic=toxic)[name]
            by_form[form][1] += 1
        found = sum(seen for seen, _ in by_form.values())
        report[name] = {
            "planted": PER_CLASS,
            "found": found,
            "recall": found / PER_CLASS,
            "recall_low": lower_bound(found, PER_CLASS, alpha=1 - confidence),
            "forms": {form: f"{seen}/{planted}" for form, (seen, planted) in by_form.items()},
        }
    return report
