"""HTML pages as documents: decoded by what they are, reduced to their main text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from penjing.data.encoding import decode
from penjing.data.html import declared_charset, extract
from penjing.data.readers import Damage, Options, Record
from penjing.data.readers.whole import read_whole
from penjing.errors import ConfigError, fault


def read_html(name: str, options: Options) -> Iterator[Record | Damage]:
    """The main text of one page."""
    data, damage = read_whole(name, options)
    yield from damage
    if data:
        yield page_record(data, name, 0, options)
    elif not damage:
        yield Damage(name, 0, "empty file")


def page_record(data: bytes, name: str, offset: int, options: Options, *, declared: str | None = None,
                **more: Any) -> Record | Damage:
    """A page's bytes as a document; `Damage` when it has no main text. `more` goes into the record (id, url)."""
    text, encoding = decode(data, declared=declared or declared_charset(data) or options.encoding)
    title, body = _main_text(text, options.html)
    if not body.strip():
        return Damage(name, offset, "page without main text", len(data), title[:200])
    return {"text": body, "encoding": encoding, "offset": offset, "meta": {"title": title} if title else {}, **more}


def _main_text(page: str, how: str) -> tuple[str, str]:
    if how == "own":
        found = extract(page)
        return found.title, found.text
    try:
        if how == "resiliparse":
            from resiliparse.extract.html2text import extract_plain_text

            return extract(page).title, str(extract_plain_text(page, main_content=True) or "")
        from trafilatura import extract as trafilatura_extract

        return extract(page).title, str(trafilatura_extract(page, favor_precision=False) or "")
    except ModuleNotFoundError as error:
        text = fault(f"html: {how} needs the {how} package", fix="pip install 'penjing[web]', or html: own")
        raise ConfigError(text) from error
