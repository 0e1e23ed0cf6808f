"""Bring raw text in: files of any usual kind become one corpus, damaged records are set aside with their place.

One unit of work is one file, or a stretch of about 64 MB of a plain JSON-lines or Parquet file. A source with
`limit_bytes` is read in order by one unit, so that the limit means the same documents whatever the number of workers.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from penjing.config import Config as Settings
from penjing.contract import CORPUS, Estimate, Job
from penjing.data import readers
from penjing.data.engine import map_shards
from penjing.data.readers import Damage, Options
from penjing.errors import InputError, fault
from penjing.files import read_json, size_of, write_json, write_text

VERSION = 2
INPUTS: dict[str, str] = {}
OUTPUT = CORPUS

UNIT_BYTES = 64 << 20
GONE = "file vanished"
_BATCH_BYTES = 4 << 20


class Source(Settings):
    """One collection of files."""

    name: str = Field(pattern=r"^[\w.-]+$")
    """Short name; documents carry it, mixtures and reports group by it."""
    path: str
    """A file, directory, glob, fsspec URL, `package:penjing.samples/NAME`, `cpython:topics` or `cpython:docstrings`."""
    lang: str | None = None
    """Language of documents that do not say it themselves ("zh", "en", …); the normalise stage checks it."""
    limit_bytes: int | None = Field(default=None, ge=1)
    """Stop after this many bytes of text (the document that crosses the limit is kept); None reads everything."""
    text_field: str = "text"
    """Field or column that holds the text; `ask+answer` joins several with a newline."""
    license: str | None = None
    """Written into each document's meta."""
    kind: str | None = None
    """jsonl, parquet, text, markdown, csv, html, warc, wet or tar; None tells by the file name."""
    encoding: str | None = None
    """Encoding to try first when a file is not UTF-8."""

    @field_validator("kind")
    @classmethod
    def _known_kind(cls, value: str | None) -> str | None:
        if value is not None and value not in readers.KINDS:
            raise ValueError(f"one of {', '.join(readers.KINDS)}")
        return value


class Config(Settings):
    """Settings of `collect`."""

    sources: list[Source] = Field(min_length=1)
    """What to read."""
    max_record_bytes: int = Field(default=64 << 20, ge=1024)
    """Longer records (one line, one page) are set aside as damaged."""
    max_damage: float = Field(default=0.05, ge=0, le=1)
    """Largest share of damaged records in one source; more stops the stage."""
    html: str = Field(default="own", pattern="^(own|resiliparse|trafilatura)$")
    """Extractor of the main text of HTML pages."""

    @field_validator("sources")
    @classmethod
    def _different_names(cls, value: list[Source]) -> list[Source]:
        twice = [name for name, number in Counter(source.name for source in value).items() if number > 1]
        if twice:
            raise ValueError(f"sources with different names ('{twice[0]}' occurs twice)")
        return value


def external(config: Config) -> list[Path]:
    """The local files the sources name, so that changed content makes another result."""
    found: list[Path] = []
    for source in config.sources:
        for name in readers.expand(source.path):
            if name.startswith(readers.CPYTHON):
                found.append(readers.cpython.version_file())
            elif not readers.is_url(name):
                found.append(Path(name))
    return list(dict.fromkeys(found))


def price(config: Config, inputs: Mapping[str, Any]) -> Estimate:
    """Bytes of text from file sizes: compressed files are taken as four times their size."""
    total = 0.0
    for source in config.sources:
        size = 0.0
        for name in readers.expand(source.path):
            if name.startswith(readers.CPYTHON):
                size += {"topics": 0.7e6, "docstrings": 1.5e6}[name.removeprefix(readers.CPYTHON)]
            elif not readers.is_url(name):
                grown = 4.0 if name.endswith((*readers.COMPRESSED, ".parquet")) else 1.0
                size += grown * size_of(Path(name))
        total += min(size, source.limit_bytes or size)
    return Estimate(text_bytes=total, disk_bytes=total / 2.5, memory_bytes=4e8)


