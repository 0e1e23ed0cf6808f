"""Perplexity against kenlm: the same numbers, and text per CPU second.

    python bench/data_perplexity.py [--json] [--peers DIR] [--lmplz FILE] [--work DIR] [--languages zh en] [--share 0.5]

Models of two languages are trained on 70% of the documents of real text (PENJING_SHARED, default ../shared) and score
the other 30%. The kenlm library runs in `<peers>/kenlm/bin/python` (default ~/.cache/penjing-bench; `pip install
kenlm`), on our ARPA file turned into its probing binary. It is measured twice: on sentences that are already cut into
words (its part alone), and from raw text with the cutting done in Python, which is what a user of the library writes.
Ours is measured from raw text, cutting included, and on numbered words (`ours_cut`), the fellow of the library's own part.
`--lmplz` (built from kenlm's source distribution, with `build_binary` beside it) adds the trainer: the same n-grams
and values are expected.
"""

from __future__ import annotations

import argparse
import gzip
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
import pyarrow as pa

from penjing.data.perplexity.model import spelled_ngrams, tables_of, train, write_arpa
from penjing.data.perplexity.score import score, score_streams
from penjing.data.perplexity.units import TokenVocabulary, count_tokens

SOURCES = {
    "zh": (
        "python_docs_zh",
        "tidb_docs_zh",
        "php_manual_zh",
        "cn_laws",
        "web_mix_zh",
        "medical_qa_zh",
        "classical_in_modern_zh",
    ),
    "en": ("redpajama_stackexchange_en", "digitalgov_en", "php_manual_en", "react_docs_en", "python_docs_en"),
}
PEER = """
import json, re, sys, time, unicodedata
import kenlm
model = kenlm.Model(sys.argv[1])
documents = [json.loads(line) for line in open(sys.argv[2], encoding="utf-8")]
cut = 1e9
for _ in range(3):
    started = time.process_time()
    for document in documents:
        sum(model.score(line) for line in document["cut"])
    cut = min(cut, time.process_time() - started)
HAN = "\\u3040-\\u30ff\\u3400-\\u9fff\\uac00-\\ud7a3"
WORD = re.compile(f"[{HAN}]|[^\\\\W_{HAN}]+|[^\\\\w\\\\s]|_")
DIGIT = re.compile(r"\\d")
def words(line):
    folded = unicodedata.normalize("NFKD", line).casefold()
    return WORD.findall(DIGIT.sub("0", "".join(c for c in folded if unicodedata.category(c) != "Mn")))
started = time.process_time()
for document in documents:
    sum(model.score(" ".join(words(line))) for line in document["text"].split("\\n") if line.strip())
raw = time.process_time() - started
# word by word: kenlm adds up a sentence in single precision, which loses digits in lines of thousands of words
sums = [sum(item[0] for line in document["cut"] for item in model.full_scores(line)) for document in documents]
print(json.dumps({"cut_s": cut, "raw_s": raw, "sums": sums}))
"""


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--peers", type=Path, default=Path.home() / ".cache" / "penjing-bench")
    parser.add_argument("--lmplz", type=Path)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--languages", nargs="*", default=list(SOURCES))
    parser.add_argument("--share", type=float, default=1.0, help="of the documents, every k-th")
    options = parser.parse_args()
    work = options.work or Path(tempfile.mkdtemp(prefix="penjing-bench-"))
    work.mkdir(parents=True, exist_ok=True)
    data = Path(os.environ.get("PENJING_SHARED", "../shared")) / "data"
    report: dict[str, Any] = {"machine": machine(), "languages": {}}
    for lang in options.languages:
        texts = texts_of(data, lang)[:: max(1, round(1 / options.share))]
        report["languages"][lang] = measure(lang, texts, work, options.peers, options.lmplz)
        if not options.json:
            print(lang, json.dumps(report["languages"][lang]), file=sys.stderr, flush=True)
    print(json.dumps(report, indent=None if options.json else 1))
    if options.work is None:
        shutil.rmtree(work)


def measure(lang: str, texts: list[str], work: Path, peers: Path, lmplz: Path | None) -> dict[str, Any]:
    """Everything about one language."""
    held = texts[2::10] + texts[5::10] + texts[9::10]
    known = [text for place, text in enumerate(texts) if place % 10 not in (2, 5, 9)]
    train_on = [pa.array(known[at : at + 500], pa.large_string()) for at in range(0, len(known), 500)]
    sizes = {"trained_mb": megabytes(known), "scored_mb": megabytes(held)}
    started = time.process_time()
    vocabulary = count_tokens(train_on, min_count=1, largest=10**7)
    known_streams = [vocabulary.streams(batch)[0] for batch in train_on]
    trained = train(known_streams, order=5, vocabulary=len(vocabulary.words), prune=(0, 0, 1, 1, 1))
    found: dict[str, Any] = {**sizes, "train_cpu_s": time.process_time() - started}
    found["train_mb_per_cpu_s"] = sizes["trained_mb"] / found["train_cpu_s"]
    tables = tables_of(trained.orders)
    batches = [pa.array(held[at : at + 500], pa.large_string()) for at in range(0, len(held), 500)]
    score(batches[0], vocabulary, tables)
    seconds = 1e9
    for _ in range(3):
        started = time.process_time()
        scores = [score(batch, vocabulary, tables) for batch in batches]
        seconds = min(seconds, time.process_time() - started)
    found["score_mb_per_cpu_s"] = sizes["scored_mb"] / seconds
    streams = [(words.copy(), offsets) for words, offsets in map(vocabulary.streams, batches)]
    cut_seconds = 1e9
    for _ in range(3):
        started = time.process_time()
        for words, offsets in streams:
            score_streams(words, offsets, tables)
        cut_seconds = min(cut_seconds, time.process_time() - started)
    found["score_cut_mb_per_cpu_s"] = sizes["scored_mb"] / cut_seconds
    found["words"], found["table_mb"] = sum(len(words) for words, _ in streams), tables.entries.nbytes / 1e6
    found["table_full"] = float((tables.entries["key"] != 0).mean())
    arpa = work / f"{lang}.arpa"
    write_arpa(arpa, trained.orders, vocabulary.words)
    if lmplz is not None:
        found["lmplz"] = against_lmplz(lmplz, known_streams, vocabulary, trained.orders, work, sizes["trained_mb"])
        found["lmplz"]["ours_is_times_faster"] = found["train_mb_per_cpu_s"] / found["lmplz"]["mb_per_cpu_s"]
    found["kenlm"] = against_kenlm(peers, lmplz, arpa, held, vocabulary, batches, work, sizes["scored_mb"])
    if "sums" in found["kenlm"]:
        ours = np.concatenate([part.log_probability for part in scores])
        events = np.concatenate([part.events for part in scores])
        difference = np.abs(ours - np.array(found["kenlm"].pop("sums")))
        found["kenlm"]["largest_difference_per_word"] = float((difference / np.maximum(events, 1)).max())
        for way in ("cut", "raw"):
            found["kenlm"][f"ours_is_times_faster_{way}"] = (
                found["score_mb_per_cpu_s"] / found["kenlm"][f"mb_per_cpu_s_{way}"]
            )
        found["kenlm"]["ours_cut_is_times_faster_cut"] = found["score_cut_mb_per_cpu_s"] / found["kenlm"]["mb_per_cpu_s_cut"]
    return found


