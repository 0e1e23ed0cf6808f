"""Megatron-core's own datasets over one of our shards; run by bench/objectives.py in the peer's environment.

python objectives_peer.py PREFIX VOCAB_SIZE -> one JSON object on the last line
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from typing import Any

warnings.filterwarnings("ignore")

import numpy as np  # noqa: E402
import torch  # noqa: E402
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig  # noqa: E402
from megatron.core.datasets.indexed_dataset import IndexedDataset  # noqa: E402
from megatron.core.datasets.t5_dataset import T5MaskedWordPieceDataset, T5MaskedWordPieceDatasetConfig  # noqa: E402
from megatron.core.datasets.utils import Split  # noqa: E402

torch.set_num_threads(1)


class Words:
    """As much of a tokenizer as the datasets ask for."""

    def __init__(self, size: int) -> None:
        self.vocab_size = size
        self.inv_vocab = {i: f"w{i}" for i in range(size)}
        self.vocab = {word: i for i, word in self.inv_vocab.items()}
        self.eod = self.eos = self.eos_id = 1
        self.pad = self.bos = 0
        self.cls, self.sep, self.mask = 2, 3, 4
        self.additional_special_tokens_ids = list(range(size - 1, size - 401, -1))
        self.unique_identifiers = {"class": "Words", "size": size}


def rate(dataset: Any, count: int, width: int) -> float:
    """Tokens per CPU-second."""
    dataset[0]
    started = time.process_time()
    for index in range(count):
        dataset[index % len(dataset)]
    return count * width / (time.process_time() - started)


def main() -> None:
    prefix, size = sys.argv[1], int(sys.argv[2])
    tokenizer = Words(size)
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    started = time.perf_counter()
    indexed = IndexedDataset(prefix, mmap=True)
    opened = time.perf_counter() - started
    indices = np.arange(len(indexed), dtype=np.int32)
    figures: dict[str, Any] = {"open_s": opened, "sequences": len(indexed), "first": indexed[0][:5].tolist(),
                               "checksum": int(sum(int(indexed[i].sum()) for i in range(0, len(indexed), 97)))}
    for name, reset in (("gpt_tokens_per_cpu_s", False), ("gpt_isolated_tokens_per_cpu_s", True)):
        config = GPTDatasetConfig(random_seed=1, sequence_length=4096, split="1,0,0", tokenizer=tokenizer,
                                  reset_position_ids=reset,
                                  reset_attention_mask=reset, eod_mask_loss=reset, create_attention_mask=reset)
        dataset = GPTDataset(indexed, prefix, indices, None, Split.train, config)
        figures[name] = rate(dataset, 40 if reset else 2000, 4096)
    config = T5MaskedWordPieceDatasetConfig(
        random_seed=1, sequence_length=512, sequence_length_decoder=256, split="1,0,0", tokenizer=tokenizer,
        masking_probability=0.15, short_sequence_probability=0.0, masking_max_ngram=10, masking_do_full_word=False,
        masking_do_permutation=False, masking_use_longer_ngrams=False, masking_use_geometric_distribution=True)
    dataset = T5MaskedWordPieceDataset(indexed, prefix, indices, 4000, Split.train, config)
    figures["t5_tokens_per_cpu_s"] = rate(dataset, 300, 512)
    used = [int(item["enc_mask"].sum() + item["dec_mask"].sum()) for item in (dataset[i] for i in range(200))]
    figures["t5_fill"] = float(np.mean(used)) / 768
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
