"""De-duplication against datatrove, text-dedup and Data-Juicer: speed per CPU second, and what each removes rightly and wrongly.

    python bench/data_dedup.py [--json] [--megabytes 72] [--peers DIR] [--only ours,datatrove,text-dedup,data-juicer] [--work DIR]

The set is real Chinese and English text (PENJING_SHARED, default ../shared) with planted copies, one kind of change per group:
the same document, other punctuation and emoji, 1%, 3%, 8% of the tokens changed, boilerplate around it, the last
tenth cut; and 40 histories of 8 versions, each with another eighth rewritten, whose ends have little in common. Every
tool is a process of its own; CPU seconds are those of its whole process tree, start-up included, and net of what two
documents cost; the best of three for runs below 20 s. A peer is looked for in `<peers>/<name>/bin/python` (default
~/.cache/penjing-bench; `python -m venv` and `pip install` of datatrove[processing,io]==0.10.1 with spacy and jieba,
text-dedup==0.4.0, py-data-juicer==1.6.1); one that is absent is reported as absent.

Recall of a kind: groups of which not more than one document is left, among the groups planted for it. Wiped: removed
documents that have no document left with a Jaccard similarity of at least 0.5 (exact, over five-token shingles): text
that is lost.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import platform
import re
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from penjing.config import generator
from penjing.data.dedup.fold import fold, skeleton_table
from penjing.data.document import CorpusWriter, documents

SOURCES = {
    "zh": (
        "python_docs_zh",
        "tidb_docs_zh",
        "d2l_book_zh",
        "react_docs_zh",
        "php_manual_zh",
        "cn_laws",
        "medical_qa_zh",
        "web_mix_zh",
        "vue_docs_zh",
        "classical_in_modern_zh",
    ),
    "en": (
        "redpajama_stackexchange_en",
        "digitalgov_en",
        "python_docs_en",
        "php_manual_en",
        "react_docs_en",
        "d2l_book_en",
    ),
}
KINDS = ("same", "punctuation", "edit 1%", "edit 3%", "edit 8%", "boilerplate", "truncated")
PER_KIND = 100
LARGE = 4
"""The exact runs are also made on so many salted copies of the set, where start-up weighs less."""
CHAINS, CHAIN_LENGTH = 40, 8
HAN = (
    "的一是不了人我在有他这中大来上国个到说们为子和你地出道也时年得就那要下以生会自着去之过家学"
    "对可她里后小么心多天而能好都然没日于起还发成事只作当想看文无开手十用主行方又如前所本见经头"
    "面公同三已老从动两长知民样现分将外但身些与高意进把法此实回二理美点月明其种声全工己话儿者向"
    "情部正名定女问力机给等几很业最间新什打便位因重被走电四第门相次东政海口使教西再平真听世气信"
    "北少关并内加化由却代军产入先山五太水万市"
)
ENGLISH = "etaoinshrdlucmfwypvbgkjqxz"
OURS = """
import json, sys
from pathlib import Path
from penjing.contract import Job
from penjing.stages import dedup
settings, source, out = json.loads(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])
out.mkdir()
dedup.run(dedup.Config(**settings), {"corpus": source, "old": None}, out, Job(workers=int(sys.argv[4])))
"""
DATATROVE_MINHASH = """
import sys
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.dedup import MinhashDedupSignature, MinhashDedupBuckets, MinhashDedupCluster, MinhashDedupFilter
from datatrove.pipeline.dedup.minhash import MinhashConfig
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.writers import JsonlWriter
from datatrove.utils.hashing import HashConfig
from datatrove.utils.typeshelper import Languages
source, work, lang = sys.argv[1:4]
language = {"zh": Languages.mandarin_chinese, "en": Languages.english}[lang]
config = MinhashConfig(hash_config=HashConfig(precision=64), num_buckets=14, hashes_per_bucket=8, n_grams=5)
def reader(): return JsonlReader(source, glob_pattern="*.jsonl")
def go(step, name, tasks=1): LocalPipelineExecutor(pipeline=step, tasks=tasks, workers=1, logging_dir=f"{work}/log{name}").run()
if __name__ == "__main__":
    go([reader(), MinhashDedupSignature(output_folder=f"{work}/sig", config=config, language=language)], 1)
    go([MinhashDedupBuckets(input_folder=f"{work}/sig", output_folder=f"{work}/buckets", config=config)], 2, 14)
    go([MinhashDedupCluster(input_folder=f"{work}/buckets", output_folder=f"{work}/remove", config=config)], 3)
    go([reader(), MinhashDedupFilter(input_folder=f"{work}/remove"), JsonlWriter(f"{work}/kept", compression=None)], 4)
