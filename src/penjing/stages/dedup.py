"""De-duplicate a corpus: by address, by text without punctuation and emoji, by near-equal text, across and against an
old index."""

from __future__ import annotations

import gc
import itertools
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
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
    from penjing.data.dedup.columns import Signed
    from penjing.data.dedup.decide import Decisions, Rules
    from penjing.data.dedup.search import Search
    from penjing.data.dedup.signature import SignatureShape
    from penjing.data.document import Corpus

VERSION = 2
FILTER = "addresses.safetensors"
IN_ONE_PROCESS = 1 << 18
"""Most documents that are decided about in one process when `partitions` is 0: about 2 GB with the default sketch."""
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
    partitions: int = Field(0, ge=0)
    """Parts that ranks, copies and similarities are worked out in, each by a worker on its own; the result is the same for any
    number. 0 = one process up to 262,144 documents, else one part for every 131,072."""
    keep_index: bool = False
    """Write `index/` beside the corpus, against which a later corpus can be checked (input `old`)."""


def run(config: Config, inputs: Inputs, out: Path, job: Job) -> dict[str, Any]:
    """Write the corpus without its copies, the copies aside, and give the figures."""
    with _quick_start():
        from penjing.data.dedup.columns import MOST_DOCUMENTS, Signed, parts_of
        from penjing.data.dedup.index import empty_table, open_index, sign_shard
        from penjing.data.dedup.sieve import merge_funnels, sift
        from penjing.data.document import finish_corpus, open_corpus

        empty_table(shape_of(config))  # loads the kernels
    corpus = open_corpus(inputs["corpus"])
    if not corpus.shards:
        raise InputError(fault("the corpus has no shards", where=corpus.path))
    shape = shape_of(config)
    state = out / "state"
    old: list[Signed] = []
    index: dict[str, Any] | None = None
    if inputs.get("old") is not None:
        folder = Path(inputs["old"]) / "index"
        index = open_index(folder, shape, paragraphs=_paragraph_settings(config))
        old = [Signed(folder / "signatures" / part["name"], part["documents"], None) for part in index["parts"]]
    units: list[dict[str, Any]] = [
        {"name": shard.name, "shard": shard, "to": state / "signatures" / shard.name, "shape": asdict(shape)}
        for shard in corpus.shards
    ]
    rows = [one["documents"] for one in map_shards(sign_shard, units, job=job, label="signatures", state=state)]
    new = [
        Signed(unit["to"], number, state / "verdicts" / unit["name"]) for unit, number in zip(units, rows, strict=True)
    ]
    documents = sum(one.rows for one in [*old, *new])
    if documents >= MOST_DOCUMENTS:
        raise InputError(
            fault(
                "too many documents for one run",
                where=corpus.path,
                found=f"{documents:,} with the old index",
                expected=f"fewer than {MOST_DOCUMENTS:,}",
                fix="de-duplicate parts of the corpus, by language or source",
            )
        )
    parts = min(config.partitions or (parts_of(documents) if documents > IN_ONE_PROCESS else 1), max(documents, 1))
    decided = _decide_in_parts if parts > 1 else _decide_at_once
    figures, ranks = decided(config, inputs, out, old, new, parts, job)
    cuts = _paragraphs(config, corpus, inputs, index, new, ranks, parts, state, job, old=sum(one.rows for one in old))
    sift_units = [
        {"name": shard.name, "shard": shard, "verdicts": one.verdicts, "out": out, **cut["sift"]}
        for shard, one, cut in zip(corpus.shards, new, cuts, strict=True)
    ]
    funnel = merge_funnels(map_shards(sift, sift_units, job=job, label="sift", state=state))
    finish_corpus(
        out,
        keep=[shard.stem for shard in corpus.shards],
        provenance={"stage": "dedup", "corpus": dict(corpus.manifest["provenance"])},
    )
    figures = {"funnel": funnel, **figures}
    if config.keep_index:
        figures["index"] = _write_index(config, inputs, index, out, new, cuts, shape, job)
    shutil.rmtree(state)
    return figures


