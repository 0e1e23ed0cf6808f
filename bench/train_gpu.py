"""One GPU: model FLOPs utilisation, the price of isolation, UL2 on OpenBA's layers, peers, and memory of the loss. One command:

    python bench/train_gpu.py --json            [--shape 7b|13b] [--layers 16] [--rows 4] [--length 4096] [--only llama,peer,…]
    python bench/train_gpu.py --tiny --json     a smoke test of every line on a processor

A step is `--parts` forward and backward passes of `--rows` rows each, gradients summed in fp32, the norm clipped, then fused AdamW on
fp32 weights. Prints for every setting tokens per second, `mfu` (PaLM's count) and `mfu_strict` (causal halves of each document's
square, no input embedding), peak memory, and the share of a measured matrix product; every line also goes to standard error at once.
`llama`: isolated documents or one document a row, activation checkpointing, compiled or not, deterministic kernels, fp8 where the GPU
and torchao can. `peer`: transformers' own forward and loss on the same rows (positions that restart, bf16 autocast, fused AdamW): what
a Trainer runs, compiled layer by layer, and with Liger's kernels and with FlexAttention where they can be had. `openba`: layers of
OpenBA-15B on packed pairs of a UL2 shape. `loss`: peak memory of the chunked against the plain loss at a 250k vocabulary. `attention`:
one layer's, ours over stretches, isolated and one document a row, and the latter through cuDNN's dense kernel.
As many layers as fit are a fair stand-in for the whole model: every layer costs the same. What does not fit is said and passed over.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")  # as training does
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import numpy as np
import torch
import torch._inductor.config

SHAPES = {"7b": (4096, 11008, 32), "13b": (5120, 13824, 40), "tiny": (64, 128, 4)}
SETTINGS = {
    "isolated": {}, "one document a row": {"isolated": False}, "deterministic": {"deterministic": True},
    "part again": {"recompute": "selective"}, "all again": {"recompute": "full"}, "fp8": {"fp8": True},
    "one document a row, cuDNN's dense attention": {"isolated": False, "dense": True},
    "not compiled": {"compile": False}, "not compiled, one document a row": {"compile": False, "isolated": False},
}
PEERS = ("sdpa", "sdpa, compiled", "liger", "flex_attention, compiled")
PARTS = ("llama", "peer", "openba", "loss", "attention")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--shape", choices=SHAPES, default="7b")
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--parts", type=int, default=4, help="forward and backward passes per step")
    parser.add_argument("--length", type=int, default=4096)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--only", default=",".join(PARTS), help="parts to run, of " + ", ".join(PARTS))
    parser.add_argument("--settings", help="numbers of llama's settings to run: " + ", ".join(
        f"{number} {name}" for number, name in enumerate(SETTINGS)))
    parser.add_argument("--peers", help="numbers of peers to run: " + ", ".join(f"{number} {name}" for number, name in enumerate(PEERS)))
    parser.add_argument("--profile", action="store_true", help="where the time of llama's first setting goes, to standard error")
    given = parser.parse_args()
    if given.tiny:
        given.shape, given.layers, given.rows, given.length, given.steps, given.parts = "tiny", 2, 2, 128, 2, 2
    if not given.tiny and not torch.cuda.is_available():
        raise SystemExit("no GPU here; --tiny runs every line on a processor")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    given.product = product_flops(device, given)
    parts = given.only.split(",")
    report: dict[str, Any] = {"benchmark": "train_gpu", "shape": given.shape, "layers": given.layers, "rows": given.rows,
                              "parts": given.parts, "length": given.length, "torch": torch.__version__,
                              "product_flops": given.product,
                              "device": torch.cuda.get_device_name() if device.type == "cuda" else "processor"}
    if "llama" in parts:
        report["llama"] = {name: attempt(name, lambda setting=setting: llama(given, device, **setting))
                           for name, setting in chosen(SETTINGS, given.settings)}
        speed = {name: one.get("tokens_per_s") for name, one in report["llama"].items()}
        plain = max((value for name, value in speed.items() if value and name.startswith("one document a row")), default=None)
        if speed.get("isolated") and plain:
            report["isolation_costs"] = 1 - speed["isolated"] / plain
    if "peer" in parts:
        report["peer"] = {name: attempt(f"peer: {name}", lambda name=name: peer(given, device, name))
                          for name, _ in chosen(dict.fromkeys(PEERS, 0), given.peers)}
        best = [max((one["tokens_per_s"] for name, one in report.get(key, {}).items() if "tokens_per_s" in one and name != "fp8"
                     and "one document" not in name), default=None) for key in ("llama", "peer")]
        report["times_peer"] = best[0] / best[1] if best[0] and best[1] else None
    if "openba" in parts:
        report["openba"] = {recompute: attempt(f"openba, recompute {recompute}",
                                               lambda recompute=recompute: openba(given, device, recompute=recompute))
                            for recompute in ("none", "selective")}
    if "loss" in parts:
        report["loss_memory"] = attempt("loss", lambda: loss_memory(given, device))
    if "attention" in parts:
        report["attention"] = attempt("attention", lambda: attention(given, device))
    print(json.dumps(report, indent=None if given.json else 2))


def chosen(named: dict[str, Any], numbers: str | None) -> list[tuple[str, Any]]:
    """All of them, or those whose numbers were given."""
    every = list(named.items())
    return every if numbers is None else [every[int(number)] for number in numbers.split(",") if number]


def attempt(name: str, run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The figures of one setting, or why there are none; memory is free again afterwards."""
    started = time.perf_counter()
    try:
        made = run()
    except Exception as error:  # one broken setting must not cost the figures of the others
        made = {"failed": f"{type(error).__name__}: {str(error)[:300]}"}
    finally:
        torch.compiler.reset()
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
    print(name, json.dumps({"took_s": round(time.perf_counter() - started, 1), **made}), file=sys.stderr, flush=True)
    return made


