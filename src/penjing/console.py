"""What the user sees while work goes on: bars on a terminal, a plain line now and then otherwise. Always on stderr.

A room reports progress with `bar(...)`; it never prints. The same numbers can go to a stage's `metrics.jsonl`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.progress import Progress

PLAIN_EVERY_SECONDS = 15.0

_quiet = False
_live: Progress | None = None


def configure(*, quiet: bool = False) -> None:
    """Say once, at the start of a command, whether progress is shown at all."""
    global _quiet
    _quiet = quiet


def say(text: str) -> None:
    """A line for the user, on stderr."""
    if _quiet:
        return
    if _live is not None:
        _live.console.print(text, highlight=False, markup=False, soft_wrap=True)
    else:
        print(text, file=sys.stderr, flush=True)


@dataclass
class Bar:
    """The progress of one piece of work. `advance` may be called thousands of times a second."""

    label: str
    total: float | None
    unit: str
    done: float = 0.0
    started: float = field(default_factory=time.monotonic)
    _shown: float = field(default_factory=time.monotonic)
    _task: Any = None
    _note: str = ""

    def advance(self, amount: float = 1.0, **figures: float | str) -> None:
        """Add `amount` of the unit; keyword figures (`loss=2.1`) replace the note beside the bar."""
        self.done += amount
        if figures:
            self._note = "  ".join(f"{key} {_short(value)}" for key, value in figures.items())
        now = time.monotonic()
        if _live is not None and self._task is not None:
            if now - self._shown >= 0.1 or (self.total is not None and self.done >= self.total):
                self._shown = now
                _live.update(self._task, completed=self.done, note=self._describe(now))
        elif now - self._shown >= PLAIN_EVERY_SECONDS:
            self._shown = now
            say(self._line(now))

    def _describe(self, now: float) -> str:
        rate = self.done / max(now - self.started, 1e-9)
        return f"{_short(rate)} {self.unit}/s  {self._note}".rstrip()

    def _line(self, now: float) -> str:
        share = f" {100 * self.done / self.total:.0f}%" if self.total else ""
        left = ""
        if self.total and self.done:
            seconds = (now - self.started) * (self.total - self.done) / self.done
            left = f"  {_clock(seconds)} left"
        return f"  {self.label}:{share} {_short(self.done)} {self.unit}  {self._describe(now)}{left}"


@contextmanager
def bar(label: str, *, total: float | None = None, unit: str = "items") -> Iterator[Bar]:
    """A progress bar that lives as long as the block."""
    item = Bar(label, total, unit)
    if _live is not None:
        item._task = _live.add_task(label, total=total, note="")
    try:
        yield item
    finally:
        if _live is not None and item._task is not None:
            _live.remove_task(item._task)


@contextmanager
def live() -> Iterator[None]:
    """Show bars live when stderr is a terminal; nested use joins the outer view."""
    global _live
    if _quiet or _live is not None or not sys.stderr.isatty():
        yield
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    _live = Progress(
        TextColumn("  {task.description}"), BarColumn(bar_width=28), TextColumn("{task.percentage:>3.0f}%"),
        TextColumn("{task.fields[note]}"), TimeRemainingColumn(compact=True),
        console=Console(stderr=True), transient=True, refresh_per_second=8,
    )
    try:
        with _live:
            yield
    finally:
        _live = None


def _short(value: float | str) -> str:
    if isinstance(value, str):
        return value
    for limit, suffix in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= limit:
            return f"{value / (1e3 if suffix == 'k' else limit):.3g}{suffix}"
    return f"{value:.4g}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"
