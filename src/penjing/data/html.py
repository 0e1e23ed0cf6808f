"""The main text of an HTML page, Chinese or English, without a parser library.

Tags are found in one pass (linear, no recursion, so nesting may be as deep as it likes). Every stretch of text between block
tags is a block with its length, the length of its links and its marks. Blocks give their weight to the containers around them;
the container with most weight and few links holds the article, and what in it is links, menus or captions is left out.
"""

from __future__ import annotations

import html
import re
from dataclasses import dataclass

_SKIPPED = frozenset(("select", "option", "button", "canvas", "head"))
_WHOLE = frozenset(("script", "style", "textarea", "svg", "template", "iframe", "noscript", "math"))
_ASIDE = frozenset(("nav", "footer", "aside", "menu", "dialog"))
_VOID = frozenset(("area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "param", "source", "track", "wbr"))
_INLINE = frozenset((
    "a", "abbr", "acronym", "b", "bdi", "bdo", "big", "cite", "code", "del", "dfn", "em", "font", "i", "ins", "kbd", "label",
    "mark", "q", "s", "samp", "small", "span", "strike", "strong", "sub", "sup", "time", "tt", "u", "var", "ruby", "rt", "rp"))
_CLOSED_BY = {
    "p": frozenset(("p", "div", "ul", "ol", "table", "h1", "h2", "h3", "h4", "h5", "h6", "pre", "blockquote", "section",
                    "article")),
    "li": frozenset(("li",)), "td": frozenset(("td", "tr")), "tr": frozenset(("tr",)), "dd": frozenset(("dd", "dt")),
    "dt": frozenset(("dd", "dt")),
}
_BAD = re.compile(
    r"comment|footer|foot\b|sidebar|side-?bar|nav\b|navi|menu|share|social|related|recommend|advert|banner|breadcrumb|copyright|"
    r"login|popup|modal|cookie|subscribe|newsletter|promo|sponsor|toolbar|hidden|pagination|widget|tags?\b|meta\b|byline|"
    r"author|disclaim|signup|outbrain|taboola|hot-?list|rank", re.IGNORECASE)
_GOOD = re.compile(r"article|content|entry|main|post\b|text|story|body|detail|正文", re.IGNORECASE)
_ATTRIBUTES = re.compile(
    r"""(?:class|id|role|itemprop|style)\s*=\s*(?:"([^"]{0,300})"|'([^']{0,300})'|([^\s>]{1,100}))""", re.IGNORECASE)
_HIDDEN = re.compile(r"display\s*:\s*none|visibility\s*:\s*hidden", re.IGNORECASE)
_MARKS = re.compile("[，。！？；：,.!?;:、]")
_SPACE = re.compile(r"[ \t\r\n\f\v\u00a0\u3000]+")
_CHARSET = re.compile(rb"<meta[^>]{0,300}?charset\s*=\s*[\"']?\s*([A-Za-z0-9_:.-]{2,40})", re.IGNORECASE)
MAX_NODES, MAX_DEPTH = 300_000, 200


@dataclass
class _Block:
    text: str
    linked: int
    node: int
    bad: bool = False


@dataclass(frozen=True)
class Page:
    """What a page says: title (may be empty) and main text, paragraphs on lines of their own."""

    title: str
    text: str


def declared_charset(data: bytes) -> str | None:
    """The charset a page's head declares."""
    found = _CHARSET.search(data[:4096])
    return found[1].decode("ascii") if found else None


def extract(page: str) -> Page:
    """Title and main text of a page; the text is empty when there is none."""
    title, blocks, parents, weights, own = _blocks(page)
    if not blocks:
        return Page(title, "")
    scores = [0.0] * len(parents)
    text_length = [0] * len(parents)
    link_length = [0] * len(parents)
    for block in blocks:
        size = len(block.text)
        node, steps = block.node, 0
        while node >= 0 and steps < MAX_DEPTH:
            text_length[node] += size
            link_length[node] += block.linked
            node, steps = parents[node], steps + 1
    # A name such as "has-sidebar" on the box that holds most of the page says nothing about what is in it.
    bad = [False] * len(parents)
    for node, parent in enumerate(parents):
        bad[node] = (parent >= 0 and bad[parent]) or (own[node] and text_length[node] < 0.5 * text_length[0])
    for block in blocks:
        block.bad = bad[block.node]
        size = len(block.text)
        value = 0.0
        if size >= 25 and block.linked < 0.4 * size and not block.bad:
            value = 1.0 + min(size / 100, 4.0) + min(len(_MARKS.findall(block.text)), 12) * 0.5
        node, level = block.node, 0
        while node >= 0 and level < 6:
            scores[node] += value * (1.0, 1.0, 0.6, 0.35, 0.2, 0.1)[level]
            node, level = parents[node], level + 1
    best, best_score = 0, -1.0
    for node, score in enumerate(scores):
        if text_length[node]:
            total = (score + weights[node]) * (1 - link_length[node] / text_length[node])
            if total > best_score:
                best, best_score = node, total
    best = _widen(best, scores, parents, text_length, link_length)
    inside = _inside(best, parents)
    lines = [block for block in blocks if inside[block.node] and _keeps(block)]
    return Page(title, "\n".join(block.text for block in lines))


def _widen(best: int, scores: list[float], parents: list[int], text: list[int], links: list[int]) -> int:
    """An article may stand in several boxes: take the container above while it adds much text and few links."""
    for _ in range(3):
        above = parents[best]
        if above < 0:
            break
        more, more_links = text[above] - text[best], links[above] - links[best]
        if scores[above] > 0.75 * scores[best] and more > 0.25 * text[best] and more_links < 0.25 * more:
            best = above
        else:
            break
    return best


def _keeps(block: _Block) -> bool:
    size = len(block.text)
    if block.linked > 0.5 * size and (size < 200 or block.linked > 0.8 * size):
        return False
    if block.bad:
        return size > 200 and block.linked < 0.1 * size and len(_MARKS.findall(block.text)) > 3
    return True


def _inside(best: int, parents: list[int]) -> list[bool]:
    inside = [False] * len(parents)
    for node in range(len(parents)):  # parents come before children
        inside[node] = node == best or (parents[node] >= 0 and inside[parents[node]])
    return inside


def _blocks(page: str) -> tuple[str, list[_Block], list[int], list[float], list[bool]]:
    """One pass over the tags: title, blocks, and of each container its parent, the weight of its name, and whether its name
    speaks of menus, comments and the like.
    """
    parents, weights, tags, bad = [-1], [0.0], ["body"], [False]
    open_nodes = [0]
    blocks: list[_Block] = []
    pieces: list[str] = []
    linked = link_depth = 0
    skipped: list[str] = []
    title, position, size = "", 0, len(page)
    lowered = page.lower()
    if len(lowered) != size:
        lowered = page

    def flush() -> None:
        nonlocal linked
        if pieces:
            text = "".join(pieces)
            pieces.clear()
            if "&" in text:
                text = html.unescape(text)
            text = "\n".join(line for part in text.split("\x00") if (line := _SPACE.sub(" ", part).strip()))
            if text:
                node = open_nodes[-1]
                blocks.append(_Block(text, min(linked, len(text)), node))
        linked = 0

    while position < size:
        begin = page.find("<", position)
        if begin < 0:
            begin = size
        if begin > position and not skipped:
            piece = page[position:begin]
            pieces.append(piece)
            if link_depth:
                linked += len(piece.strip())
        if begin >= size:
            break
        if page.startswith("<!--", begin):
            end = page.find("-->", begin + 4)
            position = size if end < 0 else end + 3
            continue
        end = page.find(">", begin + 1)
        if end < 0:
            break
        following = page[begin + 1 : begin + 2]
        if not (following.isalpha() or following in "/!?"):
            if not skipped:
                pieces.append("<")
            position = begin + 1
            continue
        position = end + 1
        inner = page[begin + 1 : end]
        closing = inner.startswith("/")
        name = re.split(r"[\s/>]", inner.lstrip("/"), maxsplit=1)[0].lower()[:20]
        if not name or following in "!?":
            continue
        if not closing and name == "title" and not title:
            stop = lowered.find("</title", position)
            if 0 <= stop < position + 2000:
                title = _SPACE.sub(" ", html.unescape(page[position:stop])).strip()
                position = stop
            continue
        if not closing and name in _WHOLE:
            stop = lowered.find(f"</{name}", position)
            after = lowered.find(">", stop) if stop >= 0 else -1
            position = after + 1 if after >= 0 else (size if name in ("script", "style") else position)
            continue
        if name in _SKIPPED:
            if closing:
                if name in skipped:
                    while skipped.pop() != name:
                        pass
                    pieces.clear()
            elif not inner.endswith("/"):
                flush()
                skipped.append(name)
            continue
        if skipped:
            if name == "body" and not closing:
                skipped.clear()
            continue
        if name == "a":
            link_depth = max(0, link_depth - 1) if closing else link_depth + 1
            continue
        if name == "br":
            pieces.append("\x00")
            continue
        if name in _INLINE or name in _VOID:
            continue
        flush()
        link_depth = 0
        if closing:
            for depth in range(len(open_nodes) - 1, max(0, len(open_nodes) - 60), -1):
                if tags[open_nodes[depth]] == name:
                    del open_nodes[depth:]
                    break
            continue
        while len(open_nodes) > 1 and name in _CLOSED_BY.get(tags[open_nodes[-1]], ()):
            open_nodes.pop()
        if inner.endswith("/") or len(parents) >= MAX_NODES:
            continue
        found = " ".join(a or b or c for a, b, c in _ATTRIBUTES.findall(inner)) if len(inner) > len(name) + 4 else ""
        parent = open_nodes[-1]
        worse = bool(found and (_HIDDEN.search(found) or (_BAD.search(found) and not _GOOD.search(found))))
        parents.append(parent)
        tags.append(name)
        worse = (worse or name in _ASIDE) and name not in ("html", "body")
        bad.append(worse)
        weight = 3.0 if name in ("article", "main") else 0.0
        weights.append(weight + (2.5 if found and _GOOD.search(found) else 0.0) - (2.5 if worse else 0.0))
        open_nodes.append(len(parents) - 1)
    flush()
    return title, blocks, parents, weights, bad
