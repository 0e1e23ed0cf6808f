"""The units of `shuffle`: what one worker does with one block, one range of keys, or one range of ranks.

Each takes a JSON unit, reads slices of what earlier units left in files, writes its own file whole or not at all, and gives back a
few numbers. What a unit holds is a block or a range of about `BLOCK_DOCUMENTS` documents, never the corpus.
"""

from __future__ import annotations

import bisect
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numba import njit

from penjing.data.dedup.bands import column_pairs
from penjing.data.dedup.bloom import Bloom, bloom, load_bloom
from penjing.data.dedup.columns import (
    GONE,
    Block,
    gather,
    gather_ids,
    gather_sketches,
    ids_table,
    listed,
    mapped,
    part_of,
    rows_between,
    save,
    save_rows,
)
from penjing.data.dedup.decide import EXACT, KEEP, NEAR, URL, busy_addresses, drop_repeats, rank_keys, rank_order
from penjing.data.dedup.fold import mix64
from penjing.data.dedup.index import DOCUMENT_COLUMNS, from_table, url_numbers
from penjing.data.dedup.near import plan_tables, table_pairs
from penjing.data.dedup.verdicts import count_sources, write_verdict
from penjing.data.dedup.verify import similarities_of

_ADDRESS = np.dtype([("high", "<u8"), ("low", "<u8"), ("text_high", "<u8"), ("text_low", "<u8"), ("rank", "<i8"), ("document", "<i8")])
_TEXT = np.dtype([("high", "<u8"), ("low", "<u8"), ("rank", "<i8"), ("document", "<i8")])
_PAGE = np.dtype([("rank", "<i8"), ("high", "<u8"), ("low", "<u8"), ("document", "<i8"), ("kept", "<i8")])
_PLACED = np.dtype([("document", "<i8"), ("rank", "<i8")])
_VERIFIED = np.dtype([("pair", "<u8"), ("likeness", "<f8")])
SAMPLES = 256
PAIRS_AT_ONCE = 1 << 15
"""Pairs whose sketches are held together while they are verified: 64 MB with the default sketch."""


def blocks_of(unit: dict[str, Any], name: str = "blocks") -> list[Block]:
    """The blocks (or ranges of ranks) of a shared list."""
    return [Block(Path(folder), start, rows) for folder, start, rows in listed(unit[name])]


