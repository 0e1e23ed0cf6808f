"""Tokens per core-second of penjing's loop and of the Hugging Face Trainer on the same packed, isolated rows; one thread.

    python bench/train_cpu.py --json [--lengths 512,2048,4096] [--model 20m|95m] [--steps 3] [--compile]
    python bench/train_cpu.py --attention       the three ways of computing a document's attention, by its length

The peer is transformers' Trainer with bf16, fused AdamW and packed rows told apart by position_ids (its own way, which builds a
dense mask), with torch.compile on top when --compile is given. Losses of both are printed: they must agree. Time is CPU time of
the process, so a busy machine does not matter much. accelerate, which Trainer needs, is installed beside this script's run.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SHAPES = {
    "20m": {"vocab_size": 8192, "hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 10, "num_attention_heads": 6,
            "num_key_value_heads": 6},
    "95m": {"vocab_size": 16384, "hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12,
            "num_attention_heads": 12, "num_key_value_heads": 12},
    "2m": {"vocab_size": 4096, "hidden_size": 160, "intermediate_size": 448, "num_hidden_layers": 6, "num_attention_heads": 5,
           "num_key_value_heads": 5},
}
TOKENS_PER_STEP = 4096


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--lengths", default="512,2048,4096")
    parser.add_argument("--model", choices=SHAPES, default="20m")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--compile", action="store_true", help="compile the peer's model; ours stays eager")
    parser.add_argument("--attention", action="store_true", help="only the attention of documents of one length: tiles, strips, flash")
    parser.add_argument("--one", nargs=3, metavar=("WHO", "LENGTH", "DIR"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        who, length, folder = given.one
        run = ours if who == "ours" else trainer
        print(json.dumps(run(Path(folder), int(length), given.steps, given.compile)))
        return
    if given.attention:
        print(json.dumps({"benchmark": "attention", "results": attention(), "machine": machine()}, indent=2))
        return
    results = []
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder), SHAPES[given.model])
        for length in map(int, given.lengths.split(",")):
            pair = {who: alone(who, length, folder, given) for who in ("ours", "trainer")}
            results.append({"length": length, "ours": pair["ours"], "trainer": pair["trainer"],
                            "ratio": pair["ours"]["tokens_per_core_s"] / pair["trainer"]["tokens_per_core_s"]})
    report = {"benchmark": "train_cpu", "model": given.model, "peer": "transformers.Trainer" + (" + compile" * given.compile),
              "results": results, "machine": machine()}
    print(json.dumps(report, indent=None if given.json else 2))


def alone(who: str, length: int, folder: str, given: argparse.Namespace) -> dict[str, Any]:
    """One side in a process of its own."""
    path = os.pathsep.join(filter(None, [accelerate_path() if who == "trainer" else "", os.environ.get("PYTHONPATH", "")]))
    command = [sys.executable, __file__, "--one", who, str(length), folder, "--steps", str(given.steps), "--model", given.model]
    made = subprocess.run(command + ["--compile"] * given.compile, capture_output=True, text=True, check=False,
                          env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path})
    if made.returncode:
        raise SystemExit(made.stderr[-2000:])
    found: dict[str, Any] = json.loads(made.stdout.strip().splitlines()[-1])
    return found


def attention(heads: int = 6, dim: int = 64) -> list[dict[str, Any]]:
    """CPU milliseconds, forward and backward, of about 4,096 tokens in documents of one length, bf16, one thread: best of four."""
    import numpy as np
    import torch

    from penjing.train import strips, tiles
    from penjing.train.attention import attend, self_isolation

    torch.set_num_threads(1)
    limits = {"tiles": ((1 << 20,), 0), "strips": ((8,), 1 << 20), "flash": ((8,), 0)}
    found = []
    for length in (48, 96, 160, 200, 300, 450, 600, 800, 1000, 2000, 4000):
        count = max(1, 4096 // length)
        row: dict[str, Any] = {"length": length, "documents": count}
        for name, (levels, up_to) in limits.items():
            if name == "tiles" and length > 600:
                continue
            tiles.LEVELS = tuple(range(32, 608, 32)) if name == "tiles" else levels
            strips.UP_TO = up_to
            tiles._plan.cache_clear()
            layout = self_isolation(np.repeat(np.arange(1, count + 1), length)[None].astype(np.int32), causal=True)
            q, k = (torch.randn(count * length, heads, dim, requires_grad=True) for _ in range(2))
            v = torch.randn(count * length, heads, dim, dtype=torch.bfloat16, requires_grad=True)
            best = float("inf")
            for _ in range(5):
                started = time.process_time()
                torch.autograd.grad(attend(q, k, v, layout, scale=dim**-0.5).sum(), (q, k, v))
                best = min(best, time.process_time() - started)
            row[name] = round(best * 1e3, 1)
        found.append(row)
    return found


def accelerate_path() -> str:
    """Where accelerate is, installed without its dependencies when it is not there yet."""
    place = Path(tempfile.gettempdir()) / "penjing-bench-accelerate"
    if not (place / "accelerate").is_dir():
        subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(place), "accelerate"], check=True)
    return str(place)


def prepare(folder: Path, shape: dict[str, int]) -> None:
    """A random model and documents of log-normal length (mean about 300 tokens)."""
    import numpy as np
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from penjing.objectives.tokens import write_tokens

    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**shape, max_position_embeddings=4096, tie_word_embeddings=True)).save_pretrained(folder / "model")
    rng = np.random.default_rng(0)
    vocab = shape["vocab_size"]
    lengths = np.clip(rng.lognormal(5.3, 0.9, 2000).astype(int), 8, 4000)
    documents = [(np.append(3 + (rng.zipf(1.3, length) % (vocab - 3)), 2),) for length in lengths]
    write_tokens(folder / "tokens", {"text": documents}, vocab_size=vocab, eos_id=2)


def stream_of(folder: Path, length: int) -> Any:
    from penjing.objectives.stream import StreamConfig, build_stream

    return build_stream(StreamConfig(sequence_length=length, batch_rows=TOKENS_PER_STEP // length, packing="best-fit"), folder / "tokens")


def ours(folder: Path, length: int, steps: int, compiled: bool) -> dict[str, Any]:
    """penjing.train.loop, reading its own metrics; the first step is not counted."""
    from penjing.contract import Job
    from penjing.train.config import TrainConfig
    from penjing.train.loop import Run

    class Clock(Job):
        def record(self, **figures: object) -> None:
            if "grad_norm" in figures:
                marks.append(time.process_time())
                losses.append(float(figures["loss"]))  # type: ignore[arg-type]

    marks: list[float] = []
    losses: list[float] = []
    config = TrainConfig(tokens=10**9, lr=1e-4, schedule="constant", warmup_tokens=0, precision="bf16", threads=1, save_every=10**6)
    run = Run(config, checkpoint=folder / "model", stream=stream_of(folder, length), out=folder / f"out{length}",
              job=Clock(stop=lambda: len(marks) >= steps), teacher=None, held_out=None, validation=None, identity={})
    try:
        run.go()
    except Exception as error:
        if type(error).__name__ != "Interrupted":
            raise
    seconds = [b - a for a, b in itertools.pairwise(marks)]
    return {"tokens_per_core_s": run.tokens / len(marks) / min(seconds), "losses": losses[: steps + 1], "seconds_per_step": seconds}


def trainer(folder: Path, length: int, steps: int, compiled: bool) -> dict[str, Any]:
    """transformers.Trainer over the same rows."""
    import torch
    from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments

    torch.set_num_threads(1)
    stream = stream_of(folder, length)
    rows = []
    for step in range(steps + 2):
        batch = stream.batch(step)
        for tokens, targets, positions in zip(batch.tokens_BS, batch.targets_BS, batch.positions_BS, strict=True):
            labels = [-100, *targets[:-1].tolist()]  # Trainer's models shift the labels themselves
            rows.append({"input_ids": tokens.tolist(), "labels": labels, "position_ids": positions.tolist()})
    marks: list[float] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            marks.append(time.process_time())

    model = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
    arguments = TrainingArguments(
        output_dir=str(folder / "trainer"), max_steps=steps + 1, per_device_train_batch_size=TOKENS_PER_STEP // length,
        learning_rate=1e-4, lr_scheduler_type="constant", weight_decay=0.1, adam_beta2=0.95, bf16=True, use_cpu=True,
        optim="adamw_torch_fused", torch_compile=compiled, logging_steps=1, save_strategy="no", report_to="none",
        dataloader_num_workers=0, remove_unused_columns=False, disable_tqdm=True, train_sampling_strategy="sequential")

    def collate(items: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        return {name: torch.tensor([item[name] for item in items]) for name in items[0]}

    made = Trainer(model=model, args=arguments, train_dataset=rows, data_collator=collate, callbacks=[Clock()])
    made.train()
    seconds = [b - a for a, b in itertools.pairwise(marks)]
    losses = [entry["loss"] for entry in made.state.log_history if "loss" in entry]
    real = sum(int((stream.batch(step).segments_BS > 0).sum()) for step in range(steps)) / steps
    return {"tokens_per_core_s": real / min(seconds), "losses": losses, "seconds_per_step": seconds}


def machine() -> dict[str, Any]:
    """What it ran on."""
    import torch
    import transformers

    return {"cores": os.cpu_count(), "processor": platform.machine(), "bf16": torch.cpu._is_avx512_bf16_supported(),
            "torch": torch.__version__, "transformers": transformers.__version__, "threads": 1}


if __name__ == "__main__":
    main()
