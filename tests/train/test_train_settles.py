"""The loop settles before every update: states copied beside training are those of a processor, step by step."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from penjing.errors import Interrupted
from penjing.train import staging, state

from .test_train_resume import run, settings, stop_after


class Late:
    """A device whose copies are made only when training's stream, or the writer, waits for them."""

    def holds(self, tensor: Tensor) -> bool:
        return True

    def mark(self) -> None:
        return None

    def copy(self, pairs: Iterable[tuple[Tensor, Tensor]], *, after: Any) -> Pending:
        return Pending(list(pairs))

    def hold(self, event: Pending) -> None:
        event.make()

    def page_locked(self, size: int) -> Tensor:
        return torch.empty(size, dtype=torch.uint8)


class Pending:
    """Copies to be made once. The writer comes late, after training had time to change what it copies."""

    def __init__(self, pairs: list[tuple[Tensor, Tensor]]) -> None:
        self._pairs, self._lock, self._held = pairs, threading.Lock(), threading.Event()

    def make(self) -> None:
        with self._lock:
            for to, source in self._pairs:
                to.copy_(source)
            self._pairs = []
        self._held.set()

    def synchronize(self) -> None:
        self._held.wait(1.0)
        self.make()


def test_every_state_is_that_of_a_processor(tmp_path: Path, tiny_checkpoint: Path, tiny_tokens: Path,
                                            monkeypatch: pytest.MonkeyPatch) -> None:
    config = settings(save_every=2, keep_states=9)
    for kind in ("plain", "beside"):
        if kind == "beside":
            monkeypatch.setattr(staging, "of", lambda tensors: staging.Staging(Late()))
        with pytest.raises(Interrupted):
            run(tmp_path / kind, tiny_checkpoint, tiny_tokens, config=config, stop=stop_after(5))
    steps = sorted(path.name for path in (tmp_path / "plain" / "state").iterdir())
    assert len(steps) == 3
    for name in steps:
        one, other = (tmp_path / kind / "state" / name / state.TENSORS for kind in ("plain", "beside"))
        assert one.read_bytes() == other.read_bytes(), name
