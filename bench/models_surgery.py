"""Streamed cutting of a made-up checkpoint: bytes per CPU-second and peak memory, beside `cp` and load-slice-save.

python bench/models_surgery.py [--gigabytes 4] [--json] [--no-peer]
python bench/models_surgery.py --part refit13b [--layers 2] [--samples 32] [--json]

Layers, hidden, heads, FFN and vocabulary are cut in one pass. The peer loads the model with transformers, slices every
weight with torch by the same plan and saves it with `save_pretrained`; the two results must be equal bit for bit. Each
contender is a process of its own (CPU seconds and peak resident memory from getrusage); files are read once before, so
that the disk is not measured.

`--part refit13b` measures the parts of pruning that look at data: calibration, rotation, refit and the cut itself, of two
layers of 13B shapes to half of every size; and block influence and one greedy round.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from penjing.files import size_of
from penjing.models.checkpoint import Output, open_checkpoint, write_checkpoint
from penjing.models.cost import count_parameters
from penjing.models.family import of

LAYER_13B = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 32000,
    "hidden_size": 5120,
    "num_attention_heads": 40,
    "num_key_value_heads": 40,
    "intermediate_size": 13824,
    "head_dim": 128,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "dtype": "bfloat16",
    "hidden_act": "silu",
    "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
}
TARGET = {"hidden": 4096, "ffn": 11008, "heads": 32}


def make_source(path: Path, gigabytes: float) -> dict[str, Any]:
    """A LLaMA-13B with as many layers as fit into `gigabytes` of bfloat16, weights from one random block."""
    config = {**LAYER_13B, "num_hidden_layers": 1}
    one = count_parameters(config)
    two = count_parameters({**config, "num_hidden_layers": 2})
    config["num_hidden_layers"] = max(2, int((gigabytes * 1e9 / 2 - one) / (two - one)) + 1)
    block = np.random.default_rng(0).standard_normal(8 << 20).astype(np.float32).view(np.uint32) >> 16
    bits = block.astype(np.uint16)

    def chunks(items: int) -> list[np.ndarray]:
        return [bits[: min(bits.size, items - start)] for start in range(0, items, bits.size)]

    outputs = [
        Output(name, "BF16", tensor.shape, lambda shape=tensor.shape: chunks(int(np.prod(shape))))
        for name, tensor in of(config).tensors(config).items()
    ]
    write_checkpoint(path, config=config, tensors=outputs)
    return config


def plan_of(source: Path) -> Any:
    """Cut a quarter of the layers, a fifth of the width and a quarter of the tokens."""
    from penjing.prune import depth, plan, width

    with open_checkpoint(source) as checkpoint:
        config = checkpoint.config
        sizes = {**TARGET, "kv_heads": TARGET["heads"]}
        scores = width.random(width.Context(checkpoint), width.shrinking_units(config, sizes))
        keep = width.select(config, sizes, scores)
        keep["vocab"] = np.sort(np.random.default_rng(1).permutation(config["vocab_size"])[: config["vocab_size"] * 3 // 4])
        layers = config["num_hidden_layers"]
        return plan.build(config, layers={"layers": depth.kept(layers, depth.spaced(layers, layers // 4))}, keep=keep)


def ours(source: Path, out: Path) -> None:
    from penjing.prune import cut

    with open_checkpoint(source) as checkpoint:
        cut.apply(plan_of(source), checkpoint, out)


def peer(source: Path, out: Path) -> None:
    """Whole model in memory: transformers, torch indexing, save_pretrained."""
    import torch
    import transformers

    from penjing.models import axes
    from penjing.prune.plan import source_names, unit_sizes

    torch.set_num_threads(1)
    plan = plan_of(source)
    model = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=torch.bfloat16)
    state = model.state_dict()
    sizes, table = unit_sizes(plan.source_config), of(plan.source_config).tensors(plan.source_config)
    small = {}
    for name, old in source_names(plan).items():
        value = state[old]
        for dim, label in enumerate(table[old].axes):
            index = axes.gather(label, sizes, plan.keep)
            if index is not None:
                value = value.index_select(dim, torch.from_numpy(index))
        small[name] = value
    config = transformers.AutoConfig.for_model(
        **{key: value for key, value in plan.target_config.items() if key != "architectures"}
    )
    with torch.device("meta"):
        result = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    result.load_state_dict(small, assign=True)
    result.save_pretrained(out)


def measured(mode: str, source: Path, out: Path) -> dict[str, float]:
    """CPU seconds, wall seconds and peak memory of one contender in a process of its own."""
    command = (
        ["cp", "-r", str(source), str(out)]
        if mode == "cp"
        else [sys.executable, __file__, "--as", mode, "--source", str(source), "--out", str(out)]
    )
    started = time.monotonic()
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    user, system = after.ru_utime - before.ru_utime, after.ru_stime - before.ru_stime
    figures = {"cpu_s": user + system, "user_s": user, "wall_s": time.monotonic() - started}
    return figures if mode == "cp" else {**figures, "peak_mb": float(done.stdout.split()[-1])}


def same(one: Path, two: Path) -> bool:
    with open_checkpoint(one) as first, open_checkpoint(two) as second:
        return sorted(first.names) == sorted(second.names) and all(
            np.array_equal(a, b)
            for name in first.names
            for a, b in zip(first.row_chunks(name), second.row_chunks(name), strict=True)
        )


def plan_from_headers() -> dict[str, float]:
    """CPU seconds to price a cut of a 70B from its configuration, and to choose every place at random."""
    from penjing.prune import plan, propose, width

    config = {
        **LAYER_13B,
        "vocab_size": 128256,
        "hidden_size": 8192,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "intermediate_size": 28672,
    }
    started = time.process_time()
    sizes = propose.sizes_for(config, 0.5)
    priced = time.process_time()
    family = of(config)
    units = width.shrinking_units(config, {name: value for name, value in sizes.items() if name != "layers"})
    rng = np.random.default_rng(0)
    keep = width.select(config, sizes, {unit: rng.permutation(size) for unit, size in units.items()})
    made = plan.build(config, keep=keep, layers={"layers": range(sizes.get("layers", family.sizes(config)["layers"]))})
    made.to_json()
    indexed = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config), encoding="utf-8")
        before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
        command = [sys.executable, "-m", "penjing", "plan", "prune", folder, "--keep", "0.4"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        after, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic() - begun
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"sizes_and_price_s": priced - started, "with_every_index_s": indexed - started, "command_cpu_s": cpu, "command_wall_s": wall}


def calibration_text(samples: int, vocab: int) -> list[dict[str, np.ndarray]]:
    """Made-up token ids, 256 a sequence."""
    return [{"input_ids": row} for row in np.random.default_rng(0).integers(0, vocab, (samples, 256))]


def make_layers(path: Path, layers: int) -> None:
    """A LLaMA-13B with few layers, weights as small as trained ones, norms of one."""
    config = {**LAYER_13B, "num_hidden_layers": layers}
    block = (np.random.default_rng(0).standard_normal(8 << 20).astype(np.float32) * 0.02).view(np.uint32) >> 16
    bits = block.astype(np.uint16)

    def chunks(items: int, kind: str) -> list[np.ndarray]:
        if kind == "norm":
            return [np.full(items, 0x3F80, np.uint16)]
        return [bits[: min(bits.size, items - start)] for start in range(0, items, bits.size)]

    write_checkpoint(path, config=config, tensors=[
        Output(name, "BF16", tensor.shape, lambda shape=tensor.shape, kind=tensor.kind: chunks(int(np.prod(shape)), kind))
        for name, tensor in of(config).tensors(config).items()])


def measure_layers(phase: str, source: Path, work: Path, samples: int) -> dict[str, float]:
    """CPU seconds of one phase over a model that is read layer by layer; calibration is left in `work` for the next."""
    import torch

    from penjing.prune import cut, depth, importance, plan, width
    from penjing.prune.refit import refit
    from penjing.prune.rotation import pca

    torch.set_num_threads(1)
    took: dict[str, float] = {}

    def timed(name: str, make: Any) -> Any:
        started = time.process_time()
        made = make()
        took[f"{name}_cpu_s"] = time.process_time() - started
        return made

    with open_checkpoint(source) as checkpoint:
        config = checkpoint.config
        text = calibration_text(samples, config["vocab_size"])
        context = width.Context(checkpoint, samples=text, work=work)
        if phase == "calibrate":
            timed("calibrate", lambda: importance.calibration_of(context))
        elif phase == "depth":
            model = depth.layered(source)
            timed("block_influence", lambda: depth.influence(model, text))
            timed("greedy_one_layer", lambda: depth.greedy(model, {"layers": 1}, text))
        else:
            sizes = {"hidden": 2560, "ffn": 6912, "heads": 20, "kv_heads": 20}
            scores = importance.output_energy(context, width.shrinking_units(config, sizes))
            made = plan.build(config, keep=width.select(config, sizes, scores))
            turned = timed("rotation", lambda: pca(made, context))
            fitted = timed("refit", lambda: refit(turned, context, streamed=True))
            timed("cut", lambda: cut.apply(fitted, checkpoint, work / "cut"))
    return took


def layers_of_a_13b(options: argparse.Namespace) -> dict[str, Any]:
    folder = options.folder or Path(tempfile.mkdtemp(prefix="penjing-refit13b-"))
    figures: dict[str, Any] = {"layers": options.layers, "tokens": 256 * options.samples}
    try:
        if not (folder / "source" / "config.json").exists():
            make_layers(folder / "source", options.layers)
        for phase in options.phases.split(","):
            command = [sys.executable, __file__, "--as", phase, "--source", str(folder / "source"), "--out", str(folder / "work"),
                       "--samples", str(options.samples)]
            done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(done.stderr[-3000:])
            figures[phase] = json.loads(done.stdout.splitlines()[-2]) | {"peak_mb": float(done.stdout.split()[-1])}
        return figures
    finally:
        if options.folder is None:
            shutil.rmtree(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=4.0)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--no-peer", action="store_true", help="only cp and ours: for sources larger than memory")
    parser.add_argument("--part", choices=["cut", "plan70b", "refit13b"], default="cut")
    parser.add_argument("--layers", type=int, default=2, help="refit13b: layers of the made-up model")
    parser.add_argument("--samples", type=int, default=32, help="refit13b: calibration sequences of 256 tokens")
    parser.add_argument("--phases", default="calibrate,refit,depth", help="refit13b: what to measure")
    parser.add_argument("--folder", type=Path, help="refit13b: where model and calibration stay, to run phases one by one")
    parser.add_argument("--as", dest="mode")
    parser.add_argument("--source", type=Path)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.mode:
        if options.mode in ("ours", "peer"):
            {"ours": ours, "peer": peer}[options.mode](options.source, options.out)
        else:
            print(json.dumps(measure_layers(options.mode, options.source, options.out, options.samples)))
        status = Path("/proc/self/status").read_text(encoding="ascii")
        print(int(status.partition("VmHWM:")[2].split()[0]) / 1024)
        return
    if options.part != "cut":
        figures = layers_of_a_13b(options) if options.part == "refit13b" else plan_from_headers()
        figures["machine"] = {"processor": platform.machine(), "cores": os.cpu_count(), "load": os.getloadavg()[0]}
        print(json.dumps(figures) if options.json else json.dumps(figures, indent=2))
        return
    folder = Path(tempfile.mkdtemp(prefix="penjing-surgery-"))
    try:
        config = make_source(folder / "source", options.gigabytes)
        size = size_of(folder / "source")
        figures: dict[str, Any] = {
            "source_gb": size / 1e9,
            "layers": config["num_hidden_layers"],
            "plan_70b": plan_from_headers(),
        }
        for mode in ["cp", "ours", *([] if options.no_peer else ["peer"])]:
            figures[mode] = measured(mode, folder / "source", folder / mode)
            figures[mode]["input_gb_per_cpu_s"] = size / 1e9 / figures[mode]["cpu_s"]
        figures["output_gb"] = size_of(folder / "ours") / 1e9
        if not options.no_peer:
            figures["bitwise_equal"] = same(folder / "ours", folder / "peer")
            figures["times_less_cpu_than_peer"] = figures["peer"]["cpu_s"] / figures["ours"]["cpu_s"]
            figures["times_less_memory_than_peer"] = figures["peer"]["peak_mb"] / figures["ours"]["peak_mb"]
        figures["machine"] = {
            "processor": platform.machine(),
            "cores": os.cpu_count(),
            "load": os.getloadavg()[0],
            "bench_peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        }
        print(json.dumps(figures) if options.json else json.dumps(figures, indent=2))
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
