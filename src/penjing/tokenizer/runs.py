"""Stretches of text within which new pieces may form: runs of Han characters, or whole words, each with how often it occurs."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from penjing.contract import Job
from penjing.data.document import open_corpus, shard_batches
from penjing.data.engine import map_shards
from penjing.files import atomic_write
from penjing.tokenizer.scripts import HAN_PATTERN

WORD_PATTERN = HAN_PATTERN + r"| ?[^\W\d_〇㐀-䶿一-鿿豈-﫿\U00020000-\U0003ffff]+| ?[^\w\s]+"
"""Han runs, words with the space before them, and runs of marks; digits stay single, as LLaMA has them."""
MAX_RUN = 64
"""Longer runs are cut, so that one endless line cannot fill memory."""


def collect_runs(corpus: Path, *, kind: str, languages: Iterable[str] | None, job: Job, state: Path) -> list[tuple[str, int]]:
    """Distinct runs of a corpus with their counts, most frequent first, ties by text.

    kind: `words` for Han runs, `all` for every kind of word.
    """
    chosen = sorted(languages) if languages is not None else None
    units = [{"name": shard.stem, "shard": str(shard), "kind": kind, "languages": chosen,
              "out": str(state / f"runs-{kind}-{shard.stem}.parquet")} for shard in open_corpus(corpus).shards]
    map_shards(collect_shard, units, job=job, label="collect runs", state=state)
    total: Counter[str] = Counter()
    for unit in units:
        table = pq.read_table(str(unit["out"]))
        for run, count in zip(table.column("run").to_pylist(), table.column("count").to_pylist(), strict=True):
            total[run] += count
    return sorted(total.items(), key=lambda item: (-item[1], item[0]))


def collect_shard(unit: Mapping[str, Any]) -> int:
    """Count the runs of one shard into its own file (what a worker does)."""
    counts: Counter[str] = Counter()
    for batch in shard_batches(Path(unit["shard"]), columns=["text", "lang"], rows=1024):
        texts = pc.fill_null(batch.column("text"), "").to_pylist()
        langs = pc.fill_null(batch.column("lang"), "").to_pylist()
        if unit["languages"] is not None:
            texts = [text for text, lang in zip(texts, langs, strict=True) if lang in unit["languages"]]
        counts.update(runs_in(texts, unit["kind"]))
    items = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    table = pa.table({"run": pa.array([run for run, _ in items], pa.string()),
                      "count": pa.array([count for _, count in items], pa.int64())})
    with atomic_write(Path(unit["out"])) as file:
        pq.write_table(table, file)
    return len(items)


def runs_in(texts: Iterable[str], kind: str) -> Counter[str]:
    """Runs of some texts, those longer than MAX_RUN characters in parts."""
    pattern = re.compile(HAN_PATTERN if kind == "words" else WORD_PATTERN)
    counts: Counter[str] = Counter()
    for text in texts:
        found = pattern.findall(text)
        if any(len(run) > MAX_RUN for run in found):
            found = [run[start: start + MAX_RUN] for run in found for start in range(0, len(run), MAX_RUN)]
        counts.update(found)
    return counts
