"""Find the documents that hold benchmark records; drop them or only say so."""

from __future__ import annotations

import functools
import shutil
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from penjing.config import Config as BaseConfig
from penjing.contract import CORPUS, FILES, Estimate, Inputs, Job
from penjing.data.engine import map_shards
from penjing.errors import InputError, fault

if TYPE_CHECKING:
    import pyarrow as pa

    from penjing.data.contamination import Benchmarks

VERSION = 1
INPUTS = {"corpus": CORPUS, "benchmarks": FILES + "*"}
OUTPUT = CORPUS


class Config(BaseConfig):
    """What counts as holding a record."""

    n: int = Field(13, ge=5, le=50)
    """Tokens (Han characters or words) in an n-gram. Shorter benchmark texts are not searched."""
    coverage: float = Field(0.5, gt=0, le=1)
    """Share of the n-grams of a benchmark text, or of the document if that is shorter, that both must have."""
    template_records: int = Field(10, ge=1)
    """N-grams that occur in more benchmark records than this are phrasing, not content."""
    action: Literal["drop", "flag"] = "drop"
    """`drop` removes the documents, `flag` only lists them in matches.parquet."""


def run(config: Config, inputs: Inputs, out: Path, job: Job) -> dict[str, Any]:
    """Write the corpus and matches.parquet, and say how much of which benchmark was found."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from penjing.data.contamination import benchmark_files
    from penjing.data.dedup.sieve import merge_funnels
    from penjing.data.document import finish_corpus, open_corpus

    corpus = open_corpus(inputs["corpus"])
    paths = inputs["benchmarks"]
    if not paths:
        raise InputError(fault("no benchmarks to look for", fix="give the input benchmarks one or more files"))
    files = [str(path) for path in benchmark_files([Path(path) for path in paths])]
    state = out / "state"
    units = [
        {
            "name": shard.name,
            "shard": shard,
            "files": files,
            "matches": state / "matches" / shard.name,
            "out": out,
            "verdicts": state / "verdicts" / shard.name,
            "n": config.n,
            "coverage": config.coverage,
            "template_records": config.template_records,
            "action": config.action,
        }
        for shard in corpus.shards
    ]
    funnel = merge_funnels(map_shards(search_shard, units, job=job, label="decontaminate", state=state))
    matches = pa.concat_tables([pq.read_table(unit["matches"]) for unit in units])
    pq.write_table(matches, out / "matches.parquet", compression="zstd")
    finish_corpus(
        out,
        keep=[shard.stem for shard in corpus.shards],
        provenance={"stage": "decontaminate", "corpus": dict(corpus.manifest["provenance"])},
    )
    benchmarks = _benchmarks(tuple(files), config.n, config.template_records)
    shutil.rmtree(state)
    return {
        "funnel": funnel,
        "documents_flagged": len(set(matches.column("id").to_pylist())),
        **_figures(matches, benchmarks),
    }


def search_shard(unit: dict[str, Any]) -> dict[str, Any]:
    """Write one shard's matches and verdicts, and part it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from penjing.data.contamination import find
    from penjing.data.dedup.sieve import sift
    from penjing.data.document import shard_batches

    benchmarks = _benchmarks(tuple(unit["files"]), unit["n"], unit["template_records"])
    rows: list[dict[str, Any]] = []
    worst: list[float] = []
    bounds: list[str | None] = []
    for batch in shard_batches(Path(unit["shard"]), columns=["id", "lang", "source", "text"], rows=2048):
        found = find(batch.column("text"), benchmarks, coverage=unit["coverage"])
        highest = np.zeros(batch.num_rows)
        where: list[str | None] = [None] * batch.num_rows
        for document, item, shared, share, (start, end) in zip(
            found.document.tolist(),
            found.item.tolist(),
            found.shared.tolist(),
            found.coverage.tolist(),
            found.span.tolist(),
            strict=True,
        ):
            name, record, field = benchmarks.names[item]
            raw = batch.column("text")[document].as_py().encode()
            span = raw[start:end].decode("utf-8", "replace").strip()
            about = {key: batch.column(key)[document].as_py() for key in ("id", "lang", "source")}
            rows.append(
                {
                    **about,
                    "benchmark": name,
                    "record": record,
                    "field": field,
                    "shared": shared,
                    "coverage": share,
                    "start": start,
                    "end": end,
                    "span": span,
                }
            )
            if share > highest[document]:
                highest[document] = share
                where[document] = f">= {unit['coverage']} of {name} {record}"
        worst += highest.tolist()
        bounds += where
    for path, table in (
        (Path(unit["matches"]), pa.Table.from_pylist(rows, schema=_match_schema())),
        (Path(unit["verdicts"]), _verdicts(worst, bounds, drop=unit["action"] == "drop")),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.tmp")
        pq.write_table(table, temporary, compression="zstd")
        temporary.replace(path)
    return sift(unit)


def _verdicts(worst: list[float], bounds: list[str | None], *, drop: bool) -> pa.Table:
    import pyarrow as pa

    from penjing.data.dedup.sieve import VERDICT_SCHEMA

    rules = ["contaminated" if drop and share > 0 else None for share in worst]
    return pa.table(
        [
            pa.array(rules, pa.string()),
            pa.array(worst, pa.float64()),
            pa.array(bounds, pa.string()),
            pa.nulls(len(rules), pa.string()),
        ],
        schema=VERDICT_SCHEMA,
    )


@functools.lru_cache(maxsize=2)
def _benchmarks(files: tuple[str, ...], n: int, template_records: int) -> Benchmarks:
    from penjing.data.contamination import index_benchmarks

    return index_benchmarks([Path(file) for file in files], n=n, template_records=template_records)


def _figures(matches: pa.Table, benchmarks: Benchmarks) -> dict[str, Any]:
    """Per benchmark file: its records, those found, and the documents they were found in."""
    records = Counter(file for file, _ in {(file, record) for file, record, _ in benchmarks.names})
    found: dict[str, set[str]] = {}
    documents: dict[str, set[str]] = {}
    columns = [matches.column(name).to_pylist() for name in ("benchmark", "record", "id")]
    for benchmark, record, document in zip(*columns, strict=True):
        found.setdefault(benchmark, set()).add(record)
        documents.setdefault(benchmark, set()).add(document)
    return {
        "benchmarks": {
            file: {"records": number, "found": len(found.get(file, ())), "documents": len(documents.get(file, ()))}
            for file, number in sorted(records.items())
        },
        "texts_too_short": benchmarks.too_short,
        "template_ngrams": benchmarks.templates,
    }


def price(config: Config, inputs: Inputs) -> Estimate:
    """The same corpus at most."""
    before: Estimate = inputs["corpus"]
    return Estimate(
        documents=before.documents, text_bytes=before.text_bytes, disk_bytes=before.disk_bytes, memory_bytes=800e6
    )


def _match_schema() -> pa.Schema:
    import pyarrow as pa

    return pa.schema(
        [
            ("id", pa.string()),
            ("lang", pa.string()),
            ("source", pa.string()),
            ("benchmark", pa.string()),
            ("record", pa.string()),
            ("field", pa.string()),
            ("shared", pa.int64()),
            ("coverage", pa.float64()),
            ("start", pa.int64()),
            ("end", pa.int64()),
            ("span", pa.large_string()),
        ]
    )