"""
DATATROVE_EXACT = """
import sys
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.dedup import ExactDedupFilter, ExactDedupSignature, ExactFindDedups
from datatrove.pipeline.dedup.exact_dedup import ExactDedupConfig
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.writers import JsonlWriter
source, work = sys.argv[1:3]
config = ExactDedupConfig(content_getter=lambda document: document.text)
def reader(): return JsonlReader(source, glob_pattern="*.jsonl")
def go(step, name): LocalPipelineExecutor(pipeline=step, tasks=1, workers=1, logging_dir=f"{work}/log{name}").run()
if __name__ == "__main__":
    go([reader(), ExactDedupSignature(output_folder=f"{work}/sig", config=config, finder_workers=1)], 1)
    go([ExactFindDedups(data_folder=f"{work}/sig", output_folder=f"{work}/dups", config=config)], 2)
    go([reader(), ExactDedupFilter(data_folder=f"{work}/dups", config=config), JsonlWriter(f"{work}/kept", compression=None)], 3)
"""
DATA_JUICER = """
process: [{%s}]
"""


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--megabytes", type=float, default=72)
    parser.add_argument("--peers", type=Path, default=Path.home() / ".cache" / "penjing-bench")
    parser.add_argument("--only", default="ours,datatrove,text-dedup,data-juicer")
    parser.add_argument("--work", type=Path)
    options = parser.parse_args()
    work = options.work or Path(tempfile.mkdtemp(prefix="penjing-bench-"))
    shutil.rmtree(work, ignore_errors=True)
    rows = planted_set(Path(os.environ.get("PENJING_SHARED", "../shared")) / "data", int(options.megabytes * 1e6))
    size = sum(len(str(row["text"]).encode()) for row in rows) / 1e6
    write_inputs(rows, work)
    write_inputs(rows[:2], work / "tiny")
    judge = Judge(rows)
    report: dict[str, Any] = {"machine": machine(), "megabytes": round(size, 1), "documents": len(rows), "runs": {}}
    only = options.only.split(",")
    tiny = {name: command for name, _, command, _ in runs(work / "tiny", options.peers)}
    for name, group, command, kept in runs(work, options.peers):
        if group not in only:
            continue
        if command is None:
            report["runs"][name] = {"absent": f"no {group} in {options.peers}"}
            continue
        seconds, fault = best_of(command, work)
        if fault:
            report["runs"][name] = {"fault": fault}
        else:
            weight = size * LARGE if name.endswith("large") else size
            quality = judge.of(set(kept())) if kept is not None else {}
            start = best_of(tiny[name] or [], work / "tiny")[0]
            quality = {
                "start_cpu_s": round(start, 2),
                "mb_per_cpu_s_net": round(weight / max(seconds - start, 0.01), 1),
                **quality,
            }
            report["runs"][name] = {"cpu_s": round(seconds, 2), "mb_per_cpu_s": round(weight / seconds, 2), **quality}
        if not options.json:
            print(name, json.dumps(report["runs"][name], ensure_ascii=False), file=sys.stderr, flush=True)
    for name, run in report["runs"].items():
        like = "ours exact, large" if "large" in name else "ours exact" if "exact" in name else "ours simhash"
        for key in ("mb_per_cpu_s", "mb_per_cpu_s_net"):
            best = report["runs"].get(like, {}).get(key)
            if best and run.get(key) and not name.startswith("ours"):
                run[f"ours_is_times_faster{key[12:]}"] = round(best / run[key], 1)
    print(json.dumps(report, ensure_ascii=False, indent=None if options.json else 1))
    if options.work is None:
        shutil.rmtree(work)


def best_of(commands: list[list[str]], work: Path) -> tuple[float, str]:
    """(fewest CPU seconds, complaint) of a run; one of less than 20 s is made three times, each from the same files."""
    there = set(work.iterdir())
    best, fault = float("inf"), ""
    for _ in range(3):
        for path in set(work.iterdir()) - there:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        seconds = 0.0
        for command in commands:
            used, fault = cpu_seconds(command)
            seconds += used
            if fault:
                return seconds, fault
        best = min(best, seconds)
        if seconds > 20:
            break
    return best, fault


def runs(work: Path, peers: Path) -> Iterator[tuple[str, str, list[list[str]] | None, Any]]:
    """(name, tool, commands or None, function that gives the ids kept)."""
    for name, settings in {
        "ours simhash": {"url": False},
        "ours minhash": {"url": False, "near": "minhash", "bands": 20, "rows": 6},
        "ours exact": {"url": False, "near": "off"},
        "ours simhash 0.5": {"url": False, "similarity": 0.5, "distance": 12},
    }.items():
        out = work / name.replace(" ", "-")
        command = [[sys.executable, "-c", OURS, json.dumps(settings), str(work / "corpus"), str(out), "1"]]
        yield name, "ours", command, lambda out=out: parquet_ids(out)
    out = work / "ours-exact-large"
    settings = json.dumps({"url": False, "near": "off"})
    yield (
        "ours exact, large",
        "ours",
        [[sys.executable, "-c", OURS, settings, str(work / "large-corpus"), str(out), "1"]],
        None,
    )
    python = peers / "datatrove" / "bin" / "python"
    there = python.is_file()
    if there:
        (work / "minhash.py").write_text(DATATROVE_MINHASH, encoding="utf-8")
        (work / "exact.py").write_text(DATATROVE_EXACT, encoding="utf-8")
    command = [
        [str(python), str(work / "minhash.py"), str(work / lang), str(work / f"dt-{lang}"), lang] for lang in SOURCES
    ]
    yield "datatrove minhash", "datatrove", command if there else None, lambda: json_ids(work, "dt-*/kept/*.jsonl")
    command = [[str(python), str(work / "exact.py"), str(work / "all"), str(work / "dt-exact")]]
    yield "datatrove exact", "datatrove", command if there else None, lambda: json_ids(work, "dt-exact/kept/*.jsonl")
    command = [[str(python), str(work / "exact.py"), str(work / "large"), str(work / "dt-large")]]
    yield "datatrove exact, large", "datatrove", command if there else None, None
    python = peers / "text-dedup" / "bin" / "python"
    base = [
        str(python),
        "-m",
        "text_dedup.minhash",
        "--path",
        "json",
        "--data_files",
        str(work / "all" / "all.jsonl"),
        "--split",
        "train",
        "--output",
        str(work / "td"),
        "--column",
        "text",
        "--cache_dir",
        str(work / "cache"),
        "--num_perm",
        "112",
        "--threshold",
        "0.7",
        "--ngram",
        "5",
        "--num_proc",
        "1",
        "--batch_size",
        "10000",
    ]
    yield (
        "text-dedup minhash",
        "text-dedup",
        [base] if python.is_file() else None,
        lambda: dataset_ids(python, work / "td"),
    )
    for name, operator in {
        "data-juicer minhash": "document_minhash_deduplicator: {tokenization: character, window_size: 5, num_permutations: 112, "
        "jaccard_threshold: 0.7, num_bands: 14, num_rows_per_band: 8}",
        "data-juicer simhash": "document_simhash_deduplicator: {tokenization: character, window_size: 6, num_blocks: 6, "
        "hamming_distance: 4}",
    }.items():
        program = peers / "data-juicer" / "bin" / "dj-process"
        folder = work / name.replace(" ", "-")
        config = work / f"{folder.name}.yaml"
        config.write_text(
            f"dataset_path: {work / 'all' / 'all.jsonl'}\nexport_path: {folder / 'kept.jsonl'}\nnp: 1\n"
            f"open_tracer: false\nop_fusion: false\nuse_cache: false\n{DATA_JUICER % operator}",
            encoding="utf-8",
        )
        command = [[str(program), "--config", str(config)]] if program.is_file() else None
        yield name, "data-juicer", command, lambda folder=folder: json_ids(folder, "kept*.jsonl")


def planted_set(data: Path, size: int) -> list[dict[str, Any]]:
    """Documents with the columns of a corpus and `group`: rows of one group are copies of each other, planted as `kind`."""
    rows: list[dict[str, Any]] = []
    for lang, names in SOURCES.items():
        left = size * 5 // 12
        seen: set[str] = set()
        for place, name in enumerate(names):
            share = left // (len(names) - place)
            with gzip.open(data / "corpus" / lang / f"{name}.jsonl.gz", "rt", encoding="utf-8") as file:
                for line in file:
                    text = json.loads(line)["text"][:20_000]
                    skeleton = re.sub(r"\W", "", text)
                    if len(skeleton) < 200 or share <= 0 or skeleton in seen:
                        continue
                    seen.add(skeleton)
                    share -= len(text.encode())
                    left -= len(text.encode())
                    rows.append(
                        {
                            "id": f"{lang}{len(rows)}",
                            "text": text,
                            "lang": lang,
                            "source": name,
                            "group": len(rows),
                            "kind": "",
                        }
                    )
    base = [row for row in rows if len(row["text"]) >= 400]
    order = generator(1, "bench", "plant").permutation(len(base))
    for number, kind in enumerate(KINDS):
        for place in order[number * PER_KIND : (number + 1) * PER_KIND]:
            row = base[place]
            rng = generator(1, "bench", kind, int(place))
            row["kind"] = kind
            rows.append({**row, "id": f"{row['id']}-copy", "text": changed(row["text"], kind, row["lang"], rng)})
    for place in order[len(KINDS) * PER_KIND :][:CHAINS]:
        row, rng = base[place], generator(1, "bench", "chain", int(place))
        row["text"] = row["text"][:3000]
        text = row["text"]
        for step in range(1, CHAIN_LENGTH):  # each version rewrites another eighth of the last one
            parts = [text[at * len(text) // 8 : (at + 1) * len(text) // 8] for at in range(8)]
            donor = base[int(rng.integers(len(base)))]["text"]
            parts[step % 8] = donor[100 : 100 + len(parts[0])]
            text = "".join(parts)
            group = row["group"] * 1000 + step + 10**9
            rows.append({**row, "id": f"{row['id']}-v{step}", "text": text, "group": group, "kind": ""})
    shuffled = generator(1, "bench", "order").permutation(len(rows))
    return [rows[place] for place in shuffled]


def changed(text: str, kind: str, lang: str, rng: np.random.Generator) -> str:
    """One copy of `text` with a planted change."""
    if kind == "punctuation":
        marks = {"，": ",", "。": "！", "：": ":", "（": "(", "）": ")", ",": " ,", ".": "!", ":": "："}
        body = "".join(marks.get(c, c) if rng.random() < 0.5 else c for c in text)
        return f"❤️ {body} 👍🏽👨‍👩‍👧 1️⃣".replace("1️⃣", "✨️")
    if kind.startswith("edit"):
        letters = list(text)
        places = [i for i, c in enumerate(letters) if c.isalnum()]
        chosen = rng.choice(len(places), max(1, int(len(places) * float(kind[5:-1]) / 100)), replace=False)
        pool = HAN if lang == "zh" else ENGLISH
        if lang == "zh":
            for place in chosen:
                letters[places[place]] = pool[rng.integers(len(pool))]
            return "".join(letters)
        words = re.split(
            r"(\W+)", text
        )  # English is edited by words, so that 1% means 1% of the tokens in both languages
        real = [i for i, word in enumerate(words) if word and word[0].isalnum()]
        for place in rng.choice(len(real), max(1, int(len(real) * float(kind[5:-1]) / 100)), replace=False):
            words[real[place]] = "".join(pool[i] for i in rng.integers(0, len(pool), 6))
        return "".join(words)
    if kind == "boilerplate":
        head, foot = (
            (
                "首页 > 新闻 > 正文 来源：网络 作者：佚名 字号：大 中 小\n",
                "\n相关阅读：更多精彩内容请关注本站 版权所有 联系我们",
            )
            if (lang == "zh")
            else (
                "Home > News > Article. Share this page with friends.\n",
                "\nRelated stories. All rights reserved. Contact us.",
            )
        )
        return head + text + foot
    return text[: int(len(text) * 0.9)] if kind == "truncated" else text


def write_inputs(rows: list[dict[str, Any]], work: Path) -> None:
    """The set as a corpus (zstd Parquet) and as JSON lines, whole and by language."""
    with CorpusWriter(work / "corpus", provenance={}) as writer:
        writer.write(documents(rows))
    large = [
        {**row, "id": f"{row['id']}/{copy}", "text": f"{row['text']}\n{copy}"} for copy in range(LARGE) for row in rows
    ]
    with CorpusWriter(work / "large-corpus", provenance={}) as writer:
        writer.write(documents(large))
    for name, part in {
        "all": rows,
        "large": large,
        **{lang: [row for row in rows if row["lang"] == lang] for lang in SOURCES},
    }.items():
        (work / name).mkdir(parents=True)
        with (work / name / f"{name}.jsonl").open("w", encoding="utf-8") as file:
            for row in part:
                file.write(json.dumps({"id": row["id"], "text": row["text"]}, ensure_ascii=False) + "\n")


class Judge:
    """Knows the planted groups and the exact similarity of every pair that shares a shingle."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows = rows
        folded = fold(pa.array([row["text"] for row in rows], pa.large_string()), skeleton_table())
        self.shingles = []
        for start, end in zip(folded.token_offsets[:-1], folded.token_offsets[1:], strict=True):
            tokens = folded.tokens[start:end]
            width = min(5, len(tokens))
            h = np.zeros(max(len(tokens) - width + 1, 0), np.uint64)
            for j in range(width):
                h = (h ^ tokens[j : len(tokens) - width + 1 + j]) * np.uint64(0x9E3779B97F4A7C15)
                h ^= h >> np.uint64(29)
            self.shingles.append(np.unique(h))
        lengths = np.array([len(one) for one in self.shingles])
        owner = np.repeat(np.arange(len(rows)), lengths)
        value = np.concatenate(self.shingles)
        order = np.argsort(value, kind="stable")
        self.value, self.owner, self.lengths = value[order], owner[order], lengths

    def best(self, row: int, among: np.ndarray) -> float:
        """Highest exact Jaccard similarity of a document with those in `among` (bool mask)."""
        low = np.searchsorted(self.value, self.shingles[row], "left")
        high = np.searchsorted(self.value, self.shingles[row], "right")
        near = (
            np.concatenate([self.owner[a:b] for a, b in zip(low, high, strict=True)]) if len(low) else np.zeros(0, int)
        )
        both = np.bincount(near, minlength=len(self.rows)).astype(float)
        both[~among] = 0
        both[row] = 0
        return float((both / (self.lengths + self.lengths[row] - both)).max())

    def of(self, kept: set[str]) -> dict[str, Any]:
        """Recall by kind, and what was removed without need."""
        stays = np.array([row["id"] in kept for row in self.rows])
        found: dict[str, list[bool]] = {kind: [] for kind in KINDS}
        members: dict[int, list[int]] = {}
        for place, row in enumerate(self.rows):
            members.setdefault(row["group"], []).append(place)
        for group in members.values():
            if len(group) > 1:
                found[self.rows[group[0]]["kind"]].append(sum(stays[place] for place in group) <= 1)
        best = [self.best(place, stays) for place in np.flatnonzero(~stays)]
        return {
            "removed": int((~stays).sum()),
            "recall": {kind: round(float(np.mean(one)), 3) for kind, one in found.items()},
            "wiped": sum(value < 0.5 for value in best),
            "removed_with_twin_0.7": round(float(np.mean(np.array(best) >= 0.7)), 3),
        }