def llama(given: argparse.Namespace, device: torch.device, *, isolated: bool = True, recompute: str = "none", compile: bool = True,
          fp8: bool = False, deterministic: bool = False, dense: bool = False) -> dict[str, Any]:
    """Forward, backward, clip and fused AdamW of our own modules. `dense`: causal attention over whole rows that keeps nothing apart."""
    from transformers import LlamaForCausalLM

    from penjing.train import distributed, metrics
    from penjing.train.config import TrainConfig
    from penjing.train.feed import split
    from penjing.train.model import prepare

    shape = llama_shape(given)
    with device:
        model = prepare(LlamaForCausalLM(shape)).train()
    if dense:
        model.set_attn_implementation("sdpa")
    config = TrainConfig(tokens=1, recompute=recompute, compile=compile and not given.tiny, fp8=fp8)
    objective = made_ready(model, config, device)
    parts = [split(llama_batch(given, shape.vocab_size, isolated=isolated, seed=seed), slice(None)) for seed in range(given.parts)]
    squares = sum(metrics.squared_lengths(part) for part in parts)
    cost = metrics.cost_of(shape.to_dict())
    assert cost is not None
    tokens = sum(part.targets.numel() for part in parts)
    on_device = [part.to(device) for part in parts]
    share = 1.0 / tokens
    if deterministic:
        distributed.be_deterministic(compiled=True)
    kernel: Any = contextlib.nullcontext()
    if dense and device.type == "cuda":
        kernel = torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.CUDNN_ATTENTION)
    try:
        with kernel:
            seconds = timed(given, device, objective, [lambda part=part: objective(part, share=share).total * share for part in on_device])
    finally:
        torch.use_deterministic_algorithms(False)
        torch._inductor.config.deterministic = False
    return figures(given, device, seconds, tokens, cost.usual(tokens, given.length), cost.strict(tokens, squares))


def made_ready(model: Any, config: Any, device: torch.device) -> Any:
    """As train.assemble does for one process."""
    from penjing.train import distributed, light
    from penjing.train.model import Objective

    if config.fp8:
        light.multiply_in_8_bits(model, device)
    gpu = device.type == "cuda"
    objective = Objective(model, config, product=torch.bfloat16)
    if gpu:
        light.lighten_on_gpu(model, torch.bfloat16, whole=True)
        objective.keep_sums()
    distributed.speed_up(model, config)
    return objective


def peer(given: argparse.Namespace, device: torch.device, name: str) -> dict[str, Any]:
    """The same rows through transformers' own forward and loss."""
    from transformers import LlamaForCausalLM

    from penjing.train import metrics
    from penjing.train.feed import split

    if name == "liger":
        from liger_kernel.transformers import apply_liger_kernel_to_llama

        if device.type != "cuda":
            raise ImportError("Liger's kernels need a GPU")
    shape = llama_shape(given)
    shape.use_cache = False
    with device:
        model = LlamaForCausalLM(shape).train()
    if name == "liger":
        apply_liger_kernel_to_llama(model=model)
    model.set_attn_implementation("flex_attention" if "flex" in name else "sdpa")
    parts = [split(llama_batch(given, shape.vocab_size, isolated=True, seed=seed), slice(None)) for seed in range(given.parts)]
    squares = sum(metrics.squared_lengths(part) for part in parts)
    on_device = [part.to(device) for part in parts]
    labels = [torch.cat([torch.full_like(part.targets[:, :1], -100), part.targets[:, :-1]], 1) for part in on_device]  # it shifts them
    if "compiled" in name and not given.tiny:
        for layer in model.model.layers:
            layer.compile()

    def loss(number: int) -> Any:
        part = on_device[number]
        with torch.autocast(device.type, torch.bfloat16):
            made = model(input_ids=part.tokens, position_ids=part.positions, labels=labels[number])
        return made.loss / given.parts

    cost = metrics.cost_of(shape.to_dict())
    assert cost is not None
    tokens = sum(part.targets.numel() for part in parts)
    seconds = timed(given, device, model, [lambda number=number: loss(number) for number in range(given.parts)])
    return figures(given, device, seconds, tokens, cost.usual(tokens, given.length), cost.strict(tokens, squares))


