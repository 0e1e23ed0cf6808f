"""Rules against datatrove: Gopher (quality and repetition), C4 and FineWeb on the same documents, one process each.

Speed is MB of UTF-8 text per second of processor time, children included, start-up and compilation told apart by a run on one
document. Agreement is measured twice: with datatrove's own word boundaries given to our rules, and with ours.

    python bench/data_rules.py --json --megabytes 5      (needs a virtual environment with datatrove: --peer-python PATH)
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PEER = r'''
import json, resource, sys, time
from datatrove.data import Document
from datatrove.pipeline.filters import (C4QualityFilter, FineWebQualityFilter, GopherQualityFilter, GopherRepetitionFilter)
from datatrove.utils.text import split_into_sentences, split_into_words

path, language, out, words_out = sys.argv[1:5]
zh = language == "cmn_Hani"
stop = list("的了是在和不有我他这那也就都而与之以为于人中") if zh else None
make = {
    "gopher_repetition": lambda: GopherRepetitionFilter(language=language),
    "gopher_quality": lambda: GopherQualityFilter(language=language, stop_words=stop, **({"min_avg_word_length": None,
                                                  "max_avg_word_length": None} if zh else {})),
    "c4": lambda: C4QualityFilter(language=language, filter_no_terminal_punct=not zh, min_words_per_line=-1 if zh else 3,
                                  max_word_length=-1 if zh else 1000),
    "fineweb": lambda: FineWebQualityFilter(language=language),
}
rows = [json.loads(line) for line in open(path, encoding="utf-8")]
began = time.process_time()
filters = {name: build() for name, build in make.items()}
for one in filters.values():  # loads the tokenizers
    one.filter(Document(text="Hello there. 你好。", id="x"))
ready = time.process_time() - began
verdicts, spent = [], dict.fromkeys(filters, 0.0)
for row in rows:
    verdict = {}
    for name, one in filters.items():
        start = time.process_time()
        result = one.filter(Document(text=row["text"], id=row["id"]))
        spent[name] += time.process_time() - start
        verdict[name] = result if isinstance(result, bool) else result[1]
    verdicts.append(verdict)
chain = 0.0
for row in rows:  # as in a pipeline: the first that refuses ends it
    start = time.process_time()
    document = Document(text=row["text"], id=row["id"])
    for one in filters.values():
        result = one.filter(document)
        if result is not True:
            break
    chain += time.process_time() - start
with open(words_out, "w", encoding="utf-8") as file:
    for row in rows:
        lines = [line.strip() for line in row["text"].splitlines()]
        file.write(json.dumps(split_into_words(row["text"], language), ensure_ascii=False) + "\n")
json.dump({"verdicts": verdicts, "seconds": spent, "chain_seconds": chain, "ready_seconds": ready,
           "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}, open(out, "w"))
'''


def documents(shared: Path, megabytes: float, language: str) -> list[dict[str, str]]:
    """The same documents for both: every k-th of the shared corpora of a language, at most 200 kB each."""
    files = sorted((shared / "corpus" / language).glob("*.jsonl.gz")) + ([shared / "wiki/wiki_zh.jsonl.gz"]
                                                                         if language == "zh" else [])
    rows = []
    for path in files:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            rows += [{"id": row["id"], "text": row["text"]} for row in map(json.loads, file) if 0 < len(row["text"]) < 200_000]
    total = sum(len(row["text"].encode()) for row in rows)
    step = max(1, round(total / (megabytes * 1e6)))
    return rows[::step]


def ours(rows: list[dict[str, str]], language: str, words: list[list[str]] | None) -> dict[str, object]:
    """Verdicts of our rules, per filter, and the processor seconds of the whole set."""
    import pyarrow as pa

    from penjing.data import rules
    from penjing.data.kernels import views
    from penjing.data.kernels.words import spans_of
    from penjing.data.rules_apply import apply, facts_of

    overrides = {"c4": {"no_terminal_punctuation": {"zh": False}} if language == "zh" else {}}
    sets = {name: rules.load(name, overrides=overrides.get(name)) for name in ("gopher", "gopher-calibrated", "c4", "fineweb")}
    phrases = rules.phrase_lists()
    column = pa.array([row["text"] for row in rows], pa.large_string())
    langs = [language] * len(rows)
    apply(facts_of(column.slice(0, 1), langs[:1], [None], sets["gopher"], phrases), sets["gopher"])
    verdicts: dict[str, list[str | None]] = {}
    for name, one in sets.items():
        given = spans_of(*views(column), words) if words is not None else None
        facts = facts_of(column, langs, [None] * len(rows), one, phrases, words=given)
        done = apply(facts, one)
        verdicts[name] = done.rule
    return {"verdicts": verdicts}


def speed(path: Path, language: str) -> dict[str, float]:
    """Processor seconds of our three rule sets over the file: JSON in, Parquet out, in this process after warming up."""
    import pyarrow as pa

    from penjing.config import parse
    from penjing.contract import Job
    from penjing.data.document import CorpusWriter, ShardWriter
    from penjing.data.document import documents as table_of
    from penjing.data.rules import combine, phrase_lists
    from penjing.data.rules_apply import apply, facts_of
    from penjing.stages import filter as filter_stage

    def once(rows_path: Path, out: Path) -> float:
        start = time.process_time()
        rules, phrases = combine(["gopher", "c4", "fineweb"]), phrase_lists()
        with ShardWriter(out / "part-00000.parquet") as writer, rows_path.open(encoding="utf-8") as file:
            waiting: list[dict[str, object]] = []
            size = 0

            def flush() -> None:
                table = table_of(waiting)
                facts = facts_of(table.column("text"), table.column("lang").to_pylist(), [None] * table.num_rows, rules, phrases)
                done = apply(facts, rules)
                writer.write(table.set_column(3, "text", done.texts).filter(pa.array(done.keep)))
                waiting.clear()

            for line in file:
                row = json.loads(line)
                waiting.append({**row, "lang": language, "source": "bench"})
                size += len(line)
                if size > 4_000_000:
                    flush()
                    size = 0
            if waiting:
                flush()
        return time.process_time() - start

    def stage(rows_path: Path, folder: Path) -> float:
        corpus = folder / f"corpus-{rows_path.stem}"
        with CorpusWriter(corpus, provenance={}) as writer, rows_path.open(encoding="utf-8") as file:
            writer.write(table_of({**json.loads(line), "lang": language, "source": "bench"} for line in file))
        out = folder / f"out-{rows_path.stem}"
        out.mkdir()
        config = parse(filter_stage.Config, {"rule_set": "ziya2"}, where="bench")
        start = time.process_time()
        filter_stage.run(config, {"corpus": corpus}, out, Job())
        return time.process_time() - start

    with tempfile.TemporaryDirectory() as folder:
        small = Path(folder) / "small.jsonl"
        small.write_text("".join(path.read_text(encoding="utf-8").splitlines(keepends=True)[:20]), encoding="utf-8")
        once(small, Path(folder))
        stage(small, Path(folder))
        best = min(once(path, Path(folder)) for _ in range(3))
        return {"three_sets_seconds": best, "ziya2_stage_seconds": stage(path, Path(folder))}


def agreement(peer: list[dict[str, object]], mine: dict[str, list[str | None]]) -> dict[str, float]:
    """Share of documents with the same verdict (kept or dropped), per filter."""
    result = {}
    for name in ("gopher", "gopher-calibrated", "c4", "fineweb"):
        keys = ("gopher_repetition", "gopher_quality") if name.startswith("gopher") else (name,)
        theirs = [any(row[key] is not True for key in keys) for row in peer]
        result[name] = sum(a == (b is not None) for a, b in zip(theirs, mine[name], strict=True)) / len(peer)
    return result


def calibrated(rows: list[dict[str, str]], language: str, words: list[list[str]]) -> dict[str, object]:
    """Per Gopher rule: the bound on our words that drops as many of these documents as the bound on the peer's words."""
    import numpy as np
    import pyarrow as pa

    from penjing.data import rules
    from penjing.data.kernels import views
    from penjing.data.kernels.words import spans_of
    from penjing.data.rules_apply import facts_of, measured

    one = rules.load("gopher")
    column = pa.array([row["text"] for row in rows], pa.large_string())
    langs, urls = [language] * len(rows), [None] * len(rows)
    theirs = measured(facts_of(column, langs, urls, one, rules.phrase_lists(), words=spans_of(*views(column), words)), one)
    own = measured(facts_of(column, langs, urls, one, rules.phrase_lists()), one)
    result: dict[str, object] = {}
    for rule in one.rules:
        bound = rule.bounds.get(language)
        if bound is None or isinstance(bound, tuple):
            continue
        name = rule.measures[language]
        dropped = float(rule.fires(theirs[name], language).mean())
        share = dropped if rule.test.startswith("<") else 1 - dropped
        result[rule.id] = {"peer_bound": bound, "dropped": round(dropped, 4),
                           "bound": round(float(np.quantile(own[name], share)), 4) if 0 < dropped < 1 else bound}
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--megabytes", type=float, default=3.0)
    parser.add_argument("--shared", type=Path, default=Path(os.environ.get("PENJING_SHARED", "../shared")) / "data")
    parser.add_argument("--peer-python", default=os.environ.get("PENJING_DATATROVE_PYTHON", ""))
    parser.add_argument("--disagreements", type=int, default=0, help="print this many per filter, on stderr")
    parser.add_argument("--calibrate", action="store_true", help="print bounds for our words that drop as many documents")
    options = parser.parse_args()
    result: dict[str, object] = {"machine": f"{os.cpu_count()} cores {platform.machine()}", "python": platform.python_version(),
                                 "unit": "MB of UTF-8 text per second of processor time"}
    with tempfile.TemporaryDirectory() as folder:
        for language, code in (("en", "eng"), ("zh", "cmn_Hani")):
            rows = documents(options.shared, options.megabytes, language)
            path = Path(folder) / f"{language}.jsonl"
            path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
            size = sum(len(row["text"].encode()) for row in rows) / 1e6
            taken = speed(path, language)
            entry: dict[str, object] = {"documents": len(rows), "megabytes": round(size, 2),
                                        "ours_three_sets": round(size / taken["three_sets_seconds"], 1),
                                        "ours_ziya2_stage": round(size / taken["ziya2_stage_seconds"], 1)}
            if options.peer_python:
                out, words_out = Path(folder) / f"{language}.out.json", Path(folder) / f"{language}.words"
                subprocess.run([options.peer_python, "-c", PEER, str(path), code, str(out), str(words_out)], check=True,
                               stdout=sys.stderr, env={**os.environ, "OMP_NUM_THREADS": "1"})
                peer = json.loads(out.read_text())
                words = [json.loads(line) for line in words_out.open(encoding="utf-8")]
                every = sum(peer["seconds"].values())
                entry |= {"datatrove_every_rule": round(size / every, 3),
                          "datatrove_chain": round(size / peer["chain_seconds"], 3),
                          "datatrove_ready_seconds": round(peer["ready_seconds"], 1),
                          "ratio_every_rule": round(every / taken["three_sets_seconds"], 1),
                          "ratio_chain": round(peer["chain_seconds"] / taken["three_sets_seconds"], 1)}
                same_words = ours(rows, language, words)["verdicts"]
                own_words = ours(rows, language, None)["verdicts"]
                entry["agreement_same_words"] = {k: round(v, 4) for k, v in agreement(peer["verdicts"], same_words).items()
                                                 if k != "gopher-calibrated"}
                entry["agreement_own_words"] = {k: round(v, 4) for k, v in agreement(peer["verdicts"], own_words).items()}
                if options.calibrate:
                    entry["calibrated"] = calibrated(rows, language, words)
                _show(options.disagreements, rows, peer["verdicts"], same_words)
            result[language] = entry
    result["peak_rss_mb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    print(json.dumps(result, ensure_ascii=False, indent=None if options.json else 2))


def _show(number: int, rows: list[dict[str, str]], peer: list[dict[str, object]], mine: dict[str, list[str | None]]) -> None:
    for name in ("gopher", "c4", "fineweb"):
        shown = 0
        for row, theirs, own in zip(rows, peer, mine[name], strict=True):
            verdict = theirs[name] if name != "gopher" else next(
                (theirs[key] for key in ("gopher_repetition", "gopher_quality") if theirs[key] is not True), True)
            if (verdict is not True) != (own is not None) and shown < number:
                shown += 1
                print(name, row["id"], "theirs", verdict, "ours", own, repr(row["text"][:60]), file=sys.stderr)


if __name__ == "__main__":
    main()