def unfold(unit: dict[str, Any]) -> dict[str, Any]:
    """Lay the signatures of some shards out as flat columns, order the block by rank keys, and give keys to cut ranks at."""
    folder, old = Path(unit["folder"]), bool(unit["old"])
    table = pa.concat_tables([pq.read_table(path) for path in unit["signed"]])
    documents = table.select(DOCUMENT_COLUMNS)
    signatures = from_table(table)
    del table
    address, has_address = url_numbers(documents.column("url_key"))
    for name, column in {
        "letters": signatures.letters,
        "tokens": signatures.tokens,
        "keys": signatures.keys,
        "simhash": signatures.simhash,
        "bands": np.ascontiguousarray(signatures.bands.T),
        "sketch": signatures.sketch,
        "offsets": signatures.sketch_offsets,
        "tops": signatures.tops,
        "address": address,
        "has_address": has_address,
    }.items():
        save(folder / f"{name}.npy", column)
    _save_table(folder / "documents.arrow", documents.select(["id", "source"]))
    keys = rank_keys(documents, signatures.letters, signatures.keys, unit["source_priority"], old=len(documents) if old else 0)
    order = rank_order(keys)
    run = keys.take(pa.array(order)).append_column("document", pa.array(order + unit["start"]))
    _save_table(folder / "run.arrow", run)
    rows = len(run)
    places = sorted({rows * i // SAMPLES for i in range(SAMPLES)}) if rows else []
    return {"samples": [list(_rank_key(run, place)) for place in places]}


def order_ranks(unit: dict[str, Any]) -> dict[str, Any]:
    """Order one range of rank keys, cut out of every block's ordered run: the documents of neighbouring ranks."""
    slices = []
    for block in blocks_of(unit):
        with pa.memory_map(str(block.folder / "run.arrow")) as file:
            run = pa.ipc.open_file(file).read_all().combine_chunks()
        low = _bisect(run, unit["low"]) if unit["low"] is not None else 0
        high = _bisect(run, unit["high"]) if unit["high"] is not None else len(run)
        slices.append(run.slice(low, high - low))
    keys = pa.concat_tables(slices)
    documents = keys.column("document").to_numpy()
    by_document = np.argsort(documents)  # as stable ties fall to the earlier document, whatever the blocks
    order = by_document[rank_order(keys.take(pa.array(by_document)).drop_columns("document"))]
    ordered = documents[order]
    save(Path(unit["origin"]), ordered)
    save_rows(Path(unit["placed"]), _PLACED, by="document", document=ordered, rank=np.arange(len(ordered)))
    return {"documents": len(ordered)}


def place_ranks(unit: dict[str, Any]) -> dict[str, Any]:
    """Write the rank of every document of a block, and the addresses and texts that are compared, sorted by key."""
    block = Block(*_block(unit))
    rank = np.empty(block.rows, np.int64)
    for part in blocks_of(unit, "ranges"):
        rows = rows_between(part.folder / "placed.npy", "document", block.start, block.end)
        rank[rows["document"] - block.start] = rows["rank"] + part.start
    save(block.folder / "rank.npy", rank)
    has_address = np.flatnonzero(block.column("has_address"))
    address, keys = np.array(block.column("address")), np.array(block.column("keys"))
    columns = {"high": address[:, 0], "low": address[:, 1], "text_high": keys[:, 0], "text_low": keys[:, 1], "rank": rank}
    columns["document"] = np.arange(block.start, block.end)
    save_rows(block.folder / "addresses.npy", _ADDRESS, by="high", **{name: column[has_address] for name, column in columns.items()})
    return {"addresses": len(has_address)}


def drop_addresses(unit: dict[str, Any]) -> dict[str, Any]:
    """One range of addresses: what repeats a better document's address, pages told from containers."""
    low, high = part_of(unit["part"], unit["parts"])
    rows = np.concatenate([rows_between(block.folder / "addresses.npy", "high", low, high) for block in blocks_of(unit)])
    rows = rows[np.argsort(rows["rank"])]
    addresses, texts = (np.stack([rows[f"{name}high"], rows[f"{name}low"]], axis=1) for name in ("", "text_"))
    pages, containers = busy_addresses(np.arange(len(rows)), addresses, texts, unit["most"])
    old = int(np.searchsorted(rows["rank"], unit["old"]))
    gone, kept = drop_repeats(pages, addresses, old)
    _save_gone(Path(unit["to"]), rows["document"][gone], rows["document"][kept])
    if unit["pages"]:
        stays = rows["document"].copy()
        stays[gone] = rows["document"][kept]
        columns = {name: rows[name][pages] for name in ("rank", "high", "low", "document")}
        save_rows(Path(unit["pages"]), _PAGE, by="rank", kept=stays[pages], **columns)
    return containers


def claim_addresses(unit: dict[str, Any]) -> dict[str, Any]:
    """All pages in the order of their ranks through one Bloom filter, a range of ranks at a time."""
    seen: Bloom = load_bloom(Path(unit["filter"])) if unit["filter"] else bloom(unit["capacity"], rate=unit["rate"])
    for part, to in zip(blocks_of(unit, "ranges"), listed(unit["to"]), strict=True):
        rows = np.concatenate([rows_between(Path(path), "rank", part.start, part.end) for path in listed(unit["pages"])])
        rows = rows[np.argsort(rows["rank"])]
        claimed = seen.add(np.stack([rows["high"], rows["low"]], axis=1))
        gone = rows[claimed & (rows["rank"] >= unit["old"])]
        _save_gone(Path(to), gone["document"], gone["kept"])
    seen.save(Path(unit["save"]))
    return {"keys": seen.keys, "bytes": seen.words.nbytes, "rate": seen.rate, "expected_wrongful_drops": seen.wrongful}


def spread_texts(unit: dict[str, Any]) -> dict[str, Any]:
    """The exact keys of a block's documents that are still free, sorted by key."""
    block = Block(*_block(unit))
    free = _free(block, listed(unit["gone"])) & (np.array(block.column("letters")) >= unit["letters"])
    rows = np.flatnonzero(free)
    keys = np.array(block.column("keys"))[rows]
    rank = np.array(block.column("rank"))[rows]
    save_rows(block.folder / "texts.npy", _TEXT, by="high", high=keys[:, 0], low=keys[:, 1], rank=rank, document=rows + block.start)
    return {"documents": len(rows)}


def drop_texts(unit: dict[str, Any]) -> dict[str, Any]:
    """One range of exact keys: what repeats a better document's text."""
    low, high = part_of(unit["part"], unit["parts"])
    rows = np.concatenate([rows_between(block.folder / "texts.npy", "high", low, high) for block in blocks_of(unit)])
    rows = rows[np.argsort(rows["rank"])]
    old = int(np.searchsorted(rows["rank"], unit["old"]))
    gone, kept = drop_repeats(np.arange(len(rows)), np.stack([rows["high"], rows["low"]], axis=1), old)
    _save_gone(Path(unit["to"]), rows["document"][gone], rows["document"][kept])
    return {"gone": len(gone)}


def spread_signatures(unit: dict[str, Any]) -> dict[str, Any]:
    """The fingerprints and bands of a block's documents that are still free and long enough, in the order of their ranks."""
    block = Block(*_block(unit))
    rows = np.flatnonzero(_free(block, listed(unit["gone"])) & (np.array(block.column("tokens")) >= unit["tokens"]))
    rank = np.array(block.column("rank"))[rows]
    order = np.argsort(rank)
    rows, rank = rows[order], rank[order]
    save(block.folder / "near-rank.npy", rank)
    save(block.folder / "near-simhash.npy", np.array(block.column("simhash"))[rows])
    bands = block.column("bands")
    for band in range(unit["bands"]):
        save(block.folder / f"near-band-{band:04d}.npy", np.array(bands[band])[rows])
    return {"documents": len(rows)}


def find_pairs(unit: dict[str, Any]) -> dict[str, Any]:
    """The candidate pairs of one SimHash table or one band, within one range of its prefixes."""
    blocks = blocks_of(unit)
    table = unit.get("table")
    plan = plan_tables(unit["documents"], unit["distance"], blocks=unit["cut"]) if table is not None else None
    mask = plan.masks[table] if plan is not None else np.uint64(0xFFFFFFFFFFFFFFFF)
    name = "near-simhash" if table is not None else f"near-band-{unit['band']:04d}"
    values, ranks = [], []
    for block in blocks:
        column = block.column(name)
        rows = _in_part(np.asarray(column), mask, unit["part"], unit["parts"])
        values.append(column[rows])
        ranks.append(block.column("near-rank")[rows])
    value, rank = np.concatenate(values), np.concatenate(ranks)
    order = np.argsort(rank)
    value, rank = value[order], rank[order]
    old = int(np.searchsorted(rank, unit["old"]))
    if plan is not None and table is not None:
        pairs, left_out = table_pairs(value, plan, table, old=old)
    else:
        pairs, left_out = column_pairs(value, old=old)
    save(Path(unit["to"]), np.sort(pack(rank[pairs])))
    return {"left_out": left_out}


def verify_pairs(unit: dict[str, Any]) -> dict[str, Any]:
    """All different candidates whose better document lies in one range of ranks, with the similarity of those that are sure."""
    low, high = unit["low"] << 32, unit["high"] << 32
    found = {name: [rows_between(Path(path), "", low, high) for path in listed(unit[name])] for name in ("tables", "bands")}
    counts = {name: sum(map(len, found[name])) for name in ("tables", "bands")}
    if found["bands"]:
        counts["bands"] = len(np.unique(np.concatenate(found["bands"])))
    every = found["tables"] + found["bands"]
    pairs = np.unique(np.concatenate(every)) if every else np.empty(0, np.uint64)
    blocks, ranges = blocks_of(unit), blocks_of(unit, "ranges")
    likeness = np.empty(len(pairs))
    for at in range(0, len(pairs), PAIRS_AT_ONCE):
        part = unpack(pairs[at : at + PAIRS_AT_ONCE])
        ranks, local = np.unique(part, return_inverse=True)
        sketch, offsets, tops = gather_sketches(blocks, gather(ranges, "origin", ranks))
        likeness[at : at + len(part)] = similarities_of(local.reshape(part.shape), sketch, offsets, tops)
    sure = likeness >= unit["similarity"]
    save_rows(Path(unit["to"]), _VERIFIED, by="pair", pair=pairs[sure], likeness=likeness[sure])
    return {**counts, "candidates": len(pairs), "verified": int(sure.sum())}


def choose_stars(unit: dict[str, Any]) -> dict[str, Any]:
    """Verified pairs in the order of the better document: the free one takes what is free. One bit per document is held."""
    taken = np.zeros((unit["documents"] + 7) // 8, np.uint8)
    ranges = blocks_of(unit, "ranges")
    gone = 0
    for path, to in zip(listed(unit["verified"]), listed(unit["to"]), strict=True):
        rows = np.array(mapped(Path(path)))
        pairs = unpack(rows["pair"])
        chosen = np.flatnonzero(_take(taken, pairs))
        documents = gather(ranges, "origin", pairs[chosen].reshape(-1)).reshape(-1, 2)
        _save_gone(Path(to), documents[:, 1], documents[:, 0], rows["likeness"][chosen])
        gone += len(chosen)
    return {"gone": gone}


def settle(unit: dict[str, Any]) -> dict[str, Any]:
    """What was decided about each document of a block: rule, kept document, value."""
    block = Block(*_block(unit))
    rule, value = np.zeros(block.rows, np.int8), np.zeros(block.rows)
    kept = np.arange(block.start, block.end)
    for code, name in ((URL, "url"), (EXACT, "exact"), (NEAR, "near")):
        for path in listed(unit[name]):
            rows = rows_between(Path(path), "document", block.start, block.end)
            local = rows["document"] - block.start
            rule[local], kept[local], value[local] = code, rows["kept"], rows["value"]
    for name, column in (("rule", rule), ("kept", kept), ("value", value)):
        save(block.folder / f"{name}.npy", column)
    return {"gone": int((rule != KEEP).sum())}


def conclude(unit: dict[str, Any]) -> dict[str, Any]:
    """The verdict files of a block's shards, each dropped document with the one that stays in the end, counted by source."""
    block, blocks = Block(*_block(unit)), blocks_of(unit)
    rule, kept = np.array(block.column("rule")), np.array(block.column("kept"))
    gone = np.flatnonzero(rule != KEEP)
    stays = kept[gone]
    while True:  # a document that stayed for its address may have gone for its text, and that one for its likeness
        further = gather(blocks, "kept", stays)
        if np.array_equal(further, stays):
            break
        stays = further
    save(block.folder / "centres.npy", np.sort(stays))
    names = np.full(block.rows, None, object)
    other = stays != gone + block.start
    names[gone[other]] = gather_ids(blocks, stays[other])
    value = np.array(block.column("value"))
    at = 0
    for path, rows in unit["shards"]:
        part = slice(at, at + rows)
        write_verdict(Path(path), rule[part], value[part], names[part].tolist(), similarity=unit["similarity"])
        at += rows
    return count_sources(ids_table(block).column("source"), rule == KEEP)


def count_clusters(unit: dict[str, Any]) -> dict[str, Any]:
    """The clusters around the documents of one block: how many, and the ten largest."""
    block, blocks = Block(*_block(unit)), blocks_of(unit)
    parts = [rows_between(other.folder / "centres.npy", "", block.start, block.end) for other in blocks if _has(other, "centres")]
    centres, sizes = np.unique(np.concatenate(parts), return_counts=True) if parts else (np.empty(0, np.int64),) * 2
    largest = np.lexsort((centres, -sizes))[:10]
    ids = gather_ids(blocks, centres[largest])
    found = [[int(sizes[i]), int(centres[i]), name] for i, name in zip(largest.tolist(), ids, strict=True)]
    return {"clusters": len(centres), "largest": found}


def pack(pairs: np.ndarray) -> np.ndarray:
    """(P,) uint64 of pairs (P, 2) of ranks below 2^32: the better one in the upper half, so that they sort by it."""
    low, high = pairs.min(axis=1).astype(np.uint64), pairs.max(axis=1).astype(np.uint64)
    return (low << np.uint64(32)) | high


def unpack(packed: np.ndarray) -> np.ndarray:
    """(P, 2) int64 of packed pairs."""
    return np.stack([packed >> np.uint64(32), packed & np.uint64(0xFFFFFFFF)], axis=1).astype(np.int64)


def _block(unit: dict[str, Any]) -> tuple[Path, int, int]:
    folder, start, rows = unit["block"]
    return Path(folder), start, rows


def _has(block: Block, name: str) -> bool:
    return (block.folder / f"{name}.npy").is_file()


def _free(block: Block, gone: list[str]) -> np.ndarray:
    free = np.ones(block.rows, bool)
    for path in gone:
        free[rows_between(Path(path), "document", block.start, block.end)["document"] - block.start] = False
    return free


def _save_gone(to: Path, documents: np.ndarray, kept: np.ndarray, value: np.ndarray | None = None) -> None:
    save_rows(to, GONE, by="document", document=documents, kept=kept, value=np.ones(len(documents)) if value is None else value)


def _save_table(path: Path, table: pa.Table) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    with pa.OSFile(str(temporary), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table.combine_chunks())
    temporary.replace(path)


def _rank_key(run: pa.Table, row: int) -> tuple[Any, ...]:
    """A key by which Python orders rows as `rank_order` does; ties end with the number of the document."""
    new, source, letters, name, high, low, document = (run.column(column)[row].as_py() for column in run.column_names)
    return (new, source, -letters, name is None, name or "", high, low, document)


def _bisect(run: pa.Table, key: list[Any]) -> int:
    class Rows:
        def __len__(self) -> int:
            return len(run)

        def __getitem__(self, row: int) -> tuple[Any, ...]:
            return _rank_key(run, row)

    return bisect.bisect_left(Rows(), tuple(key))


@njit(cache=True, nogil=True)
def _in_part(values, mask, part, parts):  # type: ignore[no-untyped-def]
    """The rows whose masked value falls into one of `parts` ranges of its hash."""
    chosen = np.empty(len(values), np.int64)
    found = 0
    for i in range(len(values)):
        if parts == 1 or ((mix64(values[i] & mask) >> np.uint64(32)) * np.uint64(parts)) >> np.uint64(32) == np.uint64(part):
            chosen[found] = i
            found += 1
    return chosen[:found]


@njit(cache=True, nogil=True)
def _take(taken, pairs):  # type: ignore[no-untyped-def]
    """Which pairs drop their second document; `taken` holds one bit per rank and is carried on."""
    chosen = np.zeros(len(pairs), np.bool_)
    for p in range(len(pairs)):
        low, high = pairs[p, 0], pairs[p, 1]
        if (taken[low >> 3] >> (low & 7)) & 1 or (taken[high >> 3] >> (high & 7)) & 1:
            continue
        taken[high >> 3] |= np.uint8(1 << (high & 7))
        chosen[p] = True
    return chosen
