"""De-duplication of a corpus that one process cannot hold: the decisions of `decide`, made in units over files.

    unfold     per block    signatures as flat columns; the block's documents in the order of their rank keys
    ranks      per range    documents between two rank keys, cut out of every block and ordered
    place      per block    each document's rank; addresses sorted by key
    addresses  per range    copies by address (and, with a Bloom filter, one unit that passes all pages through it)
    texts      per range    copies by text, among what is left
    pairs      per table or band and range of prefixes     candidates, among what is left
    verify     per range of ranks    similarity from the two sketches, read where they lie
    stars      one unit     verified pairs in the order of ranks; holds one bit per document
    settle, conclude        per block    who stays for whom; verdicts by shard

A block is a run of shards with about `BLOCK_DOCUMENTS` documents, and so is every range; a unit holds one of them, about 1.2 KB per
document with the default sketch and bands, and 2.9 KB at its worst moment. Ranks, windows and ties are those of the whole corpus, so the
result equals the one-process result byte for byte, for any number of blocks, ranges and workers.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from penjing.contract import Job
from penjing.data.dedup import shuffle_units as units
from penjing.data.dedup.columns import BLOCK_DOCUMENTS, Signed, share
from penjing.data.dedup.near import plan_tables
from penjing.data.engine import Function, map_shards

PREFIX_DOCUMENTS = 1 << 23
"""Documents of a range of prefixes: only a fingerprint and a rank are held of each."""


@dataclass(frozen=True)
class Settings:
    """What is looked for."""

    source_priority: Sequence[str]
    similarity: float
    url: bool
    url_max_texts: int
    url_filter: dict[str, Any] | None
    """capacity, rate, the file of a filter to go on with or None, and where to save it; None keeps whole addresses."""
    exact: bool
    exact_min_letters: int
    simhash: bool
    distance: int
    bands: int
    """0 looks for none."""
    near_min_tokens: int


@dataclass(frozen=True)
class Shuffled:
    """`figures` as those of `decide`; `clusters`, `largest` and `sources` as the stage reports them; `ranks` has per block of new
    documents the file of its ranks, its first document and its shards' verdict files."""

    figures: dict[str, Any]
    clusters: int
    largest: list[dict[str, Any]]
    sources: dict[str, dict[str, int]]
    ranks: list[tuple[Path, list[Signed]]]


