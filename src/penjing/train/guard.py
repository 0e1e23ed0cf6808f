"""Is this step like the ones before it? Spikes of the loss or of the gradient norm, and numbers that are no numbers.

The rule is OLMo-core's (mean plus some standard deviations over a window of accepted steps), with a floor relative to the
median as Ziya2's notes suggest, so that a run whose loss hardly moves does not skip half its data.
"""

from __future__ import annotations

import math
from collections import deque
from pathlib import Path
from statistics import fmean, median, pstdev
from typing import Any

from penjing.train.config import GuardConfig


class Guard:
    """Keeps the recent past of a run and judges each step before its update is made."""

    def __init__(self, config: GuardConfig) -> None:
        self.config = config
        self._losses: deque[float] = deque(maxlen=config.window)
        self._norms: deque[float] = deque(maxlen=config.window)
        self._skipped: deque[int] = deque(maxlen=max(1, config.max_skipped + 1))

    def judge(self, loss: float, norm: float) -> str:
        """`fine`, `spike`, or `broken` when a figure is not finite. A fine step enters the window."""
        if not (math.isfinite(loss) and math.isfinite(norm)):
            return "broken"
        if self._leaps(loss, self._losses) or self._leaps(norm, self._norms):
            return "spike"
        self.accept(loss, norm)
        return "fine"

    def accept(self, loss: float, norm: float) -> None:
        """Let a step into the window whatever it looks like."""
        self._losses.append(loss)
        self._norms.append(norm)

    def note_skip(self, step: int) -> bool:
        """Remember a dropped step; True when there were too many within one window."""
        self._skipped.append(step)
        return len(self._skipped) > self.config.max_skipped and step - self._skipped[0] < self.config.window

    def state(self) -> dict[str, Any]:
        """JSON value that `restore` takes."""
        return {"losses": list(self._losses), "norms": list(self._norms), "skipped": list(self._skipped)}

    def restore(self, state: dict[str, Any]) -> None:
        """Become what `state` says."""
        self._losses.clear()
        self._norms.clear()
        self._skipped.clear()
        self._losses.extend(state["losses"])
        self._norms.extend(state["norms"])
        self._skipped.extend(state["skipped"])

    def _leaps(self, value: float, past: deque[float]) -> bool:
        if len(past) < self.config.window // 2:
            return False
        bound = fmean(past) + self.config.spike_sigma * pstdev(past)
        return value > bound and value > self.config.min_ratio * median(past)


def keep_batch(place: Path, batch: Any, figures: dict[str, Any]) -> None:
    """Save a batch (safetensors) and what was measured on it (JSON) in the directory `place` for inspection."""
    import numpy as np
    from safetensors.numpy import save_file

    from penjing.files import write_json

    place.mkdir(parents=True, exist_ok=True)
    names = [name for name in dir(batch) if name.rsplit("_", 1)[-1] in ("B", "BS", "BE", "BD")]
    arrays = {name: np.ascontiguousarray(getattr(batch, name)) for name in names
              if isinstance(getattr(batch, name), np.ndarray)}
    save_file(arrays, str(place / "batch.safetensors"))
    write_json(place / "figures.json", {key: repr(value) if isinstance(value, float) and not math.isfinite(value) else value
                                        for key, value in figures.items()})
