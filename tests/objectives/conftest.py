"""A small TOKENS directory with text and supervised sources and every special token an objective may ask for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from penjing.objectives.tokens import Tokens, write_tokens

VOCAB = 32000
EOS = 1
SPECIAL = {f"<extra_id_{i}>": 31099 - i for i in range(100)} | {
    "<R>": 31100, "<S>": 31101, "<X>": 31102, "[MASK]": 31103, "[sMASK]": 31104, "[gMASK]": 31105, "<sop>": 31106,
    "<eop>": 31107, "[CLS]": 31108, "[SEP]": 31109,
}


def text_documents(seed: int, count: int, *, mean_log: float = 4.5, low: int = 10, high: int = 30000) -> list:
    rng = np.random.default_rng(seed)
    return [(np.append(rng.integers(low, high, max(1, int(rng.lognormal(mean_log, 1)))), EOS),) for _ in range(count)]


@pytest.fixture(scope="session")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Tokens:
    rng = np.random.default_rng(7)
    tasks = [(rng.integers(10, 30000, rng.integers(1, 60)), np.append(rng.integers(10, 30000, rng.integers(1, 20)), EOS))
             for _ in range(800)]
    sources = {"web": text_documents(1, 900), "book": text_documents(2, 60, mean_log=7.0), "tasks": tasks}
    return write_tokens(tmp_path_factory.mktemp("tokens"), sources, vocab_size=VOCAB, eos_id=EOS, special=SPECIAL)


@pytest.fixture(scope="session")
def path(tokens: Tokens) -> Path:
    return tokens.path
