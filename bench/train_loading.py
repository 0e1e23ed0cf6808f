"""Memory of processes that share a model, while it is loaded: reading what each keeps, against reading it whole and then cutting.

    python bench/train_loading.py --json [--processes 2,4] [--layouts shard,tensor,pipeline]

A LLaMA of 220M parameters is written in bf16 and laid out over processes of this machine in fp32, ready to train. Whole: transformers'
from_pretrained in every process. Prints for each layout the most memory any process had beyond what it had before, in bytes, and the
bytes of its share of the weights. Memory is the largest resident set (Linux).
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--processes", default="2,4")
    parser.add_argument("--layouts", default="shard,tensor,pipeline")
    parser.add_argument("--worker", nargs=3, metavar=("CHECKPOINT", "LAYOUT", "WHOLE"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        work(Path(given.worker[0]), given.worker[1], whole=given.worker[2] == "whole")
        return
    found = []
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = make(Path(folder) / "model")
        for count in map(int, given.processes.split(",")):
            for layout in given.layouts.split(","):
                line: dict[str, object] = {"processes": count, "layout": layout}
                for how in ("own", "whole"):
                    made = launch(checkpoint, layout, count, how)
                    line |= {f"{how}_bytes": max(one["bytes"] for one in made), "share_bytes": max(one["share"] for one in made),
                             "parameters": made[0]["parameters"]}
                found.append(line)
                print(json.dumps(line), file=sys.stderr, flush=True)
    print(json.dumps({"benchmark": "train_loading", "found": found}, indent=None if given.json else 2))


def make(path: Path) -> Path:
    """The checkpoint, in bf16."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    LlamaForCausalLM(LlamaConfig(vocab_size=32000, hidden_size=1024, intermediate_size=2816, num_hidden_layers=12, num_attention_heads=16,
                                 num_key_value_heads=16)).to(torch.bfloat16).save_pretrained(path)
    return path


def launch(checkpoint: Path, layout: str, count: int, how: str) -> list[dict[str, int]]:
    """Run the workers; what each says."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    running = [subprocess.Popen(
        [sys.executable, __file__, "--worker", str(checkpoint), layout, how], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        env={**os.environ, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1",
             "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}) for rank in range(count)]
    said = [one.communicate()[0] for one in running]
    return [json.loads(text.splitlines()[-1]) for text in said]


def work(checkpoint: Path, layout: str, *, whole: bool) -> None:
    """One process: lay the model out and say how much memory that took at most."""
    from penjing.train import assemble, distributed, model
    from penjing.train.config import TrainConfig

    if whole:
        model.load_outline = lambda path: (model.load(path), None)  # type: ignore[assignment]
    count = int(os.environ["WORLD_SIZE"])
    config = TrainConfig.model_validate({"tokens": 1, "precision": "fp32", "parallel": {layout: count}})
    world = distributed.start(config.parallel)
    Path("/proc/self/clear_refs").write_text("5")  # the most so far is what there is now
    before = most_resident()
    made = assemble.assemble(config, world, checkpoint=checkpoint, teacher=None)
    local = [one.to_local() if hasattr(one, "to_local") else one for one in made.parameters.values()]
    share = sum(one.numel() * one.element_size() for one in local)
    print(json.dumps({"bytes": most_resident() - before, "share": share, "parameters": made.total}), flush=True)
    world.barrier()
    world.end()


def most_resident() -> int:
    """The largest resident set of this process so far, in bytes (Linux)."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main()
