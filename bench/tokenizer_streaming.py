"""Memory and time of applying a vocabulary plan to a made-up 8 GB sharded checkpoint.

    python bench/tokenizer_streaming.py --tokenizer DIR_OR_FILE [--gigabytes 8] [--dir /tmp] [--json]

The checkpoint (bfloat16, LLaMA layout, untied) is written to a temporary directory, pruned to 75 % and grown by 2,000 pieces in
processes of their own, and removed. The bound is 1.5 times the largest tensor plus 500 MB.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np


def make(path: Path, tokenizer: Path, gigabytes: float) -> dict[str, float]:
    """Write the checkpoint; its size and that of its largest tensor, in bytes."""
    from penjing.models.checkpoint import Output, write_checkpoint
    from penjing.models.family import of
    from penjing.tokenizer.read import read_vocabulary
    from penjing.tokenizer.write import write_tokenizer

    vocabulary = read_vocabulary(tokenizer)
    rows = -(-vocabulary.total // 128) * 128
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": rows, "hidden_size": 4096,
              "intermediate_size": 11008, "num_attention_heads": 32, "num_key_value_heads": 8, "num_hidden_layers": 1,
              "rms_norm_eps": 1e-5, "max_position_embeddings": 4096, "hidden_act": "silu", "tie_word_embeddings": False,
              "dtype": "bfloat16", "bos_token_id": 1, "eos_token_id": 2}
    family = of(config)
    ends = 2 * 2 * rows * 4096
    layer = 2 * (family.count_parameters(config) - 2 * rows * 4096)
    config["num_hidden_layers"] = max(1, round((gigabytes * 1e9 - ends) / layer))
    block = (np.random.default_rng(0).normal(0, 0.02, 1 << 22).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)

    def chunks(size: int):  # type: ignore[no-untyped-def]
        def produce():  # type: ignore[no-untyped-def]
            for start in range(0, size, len(block)):
                yield block[: min(len(block), size - start)]
        return produce

    outputs = [Output(name, "BF16", tensor.shape, chunks(int(np.prod(tensor.shape))))
               for name, tensor in family.tensors(config).items()]
    write_tokenizer(vocabulary, path, source=None)
    write_checkpoint(path, config=config, tensors=outputs, max_shard_bytes=2 << 30)
    return {"checkpoint_bytes": sum(item.num_bytes for item in outputs), "largest_tensor_bytes": max(
        item.num_bytes for item in outputs), "layers": config["num_hidden_layers"], "vocab_size": vocabulary.total}


CHILD = """
import json, resource, sys, time
from pathlib import Path
from penjing.tokenizer.apply import Rows, apply_plan
from penjing.tokenizer.plan import read_plan
from penjing.tokenizer.read import read_vocabulary
source, plan, out = map(Path, sys.argv[1:4])
vocabulary = read_vocabulary(source)
ready = resource.getrusage(resource.RUSAGE_SELF)
apply_plan(read_plan(plan), vocabulary, source, out, rows=Rows())
used = resource.getrusage(resource.RUSAGE_SELF)
print(json.dumps({"peak_rss_bytes": used.ru_maxrss * 1024, "rss_before_bytes": ready.ru_maxrss * 1024,
                  "cpu_seconds": used.ru_utime + used.ru_stime - ready.ru_utime - ready.ru_stime}))
"""


def plans(path: Path, out: Path) -> dict[str, Path]:
    """A pruning plan to 75 % by made-up counts, and a growth plan of 2,000 rare characters."""
    from penjing.tokenizer.grow import Wish, plan_growth
    from penjing.tokenizer.plan import write_plan
    from penjing.tokenizer.prune import plan_pruning
    from penjing.tokenizer.read import read_vocabulary

    vocabulary = read_vocabulary(path)
    counts = np.random.default_rng(1).zipf(1.2, vocabulary.total).clip(0, 1 << 40).astype(np.int64)
    characters = np.zeros(0x110000, dtype=np.int64)
    characters[0x20000:0x20000 + 4000] = np.arange(4010, 10, -1)
    made = {"prune": plan_pruning(vocabulary, {"all": counts}, size=int(0.75 * vocabulary.total), pad_to_multiple=128),
            "grow": plan_growth(vocabulary, characters, None, Wish(vocabulary.total + 2000, pad_to_multiple=128))}
    for name, plan in made.items():
        write_plan(out / f"{name}.json", plan)
    return {name: out / f"{name}.json" for name in made}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--gigabytes", type=float, default=8.0)
    parser.add_argument("--dir", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    place = Path(tempfile.mkdtemp(prefix="penjing-streaming-", dir=given.dir))
    try:
        figures: dict[str, object] = {"machine": f"{os.cpu_count()} cores {platform.machine()}",
                                      **make(place / "source", given.tokenizer, given.gigabytes)}
        bound = 1.5 * float(figures["largest_tensor_bytes"]) + 500e6  # type: ignore[arg-type]
        figures["bound_bytes"] = bound
        for name, plan in plans(place / "source", place).items():
            started = time.monotonic()
            done = subprocess.run([sys.executable, "-c", CHILD, str(place / "source"), str(plan), str(place / name)], check=True,
                                  capture_output=True, text=True)
            own = json.loads(done.stdout.splitlines()[-1])
            size = sum(file.stat().st_size for file in (place / name).rglob("*.safetensors"))
            figures[name] = {**own, "out_bytes": size, "wall_seconds": round(time.monotonic() - started, 1),
                             "within_bound": own["peak_rss_bytes"] < bound}
            shutil.rmtree(place / name)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    if given.json:
        print(json.dumps(figures))
        return
    for key, value in figures.items():
        print(f"{key:24} {value}")


if __name__ == "__main__":
    main()
