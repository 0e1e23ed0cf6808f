"""The trade-off of vocabulary pruning: size against parameters, coverage, fertility and bits per byte, as numbers and an SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from penjing.tokenizer.build import subset
from penjing.tokenizer.count import flat_encoder
from penjing.tokenizer.prune import Order, covered_share
from penjing.tokenizer.vocabulary import Vocabulary


def point(vocabulary: Vocabulary, order: Order, size: int, counts: Mapping[str, np.ndarray],
          texts: Mapping[str, list[str]]) -> dict[str, Any]:
    """One point of the curve: coverage of the corpus and fertility on `texts` when `size` ids are kept."""
    kept = order.kept(size)
    encode = flat_encoder(subset(vocabulary, kept))
    fertility, bytes_per_token = {}, {}
    for lang, own in sorted(texts.items()):
        tokens = int(encode(own)[1].sum())
        fertility[lang] = round(tokens / max(1, sum(map(len, own))), 5)
        bytes_per_token[lang] = round(sum(len(text.encode()) for text in own) / max(1, tokens), 5)
    shares = {lang: round(share, 6) for lang, share in covered_share(kept, counts).items()}
    return {"size": size, "coverage": shares, "tokens_per_character": fertility, "bytes_per_token": bytes_per_token}


def sizes_for(order: Order, asked: Sequence[int] | None, points: int) -> list[int]:
    """The sizes of the curve, largest first: those asked for, or `points` from all down to a twelfth, even on a log scale."""
    if asked:
        return sorted({min(size, order.size) for size in asked}, reverse=True)
    low = max(order.smallest, order.size // 12)
    return sorted({int(size) for size in np.geomspace(order.size, low, points).round()}, reverse=True)


PANELS = (("coverage", "share of tokens covered"), ("tokens_per_character", "tokens per character"),
          ("bits_per_byte", "bits per byte"), ("parameters", "parameters"))
_COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#8c564b", "#e377c2", "#7f7f7f", "#bcbd22")
_WIDTH, _HEIGHT, _MARGIN = 340, 230, 52


def drawing(points: Sequence[Mapping[str, Any]]) -> str:
    """The curve as an SVG with one panel per figure and one line per language."""
    panels = [(key, title) for key, title in PANELS if any(key in item for item in points)]
    languages = sorted({lang for item in points for lang in item["coverage"]})
    colour = {lang: _COLOURS[at % len(_COLOURS)] for at, lang in enumerate(languages)}
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH * len(panels)}" height="{_HEIGHT + 24}" '
           'font-family="sans-serif" font-size="11">', '<rect width="100%" height="100%" fill="white"/>']
    for at, (key, title) in enumerate(panels):
        if key == "parameters":
            lines = {"": [(item["size"], float(item[key])) for item in points]}
        else:
            lines = {lang: [(item["size"], item[key][lang]) for item in points if lang in item.get(key, {})]
                     for lang in languages}
        out.append(f'<g transform="translate({at * _WIDTH},0)">{_panel(title, lines, colour)}</g>')
    for at, lang in enumerate(languages):
        x = _MARGIN + 90 * at
        out.append(f'<line x1="{x}" y1="{_HEIGHT + 10}" x2="{x + 18}" y2="{_HEIGHT + 10}" stroke="{colour[lang]}" '
                   f'stroke-width="2"/><text x="{x + 24}" y="{_HEIGHT + 14}">{lang or "unknown"}</text>')
    return "\n".join([*out, "</svg>"]) + "\n"


def _panel(title: str, lines: Mapping[str, list[tuple[float, float]]], colour: Mapping[str, str]) -> str:
    values = [value for line in lines.values() for value in line]
    xs, ys = [np.log(x) for x, _ in values], [y for _, y in values]
    low_x, high_x, low_y, high_y = min(xs), max(xs), min(ys), max(ys)
    span_x, span_y = max(high_x - low_x, 1e-9), max(high_y - low_y, 1e-9)
    inner_w, inner_h = _WIDTH - _MARGIN - 14, _HEIGHT - _MARGIN - 24

    def place(x: float, y: float) -> tuple[float, float]:
        return (_MARGIN + (np.log(x) - low_x) / span_x * inner_w, 24 + (high_y - y) / span_y * inner_h)

    parts = [f'<text x="{_MARGIN}" y="14" font-weight="bold">{title}</text>',
             f'<rect x="{_MARGIN}" y="24" width="{inner_w}" height="{inner_h}" fill="none" stroke="#999"/>']
    for y, anchor in ((high_y, 28), (low_y, 24 + inner_h)):
        parts.append(f'<text x="{_MARGIN - 4}" y="{anchor}" text-anchor="end">{_short(y)}</text>')
    for x, side in ((np.exp(low_x), "start"), (np.exp(high_x), "end")):
        parts.append(f'<text x="{place(x, low_y)[0]:.1f}" y="{40 + inner_h}" text-anchor="{side}">{_short(float(x))}</text>')
    for lang, line in lines.items():
        spots = [place(x, y) for x, y in sorted(line)]
        stroke = colour.get(lang, "#333")
        parts.append(f'<polyline fill="none" stroke="{stroke}" stroke-width="2" points="'
                     + " ".join(f"{x:.1f},{y:.1f}" for x, y in spots) + '"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{stroke}"/>' for x, y in spots]
    return "".join(parts)


def _short(value: float) -> str:
    for limit, suffix in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= limit:
            return f"{value / (1e3 if suffix == 'k' else limit):.3g}{suffix}"
    return f"{value:.4g}"