def against_kenlm(
    peers: Path,
    lmplz: Path | None,
    arpa: Path,
    held: list[str],
    vocabulary: TokenVocabulary,
    batches: list[pa.Array],
    work: Path,
    size: float,
) -> dict[str, Any]:
    """The library's sums and speed."""
    python = peers / "kenlm" / "bin" / "python"
    if not python.is_file():
        return {"absent": f"no kenlm in {peers}"}
    model = arpa
    if lmplz is not None:
        model = arpa.with_suffix(".bin")
        subprocess.run(
            [str(lmplz.with_name("build_binary")), "probing", str(arpa), str(model)], check=True, capture_output=True
        )
    documents = work / f"{arpa.stem}.jsonl"
    with documents.open("w", encoding="utf-8") as file:
        at = 0
        for batch in batches:
            stream, offsets = vocabulary.streams(batch)
            for row in range(len(batch)):
                cut = sentences(stream[offsets[row] : offsets[row + 1]], vocabulary.words)
                file.write(json.dumps({"cut": cut, "text": held[at]}, ensure_ascii=False) + "\n")
                at += 1
    done = subprocess.run([str(python), "-c", PEER, str(model), str(documents)], capture_output=True, text=True)
    if done.returncode:
        return {"fault": done.stderr[-300:]}
    said = json.loads(done.stdout)
    return {"mb_per_cpu_s_cut": size / said["cut_s"], "mb_per_cpu_s_raw": size / said["raw_s"], "sums": said["sums"]}


def against_lmplz(
    lmplz: Path, streams: list[np.ndarray], vocabulary: TokenVocabulary, orders: Any, work: Path, size: float
) -> dict[str, Any]:
    """The trainer's n-grams, values and speed."""
    text, arpa = work / "lmplz.txt", work / "lmplz.arpa"
    with text.open("w", encoding="utf-8") as file:
        for stream in streams:
            file.writelines(line + "\n" for line in sentences(stream, vocabulary.words))
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [
            str(lmplz),
            "-o",
            "5",
            "-S",
            "2G",
            "--discount_fallback",
            "--prune",
            "0",
            "0",
            "1",
            "1",
            "1",
            "-T",
            str(work),
            "--text",
            str(text),
            "--arpa",
            str(arpa),
        ],
        check=True,
        capture_output=True,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    ours = spelled_ngrams(orders, vocabulary)
    worst, number, missing = 0.0, 0, 0
    with arpa.open(encoding="utf-8") as file:
        for line in file:
            row = line.rstrip("\n").split("\t")
            if len(row) < 2:
                continue
            number += 1
            if row[1] not in ours:
                missing += 1
            elif row[1] != "<s>":
                mine = ours[row[1]]
                worst = max(worst, abs(mine[0] - float(row[0])), abs(mine[1] - float(row[2])) if len(row) > 2 else 0.0)
    return {
        "cpu_s": seconds,
        "mb_per_cpu_s": size / seconds,
        "ngrams": number,
        "ours_has_more": len(ours) - number + missing,
        "ours_lacks": missing,
        "largest_difference": worst,
    }


def sentences(stream: np.ndarray, words: list[str]) -> list[str]:
    """The sentences of a stream as text."""
    found: list[str] = []
    current: list[str] = []
    for number in stream.tolist():
        if number == 1:
            current = []
        elif number == 2:
            found.append(" ".join(current))
        else:
            current.append(words[number])
    return found


def texts_of(data: Path, lang: str) -> list[str]:
    """All documents of one language."""
    found = []
    for name in SOURCES[lang]:
        with gzip.open(data / "corpus" / lang / f"{name}.jsonl.gz", "rt", encoding="utf-8") as file:
            found += [json.loads(line)["text"] for line in file]
    return found


def megabytes(texts: list[str]) -> float:
    """Bytes of UTF-8, in millions."""
    return sum(len(text.encode()) for text in texts) / 1e6


def machine() -> str:
    """What this ran on, in words."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    return f"{os.cpu_count()} cores {platform.machine()}, {memory:.0f} GB, Python {platform.python_version()}"


if __name__ == "__main__":
    main()