def run(config: Config, inputs: Mapping[str, Any], out: Path, job: Job) -> dict[str, Any]:
    """Read every source into `out`; damaged records go to `out/damaged/<unit>.jsonl`."""
    from penjing.data.document import finish_corpus, tally

    units = list(_units(config, out))
    results = map_shards(collect_unit, units, job=job, label="collect", state=out / "state")
    renamed = _make_ids_unique(out, [unit["name"] for unit in units], job)
    corpus = finish_corpus(
        out,
        keep=[unit["name"] for unit in units],
        provenance={
            "stage": "collect",
            "version": VERSION,
            "sources": [source.model_dump() for source in config.sources],
        },
    )
    damaged: dict[str, dict[str, int]] = {}
    for result in results:
        for what, item in result["damaged"].items():
            tally(damaged, what, item["documents"], item["bytes"])
    read = {lang: dict(item) for lang, item in corpus.languages.items()}
    for item in damaged.values():
        tally(read, "", item["documents"], item["bytes"])
    _stop_on_damage(config, units, results, corpus.manifest["sources"])
    return {
        "documents": corpus.documents,
        "text_bytes": corpus.text_bytes,
        "damaged_records": sum(item["documents"] for item in damaged.values()),
        "renamed_ids": renamed,
        "encodings": dict(sorted(sum((Counter(result["encodings"]) for result in results), Counter()).items())),
        "funnel": {
            "in": dict(sorted(read.items())),
            "out": corpus.languages,
            "dropped": {f"damaged: {what}": item for what, item in sorted(damaged.items())},
            "edited": {},
            "samples": [sample for result in results for sample in result["samples"]][:40],
        },
    }


def collect_unit(unit: dict[str, Any]) -> dict[str, Any]:
    """Read one unit's files into one shard; counts of what was damaged."""
    from penjing.data.document import ShardWriter, documents, tally
    from penjing.data.ids import save_hashes

    source, out = unit["source"], Path(unit["out"])
    limit, taken = source["limit_bytes"], 0
    damaged: dict[str, dict[str, int]] = {}
    encodings: Counter[str] = Counter()
    notes: list[Damage] = []
    rows: list[dict[str, Any]] = []
    ids: list[str] = []
    waiting = 0
    with ShardWriter(out / f"{unit['name']}.parquet") as writer:
        for name in unit["files"]:
            options = Options(
                text_field=source["text_field"],
                max_record_bytes=unit["max_record_bytes"],
                html=unit["html"],
                encoding=source["encoding"],
                start=unit["start"],
                end=unit["end"],
            )
            for record in _records(name, options, source["kind"]):
                if isinstance(record, Damage):
                    notes.append(record)
                    tally(damaged, record.what, 1, record.size)
                    continue
                encodings[record.get("encoding", "utf-8")] += 1
                row = _row(record, source, name)
                rows.append(row)
                ids.append(row["id"])
                size = len(row["text"].encode("utf-8", "replace"))
                taken += size
                waiting += size
                if waiting >= _BATCH_BYTES:
                    writer.write(documents(rows))
                    rows, waiting = [], 0
                if limit is not None and taken >= limit:
                    break
            if limit is not None and taken >= limit:
                break
        writer.write(documents(rows))
    save_hashes(out / "state" / "ids" / "hashes" / f"{unit['name']}.npy", ids)
    if notes:
        lines = [
            json.dumps(
                {
                    "file": _short(note.file),
                    "offset": note.offset,
                    "what": note.what,
                    "bytes": note.size,
                    "sample": note.sample,
                },
                ensure_ascii=False,
            )
            for note in notes
        ]
        write_text(out / "damaged" / f"{unit['name']}.jsonl", "\n".join(lines) + "\n")
    samples = [
        {
            "id": f"{_short(note.file)}:{note.offset}",
            "lang": "",
            "rule": f"damaged: {note.what}",
            "value": note.size,
            "bound": "",
            "text": note.sample[:400],
        }
        for note in notes[:20]
    ]
    return {"damaged": damaged, "encodings": dict(encodings), "samples": samples}


def _records(name: str, options: Options, kind: str | None) -> Iterator[readers.Record | Damage]:
    """What is in a file; one that was there when the run began and cannot be opened any more is damage."""
    try:
        yield from readers.read(name, options, kind=kind)
    except InputError as error:
        if readers.is_url(name) or Path(name).exists():
            raise
        yield Damage(name, 0, GONE, 0, str(error)[:200])


def _units(config: Config, out: Path) -> Iterator[dict[str, Any]]:
    for source in config.sources:
        files = readers.expand(source.path)
        common = {
            "source": source.model_dump(),
            "out": out,
            "max_record_bytes": config.max_record_bytes,
            "html": config.html,
        }
        if source.limit_bytes is not None:
            yield {"name": f"{source.name}-00000", "files": files, "start": 0, "end": None, **common}
            continue
        number = 0
        for name in files:
            for start, end in _stretches(name, source.kind):
                yield {"name": f"{source.name}-{number:05d}", "files": [name], "start": start, "end": end, **common}
                number += 1


