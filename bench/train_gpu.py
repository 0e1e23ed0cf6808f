"""One GPU: model FLOPs utilisation, the price of isolation, and memory of the loss, on LLaMA-shaped layers. One command:

    python bench/train_gpu.py --json            [--layers 12] [--rows 4] [--length 4096] [--shape 7b|13b]
    python bench/train_gpu.py --tiny --json     a smoke test of every line on a processor

Prints for every setting tokens per second, `mfu` (PaLM's count) and `mfu_strict` (causal halves of each document's square, no
input embedding), peak memory, and the share of a measured matrix product; then the peak memory of the chunked against the plain
loss at a 250k vocabulary. Settings: isolated documents or one document a row, activation checkpointing, compile. As many layers
as fit are a fair stand-in for the whole model: every layer costs the same.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import numpy as np
import torch

SHAPES = {"7b": (4096, 11008, 32), "13b": (5120, 13824, 40), "tiny": (64, 128, 4)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--shape", choices=SHAPES, default="7b")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--length", type=int, default=4096)
    parser.add_argument("--steps", type=int, default=8)
    given = parser.parse_args()
    if given.tiny:
        given.shape, given.layers, given.rows, given.length, given.steps = "tiny", 2, 2, 128, 2
    if not given.tiny and not torch.cuda.is_available():
        raise SystemExit("no GPU here; --tiny runs every line on a processor")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    results = [timed(given, device, isolated=isolated, recompute=recompute, compiled=compiled)
               for isolated, recompute, compiled in ((True, "none", False), (False, "none", False), (True, "selective", False),
                                                     (True, "full", False), (True, "none", not given.tiny),
                                                     (True, "selective", not given.tiny))]
    plain = {(entry["recompute"], entry["compile"]): entry["tokens_per_s"] for entry in results if not entry["isolated"]}
    report = {"benchmark": "train_gpu", "shape": given.shape, "layers": given.layers, "results": results,
              "isolation_costs": 1 - results[0]["tokens_per_s"] / plain["none", False], "loss_memory": loss_memory(given, device),
              "device": torch.cuda.get_device_name() if device.type == "cuda" else "processor", "torch": torch.__version__}
    print(json.dumps(report, indent=None if given.json else 2))


def timed(given: argparse.Namespace, device: torch.device, *, isolated: bool, recompute: str, compiled: bool) -> dict[str, Any]:
    """One setting: forward, backward, clip and fused AdamW."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from penjing.train import distributed, metrics, optim
    from penjing.train.config import TrainConfig
    from penjing.train.feed import split
    from penjing.train.model import Objective, prepare

    hidden, ffn, heads = SHAPES[given.shape]
    shape = LlamaConfig(vocab_size=32000 if not given.tiny else 512, hidden_size=hidden, intermediate_size=ffn,
                        num_hidden_layers=given.layers, num_attention_heads=heads, num_key_value_heads=heads,
                        max_position_embeddings=given.length)
    with device:
        model = prepare(LlamaForCausalLM(shape)).train()
    config = TrainConfig(tokens=1, recompute=recompute, compile=compiled)
    objective = Objective(model, config, product=torch.bfloat16)
    parameters = optim.choose_trainable(model, config)
    distributed.speed_up(model, config)
    optimizer = optim.build_optimizer(parameters, config)
    part = split(batch_of(given, shape.vocab_size, isolated=isolated), slice(None))
    squares, part = metrics.squared_lengths(part), part.to(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    marks = []
    for _ in range(given.steps + 2):
        losses = objective(part)
        (losses.total / part.targets.numel()).backward()
        norm = float(optim.gradient_norm(parameters.values()))
        optim.scale_gradients(parameters.values(), min(1.0, 1.0 / max(norm, 1e-6)))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if device.type == "cuda":
            torch.cuda.synchronize()
        marks.append(time.perf_counter())
    seconds = float(np.median(np.diff(marks[1:])))
    tokens = part.targets.numel()
    cost = metrics.cost_of(shape.to_dict())
    assert cost is not None
    peak, source = metrics.peak_flops(device, torch.bfloat16)
    del model, objective, optimizer
    return {"isolated": isolated, "recompute": recompute, "compile": compiled, "tokens_per_s": tokens / seconds,
            "mfu": cost.usual(tokens, given.length) / seconds / peak if peak else None,
            "mfu_strict": cost.strict(tokens, squares) / seconds / peak if peak else None,
            "share_of_product": cost.strict(tokens, squares) / seconds / product_flops(device, given), "peak": source,
            "memory_bytes": metrics.memory_bytes(device)}


def batch_of(given: argparse.Namespace, vocab: int, *, isolated: bool) -> Any:
    """Rows full of documents of log-normal length (mean about 800 tokens), or of one document."""
    from penjing.objectives.example import Batch

    rng = np.random.default_rng(0)
    shape = (given.rows, given.length)
    segments, positions = np.ones(shape, np.int32), np.tile(np.arange(given.length, dtype=np.int32), (given.rows, 1))
    if isolated:
        for row in range(given.rows):
            at, number = 0, 1
            while at < given.length:
                size = min(given.length - at, max(16, int(rng.lognormal(6.3, 0.9))))
                segments[row, at : at + size], positions[row, at : at + size] = number, np.arange(size)
                at, number = at + size, number + 1
    tokens = rng.integers(0, vocab, shape)
    nothing = np.zeros(given.rows, np.int32)
    return Batch(nothing, nothing, targets_BS=np.roll(tokens, -1, 1), weights_BS=np.ones(shape, np.float32), tokens_BS=tokens,
                 segments_BS=segments, positions_BS=positions)


def product_flops(device: torch.device, given: argparse.Namespace) -> float:
    """FLOPS of a large bf16 product: the practical ceiling."""
    size = 8192 if not given.tiny else 512
    a = torch.ones(size, size, dtype=torch.bfloat16, device=device)
    best = float("inf")
    for _ in range(5):
        started = time.perf_counter()
        a @ a
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best


def loss_memory(given: argparse.Namespace, device: torch.device) -> dict[str, int | None]:
    """Peak bytes above the inputs of the chunked and of the plain loss at 250k ids; None on a processor."""
    import torch.nn.functional as functional

    from penjing.train.loss import chunked_loss

    positions, hidden, vocab = (4096, 2560, 250240) if not given.tiny else (64, 32, 2500)
    found: dict[str, int | None] = {}
    for name in ("chunked", "plain"):
        states = torch.randn(positions, hidden, device=device, requires_grad=True)
        table = torch.randn(vocab, hidden, device=device, requires_grad=True)
        targets = torch.randint(0, vocab, (positions,), device=device)
        before = 0
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
        if name == "chunked":
            weights = torch.ones(positions, device=device)
            chunked_loss(states, table, None, targets, weights, chunk=1024, product=torch.bfloat16).total.backward()
        else:
            functional.cross_entropy((states.bfloat16() @ table.bfloat16().T).float(), targets, reduction="sum").backward()
        found[name] = int(torch.cuda.max_memory_allocated() - before) if device.type == "cuda" else None
        del states, table
    return found


if __name__ == "__main__":
    main()
