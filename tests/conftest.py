"""What every test may use: the shared data (real corpora, benchmarks, tokenizers), or a skip that says why."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared() -> Path:
    """The shared data directory; tests that need it skip with a reason when it is absent."""
    root = Path(os.environ.get("PENJING_SHARED", Path(__file__).parents[2] / "shared"))
    if not (root / "data" / "README.md").is_file():
        pytest.skip(f"shared data not found at {root} (set PENJING_SHARED)")
    return root / "data"
