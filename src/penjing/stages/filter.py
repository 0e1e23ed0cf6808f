"""Leave out what rules refuse: document, paragraph and sentence rules with a report of what each one did.

Besides the kept text the stage writes the statistics of every document (`stats/`), the dropped documents with rule, value and
bound (`dropped/`) and the report (`rules.json`). Given an earlier run over the same corpus as `measured`, its statistics are
used again, so a changed bound costs no second measuring.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import field_validator

from penjing.config import Config as Settings
from penjing.contract import CORPUS, Estimate, Job
from penjing.data.engine import map_shards
from penjing.errors import InputError, fault
from penjing.files import write_json

if TYPE_CHECKING:
    import pyarrow as pa

    from penjing.data.document import Corpus
    from penjing.data.measures.facts import PhraseLists
    from penjing.data.rules import RuleSet
    from penjing.data.rules_apply import Applied

VERSION = 2
INPUTS = {"corpus": CORPUS, "measured": CORPUS + "?"}
OUTPUT = CORPUS

_BINS = 40


class Config(Settings):
    """Settings of `filter`."""

    rule_set: str | list[str] = "ziya2"
    """ziya2, gopher, c4, fineweb, fineweb2-zh, the path of a .toml file, or a list of them."""
    rules: dict[str, Any] = {}
    """Changed bounds by rule id: `D01: 50`, `D01: {zh: 50, en: 20}`, `P03: false` (off); D27 stands for D27a to D27f."""
    lexicons: dict[str, list[str]] = {}
    """Word list files, one phrase a line: strict, soft, political, and additions to advertising, contact, interface, policy."""
    blocked_domains: list[str] = []
    """Files of host names, one a line, whose documents rule D40 drops."""
    exempt_sources: list[str] = []
    """Sources that pass untouched. Documents with language `code` always do."""

    @field_validator("rule_set")
    @classmethod
    def _known(cls, value: str | list[str]) -> str | list[str]:
        from penjing.data.rules import names

        for name in [value] if isinstance(value, str) else value:
            if not name.endswith(".toml") and name not in names():
                raise ValueError(f"one of {', '.join(names())}, or a .toml file")
        return value


def external(config: Config) -> list[Path]:
    """Rule files and word lists outside the package."""
    sets = [config.rule_set] if isinstance(config.rule_set, str) else config.rule_set
    lists = [path for paths in config.lexicons.values() for path in paths]
    return [Path(name) for name in [*(s for s in sets if s.endswith(".toml")), *lists, *config.blocked_domains]]


def price(config: Config, inputs: Mapping[str, Any]) -> Estimate:
    """At most what came in; the rules are checked."""
    _rules(config.model_dump())
    given = inputs.get("corpus")
    return Estimate(documents=getattr(given, "documents", None), text_bytes=getattr(given, "text_bytes", None),
                    disk_bytes=getattr(given, "disk_bytes", None), memory_bytes=5e8)


def run(config: Config, inputs: Mapping[str, Any], out: Path, job: Job) -> dict[str, Any]:
    """Every shard through the rules."""
    from penjing.data.document import finish_corpus, open_corpus
    from penjing.data.funnel import sum_funnels

    corpus = open_corpus(inputs["corpus"])
    settings = config.model_dump()
    rules = _rules(settings)
    measured = _measured(inputs.get("measured"), corpus)
    units: list[dict[str, Any]] = [
        {"name": shard.stem, "shard": shard, "out": out, "settings": settings,
         "stats": measured / "stats" / shard.name if measured else None} for shard in corpus.shards]
    results = map_shards(filter_unit, units, job=job, label="filter", state=out / "state")
    made = finish_corpus(out, keep=[unit["name"] for unit in units],
                         provenance={"stage": "filter", "version": VERSION, "settings": settings,
                                     "from": corpus.manifest["provenance"]})
    funnel = sum_funnels(results)
    funnel["out"] = made.languages
    report = _report(rules, results, corpus, made)
    report["histograms"] = _histograms(out / "stats", [unit["name"] for unit in units], rules)
    write_json(out / "rules.json", report)
    return {"documents": made.documents, "text_bytes": made.text_bytes,
            "dropped_documents": sum(item["documents"] for item in funnel["dropped"].values()),
            "cut_bytes": sum(item["bytes"] for item in funnel["edited"].values()),
            "funnel": funnel, "rules": report["rules"], "histograms": report["histograms"]}


def filter_unit(unit: dict[str, Any]) -> dict[str, Any]:
    """One shard through the rules."""
    import pyarrow as pa

    from penjing.data.document import DROPPED_SCHEMA, Counts, ShardWriter, count, shard_batches, tally
    from penjing.data.funnel import samples_of
    from penjing.data.normalise import CODE
    from penjing.data.rules_apply import apply, facts_of

    out, name = Path(unit["out"]), unit["name"]
    key = json.dumps(unit["settings"], sort_keys=True)
    rules, phrases = _compiled(key)
    exempt = set(unit["settings"]["exempt_sources"])
    came = Counts()
    dropped: dict[str, dict[str, int]] = {}
    samples: list[dict[str, Any]] = []
    totals: dict[str, dict[str, int]] = {rule.id: {} for rule in rules.rules}
    edited: dict[str, dict[str, int]] = {}
    earlier = _stats_reader(unit["stats"])
    columns = rules.measures_at("document")
    schema = pa.schema([("id", pa.string()), ("source", pa.string()), ("lang", pa.string()), ("bytes", pa.int64()),
                        *((column, pa.float32()) for column in columns)])
    with ShardWriter(out / f"{name}.parquet") as kept, ShardWriter(out / "stats" / f"{name}.parquet", schema) as stats, \
            ShardWriter(out / "dropped" / f"{name}.parquet", DROPPED_SCHEMA) as gone:
        for batch in shard_batches(Path(unit["shard"])):
            table = pa.Table.from_batches([batch])
            came.add(count(table))
            langs = ["" if source in exempt or lang == CODE else lang for lang, source in
                     zip(table.column("lang").to_pylist(), table.column("source").to_pylist(), strict=True)]
            facts = facts_of(table.column("text"), langs, table.column("url").to_pylist(), rules, phrases)
            applied = apply(facts, rules, stats=earlier(table.num_rows) if earlier else None)
            stats.write(_stats_table(table, applied, facts.offsets, schema))
            kept.write(table.set_column(3, "text", applied.texts).filter(pa.array(applied.keep)))
            refused = _dropped(table, applied)
            gone.write(refused)
            samples_of(refused, dropped, samples)
            _cut_samples(table, applied, samples)
            for rule_id, did in applied.tallies.items():
                for figure, number in vars(did).items():
                    totals[rule_id][figure] = totals[rule_id].get(figure, 0) + int(number)
    for rule in rules.rules:
        item = totals[rule.id]
        if rule.level != "document" and rule.action != "flag" and item.get("fired"):
            tally(edited, rule.id, item["documents"], item["bytes"])
    return {"in": came.languages, "out": {}, "dropped": dropped, "edited": edited, "samples": samples, "rules": totals}


def _rules(settings: Mapping[str, Any]) -> RuleSet:
    from penjing.data.rules import combine

    sets = settings["rule_set"]
    return combine([sets] if isinstance(sets, str) else sets, overrides=settings["rules"])


@functools.lru_cache(maxsize=4)
def _compiled(key: str) -> tuple[RuleSet, PhraseLists]:
    from penjing.data.rules import phrase_lists

    settings = json.loads(key)
    return _rules(settings), phrase_lists(settings["lexicons"], blocked_domains=settings["blocked_domains"])


def _measured(place: Path | None, corpus: Corpus) -> Path | None:
    from penjing.data.document import open_corpus

    if place is None:
        return None
    earlier = open_corpus(place)
    if earlier.manifest["provenance"].get("from") != corpus.manifest["provenance"] or \
            not all((place / "stats" / shard.name).is_file() for shard in corpus.shards):
        raise InputError(fault("these statistics are not of this corpus", where=place,
                               expected=f"a filter run over {corpus.path}"))
    return place


def _stats_reader(path: str | None) -> Any:
    """A function that gives the next rows of earlier statistics as columns; a column that is missing is measured again."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if path is None:
        return None
    table = pq.read_table(path)
    place = [0]

    def following(rows: int) -> dict[str, Any] | None:
        part = table.slice(place[0], rows)
        place[0] += rows
        return {name: part.column(name).to_numpy() for name in part.schema.names if part.schema.field(name).type == pa.float32()}

    return following


