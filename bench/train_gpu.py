"""One GPU: model FLOPs utilisation, the price of isolation, UL2 on OpenBA's layers, a peer, and memory of the loss. One command:

    python bench/train_gpu.py --json            [--layers 12] [--rows 4] [--length 4096] [--shape 7b|13b] [--only llama,openba,…]
    python bench/train_gpu.py --tiny --json     a smoke test of every line on a processor

Prints for every setting tokens per second, `mfu` (PaLM's count) and `mfu_strict` (causal halves of each document's square, no
input embedding), peak memory, and the share of a measured matrix product. `llama`: isolated documents or one document a row,
activation checkpointing, compile, fp8 where the GPU and torchao can. `peer`: transformers' own forward and loss on the same rows
(scaled-dot-product attention, positions that restart, bf16 autocast, fused AdamW), plain and compiled: what a Trainer runs. `openba`:
layers of OpenBA-15B on packed pairs of a UL2 shape. `loss`: peak memory of the chunked against the plain loss at a 250k vocabulary.
As many layers as fit are a fair stand-in for the whole model: every layer costs the same. What does not fit is said and passed over.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

SHAPES = {"7b": (4096, 11008, 32), "13b": (5120, 13824, 40), "tiny": (64, 128, 4)}
PARTS = ("llama", "peer", "openba", "loss")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--shape", choices=SHAPES, default="7b")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--length", type=int, default=4096)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--only", default=",".join(PARTS), help="parts to run, of " + ", ".join(PARTS))
    given = parser.parse_args()
    if given.tiny:
        given.shape, given.layers, given.rows, given.length, given.steps = "tiny", 2, 2, 128, 2
    if not given.tiny and not torch.cuda.is_available():
        raise SystemExit("no GPU here; --tiny runs every line on a processor")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    parts = given.only.split(",")
    report: dict[str, Any] = {"benchmark": "train_gpu", "shape": given.shape, "layers": given.layers, "rows": given.rows,
                              "length": given.length, "torch": torch.__version__, "product_flops": product_flops(device, given),
                              "device": torch.cuda.get_device_name() if device.type == "cuda" else "processor"}
    if "llama" in parts:
        report["llama"] = [attempt(setting, lambda setting=setting: llama(given, device, **setting)) for setting in settings(given, device)]
        speed = {(one["isolated"], one["recompute"], one["compile"], one["fp8"]): one.get("tokens_per_s") for one in report["llama"]}
        ours, plain = speed.get((True, "none", False, False)), speed.get((False, "none", False, False))
        report["isolation_costs"] = 1 - ours / plain if ours and plain else None
    if "peer" in parts:
        report["peer"] = [attempt({"compile": compiled}, lambda compiled=compiled: peer(given, device, compiled=compiled))
                          for compiled in ((False,) if given.tiny else (False, True))]
        best = [max((one["tokens_per_s"] for one in report.get(name, []) if one.get("isolated", True) and "tokens_per_s" in one
                     and not one.get("fp8")), default=None) for name in ("llama", "peer")]
        report["times_peer"] = best[0] / best[1] if best[0] and best[1] else None
    if "openba" in parts:
        report["openba"] = [attempt({"recompute": recompute}, lambda recompute=recompute: openba(given, device, recompute=recompute))
                            for recompute in ("none", "selective")]
    if "loss" in parts:
        report["loss_memory"] = loss_memory(given, device)
    print(json.dumps(report, indent=None if given.json else 2))


def settings(given: argparse.Namespace, device: torch.device) -> list[dict[str, Any]]:
    """What LLaMA's layers are timed under; everything is compiled but on a smoke test."""
    compiled = not given.tiny
    rows = [(True, "none", False, False), (False, "none", False, False), (True, "selective", False, False), (True, "full", False, False),
            (True, "none", compiled, False), (False, "none", compiled, False), (True, "selective", compiled, False),
            (True, "full", compiled, False)]
    if device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 9):
        rows += [(True, "none", True, True), (True, "selective", True, True)]
    return [dict(zip(("isolated", "recompute", "compile", "fp8"), row, strict=True)) for row in rows]


