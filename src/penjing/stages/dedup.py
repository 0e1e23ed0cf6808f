"""De-duplicate a corpus: by address, by text without punctuation and emoji, by near-equal text, across and against an
old index."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from penjing.config import Config as BaseConfig
from penjing.contract import CORPUS, Estimate, Inputs, Job
from penjing.data.engine import map_shards
from penjing.errors import InputError, fault

if TYPE_CHECKING:
    import pyarrow as pa

    from penjing.data.dedup.bloom import Bloom
    from penjing.data.dedup.decide import Decisions, Rules
    from penjing.data.dedup.search import Search
    from penjing.data.dedup.signature import Signatures, SignatureShape
    from penjing.data.document import Corpus

VERSION = 1
FILTER = "addresses.safetensors"
INPUTS = {"corpus": CORPUS, "old": CORPUS + "?"}
OUTPUT = CORPUS


class Config(BaseConfig):
    """Which copies go."""

    url: bool = True
    """Drop documents whose canonical web address was seen; the longest text per address and language stays."""
    url_filter: Literal["exact", "bloom"] = "exact"
    """How addresses are remembered: every key (16 bytes), or a Bloom filter (about 2.4 bytes at 1e-4), which claims a few new
    addresses wrongly; the expected number is in the figures."""
    url_false_positives: float = Field(1e-4, gt=0, lt=0.5)
    """Chance of a wrong claim once the filter is full."""
    url_capacity: int = Field(0, ge=0)
    """Addresses the filter is made for, later crawls included; 0 = those of this corpus."""
    url_max_texts: int = Field(20, ge=1)
    """An address with more different texts than this names a container, not a page, and drops nothing."""
    exact: bool = True
    """Drop documents whose text is the same without punctuation, symbols, spaces, emoji, case and character
    variants."""
    near: Literal["simhash", "minhash", "both", "off"] = "both"
    """Where candidates for near copies come from; every one is verified by the Jaccard similarity of its shingles."""
    similarity: float = Field(0.65, ge=0.3, le=1.0)
    """Jaccard similarity of five-token shingles from which two documents are copies."""
    distance: int = Field(6, ge=0, le=12)
    """SimHash bits in which candidates may differ. Larger finds more heavily edited copies and costs more tables."""
    bands: int = Field(20, ge=1, le=64)
    """MinHash bands, for near: minhash or both."""
    rows: int = Field(6, ge=1, le=32)
    """MinHash values per band."""
    sketch: int = Field(256, ge=32, le=4096)
    """Shingle hashes kept per document to verify pairs; documents with at most that many are compared exactly."""
    exact_min_letters: int = Field(20, ge=0)
    """Documents with fewer letters and digits are never exact copies of each other."""
    near_min_tokens: int = Field(32, ge=5)
    """Documents with fewer tokens (Han characters or words) are never near copies of each other."""
    paragraphs: Literal["off", "line", "block"] = "off"
    """Cut paragraphs (lines, or blocks between blank lines) that stand in a better document or earlier in the same one."""
    paragraph_min_letters: int = Field(40, ge=1)
    """Paragraphs with fewer letters and digits are never cut."""
    source_priority: tuple[str, ...] = ()
    """Sources whose documents are kept before those of later or unnamed ones; then the longest, then the smallest
    id."""
    keep_index: bool = False
    """Write `index/` beside the corpus, against which a later corpus can be checked (input `old`)."""


def run(config: Config, inputs: Inputs, out: Path, job: Job) -> dict[str, Any]:
    """Write the corpus without its copies, the copies aside, and give the figures."""
    import pyarrow as pa

    from penjing.data.dedup.decide import decide
    from penjing.data.dedup.index import read_index, read_tables, sign_shard
    from penjing.data.dedup.search import searcher
    from penjing.data.dedup.sieve import merge_funnels, sift
    from penjing.data.dedup.signature import concatenate
    from penjing.data.document import finish_corpus, open_corpus

    corpus = open_corpus(inputs["corpus"])
    shape = shape_of(config)
    state = out / "state"
    signed = [state / "signatures" / shard.name for shard in corpus.shards]
    units = [
        {"name": shard.name, "shard": shard, "to": to, "shape": asdict(shape)}
        for shard, to in zip(corpus.shards, signed, strict=True)
    ]
    map_shards(sign_shard, units, job=job, label="signatures", state=state)
    documents, signatures = read_tables(signed) if signed else (_no_documents(), None)
    old_count = 0
    if inputs.get("old") is not None:
        old_documents, old_signatures = read_index(Path(inputs["old"]) / "index", shape)
        old_count = len(old_documents)
        documents = pa.concat_tables([old_documents, documents])
        signatures = concatenate([old_signatures, signatures] if signatures is not None else [old_signatures])
    if signatures is None:
        raise InputError(fault("the corpus has no shards", where=corpus.path))
    seen = _address_filter(config, inputs, len(documents))
    search = None
    if config.near != "off":
        simhash, minhash = config.near in ("simhash", "both"), config.near in ("minhash", "both")
        search = searcher(simhash=simhash, minhash=minhash, distance=config.distance, folder=state / "near", job=job)
    decisions = decide(documents, signatures, rules_of(config, seen, search), old=old_count)
    verdicts = write_verdicts(state / "verdicts", corpus, documents, decisions, config, old=old_count)
    cuts = _paragraphs(config, corpus, documents, signatures, decisions, state, job, old=old_count)
    sift_units = [
        {"name": shard.name, "shard": shard, "verdicts": path, "out": out, **cut}
        for shard, path, cut in zip(corpus.shards, verdicts, cuts, strict=True)
    ]
    funnel = merge_funnels(map_shards(sift, sift_units, job=job, label="sift", state=state))
    finish_corpus(
        out,
        keep=[shard.stem for shard in corpus.shards],
        provenance={"stage": "dedup", "corpus": dict(corpus.manifest["provenance"])},
    )
    figures: dict[str, Any] = {
        "funnel": funnel,
        "near": decisions.figures,
        **_clusters(documents, decisions, old=old_count),
    }
    if config.keep_index:
        figures["index"] = _write_index(out, documents, signatures, decisions, shape)
        if seen is not None:
            seen.save(out / "index" / FILTER)
    shutil.rmtree(state)
    return figures


def shape_of(config: Config) -> SignatureShape:
    """The signatures a configuration needs."""
    from penjing.data.dedup.signature import SignatureShape

    return SignatureShape(
        sketch=config.sketch if config.near != "off" else 0,
        bands=config.bands if config.near in ("minhash", "both") else 0,
        rows=config.rows,
    )


def rules_of(config: Config, seen: Bloom | None, search: Search | None) -> Rules:
    """The decision rules of a configuration; `seen` is the filter of addresses, `search` finds candidates."""
    from penjing.data.dedup.decide import Rules

    return Rules(
        url=config.url,
        url_filter=seen,
        exact=config.exact,
        search=search,
        similarity=config.similarity,
        exact_min_letters=config.exact_min_letters,
        near_min_tokens=config.near_min_tokens,
        url_max_texts=config.url_max_texts,
        source_priority=config.source_priority,
    )


def write_verdicts(
    folder: Path, corpus: Corpus, documents: pa.Table, decisions: Decisions, config: Config, *, old: int
) -> list[Path]:
    """One row-aligned verdict file per shard."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from penjing.data.dedup.decide import RULES
    from penjing.data.dedup.sieve import VERDICT_SCHEMA

    folder.mkdir(parents=True, exist_ok=True)
    bounds = {
        "url": "same address",
        "exact": "same text without punctuation and emoji",
        "near": f">= {config.similarity}",
    }
    ids = documents.column("id").combine_chunks()
    paths = []
    at = old
    for shard in corpus.shards:
        rows = pq.read_metadata(shard).num_rows
        rules = [RULES[code] for code in decisions.rule[at : at + rows].tolist()]
        gone = np.array([rule is not None for rule in rules], bool)
        stays = decisions.kept[at : at + rows]
        kept = ids.take(pa.array(stays, mask=~gone | (stays == np.arange(at, at + rows))))
        table = pa.table(
            [
                pa.array(rules, pa.string()),
                pa.array(decisions.value[at : at + rows], mask=~gone),
                pa.array([bounds.get(rule or "") for rule in rules], pa.string()),
                kept,
            ],
            schema=VERDICT_SCHEMA,
        )
        paths.append(folder / shard.name)
        pq.write_table(table, paths[-1])
        at += rows
    return paths