def _stats_table(table: pa.Table, applied: Applied, offsets: Any, schema: pa.Schema) -> pa.Table:
    import pyarrow as pa

    columns: dict[str, Any] = {name: table.column(name) for name in ("id", "source", "lang")}
    columns["bytes"] = pa.array(np.diff(offsets), pa.int64())
    columns.update({name: pa.array(applied.stats[name], pa.float32()) for name in schema.names[4:]})
    return pa.table(columns, schema=schema)


def _dropped(table: pa.Table, applied: Applied) -> pa.Table:
    import pyarrow as pa

    rows = np.flatnonzero(~applied.keep)
    part = table.select(["id", "source", "lang", "text"]).take(pa.array(rows))
    part = part.append_column("rule", pa.array([applied.rule[row] for row in rows.tolist()], pa.string()))
    part = part.append_column("value", pa.array(applied.value[rows], pa.float64()))
    return part.append_column("bound", pa.array([applied.bound[row] for row in rows.tolist()], pa.string()))


def _cut_samples(table: pa.Table, applied: Applied, samples: list[dict[str, Any]]) -> None:
    from penjing.data.funnel import SAMPLE_CHARACTERS, SAMPLES

    held: dict[str, int] = {}
    for sample in samples:
        held[sample["rule"]] = held.get(sample["rule"], 0) + 1
    for cut in applied.cuts:
        if held.get(cut["rule"], 0) < SAMPLES:
            held[cut["rule"]] = held.get(cut["rule"], 0) + 1
            row = table.slice(cut["row"], 1).select(["id", "lang"]).to_pylist()[0]
            samples.append({"id": row["id"], "lang": row["lang"] or "", "rule": cut["rule"], "value": cut["value"],
                            "bound": cut["bound"], "text": cut["text"][:SAMPLE_CHARACTERS]})


