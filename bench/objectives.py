"""Batches, packing, indices and tokenising: CPU-seconds of ours and of the libraries that others use, in one run.

python bench/objectives.py [--json] [--only batches,packing,index,encode] [--peers DIR] [--texts DIR] [--tokenizers DIR]

Peers: megatron-core's dataset classes (installed into a virtual environment under --peers; without one that part is left out),
the tokenizers library and bare sentencepiece. --texts holds *.jsonl.gz with a "text" field; --tokenizers holds directories with
tokenizer.json(.gz), *.model, vocab.json + merges.txt. Speeds are per CPU-second of one core (process_time), never wall time.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from penjing.objectives.instruction import vector_fit
from penjing.objectives.mixture import Mixture, blend
from penjing.objectives.packing import best_fit
from penjing.objectives.shards import HEADER, files_of, index_bytes, open_shard
from penjing.objectives.stream import StreamConfig, build_stream
from penjing.objectives.tokens import Tokens, write_tokens

SPECIAL = {f"<extra_id_{i}>": 31099 - i for i in range(100)} | {
    "<R>": 31100, "<S>": 31101, "<X>": 31102, "[MASK]": 31103, "[sMASK]": 31104, "[gMASK]": 31105, "<sop>": 31106,
    "<eop>": 31107, "[CLS]": 31108, "[SEP]": 31109,
}


def cpu(work: Callable[[], Any]) -> tuple[float, Any]:
    """(CPU-seconds, result)."""
    started = time.process_time()
    result = work()
    return time.process_time() - started, result


def corpus(folder: Path, *, documents: int = 30000) -> Tokens:
    """Token shards of documents whose lengths are log-normal, about 490 tokens in the mean."""
    rng = np.random.default_rng(0)
    texts = [(np.append(rng.integers(10, 30000, max(1, int(rng.lognormal(5.7, 1)))), 1),) for _ in range(documents)]
    tasks = [(rng.integers(10, 30000, rng.integers(5, 400)), np.append(rng.integers(10, 30000, rng.integers(1, 120)), 1))
             for _ in range(documents // 4)]
    return write_tokens(folder, {"text": texts, "tasks": tasks}, vocab_size=32000, eos_id=1, special=SPECIAL)


STREAMS: dict[str, dict[str, Any]] = {
    "causal, concat, isolated, 4096": {"sequence_length": 4096},
    "causal, best fit, isolated, 4096": {"sequence_length": 4096, "packing": "best-fit"},
    "instructions, best fit, 4096": {"sequence_length": 4096, "sources": {"tasks": 1}},
    "prefix LM, 4096": {"objective": "prefix", "sequence_length": 4096},
    "span, encoder-decoder, 2048": {"objective": "span", "architecture": "encoder-decoder", "sequence_length": 2048},
    "UL2, encoder-decoder, 2048": {"objective": "ul2", "architecture": "encoder-decoder", "sequence_length": 2048},
    "UL2, encoder-decoder, 570/260": {"objective": "ul2", "architecture": "encoder-decoder", "sequence_length": 570,
                                      "decoder_length": 260},
    "UL2, encoder-decoder, 570/380": {"objective": "ul2", "architecture": "encoder-decoder", "sequence_length": 570,
                                      "decoder_length": 380},
    "D-UL2 (start shares), encoder-decoder, 2048": {"objective": "d-ul2", "architecture": "encoder-decoder",
                                                    "sequence_length": 2048},
    "O-UL2, encoder-decoder, 1040/1040": {"objective": "o-ul2", "architecture": "encoder-decoder", "sequence_length": 1040},
    "UL2, decoder-only, 4096": {"objective": "ul2", "sequence_length": 4096},
    "GLM, 1024": {"objective": "glm", "sequence_length": 1024},
    "UniLM, 512": {"objective": "unilm", "sequence_length": 512},
    "instructions, encoder-decoder, 1024/256": {"objective": "ul2", "architecture": "encoder-decoder", "sequence_length": 1024,
                                                "decoder_length": 256, "sources": {"tasks": 1}},
}


def batches(folder: Path, peers: Path | None) -> dict[str, Any]:
    """Real tokens per CPU-second and fill of every kind of batch; Megatron's datasets on the same shard."""
    tokens = corpus(folder)
    found: dict[str, Any] = {}
    for name, settings in STREAMS.items():
        stream = build_stream(StreamConfig(**{"batch_rows": 32, "sources": {"text": 1}, **settings}), tokens.path)
        state = stream.initial_state()
        stream.batch(0, state=state)
        real = slots = lost = 0
        spent, step = 0.0, 1
        while spent < 1.0:
            seconds, batch = cpu(lambda stream=stream, step=step, state=state: stream.batch(step, state=state))
            spent, step = spent + seconds, step + 1
            real, slots, lost = real + batch.real_tokens, slots + batch.slots, lost + batch.truncated_tokens
        far, _ = cpu(lambda stream=stream, state=state: stream.batch(10**7, state=state))
        near, _ = cpu(lambda stream=stream, state=state: stream.batch(7, state=state))
        found[name] = {"tokens_per_cpu_s": real / spent, "fill": real / slots, "lost_tokens": lost,
                       "decoder": stream.decoder_length,
                       "batch_at_step_7_s": near, "batch_at_step_10_million_s": far}
    figures = {"streams": found}
    if peers is not None:
        run = subprocess.run([str(peer_python(peers)), str(Path(__file__).with_name("objectives_peer.py")),
                              str(tokens.path / "text"), "32000"], capture_output=True, text=True, check=True)
        peer = json.loads(run.stdout.strip().splitlines()[-1])
        shard = tokens.shard("text")
        assert peer["sequences"] == shard.sequences and peer["first"] == shard.sequence(0)[:5].tolist()
        assert peer["checksum"] == sum(int(shard.sequence(i).sum()) for i in range(0, shard.sequences, 97))
        figures["megatron_core"] = peer
        figures["ratios"] = {
            "causal isolated / GPTDataset with resets": found["causal, concat, isolated, 4096"]["tokens_per_cpu_s"]
            / peer["gpt_isolated_tokens_per_cpu_s"],
            "causal isolated / GPTDataset without isolation": found["causal, concat, isolated, 4096"]["tokens_per_cpu_s"]
            / peer["gpt_tokens_per_cpu_s"],
            "span / T5MaskedWordPieceDataset": found["span, encoder-decoder, 2048"]["tokens_per_cpu_s"]
            / peer["t5_tokens_per_cpu_s"],
        }
    return figures


