"""Mix corpora: take documents of each source so often that the sources' shares are the weights asked for."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field

from penjing.config import Config as BaseConfig
from penjing.contract import CORPUS, Estimate, Inputs, Job
from penjing.data.engine import map_shards
from penjing.data.mixture import Share, plan, times
from penjing.errors import InputError, fault
from penjing.files import write_json
from penjing.stages.hold_out import position

if TYPE_CHECKING:
    from penjing.data.document import Corpus

VERSION = 1
BYTES_PER_TOKEN = 4.0
INPUTS = {"corpora": CORPUS + "*"}
OUTPUT = CORPUS


class Config(BaseConfig):
    """What goes in, in which shares."""

    weights: dict[str, float] = Field({})
    """Weight of each source; sources without one are left out. Empty: every source by its size."""
    tokens: float | None = Field(None, gt=0)
    """Size of the mixture in tokens, by `bytes_per_token`. None: the most that meets the weights within the epochs."""
    bytes_per_token: dict[str, float] = Field({})
    """Bytes of text per token, by source or language ("zh": 3.2, "en": 4.0); 4.0 where nothing is said."""
    epochs: float = Field(1.0, gt=0, le=100)
    """Most times a source is gone through."""
    source_epochs: dict[str, float] = Field({})
    """Other limits for some sources."""
    seed: int = 0
    """Another seed takes other documents."""


def run(config: Config, inputs: Inputs, out: Path, job: Job) -> dict[str, Any]:
    """Write the mixture and mixture.json with the shares wanted and got."""
    from penjing.data.dedup.sieve import merge_funnels
    from penjing.data.document import finish_corpus, open_corpus

    paths: list[Path] = inputs["corpora"]
    corpora = [open_corpus(Path(path)) for path in paths]
    if not corpora:
        raise InputError(fault("nothing to mix", fix="give the input corpora one or more corpora"))
    held = _available(corpora, config.bytes_per_token)
    available = {name: tokens for name, (_, tokens) in held.items()}
    weights = config.weights or available
    limits = {name: config.source_epochs.get(name, config.epochs) for name in available}
    shares = plan(available, weights, budget=config.tokens, epochs=limits)
    units = [
        {
            "name": f"{number:02d}-{shard.name}",
            "shard": shard,
            "out": out,
            "seed": config.seed,
            "epochs": {name: share.epochs for name, share in shares.items()},
        }
        for number, corpus in enumerate(corpora)
        for shard in corpus.shards
    ]
    parts = map_shards(take_shard, units, job=job, label="mixture", state=out / "state")
    finish_corpus(
        out,
        keep=[str(unit["name"]).removesuffix(".parquet") for unit in units],
        provenance={
            "stage": "mixture",
            "weights": weights,
            "corpora": [dict(corpus.manifest["provenance"]) for corpus in corpora],
        },
    )
    realised = _realised(parts, shares, held)
    write_json(out / "mixture.json", {"version": VERSION, "sources": realised})
    shutil.rmtree(out / "state", ignore_errors=True)
    return {
        "funnel": merge_funnels(part["funnel"] for part in parts),
        "sources": realised,
        "repeats": sum(part["repeats"] for part in parts),
        "tokens": sum(item["tokens"] for item in realised.values()),
    }


def take_shard(unit: dict[str, Any]) -> dict[str, Any]:
    """Write each document of a shard as often as its source's epochs say; repeats get an id of their own."""
    import pyarrow as pa
    import pyarrow.compute as pc

    from penjing.data.dedup.sieve import empty_funnel
    from penjing.data.document import ShardWriter, shard_batches, tally

    funnel = empty_funnel()
    repeats = 0
    taken: dict[str, dict[str, int]] = {}
    with ShardWriter(Path(unit["out"]) / unit["name"]) as writer:
        for batch in shard_batches(Path(unit["shard"])):
            ids, sources = batch.column("id").to_pylist(), batch.column("source").fill_null("").to_pylist()
            copies = np.array(
                [
                    times(position(name or "", unit["seed"]), unit["epochs"].get(source, 0.0))
                    for name, source in zip(ids, sources, strict=True)
                ],
                np.int64,
            )
            rows = np.repeat(np.arange(len(copies)), copies)
            number = np.arange(len(rows)) - np.repeat(np.cumsum(copies) - copies, copies)
            chosen = pa.Table.from_batches([batch]).take(pa.array(rows))
            named = [
                ids[row] if not n else f"{ids[row]}@{n + 1}"
                for row, n in zip(rows.tolist(), number.tolist(), strict=True)
            ]
            writer.write(chosen.set_column(0, "id", pa.array(named, pa.string())))
            sizes = pc.fill_null(pc.binary_length(batch.column("text")), 0).to_pylist()
            langs = batch.column("lang").fill_null("").to_pylist()
            for source, lang, size, count in zip(sources, langs, sizes, copies.tolist(), strict=True):
                tally(funnel["in"], lang, 1, size)
                if not count:
                    tally(funnel["dropped"], "not in the mixture", 1, size)
                else:
                    tally(funnel["out"], lang, 1, size)
                    repeats += count - 1
                    tally(taken, source, count, count * size)
    return {"funnel": funnel, "taken": taken, "repeats": repeats}


def _available(corpora: list[Corpus], rates: Mapping[str, float]) -> dict[str, tuple[float, float]]:
    """(bytes, tokens) by source."""
    found: dict[str, tuple[float, float]] = {}
    for corpus in corpora:
        tokens = sum(item["bytes"] / rates.get(lang, BYTES_PER_TOKEN) for lang, item in corpus.languages.items())
        mean = corpus.text_bytes / tokens if tokens else BYTES_PER_TOKEN
        for name, item in corpus.manifest["sources"].items():
            size, held = found.get(name, (0.0, 0.0))
            found[name] = (size + item["bytes"], held + item["bytes"] / rates.get(name, mean))
    return found


def _realised(
    parts: list[dict[str, Any]], shares: Mapping[str, Share], available: Mapping[str, tuple[float, float]]
) -> dict[str, Any]:
    """What each source gave, beside what it was to give."""
    documents, size, tokens = (dict.fromkeys(shares, 0), dict.fromkeys(shares, 0), dict.fromkeys(shares, 0.0))
    for part in parts:
        for source, item in part["taken"].items():
            documents[source] += item["documents"]
            size[source] += item["bytes"]
            tokens[source] += item["bytes"] * available[source][1] / available[source][0]
    total = sum(tokens.values())
    weight = sum(share.weight for share in shares.values())
    return {
        name: {
            "weight": share.weight / weight,
            "wanted_tokens": share.wanted,
            "tokens": tokens[name],
            "share": tokens[name] / total if total else 0.0,
            "epochs": share.epochs,
            "capped": share.capped,
            "documents": documents[name],
            "bytes": size[name],
        }
        for name, share in shares.items()
    }


def price(config: Config, inputs: Inputs) -> Estimate:
    """At most the epochs of everything, or the tokens asked for."""
    before: list[Estimate] = inputs["corpora"]
    sizes = [item.text_bytes for item in before]
    text = None if None in sizes else sum(size for size in sizes if size is not None) * config.epochs
    if config.tokens is not None:
        text = config.tokens * BYTES_PER_TOKEN if text is None else min(text, config.tokens * BYTES_PER_TOKEN)
    return Estimate(
        text_bytes=text, tokens=config.tokens, memory_bytes=400e6, disk_bytes=None if text is None else text * 0.5
    )
