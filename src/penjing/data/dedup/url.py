"""One spelling per web address, so that the same page under two addresses is seen as the same."""

from __future__ import annotations

import re
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

_TRACKING = re.compile(r"(?i)^(utm_.*|spm|gclid|fbclid|msclkid|yclid|from|share_.*|ref_src|_ga|scm|vd_source)$")
_INDEX = re.compile(r"(?i)/(index|default)\.(html?|php|aspx?|jsp)$")
_PLAIN = re.compile(r"https?://([a-z0-9-]+(?:\.[a-z0-9-]+)+)((?:/[A-Za-z0-9_~-][A-Za-z0-9_.~-]*)*/?)")
_DEFAULT_PORT = {"http": 80, "https": 443}


def canonical_url(url: str) -> str:
    """`url` without what does not change the page; "" when it is not a web address.

    Scheme and host in lower case, http taken for https, no `www.`, default port, fragment, tracking keys, index page
    or trailing slash; escapes of unreserved characters undone; query keys sorted.

    >>> canonical_url("HTTP://www.Example.com:80/a/./b/../index.html?utm_source=x&b=2&a=1#top")
    'https://example.com/a?a=1&b=2'
    """
    plain = _PLAIN.fullmatch(url)
    if plain is not None:  # most addresses: nothing to decode, so the general way below would change nothing else
        return f"https://{plain[1].removeprefix('www.')}{_INDEX.sub('', plain[2]).rstrip('/')}"
    try:
        parts = urlsplit(url.strip())
        port = parts.port
    except ValueError:
        return ""
    scheme = parts.scheme.lower()
    host = (parts.hostname or "").rstrip(".")
    if scheme not in _DEFAULT_PORT or not host:
        return ""
    host = host.removeprefix("www.")
    if port is not None and port != _DEFAULT_PORT[scheme]:
        host = f"{host}:{port}"
    path = quote(unquote(_without_dots(parts.path), errors="replace"), safe="/~:@!$&'()*+,;=-._")
    path = _INDEX.sub("", path).rstrip("/")
    pairs = sorted(
        (key, value) for key, value in parse_qsl(parts.query, keep_blank_values=True) if not _TRACKING.match(key)
    )
    query = f"?{urlencode(pairs)}" if pairs else ""
    return f"https://{host}{path}{query}"


def _without_dots(path: str) -> str:
    kept: list[str] = []
    for part in path.split("/"):
        if part == "..":
            if len(kept) > 1:
                kept.pop()
        elif part != ".":
            kept.append(part)
    return "/".join(kept)
