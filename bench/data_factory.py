"""The whole factory: JSON lines in; collected, normalised, filtered, de-duplicated, scored Parquet out.

Ours is one process tree; the peer is datatrove's own pipeline for the same work as far as it has it: Gopher, C4 and FineWeb
filters and MinHash de-duplication (it has no normalisation and no percentile tiers), one language per pipeline. Figures are MB
of UTF-8 text that came in per second of processor time of the whole process tree, start-up included.

    python bench/data_factory.py --json --megabytes 20 --peer-python PATH
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from data_dedup import DATATROVE_MINHASH, cpu_seconds
from data_rules import documents

OURS = r'''
import json, os, resource, sys, time
from pathlib import Path
from penjing.config import parse
from penjing.contract import Job
from penjing.stages import collect, dedup, normalise, score
from penjing.stages import filter as filter_stage

source, work, model, workers = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])

def spent():
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))

ready, wall, times, before, documents = spent(), time.monotonic(), {}, None, {}
for name, stage, settings in (
        ("collect", collect, {"sources": [{"name": lang, "path": f"{source}/{lang}*.jsonl", "lang": lang} for lang in ("en", "zh")]}),
        ("normalise", normalise, {}),
        ("filter", filter_stage, {"rule_set": "ziya2"}),
        ("dedup", dedup, {}),
        ("score", score, {})):
    out = work / name
    out.mkdir(parents=True)
    began = spent()
    inputs = {key.rstrip("?*"): None for key in stage.INPUTS} | ({"corpus": before} if before else {})
    if name == "score":
        inputs["model"] = model
    stage.run(parse(stage.Config, settings, where="bench"), inputs, out, Job(workers=workers))
    times[name], before = spent() - began, out
    documents[name] = json.loads((out / "corpus.json").read_text())["documents"]
print(json.dumps({"seconds": times, "start_seconds": ready, "wall_seconds": time.monotonic() - wall, "documents": documents,
    "peak_rss_mb": round(max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) / 1024)}))
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
        ("collect", collect, {"sources": [{"name": lang, "path": f"{source}/{lang}*.jsonl", "lang": lang} for lang in ("en", "zh")]}),
        ("normalise", normalise, {}), ("model", perplexity_model, {"text_bytes": 4 << 20, "arpa": False})):
    (work / name).mkdir(parents=True)
    stage.run(parse(stage.Config, settings, where="bench"), {"corpus": before}, work / name, Job())
    before = work / name
'''
PEER_FILTERS = r'''
import sys
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.filters import C4QualityFilter, FineWebQualityFilter, GopherQualityFilter, GopherRepetitionFilter
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.writers import JsonlWriter
source, work, lang = sys.argv[1:4]
language = {"zh": "cmn_Hani", "en": "eng"}[lang]
zh = lang == "zh"
if __name__ == "__main__":
    LocalPipelineExecutor(pipeline=[
        JsonlReader(source, glob_pattern="*.jsonl"), GopherRepetitionFilter(language=language),
        GopherQualityFilter(language=language, stop_words=list("的了是在和不有我他这那也就都而与之以为于人中") if zh else None),
        C4QualityFilter(language=language, filter_no_terminal_punct=not zh, min_words_per_line=-1 if zh else 3),
        FineWebQualityFilter(language=language), JsonlWriter(f"{work}/filtered", compression=None)],
        tasks=1, workers=1, logging_dir=f"{work}/log").run()
'''


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--megabytes", type=float, default=10.0, help="per language")
    parser.add_argument("--shared", type=Path, default=Path(os.environ.get("PENJING_SHARED", "../shared")) / "data")
    parser.add_argument("--peer-python", default=os.environ.get("PENJING_DATATROVE_PYTHON", ""))
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 2])
    options = parser.parse_args()
    result: dict[str, Any] = {"machine": f"{os.cpu_count()} cores {platform.machine()}",
                              "unit": "MB of UTF-8 text in per second of processor time, start-up included"}
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        size = 0
        for lang in ("en", "zh"):
            rows = documents(options.shared, options.megabytes, lang)
            for part in range(4):
                place = work / "in" / lang
                place.mkdir(parents=True, exist_ok=True)
                lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows[part::4]]
                (place / f"{part}.jsonl").write_text("".join(lines), encoding="utf-8")
                (work / "in" / f"{lang}-{part}.jsonl").write_text("".join(lines), encoding="utf-8")
            size += sum(len(row["text"].encode()) for row in rows)
        megabytes = size / 1e6
        result["megabytes"] = round(megabytes, 1)
        subprocess.run([sys.executable, "-c", MODEL, work / "in", work / "model"], check=True, env=environment)
        for workers in options.workers:
            done = subprocess.run([sys.executable, "-c", OURS, work / "in", work / f"ours{workers}", work / "model" / "model",
                                   str(workers)], check=True, env=environment, capture_output=True, text=True)
            ours = json.loads(done.stdout.strip().splitlines()[-1])
            seconds = sum(ours["seconds"].values()) + ours["start_seconds"]
            result[f"ours_workers_{workers}"] = {
                "rate": round(megabytes / seconds, 2), "wall_seconds": round(ours["wall_seconds"], 1),
                "processor_seconds": {name: round(taken, 2) for name, taken in ours["seconds"].items()},
                "rate_by_stage": {name: round(megabytes / taken, 1) for name, taken in ours["seconds"].items()},
                "documents": ours["documents"], "peak_rss_mb_one_process": ours["peak_rss_mb"]}
        if options.peer_python:
            taken = {"filters": 0.0, "minhash": 0.0}
            for lang in ("en", "zh"):
                for name, script in (("filters", PEER_FILTERS), ("minhash", DATATROVE_MINHASH)):
                    place = work / f"peer-{name}-{lang}"
                    place.mkdir()
                    (place / "run.py").write_text(script, encoding="utf-8")
                    spent, _ = cpu_seconds([options.peer_python, str(place / "run.py"), str(work / "in" / lang), str(place), lang])
                    taken[name] += spent
            result["datatrove"] = {"rate": round(megabytes / sum(taken.values()), 3),
                                   "rate_by_step": {name: round(megabytes / spent, 3) for name, spent in taken.items()}}
            first = result[f"ours_workers_{options.workers[0]}"]
            result["ratio"] = round(first["rate"] / result["datatrove"]["rate"], 1)
    print(json.dumps(result, ensure_ascii=False, indent=None if options.json else 2))


if __name__ == "__main__":
    main()
