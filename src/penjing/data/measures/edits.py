"""Changes inside a line: what is stripped, masked or collapsed. Each edit is a function from text to text; `TRIGGERS` says which
lines can hold what it looks for, so that the others are never touched. Every pattern is linear on any text.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from datetime import date

from penjing.data.kernels.bits import AT, DOTTED, LONG_NUMBER, SPACED_HAN, SQUARE, URL

HAN = "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_CITATION = re.compile(r"\[\d{1,4}\]|\[edit\]|\[citation needed\]|\[编辑\]|\[来源请求\]|\[註 \d{1,3}\]|\[注 \d{1,3}\]")
_URL = re.compile(r"(?:[a-zA-Z][a-zA-Z+.-]{1,9}://|\b[wW]{3}\.)[!#-;=?-Z\\\]_a-z~]{1,2000}")
_MAIL = re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63}){1,5}")
_IP = re.compile(r"(?<![\d.])(?:\d{1,3}\.){3}\d{1,3}(?![\d.])")
_MOBILE = re.compile(r"(?<!\d)1[3-9]\d{9}(?!\d)")
_IDENTITY = re.compile(r"(?<![\dA-Za-z])[1-9]\d{16}[\dXx](?![\dA-Za-z])")
_HANDLE = re.compile(
    r"((?:QQ|qq|微信|WeChat|wechat|weixin|加V|加v|vx|VX|V信|薇信)(?:群|号|号码|公众号|账号)?\s{0,2}[:：是为]?\s{0,2})"
    r"([A-Za-z][A-Za-z0-9_-]{5,19}|[1-9]\d{4,10})(?![A-Za-z0-9])")
_SPACED = re.compile(f"(?<=[{HAN}，。、；：？！“”（）]) +(?=[{HAN}，。、；：？！“”（）])")
_MORE = re.compile(r"(?:\[?\s?(?:read more|continue reading|learn more|show more)\s?\]?|点击查看更多|点击查看|展开全文|查看更多|"
                   r"阅读全文|查看全文|展开更多|更多>{1,2})[\s.…>»→]{0,8}$", re.IGNORECASE)
_REPEATED = re.compile(r"(.{1,20}?)\1{3,}")
_WEIGHTS = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)

ANY = 0
HANDLE = 1 << 20
MORE = 1 << 21
UNIT = 1 << 22
"""Further triggers: a contact keyword, a read-more phrase, a unit that may be repeated."""


def citations(text: str) -> str:
    """Citation marks such as [12], [edit], [citation needed] removed."""
    return _CITATION.sub("", text)


def citations_c4(text: str) -> str:
    """C4's marks only: [12], [], [edit], [citation needed] removed."""
    return re.sub(r"\[\d*\]|\[edit\]|\[citation needed\]", "", text)


def urls(text: str) -> str:
    """http(s), other schemes and www addresses removed, with the space before them."""
    return re.sub(r" {2,}", " ", _URL.sub("", text))


def mails(text: str) -> str:
    """E-mail addresses replaced by <email>."""
    return _MAIL.sub("<email>", text)


def addresses(text: str) -> str:
    """Public IPv4 addresses replaced by <ip>; private and reserved ones stay."""
    return _IP.sub(_public, text)


def mobiles(text: str) -> str:
    """Mainland mobile numbers replaced by <phone>."""
    return _MOBILE.sub("<phone>", text)


def identities(text: str) -> str:
    """Resident identity numbers with a valid GB 11643 check digit and date replaced by <id>."""
    return _IDENTITY.sub(lambda match: "<id>" if _valid_identity(match[0]) else match[0], text)


def handles(text: str) -> str:
    """QQ and WeChat handles after their keyword replaced by <handle>."""
    return _HANDLE.sub(r"\1<handle>", text)


def repeated_units(text: str) -> str:
    """A unit with a letter that stands four or more times in a row, at most 20 characters long, kept twice."""
    return _REPEATED.sub(_twice, text)


def han_spaces(text: str) -> str:
    """Spaces between Han characters and Chinese marks removed."""
    return _SPACED.sub("", text)


def read_more(text: str) -> str:
    """A closing "read more", 展开全文 and the like removed."""
    return _MORE.sub("", text).rstrip()


TRIGGERS: dict[str, int] = {
    "citations": SQUARE, "citations_c4": SQUARE, "urls": URL, "mails": AT, "addresses": DOTTED, "mobiles": LONG_NUMBER,
    "identities": LONG_NUMBER, "handles": HANDLE, "repeated_units": UNIT, "han_spaces": SPACED_HAN, "read_more": MORE,
}
EDITS: dict[str, Callable[[str], str]] = {name: globals()[name] for name in TRIGGERS}


def _public(match: re.Match[str]) -> str:
    try:
        return "<ip>" if ipaddress.IPv4Address(match[0]).is_global else match[0]
    except ipaddress.AddressValueError:
        return match[0]


def _valid_identity(number: str) -> bool:
    total = sum(int(digit) * weight for digit, weight in zip(number[:17], _WEIGHTS, strict=True))
    if "10X98765432"[total % 11] != number[17].upper():
        return False
    try:
        born = date(int(number[6:10]), int(number[10:12]), int(number[12:14]))
    except ValueError:
        return False
    return date(1900, 1, 1) <= born <= date(2100, 1, 1)


def _twice(match: re.Match[str]) -> str:
    return match[1] * 2 if any(character.isalpha() for character in match[1]) else match[0]
