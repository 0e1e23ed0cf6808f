"""Charts as plain SVG text: no scripts, colours from the page's CSS variables so that light and dark both work.

Every mark carries a `<title>` (a tooltip on a desk, read aloud by a screen reader), every chart an accessible label.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH = 860


@dataclass(frozen=True)
class Series:
    """Points (x, y) joined by a line; `css` is a colour class of the page (`c-en`, `c-zh`, `c0`…)."""

    name: str
    points: Sequence[tuple[float, float]]
    css: str
    label_end: bool = True


@dataclass(frozen=True)
class Interval:
    """A value with its interval, drawn as a dot on a line."""

    value: float
    low: float
    high: float
    css: str
    title: str


def line_chart(series: Sequence[Series], *, x_label: str, y_label: str, bands: Sequence[tuple[float, float, str]] = (),
               height: int = 340) -> str:
    """Lines over a shared axis; `bands` are (x from, x to, name) stretches shaded in turn and named at the top."""
    points = [point for item in series for point in item.points if math.isfinite(point[1])]
    if not points:
        return ""
    left, right, top, bottom = 56, 96, 74 if bands else 14, 40
    x_low, x_high = 0.0, max(max(x for x, _ in points), max((band[1] for band in bands), default=0.0)) or 1.0
    y_ticks = ticks(min(y for _, y in points), max(y for _, y in points), 5)
    y_low, y_high = min(y_ticks[0], min(y for _, y in points)), max(y_ticks[-1], max(y for _, y in points))

    def place(x: float, y: float) -> tuple[float, float]:
        across = left + (WIDTH - left - right) * (x - x_low) / (x_high - x_low)
        return across, top + (height - top - bottom) * (1 - (y - y_low) / ((y_high - y_low) or 1.0))

    parts = [_open(WIDTH, height, f"{y_label} against {x_label}")]
    for index, (begin, end, name) in enumerate(bands):
        x0, x1 = place(begin, y_low)[0], place(end, y_low)[0]
        parts.append(f'<rect class="band{index % 2}" x="{x0:.1f}" y="{top}" width="{max(x1 - x0, 0.5):.1f}" '
                     f'height="{height - top - bottom}"><title>{escape(name)}</title></rect>')
        parts.append(f'<text class="band-name" transform="translate({(x0 + x1) / 2 + 3:.1f} {top - 4}) rotate(-32)">'
                     f'{escape(name)}</text>')
    for tick in y_ticks:
        x, y = place(x_low, tick)
        parts.append(f'<line class="grid" x1="{left}" x2="{WIDTH - right}" y1="{y:.1f}" y2="{y:.1f}"/>'
                     f'<text class="tick" x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{short(tick)}</text>')
    for tick in ticks(x_low, x_high, 6):
        x, y = place(tick, y_low)
        if tick <= x_high:
            parts.append(f'<text class="tick" x="{x:.1f}" y="{height - bottom + 16}" text-anchor="middle">{short(tick)}</text>')
    taken: list[float] = []
    for item in series:
        values = [(x, y) for x, y in item.points if math.isfinite(y)]
        usable = [place(x, y) for x, y in values]
        if not usable:
            continue
        path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in usable)
        parts.append(f'<path class="line {item.css}" d="{path}"><title>{escape(item.name)}</title></path>')
        if len(usable) <= 40:
            parts += [f'<circle class="dot {item.css}" cx="{x:.1f}" cy="{y:.1f}" r="2.6"><title>{escape(item.name)}: '
                      f'{short(value)} at {short(at)}</title></circle>'
                      for (x, y), (at, value) in zip(usable, values, strict=True)]
        if item.label_end:
            x, y = usable[-1]
            y = _free(y, taken)
            taken.append(y)
            parts.append(f'<text class="series {item.css}" x="{WIDTH - right + 8}" y="{y + 4:.1f}">'
                         f'{escape(item.name)}</text>')
    parts.append(f'<text class="axis" x="{(left + WIDTH - right) / 2:.0f}" y="{height - 4}" text-anchor="middle">'
                 f'{escape(x_label)}</text><text class="axis" text-anchor="middle" '
                 f'transform="translate(13 {(top + height - bottom) / 2:.0f}) rotate(-90)">{escape(y_label)}</text></svg>')
    return "".join(parts)


def interval_chart(rows: Sequence[tuple[str, Sequence[Interval]]], *, x_label: str) -> str:
    """One line a row: dots with their intervals on a shared axis that starts near the smallest value."""
    values = [mark for _, marks in rows for mark in marks]
    if not values:
        return ""
    left, right, row_height, bottom = 168, 24, 26, 40
    height = row_height * len(rows) + bottom + 8
    span = ticks(min(mark.low for mark in values), max(mark.high for mark in values), 6)
    low, high = min(span[0], min(mark.low for mark in values)), max(span[-1], max(mark.high for mark in values))

    def place(value: float) -> float:
        return left + (WIDTH - left - right) * (value - low) / ((high - low) or 1.0)

    parts = [_open(WIDTH, height, x_label)]
    for tick in span:
        x = place(tick)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="4" y2="{height - bottom}"/>'
                     f'<text class="tick" x="{x:.1f}" y="{height - bottom + 16}" text-anchor="middle">{short(tick)}</text>')
    for index, (name, marks) in enumerate(rows):
        y = 8 + row_height * (index + 0.5)
        parts.append(f'<text class="row" x="{left - 10}" y="{y + 4:.1f}" text-anchor="end">{escape(name)}</text>')
        for mark in marks:
            parts.append(f'<g><title>{escape(mark.title)}</title><line class="line {mark.css}" x1="{place(mark.low):.1f}" '
                         f'x2="{place(mark.high):.1f}" y1="{y:.1f}" y2="{y:.1f}"/><circle class="dot {mark.css}" '
                         f'cx="{place(mark.value):.1f}" cy="{y:.1f}" r="4.5"/></g>')
    parts.append(f'<text class="axis" x="{(left + WIDTH - right) / 2:.0f}" y="{height - 4}" text-anchor="middle">'
                 f'{escape(x_label)}</text></svg>')
    return "".join(parts)


def stacked_bars(rows: Sequence[tuple[str, Sequence[tuple[str, float, str]]]], *, unit: str, x_label: str) -> str:
    """One stacked horizontal bar a row; parts are (name, value, css class)."""
    largest = max((sum(value for _, value, _ in parts) for _, parts in rows), default=0.0)
    if not largest:
        return ""
    left, right, row_height, bottom = 168, 70, 26, 40
    height = row_height * len(rows) + bottom + 8
    scale = (WIDTH - left - right) / largest
    out = [_open(WIDTH, height, x_label)]
    for index, (name, parts) in enumerate(rows):
        y = 8 + row_height * index
        x = float(left)
        out.append(f'<text class="row" x="{left - 10}" y="{y + 17}" text-anchor="end">{escape(name)}</text>')
        for part, value, css in parts:
            wide = value * scale
            if wide > 0:
                out.append(f'<rect class="bar {css}" x="{x:.1f}" y="{y + 4}" width="{max(wide - 1, 0.8):.1f}" height="18" rx="2">'
                           f'<title>{escape(name)}, {escape(part)}: {short(value)} {unit}</title></rect>')
            x += wide
        out.append(f'<text class="tick" x="{x + 5:.1f}" y="{y + 17}">{short(sum(value for _, value, _ in parts))}</text>')
    out.append(f'<text class="axis" x="{(left + WIDTH - right) / 2:.0f}" y="{height - 8}" text-anchor="middle">'
               f'{escape(x_label)}</text></svg>')
    return "".join(out)


def histogram(counts: Sequence[int], edges: Sequence[float], bounds: Sequence[str], *, css: str, label: str) -> str:
    """A small histogram with a square-root height scale; numbers in `bounds` (`< 0.3`) inside its range are drawn as lines."""
    width, height, bottom = 280, 96, 18
    largest = max(counts, default=0)
    if not largest or edges[-1] <= edges[0]:
        return ""

    def place(value: float) -> float:
        return (width - 8) * (value - edges[0]) / (edges[-1] - edges[0]) + 4

    parts = [_open(width, height, label)]
    for index, count in enumerate(counts):
        if count:
            tall = max(1.5, (height - bottom - 4) * math.sqrt(count / largest))
            x0, x1 = place(edges[index]), place(edges[index + 1])
            parts.append(f'<rect class="bar {css}" x="{x0:.1f}" y="{height - bottom - tall:.1f}" height="{tall:.1f}" '
                         f'width="{max(x1 - x0 - 0.6, 0.8):.1f}"><title>{short(edges[index])} to {short(edges[index + 1])}: '
                         f'{count}</title></rect>')
    for bound in bounds:
        for number in re.findall(r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?", bound):
            if edges[0] <= float(number) <= edges[-1]:
                x = place(float(number))
                parts.append(f'<line class="bound" x1="{x:.1f}" x2="{x:.1f}" y1="2" y2="{height - bottom}">'
                             f'<title>bound {escape(bound)}</title></line>')
    parts.append(f'<text class="tick" x="4" y="{height - 4}">{short(edges[0])}</text><text class="tick" x="{width - 4}" '
                 f'y="{height - 4}" text-anchor="end">{short(edges[-1])}</text></svg>')
    return "".join(parts)


def ticks(low: float, high: float, count: int) -> list[float]:
    """About `count` round values covering [low, high].

    >>> ticks(0, 9.3, 5)
    [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]
    """
    if not math.isfinite(low) or not math.isfinite(high) or high <= low:
        return [low, low + 1.0] if math.isfinite(low) else [0.0, 1.0]
    raw = (high - low) / max(count, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(multiple * power for multiple in (1, 2, 2.5, 5, 10) if multiple * power >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def short(value: float) -> str:
    """A number for an axis or a tooltip: 1.2M, 350k, 2.31."""
    for limit, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:.3g}{letter}"
    return f"{value:.3g}"


def _open(width: int, height: int, label: str) -> str:
    return (f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(label)}" '
            'xmlns="http://www.w3.org/2000/svg" preserveAspectRatio="xMinYMin meet">')


def _free(y: float, taken: Sequence[float]) -> float:
    while any(abs(y - other) < 13 for other in taken):
        y += 13
    return y
