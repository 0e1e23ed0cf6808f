"""Score every document's perplexity, cut each language into head, middle and tail, and drop what is asked."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field, model_validator

from penjing.config import Config as BaseConfig
from penjing.contract import CORPUS, FILES, Estimate, Inputs, Job
from penjing.data.engine import map_shards
from penjing.data.perplexity.tiers import FILE, cutoffs, read_cutoffs, tier_of, write_cutoffs

if TYPE_CHECKING:
    import pyarrow as pa

VERSION = 2
IN_ONE_PROCESS = 4 << 20
"""Most documents whose perplexities are sorted in one process (16 bytes each); cut-offs of more are found in parts, to the same bits."""
INPUTS = {"corpus": CORPUS, "model": FILES, "frozen": CORPUS + "?"}
OUTPUT = CORPUS


class Config(BaseConfig):
    """Where the cuts are and what goes."""

    head: float = Field(30, gt=0, le=100)
    """Percentile below which documents are `head`, the least surprising."""
    middle: float = Field(60, gt=0, le=100)
    """Percentile below which documents are `middle`; from it on they are `tail`."""
    basis: Literal["documents", "words", "bytes"] = "documents"
    """What the percentiles are shares of."""
    sources: tuple[str, ...] = ()
    """Only these sources are cut (web text, say); the rest is tier `all` and stays. Empty: every source."""
    per_source: bool = False
    """Cut every source by its own percentiles instead of all of a language together."""
    drop_tail: bool = True
    """Drop the tail."""
    low: float = Field(0.5, ge=0, lt=50)
    """Percentile below which text is suspected to be boilerplate (tier `low`); 0 has no such tier."""
    drop_low: bool = True
    """Drop the tier `low`."""

    @model_validator(mode="after")
    def _ordered(self) -> Config:
        if not self.low < self.head <= self.middle:
            raise ValueError("percentiles low < head <= middle")
        return self


def run(config: Config, inputs: Inputs, out: Path, job: Job) -> dict[str, Any]:
    """Write the corpus without what is dropped, `scores/` beside it, and `cutoffs.json`, which later data can be cut by."""
    from penjing.data.dedup.sieve import merge_funnels
    from penjing.data.document import finish_corpus, open_corpus
    from penjing.data.perplexity.store import manifest

    corpus = open_corpus(inputs["corpus"])
    model = Path(inputs["model"])
    languages = sorted(manifest(model)["languages"])
    state = out / "state"
    raw = [state / "raw" / shard.name for shard in corpus.shards]
    units = [
        {"name": shard.name, "shard": shard, "to": to, "model": model, "languages": languages}
        for shard, to in zip(corpus.shards, raw, strict=True)
    ]
    scored = map_shards(score_shard, units, job=job, label="score", state=state)
    if inputs.get("frozen") is not None:
        groups = read_cutoffs(Path(inputs["frozen"]) / FILE)
    else:
        many = sum(part["documents"] for part in scored) > IN_ONE_PROCESS
        groups = (_cut_in_parts if many else _cut)(config, raw, languages, job, state)
    write_cutoffs(
        out / FILE,
        groups,
        {
            "head": config.head,
            "middle": config.middle,
            "low": config.low,
            "basis": config.basis,
            "per_source": config.per_source,
        },
    )
    settings = {
        "sources": config.sources,
        "per_source": config.per_source,
        "drop_tail": config.drop_tail,
        "drop_low": config.drop_low,
    }
    parts = map_shards(
        tier_shard,
        [
            {
                "name": shard.name,
                "shard": shard,
                "raw": to,
                "cutoffs": out / FILE,
                "scores": out / "scores" / shard.name,
                "verdicts": state / "verdicts" / shard.name,
                "out": out,
                "languages": languages,
                **settings,
            }
            for shard, to in zip(corpus.shards, raw, strict=True)
        ],
        job=job,
        label="tier",
        state=state,
    )
    finish_corpus(
        out,
        keep=[shard.stem for shard in corpus.shards],
        provenance={"stage": "score", "corpus": dict(corpus.manifest["provenance"])},
    )
    shutil.rmtree(state)
    return {
        "funnel": merge_funnels(part["funnel"] for part in parts),
        "tiers": _sum_tiers(part["tiers"] for part in parts),
        "cutoffs": {
            name: {key: group[key] for key in ("low", "head", "middle", "documents")}
            for name, group in sorted(groups.items())
        },
    }


def score_shard(unit: dict[str, Any]) -> dict[str, Any]:
    """Write the scores of one shard, row by row, without tiers."""
    import pyarrow as pa
    import pyarrow.compute as pc

    from penjing.data.document import shard_batches
    from penjing.data.perplexity.store import load_language

    tables = []
    wanted = ["id", "lang", "source", "text"]
    for batch in shard_batches(Path(unit["shard"]), columns=wanted, rows=2048):
        size = batch.num_rows
        columns = {
            "perplexity": np.full(size, np.nan),
            "log_probability": np.zeros(size),
            "words": np.zeros(size, np.int64),
            "unknown": np.zeros(size, np.int64),
        }
        langs = np.asarray(batch.column("lang").fill_null("").to_pylist(), dtype=object)
        for lang in unit["languages"]:
            rows = np.flatnonzero(langs == lang)
            if len(rows):
                texts = batch.column("text") if len(rows) == size else batch.column("text").take(pa.array(rows))
                scores = load_language(Path(unit["model"]), lang).score(texts)
                columns["perplexity"][rows] = scores.perplexity
                columns["log_probability"][rows] = scores.log_probability
                columns["words"][rows] = scores.events
                columns["unknown"][rows] = scores.unknown
        sizes = pc.fill_null(pc.binary_length(batch.column("text")), 0).cast(pa.int64())
        tables.append(
            pa.table(
                {
                    **{name: batch.column(name) for name in wanted[:3]},
                    **columns,
                    "bytes": sizes,
                    "tier": pa.nulls(size, pa.string()),
                },
                schema=_score_schema(),
            )
        )
    _write(Path(unit["to"]), pa.concat_tables(tables) if tables else _score_schema().empty_table())
    return {"documents": sum(table.num_rows for table in tables)}


def tier_shard(unit: dict[str, Any]) -> dict[str, Any]:
    """Give every document of a shard its tier, write the scores, and part the shard."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from penjing.data.dedup.sieve import VERDICT_SCHEMA, sift

    table = pq.read_table(unit["raw"])
    groups = read_cutoffs(Path(unit["cutoffs"]))
    names = _groups(table, unit["languages"], unit["sources"], per_source=unit["per_source"])
    perplexity = table.column("perplexity").to_numpy()
    tiers = np.full(len(table), "all", dtype="<U6")
    bounds: list[str | None] = [None] * len(table)
    for name in sorted(set(names.tolist()) & set(groups)):
        rows = np.flatnonzero(names == name)
        tiers[rows] = tier_of(perplexity[rows], groups[name])
        for row in rows.tolist():
            bounds[row] = _bound(tiers[row], groups[name])
    table = table.set_column(table.schema.get_field_index("tier"), "tier", pa.array(tiers.tolist(), pa.string()))
    _write(Path(unit["scores"]), table)
    gone = ((tiers == "tail") & unit["drop_tail"]) | ((tiers == "low") & unit["drop_low"])
    rules = [f"perplexity-{tier}" if drop else None for tier, drop in zip(tiers.tolist(), gone.tolist(), strict=True)]
    values = np.where(np.isfinite(perplexity), perplexity, np.nan)
    verdicts = pa.table(
        [
            pa.array(rules, pa.string()),
            pa.array(values, pa.float64(), mask=~gone | np.isnan(values)),
            pa.array(bounds, pa.string()),
            pa.nulls(len(table), pa.string()),
        ],
        schema=VERDICT_SCHEMA,
    )
    _write(Path(unit["verdicts"]), verdicts)
    counted: dict[str, dict[str, dict[str, int]]] = {}
    for lang, tier, words, size in zip(
        table.column("lang").fill_null("").to_pylist(),
        tiers.tolist(),
        table.column("words").to_pylist(),
        table.column("bytes").to_pylist(),
        strict=True,
    ):
        item = counted.setdefault(lang, {}).setdefault(tier, {"documents": 0, "words": 0, "bytes": 0})
        item["documents"] += 1
        item["words"] += words
        item["bytes"] += size
    return {"funnel": sift(unit), "tiers": counted}


