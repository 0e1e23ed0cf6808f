"""Continuations: greedy equals the reference of the trained model, sampling repeats with its seed."""

from __future__ import annotations

import json
from pathlib import Path

from penjing.generate.sample import Sampling, continue_texts


def test_greedy_equals_the_published_continuation(shared: Path) -> None:
    path = shared / "models" / "stories260K"
    expected = json.loads((path / "expected_greedy.json").read_text())
    [text] = continue_texts(path, ["Once upon a time"], sampling=Sampling(max_new_tokens=60, temperature=0.0))
    assert ("Once upon a time" + text) == expected_text(expected)[: len("Once upon a time" + text)]
    assert len(text) > 60


def test_same_seed_same_text(shared: Path) -> None:
    path = shared / "models" / "stories260K"
    first, again, other = (continue_texts(path, ["The cat"], sampling=Sampling(max_new_tokens=30, seed=seed))[0]
                           for seed in (1, 1, 2))
    assert first == again and first != other


def expected_text(found: object) -> str:
    """The longest text in the reference file, wherever it keeps it."""
    if isinstance(found, str):
        return found
    values = found.values() if isinstance(found, dict) else found if isinstance(found, list) else []
    return max((expected_text(value) for value in values), key=len, default="")