def attempt(setting: dict[str, Any], run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The figures of one setting, or why there are none; memory is free again afterwards."""
    try:
        return {**setting, **run()}
    except (torch.OutOfMemoryError, ImportError) as error:
        return {**setting, "failed": str(error).splitlines()[0][:200]}
    except Exception as error:  # one broken setting must not cost the figures of the others
        return {**setting, "failed": f"{type(error).__name__}: {str(error)[:300]}"}
    finally:
        torch.compiler.reset()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()


def llama(given: argparse.Namespace, device: torch.device, *, isolated: bool, recompute: str, compile: bool, fp8: bool) -> dict[str, Any]:
    """Forward, backward, clip and fused AdamW of our own modules."""
    from transformers import LlamaForCausalLM

    from penjing.train import distributed, light, metrics
    from penjing.train.config import TrainConfig
    from penjing.train.feed import split
    from penjing.train.model import Objective, prepare

    shape = llama_shape(given)
    with device:
        model = prepare(LlamaForCausalLM(shape)).train()
    config = TrainConfig(tokens=1, recompute=recompute, compile=compile)
    if fp8:
        light.multiply_in_8_bits(model, device)
    objective = Objective(model, config, product=torch.bfloat16)
    distributed.speed_up(model, config)
    part = split(llama_batch(given, shape.vocab_size, isolated=isolated), slice(None))
    squares, part = metrics.squared_lengths(part), part.to(device)
    cost = metrics.cost_of(shape.to_dict())
    assert cost is not None
    tokens = part.targets.numel()
    seconds = timed(given, device, model, lambda: objective(part).total / tokens)
    return figures(given, device, seconds, tokens, cost.usual(tokens, given.length), cost.strict(tokens, squares))


def peer(given: argparse.Namespace, device: torch.device, *, compiled: bool) -> dict[str, Any]:
    """The same rows through transformers' own forward and loss."""
    from transformers import LlamaForCausalLM

    from penjing.train import metrics
    from penjing.train.feed import split

    shape = llama_shape(given)
    shape.use_cache = False
    with device:
        model = LlamaForCausalLM(shape).train()
    model.set_attn_implementation("sdpa")
    part = split(llama_batch(given, shape.vocab_size, isolated=True), slice(None))
    squares, part = metrics.squared_lengths(part), part.to(device)
    labels = torch.cat([torch.full_like(part.targets[:, :1], -100), part.targets[:, :-1]], 1)  # the model shifts them itself
    forward: Any = torch.compile(model) if compiled else model

    def loss() -> Any:
        with torch.autocast(device.type, torch.bfloat16):
            return forward(input_ids=part.tokens, position_ids=part.positions, labels=labels).loss

    cost = metrics.cost_of(shape.to_dict())
    assert cost is not None
    tokens = part.targets.numel()
    seconds = timed(given, device, model, loss)
    return figures(given, device, seconds, tokens, cost.usual(tokens, given.length), cost.strict(tokens, squares))


def openba(given: argparse.Namespace, device: torch.device, *, recompute: str) -> dict[str, Any]:
    """Layers of OpenBA-15B, one encoder layer for three of the decoder, on pairs of two thirds input and one third output."""
    from penjing.models.cost import flops_per_sample
    from penjing.models.openba import OpenBAConfig, OpenBAForConditionalGeneration
    from penjing.objectives.example import Batch
    from penjing.train import distributed
    from penjing.train.config import TrainConfig
    from penjing.train.feed import split
    from penjing.train.model import Objective, prepare

    encoder, decoder, lines = max(1, given.layers // 6), max(1, given.layers // 2), given.rows
    wide = {"hidden_size": 4096, "kv_channels": 128, "ffn_hidden_size": 16384, "num_heads": 40, "vocab_size": 250880}
    if given.tiny:
        wide = {"hidden_size": 64, "kv_channels": 16, "ffn_hidden_size": 96, "num_heads": 4, "vocab_size": 512}
    length, short = given.length // 2, given.length // 4
    shape = OpenBAConfig(**wide, num_layers=encoder, num_decoder_layers=decoder, hidden_dropout=0.0, attention_dropout=0.0,
                         max_seq_length=length, decoder_max_seq_length=length)
    with device:
        model = prepare(OpenBAForConditionalGeneration(shape)).train()
    config = TrainConfig(tokens=1, recompute=recompute)
    objective = Objective(model, config, product=torch.bfloat16)
    distributed.speed_up(model, config)
    rng = np.random.default_rng(0)
    nothing = np.zeros(lines, np.int32)

    def side(width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # four pairs a row
        place = np.arange(width, dtype=np.int32)
        return (rng.integers(0, shape.vocab_size, (lines, width)), np.tile(1 + place * 4 // width, (lines, 1)),
                np.tile(place % (width // 4), (lines, 1)))

    inputs, outputs = side(length), side(short)
    batch = Batch(nothing, nothing, targets_BD=np.roll(outputs[0], -1, 1), weights_BD=np.ones((lines, short), np.float32),
                  encoder_tokens_BE=inputs[0], encoder_segments_BE=inputs[1], encoder_positions_BE=inputs[2],
                  decoder_tokens_BD=outputs[0], decoder_segments_BD=outputs[1], decoder_positions_BD=outputs[2])
    part = split(batch, slice(None)).to(device)
    labels = part.targets.numel()
    seconds = timed(given, device, model, lambda: objective(part).total / labels)
    described = shape.to_dict()
    usual = lines * flops_per_sample(described, encoder_length=length, decoder_length=short)
    apart = lines * 4 * flops_per_sample(described, encoder_length=length // 4, decoder_length=short // 4)
    return {"encoder_layers": encoder, "decoder_layers": decoder, "rows": f"{length}:{short}",
            **figures(given, device, seconds, lines * (length + short), usual, apart)}


def timed(given: argparse.Namespace, device: torch.device, model: Any, loss: Callable[[], Any]) -> float:
    """Median seconds of a step: forward, backward, clipping, fused AdamW."""
    from penjing.train import optim
    from penjing.train.config import TrainConfig

    config = TrainConfig(tokens=1)
    parameters = optim.choose_trainable(model, config)
    optimizer = optim.build_optimizer(parameters, config)
    marks = []
    for _ in range(given.steps + 2):
        loss().backward()
        norm = float(optim.gradient_norm(parameters.values()))
        optim.scale_gradients(parameters.values(), min(1.0, 1.0 / max(norm, 1e-6)))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if device.type == "cuda":
            torch.cuda.synchronize()
        marks.append(time.perf_counter())
    return float(np.median(np.diff(marks[1:])))


def figures(given: argparse.Namespace, device: torch.device, seconds: float, tokens: int, usual: float, strict: float) -> dict[str, Any]:
    """What is reported of every setting; the peak is the data sheet's for bf16, also under fp8."""
    from penjing.train import metrics

    peak, source = metrics.peak_flops(device, torch.bfloat16)
    return {"seconds": seconds, "tokens_per_s": tokens / seconds, "mfu": usual / seconds / peak if peak else None,
            "mfu_strict": strict / seconds / peak if peak else None, "tflops": usual / seconds / 1e12, "peak": source,
            "share_of_product": strict / seconds / product_flops(device, given), "memory_bytes": metrics.memory_bytes(device)}


def llama_shape(given: argparse.Namespace) -> Any:
    """LLaMA's layers of the size asked for."""
    from transformers import LlamaConfig

    hidden, ffn, heads = SHAPES[given.shape]
    return LlamaConfig(vocab_size=32000 if not given.tiny else 512, hidden_size=hidden, intermediate_size=ffn,
                       num_hidden_layers=given.layers, num_attention_heads=heads, num_key_value_heads=heads,
                       max_position_embeddings=given.length)


def llama_batch(given: argparse.Namespace, vocab: int, *, isolated: bool) -> Any:
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
