"""Writes report.html: one file, no network, no scripts, light and dark, readable on a phone."""

from __future__ import annotations

import time
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from penjing.files import disk_faults, write_text
from penjing.report import sections
from penjing.report.collect import Run, collect
from penjing.report.denoising import denoisers


def write_report(run_dir: Path, *, out: Path | None = None) -> Path:
    """Render the run in `run_dir`; returns the path written (default: report.html inside it)."""
    run = collect(run_dir)
    target = out or run_dir / "report.html"
    with disk_faults(target):
        write_text(target, render(run))
    return target


def render(run: Run) -> str:
    """The whole page as text."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(number=_number, percent=_percent, clock=_clock, loss=_loss)
    template = environment.from_string((resources.files("penjing.report") / "report.html.j2").read_text(encoding="utf-8"))
    return template.render(run=run, made=time.strftime("%Y-%m-%d %H:%M"), **_context(run))


def _context(run: Run) -> Mapping[str, Any]:
    return {
        "headline": sections.headline(run),
        "funnel": sections.funnel(run),
        "scorecard": sections.scorecard(run),
        "rules": sections.rules(run),
        "audits": sections.audits(run),
        "stage_table": sections.stage_table(run),
        "curves": sections.loss_curves(run),
        "bits": sections.bits_per_byte(run),
        "denoisers": denoisers(run),
        "vocabulary": sections.vocabulary(run),
        "samples": sections.samples(run),
        "durations": sections.durations(run),
    }


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    if isinstance(value, int) or float(value).is_integer():
        return f"{int(value):,}" if abs(value) < 1e15 else f"{value:.2e}"
    if abs(value) >= 1e15:
        return f"{value:.2e}"
    return f"{value:,.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def _loss(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}%"


def _clock(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"
