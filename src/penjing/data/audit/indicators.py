"""Automatic measures of one document: hard defects (level 1), readability and information (level 2), make-up (level 3).

Hard defects make a document unqualified. The others are only compared with a reference corpus. Patterns are linear on any text.
"""

from __future__ import annotations

import math
import re
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import date
from typing import Literal

DefectClass = Literal["privacy", "advertising", "markup", "garbled", "toxic"]
DEFECTS: tuple[DefectClass, ...] = ("privacy", "advertising", "markup", "garbled", "toxic")
"""The hard defect classes, in the order they are reported."""
LEVEL_2 = ("information", "entropy_bits", "sentence_characters", "punctuation_share", "digit_share")
_TAG = re.compile(r"</?[a-zA-Z][a-zA-Z0-9]{0,15}(?:\s[^<>]{0,300})?/?>|&(?:nbsp|amp|lt|gt|quot|#\d{1,6});")
_EMAIL = re.compile(
    r"(?<![\w.+-])[A-Za-z0-9_][\w.+-]{0,63}@[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63}){1,4}(?![\w-])", re.ASCII
)
_MOBILE = re.compile(r"(?<!\d)1[3-9]\d{9}(?!\d)")
_RESIDENT = re.compile(r"(?<!\d)(\d{6})(\d{4})(\d{2})(\d{2})(\d{3})([\dXx])(?!\d)")
_HANDLE = re.compile(
    r"(?i)(?:QQ|微信|微信号|weixin|wechat|vx|加v|telegram|whatsapp)\s{0,3}[:：号群]{0,2}\s{0,3}[A-Za-z0-9_-]{5,20}"
    r"|(?<!\d)1[3-9]\d{9}(?!\d)|(?<!\d)(?:400|800)-?\d{3}-?\d{4}(?!\d)"
)
_AD = re.compile(
    "优惠|折扣|代理|加盟|招商|免费咨询|点击购买|立即下单|包邮|促销|代开|办证|贷款|返利"
    "|(?i:buy now|order now|discount|free shipping|limited offer|click here|coupon|casino)"
)
_GARBLED = re.compile("\ufffd|锟斤拷|烫烫烫|屯屯屯|â€[™œ\x9d“”]|Ã[©¨¢¤¶¼\xad]|ï»¿")
_SENTENCE = re.compile(r"[。！？!?；;\n]|\.(?=\s|$)")
_RESIDENT_WEIGHTS = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
MARKUP_PER_CHARACTERS = 200
"""More than one tag per so many characters is a markup defect."""
GARBLED_SHARE = 0.001

Lexicon = Callable[[str], bool]


def lexicon(words: Sequence[str]) -> Lexicon:
    """A test for any of the given words: whole words in alphabetic scripts, substrings elsewhere. Empty lists never match."""
    wanted = sorted({word.strip().lower() for word in words if word.strip()}, key=lambda word: (-len(word), word))
    if not wanted:
        return lambda _text: False
    parts = [rf"\b{re.escape(word)}\b" if word.isascii() else re.escape(word) for word in wanted]
    pattern = re.compile("|".join(parts), re.IGNORECASE)
    return lambda text: pattern.search(text) is not None


def defects(text: str, *, toxic: Lexicon) -> dict[str, bool]:
    """Which hard defects a document has."""
    return {
        "privacy": has_private_data(text),
        "advertising": any(_AD.search(paragraph) and _HANDLE.search(paragraph) for paragraph in text.split("\n")),
        "markup": len(_TAG.findall(text)) * MARKUP_PER_CHARACTERS > max(len(text), MARKUP_PER_CHARACTERS),
        "garbled": len(_GARBLED.findall(text)) > GARBLED_SHARE * len(text),
        "toxic": toxic(text),
    }


def has_private_data(text: str) -> bool:
    """An e-mail address, a mainland mobile number or a resident identity number with a true check digit and date."""
    return (
        ("@" in text and _EMAIL.search(text) is not None)
        or _MOBILE.search(text) is not None
        or any(_is_resident(*match) for match in _RESIDENT.findall(text))
    )


def _is_resident(region: str, year: str, month: str, day: str, serial: str, check: str) -> bool:
    """GB 11643-1999: a real date, and the check digit of the seventeen digits before it."""
    try:
        date(int(year), int(month), int(day))
    except ValueError:
        return False
    digits = f"{region}{year}{month}{day}{serial}"
    total = sum(int(digit) * weight for digit, weight in zip(digits, _RESIDENT_WEIGHTS, strict=True))
    return 1850 < int(year) < 2100 and "10X98765432"[total % 11] == check.upper()


def measures(text: str) -> dict[str, float]:
    """Level-2 measures: information = 1 - compressed/plain bytes, entropy of characters, mean sentence length, shares."""
    raw = text[:65536].encode("utf-8", "replace")
    size = len(text)
    counts = Counter(text[:65536])
    total = counts.total()
    entropy = -sum(n / total * math.log2(n / total) for n in counts.values()) if total else 0.0
    sentences = [part for part in _SENTENCE.split(text) if part.strip()]
    marks = sum(n for c, n in counts.items() if not c.isalnum() and not c.isspace())
    digits = sum(n for c, n in counts.items() if c.isdigit())
    return {
        "information": 1 - len(zlib.compress(raw, 1)) / len(raw) if raw else 0.0,
        "entropy_bits": entropy,
        "sentence_characters": size / len(sentences) if sentences else 0.0,
        "punctuation_share": marks / total if total else 0.0,
        "digit_share": digits / total if total else 0.0,
    }