def openba(given: argparse.Namespace, device: torch.device, *, recompute: str) -> dict[str, Any]:
    """Layers of OpenBA-15B, one encoder layer for three of the decoder, on pairs of two thirds input and one third output."""
    from penjing.models.cost import flops_per_sample
    from penjing.models.openba import OpenBAConfig, OpenBAForConditionalGeneration
    from penjing.objectives.example import Batch
    from penjing.train.config import TrainConfig
    from penjing.train.feed import split
    from penjing.train.model import prepare

    encoder, decoder, lines = max(1, given.layers // 8), max(1, 3 * given.layers // 8), 2 * given.rows
    wide = {"hidden_size": 4096, "kv_channels": 128, "ffn_hidden_size": 16384, "num_heads": 40, "vocab_size": 250880}
    if given.tiny:
        wide = {"hidden_size": 64, "kv_channels": 16, "ffn_hidden_size": 96, "num_heads": 4, "vocab_size": 512}
    length, short = given.length // 2, given.length // 4
    shape = OpenBAConfig(**wide, num_layers=encoder, num_decoder_layers=decoder, hidden_dropout=0.0, attention_dropout=0.0,
                         max_seq_length=length, decoder_max_seq_length=length)
    with device:
        model = prepare(OpenBAForConditionalGeneration(shape)).train()
    objective = made_ready(model, TrainConfig(tokens=1, recompute=recompute, compile=not given.tiny), device)
    rng = np.random.default_rng(0)
    nothing = np.zeros(lines, np.int32)

    def side(width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # four pairs a row
        place = np.arange(width, dtype=np.int32)
        return (rng.integers(0, shape.vocab_size, (lines, width)), np.tile(1 + place * 4 // width, (lines, 1)),
                np.tile(place % (width // 4), (lines, 1)))

    parts = []
    for _ in range(given.parts):
        inputs, outputs = side(length), side(short)
        parts.append(split(Batch(
            nothing, nothing, targets_BD=np.roll(outputs[0], -1, 1), weights_BD=np.ones((lines, short), np.float32),
            encoder_tokens_BE=inputs[0], encoder_segments_BE=inputs[1], encoder_positions_BE=inputs[2],
            decoder_tokens_BD=outputs[0], decoder_segments_BD=outputs[1], decoder_positions_BD=outputs[2]), slice(None)).to(device))
    share = 1.0 / sum(part.targets.numel() for part in parts)
    seconds = timed(given, device, objective, [lambda part=part: objective(part, share=share).total * share for part in parts])
    described, samples = shape.to_dict(), lines * given.parts
    usual = samples * flops_per_sample(described, encoder_length=length, decoder_length=short)
    apart = samples * 4 * flops_per_sample(described, encoder_length=length // 4, decoder_length=short // 4)
    return {"encoder_layers": encoder, "decoder_layers": decoder, "rows": f"{lines} of {length}:{short}",
            **figures(given, device, seconds, samples * (length + short), usual, apart)}


def timed(given: argparse.Namespace, device: torch.device, model: Any, losses: list[Callable[[], Any]]) -> float:
    """Median seconds of a step: forward and backward of every part, clipping, fused AdamW."""
    from penjing.train import optim
    from penjing.train.config import TrainConfig

    config = TrainConfig(tokens=1)
    parameters = optim.choose_trainable(getattr(model, "model", model) if hasattr(model, "copies") else model, config)
    optimizer = optim.build_optimizer(parameters, config)
    if getattr(model, "copies", None) is not None:
        model.copies.follow(optimizer)

    def step() -> float:
        for loss in losses:
            loss().backward()
        norm = float(optim.gradient_norm(parameters.values()))
        optim.scale_gradients(parameters.values(), min(1.0, 1.0 / max(norm, 1e-6)))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    step()
    marks = [step() for _ in range(given.steps + 1)]
    if given.profile:
        given.profile = False
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA, torch.profiler.ProfilerActivity.CPU]) as profile:
            step()
        print(profile.key_averages().table(sort_by="self_cuda_time_total", row_limit=28, max_name_column_width=90), file=sys.stderr)
    return float(np.median(np.diff(marks)))


def figures(given: argparse.Namespace, device: torch.device, seconds: float, tokens: int, usual: float, strict: float) -> dict[str, Any]:
    """What is reported of every setting; the peak is the data sheet's for bf16, also under fp8."""
    from penjing.train import metrics

    peak, source = metrics.peak_flops(device, torch.bfloat16)
    return {"seconds": seconds, "tokens_per_s": tokens / seconds, "mfu": usual / seconds / peak if peak else None,
            "mfu_strict": strict / seconds / peak if peak else None, "tflops": usual / seconds / 1e12, "peak": source,
            "share_of_product": strict / seconds / given.product, "memory_bytes": metrics.memory_bytes(device)}


def llama_shape(given: argparse.Namespace) -> Any:
    """LLaMA's layers of the size asked for."""
    from transformers import LlamaConfig

    hidden, ffn, heads = SHAPES[given.shape]
    return LlamaConfig(vocab_size=32000 if not given.tiny else 512, hidden_size=hidden, intermediate_size=ffn,
                       num_hidden_layers=given.layers, num_attention_heads=heads, num_key_value_heads=heads,
                       max_position_embeddings=given.length)


def llama_batch(given: argparse.Namespace, vocab: int, *, isolated: bool, seed: int) -> Any:
    """Rows full of documents of log-normal length (mean about 800 tokens), or of one document."""
    from penjing.objectives.example import Batch

    rng = np.random.default_rng(seed)
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
    a, b = (torch.randn(size, size, device=device).bfloat16() for _ in range(2))  # zeros and ones would be multiplied faster
    best = float("inf")
    for _ in range(5 if given.tiny else 30):
        started = time.perf_counter()
        a @ b
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best


def attention(given: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Seconds and TFLOPS (causal halves of squares) of one layer's attention, forward and with its backward pass."""
    from penjing.train import metrics
    from penjing.train.attention import attend
    from penjing.train.feed import split

    hidden, _, heads = SHAPES[given.shape]
    shape, scale = (given.rows * given.length, heads, hidden // heads), (hidden // heads) ** -0.5
    inputs = [torch.randn(shape, device=device, dtype=torch.bfloat16, requires_grad=True) for _ in range(3)]
    found: dict[str, Any] = {}

    def note(name: str, run: Callable[[], Any], squares: float) -> None:
        pull = torch.randn_like(run())
        for part, call, products in (("forward", run, 2), ("both", lambda: torch.autograd.grad(run(), inputs, pull), 7)):
            call()
            marks = []
            for _ in range(10):
                if device.type == "cuda":
                    torch.cuda.synchronize()
                started = time.perf_counter()
                call()
                if device.type == "cuda":
                    torch.cuda.synchronize()
                marks.append(time.perf_counter() - started)
            seconds = float(np.median(marks))
            found[f"{name}, {part}"] = {"seconds": seconds, "tflops": products * hidden * squares / seconds / 1e12}

    for name, isolated in (("isolated", True), ("one document a row", False)):
        part = split(llama_batch(given, 512, isolated=isolated, seed=0), slice(None))
        layout = part.to(device).isolation
        note(name, lambda layout=layout: attend(*inputs, layout, scale=scale), metrics.squared_lengths(part))
    rows = [one.unflatten(0, (given.rows, given.length)).transpose(1, 2) for one in inputs]
    backend = torch.nn.attention.SDPBackend.CUDNN_ATTENTION if device.type == "cuda" else torch.nn.attention.SDPBackend.MATH
    with torch.nn.attention.sdpa_kernel(backend):
        note("one document a row, dense", lambda: torch.nn.functional.scaled_dot_product_attention(*rows, is_causal=True),
             float(given.rows * given.length**2))
    return found


def loss_memory(given: argparse.Namespace, device: torch.device) -> dict[str, int | None]:
    """Peak bytes above the inputs of the chunked and of the plain loss at 250k ids; None on a processor."""
    import torch.nn.functional as functional

    from penjing.train.loss import chunked_loss, compiled_chunk

    positions, hidden, vocab = (8192, 2560, 250240) if not given.tiny else (64, 32, 2500)
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
            chunked_loss(states, table, None, targets, weights, chunk=compiled_chunk(vocab), product=torch.bfloat16,
                         compiled=not given.tiny, into_table=1.0).total.backward()
        else:
            functional.cross_entropy((states.bfloat16() @ table.bfloat16().T).float(), targets, reduction="sum").backward()
        found[name] = int(torch.cuda.max_memory_allocated() - before) if device.type == "cuda" else None
        del states, table
    return found


if __name__ == "__main__":
    main()
