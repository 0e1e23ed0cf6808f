"""An eye on a unit that runs in this very process: one that hangs is named within seconds, as one in a worker is."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from penjing.console import say
from penjing.data import engine_local


@contextmanager
def watched(label: str, name: str) -> Iterator[None]:
    """Say so when the block uses no processor time for `engine_local.REPORT_IDLE_SECONDS`, or runs for minutes."""
    done = threading.Event()
    watcher = threading.Thread(target=_watch, args=(done, label, name), daemon=True, name="penjing-watch")
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()


def _watch(done: threading.Event, label: str, name: str) -> None:
    began = moved = time.monotonic()
    used = time.process_time()
    reported = called_slow = False
    every = min(1.0, engine_local.REPORT_IDLE_SECONDS / 4)
    while not done.wait(every):
        now, spent = time.monotonic(), time.process_time()
        if spent > used + 0.02:
            used, moved, reported = spent, now, False
        elif now - moved > engine_local.REPORT_IDLE_SECONDS and not reported:
            reported = True
            say(f"  {label}: unit '{name}' has used no processor time for {now - moved:.0f} s (waiting for a disk or hung); "
                "Ctrl-C stops it")
        if now - began > engine_local.slow_after(0.0) and not called_slow:
            called_slow = True
            say(engine_local.slow_unit(label, name, now - began, 0.0))
