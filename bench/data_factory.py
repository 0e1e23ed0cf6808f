"""The whole factory: JSON lines in; collected, normalised, scored, filtered, de-duplicated Parquet out, and datatrove beside it.

    python bench/data_factory.py --json                                       every shared document once (84 MB)
    python bench/data_factory.py --json --megabytes 250 --workers 1 2         enlarged, one worker and two
    python bench/data_factory.py --json --megabytes 5 --languages en --peer-python PATH     datatrove's chain on the same files

Above 84 MB further documents are woven from two of the same source, every other line (or sentence) of each, so that no two
are near-duplicates and statistics stay those of real text. The peer is datatrove's own pipeline for the nearest same work:
reader, language (CLD2, which is dearer to download than to run; its fastText models cannot be fetched here), Gopher repetition
and quality, C4, FineWeb, writer, then MinHash de-duplication of what is left, one language per pipeline. It neither
normalises, nor cuts paragraphs and sentences, nor scores perplexity, and it stops at the first filter that refuses.

Figures are MB of UTF-8 text that came in per second of processor time of the whole process tree, start-up included; kernels
are compiled before. With several workers: `main_seconds` is what the parent spent, which nothing runs beside; the speed-up
is of wall time, and `possible_speed_up` is what Amdahl's law gives for that serial part.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import platform
import random
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_dedup import DATATROVE_MINHASH, cpu_seconds

SEED = 7
FILE_BYTES = 21_000_000
ORDERS = {"score-first": ("collect", "normalise", "score", "filter", "dedup"),
          "filter-first": ("collect", "normalise", "filter", "dedup", "score")}
OURS = r'''
import json, resource, sys, time
began = time.monotonic()
from pathlib import Path
import psutil
from penjing.config import parse
from penjing.contract import Job
from penjing.data import engine_local
from penjing.stages import collect, dedup, normalise, score
from penjing.stages import filter as filter_stage

source, work, model, workers, order = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]), sys.argv[5]
stages = {"collect": (collect, {"sources": [{"name": lang, "path": f"{source}/{lang}-*.jsonl", "lang": lang}
                                    for lang in ("en", "zh") if list(source.glob(f"{lang}-*"))]}),
          "normalise": (normalise, {}), "score": (score, {}), "filter": (filter_stage, {"rule_set": "ziya2"}), "dedup": (dedup, {})}

def spent():
    mine = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
    others = sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])
    for number in engine_local.spare_workers():
        others += sum(psutil.Process(number).cpu_times()[:2])
    return mine, others

figures, before = {"start": {"seconds": spent()[0], "wall_seconds": time.monotonic() - began}}, None
peak = 0
for name in order.split(","):
    stage, settings = stages[name]
    out = work / name
    out.mkdir(parents=True)
    mine, others = spent()
    wall = time.monotonic()
    inputs = {key.rstrip("?*"): None for key in stage.INPUTS} | ({"corpus": before} if before else {})
    if name == "score":
        inputs["model"] = model
    stage.run(parse(stage.Config, settings, where="bench"), inputs, out, Job(workers=workers))
    wall = time.monotonic() - wall
    mine, others = spent()[0] - mine, spent()[1] - others
    made = json.loads((out / "corpus.json").read_text())
    figures[name] = {"seconds": mine + others, "main_seconds": mine, "wall_seconds": wall, "documents": made["documents"],
                     "megabytes_out": made["text_bytes"] / 1e6}
    for number in engine_local.spare_workers():
        peak = max(peak, psutil.Process(number).memory_info().rss)
    before = out
engine_local.let_go()
figures["peak_rss_mb"] = max(peak >> 20, *(resource.getrusage(who).ru_maxrss >> 10
                             for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)))
figures["wall_seconds"] = time.monotonic() - began
print(json.dumps(figures))
'''
MODEL = r'''
import sys
from pathlib import Path
from penjing.config import parse
from penjing.contract import Job
from penjing.stages import collect, normalise, perplexity_model
source, work = Path(sys.argv[1]), Path(sys.argv[2])
before = None
for name, stage, settings in (
        ("collect", collect, {"sources": [{"name": lang, "path": f"{source}/{lang}-*.jsonl", "lang": lang}
                                    for lang in ("en", "zh") if list(source.glob(f"{lang}-*"))]}),
        ("normalise", normalise, {}), ("model", perplexity_model, {"text_bytes": 8 << 20, "arpa": False})):
    (work / name).mkdir(parents=True)
    stage.run(parse(stage.Config, settings, where="bench"), {"corpus": before}, work / name, Job())
    before = work / name
'''
PEER_FILTERS = r'''
import sys
import pycld2
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.filters import (C4QualityFilter, FineWebQualityFilter, GopherQualityFilter, GopherRepetitionFilter,
                                        LambdaFilter)
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.writers import JsonlWriter
source, work, lang = sys.argv[1:4]
language = {"zh": "cmn_Hani", "en": "eng"}[lang]
zh = lang == "zh"
def spoken(document):
    try:
        _, _, found = pycld2.detect(document.text, isPlainText=True, bestEffort=True)
    except pycld2.error:
        return False
    return found[0][1].startswith(lang) and found[0][2] >= (30 if zh else 65)
if __name__ == "__main__":
    LocalPipelineExecutor(pipeline=[
        JsonlReader(source, glob_pattern="*.jsonl"), LambdaFilter(spoken), GopherRepetitionFilter(language=language),
        GopherQualityFilter(language=language, stop_words=list("的了是在和不有我他这那也就都而与之以为于人中") if zh else None,
                            **({"min_avg_word_length": None, "max_avg_word_length": None} if zh else {})),
        C4QualityFilter(language=language, filter_no_terminal_punct=not zh, min_words_per_line=-1 if zh else 3,
                        max_word_length=-1 if zh else 1000),
        FineWebQualityFilter(language=language), JsonlWriter(f"{work}/filtered", compression=None)],
        tasks=1, workers=1, logging_dir=f"{work}/log").run()
'''


def shared_documents(shared: Path, language: str) -> list[dict[str, str]]:
    """Every document of the shared corpora of a language."""
    rows: list[dict[str, str]] = []
    for path in sorted((shared / "corpus" / language).glob("*.jsonl.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as file:
            rows += [{"id": row["id"], "text": row["text"], "from": path.name} for row in map(json.loads, file)]
    return rows


def enlarged(rows: list[dict[str, str]], size: float) -> Iterator[dict[str, str]]:
    """`size` bytes of text: a sample of the documents when that is less, else all of them and woven ones."""
    total = sum(len(row["text"].encode()) for row in rows)
    if size < total:
        step = total / size
        yield from (rows[int(place * step)] for place in range(int(len(rows) / step)))
        return
    yield from rows
    chance = random.Random(SEED)
    sources: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        sources.setdefault(row["from"], []).append(row)
    number = 0
    while total < size:
        for row in rows:
            number += 1
            other = chance.choice(sources[row["from"]])
            text = woven(row["text"], other["text"], chance)
            total += len(text.encode())
            yield {"id": f"{row['id']}+{number}", "text": text, "from": row["from"]}
            if total >= size:
                return


def woven(one: str, two: str, chance: random.Random) -> str:
    """Parts of both by the toss of a coin: lines, or sentences where lines are few."""
    if min(one.count("\n"), two.count("\n")) >= 6:
        joint, parts = "\n", (one.split("\n"), two.split("\n"))
    else:
        joint, parts = "", (re.findall(r"[^。！？.!?\n]+[。！？.!?\n]*\s*", one), re.findall(r"[^。！？.!?\n]+[。！？.!?\n]*\s*", two))
    made = []
    for place in range(max(map(len, parts))):
        chosen = parts[chance.random() < 0.5]
        if place < len(chosen):
            made.append(chosen[place])
    return joint.join(made)


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--megabytes", type=float, default=84.0, help="of text, both languages together")
    parser.add_argument("--shared", type=Path, default=Path(os.environ.get("PENJING_SHARED", "../shared")) / "data")
    parser.add_argument("--peer-python", default=os.environ.get("PENJING_DATATROVE_PYTHON", ""))
    parser.add_argument("--workers", type=int, nargs="*", default=[1])
    parser.add_argument("--languages", nargs="*", default=["en", "zh"])
    parser.add_argument("--order", choices=list(ORDERS), default="score-first")
    parser.add_argument("--model", type=Path, help="a perplexity model; without it one is trained on 8 MiB per language, not counted")
    options = parser.parse_args()
    result: dict[str, Any] = {"machine": f"{os.cpu_count()} cores {platform.machine()}", "load": round(os.getloadavg()[0], 1),
                              "order": options.order}
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        megabytes = make_input(work, options.shared, options.megabytes, options.languages)
        result["megabytes"] = round(megabytes, 1)
        model = options.model or work / "model" / "model"
        if options.model is None:
            subprocess.run([sys.executable, "-c", MODEL, work / "in", work / "model"], check=True, env=environment)
        start_up = warm(work, model, environment, options.order, options.languages)
        for workers in options.workers:
            figures = ours(work, model, workers, options.order, environment)
            result[f"workers_{workers}"] = summary(figures, megabytes)
        result["start_up_seconds"] = round(start_up, 2)
        runs = [result[f"workers_{workers}"] for workers in options.workers]
        if len(runs) > 1:
            result["speed_up"] = round(runs[0]["wall_seconds"] / runs[-1]["wall_seconds"], 2)
        if options.peer_python:
            theirs = result["datatrove"] = peer(work, options.peer_python, megabytes, options.languages)
            if "rate" in theirs:
                net = megabytes / max(0.01, runs[0]["seconds"] - start_up)
                result["net_rate"] = round(net, 2)
                result["ratio"] = round(runs[0]["rate"] / theirs["rate"], 1)
                result["ratio_net_of_start_up"] = round(net / theirs["net_rate"], 1)
    print(json.dumps(result, ensure_ascii=False, indent=None if options.json else 2))


def make_input(work: Path, shared: Path, megabytes: float, languages: list[str]) -> float:
    """Write `in/<lang>-<number>.jsonl` and, for the peer, the same files by language; MB of text."""
    total = 0
    for lang in languages:
        place = work / "by-language" / lang
        (work / "in").mkdir(parents=True, exist_ok=True)
        place.mkdir(parents=True)
        lines: list[str] = []
        size = number = 0
        for row in enlarged(shared_documents(shared, lang), megabytes / len(languages) * 1e6):
            lines.append(json.dumps({"id": row["id"], "text": row["text"]}, ensure_ascii=False) + "\n")
            total += len(row["text"].encode())
            size += len(lines[-1].encode())
            if size >= min(FILE_BYTES, megabytes / len(languages) / 2 * 1e6):
                write(work / "in" / f"{lang}-{number:02d}.jsonl", place, lines)
                lines, size, number = [], 0, number + 1
        if lines:
            write(work / "in" / f"{lang}-{number:02d}.jsonl", place, lines)
    return total / 1e6


def write(path: Path, also: Path, lines: list[str]) -> None:
    """One file, and a second name for it."""
    path.write_text("".join(lines), encoding="utf-8")
    (also / path.name).hardlink_to(path)


def warm(work: Path, model: Path, environment: dict[str, str], order: str, languages: list[str]) -> float:
    """Compile whatever is not compiled yet, on a few documents; the processor seconds of a second time, which are start-up."""
    for lang in languages:
        (work / "few-by-language" / lang).mkdir(parents=True)
        (work / "few").mkdir(exist_ok=True)
        for path in sorted((work / "in").glob(f"{lang}-*.jsonl"))[:1]:
            lines = path.read_text(encoding="utf-8").splitlines(keepends=True)[:20]
            write(work / "few" / path.name, work / "few-by-language" / lang, lines)
    for number in (1, 2):
        done = subprocess.run([sys.executable, "-c", OURS, work / "few", work / f"warm{number}", model, "1", ",".join(ORDERS[order])],
                              check=True, env=environment, capture_output=True, text=True)
    figures = json.loads(done.stdout.strip().splitlines()[-1])
    return float(sum(item["seconds"] for item in figures.values() if isinstance(item, dict)))


def ours(work: Path, model: Path, workers: int, order: str, environment: dict[str, str]) -> dict[str, Any]:
    """Figures of one run."""
    done = subprocess.run([sys.executable, "-c", OURS, work / "in", work / f"ours{workers}", model, str(workers),
                           ",".join(ORDERS[order])], check=True, env=environment, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def summary(figures: dict[str, Any], megabytes: float) -> dict[str, Any]:
    """Rates of the whole and of each stage (of what came into the factory, and into the stage)."""
    wall, peak = figures.pop("wall_seconds"), figures.pop("peak_rss_mb")
    seconds = sum(item["seconds"] for item in figures.values())
    main_seconds = sum(item.get("main_seconds", item["seconds"]) for item in figures.values())
    coming, stages = megabytes, {}
    for name, item in figures.items():
        stages[name] = {key: round(value, 2) for key, value in item.items()}
        if name != "start":
            stages[name] |= {"rate": round(megabytes / item["seconds"], 1), "rate_of_its_input": round(coming / item["seconds"], 1)}
            coming = item["megabytes_out"]
    serial = main_seconds / seconds
    return {"rate": round(megabytes / seconds, 2), "seconds": round(seconds, 2), "wall_seconds": round(wall, 2),
            "main_seconds": round(main_seconds, 2), "possible_speed_up": round(1 / (serial + (1 - serial) / 2), 2),
            "peak_rss_mb": peak, "stages": stages}


def peer(work: Path, python: str, megabytes: float, languages: list[str]) -> dict[str, Any]:
    """datatrove's chain over the same files: filters, then MinHash over what they left; and over 20 documents, for its start-up."""
    taken: dict[str, float] = {}
    kept: dict[str, int] = {}
    for size in ("few-by-language", "by-language"):
        taken = {f"start-up of {name}": value for name, value in taken.items()}
        for lang in languages:
            source = work / size / lang
            for name, script in (("filters", PEER_FILTERS), ("minhash", DATATROVE_MINHASH)):
                place = work / f"peer-{size}-{name}-{lang}"
                place.mkdir()
                (place / "run.py").write_text(script, encoding="utf-8")
                spent, fault = cpu_seconds([python, str(place / "run.py"), str(source), str(place), lang])
                if fault:
                    return {"fault": f"{name} {lang}: {fault}"}
                taken[name] = taken.get(name, 0.0) + spent
                source = place / "filtered"
                kept[f"{name} {lang}"] = sum(1 for path in (place / ("filtered" if name == "filters" else "kept")).glob("*.jsonl")
                                             for _ in path.open(encoding="utf-8"))
                if not kept[f"{name} {lang}"]:
                    break
    whole = sum(value for name, value in taken.items() if not name.startswith("start-up"))
    start_up = sum(taken.values()) - whole
    return {"rate": round(megabytes / whole, 3), "net_rate": round(megabytes / (whole - start_up), 3),
            "seconds": {name: round(value, 1) for name, value in taken.items()}, "documents_kept": kept}


if __name__ == "__main__":
    main()