def _report(rules: RuleSet, results: list[Mapping[str, Any]], corpus: Corpus, made: Corpus) -> dict[str, Any]:
    """What each rule did. retention_without: share of documents that would be kept with the rule switched off."""
    entries = []
    for rule in rules.rules:
        item: dict[str, int] = {}
        for result in results:
            for figure, number in result["rules"][rule.id].items():
                item[figure] = item.get(figure, 0) + number
        entry = {**rule.as_json(), **item}
        if rule.level == "document" and rule.action == "drop":
            entry["retention_without"] = round((made.documents + item.get("sole", 0)) / max(1, corpus.documents), 6)
        entries.append(entry)
    return {"version": 1, "rule_set": rules.name, "documents_in": corpus.documents, "documents_out": made.documents,
            "retention": round(made.documents / max(1, corpus.documents), 6), "rules": entries}


def _histograms(folder: Path, shards: list[str], rules: RuleSet) -> dict[str, Any]:
    """Per measure and language: 40 bins between the 0.5th and 99.5th percentile, and the bounds of the rules that use it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    result: dict[str, Any] = {}
    columns = rules.measures_at("document")
    table = pa.concat_tables([pq.read_table(folder / f"{shard}.parquet", columns=["lang", *columns]) for shard in shards])
    langs = np.array(table.column("lang").to_pylist(), object)
    of_lang = {lang: np.flatnonzero(langs == lang) for lang in ("zh", "en")}
    for column in columns:
        values = table.column(column).to_numpy()
        for lang in ("zh", "en"):
            bounds = [rule.bound_text(lang) for rule in rules.at("document")
                      if rule.measures.get(lang) == column and lang in rule.bounds]
            chosen = values[of_lang[lang]]
            if not bounds or not len(chosen):
                continue
            low, high = (float(x) for x in np.percentile(chosen, [0.5, 99.5]))
            counts, edges = np.histogram(np.clip(chosen, low, high), _BINS, (low, high if high > low else low + 1))
            result.setdefault(column, {})[lang] = {"counts": counts.tolist(), "edges": [round(float(e), 6) for e in edges],
                                                   "bounds": bounds}
    return result
