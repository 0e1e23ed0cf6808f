"""Vocabulary pruning, growth and counting on the real tokenizers and corpora, each against the rule or library people use today.

    python bench/tokenizer.py [--data ../shared/data] [--part prune|small|grow|count]… [--megabytes 8] [--json]

prune: to 75 %, leaf-greedy and closure against top-k by frequency (OpenBA-V2's scripts, vocabulary trimmers).
small: the same on 10,000-piece vocabularies trained on the corpus itself, where every piece is in use.
grow: LLaMA's 32,000 by characters and by words against appending with score 0 (Chinese-LLaMA's script).
count: tokens counted per CPU second against the bare `encode_batch_fast` of the tokenizers library.
Pieces are chosen on the even documents, everything is measured on lines of the odd ones.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import platform
import resource
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("RAYON_NUM_THREADS", "1")

import numpy as np

from penjing.tokenizer.build import Extension, build, gather, subset
from penjing.tokenizer.contract_check import Checker, Verdict
from penjing.tokenizer.count import count_batches, file_encoder, flat_encoder, library_encoder
from penjing.tokenizer.grow import Wish, plan_growth
from penjing.tokenizer.merges import merge_tree
from penjing.tokenizer.plan import NewPiece, VocabPlan, source_hash
from penjing.tokenizer.prune import plan_pruning
from penjing.tokenizer.read import read_vocabulary
from penjing.tokenizer.runs import runs_in
from penjing.tokenizer.vocabulary import Vocabulary
from penjing.tokenizer.write import fast_tokenizer, write_tokenizer

ZH = ("web_mix_zh", "reviews_book_zh", "classical_in_modern_zh", "cn_laws", "medical_qa_zh", "reviews_hotel_goods_zh")
EN = ("redpajama_stackexchange_en", "digitalgov_en", "gutenberg_en")
PRUNED = ("llama2_32k", "chinese_llama_alpaca2_55k", "glm_chinese_50k", "gpt2_50k", "gpt_neox_50k", "qwen_151k", "t5_32k",
          "chinese_sp_20k")
MAX_LINES = 6000


class Texts:
    """Documents to choose on and lines to measure on, by language."""

    def __init__(self, data: Path, megabytes: float) -> None:
        self.fit: dict[str, list[str]] = {}
        self.test: dict[str, list[str]] = {}
        for lang, names in (("zh", ZH), ("en", EN)):
            fit, test = [], []
            for name in names:
                room = megabytes * 1e6 / len(names)
                for at, text in enumerate(_documents(data / "corpus" / lang / f"{name}.jsonl.gz")):
                    (test if at % 2 else fit).append(text)
                    room -= len(text.encode())
                    if room < 0:
                        break
            lines = [line for text in test for line in text.split("\n") if line.strip()]
            step = max(1, len(lines) // MAX_LINES)
            self.fit[lang], self.test[lang] = fit, lines[::step]


def _documents(path: Path) -> Iterator[str]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)["text"]


def counts_of(vocabulary: Vocabulary, texts: Texts) -> dict[str, np.ndarray]:
    """Token counts by language on the documents to choose on."""
    encode = flat_encoder(vocabulary)
    return {lang: np.bincount(encode(own)[0], minlength=vocabulary.total).astype(np.int64) for lang, own in texts.fit.items()}


def judged(old: Vocabulary, new: Vocabulary, plan: Any, texts: Texts) -> dict[str, Any]:
    """The contract on held-out lines, and how many pieces nothing can reach."""
    checker = Checker(plan, unknown=frozenset(np.flatnonzero(old.types_V == 2).tolist()))
    before, after = library_encoder(old), library_encoder(new)
    figures: dict[str, Any] = {}
    if new.merges_M3 is not None:
        figures["unreachable_pieces"] = int((~merge_tree(new).reachable_V).sum())
    for lang, lines in texts.test.items():
        verdict = Verdict()
        checker.check(lines, before(lines), after(lines), verdict)
        own = verdict.as_json()
        figures[lang] = {key: own[key] for key in ("lines", "covered", "exact_share_of_covered", "changed_share", "tokens_change")}
    return figures


def prune_part(data: Path, texts: Texts) -> dict[str, Any]:
    """Every real tokenizer at 75 %."""
    found = {}
    for name in PRUNED:
        vocabulary = read_vocabulary(data / "tokenizers" / name)
        found[name] = _pruned(vocabulary, texts, int(0.75 * vocabulary.total))
    return found


def small_part(data: Path, texts: Texts) -> dict[str, Any]:
    """10,000-piece vocabularies trained on the text they are pruned for."""
    return {kind: _pruned(vocabulary, texts, int(0.75 * vocabulary.total)) for kind, vocabulary in small_vocabularies(texts)}


def small_vocabularies(texts: Texts, size: int = 10_000) -> Iterator[tuple[str, Vocabulary]]:
    """SentencePiece BPE, byte-level BPE (Qwen's pre-tokenisation) and SentencePiece unigram."""
    import io

    import sentencepiece
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    from penjing.tokenizer.layouts import QWEN_PATTERN
    from penjing.tokenizer.read import _fast, of_proto, read_model_proto

    lines = [line[:1000] for own in texts.fit.values() for text in own for line in text.split("\n") if line.strip()]
    for kind in ("bpe", "unigram"):
        model = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(lines), model_writer=model, model_type=kind, vocab_size=size,
                                                 byte_fallback=True, character_coverage=0.995, num_threads=1, minloglevel=2,
                                                 normalization_rule_name="identity", remove_extra_whitespaces=False)
        yield f"sentencepiece-{kind}", of_proto(read_model_proto(model.getvalue(), where=kind), model.getvalue(), name=kind)
    library = Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(QWEN_PATTERN), "isolated"),
                                                     pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    library.decoder = decoders.ByteLevel()
    library.train_from_iterator(lines, trainers.BpeTrainer(vocab_size=size, show_progress=False,
                                                           initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    yield "byte-level", _fast(json.loads(library.to_str()), "byte-level")


def _pruned(vocabulary: Vocabulary, texts: Texts, size: int) -> dict[str, Any]:
    counts = counts_of(vocabulary, texts)
    found: dict[str, Any] = {"vocab_before": vocabulary.total, "vocab_after": size}
    for method in ("leaf", "closure", "frequency"):
        started = cpu()
        plan = plan_pruning(vocabulary, counts, size=size, method=method)  # type: ignore[arg-type]
        new = (gather if method == "frequency" else subset)(vocabulary, plan.kept)
        seconds = cpu() - started
        found[method] = {**judged(vocabulary, new, plan, texts), "cpu_seconds": round(seconds, 2)}
    return found


def grow_part(data: Path, texts: Texts) -> dict[str, Any]:
    """LLaMA's vocabulary grown by 7,400 characters at most, and by 20,000 pieces with words."""
    old = read_vocabulary(data / "tokenizers" / "llama2_32k")
    points = np.bincount(np.frombuffer("".join(texts.fit["zh"]).encode("utf-32-le"), dtype=np.uint32), minlength=0x110000)
    found: dict[str, Any] = {}
    for kind, added in (("characters", 7400), ("words", 20_000)):
        started = cpu()
        runs = sorted(runs_in(texts.fit["zh"], kind).items(), key=lambda item: (-item[1], item[0])) if kind == "words" else None
        plan = plan_growth(old, points, runs, Wish(old.total + added, kind, min_count=1))  # type: ignore[arg-type]
        new = build(old, plan)
        seconds = cpu() - started
        found[kind] = {"added": len(plan.new), "cpu_seconds": round(seconds, 2), **judged(old, new, plan, texts),
                       "han_tokens_per_character": [_han_fertility(vocabulary, texts) for vocabulary in (old, new)]}
        zero = score_zero(old, [piece.piece for piece in plan.new])
        found[f"{kind}, score 0"] = {**judged(old, zero, plan, texts),
                                     "han_tokens_per_character": [_han_fertility(old, texts), _han_fertility(zero, texts)]}
    found["Chinese-LLaMA's merge"] = _chinese_llama(data, old, texts)
    found["all, 20000"] = _grown_all(old, points, texts)
    return found


def _chinese_llama(data: Path, old: Vocabulary, texts: Texts) -> dict[str, Any]:
    """The published merge itself: every piece of its Chinese model that LLaMA lacks, with score 0."""
    pieces = [piece for piece, kind in zip(*_pieces(read_vocabulary(data / "tokenizers" / "chinese_sp_20k")), strict=True)
              if kind == 1 and piece not in old.ids]
    merged = score_zero(old, pieces)
    expand = Extension(old).expand
    new = tuple(NewPiece(piece, 0, expand(piece)) for piece in pieces)
    plan = VocabPlan("grow", old.kind, source_hash(old), old.total, tuple(range(old.total)), new)
    return {"added": len(pieces), **judged(old, merged, plan, texts)}


def _pieces(vocabulary: Vocabulary) -> tuple[tuple[str, ...], list[int]]:
    return vocabulary.pieces, vocabulary.types_V.tolist()


def _grown_all(old: Vocabulary, points: np.ndarray, texts: Texts) -> dict[str, Any]:
    """Words of every language, appended last; and the same pieces with score 0."""
    own = [text for lang in ("zh", "en") for text in texts.fit[lang]]
    runs = sorted(runs_in(own, "all").items(), key=lambda item: (-item[1], item[0]))
    plan = plan_growth(old, points, runs, Wish(old.total + 20_000, "all", min_count=2))
    zero = score_zero(old, [piece.piece for piece in plan.new])
    return {"added": len(plan.new), "appended last": judged(old, build(old, plan), plan, texts),
            "score 0": judged(old, zero, plan, texts)}


def score_zero(old: Vocabulary, pieces: list[str]) -> Vocabulary:
    """Chinese-LLaMA's way: the pieces appended with score 0, above every old one."""
    from penjing.tokenizer.read import of_proto, read_model_proto

    assert old.proto is not None
    proto = read_model_proto(old.proto, where="old")
    for piece in pieces:
        proto.pieces.add(piece=piece, score=0.0, type=1)
    return of_proto(proto, proto.SerializeToString(), name="score 0")


def _han_fertility(vocabulary: Vocabulary, texts: Texts) -> float:
    """Tokens per character on the Han characters and Chinese marks of the held-out lines, as Ziya2 counts."""
    from penjing.tokenizer.scripts import chinese_table

    table = chinese_table()
    han = ["".join(character for character in line if table[ord(character)]) for line in texts.test["zh"]]
    han = [line for line in han if line]
    lone = flat_encoder(vocabulary)(["你"])[1][0] - 1 if vocabulary.proto is not None else 0
    tokens = int(flat_encoder(vocabulary)(han)[1].sum()) - (len(han) if lone > 0 else 0)
    return round(tokens / sum(map(len, han)), 4)


def count_part(data: Path, texts: Texts) -> dict[str, Any]:
    """Counting (encode, bincount, characters, scripts) against the library's bare encoding, one thread each, same texts."""
    import pyarrow as pa

    own = texts.fit["zh"] + texts.fit["en"]
    batches = [pa.record_batch({"text": pa.array(own[start: start + 256], pa.large_string()),
                                "lang": pa.array(["zh"] * len(own[start: start + 256]))}) for start in range(0, len(own), 256)]
    size = sum(len(text.encode()) for text in own)
    found: dict[str, Any] = {"text_bytes": size}
    for name in ("llama2_32k", "gpt_neox_50k", "qwen_151k", "t5_32k"):
        vocabulary = read_vocabulary(data / "tokenizers" / name)
        library = fast_tokenizer(vocabulary)
        with tempfile.TemporaryDirectory() as place:
            write_tokenizer(vocabulary, Path(place), source=None)
            encode = file_encoder(Path(place), vocabulary)
        count_batches(batches[:1], encode, vocabulary.total)
        rates = {"ours": [], "library": []}
        for _ in range(3):
            started = cpu()
            count_batches(batches, encode, vocabulary.total)
            middle = cpu()
            for start in range(0, len(own), 256):
                library.encode_batch_fast(own[start: start + 256], add_special_tokens=False)
            rates["ours"].append(size / (middle - started) / 1e6)
            rates["library"].append(size / (cpu() - middle) / 1e6)
        ours, theirs = (float(np.median(rates[key])) for key in ("ours", "library"))
        found[name] = {"counted_megabytes_per_cpu_second": round(ours, 2), "library_megabytes_per_cpu_second": round(theirs, 2),
                       "ratio": round(ours / theirs, 3)}
    return found


def cpu() -> float:
    """CPU seconds of this process and its children."""
    return sum(used.ru_utime + used.ru_stime for used in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)))


PARTS = {"prune": prune_part, "small": small_part, "grow": grow_part, "count": count_part}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("PENJING_SHARED", "../shared")) / "data")
    parser.add_argument("--part", action="append", choices=sorted(PARTS))
    parser.add_argument("--megabytes", type=float, default=8.0, help="text per language, half to choose on, half to measure")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    texts = Texts(given.data, given.megabytes)
    figures: dict[str, Any] = {"machine": f"{os.cpu_count()} cores {platform.machine()}", "lines": {
        lang: len(lines) for lang, lines in texts.test.items()}}
    for part in given.part or list(PARTS):
        figures[part] = PARTS[part](given.data, texts)
    print(json.dumps(figures, ensure_ascii=False, indent=None if given.json else 1))


if __name__ == "__main__":
    main()