def packing() -> dict[str, Any]:
    """Best fit of ten million lengths, two-sided fit of one million, blending."""
    rng = np.random.default_rng(0)
    best_fit(rng.integers(1, 100, 1000), 100)
    vector_fit(np.array([1, 2]), np.array([1, 2]), 4, 4)
    blend([0.5, 0.5], 10)
    lengths = np.clip(rng.lognormal(5.7, 1.0, 10_000_000).astype(np.int32), 1, 4096)
    seconds, plan = cpu(lambda: best_fit(lengths, 4096, rng=rng))
    prompts, answers = rng.integers(5, 400, 1_000_000), rng.integers(1, 120, 1_000_000)
    both, pairs = cpu(lambda: vector_fit(prompts, answers, 1024, 304, rng=rng))
    blending, _ = cpu(lambda: blend([0.5, 0.3, 0.1, 0.05, 0.05], 10_000_000))
    mixture = Mixture([0.5, 0.3, 0.2])
    locating, _ = cpu(lambda: [mixture.locate(10**10 + i) for i in range(10000)])
    return {"best_fit_10m_cpu_s": seconds, "best_fit_fill": plan.fill, "two_sided_1m_cpu_s": both, "two_sided_fill": pairs.fill,
            "blend_10m_rows_cpu_s": blending, "locate_row_10_billion_us": locating / 10000 * 1e6}


def index(folder: Path) -> dict[str, Any]:
    """Milliseconds to open an index of a thousand and of twenty million sequences."""
    found = {}
    for count in (1_000, 20_000_000):
        prefix = folder / f"index-{count}"
        lengths = np.full(count, 300, np.int32)
        files_of(prefix)[1].write_bytes(index_bytes(np.dtype("<u2"), lengths, np.arange(count + 1)))
        with files_of(prefix)[0].open("wb") as file:
            file.truncate(count * 600)
        open_shard(prefix)
        seconds = min(cpu(lambda prefix=prefix, count=count: open_shard(prefix).sequence(count - 1))[0] for _ in range(5))
        found[f"open_{count}_sequences_ms"] = seconds * 1e3
        found[f"index_{count}_bytes"] = HEADER.size + 20 * count
        for file_ in files_of(prefix):
            file_.unlink()
    return found