def _address_filter(config: Config, inputs: Inputs, documents: int) -> Bloom | None:
    """The filter of the old corpus, or an empty one; None when addresses are kept whole."""
    from penjing.data.dedup.bloom import bloom, load_bloom

    if not config.url or config.url_filter == "exact":
        return None
    if inputs.get("old") is not None and (Path(inputs["old"]) / "index" / FILTER).is_file():
        return load_bloom(Path(inputs["old"]) / "index" / FILTER)
    return bloom(config.url_capacity or documents, rate=config.url_false_positives)


def _paragraphs(
    config: Config,
    corpus: Corpus,
    documents: pa.Table,
    signatures: Signatures,
    decisions: Decisions,
    state: Path,
    job: Job,
    *,
    old: int,
) -> list[dict[str, Any]]:
    """Per shard what `sift` needs to cut repeated paragraphs; empty dicts when they stay."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from penjing.data.dedup.decide import ranks
    from penjing.data.dedup.paragraph import repeated_paragraphs, sign_paragraphs

    if config.paragraphs == "off":
        return [{} for _ in corpus.shards]
    signed = [state / "paragraphs" / shard.name for shard in corpus.shards]
    units = [
        {"name": shard.name, "shard": shard, "to": to, "by": config.paragraphs, "letters": config.paragraph_min_letters}
        for shard, to in zip(corpus.shards, signed, strict=True)
    ]
    map_shards(sign_paragraphs, units, job=job, label="paragraphs", state=state)
    tables = [pq.read_table(path) for path in signed]
    rows = [pq.read_metadata(shard).num_rows for shard in corpus.shards]
    starts = np.cumsum([old, *rows])[:-1]
    document = np.concatenate([t.column("document").to_numpy() + s for t, s in zip(tables, starts, strict=True)])
    place = np.concatenate([t.column("place").to_numpy() for t in tables])
    key = np.concatenate([t.column("key").to_numpy() for t in tables])
    rank = np.empty(len(documents), np.int64)
    rank[ranks(documents, signatures, config.source_priority, old=old)] = np.arange(len(documents))
    stays = decisions.rule[document] == 0
    document, place, key = document[stays], place[stays], key[stays]
    again = repeated_paragraphs(document, place, key, rank)
    document, place = document[again], place[again]
    found = []
    for shard, start, number in zip(corpus.shards, starts.tolist(), rows, strict=True):
        inside = (document >= start) & (document < start + number)
        path = state / "cuts" / shard.name
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"document": document[inside] - start, "place": place[inside]}), path)
        found.append({"cuts": path, "by": config.paragraphs})
    return found


def _clusters(documents: pa.Table, decisions: Decisions, *, old: int) -> dict[str, Any]:
    """The largest clusters and what is left of each source, where a wrong setting shows first."""
    gone = decisions.rule != 0
    centres, sizes = np.unique(decisions.kept[gone], return_counts=True)
    largest = np.lexsort((centres, -sizes))[:10]
    ids = documents.column("id").combine_chunks()
    sources = np.asarray(documents.column("source").fill_null("").to_pylist(), dtype=object)
    shares: dict[str, dict[str, int]] = {}
    for source, dropped in zip(sources[old:].tolist(), gone[old:].tolist(), strict=True):
        item = shares.setdefault(source, {"documents": 0, "kept": 0})
        item["documents"] += 1
        item["kept"] += not dropped
    return {
        "clusters": len(centres),
        "largest_clusters": [{"kept": ids[int(centres[i])].as_py(), "copies": int(sizes[i])} for i in largest],
        "sources": dict(sorted(shares.items())),
    }


def _write_index(
    out: Path, documents: pa.Table, signatures: Signatures, decisions: Decisions, shape: SignatureShape
) -> dict[str, Any]:
    import pyarrow as pa

    from penjing.data.dedup.index import write_index

    stays = np.flatnonzero(decisions.rule == 0)
    manifest = write_index(out / "index", documents.take(pa.array(stays)), signatures.take(stays), shape)
    return {key: manifest[key] for key in ("documents", "bytes", "bytes_per_document")}


def _no_documents() -> pa.Table:
    import pyarrow as pa

    return pa.table(
        {"id": pa.array([], pa.string()), "source": pa.array([], pa.string()), "url_key": pa.array([], pa.binary(16))}
    )


def price(config: Config, inputs: Inputs) -> Estimate:
    """The same corpus at most; memory is the signatures, about 64 bytes and the sketch per document."""
    before: Estimate = inputs["corpus"]
    documents = before.documents
    memory = None if documents is None else documents * (64 + 4 * config.sketch + 8 * config.bands) * 2 + 300e6
    return Estimate(
        disk_bytes=before.disk_bytes,
        documents=documents,
        text_bytes=before.text_bytes,
        memory_bytes=memory,
        notes=("before copies are dropped: how many there are is known afterwards",),
    )
