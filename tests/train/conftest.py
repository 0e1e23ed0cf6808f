"""A tiny checkpoint and tiny tokens that the tests of training share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from penjing.config import generator


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaMA of about 30k parameters with grouped queries; no tokenizer."""
    return make_checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tiny_tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sources of documents with a structure that can be learned: runs that count upwards."""
    return make_tokens(tmp_path_factory.mktemp("tokens"))


def make_checkpoint(path: Path, *, layers: int = 2, seed: int = 0, **more: object) -> Path:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    sizes = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": layers,
             "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256, "tie_word_embeddings": True,
             "bos_token_id": 1, "eos_token_id": 2, **more}
    LlamaForCausalLM(LlamaConfig(**sizes)).save_pretrained(path)
    return path


def make_tokens(path: Path, *, documents: int = 200) -> Path:
    from penjing.objectives.tokens import write_tokens

    rng = generator(3, "documents")
    made: dict[str, list[tuple[np.ndarray]]] = {"en": [], "zh": []}
    for number in range(documents):
        length, start, stride = int(rng.integers(3, 60)), int(rng.integers(3, 90)), int(rng.integers(1, 3))
        text = 3 + (start + stride * np.arange(length)) % 90
        made["en" if number % 3 else "zh"].append((np.append(text, 2),))
    write_tokens(path, made, vocab_size=97, eos_id=2)
    return path