def cpu_seconds(command: list[str]) -> tuple[float, str]:
    """(CPU seconds of the whole process tree, the end of its complaint when it failed)."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return used, "" if done.returncode == 0 else done.stderr.strip()[-300:]


def parquet_ids(folder: Path) -> list[str]:
    """Ids in a corpus of ours."""
    import pyarrow.parquet as pq

    return [
        name
        for path in sorted(folder.glob("*.parquet"))
        for name in pq.read_table(path, columns=["id"]).column("id").to_pylist()
    ]


def json_ids(folder: Path, pattern: str) -> list[str]:
    """Ids in JSON lines; stats files beside them are left out."""
    return [
        json.loads(line)["id"]
        for path in sorted(folder.glob(pattern))
        if "stats" not in path.name
        for line in path.read_text(encoding="utf-8").splitlines()
    ]


def dataset_ids(python: Path, folder: Path) -> list[str]:
    """Ids in a saved Hugging Face dataset."""
    code = "import sys, json, datasets; print(json.dumps(datasets.load_from_disk(sys.argv[1])['id'][:]))"
    found: list[str] = json.loads(
        subprocess.run([str(python), "-c", code, str(folder)], capture_output=True, text=True, check=True).stdout
    )
    return found


def machine() -> str:
    """What this ran on, in words."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    return f"{os.cpu_count()} cores {platform.machine()}, {memory:.0f} GB, Python {platform.python_version()}"


if __name__ == "__main__":
    main()