def encode(texts_dir: Path, tokenizers_dir: Path, per_file: int) -> dict[str, Any]:
    """Bytes of text per CPU-second of ours and of the bare libraries, and whether all ids are equal."""
    import sentencepiece

    from penjing.files import open_text_bytes
    from penjing.tokenizer.encode import load_encoder

    texts: list[str] = []
    for file in sorted(texts_dir.rglob("*.jsonl.gz")):
        with gzip.open(file, "rt", encoding="utf-8") as lines:
            texts += [json.loads(line)["text"] for _, line in zip(range(per_file), lines, strict=False)]
    size = sum(len(text.encode()) for text in texts)
    found: dict[str, Any] = {"documents": len(texts), "bytes": size}
    with tempfile.TemporaryDirectory() as scratch:
        for path in tokenizer_paths(tokenizers_dir, Path(scratch)):
            name = path.parent.name if path.is_file() else path.name
            encoder = load_encoder(path)
            encoder._checked = 10**9
            if encoder.engine == "sentencepiece":
                with open_text_bytes(encoder.path) as file:
                    bare = sentencepiece.SentencePieceProcessor(model_proto=file.read())
                peer, theirs_of = "sentencepiece", lambda bare=bare: bare.Encode(texts)
            else:
                import tokenizers

                with open_text_bytes(encoder.path) as file:
                    library = tokenizers.Tokenizer.from_str(file.read().decode())
                peer, theirs_of = "tokenizers", lambda library=library: [
                    item.ids for item in library.encode_batch_fast(texts, add_special_tokens=False)]
            # Turn and turn about, the best of three on each side: libraries keep a cache of words, and the machine has other work.
            ours = theirs = float("inf")
            for _ in range(3):
                spent, ids = cpu(lambda encoder=encoder: encoder.encode_batch(texts))
                ours = min(ours, spent)
                spent, reference = cpu(theirs_of)
                theirs = min(theirs, spent)
            equal = all(a.tolist() == list(b) for a, b in zip(ids, reference, strict=True))
            found[name] = {"engine": encoder.engine, "peer": peer, "mb_per_cpu_s": size / ours / 1e6,
                           "peer_mb_per_cpu_s": size / theirs / 1e6, "ratio": theirs / ours, "ids_equal": equal,
                           "tokens_per_cpu_s": sum(map(len, ids)) / ours}
    return found


def tokenizer_paths(folder: Path, scratch: Path) -> list[Path]:
    """Every tokenizer under `folder`; vocab.json + merges.txt are made into a tokenizer.json in `scratch`."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers

    found = [path for pattern in ("tokenizer.json*", "*.model") for path in sorted(folder.rglob(pattern))]
    for merges in sorted(folder.rglob("merges.txt")):
        model = tokenizers.Tokenizer(models.BPE.from_file(str(merges.with_name("vocab.json")), str(merges)))
        model.pre_tokenizer, model.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
        model.add_special_tokens(["<|endoftext|>"])
        target = scratch / merges.parent.name / "tokenizer.json"
        target.parent.mkdir()
        model.save(str(target))
        found.append(target)
    return found


def peer_python(folder: Path) -> Path:
    """The interpreter of an environment with megatron-core, made on first use beside this one's packages."""
    python = folder / "bin" / "python"
    if not python.is_file():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        site = next((folder / "lib").glob("python*/site-packages"))
        (site / "here.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")) + "\n")
        subprocess.run([str(python), "-m", "pip", "install", "-q", "--no-deps", "megatron-core==0.16.1"], check=True)
    return python


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--only", default="batches,packing,index,encode")
    parser.add_argument("--peers", type=Path)
    shared = Path(os.environ.get("PENJING_SHARED", Path(__file__).parents[2] / "shared")) / "data"
    parser.add_argument("--texts", type=Path, default=shared / "corpus")
    parser.add_argument("--tokenizers", type=Path, default=shared / "tokenizers")
    parser.add_argument("--per-file", type=int, default=80, help="documents read of each file of --texts")
    options = parser.parse_args()
    figures: dict[str, Any] = {"machine": f"{os.cpu_count()} cores {platform.machine()}", "python": platform.python_version()}
    with tempfile.TemporaryDirectory() as scratch:
        for part in options.only.split(","):
            if part == "batches":
                figures[part] = batches(Path(scratch) / "tokens", options.peers)
            elif part == "packing":
                figures[part] = packing()
            elif part == "index":
                figures[part] = index(Path(scratch))
            elif part == "encode" and options.texts.is_dir():
                figures[part] = encode(options.texts, options.tokenizers, options.per_file)
    if options.json:
        print(json.dumps(figures))
    else:
        print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