def _stretches(name: str, kind: str | None) -> list[tuple[int, int | None]]:
    kind = kind or readers.kind_of(name)
    if name.startswith(readers.CPYTHON) or readers.is_url(name):
        return [(0, None)]
    if kind == "jsonl" and not name.endswith(readers.COMPRESSED):
        size = Path(name).stat().st_size
        starts = list(range(0, max(size, 1), UNIT_BYTES))
        return [(start, start + UNIT_BYTES if start != starts[-1] else None) for start in starts]
    if kind == "parquet" and Path(name).stat().st_size > UNIT_BYTES:
        from penjing.data.readers.tables import row_groups

        edges, held = [0], 0
        for index, size in enumerate(row_groups(name)):
            held += size
            if held >= UNIT_BYTES:
                edges.append(index + 1)
                held = 0
        return [(start, end) for start, end in zip(edges, [*edges[1:], None], strict=True)]
    return [(0, None)]


def _row(record: dict[str, Any], source: dict[str, Any], name: str) -> dict[str, Any]:
    meta = record.get("meta") or {}
    if source["license"] is not None:
        meta = {**meta, "license": source["license"]}
    if record.get("encoding", "utf-8") not in ("utf-8", "utf-8-sig"):
        meta = {**meta, "encoding": record["encoding"]}
    row = {
        "id": record.get("id") or f"{source['name']}/{_short(name)}:{record['offset']}",
        "url": record.get("url"),
        "source": source["name"],
        "text": record["text"],
        "lang": record.get("lang") or source["lang"],
        "meta": json.dumps(meta, ensure_ascii=False, sort_keys=True),
    }
    return {key: value if value is None or value.isascii() else _whole(value) for key, value in row.items()}


def _whole(text: str) -> str:
    """Text without halves of characters, which JSON may hold and no encoding can write."""
    return text.encode("utf-8", "surrogatepass").decode("utf-8", "replace")


def _make_ids_unique(out: Path, shards: list[str], job: Job) -> int:
    """Give every later document with an id that was seen before the suffix `#2`, `#3`, …; how many there were.

    The plan is kept before the first shard is written again, so that an interrupted run ends with the same names.
    """
    from penjing.data.ids import renames

    state = out / "state" / "ids"
    kept = state / "plan.json"
    if not kept.is_file():
        files = [out / f"{shard}.parquet" for shard in shards]
        write_json(kept, renames(files, [state / "hashes" / f"{shard}.npy" for shard in shards], state=state, job=job))
    plan = read_json(kept)
    units = [
        {"name": shard, "shard": out / shard, "to": out / shard, "plan": kept} for shard in plan
    ]
    map_shards(rename_shard, units, job=job, label="rename", state=state)
    return sum(len(changes) for changes in plan.values())


def rename_shard(unit: dict[str, Any]) -> int:
    """Write one shard again with other ids for some of its documents."""
    import pyarrow as pa

    from penjing.data.document import ShardWriter, shard_batches

    changes = dict(read_json(Path(unit["plan"]))[unit["name"]])
    row = 0
    with ShardWriter(Path(unit["to"])) as writer:
        for batch in shard_batches(Path(unit["shard"])):
            names = batch.column("id").to_pylist()
            names = [changes.get(row + at, name) for at, name in enumerate(names)]
            row += len(names)
            writer.write(pa.Table.from_batches([batch]).set_column(0, "id", pa.array(names, pa.string())))
    return len(changes)


def _stop_on_damage(
    config: Config, units: list[dict[str, Any]], results: list[dict[str, Any]], sources: Mapping[str, Any]
) -> None:
    for source in config.sources:
        bad: Counter[str] = Counter()
        where = ""
        for unit, result in zip(units, results, strict=True):
            if unit["source"]["name"] == source.name:
                for what, item in result["damaged"].items():
                    bad[what] += item["documents"]
                    where = where or result["samples"][0]["id"]
        good = sources.get(source.name, {}).get("documents", 0)
        files = len({name for unit in units if unit["source"]["name"] == source.name for name in unit["files"]})
        if bad[GONE] > config.max_damage * files:
            raise InputError(
                fault(
                    f"{bad[GONE]} of {files} files of source '{source.name}' vanished while it was read",
                    where=source.path,
                    expected=f"at most a share of {config.max_damage:g}",
                    fix="put them back and run the same command again; what was read is kept",
                )
            )
        total = sum(bad.values())
        if total > config.max_damage * (total + good):
            what, number = bad.most_common(1)[0]
            raise InputError(
                fault(
                    f"{total} of {total + good} records of source '{source.name}' are damaged",
                    where=where,
                    found=f"{number} times '{what}'",
                    expected=f"at most a share of {config.max_damage:g}",
                    fix="see damaged/*.jsonl, repair the source or raise max_damage",
                )
            )
        if not good:
            raise InputError(fault(f"source '{source.name}' holds no documents", where=source.path))


def _short(name: str) -> str:
    return name if name.startswith(readers.CPYTHON) else Path(name).name


__all__ = [
    "INPUTS",
    "OUTPUT",
    "VERSION",
    "Config",
    "Source",
    "collect_unit",
    "external",
    "price",
    "run",
]