@contextmanager
def _quick_start() -> Iterator[None]:
    """No garbage collection while compiler and kernels are loaded: they are a million lasting objects, and looking through them again and
    again is a tenth of a short run."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def _decide_at_once(
    config: Config, inputs: Inputs, out: Path, old: list[Signed], new: list[Signed], parts: int, job: Job
) -> tuple[dict[str, Any], list[tuple[Path, int]]]:
    """Figures, and per shard the file and row at which its ranks begin; everything is held in this process."""
    from penjing.data.dedup.columns import save
    from penjing.data.dedup.decide import decide
    from penjing.data.dedup.index import read_tables
    from penjing.data.dedup.search import searcher

    state = out / "state"
    documents, signatures = read_tables([one.path for one in [*old, *new]])
    before = sum(one.rows for one in old)
    seen = _address_filter(config, inputs, len(documents))
    search = None
    if config.near != "off":
        simhash, minhash = config.near in ("simhash", "both"), config.near in ("minhash", "both")
        search = searcher(simhash=simhash, minhash=minhash, distance=config.distance, folder=state / "near", job=job)
    decisions = decide(documents, signatures, rules_of(config, seen, search), old=before)
    _write_verdicts(new, documents, decisions, config, old=before)
    if seen is not None and config.keep_index:
        seen.save(state / FILTER)
    if config.paragraphs != "off":
        save(state / "ranks.npy", decisions.rank[before:])
    starts = itertools.accumulate((one.rows for one in new), initial=0)
    ranks = [(state / "ranks.npy", start) for start, _ in zip(starts, new, strict=False)]
    return {"near": decisions.figures, **_clusters(documents, decisions, old=before)}, ranks


def _decide_in_parts(
    config: Config, inputs: Inputs, out: Path, old: list[Signed], new: list[Signed], parts: int, job: Job
) -> tuple[dict[str, Any], list[tuple[Path, int]]]:
    """The same by units over files, none of which holds more than its part."""
    from penjing.data.dedup.shuffle import Settings, shuffle

    state = out / "state"
    bloomed = None
    if config.url and config.url_filter == "bloom":
        before = _old_filter(inputs)
        documents = sum(one.rows for one in [*old, *new])
        bloomed = {"capacity": config.url_capacity or documents, "rate": config.url_false_positives, "filter": before,
                   "save": state / FILTER}
    settings = Settings(
        source_priority=config.source_priority,
        similarity=config.similarity,
        url=config.url,
        url_max_texts=config.url_max_texts,
        url_filter=bloomed,
        exact=config.exact,
        exact_min_letters=config.exact_min_letters,
        simhash=config.near in ("simhash", "both"),
        distance=config.distance,
        bands=config.bands if config.near in ("minhash", "both") else 0,
        near_min_tokens=config.near_min_tokens,
    )
    done = shuffle([*old, *new], settings, parts=parts, state=state / "shuffle", job=job)
    ranks = []
    for path, group in done.ranks:
        starts = itertools.accumulate((one.rows for one in group), initial=0)
        ranks += [(path, start) for start, _ in zip(starts, group, strict=False)]
    figures = {"near": done.figures, "clusters": done.clusters, "largest_clusters": done.largest, "sources": done.sources}
    return figures, ranks


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


def _write_verdicts(new: list[Signed], documents: pa.Table, decisions: Decisions, config: Config, *, old: int) -> None:
    """One row-aligned verdict file per shard."""
    import pyarrow as pa

    from penjing.data.dedup.verdicts import write_verdict

    ids = documents.column("id").combine_chunks()
    at = old
    for one in new:
        part = slice(at, at + one.rows)
        rule, stays = decisions.rule[part], decisions.kept[part]
        named = (rule != 0) & (stays != np.arange(at, at + one.rows))
        kept = ids.take(pa.array(stays, mask=~named)).to_pylist() if named.any() else [None] * one.rows
        assert one.verdicts is not None
        write_verdict(one.verdicts, rule, decisions.value[part], kept, similarity=config.similarity)
        at += one.rows


def _old_filter(inputs: Inputs) -> Path | None:
    """The filter of the old corpus, when it has one."""
    if inputs.get("old") is None:
        return None
    path = Path(inputs["old"]) / "index" / FILTER
    return path if path.is_file() else None


def _address_filter(config: Config, inputs: Inputs, documents: int) -> Bloom | None:
    """The filter of the old corpus, or an empty one; None when addresses are kept whole."""
    from penjing.data.dedup.bloom import bloom, load_bloom

    if not config.url or config.url_filter == "exact":
        return None
    before = _old_filter(inputs)
    return load_bloom(before) if before else bloom(config.url_capacity or documents, rate=config.url_false_positives)


def _paragraph_settings(config: Config) -> dict[str, Any] | None:
    """What two sets of paragraph keys must share to be compared."""
    return None if config.paragraphs == "off" else {"by": config.paragraphs, "letters": config.paragraph_min_letters}


def _paragraphs(
    config: Config,
    corpus: Corpus,
    inputs: Inputs,
    index: dict[str, Any] | None,
    new: list[Signed],
    ranks: list[tuple[Path, int]],
    parts: int,
    state: Path,
    job: Job,
    *,
    old: int,
) -> list[dict[str, Any]]:
    """Per shard what `sift` needs to cut repeated paragraphs, and the file of the keys of those that stay."""
    from penjing.data.dedup.columns import share
    from penjing.data.dedup.paragraph import cut_paragraphs, repeat_paragraphs, sign_paragraphs

    if config.paragraphs == "off":
        return [{"sift": {}, "keys": None} for _ in corpus.shards]
    common = {"by": config.paragraphs, "letters": config.paragraph_min_letters}
    units: list[dict[str, Any]] = []
    start = old
    for shard, one, (path, first) in zip(corpus.shards, new, ranks, strict=True):
        units.append({
            "name": shard.name, "shard": shard, "verdicts": one.verdicts, "ranks": path, "rank_start": first, "start": start,
            "to": state / "paragraphs" / f"{shard.stem}.npy", **common,
        })
        start += one.rows
    map_shards(sign_paragraphs, units, job=job, label="paragraphs", state=state)
    signed = share(state / "lists" / "signed.json", [unit["to"] for unit in units])
    known = [Path(inputs["old"]) / "index" / "paragraphs" / part["name"] for part in index["parts"]] if index else []
    old_keys = share(state / "lists" / "old.json", known)
    repeats: list[dict[str, Any]] = [
        {"name": f"part-{part:05d}", "part": part, "parts": parts, "signed": signed, "old": old_keys,
         "to": state / "repeated" / f"{part:05d}.npy"}
        for part in range(parts)
    ]
    map_shards(repeat_paragraphs, repeats, job=job, label="repeated paragraphs", state=state)
    repeated = share(state / "lists" / "repeated.json", [part["to"] for part in repeats])
    cuts: list[dict[str, Any]] = [
        {"name": unit["name"], "start": unit["start"], "rows": one.rows, "signed": unit["to"],
         "repeated": repeated, "to": state / "cuts" / unit["name"],
         "keys": state / "keys" / unit["name"] if config.keep_index else None}
        for unit, one in zip(units, new, strict=True)
    ]
    map_shards(cut_paragraphs, cuts, job=job, label="cuts", state=state)
    return [{"sift": {"cuts": unit["to"], "by": config.paragraphs}, "keys": unit["keys"]} for unit in cuts]


def _clusters(documents: pa.Table, decisions: Decisions, *, old: int) -> dict[str, Any]:
    """The largest clusters and what is left of each source, where a wrong setting shows first."""
    from penjing.data.dedup.verdicts import count_sources

    gone = decisions.rule != 0
    centres, sizes = np.unique(decisions.kept[gone], return_counts=True)
    largest = np.lexsort((centres, -sizes))[:10]
    ids = documents.column("id").combine_chunks()
    sources = count_sources(documents.column("source").slice(old), ~gone[old:])
    return {
        "clusters": len(centres),
        "largest_clusters": [{"kept": ids[int(centres[i])].as_py(), "copies": int(sizes[i])} for i in largest],
        "sources": dict(sorted(sources.items())),
    }


def _write_index(
    config: Config,
    inputs: Inputs,
    index: dict[str, Any] | None,
    out: Path,
    new: list[Signed],
    cuts: list[dict[str, Any]],
    shape: SignatureShape,
    job: Job,
) -> dict[str, Any]:
    """The old index's parts and one for every new shard; the old corpus's filter goes on."""
    from penjing.data.dedup.index import keep_part, write_manifest

    generation = index["generation"] + 1 if index else 0
    units: list[dict[str, Any]] = []
    for part in index["parts"] if index else []:
        folder = Path(inputs["old"]) / "index"
        keys = folder / "paragraphs" / part["name"] if config.paragraphs != "off" else None
        units.append({"name": part["name"], "copy": folder / "signatures" / part["name"], "signed": None, "verdicts": None,
                      "paragraphs": keys})
    for one, cut in zip(new, cuts, strict=True):
        units.append({"name": f"{generation:03d}-{one.path.name}", "copy": None, "signed": one.path, "verdicts": one.verdicts,
                      "paragraphs": cut["keys"]})
    units = [{**unit, "to": out / "index" / "signatures" / unit["name"], "shape": asdict(shape)} for unit in units]
    parts = map_shards(keep_part, units, job=job, label="index", state=out / "state")
    manifest = write_manifest(
        out / "index", parts, shape, paragraphs=_paragraph_settings(config), generation=generation)
    if (out / "state" / FILTER).is_file():
        (out / "state" / FILTER).replace(out / "index" / FILTER)
    return {key: manifest[key] for key in ("documents", "bytes", "bytes_per_document")}


def price(config: Config, inputs: Inputs) -> Estimate:
    """The same corpus at most; memory of one process as measured: 4.6 times the signatures when all are held, 2.4 times a block's."""
    before: Estimate = inputs["corpus"]
    documents = before.documents
    memory = None
    if documents is not None:
        parts = config.partitions or 1
        if not config.partitions and documents > IN_ONE_PROCESS:
            from penjing.data.dedup.columns import parts_of

            parts = parts_of(int(documents))
        memory = 400e6 + documents / parts * (64 + 4 * config.sketch + 8 * config.bands) * (4.6 if parts == 1 else 2.4)
    return Estimate(
        disk_bytes=before.disk_bytes,
        documents=documents,
        text_bytes=before.text_bytes,
        memory_bytes=memory,
        notes=("before copies are dropped: how many there are is known afterwards",),
    )
