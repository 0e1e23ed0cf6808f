"""How much a cut costs: every way of choosing what to keep, on models trained with AdamW on real Chinese and English text.

    python bench/prune_quality.py --prepare            trains the tokenizer and one base model per seed, kept in --cache
    python bench/prune_quality.py --json               measures everything; one JSON object on stdout
    python bench/prune_quality.py --family gpt2 --bases 1:1200 --parts width          a LayerNorm family
    python bench/prune_quality.py --peers PYTHON --bases 1:1600 --parts peers         Torch-Pruning, in its own interpreter

What was trained, cut and measured is kept in --cache, so a run that was stopped goes on and a part can be run alone.
The base: LLaMA-shaped, 128 wide, 8 layers, 8 query heads on 4 key/value heads, 256 feed-forward neurons, 2048 pieces, untied,
1.7M parameters; the other families are smaller (`SHAPES`). Loss is nats per token on held-out documents; an encoder-decoder reads
the first half of a window and is scored on the second. Every method sees the same calibration text, and every recovery the same
tokens in the same order.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import os
import platform
import subprocess
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

CACHE = Path("/tmp/penjing-prune-quality")
"""Set by --cache."""
SHARED = Path(os.environ.get("PENJING_SHARED", Path(__file__).resolve().parents[2] / "shared")) / "data"
SOURCES = ("zh/tidb_docs_zh", "zh/python_docs_zh", "zh/php_manual_zh", "en/python_docs_en", "en/php_manual_en")
SOURCE_BYTES = 3_000_000
VOCAB = 2048
WINDOW = 256
ROWS = 4
SHAPES: dict[str, dict[str, Any]] = {
    "llama": {"hidden_size": 128, "num_hidden_layers": 8, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 16,
              "intermediate_size": 256, "max_position_embeddings": WINDOW, "initializer_range": 0.05},
    "gpt2": {"n_embd": 96, "n_layer": 6, "n_head": 6, "n_inner": 384, "n_positions": WINDOW, "initializer_range": 0.05,
             "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    "openba": {"hidden_size": 96, "num_layers": 2, "num_decoder_layers": 4, "num_heads": 6, "kv_channels": 16,
               "ffn_hidden_size": 192, "ffn_is_nominal": False, "initializer_factor": 2.5, "hidden_dropout": 0.0,
               "attention_dropout": 0.0},
}
"""Untied, so that every rule is allowed."""


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

def fields(model: Any, rows: np.ndarray) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """The model's inputs and its targets [all of them], from windows [N, WINDOW + 1]."""
    ids = torch.from_numpy(rows)
    if not model.config.is_encoder_decoder:
        return {"input_ids": ids[:, :-1]}, ids[:, 1:].flatten()
    first, second = ids[:, :WINDOW // 2], ids[:, WINDOW // 2:WINDOW]
    start = torch.full_like(second[:, :1], model.config.decoder_start_token_id)
    return {"input_ids": first, "decoder_input_ids": torch.cat([start, second[:, :-1]], 1)}, second.flatten()


def loss_of(model: torch.nn.Module, rows: np.ndarray) -> float:
    """Mean nats per target over windows [N, WINDOW + 1]."""
    total, count = 0.0, 0
    with torch.inference_mode():
        for part in np.array_split(rows, max(1, len(rows) // ROWS)):
            given, targets = fields(model, part)
            logits = model(**given, use_cache=False).logits.flatten(0, 1).float()
            total += torch.nn.functional.cross_entropy(logits, targets, reduction="sum").item()
            count += targets.numel()
    return total / count


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
        given, targets = fields(model, data[step * ROWS:(step + 1) * ROWS])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(**given, use_cache=False).logits.flatten(0, 1).float()
        loss = torch.zeros(())
        if teacher is not None:
            with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
                target = torch.log_softmax(teacher(**given, use_cache=False).logits.flatten(0, 1).float(), -1)
            loss = loss + torch.nn.functional.kl_div(torch.log_softmax(logits, -1), target, log_target=True,
                                                     reduction="batchmean")
        if teacher is None or ce_weight:
            ce = torch.nn.functional.cross_entropy(logits, targets)
            loss = loss + (ce if teacher is None else ce_weight * ce)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if log and step % 100 == 0:
            print(f"step {step} loss {loss.item():.3f} cpu {time.process_time() - started:.0f}s", file=sys.stderr)
    model.eval()


def new_model(family: str) -> Any:
    """An untrained model of `SHAPES`; its randomness is torch's."""
    import transformers

    from penjing.models.openba.configuration_openba import OpenBAConfig
    from penjing.models.openba.modeling_openba import OpenBAForConditionalGeneration

    configs = {"llama": transformers.LlamaConfig, "gpt2": transformers.GPT2Config, "openba": OpenBAConfig}
    models = {"llama": transformers.LlamaForCausalLM, "gpt2": transformers.GPT2LMHeadModel,
              "openba": OpenBAForConditionalGeneration}
    config = configs[family](vocab_size=VOCAB, tie_word_embeddings=False, **SHAPES[family])
    if family != "openba":
        config._attn_implementation = "eager"
    made: Any = models[family]
    return made(config)


def base_model(seed: int, *, steps: int, family: str = "llama") -> Path:
    """The directory of the trained base of one seed, trained when it is not there yet."""
    out = CACHE / _named("base", family, seed, steps)
    if not (out / "config.json").exists():
        train_ids, held_ids = tokens()
        torch.manual_seed(seed)
        model = new_model(family)
        started = time.process_time()
        train(model, train_ids, steps=steps, lr=5e-3 if family == "llama" else 3e-3, seed=seed, log=True)
        print(f"{family}, seed {seed}: held-out loss {loss_of(model, windows(held_ids, 48, seed=0)):.4f}, "
              f"{time.process_time() - started:.0f} CPU s", file=sys.stderr)
        model.save_pretrained(out)
    return out


def _named(what: str, family: str, *parts: int) -> str:
    return "-".join([what, *([] if family == "llama" else [family]), *map(str, parts)])


# ------------------------------------------------------------------------------------------------------------ measuring

HALVES = {"llama": {"hidden": 84, "heads": 6, "kv_heads": 3, "ffn": 160}, "gpt2": {"hidden": 64, "heads": 4, "ffn": 224},
          "openba": {"hidden": 64, "heads": 4, "ffn": 112}}
"""About half of the parameters, 50.6 % for llama, whose hidden transformers wants to be a multiple of heads."""
HALF = HALVES["llama"]
THREE_QUARTERS = {"hidden": 104, "heads": 8, "kv_heads": 4, "ffn": 208}
DEPTH_AND_WIDTH = {"hidden": 90, "heads": 6, "kv_heads": 3, "ffn": 208}
"""With 6 of 8 layers; again half of the parameters."""
PEER = {"hidden": 80, "ffn": 150}
"""As many parameters as `HALF`, with all heads: Torch-Pruning takes no key/value group away."""
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
OTHER_FAMILIES = ("random (OpenBA-V2)", "activation (Minitron)", "output energy", "output energy + refit", "rotation",
                  "rotation + refit")


PARTS = ["width", "depth", "stages", "text", "peers"]


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

    def __init__(self, seed: int, *, steps: int, recovery: int, family: str = "llama", peers: str | None = None) -> None:
        self.seed, self.recovery, self.family, self.peer_python = seed, recovery, family, peers
        self.base = base_model(seed, steps=steps, family=family)
        train_ids, held_ids = tokens()
        self.ids, self.held = train_ids, windows(held_ids, 48, seed=0)
        half = WINDOW // 2
        self.samples = [{"input_ids": row[:half], "labels": row[half:-1]} if family == "openba" else {"input_ids": row[:-1]}
                        for row in windows(train_ids, 64, seed=77)]
        self.memo = Memo(CACHE / f"{_named('results', family, seed, steps, recovery)}.json")
        self.work = CACHE / _named("work", family, seed, steps)
        self.work.mkdir(exist_ok=True)

    def load(self, path: Path) -> Any:
        from penjing.models.checkpoint import load_model

        model = load_model(path)
        if self.family != "openba":
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
        half = HALVES[self.family]
        self.memo("base", self.loss, self.base)
        for draw in range(1, 4):
            path = self.cut(f"random-{draw}", self.base, sizes=half, metric="random", draw=draw)
            self.memo(f"cut/random draw {draw}", self.loss, path)
        names = list(METHODS) if self.family == "llama" else list(OTHER_FAMILIES)
        for name in names:
            self.memo(f"cut/{name}", self.loss, self.cut(name, self.base, sizes=half, **METHODS[name]))  # type: ignore[arg-type]
        for name in RECOVERED[:recover]:
            if name not in names:
                continue
            path = self.work / name.replace(" ", "-").replace("/", "-")
            self.memo(f"kd/{name}", self.recovered, path, teacher=True)
            if name in WITHOUT_TEACHER and self.family == "llama":
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
            kept = depth.kept(8, sets["spaced"])
            name = "layers-" + "".join(map(str, kept)) + "-refit"
            self.memo(f"cut/{name}", self.loss, self.cut(name, self.base, layers=kept, refit=True))
            kept = depth.kept(8, self.memo.values[f"layers/-{drop} best"])  # type: ignore[arg-type]
            name = "layers-" + "".join(map(str, kept)) + "-refit"
            path = self.cut(name, self.base, layers=kept, refit=True)
            self.memo(f"cut/{name}", self.loss, path)
            self.memo(f"kd/{name}", self.recovered, path, teacher=True)

    def stages(self) -> None:
        """One cut to half and twice the recovery, against two cuts with the recovery between and after; equal tokens.

        Two cuts of width, and layers before width as OpenBA-V2: random with next-token loss as there, ours with its teacher.
        """
        how = METHODS["rotation + refit"]
        direct = self.cut("rotation + refit", self.base, sizes=HALF, **how)  # type: ignore[arg-type]
        self.memo("one-shot/rotation + refit", self.recovered, direct, teacher=True, steps=2 * self.recovery)
        self.two_cuts("rotation + refit", {"sizes": THREE_QUARTERS, **how}, {"sizes": HALF, **how}, teacher=True)
        for name, rule, teacher in (("random", "spaced", False), ("rotation + refit", "best", True)):
            how = METHODS["random (OpenBA-V2)" if name == "random" else name]
            gone = self.memo(f"layers/-2 {rule}", self._layers, rule, 2, self.load(self.base), self.samples[:12])
            layers = [index for index in range(8) if index not in gone]
            name = f"depth, width {name}"
            direct = self.cut(f"direct {name}", self.base, sizes=DEPTH_AND_WIDTH, layers=layers, **how)  # type: ignore[arg-type]
            self.memo(f"one-shot cut/{name}", self.loss, direct)
            self.memo(f"one-shot/{name}", self.recovered, direct, teacher=teacher, steps=2 * self.recovery)
            first = {"layers": layers, "refit": bool(how.get("refit"))}
            self.two_cuts(name, first, {"sizes": DEPTH_AND_WIDTH, **how}, teacher=teacher)

    def two_cuts(self, name: str, first: dict[str, Any], second: dict[str, Any], *, teacher: bool) -> None:
        stem = name.replace(" ", "-").replace(",", "")
        path, middle = self.cut(f"stage 1 {stem}", self.base, **first), self.work / f"stage-1-{stem}-recovered"
        self.memo(f"staged cut 1/{name}", self.loss, path)
        self.memo(f"staged kd 1/{name}", self.recovered, path, teacher=teacher, save=middle)
        path = self.cut(f"stage 2 {stem}", middle, **second)
        self.memo(f"staged cut 2/{name}", self.loss, path)
        self.memo(f"staged kd 2/{name}", self.recovered, path, teacher=teacher)

    def text(self) -> None:
        """How much calibration text the rules need: windows of 256 tokens for a widest fit of 256 inputs."""
        whole = self.samples
        for count in (64, 16, 4, 2, 1):
            self.samples = whole[:count]
            for name in ("output energy", "output energy + refit", "rotation", "rotation + refit"):
                path = self.cut(f"text {count} {name}", self.base, sizes=HALF, **METHODS[name])  # type: ignore[arg-type]
                self.memo(f"text {count * WINDOW}/{name}", self.loss, path)
        self.samples = whole

    def peers(self) -> None:
        """Torch-Pruning's cuts of the same base to as many parameters as ours, and ours to its shape."""
        for name in ("magnitude", "Taylor", "output energy", "rotation + refit"):
            path = self.cut(f"peer shape {name}", self.base, sizes=PEER, **METHODS[name])  # type: ignore[arg-type]
            self.memo(f"peer shape/{name}", self.loss, path)
        for importance in ("magnitude", "taylor"):
            path = self.work / f"torch-pruning-{importance}"
            if not (path / "config.json").exists() and self.peer_python:
                np.save(self.work / "samples.npy", np.stack([item["input_ids"] for item in self.samples]))
                script = Path(__file__).with_name("prune_quality_peer.py")
                subprocess.run([self.peer_python, script, self.base, path, importance, self.work / "samples.npy",
                                str(PEER["hidden"]), str(PEER["ffn"])], check=True)
            if (path / "config.json").exists():
                self.memo(f"peer shape/Torch-Pruning {importance}", self.loss, path)

    @staticmethod
    def _layers(rule: str, drop: int, model: Any, samples: list[dict[str, np.ndarray]]) -> list[int]:
        from penjing.prune import depth

        return depth.choose(rule, model.config.to_dict(), {"layers": drop}, model=model, samples=samples)[0]["layers"]


def rises(values: dict[str, Any]) -> dict[str, float]:
    """Loss above the base of one seed, by key; `cut/random` is the mean of four draws."""
    found = {key: value - values["base"] for key, value in values.items() if isinstance(value, float) and key != "base"}
    draws = [value for key, value in found.items() if key.startswith("cut/random draw") or key == "cut/random (OpenBA-V2)"]
    if draws:
        found["cut/random"] = float(np.mean(draws))
    return found


def goals(seeds: dict[str, dict[str, Any]]) -> dict[str, list[float]]:
    """What the project asks of its best rule, seed by seed."""
    found: dict[str, list[float]] = {}
    for values in seeds.values():
        rise = rises(values)
        for name, part, whole in (("after the cut, share of random's rise", "cut/rotation + refit", "cut/random"),
                                  ("after the cut, share of activation's rise", "cut/rotation + refit", "cut/activation (Minitron)"),
                                  ("distilled, share of random's rise", "kd/rotation + refit", "kd/random (OpenBA-V2)")):
            if part in rise and whole in rise:
                found.setdefault(name, []).append(round(rise[part] / rise[whole], 4))
        for drop in (2, 4):
            keys = ["layers-" + "".join(str(layer) for layer in range(8) if layer not in values[f"layers/-{drop} {rule}"])
                    for rule in ("spaced", "best") if f"layers/-{drop} {rule}" in values]
            for what in ("cut", "kd"):
                if len(keys) == 2 and f"{what}/{keys[0]}" in rise:
                    name = f"{drop} of 8 layers, {what}: spaced less best"
                    found.setdefault(name, []).append(round(rise[f"{what}/{keys[0]}"] - rise[f"{what}/{keys[1]}"], 4))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prepare", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--bases", nargs="+", default=["1:1600", "2:1600", "3:1600"], metavar="SEED:STEPS")
    parser.add_argument("--recovery", type=int, default=60, help="steps of 1024 tokens after a cut")
    parser.add_argument("--recover", type=int, default=len(RECOVERED), help="how many of the methods are recovered too")
    parser.add_argument("--parts", nargs="+", default=PARTS[:3], choices=PARTS)
    parser.add_argument("--family", default="llama", choices=list(SHAPES), help="all but llama know --parts width only")
    parser.add_argument("--peers", metavar="PYTHON", help="an interpreter that has torch_pruning, for --parts peers")
    parser.add_argument("--cache", type=Path, default=CACHE, metavar="DIR", help="bases, cuts and results (%(default)s)")
    arguments = parser.parse_args()
    globals()["CACHE"] = arguments.cache
    if arguments.family != "llama" and set(arguments.parts) != {"width"}:
        parser.error(f"--family {arguments.family} knows --parts width only")
    bases = [(int(seed), int(steps)) for seed, steps in (item.split(":") for item in arguments.bases)]
    if arguments.prepare:
        for seed, steps in bases:
            print(base_model(seed, steps=steps, family=arguments.family))
        return
    started = time.process_time()
    results: dict[str, dict[str, object]] = {}
    for seed, steps in bases:
        bench = Bench(seed, steps=steps, recovery=arguments.recovery, family=arguments.family, peers=arguments.peers)
        for part in arguments.parts:
            if part == "width":
                bench.width(recover=arguments.recover)
            else:
                getattr(bench, part)()
        results[f"{seed}:{steps}"] = bench.memo.values
    numbers: dict[str, list[float]] = {}
    for values in results.values():
        for key, value in rises(values).items():
            numbers.setdefault(key, []).append(value)
    summary = {key: {"rise": round(float(np.mean(v)), 4), "least": round(min(v), 4), "most": round(max(v), 4), "seeds": len(v)}
               for key, v in numbers.items()}
    report = {"unit": "nats per token, held-out", "family": arguments.family,
              "recovery_tokens": arguments.recovery * ROWS * WINDOW, "summary": summary,
              "goals": goals(results),
              "seeds": results, "cpu_s": round(time.process_time() - started, 1), "machine": platform.machine(),
              "torch": torch.__version__}
    if arguments.json:
        print(json.dumps(report, ensure_ascii=False))
    else:
        for key, item in summary.items():
            print(f"{key:48s} +{item['rise']:.3f} ({item['least']:.3f} to {item['most']:.3f})")
        for name, shares in goals(results).items():
            print(f"{name}: {shares}")


if __name__ == "__main__":
    main()