def shuffle(signed: Sequence[Signed], settings: Settings, *, parts: int, state: Path, job: Job) -> Shuffled:
    """Decide about all documents and write the verdicts of the new ones."""

    def each(function: Function, work: list[dict[str, Any]], label: str) -> list[Any]:
        return map_shards(function, work, job=job, label=label, state=state / "state")

    def shared(name: str, values: Sequence[Any]) -> Path:
        return share(state / "lists" / f"{name}.json", values)

    documents = sum(one.rows for one in signed)
    old = sum(one.rows for one in signed if one.verdicts is None)
    groups = _blocks(signed, -(-documents // parts))
    starts = list(itertools.accumulate((sum(one.rows for one in group) for group in groups), initial=0))
    blocks = [(str(state / f"block-{i:05d}"), starts[i], starts[i + 1] - starts[i]) for i in range(len(groups))]
    all_blocks = shared("blocks", blocks)
    by_block: list[dict[str, Any]] = [{"name": Path(block[0]).name, "block": block} for block in blocks]
    by_part: list[dict[str, Any]] = [{"name": f"part-{part:05d}", "part": part, "parts": parts} for part in range(parts)]

    found = each(
        units.unfold,
        [
            {"name": Path(folder).name, "folder": folder, "start": start, "signed": [one.path for one in group],
             "old": group[0].verdicts is None, "source_priority": list(settings.source_priority)}
            for (folder, start, _), group in zip(blocks, groups, strict=True)
        ],
        "unfold",
    )
    cuts = _cuts([tuple(key) for one in found for key in one["samples"]], parts)
    placed = [state / f"ranks-{part:05d}" / "placed.npy" for part in range(parts)]
    counts = [one["documents"] for one in each(
        units.order_ranks,
        [{**unit, "blocks": all_blocks, "low": low, "high": high, "placed": path, "origin": path.with_name("origin.npy")}
         for unit, path, (low, high) in zip(by_part, placed, itertools.pairwise([None, *cuts, None]), strict=True)],
        "ranks",
    )]
    bases = list(itertools.accumulate(counts, initial=0))
    ranges = shared("ranges", [(path.parent, bases[part], counts[part]) for part, path in enumerate(placed)])
    each(units.place_ranks, [{**unit, "ranges": ranges} for unit in by_block], "place")
    parts_made = _Parts(each, shared, by_block, by_part, all_blocks, ranges, bases, old, state)

    figures: dict[str, Any] = {}
    gone: dict[str, list[Path]] = {"url": [], "exact": [], "near": []}
    if settings.url:
        gone["url"] = _addresses(settings, figures, parts_made)
    if settings.exact:
        common = {"gone": shared("gone-url", gone["url"]), "letters": settings.exact_min_letters}
        each(units.spread_texts, [{**unit, **common} for unit in by_block], "spread texts")
        gone["exact"] = [state / "exact" / f"{part:05d}.npy" for part in range(parts)]
        each(units.drop_texts, [{**unit, "blocks": all_blocks, "old": old, "to": to}
                                for unit, to in zip(by_part, gone["exact"], strict=True)], "texts")
    if settings.simhash or settings.bands:
        gone["near"] = _near(settings, figures, parts_made, gone)
    lists = {name: shared(f"gone-{name}", paths) for name, paths in gone.items()}
    each(units.settle, [{**unit, **lists} for unit in by_block], "settle")
    fresh = [(unit, group) for unit, group in zip(by_block, groups, strict=True) if group[0].verdicts is not None]
    sources = each(units.conclude, [
        {**unit, "blocks": all_blocks, "similarity": settings.similarity, "shards": [(one.verdicts, one.rows) for one in group]}
        for unit, group in fresh], "conclude")
    clusters = each(units.count_clusters, [{**unit, "blocks": all_blocks} for unit in by_block], "clusters")
    largest = sorted((row for one in clusters for row in one["largest"]), key=lambda row: (-row[0], row[1]))[:10]
    return Shuffled(
        figures,
        sum(one["clusters"] for one in clusters),
        [{"kept": name, "copies": size} for size, _, name in largest],
        _added(sources),
        [(Path(unit["block"][0]) / "rank.npy", group) for unit, group in fresh],
    )


@dataclass(frozen=True)
class _Parts:
    """What every step works with: how to run units and share lists, the units by block and by part, and where ranks lie."""

    each: Callable[[Function, list[dict[str, Any]], str], list[Any]]
    share: Callable[[str, Sequence[Any]], Path]
    by_block: list[dict[str, Any]]
    by_part: list[dict[str, Any]]
    blocks: Path
    ranges: Path
    bases: list[int]
    old: int
    state: Path

    def files(self, folder: str) -> list[Path]:
        """One file for each part."""
        return [self.state / folder / f"{unit['part']:05d}.npy" for unit in self.by_part]


def _addresses(settings: Settings, figures: dict[str, Any], made: _Parts) -> list[Path]:
    bloomed = settings.url_filter
    to, pages = made.files("url"), made.files("pages")
    common = {"blocks": made.blocks, "old": made.old, "most": settings.url_max_texts}
    containers = made.each(units.drop_addresses, [
        {**unit, **common, "to": path, "pages": page if bloomed else None}
        for unit, path, page in zip(made.by_part, to, pages, strict=True)], "addresses")
    figures["addresses_of_many_texts"] = {name: sum(one[name] for one in containers) for name in ("addresses", "documents")}
    if bloomed is None:
        return to
    claimed = made.files("claimed")
    work = {"name": "filter", "pages": made.share("pages", pages), "ranges": made.ranges, "to": made.share("claimed", claimed),
            "old": made.old, **bloomed}
    figures["address_filter"] = made.each(units.claim_addresses, [work], "filter")[0]
    return claimed


def _near(settings: Settings, figures: dict[str, Any], made: _Parts, gone: dict[str, list[Path]]) -> list[Path]:
    dropped = made.share("gone-before-near", gone["url"] + gone["exact"])
    free = sum(one["documents"] for one in made.each(units.spread_signatures, [
        {**unit, "gone": dropped, "tokens": settings.near_min_tokens, "bands": settings.bands} for unit in made.by_block],
        "spread signatures"))
    pairs, left_out = _candidates(settings, figures, made, free)
    verified, near = made.files("verified"), made.files("near")
    counted = made.each(units.verify_pairs, [
        {"name": unit["name"], "low": low, "high": high, "blocks": made.blocks, "ranges": made.ranges,
         "similarity": settings.similarity, "to": to, **pairs}
        for unit, to, (low, high) in zip(made.by_part, verified, itertools.pairwise(made.bases), strict=True)], "verify")
    for kind, name in (("tables", "simhash"), ("bands", "minhash")):
        if name in figures:
            figures[name]["pairs"] = sum(one[kind] for one in counted)
    made.each(units.choose_stars, [
        {"name": "stars", "documents": made.bases[-1], "ranges": made.ranges, "verified": made.share("verified", verified),
         "to": made.share("near", near)}], "stars")
    figures.update(candidates=sum(one["candidates"] for one in counted), verified=sum(one["verified"] for one in counted),
                   comparisons_left_out=left_out)
    return near


def _candidates(settings: Settings, figures: dict[str, Any], made: _Parts, free: int) -> tuple[dict[str, Path], int]:
    """(shared lists of the files of pairs, comparisons left out)."""
    prefixes = max(2, -(-len(made.by_part) * BLOCK_DOCUMENTS // PREFIX_DOCUMENTS))
    searches: list[dict[str, Any]] = []
    if settings.simhash:
        plan = plan_tables(free, settings.distance)
        searches += [{"kind": "tables", "table": table, "documents": free, "distance": settings.distance, "cut": plan.blocks}
                     for table in range(len(plan.masks))]
        figures["simhash"] = {"tables": len(plan.masks), "blocks": plan.blocks, "distance": settings.distance}
    searches += [{"kind": "bands", "band": band} for band in range(settings.bands)]
    if settings.bands:
        figures["minhash"] = {"bands": settings.bands}
    work: list[dict[str, Any]] = []
    for search, part in itertools.product(searches, range(prefixes)):
        name = f"{search['kind']}-{search.get('table', search.get('band')):04d}-{part:04d}"
        work.append({"name": name, **search, "part": part, "parts": prefixes, "blocks": made.blocks, "old": made.old,
                     "to": made.state / "pairs" / f"{name}.npy"})
    left_out = sum(one["left_out"] for one in made.each(units.find_pairs, work, "candidates"))
    kinds = {kind: made.share(kind, [unit["to"] for unit in work if unit["kind"] == kind]) for kind in ("tables", "bands")}
    return kinds, left_out


def _blocks(signed: Sequence[Signed], most: int) -> list[list[Signed]]:
    """Neighbouring shards, old ones apart from new ones, until a block has `most` documents."""
    groups: list[list[Signed]] = []
    held = 0
    for one in signed:
        if not groups or held >= most or (groups[-1][0].verdicts is None) != (one.verdicts is None):
            groups.append([])
            held = 0
        groups[-1].append(one)
        held += one.rows
    return groups


def _cuts(samples: list[tuple[Any, ...]], parts: int) -> list[tuple[Any, ...] | None]:
    """The keys that cut all documents into `parts` ranges of about equal size, from evenly spaced samples of every block."""
    samples.sort()
    return [samples[len(samples) * part // parts] for part in range(1, parts)]


def _added(counts: list[dict[str, dict[str, int]]]) -> dict[str, dict[str, int]]:
    total: dict[str, dict[str, int]] = {}
    for one in counts:
        for source, item in one.items():
            into = total.setdefault(source, {"documents": 0, "kept": 0})
            for name, number in item.items():
                into[name] += number
    return dict(sorted(total.items()))
