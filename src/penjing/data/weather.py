"""Weather: what a crawl does to clean documents, done on purpose and labelled, so that cleaning can be marked.

Takes documents that are known to be good and gives back a crawl of them. Some pages carry navigation, adverts, HTML,
cookie notes, full-width or traditional characters, invisible characters or personal data; some are there twice or
nearly twice, under other addresses; some are mojibake; and pages nobody wants stand between them. Every document says
in its meta what was done to it, under "weather":

    kind        clean, edited, copy, near-copy, mojibake or junk
    variant     which sort of copy, mojibake or junk; "" otherwise
    lang        language of the text it was made from; for foreign junk its own
    origin      id of the document it was made from, null for junk: documents with one origin are one cluster
    defects     [{"type", "span_text" | "token"}]: an inserted string, or a string that must not be there any more
    clean_text  the text before the weather, where it was edited

What is touched is chosen by quota per language and dealt out in turn over the sorts of defect, so a small corpus too
has some of everything. All of it follows from (seed, id, text): neither shards nor workers matter. Documents with a
"prompt" and an "answer" in their meta are supervised items and pass untouched.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from datetime import date, timedelta
from functools import cache
from typing import Any

import numpy as np

from penjing.config import generator
from penjing.data import weather_material as material
from penjing.files import hash_text

Row = dict[str, Any]
Defect = dict[str, str]
Edit = Callable[[str, str, np.random.Generator], tuple[str, list[Defect]]]

SHORTEST = 80
"""Documents with fewer characters stay as they are."""
LONGEST_COPIED = 20_000
"""Documents with more characters get no copies and no mojibake twins: they would tell no more than those of a page."""

NEAR_COPIES = ("edit-1%", "edit-3%", "punctuation", "emoji", "same-url")
COPIES = ("other-url", "tracking-url")
MOJIBAKE = {
    "zh": (("gb18030-as-latin-1", "gb18030", "latin-1"), ("utf-8-as-latin-1", "utf-8", "latin-1"),
           ("utf-8-as-gb18030", "utf-8", "gb18030")),
    "en": (("ascii-as-utf-16", "utf-8", "utf-16-le"), ("ebcdic-as-latin-1", "cp500", "latin-1")),
}
JUNK = ("gibberish", "repeated-line", "word-list", "foreign", "stub", "lorem-ipsum", "symbols", "advert-page")


def weather(rows: Iterable[Mapping[str, Any]], *, shares: Mapping[str, float], seed: int) -> list[Row]:
    """The documents of a crawl of `rows`, in an order that has nothing to do with the order given.

    `rows`: id, url, source, text, lang, meta (a JSON text or a dict). `shares`: part of the text documents that is
    edited, gets a copy (copies), gets a near copy (near_copies), gets a mojibake twin (mojibake), gets a junk page
    beside it (junk), or has a tracking address (tracking); a share above zero touches at least one document per
    language. Result rows have a dict as meta. Raises ValueError when two documents have one id.
    """
    given = [_row(row) for row in rows]
    twice = [name for name, number in Counter(row["id"] for row in given).items() if number > 1]
    if twice:
        raise ValueError(f"two documents are called {twice[0]!r}")
    result = [row for row in given if _supervised(row["meta"])]
    texts = [row for row in given if not _supervised(row["meta"])]
    for lang in ("zh", "en"):
        result += _weather_language([row for row in texts if language(row) == lang], lang, shares, seed)
    return sorted(result, key=lambda row: hash_text(f"{seed}/order/{row['id']}"))


def language(row: Mapping[str, Any]) -> str:
    """"zh" or "en": which stock of strings suits a document, from its lang or else from its share of Han characters."""
    if row["lang"]:
        return "en" if str(row["lang"]).startswith("en") else "zh"
    return "zh" if len(re.findall(r"[\u4e00-\u9fff]", row["text"])) > 0.2 * len(row["text"]) else "en"


def _weather_language(rows: list[Row], lang: str, shares: Mapping[str, float], seed: int) -> list[Row]:
    def dice(*path: str) -> np.random.Generator:
        return generator(seed, "weather", *path)

    done = {row["id"]: _addressed(row) for row in rows}
    for row in done.values():
        row["meta"]["weather"] = _label("clean", lang, origin=row["id"])
    usable = [row for row in rows if len(row["text"]) >= SHORTEST]
    copied = [row for row in usable if len(row["text"]) <= LONGEST_COPIED]
    names = list(EDITS)
    for row, first in _deal(_pick(usable, shares["edited"], seed, "edited"), lang):
        rng = dice("edited", row["id"])
        others = rng.permutation(len(names))[: rng.integers(0, 3)]
        wanted = {first, *(names[index] for index in others)}
        text, defects = edited(row["text"], lang, [name for name in names if name in wanted], rng)
        if text != row["text"]:
            label = _label("edited", lang, origin=row["id"], defects=defects, clean_text=row["text"])
            done[row["id"]]["text"] = text
            done[row["id"]]["meta"]["weather"] = label
    for row in _pick(rows, shares["tracking"], seed, "tracking"):
        done[row["id"]]["url"] = _tracked(done[row["id"]]["url"], dice("tracking", row["id"]))

    added: list[Row] = []
    for rank, row in enumerate(_pick(copied, shares["copies"], seed, "copy")):
        variant, original = COPIES[rank % len(COPIES)], done[row["id"]]
        rng = dice("copy", row["id"])
        url = _mirror(row["id"], rng) if variant == "other-url" else _tracked(original["url"], rng)
        added.append(_twin(original, original["text"], "copy", variant, lang, seed, url))
    plain = [row for row in copied if done[row["id"]]["text"] == row["text"]]
    for rank, row in enumerate(_pick(plain, shares["near_copies"], seed, "near-copy")):
        variant, rng = NEAR_COPIES[rank % len(NEAR_COPIES)], dice("near-copy", row["id"])
        url = _tracked(done[row["id"]]["url"], rng) if variant == "same-url" else _mirror(row["id"], rng)
        text = nearly(row["text"], variant, lang, rng)
        added.append(_twin(done[row["id"]], text, "near-copy", variant, lang, seed, url))
    for rank, row in enumerate(_pick(copied, shares["mojibake"], seed, "mojibake")):
        name, wrote, read = MOJIBAKE[lang][rank % len(MOJIBAKE[lang])]
        text = garbled(row["text"], wrote=wrote, read=read)
        url = _mirror(row["id"], dice("mojibake", row["id"]))
        twin = _twin(done[row["id"]], text, "mojibake", name, lang, seed, url)
        twin["meta"]["weather"] = _label("mojibake", lang, origin=row["id"], variant=name, clean_text=row["text"])
        added.append(twin)
    for rank, row in enumerate(_pick(rows, shares["junk"], seed, "junk")):
        variant, rng = JUNK[rank % len(JUNK)], dice("junk", row["id"])
        text, spoken = junk(variant, lang, rng)
        twin = _twin(done[row["id"]], text, "junk", variant, spoken, seed, _mirror(row["id"], rng))
        twin["meta"] = {"weather": _label("junk", spoken, origin=None, variant=variant)}
        added.append(twin)
    return [*done.values(), *added]


def edited(text: str, lang: str, names: list[str], rng: np.random.Generator) -> tuple[str, list[Defect]]:
    """The text with the named defects of `EDITS`, and their labels; a defect the text has no place for is left out."""
    defects: list[Defect] = []
    original = text
    for name in names:
        text, found = EDITS[name](text, lang, rng)
        defects += found
    wanted = [(item, item.get("token") or item["span_text"]) for item in defects]
    return text, [item for item, span in wanted if span in text and span not in original]


def nearly(text: str, variant: str, lang: str, rng: np.random.Generator) -> str:
    """A near copy: characters changed, only punctuation changed, emoji put in, or one line more at the same address."""
    if variant.startswith("edit-"):
        return _typos(text, float(variant.removeprefix("edit-").removesuffix("%")) / 100, rng)
    if variant == "punctuation":
        table = str.maketrans("，。！？：；“”", ",.!?:;\"\"") if lang == "zh" else str.maketrans(",;:\"'", "，；：“’")
        return text.translate(table) + ("！！" if lang == "zh" else "!!")
    if variant == "emoji":
        for _ in range(max(2, len(text) // 120)):
            at = int(rng.integers(0, len(text) + 1))
            text = text[:at] + _one(material.EMOJI, rng) + text[at:]
        return text
    when = {"year": rng.integers(2010, 2024), "month": rng.integers(1, 13), "day": rng.integers(1, 29)}
    return f"{text}\n\n{material.UPDATED[lang].format(**when)}"


def garbled(text: str, *, wrote: str, read: str) -> str:
    """The text written in one encoding and read in another; what does not fit becomes a replacement character."""
    raw = text.encode(wrote, errors="replace")
    return raw.decode(read, errors="replace").replace("\x00", "\ufffd")


def junk(variant: str, lang: str, rng: np.random.Generator) -> tuple[str, str]:
    """A page nobody wants, and the language it counts as: that of its surroundings, or its own when it is foreign."""
    if variant == "foreign":
        spoken = _one(tuple(material.FOREIGN), rng)
        sentences = material.FOREIGN[spoken]
        return ("" if spoken == "ja" else " ").join(sentences[i] for i in rng.permutation(len(sentences))[:6]), spoken
    if variant == "gibberish":
        low, high = (0x4E00, 0x9FA5) if lang == "zh" else (0x61, 0x7B)
        words = ["".join(map(chr, rng.integers(low, high, rng.integers(3, 12)))) for _ in range(60)]
        return ("" if lang == "zh" else " ").join(words), lang
    if variant == "repeated-line":
        line = _advert(lang, rng) if rng.random() < 0.5 else _fill(_one(material.NAVIGATION[lang], rng), lang, rng)
        return "\n".join([line] * int(rng.integers(12, 30))), lang
    if variant == "word-list":
        return " ".join(_one(material.KEYWORDS[lang], rng) for _ in range(150)), lang
    if variant == "stub":
        return _one(material.STUBS[lang], rng), lang
    if variant == "lorem-ipsum":
        return " ".join(_one(material.LOREM, rng) for _ in range(120)).capitalize() + ".", lang
    if variant == "symbols":
        cells = ("|", "----", "***", "###", "===", "■", "●", "→", "0.00", "%", "N/A")
        return "\n".join(" ".join(_one(cells, rng) for _ in range(12)) for _ in range(20)), lang
    if variant == "advert-page":
        return "\n\n".join(_advert(lang, rng) for _ in range(8)), lang
    raise ValueError(f"no junk is called {variant!r}")


def resident_id(rng: np.random.Generator) -> str:
    """A made-up 18-digit resident identity number whose check digit is right (GB 11643, ISO 7064 MOD 11-2)."""
    born = date(1950, 1, 1) + timedelta(days=int(rng.integers(0, 20_000)))
    area = _one(("110101", "310104", "440305", "510107", "330106", "420111"), rng)
    body = f"{area}{born:%Y%m%d}{int(rng.integers(1, 1000)):03d}"
    total = sum(int(digit) * (2 ** (17 - place) % 11) for place, digit in enumerate(body))
    return body + "10X98765432"[total % 11]


# The defects, in the order they are put in: changes of characters first, so that inserted strings stay whole.


def _traditional(text: str, lang: str, rng: np.random.Generator) -> tuple[str, list[Defect]]:
    if lang != "zh":
        return text, []
    changed = _s2t().convert(text)
    if len(changed) != len(text):
        return changed, []
    characters = sorted({new for old, new in zip(text, changed, strict=True) if old != new})
    return changed, [{"type": "traditional", "token": character} for character in characters]


def _full_width(text: str, lang: str, rng: np.random.Generator) -> tuple[str, list[Defect]]:
    words = sorted(set(re.findall(r"(?<![A-Za-z0-9])[A-Za-z0-9]+(?![A-Za-z0-9])", text)))
    chosen = {words[i] for i in rng.permutation(len(words))[: 8]}
    defects = []
    for word in sorted(chosen):
        wide = word.translate({code: code + 0xFEE0 for code in range(0x21, 0x7F)})
        text = re.sub(rf"(?<![A-Za-z0-9]){word}(?![A-Za-z0-9])", wide, text)
        defects.append({"type": "full-width", "token": wide})
    return text, defects


def _ideographic_space(text: str, lang: str, rng: np.random.Generator) -> tuple[str, list[Defect]]:
    return "\n".join(f"\u3000\u3000{line}" if line.strip() else line for line in text.split("\n")), [
        {"type": "ideographic-space", "token": "\u3000"}]


def _invisible(text: str, lang: str, rng: np.random.Generator) -> tuple[str, list[Defect]]:
    used = [material.INVISIBLE[i] for i in rng.permutation(len(material.INVISIBLE))[:3]]
    for character in used:
        for at in sorted(rng.integers(0, len(text) + 1, max(2, min(40, len(text) // 100))), reverse=True):
            text = text[:at] + character + text[at:]
    return text, [{"type": "invisible", "token": character} for character in used]


def _personal(kind: str) -> Edit:
    def edit(text: str, lang: str, rng: np.random.Generator) -> tuple[str, list[Defect]]:
        value = _value(kind, rng)
        parts = text.split("\n\n")
        at = int(rng.integers(0, len(parts)))
        sentence = material.PERSONAL[kind][lang].format(value=value)
        parts[at] = f"{parts[at]}{'' if lang == 'zh' else ' '}{sentence}"
        return "\n\n".join(parts), [{"type": kind, "token": value}]

    return edit


def _html(text: str, lang: str, rng: np.random.Generator) -> tuple[str, list[Defect]]:
    opening, closing = _one(material.PARAGRAPH_TAGS, rng)
    tokens = [opening, closing, "&nbsp;"]
    for plain, entity in material.ENTITIES:
        if plain in text:
            text = text.replace(plain, entity)
            tokens.append(entity)
    parts = text.split("\n\n")
    for at in rng.permutation(len(parts))[:4]:
        parts[at] = f"{opening}&nbsp;{parts[at]}{closing}"
    script = _fill(_one(material.SCRIPTS, rng), lang, rng)
    parts.insert(int(rng.integers(0, len(parts) + 1)), script)
    return "\n\n".join(parts), [{"type": "html-script", "span_text": script},
                                *({"type": "html", "token": token} for token in tokens)]


def _navigation(text: str, lang: str, rng: np.random.Generator) -> tuple[str, list[Defect]]:
    bars = material.NAVIGATION[lang]
    lines = [_fill(bars[i], lang, rng) for i in rng.permutation(len(bars))[:3]]
    labels = [{"type": "navigation", "span_text": line} for line in lines]
    return "\n".join([lines[0], lines[1], "", text, "", lines[2]]), labels


def _advert_paragraph(text: str, lang: str, rng: np.random.Generator) -> tuple[str, list[Defect]]:
    span = _advert(lang, rng)
    return _between(text, span, rng), [{"type": "advert", "span_text": span}]


def _cookie(text: str, lang: str, rng: np.random.Generator) -> tuple[str, list[Defect]]:
    span = _one(material.COOKIES[lang], rng)
    top = rng.random() < 0.5
    return f"{span}\n\n{text}" if top else f"{text}\n\n{span}", [{"type": "cookie", "span_text": span}]


EDITS: dict[str, Edit] = {
    "traditional": _traditional, "invisible": _invisible, "full-width": _full_width,
    "ideographic-space": _ideographic_space, "e-mail": _personal("e-mail"), "mobile": _personal("mobile"),
    "public-ip": _personal("public-ip"), "resident-id": _personal("resident-id"), "html": _html,
    "advert": _advert_paragraph, "cookie": _cookie, "navigation": _navigation,
}
"""Defect -> function (text, lang, rng) -> (text, labels), in the order they are put in."""


def _value(kind: str, rng: np.random.Generator) -> str:
    if kind == "e-mail":
        return f"{_handle(rng)}@{_one(('example.com', 'example.org', 'mail.example.net'), rng)}"
    if kind == "mobile":
        return f"1{rng.integers(3, 10)}{rng.integers(0, 10**9):09d}"
    if kind == "resident-id":
        return resident_id(rng)
    while True:
        address = ipaddress.IPv4Address(int(rng.integers(1 << 24, 223 << 24)))
        if address.is_global:
            return str(address)


def _typos(text: str, rate: float, rng: np.random.Generator) -> str:
    places = [at for at, character in enumerate(text) if character.isalnum()]
    number = min(len(places), max(1, round(rate * len(text))))
    characters = list(text)
    for at in rng.choice(places, number, replace=False):
        other = text[_one(places, rng)]
        action = rng.integers(0, 3)
        characters[at] = (other, "", text[at] + other)[action]
    return "".join(characters)


def _advert(lang: str, rng: np.random.Generator) -> str:
    return _fill(_one(material.ADVERTS[lang], rng), lang, rng)


def _fill(template: str, lang: str, rng: np.random.Generator) -> str:
    sections = material.SECTIONS[lang]
    first, second = rng.permutation(len(sections))[:2]
    return template.format(
        section=sections[first], section2=sections[second], product=_one(material.PRODUCTS[lang], rng),
        handle=_handle(rng), handle2=_handle(rng), qq=rng.integers(10**8, 10**9), small=rng.integers(10, 99),
        small2=rng.integers(10, 99), number=rng.integers(1000, 99999), discount=rng.integers(3, 9),
        phone=f"+1 555 01{rng.integers(0, 100):02d}",
    )


def _handle(rng: np.random.Generator) -> str:
    return "".join(map(chr, rng.integers(0x61, 0x7B, 6))) + str(rng.integers(10, 999))


def _between(text: str, span: str, rng: np.random.Generator) -> str:
    parts = text.split("\n\n")
    parts.insert(int(rng.integers(0, len(parts) + 1)), span)
    return "\n\n".join(parts)


def _pick(rows: list[Row], share: float, seed: int, name: str) -> list[Row]:
    """A share of the rows, at least one when there is a share at all, in an order that follows from seed and ids."""
    number = max(1, int(share * len(rows) + 0.5)) if share > 0 and rows else 0
    return sorted(rows, key=lambda row: hash_text(f"{seed}/{name}/{row['id']}"))[:number]


def _deal(rows: list[Row], lang: str) -> list[tuple[Row, str]]:
    """Each row with its first defect: the defects in turn, each to the first row left that has a place for it."""
    left, names = list(reversed(rows)), list(EDITS)
    dealt: list[tuple[Row, str]] = []
    turn = 0
    while left:
        name = names[turn % len(names)]
        at = next((at for at in range(len(left) - 1, -1, -1) if _has_place(name, left[at]["text"], lang)), None)
        if at is None:
            names.remove(name)
        else:
            dealt.append((left.pop(at), name))
            turn += 1
    return dealt


def _has_place(name: str, text: str, lang: str) -> bool:
    if name == "traditional":
        return lang == "zh"
    return name != "full-width" or re.search(r"(?<![A-Za-z0-9])[A-Za-z0-9]+(?![A-Za-z0-9])", text) is not None


def _label(kind: str, lang: str, *, origin: str | None, variant: str = "", defects: list[Defect] | None = None,
           clean_text: str | None = None) -> dict[str, Any]:
    label = {"kind": kind, "variant": variant, "lang": lang, "origin": origin, "defects": defects or []}
    return label if clean_text is None else {**label, "clean_text": clean_text}


def _twin(row: Row, text: str, kind: str, variant: str, lang: str, seed: int, url: str) -> Row:
    name = hash_text(f"{seed}/name/{kind}/{row['id']}")[:16]
    label = {**row["meta"]["weather"], "kind": kind, "variant": variant, "lang": lang}
    return {**row, "id": f"page-{name}", "url": url, "text": text, "meta": {**row["meta"], "weather": label}}


def _row(row: Mapping[str, Any]) -> Row:
    meta = row["meta"] if isinstance(row["meta"], Mapping) else json.loads(row["meta"] or "{}")
    return {**row, "text": row["text"] or "", "meta": dict(meta)}


def _addressed(row: Row) -> Row:
    url = row["url"] or f"https://pages.example/{hash_text(row['id'])[:12]}.html"
    return {**row, "url": url, "meta": dict(row["meta"])}


def _mirror(name: str, rng: np.random.Generator) -> str:
    return f"https://mirror{rng.integers(1, 40)}.example/{hash_text(name)[:6]}/{rng.integers(10**5, 10**6)}.html"


def _tracked(url: str, rng: np.random.Generator) -> str:
    query = _one(material.TRACKING, rng).format(small=rng.integers(10, 99), number=rng.integers(1000, 99999),
                                               handle=_handle(rng))
    return f"{url}{'&' if '?' in url else '?'}{query}"


def _supervised(meta: Mapping[str, Any]) -> bool:
    return "prompt" in meta and "answer" in meta


def _one(options: Any, rng: np.random.Generator) -> Any:
    return options[int(rng.integers(0, len(options)))]


@cache
def _s2t() -> Any:
    import opencc

    return opencc.OpenCC("s2t")