def _groups(table: pa.Table, languages: list[str], sources: list[str], *, per_source: bool) -> np.ndarray:
    """(N,) the cut-off group of each document: its language, or language and source; "" = not cut."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if not sources and not per_source:
        known = pc.is_in(table.column("lang"), value_set=pa.array(languages, pa.string()))
        return np.asarray(pc.if_else(known, table.column("lang"), "").to_numpy(), dtype=object)
    names = []
    for lang, source in zip(table.column("lang").to_pylist(), table.column("source").to_pylist(), strict=True):
        cut = lang in languages and (not sources or source in sources)
        names.append("" if not cut else f"{lang}/{source}" if per_source else lang)
    return np.asarray(names, dtype=object)


def _by_group(path: Path, settings: dict[str, Any]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """(perplexities, weights) of the documents of each group of one shard."""
    import pyarrow.parquet as pq

    basis = settings["basis"]
    table = pq.read_table(path, columns=["lang", "source", "perplexity", *([] if basis == "documents" else [basis])])
    names = _groups(table, settings["languages"], list(settings["sources"]), per_source=settings["per_source"])
    values = table.column("perplexity").to_numpy()
    mass = np.ones(len(table)) if basis == "documents" else table.column(basis).to_numpy().astype(float)
    return {name: (values[names == name], mass[names == name]) for name in sorted(set(names.tolist()) - {""})}


def spread_shard(unit: dict[str, Any]) -> dict[str, Any]:
    """Count the perplexities of a shard by their first bits, for each group; the counts go to a file."""
    from penjing.data.perplexity.spread import spread_of

    arrays: dict[str, np.ndarray] = {}
    documents: dict[str, int] = {}
    for number, (name, (values, mass)) in enumerate(_by_group(Path(unit["raw"]), unit).items()):
        finite = np.isfinite(values)
        spread = spread_of(values[finite], mass[finite])
        arrays |= {f"{number}.keys": spread.keys, f"{number}.weights": spread.weights, f"{number}.least": spread.least}
        documents[name] = spread.documents
    _write_arrays(Path(unit["to"]), arrays)
    return {"documents": documents}


def gather_shard(unit: dict[str, Any]) -> dict[str, Any]:
    """The perplexities of a shard in the buckets that percentiles lie in, equal ones put together; they go to a file."""
    from penjing.data.perplexity.spread import keys_of

    wanted = np.load(unit["needed"])
    arrays: dict[str, np.ndarray] = {}
    names: list[str] = []
    for name, (values, mass) in _by_group(Path(unit["raw"]), unit).items():
        finite = np.isfinite(values)
        values, mass = values[finite], mass[finite]
        inside = np.isin(keys_of(values), wanted[str(unit["groups"].index(name))])
        own, place = np.unique(values[inside], return_inverse=True)
        arrays |= {f"{len(names)}.values": own, f"{len(names)}.weights": np.bincount(place, mass[inside], len(own)).astype(float)}
        names.append(name)
    _write_arrays(Path(unit["to"]), arrays)
    return {"groups": names}


def _write_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    from penjing.files import atomic_write

    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def _cut_in_parts(config: Config, raw: list[Path], languages: list[str], job: Job, state: Path) -> dict[str, Any]:
    """The cut-offs of `_cut` without all perplexities in memory: counts, then the values that decide, each shard by a worker."""
    from penjing.data.perplexity.spread import Spread, buckets_needed, percentiles, together
    from penjing.data.perplexity.tiers import cutoffs_at, percents_of

    settings = {"languages": languages, "sources": config.sources, "per_source": config.per_source, "basis": config.basis}
    units: list[dict[str, Any]] = [
        {"name": path.stem, "raw": path, "to": state / "spread" / f"{path.stem}.npz", **settings} for path in raw]
    counted = map_shards(spread_shard, units, job=job, label="count perplexities", state=state)
    spreads: dict[str, Spread] = {}
    for unit, part in zip(units, counted, strict=True):
        with np.load(unit["to"]) as arrays:
            for number, (name, documents) in enumerate(part["documents"].items()):
                own = Spread(arrays[f"{number}.keys"], arrays[f"{number}.weights"], arrays[f"{number}.least"], documents)
                spreads[name] = together([spreads[name], own]) if name in spreads else own
    percents = percents_of(config.head, config.middle, config.low)
    names = sorted(spreads)
    needed = state / "needed.npz"
    _write_arrays(needed, {str(at): buckets_needed(spreads[name], percents) for at, name in enumerate(names)})
    units = [{"name": path.stem, "raw": path, "to": state / "decide" / f"{path.stem}.npz", "needed": needed, "groups": names, **settings}
             for path in raw]
    gathered = map_shards(gather_shard, units, job=job, label="find percentiles", state=state)
    values: dict[str, list[np.ndarray]] = {name: [] for name in names}
    weights: dict[str, list[np.ndarray]] = {name: [] for name in names}
    for unit, part in zip(units, gathered, strict=True):
        with np.load(unit["to"]) as arrays:
            for number, name in enumerate(part["groups"]):
                values[name].append(arrays[f"{number}.values"])
                weights[name].append(arrays[f"{number}.weights"])
    return {name: cutoffs_at(percentiles(spreads[name], percents, np.concatenate(values[name]), np.concatenate(weights[name])),
                             documents=spreads[name].documents, low=config.low) for name in names}


def _cut(config: Config, raw: list[Path], languages: list[str], job: Job, state: Path) -> dict[str, Any]:
    values: dict[str, list[np.ndarray]] = {}
    weights: dict[str, list[np.ndarray]] = {}
    settings = {"languages": languages, "sources": config.sources, "per_source": config.per_source, "basis": config.basis}
    for path in raw:
        for name, (found, mass) in _by_group(path, settings).items():
            values.setdefault(name, []).append(found)
            weights.setdefault(name, []).append(mass)
    return {
        name: cutoffs(
            np.concatenate(values[name]),
            np.concatenate(weights[name]),
            head=config.head,
            middle=config.middle,
            low=config.low,
        )
        for name in sorted(values)
    }


def _bound(tier: str, group: dict[str, Any]) -> str | None:
    if tier == "tail":
        return f">= {group['middle']:.6g}" if group["middle"] is not None else "no words"
    return f"< {group['low']:.6g}" if tier == "low" else None


def _sum_tiers(parts: Any) -> dict[str, Any]:
    total: dict[str, Any] = {}
    for part in parts:
        for lang, tiers in part.items():
            for tier, item in tiers.items():
                into = total.setdefault(lang, {}).setdefault(tier, dict.fromkeys(item, 0))
                for key, value in item.items():
                    into[key] += value
    return {lang: dict(sorted(tiers.items())) for lang, tiers in sorted(total.items())}


def _write(path: Path, table: pa.Table) -> None:
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    pq.write_table(table, temporary, compression="zstd")
    temporary.replace(path)


def price(config: Config, inputs: Inputs) -> Estimate:
    """At most the share of documents up to the `middle` percentile stays, when the tail is dropped."""
    before: Estimate = inputs["corpus"]
    share = (config.middle - (config.low if config.drop_low else 0)) / 100 if config.drop_tail else 1.0

    def part(amount: float | None) -> float | None:
        return None if amount is None else amount * share

    return Estimate(
        documents=part(before.documents),
        text_bytes=part(before.text_bytes),
        disk_bytes=part(before.disk_bytes),
        memory_bytes=1.5e9,
        notes=("shares of bytes differ from shares of documents",),
    )


def _score_schema() -> pa.Schema:
    import pyarrow as pa

    return pa.schema(
        [
            ("id", pa.string()),
            ("lang", pa.string()),
            ("source", pa.string()),
            ("perplexity", pa.float64()),
            ("log_probability", pa.float64()),
            ("words", pa.int64()),
            ("unknown", pa.int64()),
            ("bytes", pa.int64()),
            ("tier", pa.string()),
        ]
    )
