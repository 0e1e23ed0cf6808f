"""How much a cut costs: every way of choosing what to keep, on models trained with AdamW on real Chinese and English text.

    python bench/prune_quality.py --prepare            trains the tokenizer and one base model per seed (cached under /tmp)
    python bench/prune_quality.py --json               measures everything; one JSON object on stdout

The base: LLaMA-shaped, 128 wide, 8 layers, 8 query heads on 4 key/value heads, 256 feed-forward neurons, 2048 pieces, untied,
1.7M parameters. Loss is nats per token on held-out documents. Every method sees the same calibration text, and every
recovery the same tokens in the same order.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
import xxhash

torch.set_num_threads(1)

CACHE = Path(os.environ.get("PENJING_BENCH_CACHE", "/tmp/penjing-prune-quality"))
SHARED = Path(os.environ.get("PENJING_SHARED", Path(__file__).resolve().parents[2] / "shared")) / "data"
SOURCES = ("zh/tidb_docs_zh", "zh/python_docs_zh", "zh/php_manual_zh", "en/python_docs_en", "en/php_manual_en")
SOURCE_BYTES = 3_000_000
VOCAB = 2048
WINDOW = 256
ROWS = 4
SIZES = {"hidden_size": 128, "num_hidden_layers": 8, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 16,
         "intermediate_size": 256}


# ---------------------------------------------------------------------------------------------------------------- text

def documents() -> tuple[list[str], list[str]]:
    """(training texts, held-out texts): about 14 MB of the shared corpus, 1 document in 40 held out by a hash of its id."""
    train: list[tuple[int, str]] = []
    held: list[tuple[int, str]] = []
    for name in SOURCES:
        taken = 0
        with gzip.open(SHARED / "corpus" / f"{name}.jsonl.gz", "rt", encoding="utf-8") as file:
            rows = [json.loads(line) for line in file]
        rows.sort(key=lambda row: xxhash.xxh3_64_intdigest(row["id"].encode()))
        for row in rows:
            text = row["text"][:20_000]
            taken += len(text.encode())
            if taken > SOURCE_BYTES:
                break
            place = xxhash.xxh3_64_intdigest(row["id"].encode(), seed=1)
            (held if place % 40 == 0 else train).append((place, text))
    return [text for _, text in sorted(train)], [text for _, text in sorted(held)]


def tokens() -> tuple[np.ndarray, np.ndarray]:
    """(training ids, held-out ids) of a SentencePiece BPE trained here on the training texts."""
    import sentencepiece

    CACHE.mkdir(parents=True, exist_ok=True)
    if not (CACHE / "held.npy").exists():
        train, held = documents()
        sample = [line for text in train[::2] for line in text.split("\n") if line.strip()]
        model = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sample), model_writer=model, vocab_size=VOCAB, model_type="bpe", byte_fallback=True,
            character_coverage=0.9995, num_threads=1, max_sentence_length=20_000, minloglevel=2,
            input_sentence_size=60_000, normalization_rule_name="identity")
        (CACHE / "tokenizer.model").write_bytes(model.getvalue())
        pieces = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
        for name, texts in (("train", train), ("held", held)):
            ids = [np.array([*row, pieces.eos_id()], dtype=np.int32) for row in pieces.encode(texts)]
            np.save(CACHE / f"{name}.npy", np.concatenate(ids))
    return np.load(CACHE / "train.npy"), np.load(CACHE / "held.npy")


def windows(ids: np.ndarray, rows: int, *, seed: int, skip: int = 0) -> np.ndarray:
    """`rows` windows [rows, WINDOW + 1] in a shuffled order that depends on the seed alone."""
    starts = np.random.default_rng(seed).permutation((len(ids) - 1) // WINDOW)
    starts = np.resize(starts, skip + rows)[skip:]
    return np.stack([ids[start * WINDOW:start * WINDOW + WINDOW + 1] for start in starts]).astype(np.int64)


# ------------------------------------------------------------------------------------------------------------- training

def loss_of(model: torch.nn.Module, rows: np.ndarray) -> float:
    """Mean nats per token over windows [N, WINDOW + 1]."""
    total = 0.0
    with torch.inference_mode():
        for part in np.array_split(rows, max(1, len(rows) // ROWS)):
            ids = torch.from_numpy(part)
            logits = model(ids[:, :-1], use_cache=False).logits
            total += torch.nn.functional.cross_entropy(
                logits.flatten(0, 1).float(), ids[:, 1:].flatten(), reduction="sum").item()
    return total / rows[:, 1:].size


def train(model: torch.nn.Module, ids: np.ndarray, *, steps: int, lr: float, seed: int, teacher: torch.nn.Module | None = None,
          ce_weight: float = 1.0, log: bool = False) -> None:
    """AdamW over `steps` batches of ROWS windows: next-token loss, or KL to the teacher's logits plus `ce_weight` times it."""
    decay = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW([{"params": decay, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}],
                                  lr=lr, betas=(0.9, 0.95), foreach=True)
    data = windows(ids, steps * ROWS, seed=seed)
    warmup = max(1, steps // 20)
    model.train()
    started = time.process_time()
    for step in range(steps):
        scale = min(1.0, (step + 1) / warmup) * (0.1 + 0.45 * (1 + np.cos(np.pi * step / steps)))
        for group in optimizer.param_groups:
            group["lr"] = lr * scale
        batch = torch.from_numpy(data[step * ROWS:(step + 1) * ROWS])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(batch[:, :-1], use_cache=False).logits.flatten(0, 1).float()
        loss = torch.zeros(())
        if teacher is not None:
            with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
                target = torch.log_softmax(teacher(batch[:, :-1], use_cache=False).logits.flatten(0, 1).float(), -1)
            loss = loss + torch.nn.functional.kl_div(torch.log_softmax(logits, -1), target, log_target=True,
                                                     reduction="batchmean")
        if teacher is None or ce_weight:
            ce = torch.nn.functional.cross_entropy(logits, batch[:, 1:].flatten())
            loss = loss + (ce if teacher is None else ce_weight * ce)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if log and step % 100 == 0:
            print(f"step {step} loss {loss.item():.3f} cpu {time.process_time() - started:.0f}s", file=sys.stderr)
    model.eval()


def base_model(seed: int, *, steps: int) -> Path:
    """The directory of the trained base of one seed, trained when it is not there yet."""
    from transformers import LlamaConfig, LlamaForCausalLM

    out = CACHE / f"base-{seed}-{steps}"
    if not (out / "config.json").exists():
        train_ids, held_ids = tokens()
        torch.manual_seed(seed)
        model = LlamaForCausalLM(LlamaConfig(
            vocab_size=VOCAB, max_position_embeddings=WINDOW, tie_word_embeddings=False, initializer_range=0.05,
            attn_implementation="eager", **SIZES))
        started = time.process_time()
        train(model, train_ids, steps=steps, lr=5e-3, seed=seed, log=True)
        print(f"seed {seed}: held-out loss {loss_of(model, windows(held_ids, 48, seed=0)):.4f}, "
              f"{time.process_time() - started:.0f} CPU s", file=sys.stderr)
        model.save_pretrained(out)
    return out


# ------------------------------------------------------------------------------------------------------------ measuring

HALF = {"hidden": 84, "heads": 6, "kv_heads": 3, "ffn": 160}
"""50.6 % of the parameters. transformers wants hidden to be a multiple of heads."""
THREE_QUARTERS = {"hidden": 104, "heads": 8, "kv_heads": 4, "ffn": 208}
METHODS: dict[str, dict[str, object]] = {
    "random (OpenBA-V2)": {"metric": "random"},
    "magnitude": {"metric": "magnitude"},
    "activation (Minitron)": {"metric": "activation"},
    "Taylor": {"metric": "taylor"},
    "output energy": {"metric": "output-energy"},
    "output energy + norm scale": {"metric": "output-energy", "rotation": "selection"},
    "random + refit": {"metric": "random", "refit": True},
    "output energy + refit": {"metric": "output-energy", "refit": True},
    "rotation": {"metric": "output-energy", "rotation": "pca"},
    "rotation + Taylor": {"metric": "taylor", "rotation": "pca"},
    "rotation + refit": {"metric": "output-energy", "rotation": "pca", "refit": True},
}
RECOVERED = ("random (OpenBA-V2)", "rotation + refit", "activation (Minitron)", "rotation", "output energy", "Taylor",
             "output energy + refit", "magnitude")
WITHOUT_TEACHER = ("random (OpenBA-V2)", "activation (Minitron)", "rotation + refit")


class Memo:
    """Results of one seed, kept on disk as they come, so that a stopped run goes on."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.values: dict[str, object] = json.loads(path.read_text()) if path.exists() else {}

    def __call__(self, key: str, make: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if key not in self.values:
            self.values[key] = make(*args, **kwargs)
            self.path.write_text(json.dumps(self.values, indent=1, ensure_ascii=False))
            print(f"  {key}: {self.values[key]}", file=sys.stderr, flush=True)
        return self.values[key]


class Bench:
    """Everything measured on one base model."""

    def __init__(self, seed: int, *, steps: int, recovery: int) -> None:
        self.seed, self.recovery = seed, recovery
        self.base = base_model(seed, steps=steps)
        train_ids, held_ids = tokens()
        self.ids, self.held = train_ids, windows(held_ids, 48, seed=0)
        self.samples = [{"input_ids": row[:-1]} for row in windows(train_ids, 64, seed=77)]
        self.memo = Memo(CACHE / f"results-{seed}-{steps}-{recovery}.json")
        self.work = CACHE / f"work-{seed}-{steps}"
        self.work.mkdir(exist_ok=True)

    def load(self, path: Path) -> Any:
        from penjing.models.checkpoint import load_model

        model = load_model(path)
        model.set_attn_implementation("eager")  # bf16 attention of 16-wide heads is far slower in the fused kernel
        return model

    def cut(self, name: str, source: Path, *, sizes: dict[str, int] | None = None, layers: list[int] | None = None,
            metric: str = "random", rotation: str = "none", refit: bool = False, draw: int = 0) -> Path:
        """A cut model's directory, made once."""
        from penjing.models.checkpoint import open_checkpoint
        from penjing.prune import plan as plans
        from penjing.prune import width
        from penjing.prune.cut import apply

        out = self.work / name.replace(" ", "-").replace("/", "-")
        if (out / "config.json").exists():
            return out
        with open_checkpoint(source) as checkpoint:
            context = width.Context(checkpoint, seed=100 * self.seed + draw, samples=self.samples)
            keep = {}
            if sizes:
                units = width.shrinking_units(checkpoint.config, sizes)
                keep = width.select(checkpoint.config, sizes, width.metric(metric)(context, units))
            plan = plans.build(checkpoint.config, layers={"layers": layers} if layers else None, keep=keep)
            if rotation != "none":
                import penjing.prune.rotation as rotations

                plan = getattr(rotations, rotation)(plan, context)
            if refit:
                from penjing.prune.refit import refit as fit

                plan = fit(plan, context)
            apply(plan, checkpoint, out)
        return out

    def loss(self, path: Path) -> float:
        return round(loss_of(self.load(path), self.held), 4)

    def recovered(self, path: Path, *, teacher: bool, steps: int | None = None, save: Path | None = None) -> float:
        """Held-out loss after recovery: distillation from the base alone, or next-token loss alone; always the same text."""
        model = self.load(path)
        train(model, self.ids, steps=steps or self.recovery, lr=2e-3, seed=1000 + self.seed,
              teacher=self.load(self.base) if teacher else None, ce_weight=0.0)
        if save is not None:
            model.save_pretrained(save)
        return round(loss_of(model, self.held), 4)

    def width(self, *, recover: int) -> None:
        self.memo("base", self.loss, self.base)
        for draw in range(1, 4):
            path = self.cut(f"random-{draw}", self.base, sizes=HALF, metric="random", draw=draw)
            self.memo(f"cut/random draw {draw}", self.loss, path)
        for name, how in METHODS.items():
            self.memo(f"cut/{name}", self.loss, self.cut(name, self.base, sizes=HALF, **how))  # type: ignore[arg-type]
        for name in RECOVERED[:recover]:
            path = self.work / name.replace(" ", "-").replace("/", "-")
            self.memo(f"kd/{name}", self.recovered, path, teacher=True)
            if name in WITHOUT_TEACHER:
                self.memo(f"ce/{name}", self.recovered, path, teacher=False)

    def depth(self) -> None:
        from penjing.prune import depth

        model = self.load(self.base)
        samples = self.samples[:12]
        for drop in (2, 4):
            sets = {rule: self.memo(f"layers/-{drop} {rule}", self._layers, rule, drop, model, samples)
                    for rule in ("spaced", "block-influence", "greedy")}
            self.memo(f"layers/-{drop} best", lambda sets: min(
                sets.values(), key=lambda gone: depth.loss(model, samples, without={"layers": gone})), sets)
            for chosen in sets.values():
                kept = depth.kept(8, chosen)
                name = "layers-" + "".join(map(str, kept))
                path = self.cut(name, self.base, layers=kept)
                self.memo(f"cut/{name}", self.loss, path)
                self.memo(f"kd/{name}", self.recovered, path, teacher=True)
            kept = depth.kept(8, self.memo.values[f"layers/-{drop} best"])  # type: ignore[arg-type]
            name = "layers-" + "".join(map(str, kept)) + "-refit"
            path = self.cut(name, self.base, layers=kept, refit=True)
            self.memo(f"cut/{name}", self.loss, path)
            self.memo(f"kd/{name}", self.recovered, path, teacher=True)

    def stages(self) -> None:
        """One cut to half and twice the recovery, against two cuts with the recovery between and after; equal tokens."""
        for name in ("rotation + refit", "output energy"):
            how: dict[str, Any] = METHODS[name]
            direct = self.cut(name, self.base, sizes=HALF, **how)
            self.memo(f"one-shot/{name}", self.recovered, direct, teacher=True, steps=2 * self.recovery)
            first = self.cut(f"stage 1 {name}", self.base, sizes=THREE_QUARTERS, **how)
            middle = self.work / f"stage-1-{name.replace(' ', '-')}-recovered"
            self.memo(f"staged cut 1/{name}", self.loss, first)
            self.memo(f"staged kd 1/{name}", self.recovered, first, teacher=True, save=middle)
            second = self.cut(f"stage 2 {name}", middle, sizes=HALF, **how)
            self.memo(f"staged cut 2/{name}", self.loss, second)
            self.memo(f"staged kd 2/{name}", self.recovered, second, teacher=True)

    @staticmethod
    def _layers(rule: str, drop: int, model: Any, samples: list[dict[str, np.ndarray]]) -> list[int]:
        from penjing.prune import depth

        return depth.choose(rule, model.config.to_dict(), {"layers": drop}, model=model, samples=samples)[0]["layers"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prepare", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--bases", nargs="+", default=["1:1600", "2:1600", "3:1600"], metavar="SEED:STEPS")
    parser.add_argument("--recovery", type=int, default=60, help="steps of 1024 tokens after a cut")
    parser.add_argument("--recover", type=int, default=len(RECOVERED), help="how many of the methods are recovered too")
    parser.add_argument("--parts", nargs="+", default=["width", "depth", "stages"], choices=["width", "depth", "stages"])
    arguments = parser.parse_args()
    bases = [(int(seed), int(steps)) for seed, steps in (item.split(":") for item in arguments.bases)]
    if arguments.prepare:
        for seed, steps in bases:
            print(base_model(seed, steps=steps))
        return
    started = time.process_time()
    results: dict[str, dict[str, object]] = {}
    for seed, steps in bases:
        bench = Bench(seed, steps=steps, recovery=arguments.recovery)
        for part in arguments.parts:
            if part == "width":
                bench.width(recover=arguments.recover)
            else:
                getattr(bench, part)()
        results[f"{seed}:{steps}"] = bench.memo.values
    numbers: dict[str, list[float]] = {}
    for values in results.values():
        for key, value in values.items():
            if isinstance(value, float):
                numbers.setdefault(key, []).append(value)
    summary = {key: {"mean": round(float(np.mean(v)), 4), "spread": round(float(max(v) - min(v)), 4), "seeds": len(v)}
               for key, v in numbers.items()}
    report = {"unit": "nats per token, held-out", "recovery_tokens": arguments.recovery * ROWS * WINDOW, "summary": summary,
              "seeds": results, "cpu_s": round(time.process_time() - started, 1), "machine": platform.machine(),
              "torch": torch.__version__}
    if arguments.json:
        print(json.dumps(report, ensure_ascii=False))
    else:
        for key, value in summary.items():
            print(f"{key:40s} {value['mean']:.4f} ± {value['spread']:.4f}")


if __name__ == "__main__":
    main()
